//! Signing in: who is let in and as whom, who is turned away with which words, and what the servers are told.

use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pgtenant::auth::signing::{Algorithm, SigningKey};
use pgtenant::cli::demo::throwaway::Options;
use serde_json::json;

use crate::harness::client::{self, Raw, error_fields, message};
use crate::harness::gate::{Gate, Setup};
use crate::harness::issuer::{Issuer, now};
use crate::harness::postgres::{self, ROWS_PER_ORGANIZATION, Shared, password_of};
use crate::harness::{eventually, org, project};

const OF_WHOM: &str = "SELECT count(*) || ' of ' || min(body) FROM items";

#[tokio::test]
async fn a_token_of_each_algorithm_signs_in() {
    let database = postgres::shared().database().await;
    let [hs256, rs256, es256, eddsa] = [
        Issuer::hs256().named("https://hs.example.test/"),
        Issuer::rs256().named("https://rs.example.test/"),
        Issuer::es256().named("https://es.example.test/"),
        Issuer::eddsa().named("https://ed.example.test/"),
    ];
    let by_file = Issuer::eddsa().named("https://file.example.test/");
    let setup = Gate::with(&database).issuer(&hs256).another_issuer(&rs256).another_issuer(&es256);
    let gate = with_key_file(setup.another_issuer(&eddsa), &by_file).run().await;
    for issuer in [&hs256, &rs256, &es256, &eddsa, &by_file] {
        let client = client::connect(&gate, "app", &issuer.token(org(2)).sign()).await;
        let found = client::value(&client, OF_WHOM).await.unwrap();
        assert_eq!(found, Some(format!("{ROWS_PER_ORGANIZATION} of org-2")), "{}", issuer.name);
    }
}

#[tokio::test]
async fn each_issuer_speaks_for_itself_only() {
    let database = postgres::shared().database().await;
    let one = Issuer::es256().named("https://one.example.test/").for_audience("one");
    let other = Issuer::es256().named("https://other.example.test/").for_audience("other");
    let gate = Gate::with(&database).issuer(&one).another_issuer(&other).run().await;
    for (issuer, n) in [(&one, 1), (&other, 3)] {
        let client = client::connect(&gate, "app", &issuer.token(org(n)).sign()).await;
        let found = client::value(&client, "SELECT min(body) FROM items").await.unwrap();
        assert_eq!(found, Some(format!("org-{n}")));
    }
    for (token, reason) in [
        (other.clone().named(&one.name).for_audience("one").token(org(1)), "signature"),
        (one.clone().for_audience("other").token(org(1)), "audience"),
    ] {
        assert_refused(&gate, &token.sign(), reason, "across issuers").await;
    }
}

#[tokio::test]
async fn a_bad_token_is_refused_with_its_reason_and_never_logged() {
    let database = postgres::shared().database().await;
    let shared_secret = Issuer::hs256().named("https://hs.example.test/");
    let gate = Gate::with(&database).another_issuer(&shared_secret).run().await;
    let good = gate.token(org(1)).sign();
    client::connect(&gate, "app", &good).await;
    let bad = bad_tokens(&gate.issuer, &shared_secret);
    assert!(bad.len() >= 15);
    for (what, token, reason) in &bad {
        assert_refused(&gate, token, reason, what).await;
    }
    let log = eventually("every refusal in the log", async || {
        let log = gate.log();
        (log.matches("a sign-in was refused").count() >= bad.len()).then_some(log)
    })
    .await;
    for token in bad.iter().map(|(_, token, _)| token).chain([&good]).filter(|token| !token.is_empty()) {
        let parts = token.split('.').filter(|part| part.len() > 20);
        assert!(!log.contains(token.as_str()), "a token in the log: {log}");
        parts.for_each(|part| assert!(!log.contains(part), "a part of a token in the log: {log}"));
    }
}

#[tokio::test]
async fn a_long_token_is_taken_and_a_far_too_long_one_is_not() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let long = gate.token(org(4)).claim("groups", "g".repeat(12 * 1024)).sign();
    assert!(long.len() >= 16 * 1024);
    let client = client::connect(&gate, "app", &long).await;
    assert_eq!(client::value(&client, "SELECT min(body) FROM items").await.unwrap().unwrap(), "org-4");
    let too_long = gate.token(org(4)).claim("groups", "g".repeat(50 * 1024)).sign();
    assert!(too_long.len() > 64 * 1024);
    let (code, message) = refusal(&gate, "app", &[], &too_long).await;
    assert_eq!((code.as_str(), message.as_str()), ("54000", "token refused: too long"));
}

