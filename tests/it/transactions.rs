//! Transactions behave as on PostgreSQL itself, under the context throughout.

use tokio_postgres::Client;

use crate::harness::client::{Raw, bind, connect, execute, message, parse, raw, value};
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres::{self, Database, ROWS_PER_ORGANIZATION};

async fn gate_of_one_server(database: &Database) -> Gate {
    Gate::with(database).pool_size(1).run().await
}

async fn member(gate: &Gate, n: u32) -> Client {
    connect(gate, "app", &gate.token(org(n)).sign()).await
}

#[tokio::test]
async fn isolation_levels_and_modes_are_the_clients() {
    let database = postgres::shared().database().await;
    let gate = gate_of_one_server(&database).await;
    let (client, other) = (member(&gate, 1).await, member(&gate, 2).await);
    for level in ["SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED"] {
        // Somebody else's turn in between: the server is bound anew for each transaction.
        assert!(value(&other, "SELECT 1").await.is_ok());
        client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).await.unwrap();
        let shown = value(&client, "SHOW transaction_isolation").await.unwrap().unwrap();
        assert_eq!(shown, level.to_lowercase());
        let rows = client.query("SELECT DISTINCT body FROM items", &[]).await.unwrap();
        assert_eq!((rows.len(), rows[0].get::<_, &str>(0)), (1, "org-1"));
        client.batch_execute("COMMIT").await.unwrap();
    }
    client
        .batch_execute("BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE")
        .await
        .unwrap();
    let refused = client.execute("UPDATE items SET counter = 1", &[]).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "25006");
    client.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn a_commit_inside_one_query_keeps_the_context() {
    let database = postgres::shared().database().await;
    let gate = gate_of_one_server(&database).await;
    let mut raw = Raw::connect(&gate).await;
    raw.sign_in("app", "app", &gate.token(org(3)).sign()).await;
    let answer = raw.query("SELECT count(*) FROM items; COMMIT; SELECT count(*) FROM items").await;
    assert_eq!(answer.error, None);
    let counts: Vec<_> = answer.rows.iter().map(|row| row[0].clone().unwrap()).collect();
    assert_eq!(counts, [ROWS_PER_ORGANIZATION.to_string(), ROWS_PER_ORGANIZATION.to_string()]);
    assert_eq!((answer.tags.len(), answer.status), (3, b'I'));
    let answer =
        raw.query("BEGIN; COMMIT AND CHAIN; SELECT DISTINCT body FROM items; ROLLBACK AND CHAIN").await;
    assert_eq!(answer.rows, [[Some("org-3".to_owned())]]);
    assert_eq!(answer.status, b'T', "a chained transaction is open");
    assert_eq!(raw.query("SELECT DISTINCT body FROM items; COMMIT").await.rows, [[Some("org-3".to_owned())]]);
}

#[tokio::test]
async fn savepoints_roll_back_and_the_context_stays() {
    let database = postgres::shared().database().await;
    let gate = gate_of_one_server(&database).await;
    let client = member(&gate, 1).await;
    client.batch_execute("BEGIN; INSERT INTO items (body) VALUES ('kept'); SAVEPOINT a").await.unwrap();
    client.batch_execute("INSERT INTO items (body) VALUES ('lost')").await.unwrap();
    assert!(client.batch_execute("SELECT 1/0").await.is_err());
    client.batch_execute("ROLLBACK TO a").await.unwrap();
    assert_eq!(
        value(&client, "SELECT count(DISTINCT organization_id) FROM items").await.unwrap().unwrap(),
        "1"
    );
    client.batch_execute("RELEASE a; COMMIT").await.unwrap();
    let left = value(&client, "SELECT string_agg(body, ',') FROM items WHERE body IN ('kept', 'lost')").await;
    assert_eq!(left.unwrap().unwrap(), "kept");
}

#[tokio::test]
async fn a_procedure_that_commits_runs_under_the_context_throughout() {
    let database = postgres::shared().database().await;
    database
        .admin()
        .await
        .batch_execute(
            "CREATE PROCEDURE in_batches() LANGUAGE plpgsql AS $$
             BEGIN
                 FOR i IN 1..3 LOOP
                     INSERT INTO items (body) VALUES ('batch ' || i);
                     COMMIT;
                     IF (SELECT count(DISTINCT organization_id) FROM items) <> 1 THEN
                         RAISE EXCEPTION 'foreign rows after COMMIT';
                     END IF;
                 END LOOP;
             END $$;
             GRANT EXECUTE ON PROCEDURE in_batches() TO app",
        )
        .await
        .unwrap();
    let gate = gate_of_one_server(&database).await;
    let (client, other) = (member(&gate, 2).await, member(&gate, 4).await);
    client.batch_execute("CALL in_batches()").await.unwrap();
    let theirs = value(&other, "SELECT count(*) FROM items WHERE body LIKE 'batch%'").await.unwrap();
    assert_eq!(theirs.unwrap(), "0");
    let own = value(&client, "SELECT count(*) FROM items WHERE body LIKE 'batch%'").await.unwrap();
    assert_eq!(own.unwrap(), "3");
}

