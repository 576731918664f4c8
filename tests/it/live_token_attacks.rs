//! What a review of switched tokens found, each as the attack that showed it.

use std::time::Duration;

use crate::harness::client::{Raw, bind, close, execute, message, parse, raw, sync};
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres::{self, password_of};
use crate::live_tokens::{SWITCH, WHOSE, bind_values, done, sees, set, set_local, whose};

fn q(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

fn x(sql: &str) -> Vec<u8> {
    [parse("", sql), bind(""), execute()].concat()
}

fn to(gate: &Gate, n: u32, is_local: &str) -> Vec<u8> {
    [parse("", SWITCH), bind_values("", &[&gate.token(org(n)).sign(), is_local]), execute()].concat()
}

fn bad() -> Vec<u8> {
    [parse("", SWITCH), bind_values("", &["eyJ.e30.x", "f"]), execute()].concat()
}

const ALL_THREE: &str = "SELECT set_config($1, $2, $3)";

#[tokio::test]
async fn a_refused_token_behind_a_good_one_leaves_its_server_to_nobody() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).role("reports", &["scram"], "optional").run().await;
    let (mut client, mut other) = (Raw::connect(&gate).await, Raw::connect(&gate).await);
    for raw in [&mut client, &mut other] {
        raw.sign_in("reports", "app", &password_of("reports")).await;
    }
    assert_eq!(sees(&mut other).await, "42501");
    client.send(&[x("SELECT 1"), to(&gate, 2, "f"), sync(), x("SELECT 1"), bad(), sync()].concat()).await;
    assert_eq!(client.answer().await.error, None);
    assert_eq!(client.answer().await.error.unwrap().0, "28000");
    assert_eq!(sees(&mut other).await, "42501", "another client, which never had a token");
}

#[tokio::test]
async fn a_reset_takes_the_context_from_a_kept_server() {
    for tenancy in ["optional", "required"] {
        let database = postgres::shared().database().await;
        let gate = Gate::with(&database).mode("session").role("reports", &["scram"], tenancy).run().await;
        let mut client = Raw::connect(&gate).await;
        client.sign_in("reports", "app", &password_of("reports")).await;
        done(&mut client, "BEGIN", "BEGIN", b'T').await;
        done(&mut client, &set(&gate, 2), "SET", b'T').await;
        done(&mut client, "COMMIT", "COMMIT", b'I').await;
        done(&mut client, "RESET pgtenant.token", "RESET", b'I').await;
        if tenancy == "required" {
            done(&mut client, "BEGIN", "BEGIN", b'T').await;
            done(&mut client, &set_local(&gate, 3), "SET", b'T').await;
            done(&mut client, "COMMIT AND CHAIN", "COMMIT", b'T').await;
        }
        let seen = sees(&mut client).await;
        assert!(["42501", "28000"].contains(&seen.as_str()), "{tenancy}: {seen}");
    }
}

/// A switch that PostgreSQL did not take lifts nothing.
#[tokio::test]
async fn a_token_in_a_failed_transaction_lifts_no_bar() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).role("reports", &["scram"], "required").run().await;
    let mut client = Raw::connect(&gate).await;
    client.sign_in("reports", "app", &password_of("reports")).await;
    done(&mut client, "BEGIN", "BEGIN", b'T').await;
    assert_eq!(sees(&mut client).await, "28000");
    assert_eq!(whose(&client.query(&set_local(&gate, 2)).await), "25P02");
    assert_eq!(whose(&client.query("ROLLBACK AND CHAIN").await), "28000");
    done(&mut client, "ROLLBACK", "ROLLBACK", b'I').await;
}

