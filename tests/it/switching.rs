//! A server changes hands between organizations, with prepared statements kept and everything else gone, in one batch with
//! the next client's own or ahead of it. What a client may have left out of sight is left here by a function that executes
//! whatever it is given.

use std::time::Duration;

use crate::harness::client::{Answer, Raw, bind, execute, message, parse, raw, sync};
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres::{self, Database};

/// Executes any text, out of the proxy's sight.
const HIDDEN: &str =
    "CREATE FUNCTION hidden(text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE $1; RETURN 1; END $$;
     CREATE SEQUENCE counting; GRANT USAGE ON SEQUENCE counting TO app";

const BODIES: &str = "SELECT DISTINCT body FROM items";

async fn gate(database: &Database) -> Gate {
    database.admin().await.batch_execute(HIDDEN).await.unwrap();
    Gate::with(database).pool_size(1).run().await
}

/// A text as one batch of the extended protocol, by which a server may change hands at once.
async fn plain(raw: &mut Raw, sql: &str) -> Answer {
    raw.send(&[parse("", sql), bind(""), execute(), sync()].concat()).await;
    raw.answer().await
}

async fn run(raw: &mut Raw, name: &str) -> Answer {
    raw.send(&[bind(name), execute(), sync()].concat()).await;
    raw.answer().await
}

fn one(answer: &Answer) -> String {
    match &answer.error {
        Some((code, _)) => format!("ERROR {code}"),
        None => answer.rows[0][0].clone().unwrap_or_default(),
    }
}

fn rows_of(n: u32) -> Vec<Vec<Option<String>>> {
    vec![vec![Some(format!("org-{n}"))]]
}

async fn metric(gate: &Gate, name: &str) -> f64 {
    let (_, text) = gate.http("/metrics").await;
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn a_statement_outlives_the_change_of_hands() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let gate = gate(&database).await;
        let (mut one_, mut two) = (raw(&gate, 1).await, raw(&gate, 2).await);
        for raw in [&mut one_, &mut two] {
            raw.send(&[parse("s", BODIES), sync()].concat()).await;
            assert_eq!(raw.answer().await.error, None);
        }
        let since = format!("SELECT prepare_time FROM pg_prepared_statements WHERE statement = '{BODIES}'");
        let mut seen = Vec::new();
        for _ in 0..4 {
            assert_eq!(run(&mut one_, "s").await.rows, rows_of(1));
            assert_eq!(run(&mut two, "s").await.rows, rows_of(2));
            seen.push(one(&plain(&mut one_, &since).await));
            // Simple queries need a cleaning of their own, which keeps it too.
            assert_eq!(two.query(BODIES).await.rows, rows_of(2));
            seen.push(one(&plain(&mut one_, &since).await));
        }
        seen.dedup();
        assert_eq!(seen.len(), 1, "{seen:?} on PostgreSQL {}", shared.server.version_major());
        assert!(metric(&gate, "pgtenant_binds_total{database=\"app\",kind=\"switched\"}").await >= 8.0);
        assert_eq!(metric(&gate, "pgtenant_bind_failures_total").await, 0.0);
    }
}

/// What is left out of sight, how to look for it, and what the next client must see.
const LEFTOVERS: [(&str, &str, &str); 12] = [
    ("SET work_mem = '77MB'", "SELECT current_setting('work_mem') <> '77MB'", "t"),
    ("SET app.secret = 'theirs'", "SELECT COALESCE(current_setting('app.secret', true), '') = ''", "t"),
    ("SET search_path = pg_temp, nowhere", "SELECT current_setting('search_path')", "\"$user\", public"),
    ("SET statement_timeout = 700", "SELECT current_setting('statement_timeout')", "0"),
    ("CREATE TEMP TABLE items (body text)", "SELECT to_regclass('pg_temp.items') IS NULL", "t"),
    ("CREATE TEMP VIEW items AS SELECT 'theirs' AS body", "SELECT DISTINCT body FROM items", "org-2"),
    ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) FROM pg_cursors WHERE is_holdable", "0"),
    (
        "DO $$ BEGIN PERFORM pg_advisory_lock(4711); END $$",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "0",
    ),
    ("DO $$ BEGIN PERFORM nextval('counting'); END $$", "SELECT lastval()", "ERROR 55000"),
    ("SET session_replication_role = origin", "SELECT 1", "1"),
    // PostgreSQL tells of this one.
    ("SET default_transaction_read_only = on", "SELECT current_setting('transaction_read_only')", "off"),
    ("SELECT setseed(0.5)", "SELECT random() <> 0.2499104186659835", "t"),
];

