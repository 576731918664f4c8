//! Tokens with an `act` claim (RFC 8693 section 4.1): somebody acts for a subject, reads and does not write.

use serde_json::json;

use crate::commands::run;
use crate::harness::client::{Raw, bind, execute, message, parse, raw, sync, try_connect};
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres::{self, Database};

fn token(gate: &Gate, n: u32) -> String {
    gate.token(org(n)).subject("customer").claim("act", json!({ "sub": "support@vendor" })).sign()
}

async fn acting(gate: &Gate, n: u32) -> Raw {
    let mut client = Raw::connect(gate).await;
    client.sign_in("app", "app", &token(gate, n)).await;
    client
}

async fn code(client: &mut Raw, sql: &str) -> String {
    client.query(sql).await.error.map_or(String::new(), |error| error.0)
}

async fn written(database: &Database) -> i64 {
    let sql =
        "SELECT (SELECT count(*) FROM items WHERE counter > 0) + (SELECT count(*) FROM notes WHERE id > 10)";
    database.admin().await.query_one(sql, &[]).await.unwrap().get(0)
}

const WRITES: [&str; 8] = [
    "UPDATE items SET counter = 1",
    "DELETE FROM items",
    "INSERT INTO items (body, counter) VALUES ('x', 1)",
    "INSERT INTO notes VALUES (11, 'in a table without policies')",
    "WITH w AS (INSERT INTO notes VALUES (11, 'x') RETURNING 1) SELECT * FROM w",
    "BEGIN READ WRITE; INSERT INTO notes VALUES (11, 'x'); COMMIT",
    "SELECT 1; RESET ALL; COMMIT; INSERT INTO notes VALUES (11, 'x')",
    // The database itself, where no text shows it.
    "DO $$ BEGIN EXECUTE 'SET transaction_read_' || 'only = off'; UPDATE items SET counter = 1; END $$",
];

async fn reads_and_does_not_write(client: &mut Raw, database: &Database) {
    for sql in WRITES {
        let answer = client.query("SELECT count(*), min(body), max(body) FROM items").await;
        assert_eq!(answer.error, None, "before {sql}");
        assert_eq!(
            answer.rows[0],
            [Some("50".to_owned()), Some("org-1".to_owned()), Some("org-1".to_owned())]
        );
        let is_refused = |code: &str| code == "25006" || code == "25001" && sql.starts_with("DO");
        let found = code(client, sql).await;
        assert!(is_refused(&found), "{sql}: {found}");
        client.query("ROLLBACK").await;
        assert_eq!(code(client, "BEGIN; SELECT count(*) FROM items").await, "", "{sql}");
        let found = code(client, sql).await;
        assert!(is_refused(&found), "in a transaction: {sql}: {found}");
        client.query("ROLLBACK").await;
        client.send(&[parse("", sql), bind(""), execute(), sync()].concat()).await;
        let found = client.answer().await.error.unwrap().0;
        assert!(is_refused(&found) || found == "42601", "prepared: {sql}: {found}");
    }
    // However it would have a second transaction in the same turn write.
    for takes_back in [
        "RESET ALL",
        "EXECUTE pgtenant_settings('default_transaction_read_only', 'off')",
        "SELECT pgtenant.put_back('default_transaction_read_only', 'off')",
        "SELECT query_to_xml('select pgtenant.put' || '_back(''default_transaction_read_only'', ''off'')', true, false, '')",
    ] {
        client.query("BEGIN").await;
        let _ = code(client, takes_back).await;
        let found = code(client, "COMMIT; INSERT INTO notes VALUES (11, 'x')").await;
        assert_eq!(found, "25006", "{takes_back}");
        client.query("ROLLBACK").await;
    }
    let typed = message(b'P', b"\0SELECT set_config($1::text, $2, false)\0\0\x02\0\0\0\x11\0\0\0\x19");
    client.send(&[typed, sync()].concat()).await;
    assert_eq!(client.answer().await.error.unwrap().0, "42501");
    let long = format!("/*{}*/ SET default_transaction_read_only = off", "x".repeat(40_000));
    client.send(&[parse("", &long), bind(""), execute(), sync()].concat()).await;
    assert!(client.answer().await.error.is_some());
    assert_eq!(code(client, "INSERT INTO notes VALUES (11, 'x')").await, "25006");
    // Whatever it takes back, and however it sends the next transaction.
    assert_eq!(code(client, "DISCARD ALL").await, "");
    let pair = ["RESET ALL\0", "INSERT INTO notes VALUES (11, 'x')\0"]
        .map(|sql| message(b'Q', sql.as_bytes()))
        .concat();
    client.send(&pair).await;
    let codes =
        [client.answer().await, client.answer().await].map(|answer| answer.error.map(|error| error.0));
    assert_eq!(codes, [Some("25006".to_owned()), Some("25006".to_owned())]);
    assert_eq!(written(database).await, 0);
}

#[tokio::test]
async fn who_acts_for_somebody_reads_and_does_not_write() {
    for shared in postgres::every_version() {
        for mode in ["transaction", "session"] {
            let database = shared.database().await;
            let gate = Gate::with(&database).mode(mode).pool_size(2).run().await;
            let mut client = acting(&gate, 1).await;
            reads_and_does_not_write(&mut client, &database).await;
            // Nobody else's transactions are read-only by it.
            let mut owner = raw(&gate, 1).await;
            assert_eq!(code(&mut owner, "UPDATE items SET counter = 0").await, "");
        }
    }
}