#[tokio::test]
async fn a_scram_role_signs_in_by_password_or_by_its_verifier() {
    let database = postgres::shared().database().await;
    let admin = database.admin().await;
    let verifier = client::value(&admin, "SELECT rolpassword FROM pg_authid WHERE rolname = 'plain'").await;
    let verifier = verifier.unwrap().unwrap();
    assert!(verifier.starts_with("SCRAM-SHA-256$"), "{verifier}");
    let by_password = Gate::with(&database).run().await;
    let by_verifier = Gate::with(&database).secret("roles.plain", "password", &verifier).run().await;
    for gate in [&by_password, &by_verifier] {
        let client = client::connect(gate, "plain", &password_of("plain")).await;
        assert_eq!(client::value(&client, "SELECT current_user").await.unwrap().unwrap(), "plain");
        // Nobody knows the verifier for the password.
        for wrong in ["wrong", "plain-password ", &verifier] {
            let (code, message) = driver_refusal(&client::config(gate, "plain", wrong)).await;
            assert_eq!(code, "28P01", "{wrong}: {message}");
            assert!(!gate.log().contains(&verifier), "the verifier is in the log");
        }
        assert!(!gate.log().contains(&password_of("plain")), "the password is in the log");
    }
}

#[tokio::test]
async fn what_is_not_served_is_refused_by_its_code() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let token = gate.token(org(1)).sign();
    // Who has a good token, where nobody signs in otherwise, is told what is the matter; strangers are not.
    let by_token = Gate::with(&database).remove("roles.plain").run().await;
    let good = by_token.token(org(1)).sign();
    let (code, message) = driver_refusal(&client::config(&by_token, "nobody", &good)).await;
    assert_eq!((code.as_str(), message.as_str()), ("28000", "user \"nobody\" is not configured in pgtenant"));
    let refused = refusal(&by_token, "nobody", &[], "x.y.z").await;
    assert_eq!(refused, refusal(&by_token, "app", &[], "x.y.z").await);
    let (code, message) = driver_refusal(&client::config(&gate, "nobody", &token)).await;
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("28P01", "password authentication failed for user \"nobody\"")
    );
    eventually("a line", async || gate.log().contains("no such user in [roles]").then_some(())).await;
    let (code, message) = driver_refusal(client::config(&gate, "app", &token).dbname("nowhere")).await;
    assert_eq!(code, "3D000");
    assert!(message.contains("\"nowhere\""), "{message}");
    for value in ["true", "database"] {
        assert_eq!(refusal(&gate, "app", &[("replication", value)], &token).await.0, "0A000", "{value}");
    }
    for reserved in [
        ("options", "-c pgtenant.seal=x"),
        ("options", "-c role=postgres"),
        ("options", "--session_authorization=postgres"),
        ("pgtenant.seal", "x"),
        ("role", "postgres"),
    ] {
        let (code, message) = refusal(&gate, "app", &[reserved], &token).await;
        assert_eq!(code, "42501", "{reserved:?}: {message}");
    }
    for invalid in [("TimeZone", "Mars/Olympus"), ("options", "-c work_mem=much"), ("client_encoding", "x")] {
        let (code, message) = refusal(&gate, "app", &[invalid], &token).await;
        assert_eq!(code, "22023", "{invalid:?}: {message}");
    }
    // None of that spoiled anything.
    client::connect(&gate, "app", &token).await;
}

