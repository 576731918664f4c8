//! TLS on both sides, with certificates made for each test: libpq towards the proxy, PostgreSQL behind it.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::authority::{Authority, secured, with_tls};
use crate::harness::client::{Raw, connect, message, psql, startup, value};
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres::{self, password_of};

const SSL_REQUEST: u32 = 80_877_103;

/// Exit status and standard error of psql with these words in its connection string.
async fn psql_with(gate: &Gate, words: &str) -> (bool, String) {
    let token = gate.token(org(1)).sign();
    let sql = "SELECT DISTINCT body FROM items";
    let (status, out, err) =
        psql(gate, "app", &token, &["-d", &format!("dbname=app {words}"), "-Atc", sql]).await;
    assert!(!status.success() || out == "org-1\n", "{out}");
    (status.success(), err)
}

#[tokio::test]
async fn clients_come_with_every_sslmode() {
    let database = postgres::shared().database().await;
    let (ours, others) = (Authority::new(), Authority::new());
    let gate = with_tls(Gate::with(&database), &ours.issue(&["localhost", "127.0.0.1"]))
        .set("listen.tls", "require", "false")
        .run()
        .await;
    let roots = tempfile::tempdir().unwrap();
    let root = |name: &str, authority: &Authority| {
        let path = roots.path().join(name);
        std::fs::write(&path, &authority.pem).unwrap();
        path.display().to_string()
    };
    let (right, wrong) = (root("right.crt", &ours), root("wrong.crt", &others));
    for (words, enters) in [
        ("sslmode=disable".to_owned(), true),
        ("sslmode=allow".to_owned(), true),
        ("sslmode=prefer".to_owned(), true),
        ("sslmode=require".to_owned(), true),
        (format!("sslmode=verify-ca sslrootcert={right}"), true),
        (format!("sslmode=verify-full sslrootcert={right}"), true),
        (format!("sslmode=verify-full sslrootcert={right} host=localhost hostaddr=127.0.0.1"), true),
        (format!("sslmode=verify-full sslrootcert={right} host=elsewhere.test hostaddr=127.0.0.1"), false),
        (format!("sslmode=verify-ca sslrootcert={right} host=elsewhere.test hostaddr=127.0.0.1"), true),
        (format!("sslmode=verify-ca sslrootcert={wrong}"), false),
        ("sslmode=require ssl_min_protocol_version=TLSv1.3".to_owned(), true),
        ("sslmode=require ssl_max_protocol_version=TLSv1.2".to_owned(), true),
    ] {
        let (entered, err) = psql_with(&gate, &words).await;
        assert_eq!(entered, enters, "{words}: {err}");
    }
    // Large results and values through TLS, both ways.
    let token = gate.token(org(1)).sign();
    let sql = "SELECT length(repeat('x', 5000000)), count(*) FROM (SELECT repeat('y', 1000) FROM generate_series(1, 20000)) q";
    let (status, out, err) =
        psql(&gate, "app", &token, &["-d", "dbname=app sslmode=require", "-Atc", sql]).await;
    assert!(status.success() && out == "5000000|20000\n", "{out}{err}");
    let big = "SELECT repeat('z', 5000000)";
    let (_, out, _) = psql(&gate, "app", &token, &["-d", "dbname=app sslmode=require", "-Atc", big]).await;
    assert_eq!(out.len(), 5_000_001);
    let (_, out, _) =
        psql(&gate, "app", &token, &["-d", "dbname=app sslmode=require", "-c", "\\conninfo"]).await;
    assert!(out.contains("SSL connection (protocol: TLSv1.3"), "{out}");
    let password = password_of("plain");
    let scram = psql(&gate, "plain", &password, &["-d", "dbname=app sslmode=require", "-Atc", "SELECT 1"]);
    assert!(scram.await.0.success());
}

#[tokio::test]
async fn where_tls_is_required_nothing_is_said_in_clear() {
    let database = postgres::shared().database().await;
    let authority = Authority::new();
    let gate = with_tls(Gate::with(&database), &authority.issue(&["localhost"])).run().await;
    let mut raw = Raw::connect(&gate).await;
    raw.startup("app", "app", &[]).await;
    let (code, text) = raw.expect_error().await;
    assert_eq!((code.as_str(), text.as_str()), ("28000", "pgtenant requires TLS"));
    raw.expect_close().await;
    assert!(psql_with(&gate, "sslmode=require").await.0);
    let (entered, err) = psql_with(&gate, "sslmode=disable").await;
    assert!(!entered && err.contains("pgtenant requires TLS"), "{err}");
}

