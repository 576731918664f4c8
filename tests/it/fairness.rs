//! Server time is shared between organizations, whatever one of them asks for. What is counted is turns, not time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::harness::client::{connect, value};
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres;

/// Clients that ask without a pause, until it is dropped.
struct Crowd {
    done: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Crowd {
    async fn of(gate: &Gate, organization: u32, clients: usize, sql: &'static str) -> Self {
        let mut crowd =
            Self { done: Arc::default(), is_over: Arc::default(), clients: Vec::with_capacity(clients) };
        for _ in 0..clients {
            let client = member(gate, organization).await;
            let (done, is_over) = (crowd.done.clone(), crowd.is_over.clone());
            crowd.clients.push(tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    client.query(sql, &[]).await.unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        crowd
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    async fn ends(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

async fn member(gate: &Gate, organization: u32) -> Client {
    connect(gate, "app", &gate.token(org(organization)).sign()).await
}

async fn in_line(gate: &Gate, at_least: usize) {
    crate::harness::eventually("a line", async || {
        let (_, metrics) = gate.http("/metrics").await;
        let line = metrics.lines().find(|l| l.starts_with("pgtenant_waiting_clients{database=\"app\"}"))?;
        (line.rsplit(' ').next()?.parse::<usize>().ok()? >= at_least).then_some(())
    })
    .await;
}

const NAP: &str = "SELECT pg_sleep(0.01)";

#[tokio::test]
async fn who_asks_for_much_is_not_served_before_who_asks_for_little() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(2).run().await;
    let noisy = Crowd::of(&gate, 1, 40, NAP).await;
    in_line(&gate, 30).await;
    let quiet = member(&gate, 2).await;
    for _ in 0..20 {
        let before = noisy.done();
        assert_eq!(value(&quiet, "SELECT min(body) FROM items").await.unwrap().as_deref(), Some("org-2"));
        let meanwhile = noisy.done() - before;
        // In one line for all it would be forty.
        assert!(meanwhile <= 12, "{meanwhile} turns of others came first");
    }
    noisy.ends().await;
}

#[tokio::test]
async fn of_two_that_want_everything_each_has_its_weight() {
    let database = postgres::shared().database().await;
    let setup = Gate::with(&database).pool_size(2);
    let gate = setup.toml(&format!("[limits.organization.\"{}\"]\nweight = 4", org(2))).run().await;
    // Long enough for what a change of hands takes, which counts too, to be little of it.
    const LONG: &str = "SELECT pg_sleep(0.03)";
    let (first, second) = (Crowd::of(&gate, 1, 12, LONG).await, Crowd::of(&gate, 2, 12, LONG).await);
    in_line(&gate, 20).await;
    let before = [first.done(), second.done()];
    crate::harness::eventually("300 turns", async || {
        (first.done() + second.done() >= before[0] + before[1] + 300).then_some(())
    })
    .await;
    let turns = [first.done() - before[0], second.done() - before[1]];
    let ratio = turns[1] as f64 / turns[0] as f64;
    assert!((3.2..5.2).contains(&ratio), "{turns:?}");
    // Another weight holds for those who are there.
    gate.rewrites("weight = 4", "weight = 1");
    gate.reloads(crate::reload::IN_FORCE).await;
    let before = [first.done(), second.done()];
    crate::harness::eventually("200 turns", async || {
        (first.done() + second.done() >= before[0] + before[1] + 200).then_some(())
    })
    .await;
    let turns = [first.done() - before[0], second.done() - before[1]];
    let ratio = turns[1] as f64 / turns[0] as f64;
    assert!((0.7..1.5).contains(&ratio), "{turns:?}");
    first.ends().await;
    second.ends().await;
}

/// Who waits already may hold more servers as soon as the configuration says so: those that are idle, and new ones.
#[tokio::test]
async fn a_bound_that_is_raised_is_so_for_who_waits() {
    let database = postgres::shared().database().await;
    let setup = Gate::with(&database).pool_size(4).set("databases.app.pool", "per_organization", "1");
    let gate = setup.run().await;
    // A server that lies idle, of another organization.
    let (other, more) = (member(&gate, 2).await, member(&gate, 3).await);
    let both = async |sql: &str| tokio::join!(other.batch_execute(sql), more.batch_execute(sql));
    let (first, second) = both("SELECT pg_sleep(0.1)").await;
    first.and(second).unwrap();
    let mut asks = Vec::new();
    for _ in 0..4 {
        let client = member(&gate, 1).await;
        asks.push(tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(2)").await }));
    }
    in_line(&gate, 3).await;
    gate.rewrites("per_organization = 1", "per_organization = 4");
    gate.reloads(crate::reload::IN_FORCE).await;
    let admin = database.admin().await;
    let naps = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(2)%' AND state = 'active' \
                AND pid <> pg_backend_pid() AND datname = current_database()";
    crate::harness::eventually("all of them", async || {
        (value(&admin, naps).await.unwrap().as_deref() == Some("4")).then_some(())
    })
    .await;
    for ask in asks {
        ask.await.unwrap().unwrap();
    }
}

/// The longer transactions are no more of them than their time allows.
#[tokio::test]
async fn long_transactions_do_not_win() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(2).run().await;
    let long = Crowd::of(&gate, 1, 8, "SELECT pg_sleep(0.1)").await;
    let short = Crowd::of(&gate, 2, 8, NAP).await;
    in_line(&gate, 12).await;
    let before = [long.done(), short.done()];
    crate::harness::eventually("300 turns", async || (short.done() >= before[1] + 300).then_some(())).await;
    let (long_turns, short_turns) = (long.done() - before[0], short.done() - before[1]);
    // Ten times as long, a tenth as many, or less: a change of hands counts too. Round robin would make it one for one.
    assert!(short_turns >= 4 * long_turns, "{short_turns} short ones, {long_turns} long ones");
    long.ends().await;
    short.ends().await;
}

#[tokio::test]
async fn one_organization_holds_no_more_servers_than_it_may() {
    let database = postgres::shared().database().await;
    let setup = Gate::with(&database).pool_size(3).set("databases.app.pool", "per_organization", "1");
    let gate = setup.run().await;
    let admin = database.admin().await;
    let noisy = Crowd::of(&gate, 1, 10, NAP).await;
    in_line(&gate, 9).await;
    // None is opened for those who may not have it.
    let open = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND datname = current_database()";
    let open: i64 = admin.query_one(open, &[]).await.unwrap().get(0);
    assert!(open <= 2, "{open} servers are open");
    let quiet = member(&gate, 2).await;
    for _ in 0..50 {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND datname = current_database() \
                   AND state = 'active' AND query LIKE 'SELECT pg_sleep%'";
        let running: i64 = admin.query_one(sql, &[]).await.unwrap().get(0);
        assert!(running <= 1, "{running} at once");
        assert_eq!(value(&quiet, "SELECT min(body) FROM items").await.unwrap().as_deref(), Some("org-2"));
    }
    noisy.ends().await;
}

/// Projects of one organization take turns.
#[tokio::test]
async fn one_project_does_not_shut_another_out() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let noisy = Crowd::of(&gate, 1, 30, NAP).await;
    in_line(&gate, 25).await;
    let token = gate.token(org(1)).project(crate::harness::project(1, 1)).sign();
    let quiet = connect(&gate, "app", &token).await;
    for _ in 0..10 {
        let before = noisy.done();
        assert_eq!(value(&quiet, "SELECT min(body) FROM items").await.unwrap().as_deref(), Some("org-1"));
        let meanwhile = noisy.done() - before;
        assert!(meanwhile <= 10, "{meanwhile} turns of the other project came first");
    }
    noisy.ends().await;
}

/// How fast a line moved tells nothing of one that begins after a while of quiet. Nobody looks at the metrics meanwhile.
#[tokio::test]
async fn a_line_that_begins_after_a_quiet_time_refuses_nobody() {
    let database = postgres::shared().database().await;
    let gate =
        Gate::with(&database).pool_size(1).set("databases.app.pool", "wait_timeout", "\"2s\"").run().await;
    let crowd = Crowd::of(&gate, 1, 4, "SELECT pg_sleep(0.02)").await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    crowd.ends().await;
    // From here on every second of quiet made the same line seem slower by two thirds.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (first, second) = (member(&gate, 1).await, member(&gate, 1).await);
    let (first, second) = tokio::join!(
        value(&first, "SELECT 1 FROM pg_sleep(0.3)"),
        value(&second, "SELECT 2 FROM pg_sleep(0.3)")
    );
    assert_eq!((first.unwrap().as_deref(), second.unwrap().as_deref()), (Some("1"), Some("2")));
}