#[tokio::test]
async fn startup_settings_are_honoured_and_reported() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let token = gate.token(org(1)).claim("name", "Jos\u{e9} \u{1f980}").sign();
    let latin = [("application_name", "billing"), ("client_encoding", "LATIN1"), ("TimeZone", "Asia/Tokyo")];
    let (mut latin, reported) = sign_in(&gate, &latin, &token).await;
    let (mut other, _) = sign_in(&gate, &[], &token).await;
    for (name, value) in
        [("application_name", "billing"), ("client_encoding", "LATIN1"), ("TimeZone", "Asia/Tokyo")]
    {
        let told: Vec<_> = reported.iter().filter(|(reported, _)| reported == name).collect();
        assert_eq!(told, [&(name.to_owned(), value.to_owned())]);
    }
    for _ in 0..3 {
        assert_eq!(first(&mut latin, "SHOW application_name").await, "billing");
        // The one byte of a Latin e with an acute accent, which is no UTF-8.
        latin.send(&message(b'Q', b"SELECT ascii('\xe9') || ' ' || length('\xe9')\0")).await;
        let answer = latin.answer().await;
        assert_eq!(answer.error, None);
        assert_eq!(answer.rows, [[Some("233 1".to_owned())]]);
        assert_eq!(first(&mut latin, "SELECT left(pgtenant.claim('name'), 4) = U&'Jos\\00e9'").await, "t");
        assert_eq!(first(&mut other, "SELECT pgtenant.claim('name')").await, "Jos\u{e9} \u{1f980}");
        assert_eq!(first(&mut other, "SHOW client_encoding").await, "UTF8");
        assert_ne!(first(&mut other, "SHOW application_name").await, "billing");
    }
}

#[tokio::test]
async fn two_time_zones_share_one_server_in_every_transaction() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let token = gate.token(org(1)).sign();
    let (mut tokyo, _) = sign_in(&gate, &[("TimeZone", "Asia/Tokyo")], &token).await;
    let (mut lima, _) = sign_in(&gate, &[("options", "-c TimeZone=America/Lima")], &token).await;
    let (mut plain, _) = sign_in(&gate, &[], &token).await;
    let usual = first(&mut plain, "SHOW timezone").await;
    let server = first(&mut plain, "SELECT pg_backend_pid()").await;
    for _ in 0..3 {
        for (client, zone) in
            [(&mut tokyo, "Asia/Tokyo"), (&mut lima, "America/Lima"), (&mut plain, usual.as_str())]
        {
            assert_eq!(client.query("BEGIN").await.status, b'T');
            assert_eq!(first(client, "SHOW timezone").await, zone);
            client.query("COMMIT").await;
            assert_eq!(first(client, "SHOW timezone").await, zone);
            assert_eq!(first(client, "SELECT pg_backend_pid()").await, server, "a pool of one server");
        }
    }
}

#[tokio::test]
async fn of_several_organizations_the_client_chooses_one() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let token = gate.token(json!([org(1), org(2)])).sign();
    for n in [1, 2] {
        let (mut client, _) = sign_in(&gate, &[("pgtenant.organization", &org(n))], &token).await;
        assert_eq!(first(&mut client, OF_WHOM).await, format!("{ROWS_PER_ORGANIZATION} of org-{n}"));
    }
    let options = format!("-c pgtenant.organization={}", org(2));
    let (mut client, _) = sign_in(&gate, &[("options", &options)], &token).await;
    assert_eq!(first(&mut client, OF_WHOM).await, format!("{ROWS_PER_ORGANIZATION} of org-2"));
    for outside in [&org(3), "x", ""] {
        let (code, message) = refusal(&gate, "app", &[("pgtenant.organization", outside)], &token).await;
        assert_eq!((code.as_str(), message.as_str()), ("28000", "token refused: no organization"));
    }
    assert_refused(&gate, &token, "no organization", "none of several was chosen").await;
}

#[tokio::test]
async fn a_token_that_expires_ends_with_the_transaction_that_runs() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).set("jwt", "leeway", r#""0s""#).run().await;
    let (mut lasting, _) = sign_in(&gate, &[], &gate.token(org(1)).sign()).await;
    let token = gate.token(org(1)).expires_in(3).sign();
    let ((mut idle, _), (mut busy, _)) =
        tokio::join!(sign_in(&gate, &[], &token), sign_in(&gate, &[], &token));
    assert_eq!(first(&mut idle, "SELECT 'at ease'").await, "at ease");
    busy.query("BEGIN").await;
    assert_eq!(busy.query("INSERT INTO items (body) VALUES ('late')").await.error, None);
    tokio::time::sleep(Duration::from_millis(4_100)).await;
    let rows = first(&mut busy, "SELECT count(*) FROM items").await;
    assert_eq!(rows, (ROWS_PER_ORGANIZATION + 1).to_string());
    let end = busy.query("COMMIT").await;
    assert_eq!((end.error, end.tags, end.status), (None, vec!["COMMIT".to_owned()], b'I'));
    let expired = Some(("28000".to_owned(), "token expired".to_owned()));
    for client in [&mut busy, &mut idle] {
        for sql in ["SELECT count(*) FROM items", "BEGIN", "SELECT 1"] {
            let answer = client.query(sql).await;
            assert_eq!((&answer.error, answer.rows.len(), answer.status), (&expired, 0, b'I'), "{sql}");
        }
    }
    assert_eq!(first(&mut lasting, "SELECT count(*) FROM items WHERE body = 'late'").await, "1");
}

