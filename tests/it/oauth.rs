//! OAUTHBEARER, as libpq 18 speaks it (its own suite of cases is in tests/drivers: `oauth` of psycopg 3).

use crate::harness::client::{Raw, message};
use crate::harness::gate::{Gate, Setup};
use crate::harness::{org, postgres};

const WHOSE: &str = "SELECT DISTINCT body FROM items";

fn setup(database: &postgres::Database, methods: &[&str]) -> Setup {
    let setup = Gate::with(database).set("roles.app", "sign_in", &format!("{methods:?}"));
    match methods.contains(&"scram") {
        true => setup.secret("roles.app", "password", &postgres::password_of("app")),
        false => setup,
    }
}

/// The mechanisms that are offered, by name; or what is asked for instead.
async fn offered(raw: &mut Raw) -> Vec<String> {
    let (kind, body) = raw.read_message().await.unwrap();
    assert_eq!(kind, b'R');
    match body[..4] {
        [0, 0, 0, 10] => {
            let names = body[4..].split(|byte| *byte == 0).filter(|name| !name.is_empty());
            names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect()
        }
        ref other => vec![format!("{other:?}")],
    }
}

async fn answer(raw: &mut Raw, mechanism: &str, data: &[u8]) {
    let length = (data.len() as u32).to_be_bytes();
    raw.send(&message(b'p', &[mechanism.as_bytes(), b"\0", &length, data].concat())).await;
}

async fn begin(gate: &Gate, user: &str, parameters: &[(&str, &str)]) -> Raw {
    let mut raw = Raw::connect(gate).await;
    raw.startup(user, "app", parameters).await;
    raw
}

fn bearer(token: &str) -> Vec<u8> {
    format!("n,,\x01auth=Bearer {token}\x01\x01").into_bytes()
}

#[tokio::test]
async fn a_bearer_token_signs_in() {
    let database = postgres::shared().database().await;
    let gate = setup(&database, &["oauth"]).run().await;
    let mut raw = begin(&gate, "app", &[]).await;
    assert_eq!(offered(&mut raw).await, ["OAUTHBEARER"]);
    answer(&mut raw, "OAUTHBEARER", &bearer(&gate.token(org(2)).sign())).await;
    assert_eq!(
        raw.read_message().await.unwrap(),
        (b'R', vec![0, 0, 0, 0]),
        "AuthenticationOk, and no SASLFinal before it"
    );
    raw.answer().await;
    assert_eq!(raw.query(WHOSE).await.rows[0][0].as_deref(), Some("org-2"));
}

/// libpq 18 asks without a token first, where it has none; and hears the same when its token is refused.
#[tokio::test]
async fn who_has_no_good_token_is_told_where_to_get_one() {
    let database = postgres::shared().database().await;
    let gate = setup(&database, &["oauth"]).toml("").run().await;
    let expired = bearer(&gate.token(org(1)).expires_in(-3600).sign());
    for (data, told) in [
        (b"n,,\x01auth=\x01\x01".to_vec(), "OAuth bearer authentication failed for user \"app\""),
        (expired, "token refused: expired"),
        (bearer("eyJ.e30.x"), "token refused: malformed"),
    ] {
        let mut raw = begin(&gate, "app", &[]).await;
        offered(&mut raw).await;
        answer(&mut raw, "OAUTHBEARER", &data).await;
        let (kind, body) = raw.read_message().await.unwrap();
        assert_eq!((kind, &body[..4]), (b'R', &[0, 0, 0, 11][..]));
        let challenge: serde_json::Value = serde_json::from_slice(&body[4..]).unwrap();
        assert_eq!(
            challenge,
            serde_json::json!({
                "status": "invalid_token",
                "openid-configuration": "https://login.example.test//.well-known/openid-configuration",
                "scope": "openid",
            })
        );
        raw.send(&message(b'p', b"\x01")).await;
        assert_eq!(raw.expect_error().await, ("28000".to_owned(), told.to_owned()));
        raw.expect_close().await;
    }
    let log = gate.log();
    assert!(!log.contains("eyJ"), "{log}");
    let (_, metrics) = gate.http("/metrics").await;
    assert!(metrics.contains("pgtenant_sign_ins_total{result=\"discovery\"} 1"), "{metrics}");
}

