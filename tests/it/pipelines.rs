//! Pipelines in the extended protocol: errors, flushes and names, as PostgreSQL itself has them.

use crate::harness::client::{bind, close, connect, execute, message, parse, raw, sync, value};
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres::{self};

fn flush() -> Vec<u8> {
    message(b'H', b"")
}

/// An error that comes when it is executed, not when it is planned.
const FAILS: &str = "SELECT 1 / (0 * random())::int";

#[tokio::test]
async fn an_error_inside_a_pipeline_leaves_client_and_server_agreeing() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut raw = raw(&gate, 1).await;
    // The Parse behind the error never happened; the Close neither.
    raw.send(&[parse("kept", "SELECT 1"), sync()].concat()).await;
    assert_eq!(raw.kinds().await, "1Z");
    let batch = [
        parse("bad", "SELECT 1/(0 * random())::int"),
        bind("bad"),
        execute(),
        parse("never", "SELECT 2"),
        close("kept"),
        sync(),
        bind("kept"),
        execute(),
        sync(),
    ];
    raw.send(&batch.concat()).await;
    assert_eq!(raw.kinds().await, "12EZ");
    assert_eq!(raw.kinds().await, "2DCZ", "kept is still there");
    raw.send(&[bind("never"), execute(), sync()].concat()).await;
    assert_eq!(raw.answer().await.error.unwrap().0, "26000");
    raw.send(&[parse("never", "SELECT 3"), bind("never"), execute(), sync()].concat()).await;
    assert_eq!(raw.kinds().await, "12DCZ");
    // An error of the proxy's own in the middle, with answers due before and messages to skip behind.
    raw.send(&[bind("kept"), execute(), parse("kept", "SELECT 9"), bind("kept"), execute(), sync()].concat())
        .await;
    assert_eq!(raw.kinds().await, "2DCEZ");
    raw.send(&[bind("kept"), execute(), sync()].concat()).await;
    assert_eq!(raw.kinds().await, "2DCZ");
}

/// The client sees the error while it still sends the rest of the batch: the server skips that rest without a word.
#[tokio::test]
async fn what_comes_behind_an_error_that_was_flushed_is_skipped() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut raw = raw(&gate, 1).await;
    raw.send(&[parse("fails", FAILS), bind("fails"), execute(), flush()].concat()).await;
    assert_eq!(raw.expect_error().await.0, "22012");
    let rest =
        [parse("later", "SELECT 1"), bind("later"), execute(), message(b'Q', b"SELECT 'skipped'\0"), flush()];
    raw.send(&rest.concat()).await;
    // More than a buffer of it.
    raw.send(&parse("large", &format!("SELECT '{}'", "x".repeat(100_000)))).await;
    raw.send(&parse("", &format!("SELECT '{}'", "x".repeat(100_000)))).await;
    raw.send(&sync()).await;
    assert_eq!(raw.kinds().await, "Z");
    for name in ["later", "large"] {
        raw.send(&[bind(name), execute(), sync()].concat()).await;
        assert_eq!(raw.answer().await.error.unwrap().0, "26000", "{name}");
    }
    assert_eq!(raw.query("SELECT 1").await.rows.len(), 1);
    let other = connect(&gate, "app", &gate.token(org(2)).sign()).await;
    assert_eq!(value(&other, "SELECT DISTINCT body FROM items").await.unwrap().as_deref(), Some("org-2"));
}

/// A Query behind an error and before its Sync is skipped as well.
#[tokio::test]
async fn a_query_in_a_failed_batch_is_skipped() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut raw = raw(&gate, 1).await;
    let query = message(b'Q', b"INSERT INTO notes VALUES (778, 'skipped')\0");
    for _ in 0..3 {
        raw.send(&[parse("", FAILS), bind(""), execute(), query.clone(), sync()].concat()).await;
        assert_eq!(raw.kinds().await, "12EZ");
        raw.send(&[parse("", "SELECT * FROM nowhere"), query.clone(), query.clone(), sync()].concat()).await;
        assert_eq!(raw.kinds().await, "EZ");
    }
    assert_eq!(raw.query("SELECT count(*) FROM notes WHERE id = 778").await.rows[0][0].as_deref(), Some("0"));
}

