//! TLS from the first byte on, as PostgreSQL 17's clients may begin it; ALPN tells that PostgreSQL is meant.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use pgtenant::cli::demo::throwaway::Options;

use crate::harness::authority::{Authority, direct, handshake, secured_as, with_tls};
use crate::harness::client::{Raw, message, raw, startup, try_connect};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, Database};
use crate::harness::{Dice, eventually, org};

const POSTGRESQL: &[&[u8]] = &[b"postgresql"];
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

async fn gate() -> (Authority, Database, Gate) {
    let (authority, database) = (Authority::new(), postgres::shared().database().await);
    let gate = with_tls(Gate::with(&database), &authority.issue(&["localhost"])).run().await;
    (authority, database, gate)
}

#[tokio::test]
async fn a_handshake_may_come_first() {
    let (authority, _database, gate) = gate().await;
    let mut raw = Raw::over(direct(&gate, authority.client(POSTGRESQL, None)).await.unwrap());
    raw.sign_in("app", "app", &gate.token(org(2)).sign()).await;
    assert_eq!(raw.query("SELECT DISTINCT body FROM items").await.rows, [[Some("org-2".to_owned())]]);
    // A cancel request comes the same way.
    raw.send(&message(b'Q', b"SELECT pg_sleep(30)\0")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut canceller = Raw::over(direct(&gate, authority.client(POSTGRESQL, None)).await.unwrap());
    canceller.send(&startup(CANCEL_REQUEST, &raw.key)).await;
    canceller.expect_close().await;
    assert_eq!(raw.answer().await.error.unwrap().0, "57014");
    // Among several protocols it is found.
    let several: &[&[u8]] = &[b"h2", b"postgresql"];
    let mut raw = Raw::over(direct(&gate, authority.client(several, None)).await.unwrap());
    raw.sign_in("app", "app", &gate.token(org(1)).sign()).await;
}

/// Who does not say that it means PostgreSQL is told nothing, and no byte of it is looked at.
#[tokio::test]
async fn without_alpn_nothing_is_said() {
    let (authority, _database, gate) = gate().await;
    let mut stream = direct(&gate, authority.client(&[], None)).await.unwrap();
    let _ = stream.write_all(&startup(0x0003_0000, b"user\0app\0\0")).await;
    let mut said = Vec::new();
    let _ =
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut said)).await.expect("closed");
    assert_eq!(said, b"");
    eventually("a line in the log", async || gate.log().contains("direct TLS without ALPN").then_some(()))
        .await;
    let other: &[&[u8]] = &[b"http/1.1"];
    let error = direct(&gate, authority.client(other, None)).await.unwrap_err();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    // After an SSLRequest PostgreSQL asks for no ALPN, but does not take another protocol's either.
    for (alpn, enters) in [(&[][..], true), (POSTGRESQL, true), (other, false)] {
        let mut tcp = tokio::net::TcpStream::connect(("127.0.0.1", gate.port())).await.unwrap();
        tcp.write_all(&startup(SSL_REQUEST, b"")).await.unwrap();
        assert_eq!(tcp.read_u8().await.unwrap(), b'S');
        match handshake(tcp, authority.client(alpn, None)).await {
            Ok(stream) => {
                assert!(enters, "{alpn:?}");
                Raw::over(stream).sign_in("app", "app", &gate.token(org(1)).sign()).await;
            }
            Err(error) => assert!(!enters, "{alpn:?}: {error}"),
        }
    }
}

#[tokio::test]
async fn what_is_encrypted_already_is_not_encrypted_again() {
    let (authority, _database, gate) = gate().await;
    let mut raw = Raw::over(direct(&gate, authority.client(POSTGRESQL, None)).await.unwrap());
    for request in [GSSENC_REQUEST, SSL_REQUEST] {
        raw.send(&startup(request, b"")).await;
        assert_eq!(raw.stream().read_u8().await.unwrap(), b'N');
    }
    raw.sign_in("app", "app", &gate.token(org(1)).sign()).await;
    // After a first word in clear there is no handshake without its being asked for.
    let mut tcp = tokio::net::TcpStream::connect(("127.0.0.1", gate.port())).await.unwrap();
    tcp.write_all(&startup(GSSENC_REQUEST, b"")).await.unwrap();
    assert_eq!(tcp.read_u8().await.unwrap(), b'N');
    assert!(handshake(tcp, authority.client(POSTGRESQL, None)).await.is_err());
}