#[tokio::test]
async fn a_message_in_two_pieces_is_one() {
    let database = postgres::shared().database().await;
    let mut wrong = Vec::new();
    for mode in ["transaction", "session"] {
        let gate = Gate::with(&database).mode(mode).run().await;
        let token = gate.token(org(2)).sign();
        let constant = format!("SELECT set_config('pgtenant.token', '{token}', true)");
        let by_parameter = [parse("t", SWITCH), bind_values("t", &[&token, "t"]), execute()];
        // Which of the messages is cut, and behind how many of its bytes.
        for (what, switch, cut, at) in [
            ("Parse", by_parameter.clone(), 0, 17),
            ("Bind", by_parameter.clone(), 1, 6),
            ("Execute", by_parameter.clone(), 2, 6),
            ("Parse of a constant", [parse("t", &constant), bind("t"), execute()], 0, 17),
        ] {
            let mut client = raw(&gate, 1).await;
            done(&mut client, "BEGIN", "BEGIN", b'T').await;
            let head = [x("SELECT 'before'"), switch[..cut].concat()].concat();
            let bytes = [x("SELECT 'before'"), switch.concat(), x(WHOSE), sync()].concat();
            let (first, second) = bytes.split_at(head.len() + at);
            client.send(first).await;
            tokio::time::sleep(Duration::from_millis(150)).await;
            client.send(second).await;
            let answer = client.answer().await;
            let seen = answer.rows.last().and_then(|row| row[0].clone());
            if seen.as_deref() != Some("org-2") {
                wrong.push(format!("{mode}, {what}: {:?} {:?} {seen:?}", answer.error, answer.tags));
            }
            let held = client.query("SELECT current_setting('pgtenant.token', true) LIKE 'ey%'").await;
            if held.rows.first().is_some_and(|row| row[0].as_deref() == Some("t")) {
                wrong.push(format!("{mode}, {what}: the server has the token"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_generic_set_config_switches_or_fails() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let token = gate.token(org(2)).sign();
    let mut wrong = Vec::new();
    let many = (0..100).map(|n| [parse(&format!("s{n}"), ALL_THREE), sync()].concat()).collect::<Vec<_>>();
    let own = [parse("s", ALL_THREE), sync()].concat();
    for (what, name, steps) in [
        ("the hundredth", "s99", many),
        (
            "a DEALLOCATE ALL that fails",
            "s",
            vec![own.clone(), q("BEGIN"), q("SELECT 1/0"), q("DEALLOCATE ALL"), q("ROLLBACK")],
        ),
        ("a Close that is skipped", "s", vec![own.clone(), [x("SELECT 1/0"), close("s"), sync()].concat()]),
        ("a Parse of a name that is taken", "s", vec![own, [parse("s", "SELECT 1"), sync()].concat()]),
    ] {
        let mut client = raw(&gate, 1).await;
        for step in steps {
            client.send(&step).await;
            client.answer().await;
        }
        client.send(&[bind_values(name, &["pgtenant.token", &token, "f"]), execute(), sync()].concat()).await;
        let answer = client.answer().await;
        let seen = sees(&mut client).await;
        if answer.error.is_none() && seen != "org-2" {
            wrong.push(format!("{what}: told {:?}, then {seen}", answer.tags));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_switch_ends_with_its_batch_where_no_server_came_free() {
    for is_local in ["t", "f"] {
        let database = postgres::shared().database().await;
        let gate = Gate::with(&database)
            .pool_size(1)
            .set("databases.app.pool", "wait_timeout", "\"1s\"")
            .run()
            .await;
        let (mut holder, mut client) = (raw(&gate, 3).await, raw(&gate, 1).await);
        done(&mut holder, "BEGIN", "BEGIN", b'T').await;
        client.send(&[to(&gate, 2, is_local), x(WHOSE), sync()].concat()).await;
        assert_eq!(client.answer().await.error.unwrap().0, "53300");
        done(&mut holder, "COMMIT", "COMMIT", b'I').await;
        assert_eq!(sees(&mut client).await, "org-1", "{is_local}");
        assert_eq!(sees(&mut client).await, "org-1", "{is_local}");
    }
}

#[tokio::test]
async fn a_refused_token_ends_portals_that_were_bound_before() {
    for mode in ["transaction", "session"] {
        let database = postgres::shared().database().await;
        let gate = Gate::with(&database).mode(mode).run().await;
        let mut client = raw(&gate, 1).await;
        done(&mut client, "BEGIN", "BEGIN", b'T').await;
        let back = [parse("", "ROLLBACK TO s"), message(b'B', b"back\0\0\0\0\0\0\0\0")].concat();
        let write = parse("", "INSERT INTO items (body) VALUES ('behind') RETURNING body");
        client.send(&[back, write, message(b'B', b"write\0\0\0\0\0\0\0\0"), sync()].concat()).await;
        assert_eq!(client.answer().await.error, None);
        done(&mut client, "SAVEPOINT s", "SAVEPOINT", b'T').await;
        let refused = client.query("SET pgtenant.token = 'eyJ.e30.x'").await;
        assert_eq!((whose(&refused).as_str(), refused.status), ("28000", b'E'));
        for portal in ["back", "write"] {
            client.send(&[message(b'E', format!("{portal}\0\0\0\0\0").as_bytes()), sync()].concat()).await;
            client.answer().await;
        }
        client.query("COMMIT").await;
        let count = "SELECT count(*) FROM items WHERE body = 'behind'";
        let written: i64 = database.admin().await.query_one(count, &[]).await.unwrap().get(0);
        assert_eq!(written, 0, "{mode}: written and committed behind a refused token");
    }
}

#[tokio::test]
async fn a_switch_at_the_head_of_a_batch_ends_as_any_setting_does() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let make = "CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; INSERT INTO items (body) VALUES ('behind'); END $$";
    database.admin().await.batch_execute(make).await.unwrap();
    let begin = || [x("BEGIN"), sync()].concat();
    let inserted = "SELECT 'org-' || right(organization_id::text, 1) FROM items WHERE body = 'behind'";
    let mut wrong = Vec::new();
    for (what, is_local, rest, ends) in [
        ("BEGIN | ROLLBACK", "f", [begin(), q("ROLLBACK")].concat(), 2),
        ("BEGIN | 1/0 | ROLLBACK", "f", [begin(), q("SELECT 1/0"), q("ROLLBACK")].concat(), 3),
        ("BEGIN | COMMIT AND CHAIN", "t", [begin(), q("COMMIT AND CHAIN")].concat(), 2),
        ("BEGIN | COMMIT | ask", "t", [begin(), q("COMMIT"), q(WHOSE)].concat(), 3),
        ("COMMIT, ask", "t", [x("COMMIT"), x(WHOSE), sync()].concat(), 1),
        ("ROLLBACK, ask", "f", [x("ROLLBACK"), x(WHOSE), sync()].concat(), 1),
        ("ROLLBACK", "f", [x("ROLLBACK"), sync()].concat(), 1),
        ("CALL commits()", "t", [x("CALL commits()"), x(inserted), sync()].concat(), 1),
    ] {
        let mut client = raw(&gate, 1).await;
        client.send(&[to(&gate, 2, is_local), rest].concat()).await;
        let mut last = None;
        for _ in 0..ends {
            last = client.answer().await.rows.pop().and_then(|row| row[0].clone());
        }
        let seen = match last {
            Some(seen) if seen.starts_with("org-") => seen,
            _ => sees(&mut client).await,
        };
        if seen != "org-1" {
            wrong.push(format!("{what} ({is_local}): {seen}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_simple_switch_ends_the_batch_before_it() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let mut client = raw(&gate, 1).await;
    client.send(&[to(&gate, 2, "t"), q(&set(&gate, 3))].concat()).await;
    assert_eq!(client.answer().await.error, None);
    for _ in 0..2 {
        assert_eq!(sees(&mut client).await, "org-3", "the last token");
    }
}

#[tokio::test]
async fn who_reads_nothing_costs_no_memory() {
    for begin in [false, true] {
        let database = postgres::shared().database().await;
        let gate = Gate::with(&database).run().await;
        let mut client = raw(&gate, 1).await;
        if begin {
            done(&mut client, "BEGIN", "BEGIN", b'T').await;
        }
        let text = format!("SELECT set_config('pgtenant.token', $1, true) AS {}", "a".repeat(30_000));
        client.send(&[parse("t", &text), sync()].concat()).await;
        assert_eq!(client.answer().await.error, None);
        let before = gate.resident_kib();
        let head = if begin { x("SELECT pg_sleep(1)") } else { Vec::new() };
        client.send(&[head, message(b'D', b"St\0").repeat(20_000)].concat()).await; // 160 KB
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = gate.resident_kib();
        assert!(after < before + 10_000, "{before} KiB before, {after} KiB after ({begin})");
    }
}

#[tokio::test]
async fn switches_in_one_transaction_are_bounded() {
    for mode in ["transaction", "session"] {
        let database = postgres::shared().database().await;
        let gate = Gate::with(&database).mode(mode).run().await;
        let mut client = raw(&gate, 1).await;
        done(&mut client, "BEGIN", "BEGIN", b'T').await;
        done(&mut client, &set(&gate, 2), "SET", b'T').await;
        done(&mut client, "SAVEPOINT s", "SAVEPOINT", b'T').await;
        for _ in 0..63 {
            done(&mut client, &set(&gate, 3), "SET", b'T').await;
        }
        assert_eq!(client.query(&set(&gate, 3)).await.error.unwrap().0, "54000");
        done(&mut client, "ROLLBACK TO s", "ROLLBACK", b'T').await;
        assert_eq!(sees(&mut client).await, "org-2");
        done(&mut client, "COMMIT", "COMMIT", b'I').await;
        let after = sees(&mut client).await;
        done(&mut client, "RESET pgtenant.token", "RESET", b'I').await;
        assert_eq!((after.as_str(), sees(&mut client).await.as_str()), ("org-2", "org-1"), "{mode}");
    }
}

/// Whoever is told SET must have been heard, and nobody else may read the token.
#[tokio::test]
async fn what_is_told_to_have_switched_has() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).mode("session").run().await;
    let admin = database.admin().await;
    let token = gate.token(org(2)).sign();
    let mut wrong = Vec::new();
    for sql in [
        "SET U&\"pgtenant\".token = 'TOKEN'",
        "SELECT set_config(('pgtenant.token'), 'TOKEN', false)",
        "SELECT set_config(CAST('pgtenant.token' AS text), 'TOKEN', false)",
        "SELECT set_config(text 'pgtenant.token', 'TOKEN', false)",
        "SELECT set_config(E'pgtenant\\x2etoken', 'TOKEN', false)",
        "SELECT U&\"set_config\"('pgtenant.token', 'TOKEN', false)",
        "DO $$ BEGIN PERFORM set_config('pgtenant.token', 'TOKEN', false); END $$",
        "PREPARE p AS SELECT set_config($1, $2, $3); EXECUTE p('pgtenant.token', 'TOKEN', false)",
    ] {
        let mut client = raw(&gate, 1).await;
        let answer = client.query(&sql.replace("TOKEN", &token)).await;
        let look = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%eyJ%' AND pid <> pg_backend_pid() \
                    AND datname = current_database()";
        let count: i64 = admin.query_one(look, &[]).await.unwrap().get(0);
        let seen = sees(&mut client).await;
        if answer.error.is_none() && seen != "org-2" || count > 0 {
            wrong.push(format!("{}: {:?} {seen}, seen by others: {count}", sql.trim(), answer.tags));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A switch within a transaction is no business of a cursor that is half read.
#[tokio::test]
async fn a_portal_that_is_half_read_goes_on_behind_a_switch() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let mut client = raw(&gate, 1).await;
    let some = message(b'E', b"\0\0\0\0\x01");
    let token = gate.token(org(2)).sign();
    let mut switch = b"p\0t\0\0\0\0\x02".to_vec();
    for value in [token.as_str(), "f"] {
        switch.extend((value.len() as u32).to_be_bytes());
        switch.extend(value.as_bytes());
    }
    switch.extend([0, 0]);
    let batch = [
        parse("", "SELECT generate_series(1, 3)"),
        bind(""),
        some.clone(),
        parse("t", SWITCH),
        message(b'B', &switch),
        message(b'E', b"p\0\0\0\0\0"),
        some.clone(),
        some,
        sync(),
    ];
    client.send(&batch.concat()).await;
    let answer = client.answer().await;
    let seen: Vec<_> =
        answer.rows.iter().map(|row| row[0].clone().unwrap()).filter(|seen| *seen != token).collect();
    assert_eq!((answer.error, seen), (None, ["1", "2", "3"].map(str::to_owned).to_vec()));
    assert_eq!(sees(&mut client).await, "org-2");
}
