//! The configuration as users write it, and as they get it wrong.
#![allow(clippy::unwrap_used)]

use super::*;

const SEAL_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn env(name: &str) -> Option<String> {
    match name {
        "PGTENANT_SEAL_KEY" => Some(format!("{SEAL_KEY}\n")),
        "OTHER_SEAL_KEY" => Some(SEAL_KEY.replace("AAEC", "BBEC")),
        "NO_SECRET" => None,
        "EMPTY" => Some("\n".to_owned()),
        "SHORT" => Some("short".to_owned()),
        _ => Some("a secret of more than thirty-two bytes".to_owned()),
    }
}

fn read_text(text: &str) -> Result<Config, Mistakes> {
    parse_with(text, Path::new("folder/pgtenant.toml"), &env)
}

const SMALL: &str = r#"
[servers.main]
host = "127.0.0.1"
[databases.app]
server = "main"
[roles.app]
sign_in = ["jwt"]
server_password = { env = "APP_PASSWORD" }
[[jwt.issuers]]
issuer = "https://login.example.com/"
audience = ["pgtenant"]
algorithms = ["HS256"]
secret = { env = "TOKEN_SECRET" }
[context]
seal_key = { env = "PGTENANT_SEAL_KEY" }
"#;

#[test]
fn a_small_configuration_gets_the_contracts_defaults() {
    let config = read_text(SMALL).unwrap();
    assert_eq!(config.listen.tcp, ["127.0.0.1:6432".parse().unwrap()]);
    assert_eq!((config.listen.max_clients, config.listen.sign_in_timeout.as_secs()), (10_000, 15));
    let pool = config.databases["app"].pool;
    assert_eq!((pool.size, pool.wait_timeout.as_secs(), pool.max_age.as_secs()), (20, 5, 3600));
    assert_eq!((pool.min_idle, config.databases["app"].pool_mode), (0, PoolMode::Transaction));
    assert_eq!(config.databases["app"].dbname, "app");
    assert_eq!(config.roles["app"].tenancy, Tenancy::Required);
    assert_eq!(config.context.seal_keys[0].expose(), (0..32).collect::<Vec<u8>>());
    assert_eq!(config.budget_latency.as_millis(), 200);
}

/// One line in addition, and what must be said of it.
fn refused(text: &str) -> String {
    read_text(text).unwrap_err().to_string()
}

#[test]
fn all_mistakes_come_at_once_each_with_its_key_and_line() {
    let text = SMALL.replace("host =", "hots =").replace("[\"HS256\"]", "[\"none\"]") + "id_typ = \"uuid\"\n";
    let said = refused(&text);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("folder/pgtenant.toml:2: servers.main.host: is missing"), "{said}");
    assert!(
        said.contains("folder/pgtenant.toml:3: servers.main.hots: unknown key; did you mean \"host\"?"),
        "{said}"
    );
    assert!(said.contains(":12: jwt.issuers.algorithms: \"none\" is not accepted"), "{said}");
    assert!(said.contains(":16: context.id_typ: unknown key; did you mean \"id_type\"?"), "{said}");
    assert!(lines.len() >= 4, "{said}");
}

#[test]
fn what_is_not_built_is_named_and_never_ignored() {
    for (section, line, key) in [
        ("[admin.operators]", "ops = { password = { env = \"X\" } }", "admin.operators"),
        ("[budget]", "objective = 0.999", "budget.objective"),
        ("[budget]", "slow_log = true", "budget.slow_log"),
    ] {
        let said = refused(&format!("{SMALL}{section}\n{line}\n"));
        assert!(
            said.contains(&format!("{key}: ")) && said.contains("not built in this version"),
            "{key}: {said}"
        );
    }
    assert!(read_text(&format!("{SMALL}[budget]\nslow_log = false\n[listen]\nunix = []\n")).is_ok());
}

