//! Prepared statements, pipelines, COPY and cancel in transaction mode, over servers that change under the client.

use bytes::Bytes;
use futures_util::{SinkExt as _, TryStreamExt as _};
use tokio::io::AsyncWriteExt as _;

use crate::harness::client::{Raw, bind, close, connect, execute, message, parse, raw, sync, value};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, ROWS_PER_ORGANIZATION};
use crate::harness::{eventually, org};

#[tokio::test]
async fn statements_follow_their_client_across_servers_and_organizations() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(2).run().await;
    let mut clients = Vec::new();
    for n in 1..=4 {
        let client = connect(&gate, "app", &gate.token(org(n)).sign()).await;
        let own = client.prepare("SELECT DISTINCT body FROM items WHERE counter >= $1").await.unwrap();
        let count = client.prepare(&format!("SELECT count(*), {n} FROM items")).await.unwrap();
        clients.push((n, client, own, count));
    }
    for _ in 0..10 {
        for (n, client, own, count) in &clients {
            let rows = client.query(own, &[&0_i32]).await.unwrap();
            assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>(), [format!("org-{n}")]);
            let row = client.query_one(count, &[]).await.unwrap();
            assert_eq!((row.get::<_, i64>(0), row.get::<_, i32>(1)), (ROWS_PER_ORGANIZATION, *n as i32));
        }
    }
    // All at once, so that servers are handed about.
    let all = clients.iter().map(|(n, client, own, _)| async move {
        for _ in 0..100 {
            let rows = client.query(own, &[&0_i32]).await.unwrap();
            assert_eq!(rows[0].get::<_, String>(0), format!("org-{n}"));
        }
    });
    futures_util::future::join_all(all).await;
}

#[tokio::test]
async fn names_are_each_clients_own_and_errors_are_postgresqls() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let (mut one, mut two) = (raw(&gate, 1).await, raw(&gate, 2).await);
    for (client, sql) in [(&mut one, "SELECT 'one'"), (&mut two, "SELECT 'two'")] {
        client.send(&[parse("s", sql), sync()].concat()).await;
        assert_eq!(client.kinds().await, "1Z");
    }
    for (client, word) in [(&mut one, "one"), (&mut two, "two")] {
        client.send(&[bind("s"), execute(), sync()].concat()).await;
        assert_eq!(client.answer().await.rows, [[Some(word.to_owned())]]);
        client.send(&[parse("s", "SELECT 'again'"), sync()].concat()).await;
        assert_eq!(client.answer().await.error.unwrap().0, "42P05", "a name is given once");
        client.send(&[close("s"), parse("s", "SELECT 'new'"), bind("s"), execute(), sync()].concat()).await;
        assert_eq!(client.answer().await.rows, [[Some("new".to_owned())]]);
        client.send(&[close("s"), bind("s"), execute(), sync()].concat()).await;
        assert_eq!(client.answer().await.error.unwrap().0, "26000");
        // Of ours, by name.
        for name in ["pgtenant_bind", "pgtenant_1", "pgtenant_2"] {
            client.send(&[bind(name), execute(), sync()].concat()).await;
            assert_eq!(client.answer().await.error.unwrap().0, "26000", "{name}");
        }
    }
}

#[tokio::test]
async fn the_unnamed_statement_is_the_clients_own() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let (mut one, mut two) = (raw(&gate, 1).await, raw(&gate, 1).await);
    one.send(&[parse("", "SELECT 'mine'"), sync()].concat()).await;
    assert_eq!(one.kinds().await, "1Z");
    // Equal terms, the same server: nevertheless there is nothing for the other to find.
    two.send(&[bind(""), execute(), sync()].concat()).await;
    assert_eq!(two.answer().await.error.unwrap().0, "26000");
    two.send(&[parse("", "SELECT 'other'"), bind(""), execute(), sync()].concat()).await;
    assert_eq!(two.answer().await.rows, [[Some("other".to_owned())]]);
    one.send(&[bind(""), execute(), sync()].concat()).await;
    assert_eq!(one.answer().await.rows, [[Some("mine".to_owned())]], "it followed its client");
}

