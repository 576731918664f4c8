//! From the document to the configuration: every key, its default, and what must agree with what.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

use super::context::context;
use super::document::{Book, Item, Mistake, Mistakes, Section};
use super::places::{admin, listen, servers};
use super::*;

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Reads a configuration file.
///
/// # Errors
/// All mistakes at once.
pub fn load(file: &Path) -> Result<Config, Mistakes> {
    match std::fs::read_to_string(file) {
        Ok(text) => parse(&text, file),
        Err(error) => {
            let advice = match error.kind() {
                ErrorKind::NotFound => {
                    "cannot read the configuration: there is no such file; give the right path with --config"
                        .to_owned()
                }
                ErrorKind::InvalidData => {
                    "cannot read the configuration: it is not UTF-8 text; a configuration is a TOML file"
                        .to_owned()
                }
                _ => format!(
                    "cannot read the configuration: {error}; let this user read it, or give another path with --config"
                ),
            };
            let mistake = Mistake { key: String::new(), line: None, message: advice };
            Err(Mistakes { file: file.to_owned(), list: vec![mistake] })
        }
    }
}

/// Reads a configuration from text; `file` is for relative paths and messages.
///
/// # Errors
/// All mistakes at once.
pub fn parse(text: &str, file: &Path) -> Result<Config, Mistakes> {
    parse_with(text, file, &|name| std::env::var(name).ok())
}