#[test]
fn organizations_have_weights_by_their_ids() {
    let id = "018F6F3E-0000-7000-8000-000000000001";
    let read = |more: &str| read_text(&format!("{SMALL}[limits]\nweight = 2\n{more}"));
    let config = read(&format!("[limits.organization.\"{id}\"]\nweight = 4\n")).unwrap();
    let weights = [&id.to_lowercase(), "another"].map(|id| config.limits.of(id).weight);
    assert_eq!(weights, [4, 2]);
    let more = read(&format!(
        "max_clients = 7\ntransaction_time = \"5s\"\n[limits.organization.\"{id}\"]\nmax_clients = 0\n"
    ));
    let limits = more.unwrap().limits;
    assert_eq!(
        [limits.of(&id.to_lowercase()), limits.of("x")].map(|of| (of.weight, of.max_clients)),
        [(2, 0), (2, 7)]
    );
    assert_eq!(limits.of(&id.to_lowercase()).transaction_time, std::time::Duration::from_secs(5));
    assert_eq!(config.databases["app"].pool.per_organization, config.databases["app"].pool.size);
    let said = refused(&format!("{SMALL}[limits.organization.acme]\nweight = 4\n"));
    assert!(said.contains("limits.organization.acme: is no organization's id"), "{said}");
    for size in ["64", "\"1MiB\"", "\"1 GiB\""] {
        let said = refused(&format!("{SMALL}[listen]\nmax_kept = {size}\n"));
        assert!(said.contains("listen.max_kept: must be"), "{said}");
    }
    for (line, key) in [
        ("weight = 0", "limits.weight: "),
        ("max_clients = -1", "limits.max_clients: "),
        ("queries_per_second = 2000000", "limits.queries_per_second: "),
        ("transaction_time = 5", "limits.transaction_time: "),
        ("idle_in_transaction_time = \"8d\"", "limits.idle_in_transaction_time: "),
    ] {
        let said = refused(&format!("{SMALL}[limits]\n{line}\n"));
        assert!(said.contains(key), "{said}");
    }
}

#[test]
fn a_secret_in_the_file_is_refused_and_not_repeated() {
    let said = refused(&SMALL.replace("{ env = \"APP_PASSWORD\" }", "\"hunter2\""));
    assert!(said.contains("roles.app.server_password: is a secret and must not stand here"), "{said}");
    assert!(!said.contains("hunter2"));
    let said = refused(&SMALL.replace("{ env = \"APP_PASSWORD\" }", "\"hunter2"));
    assert!(said.contains(":8: not TOML") && !said.contains("hunter2"), "{said}");
    for (variable, complaint) in [("NO_SECRET", "is not set"), ("EMPTY", "is empty")] {
        let said = refused(&SMALL.replace("APP_PASSWORD", variable));
        assert!(said.contains(complaint), "{said}");
    }
    assert!(refused(&SMALL.replace("PGTENANT_SEAL_KEY", "SHORT")).contains("openssl rand -base64 32"));
    assert!(refused(&SMALL.replace("TOKEN_SECRET", "SHORT")).contains("at least 32 bytes"));
}

#[test]
fn what_does_not_agree_is_said() {
    for (from, to, complaint) in [
        ("server = \"main\"", "server = \"mian\"", "there is no [servers.mian]"),
        ("sign_in = [\"jwt\"]", "sign_in = []", "must name \"jwt\", \"oauth\" or \"scram\""),
        ("sign_in = [\"jwt\"]", "sign_in = [\"scram\"]", "roles.app.password: is missing"),
        ("algorithms = [\"HS256\"]", "algorithms = [\"RS256\"]", "a shared secret goes with"),
        (
            "secret = { env = \"TOKEN_SECRET\" }",
            "",
            "exactly one of jwks_url, jwks_file, key_file and secret",
        ),
        ("secret = { env = \"TOKEN_SECRET\" }", "jwks_file = \"k\"", "HS256 needs secret"),
        ("audience = [\"pgtenant\"]", "audience = []", "at least one audience"),
        ("[databases.app]", "[databases.pgtenant]", "kept for the console"),
        (
            "server = \"main\"",
            "server = \"main\"\npool_mode = \"sesion\"",
            "databases.app.pool_mode: must be one of \"session\", \"transaction\", \"statement\"",
        ),
        (
            "server = \"main\"",
            "server = \"main\"\npool = { size = 3, min_idle = 4 }",
            "databases.app.pool.min_idle: is more than the pool's size (3)",
        ),
        ("seal_key = { env = \"PGTENANT_SEAL_KEY\" }", "", "context.seal_key: is missing"),
        ("host = \"127.0.0.1\"", "host = \"h\"\nport = 70000", "whole number from 1 to 65535"),
        ("host = \"127.0.0.1\"", "host = \"h\"\nca = \"none.crt\"", "cannot read folder/none.crt"),
        ("[context]", "[context]\nseal_lifetime = \"2h\"", "must be between 10s and 60s"),
        ("[context]", "[context]\nseal_lifetime = \"2 weeks\"", "must be a duration"),
    ] {
        let said = refused(&SMALL.replace(from, to));
        assert!(said.contains(complaint), "{to}: {said}");
    }
    assert!(refused("").contains("databases: is missing"));
    assert!(refused("a = ").contains("pgtenant.toml:1: not TOML"));
    assert!(
        load(Path::new("nowhere.toml")).unwrap_err().to_string().contains("cannot read the configuration")
    );
}

