//! The token of a live connection: switched in either protocol, inside and outside transactions, in pipelines; refused,
//! rolled back, reset. What PostgreSQL would do with any other setting is what happens to this one.

use std::time::Duration;

use crate::harness::client::{
    Answer, Raw, bind, close, connect, execute, message, parse, psql, raw, sync, try_connect, value,
};
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres::{self, password_of};

pub const WHOSE: &str = "SELECT DISTINCT body FROM items";
pub const SWITCH: &str = "SELECT set_config('pgtenant.token', $1, $2)";

pub fn set(gate: &Gate, n: u32) -> String {
    format!("SET pgtenant.token = '{}'", gate.token(org(n)).sign())
}

pub fn set_local(gate: &Gate, n: u32) -> String {
    set(gate, n).replace("SET ", "SET LOCAL ")
}

/// Whose rows a client sees, or why it sees none.
pub fn whose(answer: &Answer) -> String {
    match (&answer.error, answer.rows.as_slice()) {
        (Some((code, _)), _) => code.clone(),
        (None, []) => "nobody".to_owned(),
        (None, rows) => rows.iter().map(|row| row[0].clone().unwrap()).collect::<Vec<_>>().join(","),
    }
}

pub async fn sees(client: &mut Raw) -> String {
    whose(&client.query(WHOSE).await)
}

pub async fn done(client: &mut Raw, sql: &str, tag: &str, status: u8) {
    let answer = client.query(sql).await;
    assert_eq!((answer.error, answer.tags, answer.status), (None, vec![tag.to_owned()], status), "{sql}");
}

pub fn bind_values(statement: &str, values: &[&str]) -> Vec<u8> {
    let mut body = format!("\0{statement}\0\0\0").into_bytes();
    body.extend((values.len() as u16).to_be_bytes());
    for value in values {
        body.extend((value.len() as u32).to_be_bytes());
        body.extend(value.as_bytes());
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

#[tokio::test]
async fn a_simple_set_holds_until_it_is_reset() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let gate = Gate::with(&database).pool_size(2).run().await;
        let mut client = raw(&gate, 1).await;
        assert_eq!(sees(&mut client).await, "org-1");
        done(&mut client, &set(&gate, 2), "SET", b'I').await;
        assert_eq!(sees(&mut client).await, "org-2");
        assert_eq!(sees(&mut raw(&gate, 1).await).await, "org-1", "nobody else's is switched");
        done(&mut client, "RESET pgtenant.token", "RESET", b'I').await;
        assert_eq!(sees(&mut client).await, "org-1");
        done(&mut client, &set(&gate, 3), "SET", b'I').await;
        done(&mut client, "RESET ALL", "RESET", b'I').await;
        assert_eq!(sees(&mut client).await, "org-1");
        done(&mut client, &set(&gate, 3), "SET", b'I').await;
        done(&mut client, "DISCARD ALL", "DISCARD ALL", b'I').await;
        assert_eq!(sees(&mut client).await, "org-1");
        done(&mut client, &set(&gate, 3), "SET", b'I').await;
        done(&mut client, "SET SESSION pgtenant.token TO DEFAULT", "SET", b'I').await;
        assert_eq!(sees(&mut client).await, "org-1");
        // Outside a transaction SET LOCAL does nothing, as on PostgreSQL.
        done(&mut client, &set_local(&gate, 2), "SET", b'I').await;
        assert_eq!(sees(&mut client).await, "org-1");
    }
}

