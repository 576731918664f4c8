//! Certificates that are replaced under a running proxy: new connections see the new ones, the others notice nothing.

use std::os::unix::fs::symlink;
use std::path::Path;

use postgres_protocol::authentication::sasl;
use tokio::io::AsyncWriteExt as _;
use tokio_postgres::config::{ChannelBinding, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::harness::authority::{Authority, Pair, direct, give, secured, with_tls};
use crate::harness::client::{Raw, config, startup, value};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, password_of};
use crate::harness::{eventually, org};

const POSTGRESQL: &[&[u8]] = &[b"postgresql"];
const REFUSED: &str = "changed files cannot be used";

async fn believes(gate: &Gate, authority: &Authority) -> bool {
    direct(gate, authority.client(POSTGRESQL, None)).await.is_ok()
}

fn replace(folder: &Path, (certificate, key): &Pair) {
    std::fs::write(folder.join("server.crt"), certificate).unwrap();
    std::fs::write(folder.join("server.key"), key).unwrap();
}

#[tokio::test]
async fn a_new_certificate_is_shown_and_nobody_is_dropped() {
    let (old, new, newest) = (Authority::new(), Authority::new(), Authority::new());
    let database = postgres::shared().database().await;
    let gate = with_tls(Gate::with(&database), &old.issue(&["localhost"])).run().await;
    let folder = gate.config().folder().to_owned();
    let mut before = Raw::over(direct(&gate, old.client(POSTGRESQL, None)).await.unwrap());
    before.sign_in("app", "app", &gate.token(org(1)).sign()).await;
    before.query("BEGIN").await;
    let mut config_before = config(&gate, "plain", &password_of("plain"));
    config_before.ssl_mode(SslMode::Require).channel_binding(ChannelBinding::Require);
    let (client, connection) =
        config_before.connect(MakeRustlsConnect::new(with_address(&old, &gate).await)).await.unwrap();
    tokio::spawn(connection);

    // One that has shaken hands and signs in later.
    let mut undecided = direct(&gate, old.client(POSTGRESQL, None)).await.unwrap();
    undecided.write_all(&startup(0x0003_0000, b"user\0plain\0database\0app\0\0")).await.unwrap();

    // A key that belongs to another certificate: refused, once.
    replace(&folder, &(new.issue(&["localhost"]).0, newest.issue(&["localhost"]).1));
    eventually("a warning", async || gate.log().contains(REFUSED).then_some(())).await;
    assert!(believes(&gate, &old).await && !believes(&gate, &new).await);
    tokio::time::sleep(std::time::Duration::from_millis(4500)).await;
    let log = gate.log();
    assert_eq!(log.matches(REFUSED).count(), 1, "{log}");
    let warning = log.lines().find(|line| line.contains(REFUSED)).unwrap();
    assert!(warning.contains("listen.tls") && warning.contains("server.key"), "{warning}");
    assert!(warning.contains("\"level\":\"WARN\""), "{warning}");

    replace(&folder, &new.issue(&["localhost", "127.0.0.1"]));
    eventually("the new certificate", async || believes(&gate, &new).await.then_some(())).await;
    assert!(!believes(&gate, &old).await);
    // Those who were there go on, in their transaction.
    assert_eq!(before.query("SELECT DISTINCT body FROM items").await.rows, [[Some("org-1".to_owned())]]);
    assert_eq!(before.query("COMMIT").await.tags, ["COMMIT"]);
    assert_eq!(value(&client, "SELECT current_user").await.unwrap().as_deref(), Some("plain"));
    // The sign-in of the undecided one is bound to what it was shown itself.
    let shown = undecided.get_ref().1.peer_certificates().unwrap()[0].clone();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &shown).as_ref().to_vec();
    let mut undecided = Raw::over(undecided);
    let binding = sasl::ChannelBinding::tls_server_end_point(hash);
    undecided.authenticate_by(sasl::SCRAM_SHA_256_PLUS, &password_of("plain"), binding).await;
    assert_eq!(undecided.query("SELECT 1").await.rows.len(), 1);
    // Who comes now is bound to the new one.
    let (client, connection) =
        config_before.connect(MakeRustlsConnect::new(new.client(&[], None))).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(value(&client, "SELECT 1").await.unwrap().as_deref(), Some("1"));
    // Files that go away change nothing.
    std::fs::remove_file(folder.join("server.key")).unwrap();
    eventually("a second warning", async || (gate.log().matches(REFUSED).count() == 2).then_some(())).await;
    assert!(believes(&gate, &new).await);
}

