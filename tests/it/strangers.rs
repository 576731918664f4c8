//! Random bytes at every stage of a connection: nothing panics, nothing grows, nobody else notices.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::client::{Raw, bind, close, connect, execute, message, parse, startup, sync, value};
use crate::harness::gate::Gate;
use crate::harness::postgres;
use crate::harness::{Dice, eventually, org};

/// Connections of each kind.
const ROUNDS: u64 = 150;

fn noise(dice: &mut Dice, most: u64) -> Vec<u8> {
    (0..dice.roll(most)).map(|_| dice.roll(256) as u8).collect()
}

/// A frame of a known type whose length may lie and whose body may be anything.
fn frame(dice: &mut Dice) -> Vec<u8> {
    let kinds = b"QPBDECSHdcfFXpRZ\0\xff";
    let kind = kinds[dice.roll(kinds.len() as u64) as usize];
    let body = noise(dice, 60);
    let mut frame = message(kind, &body);
    match dice.roll(6) {
        0 => frame[1] = dice.roll(256) as u8,
        1 => frame[4] = frame[4].wrapping_add(dice.roll(9) as u8),
        2 => frame[3] = dice.roll(256) as u8,
        3 => frame.truncate(1 + dice.roll(frame.len() as u64) as usize),
        _ => {}
    }
    frame
}

/// What a working client sends, in an order that no client would.
fn sensible(dice: &mut Dice) -> Vec<u8> {
    let name = ["", "a", "b", "pgtenant_bind", "pgtenant_1"][dice.roll(5) as usize];
    let sql = [
        "SELECT 1",
        "SELECT 1/0",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "COPY notes FROM STDIN",
        "COPY (SELECT 1) TO STDOUT",
        "",
        "DISCARD ALL",
        "SELECT body FROM items",
    ][dice.roll(10) as usize];
    match dice.roll(11) {
        0 | 1 => message(b'Q', format!("{sql}\0").as_bytes()),
        2 => parse(name, sql),
        3 => bind(name),
        4 => execute(),
        5 => close(name),
        6 => message(b'D', format!("S{name}\0").as_bytes()),
        7 => message(b'H', b""),
        8 => message(b'd', b"1\tx\n"),
        9 => message(
            if dice.roll(2) == 0 { b'c' } else { b'f' },
            if dice.roll(2) == 0 { b"" } else { b"why\0" },
        ),
        _ => sync(),
    }
}

/// Sends, reads for a moment, and goes away.
async fn send_and_leave(raw: &mut Raw, bytes: &[u8]) {
    let stream = raw.stream();
    // It may be closed in the middle.
    let _ = stream.write_all(bytes).await;
    let mut answers = vec![0; 100_000];
    let _ = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut answers)).await;
}

#[tokio::test]
async fn nothing_that_a_stranger_sends_disturbs_the_others() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(2).run().await;
    let token = gate.token(org(1)).sign();
    let other = connect(&gate, "app", &gate.token(org(2)).sign()).await;
    let mut dice = Dice(2);
    for round in 0..ROUNDS {
        let mut raw = Raw::connect(&gate).await;
        let mut bytes = noise(&mut dice, 200);
        send_and_leave(&mut raw, &bytes).await;
        // The same behind a header that is right.
        let code = [0x0003_0000, 0x0003_0002, 80_877_102, 80_877_103, 80_877_104, 0x0002_0000]
            [dice.roll(6) as usize];
        bytes = startup(code, &noise(&mut dice, 100));
        let mut raw = Raw::connect(&gate).await;
        send_and_leave(&mut raw, &bytes).await;
        // Before the password, and instead of it.
        let mut raw = Raw::connect(&gate).await;
        raw.startup(if dice.roll(2) == 0 { "app" } else { "plain" }, "app", &[]).await;
        bytes = (0..dice.roll(4)).flat_map(|_| frame(&mut dice)).collect();
        send_and_leave(&mut raw, &bytes).await;
        // Signed in: known frames in any order, with something broken now and then.
        let mut raw = Raw::connect(&gate).await;
        raw.sign_in("app", "app", &token).await;
        bytes.clear();
        for _ in 0..dice.roll(30) {
            let part = if dice.roll(12) == 0 { frame(&mut dice) } else { sensible(&mut dice) };
            bytes.extend(part);
        }
        send_and_leave(&mut raw, &bytes).await;
        drop(raw);
        let seen = value(&other, "SELECT DISTINCT body FROM items").await;
        assert_eq!(seen.unwrap().as_deref(), Some("org-2"), "round {round}: {bytes:?}");
    }
    assert!(!gate.log().contains("panicked"), "{}", gate.log());
    let resident = gate.resident_kib();
    assert!(resident < 150 * 1024, "{resident} KiB");
    // No client that is gone holds a server.
    eventually("all servers to be idle", async || {
        let (_, metrics) = gate.http("/metrics").await;
        let idle = "pgtenant_servers{database=\"app\",state=\"active\"} 0\n";
        metrics.contains(idle).then_some(())
    })
    .await;
}