/// What comes in one packet with the SSLRequest was not sent by the one behind the handshake (CVE-2021-23214).
#[tokio::test]
async fn bytes_behind_ssl_request_are_refused() {
    let database = postgres::shared().database().await;
    let with_tls = with_tls(Gate::with(&database), &Authority::new().issue(&["localhost"])).run().await;
    let without_tls = Gate::with(&database).run().await;
    for gate in [&with_tls, &without_tls] {
        let mut raw = Raw::connect(gate).await;
        let planted = startup(0x0003_0000, b"user\0app\0database\0app\0\0");
        let query = message(b'Q', b"UPDATE notes SET body = 'planted'\0");
        raw.send(&[startup(SSL_REQUEST, b""), planted, query].concat()).await;
        assert_eq!(raw.expect_error().await.0, "08P01");
        raw.expect_close().await;
        // Half a packet is enough.
        let mut raw = Raw::connect(gate).await;
        raw.send(&[startup(SSL_REQUEST, b""), vec![0]].concat()).await;
        assert_eq!(raw.expect_error().await.0, "08P01");
    }
    // After the answer, only a handshake.
    let mut raw = Raw::connect(&with_tls).await;
    raw.send(&startup(SSL_REQUEST, b"")).await;
    assert_eq!(raw.stream().read_u8().await.unwrap(), b'S');
    raw.startup("app", "app", &[]).await;
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), raw.stream().read_to_end(&mut rest))
        .await
        .expect("closed");
    assert!(rest.first().is_none_or(|kind| *kind == 21), "only a TLS alert: {rest:?}");
    // Half a handshake holds nothing up.
    let mut half = Raw::connect(&with_tls).await;
    half.send(&startup(SSL_REQUEST, b"")).await;
    assert_eq!(half.stream().read_u8().await.unwrap(), b'S');
    half.stream().write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    let (entered, err) = psql_with(&with_tls, "sslmode=require").await;
    assert!(entered, "{err}");
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_named() {
    let database = postgres::shared().database().await;
    let (pair, other) = (Authority::new().issue(&["localhost"]), Authority::new().issue(&["localhost"]));
    for (setup, names, says) in [
        (with_tls(Gate::with(&database), &(pair.0.clone(), other.1)), "server.key", "does not go with"),
        (
            with_tls(Gate::with(&database), &("nothing".to_owned(), pair.1.clone())),
            "server.crt",
            "holds no certificate",
        ),
        (with_tls(Gate::with(&database), &(pair.0.clone(), pair.0.clone())), "server.key", "no private key"),
        (
            with_tls(Gate::with(&database), &pair).set("listen.tls", "certificate", "\"gone.crt\""),
            "gone.crt",
            "",
        ),
        (
            Gate::with(&database).set("servers.main", "tls", "\"verify-full\"").set(
                "servers.main",
                "ca",
                "\"gone.ca\"",
            ),
            "gone.ca",
            "",
        ),
    ] {
        let (status, log) = setup.try_run().await.err().expect("refused");
        assert!(matches!(status.code(), Some(1 | 2)), "{status}");
        let last = log.lines().last().unwrap();
        assert!(last.contains(names) && last.contains(says), "{log}");
    }
}

const ENCRYPTED: &str =
    "SELECT ssl::text || ' ' || COALESCE(version, '') FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

