//! Tokens that are accepted, and forgeries that are not: the classes of RFC 8725 and more.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::auth::signing::{self, SigningKey};
use crate::config::Secret;
use serde_json::json;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://login.example.com/";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// Keys of one issuer that accepts `algorithms` with these JWKs.
fn keys_of(keys: &[&SigningKey], algorithms: &[&str]) -> Keys {
    let mut all = Vec::new();
    for key in keys {
        let set: Value = serde_json::from_str(&key.public_jwks()).unwrap();
        all.extend(set["keys"].as_array().unwrap().clone());
    }
    load_jwks(&json!({ "keys": all }), algorithms).unwrap()
}

fn load_jwks(set: &Value, algorithms: &[&str]) -> Result<Keys, KeysError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), set.to_string()).unwrap();
    load(KeySource::JwksFile(file.path().to_owned()), algorithms)
}

fn load(keys: KeySource, algorithms: &[&str]) -> Result<Keys, KeysError> {
    let issuer = Issuer {
        issuer: ISSUER.to_owned(),
        audience: vec!["pgtenant".to_owned()],
        algorithms: algorithms.iter().map(|name| (*name).to_owned()).collect(),
        keys,
    };
    Keys::load(&Jwt { issuers: vec![issuer], leeway: Duration::from_secs(5) })
}

fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": "pgtenant", "sub": "ada", "exp": NOW + 60, "org_id": "x" })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

/// A token whose header is written by hand and whose signature is right (ES256 signs whatever stands there).
fn with_header(key: &SigningKey, header: &str, payload: &str) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let pem = key.private_text();
    let encoding = jsonwebtoken::EncodingKey::from_ec_pem(&pem).unwrap();
    let signature =
        jsonwebtoken::crypto::sign(signed.as_bytes(), &encoding, jsonwebtoken::Algorithm::ES256).unwrap();
    format!("{signed}.{signature}")
}

#[test]
fn every_algorithm_and_key_source_verifies() {
    for algorithm in [signing::Algorithm::Rs256, signing::Algorithm::Es256, signing::Algorithm::EdDsa] {
        let key = SigningKey::generate(algorithm).unwrap();
        let token = key.sign(&claims()).unwrap();
        let verified = verify(&token, &keys_of(&[&key], &[algorithm.name()]), now()).unwrap();
        assert_eq!((verified.subject(), verified.issuer(), verified.expires_at()), ("ada", ISSUER, NOW + 60));

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), key.public_pem()).unwrap();
        let by_file = load(KeySource::KeyFile(file.path().to_owned()), &[algorithm.name()]).unwrap();
        assert!(verify(&token, &by_file, now()).is_ok(), "{algorithm:?} by key file");

        let restored = SigningKey::from_pem(&key.private_text()).unwrap();
        assert_eq!(restored.kid(), key.kid());
    }
    let secret = SigningKey::generate(signing::Algorithm::Hs256).unwrap();
    let keys = load(KeySource::Secret(Secret::new(secret.private_text().to_vec())), &["HS256"]).unwrap();
    assert!(verify(&secret.sign(&claims()).unwrap(), &keys, now()).is_ok());
}

#[test]
fn claims_that_do_not_hold_are_refused() {
    use TokenError::*;
    let key = SigningKey::generate(signing::Algorithm::EdDsa).unwrap();
    let keys = keys_of(&[&key], &["EdDSA"]);
    let malformed = Malformed("");
    let same = |a: TokenError, b: TokenError| std::mem::discriminant(&a) == std::mem::discriminant(&b);
    for (claims, expected) in [
        (without("iss"), Issuer),
        (with("iss", json!("https://evil.example/")), Issuer),
        (with("iss", json!([ISSUER])), Issuer),
        (with("iss", json!(ISSUER.trim_end_matches('/'))), Issuer),
        (without("aud"), Audience),
        (with("aud", json!("other")), Audience),
        (with("aud", json!(["other"])), Audience),
        (with("aud", json!(["pgtenant", 1])), Audience),
        (with("aud", json!({"pgtenant": true})), Audience),
        (with("aud", json!("pgtenant2")), Audience),
        (without("exp"), malformed),
        (with("exp", json!("2000000000")), malformed),
        (with("exp", json!(-1)), malformed),
        (with("exp", json!(1e300)), malformed),
        (with("exp", json!((NOW + 60) * 1000)), malformed),
        (with("exp", json!(null)), malformed),
        (with("exp", json!(true)), malformed),
        (with("exp", json!(NOW - 6)), Expired),
        (with("exp", json!(0)), Expired),
        (with("nbf", json!(NOW + 6)), NotYetValid),
        (with("nbf", json!("now")), malformed),
        (without("sub"), malformed),
        (with("sub", json!(7)), malformed),
        (with("sub", json!("")), malformed),
        (with("sub", json!("a\u{0}b")), malformed),
        (with("sub", json!("a\nb")), malformed),
    ] {
        let refused = verify(&key.sign(&claims).unwrap(), &keys, now()).unwrap_err();
        assert!(same(refused, expected), "{claims}: {refused:?}");
    }
    for accepted in [
        with("exp", json!(NOW - 5)),
        with("exp", json!(NOW as f64 + 0.5)),
        with("nbf", json!(NOW + 5)),
        with("aud", json!(["other", "pgtenant"])),
        with("padding", json!("x".repeat(16 * 1024))),
    ] {
        assert!(verify(&key.sign(&accepted).unwrap(), &keys, now()).is_ok());
    }
}

