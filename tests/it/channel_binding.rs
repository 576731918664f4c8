//! SCRAM-SHA-256-PLUS on both sides: a sign-in is good for the connection that it was made on, and for no other.

use std::sync::Arc;

use pgtenant::cli::demo::throwaway::Options;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::config::{ChannelBinding as Demand, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::harness::authority::{Authority, Pair, direct, give, handshake, secured, secured_as, with_tls};
use crate::harness::client::{Raw, config, connect, error_fields, message, psql, startup, value};
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres::{self, password_of};

const POSTGRESQL: &[&[u8]] = &[b"postgresql"];
const PLAIN: &str = "SCRAM-SHA-256";
const PLUS: &str = "SCRAM-SHA-256-PLUS";
const SSL_REQUEST: u32 = 80_877_103;

#[tokio::test]
async fn clients_bind_to_certificates_of_every_signature() {
    let database = postgres::shared().database().await;
    for (algorithm, offered) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, true),
        (&rcgen::PKCS_ECDSA_P384_SHA384, true),
        (&rcgen::PKCS_RSA_SHA256, true),
        (&rcgen::PKCS_RSA_SHA512, true),
        (&rcgen::PKCS_ED25519, false), // RFC 5929 knows no hash for it
    ] {
        let authority = Authority::signing_by(algorithm);
        let gate = with_tls(Gate::with(&database), &authority.issue(&["localhost", "127.0.0.1"])).run().await;
        let password = password_of("plain");
        for (demand, enters) in [("require", offered), ("prefer", true), ("disable", true)] {
            let words = format!("dbname=app sslmode=require channel_binding={demand}");
            let (status, out, err) =
                psql(&gate, "plain", &password, &["-d", &words, "-Atc", "SELECT 1"]).await;
            assert_eq!(status.success(), enters, "{algorithm:?} {demand}: {err}");
            assert!(!enters || out == "1\n");
        }
        let mut config = config(&gate, "plain", &password);
        config.ssl_mode(SslMode::Require).channel_binding(Demand::Require);
        let tls = MakeRustlsConnect::new(authority.client(&[], None));
        match config.connect(tls).await {
            Ok((client, connection)) => {
                assert!(offered, "{algorithm:?}");
                tokio::spawn(connection);
                assert_eq!(value(&client, "SELECT current_user").await.unwrap().as_deref(), Some("plain"));
            }
            Err(error) => assert!(!offered, "{algorithm:?}: {error:?}"),
        }
    }
}