#[tokio::test]
async fn drivers_switch_by_a_bound_parameter() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let client = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let token = gate.token(org(2)).sign();
    let row = client.query_one(SWITCH, &[&token, &false]).await.unwrap();
    assert_eq!((row.columns()[0].name(), row.get::<_, String>(0)), ("set_config", token.clone()));
    assert_eq!(value(&client, WHOSE).await.unwrap().unwrap(), "org-2");
    // A prepared one, over and over, and in a transaction.
    let switch =
        client.prepare("SELECT pg_catalog.set_config('pgtenant.token', $1, true) AS done").await.unwrap();
    for n in [3, 1, 2, 3] {
        client.batch_execute("BEGIN").await.unwrap();
        client.query(&switch, &[&gate.token(org(n)).sign()]).await.unwrap();
        assert_eq!(value(&client, WHOSE).await.unwrap().unwrap(), format!("org-{n}"));
        client.batch_execute("COMMIT").await.unwrap();
        assert_eq!(value(&client, WHOSE).await.unwrap().unwrap(), "org-2");
    }
    // Query builders make a parameter of everything.
    const ALL: &str = "SELECT set_config($1, $2, $3)";
    let all = client.prepare(ALL).await.unwrap();
    for (n, name) in [(1, "pgtenant.token"), (3, "PGTENANT.Token"), (3, "app.x"), (2, "pgtenant.token")] {
        let value_of = if name == "app.x" { "y".to_owned() } else { gate.token(org(n)).sign() };
        client.query(&all, &[&name, &value_of, &false]).await.unwrap();
        assert_eq!(value(&client, WHOSE).await.unwrap().unwrap(), format!("org-{n}"));
        client.query(ALL, &[&name, &value_of, &false]).await.unwrap();
        assert_eq!(value(&client, WHOSE).await.unwrap().unwrap(), format!("org-{n}"));
    }
    assert_eq!(value(&client, "SHOW app.x").await.unwrap().unwrap(), "y");
    let refused = client.query(SWITCH, &[&"eyJ.e30.x", &false]).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "28000");
    assert_eq!(client.query(WHOSE, &[]).await.unwrap_err().code().unwrap().code(), "28000");
    client.query(SWITCH, &[&token, &false]).await.unwrap();
    assert_eq!(value(&client, WHOSE).await.unwrap().unwrap(), "org-2");
    let set = set(&gate, 3);
    let (_, out, err) = psql(
        &gate,
        "app",
        &token,
        &["-qtA", "-c", &set, "-c", WHOSE, "-c", "RESET pgtenant.token", "-c", WHOSE],
    )
    .await;
    assert_eq!((out.as_str(), err.as_str()), ("org-3\norg-2\n", ""));
}

#[tokio::test]
async fn in_a_transaction_it_is_one_of_its_settings() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let gate = Gate::with(&database).pool_size(1).run().await;
        let mut client = raw(&gate, 1).await;
        let (two, local_three) = (set(&gate, 2), set_local(&gate, 3));
        for (steps, inside, after) in [
            (vec!["BEGIN", two.as_str()], "org-2", vec![("COMMIT", "org-2")]),
            (vec!["BEGIN", two.as_str()], "org-2", vec![("ROLLBACK", "org-1")]),
            (vec!["BEGIN", local_three.as_str()], "org-3", vec![("COMMIT", "org-1")]),
            (vec!["BEGIN", "SAVEPOINT s", two.as_str(), "ROLLBACK TO s"], "org-1", vec![("COMMIT", "org-1")]),
            (
                vec!["BEGIN", two.as_str(), "SAVEPOINT s", local_three.as_str()],
                "org-3",
                vec![("ROLLBACK TO s", "org-2"), ("COMMIT", "org-2")],
            ),
            (
                vec!["BEGIN", local_three.as_str(), "SAVEPOINT s", two.as_str(), "RELEASE s"],
                "org-2",
                vec![("COMMIT", "org-2")],
            ),
            (vec!["BEGIN", two.as_str(), "RESET pgtenant.token"], "org-1", vec![("COMMIT", "org-1")]),
            (
                vec!["BEGIN", two.as_str(), local_three.as_str(), "SET LOCAL pgtenant.token TO DEFAULT"],
                "org-1",
                vec![("COMMIT", "org-2")],
            ),
        ] {
            for step in &steps {
                let answer = client.query(step).await;
                assert_eq!((answer.error, answer.status), (None, b'T'), "{step}");
            }
            assert_eq!(sees(&mut client).await, inside, "{steps:?}");
            for (step, expected) in after {
                assert_eq!(client.query(step).await.error, None);
                assert_eq!(sees(&mut client).await, expected, "{steps:?} {step}");
            }
            done(&mut client, "RESET pgtenant.token", "RESET", b'I').await;
            assert_eq!(sees(&mut raw(&gate, 3).await).await, "org-3", "the server is the next one's");
        }
    }
}

