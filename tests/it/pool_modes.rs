//! Session and statement mode, and what transaction mode refuses because it would only half work.

use std::time::Duration;

use tokio_postgres::AsyncMessage;
use tokio_postgres::NoTls;

use crate::harness::client::{Raw, bind, close, config, connect, execute, message, parse, raw, sync, value};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, Database};
use crate::harness::{eventually, org};

async fn gate(database: &Database, mode: &str, size: usize) -> Gate {
    Gate::with(database).mode(mode).pool_size(size).run().await
}

async fn member(gate: &Gate, n: u32) -> tokio_postgres::Client {
    connect(gate, "app", &gate.token(org(n)).sign()).await
}

#[tokio::test]
async fn a_session_keeps_everything_and_leaves_nothing() {
    let database = postgres::shared().database().await;
    let gate = gate(&database, "session", 1).await;
    let client = member(&gate, 1).await;
    let pid = value(&client, "SELECT pg_backend_pid()").await.unwrap();
    for sql in [
        "CREATE TEMP TABLE mine (a int)",
        "INSERT INTO mine VALUES (7)",
        "PREPARE p AS SELECT a FROM mine",
        "DECLARE c CURSOR WITH HOLD FOR SELECT a FROM mine",
        "SELECT pg_advisory_lock(42)",
        "LISTEN something",
        "SET work_mem = '77MB'",
        "SET app.a = 'x'",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    assert_eq!(value(&client, "EXECUTE p").await.unwrap().unwrap(), "7");
    assert_eq!(value(&client, "FETCH c").await.unwrap().unwrap(), "7");
    assert_eq!(value(&client, "SHOW work_mem").await.unwrap().unwrap(), "77MB");
    assert_eq!(value(&client, "SELECT DISTINCT body FROM items").await.unwrap().unwrap(), "org-1");
    assert_eq!(value(&client, "SELECT pg_backend_pid()").await.unwrap(), pid);
    drop(client);
    let next = member(&gate, 2).await;
    assert_eq!(value(&next, "SELECT pg_backend_pid()").await.unwrap(), pid, "the same server, cleaned");
    let left = "SELECT to_regclass('mine') IS NULL AND NOT EXISTS (SELECT FROM pg_prepared_statements \
                WHERE name NOT LIKE 'pgtenant%') AND NOT EXISTS (SELECT FROM pg_cursors WHERE is_holdable) \
                AND NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) \
                AND NOT EXISTS (SELECT FROM pg_listening_channels()) \
                AND COALESCE(current_setting('app.a', true), '') = ''";
    assert_eq!(value(&next, left).await.unwrap().unwrap(), "t");
    assert_eq!(value(&next, "SHOW work_mem").await.unwrap().unwrap(), "4MB");
    assert_eq!(value(&next, "SELECT DISTINCT body FROM items").await.unwrap().unwrap(), "org-2");
}

#[tokio::test]
async fn a_session_waits_for_a_server_and_gets_one_when_another_ends() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database)
        .mode("session")
        .pool_size(1)
        .set("databases.app.pool", "wait_timeout", "\"300ms\"")
        .run()
        .await;
    let mut first = raw(&gate, 1).await;
    // Without a query a client holds nothing.
    let mut second = raw(&gate, 2).await;
    assert_eq!(first.query("SELECT 1").await.error, None);
    assert_eq!(second.query("SELECT 1").await.error.unwrap().0, "53300");
    first.query("BEGIN").await;
    first.query("UPDATE items SET counter = 1000").await;
    drop(first);
    eventually("the server", async || second.query("SELECT 1").await.error.is_none().then_some(())).await;
    let changed = second.query("SELECT count(*) FROM items WHERE counter = 1000").await;
    assert_eq!(changed.rows[0][0].as_deref(), Some("0"));
    let admin = database.admin().await;
    let changed = admin.query_one("SELECT count(*) FROM items WHERE counter = 1000", &[]).await.unwrap();
    assert_eq!(changed.get::<_, i64>(0), 0, "what it did not commit is rolled back");
}

