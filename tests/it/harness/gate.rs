//! The proxy: the real binary with a configuration written for one test.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::issuer::{Issuer, Token};
use super::postgres::{Database, password_of};

/// A configuration being made. Values are TOML text: `"4"`, `"\"5s\""`.
///
/// What there is without further ado: database `app`; role `app` (jwt, tenancy required), role `plain` (scram with
/// `plain-password`, tenancy none); four servers at most; one ES256 issuer; the seal's key that is installed.
pub struct Setup {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    issuers: Vec<Issuer>,
    jwks_url: Option<String>,
    files: Vec<(String, Vec<u8>)>,
    environment: Vec<(String, String)>,
    appended: String,
    descriptors: Option<u32>,
    hosts: Option<PathBuf>,
}

/// 32 bytes, the same in every database of the tests.
pub const SEAL_KEY: &str = "dGhpcyBpcyAzMiBieXRlcyBvZiBhIHRlc3Qga2V5ISE=";

/// A running proxy; dropped, it is killed. Made by [`Gate::with`] and [`Setup::run`].
pub struct Gate {
    child: Mutex<Child>,
    pid: u32,
    lines: Arc<Mutex<Vec<String>>>,
    port: u16,
    http_port: u16,
    config: Written,
    /// The first of the configured ones.
    pub issuer: Issuer,
    pub database: String,
}

/// A configuration in a folder of its own, removed with the value.
pub struct Written {
    folder: tempfile::TempDir,
}

