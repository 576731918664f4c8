//! The protocol itself, byte by byte: a stranger's bytes never panic a task, nor allocate by their word, nor reach a server.

use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use crate::harness::client::{Raw, bind, connect, execute, message, parse, startup, sync, value};
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres;

/// A gate of one server, and a client that must still be served when all is done.
async fn gate() -> (Gate, postgres::Database) {
    let database = postgres::shared().database().await;
    (Gate::with(&database).pool_size(1).run().await, database)
}

async fn signed_in(gate: &Gate) -> Raw {
    let mut raw = Raw::connect(gate).await;
    raw.sign_in("app", "app", &gate.token(org(1)).sign()).await;
    raw
}

async fn still_serves(gate: &Gate) {
    let client = connect(gate, "app", &gate.token(org(2)).sign()).await;
    assert_eq!(value(&client, "SELECT DISTINCT body FROM items").await.unwrap().as_deref(), Some("org-2"));
    assert!(!gate.log().contains("panicked"), "{}", gate.log());
}

#[tokio::test]
async fn first_packets_that_lie_are_refused() {
    let (gate, _database) = gate().await;
    for bytes in [
        vec![0, 0, 0, 0, 0, 3, 0, 0],
        vec![0xff; 8],
        vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
        vec![0, 0, 0, 7, 0, 3, 0, 0],
        startup(0x0002_0000, b"user\0app\0\0"),
        startup(0x0003_0000, b"user\0app"),
        startup(0x0003_0000, b"user\0app\0\0trailing"),
        startup(0x0003_0000, b"\0"),
        startup(80_877_103, b"x"),
        [startup(80_877_103, b""), startup(0x0003_0000, b"user\0app\0\0")].concat(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        [22, 3, 1, 0, 5, 1, 0, 0, 1, 0].to_vec(),
    ] {
        let mut raw = Raw::connect(&gate).await;
        raw.send(&bytes).await;
        assert_eq!(raw.expect_error().await.0, "08P01", "{bytes:?}");
        raw.expect_close().await;
    }
    still_serves(&gate).await;
}

#[tokio::test]
async fn half_a_first_packet_waits_no_longer_than_sign_in_timeout() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).set("listen", "sign_in_timeout", "\"1s\"").run().await;
    let mut raw = Raw::connect(&gate).await;
    raw.send(&[0, 0, 0, 20, 0, 3]).await;
    raw.expect_close().await;
    let mut raw = Raw::connect(&gate).await;
    raw.startup("app", "app", &[]).await;
    raw.send(&[b'p', 0, 0, 1]).await;
    raw.expect_close().await;
    still_serves(&gate).await;
}

#[tokio::test]
async fn messages_before_sign_in_that_are_no_password_are_refused() {
    let (gate, _database) = gate().await;
    for (bytes, code) in [
        (message(b'Q', b"SELECT 1\0"), "08P01"),
        (message(b'P', b""), "08P01"),
        (message(b'X', b""), "08P01"),
        (vec![b'p', 0, 0, 0, 3], "08P01"),
        (vec![b'p', 0xff, 0xff, 0xff, 0xff], "08P01"),
        (message(b'p', b""), "08P01"),
        (message(b'p', b"no terminator"), "08P01"),
        (message(b'p', b"two\0texts\0"), "08P01"),
        (vec![b'p', 0x3f, 0, 0, 0], "54000"),
    ] {
        let mut raw = Raw::connect(&gate).await;
        raw.startup("app", "app", &[]).await;
        raw.send(&bytes).await;
        assert_eq!(raw.expect_error().await.0, code, "{bytes:?}");
        raw.expect_close().await;
    }
    for first in [
        &b""[..],
        b"SCRAM-SHA-256\0",
        b"SCRAM-SHA-256\0\x7f\xff\xff\xffn,,n=,r=x",
        b"SCRAM-SHA-256\0\xff\xff\xff\xff",
        b"X\0\0\0\0\0",
    ] {
        let mut raw = Raw::connect(&gate).await;
        raw.startup("plain", "app", &[]).await;
        raw.send(&message(b'p', first)).await;
        assert!(["08P01", "28P01"].contains(&raw.expect_error().await.0.as_str()), "{first:?}");
        raw.expect_close().await;
    }
    still_serves(&gate).await;
}