#[tokio::test]
async fn half_a_handshake_ends_with_sign_in_timeout() {
    let authority = Authority::new();
    let database = postgres::shared().database().await;
    let gate = with_tls(Gate::with(&database), &authority.issue(&["localhost"]))
        .set("listen", "sign_in_timeout", "\"1s\"")
        .run()
        .await;
    for half in [&[0x16][..], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]] {
        let mut tcp = tokio::net::TcpStream::connect(("127.0.0.1", gate.port())).await.unwrap();
        tcp.write_all(half).await.unwrap();
        let mut said = Vec::new();
        let _ =
            tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut said)).await.expect("closed");
        assert_eq!(said, b"");
    }
    let mut raw = Raw::over(direct(&gate, authority.client(POSTGRESQL, None)).await.unwrap());
    raw.sign_in("app", "app", &gate.token(org(1)).sign()).await;
}

/// Records that are none, cut, or of another kind: whatever follows the first byte, nobody else notices.
#[tokio::test]
async fn noise_behind_the_first_byte_ends_its_sender_only() {
    let (authority, _database, gate) = gate().await;
    let mut dice = Dice(0x0d1c_e5ee_d001);
    for _ in 0..100 {
        let mut tcp = tokio::net::TcpStream::connect(("127.0.0.1", gate.port())).await.unwrap();
        let mut noise: Vec<u8> = (0..1 + dice.roll(600)).map(|_| dice.roll(256) as u8).collect();
        noise[0] = 0x16;
        if dice.roll(2) == 0 && noise.len() > 9 {
            // A record of the right kind and length, and a ClientHello that lies.
            let length = u16::try_from(noise.len() - 5).unwrap().to_be_bytes();
            noise[1..6].copy_from_slice(&[3, 1, length[0], length[1], 1]);
        }
        let _ = tcp.write_all(&noise).await;
        let _ = tcp.shutdown().await;
        let mut said = Vec::new();
        let _ =
            tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut said)).await.expect("closed");
        assert!(said.first().is_none_or(|kind| *kind == 21), "nothing but an alert: {said:?}");
    }
    assert!(!gate.log().contains("panicked"), "{}", gate.log());
    let mut raw = Raw::over(direct(&gate, authority.client(POSTGRESQL, None)).await.unwrap());
    raw.sign_in("app", "app", &gate.token(org(1)).sign()).await;
}

/// Without a certificate there is nothing to begin with, and no answer that a handshake could read.
#[tokio::test]
async fn without_a_certificate_there_is_no_handshake() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    assert!(direct(&gate, Authority::new().client(POSTGRESQL, None)).await.is_err());
    let mut raw = Raw::connect(&gate).await;
    raw.sign_in("app", "app", &gate.token(org(1)).sign()).await;
}

/// Towards PostgreSQL, which takes it from version 17 on.
#[tokio::test]
async fn servers_are_reached_without_asking_for_tls() {
    for bin in postgres::all_bins() {
        let authority = Authority::new();
        let options = Options { bin: Some(bin), ..Options::default() };
        let shared = secured_as(&options, &authority, &["localhost"]).await;
        let database = shared.database().await;
        let setup = Gate::with(&database)
            .set("servers.main", "host", "\"localhost\"")
            .set("servers.main", "tls", "\"verify-full\"")
            .set("servers.main", "tls_negotiation", "\"direct\"")
            .set("servers.main", "ca", "\"ca.crt\"")
            .file("ca.crt", authority.pem.as_str());
        let gate = setup.run().await;
        if shared.server.version_major() < 17 {
            let refused = try_connect(&gate, "app", &gate.token(org(1)).sign()).await.err().unwrap();
            let refused = refused.as_db_error().unwrap();
            assert!(refused.code().code().starts_with("08"), "{refused:?}");
            assert!(refused.message().contains("needs PostgreSQL 17"), "{refused:?}");
            continue;
        }
        let mut raw = raw(&gate, 1).await;
        let encrypted =
            "SELECT ssl::text || min(body) FROM pg_stat_ssl, items WHERE pid = pg_backend_pid() GROUP BY ssl";
        assert_eq!(raw.query(encrypted).await.rows, [[Some("trueorg-1".to_owned())]]);
        // A cancel request goes the same way.
        raw.send(&message(b'Q', b"SELECT pg_sleep(30)\0")).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut canceller = Raw::connect(&gate).await;
        canceller.send(&startup(CANCEL_REQUEST, &raw.key)).await;
        canceller.expect_close().await;
        assert_eq!(raw.answer().await.error.unwrap().0, "57014");
    }
}