#[tokio::test]
async fn statements_that_vanish_from_the_server_come_back() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let client = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let statement = client.prepare("SELECT count(*) FROM items").await.unwrap();
    client.batch_execute("DISCARD PLANS").await.unwrap();
    client.query_one(&statement, &[]).await.unwrap();
    // Hidden in a function, nobody sees it at first; after one error it is mended.
    client.batch_execute("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$").await.unwrap();
    let _ = client.query_one(&statement, &[]).await;
    client.query_one(&statement, &[]).await.unwrap();
}

#[tokio::test]
async fn cursors_and_large_results_stream() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut client = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let rows =
        client.query("SELECT n, repeat('x', 300) FROM generate_series(1, 100000) n", &[]).await.unwrap();
    assert_eq!((rows.len(), rows[99_999].get::<_, i32>(0)), (100_000, 100_000));
    let megabytes = client.query_one("SELECT repeat('y', 30000000)", &[]).await.unwrap();
    assert_eq!(megabytes.get::<_, &str>(0).len(), 30_000_000);
    // Nothing of it was collected on its way.
    let after_large = gate.resident_kib();
    assert!(after_large < 40 * 1024, "{after_large} KiB");
    let sent = "z".repeat(10_000_000);
    let length = client.query_one("SELECT length($1)", &[&sent]).await.unwrap();
    assert_eq!(length.get::<_, i32>(0), 10_000_000);
    let length = value(&client, &format!("SELECT length('{sent}')")).await.unwrap();
    assert_eq!(length.as_deref(), Some("10000000"));
    let after_large = gate.resident_kib();
    assert!(after_large < 40 * 1024, "{after_large} KiB");
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("SELECT * FROM generate_series(1, 100)", &[]).await.unwrap();
    for _ in 0..4 {
        assert_eq!(transaction.query_portal(&portal, 25).await.unwrap().len(), 25);
    }
    transaction.batch_execute("DECLARE c CURSOR FOR SELECT body FROM items; FETCH 10 FROM c").await.unwrap();
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn copy_goes_both_ways_under_the_context() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let client = connect(&gate, "app", &gate.token(org(2)).sign()).await;
    let other = connect(&gate, "app", &gate.token(org(3)).sign()).await;
    // PostgreSQL itself refuses COPY FROM into a table with row level security.
    let refused = client.batch_execute("COPY items (body) FROM STDIN").await.err().unwrap();
    assert_eq!(refused.code().unwrap().code(), "0A000");
    let sink = client.copy_in("COPY notes FROM STDIN").await.unwrap();
    let mut sink = std::pin::pin!(sink);
    for n in 100..5_100 {
        sink.send(Bytes::from(format!("{n}\t{}\n", "copied ".repeat(20)))).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 5_000);
    assert_eq!(value(&other, "SELECT count(*) FROM notes").await.unwrap().unwrap(), "5010");
    let chunks: Vec<Bytes> = client
        .copy_out("COPY (SELECT DISTINCT body FROM items) TO STDOUT")
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(chunks.concat(), b"org-2\n");
    // A failing row in the middle, and a client that gives up.
    let sink = client.copy_in("COPY notes FROM STDIN").await.unwrap();
    let mut sink = std::pin::pin!(sink);
    sink.send(Bytes::from_static(b"not a number\tx\n")).await.unwrap();
    assert!(sink.finish().await.is_err());
    {
        let sink = client.copy_in::<_, Bytes>("COPY notes FROM STDIN").await.unwrap();
        drop(Box::pin(sink));
    }
    assert_eq!(value(&client, "SELECT DISTINCT body FROM items").await.unwrap().as_deref(), Some("org-2"));
    assert_eq!(value(&other, "SELECT DISTINCT body FROM items").await.unwrap().as_deref(), Some("org-3"));
}

#[tokio::test]
async fn a_query_inside_copy_ends_the_client_or_the_copy_but_confuses_nobody() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut raw = raw(&gate, 1).await;
    raw.send(
        &[message(b'Q', b"COPY notes FROM STDIN\0"), message(b'Q', b"SELECT body FROM items\0")].concat(),
    )
    .await;
    // What it gets is an error; what matters is who comes next.
    let _ = raw.expect_error().await;
    raw.stream().shutdown().await.unwrap();
    drop(raw);
    let other = connect(&gate, "app", &gate.token(org(4)).sign()).await;
    let seen =
        eventually("the next client", async || value(&other, "SELECT DISTINCT body FROM items").await.ok())
            .await;
    assert_eq!(seen.as_deref(), Some("org-4"));
}