impl Written {
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("pgtenant.toml")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Setup {
    /// Failed sign-ins cost nothing: many tests are about them.
    pub fn new(port: u16, dbname: &str) -> Self {
        let setup = Self {
            sections: BTreeMap::new(),
            issuers: vec![Issuer::es256()],
            jwks_url: None,
            files: Vec::new(),
            environment: Vec::new(),
            appended: String::new(),
            descriptors: None,
            hosts: None,
        };
        setup
            .set("listen", "tcp", r#"["127.0.0.1:0"]"#)
            .set("listen", "failed_sign_in_delay", "\"0s\"")
            .set("admin", "http", r#""127.0.0.1:0""#)
            .set("servers.main", "host", r#""127.0.0.1""#)
            .set("servers.main", "port", &port.to_string())
            .set("servers.main", "tls", r#""disable""#)
            .set("databases.app", "server", r#""main""#)
            .set("databases.app", "dbname", &format!("\"{dbname}\""))
            .pool_size(4)
            .secret("context", "seal_key", SEAL_KEY)
            .role("app", &["jwt"], "required")
            .role("plain", &["scram"], "none")
    }

    /// Sets a key to a TOML value, in a section such as `databases.app.pool`.
    pub fn set(mut self, section: &str, key: &str, value: &str) -> Self {
        self.sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// Removes a key again.
    pub fn unset(mut self, section: &str, key: &str) -> Self {
        self.sections.get_mut(section).map(|section| section.remove(key));
        self
    }

    /// Removes a section.
    pub fn remove(mut self, section: &str) -> Self {
        self.sections.remove(section);
        self
    }

    /// Sets a key to `{ file = ... }` with this text in it.
    pub fn secret(self, section: &str, key: &str, text: &str) -> Self {
        let name = format!("{section}.{key}.secret");
        self.set(section, key, &format!("{{ file = \"{name}\" }}")).file(&name, text)
    }

    /// A file beside the configuration.
    pub fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.retain(|(other, _)| other != name);
        self.files.push((name.to_owned(), content.into()));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// So many file descriptors and no more.
    pub fn descriptors(mut self, limit: u32) -> Self {
        self.descriptors = Some(limit);
        self
    }

    /// It sees this file as `/etc/hosts`.
    pub fn hosts(mut self, file: &Path) -> Self {
        self.hosts = Some(file.to_owned());
        self
    }

    /// A role that exists in the template; with `scram`, its password here is the one it has there.
    pub fn role(self, name: &str, sign_in: &[&str], tenancy: &str) -> Self {
        let section = format!("roles.{name}");
        let password = password_of(name);
        let setup = self
            .set(&section, "sign_in", &format!("{sign_in:?}"))
            .set(&section, "tenancy", &format!("{tenancy:?}"))
            .secret(&section, "server_password", &password);
        match sign_in.contains(&"scram") {
            true => setup.secret(&section, "password", &password),
            false => setup.unset(&section, "password"),
        }
    }

    pub fn pool_size(self, size: usize) -> Self {
        self.set("databases.app.pool", "size", &size.to_string())
    }

    /// `session`, `transaction` or `statement`.
    pub fn mode(self, mode: &str) -> Self {
        self.set("databases.app", "pool_mode", &format!("\"{mode}\""))
    }

    /// Instead of the one that is made up.
    pub fn issuer(mut self, issuer: &Issuer) -> Self {
        self.issuers = vec![issuer.clone()];
        self
    }

    /// Besides those that are there.
    pub fn another_issuer(mut self, issuer: &Issuer) -> Self {
        self.issuers.push(issuer.clone());
        self
    }

    /// The first issuer's keys are fetched from there, whose certificate this authority has signed.
    pub fn jwks(mut self, url: &str, authority: &str) -> Self {
        self.jwks_url = Some(url.to_owned());
        self.file("jwks-ca.crt", authority)
    }

    /// Appends text as it is.
    pub fn toml(mut self, text: &str) -> Self {
        self.appended.push_str(text);
        self.appended.push('\n');
        self
    }

    /// The configuration's text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (section, keys) in &self.sections {
            writeln!(text, "[{section}]").unwrap();
            for (key, value) in keys {
                writeln!(text, "{key} = {value}").unwrap();
            }
        }
        for (index, issuer) in self.issuers.iter().enumerate() {
            let keys = match issuer.key.public_jwks() {
                _ if issuer.algorithm.name() == "HS256" => {
                    format!("secret = {{ file = \"issuer-{index}\" }}")
                }
                _ => match self.jwks_url.as_ref().filter(|_| index == 0) {
                    Some(url) => format!("jwks_url = {url:?}\njwks_ca = \"jwks-ca.crt\""),
                    None => format!("jwks_file = \"issuer-{index}\""),
                },
            };
            writeln!(
                text,
                "[[jwt.issuers]]\nissuer = {:?}\naudience = [{:?}]\nalgorithms = [{:?}]\n{keys}",
                issuer.name,
                issuer.audience,
                issuer.algorithm.name()
            )
            .unwrap();
        }
        text + &self.appended
    }

    /// Writes it with all its files.
    pub fn write(&self) -> Written {
        let folder = tempfile::Builder::new().prefix("pgtenant-it-").tempdir().unwrap();
        for (name, content) in &self.files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        for (index, issuer) in self.issuers.iter().enumerate() {
            let content = match issuer.algorithm.name() {
                "HS256" => issuer.key.private_text().to_vec(),
                _ => issuer.key.public_jwks().into_bytes(),
            };
            std::fs::write(folder.path().join(format!("issuer-{index}")), content).unwrap();
        }
        let written = Written { folder };
        std::fs::write(written.path(), self.text()).unwrap();
        written
    }

    /// Starts the proxy and waits until it listens.
    pub async fn run(self) -> Gate {
        match self.try_run().await {
            Ok(gate) => gate,
            Err((status, log)) => panic!("pgtenant serve ended with {status}:\n{log}"),
        }
    }

    /// The same for configurations that are to be refused: how it ended and what it said.
    pub async fn try_run(self) -> Result<Gate, (ExitStatus, String)> {
        let config = self.write();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
        if let Some(limit) = self.descriptors {
            command = Command::new("sh");
            command.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\"")]);
            command.arg(env!("CARGO_BIN_EXE_pgtenant"));
        }
        if let Some(hosts) = &self.hosts {
            command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
            command.arg(hosts).arg(env!("CARGO_BIN_EXE_pgtenant"));
        }
        let mut child = command
            .args(["serve", "--config"])
            .arg(config.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = collect(child.stderr.take().unwrap());
        let gate = Gate {
            pid: child.id(),
            child: Mutex::new(child),
            lines,
            port: 0,
            http_port: 0,
            config,
            issuer: self.issuers.into_iter().next().unwrap_or_else(Issuer::es256),
            database: "app".to_owned(),
        };
        gate.wait_until_listening().await
    }
}

impl Gate {
    /// A gate before this database, to be configured and run.
    #[allow(clippy::new_ret_no_self, reason = "reads as a sentence: a gate with that database")]
    pub fn with(database: &Database) -> Setup {
        Setup::new(database.port, &database.name)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn http_port(&self) -> u16 {
        self.http_port
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Memory that it holds now, in KiB; 0 where the system does not tell.
    pub fn resident_kib(&self) -> u64 {
        super::resident_kib(self.pid)
    }

    /// Everything it wrote to standard error so far.
    pub fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    pub fn config(&self) -> &Written {
        &self.config
    }

    /// A token of the first issuer.
    pub fn token(&self, organization: impl Into<serde_json::Value>) -> Token {
        self.issuer.token(organization)
    }

    /// Sends a signal: `TERM`, `HUP`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.pid.to_string()]).status().unwrap();
        assert!(status.success(), "kill -{name}");
    }

    /// Waits for the process to end.
    pub async fn wait_exit(&self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.child.lock().unwrap().try_wait().unwrap();
            if let Some(status) = ended {
                return status;
            }
            assert!(Instant::now() < deadline, "still running after {limit:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Body of an HTTP GET, with its status.
    pub async fn http(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.http_port)).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await.expect("HTTP in time").unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn wait_until_listening(mut self) -> Result<Self, (ExitStatus, String)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.lock().unwrap().try_wait().unwrap();
            if let Some(status) = ended {
                // Its last lines may still be on their way to us.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return Err((status, self.log()));
            }
            let log = self.log();
            let client = port_after(&log, "listening for clients on 127.0.0.1:");
            // A test may have removed the section.
            let has_http = std::fs::read_to_string(self.config.path()).unwrap().contains("[admin]\n");
            let http = port_after(&log, "serving http on 127.0.0.1:");
            if let (Some(port), true) = (client, http.is_some() || !has_http) {
                (self.port, self.http_port) = (port, http.unwrap_or(0));
                return Ok(self);
            }
            assert!(Instant::now() < deadline, "pgtenant does not listen:\n{log}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        // It may have ended already.
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the gate ---\n{}", self.log());
        }
    }
}

/// Collects lines on a thread of its own, which ends with the process.
fn collect(stderr: std::process::ChildStderr) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let collected = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            collected.lock().unwrap().push(line);
        }
    });
    lines
}

fn port_after(log: &str, phrase: &str) -> Option<u16> {
    let (_, rest) = log.split_once(phrase)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}