#[tokio::test]
async fn a_failed_transaction_takes_no_token() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let mut client = raw(&gate, 1).await;
    done(&mut client, "BEGIN", "BEGIN", b'T').await;
    assert_eq!(client.query("SELECT 1/0").await.status, b'E');
    let answer = client.query(&set(&gate, 2)).await;
    assert_eq!((answer.error.unwrap().0.as_str(), answer.status), ("25P02", b'E'));
    done(&mut client, "ROLLBACK", "ROLLBACK", b'I').await;
    assert_eq!(sees(&mut client).await, "org-1");
}

#[tokio::test]
async fn after_a_refused_token_nothing_runs_until_another_one() {
    for mode in ["transaction", "session"] {
        let database = postgres::shared().database().await;
        let gate = Gate::with(&database).mode(mode).run().await;
        let mut client = raw(&gate, 1).await;
        assert_eq!(sees(&mut client).await, "org-1");
        let bad = format!("SET pgtenant.token = '{}'", gate.token(org(2)).expires_in(-3600).sign());
        let answer = client.query(&bad).await;
        assert_eq!(answer.error.unwrap(), ("28000".to_owned(), "token refused: expired".to_owned()));
        for sql in [WHOSE, "BEGIN", "SELECT 1", "ROLLBACK", "SHOW server_version"] {
            let answer = client.query(sql).await;
            assert_eq!((whose(&answer).as_str(), answer.status), ("28000", b'I'), "{sql}");
        }
        done(&mut client, &set(&gate, 2), "SET", b'I').await;
        assert_eq!(sees(&mut client).await, "org-2", "{mode}");
        assert_eq!(client.query(&bad).await.error.unwrap().0, "28000");
        done(&mut client, "RESET pgtenant.token", "RESET", b'I').await;
        assert_eq!(sees(&mut client).await, "org-1");
        let log = gate.log();
        assert!(log.contains("a switch of tokens was refused") && !log.contains("eyJ"), "{log}");
    }
}

/// A savepoint would bring the context before back: nothing but the end of the transaction is let through.
#[tokio::test]
async fn a_token_refused_in_a_transaction_ends_it() {
    for mode in ["transaction", "session"] {
        let database = postgres::shared().database().await;
        let gate = Gate::with(&database).mode(mode).pool_size(1).run().await;
        let mut client = raw(&gate, 1).await;
        client.send(&[parse("back", "ROLLBACK TO s"), parse("end", "ROLLBACK"), sync()].concat()).await;
        assert_eq!(client.answer().await.error, None);
        for extended in [false, true] {
            done(&mut client, "BEGIN", "BEGIN", b'T').await;
            done(&mut client, "SAVEPOINT s", "SAVEPOINT", b'T').await;
            if extended {
                let held = [parse("", "ROLLBACK TO s"), message(b'B', b"p\0\0\0\0\0\0\0\0")].concat();
                client
                    .send(
                        &[held, parse("t", SWITCH), bind_values("t", &["eyJ.e30.x", "f"]), execute(), sync()]
                            .concat(),
                    )
                    .await;
            } else {
                client.send(&message(b'Q', b"SET pgtenant.token = 'eyJ.e30.x'\0")).await;
            }
            let answer = client.answer().await;
            assert_eq!(
                (answer.error.unwrap().0.as_str(), answer.status),
                ("28000", b'E'),
                "{mode} {extended}"
            );
            for sql in [
                "ROLLBACK TO s",
                WHOSE,
                "ROLLBACK; SELECT body FROM items",
                "ROLLBACK AND CHAIN",
                "BEGIN",
                "COMMIT; BEGIN",
            ] {
                let answer = client.query(sql).await;
                assert_eq!((whose(&answer).as_str(), answer.status), ("25P02", b'E'), "{sql}");
            }
            for batch in [
                [parse("", "ROLLBACK TO s"), bind(""), execute(), sync()].concat(),
                [bind("back"), execute(), sync()].concat(),
                [message(b'E', b"p\0\0\0\0\0"), sync()].concat(),
                [bind(""), execute(), sync()].concat(),
            ] {
                client.send(&batch).await;
                let answer = client.answer().await;
                assert!(answer.error.is_some() && answer.status == b'E', "{answer:?}");
            }
            let good = client.query(&set(&gate, 2)).await;
            assert_eq!((whose(&good).as_str(), good.status), ("25P02", b'E'));
            let back = client.query("ROLLBACK TO s").await;
            assert_eq!((whose(&back).as_str(), back.status), ("25P02", b'E'));
            client.send(&[parse("", "ROLLBACK"), bind(""), execute(), sync()].concat()).await;
            let answer = client.answer().await;
            assert_eq!((answer.error, answer.status), (None, b'I'), "{mode} {extended}");
            assert_eq!(sees(&mut client).await, "28000");
            done(&mut client, "RESET pgtenant.token", "RESET", b'I').await;
            assert_eq!(sees(&mut client).await, "org-1");
        }
    }
}