#[tokio::test]
async fn what_sql_deallocates_is_gone_for_its_client_alone() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let (mut client, mut other) = (raw(&gate, 1).await, raw(&gate, 1).await);
    let prepare = |name: &str| [parse(name, "SELECT 7"), sync()].concat();
    let run = |name: &str| [bind(name), execute(), sync()].concat();
    for raw in [&mut client, &mut other] {
        for name in ["a", "B c"] {
            raw.send(&prepare(name)).await;
            assert_eq!(raw.answer().await.error, None);
        }
    }
    let simple = |sql: &str| message(b'Q', format!("{sql}\0").as_bytes());
    let extended = |sql: &str| [parse("", sql), bind(""), execute(), sync()].concat();
    for (names, bytes) in [
        (&["a"][..], simple("DEALLOCATE a")),
        (&["B c"], simple("deallocate PREPARE \"B c\"")),
        (&["a"], extended("DEALLOCATE a")),
        (&["a", "B c"], simple("DEALLOCATE ALL")),
        (&["a", "B c"], extended("DEALLOCATE ALL")),
        (&["a", "B c"], simple("DISCARD ALL")),
    ] {
        client.send(&bytes).await;
        let answer = client.answer().await;
        assert_eq!((answer.error, answer.tags.len()), (None, 1), "{names:?}");
        assert!(answer.tags[0].starts_with("D"), "{:?}", answer.tags);
        for name in names {
            client.send(&run(name)).await;
            assert_eq!(client.answer().await.error.unwrap().0, "26000");
            // The name is free again, also in the same batch.
            client.send(&[prepare(name), run(name)].concat()).await;
            assert_eq!(client.answer().await.error, None);
            assert_eq!(client.answer().await.rows[0][0].as_deref(), Some("7"));
            other.send(&run(name)).await;
            assert_eq!(other.answer().await.rows[0][0].as_deref(), Some("7"), "another client keeps its own");
        }
    }
    // Where it fails, everything stays.
    for sql in ["DEALLOCATE a", "DEALLOCATE ALL"] {
        assert_eq!(client.query("BEGIN").await.status, b'T');
        assert_eq!(client.query("SELECT 1/0").await.status, b'E');
        assert_eq!(client.query(sql).await.error.unwrap().0, "25P02");
        client.send(&extended(sql)).await;
        assert_eq!(client.answer().await.error.unwrap().0, "25P02");
        client.query("ROLLBACK").await;
        client.send(&run("a")).await;
        assert_eq!(client.answer().await.rows[0][0].as_deref(), Some("7"));
    }
    assert_eq!(client.query("DEALLOCATE nowhere").await.error.unwrap().0, "26000");
    // Pipelined, each message finds what those before it left.
    client.send(&[simple("DEALLOCATE a"), run("a"), prepare("a"), run("a")].concat()).await;
    assert_eq!(client.answer().await.tags, ["DEALLOCATE"]);
    assert_eq!(client.answer().await.error.unwrap().0, "26000");
    assert_eq!(client.answer().await.error, None);
    assert_eq!(client.answer().await.rows[0][0].as_deref(), Some("7"));
}

