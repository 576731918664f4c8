//! Versions of the protocol: what is agreed with which client, as PostgreSQL 18 agrees, and the cancel keys of each.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::harness::client::{Raw, message, startup};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, Shared, password_of};
use crate::harness::{eventually, org};

const CANCEL_REQUEST: u32 = 80_877_102;

/// What was asked for: the version word, and further parameters.
const ASKED: [(u32, &[u8]); 8] = [
    (0x0003_0000, b""),
    (0x0003_0000, b"_pq_.unheard_of\x001\0"),
    (0x0003_0001, b""),
    (0x0003_0002, b""),
    (0x0003_0002, b"_pq_.unheard_of\x001\0_pq_.b\0\0"),
    (0x0003_0003, b""),
    (0x0003_270f, b""), // what libpq asks for to keep servers from ossifying
    (0x0003_ffff, b"_pq_.unheard_of\x001\0"),
];

/// The NegotiateProtocolVersion that a client gets, if it gets one, and the length of its cancel secret.
async fn agreed(port: u16, database: &str, (version, options): (u32, &[u8])) -> (Option<Vec<u8>>, usize) {
    let mut raw = Raw::connect_to(port).await;
    let names = format!("user\0plain\0database\0{database}\0");
    raw.send(&startup(version, &[names.as_bytes(), options, b"\0"].concat())).await;
    let negotiated = raw.authenticate(&password_of("plain")).await;
    assert_eq!(raw.query("SELECT 1").await.rows.len(), 1);
    (negotiated, raw.key.len() - 4)
}

#[tokio::test]
async fn versions_are_agreed_on_as_by_postgresql_18() {
    let newest = postgres::every_version().into_iter().max_by_key(|shared| shared.server.version_major());
    let newest: &Shared = newest.unwrap();
    let database = newest.database().await;
    let gate = Gate::with(&database).run().await;
    for (asked, expected) in ASKED.into_iter().zip([
        (None, 4),
        (Some(&b"\0\x03\0\0\0\0\0\x01_pq_.unheard_of\0"[..]), 4),
        (None, 4),
        (None, 32),
        (Some(b"\0\x03\0\x02\0\0\0\x02_pq_.unheard_of\0_pq_.b\0"), 32),
        (Some(b"\0\x03\0\x02\0\0\0\0"), 32),
        (Some(b"\0\x03\0\x02\0\0\0\0"), 32),
        (Some(b"\0\x03\0\x02\0\0\0\x01_pq_.unheard_of\0"), 32),
    ]) {
        let ours = agreed(gate.port(), "app", asked).await;
        assert_eq!((ours.0.as_deref(), ours.1), expected, "{asked:x?}");
        // PostgreSQL itself, where it is new enough to be asked.
        if newest.server.version_major() >= 18 {
            assert_eq!(agreed(database.port, &database.name, asked).await, ours, "{asked:x?}");
        }
    }
}