/// All of it is sent before anything is read.
#[tokio::test]
async fn in_a_pipeline_it_holds_from_its_message_on() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let gate = Gate::with(&database).run().await;
        let mut client = raw(&gate, 1).await;
        let query = |sql: &str| message(b'Q', format!("{sql}\0").as_bytes());
        let texts = [WHOSE, &set(&gate, 2), WHOSE, &set(&gate, 3), WHOSE, "RESET pgtenant.token", WHOSE];
        client.send(&texts.map(query).concat()).await;
        let mut seen = Vec::new();
        for _ in texts {
            seen.push(whose(&client.answer().await));
        }
        assert_eq!(seen, ["org-1", "nobody", "org-2", "nobody", "org-3", "nobody", "org-1"]);
        // One batch of the extended protocol, with and without a query ahead of the switch.
        let ask = [parse("", WHOSE), bind(""), execute()].concat();
        let to = |n: u32, is_local: &str| {
            let token = gate.token(org(n)).sign();
            [parse("t", SWITCH), bind_values("t", &[&token, is_local]), execute(), close("t")].concat()
        };
        for (batch, rows, after) in [
            (vec![ask.clone(), to(2, "t"), ask.clone(), sync()], vec!["org-1", "-", "org-2"], "org-1"),
            (vec![to(2, "t"), ask.clone(), sync()], vec!["-", "org-2"], "org-1"),
            (
                vec![to(2, "t"), ask.clone(), sync(), ask.clone(), sync()],
                vec!["-", "org-2", "org-1"],
                "org-1",
            ),
            (
                vec![to(2, "f"), ask.clone(), to(3, "t"), ask.clone(), sync()],
                vec!["-", "org-2", "-", "org-3"],
                "org-2",
            ),
            (
                vec![ask.clone(), to(3, "f"), ask.clone(), sync(), ask.clone(), sync()],
                vec!["org-2", "-", "org-3", "org-3"],
                "org-3",
            ),
            (vec![to(1, "f"), sync(), ask.clone(), sync()], vec!["-", "org-1"], "org-1"),
        ] {
            let ends = batch.iter().filter(|part| **part == sync()).count();
            client.send(&batch.concat()).await;
            let mut seen = Vec::new();
            for _ in 0..ends {
                let answer = client.answer().await;
                assert_eq!((answer.error, answer.status), (None, b'I'));
                seen.extend(answer.rows.into_iter().map(|row| row[0].clone().unwrap()));
            }
            let seen: Vec<&str> =
                seen.iter().map(|seen| if seen.starts_with("eyJ") { "-" } else { seen }).collect();
            assert_eq!(seen, rows);
            assert_eq!(sees(&mut client).await, after);
        }
    }
}

