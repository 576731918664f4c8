//! A throwaway PostgreSQL: a server of one's own in a temporary directory, gone with its owner.
//!
//! A shell in a process group of its own keeps the server. It reads commands from a pipe that the owner holds; when
//! the pipe ends, be it that the owner drops the [`Throwaway`], exits or is killed, it stops the server and removes
//! the directory. Nothing here is safe for data that matters: writes are not synced.

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What the shell runs.
const KEEPER: &str = include_str!("throwaway.sh");
/// The environment variable that names the directory of PostgreSQL's programs.
pub const BIN_VARIABLE: &str = "PGTENANT_PG_BIN";
/// How long `initdb` and the first start may take.
const FIRST_START: Duration = Duration::from_secs(60);
/// How long any other start may take.
const START: Duration = Duration::from_secs(30);
/// How long the keeper may take to clear up.
const FAREWELL: Duration = Duration::from_secs(10);
/// How often a start is tried when the port is taken.
const ATTEMPTS: usize = 10;
/// How often the log is looked at.
const PAUSE: Duration = Duration::from_millis(20);
/// How much of the log goes into an error.
const TAIL: usize = 20;

/// Why there is no throwaway server.
#[derive(Debug, thiserror::Error)]
pub enum ThrowawayError {
    /// PostgreSQL's programs are not where they were looked for.
    #[error(
        "no PostgreSQL (initdb and postgres) in {looked}: install PostgreSQL (apt-get install postgresql, \
         brew install postgresql@17) or give --pg-bin"
    )]
    NoPrograms {
        /// Where.
        looked: String,
    },
    /// PostgreSQL does not run as root, and there is nobody else.
    #[error(
        "PostgreSQL does not run as root, and there is neither a user postgres nor nobody: run this as another user"
    )]
    NoUser,
    /// Something with a file or a process went wrong.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// `postgres --version` says something that is no version.
    #[error("cannot tell the version of PostgreSQL from \"{0}\"")]
    Version(String),
    /// No randomness for a password.
    #[error("the system gives no random bytes")]
    Random,
    /// The server did not start.
    #[error("PostgreSQL did not start on port {port}: {why}; the end of its log:\n{tail}")]
    NotStarted {
        /// Its port.
        port: u16,
        /// What was waited for.
        why: String,
        /// Its last words.
        tail: String,
    },
    /// The server did not stop.
    #[error("PostgreSQL did not stop; the end of its log:\n{tail}")]
    NotStopped {
        /// Its last words.
        tail: String,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> ThrowawayError {
    let what = what.into();
    move |source| ThrowawayError::Io { what, source }
}

/// The directory that holds `initdb` and `postgres`.
///
/// The explicit one, or else the one of `PGTENANT_PG_BIN`, or else one of `PATH`, or else the newest version where
/// Debian and Homebrew put it.
///
/// # Errors
/// They are nowhere, or not in the directory that was named.
pub fn find_bin(explicit: Option<&Path>) -> Result<PathBuf, ThrowawayError> {
    let named = explicit.map(Path::to_owned).or_else(|| std::env::var_os(BIN_VARIABLE).map(PathBuf::from));
    if let Some(named) = named {
        let looked = named.display().to_string();
        return programs_in(&named).ok_or(ThrowawayError::NoPrograms { looked });
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = std::env::split_paths(&path).find_map(|directory| programs_in(&directory)) {
        return Ok(found);
    }
    let newest = [
        newest_of("/usr/lib/postgresql", ""),
        newest_of("/opt/homebrew/opt", "postgresql@"),
        newest_of("/usr/local/opt", "postgresql@"),
    ];
    let looked = "PATH, /usr/lib/postgresql or Homebrew's postgresql@".to_owned();
    newest.into_iter().flatten().next().ok_or(ThrowawayError::NoPrograms { looked })
}

/// The directory with links resolved: both programs look for their siblings and files from where they really are.
fn programs_in(directory: &Path) -> Option<PathBuf> {
    let holds = |directory: &Path| ["initdb", "postgres"].iter().all(|name| directory.join(name).is_file());
    if !holds(directory) {
        return None;
    }
    let real = fs::canonicalize(directory.join("postgres")).ok()?;
    let real = real.parent().filter(|real| holds(real));
    Some(real.map_or_else(|| directory.to_owned(), Path::to_owned))
}

/// `PARENT/PREFIX<version>/bin` of the highest version.
fn newest_of(parent: &str, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(parent).ok()?.filter_map(Result::ok);
    let versioned = entries.filter_map(|entry| {
        let name = entry.file_name();
        let version: u32 = name.to_str()?.strip_prefix(prefix)?.split('.').next()?.parse().ok()?;
        Some((version, programs_in(&entry.path().join("bin"))?))
    });
    versioned.max_by_key(|(version, _)| *version).map(|(_, bin)| bin)
}

/// How a throwaway server is made.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The directory of PostgreSQL's programs; found by [`find_bin`] if there is none.
    pub bin: Option<PathBuf>,
    /// Further settings, as in `postgresql.conf`; they win over the usual ones.
    pub settings: Vec<(String, String)>,
}

/// A running throwaway server. Dropped, it stops and its directory goes.
#[derive(Debug)]
pub struct Throwaway {
    bin: PathBuf,
    version: u32,
    directory: PathBuf,
    port: u16,
    password: String,
    keeper: Child,
    commands: Option<ChildStdin>,
}

impl Throwaway {
    /// Makes a cluster and starts it; blocks until it accepts connections.
    ///
    /// # Errors
    /// PostgreSQL is not installed or does not start.
    pub fn start(options: &Options) -> Result<Self, ThrowawayError> {
        let bin = find_bin(options.bin.as_deref())?;
        let version = version_of(&bin)?;
        let password = random_password()?;
        let mine = fs::Permissions::from_mode(0o700);
        let home = tempfile::Builder::new().prefix("pgtenant-pg-").permissions(mine).tempdir();
        let home = home.map_err(failed("cannot make a temporary directory"))?;
        let settings = settings(home.path(), &options.settings);
        let files = [("password", format!("{password}\n")), ("settings", settings), ("log", String::new())];
        for (name, content) in files {
            let file = home.path().join(name);
            fs::write(&file, content).map_err(failed(format!("cannot write {}", file.display())))?;
        }
        let user = unprivileged_user(home.path())?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", KEEPER, "pgtenant-postgres"]).arg(&bin).arg(home.path());
        command.current_dir(home.path()).env("LC_ALL", "C").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        for variable in ["PGDATA", "PGPORT", "PGOPTIONS"] {
            command.env_remove(variable);
        }
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
        let mut keeper = command.spawn().map_err(failed("cannot run /bin/sh"))?;
        // From here on the directory is the keeper's to remove.
        let (directory, commands) = (home.keep(), keeper.stdin.take());
        let mut throwaway = Self { bin, version, directory, port: 0, password, keeper, commands };
        throwaway.first_start()?;
        Ok(throwaway)
    }

    fn first_start(&mut self) -> Result<(), ThrowawayError> {
        let mut attempt = 1;
        loop {
            self.port = free_port()?;
            match self.attempt(FIRST_START)? {
                Outcome::Ready => return Ok(()),
                Outcome::PortTaken if attempt < ATTEMPTS => attempt += 1,
                outcome => return Err(self.not_started(&outcome)),
            }
        }
    }

    /// Starts the server again, and stops it first if it runs: the same directory, the same port.
    ///
    /// # Errors
    /// It does not start, or its port was taken in the meantime.
    pub fn start_server(&mut self) -> Result<(), ThrowawayError> {
        self.stop_server()?;
        let mut attempt = 1;
        loop {
            match self.attempt(START)? {
                Outcome::Ready => return Ok(()),
                Outcome::PortTaken if attempt < ATTEMPTS => attempt += 1,
                outcome => return Err(self.not_started(&outcome)),
            }
            sleep(Duration::from_millis(200));
        }
    }

    /// Stops the server as `pg_ctl stop -m fast` would; its data stay.
    ///
    /// # Errors
    /// It does not stop.
    pub fn stop_server(&mut self) -> Result<(), ThrowawayError> {
        self.tell("stop\n")?;
        let deadline = Instant::now() + START;
        while self.pid_file().exists() {
            if Instant::now() > deadline {
                return Err(ThrowawayError::NotStopped { tail: self.log_tail(TAIL) });
            }
            sleep(PAUSE);
        }
        Ok(())
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The password of the role `postgres`.
    pub fn superuser_password(&self) -> &str {
        &self.password
    }

    /// Where a superuser reaches a database of this name.
    pub fn url(&self, dbname: &str) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/{dbname}", self.password, self.port)
    }

    /// Where the Unix socket is.
    pub fn socket_dir(&self) -> &Path {
        &self.directory
    }

    /// Where the data are.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The major version: 17 for 17.2.
    pub fn version_major(&self) -> u32 {
        self.version
    }

    /// The directory of PostgreSQL's programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// There while the server is.
    fn pid_file(&self) -> PathBuf {
        self.data_dir().join("postmaster.pid")
    }

    /// What PostgreSQL has logged so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.directory.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Writes a command for the keeper.
    fn tell(&mut self, command: &str) -> Result<(), ThrowawayError> {
        let written = match &mut self.commands {
            Some(pipe) => pipe.write_all(command.as_bytes()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        written.map_err(failed("the shell that keeps PostgreSQL is gone"))
    }

    /// Tells the keeper to start the server, and waits for the outcome.
    fn attempt(&mut self, patience: Duration) -> Result<Outcome, ThrowawayError> {
        let before = self.log().len();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        self.tell(&format!("start {}\n", self.port))?;
        let deadline = Instant::now() + patience;
        loop {
            let log = self.log();
            let news = log.get(before..).unwrap_or_default();
            // "ready to accept connections", or "read-only connections" where it is a standby.
            if news.contains("system is ready to accept")
                && TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
            {
                return Ok(Outcome::Ready);
            }
            if news.contains("could not create any TCP/IP sockets") {
                return Ok(Outcome::PortTaken);
            }
            // A client that comes too early makes a FATAL line as well, but then the server is there.
            if (news.contains("FATAL:") || news.contains("PANIC:")) && !self.pid_file().exists() {
                return Ok(Outcome::Refused);
            }
            if Instant::now() > deadline {
                return Ok(Outcome::Late(patience));
            }
            sleep(PAUSE);
        }
    }

    fn not_started(&self, outcome: &Outcome) -> ThrowawayError {
        let why = match outcome {
            Outcome::Ready => "it is ready".to_owned(),
            Outcome::PortTaken => "the port is taken".to_owned(),
            Outcome::Refused => "it gave up".to_owned(),
            Outcome::Late(patience) => format!("it was not ready within {} s", patience.as_secs()),
        };
        ThrowawayError::NotStarted { port: self.port, why, tail: self.log_tail(TAIL) }
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        drop(self.commands.take());
        let deadline = Instant::now() + FAREWELL;
        while let Ok(None) = self.keeper.try_wait() {
            if Instant::now() > deadline {
                // It goes on clearing up without us.
                return;
            }
            sleep(PAUSE);
        }
        // Left over only where the keeper may not remove a directory that we made.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// What became of a start.
enum Outcome {
    Ready,
    PortTaken,
    Refused,
    Late(Duration),
}

fn settings(directory: &Path, further: &[(String, String)]) -> String {
    let usual = [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("unix_socket_directories", directory.display().to_string()),
        ("fsync", "off".to_owned()),
        ("full_page_writes", "off".to_owned()),
        ("synchronous_commit", "off".to_owned()),
        ("max_connections", "200".to_owned()),
        ("max_prepared_transactions", "0".to_owned()),
        ("log_destination", "stderr".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("lc_messages", "C".to_owned()),
        ("password_encryption", "scram-sha-256".to_owned()),
    ];
    let usual = usual.iter().map(|(key, value)| (*key, value.as_str()));
    let further = further.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let line = |(key, value): (&str, &str)| {
        format!("{key} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''"))
    };
    usual.chain(further).map(line).collect()
}

/// Only root needs another user, to whom the directory then belongs.
fn unprivileged_user(directory: &Path) -> Result<Option<(u32, u32)>, ThrowawayError> {
    let metadata = fs::metadata(directory).map_err(failed("cannot look at the temporary directory"))?;
    if metadata.uid() != 0 {
        return Ok(None);
    }
    let accounts = fs::read_to_string("/etc/passwd").map_err(failed("cannot read /etc/passwd"))?;
    let ids = ["postgres", "nobody"].iter().find_map(|name| ids_of(&accounts, name));
    let (uid, gid) = ids.ok_or(ThrowawayError::NoUser)?;
    let inside = ["password", "settings", "log"].iter().map(|name| directory.join(name));
    for path in inside.chain([directory.to_owned()]) {
        let give = chown(&path, Some(uid), Some(gid));
        give.map_err(failed(format!("cannot give {} to another user", path.display())))?;
    }
    Ok(Some((uid, gid)))
}

/// `name:password:uid:gid:...`
fn ids_of(accounts: &str, name: &str) -> Option<(u32, u32)> {
    let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn version_of(bin: &Path) -> Result<u32, ThrowawayError> {
    let postgres = bin.join("postgres");
    let output = Command::new(&postgres).arg("--version").output();
    let output = output.map_err(failed(format!("cannot run {}", postgres.display())))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    parse_version(&text).ok_or(ThrowawayError::Version(text))
}

/// `postgres (PostgreSQL) 17.2 (Debian 17.2-1)`, and `17beta1` before a release.
fn parse_version(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("(PostgreSQL) ")?;
    let digits = version.bytes().take_while(u8::is_ascii_digit).count();
    version[..digits].parse().ok()
}

fn random_password() -> Result<String, ThrowawayError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| ThrowawayError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A port that nobody listens on at the moment.
fn free_port() -> Result<u16, ThrowawayError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    Ok(address.map_err(failed("no port is free on 127.0.0.1"))?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"), Some(15));
        assert_eq!(parse_version("postgres (PostgreSQL) 19beta1"), Some(19));
        assert_eq!(parse_version("psql 17"), None);
    }

    #[test]
    fn accounts_are_read() {
        let accounts =
            "root:x:0:0::/:/bin/sh\npostgres:x:101:104:PostgreSQL,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(ids_of(accounts, "postgres"), Some((101, 104)));
        assert_eq!(ids_of(accounts, "nobody"), None);
    }

    #[test]
    fn settings_are_quoted() {
        let text = settings(Path::new("/tmp/x"), &[("search_path".to_owned(), "it's".to_owned())]);
        assert!(text.contains("unix_socket_directories = '/tmp/x'\n"));
        assert!(text.ends_with("search_path = 'it''s'\n"));
    }
}
