//! Tokens, subjects and organizations that are revoked while their clients are connected.

use std::time::Duration;

use crate::commands::{assert_one_sentence, run};
use crate::harness::client::{Raw, message, raw, try_connect, value};
use crate::harness::gate::{Gate, Setup};
use crate::harness::postgres::{self, Database};
use crate::harness::{eventually, org};

fn setup(database: &Database) -> Setup {
    Gate::with(database).set("jwt", "revoked", "\"revoked.toml\"").file("revoked.toml", "")
}

/// Writes the list anew, and waits until it is in force.
pub async fn revoke(gate: &Gate, list: &str) {
    let before = gate.log().matches("files were loaded anew").count();
    std::fs::write(gate.config().folder().join("revoked.toml"), list).unwrap();
    eventually("the list in force", async || {
        (gate.log().matches("files were loaded anew").count() > before).then_some(())
    })
    .await;
}

async fn member(gate: &Gate, n: u32, subject: &str, id: &str) -> Raw {
    let mut client = Raw::connect(gate).await;
    client.sign_in("app", "app", &gate.token(org(n)).subject(subject).claim("jti", id).sign()).await;
    client
}

async fn code(client: &mut Raw, sql: &str) -> String {
    client.query(sql).await.error.map_or(String::new(), |(code, message)| format!("{code} {message}"))
}

#[tokio::test]
async fn what_is_revoked_begins_no_transaction_and_nobody_else_notices() {
    let database = postgres::shared().database().await;
    tokio::join!(begins_none(&database, "transaction"), begins_none(&database, "session"));
}

async fn begins_none(database: &Database, mode: &str) {
    let gate = setup(database).mode(mode).run().await;
    let mut mallory = member(&gate, 1, "mallory", "t-1").await;
    let mut alice = member(&gate, 1, "alice", "t-2").await;
    let mut other = member(&gate, 2, "bob", "t-3").await;
    let refused = "28000 token revoked";
    for (list, expected) in [
        ("tokens = ['t-1', 't-9']".to_owned(), [refused, "", ""]),
        ("subjects = ['alice']".to_owned(), ["", refused, ""]),
        (format!("organizations = ['{}']", org(1)), [refused, refused, ""]),
        (String::new(), ["", "", ""]),
    ] {
        revoke(&gate, &list).await;
        for (client, expected) in [&mut mallory, &mut alice, &mut other].into_iter().zip(expected) {
            assert_eq!(code(client, "SELECT count(*) FROM items").await, expected, "{list}");
        }
    }
    // A transaction that runs ends as it would have; the next does not begin, until another token is brought.
    assert_eq!(code(&mut mallory, "BEGIN").await, "");
    revoke(&gate, "subjects = ['mallory']").await;
    assert_eq!(code(&mut mallory, "UPDATE items SET counter = 1").await, "");
    assert_eq!(code(&mut mallory, "COMMIT").await, "");
    assert_eq!(code(&mut mallory, "SELECT 1").await, refused);
    let again = gate.token(org(1)).subject("mallory").sign();
    assert_eq!(
        code(&mut mallory, &format!("SET pgtenant.token = '{again}'")).await,
        "28000 token refused: revoked"
    );
    let good = gate.token(org(1)).subject("alice").sign();
    assert_eq!(code(&mut mallory, &format!("SET pgtenant.token = '{good}'")).await, "");
    assert_eq!(code(&mut mallory, "SELECT 1").await, "");
    let refused = try_connect(&gate, "app", &again).await.err().unwrap();
    assert_eq!(refused.as_db_error().unwrap().message(), "token refused: revoked");
    let told = gate.log().lines().filter(|line| line.contains("token_revoked")).count();
    assert!(told >= 5, "{told} lines");
}

#[tokio::test]
async fn what_runs_is_ended_where_the_list_says_so() {
    let database = postgres::shared().database().await;
    let gate = setup(&database).run().await;
    let (mut busy, mut idle) = (member(&gate, 1, "a", "t-1").await, member(&gate, 1, "b", "t-2").await);
    let (mut other, mut later) = (member(&gate, 2, "c", "t-3").await, member(&gate, 1, "d", "t-4").await);
    assert_eq!(code(&mut other, "BEGIN").await, "");
    assert_eq!(code(&mut idle, "BEGIN; UPDATE items SET counter = 7").await, "");
    busy.send(&message(b'Q', b"UPDATE items SET counter = 8 WHERE pg_sleep(600) IS NULL\0")).await;
    let admin = database.admin().await;
    let runs = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND state = 'active' \
                AND pid <> pg_backend_pid()";
    eventually("it runs", async || (value(&admin, runs).await.unwrap().unwrap() == "1").then_some(())).await;
    revoke(&gate, &format!("kill = true\norganizations = ['{}']", org(1))).await;
    // What writes by itself may have been committed at that very moment.
    for (client, expected) in [(&mut busy, "08007"), (&mut idle, "57P01")] {
        let (code, said) = client.expect_error().await;
        assert_eq!(
            (code.as_str(), said.as_str()),
            (expected, "terminating connection because its token was revoked")
        );
    }
    eventually("it runs no more", async || {
        (value(&admin, runs).await.unwrap().unwrap() == "0").then_some(())
    })
    .await;
    let sql = "SELECT count(*) FROM items WHERE counter <> 0";
    eventually("it is rolled back", async || {
        (value(&admin, sql).await.unwrap().unwrap() == "0").then_some(())
    })
    .await;
    // Who did nothing is still there, and may bring another token; who is somebody else goes on.
    assert_eq!(code(&mut other, "UPDATE items SET counter = 1; COMMIT").await, "");
    assert_eq!(code(&mut later, "SELECT 1").await, "28000 token revoked");
    let switch = format!("SET pgtenant.token = '{}'", gate.token(org(2)).sign());
    assert_eq!(code(&mut later, &switch).await, "");
    assert_eq!(code(&mut later, "SELECT 1").await, "");
}