fn list(text: &str) -> Vec<(String, Option<usize>, String)> {
    let mistakes = read_text(text).unwrap_err().list;
    mistakes.into_iter().map(|mistake| (mistake.key, mistake.line, mistake.message)).collect()
}

/// Exactly this key and line, and nothing else: no mistake drags others behind it.
fn only(text: &str, key: &str, line: Option<usize>, complaint: &str) {
    let found = list(text);
    assert_eq!(found.len(), 1, "{key}: {found:?}");
    assert_eq!((found[0].0.as_str(), found[0].1), (key, line), "{found:?}");
    assert!(found[0].2.contains(complaint), "{found:?}");
}

#[test]
fn one_mistake_is_reported_once() {
    let with = |from: &str, to: &str| SMALL.replace(from, to);
    only(&with("SEAL_KEY", "OTHER"), "context.seal_key", Some(15), "32 random bytes");
    only(&with("{ env = \"PGTENANT_SEAL_KEY\" }", "[]"), "context.seal_key", Some(14), "is missing");
    only(&with("[\"HS256\"]", "[]"), "jwt.issuers.algorithms", Some(12), "at least one algorithm");
    only(&with("[\"pgtenant\"]", "\"pgtenant\""), "jwt.issuers.audience", Some(11), "must be an array");
    only(&with("TOKEN_SECRET", "SHORT"), "jwt.issuers.secret", Some(13), "too short");
    only(&with("[\"jwt\"]", "\"jwt\""), "roles.app.sign_in", Some(7), "must be an array");
    only(&format!("{SMALL}[listen]\ntcp = \"x:1\"\nmax_clients = 5\n"), "listen.tcp", Some(17), "array");
    only(&format!("{SMALL}[listen]\ntcp = []\n"), "listen.tcp", Some(17), "at least one address");
    only(&format!("{SMALL}[claims]\nproject = \"a..b\"\n"), "claims.project", Some(17), "names of claims");
    only(&format!("{SMALL}[databases.\"a b\"]\n"), "databases.\"a b\".server", Some(16), "is missing");
}

#[test]
fn an_empty_table_of_databases_or_roles_is_missing() {
    assert!(refused("[databases]\n").contains("databases: is missing"));
    assert!(refused("[roles]\n").contains("roles: is missing"));
}

#[test]
fn what_no_role_needs_may_be_left_out() {
    let plain = "[servers.a]\nhost = \"h\"\n[databases.a]\nserver = \"a\"\n\
                 [roles.r]\nsign_in = [\"scram\"]\npassword = { env = \"P\" }\ntenancy = \"none\"\n";
    assert!(read_text(plain).is_ok(), "neither issuers nor a seal key");
    assert!(read_text(&format!("{plain}[jwt]\nleeway = \"0s\"\n")).is_ok());
    only(&plain.replace("none", "optional"), "context.seal_key", None, "is missing");
    only(&plain.replace("[\"scram\"]", "[\"scram\", \"jwt\"]"), "jwt.issuers", None, "is missing");
    assert!(
        read_text(&SMALL.replace("sign_in = [\"jwt\"]", "sign_in = [\"jwt\"]\ntenancy = \"none\"")).is_ok()
    );
}

#[test]
fn scram_agrees_with_password() {
    let both = SMALL.replace("[\"jwt\"]", "[\"jwt\", \"scram\"]\npassword = { env = \"P\" }");
    assert!(read_text(&both).is_ok());
    let useless = SMALL.replace("[\"jwt\"]", "[\"jwt\"]\npassword = { env = \"P\" }");
    only(&useless, "roles.app.password", Some(8), "of no use without");
}

