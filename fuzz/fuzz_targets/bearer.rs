//! OAUTHBEARER messages: a token is found where a simple reader of RFC 7628 finds it, and nowhere else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgtenant::auth::bearer;

fuzz_target!(|data: &[u8]| {
    assert_eq!(bearer::token(data).ok(), read(data), "{}", data.escape_ascii());
    assert!(!bearer::is_farewell(data) || bearer::token(data).is_err());
    // What a client is told is JSON, whatever the issuer is called.
    if let Ok(issuer) = std::str::from_utf8(data) {
        let told: serde_json::Value = serde_json::from_str(&bearer::challenge(issuer, issuer)).expect("JSON");
        assert_eq!(told["scope"], issuer);
        assert!(told["openid-configuration"].as_str().is_some_and(|place| place.starts_with(issuer)));
    }
});

/// RFC 7628 section 3.1 and RFC 6750 section 2.1, with everything that may be in a message spelled out. The outer `None`
/// refuses it; the inner one is a client that asks where tokens come from.
fn read(message: &[u8]) -> Option<Option<&[u8]>> {
    // ALPHA, VCHAR, HTAB and the like are ASCII.
    let text = std::str::from_utf8(message).ok().filter(|text| text.is_ascii())?;
    let pairs = text.strip_prefix("n,,\x01").or(text.strip_prefix("y,,\x01"))?.strip_suffix('\x01')?;
    let mut found = Vec::new();
    for pair in pairs.split_terminator('\x01') {
        let (key, value) = pair.split_once('=')?;
        let is_text = value.chars().all(|c| c.is_ascii_graphic() || [' ', '\t', '\r', '\n'].contains(&c));
        if key.is_empty() || key.contains(|c: char| !c.is_ascii_alphabetic()) || !is_text {
            return None;
        }
        found.extend((key == "auth").then_some(value));
    }
    let ([auth], true) = (&found[..], pairs.ends_with('\x01')) else { return None };
    if auth.is_empty() {
        return Some(None);
    }
    let (scheme, rest) = auth.split_once(' ')?;
    let token = rest.trim_start_matches(' ');
    let is_token =
        |c: char| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '.' | '_' | '~' | '+' | '/');
    let has_form = token.starts_with(is_token) && !token.trim_end_matches('=').contains(|c| !is_token(c));
    (scheme.to_lowercase() == "bearer" && has_form).then_some(Some(token.as_bytes()))
}