#[tokio::test]
async fn nothing_out_of_sight_is_left_on_any_version() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let gate = gate(&database).await;
        for (leave, look, expected) in LEFTOVERS {
            for is_plain in [true, false] {
                let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
                let leave = format!("SELECT hidden('{}')", leave.replace('\'', "''"));
                let left = plain(&mut first, &leave).await;
                // A superuser's setting is left out where it is refused.
                assert!(left.error.is_none_or(|(code, _)| code == "42501"), "{leave}");
                let seen = if is_plain { plain(&mut second, look).await } else { second.query(look).await };
                let version = shared.server.version_major();
                assert_eq!(
                    one(&seen),
                    expected,
                    "{leave} left something on PostgreSQL {version} ({is_plain})"
                );
                assert_eq!(plain(&mut second, BODIES).await.rows, rows_of(2), "{leave}");
            }
        }
        assert_eq!(metric(&gate, "pgtenant_bind_failures_total").await, 0.0);
    }
}

/// The server's name of the statement with this text.
async fn server_name(raw: &mut Raw, text: &str) -> String {
    one(&plain(raw, &format!("SELECT name FROM pg_prepared_statements WHERE statement = '{text}'")).await)
}

#[tokio::test]
async fn a_statement_that_was_replaced_out_of_sight_is_nobodys() {
    for shared in postgres::every_version() {
        // Where the next client's batch could change the server's hands at once, and where it cannot.
        for is_plain in [true, false] {
            let database = shared.database().await;
            let gate = gate(&database).await;
            for name in
                ["s", "dropped", "pgtenant_bind", "pgtenant_wipe_settings", "pgtenant_settings", "new"]
            {
                let mut first = raw(&gate, 1).await;
                first.send(&[parse("s", BODIES), bind("s"), execute(), sync()].concat()).await;
                assert_eq!(first.answer().await.rows, rows_of(1));
                let on_server = match name {
                    "s" | "dropped" => server_name(&mut first, BODIES).await,
                    other => other.to_owned(),
                };
                // There may be none of this name.
                plain(&mut first, &format!("SELECT hidden('DEALLOCATE {on_server}')")).await;
                // `pgtenant_bind` has four parameters, to be replaced without a trace.
                let types = if name == "pgtenant_bind" { "(float8, text, text, text)" } else { "" };
                let theirs = format!("PREPARE {on_server}{types} AS SELECT ''stolen'' AS body");
                if name != "dropped" {
                    let replaced = plain(&mut first, &format!("SELECT hidden('{theirs}')")).await;
                    assert_eq!(replaced.error, None, "{name}");
                }

                let mut second = raw(&gate, 2).await;
                if is_plain {
                    second.send(&[parse("s", BODIES), bind("s"), execute(), sync()].concat()).await;
                    assert_eq!(second.answer().await.rows, rows_of(2), "{name}");
                } else {
                    assert_eq!(second.query(BODIES).await.rows, rows_of(2), "{name}");
                }
                let mut third = raw(&gate, 3).await;
                assert_eq!(plain(&mut third, BODIES).await.rows, rows_of(3), "{name}");
                assert_eq!(third.query(BODIES).await.rows, rows_of(3), "{name}");
            }
            assert_eq!(metric(&gate, "pgtenant_bind_failures_total").await, 0.0);
        }
    }
}