/// A batch is one transaction: what fails in it undoes the switch as well.
#[tokio::test]
async fn a_failed_batch_switches_nothing() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let mut client = raw(&gate, 1).await;
    let token = gate.token(org(2)).sign();
    let switch = [parse("", SWITCH), bind_values("", &[&token, "f"]), execute()].concat();
    let ask = [parse("", WHOSE), bind(""), execute()].concat();
    let fail = [parse("", "SELECT 1/0"), bind(""), execute()].concat();
    for batch in [
        [&switch[..], &fail, &sync()].concat(),
        [&ask[..], &switch, &fail, &sync()].concat(),
        [&fail[..], &switch, &sync()].concat(),
        [&switch[..], &parse("", "SET pgtenant.token = $1"), &sync()].concat(),
        [&switch[..], &ask, &switch, &fail, &ask, &sync()].concat(),
    ] {
        client.send(&batch).await;
        let answer = client.answer().await;
        assert!(answer.error.is_some() && answer.status == b'I', "{answer:?}");
        assert_eq!(sees(&mut client).await, "org-1");
    }
    // With a Sync between them, they are two.
    client.send(&[&switch[..], &sync(), &fail, &sync()].concat()).await;
    assert_eq!(
        (client.answer().await.error, client.answer().await.error.unwrap().0),
        (None, "22012".to_owned())
    );
    assert_eq!(sees(&mut client).await, "org-2");
}

/// Whoever shares the role reads the texts in pg_stat_activity.
#[tokio::test]
async fn no_server_ever_sees_a_token() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let mut client = raw(&gate, 1).await;
    let set = set(&gate, 2);
    let token = gate.token(org(2)).sign();
    for sql in [
        format!("{set}; SELECT 1"),
        format!("BEGIN; {set}; COMMIT"),
        format!("SELECT set_config('pgtenant.token', '{token}', false), 1"),
        format!("SELECT * FROM set_config('pgtenant.token', '{token}', false)"),
        format!("SET pgtenant.token = U&'{token}' UESCAPE '!', 'x'"),
        format!("SET \"pgtenant\".\"token\" = '{token}', 'x'"),
    ] {
        let answer = client.query(&sql).await;
        assert_eq!((whose(&answer).as_str(), answer.status), ("0A000", b'I'), "{}", &sql[..60]);
        client.send(&[parse("", &sql), sync()].concat()).await;
        let answer = client.answer().await;
        assert_eq!((whose(&answer).as_str(), answer.status), ("0A000", b'I'));
        assert_eq!(sees(&mut client).await, "org-1");
        done(&mut client, "BEGIN", "BEGIN", b'T').await;
        assert_eq!((whose(&client.query(&sql).await).as_str()), "0A000");
        assert_eq!(client.query("ROLLBACK").await.status, b'I');
    }
    // What is longer than is kept in one piece is cut off before PostgreSQL has all of it, and so executes nothing.
    for sql in [
        format!("SET pgtenant.token = '{token}{}'", "x".repeat(40_000)),
        format!("{}SET pgtenant.token = '{token}'", " ".repeat(33_000)),
        format!("{}SELECT set_config('pgtenant.token', '{token}', false)", " ".repeat(60_000)),
    ] {
        let mut client = raw(&gate, 1).await;
        client.send(&message(b'Q', format!("{sql}\0").as_bytes())).await;
        assert_eq!(client.expect_error().await.0, "0A000");
        client.expect_close().await;
    }
    done(&mut client, &set, "SET", b'I').await;
    client.query("BEGIN").await;
    client.query(&set).await;
    assert_eq!(sees(&mut client).await, "org-2");
    client.query("COMMIT").await;
    let log = database_log();
    assert!(!log.contains("eyJ"), "{log}");
    let asked = client.query("SELECT current_setting('pgtenant.token', true)").await;
    assert_eq!(asked.rows[0][0].as_deref().unwrap_or(""), "");
}

fn database_log() -> String {
    postgres::shared().server.log()
}

