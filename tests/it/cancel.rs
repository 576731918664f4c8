//! Cancel requests: they strike what their client sent, wherever that is, and nothing else.

use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio_postgres::NoTls;

use crate::harness::client::{Raw, connect, message, raw, value};
use crate::harness::gate::Gate;
use crate::harness::{eventually, org, postgres};
use crate::moves;
use crate::reload::IN_FORCE;

#[tokio::test]
async fn cancel_stops_the_query_and_nothing_else() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let client = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let other = connect(&gate, "app", &gate.token(org(2)).sign()).await;
    let cancel = client.cancel_token();
    let started = Instant::now();
    let sleeping = tokio::spawn(async move {
        let outcome = client.batch_execute("SELECT pg_sleep(30)").await;
        (client, outcome)
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    cancel.cancel_query(NoTls).await.unwrap();
    let (client, outcome) = sleeping.await.unwrap();
    assert_eq!(outcome.unwrap_err().code().unwrap().code(), "57014");
    assert!(started.elapsed() < Duration::from_secs(10));
    // Now the server is somebody else's: a late cancel must not strike it.
    let sleeping = tokio::spawn(async move { other.batch_execute("SELECT pg_sleep(0.5)").await });
    for _ in 0..20 {
        cancel.cancel_query(NoTls).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    sleeping.await.unwrap().unwrap();
    client.batch_execute("SELECT 1").await.unwrap();
    // Nobody else's key: ignored.
    let mut stranger = Raw::connect(&gate).await;
    stranger.send(&[0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 1, 2, 3, 4]).await;
    stranger.expect_close().await;
}

/// As on PostgreSQL: what was sent is cancelled, whether it runs already or waits for a server.
#[tokio::test]
async fn cancel_reaches_a_query_that_waits_for_a_server() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let holder = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    for is_prepared in [false, true] {
        let client = connect(&gate, "app", &gate.token(org(2)).sign()).await;
        let (cancel, statement) =
            (client.cancel_token(), client.prepare("SELECT count(*) FROM items").await.unwrap());
        holder.batch_execute("BEGIN").await.unwrap();
        let waiting = tokio::spawn(async move {
            let outcome = match is_prepared {
                true => client.query(&statement, &[]).await.map(drop),
                false => client.batch_execute("SELECT 1").await,
            };
            (client, outcome)
        });
        eventually("it waits", async || {
            let (_, metrics) = gate.http("/metrics").await;
            metrics.contains("pgtenant_waiting_clients{database=\"app\"} 1").then_some(())
        })
        .await;
        cancel.cancel_query(NoTls).await.unwrap();
        // The one that has the server goes on; the other one is told at once.
        let (client, outcome) = waiting.await.unwrap();
        assert_eq!(outcome.unwrap_err().code().unwrap().code(), "57014");
        holder.batch_execute("SELECT 1; COMMIT").await.unwrap();
        let seen = value(&client, "SELECT DISTINCT body FROM items").await.unwrap();
        assert_eq!(seen.as_deref(), Some("org-2"), "it is served as before");
    }
}

#[tokio::test]
async fn a_vanished_clients_query_is_cancelled() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut raw = raw(&gate, 1).await;
    raw.send(&message(b'Q', b"SELECT pg_sleep(60)\0")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(raw);
    let admin = database.admin().await;
    eventually("the end of its query", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND datname = current_database() \
                   AND query LIKE '%pg_sleep(60)%'";
        (admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

/// The query shares a batch with the binding of its server, of which PostgreSQL says nothing before it is over.
#[tokio::test]
async fn cancel_reaches_a_query_for_which_its_server_changed_hands() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let first = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    for is_prepared in [false, true] {
        let client = connect(&gate, "app", &gate.token(org(2)).sign()).await;
        let cancel = client.cancel_token();
        assert!(value(&first, "SELECT 1").await.unwrap().is_some());
        let begun = Instant::now();
        let sleeping = tokio::spawn(async move {
            let outcome = match is_prepared {
                true => client.query_typed("SELECT 1 FROM pg_sleep(30)", &[]).await.map(drop),
                false => client.batch_execute("SELECT pg_sleep(30)").await,
            };
            (client, outcome)
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        cancel.cancel_query(NoTls).await.unwrap();
        let (client, outcome) = sleeping.await.unwrap();
        assert_eq!(outcome.unwrap_err().code().unwrap().code(), "57014");
        assert!(begun.elapsed() < Duration::from_secs(15));
        let seen = value(&client, "SELECT DISTINCT body FROM items").await.unwrap();
        assert_eq!(seen.as_deref(), Some("org-2"), "it is served as before");
    }
}

/// Nobody waits for what its client has left.
#[tokio::test]
async fn a_client_that_leaves_while_its_server_changes_hands_leaves_it() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut first = raw(&gate, 1).await;
    assert_eq!(first.query("SELECT 1").await.error, None);
    for behind in [&b""[..], &message(b'Q', b"SELECT 2\0"), b"Q\0\0"] {
        let mut second = raw(&gate, 2).await;
        let begun = Instant::now();
        second.send(&[&message(b'Q', b"SELECT pg_sleep(60)\0"), behind].concat()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(second);
        assert_eq!(first.query("SELECT DISTINCT body FROM items").await.rows, [[Some("org-1".to_owned())]]);
        assert!(begun.elapsed() < Duration::from_secs(30), "{behind:?}");
    }
}

/// Another configuration leads to another PostgreSQL. What runs on the former one is cancelled there: at the other one the
/// same key could be anybody's.
#[tokio::test]
async fn cancel_goes_where_the_query_runs() {
    let database = postgres::shared().database().await;
    let (before, after) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port().to_string();
    let (old, new) = (port(&before), port(&after));
    let address = moves::address(before, database.port);
    let gate = Gate::with(&database).pool_size(2).set("servers.main", "port", &old).run().await;
    let client = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let cancel = client.cancel_token();
    let sleeping = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(30)").await });
    let mut leaves = raw(&gate, 1).await;
    leaves.send(&message(b'Q', b"SELECT pg_sleep(60)\0")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    gate.rewrites(&format!("port = {old}"), &format!("port = {new}"));
    gate.reloads(IN_FORCE).await;
    let asked = Instant::now();
    cancel.cancel_query(NoTls).await.unwrap();
    assert_eq!(sleeping.await.unwrap().unwrap_err().code().unwrap().code(), "57014");
    drop(leaves);
    let admin = database.admin().await;
    eventually("the end of what nobody waits for", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND datname = current_database() \
                   AND state = 'active'";
        (value(&admin, sql).await.unwrap().unwrap() == "0").then_some(())
    })
    .await;
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    address.abort();
}
