//! The harness itself holds: a database with policies, a gate before it, and every kind of client.

use std::time::Duration;

use pgtenant::cli::demo::throwaway::Options;
use tokio_postgres::NoTls;

use crate::harness::client::{self, Raw};
use crate::harness::gate::Gate;
use crate::harness::issuer::Issuer;
use crate::harness::postgres::{self, ROWS_PER_ORGANIZATION, ROWS_PER_PROJECT, Shared, password_of};
use crate::harness::{org, project};

#[tokio::test]
async fn a_token_shows_its_organizations_rows() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let client = client::connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let count = "SELECT count(*) || ' of ' || min(body) FROM items";
    let expected = format!("{ROWS_PER_ORGANIZATION} of org-1");
    assert_eq!(client::value(&client, count).await.unwrap(), Some(expected));
    let token = gate.token(org(2)).project(project(2, 1)).subject("ada").roles(&["agent"]).sign();
    let client = client::connect(&gate, "app", &token).await;
    let expected = format!("{ROWS_PER_PROJECT} of org-2");
    assert_eq!(client::value(&client, count).await.unwrap(), Some(expected));
    assert_eq!(client::value(&client, "SELECT pgtenant.subject()").await.unwrap().as_deref(), Some("ada"));
}

#[tokio::test]
async fn databases_are_strangers_to_each_other() {
    let (one, other) = tokio::join!(postgres::shared().database(), postgres::shared().database());
    assert_ne!(one.name, other.name);
    one.admin().await.batch_execute("DELETE FROM items").await.unwrap();
    let rows = other.admin().await.query_one("SELECT count(*) FROM items", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 4 * ROWS_PER_ORGANIZATION);
    let refused = other.direct("app").await.query("SELECT * FROM items", &[]).await.unwrap_err();
    assert_eq!(refused.code().map(|code| code.code().to_owned()).as_deref(), Some("42501"));
}

#[tokio::test]
async fn psql_and_raw_messages_get_through() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).issuer(&Issuer::eddsa()).run().await;
    let (status, out, err) =
        client::psql(&gate, "plain", &password_of("plain"), &["-Atc", "SELECT count(*) FROM notes"]).await;
    assert!(status.success() && out == "10\n", "{out}{err}");
    let mut raw = Raw::connect(&gate).await;
    raw.sign_in("app", "app", &gate.token(org(3)).sign()).await;
    let answer = raw.query("SELECT DISTINCT body, NULL FROM items; SELECT 1/0").await;
    assert_eq!(answer.rows, [[Some("org-3".to_owned()), None]]);
    assert_eq!((answer.error.unwrap().0.as_str(), answer.status), ("22012", b'I'));
    let mut raw = Raw::connect(&gate).await;
    raw.sign_in("plain", "app", &password_of("plain")).await;
    assert_eq!(raw.query("SELECT 1").await.rows.len(), 1);
    let mut raw = Raw::connect(&gate).await;
    raw.startup("app", "app", &[]).await;
    // A password that comes before it is asked for would be refused as a breach of the protocol.
    assert_eq!(raw.read_message().await.unwrap().0, b'R');
    raw.password("nonsense").await;
    assert_eq!(raw.expect_error().await.0, "28000");
    raw.expect_close().await;
}

#[tokio::test]
async fn a_gate_is_started_asked_and_ended() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    assert_eq!(gate.http("/livez").await.0, 200);
    gate.signal("TERM");
    let status = gate.wait_exit(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}\n{}", gate.log());
    let refused = Gate::with(&database).set("listen", "nonsense", "1").try_run().await;
    let (status, log) = refused.err().expect("refused");
    assert_eq!(status.code(), Some(2));
    assert!(log.contains("listen.nonsense"), "{log}");
}

#[tokio::test]
async fn postgresql_goes_down_and_comes_back() {
    let mut own = Shared::start(&Options::default());
    let database = own.database().await;
    own.server.stop_server().unwrap();
    assert!(tokio_postgres::connect(&database.url, NoTls).await.is_err(), "it still answers");
    own.server.start_server().unwrap();
    let rows = database.admin().await.query_one("SELECT count(*) FROM items", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 4 * ROWS_PER_ORGANIZATION);
    let directory = own.server.socket_dir().to_owned();
    drop(own);
    assert!(!directory.exists(), "it left something behind");
}

#[tokio::test]
async fn every_version_of_postgresql_serves() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let gate = Gate::with(&database).run().await;
        let client = client::connect(&gate, "app", &gate.token(org(4)).sign()).await;
        let found =
            client::value(&client, "SELECT min(body) || ' ' || version() FROM items").await.unwrap().unwrap();
        assert!(found.starts_with("org-4 "), "{found}");
        println!("{found}");
    }
}