#[tokio::test]
async fn a_hardened_database_makes_it_read_only_itself() {
    let database = postgres::shared().database().await;
    let written = Gate::with(&database).write();
    let done = run(&["install", "--database", &database.url, "--role", "app", "--harden"], Some(&written));
    assert_eq!(done.code, 0, "{done:?}");
    let gate = Gate::with(&database).pool_size(1).run().await;
    let (mut client, mut owner) = (acting(&gate, 1).await, raw(&gate, 1).await);
    for sql in &WRITES[..7] {
        assert_eq!(code(&mut client, sql).await, "25006", "{sql}");
        client.query("ROLLBACK").await;
        assert_eq!(code(&mut owner, "UPDATE items SET counter = 0").await, "");
    }
    within_a_transaction(&gate, &mut owner).await;
}

#[tokio::test]
async fn it_begins_and_ends_with_the_token_on_a_live_connection() {
    let database = postgres::shared().database().await;
    for mode in ["transaction"] {
        let gate = Gate::with(&database).mode(mode).pool_size(1).run().await;
        let mut client = raw(&gate, 1).await;
        let switch = format!("SET pgtenant.token = '{}'", token(&gate, 1));
        for _ in 0..2 {
            assert_eq!(code(&mut client, "UPDATE items SET counter = 0").await, "");
            assert_eq!(code(&mut client, &switch).await, "");
            assert_eq!(code(&mut client, "UPDATE items SET counter = 1").await, "25006");
            assert_eq!(code(&mut client, "SELECT count(*) FROM items").await, "");
            assert_eq!(code(&mut client, "RESET pgtenant.token").await, "");
            // What is set for the session in a transaction goes with the token, too.
            assert_eq!(code(&mut client, "BEGIN").await, "");
            assert_eq!(code(&mut client, &switch).await, "");
            assert_eq!(code(&mut client, "COMMIT").await, "");
            assert_eq!(code(&mut client, "UPDATE items SET counter = 1").await, "25006");
            assert_eq!(code(&mut client, "RESET pgtenant.token").await, "");
        }
        within_a_transaction(&gate, &mut client).await;
        // A client's own choice stays.
        assert_eq!(code(&mut client, "SET default_transaction_read_only = on").await, "");
        assert_eq!(code(&mut client, &switch).await, "");
        assert_eq!(code(&mut client, "RESET pgtenant.token").await, "");
        assert_eq!(code(&mut client, "UPDATE items SET counter = 1").await, "25006");
    }
    a_session_that_writes_does_not_become_one_that_reads(&database).await;
    assert_eq!(written(&database).await, 0);
}

/// It would have statements, and functions of its own, that were made while it wrote.
async fn a_session_that_writes_does_not_become_one_that_reads(database: &Database) {
    let gate = Gate::with(database).mode("session").pool_size(2).run().await;
    let mut client = raw(&gate, 1).await;
    client.send(&[parse("p", "BEGIN READ WRITE"), sync()].concat()).await;
    assert_eq!(client.answer().await.error, None);
    let switch = format!("SET pgtenant.token = '{}'", token(&gate, 1));
    for sql in [switch.clone(), format!("BEGIN; SELECT 1\0{switch}")] {
        for part in sql.split('\0') {
            let found = code(&mut client, part).await;
            assert_eq!(found, if part.starts_with("SET") { "0A000" } else { "" }, "{part}");
        }
        client.query("ROLLBACK").await;
    }
    assert_eq!(code(&mut client, "UPDATE items SET counter = 0").await, "");
    // The other way round it does.
    let mut client = acting(&gate, 1).await;
    assert_eq!(code(&mut client, "UPDATE items SET counter = 1").await, "25006");
    let own = gate.token(org(1)).sign();
    assert_eq!(code(&mut client, &format!("SET pgtenant.token = '{own}'")).await, "");
    assert_eq!(code(&mut client, "UPDATE items SET counter = 0").await, "");
    assert_eq!(code(&mut client, "RESET pgtenant.token").await, "0A000");
}

async fn within_a_transaction(gate: &Gate, client: &mut Raw) {
    assert_eq!(code(client, "BEGIN; UPDATE items SET counter = 0").await, "");
    assert_eq!(code(client, &format!("SET LOCAL pgtenant.token = '{}'", token(gate, 1))).await, "");
    assert_eq!(code(client, "SELECT count(*) FROM items").await, "");
    assert_eq!(code(client, "UPDATE items SET counter = 1").await, "25006");
    assert_eq!(code(client, "ROLLBACK").await, "");
    assert_eq!(code(client, "UPDATE items SET counter = 0").await, "");
}

#[tokio::test]
async fn both_are_in_the_log_and_a_claim_that_names_nobody_is_refused() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let mut client = acting(&gate, 1).await;
    assert_eq!(code(&mut client, "SELECT 'a-literal'").await, "");
    let log = gate.log();
    let line = log.lines().find(|line| line.contains("\"event\":\"acting\"")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        [&line["subject"], &line["actor"], &line["organization"]],
        ["customer", "support@vendor", &org(1)]
    );
    assert!(!line.to_string().contains("a-literal"));
    for act in
        [json!(null), json!("support"), json!({}), json!({ "sub": "" }), json!({ "sub": 7 }), json!([])]
    {
        let token = gate.token(org(1)).claim("act", act.clone()).sign();
        let refused = try_connect(&gate, "app", &token).await.err().unwrap();
        assert_eq!(refused.code().unwrap().code(), "28000", "{act}");
    }
    assert!(gate.log().contains("claim \\\"act\\\" is no object"));
}
