//! Keys that are fetched by HTTPS from real endpoints: new keys, outages, and endpoints that mean no good. And keys in files
//! that change.

use std::time::{Duration, Instant};

use crate::harness::client::{connect, try_connect, value};
use crate::harness::endpoint::{Behaviour, Endpoint};
use crate::harness::gate::{Gate, Setup};
use crate::harness::issuer::Issuer;
use crate::harness::{eventually, org, postgres};
use crate::switching::metric;

fn serves(issuer: &Issuer) -> Behaviour {
    Behaviour::Serves(issuer.key.public_jwks())
}

fn setup(database: &postgres::Database, issuer: &Issuer, endpoint: &Endpoint) -> Setup {
    Gate::with(database).issuer(issuer).jwks(&endpoint.url(), &endpoint.authority.pem)
}

async fn signs_in(gate: &Gate, issuer: &Issuer) -> bool {
    match try_connect(gate, "app", &issuer.token(org(1)).sign()).await {
        Ok(client) => {
            let seen = value(&client, "SELECT DISTINCT body FROM items").await.unwrap();
            assert_eq!(seen.as_deref(), Some("org-1"));
            true
        }
        Err(error) => {
            let error = error.as_db_error().expect("a refusal").clone();
            assert_eq!((error.code().code(), error.message()), ("28000", "token refused: signature"));
            false
        }
    }
}

#[tokio::test]
async fn a_new_key_is_fetched_when_the_first_token_names_it() {
    let database = postgres::shared().database().await;
    let (old, new, newer) = (Issuer::es256(), Issuer::es256(), Issuer::es256());
    let endpoint = Endpoint::start(&["localhost"], serves(&old)).await;
    let gate = setup(&database, &old, &endpoint).run().await;
    assert!(signs_in(&gate, &old).await);
    assert_eq!(endpoint.requests(), 1, "fetched once, at the start");
    endpoint.now(serves(&new));
    assert!(!signs_in(&gate, &Issuer::es256()).await, "nobody's key");
    assert!(signs_in(&gate, &new).await);
    assert!(!signs_in(&gate, &old).await, "what is no longer published is no longer believed");
    assert_eq!(endpoint.requests(), 2);
    // Whoever sends tokens of unknown keys makes no more of them.
    endpoint.now(serves(&newer));
    let tries = (0..20).map(|_| async { signs_in(&gate, &Issuer::es256()).await });
    assert!(!futures_util::future::join_all(tries).await.contains(&true));
    assert_eq!(endpoint.requests(), 2);
    assert_eq!(metric(&gate, "pgtenant_jwks_refreshes_total{").await, 2.0);
    let age = metric(&gate, "pgtenant_jwks_age_seconds{").await;
    assert!(age < 60.0, "{age}");
    let (_, metrics) = gate.http("/metrics").await;
    assert!(metrics.contains("issuer=\"https://login.example.test/\",result=\"ok\""), "{metrics}");
}

#[tokio::test]
async fn a_token_switched_on_a_live_connection_may_name_a_new_key() {
    let database = postgres::shared().database().await;
    let (old, new) = (Issuer::es256(), Issuer::es256());
    let endpoint = Endpoint::start(&["localhost"], serves(&old)).await;
    let gate = setup(&database, &old, &endpoint).run().await;
    let client = connect(&gate, "app", &old.token(org(1)).sign()).await;
    endpoint.now(serves(&new));
    client.batch_execute(&format!("SET pgtenant.token = '{}'", new.token(org(2)).sign())).await.unwrap();
    assert_eq!(value(&client, "SELECT DISTINCT body FROM items").await.unwrap().unwrap(), "org-2");
}

/// The proxy starts without the keys, says so, and has them as soon as the endpoint is back.
#[tokio::test]
async fn an_endpoint_that_is_down_at_the_start_is_asked_again() {
    let database = postgres::shared().database().await;
    let issuer = Issuer::es256();
    let other = Issuer::es256().named("https://other.example.test/");
    let down = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
    let endpoint = Endpoint::start(&["localhost"], Behaviour::Says(down.to_owned())).await;
    let gate = setup(&database, &issuer, &endpoint).another_issuer(&other).run().await;
    assert!(!signs_in(&gate, &issuer).await);
    assert!(signs_in(&gate, &other).await, "the other issuer's tokens are good");
    let (status, why) = gate.http("/readyz").await;
    assert!(status == 503 && why.contains("no keys from https://localhost") && why.contains("503"), "{why}");
    endpoint.now(serves(&issuer));
    eventually("the keys are there", async || signs_in(&gate, &issuer).await.then_some(())).await;
    eventually("it is ready", async || (gate.http("/readyz").await.0 == 200).then_some(())).await;
}

