//! Unix sockets on both sides: found where libpq looks, without TLS, gone when the proxy is.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::harness::client::{self, connect, psql, startup, value};
use crate::harness::gate::{Gate, Setup};
use crate::harness::postgres::{self, Database, password_of};
use crate::harness::{eventually, org};

fn listening_in(database: &Database, folder: &tempfile::TempDir) -> Setup {
    Gate::with(database).set("listen", "unix", &format!("[{:?}]", folder.path()))
}

fn socket_of(gate: &Gate, folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join(format!(".s.PGSQL.{}", gate.port()))
}

#[tokio::test]
async fn clients_come_by_the_socket_and_it_goes_with_the_proxy() {
    let database = postgres::shared().database().await;
    let folder = tempfile::tempdir().unwrap();
    let gate = listening_in(&database, &folder).run().await;
    let path = socket_of(&gate, &folder);
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket() && metadata.permissions().mode() & 0o777 == 0o777);
    assert!(gate.log().contains(&format!("listening for clients on {}", path.display())), "{}", gate.log());
    let (token, host) = (gate.token(org(1)).sign(), folder.path().display().to_string());
    let sql = "SELECT DISTINCT body FROM items";
    let (status, out, err) = psql(&gate, "app", &token, &["-h", &host, "-Atc", sql]).await;
    assert!(status.success() && out == "org-1\n", "{out}{err}");
    let by_scram = &["-h", &host, "-Atc", "SELECT 1"];
    let (status, out, err) = psql(&gate, "plain", &password_of("plain"), by_scram).await;
    assert!(status.success() && out == "1\n", "{out}{err}");
    // A driver, and its cancel request, which comes by the socket too.
    let mut config = client::config(&gate, "app", &token);
    config = {
        let mut by_path = tokio_postgres::Config::new();
        by_path.host_path(folder.path()).port(gate.port()).user("app").dbname("app");
        by_path.password(config.get_password().unwrap());
        by_path
    };
    let client = client::connect_with(&config).await.unwrap();
    let cancel = client.cancel_token();
    let running = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(30)").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
    assert_eq!(running.await.unwrap().unwrap_err().code().unwrap().code(), "57014");
    gate.signal("TERM");
    assert!(gate.wait_exit(Duration::from_secs(10)).await.success());
    assert!(!path.exists(), "the socket went with the proxy");
}

#[tokio::test]
async fn there_is_no_tls_on_a_socket_and_none_is_demanded() {
    let database = postgres::shared().database().await;
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let setup = listening_in(&database, &folder)
        .file("server.crt", made.cert.pem())
        .file("server.key", made.signing_key.serialize_pem())
        .set("listen.tls", "certificate", "\"server.crt\"")
        .set("listen.tls", "key", "\"server.key\"");
    let gate = setup.run().await;
    let (token, host) = (gate.token(org(3)).sign(), folder.path().display().to_string());
    let sql = "SELECT DISTINCT body FROM items";
    let (status, out, err) = psql(&gate, "app", &token, &["-h", &host, "-Atc", sql]).await;
    assert!(status.success() && out == "org-3\n", "{out}{err}");
    let (status, _, err) = psql(&gate, "app", &token, &["-Atc", sql, "-d", "sslmode=disable"]).await;
    assert!(!status.success() && err.contains("requires TLS"), "by TCP it is demanded: {err}");
    let mut raw = UnixStream::connect(socket_of(&gate, &folder)).await.unwrap();
    raw.write_all(&startup(80_877_103, b"")).await.unwrap();
    assert_eq!(raw.read_u8().await.unwrap(), b'N', "as PostgreSQL answers there");
    // Bytes behind the request are refused there as well.
    let mut raw = UnixStream::connect(socket_of(&gate, &folder)).await.unwrap();
    raw.write_all(&[startup(80_877_103, b""), vec![0]].concat()).await.unwrap();
    let mut answer = Vec::new();
    raw.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"E") && answer.windows(6).any(|part| part == b"C08P01"), "{answer:?}");
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
    let database = postgres::shared().database().await;
    let folder = tempfile::tempdir().unwrap();
    let gate = listening_in(&database, &folder).run().await;
    let (port, path) = (gate.port(), socket_of(&gate, &folder));
    gate.signal("KILL");
    gate.wait_exit(Duration::from_secs(10)).await;
    assert!(path.exists(), "nobody could remove it");
    let again = listening_in(&database, &folder).set("listen", "tcp", &format!("[\"127.0.0.1:{port}\"]"));
    let gate = again.run().await;
    let (token, host) = (gate.token(org(1)).sign(), folder.path().display().to_string());
    let (status, _, err) = psql(&gate, "app", &token, &["-h", &host, "-Atc", "SELECT 1"]).await;
    assert!(status.success(), "{err}");
    // Without TCP it has the default's name. Somebody else listens there already.
    let theirs = folder.path().join(".s.PGSQL.6432");
    let living = UnixListener::bind(&theirs).unwrap();
    let (status, log) =
        listening_in(&database, &folder).set("listen", "tcp", "[]").try_run().await.err().unwrap();
    assert_eq!(status.code(), Some(1));
    let last = log.lines().last().unwrap();
    assert!(last.contains(".s.PGSQL.6432") && last.contains("another process answers"), "{log}");
    assert!(theirs.exists());
    drop(living);
    std::fs::remove_file(&theirs).unwrap();
    std::fs::write(&theirs, "precious").unwrap();
    let (_, log) = listening_in(&database, &folder).set("listen", "tcp", "[]").try_run().await.err().unwrap();
    assert!(log.contains("no socket"), "{log}");
    assert_eq!(std::fs::read(&theirs).unwrap(), b"precious");
}