#[tokio::test]
async fn a_role_of_optional_tenancy_sees_nothing_without_a_token() {
    let database = postgres::shared().database().await;
    let by_scram = Gate::with(&database).role("reports", &["scram"], "optional").run().await;
    let by_both = Gate::with(&database).role("reports", &["jwt", "scram"], "optional").run().await;
    for gate in [&by_scram, &by_both] {
        let client = client::connect(gate, "reports", &password_of("reports")).await;
        assert_eq!(client::value(&client, "SELECT count(*) FROM notes").await.unwrap().unwrap(), "10");
        let refused = client::value(&client, "SELECT count(*) FROM items").await.unwrap_err();
        let refused = refused.as_db_error().unwrap();
        assert_eq!((refused.code().code(), refused.message()), ("42501", "no tenant context"));
    }
    let client = client::connect(&by_both, "reports", &by_both.token(org(3)).sign()).await;
    let found = client::value(&client, OF_WHOM).await.unwrap();
    assert_eq!(found, Some(format!("{ROWS_PER_ORGANIZATION} of org-3")));
    assert_eq!(driver_refusal(&client::config(&by_both, "reports", "wrong")).await.0, "28P01");
}

#[tokio::test]
async fn servers_are_entered_by_md5_by_a_clear_password_and_by_trust() {
    let own = Shared::start(&Options::default());
    let database = own.database().await;
    let admin = database.admin().await;
    admin.batch_execute("SET password_encryption = 'md5'").await.unwrap();
    admin.batch_execute("ALTER ROLE app PASSWORD 'app-password'").await.unwrap();
    let rules = [("app", "md5"), ("plain", "password"), ("reports", "trust"), ("postgres", "scram-sha-256")];
    let rules = rules.map(|(role, method)| format!("host all {role} 127.0.0.1/32 {method}\n")).concat();
    std::fs::write(own.server.data_dir().join("pg_hba.conf"), rules).unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    eventually("PostgreSQL has read its rules", async || {
        // Once trust is there, anything is a password.
        let mut config: tokio_postgres::Config = database.url.parse().unwrap();
        client::connect_with(config.user("reports").password("x")).await.ok()
    })
    .await;
    let setup = Gate::with(&database).role("reports", &["scram"], "none");
    let gate = setup.unset("roles.reports", "server_password").run().await;
    for role in ["plain", "reports"] {
        let client = client::connect(&gate, role, &password_of(role)).await;
        assert_eq!(client::value(&client, "SELECT current_user").await.unwrap().unwrap(), role);
    }
    let client = client::connect(&gate, "app", &gate.token(org(2)).sign()).await;
    let found = client::value(&client, "SELECT current_user || ' ' || min(body) FROM items").await.unwrap();
    assert_eq!(found.unwrap(), "app org-2");
    // The passwords are really asked for.
    for role in ["app", "plain"] {
        let gate = Gate::with(&database).role(role, &["scram"], "none");
        let gate = gate.secret(&format!("roles.{role}"), "server_password", "wrong").run().await;
        assert_eq!(driver_refusal(&client::config(&gate, role, &password_of(role))).await.0, "08004");
    }
}

#[tokio::test]
async fn a_wrong_server_password_is_told_in_the_words_of_postgresql() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).secret("roles.plain", "server_password", "not-it").run().await;
    let (code, message) = driver_refusal(&client::config(&gate, "plain", &password_of("plain"))).await;
    assert_eq!(code, "08004");
    assert!(message.contains("password authentication failed for user \"plain\" (28P01)"), "{message}");
    assert!(!gate.log().contains("not-it"), "the server's password is in the log");
    // The other role has its own.
    client::connect(&gate, "app", &gate.token(org(1)).sign()).await;
}