/// Each is asked for by a token of an unknown key; what is known stays in use.
#[tokio::test]
async fn a_hostile_endpoint_changes_nothing_and_holds_nobody_up() {
    let database = postgres::shared().database().await;
    let issuer = Issuer::es256();
    let good = issuer.key.public_jwks();
    let secret = r#"{"keys":[{"kty":"oct","alg":"HS256","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}]}"#;
    let says = |head: &str, body: &str| {
        Behaviour::Says(format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n{body}"))
    };
    for (behaviour, result, told) in [
        (Behaviour::Hangs, "failed", "no answer within 5s"),
        (Behaviour::Drips, "failed", "no answer within 5s"),
        (Behaviour::Floods, "failed", "at most 262144 bytes"),
        (says("200 OK\r\ncontent-length: 999999999", "{"), "failed", "at most 262144 bytes"),
        (says("302 Found\r\nlocation: https://localhost/", ""), "failed", "redirects are not followed"),
        (says("500 Oops", &good), "failed", "HTTP 500"),
        (says("200 OK", ""), "unusable", "no JWK Set"),
        (says("200 OK", "{\"keys\":[]}"), "unusable", "holds no usable key"),
        (says("200 OK", "{\"keys\":[],\"keys\":[]}"), "unusable", "no JWK Set"),
        (says("200 OK", secret), "unusable", "a shared secret has no place"),
        (Behaviour::Says("ssh-2.0 hello\r\n".to_owned()), "failed", "HTTP"),
        (Behaviour::Says(String::new()), "failed", "HTTP"),
    ] {
        let endpoint = Endpoint::start(&["localhost"], serves(&issuer)).await;
        let gate = setup(&database, &issuer, &endpoint).run().await;
        endpoint.now(behaviour);
        let started = Instant::now();
        let (stranger, known) = tokio::join!(signs_in_as(&gate, Issuer::es256()), signs_in(&gate, &issuer));
        assert!(!stranger && known, "{told}");
        assert!(started.elapsed() < Duration::from_secs(20));
        assert!(signs_in(&gate, &issuer).await, "{told}");
        let log =
            eventually("the log tells", async || Some(gate.log()).filter(|log| log.contains(told))).await;
        assert!(log.contains("those that are known stay in use"), "{log}");
        let (_, metrics) = gate.http("/metrics").await;
        assert!(metrics.contains(&format!("result=\"{result}\"}} 1")), "{result}: {metrics}");
    }
}

async fn signs_in_as(gate: &Gate, issuer: Issuer) -> bool {
    signs_in(gate, &issuer).await
}

#[tokio::test]
async fn an_endpoint_must_be_who_it_says() {
    let database = postgres::shared().database().await;
    let issuer = Issuer::es256();
    // Another name in its certificate; another authority.
    let misnamed = Endpoint::start(&["login.example.test"], serves(&issuer)).await;
    let endpoint = Endpoint::start(&["localhost"], serves(&issuer)).await;
    for (url, authority) in [(misnamed.url(), &misnamed.authority), (endpoint.url(), &misnamed.authority)] {
        let gate = Gate::with(&database).issuer(&issuer).jwks(&url, &authority.pem).run().await;
        assert!(!signs_in(&gate, &issuer).await);
        assert!(gate.log().contains("TLS: invalid peer certificate"), "{}", gate.log());
        assert_eq!(misnamed.requests() + endpoint.requests(), 0);
    }
}

#[tokio::test]
async fn keys_in_files_are_loaded_anew_when_they_change() {
    let database = postgres::shared().database().await;
    let (old, new) = (Issuer::es256(), Issuer::es256());
    let gate = Gate::with(&database).issuer(&old).run().await;
    assert!(signs_in(&gate, &old).await && !signs_in(&gate, &new).await);
    let file = gate.config().folder().join("issuer-0");
    std::fs::write(&file, "{\"keys\":[]}").unwrap();
    eventually("the log tells", async || gate.log().contains("former ones stay in use").then_some(())).await;
    assert!(signs_in(&gate, &old).await);
    std::fs::write(&file, new.key.public_jwks()).unwrap();
    eventually("the new key is believed", async || signs_in(&gate, &new).await.then_some(())).await;
    assert!(!signs_in(&gate, &old).await);
}
