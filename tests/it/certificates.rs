//! Client certificates: what clients must show to the proxy, and what the proxy shows to PostgreSQL.

use std::os::unix::fs::PermissionsExt as _;

use crate::harness::authority::{Authority, Pair, direct, give, handshake, secured, with_tls};
use crate::harness::client::{Raw, connect, psql, startup, value};
use crate::harness::gate::{Gate, Setup};
use crate::harness::postgres;
use crate::harness::{eventually, org};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const POSTGRESQL: &[&[u8]] = &[b"postgresql"];

fn demanding(setup: Setup, server: &Pair, clients: &Authority) -> Setup {
    with_tls(setup, server)
        .set("listen.tls", "client_ca", "\"clients.crt\"")
        .file("clients.crt", clients.pem.as_str())
}

/// Whether a client that shows this gets as far as a question from the proxy.
async fn is_asked(gate: &Gate, authority: &Authority, shows: Option<&Pair>) -> bool {
    let directly = match direct(gate, authority.client(POSTGRESQL, shows)).await {
        Ok(stream) => answers(stream).await,
        Err(_) => false,
    };
    let mut tcp = tokio::net::TcpStream::connect(("127.0.0.1", gate.port())).await.unwrap();
    tcp.write_all(&startup(80_877_103, b"")).await.unwrap();
    assert_eq!(tcp.read_u8().await.unwrap(), b'S');
    let asked_for = match handshake(tcp, authority.client(&[], shows)).await {
        Ok(stream) => answers(stream).await,
        Err(_) => false,
    };
    assert_eq!(directly, asked_for);
    directly
}

/// In TLS 1.3 a client hears of its refusal only when it reads.
async fn answers(mut stream: impl crate::harness::client::Wire) -> bool {
    let _ = stream.write_all(&startup(0x0003_0000, b"user\0app\0database\0app\0\0")).await;
    let mut first = [0];
    matches!(stream.read(&mut first).await, Ok(1)) && first == *b"R"
}

#[tokio::test]
async fn clients_show_a_certificate_where_one_is_demanded() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let database = postgres::shared().database().await;
    let gate = demanding(Gate::with(&database), &servers.issue(&["localhost"]), &clients).run().await;
    let (ours, foreign) = (clients.issue_to("anyone", &[]), strangers.issue_to("anyone", &[]));
    assert!(is_asked(&gate, &servers, Some(&ours)).await);
    assert!(!is_asked(&gate, &servers, None).await, "without one");
    assert!(!is_asked(&gate, &servers, Some(&foreign)).await, "a foreign one");
    // What the server's own authority signs is no client's.
    assert!(!is_asked(&gate, &servers, Some(&servers.issue_to("anyone", &[]))).await);
    // In clear nobody comes around it.
    let mut raw = Raw::connect(&gate).await;
    raw.startup("app", "app", &[]).await;
    assert_eq!(raw.expect_error().await.0, "28000");

    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let words = |pair: &Pair, name: &str| {
        let (crt, key) = (file(&format!("{name}.crt"), &pair.0), file(&format!("{name}.key"), &pair.1));
        format!("dbname=app sslmode=require sslcert={crt} sslkey={key}")
    };
    let token = gate.token(org(1)).sign();
    let (ours, foreign) = (words(&ours, "ours"), words(&foreign, "foreign"));
    for (words, enters) in
        [(&ours, true), (&foreign, false), (&"dbname=app sslmode=require".to_owned(), false)]
    {
        let (status, out, err) =
            psql(&gate, "app", &token, &["-d", words, "-Atc", "SELECT DISTINCT body FROM items"]).await;
        assert_eq!(status.success(), enters, "{words}: {err}");
        assert!(enters == (out == "org-1\n") && (enters || err.contains("SSL")), "{words}: {out}{err}");
    }
    // A certificate is no password.
    let (status, _, err) = psql(&gate, "app", "wrong", &["-d", &ours, "-Atc", "SELECT 1"]).await;
    assert!(!status.success() && err.contains("token refused"), "{err}");
}

