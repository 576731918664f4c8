//! Connections by the thousand, half of them rubbish: the good ones are all served, and nothing is left of any.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_postgres::NoTls;

use super::ground::{Ground, token};
use super::report::{Report, seconds};
use super::session::Session;
use super::{seed, size};
use crate::harness::client::{config, message, startup};
use crate::harness::gate::Gate;
use crate::harness::{Dice, eventually};

const ORGANIZATIONS: u32 = 10;

/// After each of them everyone is gone.
const WAVES: u64 = 5;

/// Above what is a tenth more than before.
const SLACK_KIB: u64 = 6 * 1024;

/// What is counted of a storm.
#[derive(Default)]
struct Count {
    next: AtomicU64,
    served: AtomicU64,
    unserved: AtomicU64,
    rubbish: AtomicU64,
}

#[tokio::test]
async fn a_storm_of_connections_leaves_nothing() {
    let connections = size("CHAOS_CONNECTIONS", 600, 50_000);
    let at_once = size("CHAOS_AT_ONCE", 100, 2_000);
    let seed = seed("storm");
    let ground = Ground::lay(ORGANIZATIONS, 8).await;
    let setup = ground.gate(ground.database.port).set("databases.app.pool", "wait_timeout", "\"30s\"");
    let gate = Arc::new(setup.run().await);
    let tokens: Arc<Vec<_>> = Arc::new((1..=ORGANIZATIONS).map(|n| token(&gate, n)).collect());
    let mut report = Report::new("Connections", &ground, seed);
    let fresh = gate.resident_kib();
    let begun = Instant::now();
    let ([mut served, mut unserved, mut rubbish], mut after) = ([0; 3], Vec::new());
    for wave in 0..WAVES {
        let count = storm(&gate, &tokens, connections / WAVES, at_once, seed ^ wave).await;
        served += load(&count.served);
        unserved += load(&count.unserved);
        rubbish += load(&count.rubbish);
        after.push(settled(&gate).await);
    }
    let took = begun.elapsed();
    // What the first waves need at once is no leak: a leak goes on.
    let [(descriptors, first), (_, memory), (descriptors_after, memory_after)] =
        [after[0], after[2], after[after.len() - 1]];
    report.row("connections", "50000", &(served + rubbish).to_string(), served + rubbish >= 50_000);
    report.row("good ones that were not served", "0", &unserved.to_string(), unserved == 0);
    let keeps_descriptors = descriptors_after <= descriptors + 8;
    report.row(
        "descriptors of the proxy after the first wave, and in the end",
        "no more",
        &format!("{descriptors}, then {descriptors_after}"),
        keeps_descriptors,
    );
    let keeps_memory = memory_after <= memory + memory / 10 + SLACK_KIB;
    report.row(
        "resident memory after the third of five waves, and in the end: a leak",
        "no more than a tenth and 6 MiB above",
        &format!("{memory} KiB, then {memory_after} KiB"),
        keeps_memory,
    );
    report.row(
        "resident memory after the first wave, and in the end: what is kept",
        "no more than a tenth and 6 MiB above",
        &format!("{first} KiB, then {memory_after} KiB"),
        memory_after <= first + first / 10 + SLACK_KIB,
    );
    report.text(&format!(
        "{at_once} at a time, {} in all: {served} that asked a query, and {rubbish} that sent random bytes, half a start-up, TLS, \
         a length that lies, a wrong token or password. The proxy had {fresh} KiB before, and after each fifth: {}.",
        seconds(took),
        after.iter().map(|(_, memory)| format!("{memory} KiB")).collect::<Vec<_>>().join(", ")
    ));
    report.write();
    assert_eq!(unserved, 0, "CHAOS_SEED={seed}");
    assert!(keeps_descriptors, "{descriptors} descriptors, then {descriptors_after}");
    assert!(keeps_memory, "{memory} KiB, then {memory_after} KiB");
}

