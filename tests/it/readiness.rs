//! Whether a balancer sends anybody here, and who is told that there is no server for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgtenant::cli::demo::throwaway::Options;

use crate::harness::client::{connect, raw, try_connect, value};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, Shared, password_of};
use crate::harness::{eventually, org};

async fn becomes(gate: &Gate, status: u16) {
    eventually("readiness", async || (gate.http("/readyz").await.0 == status).then_some(())).await;
}

/// While it is not ready nobody is sent, so it asks by itself whether PostgreSQL still refuses the role.
#[tokio::test]
async fn it_is_ready_again_when_the_role_is_let_in_again_though_nobody_comes() {
    let shared = Shared::start(&Options::default());
    let database = shared.database().await;
    let admin = database.admin().await;
    admin.batch_execute("ALTER ROLE app PASSWORD 'another'").await.unwrap();
    let gate = Gate::with(&database).run().await;
    assert!(try_connect(&gate, "app", &gate.token(org(1)).sign()).await.is_err());
    becomes(&gate, 503).await;
    admin.batch_execute(&format!("ALTER ROLE app PASSWORD '{}'", password_of("app"))).await.unwrap();
    becomes(&gate, 200).await;
    let client = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    assert_eq!(value(&client, "SELECT 'here'").await.unwrap().as_deref(), Some("here"));
}

/// A pool whose servers are all at work is one that works, though another one could not be opened.
#[tokio::test]
async fn it_is_ready_while_all_its_servers_are_at_work() {
    let shared = Shared::start(&Options::default());
    let database = shared.database().await;
    database.admin().await.batch_execute("ALTER ROLE app CONNECTION LIMIT 1").await.unwrap();
    let gate = Gate::with(&database).pool_size(2).run().await;
    let mut busy = raw(&gate, 1).await;
    assert_eq!(busy.query("BEGIN").await.status, b'T');
    let waiting = connect(&gate, "app", &gate.token(org(2)).sign()).await;
    let waiting = tokio::spawn(async move { value(&waiting, "SELECT 'served'").await });
    eventually("a refusal", async || gate.log().contains("too many connections").then_some(())).await;
    for _ in 0..15 {
        let (status, why) = gate.http("/readyz").await;
        assert_eq!(status, 200, "{why}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(busy.query("COMMIT").await.status, b'I');
    assert_eq!(waiting.await.unwrap().unwrap().as_deref(), Some("served"));
}

/// How long it was paused is not held against who waits.
#[tokio::test]
async fn who_waited_through_a_pause_waits_its_time_behind_it() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).set("databases.app.pool", "wait_timeout", "\"2s\"");
    let gate = gate.run().await;
    let mut busy = raw(&gate, 1).await;
    assert_eq!(busy.query("BEGIN").await.status, b'T');
    let waiting = connect(&gate, "app", &gate.token(org(2)).sign()).await;
    gate.signal("USR1");
    eventually("the pause", async || gate.log().contains("paused").then_some(())).await;
    let waiting = tokio::spawn(async move { value(&waiting, "SELECT 'served'").await });
    tokio::time::sleep(Duration::from_millis(1_800)).await;
    gate.signal("USR2");
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    assert_eq!(busy.query("COMMIT").await.status, b'I');
    assert_eq!(waiting.await.unwrap().unwrap().as_deref(), Some("served"));
}

/// Projects take turns: a long line of one is none before another.
#[tokio::test]
async fn a_quiet_project_is_not_refused_for_the_line_of_another() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).set("databases.app.pool", "wait_timeout", "\"2s\"");
    let gate = gate.run().await;
    let [noisy, quiet] = [1, 2].map(|project| {
        gate.token(org(1)).project(format!("018f6f3e-0000-7000-8000-00000000010{project}")).sign()
    });
    let is_over = Arc::new(AtomicBool::new(false));
    let mut crowd = Vec::new();
    for _ in 0..60 {
        let (client, is_over) = (connect(&gate, "app", &noisy).await, is_over.clone());
        crowd.push(tokio::spawn(async move {
            let mut refused = 0;
            while !is_over.load(Ordering::Relaxed) {
                if client.query("SELECT pg_sleep(0.1)", &[]).await.is_err() {
                    refused += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            refused
        }));
    }
    let quiet = connect(&gate, "app", &quiet).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    for _ in 0..10 {
        assert_eq!(value(&quiet, "SELECT 'served'").await.unwrap().as_deref(), Some("served"));
    }
    is_over.store(true, Ordering::Relaxed);
    let mut refused = 0;
    for one in crowd {
        refused += one.await.unwrap();
    }
    assert!(refused > 10, "{refused}: the line is too long for those of the noisy one");
}