#[tokio::test]
async fn a_batch_runs_elsewhere_where_a_server_could_not_be_taken_over() {
    let database = postgres::shared().database().await;
    let admin = database.admin().await;
    admin.batch_execute(HIDDEN).await.unwrap();
    for left in [
        "PREPARE theirs AS SELECT 1",
        "LISTEN theirs",
        "SET default_transaction_isolation = ''repeatable read''",
    ] {
        let fresh = Gate::with(&database).pool_size(1).run().await;
        let (mut first, mut second) = (raw(&fresh, 1).await, raw(&fresh, 2).await);
        second.send(&[parse("s", "SELECT $1::text"), sync()].concat()).await;
        assert_eq!(second.answer().await.error, None);
        assert_eq!(plain(&mut first, &format!("SELECT hidden('{left}')")).await.error, None);
        // The client's batch is skipped there, and runs on another server, once. What it names is named once.
        let insert = "INSERT INTO items (body) VALUES ('ran') RETURNING body";
        let batch = [parse("own", insert), bind("own"), execute(), sync()].concat();
        second.send(&[&batch[..], &bind("own"), &execute()].concat()).await;
        assert_eq!(one(&second.answer().await), "ran", "{left}");
        second.send(&sync()).await;
        assert_eq!(one(&second.answer().await), "ran", "{left}");
        let ran = "WITH ran AS (DELETE FROM items WHERE body = 'ran' RETURNING organization_id) \
             SELECT count(*), count(*) FILTER (WHERE organization_id::text LIKE '%2') FROM ran";
        let ran = admin.query_one(ran, &[]).await.unwrap();
        assert_eq!((ran.get::<_, i64>(0), ran.get::<_, i64>(1)), (2, 2), "{left}");
        // Others are served, from now on with one more step.
        let (mut third, mut fourth) = (raw(&fresh, 3).await, raw(&fresh, 4).await);
        for _ in 0..2 {
            assert_eq!(plain(&mut third, &format!("SELECT hidden('{left}')")).await.error, None);
            assert_eq!(plain(&mut fourth, BODIES).await.rows, rows_of(4), "{left}");
        }
        assert_eq!(metric(&fresh, "pgtenant_bind_failures_total").await, 0.0);
    }
}

#[tokio::test]
async fn a_first_batch_that_fails_leaves_its_client_and_the_last_one_apart() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
    let failing = [parse("", "SELECT 1/0"), bind(""), execute(), sync()].concat();
    let own = [parse("", BODIES), bind(""), execute(), sync()].concat();
    for _ in 0..5 {
        assert_eq!(plain(&mut first, BODIES).await.rows, rows_of(1));
        // What is pipelined behind it must not meet the context that the failure brought back.
        second
            .send(&[failing.clone(), own.clone(), message(b'Q', format!("{BODIES}\0").as_bytes())].concat())
            .await;
        assert_eq!(one(&second.answer().await), "ERROR 22012");
        assert_eq!(second.answer().await.rows, rows_of(2));
        assert_eq!(second.answer().await.rows, rows_of(2));
        // The same where PostgreSQL has not the rest of the batch yet, and where the client leaves it at that.
        assert_eq!(plain(&mut first, BODIES).await.rows, rows_of(1));
        second.send(&[parse("", "SELECT nowhere"), sync()].concat()).await;
        assert_eq!(one(&second.answer().await), "ERROR 42703");
        assert_eq!(plain(&mut second, BODIES).await.rows, rows_of(2));
    }
    assert_eq!(metric(&gate, "pgtenant_bind_failures_total").await, 0.0);
}

#[tokio::test]
async fn a_statement_is_read_under_nobody_elses_settings() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
    let text = "SELECT count(*) FROM items WHERE (body = NULL) IS NOT NULL";
    assert_eq!(plain(&mut first, "SELECT hidden('SET transform_null_equals = on')").await.error, None);
    // Parsed by the first one it would mean another thing; it must not stay for the second.
    first.send(&[parse("s", text), bind("s"), execute(), sync()].concat()).await;
    assert_ne!(one(&first.answer().await), "0");
    second.send(&[parse("s", text), bind("s"), execute(), sync()].concat()).await;
    assert_eq!(one(&second.answer().await), "0");
    // Settings that are the client's own: what was read under one client's is not the other's.
    let date = "SELECT '01/02/2026'::date = '2026-02-01'::date";
    let mut european = Raw::connect(&gate).await;
    european.startup("app", "app", &[("datestyle", "ISO, DMY")]).await;
    european.authenticate(&gate.token(org(1)).sign()).await;
    for _ in 0..3 {
        for (raw, expected) in [(&mut european, "t"), (&mut second, "f")] {
            raw.send(&[parse("d", date), bind("d"), execute(), message(b'C', b"Sd\0"), sync()].concat())
                .await;
            assert_eq!(one(&raw.answer().await), expected);
        }
    }
}