#[test]
fn forged_headers_and_shapes_are_refused() {
    let key = SigningKey::generate(signing::Algorithm::Es256).unwrap();
    let keys = keys_of(&[&key], &["ES256"]);
    let payload = claims().to_string();
    let kid = key.kid().unwrap();
    assert!(
        verify(&with_header(&key, &json!({"alg": "ES256", "kid": kid}).to_string(), &payload), &keys, now())
            .is_ok()
    );
    assert!(
        verify(
            &with_header(&key, &json!({"alg": "ES256", "typ": "at+JWT"}).to_string(), &payload),
            &keys,
            now()
        )
        .is_ok()
    );
    for header in [
        json!({"alg": "none"}),
        json!({"alg": "None"}),
        json!({"alg": "nOnE"}),
        json!({"alg": ""}),
        json!({"alg": null}),
        json!({}),
        json!({"alg": ["ES256"]}),
        json!({"alg": "HS256", "kid": kid}),
        json!({"alg": "ES384", "kid": kid}),
        json!({"alg": "RS256", "kid": kid}),
        json!({"alg": "ES256", "kid": "other"}),
        json!({"alg": "ES256", "kid": "../../../dev/null"}),
        json!({"alg": "ES256", "kid": 7}),
        json!({"alg": "ES256", "jwk": {"kty": "EC"}}),
        json!({"alg": "ES256", "jku": "https://evil.example/"}),
        json!({"alg": "ES256", "x5u": "https://evil.example/"}),
        json!({"alg": "ES256", "x5c": []}),
        json!({"alg": "ES256", "crit": ["exp"]}),
        json!({"alg": "ES256", "crit": []}),
        json!({"alg": "ES256", "b64": false}),
        json!({"alg": "ES256", "zip": "DEF"}),
        json!({"alg": "ES256", "typ": "JWE"}),
        json!({"alg": "ES256", "typ": 1}),
    ] {
        let token = with_header(&key, &header.to_string(), &payload);
        assert!(verify(&token, &keys, now()).is_err(), "{header}");
    }
    for (header, payload) in [
        (r#"{"alg":"ES256","alg":"ES256"}"#, payload.clone()),
        (r#"{"alg":"ES256"}"#, payload.replacen('{', r#"{"org_id":"y","#, 1)),
        (r#"["ES256"]"#, payload.clone()),
        (r#"{"alg":"ES256"}"#, format!("[{payload}]")),
        (r#"{"alg":"ES256"}"#, format!("{payload}{payload}")),
        (r#"{"alg":"ES256"}"#, "x".to_owned()),
    ] {
        assert!(verify(&with_header(&key, header, &payload), &keys, now()).is_err(), "{header} {payload}");
    }
}

#[test]
fn tampered_texts_are_refused() {
    let key = SigningKey::generate(signing::Algorithm::Es256).unwrap();
    let keys = keys_of(&[&key], &["ES256"]);
    let token = key.sign(&claims()).unwrap();
    assert!(verify(&token, &keys, now()).is_ok());
    let parts: Vec<&str> = token.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    let other_payload = URL_SAFE_NO_PAD.encode(with("org_id", json!("y")).to_string());
    let zeros = URL_SAFE_NO_PAD.encode([0; 64]);
    let unsigned = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    for forged in [
        format!("{header}.{other_payload}.{signature}"),
        format!("{header}.{payload}."),
        format!("{header}.{payload}"),
        format!("{header}.{payload}.{}", &signature[..signature.len() - 2]),
        format!("{header}.{payload}.{zeros}"),
        format!("{header}.{payload}.{signature}."),
        format!("{header}.{payload}.{signature}.{signature}"),
        format!("{header}.{payload}.{signature}="),
        format!(" {token}"),
        format!("{token} "),
        format!("{header}.{payload}=.{signature}"),
        format!("{unsigned}.{payload}."),
        format!("{unsigned}.{payload}.{signature}"),
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "a.b.c".to_owned(),
        "\u{0}.\u{0}.\u{0}".to_owned(),
        format!("{header}.{payload}.{}", "A".repeat(MAX_TOKEN_BYTES)),
    ] {
        assert!(verify(&forged, &keys, now()).is_err(), "{}", &forged[..forged.len().min(200)]);
    }
}

#[test]
fn keys_are_not_confused_with_one_another() {
    let (rsa, ec) = (
        SigningKey::generate(signing::Algorithm::Rs256).unwrap(),
        SigningKey::generate(signing::Algorithm::Es256).unwrap(),
    );
    let keys = keys_of(&[&rsa, &ec], &["RS256", "ES256"]);
    // The public key taken as a shared secret (CVE-2015-9235 and its many descendants).
    for public in [rsa.public_pem(), ec.public_pem()] {
        let forger = SigningKey::from_private(signing::Algorithm::Hs256, public.into_bytes()).unwrap();
        for kid in [None, rsa.kid().map(str::to_owned)] {
            let forger =
                SigningKey::from_private(signing::Algorithm::Hs256, forger.private_text().to_vec()).unwrap();
            let token = forger.with_kid(kid).sign(&claims()).unwrap();
            assert!(matches!(verify(&token, &keys, now()), Err(TokenError::Signature(_))));
        }
    }
    let stranger = SigningKey::generate(signing::Algorithm::Es256).unwrap();
    let token = stranger.sign(&claims()).unwrap();
    assert!(matches!(verify(&token, &keys, now()), Err(TokenError::Signature(_))));
    let token = stranger.with_kid(ec.kid().map(str::to_owned)).sign(&claims()).unwrap();
    assert_eq!(verify(&token, &keys, now()).unwrap_err(), TokenError::Signature("wrong"));
    // Two keys of one algorithm and no kid: which one is not guessed.
    let second = SigningKey::generate(signing::Algorithm::Es256).unwrap();
    let two = keys_of(&[&ec, &second], &["ES256"]);
    let nameless = second.with_kid(None).sign(&claims()).unwrap();
    assert!(matches!(verify(&nameless, &two, now()), Err(TokenError::Signature(_))));
}

#[test]
fn only_public_signing_keys_of_accepted_algorithms_are_taken_from_a_jwks() {
    let key = SigningKey::generate(signing::Algorithm::Es256).unwrap();
    let set: Value = serde_json::from_str(&key.public_jwks()).unwrap();
    let jwk = set["keys"][0].clone();
    let changed = |name: &str, value: Value| {
        let mut jwk = jwk.clone();
        jwk[name] = value;
        json!({ "keys": [jwk] })
    };
    for bad in [
        changed("use", json!("enc")),
        changed("alg", json!("RS256")),
        changed("crv", json!("P-384")),
        changed("key_ops", json!(["sign"])),
        json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" }] }),
        json!({ "keys": [{ "kty": "RSA", "n": "AQAB", "e": "AQAB" }] }),
        json!({ "keys": [] }),
    ] {
        assert!(load_jwks(&bad, &["ES256", "RS256", "HS256"]).is_err(), "{bad}");
    }
    assert!(load_jwks(&changed("key_ops", json!(["verify"])), &["ES256"]).is_ok());
    assert!(load_jwks(&set, &["EdDSA"]).is_err(), "ES256 is not accepted");
    assert!(load_jwks(&json!([]), &["ES256"]).is_err());
}

#[test]
fn a_thumbprint_is_that_of_rfc_7638() {
    let jwk = json!({
        "e": "AQAB", "kty": "RSA",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs\
              tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbI\
              SD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
    });
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, jwk.to_string().as_bytes());
    assert_eq!(URL_SAFE_NO_PAD.encode(hash), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
}
