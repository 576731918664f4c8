//! Where it happens: a cluster of the test's own that keeps what it has acknowledged, and a fault proxy on either side of
//! the proxy.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pgtenant::cli::demo::throwaway::Options;
use tokio_postgres::{Client, NoTls};

use super::journal::endow;
use super::ledger::TABLES;
use super::pooler::Pooler;
use super::proxy::FaultProxy;
use crate::harness::PATIENCE;
use crate::harness::gate::{Gate, Setup};
use crate::harness::org;
use crate::harness::postgres::{Database, Shared};

/// Sessions that PostgreSQL has in all: few enough to be used up quickly.
pub const MAX_CONNECTIONS: usize = 60;

/// How long a token is good: longer than any run.
const LONG: i64 = 24 * 3600;

pub struct Ground {
    shared: Arc<Mutex<Shared>>,
    pub database: Database,
    pub version: u32,
    pub pool_size: usize,
}

impl Ground {
    /// PostgreSQL with accounts for so many organizations.
    pub async fn lay(organizations: u32, pool_size: usize) -> Self {
        let shared = Shared::start(&Options {
            settings: [
                // What was acknowledged is there after a crash of PostgreSQL (not of the machine).
                ("synchronous_commit", "on"),
                ("max_connections", &MAX_CONNECTIONS.to_string()),
                ("deadlock_timeout", "100ms"),
                // LOG and worse: its log is read at every start.
                ("log_min_messages", "log"),
                ("log_min_error_statement", "panic"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .to_vec(),
            ..Options::default()
        });
        let database = shared.database().await;
        let admin = database.admin().await;
        admin.batch_execute(TABLES).await.unwrap();
        endow(&admin, organizations).await;
        let version = shared.server.version_major();
        Self { shared: Arc::new(Mutex::new(shared)), database, version, pool_size }
    }

    /// A proxy before this port of it, to be configured and run.
    pub fn gate(&self, port: u16) -> Setup {
        Setup::new(port, &self.database.name).pool_size(self.pool_size)
    }

    /// A pooler before this port of it: ours, or the peer, for which no policy stands in the way of clients who say by
    /// themselves whose rows they want.
    pub async fn pooler(&self, port: u16, peer: Option<&Path>) -> Pooler {
        let Some(program) = peer else { return Pooler::ours(self.gate(port)).await };
        let open =
            ["accounts", "transfers"].map(|table| format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"));
        self.admin().await.batch_execute(&open.join(";")).await.unwrap();
        Pooler::bouncer(program, self, port).await
    }

    /// A superuser's connection, once PostgreSQL lets one in and answers.
    pub async fn admin(&self) -> Client {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok((client, connection)) = tokio_postgres::connect(&self.database.url, NoTls).await {
                tokio::spawn(connection);
                if client.batch_execute("SELECT 1").await.is_ok() {
                    return client;
                }
            }
            assert!(Instant::now() < deadline, "PostgreSQL does not come back:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn log(&self) -> String {
        self.lock().server.log_tail(40)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    /// PostgreSQL stops, is away for so long, and starts. When it was ready again.
    pub async fn restart(&self, is_immediate: bool, away: Duration) -> Instant {
        let shared = self.shared.clone();
        let postmaster = self.postmaster();
        let restarted = tokio::task::spawn_blocking(move || {
            let server = &mut shared.lock().unwrap().server;
            if is_immediate {
                kill("QUIT", &[postmaster]);
                let pid_file = server.data_dir().join("postmaster.pid");
                let deadline = Instant::now() + PATIENCE;
                while pid_file.exists() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                }
            } else {
                server.stop_server().unwrap();
            }
            std::thread::sleep(away);
            server.start_server().unwrap();
            Instant::now()
        });
        restarted.await.unwrap()
    }

    /// Process id of this cluster's postmaster.
    pub fn postmaster(&self) -> u32 {
        let file = self.lock().server.data_dir().join("postmaster.pid");
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().next().unwrap().trim().parse().unwrap()
    }

    /// Runs a program as the user whose processes these are.
    pub fn as_its_owner(&self, command: &mut Command) {
        let data = std::fs::metadata(self.lock().server.data_dir()).unwrap();
        if data.uid() != std::fs::metadata("/proc/self").unwrap().uid() {
            command.uid(data.uid()).gid(data.gid());
        }
        // What it is run for may have ended meanwhile.
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    }

    /// Its children.
    pub fn processes(&self) -> Vec<u32> {
        let postmaster = self.postmaster();
        let listed = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output().unwrap();
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        let pairs = text.lines().filter_map(|line| {
            let mut words = line.split_whitespace().map(str::parse::<u32>);
            Some((words.next()?.ok()?, words.next()?.ok()?))
        });
        pairs.filter(|(_, parent)| *parent == postmaster).map(|(pid, _)| pid).collect()
    }

    /// Process ids of the servers of the application's role, in random order.
    pub async fn servers(&self, admin: &Client) -> Vec<i32> {
        admin.query(self.servers_of_the_role(), &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// Who they are.
    pub fn servers_of_the_role(&self) -> &'static str {
        "SELECT pid FROM pg_stat_activity WHERE usename = 'app' ORDER BY random()"
    }

    /// In the end, with all clients gone: no more servers than the pool has, and none with a transaction.
    pub async fn leftovers(&self) -> Vec<String> {
        let admin = self.admin().await;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let sql = "SELECT coalesce(state, '?') FROM pg_stat_activity WHERE usename = 'app'";
            let states: Vec<String> =
                admin.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
            let mut wrong: Vec<_> =
                states.iter().filter(|s| *s != "idle").map(|s| format!("a server is left {s}")).collect();
            if states.len() > self.pool_size {
                wrong.push(format!("{} servers are left, of {} at most", states.len(), self.pool_size));
            }
            if wrong.is_empty() || Instant::now() > deadline {
                return wrong;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Sends a signal to processes of the test's own.
pub fn kill(signal: &str, pids: &[u32]) {
    let pids = pids.iter().map(u32::to_string);
    // Some may have ended already.
    let _ = Command::new("kill")
        .arg(format!("-{signal}"))
        .args(pids)
        .stderr(std::process::Stdio::null())
        .status();
}

/// A token of this organization for the whole run.
pub fn token(gate: &Gate, organization: u32) -> String {
    gate.token(org(organization)).expires_in(LONG).sign()
}

/// The proxy between two networks that fail.
pub struct Between {
    /// Before PostgreSQL.
    pub back: FaultProxy,
    pub pooler: Pooler,
    /// Before the proxy.
    pub front: FaultProxy,
}

impl Between {
    /// With this program of PgBouncer's in our place, if one is given.
    pub async fn run(ground: &Ground, peer: Option<&Path>) -> Self {
        let back = FaultProxy::before(ground.database.port);
        let pooler = ground.pooler(back.port(), peer).await;
        let front = FaultProxy::before(pooler.port());
        Self { back, pooler, front }
    }
}
