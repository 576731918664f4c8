//! The same messages to PostgreSQL and to pgtenant before it: the same answers, byte for byte.

use crate::harness::client::{Raw, bind, close, execute, message, parse, sync};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, Database, password_of};
use crate::harness::{Dice, org};

/// Sequences of messages for each mode and role; `SEQUENCES` in the environment asks for more.
const SEQUENCES: u64 = 300;

fn sequences() -> u64 {
    std::env::var("SEQUENCES").ok().and_then(|number| number.parse().ok()).unwrap_or(SEQUENCES)
}

const TEXTS: [&str; 30] = [
    "SELECT 1",
    "SELECT 1/0",
    "SELECT 1/(0 * random())::int",
    "SELECT nowhere",
    "",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "RELEASE s",
    "SHOW work_mem",
    "SET work_mem = '3MB'",
    "SET LOCAL work_mem = '5MB'",
    "RESET work_mem",
    "SELECT set_config('work_mem', '7MB', false)",
    "SET app.a = 'x'; SELECT current_setting('app.a')",
    "SELECT 'x'; SELECT 1/0; SELECT 'y'",
    "SELECT 1; COMMIT; SELECT 2",
    "COPY (VALUES (1), (2)) TO STDOUT",
    "INSERT INTO notes VALUES (1, 'there is one')",
    "DO $$ BEGIN RAISE NOTICE 'heard'; END $$",
    "DEALLOCATE a",
    "DEALLOCATE PREPARE \"b\"",
    "DEALLOCATE ALL",
    "BEGIN; DEALLOCATE ALL; COMMIT",
    "TABLE later",
    "VALUES (1, 'x'), (2, NULL);",
    "INSERT INTO later VALUES (1)",
    "WITH one AS (INSERT INTO later VALUES (1) RETURNING i) SELECT i FROM one",
];

/// One message, or a COPY with its data.
fn part(dice: &mut Dice) -> Vec<u8> {
    let text = TEXTS[dice.roll(TEXTS.len() as u64) as usize];
    let single = !text.contains(';') || text.starts_with("DO");
    let name = ["", "", "a", "b"][dice.roll(4) as usize];
    match dice.roll(14) {
        0..=2 => message(b'Q', format!("{text}\0").as_bytes()),
        // A DEALLOCATE of one name works at once or not at all.
        3 | 4 if single && !text.starts_with("DEALLOCATE") => parse(name, text),
        5 | 6 if single => [parse("", text), bind(""), execute(), close("")].concat(),
        7 => [bind(name), execute()].concat(),
        8 => close(name),
        // A statement that this server does not have yet cannot be described once the transaction has failed.
        9 => [sync(), message(b'Q', b"ROLLBACK\0"), message(b'D', format!("S{name}\0").as_bytes())].concat(),
        10 => message(b'H', b""),
        11 => {
            let end = if dice.roll(2) == 0 { message(b'c', b"") } else { message(b'f', b"no more\0") };
            let data = if dice.roll(2) == 0 { &b"1\tagain\n"[..] } else { b"rubbish\n" };
            [message(b'Q', b"COPY notes FROM STDIN\0"), message(b'd', data), end].concat()
        }
        _ => sync(),
    }
}

/// All answers up to that to a question for a statement that never was, but for what tells who answered.
async fn answers(raw: &mut Raw, bytes: &[u8]) -> Vec<(char, String)> {
    let end = message(b'D', b"Sthe-end\0");
    raw.send(&[bytes, &sync(), &end, &sync()].concat()).await;
    let mut answers = Vec::new();
    let mut at_end = false;
    loop {
        let Some((kind, body)) = raw.read_message().await else {
            answers.push(('!', "closed".to_owned()));
            return answers;
        };
        let mut body = String::from_utf8_lossy(&body).into_owned();
        if kind == b'E' {
            // File, line and routine of PostgreSQL's source: an error of the proxy's own has none.
            body = body
                .split('\0')
                .filter(|field| !field.starts_with(['F', 'L', 'R']))
                .collect::<Vec<_>>()
                .join(" ");
        }
        at_end |= kind == b'E' && body.contains("the-end");
        if kind != b'S' {
            answers.push((char::from(kind), body));
        }
        if at_end && kind == b'Z' {
            return answers;
        }
    }
}

async fn pair(gate: &Gate, database: &Database, role: &str) -> (Raw, Raw) {
    let mut direct = Raw::connect_to(database.port).await;
    direct.sign_in(role, &database.name, &password_of(role)).await;
    (sign_in(gate, role, 1).await, direct)
}

async fn sign_in(gate: &Gate, role: &str, n: u32) -> Raw {
    let mut raw = Raw::connect(gate).await;
    let token = gate.token(org(n)).sign();
    raw.sign_in(role, "app", if role == "app" { &token } else { "plain-password" }).await;
    raw
}

#[tokio::test]
async fn postgresql_and_pgtenant_answer_alike() {
    let database = postgres::shared().database().await;
    let make =
        "CREATE TABLE later (i int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO later VALUES (1);
        GRANT ALL ON later TO app, plain";
    database.admin().await.batch_execute(make).await.unwrap();
    for (mode, size, role, seed) in [
        ("transaction", 1, "plain", 1),
        ("transaction", 1, "app", 2),
        // Here somebody else has a server to itself.
        ("session", 2, "plain", 3),
        ("session", 2, "app", 4),
    ] {
        let gate = Gate::with(&database).pool_size(size).mode(mode).run().await;
        let mut other = sign_in(&gate, role, 2).await;
        let mut third = sign_in(&gate, role, 3).await;
        let mut dice = Dice(seed);
        let (mut through, mut direct) = pair(&gate, &database, role).await;
        for n in 0..sequences() {
            let parts: Vec<Vec<u8>> = (0..1 + dice.roll(12)).map(|_| part(&mut dice)).collect();
            let bytes = parts.concat();
            let expected = answers(&mut direct, &bytes).await;
            let seen = answers(&mut through, &bytes).await;
            let shown: Vec<_> = parts.iter().map(|part| String::from_utf8_lossy(part)).collect();
            assert_eq!(seen, expected, "{mode} mode, {role}, sequence {n}: {shown:#?}");
            // Now and then a new session; a transaction that is open ends with the old one.
            let is_open = seen.last().is_some_and(|(_, status)| status != "I");
            if is_open || dice.roll(10) == 0 {
                (through, direct) = pair(&gate, &database, role).await;
            }
            // Somebody else leaves something on the server, or nothing: then it changes hands in one batch.
            if dice.roll(2) == 0 {
                assert_eq!(other.query("SET work_mem = '99MB'").await.error, None);
            } else if mode == "transaction" {
                assert_eq!(third.query("SELECT 1").await.error, None);
            }
        }
    }
}
