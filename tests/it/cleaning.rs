//! Whatever a client leaves on a server, the next one of another organization does not find it.

use crate::harness::client::{Raw, connect, value};
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres::{self, Shared};

/// What is left behind, how to look for it, and what the next client must see.
const LEFTOVERS: [(&str, &str, &str); 15] = [
    ("SET work_mem = '77MB'", "SELECT current_setting('work_mem') = '77MB'", "f"),
    ("SET app.secret = 'theirs'", "SELECT COALESCE(current_setting('app.secret', true), '') = ''", "t"),
    (
        "SELECT set_config('app.secret', 'theirs', false)",
        "SELECT COALESCE(current_setting('app.secret', true), '') = ''",
        "t",
    ),
    ("SET search_path = pg_temp, nowhere", "SHOW search_path", "\"$user\", public"),
    ("SET standard_conforming_strings = off", "SHOW standard_conforming_strings", "on"),
    ("SET statement_timeout = 1", "SHOW statement_timeout", "0"),
    ("SET idle_session_timeout = '20ms'", "SHOW idle_session_timeout", "0"),
    (
        "CREATE TEMP TABLE items (body text); INSERT INTO items VALUES ('theirs')",
        "SELECT count(*) FROM pg_class WHERE relname = 'items' AND relpersistence = 't'",
        "0",
    ),
    ("BEGIN; CREATE TEMP VIEW v AS SELECT 1; COMMIT", "SELECT to_regclass('pg_temp.v') IS NULL", "t"),
    (
        "BEGIN; PREPARE theirs AS SELECT 1; COMMIT",
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'theirs'",
        "0",
    ),
    (
        "DO $$ BEGIN EXECUTE 'PREPARE hidden AS SELECT 1'; END $$",
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'hidden'",
        "0",
    ),
    (
        "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT body FROM items; COMMIT",
        "SELECT count(*) FROM pg_cursors",
        "0",
    ),
    ("DO $$ BEGIN EXECUTE 'LISTEN theirs'; END $$", "SELECT count(*) FROM pg_listening_channels()", "0"),
    (
        "BEGIN; SELECT pg_advisory_lock(4711); COMMIT",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "0",
    ),
    ("SELECT nextval('counting')", "SELECT lastval()", "ERROR 55000"),
];

async fn leave_and_look(shared: &Shared) {
    let database = shared.database().await;
    let admin = database.admin().await;
    admin.batch_execute("CREATE SEQUENCE counting; GRANT USAGE ON SEQUENCE counting TO app").await.unwrap();
    let gate = Gate::with(&database).pool_size(1).run().await;
    for (leave, look, expected) in LEFTOVERS {
        let mut first = Raw::connect(&gate).await;
        first.sign_in("app", "app", &gate.token(org(1)).sign()).await;
        let left = first.query(leave).await;
        assert_eq!(left.error, None, "{leave}");
        let mut second = Raw::connect(&gate).await;
        second.sign_in("app", "app", &gate.token(org(2)).sign()).await;
        let seen = second.query(look).await;
        let seen = match seen.error {
            Some((code, _)) => format!("ERROR {code}"),
            None => seen.rows[0][0].clone().unwrap_or_default(),
        };
        assert_eq!(seen, expected, "{leave} left something on PostgreSQL {}", shared.server.version_major());
        let own = second.query("SELECT DISTINCT body FROM items").await;
        assert_eq!(own.rows, [[Some("org-2".to_owned())]], "{leave}");
    }
    let (_, metrics) = gate.http("/metrics").await;
    assert!(metrics.contains("pgtenant_bind_failures_total{database=\"app\"} 0"), "{metrics}");
}

#[tokio::test]
async fn nothing_is_left_for_the_next_organization_on_any_version() {
    for shared in postgres::every_version() {
        leave_and_look(shared).await;
    }
}

#[tokio::test]
async fn random_numbers_do_not_repeat_for_the_next_client() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut seen = Vec::new();
    for n in [1, 2, 1, 2] {
        let client = connect(&gate, "app", &gate.token(org(n)).sign()).await;
        seen.push(value(&client, "SELECT random()").await.unwrap());
        value(&client, "SELECT setseed(0.5)").await.unwrap();
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 4, "{seen:?}");
}

/// The same organization, other settings: each keeps its own.
#[tokio::test]
async fn reported_settings_follow_the_client() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let one = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let two = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    one.batch_execute("SET TimeZone = 'Asia/Tokyo'").await.unwrap();
    two.batch_execute("SET application_name = 'second'").await.unwrap();
    for _ in 0..3 {
        assert_eq!(value(&one, "SHOW TimeZone").await.unwrap().as_deref(), Some("Asia/Tokyo"));
        assert_ne!(value(&two, "SHOW TimeZone").await.unwrap().as_deref(), Some("Asia/Tokyo"));
        assert_eq!(value(&two, "SHOW application_name").await.unwrap().as_deref(), Some("second"));
    }
    one.batch_execute("BEGIN; SET LOCAL TimeZone = 'UTC'; ROLLBACK").await.unwrap();
    assert_eq!(value(&one, "SHOW TimeZone").await.unwrap().as_deref(), Some("Asia/Tokyo"));
}

/// Plain pooling: no context, and still nothing that a command visibly left.
#[tokio::test]
async fn without_tenancy_a_dirty_server_is_cleaned_too() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let one = connect(&gate, "plain", "plain-password").await;
    let two = connect(&gate, "plain", "plain-password").await;
    one.batch_execute("SET work_mem = '77MB'").await.unwrap();
    assert_ne!(value(&two, "SHOW work_mem").await.unwrap().as_deref(), Some("77MB"));
    for temporary in [
        "CREATE TEMP TABLE t (n int)",
        "CREATE TEMP TABLE t AS SELECT 1",
        "SELECT 1 AS n INTO LOCAL TEMP t",
        "CREATE TABLE pg_temp.t AS SELECT 1",
    ] {
        one.batch_execute(&format!("BEGIN; {temporary}; COMMIT")).await.unwrap();
        let gone = value(&two, "SELECT to_regclass('pg_temp.t') IS NULL").await.unwrap();
        assert_eq!(gone.as_deref(), Some("t"), "{temporary}");
    }
}
