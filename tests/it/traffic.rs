//! Large traffic in bounded memory: values, COPY both ways, long results, and a client that stops reading.
//!
//! `make traffic` runs it at full size: values of 1,000 MB and COPYs of 10,000 MB (`TRAFFIC_MB`; a value has at most 1,000).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::client::{Raw, bind, execute, message, parse, sync};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, Database};

const MEGABYTE: u64 = 1_000_000;

/// What the proxy may hold at any moment, whatever passes through it.
const MOST_KIB: u64 = 48 * 1024;

fn copied() -> u64 {
    MEGABYTE * std::env::var("TRAFFIC_MB").ok().and_then(|number| number.parse().ok()).unwrap_or(50)
}

fn value() -> u64 {
    copied().min(1_000 * MEGABYTE)
}

/// Watches the proxy's memory until it is dropped.
struct Watch {
    most: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    fn over(gate: &Arc<Gate>) -> Self {
        let (most, gate) = (Arc::new(AtomicU64::new(0)), gate.clone());
        let seen = most.clone();
        let task = tokio::spawn(async move {
            loop {
                seen.fetch_max(gate.resident_kib(), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { most, task }
    }

    fn assert_bounded(self) {
        self.task.abort();
        let most = self.most.load(Ordering::Relaxed);
        assert!(most > 0 && most < MOST_KIB, "{most} KiB at most");
    }
}

async fn plain(gate: &Gate) -> Raw {
    let mut raw = Raw::connect(gate).await;
    raw.sign_in("plain", "app", "plain-password").await;
    raw
}

async fn gate(database: &Database) -> Arc<Gate> {
    Arc::new(Gate::with(database).pool_size(2).run().await)
}

/// Reads up to ReadyForQuery without keeping anything; tells how many bytes of rows and copy data came.
async fn drain(raw: &mut Raw) -> u64 {
    let mut buffer = vec![0; 256 * 1024];
    let mut bytes = 0;
    loop {
        let mut header = [0; 5];
        raw.stream().read_exact(&mut header).await.unwrap();
        let length = u64::from(u32::from_be_bytes(header[1..].try_into().unwrap())) - 4;
        let mut left = length;
        let mut text = Vec::new();
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap());
            let count = raw.stream().read(&mut buffer[..most]).await.unwrap();
            assert!(count > 0, "closed in the middle");
            if header[0] == b'E' {
                text.extend_from_slice(&buffer[..count]);
            }
            left -= count as u64;
        }
        match header[0] {
            b'D' | b'd' => bytes += length,
            b'E' => panic!("{}", String::from_utf8_lossy(&text)),
            b'Z' => return bytes,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_large_value_passes_both_ways() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let mut client = plain(&gate).await;
    let watch = Watch::over(&gate);
    let size = value();
    client.send(&message(b'Q', format!("SELECT repeat('x', {size})\0").as_bytes())).await;
    assert!(drain(&mut client).await > size);
    // As a parameter: PostgreSQL takes messages of less than 1 GB.
    let size = size.min(900 * MEGABYTE);
    client.send(&parse("", "SELECT length($1)::text")).await;
    let mut head = vec![b'B'];
    let body = b"\0\0\0\0\0\x01";
    head.extend(u32::try_from(4 + body.len() as u64 + 4 + size + 2).unwrap().to_be_bytes());
    head.extend(body);
    head.extend(u32::try_from(size).unwrap().to_be_bytes());
    client.stream().write_all(&head).await.unwrap();
    let chunk = vec![b'y'; 100_000];
    for _ in 0..size / chunk.len() as u64 {
        client.stream().write_all(&chunk).await.unwrap();
    }
    client.stream().write_all(b"\0\0").await.unwrap();
    client.send(&[execute(), sync()].concat()).await;
    assert_eq!(client.answer().await.rows[0][0], Some(size.to_string()));
    watch.assert_bounded();
}

#[tokio::test]
async fn copy_streams_both_ways() {
    let database = postgres::shared().database().await;
    let admin = database.admin().await;
    let sink = "CREATE TABLE sink (v text); GRANT INSERT ON sink TO plain; \
                CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
                CREATE TRIGGER swallow BEFORE INSERT ON sink FOR EACH ROW EXECUTE FUNCTION swallow()";
    admin.batch_execute(sink).await.unwrap();
    let gate = gate(&database).await;
    let mut client = plain(&gate).await;
    let watch = Watch::over(&gate);
    let size = copied();
    let rows = size / 100_000;
    let out = format!("COPY (SELECT repeat('z', 99999) FROM generate_series(1, {rows})) TO STDOUT\0");
    client.send(&message(b'Q', out.as_bytes())).await;
    assert_eq!(drain(&mut client).await, rows * 100_000);
    client.send(&message(b'Q', b"COPY sink FROM STDIN\0")).await;
    let mut line = vec![b'w'; 99_999];
    line.push(b'\n');
    let data = message(b'd', &line);
    for _ in 0..rows {
        client.stream().write_all(&data).await.unwrap();
    }
    client.send(&message(b'c', b"")).await;
    drain(&mut client).await;
    watch.assert_bounded();
}

#[tokio::test]
async fn a_client_that_stops_reading_costs_nobody_memory_or_turns() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let (mut slow, mut other) = (plain(&gate).await, plain(&gate).await);
    let watch = Watch::over(&gate);
    let sql = "SELECT n, repeat('r', 1000) FROM generate_series(1, 100000) AS n\0";
    slow.send(&message(b'Q', sql.as_bytes())).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(other.query("SELECT 'turn'").await.rows[0][0].as_deref(), Some("turn"));
    }
    assert!(drain(&mut slow).await > 100_000 * 1000);
    // One that never reads again, and leaves.
    slow.send(&message(b'Q', sql.as_bytes())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(slow);
    let mut next = plain(&gate).await;
    for raw in [&mut other, &mut next] {
        raw.send(&[parse("", "BEGIN"), bind(""), execute(), sync()].concat()).await;
        assert_eq!(raw.answer().await.error, None);
    }
    watch.assert_bounded();
}