#[tokio::test]
async fn a_reset_does_not_cost_a_session_its_context_or_its_own_settings() {
    let database = postgres::shared().database().await;
    let gate = gate(&database, "session", 1).await;
    let mut client = Raw::connect(&gate).await;
    let own = [("application_name", "mine"), ("app.own", "kept"), ("options", "-c work_mem=9MB")];
    client.startup("app", "app", &own).await;
    client.authenticate(&gate.token(org(1)).sign()).await;
    for reset in [
        "RESET ALL",
        "DISCARD ALL",
        "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL",
        "DEALLOCATE ALL",
        "RESET app.own",
        "RESET work_mem",
    ] {
        client.query("SET statement_timeout = '7s'").await;
        assert_eq!(client.query(reset).await.error, None, "{reset}");
        let shown = client
            .query(
                "SELECT current_setting('application_name'), current_setting('app.own'), \
                 current_setting('work_mem'), (SELECT min(body) FROM items)",
            )
            .await;
        let row: Vec<_> = shown.rows[0].iter().flatten().map(String::as_str).collect();
        assert_eq!(row, ["mine", "kept", "9MB", "org-1"], "{reset}");
        let timeout = client.query("SHOW statement_timeout").await.rows[0][0].clone().unwrap();
        let is_all = reset.ends_with("ALL") && !reset.starts_with("DEALLOCATE");
        assert_eq!(timeout, if is_all { "0" } else { "7s" }, "{reset}");
    }
    // What is prepared by the protocol can be executed by SQL, as on PostgreSQL; our names are not for clients.
    client.send(&[parse("p", "SELECT 5"), sync()].concat()).await;
    client.answer().await;
    assert_eq!(client.query("EXECUTE p").await.rows[0][0].as_deref(), Some("5"));
    client.send(&[parse("pgtenant_bind", "SELECT 5"), bind("p"), sync()].concat()).await;
    assert_eq!(client.answer().await.error.unwrap().0, "42939");
    // The unnamed statement stays the client's over a binding in between.
    client.send(&[parse("", "SELECT 'unnamed'"), sync()].concat()).await;
    client.answer().await;
    client.send(&[parse("r", "RESET ALL"), bind("r"), execute(), sync()].concat()).await;
    client.answer().await;
    client.send(&[bind(""), execute(), sync()].concat()).await;
    assert_eq!(client.answer().await.rows[0][0].as_deref(), Some("unnamed"));
}

#[tokio::test]
async fn a_session_outlives_a_copy_that_failed() {
    let database = postgres::shared().database().await;
    let gate = gate(&database, "session", 1).await;
    let mut client = raw(&gate, 1).await;
    client.query("CREATE TEMP TABLE mine (a int)").await;
    let data = message(b'd', b"rubbish\n");
    let copy = [parse("", "COPY mine FROM STDIN"), bind(""), execute(), sync()].concat();
    for end in [message(b'c', b""), message(b'f', b"no\0")] {
        // The first Sync is the COPY's to ignore, as drivers send it.
        client.send(&[copy.clone(), data.clone(), end, sync()].concat()).await;
        let answer = client.answer().await;
        assert_eq!((answer.error.unwrap().0.as_str(), answer.status), ("22P02", b'I'));
        assert_eq!(client.query("SELECT count(*) FROM mine").await.rows[0][0].as_deref(), Some("0"));
    }
}

#[tokio::test]
async fn a_sessions_seal_is_renewed_whatever_the_client_did_to_it() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database)
        .mode("session")
        .pool_size(1)
        .set("context", "seal_lifetime", "\"10s\"")
        .run()
        .await;
    let mut client = raw(&gate, 1).await;
    let seal = "SELECT current_setting('pgtenant.seal')";
    let first = client.query(seal).await.rows[0][0].clone();
    assert_eq!(client.query("DEALLOCATE ALL").await.error, None);
    let sql = "PREPARE pgtenant_bind(text, text) AS SELECT set_config('app.stolen', $1, false)";
    assert_eq!(client.query(sql).await.error, None);
    // A forged seal is refused, and costs the session its server.
    assert_eq!(client.query("SELECT set_config('pgtenant.' || 'seal', 'forged', false)").await.error, None);
    assert_eq!(client.query("SELECT count(*) FROM items").await.error.unwrap().0, "42501");
    assert_eq!(client.expect_error().await.0, "08006");
    let mut client = raw(&gate, 1).await;
    assert_eq!(client.query("DEALLOCATE ALL").await.error, None);
    tokio::time::sleep(Duration::from_millis(5500)).await;
    let answer = client.query("SELECT count(*) FROM items").await;
    assert_eq!(answer.error, None);
    assert_ne!(client.query(seal).await.rows[0][0].clone(), first);
}