/// Longer than a seal lives: within one statement nobody could bind anew.
#[tokio::test]
async fn a_procedure_that_commits_may_take_longer_than_a_seal() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).set("context", "seal_lifetime", "\"10s\"").run().await;
    let client = member(&gate, 1).await;
    let slow = "DO $$ BEGIN FOR i IN 1..4 LOOP PERFORM count(*) FROM items; COMMIT; PERFORM pg_sleep(3.5); END LOOP; \
                PERFORM count(*) FROM items; END $$";
    client.batch_execute(slow).await.unwrap();
    assert_eq!(value(&client, "SELECT DISTINCT body FROM items").await.unwrap().as_deref(), Some("org-1"));
}

#[tokio::test]
async fn what_refuses_a_transaction_block_runs_for_a_role_that_may() {
    let database = postgres::shared().database().await;
    database
        .admin()
        .await
        .batch_execute("ALTER TABLE notes OWNER TO app; GRANT CREATE ON SCHEMA public TO app")
        .await
        .unwrap();
    let gate = gate_of_one_server(&database).await;
    let (client, other) = (member(&gate, 1).await, member(&gate, 2).await);
    for sql in [
        "VACUUM notes",
        "CREATE INDEX CONCURRENTLY notes_body ON notes (body)",
        "REINDEX INDEX CONCURRENTLY notes_body",
    ] {
        assert!(value(&other, "SELECT 1").await.is_ok());
        client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        assert!(value(&other, "SELECT 1").await.is_ok());
        // The extended protocol too.
        if sql.starts_with("VACUUM") {
            client.execute(sql, &[]).await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_open_transaction_keeps_its_server_and_a_vanished_client_loses_it() {
    let database = postgres::shared().database().await;
    let gate =
        Gate::with(&database).pool_size(1).set("databases.app.pool", "wait_timeout", "\"300ms\"").run().await;
    let (holder, waiting) = (member(&gate, 1).await, member(&gate, 2).await);
    holder.batch_execute("BEGIN; UPDATE items SET counter = 7").await.unwrap();
    let refused = waiting.batch_execute("SELECT 1").await.unwrap_err();
    let refused = refused.as_db_error().unwrap();
    assert_eq!(refused.code().code(), "53300");
    assert!(refused.detail().unwrap().contains("1 of 1 servers open"), "{refused:?}");
    drop(holder);
    crate::harness::eventually("a server for the next", async || {
        waiting.batch_execute("SELECT 1").await.ok()
    })
    .await;
    let kept: i64 = database
        .admin()
        .await
        .query_one("SELECT count(*) FROM items WHERE counter = 7", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(kept, 0, "what was not committed is rolled back");
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_a_batch_keeps_no_server() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let terminate = message(b'X', b"");
    let copy = message(b'Q', b"COPY notes FROM STDIN\0");
    for last in [
        copy.clone(),
        [copy.clone(), message(b'd', b"1\tx\n")].concat(),
        [parse("", "COPY notes FROM STDIN"), bind(""), execute(), message(b'c', b"")].concat(),
        [parse("", "SELECT 1"), bind("")].concat(),
        [parse("", "SELECT 1"), bind(""), execute(), message(b'H', b"")].concat(),
        message(b'Q', b"BEGIN\0"),
        [message(b'Q', b"BEGIN\0"), parse("", "SELECT 1")].concat(),
    ] {
        for waits in [false, true] {
            let mut leaver = raw(&gate, 1).await;
            leaver.send(&last).await;
            if waits {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            leaver.send(&terminate).await;
            drop(leaver);
            let mut next = raw(&gate, 2).await;
            assert_eq!(next.query("SELECT 1").await.error, None, "{}", String::from_utf8_lossy(&last));
        }
    }
    // What was asked for before the goodbye is done.
    let mut leaver = raw(&gate, 1).await;
    leaver.send(&[message(b'Q', b"UPDATE items SET counter = 77\0"), terminate].concat()).await;
    drop(leaver);
    let mut next = raw(&gate, 1).await;
    crate::harness::eventually("the update", async || {
        let rows = next.query("SELECT count(*) FROM items WHERE counter = 77").await.rows;
        (rows[0][0].as_deref() != Some("0")).then_some(())
    })
    .await;
}
