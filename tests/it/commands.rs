//! Every command but `serve` in operation: what it prints, how it ends, and what it leaves behind.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::client;
use crate::harness::gate::{Gate, Setup, Written};
use crate::harness::org;
use crate::harness::postgres::{self, ROWS_PER_ORGANIZATION, password_of};

#[test]
fn check_tells_all_mistakes_with_file_line_and_key() {
    let setup = Setup::new(5432, "app")
        .set("listen", "max_clients", "0")
        .set("listen", "nonsense", "1")
        .set("databases.app", "server", r#""elsewhere""#)
        .set("databases.app.pool", "wait_timeout", r#""soon""#)
        .set("roles.app", "tenancy", r#""perhaps""#)
        .set("roles.plain", "server_password", r#""in-clear-text""#);
    let mistakes = [
        ("listen.max_clients", "max_clients = "),
        ("listen.nonsense", "nonsense = "),
        ("databases.app.server", "server = \"elsewhere\""),
        ("databases.app.pool.wait_timeout", "wait_timeout = "),
        ("roles.app.tenancy", "tenancy = \"perhaps\""),
        ("roles.plain.server_password", "server_password = \"in-clear-text\""),
    ];
    let written = setup.write();
    let text = run(&["check"], Some(&written));
    assert_eq!(text.code, 2, "{text:?}");
    assert_eq!(text.err.lines().count(), mistakes.len(), "{text:?}");
    assert!(!text.err.contains("in-clear-text"), "a secret is shown: {text:?}");
    let json = run(&["check", "--format", "json"], Some(&written));
    assert_eq!((json.code, json.err.as_str()), (2, ""));
    let findings: Vec<Value> = serde_json::from_str(&json.out).unwrap();
    assert_eq!(findings.len(), mistakes.len(), "{findings:?}");
    for (key, content) in mistakes {
        let line = 1 + setup.text().lines().position(|line| line.starts_with(content)).unwrap();
        let start = format!("{}:{line}: {key}: ", written.path().display());
        assert!(text.err.lines().any(|told| told.starts_with(&start)), "{start} is not in {text:?}");
        let finding = findings.iter().find(|finding| finding["key"] == key).expect(key);
        assert_eq!(finding["line"], line, "{finding}");
        assert!(finding["message"].as_str().is_some_and(|message| !message.is_empty()), "{finding}");
    }
}

#[test]
fn check_is_content_with_a_good_file_and_says_what_is_wrong_with_no_file() {
    let written = Setup::new(5432, "app").write();
    let good = run(&["check"], Some(&written));
    assert_eq!((good.code, good.err.as_str()), (0, ""));
    assert!(good.out.contains("no mistakes"), "{good:?}");
    let json = run(&["check", "--format", "json"], Some(&written));
    assert_eq!((json.code, json.out.trim()), (0, "[]"));
    for command in [&["check"][..], &["serve"], &["install", "--print"]] {
        let missing = run(&[command, &["--config", "/nowhere/pgtenant.toml"]].concat(), None);
        assert_one_sentence(&missing, 2, &["/nowhere/pgtenant.toml", "no such file"]);
    }
}

#[tokio::test]
async fn check_connect_signs_in_to_every_server_as_every_role() {
    let database = postgres::shared().database().await;
    let written = Gate::with(&database).write();
    let good = run(&["check", "--connect"], Some(&written));
    assert_eq!((good.code, good.err.as_str()), (0, ""), "{good:?}");
    for role in ["app: ok (sealed)", "plain: ok"] {
        assert!(good.out.contains(&format!("databases.app as {role}\n")), "{good:?}");
    }
    let json = run(&["check", "--connect", "--format", "json"], Some(&written));
    assert_eq!((json.code, json.out.trim()), (0, "[]"));
}

#[tokio::test]
async fn check_connect_names_what_each_server_lacks() {
    let database = postgres::shared().database().await;
    let admin = database.admin().await;
    // Roles belong to the whole cluster, which other tests use too.
    let bypass = format!("bypass_{}", postgres::random_name());
    let create = format!(
        "CREATE ROLE {bypass} LOGIN BYPASSRLS PASSWORD '{}'; ALTER TABLE items OWNER TO {bypass}; \
         CREATE SCHEMA theirs AUTHORIZATION {bypass}; ALTER ROLE {bypass} SET search_path = theirs, public; \
         ALTER ROLE {bypass} SET log_statement = 'all'",
        password_of(&bypass)
    );
    admin.batch_execute(&create).await.unwrap();
    let setup = Gate::with(&database).role(&bypass, &["jwt"], "required");
    let written = setup.secret("roles.plain", "server_password", "not-it").write();
    let before = run(&["check", "--connect"], Some(&written));
    admin.batch_execute("DROP SCHEMA pgtenant CASCADE").await.unwrap();
    let text = run(&["check", "--connect"], Some(&written));
    let json = run(&["check", "--connect", "--format", "json"], Some(&written));
    let drop = format!("ALTER TABLE items OWNER TO postgres; DROP OWNED BY {bypass}; DROP ROLE {bypass}");
    admin.batch_execute(&drop).await.unwrap();
    assert_eq!([before.code, text.code, json.code], [1, 1, 1]);
    let app_is_ok = "databases.app as app: ok (sealed)\n";
    assert!(before.out.contains(app_is_ok) && !text.out.contains(app_is_ok), "{before:?}{text:?}");
    let may_not =
        format!("databases.app as {bypass}: the role may not use the SQL interface; run: pgtenant install");
    assert!(before.out.contains(&may_not), "{may_not} is not in {before:?}");
    let bypasses = format!("ALTER ROLE \"{bypass}\" NOBYPASSRLS");
    let findings: Vec<Value> = serde_json::from_str(&json.out).unwrap();
    for (role, words) in [
        ("app", "is not installed; run: pgtenant install"),
        (bypass.as_str(), bypasses.as_str()),
        (bypass.as_str(), "is not installed; run: pgtenant install"),
        (bypass.as_str(), "may create objects in SCHEMA theirs"),
        (bypass.as_str(), "settings of its own (log_statement, search_path)"),
        (bypass.as_str(), "logs statements with their parameters"),
        (bypass.as_str(), "the owner of items and may switch its policies off"),
        ("plain", "password authentication failed for user \"plain\""),
    ] {
        let key = format!("databases.app as {role}");
        let told =
            text.out.lines().find(|line| line.starts_with(&format!("{key}: ")) && line.contains(words));
        assert!(told.is_some(), "{key}: {words} is not in {text:?}");
        let is_it = |finding: &&Value| {
            finding["key"] == key.as_str() && finding["message"].as_str().is_some_and(|m| m.contains(words))
        };
        assert!(findings.iter().any(|finding| is_it(&finding)), "{key}: {words} is not in {findings:?}");
    }
    assert_eq!(findings.len(), 8, "{findings:?}");
    assert!(!text.out.contains("not-it") && !json.out.contains("not-it"), "a password is shown");
}

#[tokio::test]
async fn serve_names_the_port_that_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (section, key, value) in
        [("listen", "tcp", format!("[\"{address}\"]")), ("admin", "http", format!("\"{address}\""))]
    {
        let refused = Setup::new(5432, "app").set(section, key, &value).try_run().await;
        let (status, log) = refused.err().expect("the port is taken");
        assert_eq!(status.code(), Some(1), "{log}");
        let told: Vec<&str> = log.lines().filter(|line| line.contains(&address)).collect();
        assert_eq!(told.len(), 1, "{log}");
        assert!(told[0].starts_with("pgtenant: ") && told[0].contains("choose another port"), "{log}");
    }
}

#[tokio::test]
async fn generated_keys_and_minted_tokens_are_accepted_by_a_gate() {
    let database = postgres::shared().database().await;
    let folder = tempfile::tempdir().unwrap();
    let keys: Vec<Generated> =
        ["HS256", "RS256", "ES256", "EdDSA"].iter().map(|name| Generated::by(folder.path(), name)).collect();
    let setup = keys.iter().fold(Gate::with(&database), |setup, key| setup.toml(&key.toml));
    let gate = setup.run().await;
    for key in &keys {
        let token = key.mint(&[]);
        let client = client::connect(&gate, "app", &token).await;
        let found =
            client::value(&client, "SELECT count(*) || ' of ' || min(body) FROM items").await.unwrap();
        assert_eq!(found, Some(format!("{ROWS_PER_ORGANIZATION} of org-1")), "{}", key.issuer);
        for shown in [inspect(&[], &token), inspect(&["--format", "json"], &token)] {
            assert_eq!(shown.code, 0, "{shown:?}");
            assert!(shown.out.contains(&org(1)) && shown.out.contains(&key.issuer), "{shown:?}");
        }
        let accepted = inspect(&["--config", gate.config().path().to_str().unwrap()], &token);
        assert_eq!(accepted.code, 0, "{accepted:?}");
        assert!(accepted.out.contains(&format!("accepted: organization {}", org(1))), "{accepted:?}");
    }
    let of = |key: &Generated, args: &[&str], reason: &str| {
        let refused = inspect(&["--config", gate.config().path().to_str().unwrap()], &key.mint(args));
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.out.contains(&format!("token refused: {reason}")), "{refused:?}");
    };
    of(&keys[2], &["--claim", "exp=1"], "expired");
    of(&keys[2], &["--not-before-in", "1h"], "not yet valid");
    of(&keys[2], &["--audience", "other", "--claim", "aud=\"other\""], "audience");
}

#[test]
fn keygen_keeps_what_is_there_and_the_private_part_private() {
    let folder = tempfile::tempdir().unwrap();
    for (algorithm, private) in [("ES256", "dev.pem"), ("HS256", "dev.secret")] {
        let prefix = folder.path().join("dev");
        let keygen = ["token", "keygen", "--algorithm", algorithm, "--out", prefix.to_str().unwrap()];
        assert_eq!(run(&keygen, None).code, 0);
        let file = folder.path().join(private);
        let text = std::fs::read(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let again = run(&keygen, None);
        assert_one_sentence(&again, 1, &[private, "--force"]);
        assert_eq!(std::fs::read(&file).unwrap(), text, "it was replaced");
        assert_eq!(run(&[&keygen[..], &["--force"]].concat(), None).code, 0);
        assert_ne!(std::fs::read(&file).unwrap(), text, "it was not replaced");
    }
}

#[test]
fn bad_usage_ends_with_two_and_help_has_an_example() {
    let config = Setup::new(5432, "app").write();
    let path = config.path();
    let path = path.to_str().unwrap();
    for args in [
        &[][..],
        &["nonsense"],
        &["serve"],
        &["serve", "--config", path, "--nonsense"],
        &["check", "--config", path, "--format", "xml"],
        &["install", "--config", path],
        &["demo", "--port", "x"],
        &["token", "keygen", "--algorithm", "RS512", "--out", "x"],
        &[
            "token",
            "mint",
            "--key",
            "/nowhere/x.pem",
            "--issuer",
            "i",
            "--audience",
            "a",
            "--subject",
            "s",
            "--organization",
            "o",
        ],
    ] {
        let refused = run(args, None);
        assert_eq!((refused.code, refused.out.as_str()), (2, ""), "{args:?}");
        assert!(!refused.err.is_empty(), "{args:?}");
    }
    for command in
        ["serve", "check", "demo", "install", "token", "token keygen", "token mint", "token inspect"]
    {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = run(&args, None);
        assert_eq!(help.code, 0, "{command}");
        let (_, example) = help.out.split_once("Example").expect(command);
        assert!(example.contains(&format!("pgtenant {command}")), "{command}: {example}");
    }
}

#[test]
fn the_demo_takes_its_tour_and_leaves_nothing_behind() {
    let home = Home::new();
    let demo = home.demo(&["--once", "--port", "0", "--http", "0", "--format", "json"]);
    let steps: Vec<Value> = serde_json::from_str(&demo.out).unwrap();
    assert!(steps.len() >= 8, "{steps:?}");
    // Other tests run beside this one: how long a query takes is measured elsewhere.
    let is_timed = |step: &Value| {
        step["expected"].as_str().is_some_and(|expected| expected.contains("p99"))
            || step["what"] == "/metrics: queries over the budget"
    };
    let in_time = steps.iter().all(|step| step["right"] == true);
    assert_eq!(demo.code, i32::from(!in_time), "{demo:?}");
    for step in &steps {
        assert!(step["right"] == true || is_timed(step), "{step}");
        assert!(step["what"].as_str().is_some_and(|what| !what.is_empty()), "{step}");
    }
    for phrase in ["listening for clients on ", "serving http on "] {
        let address = demo.err.lines().find_map(|line| line.strip_prefix(phrase)).expect(phrase);
        assert!(TcpStream::connect(address).is_err(), "{address} still answers");
    }
    home.assert_deserted();
}

#[test]
fn the_demo_names_the_port_that_is_taken_and_leaves_nothing_behind() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for ports in [["--port", &port, "--http", "0"], ["--port", "0", "--http", &port]] {
        let home = Home::new();
        let refused = home.demo(&[&["--once"], &ports[..]].concat());
        assert_eq!((refused.code, refused.out.as_str()), (1, ""), "{refused:?}");
        let told = refused.err.lines().last().unwrap();
        assert!(told.starts_with("pgtenant: ") && told.contains(&format!("127.0.0.1:{port}")), "{refused:?}");
        home.assert_deserted();
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub fn run(args: &[&str], config: Option<&Written>) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
    command.args(args);
    if let Some(config) = config {
        command.arg("--config").arg(config.path());
    }
    finish(&mut command, "")
}

fn finish(command: &mut Command, input: &str) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

pub fn assert_one_sentence(ran: &Ran, code: i32, words: &[&str]) {
    assert_eq!((ran.code, ran.out.as_str(), ran.err.lines().count()), (code, "", 1), "{ran:?}");
    assert!(words.iter().all(|word| ran.err.contains(word)), "{words:?} are not in {ran:?}");
}

fn inspect(args: &[&str], token: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
    finish(command.args(["token", "inspect", "-"]).args(args), token)
}

/// What `token keygen` made.
struct Generated {
    issuer: String,
    key: String,
    /// What it said is to be pasted, for an issuer of its own.
    toml: String,
}

impl Generated {
    fn by(folder: &Path, algorithm: &str) -> Self {
        let prefix = folder.join(algorithm).display().to_string();
        let made = run(&["token", "keygen", "--algorithm", algorithm, "--out", &prefix], None);
        assert_eq!((made.code, made.err.as_str()), (0, ""));
        let toml = &made.out[made.out.find("[[jwt.issuers]]").expect("what to paste")..];
        let issuer = format!("https://{}.dev.example/", algorithm.to_lowercase());
        let suffix = if algorithm == "HS256" { "secret" } else { "pem" };
        let toml = toml.replace("https://dev.example/", &issuer);
        Self { toml, key: format!("{prefix}.{suffix}"), issuer }
    }

    fn mint(&self, args: &[&str]) -> String {
        let usual = ["token", "mint", "--key", &self.key, "--issuer", &self.issuer, "--subject", "ann"];
        let organization = org(1);
        let usual = [&usual[..], &["--audience", "pgtenant", "--organization", &organization]].concat();
        let minted = run(&[&usual, args].concat(), None);
        assert_eq!((minted.code, minted.err.as_str()), (0, ""));
        minted.out.trim_end().to_owned()
    }
}

/// A place for temporary files of one demo's own.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let open = std::fs::Permissions::from_mode(0o755);
        let prefix = format!("pgt-demo-{}-", postgres::random_name());
        Self(tempfile::Builder::new().prefix(&prefix).permissions(open).tempdir().unwrap())
    }

    fn demo(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
        finish(command.arg("demo").args(args).env("TMPDIR", self.0.path()), "")
    }

    /// No file, and no process that names the place: both PostgreSQL and the shell that keeps it do.
    fn assert_deserted(&self) {
        let left: Vec<_> = std::fs::read_dir(self.0.path()).unwrap().flatten().map(|it| it.path()).collect();
        assert!(left.is_empty(), "{left:?}");
        let listed = Command::new("ps").args(["-A", "-ww", "-o", "args="]).output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout);
        assert!(listed.contains(&std::env::args().next().unwrap()), "not even this test: {listed}");
        let place = self.0.path().to_str().unwrap();
        let left: Vec<_> = listed.lines().filter(|line| line.contains(place)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
