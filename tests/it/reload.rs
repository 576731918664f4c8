//! Another configuration is put in force while the proxy runs, and sockets and pools change hands without anybody's notice.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::client::{Raw, connect, raw, try_connect, value};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, password_of};
use crate::harness::{eventually, org};

/// What the log says then.
pub const IN_FORCE: &str = "the configuration was read anew and is in force";

impl Gate {
    /// Replaces something in its configuration.
    pub fn rewrites(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.config().path()).unwrap();
        assert!(text.contains(from), "{from} is not in\n{text}");
        std::fs::write(self.config().path(), text.replace(from, to)).unwrap();
    }

    /// SIGHUP; until the log says so once more.
    pub async fn reloads(&self, says: &str) {
        let before = self.log().matches(says).count();
        self.signal("HUP");
        eventually(says, async || (self.log().matches(says).count() > before).then_some(())).await;
    }
}

async fn code(client: &mut Raw, sql: &str) -> String {
    client.query(sql).await.error.map_or(String::new(), |(code, _)| code)
}

#[tokio::test]
async fn what_can_change_does_and_nobody_is_dropped() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).toml("[limits]\nmax_clients = 1").run().await;
    let mut client = raw(&gate, 1).await;
    assert_eq!(code(&mut client, "BEGIN").await, "");
    let token = gate.token(org(1)).sign();
    assert!(try_connect(&gate, "app", &token).await.is_err());
    let password = password_of("plain");
    let plain = || try_connect(&gate, "plain", &password);
    assert!(plain().await.is_ok());
    gate.rewrites("max_clients = 1", "max_clients = 2\ntransaction_time = \"1h\"");
    gate.rewrites("size = 4", "size = 2");
    gate.rewrites("[roles.plain]", "[roles.reports]");
    gate.reloads(IN_FORCE).await;
    assert!(try_connect(&gate, "app", &token).await.is_ok());
    // A user that is not there any more does not sign in; who is connected stays.
    assert_eq!(plain().await.err().unwrap().as_db_error().unwrap().code().code(), "28P01");
    assert_eq!(code(&mut client, "COMMIT").await, "");
    // Of whoever is connected, from its next transaction on.
    gate.rewrites("transaction_time = \"1h\"", "transaction_time = \"1h\"\nqueries_per_second = 1");
    gate.reloads(IN_FORCE).await;
    let mut codes = Vec::new();
    for _ in 0..5 {
        codes.push(code(&mut client, "SELECT 1").await);
    }
    assert!(codes.contains(&"53400".to_owned()), "{codes:?}");
    gate.rewrites("queries_per_second = 1", "idle_in_transaction_time = \"200ms\"");
    gate.reloads(IN_FORCE).await;
    let mut idle = raw(&gate, 1).await;
    assert_eq!(code(&mut idle, "BEGIN").await, "");
    assert_eq!(idle.expect_error().await.0, "25P03");
    gate.rewrites("idle_in_transaction_time = \"200ms\"\n", "");
    // What cannot change is named, and stays.
    gate.rewrites("[databases.app]", "[databases.app]\npool_mode = \"session\"");
    gate.reloads("these take effect at the next start").await;
    assert!(gate.log().contains("databases.NAME.pool_mode"));
    assert_eq!(code(&mut client, "LISTEN x").await, "0A000");
}

/// A role that is not there for a while comes back to its old pool, which is as it was made.
#[tokio::test]
async fn what_comes_back_is_what_it_was() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let token = gate.token(org(1)).sign();
    let mut stays = raw(&gate, 1).await;
    gate.rewrites("[roles.app]", "[roles.elsewhere]");
    gate.rewrites("[roles.plain]", "[roles.others]");
    gate.reloads(IN_FORCE).await;
    assert!(try_connect(&gate, "app", &token).await.is_err());
    gate.rewrites("[roles.elsewhere]", "[roles.app]");
    gate.rewrites("[roles.others]", "[roles.plain]");
    gate.rewrites("tenancy = \"none\"", "tenancy = \"required\"");
    // The keys of a section are in order: tenancy is the last.
    let text = std::fs::read_to_string(gate.config().path()).unwrap();
    let (before, role) = text.split_once("[roles.app]").unwrap();
    let role = role.replacen("tenancy = \"required\"", "tenancy = \"optional\"", 1);
    let text = format!("{before}[roles.app]{role}");
    let text = text.replace("[databases.app]", "[databases.app]\npool_mode = \"session\"");
    std::fs::write(gate.config().path(), text).unwrap();
    gate.reloads("these take effect at the next start").await;
    assert!(gate.log().contains("roles.NAME.tenancy") && gate.log().contains("databases.NAME.pool_mode"));
    for client in [&mut stays, &mut raw(&gate, 1).await] {
        assert_eq!(client.query("SELECT DISTINCT body FROM items").await.rows, [[Some("org-1".to_owned())]]);
        assert_eq!(code(client, "LISTEN x").await, "0A000");
    }
    let plain = connect(&gate, "plain", &password_of("plain")).await;
    assert_eq!(value(&plain, "SELECT 1").await.unwrap().as_deref(), Some("1"));
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_says_why() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let mut client = raw(&gate, 1).await;
    for (from, to, why) in [
        ("size = 4", "size = 0", "databases.app.pool.size"),
        ("size = 0", "size = 4\nsizes = 4", "unknown key"),
        ("sizes = 4\n", "", IN_FORCE),
        ("[listen]", "[listen]\ntls = { certificate = \"none.crt\", key = \"none.key\" }", "none.crt"),
    ] {
        gate.rewrites(from, to);
        gate.reloads(why).await;
        assert_eq!(code(&mut client, "SELECT 1").await, "");
        assert_eq!(code(&mut raw(&gate, 2).await, "SELECT 1").await, "");
    }
    assert!(!gate.log().contains("password"), "{}", gate.log());
}

