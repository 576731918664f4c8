//! A server changes hands between organizations, in one batch with the next client's own or ahead of it. What a client may
//! have left out of sight is left here by a function that executes whatever it is given.

use std::time::Duration;

use crate::harness::client::{Answer, Raw, bind, close, execute, message, parse, raw, sync};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, Database};
use crate::harness::{eventually, org};

/// Executes any text, out of the proxy's sight.
pub const HIDDEN: &str =
    "CREATE FUNCTION hidden(text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE $1; RETURN 1; END $$;
     CREATE SEQUENCE counting; GRANT USAGE ON SEQUENCE counting TO app";

const BODIES: &str = "SELECT DISTINCT body FROM items";

pub async fn gate(database: &Database) -> Gate {
    database.admin().await.batch_execute(HIDDEN).await.unwrap();
    Gate::with(database).pool_size(1).run().await
}

/// A text as one batch of the extended protocol, by which a server may change hands at once.
pub async fn plain(raw: &mut Raw, sql: &str) -> Answer {
    raw.send(&[parse("", sql), bind(""), execute(), sync()].concat()).await;
    raw.answer().await
}

/// A text by each way to a server that changes hands: in one batch with the binding, as a simple query, behind a BEGIN, and
/// behind a binding that is a step of its own.
async fn by_way(raw: &mut Raw, way: usize, sql: &str) -> Answer {
    match way {
        0 => plain(raw, sql).await,
        1 => raw.query(sql).await,
        2 => {
            assert_eq!(raw.query("BEGIN").await.status, b'T');
            let answer = raw.query(sql).await;
            assert_eq!(raw.query("ROLLBACK").await.error, None);
            answer
        }
        _ => raw.query(&format!("{sql}; SHOW work_mem")).await,
    }
}

/// How many ways there are.
const WAYS: usize = 4;

pub async fn run(raw: &mut Raw, name: &str) -> Answer {
    raw.send(&[bind(name), execute(), sync()].concat()).await;
    raw.answer().await
}

pub async fn prepare(raw: &mut Raw, name: &str, sql: &str) {
    raw.send(&[parse(name, sql), sync()].concat()).await;
    assert_eq!(raw.answer().await.error, None, "{sql}");
}

pub fn one(answer: &Answer) -> String {
    match &answer.error {
        Some((code, _)) => format!("ERROR {code}"),
        None => answer.rows[0][0].clone().unwrap_or_default(),
    }
}

fn rows_of(n: u32) -> Vec<Vec<Option<String>>> {
    vec![vec![Some(format!("org-{n}"))]]
}

pub async fn metric(gate: &Gate, name: &str) -> f64 {
    let (_, text) = gate.http("/metrics").await;
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn a_server_changes_hands_in_one_batch() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let gate = gate(&database).await;
        let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
        for raw in [&mut first, &mut second] {
            prepare(raw, "s", BODIES).await;
        }
        for _ in 0..4 {
            assert_eq!(run(&mut first, "s").await.rows, rows_of(1));
            assert_eq!(run(&mut second, "s").await.rows, rows_of(2));
            assert_eq!(first.query(BODIES).await.rows, rows_of(1));
        }
        let counted = metric(&gate, "pgtenant_binds_total{database=\"app\",kind=\"switched\"}").await;
        assert!(counted >= 8.0, "{counted} on PostgreSQL {}", shared.server.version_major());
        assert_eq!(metric(&gate, "pgtenant_bind_failures_total").await, 0.0);
        // PostgreSQL's log is not filled by it.
        let log = shared.server.log();
        assert!(!log.contains("SET TRANSACTION can only"), "{log}");
    }
}

/// A cleaning drops plans; so none is done ahead for clients who need none.
#[tokio::test]
async fn servers_that_change_hands_in_one_batch_are_not_cleaned_ahead() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(2).run().await;
    let mut clients = Vec::new();
    for n in 1..=3 {
        clients.push(raw(&gate, n).await);
    }
    for _ in 0..30 {
        for (client, n) in clients.iter_mut().zip(1..) {
            assert_eq!(plain(client, BODIES).await.rows, rows_of(n));
        }
    }
    // Each server is new once, and perhaps cleaned once before it was known how its clients follow each other.
    let bound = metric(&gate, "pgtenant_binds_total{database=\"app\",kind=\"bound\"}").await;
    assert!(bound <= 4.0, "{bound}");
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
        let admin = database.admin().await;
        for (index, (leave, look, expected)) in LEFTOVERS.into_iter().enumerate() {
            let leave = format!("SELECT hidden('{}')", leave.replace('\'', "''"));
            let view = format!("CREATE VIEW leave_{index} AS {leave}; GRANT SELECT ON leave_{index} TO app");
            admin.batch_execute(&view).await.unwrap();
            // Called by the client, and where its text does not tell.
            let view = format!("TABLE leave_{index}");
            for (leave, way) in
                [&leave, &view].into_iter().flat_map(|leave| (0..WAYS).map(move |way| (leave, way)))
            {
                let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
                plain(&mut first, BODIES).await;
                plain(&mut second, BODIES).await;
                let left = plain(&mut first, leave).await;
                // A superuser's setting is left out where it is refused.
                assert!(left.error.is_none_or(|(code, _)| code == "42501"), "{leave}");
                let seen = by_way(&mut second, way, look).await;
                let version = shared.server.version_major();
                assert_eq!(
                    one(&seen),
                    expected,
                    "{leave} left something on PostgreSQL {version} (way {way})"
                );
                assert_eq!(plain(&mut second, BODIES).await.rows, rows_of(2), "{leave}");
            }
        }
        assert_eq!(metric(&gate, "pgtenant_bind_failures_total").await, 0.0);
    }
}

