//! Whom clients connect to: pgtenant, or PgBouncer beside it.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use tokio_postgres::{Client, NoTls};

use super::ground::{Ground, token};
use crate::harness::bouncer::{self, Bouncer, Settings};
use crate::harness::client::connect;
use crate::harness::gate::{Gate, Setup};
use crate::harness::postgres::password_of;

pub enum Pooler {
    Ours(Box<Gate>),
    /// It knows of no organizations: its clients name theirs in each statement.
    Bouncer(Box<Bouncer>),
}

/// The program whose figures are to stand beside ours, if one is named: `CHAOS_PGBOUNCER`.
pub fn peer() -> Option<PathBuf> {
    std::env::var_os("CHAOS_PGBOUNCER").filter(|program| !program.is_empty()).map(PathBuf::from)
}

/// What it calls itself.
pub fn name_of_peer() -> Option<String> {
    peer().map(|program| bouncer::version(&program))
}

impl Pooler {
    pub async fn ours(setup: Setup) -> Self {
        Self::Ours(Box::new(setup.run().await))
    }

    /// Before this port. Like ours, it is asked for passwords in clear, keeps prepared statements, and does not wait 15 s after a
    /// server that could not be opened; for the rest as it comes.
    pub async fn bouncer(program: &std::path::Path, ground: &Ground, port: u16) -> Self {
        let more = "auth_type = plain\nmax_client_conn = 5000\nmax_prepared_statements = 200\nserver_login_retry = 1\n";
        let settings = Settings::new(program, port, &ground.database.name, ground.pool_size);
        Self::Bouncer(Box::new(Settings { more: more.to_owned(), ..settings }.run().await))
    }

    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Ours(_))
    }

    pub fn port(&self) -> u16 {
        match self {
            Self::Ours(gate) => gate.port(),
            Self::Bouncer(bouncer) => bouncer.port(),
        }
    }

    pub fn pid(&self) -> u32 {
        match self {
            Self::Ours(gate) => gate.pid(),
            Self::Bouncer(bouncer) => bouncer.pid(),
        }
    }

    /// Memory that it holds now, in KiB; 0 where the system does not tell, or when it has ended.
    pub fn resident_kib(&self) -> u64 {
        crate::harness::resident_kib(self.pid())
    }

    pub fn log(&self) -> String {
        match self {
            Self::Ours(gate) => gate.log(),
            Self::Bouncer(bouncer) => bouncer.log(),
        }
    }

    /// By what a client of this organization signs in: a token, or the role's password.
    pub fn credential(&self, organization: u32) -> String {
        match self {
            Self::Ours(gate) => token(gate, organization),
            Self::Bouncer(_) => password_of("app"),
        }
    }

    /// A driver's connection.
    pub async fn client(&self, organization: u32) -> Client {
        match self {
            Self::Ours(gate) => connect(gate, "app", &token(gate, organization)).await,
            Self::Bouncer(bouncer) => {
                let mut config = tokio_postgres::Config::new();
                config.host("127.0.0.1").port(bouncer.port()).user("app").password(password_of("app"));
                let (client, connection) = config.dbname("app").connect(NoTls).await.unwrap();
                tokio::spawn(connection);
                client
            }
        }
    }

    /// Has it end once transactions are over. PgBouncer's SIGTERM waits for clients to leave by themselves; SIGINT is the signal
    /// that ours is to be compared with.
    pub fn ends_safely(&self) {
        match self {
            Self::Ours(gate) => gate.signal("TERM"),
            Self::Bouncer(bouncer) => bouncer.signal("INT"),
        }
    }

    /// Waits for the process to end; none if it does not in this time.
    pub async fn wait_exit(&mut self, limit: Duration) -> Option<ExitStatus> {
        match self {
            Self::Ours(gate) => Some(gate.wait_exit(limit).await),
            Self::Bouncer(bouncer) => bouncer.wait_exit(limit).await,
        }
    }
}