fn load(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

async fn storm(
    gate: &Arc<Gate>,
    tokens: &Arc<Vec<String>>,
    connections: u64,
    at_once: u64,
    seed: u64,
) -> Arc<Count> {
    let count = Arc::new(Count::default());
    let mut crowd = Vec::new();
    for n in 0..at_once {
        let (count, gate, tokens) = (count.clone(), gate.clone(), tokens.clone());
        let mut dice = Dice(seed ^ (n + 1).wrapping_mul(0x5851_f42d_4c95_7f2d));
        crowd.push(tokio::spawn(async move {
            loop {
                let turn = count.next.fetch_add(1, Ordering::Relaxed);
                if turn >= connections {
                    return;
                }
                if turn % 2 == 0 {
                    let organization = dice.roll(u64::from(ORGANIZATIONS)) as usize;
                    match good(&gate, &tokens[organization], turn).await {
                        Ok(()) => count.served.fetch_add(1, Ordering::Relaxed),
                        Err(why) => {
                            println!("not served: {why}");
                            count.unserved.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                } else {
                    rubbish(&gate, &mut dice, turn).await;
                    count.rubbish.fetch_add(1, Ordering::Relaxed);
                }
            }
        }));
    }
    for one in crowd {
        one.await.unwrap();
    }
    count
}

/// From many addresses of loopback, so that there are ports enough.
async fn dial(gate: &Gate, turn: u64) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if cfg!(target_os = "linux") {
        socket.bind(([127, 0, 0, 2 + (turn % 200) as u8], 0).into())?;
    }
    let stream = socket.connect(([127, 0, 0, 1], gate.port()).into()).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn good(gate: &Gate, token: &str, turn: u64) -> Result<(), String> {
    let stream = dial(gate, turn).await.map_err(|error| error.to_string())?;
    let mut session = Session::over(stream, token).await.map_err(|lost| format!("signing in: {lost:?}"))?;
    let sql = format!("SELECT 'm{turn}', count(*), count(DISTINCT organization_id) FROM accounts");
    let answer = session.query(&sql).await.map_err(|lost| format!("asking: {lost:?}"))?;
    let expected = [format!("m{turn}"), super::ledger::ACCOUNTS.to_string(), "1".to_owned()].map(Some);
    if answer.rows != [expected] {
        return Err(format!("{answer:?}"));
    }
    session.leave().await;
    Ok(())
}

/// Whatever comes of it, but it does not stay.
async fn rubbish(gate: &Gate, dice: &mut Dice, turn: u64) {
    let Ok(mut stream) = dial(gate, turn).await else { return };
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    let start = startup(196_608, b"user\0app\0database\0app\0\0");
    let random: Vec<u8> = (0..1 + dice.roll(200)).map(|_| dice.roll(256) as u8).collect();
    let bytes = match dice.roll(8) {
        0 => random,
        1 => start[..1 + dice.roll(start.len() as u64 - 1) as usize].to_vec(),
        2 => [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &random].concat(),
        3 => startup(80_877_103, b""), // SSLRequest, and nothing after it
        4 => [&0x7fff_fff0_u32.to_be_bytes()[..], &random].concat(),
        5 => [&start[..], &message(b'p', b"eyJhbGciOiJFUzI1NiJ9.e30.AAAA\0")].concat(),
        6 => [&start[..], &message(b'Q', b"SELECT 1\0")].concat(),
        _ => {
            let wrong = config(gate, "plain", "wrong").connect_raw(stream, NoTls).await;
            assert!(wrong.is_err(), "a wrong password is refused");
            return;
        }
    };
    let _ = stream.write_all(&bytes).await;
    // Some hear the answer, some are gone before it comes.
    let patience = Duration::from_millis(dice.roll(100));
    let mut answer = [0; 512];
    let _ = tokio::time::timeout(patience, async {
        while stream.read(&mut answer).await.is_ok_and(|length| length > 0) {}
    })
    .await;
}

/// Descriptors and memory (KiB) once all clients are gone.
async fn settled(gate: &Gate) -> (usize, u64) {
    eventually("all clients to be gone", async || {
        let (_, metrics) = gate.http("/metrics").await;
        let clients = metrics.lines().filter(|line| line.starts_with("pgtenant_clients{"));
        clients.into_iter().all(|line| line.ends_with(" 0")).then_some(())
    })
    .await;
    let (mut last, mut same) = (usize::MAX, 0);
    while same < 5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        // 0 where the system does not tell.
        let now = std::fs::read_dir(format!("/proc/{}/fd", gate.pid())).map_or(0, Iterator::count);
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    (last, gate.resident_kib())
}