#[tokio::test]
async fn servers_are_reached_by_their_socket() {
    let shared = postgres::shared();
    let database = shared.database().await;
    let directory = format!("{:?}", shared.server.socket_dir());
    for tls in ["disable", "prefer"] {
        let gate = Gate::with(&database)
            .set("servers.main", "host", &directory)
            .set("servers.main", "tls", &format!("{tls:?}"))
            .run()
            .await;
        let client = connect(&gate, "app", &gate.token(org(2)).sign()).await;
        let seen = "SELECT COALESCE(inet_client_addr()::text, 'by socket') || ' ' || min(body) FROM items";
        assert_eq!(value(&client, seen).await.unwrap().as_deref(), Some("by socket org-2"));
        let cancel = client.cancel_token();
        let running = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(30)").await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
        assert_eq!(running.await.unwrap().unwrap_err().code().unwrap().code(), "57014");
        assert_eq!(gate.http("/readyz").await.0, 200);
    }
}

/// The keeper's probe looks for the socket, and tells where.
#[tokio::test]
async fn a_socket_that_is_not_there_is_named() {
    let database = postgres::shared().database().await;
    let folder = tempfile::tempdir().unwrap();
    let gate = Gate::with(&database)
        .set("servers.main", "host", &format!("{:?}", folder.path()))
        .set("databases.app.pool", "wait_timeout", "\"1s\"")
        .run()
        .await;
    let path = folder.path().join(format!(".s.PGSQL.{}", database.port));
    let (_, body) = eventually("not ready", async || {
        let answer = gate.http("/readyz").await;
        (answer.0 == 503).then_some(answer)
    })
    .await;
    assert!(body.contains(&path.display().to_string()), "{body}");
    // It appears: clients are served, as after a restart of PostgreSQL.
    std::os::unix::fs::symlink(
        postgres::shared().server.socket_dir().join(format!(".s.PGSQL.{}", database.port)),
        &path,
    )
    .unwrap();
    eventually("ready", async || (gate.http("/readyz").await.0 == 200).then_some(())).await;
    let client = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    assert_eq!(value(&client, "SELECT 1").await.unwrap().as_deref(), Some("1"));
}

/// Every address of a list is listened on; `[::]` and `0.0.0.0` do not take each other's port.
#[tokio::test]
async fn several_addresses_are_listened_on() {
    let database = postgres::shared().database().await;
    let first = Gate::with(&database).set("listen", "tcp", "[\"localhost:0\", \"127.0.0.2:0\"]").run().await;
    let second = first.log().split("on 127.0.0.2:").nth(1).unwrap()[..5].trim().to_owned();
    let token = first.token(org(1)).sign();
    for (host, port) in [("127.0.0.1", first.port().to_string()), ("127.0.0.2", second)] {
        let (status, out, err) =
            psql(&first, "app", &token, &["-h", host, "-p", &port, "-Atc", "SELECT 1"]).await;
        assert!(status.success() && out == "1\n", "{host}: {err}");
    }
    if tokio::net::TcpListener::bind("[::1]:0").await.is_err() {
        return; // a machine without IPv6
    }
    let both = Gate::with(&database).set("listen", "tcp", "[\"127.0.0.1:0\", \"[::1]:0\"]").run().await;
    let port = both.log().split("on [::1]:").nth(1).unwrap()[..5].trim().to_owned();
    let token = both.token(org(1)).sign();
    let (status, out, err) =
        psql(&both, "app", &token, &["-h", "::1", "-p", &port, "-Atc", "SELECT 1"]).await;
    assert!(status.success() && out == "1\n", "{err}");
    let port = both.port();
    drop(both);
    let any = format!("[\"127.0.0.1:{port}\", \"[::]:{port}\"]");
    let gate = Gate::with(&database).set("listen", "tcp", &any).run().await;
    assert!(gate.log().contains(&format!("on [::]:{port}")), "{}", gate.log());
}
