//! PgBouncer in transaction mode, for the application's role: the peer whose figures stand beside ours.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::postgres::password_of;
use super::{eventually, resident_kib};

/// What runs, and where.
pub struct Bouncer {
    child: Child,
    port: u16,
    settings: Settings,
    folder: tempfile::TempDir,
}

/// Of its configuration.
#[derive(Clone)]
pub struct Settings {
    pub program: PathBuf,
    /// PostgreSQL's.
    pub port: u16,
    pub dbname: String,
    /// Server connections.
    pub size: usize,
    /// Lines of the section `[pgbouncer]`.
    pub more: String,
}

impl Settings {
    /// Passwords are asked for by SCRAM.
    pub fn new(program: &Path, port: u16, dbname: &str, size: usize) -> Self {
        let more = "auth_type = scram-sha-256\nmax_client_conn = 1000\n".to_owned();
        Self { program: program.to_owned(), port, dbname: dbname.to_owned(), size, more }
    }

    fn text(&self, port: u16, users: &Path) -> String {
        format!(
            "[databases]\napp = host=127.0.0.1 port={} dbname={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_file = {}\npool_mode = transaction\ndefault_pool_size = {}\n\
             ignore_startup_parameters = options,extra_float_digits\nserver_tls_sslmode = disable\nclient_tls_sslmode = disable\n{}",
            self.port,
            self.dbname,
            users.display(),
            self.size,
            self.more
        )
    }

    /// Starts it, and waits until it listens.
    pub async fn run(self) -> Bouncer {
        let folder = tempfile::Builder::new().prefix("pgtenant-it-").tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let users = folder.path().join("users");
        std::fs::write(&users, format!("\"app\" \"{}\"\n", password_of("app"))).unwrap();
        let ini = folder.path().join("ini");
        std::fs::write(&ini, self.text(port, &users)).unwrap();
        // It is not to outlive this process, and does not run as root.
        let mut command = Command::new("setpriv");
        if std::fs::metadata("/proc/self").is_ok_and(|us| us.uid() == 0) {
            command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]);
        }
        command.args(["--pdeathsig", "KILL"]).arg(&self.program);
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = command.arg(&ini).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut bouncer = Bouncer { child, port, settings: self, folder };
        eventually("PgBouncer", async || {
            let ended = bouncer.child.try_wait().unwrap();
            assert!(ended.is_none(), "PgBouncer does not start:\n{}", bouncer.log());
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop)
        })
        .await;
        bouncer
    }
}

/// What a program of PgBouncer's calls itself.
pub fn version(program: &Path) -> String {
    let said = Command::new(program).arg("--version").output().unwrap();
    String::from_utf8_lossy(&said.stdout).lines().next().unwrap_or_default().to_owned()
}

impl Bouncer {
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory that it holds now, in KiB; 0 where the system does not tell.
    pub fn resident_kib(&self) -> u64 {
        resident_kib(self.pid())
    }

    /// Everything that it wrote to standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Has so many server connections from now on.
    pub async fn resizes(&mut self, size: usize) {
        self.settings.size = size;
        let users = self.folder.path().join("users");
        let text = self.settings.text(self.port, &users);
        std::fs::write(self.folder.path().join("ini"), text).unwrap();
        let read = |log: String| log.matches("re-reading config").count();
        let before = read(self.log());
        self.signal("HUP");
        eventually("PgBouncer to read it", async || (read(self.log()) > before).then_some(())).await;
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status().unwrap();
        assert!(status.success(), "kill -{name}");
    }

    /// Waits for the process to end; none if it does not in this time.
    pub async fn wait_exit(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                return ended;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