#[test]
fn issuers_do_not_share_a_name_and_keys_fit_their_algorithms() {
    let issuer = &SMALL[SMALL.find("[[jwt").unwrap()..SMALL.find("[context]").unwrap()];
    only(&format!("{SMALL}{issuer}"), "jwt.issuers", Some(16), "is there twice");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("k.pem"), "x").unwrap();
    let file = folder.path().join("pgtenant.toml");
    let with = |algorithms: &str| {
        let text = SMALL.replace("secret = { env = \"TOKEN_SECRET\" }", "key_file = \"k.pem\"");
        parse_with(&text.replace("\"HS256\"", algorithms), &file, &env)
    };
    let config = with("\"EdDSA\"").unwrap();
    assert!(
        matches!(&config.jwt.issuers[0].keys, KeySource::KeyFile(path) if *path == folder.path().join("k.pem"))
    );
    assert!(with("\"RS256\", \"ES256\"").unwrap_err().to_string().contains("one key has one algorithm"));
    assert!(with("\"HS256\"").unwrap_err().to_string().contains("HS256 needs secret"));
}

#[test]
fn keys_are_fetched_by_https_alone() {
    let with = |url: &str| {
        SMALL
            .replace("secret = { env = \"TOKEN_SECRET\" }", &format!("jwks_url = {url:?}"))
            .replace("HS256", "ES256")
    };
    for (url, host, port, path) in [
        ("https://login.example.com/jwks.json", "login.example.com", 443, "/jwks.json"),
        ("https://127.0.0.1:8443/a?b=c", "127.0.0.1", 8443, "/a?b=c"),
        ("https://[::1]:8443/", "::1", 8443, "/"),
        ("https://[::1]/", "::1", 443, "/"),
    ] {
        let config = read_text(&with(url)).unwrap();
        let KeySource::JwksUrl(read) = &config.jwt.issuers[0].keys else { panic!("no URL") };
        assert_eq!((read.host.as_str(), read.port, read.path.as_str()), (host, port, path));
        assert_eq!(read.to_string(), url);
    }
    for url in [
        "http://login.example.com/jwks.json",
        "https://",
        "https:///jwks",
        "https://login.example.com",
        "https://user@login.example.com/",
        "https://login.example.com:0/",
        "https://login.example.com:99999/",
        "https://login.example.com/#x",
        "https://login.example.com/a b",
        "https://login.example.com/\r\nHost: other",
    ] {
        assert!(refused(&with(url)).contains("jwt.issuers.jwks_url: must look like"), "{url}");
    }
    assert!(refused(&with("https://x/").replace("ES256", "HS256")).contains("HS256 needs secret"));
    assert!(
        refused(&SMALL.replace("secret =", "jwks_ca = \"ca\"\nsecret ="))
            .contains("of no use without jwks_url")
    );
}

#[test]
fn a_secret_loses_one_newline_and_says_where_it_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgtenant.toml");
    let text = SMALL.replace("{ env = \"APP_PASSWORD\" }", "{ file = \"p\" }");
    for (content, secret) in [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a"), (" a ", " a ")] {
        std::fs::write(folder.path().join("p"), content).unwrap();
        let role = parse_with(&text, &file, &env).unwrap().roles["app"].clone();
        let password = role.server_password.clone().unwrap();
        assert_eq!(password.expose_str(), Some(secret), "{content:?}");
        assert_eq!(format!("{password:?}"), "<secret>");
    }
    std::fs::write(folder.path().join("p"), "\n").unwrap();
    assert!(parse_with(&text, &file, &env).unwrap_err().to_string().contains("p is empty"));
    std::fs::remove_file(folder.path().join("p")).unwrap();
    let said = parse_with(&text, &file, &env).unwrap_err().to_string();
    assert!(
        said.contains("cannot read") && said.contains(&*folder.path().join("p").to_string_lossy()),
        "{said}"
    );
    only(
        &SMALL.replace("{ env = \"APP_PASSWORD\" }", "{}"),
        "roles.app.server_password",
        Some(8),
        "exactly one of",
    );
}