/// What a client says in its first message: mechanism and data.
async fn first_word(gate: &Gate, authority: &Authority, mechanism: &str, data: &[u8]) -> Raw {
    let mut raw = Raw::over(direct(gate, authority.client(POSTGRESQL, None)).await.unwrap());
    raw.startup("plain", "app", &[]).await;
    let (kind, offer) = raw.read_message().await.unwrap();
    assert_eq!((kind, &offer[4..]), (b'R', &b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"[..]));
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    raw.send(&message(b'p', &[mechanism.as_bytes(), b"\0", &length, data].concat())).await;
    raw
}

/// The outcome of a whole exchange with the right password: none, or SQLSTATE and message.
async fn outcome(
    gate: &Gate,
    authority: &Authority,
    mechanism: &str,
    binding: ChannelBinding,
) -> Option<(String, String)> {
    let mut scram = ScramSha256::new(password_of("plain").as_bytes(), binding);
    let mut raw = first_word(gate, authority, mechanism, scram.message()).await;
    match raw.read_message().await.unwrap() {
        (b'R', body) => scram.update(&body[4..]).unwrap(),
        (_, body) => return Some(error_fields(&body)),
    }
    let last = message(b'p', scram.message());
    raw.send(&last).await;
    match raw.read_message().await.unwrap() {
        (b'R', body) => {
            scram.finish(&body[4..]).unwrap();
            None
        }
        (_, body) => Some(error_fields(&body)),
    }
}

#[tokio::test]
async fn what_was_stripped_or_changed_on_the_way_is_noticed() {
    let authority = Authority::new();
    let pair = authority.issue(&["localhost"]);
    let database = postgres::shared().database().await;
    let gate = with_tls(Gate::with(&database), &pair).run().await;
    let certificate = CertificateDer::from_pem_slice(pair.0.as_bytes()).unwrap();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &certificate).as_ref().to_vec();
    let mut flipped = hash.clone();
    flipped[0] ^= 1;
    let bound = ChannelBinding::tls_server_end_point;
    for (mechanism, binding, expected) in [
        (PLUS, bound(hash.clone()), None),
        (PLAIN, ChannelBinding::unsupported(), None),
        // In between: another certificate's hash, or the offer of -PLUS taken out.
        (PLUS, bound(flipped), Some(("28000", "SCRAM channel binding check failed"))),
        (PLUS, bound(vec![]), Some(("28000", "SCRAM channel binding check failed"))),
        (PLAIN, ChannelBinding::unrequested(), Some(("28000", "SCRAM channel binding negotiation error"))),
        // The flag does not go with the mechanism.
        (PLAIN, bound(hash.clone()), Some(("08P01", "malformed SCRAM message"))),
        (PLUS, ChannelBinding::unsupported(), Some(("08P01", "malformed SCRAM message"))),
        (PLUS, ChannelBinding::unrequested(), Some(("08P01", "malformed SCRAM message"))),
    ] {
        let what = format!("{mechanism} {expected:?}");
        let told = outcome(&gate, &authority, mechanism, binding).await;
        assert_eq!(told.as_ref().map(|(code, text)| (code.as_str(), text.as_str())), expected, "{what}");
    }
    for (mechanism, data) in [
        ("SCRAM-SHA-1-PLUS", &b"n,,n=,r=abc"[..]),
        ("SCRAM-SHA-256-PLUS ", b"n,,n=,r=abc"),
        ("", b""),
        (PLUS, b"p=tls-unique,,n=,r=abc"),
        (PLUS, b"p=tls-server-end-point,a=root,n=,r=abc"),
        (PLUS, b""),
    ] {
        let mut raw = first_word(&gate, &authority, mechanism, data).await;
        assert_eq!(raw.expect_error().await.0, "08P01", "{mechanism} {data:?}");
        raw.expect_close().await;
    }
    // Without TLS nothing is offered, and a client that could says so: no downgrade.
    let clear = Gate::with(&database).run().await;
    let mut raw = Raw::connect(&clear).await;
    raw.startup("plain", "app", &[]).await;
    let (_, offer) = raw.read_message().await.unwrap();
    assert_eq!(&offer[4..], b"SCRAM-SHA-256\0\0");
    raw.send(&message(b'p', b"SCRAM-SHA-256-PLUS\0\0\0\0\x0bn,,n=,r=abc")).await;
    assert_eq!(raw.expect_error().await.0, "08P01");
}

/// Whoever sits between a client and the proxy gets in by no password that it hears.
#[tokio::test]
async fn nobody_in_between_signs_in_for_a_client() {
    let (authority, theirs) = (Authority::new(), Authority::new());
    let database = postgres::shared().database().await;
    let gate = with_tls(Gate::with(&database), &authority.issue(&["localhost"])).run().await;
    for (strips, says) in
        [(false, "SCRAM channel binding check failed"), (true, "SCRAM channel binding negotiation error")]
    {
        let port = in_between(gate.port(), theirs.issue(&["127.0.0.1"]), &authority, strips).await;
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(port).user("plain").dbname("app").password(password_of("plain"));
        config.ssl_mode(SslMode::Require).channel_binding(Demand::Prefer);
        // The client was made to believe in the certificate that it sees.
        let error =
            config.connect(MakeRustlsConnect::new(theirs.client(&[], None))).await.err().expect("refused");
        assert_eq!(error.as_db_error().map(tokio_postgres::error::DbError::message), Some(says), "{error:?}");
    }
}

/// Every version of PostgreSQL takes what the proxy binds to, whatever its certificate is signed by.
#[tokio::test]
async fn servers_of_every_version_are_entered() {
    let algorithms =
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_RSA_SHA512, &rcgen::PKCS_ECDSA_P384_SHA384];
    for (bin, algorithm) in postgres::all_bins().into_iter().zip(algorithms.into_iter().cycle()) {
        let authority = Authority::signing_by(algorithm);
        let options = Options { bin: Some(bin), ..Options::default() };
        let shared = secured_as(&options, &authority, &["localhost"]).await;
        let version = shared.server.version_major();
        let database = shared.database().await;
        let rules =
            "host all postgres 127.0.0.1/32 scram-sha-256\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
        give(&shared, "pg_hba.conf", rules);
        database.admin().await.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        let gate = Gate::with(&database)
            .set("servers.main", "tls", "\"verify-full\"")
            .set("servers.main", "host", "\"localhost\"")
            .set("servers.main", "ca", "\"ca.crt\"")
            .file("ca.crt", authority.pem.as_str())
            .run()
            .await;
        let client = connect(&gate, "app", &gate.token(org(3)).sign()).await;
        let found = value(&client, "SELECT DISTINCT body FROM items").await.unwrap();
        assert_eq!(found.as_deref(), Some("org-3"), "PostgreSQL {version}");
        let seen =
            value(&client, "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await.unwrap();
        assert_eq!(seen.as_deref(), Some("true"), "PostgreSQL {version}");
    }
}

/// The same between the proxy and PostgreSQL, where `require` verifies no certificate.
#[tokio::test]
async fn nobody_in_between_signs_in_for_the_proxy() {
    let (authority, theirs) = (Authority::new(), Authority::new());
    let shared = secured(&authority, &["localhost"]).await;
    let database = shared.database().await;
    let gate = async |port: u16| {
        Gate::with(&database)
            .set("servers.main", "tls", "\"require\"")
            .set("servers.main", "port", &port.to_string())
            .set("databases.app.pool", "wait_timeout", "\"1s\"")
            .run()
            .await
    };
    let straight = gate(database.port).await;
    let client = connect(&straight, "app", &straight.token(org(3)).sign()).await;
    assert_eq!(value(&client, "SELECT DISTINCT body FROM items").await.unwrap().as_deref(), Some("org-3"));
    for (strips, says) in
        [(false, "channel binding check failed"), (true, "channel binding negotiation error")]
    {
        let port = in_between(database.port, theirs.issue(&["127.0.0.1"]), &authority, strips).await;
        let gate = gate(port).await;
        let mut raw = Raw::connect(&gate).await;
        raw.startup("app", "app", &[]).await;
        raw.password(&gate.token(org(1)).sign()).await;
        let (code, text) = raw.expect_error().await;
        assert!(code.starts_with("08") && text.contains(says), "{code} {text}");
    }
}

/// Ends TLS with a certificate of its own and begins it anew towards `port`; it reads and passes everything, and takes
/// -PLUS out of the offer if it `strips`.
async fn in_between(port: u16, shows: Pair, believes: &Authority, strips: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(shows.0.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(shows.1.as_bytes()).unwrap(),
        )
        .unwrap();
    let (acceptor, onward) = (tokio_rustls::TlsAcceptor::from(Arc::new(config)), believes.client(&[], None));
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (acceptor, onward) = (acceptor.clone(), onward.clone());
            tokio::spawn(async move {
                near.read_exact(&mut [0; 8]).await?;
                near.write_all(b"S").await?;
                let mut near = acceptor.accept(near).await?;
                let mut far = TcpStream::connect(("127.0.0.1", port)).await?;
                far.write_all(&startup(SSL_REQUEST, b"")).await?;
                assert_eq!(far.read_u8().await?, b'S');
                let mut far = handshake(far, onward).await?;
                if strips {
                    let length = near.read_u32().await?;
                    let mut packet = vec![0; length as usize - 4];
                    near.read_exact(&mut packet).await?;
                    far.write_all(&[&length.to_be_bytes()[..], &packet].concat()).await?;
                    far.flush().await?;
                    assert_eq!(far.read_u8().await?, b'R');
                    let mut offer = vec![0; far.read_u32().await? as usize - 4];
                    far.read_exact(&mut offer).await?;
                    near.write_all(&message(b'R', &[&offer[..4], b"SCRAM-SHA-256\0\0"].concat())).await?;
                    near.flush().await?;
                }
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    own
}