#[tokio::test]
async fn a_changed_result_type_is_told_to_every_holder_until_it_prepares_anew() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let admin = database.admin().await;
    admin.batch_execute("CREATE TABLE shape (a int); GRANT SELECT ON shape TO PUBLIC").await.unwrap();
    let (mut client, mut other) = (raw(&gate, 1).await, raw(&gate, 1).await);
    let all = "SELECT * FROM shape";
    for raw in [&mut other, &mut client] {
        let describe = message(b'D', b"Ss\0");
        raw.send(&[parse("s", all), describe, bind("s"), execute(), sync()].concat()).await;
        assert_eq!(raw.answer().await.error, None);
    }
    // Cleaned ahead for others, the server would know only the new type.
    for _ in 0..3 {
        client.send(&[bind("s"), execute(), sync()].concat()).await;
        assert_eq!(client.answer().await.error, None);
    }
    admin.batch_execute("ALTER TABLE shape ADD b int").await.unwrap();
    let changed = ("0A000".to_owned(), "cached plan must not change result type".to_owned());
    // PostgreSQL says so until the statement is prepared anew; on another server it would not know.
    for _ in 0..3 {
        client.send(&[bind("s"), execute(), sync()].concat()).await;
        assert_eq!(client.answer().await.error.unwrap(), changed);
        other.query("SET work_mem = '9MB'").await; // has the server cleaned
    }
    other.send(&[message(b'D', b"Ss\0"), sync()].concat()).await;
    // Drivers know it by PostgreSQL's function, for the text may be a translation.
    let (kind, body) = other.read_message().await.unwrap();
    let routine = b"\0RRevalidateCachedQuery\0";
    assert!(kind == b'E' && body.windows(routine.len()).any(|field| field == routine));
    assert_eq!(other.answer().await.error, None);
    for raw in [&mut client, &mut other] {
        raw.send(&[close("s"), parse("s", all), bind("s"), execute(), sync()].concat()).await;
        assert_eq!(raw.answer().await.error, None);
    }
    // In a transaction, after going back to a savepoint.
    for _ in 0..3 {
        client.send(&[bind("s"), execute(), sync()].concat()).await;
        assert_eq!(client.answer().await.error, None);
    }
    admin.batch_execute("ALTER TABLE shape ADD c int").await.unwrap();
    client.query("BEGIN; SAVEPOINT s").await;
    client.send(&[bind("s"), execute(), sync()].concat()).await;
    let answer = client.answer().await;
    assert_eq!((answer.error.unwrap(), answer.status), (changed, b'E'));
    client.query("ROLLBACK TO s").await;
    client.send(&[close("s"), parse("s", all), bind("s"), execute(), sync()].concat()).await;
    let answer = client.answer().await;
    assert_eq!((answer.error, answer.status), (None, b'T'));
}

/// The server that knew the old type is gone; whoever was told of it must hear all the same.
#[tokio::test]
async fn a_changed_result_type_is_seen_where_the_statement_is_prepared_again() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(2).run().await;
    database.admin().await.batch_execute("GRANT CREATE ON SCHEMA public TO plain").await.unwrap();
    let mut owner = Raw::connect(&gate).await;
    owner.sign_in("plain", "app", "plain-password").await;
    assert_eq!(
        owner.query("CREATE TABLE public.seen (a int); INSERT INTO seen VALUES (7)").await.error,
        None
    );
    let describe = message(b'D', b"Ss\0");
    let run = [bind("s"), execute(), sync()].concat();
    let all = parse("s", "SELECT * FROM seen");
    owner.send(&[all.clone(), describe.clone(), sync(), run.clone()].concat()).await;
    assert_eq!(owner.answer().await.error, None);
    assert_eq!(owner.answer().await.rows[0][0].as_deref(), Some("7"));
    // Nothing changed for this statement: no error, and no other answers than PostgreSQL's.
    for sql in ["ALTER TABLE seen SET (fillfactor = 90)", "ALTER TABLE seen ALTER a SET DEFAULT 1"] {
        assert_eq!(owner.query(sql).await.error, None);
        owner.send(&run).await;
        assert_eq!(owner.kinds().await, "2DCZ", "{sql}");
    }
    for sql in
        ["ALTER TABLE seen ALTER a TYPE text", "ALTER TABLE seen ADD b int", "ALTER TABLE seen RENAME a TO c"]
    {
        // In the client's own transaction, and behind it, where the server was cleaned.
        assert_eq!(owner.query(sql).await.error, None);
        for _ in 0..2 {
            owner.send(&[run.clone(), describe.clone(), sync()].concat()).await;
            for _ in 0..2 {
                let (code, text) = owner.answer().await.error.unwrap();
                assert_eq!(
                    (code.as_str(), text.as_str()),
                    ("0A000", "cached plan must not change result type")
                );
            }
        }
        owner.send(&[close("s"), all.clone(), describe.clone(), sync(), run.clone()].concat()).await;
        assert_eq!(owner.answer().await.error, None, "{sql}");
        assert_eq!(owner.answer().await.rows[0][0].as_deref(), Some("7"));
    }
    // Two clients of one statement, pipelined: one bind among others is found out.
    let mut other = Raw::connect(&gate).await;
    other.sign_in("plain", "app", "plain-password").await;
    other.send(&[all, describe, sync(), parse("t", "SELECT 1"), sync()].concat()).await;
    assert_eq!((other.answer().await.error, other.answer().await.error), (None, None));
    assert_eq!(owner.query("ALTER TABLE seen ALTER c TYPE varchar").await.error, None);
    other
        .send(&[bind("t"), execute(), bind("s"), execute(), sync(), bind("t"), execute(), sync()].concat())
        .await;
    let answer = other.answer().await;
    assert_eq!((answer.rows.len(), answer.error.unwrap().0.as_str()), (1, "0A000"));
    assert_eq!(other.answer().await.rows[0][0].as_deref(), Some("1"));
}