/// Each of these ends the client, and nothing of it reaches the server: the canary in the same packet is not written.
#[tokio::test]
async fn messages_that_no_server_may_see_end_the_client() {
    let (gate, database) = gate().await;
    let function_call = [&2078_u32.to_be_bytes()[..], &[0, 0, 0, 0, 0, 0]].concat();
    for (bytes, code) in [
        (message(b'F', &function_call), "0A000"),
        (message(b'r', b""), "08P01"),
        (message(b'W', b""), "08P01"),
        (message(0, b""), "08P01"),
        (message(b'R', b"\0\0\0\0"), "08P01"),
        (message(b'p', b"password\0"), "08P01"),
        (vec![b'Q', 0, 0, 0, 3], "08P01"),
        (vec![b'Q', 0, 0, 0, 0], "08P01"),
        (vec![b'Q', 0xff, 0xff, 0xff, 0xff], "08P01"),
        (vec![b'S', 0x40, 0, 0, 0], "08P01"),
        (message(b'S', b"x"), "08P01"),
        (message(b'P', b""), "08P01"),
        (message(b'B', b""), "08P01"),
        (message(b'B', b"portal"), "08P01"),
        (message(b'B', &[b'x'; 5000]), "08P01"),
        (message(b'D', b""), "08P01"),
        (message(b'D', b"S"), "08P01"),
        (message(b'C', b"Sname\0more"), "08P01"),
        (message(b'D', &[b'S'; 3000]), "08P01"),
        ([&b"P"[..], &0x00ff_ffff_u32.to_be_bytes(), b"name\0"].concat(), "54000"),
    ] {
        let mut raw = signed_in(&gate).await;
        raw.send(&[&bytes[..], &message(b'Q', b"UPDATE notes SET body = 'reached'\0")].concat()).await;
        assert_eq!(raw.expect_error().await.0, code, "{bytes:?}");
        raw.expect_close().await;
    }
    let notes =
        database.admin().await.query_one("SELECT count(*) FROM notes WHERE body = 'reached'", &[]).await;
    assert_eq!(notes.unwrap().get::<_, i64>(0), 0);
    still_serves(&gate).await;
}

#[tokio::test]
async fn half_a_message_holds_no_server() {
    let (gate, _database) = gate().await;
    let mut half = signed_in(&gate).await;
    let query = message(b'Q', b"SELECT 1 AS one\0");
    half.send(&query[..13]).await;
    let mut header = signed_in(&gate).await;
    header.send(b"Q\0\0").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    // The pool has one server, and it is free.
    still_serves(&gate).await;
    half.send(&query[13..]).await;
    assert_eq!(half.answer().await.rows, [[Some("1".to_owned())]]);
}

#[tokio::test]
async fn pipelined_queries_are_answered_in_order() {
    let (gate, _database) = gate().await;
    let mut raw = signed_in(&gate).await;
    let many: Vec<u8> = (0..2000).flat_map(|n| message(b'Q', format!("SELECT {n}\0").as_bytes())).collect();
    raw.send(&many).await;
    for n in 0..2000 {
        assert_eq!(raw.answer().await.rows, [[Some(n.to_string())]]);
    }
    // Byte by byte.
    for byte in message(b'Q', b"SELECT 'slow'\0") {
        raw.send(&[byte]).await;
    }
    assert_eq!(raw.answer().await.rows, [[Some("slow".to_owned())]]);
    // Terminate behind a query: the query runs.
    raw.send(&[message(b'Q', b"UPDATE items SET counter = 99\0"), message(b'X', b"")].concat()).await;
    assert_eq!(raw.answer().await.tags, [format!("UPDATE {}", postgres::ROWS_PER_ORGANIZATION)]);
    raw.expect_close().await;
    still_serves(&gate).await;
}

