//! A client of one organization, alone on its server or in turns with another organization's: random sequences of messages
//! are answered alike, byte for byte. `PGTENANT_TURNS` and `PGTENANT_SEED` say how many, and which.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::client::{Raw, bind, close, execute, message, parse, raw, sync};
use crate::harness::gate::Gate;
use crate::harness::postgres;
use crate::harness::{Dice, org};
use crate::switching::{HIDDEN, metric, one, plain};

const TEXTS: [&str; 30] = [
    "SELECT DISTINCT body FROM items",
    "SELECT DISTINCT body FROM items",
    "SELECT pgtenant.organization_id()",
    "SELECT pgtenant.organization_id(), $1::text",
    "UPDATE items SET counter = 0 WHERE id < 3 RETURNING body",
    "SELECT generate_series(1, 5), pgtenant.organization_id()",
    "SELECT 1",
    "SELECT 1/0",
    "SELECT 1/(0 * random())::int",
    "SELECT nowhere",
    "SELECT repeat('x', 40000), pgtenant.organization_id()",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "VALUES (1), (2)",
    "",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "SHOW work_mem",
    "SET LOCAL work_mem = '5MB'",
    "SELECT set_config('work_mem', '7MB', true)",
    "SELECT set_config('work_mem', '7MB', false)",
    "SELECT 'x'; SELECT 1/0; SELECT 'y'",
    "SELECT 1; COMMIT; SELECT 2",
    "INSERT INTO notes VALUES (1, 'there is one')",
    "DEALLOCATE a",
    "DEALLOCATE ALL",
    "COPY (VALUES (1), (2)) TO STDOUT",
    "INSERT INTO items (body) VALUES ('org-2') RETURNING body, organization_id",
];

fn bind_one(statement: &str) -> Vec<u8> {
    message(b'B', format!("\0{statement}\0\0\0\0\x01\0\0\0\x01v\0\0").as_bytes())
}

fn execute_some(rows: u8) -> Vec<u8> {
    message(b'E', &[0, 0, 0, 0, rows])
}

fn part(dice: &mut Dice) -> Vec<u8> {
    // Mostly plain ones.
    let count = if dice.roll(3) > 0 { 13 } else { TEXTS.len() as u64 };
    let text = TEXTS[dice.roll(count) as usize];
    let single = !text.contains(';');
    let name = ["", "a", "b", "c"][dice.roll(4) as usize];
    let end = if dice.roll(4) == 0 { Vec::new() } else { sync() };
    match dice.roll(20) {
        0 => message(b'Q', format!("{text}\0").as_bytes()),
        1..=4 if single && !text.starts_with("DEALLOCATE") => [parse(name, text), end].concat(),
        5..=8 if single => [parse("", text), bind(""), execute(), end].concat(),
        9 if single => [parse("", text), bind_one(""), execute(), end].concat(),
        10..=12 => [bind(name), execute(), end].concat(),
        13 => [bind(name), message(b'D', b"P\0"), execute_some(2), execute(), end].concat(),
        14 => [bind_one(name), execute(), end].concat(),
        15 => close(name),
        16 => [message(b'D', format!("S{name}\0").as_bytes()), end].concat(),
        17 => message(b'H', b""),
        _ => sync(),
    }
}