#[tokio::test]
async fn a_service_account_brings_a_token_before_its_first_query() {
    for mode in ["transaction", "session"] {
        let database = postgres::shared().database().await;
        let gate = Gate::with(&database).mode(mode).role("reports", &["scram"], "required").run().await;
        let client = connect(&gate, "reports", &password_of("reports")).await;
        let refused = |error: tokio_postgres::Error| {
            let error = error.as_db_error().unwrap().clone();
            (error.code().code().to_owned(), error.message().to_owned())
        };
        let none = ("28000".to_owned(), "no tenant context".to_owned());
        assert_eq!(refused(client.batch_execute(WHOSE).await.unwrap_err()), none);
        assert_eq!(refused(client.query(WHOSE, &[]).await.unwrap_err()), none);
        // It may begin a transaction, in which it brings one.
        for n in [1, 2] {
            client.batch_execute("BEGIN").await.unwrap();
            client.batch_execute(&set_local(&gate, n)).await.unwrap();
            assert_eq!(value(&client, WHOSE).await.unwrap().unwrap(), format!("org-{n}"));
            client.batch_execute("COMMIT").await.unwrap();
            assert_eq!(refused(client.batch_execute(WHOSE).await.unwrap_err()), none);
        }
        client.batch_execute("BEGIN").await.unwrap();
        assert_eq!(refused(client.batch_execute(WHOSE).await.unwrap_err()), none);
        client.batch_execute("ROLLBACK").await.unwrap();
        client.batch_execute(&set(&gate, 3)).await.unwrap();
        assert_eq!(value(&client, WHOSE).await.unwrap().unwrap(), "org-3");
        client.batch_execute("RESET pgtenant.token").await.unwrap();
        assert_eq!(refused(client.batch_execute(WHOSE).await.unwrap_err()), none);
        let all = client.prepare("SELECT set_config($1, $2, $3)").await.unwrap();
        assert_eq!(refused(client.query(&all, &[&"app.x", &"y", &false]).await.unwrap_err()), none);
        client.query(&all, &[&"pgtenant.token", &gate.token(org(2)).sign(), &false]).await.unwrap();
        assert_eq!(value(&client, WHOSE).await.unwrap().unwrap(), "org-2");
    }
}

#[tokio::test]
async fn an_expired_token_is_refreshed_without_a_new_connection() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).set("jwt", "leeway", "\"0s\"").run().await;
    let mut client = Raw::connect(&gate).await;
    client.sign_in("app", "app", &gate.token(org(1)).expires_in(2).sign()).await;
    assert_eq!(sees(&mut client).await, "org-1");
    tokio::time::sleep(Duration::from_millis(3200)).await;
    let answer = client.query(WHOSE).await;
    assert_eq!(answer.error.unwrap(), ("28000".to_owned(), "token expired".to_owned()));
    done(&mut client, &set(&gate, 1), "SET", b'I').await;
    assert_eq!(sees(&mut client).await, "org-1");
}

#[tokio::test]
async fn a_session_keeps_its_server_and_what_is_on_it() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).mode("session").run().await;
    let mut client = raw(&gate, 1).await;
    done(&mut client, "CREATE TEMP TABLE kept (x int)", "CREATE TABLE", b'I').await;
    let pid = client.query("SELECT pg_backend_pid()").await.rows;
    done(&mut client, &set(&gate, 2), "SET", b'I').await;
    assert_eq!(sees(&mut client).await, "org-2");
    done(&mut client, "BEGIN", "BEGIN", b'T').await;
    done(&mut client, &set(&gate, 3), "SET", b'T').await;
    assert_eq!(sees(&mut client).await, "org-3");
    done(&mut client, "COMMIT", "COMMIT", b'I').await;
    assert_eq!(sees(&mut client).await, "org-3");
    done(&mut client, "RESET pgtenant.token", "RESET", b'I').await;
    assert_eq!(sees(&mut client).await, "org-1");
    assert_eq!(client.query("SELECT count(*) FROM kept").await.error, None);
    assert_eq!(client.query("SELECT pg_backend_pid()").await.rows, pid);
}

#[tokio::test]
async fn roles_without_tenants_have_nothing_to_switch() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).role("plain", &["scram"], "none").run().await;
    let client = try_connect(&gate, "plain", &password_of("plain")).await.unwrap();
    let refused = client.batch_execute(&set(&gate, 1)).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "0A000");
    client.batch_execute("SELECT 1").await.unwrap();
}
