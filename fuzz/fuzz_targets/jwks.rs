//! JWK Sets: no more keys are taken than are public, usable and there; what has none changes nothing.
#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use pgtenant::auth::token::{Keys, verify};
use pgtenant_fuzz::issuers::{ISSUERS, NOW, jwks, keys, token};
use serde_json::Value;

static KEYS: LazyLock<Keys> = LazyLock::new(keys);

static TOKEN: LazyLock<String> = LazyLock::new(|| {
    let claims = format!(r#"{{"iss":"{}","aud":"pgtenant","sub":"u","exp":{NOW}}}"#, ISSUERS[0]);
    token(br#"{"alg":"EdDSA","kid":"ed"}"#, claims.as_bytes(), 0)
});

/// The text of the key that the token was made with, in its JWK Set.
static KEY: LazyLock<String> = LazyLock::new(|| {
    let set: Value = serde_json::from_str(&jwks()).expect("JSON");
    set["keys"][0]["x"].as_str().expect("a text").to_owned()
});

fuzz_target!(|data: &[u8]| {
    let is_accepted = || verify(&TOKEN, &KEYS, UNIX_EPOCH + Duration::from_secs(NOW)).is_ok();
    match KEYS.take(0, data) {
        Err(error) => {
            assert!(is_accepted(), "the former keys are gone: {error}");
            assert!(error.to_string().contains(ISSUERS[0]));
            return;
        }
        Ok(count) => {
            let set: Value = serde_json::from_slice(data).expect("JSON");
            let listed = set["keys"].as_array().expect("an array");
            let usable: Vec<&Value> = listed.iter().filter(|key| may_be_used(key)).collect();
            assert!(count > 0 && count <= usable.len(), "{count} keys of {set}");
            let is_there = |key: &&Value| key["x"] == **KEY && key["kid"] == "ed";
            assert!(!is_accepted() || usable.iter().any(is_there), "a key that is not there: {set}");
        }
    }
    KEYS.take(0, jwks().as_bytes()).expect("a usable key");
    assert!(is_accepted());
});

/// RFC 7517 and RFC 8037, of a key for EdDSA, which is all that this issuer may use.
fn may_be_used(key: &Value) -> bool {
    let is_absent_or =
        |name: &str, value: &str| key.get(name).is_none_or(|found| found == value || found.is_null());
    key["kty"] == "OKP"
        && key["crv"] == "Ed25519"
        && key["x"].as_str().is_some_and(|x| x.trim_end_matches('=').len() == 43)
        && key.get("d").is_none()
        && is_absent_or("use", "sig")
        && is_absent_or("alg", "EdDSA")
        && key.get("key_ops").is_none_or(|ops| {
            ops.is_null() || ops.as_array().is_some_and(|ops| ops.contains(&"verify".into()))
        })
}