#[tokio::test]
async fn notifications_reach_an_idle_session_until_its_token_expires() {
    let database = postgres::shared().database().await;
    let gate = gate(&database, "session", 3).await;
    let token = gate.token(org(1)).sign();
    let (client, mut connection) = config(&gate, "app", &token).connect(NoTls).await.unwrap();
    let (heard, mut hearing) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(told) = message {
                let _ = heard.send((told.channel().to_owned(), told.payload().to_owned()));
            }
        }
    });
    client.batch_execute("LISTEN here").await.unwrap();
    let mut brief = Raw::connect(&gate).await;
    brief.sign_in("app", "app", &gate.token(org(2)).expires_in(2).sign()).await;
    assert_eq!(brief.query("LISTEN here").await.error, None);
    let teller = member(&gate, 3).await;
    for n in 0..3 {
        value(&teller, &format!("SELECT pg_notify('here', 'number {n}')")).await.unwrap();
        let (channel, payload) =
            tokio::time::timeout(crate::harness::PATIENCE, hearing.recv()).await.unwrap().unwrap();
        assert_eq!((channel.as_str(), payload), ("here", format!("number {n}")));
    }
    // It hears its own as well, and what came while it was busy.
    client.batch_execute("NOTIFY here, 'own'").await.unwrap();
    assert_eq!(hearing.recv().await.unwrap().1, "own");
    for _ in 0..4 {
        let (kind, body) = brief.read_message().await.unwrap();
        assert_eq!((kind, body[..4] == brief.key[..4]), (b'A', false));
    }
    // Its own notification comes from the process id that it was told as its own, as on PostgreSQL.
    brief.send(&message(b'Q', b"NOTIFY here, 'mine'\0")).await;
    let mut own = None;
    loop {
        let (kind, body) = brief.read_message().await.unwrap();
        match kind {
            b'A' => own = Some(body),
            b'Z' => break,
            _ => assert_eq!(kind, b'C'),
        }
    }
    assert_eq!(own.unwrap()[..4], brief.key[..4]);
    assert_eq!(hearing.recv().await.unwrap().1, "mine");
    // The leeway is 5 s by default.
    tokio::time::sleep(Duration::from_secs(8)).await;
    value(&teller, "SELECT pg_notify('here', 'too late')").await.unwrap();
    assert_eq!(hearing.recv().await.unwrap().1, "too late");
    let late = brief.query("SELECT 1").await;
    assert_eq!(late.error.unwrap(), ("28000".to_owned(), "token expired".to_owned()));
}

#[tokio::test]
async fn a_session_hears_that_postgresql_ended_it_and_that_the_proxy_stops() {
    let database = postgres::shared().database().await;
    let gate = gate(&database, "session", 2).await;
    let mut ended = raw(&gate, 1).await;
    ended.query("SELECT 1").await;
    let pid = ended.query("SELECT pg_backend_pid()").await.rows[0][0].clone().unwrap();
    let admin = database.admin().await;
    let sql = format!("SELECT pg_terminate_backend({pid})");
    admin.simple_query(&sql).await.unwrap();
    assert_eq!(ended.expect_error().await.0, "57P01");
    ended.expect_close().await;
    let mut idle = raw(&gate, 1).await;
    idle.query("SELECT 1").await;
    let mut busy = raw(&gate, 2).await;
    assert_eq!(busy.query("BEGIN").await.status, b'T');
    gate.signal("TERM");
    assert_eq!(idle.expect_error().await.0, "57P01");
    assert_eq!(busy.query("COMMIT").await.tags, ["COMMIT"]);
    assert_eq!(busy.expect_error().await.0, "57P01");
    assert_eq!(gate.wait_exit(Duration::from_secs(10)).await.code(), Some(0));
}