#[tokio::test]
async fn servers_are_reached_with_every_mode() {
    let (ours, others) = (Authority::new(), Authority::new());
    let shared = secured(&ours, &["localhost"]).await;
    let database = shared.database().await;
    let setup = |mode: &str, host: &str, ca: Option<&Authority>| {
        let setup = Gate::with(&database)
            .set("servers.main", "tls", &format!("{mode:?}"))
            .set("servers.main", "host", &format!("{host:?}"))
            .set("databases.app.pool", "wait_timeout", "\"2s\"");
        match ca {
            Some(ca) => setup.set("servers.main", "ca", "\"ca.crt\"").file("ca.crt", ca.pem.as_str()),
            None => setup,
        }
    };
    for (mode, host, ca, expected) in [
        ("disable", "127.0.0.1", None, "false "),
        ("prefer", "127.0.0.1", None, "true TLSv1.3"),
        ("require", "127.0.0.1", None, "true TLSv1.3"),
        ("require", "127.0.0.1", Some(&ours), "true TLSv1.3"),
        ("verify-ca", "127.0.0.1", Some(&ours), "true TLSv1.3"),
        ("verify-full", "localhost", Some(&ours), "true TLSv1.3"),
    ] {
        let gate = setup(mode, host, ca).run().await;
        let client = connect(&gate, "app", &gate.token(org(2)).sign()).await;
        assert_eq!(value(&client, ENCRYPTED).await.unwrap().as_deref(), Some(expected), "{mode}");
        assert_eq!(
            value(&client, "SELECT DISTINCT body FROM items").await.unwrap().as_deref(),
            Some("org-2")
        );
        // A cancel request goes the same way.
        let cancel = client.cancel_token();
        let running = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(30)").await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
        let error = running.await.unwrap().unwrap_err();
        assert_eq!(error.code().unwrap().code(), "57014", "{mode}");
    }
    for (mode, host, ca) in [
        ("require", "127.0.0.1", Some(&others)),
        ("verify-ca", "127.0.0.1", Some(&others)),
        ("verify-full", "localhost", Some(&others)),
        ("verify-full", "127.0.0.1", Some(&ours)), // the certificate names localhost only
    ] {
        let gate = setup(mode, host, ca).run().await;
        let mut raw = Raw::connect(&gate).await;
        raw.startup("app", "app", &[]).await;
        raw.password(&gate.token(org(1)).sign()).await;
        let (code, text) = raw.expect_error().await;
        assert!(
            code.starts_with("08") && text.to_lowercase().contains("certificate"),
            "{mode}: {code} {text}"
        );
    }
    // No TLS over there: `prefer` goes without, the others do not go.
    let plain = postgres::shared().database().await;
    for (mode, enters) in [("prefer", true), ("require", false)] {
        let gate = Gate::with(&plain)
            .set("servers.main", "tls", &format!("{mode:?}"))
            .set("databases.app.pool", "wait_timeout", "\"2s\"")
            .run()
            .await;
        let mut raw = Raw::connect(&gate).await;
        if enters {
            raw.sign_in("app", "app", &gate.token(org(1)).sign()).await;
            assert_eq!(raw.query("SELECT DISTINCT body FROM items").await.rows, [[Some("org-1".to_owned())]]);
        } else {
            raw.startup("app", "app", &[]).await;
            raw.password(&gate.token(org(1)).sign()).await;
            let (code, text) = raw.expect_error().await;
            assert!(code.starts_with("08") && text.contains("TLS"), "{code} {text}");
        }
    }
}

/// The key goes to a server that shows who it is, where the URL asks for that.
#[tokio::test]
async fn install_verifies_the_server_that_it_gives_the_key() {
    let (ours, others) = (Authority::new(), Authority::new());
    let shared = secured(&ours, &["localhost"]).await;
    let database = shared.database().await;
    let folder = tempfile::tempdir().unwrap();
    let written = Gate::with(&database).write();
    for (host, mode, authority, code) in [
        ("localhost", "verify-full", &ours, 0),
        ("127.0.0.1", "verify-ca", &ours, 0),
        ("127.0.0.1", "verify-full", &ours, 1),
        ("localhost", "verify-full", &others, 1),
        ("localhost", "require", &others, 1),
        ("localhost", "prefer", &others, 0),
    ] {
        let root = folder.path().join("root.crt");
        std::fs::write(&root, &authority.pem).unwrap();
        let url = database.url.replace("127.0.0.1", host);
        let url = format!("{url}?sslmode={mode}&sslrootcert={}", root.display());
        let ran = crate::commands::run(&["install", "--database", &url, "--role", "app"], Some(&written));
        assert_eq!(ran.code, code, "{mode} {host}: {ran:?}");
        assert!(code == 0 || ran.err.contains("certificate"), "{mode} {host}: {ran:?}");
    }
}