#[tokio::test]
async fn a_statement_that_was_made_out_of_sight_is_nobodys() {
    for shared in postgres::every_version() {
        for way in 0..WAYS {
            let database = shared.database().await;
            let gate = gate(&database).await;
            for name in ["pgtenant_1", "pgtenant_2", "pgtenant_bind", "pgtenant_settings", "pgtenant_dropped"]
            {
                let mut first = raw(&gate, 1).await;
                first.send(&[parse("s", BODIES), bind("s"), execute(), sync()].concat()).await;
                assert_eq!(first.answer().await.rows, rows_of(1));
                // `pgtenant_bind` has four parameters, to be replaced without a trace.
                let types = if name == "pgtenant_bind" { "(float8, text, text, text)" } else { "" };
                let theirs = format!("PREPARE {name}{types} AS SELECT ''stolen'' AS body");
                // There may be none of this name, until the server is cleaned because of that.
                let mut replaced = Answer::default();
                for _ in 0..2 {
                    plain(&mut first, &format!("SELECT hidden('DEALLOCATE {name}')")).await;
                    replaced = plain(&mut first, &format!("SELECT hidden('{theirs}')")).await;
                }
                assert_eq!(replaced.error, None, "{name}");

                let mut second = raw(&gate, 2).await;
                if way == 0 {
                    second.send(&[parse("s", BODIES), bind("s"), execute(), sync()].concat()).await;
                    assert_eq!(second.answer().await.rows, rows_of(2), "{name}");
                } else {
                    let seen = by_way(&mut second, way, BODIES).await;
                    assert_eq!(seen.rows.first(), rows_of(2).first(), "{name}");
                }
                let theirs = "SELECT count(*) FROM pg_prepared_statements WHERE from_sql";
                assert_eq!(one(&plain(&mut second, theirs).await), "0", "{name}");
                let mut third = raw(&gate, 3).await;
                assert_eq!(plain(&mut third, BODIES).await.rows, rows_of(3), "{name}");
                assert_eq!(third.query(BODIES).await.rows, rows_of(3), "{name}");
            }
            assert_eq!(metric(&gate, "pgtenant_bind_failures_total").await, 0.0);
        }
    }
}

