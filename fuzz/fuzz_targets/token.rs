//! Tokens: nothing unsigned is accepted, and of what is signed only what a second reading of the rules accepts.
#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use pgtenant::auth::token::{Keys, TokenError, verify};
use pgtenant_fuzz::issuers::{ALGORITHMS, ISSUERS, LEEWAY, NOW, keys, token};
use serde_json::Value;

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let keys = keys();
    let claims = format!(r#"{{"iss":"{}","aud":"pgtenant","sub":"u","exp":{NOW}}}"#, ISSUERS[0]);
    let good = token(br#"{"alg":"EdDSA","kid":"ed"}"#, claims.as_bytes(), 0);
    verify(&good, &keys, UNIX_EPOCH + Duration::from_secs(NOW)).expect("a good token");
    keys
});

// A byte that says how it is signed, one that moves the clock, and header and claims with a NUL between them; or a token
// that nobody signed.
fuzz_target!(|data: &[u8]| {
    let [how, clock, text @ ..] = data else { return };
    let now = NOW + u64::from(*clock) - 128;
    let at = UNIX_EPOCH + Duration::from_secs(now);
    let signer = usize::from(how & 1);
    if how & 2 != 0 {
        let Ok(text) = std::str::from_utf8(text) else { return };
        assert!(verify(text, &KEYS, at).is_err(), "nobody signed it");
        return;
    }
    let Some(middle) = text.iter().position(|byte| *byte == 0) else { return };
    let (header, claims) = (&text[..middle], &text[middle + 1..]);
    let token = token(header, claims, signer);
    let verified = verify(&token, &KEYS, at);
    let expected = read(header, claims, signer, now as f64);
    match (verified, expected) {
        (Ok(verified), Some(expected)) => {
            assert_eq!(
                (verified.issuer(), verified.subject()),
                (ISSUERS[signer], expected["sub"].as_str().unwrap())
            );
            assert_eq!(verified.expires_at(), expected["exp"].as_f64().unwrap() as u64);
            assert_eq!(Value::Object(verified.claims().clone()), expected);
        }
        (Ok(_), None) => panic!("accepted: {} {}", header.escape_ascii(), claims.escape_ascii()),
        // The library reads a few members of its own more strictly than we have to.
        (Err(TokenError::Malformed("a field of its header or claims has a wrong type")), Some(_)) => {}
        (Err(error), Some(_)) => {
            panic!("{error:?}: {} {}", header.escape_ascii(), claims.escape_ascii())
        }
        (Err(_), None) => {}
    }
    if how & 4 != 0 {
        let (rest, _) = token.rsplit_once('.').expect("three parts");
        assert!(verify(&format!("{rest}."), &KEYS, at).is_err(), "without its signature");
        let unsigned = pgtenant_fuzz::issuers::token(header, claims, 1 - signer);
        let other = verify(&unsigned, &KEYS, at);
        assert!(other.is_err() || read(header, claims, 1 - signer, now as f64).is_some());
    }
});

/// The claims, if they are good.
fn read(header: &[u8], claims: &[u8], signer: usize, now: f64) -> Option<Value> {
    let (header, claims) = (object(header)?, object(claims)?);
    let refused = ["jwk", "jku", "x5u", "x5c", "crit", "b64", "zip"];
    let is_absent_or = |value: &Value, fits: &dyn Fn(&str) -> bool| match value {
        Value::String(text) => fits(text),
        _ => false,
    };
    let is_header_good = header["alg"] == ALGORITHMS[signer]
        && refused.iter().all(|name| header.get(name).is_none())
        && header.get("typ").is_none_or(|typ| {
            is_absent_or(typ, &|typ| ["jwt", "at+jwt"].contains(&&*typ.to_ascii_lowercase()))
        })
        && header.get("kid").is_none_or(|kid| is_absent_or(kid, &|kid| signer == 1 || kid == "ed"));
    let is_audience = match &claims["aud"] {
        Value::Array(all) => all.iter().all(Value::is_string) && all.contains(&"pgtenant".into()),
        one => one == "pgtenant",
    };
    let time = |name: &str| claims[name].as_f64().filter(|time| (0.0..=253_402_300_799.0).contains(time));
    let (expires, starts) = (time("exp")?, time("nbf"));
    let leeway = LEEWAY as f64;
    let is_timely = expires + leeway >= now
        && (claims.get("nbf").is_none() || starts.is_some_and(|starts| starts <= now + leeway));
    let subject = claims["sub"].as_str()?;
    let is_good = is_header_good
        && is_audience
        && is_timely
        && claims["iss"] == ISSUERS[signer]
        && !subject.is_empty()
        && !subject.chars().any(char::is_control);
    is_good.then_some(claims)
}

/// An object with distinct names and no NUL.
fn object(bytes: &[u8]) -> Option<Value> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let is_plain = value.is_object() && members(&value) == Some(colons(bytes));
    is_plain.then_some(value)
}

/// How many members there are at every depth; none if a NUL is in a text.
fn members(value: &Value) -> Option<usize> {
    match value {
        Value::Object(object) => object.iter().try_fold(0, |count, (name, value)| {
            (!name.contains('\0')).then_some(count + 1 + members(value)?)
        }),
        Value::Array(values) => values.iter().try_fold(0, |count, value| Some(count + members(value)?)),
        Value::String(text) if text.contains('\0') => None,
        _ => Some(0),
    }
}

/// How many there are in writing, also where one stands twice.
fn colons(bytes: &[u8]) -> usize {
    let (mut count, mut is_text, mut is_escaped) = (0, false, false);
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_text = !is_text,
            b':' if !is_text => count += 1,
            _ => {}
        }
    }
    count
}