/// A batch is one transaction: an error that the proxy finds rolls it back as one of PostgreSQL's own would.
#[tokio::test]
async fn an_error_of_the_proxys_own_fails_the_transaction() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut raw = raw(&gate, 1).await;
    raw.send(&[parse("taken", "SELECT 1"), sync()].concat()).await;
    assert_eq!(raw.kinds().await, "1Z");
    let insert = [parse("", "INSERT INTO notes VALUES (777, 'half')"), bind(""), execute()].concat();
    let batch = [insert.clone(), parse("taken", "SELECT 2"), bind("taken"), execute(), sync()].concat();
    raw.send(&batch).await;
    assert_eq!(raw.kinds().await, "12CEZ");
    assert_eq!(raw.query("SELECT count(*) FROM notes WHERE id = 777").await.rows[0][0].as_deref(), Some("0"));
    // In a transaction block.
    assert_eq!(raw.query("BEGIN").await.status, b'T');
    raw.send(&batch).await;
    let answer = raw.answer().await;
    let error = answer.error.unwrap();
    assert_eq!((error.0.as_str(), answer.status), ("42P05", b'E'));
    assert_eq!(error.1, "prepared statement \"taken\" already exists");
    assert_eq!(raw.query("COMMIT").await.tags, ["ROLLBACK"]);
    assert_eq!(raw.query("SELECT count(*) FROM notes WHERE id = 777").await.rows[0][0].as_deref(), Some("0"));
    // An earlier error takes precedence.
    raw.send(&[parse("", FAILS), bind(""), execute(), parse("taken", "SELECT 2"), sync()].concat()).await;
    assert_eq!(raw.answer().await.error.unwrap().0, "22012");
    raw.send(&[bind("taken"), execute(), sync()].concat()).await;
    assert_eq!(raw.kinds().await, "2DCZ");
}

#[tokio::test]
async fn batches_of_any_length_are_answered() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut raw = raw(&gate, 1).await;
    let mut batch = parse("one", "SELECT 1");
    for _ in 0..20_000 {
        batch.extend(bind("one"));
    }
    for n in 0..10_000 {
        batch.extend(close(&format!("none-{n}")));
    }
    batch.extend([execute(), sync()].concat());
    raw.send(&batch).await;
    let kinds = raw.kinds().await;
    let count = |kind: char| kinds.chars().filter(|k| *k == kind).count();
    assert_eq!((count('2'), count('3'), &kinds[kinds.len() - 3..]), (20_000, 10_000, "DCZ"));
}

/// A COPY that fails before it reads anything leaves a Sync behind that may or may not have been swallowed: nobody
/// else may get what it is answered with.
#[tokio::test]
async fn a_copy_that_fails_at_once_leaves_no_answer_for_the_next_client() {
    let database = postgres::shared().database().await;
    let setup = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$; \
                 CREATE TRIGGER refuse BEFORE INSERT ON notes EXECUTE FUNCTION refuse()";
    database.admin().await.batch_execute(setup).await.unwrap();
    let gate = Gate::with(&database).pool_size(1).run().await;
    let copy = [parse("", "COPY notes FROM STDIN"), bind(""), execute(), sync()].concat();
    let end = [message(b'd', b"1\tx\n"), message(b'c', b""), sync()].concat();
    for round in 0..20 {
        let mut attacker = raw(&gate, 1).await;
        let mut same = raw(&gate, 1).await;
        let mut other = raw(&gate, 2).await;
        attacker.send(&[copy.clone(), end.clone()].concat()).await;
        assert_eq!(attacker.answer().await.error.unwrap().0, "P0001");
        let next = if round % 2 == 0 { &mut same } else { &mut other };
        let expected = if round % 2 == 0 { "org-1" } else { "org-2" };
        for _ in 0..3 {
            let answer = next.query("SELECT DISTINCT body FROM items").await;
            assert_eq!(answer.rows, [[Some(expected.to_owned())]], "round {round}");
        }
    }
}

/// A Parse of the unnamed statement that an error skipped, and another one behind it that is on its way.
#[tokio::test]
async fn what_was_parsed_last_is_what_runs() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut raw = raw(&gate, 1).await;
    raw.send(&[parse("", "SELECT 'old'"), bind(""), execute(), sync()].concat()).await;
    assert_eq!(raw.answer().await.rows[0][0].as_deref(), Some("old"));
    let nowhere = message(b'D', b"Snowhere\0");
    raw.send(&[nowhere, parse("", "SELECT 'skipped'"), sync(), parse("", "SELECT 'new'")].concat()).await;
    assert!(raw.answer().await.error.is_some());
    raw.send(&[bind(""), execute(), sync()].concat()).await;
    assert_eq!(raw.answer().await.rows[0][0].as_deref(), Some("new"));
}
