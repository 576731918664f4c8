//! `pgtenant token mint`: tokens for development.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::times::seconds;
use super::{Failure, refusal, usage};
use crate::auth::signing::{Algorithm, SigningKey};

/// Options of `token mint`.
#[derive(clap::Args)]
#[command(after_help = "Example:
  pgtenant token mint --key dev.pem --issuer https://dev.example/ --audience pgtenant --subject ann \\
      --organization 018f6f3e-0000-7000-8000-000000000001 --role editor --expires-in 15m
  PGPASSWORD=$(pgtenant token mint ...) psql -h localhost -p 6432 -U app app")]
pub(super) struct Args {
    /// Private key (PKCS#8 PEM), or the file with the shared secret for HS256.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// By default what the key is.
    #[arg(long, value_enum, ignore_case = true)]
    algorithm: Option<Algorithm>,
    /// The key's name; by default the one in the JWK Set beside the key (dev.jwks.json for dev.pem), else none.
    #[arg(long, value_name = "ID")]
    kid: Option<String>,
    /// `iss`, exactly as configured.
    #[arg(long, value_name = "URL")]
    issuer: String,
    /// `aud`; several make a list.
    #[arg(long, value_name = "NAME", required = true)]
    audience: Vec<String>,
    /// `sub`: who it is.
    #[arg(long, value_name = "ID")]
    subject: String,
    /// The organization; several make a list, of which the client picks one.
    #[arg(long, value_name = "ID", required = true)]
    organization: Vec<String>,
    /// The project; none means the whole organization, several make a list.
    #[arg(long, value_name = "ID")]
    project: Vec<String>,
    /// A role; may be given several times.
    #[arg(long, value_name = "NAME")]
    role: Vec<String>,
    /// How long it is valid: 90s, 15m, 1h, 7d.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = seconds)]
    expires_in: u64,
    /// Not valid before this has passed.
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    not_before_in: Option<u64>,
    /// Another claim, as NAME=JSON; wins over all others, so that wrong tokens can be made too (exp=1).
    #[arg(long = "claim", value_name = "NAME=JSON", value_parser = claim)]
    claims: Vec<(String, Value)>,
    /// Where the organization stands; dots descend (`claims.organization` in the configuration).
    #[arg(long, value_name = "PATH", default_value = "org_id")]
    organization_claim: String,
    /// Where the project stands.
    #[arg(long, value_name = "PATH", default_value = "project_id")]
    project_claim: String,
    /// Where the roles stand.
    #[arg(long, value_name = "PATH", default_value = "roles")]
    roles_claim: String,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    println!("{}", mint(args, SystemTime::now())?);
    Ok(())
}

/// The token that `args` ask for at the time `now`.
pub(super) fn mint(args: &Args, now: SystemTime) -> Result<String, Failure> {
    let key = read_key(&args.key, args.algorithm)?;
    let kid = args.kid.clone().or_else(|| sibling_kid(&args.key, &key));
    let key = key.with_kid(kid);
    key.sign(&Value::Object(claims(args, now)?)).map_err(|error| refusal(error.to_string()))
}

fn claims(args: &Args, now: SystemTime) -> Result<Map<String, Value>, Failure> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut claims = Map::new();
    claims.insert("iss".to_owned(), args.issuer.as_str().into());
    claims.insert("aud".to_owned(), one_or_list(&args.audience));
    claims.insert("sub".to_owned(), args.subject.as_str().into());
    claims.insert("iat".to_owned(), now.into());
    claims.insert("exp".to_owned(), (now + args.expires_in).into());
    if let Some(wait) = args.not_before_in {
        claims.insert("nbf".to_owned(), (now + wait).into());
    }
    put(&mut claims, &args.organization_claim, one_or_list(&args.organization))?;
    if !args.project.is_empty() {
        put(&mut claims, &args.project_claim, one_or_list(&args.project))?;
    }
    if !args.role.is_empty() {
        put(&mut claims, &args.roles_claim, args.role.clone().into())?;
    }
    claims.extend(args.claims.iter().cloned());
    Ok(claims)
}

fn one_or_list(texts: &[String]) -> Value {
    match texts {
        [one] => one.as_str().into(),
        list => list.to_vec().into(),
    }
}

/// Puts a value where the configuration's paths look for it.
fn put(claims: &mut Map<String, Value>, path: &str, value: Value) -> Result<(), Failure> {
    match path.split_once('.') {
        None => {
            claims.insert(path.to_owned(), value);
            Ok(())
        }
        Some((first, rest)) => {
            let inner = claims.entry(first).or_insert_with(|| Value::Object(Map::new()));
            let inner = inner.as_object_mut().ok_or_else(|| {
                usage(format!(
                    "the claim path {path} runs through {first}, which is no object; give another path"
                ))
            })?;
            put(inner, rest, value)
        }
    }
}

fn claim(text: &str) -> Result<(String, Value), String> {
    let (name, json) = text.split_once('=').ok_or("must be NAME=JSON")?;
    let value = serde_json::from_str(json).map_err(|_| {
        format!("the value of {name} is not JSON; a text needs quotes, as in '{name}=\"text\"'")
    })?;
    Ok((name.to_owned(), value))
}

/// The key in a file: PEM, or a text that is a shared secret.
fn read_key(file: &Path, wanted: Option<Algorithm>) -> Result<SigningKey, Failure> {
    let shown = file.display();
    let text = std::fs::read(file).map(Zeroizing::new).map_err(|error| {
        usage(format!("cannot read {shown}: {error}; make a key with: pgtenant token keygen"))
    })?;
    let is_pem = text.trim_ascii_start().starts_with(b"-----BEGIN");
    let key = if is_pem {
        SigningKey::from_pem(&text)
    } else {
        SigningKey::from_private(Algorithm::Hs256, without_newline(&text))
    };
    let key = key.map_err(|error| usage(format!("{shown}: {error}")))?;
    match wanted {
        Some(wanted) if wanted != key.algorithm() => Err(usage(format!(
            "{shown} is a key for {}, not {}; leave --algorithm out or give another --key",
            key.algorithm().name(),
            wanted.name()
        ))),
        _ => Ok(key),
    }
}

/// One newline at the end belongs to the file, not to the secret: as the configuration reads it.
fn without_newline(text: &[u8]) -> &[u8] {
    match text.strip_suffix(b"\n") {
        Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
        None => text,
    }
}

/// The name that the JWK Set beside a key gives it.
fn sibling_kid(file: &Path, key: &SigningKey) -> Option<String> {
    let prefix = file.to_str()?.strip_suffix(".pem")?;
    let text = std::fs::read(format!("{prefix}.jwks.json")).ok()?;
    let set: Value = serde_json::from_slice(&text).ok()?;
    let own: Value = serde_json::from_str(&key.public_jwks()).ok()?;
    let own = own.get("keys")?.get(0)?;
    let is_own =
        |jwk: &&Value| ["kty", "crv", "x", "y", "n", "e"].iter().all(|name| jwk.get(name) == own.get(name));
    set.get("keys")?.as_array()?.iter().find(is_own)?.get("kid")?.as_str().map(str::to_owned)
}