/// The same with another environment.
///
/// # Errors
/// All mistakes at once.
pub fn parse_with(text: &str, file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Mistakes> {
    let book = Book::new(text, file, env);
    let config = match DeTable::parse(text) {
        Ok(document) => read(&book, document.get_ref()),
        Err(error) => {
            let line = error.span().map(|span| book.line(span.start));
            book.note("", line, format!("not TOML: {}", error.message()));
            None
        }
    };
    let mistakes = book.into_mistakes();
    match config {
        Some(config) if mistakes.is_empty() => Ok(config),
        _ => Err(Mistakes { file: file.to_owned(), list: mistakes }),
    }
}

/// Sections are read in full whatever is wrong with others; `None` only when a mistake was noted.
fn read(book: &Book<'_>, document: &DeTable<'_>) -> Option<Config> {
    let root = Section::root(book, document);
    let listen = listen(&root.section("listen"));
    let admin_http = admin(&root.section("admin"));
    let servers = servers(&mut root.section("servers"));
    let databases = databases(&mut root.section("databases"), &servers);
    let roles = roles(&mut root.section("roles"));
    let needs_token = roles
        .values()
        .any(|role| role.sign_in_jwt || role.sign_in_oauth || role.tenancy == Tenancy::Required);
    let needs_seal = roles.values().any(|role| role.tenancy != Tenancy::None);
    let jwt_section = root.section("jwt");
    let revoked = jwt_section.get("revoked").and_then(|item| item.file());
    let jwt = jwt(&jwt_section, needs_token);
    let claims = claims(&root.section("claims"));
    let context = context(&root.section("context"), needs_seal);
    let limits = limits::limits(&mut root.section("limits"), context.id_type);
    let budget_latency = budget(&root.section("budget"));
    if databases.is_empty() {
        book.note("databases", None, "is missing: name at least one, as [databases.app]");
    }
    if roles.is_empty() {
        book.note("roles", None, "is missing: name at least one, as [roles.app]");
    }
    Some(Config {
        listen: listen?,
        admin_http,
        databases: whole(databases)?,
        roles,
        jwt: jwt?,
        revoked,
        claims,
        context,
        limits,
        budget_latency,
    })
}

/// A table of named things; `None` for one that is there but wrong, so that its name is still known to others.
pub(super) type Named<T> = BTreeMap<String, Option<Arc<T>>>;

/// All of them, if none is wrong.
fn whole<T>(named: Named<T>) -> Option<BTreeMap<String, Arc<T>>> {
    named.into_iter().map(|(name, thing)| Some((name, thing?))).collect()
}

fn databases(section: &mut Section<'_, '_>, servers: &Named<Server>) -> Named<Database> {
    let mut databases = BTreeMap::new();
    for (name, item) in section.entries() {
        if name == "pgtenant" {
            item.note("the name pgtenant is kept for the console; choose another");
        }
        let database = database(&name, &item.into_section(), servers);
        databases.insert(name, database.map(Arc::new));
    }
    databases
}

fn database(name: &str, section: &Section<'_, '_>, servers: &Named<Server>) -> Option<Database> {
    let dbname = or(section.get("dbname").map(|i| i.text()), name.to_owned());
    let modes = [
        ("session", PoolMode::Session),
        ("transaction", PoolMode::Transaction),
        ("statement", PoolMode::Statement),
    ];
    let pool_mode = or(section.get("pool_mode").map(|i| i.choice(&modes)), PoolMode::default());
    let pool = pool(&section.section("pool"));
    let item = section.require("server", "the name of one of [servers]")?;
    let server = item.text()?;
    match servers.get(&server) {
        // A server that is there but wrong has its own mistake.
        Some(found) => {
            Some(Database { name: name.to_owned(), server: found.clone()?, dbname, pool_mode, pool })
        }
        None => {
            item.note(format!("there is no [servers.{server}]; add it, or name one that is there"));
            None
        }
    }
}

fn pool(section: &Section<'_, '_>) -> PoolLimits {
    let day = 24 * HOUR;
    let size = or(section.get("size").map(|i| i.number(1, 10_000)), 20) as usize;
    let min_idle = section.get("min_idle");
    let kept = min_idle.as_ref().and_then(|item| item.number(0, 10_000)).unwrap_or(0) as usize;
    if let Some(item) = min_idle.filter(|_| kept > size) {
        item.note(format!("is more than the pool's size ({size}); raise size, or lower min_idle"));
    }
    let each = section.get("per_organization");
    let per_organization = each.as_ref().and_then(|item| item.number(1, 10_000)).map_or(size, |n| n as usize);
    if let Some(item) = each.filter(|_| per_organization > size) {
        item.note(format!("is more than the pool's size ({size}); raise size, or lower per_organization"));
    }
    PoolLimits {
        size,
        per_organization,
        min_idle: kept,
        wait_timeout: or(section.get("wait_timeout").map(|i| i.duration(MILLISECOND, HOUR)), 5 * SECOND),
        idle_timeout: or(section.get("idle_timeout").map(|i| i.duration(SECOND, day)), 600 * SECOND),
        max_age: or(section.get("max_age").map(|i| i.duration(SECOND, 30 * day)), HOUR),
    }
}

fn roles(section: &mut Section<'_, '_>) -> BTreeMap<String, Arc<Role>> {
    let entries = section.entries().into_iter();
    entries.map(|(name, item)| (name.clone(), Arc::new(role(name, &item.into_section())))).collect()
}

/// A role is read even if it is wrong: what it needs from other sections is then still checked.
fn role(name: String, section: &Section<'_, '_>) -> Role {
    let tenancies =
        [("required", Tenancy::Required), ("optional", Tenancy::Optional), ("none", Tenancy::None)];
    let tenancy = or(section.get("tenancy").map(|i| i.choice(&tenancies)), Tenancy::Required);
    let server_password = section.get("server_password").and_then(Item::secret);
    let password = section.get("password").map(Item::secret);
    let mut role = Role {
        name,
        sign_in_jwt: false,
        sign_in_oauth: false,
        sign_in_scram: None,
        tenancy,
        server_password,
    };
    let item = section.require("sign_in", "how clients sign in: [\"jwt\"] or [\"scram\"]");
    let Some((item, methods)) = item.and_then(|item| item.texts().map(|methods| (item, methods))) else {
        return role;
    };
    let mut scram = false;
    for method in &methods {
        match method.as_str() {
            "jwt" => role.sign_in_jwt = true,
            "scram" => scram = true,
            "oauth" => role.sign_in_oauth = true,
            other => {
                item.note(format!("\"{other}\" is not a way to sign in; use \"jwt\", \"oauth\" or \"scram\""))
            }
        }
    }
    if methods.is_empty() {
        item.note("must name \"jwt\", \"oauth\" or \"scram\"");
    }
    if scram && password.is_none() {
        section.note_at("password", "is missing: \"scram\" needs a password or a SCRAM-SHA-256 verifier");
    }
    if let (Some(wrong), false) = (section.get("password"), scram) {
        wrong.note("is of no use without \"scram\" in sign_in; remove it");
    }
    role.sign_in_scram = password.flatten();
    role
}

fn jwt(section: &Section<'_, '_>, is_needed: bool) -> Option<Jwt> {
    let leeway = or(section.get("leeway").map(|i| i.duration(Duration::ZERO, 60 * SECOND)), 5 * SECOND);
    let list = section.get("issuers");
    let entries = list.as_ref().and_then(Item::items).unwrap_or_default();
    if is_needed && entries.is_empty() {
        section.note_at(
            "issuers",
            "is missing: a role needs tokens; say whose tokens are accepted, as [[jwt.issuers]]",
        );
    }
    let mut named = BTreeSet::new();
    let mut issuers = Some(Vec::new());
    for item in entries {
        let section = item.into_section();
        if let Some(name) = section.get("issuer").and_then(|i| i.text_quietly())
            && !named.insert(name.clone())
        {
            section.note(format!("issuer \"{name}\" is there twice; give it all its keys in one JWKS"));
        }
        issuers = issuers.zip(issuer(&section)).map(|(mut issuers, issuer)| {
            issuers.push(issuer);
            issuers
        });
    }
    Some(Jwt { issuers: issuers?, leeway })
}

fn issuer(section: &Section<'_, '_>) -> Option<Issuer> {
    let issuer = section.require("issuer", "the exact iss of its tokens").and_then(|i| i.text());
    let audience = section.require("audience", "what its tokens' aud must contain, such as [\"pgtenant\"]");
    let audience = audience.and_then(|item| {
        let audience = item.texts()?;
        if audience.is_empty() {
            item.note("must name at least one audience");
        }
        Some(audience)
    });
    let algorithms = section.require("algorithms", "such as [\"RS256\"]").and_then(|item| {
        let algorithms = item.texts()?;
        for algorithm in &algorithms {
            if !["HS256", "RS256", "ES256", "EdDSA"].contains(&algorithm.as_str()) {
                item.note(format!("\"{algorithm}\" is not accepted; use HS256, RS256, ES256 or EdDSA"));
            }
        }
        if algorithms.is_empty() {
            item.note("must name at least one algorithm");
        }
        Some(algorithms).filter(|algorithms| !algorithms.is_empty())
    });
    let keys = keys(section, algorithms.as_deref());
    let oauth_scope = or(section.get("oauth_scope").map(|i| i.text()), "openid".to_owned());
    Some(Issuer { issuer: issuer?, audience: audience?, algorithms: algorithms?, oauth_scope, keys: keys? })
}

/// `algorithms` is none when they are wrong themselves; then only the keys are looked at.
fn keys(section: &Section<'_, '_>, algorithms: Option<&[String]>) -> Option<KeySource> {
    let (secret, key_file, jwks_file) =
        (section.get("secret"), section.get("key_file"), section.get("jwks_file"));
    let (jwks_url, jwks_ca) = (section.get("jwks_url"), section.get("jwks_ca"));
    if let (Some(ca), None) = (&jwks_ca, &jwks_url) {
        ca.note("is of no use without jwks_url; remove it");
    }
    let is_hs256 = algorithms.is_some_and(|list| list.iter().any(|algorithm| algorithm == "HS256"));
    match (secret, key_file, jwks_file, jwks_url) {
        (Some(secret), None, None, None) => {
            if algorithms.is_some_and(|list| list.iter().any(|algorithm| algorithm != "HS256")) {
                secret.note("a shared secret goes with algorithms = [\"HS256\"] and no other");
            }
            let place = secret.pin();
            let secret = secret.secret()?;
            if secret.expose().len() < 32 {
                place.note("is too short: HS256 needs at least 32 bytes (RFC 7518 section 3.2)");
            }
            Some(KeySource::Secret(secret))
        }
        (None, Some(file), None, None) => {
            refuse_hs256(&file, is_hs256);
            if algorithms.is_some_and(|list| list.len() > 1) {
                file.note("one key has one algorithm; name just that one in algorithms");
            }
            Some(KeySource::KeyFile(file.file()?))
        }
        (None, None, Some(file), None) => {
            refuse_hs256(&file, is_hs256);
            Some(KeySource::JwksFile(file.file()?))
        }
        (None, None, None, Some(url)) => {
            refuse_hs256(&url, is_hs256);
            let ca = jwks_ca.map(|ca| ca.file());
            let read = jwks_url_of(&url);
            Some(KeySource::JwksUrl(JwksUrl { ca: ca.map_or(Some(None), |ca| ca.map(Some))?, ..read? }))
        }
        _ => {
            section.note("must have exactly one of jwks_url, jwks_file, key_file and secret");
            None
        }
    }
}

/// `https://host[:port]/path[?query]`: nothing that could be read in two ways.
fn jwks_url_of(item: &Item<'_, '_>) -> Option<JwksUrl> {
    const FORM: &str = "must look like \"https://login.example.com/.well-known/jwks.json\"";
    let text = item.text()?;
    let Some(rest) = text.strip_prefix("https://") else {
        item.note(format!("{FORM}; keys that come in clear could be anyone's"));
        return None;
    };
    let path = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path);
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address, port),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => Some(443),
        None => None,
        Some(port) => port.parse().ok().filter(|port| *port > 0),
    };
    let is_plain = |c: char| {
        c.is_ascii_graphic() && !matches!(c, '#' | '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}')
    };
    let is_host =
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':'));
    let (Some(port), true, true) = (port, is_host, path.starts_with('/') && path.chars().all(is_plain))
    else {
        item.note(FORM);
        return None;
    };
    Some(JwksUrl { host: host.to_owned(), port, path: path.to_owned(), ca: None })
}