/// The first certificate names localhost only; the driver connects to the address.
async fn with_address(authority: &Authority, gate: &Gate) -> rustls::ClientConfig {
    replace(gate.config().folder(), &authority.issue(&["localhost", "127.0.0.1"]));
    eventually("the address in the certificate", async || {
        gate.log().contains("files were loaded anew").then_some(())
    })
    .await;
    authority.client(&[], None)
}

/// As Kubernetes replaces a secret: files are links through a link to a folder, and that link is turned.
#[tokio::test]
async fn a_link_that_is_turned_is_followed() {
    let (old, new) = (Authority::new(), Authority::new());
    let database = postgres::shared().database().await;
    let secret = tempfile::tempdir().unwrap();
    for (name, authority) in [("..1", &old), ("..2", &new)] {
        let folder = secret.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        replace(&folder, &authority.issue(&["localhost"]));
        std::fs::write(folder.join("clients.crt"), &authority.pem).unwrap();
    }
    symlink("..1", secret.path().join("..data")).unwrap();
    for name in ["server.crt", "server.key", "clients.crt"] {
        symlink(Path::new("..data").join(name), secret.path().join(name)).unwrap();
    }
    let path = |name: &str| format!("{:?}", secret.path().join(name));
    let gate = Gate::with(&database)
        .set("listen.tls", "certificate", &path("server.crt"))
        .set("listen.tls", "key", &path("server.key"))
        .set("listen.tls", "client_ca", &path("clients.crt"))
        .run()
        .await;
    let (old_client, new_client) = (old.issue_to("c", &[]), new.issue_to("c", &[]));
    let mut before = Raw::over(direct(&gate, old.client(POSTGRESQL, Some(&old_client))).await.unwrap());
    before.sign_in("app", "app", &gate.token(org(1)).sign()).await;
    symlink("..2", secret.path().join("..next")).unwrap();
    std::fs::rename(secret.path().join("..next"), secret.path().join("..data")).unwrap();
    eventually("the new secret", async || {
        let stream = direct(&gate, new.client(POSTGRESQL, Some(&new_client))).await.ok()?;
        Raw::over(stream).sign_in("app", "app", &gate.token(org(2)).sign()).await;
        Some(())
    })
    .await;
    // Whose clients were let in before are not any more, and who is in stays.
    let mut late = Raw::over(direct(&gate, new.client(POSTGRESQL, Some(&old_client))).await.unwrap());
    late.startup("app", "app", &[]).await;
    late.expect_refusal_by_tls().await;
    assert_eq!(before.query("SELECT 1").await.rows.len(), 1);
}

/// The roots and the certificate for PostgreSQL count for servers that are opened from then on.
#[tokio::test]
async fn servers_are_opened_by_the_new_roots() {
    let (old, new) = (Authority::new(), Authority::new());
    let shared = secured(&old, &["localhost"]).await;
    let database = shared.database().await;
    let gate = Gate::with(&database)
        .set("servers.main", "tls", "\"verify-full\"")
        .set("servers.main", "host", "\"localhost\"")
        .set("servers.main", "ca", "\"ca.crt\"")
        .file("ca.crt", old.pem.as_str())
        .set("databases.app.pool", "wait_timeout", "\"1s\"")
        .run()
        .await;
    let enters = async || {
        let mut raw = Raw::connect(&gate).await;
        raw.startup("app", "app", &[("application_name", "x")]).await;
        raw.password(&gate.token(org(1)).sign()).await;
        loop {
            match raw.read_message().await {
                Some((b'Z', _)) => return raw.query("SELECT 1").await.error.is_none(),
                Some((b'E', _)) | None => return false,
                Some(_) => {}
            }
        }
    };
    assert!(enters().await);
    let (certificate, key) = new.issue(&["localhost"]);
    give(&shared, "server.crt", &certificate);
    give(&shared, "server.key", &key);
    let admin = database.admin().await;
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let leave = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IN ('app', 'plain')";
    eventually("PostgreSQL's new certificate", async || {
        admin.batch_execute(leave).await.unwrap();
        (!enters().await).then_some(())
    })
    .await;
    std::fs::write(gate.config().folder().join("ca.crt"), &new.pem).unwrap();
    eventually("the new roots", async || enters().await.then_some(())).await;
    assert!(gate.log().contains("servers.main"), "{}", gate.log());
}
