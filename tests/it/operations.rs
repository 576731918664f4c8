//! What an operator sees: the end on a signal, metrics, probes, limits, PostgreSQL gone and back.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgtenant::cli::demo::throwaway::Options;

use crate::harness::client::{Raw, connect, error_fields, message, raw, try_connect, value};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, Shared};
use crate::harness::{eventually, org};
use crate::outcomes::Wire;

/// The value of a sample, by its exact name and labels.
fn sample(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

async fn sampled(gate: &Gate, name: &str) -> f64 {
    let (status, metrics) = gate.http("/metrics").await;
    assert_eq!(status, 200);
    sample(&metrics, name).unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
}

#[tokio::test]
async fn on_a_signal_transactions_finish_and_idle_clients_are_told() {
    let database = postgres::shared().database().await;
    for signal in ["TERM", "INT"] {
        let gate = Gate::with(&database).pool_size(2).run().await;
        let mut idle = raw(&gate, 1).await;
        let mut busy = raw(&gate, 2).await;
        let mut slow = raw(&gate, 3).await;
        let mut unsaid = Raw::connect(&gate).await;
        let mut signing_in = Raw::connect(&gate).await;
        signing_in.startup("app", "app", &[]).await;
        assert_eq!(busy.query("BEGIN").await.status, b'T');
        assert_eq!(busy.query("UPDATE items SET counter = counter + 1").await.tags, ["UPDATE 50"]);
        slow.send(&message(b'Q', b"SELECT pg_sleep(0.5), 'slow'\0")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        gate.signal(signal);
        assert_eq!(idle.expect_error().await.0, "57P01");
        idle.expect_close().await;
        eventually("readiness to end", async || {
            let (status, why) = gate.http("/readyz").await;
            (status == 503 && why.contains("shutting down")).then_some(())
        })
        .await;
        assert_eq!(gate.http("/livez").await.0, 200);
        // Nobody new comes in, nor who was on the way.
        unsaid.startup("app", "app", &[]).await;
        assert_eq!(unsaid.expect_error().await.0, "57P03");
        assert!(try_connect(&gate, "app", &gate.token(org(1)).sign()).await.is_err());
        // The transaction goes on to its end.
        assert_eq!(busy.query("SELECT count(*) FROM items WHERE counter > 0").await.rows.len(), 1);
        assert_eq!(busy.query("COMMIT").await.tags, ["COMMIT"]);
        assert_eq!(busy.expect_error().await.0, "57P01");
        busy.expect_close().await;
        assert_eq!(slow.answer().await.rows[0][1].as_deref(), Some("slow"));
        assert_eq!(slow.expect_error().await.0, "57P01");
        drop(signing_in);
        let status = gate.wait_exit(Duration::from_secs(10)).await;
        assert_eq!(status.code(), Some(0), "after SIG{signal}");
        eventually("its last word", async || gate.log().lines().any(|line| line == "stopped").then_some(()))
            .await;
    }
    let counted = database.admin().await.query_one("SELECT sum(counter)::int FROM items", &[]).await.unwrap();
    assert_eq!(counted.get::<_, i32>(0), 100, "both were committed");
    // The servers have closed.
    let admin = database.admin().await;
    eventually("the servers' end", async || {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app'";
        (admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

/// Who always has two queries under way is told behind the answers to what PostgreSQL has got; the rest does not begin.
#[tokio::test]
async fn on_a_signal_a_client_that_never_pauses_ends_behind_its_answers() {
    let database = postgres::shared().database().await;
    for mode in ["transaction", "session"] {
        let gate = Gate::with(&database).mode(mode).run().await;
        let mut client = raw(&gate, 1).await;
        let insert = format!("INSERT INTO items (body) SELECT '{mode}' FROM pg_sleep(0.02)\0");
        let insert = message(b'Q', insert.as_bytes());
        client.send(&insert.repeat(2)).await;
        let (mut answered, mut asked) = (0, Instant::now());
        let code = loop {
            match client.read_message().await.expect("a reason") {
                (b'Z', _) => {
                    answered += 1;
                    if answered == 10 {
                        gate.signal("TERM");
                        asked = Instant::now();
                    }
                    client.send(&insert).await;
                }
                (b'E', body) => break error_fields(&body).0,
                _ => {}
            }
        };
        assert_eq!(code, "57P01");
        assert!(answered >= 10 && asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        client.expect_close().await;
        assert_eq!(gate.wait_exit(Duration::from_secs(5)).await.code(), Some(0));
        let admin = database.admin().await;
        let count = value(&admin, &format!("SELECT count(*) FROM items WHERE body = '{mode}'")).await;
        assert_eq!(count.unwrap().unwrap(), answered.to_string(), "what ran is what was answered");
    }
}

#[tokio::test]
async fn on_a_signal_who_waits_in_a_pause_is_told_at_once() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let mut client = raw(&gate, 1).await;
    gate.signal("USR1");
    eventually("paused", async || gate.log().contains("SIGUSR1: paused").then_some(())).await;
    client.send(&message(b'Q', b"SELECT 1\0")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    gate.signal("TERM");
    let asked = Instant::now();
    assert_eq!(client.expect_error().await.0, "57P01");
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert_eq!(gate.wait_exit(Duration::from_secs(5)).await.code(), Some(0));
}

#[tokio::test]
async fn on_a_signal_who_takes_no_answers_is_not_waited_for() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(([127, 0, 0, 1], gate.port()).into()).await.unwrap();
    let mut client = Raw::over(stream);
    client.sign_in("app", "app", &gate.token(org(1)).sign()).await;
    let count = async || sampled(&gate, r#"pgtenant_queries_total{database="app"}"#).await;
    // One after the other, so that it is between two of them that the client takes no more.
    let mut before = -1.0;
    eventually("it is stuck", async || {
        for _ in 0..20 {
            client.send(&message(b'Q', b"SELECT repeat('x', 7000)\0")).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let now = count().await;
        (std::mem::replace(&mut before, now) == now).then_some(())
    })
    .await;
    gate.signal("TERM");
    assert_eq!(gate.wait_exit(Duration::from_secs(8)).await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let mut busy = raw(&gate, 1).await;
    busy.query("BEGIN").await;
    gate.signal("TERM");
    eventually("the drain", async || (gate.http("/readyz").await.0 == 503).then_some(())).await;
    let asked = Instant::now();
    gate.signal("TERM");
    assert_eq!(gate.wait_exit(Duration::from_secs(5)).await.code(), Some(1));
    assert!(asked.elapsed() < Duration::from_secs(5));
}

/// A balancer notices only when it asks.
#[tokio::test]
async fn who_comes_while_balancers_notice_is_served() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).set("listen", "drain_delay", "\"4s\"").run().await;
    gate.signal("TERM");
    eventually("readiness to end", async || (gate.http("/readyz").await.0 == 503).then_some(())).await;
    let client = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    value(&client, "SELECT 1").await.unwrap();
    assert_eq!(gate.wait_exit(Duration::from_secs(20)).await.code(), Some(0));
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).set("budget", "latency", "\"137ms\"").run().await;
    let one = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let two = connect(&gate, "app", &gate.token(org(2)).sign()).await;
    for _ in 0..5 {
        value(&one, "SELECT 1").await.unwrap();
    }
    value(&two, "SELECT 1").await.unwrap();
    value(&one, "SELECT pg_sleep(0.2)").await.unwrap();
    value(&one, "SELECT 1/0").await.unwrap_err();
    let _ = try_connect(&gate, "app", "no token").await;
    assert_eq!(sampled(&gate, r#"pgtenant_queries_total{database="app"}"#).await, 8.0);
    assert_eq!(sampled(&gate, r#"pgtenant_query_seconds_count{database="app"}"#).await, 8.0);
    // On a busy machine others than the one that sleeps may be slow.
    let in_time = sampled(&gate, r#"pgtenant_query_seconds_bucket{database="app",le="0.137"}"#).await;
    assert!((1.0..=7.0).contains(&in_time), "{in_time}");
    assert_eq!(sampled(&gate, r#"pgtenant_query_seconds_bucket{database="app",le="+Inf"}"#).await, 8.0);
    assert_eq!(sampled(&gate, r#"pgtenant_over_budget_total{database="app"}"#).await, 8.0 - in_time);
    assert_eq!(sampled(&gate, "pgtenant_budget_seconds").await, 0.137);
    for phase in ["wait", "context", "server", "client"] {
        let name = format!(r#"pgtenant_phase_seconds_count{{database="app",phase="{phase}"}}"#);
        assert_eq!(sampled(&gate, &name).await, 8.0, "{phase}");
    }
    let server = sampled(&gate, r#"pgtenant_phase_seconds_sum{database="app",phase="server"}"#).await;
    let total = sampled(&gate, r#"pgtenant_query_seconds_sum{database="app"}"#).await;
    assert!((0.2..total + 0.001).contains(&server), "{server} of {total}");
    let errors = r#"pgtenant_errors_total{database="app",sqlstate_class="22"}"#;
    assert_eq!(sampled(&gate, errors).await, 1.0);
    assert_eq!(sampled(&gate, r#"pgtenant_sign_ins_total{result="ok"}"#).await, 2.0);
    // A lease each; how many servers were cleaned ahead of their next client is the pool's affair.
    let binds = async |kind: &str| {
        sampled(&gate, &format!(r#"pgtenant_binds_total{{database="app",kind="{kind}"}}"#)).await
    };
    let (reused, bound, switched) = (binds("reused").await, binds("bound").await, binds("switched").await);
    assert_eq!(reused + bound + switched, 8.0);
    assert!(reused >= 1.0 && bound >= 1.0, "{reused} {bound} {switched}");
    assert_eq!(sampled(&gate, r#"pgtenant_bind_failures_total{database="app"}"#).await, 0.0);
    assert_eq!(sampled(&gate, r#"pgtenant_pool_size{database="app"}"#).await, 2.0, "one for each role");
    // Clients and servers by state, while one is at work and another waits.
    let working = tokio::spawn(async move { one.batch_execute("SELECT pg_sleep(1)").await.map(|()| one) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let waiting = tokio::spawn(async move { two.batch_execute("SELECT 1").await.map(|()| two) });
    let idle = connect(&gate, "app", &gate.token(org(3)).sign()).await;
    eventually("the gauges", async || {
        let (_, metrics) = gate.http("/metrics").await;
        let at = |name: &str| sample(&metrics, name).unwrap_or(-1.0);
        let states = [
            at(r#"pgtenant_clients{database="app",state="active"}"#),
            at(r#"pgtenant_clients{database="app",state="waiting"}"#),
            at(r#"pgtenant_clients{database="app",state="idle"}"#),
            at(r#"pgtenant_servers{database="app",state="active"}"#),
            at(r#"pgtenant_waiting_clients{database="app"}"#),
        ];
        (states == [1.0, 1.0, 1.0, 1.0, 1.0]).then_some(())
    })
    .await;
    working.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
    drop(idle);
    // No token, no literal, no secret.
    let (_, metrics) = gate.http("/metrics").await;
    for secret in ["pg_sleep", "app-password", "eyJ", &org(1)] {
        assert!(!metrics.contains(secret) && !gate.log().contains(secret), "{secret}");
    }
    assert_eq!(gate.http("/elsewhere").await.0, 404);
}

#[tokio::test]
async fn max_clients_is_a_limit_with_a_name() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).set("listen", "max_clients", "2").run().await;
    let first = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let _second = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let mut third = Raw::connect(&gate).await;
    third.startup("app", "app", &[]).await;
    let (code, text) = third.expect_error().await;
    assert_eq!(code, "53300");
    assert_eq!(text, "sorry, too many clients already");
    third.expect_close().await;
    // A cancel request comes in all the same: it is when a house is full that it is wanted most.
    let cancel = first.cancel_token();
    let running = tokio::spawn(async move { (first.batch_execute("SELECT pg_sleep(30)").await, first) });
    tokio::time::sleep(Duration::from_millis(200)).await;
    cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
    let (outcome, first) = running.await.unwrap();
    assert_eq!(outcome.unwrap_err().code().unwrap().code(), "57014");
    // Many at once who say nothing cost nothing: some are told later, the others are closed.
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(Raw::connect(&gate).await);
    }
    let started = Instant::now();
    for raw in &mut silent {
        raw.expect_close().await;
    }
    assert!(started.elapsed() < Duration::from_secs(10));
    drop(first);
    eventually("a free place", async || try_connect(&gate, "app", &gate.token(org(1)).sign()).await.ok())
        .await;
}

#[tokio::test]
async fn a_full_pool_refuses_after_wait_timeout_and_says_why() {
    let database = postgres::shared().database().await;
    let gate =
        Gate::with(&database).pool_size(1).set("databases.app.pool", "wait_timeout", "\"300ms\"").run().await;
    let mut holder = raw(&gate, 1).await;
    holder.query("BEGIN").await;
    let mut waiter = raw(&gate, 2).await;
    let answer = waiter.query("SELECT 1").await;
    let (code, text) = answer.error.unwrap();
    assert_eq!((code.as_str(), answer.status), ("53300", b'I'));
    assert!(text.contains("wait_timeout"), "{text}");
    // It stays connected, and gets its turn later.
    holder.query("COMMIT").await;
    assert_eq!(waiter.query("SELECT DISTINCT body FROM items").await.rows, [[Some("org-2".to_owned())]]);
}

/// PostgreSQL is frozen: what has to be done on a server before it is a client's has an end too, and so has its place if the
/// client leaves.
#[tokio::test]
async fn a_server_that_does_not_get_ready_is_not_waited_for_longer() {
    let database = postgres::shared().database().await;
    let wire = Wire::to(database.port).await;
    let gate = Gate::with(&database).pool_size(3).set("servers.main", "port", &wire.port.to_string());
    let gate = gate.set("databases.app.pool", "wait_timeout", "\"1s\"").run().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(raw(&gate, 1).await);
    }
    // Twice: a server that was cleaned ahead of its next client behind the first round would be bound without waiting.
    for sql in ["BEGIN", "COMMIT", "BEGIN", "COMMIT"] {
        for client in &mut clients {
            client.query(sql).await;
        }
    }
    let (mut other, mut leaves) = (raw(&gate, 2).await, raw(&gate, 2).await);
    wire.is_mute.store(true, Ordering::SeqCst);
    let asked = Instant::now();
    // None of the three is its own, and each would take ten seconds to be given up.
    leaves.send(&message(b'Q', b"SELECT 1; SELECT 2\0")).await;
    let (code, said) = other.query("SELECT 1; SELECT 2").await.error.unwrap();
    assert_eq!(code, "53300", "{said}");
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    drop(leaves);
    wire.is_mute.store(false, Ordering::SeqCst);
    let answer = eventually("served again", async || {
        let answer = other.query("SELECT DISTINCT body FROM items").await;
        answer.error.is_none().then_some(answer)
    })
    .await;
    assert_eq!(answer.rows, [[Some("org-2".to_owned())]]);
    eventually("no server is held", async || {
        let held = sampled(&gate, r#"pgtenant_servers{database="app",state="active"}"#).await;
        (held == 0.0).then_some(())
    })
    .await;
}

/// Who left while it waited has nothing run for it.
#[tokio::test]
async fn a_waiting_client_that_leaves_is_not_served() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut holder = raw(&gate, 1).await;
    holder.query("BEGIN").await;
    for _ in 0..5 {
        let mut waiter = raw(&gate, 1).await;
        waiter.send(&message(b'Q', b"INSERT INTO notes SELECT max(id) + 1, 'too late' FROM notes\0")).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        drop(waiter);
    }
    eventually("the waiting clients' end", async || {
        let waiting = sampled(&gate, r#"pgtenant_waiting_clients{database="app"}"#).await;
        (waiting == 0.0).then_some(())
    })
    .await;
    holder.query("COMMIT").await;
    let late = holder.query("SELECT count(*) FROM notes WHERE body = 'too late'").await;
    assert_eq!(late.rows, [[Some("0".to_owned())]]);
}

/// A PostgreSQL that goes away takes running transactions with it and nothing else.
#[tokio::test]
async fn postgresql_gone_and_back() {
    let mut shared = Shared::start(&Options::default());
    let database = shared.database().await;
    let gate =
        Gate::with(&database).pool_size(2).set("databases.app.pool", "wait_timeout", "\"500ms\"").run().await;
    let mut idle = raw(&gate, 1).await;
    let mut busy = raw(&gate, 2).await;
    assert_eq!(idle.query("SELECT 1").await.rows.len(), 1);
    assert_eq!(busy.query("BEGIN").await.status, b'T');
    eventually("readiness", async || (gate.http("/readyz").await.0 == 200).then_some(())).await;
    // The server process of the transaction is terminated: PostgreSQL's own words, and only that client.
    database
        .admin()
        .await
        .batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'",
        )
        .await
        .unwrap();
    assert_eq!(
        busy.expect_error().await,
        ("57P01".into(), "terminating connection due to administrator command".into())
    );
    assert!(busy.read_message().await.is_none(), "one report, and the end");
    assert_eq!(idle.query("SELECT DISTINCT body FROM items").await.rows, [[Some("org-1".to_owned())]]);
    // All of it stops.
    shared.server.stop_server().unwrap();
    let answer = idle.query("SELECT 1").await;
    let (code, text) = answer.error.unwrap();
    assert_eq!((code.as_str(), answer.status), ("08001", b'I'), "{text}");
    eventually("the end of readiness", async || {
        let (status, why) = gate.http("/readyz").await;
        (status == 503 && why.contains("127.0.0.1")).then_some(())
    })
    .await;
    assert_eq!(gate.http("/livez").await.0, 200);
    shared.server.start_server().unwrap();
    eventually("readiness again", async || (gate.http("/readyz").await.0 == 200).then_some(())).await;
    // The same client, without a new sign-in.
    let answer = eventually("the next answer", async || {
        let answer = idle.query("SELECT DISTINCT body FROM items").await;
        answer.error.is_none().then_some(answer)
    })
    .await;
    assert_eq!(answer.rows, [[Some("org-1".to_owned())]]);
}

#[tokio::test]
async fn servers_are_kept_ready_and_none_grows_old() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database)
        .pool_size(4)
        .set("databases.app.pool", "min_idle", "2")
        .set("databases.app.pool", "idle_timeout", "\"1s\"")
        .set("databases.app.pool", "max_age", "\"2s\"")
        .remove("roles.plain")
        .run()
        .await;
    // Nobody has come yet.
    let admin = database.admin().await;
    let sql =
        "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app'";
    let open = async || admin.query_one(sql, &[]).await.unwrap().get::<_, i32>(0);
    eventually("two servers", async || (open().await == 2).then_some(())).await;
    // A server that is never idle for long is closed all the same.
    let client = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let mut pids = std::collections::BTreeSet::new();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        pids.insert(value(&client, "SELECT pg_backend_pid()").await.unwrap().unwrap());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(pids.len() > 2, "{pids:?}");
    eventually("two servers again", async || (open().await == 2).then_some(())).await;
}

/// An opening that fails gives its place back: a pool is as large as before once PostgreSQL lets it in again.
#[tokio::test]
async fn openings_that_fail_keep_no_place_in_the_pool() {
    let own = Shared::start(&Options::default());
    let database = own.database().await;
    let admin = database.admin().await;
    let gate = Gate::with(&database).pool_size(2).run().await;
    admin.batch_execute("ALTER ROLE app PASSWORD 'another'").await.unwrap();
    let token = gate.token(org(1)).sign();
    let started = Instant::now();
    for _ in 0..6 {
        let Err(refused) = try_connect(&gate, "app", &token).await else { panic!("signed in") };
        assert_eq!(refused.as_db_error().unwrap().code().code(), "08004", "{refused:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(4), "each is told at once: wait_timeout is 5 s");
    admin.batch_execute("ALTER ROLE app PASSWORD 'app-password'").await.unwrap();
    // For half a second, PostgreSQL's last word holds.
    eventually("the password tried again", async || try_connect(&gate, "app", &token).await.ok()).await;
    let clients = [connect(&gate, "app", &token).await, connect(&gate, "app", &token).await];
    for client in &clients {
        client.batch_execute("BEGIN").await.unwrap();
    }
}