/// A public key taken for a shared secret would let anyone who knows it mint tokens.
fn refuse_hs256(file: &Item<'_, '_>, is_hs256: bool) {
    if is_hs256 {
        file.note(
            "holds public keys, but HS256 needs secret; remove HS256 from algorithms, or use secret instead",
        );
    }
}

fn claims(section: &Section<'_, '_>) -> ClaimPaths {
    let path = |key, default: &str| or(section.get(key).map(|i| claim_path(&i)), default.to_owned());
    ClaimPaths {
        organization: path("organization", "org_id"),
        project: path("project", "project_id"),
        subject: path("subject", "sub"),
        roles: path("roles", "roles"),
    }
}

fn claim_path(item: &Item<'_, '_>) -> Option<String> {
    let path = item.text()?;
    if path.split('.').any(str::is_empty) {
        item.note("must be names of claims with single dots between them, such as \"app.org_id\"");
        return None;
    }
    Some(path)
}

fn budget(section: &Section<'_, '_>) -> Duration {
    section.not_built("objective", "");
    if let Some(item) = section.get("slow_log")
        && item.flag() == Some(true)
    {
        item.not_built("");
    }
    or(section.get("latency").map(|i| i.duration(MILLISECOND, 60 * SECOND)), Duration::from_millis(200))
}

/// The value; the default where the key is absent or wrong (what is wrong was noted, and nothing will be served).
pub(super) fn or<T>(value: Option<Option<T>>, default: T) -> T {
    value.flatten().unwrap_or(default)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