#[test]
fn seal_keys_rotate_as_an_array() {
    let key = "{ env = \"PGTENANT_SEAL_KEY\" }";
    let other = "{ env = \"OTHER_SEAL_KEY\" }";
    let config = read_text(&SMALL.replace(key, &format!("[{other}, {key}]"))).unwrap();
    assert_eq!(config.context.seal_keys.len(), 2);
    only(&SMALL.replace(key, &format!("[{key}, {key}]")), "context.seal_key", Some(15), "stands twice");
}

#[test]
fn roots_that_nobody_would_look_at_are_a_mistake() {
    let with = |tls: &str| SMALL.replace("host = \"127.0.0.1\"", &format!("host = \"127.0.0.1\"\n{tls}"));
    for unused in ["ca = \"x\"", "tls = \"prefer\"\nca = \"x\"", "tls = \"disable\"\nca = \"x\""] {
        let said = refused(&with(unused));
        assert!(said.contains("servers.main.ca") && said.contains("of no use with this tls"), "{said}");
    }
    only(&with("tls = \"verify-ca\""), "servers.main.ca", Some(2), "is missing: verify-ca");
    assert!(read_text(&with("tls = \"verify-full\"")).is_ok(), "the system's roots");
    let direct = with("tls = \"require\"\ntls_negotiation = \"direct\"");
    assert!(read_text(&direct).unwrap().databases["app"].server.tls_directly);
    only(&direct.replace("require", "prefer"), "servers.main.tls_negotiation", Some(5), "no way back");
}

#[test]
fn certificates_come_with_their_keys_and_only_where_there_is_tls() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgtenant.toml");
    for name in ["c.crt", "c.key", "ca.crt"] {
        std::fs::write(folder.path().join(name), "x").unwrap();
    }
    let listen = |more: &str| {
        let text = format!("{SMALL}[listen.tls]\ncertificate = \"c.crt\"\nkey = \"c.key\"\n{more}\n");
        parse_with(&text, &file, &env).map_err(|mistakes| mistakes.to_string())
    };
    let tls = listen("client_ca = \"ca.crt\"").unwrap().listen.tls.unwrap();
    assert_eq!((tls.client_ca, tls.require), (Some(folder.path().join("ca.crt")), true));
    let said = listen("client_ca = \"gone.crt\"").unwrap_err();
    assert!(said.contains("listen.tls.client_ca: cannot read"), "{said}");
    let said = listen("client_ca = \"ca.crt\"\nrequire = false").unwrap_err();
    assert!(said.contains("listen.tls.client_ca: is of no use with require = false"), "{said}");
    let server = |host: &str| {
        let text = SMALL.replace("host = \"127.0.0.1\"", host);
        parse_with(&text, &file, &env).map_err(|mistakes| mistakes.to_string())
    };
    let both = "certificate = \"c.crt\"\nkey = \"c.key\"";
    let config = server(&format!("host = \"h\"\n{both}")).unwrap();
    let identity = config.databases["app"].server.identity.clone().unwrap();
    assert_eq!(identity.key, folder.path().join("c.key"));
    for (host, complaint) in [
        ("host = \"h\"\ncertificate = \"c.crt\"", "servers.main.key: is missing"),
        ("host = \"h\"\nkey = \"c.key\"", "servers.main.certificate: is missing"),
        ("host = \"h\"\ncertificate = \"c.crt\"\nkey = \"gone\"", "servers.main.key: cannot read"),
        (&format!("host = \"h\"\ntls = \"disable\"\n{both}"), "servers.main.certificate: is of no use"),
        (&format!("host = \"/run\"\n{both}"), "servers.main.certificate: is of no use"),
    ] {
        let said = server(host).unwrap_err();
        assert!(said.contains(complaint) && said.lines().count() == 1, "{host}: {said}");
    }
}