/// Who never pauses between its transactions is between two of them all the same.
#[tokio::test]
async fn a_client_that_sends_without_a_pause_is_stopped() {
    let database = postgres::shared().database().await;
    let gate = setup(&database).run().await;
    let mut client = member(&gate, 1, "mallory", "t-1").await;
    let query = message(b'Q', b"SELECT 1\0");
    for _ in 0..50 {
        client.send(&query).await;
    }
    let writing = async {
        for round in 0..10_000 {
            if round == 20 {
                let list = gate.config().folder().join("revoked.toml");
                std::fs::write(list, "subjects = ['mallory']").unwrap();
            }
            client.send(&query).await;
            if let Some((code, _)) = client.answer().await.error {
                assert_eq!(code, "28000");
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("it was never stopped");
    };
    writing.await;
}

/// What was sent ahead is in PostgreSQL's buffer by then: it begins none of it.
#[tokio::test]
async fn what_was_sent_ahead_does_not_begin() {
    let database = postgres::shared().database().await;
    for kill in [false, true] {
        let gate = setup(&database).run().await;
        let mut client = member(&gate, 1, "mallory", "t-1").await;
        let queries = [
            "SELECT pg_advisory_xact_lock(7)",
            "SELECT pg_sleep(601)",
            "INSERT INTO items (body) VALUES ('late')",
        ];
        let admin = database.admin().await;
        admin.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
        let queries = queries.map(|sql| message(b'Q', format!("{sql}\0").as_bytes()));
        client.send(&queries.concat()).await;
        let runs = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        eventually("it runs", async || (value(&admin, runs).await.unwrap().unwrap() == "1").then_some(()))
            .await;
        revoke(&gate, &format!("kill = {kill}\nsubjects = ['mallory']")).await;
        admin.batch_execute("SELECT pg_advisory_unlock(7)").await.unwrap();
        let (code, said) = client.expect_error().await;
        // As far as the proxy knows, its INSERT may have been the last that PostgreSQL did.
        let expected = match kill {
            true => ("08007", "terminating connection because its token was revoked"),
            false => ("08007", "token revoked"),
        };
        assert_eq!((code.as_str(), said.as_str()), expected);
        eventually("it runs no more", async || {
            let theirs = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND datname = current_database()";
            (value(&admin, theirs).await.unwrap().unwrap() == "0").then_some(())
        })
        .await;
        let late = value(&admin, "SELECT count(*) FROM items WHERE body = 'late'").await;
        assert_eq!(late.unwrap().unwrap(), "0", "kill = {kill}");
    }
}

#[tokio::test]
async fn a_list_that_cannot_be_read_changes_nothing() {
    let database = postgres::shared().database().await;
    let gate = setup(&database).run().await;
    let mut client = raw(&gate, 1).await;
    revoke(&gate, &format!("organizations = ['{}']", org(2))).await;
    std::fs::write(gate.config().folder().join("revoked.toml"), "organizations = ['acme']").unwrap();
    eventually("a warning", async || gate.log().contains("is not of the configured id type").then_some(()))
        .await;
    assert_eq!(code(&mut client, "SELECT 1").await, "");
    assert!(try_connect(&gate, "app", &gate.token(org(2)).sign()).await.is_err());
    let written = setup(&database).file("revoked.toml", "organisations = []").write();
    for command in ["check", "serve"] {
        let refused = run(&[command], Some(&written));
        assert!(refused.code != 0 && (refused.err + &refused.out).contains("unknown field"), "{command}");
    }
    let missing = setup(&database).set("jwt", "revoked", "\"nowhere.toml\"").write();
    assert_one_sentence(&run(&["check"], Some(&missing)), 2, &["jwt.revoked", "nowhere.toml"]);
}