/// Four bytes or 32: the whole key cancels, and nothing else does.
#[tokio::test]
async fn keys_of_each_length_cancel_and_nothing_like_them_does() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    for version in [0x0003_0000, 0x0003_0002] {
        let mut raw = Raw::connect(&gate).await;
        raw.send(&startup(version, b"user\0app\0database\0app\0\0")).await;
        raw.authenticate(&gate.token(org(1)).sign()).await;
        let key = raw.key.clone();
        raw.send(&message(b'Q', b"SELECT pg_sleep(1.5)\0")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut flipped = key.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let mut other_process = key.clone();
        other_process[3] ^= 1;
        let longest = [&key[..], &vec![0; 256 - (key.len() - 4)]].concat();
        for wrong in [
            flipped,
            other_process,
            key[..key.len() - 1].to_vec(),
            key[..8.min(key.len() - 1)].to_vec(),
            [&key[..], b"\0"].concat(),
            longest.clone(),
            [&longest[..], b"\0"].concat(),
            key[..4].to_vec(),
            vec![0; 36],
        ] {
            let mut stranger = Raw::connect(&gate).await;
            stranger.send(&startup(CANCEL_REQUEST, &wrong)).await;
            stranger.expect_close().await;
        }
        let undisturbed = raw.answer().await;
        assert_eq!((undisturbed.error, undisturbed.rows.len()), (None, 1), "{version:x}");
        raw.send(&message(b'Q', b"SELECT pg_sleep(30)\0")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut canceller = Raw::connect(&gate).await;
        canceller.send(&startup(CANCEL_REQUEST, &key)).await;
        canceller.expect_close().await;
        assert_eq!(raw.answer().await.error.unwrap().0, "57014", "{version:x}");
    }
}

/// Nothing about a key follows from another one, the place of the process id included.
#[tokio::test]
async fn keys_do_not_count_up() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let mut keys = Vec::new();
    for _ in 0..12 {
        let mut raw = Raw::connect(&gate).await;
        raw.sign_in("app", "app", &gate.token(org(1)).sign()).await;
        let pid = i32::from_be_bytes(raw.key[..4].try_into().unwrap());
        assert!(pid > 0, "drivers read it as a signed number");
        keys.push(pid);
    }
    let near = keys.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 1000).count();
    assert!(near <= 1, "{keys:?}");
}

/// A server that gives keys of another length than was asked for is believed, and cancelled with them.
#[tokio::test]
async fn a_long_key_from_a_server_is_used_whole() {
    let database = postgres::shared().database().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, mut cancelled) = tokio::sync::mpsc::unbounded_channel();
    let secret: Vec<u8> = (0..=255).collect();
    let key = [&7_u32.to_be_bytes()[..], &secret].concat();
    tokio::spawn(lengthen_keys(listener, database.port, key.clone(), told));
    let gate = Gate::with(&database).set("servers.main", "port", &port.to_string()).run().await;
    let mut raw = Raw::connect(&gate).await;
    raw.sign_in("plain", "app", &password_of("plain")).await;
    raw.send(&message(b'Q', b"SELECT pg_sleep(2)\0")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let own = raw.key.clone();
    let mut canceller = Raw::connect(&gate).await;
    canceller.send(&startup(CANCEL_REQUEST, &own)).await;
    let packet = eventually("a cancel request", async || cancelled.try_recv().ok()).await;
    assert_eq!(packet, startup(CANCEL_REQUEST, &key));
}

/// Passes everything to PostgreSQL, but BackendKeyData, which becomes one with `key`, and cancel requests, which are told.
async fn lengthen_keys(
    listener: tokio::net::TcpListener,
    port: u16,
    key: Vec<u8>,
    told: tokio::sync::mpsc::UnboundedSender<Vec<u8>>,
) {
    use tokio::io::AsyncReadExt as _;
    while let Ok((mut client, _)) = listener.accept().await {
        let (key, told) = (key.clone(), told.clone());
        tokio::spawn(async move {
            let length = client.read_u32().await.unwrap();
            let mut packet = [&length.to_be_bytes()[..], &vec![0; length as usize - 4]].concat();
            client.read_exact(&mut packet[4..]).await.unwrap();
            if packet[4..8] == CANCEL_REQUEST.to_be_bytes() {
                told.send(packet).unwrap();
                return;
            }
            let mut server = Raw::connect_to(port).await;
            server.send(&packet).await;
            let (mut from_client, mut to_client) = tokio::io::split(client);
            let (mut from_server, mut to_server) = tokio::io::split(server.into_stream());
            let upward = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            loop {
                let mut header = [0; 5];
                if from_server.read_exact(&mut header).await.is_err() {
                    break;
                }
                let length = u32::from_be_bytes(header[1..].try_into().unwrap());
                let mut body = vec![0; length as usize - 4];
                from_server.read_exact(&mut body).await.unwrap();
                let body = if header[0] == b'K' { key.clone() } else { body };
                if to_client.write_all(&message(header[0], &body)).await.is_err() {
                    break;
                }
            }
            upward.abort();
        });
    }
}