/// While the last client's temporary table cannot be dropped, the wipe waits; then it is cancelled. More than a buffer of
/// the client's is pipelined behind its first batch.
#[tokio::test]
async fn a_batch_runs_elsewhere_where_a_server_could_not_be_taken_over() {
    let database = postgres::shared().database().await;
    let admin = database.admin().await;
    let gate = gate(&database).await;
    for (behind, n) in [(0, 1), (40, 2)] {
        let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
        assert_eq!(plain(&mut first, "SELECT hidden('CREATE TEMP TABLE theirs ()')").await.error, None);
        let schema = one(&plain(&mut first, "SELECT pg_my_temp_schema()::regnamespace").await);
        admin.batch_execute(&format!("BEGIN; LOCK TABLE {schema}.theirs")).await.unwrap();

        // What the batch names is named once, and what it writes is written once.
        let insert = "INSERT INTO items (body) VALUES ('ran') RETURNING body";
        let mut bytes = [parse("own", insert), bind("own"), execute(), sync()].concat();
        for _ in 0..behind {
            let long = format!("SELECT {} 1", " ".repeat(4000));
            bytes.extend([parse("", &long), bind(""), execute(), sync()].concat());
        }
        bytes.extend([bind("own"), execute(), sync()].concat());
        let waiting = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
             WHERE datname = current_database() AND usename = 'app' AND wait_event_type = 'Lock'";
        let cancel = eventually("the wipe waits", async || {
            (admin.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
        });
        let answers = async {
            second.send(&bytes).await;
            for at in 0..behind + 2 {
                let expected = if at == 0 || at == behind + 1 { "ran" } else { "1" };
                assert_eq!(one(&second.answer().await), expected);
            }
        };
        tokio::join!(cancel, answers);
        admin.batch_execute("ROLLBACK").await.unwrap();
        let ran = "WITH ran AS (DELETE FROM items WHERE body = 'ran' RETURNING organization_id) \
             SELECT count(*), count(*) FILTER (WHERE organization_id::text LIKE '%2') FROM ran";
        let ran = admin.query_one(ran, &[]).await.unwrap();
        assert_eq!((ran.get::<_, i64>(0), ran.get::<_, i64>(1)), (2, 2));
        assert_eq!(metric(&gate, "pgtenant_bind_failures_total").await, 0.0);
        assert_eq!(gate.log().matches("a server was closed").count(), n, "{}", gate.log());
    }
}

/// What fails on every server is told, and not tried for ever.
#[tokio::test]
async fn what_cannot_be_bound_anywhere_is_told() {
    let database = postgres::shared().database().await;
    let admin = database.admin().await;
    let gate = gate(&database).await;
    let make = "CREATE TEXT SEARCH CONFIGURATION passing (COPY = pg_catalog.simple)";
    admin.batch_execute(make).await.unwrap();
    let mut clients = Vec::new();
    for n in [1, 2] {
        let mut client = Raw::connect(&gate).await;
        client.startup("app", "app", &[("default_text_search_config", "passing")]).await;
        client.authenticate(&gate.token(org(n)).sign()).await;
        assert_eq!(one(&plain(&mut client, "SELECT 1").await), "1");
        clients.push(client);
    }
    admin.batch_execute("DROP TEXT SEARCH CONFIGURATION passing").await.unwrap();
    clients[0].send(&[parse("", "SELECT 1"), bind(""), execute(), sync()].concat()).await;
    let told = clients[0].read_message().await;
    let (kind, body) = told.expect("an error");
    assert!(kind == b'E' && String::from_utf8_lossy(&body).contains("C08006"), "{body:?}");
    // Others are served.
    let mut other = raw(&gate, 3).await;
    assert_eq!(plain(&mut other, BODIES).await.rows, rows_of(3));
}

/// A transaction that ended within the first batch would end its binding with it.
#[tokio::test]
async fn nobody_rolls_the_binding_back() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
    let bodies = [parse("", BODIES), bind(""), execute()].concat();
    for text in [
        "ROLLBACK",
        "/* SELECT /* */ */ ROLLBACK",
        "-- SELECT\rABORT",
        "ROLLBACK AND CHAIN",
        "COMMIT AND CHAIN",
        "\u{b}ROLLBACK",
        "; ROLLBACK",
        "SELECT 1; ROLLBACK",
        "END",
    ] {
        for name in ["", "r"] {
            // Parsed in the batch, and known from before.
            for is_known in [false, true] {
                let parsed = parse(name, text);
                if is_known {
                    second.send(&[parsed.clone(), sync()].concat()).await;
                    second.answer().await;
                }
                assert_eq!(plain(&mut first, BODIES).await.rows, rows_of(1));
                let begun = if is_known { Vec::new() } else { parsed };
                let batch = [begun, bind(name), execute(), bodies.clone(), sync(), close("r"), sync()];
                second.send(&batch.concat()).await;
                let answer = second.answer().await;
                assert!(
                    answer.rows.iter().all(|row| row[0].as_deref() == Some("org-2")),
                    "{text}: {answer:?}"
                );
                assert_eq!(second.answer().await.error, None);
            }
        }
    }
}

/// Who asks for other transactions than a new session's has them from its first one on, whatever the last client left.
#[tokio::test]
async fn a_client_has_the_transactions_that_it_asked_for() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let gate = gate(&database).await;
        for (name, own, hidden) in [
            ("transaction_isolation", "serializable", "read committed"),
            ("transaction_isolation", "", "repeatable read"),
            ("transaction_read_only", "on", "off"),
            ("transaction_read_only", "", "on"),
        ] {
            let default = format!("default_{name}");
            let settings = [(default.as_str(), own)];
            let settings = if own.is_empty() { &[][..] } else { &settings };
            let (mut first, mut second) = (Raw::connect(&gate).await, Raw::connect(&gate).await);
            for (raw, n) in [(&mut first, 1), (&mut second, 2)] {
                raw.startup("app", "app", settings).await;
                raw.authenticate(&gate.token(org(n)).sign()).await;
            }
            let standard = if name == "transaction_isolation" { "read committed" } else { "off" };
            let expected = if own.is_empty() { standard } else { own };
            let look = format!("SELECT current_setting('{name}')");
            for _ in 0..2 {
                plain(&mut first, &format!("SELECT hidden('SET {default} = ''{hidden}''')")).await;
                assert_eq!(one(&plain(&mut second, &look).await), expected, "{default} {hidden}");
            }
        }
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
            let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                 WHERE datname = current_database() AND usename = 'app' \
                 AND backend_start < now() - interval '300 ms'"; // one that is cancelled while it starts never serves
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

/// `(value).name` is a call of a function of that name.
#[tokio::test]
async fn a_call_without_parentheses_bends_no_plan() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let call =
        "SELECT ('SELECT to_tsvector(set_config(''transform_null_equals'', ''on'', false))'::text).ts_stat";
    let text = "SELECT count(*) FROM items WHERE (body = NULL) IS NOT NULL";
    let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
    for raw in [&mut first, &mut second] {
        plain(raw, BODIES).await;
    }
    plain(&mut first, call).await;
    prepare(&mut first, "s", text).await;
    run(&mut first, "s").await;
    prepare(&mut second, "s", text).await;
    assert_eq!(one(&run(&mut second, "s").await), "0");
}