#[tokio::test]
async fn while_postgresql_is_down_clients_are_told_in_time_and_then_served_again() {
    let mut own = Shared::start(&Options::default());
    let database = own.database().await;
    own.server.stop_server().unwrap();
    let gate = Gate::with(&database).set("databases.app.pool", "wait_timeout", r#""1s""#).run().await;
    let config = client::config(&gate, "plain", &password_of("plain"));
    let names_it = format!("127.0.0.1:{}", database.port);
    // Somebody waits for it the whole time, and no longer.
    let in_time = 900..3_000;
    let began = Instant::now();
    let (code, message) = driver_refusal(&config).await;
    assert!(code == "08001" && message.contains(&names_it), "{code} {message}");
    assert!(in_time.contains(&began.elapsed().as_millis()), "after {:?}", began.elapsed());
    own.server.start_server().unwrap();
    let client = client::connect_with(&config).await.unwrap();
    let notes = "SELECT count(*) FROM notes";
    assert_eq!(client::value(&client, notes).await.unwrap().unwrap(), "10");
    // Who is signed in stays so, whatever happens behind.
    own.server.stop_server().unwrap();
    let began = Instant::now();
    let error = client::value(&client, notes).await.unwrap_err();
    let told = error.as_db_error().unwrap();
    assert!(told.code().code() == "08001" && told.message().contains(&names_it), "{told:?}");
    assert!(in_time.contains(&began.elapsed().as_millis()), "after {:?}", began.elapsed());
    own.server.start_server().unwrap();
    assert_eq!(client::value(&client, notes).await.unwrap().unwrap(), "10");
}

/// An issuer whose key is a PEM file.
fn with_key_file(setup: Setup, issuer: &Issuer) -> Setup {
    let (name, audience, algorithm) = (&issuer.name, &issuer.audience, issuer.algorithm.name());
    let section = format!(
        "[[jwt.issuers]]\nissuer = {name:?}\naudience = [{audience:?}]\nalgorithms = [{algorithm:?}]\nkey_file = \"key.pem\""
    );
    setup.toml(&section).file("key.pem", issuer.key.public_pem().unwrap())
}

/// What is wrong, the token, and the reason that its sender is told.
fn bad_tokens(issuer: &Issuer, shared: &Issuer) -> Vec<(&'static str, String, &'static str)> {
    let good = || issuer.token(org(1));
    let text = good().sign();
    let parts: Vec<&str> = text.split('.').collect();
    let victim = issuer.token(org(2)).sign();
    let victims_claims = victim.split('.').nth(1).unwrap();
    let stranger = Issuer::es256();
    let namesake = stranger.key.private_pem().unwrap();
    let namesake = SigningKey::from_pem(namesake.as_bytes()).unwrap();
    let namesake = namesake.with_kid(issuer.key.kid().map(str::to_owned));
    let public = issuer.key.public_pem().unwrap();
    let confused = SigningKey::from_private(Algorithm::Hs256, public.as_bytes()).unwrap();
    let claims: serde_json::Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    // Well signed, so that only what is written in it can be the reason.
    let by_hand = |header: &str, claims: &str| {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &shared.key.private_text());
        let signature = hmac::sign(&key, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    };
    let hs = shared.token(org(1)).sign();
    let hs_claims =
        String::from_utf8(URL_SAFE_NO_PAD.decode(hs.split('.').nth(1).unwrap()).unwrap()).unwrap();
    let twice = hs_claims.replacen('{', &format!("{{\"org_id\":\"{}\",", org(2)), 1);
    vec![
        ("expired", good().expires_in(-60).sign(), "expired"),
        ("not yet valid", good().claim("nbf", now() + 60).sign(), "not yet valid"),
        ("a stranger's key", stranger.token(org(1)).sign(), "signature"),
        ("a stranger's key under our kid", namesake.sign(&claims).unwrap(), "signature"),
        (
            "other claims under the signature",
            format!("{}.{victims_claims}.{}", parts[0], parts[2]),
            "signature",
        ),
        ("no signature", format!("{}.{}.", parts[0], parts[1]), "signature"),
        ("algorithm none", format!("{none}.{}.", parts[1]), "signature"),
        ("the public key as a secret", confused.sign(&claims).unwrap(), "signature"),
        ("the other issuer's key", shared.clone().named(&issuer.name).token(org(1)).sign(), "signature"),
        ("another audience", good().claim("aud", "elsewhere").sign(), "audience"),
        ("no audience", good().without("aud").sign(), "audience"),
        ("another issuer", good().claim("iss", "https://evil.example.test/").sign(), "issuer"),
        ("almost the issuer", good().claim("iss", "https://login.example.test").sign(), "issuer"),
        ("no issuer", good().without("iss").sign(), "issuer"),
        ("no token", "plain-password-of-someone-else".to_owned(), "malformed"),
        ("two parts", format!("{}.{}", parts[0], parts[1]), "malformed"),
        ("four parts", format!("{text}.{}", parts[2]), "malformed"),
        ("padded", format!("{text}="), "malformed"),
        ("no expiry", good().without("exp").sign(), "malformed"),
        ("no subject", good().without("sub").sign(), "malformed"),
        ("a claim twice", by_hand(r#"{"alg":"HS256"}"#, &twice), "malformed"),
        ("a critical extension", by_hand(r#"{"alg":"HS256","crit":["x"]}"#, &hs_claims), "malformed"),
        (
            "a key of its own",
            by_hand(r#"{"alg":"HS256","jwk":{"kty":"oct","k":"eA"}}"#, &hs_claims),
            "malformed",
        ),
        ("no organization", good().without("org_id").sign(), "no organization"),
        ("an organization that is no uuid", good().claim("org_id", "acme").sign(), "no organization"),
        ("an empty list of organizations", good().claim("org_id", json!([])).sign(), "no organization"),
        (
            "a project that is no uuid",
            good().project(format!("{}x", project(1, 1))).sign(),
            "no organization",
        ),
    ]
}

async fn assert_refused(gate: &Gate, token: &str, reason: &str, what: &str) {
    let (code, message) = refusal(gate, "app", &[], token).await;
    assert_eq!((code.as_str(), message), ("28000", format!("token refused: {reason}")), "{what}");
}

/// How a start-up with these parameters ends when the password is given as soon as it is asked for.
async fn refusal(gate: &Gate, role: &str, params: &[(&str, &str)], password: &str) -> (String, String) {
    let mut raw = Raw::connect(gate).await;
    raw.startup(role, &gate.database, params).await;
    loop {
        match raw.read_message().await.expect("a reason before it closes") {
            (b'R', body) if body == [0, 0, 0, 3] => raw.password(password).await,
            (b'E', body) => {
                raw.expect_close().await;
                return error_fields(&body);
            }
            other => panic!("not refused: {other:?}"),
        }
    }
}

async fn driver_refusal(config: &tokio_postgres::Config) -> (String, String) {
    let error = client::connect_with(config).await.expect_err("refused");
    let told = error.as_db_error().unwrap_or_else(|| panic!("not in words: {error:?}"));
    (told.code().code().to_owned(), told.message().to_owned())
}

/// Signs in as `app` with these parameters; tells what ParameterStatus said.
async fn sign_in(gate: &Gate, params: &[(&str, &str)], token: &str) -> (Raw, Vec<(String, String)>) {
    let mut raw = Raw::connect(gate).await;
    raw.startup("app", &gate.database, params).await;
    let mut reported = Vec::new();
    loop {
        match raw.read_message().await.expect("still connected while signing in") {
            (b'R', body) if body == [0, 0, 0, 3] => raw.password(token).await,
            (b'S', body) => {
                let text = String::from_utf8(body).unwrap();
                let (name, value) = text.trim_end_matches('\0').split_once('\0').unwrap();
                reported.push((name.to_owned(), value.to_owned()));
            }
            (b'Z', _) => return (raw, reported),
            (b'E', body) => panic!("refused: {:?}", error_fields(&body)),
            _ => {}
        }
    }
}

/// The first column of the only row.
async fn first(client: &mut Raw, sql: &str) -> String {
    let answer = client.query(sql).await;
    assert_eq!((answer.error, answer.rows.len()), (None, 1), "{sql}");
    answer.rows[0][0].clone().unwrap()
}