#[tokio::test]
async fn statement_mode_refuses_transaction_blocks_in_any_form() {
    let database = postgres::shared().database().await;
    let gate = gate(&database, "statement", 1).await;
    let mut client = raw(&gate, 1).await;
    for sql in ["BEGIN", "/* x */ begin work", "START TRANSACTION READ ONLY", "SELECT 1; BEGIN; SELECT 2"] {
        let answer = client.query(sql).await;
        let (code, text) = answer.error.unwrap();
        assert_eq!((code.as_str(), answer.status), ("0A000", b'I'), "{sql}");
        assert!(text.contains("transaction blocks are not allowed"), "{text}");
        assert!(answer.rows.is_empty());
    }
    for name in ["", "b"] {
        client.send(&[parse(name, "BEGIN"), bind(name), execute(), sync()].concat()).await;
        let answer = client.answer().await;
        assert_eq!((answer.error.unwrap().0.as_str(), answer.status), ("0A000", b'I'));
    }
    // Several statements in one query are one transaction.
    let answer = client.query("UPDATE items SET counter = 5 WHERE id = 1; SELECT 1/0").await;
    assert_eq!(answer.error.unwrap().0, "22012");
    client.send(&[parse("", "SELECT min(body) FROM items"), bind(""), execute(), sync()].concat()).await;
    assert_eq!(client.answer().await.rows[0][0].as_deref(), Some("org-1"));
    // A literal of U& hides the word from nobody: PostgreSQL would not take it for one either.
    assert_eq!(client.query("SELECT 'BEGIN' AS begin").await.error, None);
}

#[tokio::test]
async fn what_cannot_last_in_transaction_mode_is_refused_with_a_hint() {
    let database = postgres::shared().database().await;
    let gate = gate(&database, "transaction", 1).await;
    let mut client = raw(&gate, 1).await;
    let everywhere = ["LISTEN here", "/**/ listen \"Here\""];
    let outside = [
        "PREPARE p AS SELECT 1",
        "CREATE TEMP TABLE t (a int)",
        "CREATE TEMP TABLE t AS SELECT 1 AS a",
        "CREATE LOCAL TEMPORARY TABLE t (a int) ON COMMIT DELETE ROWS",
        "CREATE OR REPLACE TEMP VIEW t AS SELECT 1 AS a",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_catalog.pg_try_advisory_lock(1)",
    ];
    for sql in everywhere.iter().chain(&outside) {
        let answer = client.query(sql).await;
        assert_eq!((answer.error.unwrap().0.as_str(), answer.status), ("0A000", b'I'), "{sql}");
        // In the extended protocol too, named and not, and a second time.
        for (name, text) in [("", *sql), ("n", *sql)] {
            client.send(&[parse(name, text), bind(name), execute(), sync()].concat()).await;
            let (code, text) = client.answer().await.error.unwrap();
            assert_eq!(code, "0A000", "{sql}: {text}");
        }
        client.send(&[close("n"), sync()].concat()).await;
        client.answer().await;
    }
    for sql in everywhere {
        assert_eq!(client.query("BEGIN").await.status, b'T');
        let answer = client.query(sql).await;
        assert_eq!((answer.error.unwrap().0.as_str(), answer.status), ("0A000", b'E'), "{sql}");
        assert_eq!(client.query("ROLLBACK").await.status, b'I');
    }
    // Inside a transaction they do what they do, and leave nothing for the next one.
    for sql in outside {
        assert_eq!(client.query("BEGIN").await.status, b'T');
        assert_eq!(client.query(sql).await.error, None, "{sql}");
        assert_eq!(client.query("COMMIT").await.status, b'I');
        let left = "SELECT to_regclass('t') IS NULL AND NOT EXISTS (SELECT FROM pg_prepared_statements \
                    WHERE name = 'p') AND NOT EXISTS (SELECT FROM pg_cursors WHERE is_holdable) \
                    AND NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')";
        assert_eq!(client.query(left).await.rows[0][0].as_deref(), Some("t"), "{sql}");
    }
    for sql in [
        "SELECT 1; PREPARE p AS SELECT 1; EXECUTE p; DEALLOCATE p",
        "CREATE TEMP TABLE t (a int) ON COMMIT DROP",
        "SELECT 'LISTEN here' AS listen, 1 AS temp, 2 AS prepare, 3 AS hold",
        "/* LISTEN here */ SELECT 1",
        "UNLISTEN *",
        "NOTIFY here",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT 1 AS a INTO TEMP t; SELECT a FROM t",
    ] {
        assert_eq!(client.query(sql).await.error, None, "{sql}");
        assert_eq!(
            client.query("SELECT to_regclass('t') IS NULL").await.rows[0][0].as_deref(),
            Some("t"),
            "{sql}"
        );
    }
    // The hint says what to do instead.
    client.send(&message(b'Q', b"LISTEN here\0")).await;
    let (_, body) = client.read_message().await.unwrap();
    assert!(String::from_utf8_lossy(&body).contains("pool_mode = \"session\""));
}