#[tokio::test]
async fn a_function_that_lies_about_being_immutable_gives_nothing_away() {
    let database = postgres::shared().database().await;
    let admin = database.admin().await;
    admin.batch_execute(HIDDEN).await.unwrap();
    for (how, keeps) in [
        (
            "LANGUAGE sql IMMUTABLE AS 'SELECT split_part(current_setting(''pgtenant.seal''), e''\\n'', 6)'",
            false,
        ),
        ("LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN pgtenant.organization_id()::text; END'", false),
        ("LANGUAGE sql IMMUTABLE AS 'SELECT organization_id::text FROM items LIMIT 1'", false),
        ("LANGUAGE sql IMMUTABLE AS 'SELECT lower(''X'')'", true),
    ] {
        admin
            .batch_execute(&format!(
                "DROP FUNCTION IF EXISTS mine(); CREATE FUNCTION mine() RETURNS text {how}"
            ))
            .await
            .unwrap();
        let gate = Gate::with(&database).pool_size(1).run().await;
        let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
        let text = "SELECT mine(), (SELECT prepare_time FROM pg_prepared_statements WHERE statement LIKE 'SELECT mine%')";
        for raw in [&mut first, &mut second] {
            raw.send(&[parse("s", text), sync()].concat()).await;
            assert_eq!(raw.answer().await.error, None);
        }
        let mut times = Vec::new();
        for _ in 0..3 {
            // More often than PostgreSQL plans anew.
            for _ in 0..8 {
                run(&mut first, "s").await;
            }
            let row = run(&mut second, "s").await.rows[0].clone();
            assert_ne!(row[0].as_deref(), Some(org(1).as_str()), "{how}");
            times.push(row[1].clone());
        }
        times.dedup();
        assert_eq!(times.len() == 1, keeps, "{how}");
    }
}

#[tokio::test]
async fn what_cannot_be_in_a_transaction_is_not_put_into_one() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let admin = database.admin().await;
    let make = "CREATE PROCEDURE twice() LANGUAGE plpgsql AS $$ BEGIN COMMIT; ROLLBACK; END $$";
    admin.batch_execute(make).await.unwrap();
    let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
    for text in ["VACUUM notes", "CALL twice()", "BEGIN ISOLATION LEVEL SERIALIZABLE", "DISCARD ALL"] {
        assert_eq!(plain(&mut first, BODIES).await.rows, rows_of(1));
        let answer = plain(&mut second, text).await;
        assert!(answer.error.is_none_or(|(code, _)| code == "42501"), "{text}");
        if answer.status == b'T' {
            assert_eq!(one(&plain(&mut second, "SHOW transaction_isolation").await), "serializable");
            plain(&mut second, "COMMIT").await;
        }
        assert_eq!(plain(&mut second, BODIES).await.rows, rows_of(2));
    }
}

/// Backends are cancelled all the time, so that cleanings, bindings and batches fail anywhere. Whatever is written is
/// written in the writer's own organization.
#[tokio::test]
async fn whatever_fails_where_nothing_crosses_over() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(2).run().await;
    let admin = database.admin().await;
    admin.batch_execute(HIDDEN).await.unwrap();
    let writers = (1..=4).map(|n| {
        let gate = &gate;
        async move {
            let (mut written, mut client) = (0, raw(gate, n).await);
            for turn in 0..150 {
                let text = match turn % 3 {
                    0 => "SELECT DISTINCT body FROM items WHERE body LIKE 'org-%'".to_owned(),
                    1 => "SELECT 1/0".to_owned(),
                    _ => format!("INSERT INTO items (body) VALUES ('of {n}') RETURNING 'written'"),
                };
                client.send(&[parse("", &text), bind(""), execute(), sync()].concat()).await;
                let mut is_over = false;
                while !is_over {
                    match client.read_message().await {
                        Some((b'D', row)) if turn % 3 == 0 => {
                            assert!(row.ends_with(format!("org-{n}").as_bytes()), "{row:?}");
                        }
                        Some((b'D', _)) => written += 1,
                        Some((b'Z', _)) => is_over = true,
                        Some(_) => {}
                        None => {
                            client = raw(gate, n).await;
                            is_over = true;
                        }
                    }
                }
            }
            written
        }
    });
    let storm = async {
        loop {
            let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
            admin.query(cancel, &[]).await.unwrap();
            tokio::time::sleep(Duration::from_micros(700)).await;
        }
    };
    let written: i32 = tokio::select! {
        counts = futures_util::future::join_all(writers) => counts.into_iter().sum(),
        () = storm => unreachable!(),
    };
    let check = "SELECT count(*), count(*) FILTER (WHERE right(organization_id::text, 1) = right(body, 1)) FROM items \
         WHERE body LIKE 'of %'";
    let row = admin.query_one(check, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), row.get::<_, i64>(1));
    assert!(written > 50 && row.get::<_, i64>(0) >= i64::from(written), "{written}");
}