#[tokio::test]
async fn a_text_is_read_anew_after_the_schema_changed() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let admin = database.admin().await;
    admin.batch_execute("GRANT CREATE ON SCHEMA public TO plain").await.unwrap();
    let mut client = Raw::connect(&gate).await;
    client.sign_in("plain", "app", "plain-password").await;
    let made = |kind: &str, value: &str| {
        format!(
            "DROP TABLE IF EXISTS anew; CREATE TABLE anew (v {kind}); INSERT INTO anew VALUES ({value}); \
             GRANT ALL ON anew TO plain"
        )
    };
    let text = "SELECT v FROM anew WHERE v IS DISTINCT FROM $1";
    let null = message(b'B', b"\0s\0\0\0\0\x01\xff\xff\xff\xff\0\0");
    let run = [parse("s", text), null, execute(), sync()].concat();
    // Through the pool at once; past it, after one error.
    for (kind, value, is_seen) in [("date", "now()", true), ("int", "7", true), ("text", "'x'", false)] {
        if is_seen {
            assert_eq!(
                client.query(&made(kind, value).replace("; GRANT ALL ON anew TO plain", "")).await.error,
                None
            );
        } else {
            admin.batch_execute("DROP TABLE anew").await.unwrap();
            admin.batch_execute(&made(kind, value)).await.unwrap();
            client.send(&run).await;
            assert!(client.answer().await.error.is_some_and(|(code, _)| code.starts_with("42")));
            client.send(&[close("s"), sync()].concat()).await;
            client.answer().await;
        }
        client.send(&run).await;
        let answer = client.answer().await;
        assert_eq!((answer.error, answer.rows.len()), (None, 1), "{kind}");
        client.send(&[close("s"), sync()].concat()).await;
        client.answer().await;
    }
}

#[tokio::test]
async fn long_statements_are_kept_like_others_and_what_follows_them_is_sent() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let (mut client, mut other) = (raw(&gate, 1).await, raw(&gate, 2).await);
    for length in [20_000, 45_000, 70_000, 100_000, 1_000_000] {
        for name in ["", "s"] {
            let text = format!("SELECT length('{}')", "x".repeat(length));
            client.send(&[parse(name, &text), bind(name), execute(), sync()].concat()).await;
            assert_eq!(client.answer().await.rows, [[Some(length.to_string())]]);
            // It follows its client.
            other.query("SET work_mem = '9MB'").await;
            client.send(&[bind(name), execute(), sync()].concat()).await;
            assert_eq!(client.answer().await.rows, [[Some(length.to_string())]]);
            client.send(&[close(name), sync()].concat()).await;
            client.answer().await;
        }
    }
}

#[tokio::test]
async fn a_deallocate_that_was_only_prepared_hinders_nobody() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let (mut client, mut other) = (raw(&gate, 1).await, raw(&gate, 1).await);
    client.send(&[parse("x", "SELECT 1"), sync()].concat()).await;
    assert_eq!(client.answer().await.error, None);
    for _ in 0..2 {
        client.send(&[parse("", "DEALLOCATE x"), sync()].concat()).await;
        assert_eq!(client.answer().await.error, None);
    }
    for _ in 0..3 {
        other.send(&[parse("y", "SELECT 2"), sync()].concat()).await;
        assert_eq!(other.answer().await.error, None);
        assert_eq!(other.query("DEALLOCATE y").await.error, None);
    }
}