#[tokio::test]
async fn malformed_messages_are_refused() {
    let database = postgres::shared().database().await;
    let gate = setup(&database, &["oauth"]).run().await;
    let good = gate.token(org(1)).sign();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("OAUTHBEARER", b"".to_vec()),
        ("OAUTHBEARER", format!("n,a=postgres,\x01auth=Bearer {good}\x01\x01").into()),
        ("OAUTHBEARER", format!("p=tls-exporter,,\x01auth=Bearer {good}\x01\x01").into()),
        ("OAUTHBEARER", format!("n,,\x01auth=Bearer {good}\x01auth=Bearer {good}\x01\x01").into()),
        ("OAUTHBEARER", format!("n,,\x01auth=Bearer {good}\x01\x01\x01").into()),
        ("OAUTHBEARER", format!("n,,\x01auth=Basic {good}\x01\x01").into()),
        ("SCRAM-SHA-256", b"n,,n=,r=abc".to_vec()),
        ("PLAIN", bearer(&good)),
    ];
    for (mechanism, data) in cases {
        let mut raw = begin(&gate, "app", &[]).await;
        offered(&mut raw).await;
        answer(&mut raw, mechanism, &data).await;
        assert_eq!(raw.expect_error().await.0, "08P01", "{mechanism} {}", String::from_utf8_lossy(&data));
    }
    // Too long is told before it is read; no answer to the challenge is none.
    let mut raw = begin(&gate, "app", &[]).await;
    offered(&mut raw).await;
    answer(&mut raw, "OAUTHBEARER", &bearer(&"a".repeat(70_000))).await;
    assert_eq!(raw.expect_error().await.0, "54000");
    let mut raw = begin(&gate, "app", &[]).await;
    offered(&mut raw).await;
    answer(&mut raw, "OAUTHBEARER", b"n,,\x01auth=\x01\x01").await;
    raw.read_message().await.unwrap();
    raw.send(&message(b'p', &bearer(&good))).await;
    assert_eq!(raw.expect_error().await.0, "08P01");
}

/// The protocol asks for one thing at a time: a user that may do either says which.
#[tokio::test]
async fn mechanisms_are_offered_as_the_role_says() {
    let database = postgres::shared().database().await;
    for (methods, sign_in, expected) in [
        (&["oauth"][..], None, &["OAUTHBEARER"][..]),
        (&["oauth", "scram"], None, &["OAUTHBEARER", "SCRAM-SHA-256"]),
        (&["jwt", "oauth"], None, &["[0, 0, 0, 3]"]),
        (&["jwt", "oauth"], Some("oauth"), &["OAUTHBEARER"]),
        (&["jwt", "oauth", "scram"], Some("oauth"), &["OAUTHBEARER", "SCRAM-SHA-256"]),
        (&["jwt"], Some("oauth"), &["[0, 0, 0, 3]"]),
        (&["scram"], Some("oauth"), &["SCRAM-SHA-256"]),
    ] {
        let gate = setup(&database, methods).run().await;
        let parameters: Vec<_> = sign_in.map(|way| ("pgtenant.sign_in", way)).into_iter().collect();
        let mut raw = begin(&gate, "app", &parameters).await;
        assert_eq!(offered(&mut raw).await, expected, "{methods:?} {sign_in:?}");
        let mut raw = begin(&gate, "app", &[("options", "-c pgtenant.sign_in=kerberos")]).await;
        assert_eq!(raw.expect_error().await.0, "22023");
    }
}

#[tokio::test]
async fn strangers_hear_what_others_hear() {
    let database = postgres::shared().database().await;
    let gate = setup(&database, &["oauth"]).run().await;
    let mut raw = begin(&gate, "nobody", &[("pgtenant.sign_in", "oauth")]).await;
    assert!(offered(&mut raw).await.contains(&"OAUTHBEARER".to_owned()));
    answer(&mut raw, "OAUTHBEARER", &bearer("eyJ.e30.x")).await;
    raw.read_message().await.unwrap();
    raw.send(&message(b'p', b"\x01")).await;
    assert_eq!(raw.expect_error().await.1, "token refused: malformed");
    let mut raw = begin(&gate, "nobody", &[("pgtenant.sign_in", "oauth")]).await;
    offered(&mut raw).await;
    answer(&mut raw, "OAUTHBEARER", &bearer(&gate.token(org(1)).sign())).await;
    assert!(raw.expect_error().await.1.contains("is not configured"));
}