#[tokio::test]
async fn postgresql_is_shown_a_certificate_where_it_asks() {
    let (ours, others) = (Authority::new(), Authority::new());
    let shared = secured(&ours, &["localhost"]).await;
    let database = shared.database().await;
    let admin = database.admin().await;
    admin.batch_execute("ALTER SYSTEM SET ssl_ca_file = 'clients.crt'").await.unwrap();
    give(
        &shared,
        "pg_hba.conf",
        "host all postgres 127.0.0.1/32 scram-sha-256\n\
         hostssl all app,keeper 127.0.0.1/32 cert\n\
         hostssl all plain 127.0.0.1/32 scram-sha-256 clientcert=verify-full\n",
    );
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    eventually("PostgreSQL has read its rules", async || {
        let rules =
            admin.query_one("SELECT count(*) FROM pg_hba_file_rules WHERE auth_method = 'cert'", &[]).await;
        (rules.unwrap().get::<_, i64>(0) == 1).then_some(())
    })
    .await;
    let gate = async |shows: Option<&Pair>| {
        let setup = Gate::with(&database)
            .set("servers.main", "tls", "\"verify-full\"")
            .set("servers.main", "host", "\"localhost\"")
            .set("servers.main", "ca", "\"ca.crt\"")
            .file("ca.crt", ours.pem.as_str())
            .set("databases.app.pool", "wait_timeout", "\"1s\"")
            .role("reports", &["scram"], "none");
        let setup = match shows {
            Some((certificate, key)) => setup
                .set("servers.main", "certificate", "\"client.crt\"")
                .set("servers.main", "key", "\"client.key\"")
                .file("client.crt", certificate.as_str())
                .file("client.key", key.as_str()),
            None => setup,
        };
        setup.run().await
    };
    let refusal = async |gate: &Gate| {
        let mut raw = Raw::connect(gate).await;
        raw.startup("app", "app", &[]).await;
        raw.password(&gate.token(org(1)).sign()).await;
        raw.expect_error().await
    };
    let as_app = gate(Some(&ours.issue_to("app", &[]))).await;
    let client = connect(&as_app, "app", &as_app.token(org(4)).sign()).await;
    assert_eq!(value(&client, "SELECT DISTINCT body FROM items").await.unwrap().as_deref(), Some("org-4"));
    let seen =
        value(&client, "SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await.unwrap();
    assert_eq!(seen.as_deref(), Some("/CN=app"));
    let as_plain = gate(Some(&ours.issue_to("plain", &[]))).await;
    let client = connect(&as_plain, "plain", &postgres::password_of("plain")).await;
    assert_eq!(value(&client, "SELECT current_user").await.unwrap().as_deref(), Some("plain"));
    // `install` shows one as well.
    admin.batch_execute("CREATE ROLE keeper SUPERUSER LOGIN").await.unwrap();
    for (name, code) in [("keeper", 0), ("app", 1)] {
        let folder = tempfile::tempdir().unwrap();
        let path = |file: &str| folder.path().join(file).display().to_string();
        let (certificate, key) = ours.issue_to(name, &[]);
        for (file, content) in [("c.crt", &certificate), ("c.key", &key), ("root.crt", &ours.pem)] {
            std::fs::write(path(file), content).unwrap();
        }
        let tls =
            format!("sslrootcert={}&sslcert={}&sslkey={}", path("root.crt"), path("c.crt"), path("c.key"));
        let url = format!(
            "postgres://keeper@localhost:{}/{}?sslmode=verify-full&{tls}",
            database.port, database.name
        );
        let written = Gate::with(&database).write();
        let ran = crate::commands::run(&["install", "--database", &url, "--role", "app"], Some(&written));
        assert_eq!(ran.code, code, "{name}: {ran:?}");
    }
    // Another name, another authority, nothing.
    for shows in [Some(ours.issue_to("plain", &[])), Some(others.issue_to("app", &[])), None] {
        let (code, text) = refusal(&gate(shows.as_ref()).await).await;
        assert!(code.starts_with("08"), "{code} {text}");
    }
}

#[tokio::test]
async fn certificates_for_clients_and_servers_that_cannot_be_used_are_named() {
    let database = postgres::shared().database().await;
    let (pair, other) = (Authority::new().issue(&["localhost"]), Authority::new().issue(&["localhost"]));
    let server = |key: &str| {
        Gate::with(&database)
            .set("servers.main", "tls", "\"require\"")
            .set("servers.main", "certificate", "\"client.crt\"")
            .set("servers.main", "key", "\"client.key\"")
            .file("client.crt", pair.0.as_str())
            .file("client.key", key)
    };
    let mut nobody = Authority::new();
    nobody.pem = "nothing".to_owned();
    for (setup, section, file, says) in [
        (
            demanding(Gate::with(&database), &pair, &nobody),
            "listen.tls",
            "clients.crt",
            "holds no certificate",
        ),
        (server(&other.1), "servers.main", "client.key", "does not go with"),
        (server("nothing"), "servers.main", "client.key", "no private key"),
    ] {
        let (status, log) = setup.try_run().await.err().expect("refused");
        let last = log.lines().last().unwrap();
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(last.contains(section) && last.contains(file) && last.contains(says), "{log}");
    }
}