#[test]
fn sockets_have_directories_that_are_there_and_no_tls() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgtenant.toml");
    let long = "d".repeat(100);
    std::fs::create_dir(folder.path().join(&long)).unwrap();
    std::fs::create_dir(folder.path().join("run")).unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let with = |listen: &str| parse_with(&format!("{SMALL}[listen]\n{listen}\n"), &file, &env);
    let listen = with("tcp = []\nunix = [\"run\"]").unwrap().listen;
    assert_eq!((listen.tcp, listen.unix), (Vec::new(), vec![folder.path().join("run")]));
    for (listen, key, complaint) in [
        ("unix = \"run\"", "listen.unix", "must be an array"),
        ("unix = [\"gone\"]", "listen.unix", "cannot read"),
        ("unix = [\"file\"]", "listen.unix", "is not a directory"),
        (&format!("unix = [\"{long}\"]"), "listen.unix", "too long for a Unix socket"),
        ("tcp = []\nunix = []", "listen.tcp", "at least one address"),
    ] {
        let said = with(listen).unwrap_err().to_string();
        assert!(said.contains(&format!("{key}: ")) && said.contains(complaint), "{listen}: {said}");
    }
    let server = |tls: &str| SMALL.replace("host = \"127.0.0.1\"", &format!("host = \"/run\"{tls}"));
    let config = read_text(&server("")).unwrap();
    assert_eq!(config.databases["app"].server.socket_directory(), Some(Path::new("/run")));
    assert!(read_text(&server("\ntls = \"disable\"")).is_ok());
    only(&server("\ntls = \"require\""), "servers.main.tls", Some(4), "no TLS over a Unix socket");
}

#[test]
fn addresses_and_durations_are_read_as_written() {
    let text =
        format!("{SMALL}[listen]\ntcp = [\"localhost:6432\", \"[::1]:0\"]\nsign_in_timeout = \"1m\"\n");
    let listen = read_text(&text).unwrap().listen;
    assert_eq!(listen.tcp, ["127.0.0.1:6432".parse().unwrap(), "[::1]:0".parse().unwrap()]);
    assert_eq!(listen.sign_in_timeout.as_secs(), 60);
    only(&text.replace("localhost", "nolocalhost"), "listen.tcp", Some(17), "is no address and port");
    only(&text.replace("1m", "0s"), "listen.sign_in_timeout", Some(18), "between 1s and 1h");
}

/// The examples, and beside them the certificates that they speak of.
#[test]
fn every_example_loads() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["db.internal.example.com".to_owned()]).unwrap();
    for (name, content) in [
        ("server.crt", made.cert.pem()),
        ("root.crt", made.cert.pem()),
        ("server.key", made.signing_key.serialize_pem()),
        ("clients.crt", made.cert.pem()),
        ("pgtenant.crt", made.cert.pem()),
        ("pgtenant.key", made.signing_key.serialize_pem()),
    ] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let mut examples = Vec::new();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/config")).unwrap() {
        let path = entry.unwrap().path();
        let copy = folder.path().join(path.file_name().unwrap());
        std::fs::copy(&path, &copy).unwrap();
        examples.extend((path.extension().is_some_and(|extension| extension == "toml")).then_some(copy));
    }
    assert!(examples.len() >= 3, "{examples:?}");
    for example in examples {
        let text = std::fs::read_to_string(&example).unwrap();
        let config = parse_with(&text, &example, &env);
        assert!(config.is_ok(), "{}", config.unwrap_err());
        assert!(crate::auth::token::Keys::load(&config.unwrap().jwt).is_ok(), "{}", example.display());
    }
}

#[test]
fn settings_of_the_context_are_read_and_mistakes_in_them_named() {
    let with = |lines: &str| format!("{SMALL}[context.settings]\n{lines}\n");
    let config =
        read_text(&with("\"App.Org\" = \"$organization\"\n\"app.a\" = \"$claims.x.y\"\n\"app.b\" = \"$$5\""));
    let settings = config.unwrap().context.settings;
    let expected = [
        ("app.a", SettingValue::Claim("x.y".to_owned())),
        ("app.b", SettingValue::Literal("$5".to_owned())),
        ("app.org", SettingValue::Organization),
    ];
    let expected = expected.map(|(name, value)| ContextSetting { name: name.to_owned(), value });
    assert_eq!(settings, expected);
    for (line, said) in [
        ("organization = \"$organization\"", "context.settings.organization: is no name for a setting"),
        ("\"app.x-y\" = \"1\"", "is no name for a setting"),
        ("\"PgTenant.Seal\" = \"1\"", "is pgtenant's own"),
        ("\"a.b\" = \"1\"\n\"A.b\" = \"2\"", "stands twice"),
        ("\"a.b\" = \"$tenant\"", "must be $organization, $project"),
        ("\"a.b\" = \"$claims.\"", "must be $organization, $project"),
        ("\"a.b\" = 5", "must be a string in quotes"),
    ] {
        let found = refused(&with(line));
        assert!(found.contains(said), "{line}: {found}");
    }
}
