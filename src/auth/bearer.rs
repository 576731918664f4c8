//! OAUTHBEARER (RFC 7628): a token as a SASL message, and what a client is told that has none.

use serde_json::json;

/// The mechanism's name.
pub const MECHANISM: &str = "OAUTHBEARER";

/// What is around the token in a message, at most.
pub const MAX_AROUND: usize = 1024;

/// Separates keys and values (RFC 7628 section 3.1), and alone answers an error (section 3.2.3).
const KVSEP: u8 = 0x01;

/// A message that is no OAUTHBEARER message. The client is told no more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed OAUTHBEARER message: {0}")]
pub struct Malformed(pub &'static str);

/// The token of a client's first message; `None` if the client asks where it could get one (its value is empty).
///
/// # Errors
/// See [`Malformed`].
pub fn token(message: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let rest = match message {
        [b'n' | b'y', b',', b',', KVSEP, rest @ ..] => rest,
        [b'p', b'=', ..] => return Err(Malformed("channel binding is not part of it")),
        [b'n' | b'y', b',', b'a', b'=', ..] => return Err(Malformed("it may not act for another identity")),
        _ => return Err(Malformed("no gs2 header")),
    };
    let Some(pairs) = rest.strip_suffix(&[KVSEP, KVSEP]) else { return Err(Malformed("it does not end")) };
    let mut auth = None;
    for pair in pairs.split(|byte| *byte == KVSEP) {
        let Some(equals) = memchr::memchr(b'=', pair) else {
            return Err(Malformed("a pair without a value"));
        };
        let (key, value) = (&pair[..equals], &pair[equals + 1..]);
        if key.is_empty() || !key.iter().all(u8::is_ascii_alphabetic) {
            return Err(Malformed("a key that is no word"));
        }
        if !value.iter().all(|byte| matches!(byte, b'\t' | b'\r' | b'\n' | b' '..=b'~')) {
            return Err(Malformed("a value that is no text"));
        }
        if key == b"auth" && auth.replace(value).is_some() {
            return Err(Malformed("two values of auth"));
        }
    }
    let auth = auth.ok_or(Malformed("no auth"))?;
    if auth.is_empty() {
        return Ok(None);
    }
    let (scheme, token) = auth.split_at_checked(7).ok_or(Malformed("no bearer token"))?;
    if !scheme.eq_ignore_ascii_case(b"Bearer ") {
        return Err(Malformed("no bearer token"));
    }
    // RFC 6750 section 2.1: padding only at its end.
    let start = token.iter().position(|byte| *byte != b' ').unwrap_or(token.len());
    let token = &token[start..];
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    let padding = token.iter().position(|byte| !is_token(byte)).unwrap_or(token.len());
    if padding == 0 || token[padding..].iter().any(|byte| *byte != b'=') {
        return Err(Malformed("no bearer token"));
    }
    Ok(Some(token))
}

/// Whether this is a client's answer to a challenge: it gives up.
pub fn is_farewell(message: &[u8]) -> bool {
    message == [KVSEP]
}

/// What a client is told whose token is refused, or that has none (RFC 7628 section 3.2.2): where tokens come from.
pub fn challenge(issuer: &str, scope: &str) -> String {
    let place = match issuer.contains("/.well-known/") {
        true => issuer.to_owned(),
        // As PostgreSQL builds it, with two slashes if need be: libpq takes it apart again, and what is left must be the
        // issuer, to the letter.
        false => format!("{issuer}/.well-known/openid-configuration"),
    };
    json!({ "status": "invalid_token", "openid-configuration": place, "scope": scope }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found() {
        let found = |text: &str| token(text.as_bytes()).map(|token| token.map(<[u8]>::to_vec));
        assert_eq!(found("n,,\x01auth=Bearer a.b-c_~+/=\x01\x01"), Ok(Some(b"a.b-c_~+/=".to_vec())));
        assert_eq!(found("y,,\x01host=x\x01port=1\x01auth=bearer  a\x01\x01"), Ok(Some(b"a".to_vec())));
        assert_eq!(found("n,,\x01auth=\x01\x01"), Ok(None));
    }

    #[test]
    fn whatever_else_is_refused() {
        for text in [
            "",
            "n,,",
            "n,,\x01",
            "n,,\x01\x01",
            "n,,\x01\x01\x01",
            "auth=Bearer a\x01\x01",
            "n,a=admin,\x01auth=Bearer a\x01\x01",
            "p=tls-server-end-point,,\x01auth=Bearer a\x01\x01",
            "n,,\x01auth=Bearer a\x01",
            "n,,\x01auth=Bearer a\x01\x01x",
            "n,,\x01auth=Bearer a\x01auth=Bearer b\x01\x01",
            "n,,\x01auth=Bearer \x01\x01",
            "n,,\x01auth=Bearer a b\x01\x01",
            "n,,\x01auth=Bearer \ta\x01\x01",
            "n,,\x01auth=Bearer \r\na\x01\x01",
            "n,,\x01auth=Bearer =\x01\x01",
            "n,,\x01auth=Bearer a=b\x01\x01",
            "n,,\x01auth=Basic a\x01\x01",
            "n,,\x01auth=Bear\x01\x01",
            "n,,\x01=x\x01auth=Bearer a\x01\x01",
            "n,,\x01k1=x\x01auth=Bearer a\x01\x01",
            "n,,\x01x\x01auth=Bearer a\x01\x01",
            "n,,\x01k=\0\x01auth=Bearer a\x01\x01",
            "n,,\x01auth=Bearer a\u{e9}\x01\x01",
            "n,,\x01AUTH=Bearer a\x01\x01",
        ] {
            assert!(token(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn where_tokens_come_from_is_told() {
        let place = |issuer: &str| challenge(issuer, "openid");
        let expected = r#""openid-configuration":"https://login.example/.well-known/openid-configuration""#;
        assert!(place("https://login.example").contains(expected));
        assert!(place("https://x/.well-known/y").contains(r#":"https://x/.well-known/y""#));
        assert!(place("\"").contains(r#"\""#));
    }
}