/// Without a signal, as where a ConfigMap is mounted.
#[tokio::test]
async fn a_changed_file_is_noticed() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    gate.rewrites("size = 4", "size = 5");
    eventually("noticed", async || gate.log().contains("its file has changed").then_some(())).await;
}

#[tokio::test]
async fn clients_move_to_another_server_with_their_next_transaction() {
    let (one, other) = (postgres::shared().database().await, postgres::shared().database().await);
    other.admin().await.batch_execute("UPDATE items SET body = 'moved'").await.unwrap();
    let gate = Gate::with(&one).run().await;
    let (mut busy, client) = (raw(&gate, 1).await, connect(&gate, "app", &gate.token(org(1)).sign()).await);
    let bodies = "SELECT min(body) FROM items";
    assert_eq!(code(&mut busy, "BEGIN").await, "");
    assert_eq!(value(&client, bodies).await.unwrap().as_deref(), Some("org-1"));
    gate.rewrites(&one.name, &other.name);
    gate.reloads(IN_FORCE).await;
    assert_eq!(value(&client, bodies).await.unwrap().as_deref(), Some("moved"));
    assert_eq!(busy.query(bodies).await.rows[0][0].as_deref(), Some("org-1"));
    assert_eq!(code(&mut busy, "COMMIT").await, "");
    assert_eq!(busy.query(bodies).await.rows[0][0].as_deref(), Some("moved"));
}

/// SIGUSR1 and SIGUSR2, as in PgBouncer: PostgreSQL is restarted, and nobody sees an error.
#[tokio::test]
async fn paused_clients_wait_and_go_on() {
    let mut shared = postgres::Shared::start(&pgtenant::cli::demo::throwaway::Options::default());
    let database = shared.database().await;
    let gate = Gate::with(&database).set("databases.app.pool", "wait_timeout", "\"500ms\"").run().await;
    let client = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    assert!(value(&client, "SELECT 1").await.is_ok());
    gate.signal("USR1");
    eventually("paused", async || gate.log().contains("SIGUSR1: paused").then_some(())).await;
    let waiting = tokio::spawn(async move { value(&client, "SELECT count(*) FROM items").await });
    shared.server.stop_server().unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!waiting.is_finished());
    shared.server.start_server().unwrap();
    gate.signal("USR2");
    assert_eq!(waiting.await.unwrap().unwrap().as_deref(), Some("50"));
}

/// A socket that is passed on survives a restart: clients who come meanwhile wait in its queue.
#[tokio::test]
async fn a_restart_on_a_passed_socket_refuses_nobody() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let start = || {
        let given = command_fds::FdMapping {
            parent_fd: std::os::fd::OwnedFd::from(socket.try_clone().unwrap()),
            child_fd: 3,
        };
        let mut command = Command::new("sh");
        let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve --config \"$1\"";
        command.args(["-c", script, env!("CARGO_BIN_EXE_pgtenant")]).arg(gate.config().path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        command_fds::CommandFdExt::fd_mappings(&mut command, vec![given]).unwrap();
        Running(command.spawn().unwrap())
    };
    // Its own listener and its HTTP are on free ports: several may run on one configuration.
    let mut running = start();
    let (mut served, password) = (0, gate.token(org(1)).sign());
    for round in 0..30 {
        if round % 10 == 9 {
            let next = start();
            // Both listen for a while.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let mut last = std::mem::replace(&mut running, next);
            Command::new("kill").args(["-TERM", &last.0.id().to_string()]).status().unwrap();
            last.0.wait().unwrap();
        }
        let mut client = Raw::connect_to(port).await;
        client.sign_in("app", "app", &password).await;
        served += usize::from(code(&mut client, "SELECT 1").await.is_empty());
    }
    assert_eq!(served, 30);
}

/// Ended with the test, also where it fails.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