#[tokio::test]
async fn what_stands_behind_a_long_statement_is_sent() {
    let (gate, _database) = gate().await;
    let mut raw = signed_in(&gate).await;
    for length in [60_000, 70_000, 100_000, 1_000_000] {
        let text = format!("SELECT length('{}')", "x".repeat(length));
        let name = format!("s{length}");
        raw.send(&[parse(&name, &text), bind(&name), execute(), sync()].concat()).await;
        let answer = tokio::time::timeout(Duration::from_secs(10), raw.answer()).await;
        assert_eq!(answer.expect("an answer").rows, [[Some(length.to_string())]]);
    }
}

#[tokio::test]
async fn who_leaves_in_a_copy_or_a_batch_leaves_no_server_behind() {
    let (gate, database) = gate().await;
    let batch = |sql| [parse("", sql), bind(""), execute()].concat();
    for unfinished in [
        message(b'Q', b"COPY notes FROM STDIN\0"),
        [message(b'Q', b"COPY notes FROM STDIN\0"), message(b'd', b"1\tx\n")].concat(),
        [batch("COPY notes FROM STDIN"), sync()].concat(),
        [message(b'Q', b"BEGIN\0"), batch("COPY notes FROM STDIN")].concat(),
        batch("INSERT INTO notes VALUES (1, 'x')"),
        parse("named", "SELECT 1"),
    ] {
        let mut raw = signed_in(&gate).await;
        raw.send(&[unfinished, message(b'X', b"")].concat()).await;
        raw.expect_close().await;
        // The pool has one server: whoever kept it would keep it from us.
        still_serves(&gate).await;
    }
    let left = database.admin().await.query("SELECT FROM notes WHERE body = 'x'", &[]).await.unwrap();
    assert_eq!(left.len(), 0, "what was not finished is rolled back, as on PostgreSQL itself");
}

#[tokio::test]
async fn a_newer_protocol_is_negotiated_down() {
    let (gate, _database) = gate().await;
    let mut raw = Raw::connect(&gate).await;
    raw.send(&startup(0x0003_0002, b"user\0app\0database\0app\0_pq_.unheard_of\x001\0\0")).await;
    let (kind, body) = raw.read_message().await.unwrap();
    assert_eq!(kind, b'v');
    assert_eq!(&body[..8], &[0, 3, 0, 0, 0, 0, 0, 1]);
    assert_eq!(&body[8..], b"_pq_.unheard_of\0");
    raw.authenticate(&gate.token(org(1)).sign()).await;
    assert_eq!(raw.query("SELECT 1").await.rows.len(), 1);
}

#[tokio::test]
async fn encryption_is_declined_where_none_is_configured() {
    let (gate, _database) = gate().await;
    let mut raw = Raw::connect(&gate).await;
    for code in [80_877_104, 80_877_103] {
        raw.send(&startup(code, b"")).await;
        assert_eq!(raw.stream().read_u8().await.unwrap(), b'N');
    }
    raw.sign_in("app", "app", &gate.token(org(1)).sign()).await;
    assert_eq!(raw.query("SELECT 1").await.rows.len(), 1);
}

#[tokio::test]
async fn notices_and_errors_pass_and_an_error_leaves_the_client_connected() {
    let (gate, _database) = gate().await;
    let mut raw = signed_in(&gate).await;
    raw.send(&message(b'Q', b"DO $$ BEGIN RAISE NOTICE 'heard'; END $$\0")).await;
    let mut heard = false;
    loop {
        match raw.read_message().await.unwrap() {
            (b'N', body) => heard |= crate::harness::client::error_fields(&body).1 == "heard",
            (b'Z', _) => break,
            _ => {}
        }
    }
    assert!(heard);
    let answer = raw.query("SELECT * FROM nowhere").await;
    assert_eq!((answer.error.unwrap().0.as_str(), answer.status), ("42P01", b'I'));
    assert_eq!(raw.query("SELECT 1").await.rows.len(), 1);
}