async fn answers(raw: &mut Raw, bytes: &[u8], cuts: &[usize]) -> Vec<(char, String)> {
    let tail = message(b'D', b"Sthe-end\0");
    let all = [bytes, &sync(), &message(b'Q', b"ROLLBACK\0"), &tail, &sync()].concat();
    let mut from = 0;
    for cut in cuts.iter().map(|cut| cut % (all.len() + 1)).collect::<BTreeSet<_>>() {
        raw.send(&all[from..cut]).await;
        from = cut;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    raw.send(&all[from..]).await;
    let mut answers = Vec::new();
    let mut at_end = false;
    loop {
        let Some((kind, body)) = raw.read_message().await else {
            answers.push(('!', "closed".to_owned()));
            return answers;
        };
        let mut body = String::from_utf8_lossy(&body).into_owned();
        if kind == b'E' {
            body = body.split('\0').filter(|f| !f.starts_with(['F', 'L', 'R'])).collect::<Vec<_>>().join(" ");
            if let Some(at) = body.find("pgtenant_") {
                let end = body[at + 9..].find('"').map_or(body.len(), |end| at + 9 + end);
                body.replace_range(at..end, "pgtenant_N");
            }
        }
        at_end |= kind == b'E' && body.contains("the-end");
        answers.push((char::from(kind), body));
        if at_end && kind == b'Z' {
            return answers;
        }
    }
}

/// What the one before leaves: nothing visible, so that the server changes hands at once.
async fn leave(raw: &mut Raw, dice: &mut Dice, hidden: bool) {
    let text =
        ["SELECT DISTINCT body FROM items", "SELECT 1", "SELECT pgtenant.organization_id()", "SELECT 1/0"]
            [dice.roll(4) as usize];
    let name = format!("n{}", dice.roll(1 << 40));
    raw.send(&[parse(&name, text), bind(&name), execute(), sync(), close(&name), sync()].concat()).await;
    let seen = one(&raw.answer().await);
    let own = seen == "org-1" || seen == "1" || seen == org(1) || seen.starts_with("ERROR 22012");
    assert!(own, "{text}: {seen}");
    raw.answer().await;
    if hidden {
        let what = [
            "PREPARE theirs AS SELECT 1",
            "LISTEN theirs",
            "SET work_mem = ''3MB''",
            "SET enable_seqscan = off",
            "CREATE TEMP TABLE IF NOT EXISTS items (body int)",
            "SET default_transaction_isolation = ''serializable''",
            "SET search_path = pg_temp",
            "SET statement_timeout = 1",
            "SELECT setseed(0.1)",
            "DEALLOCATE pgtenant_bind",
            "DEALLOCATE ALL",
        ][dice.roll(11) as usize];
        plain(raw, &format!("SELECT hidden('{what}')")).await;
    }
}

#[tokio::test]
async fn alone_or_in_turns_the_answers_are_the_same() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (count, start) = (number("PGTENANT_TURNS", 150), number("PGTENANT_SEED", 1));
    for hidden in [false, true] {
        let database = postgres::shared().database().await;
        database.admin().await.batch_execute(HIDDEN).await.unwrap();
        let mut dice = Dice(start + u64::from(hidden));
        let alone = Gate::with(&database).pool_size(1).run().await;
        let mut gate = Gate::with(&database).pool_size(1).run().await;
        let (mut solo, mut shared, mut other) =
            (raw(&alone, 2).await, raw(&gate, 2).await, raw(&gate, 1).await);
        let mut switched = 0.0;
        for n in 0..count {
            let parts: Vec<Vec<u8>> = (0..1 + dice.roll(8)).map(|_| part(&mut dice)).collect();
            let cuts: Vec<usize> = (0..dice.roll(3)).map(|_| dice.roll(1 << 20) as usize).collect();
            let bytes = parts.concat();
            leave(&mut other, &mut dice, hidden).await;
            let expected = answers(&mut solo, &bytes, &cuts).await;
            let seen = answers(&mut shared, &bytes, &cuts).await;
            let shown: Vec<_> = parts.iter().map(|part| String::from_utf8_lossy(part)).collect();
            assert_eq!(seen, expected, "hidden {hidden}, sequence {n}: {shown:#?}\n{}", gate.log());
            let closed = seen.last().is_some_and(|(kind, _)| *kind == '!');
            if hidden && n % 4 == 0 {
                switched += metric(&gate, "pgtenant_binds_total{database=\"app\",kind=\"switched\"}").await;
                gate = Gate::with(&database).pool_size(1).run().await;
                other = raw(&gate, 1).await;
            }
            if closed || dice.roll(10) == 0 || hidden && n % 4 == 0 {
                (solo, shared) = (raw(&alone, 2).await, raw(&gate, 2).await);
            }
        }
        switched += metric(&gate, "pgtenant_binds_total{database=\"app\",kind=\"switched\"}").await;
        assert!(switched > count as f64 / 10.0, "{switched}");
    }
}
