//! JSON Web Tokens, verified more strictly than any library does by default (RFC 7519, RFC 8725).
//!
//! A token is verified against exactly one issuer's keys, by one algorithm per key. Time is an argument.

mod keys;
mod refresh;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Validation;
use jsonwebtoken::errors::ErrorKind;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::strict_json;
pub(crate) use keys::MIN_SECRET_BYTES;
use keys::{IssuerKeys, KeySet, VerificationKey};
pub use keys::{Keys, KeysError};

/// A longer token is refused unread; PostgreSQL itself takes no longer password than this.
pub const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// Year 9999, in Unix seconds: later times are mistakes (milliseconds) or overflows.
const LATEST: f64 = 253_402_300_799.0;

/// The claims of a token whose signature, issuer, audience, times and subject hold. Only [`verify`] makes one.
pub struct VerifiedClaims {
    issuer: String,
    subject: String,
    expires_at: u64,
    claims: Map<String, Value>,
}

impl VerifiedClaims {
    /// `iss`, one of the configured issuers.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// `sub`, not empty, without control characters.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// `exp` in whole Unix seconds; the leeway is not in it.
    pub fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// All claims, those above too.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }
}

impl fmt::Debug for VerifiedClaims {
    /// Without the other claims, which tell about a person.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedClaims")
            .field("issuer", &self.issuer)
            .field("subject", &self.subject)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Why a token is refused. `Display` is what the client may be told; [`TokenError::detail`] is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// `exp` is past.
    #[error("token refused: expired")]
    Expired {
        /// Since when, in whole seconds; the leeway is not taken off.
        seconds_ago: u64,
    },
    /// `nbf` is to come.
    #[error("token refused: not yet valid")]
    NotYetValid {
        /// Until then, in whole seconds; the leeway is not taken off.
        seconds_left: u64,
    },
    /// No key of the issuer made it.
    #[error("token refused: signature")]
    Signature(&'static str),
    /// The issuer is known, but not the key that the token names: it may be a new one.
    #[error("token refused: signature")]
    UnknownKey(usize),
    /// `aud` is missing or names others.
    #[error("token refused: audience")]
    Audience(&'static str),
    /// `iss` is missing or not configured.
    #[error("token refused: issuer")]
    Issuer(&'static str),
    /// It does not have the form that is demanded.
    #[error("token refused: malformed")]
    Malformed(&'static str),
}

impl TokenError {
    /// What the log may say more; never a part of the token.
    pub fn detail(&self) -> String {
        match self {
            Self::Expired { seconds_ago } => format!("it expired {seconds_ago} s ago"),
            Self::NotYetValid { seconds_left } => format!("it becomes valid in {seconds_left} s"),
            Self::UnknownKey(_) => "the issuer has no key with its kid".to_owned(),
            Self::Signature(why) | Self::Audience(why) | Self::Issuer(why) | Self::Malformed(why) => {
                (*why).to_owned()
            }
        }
    }
}

/// Verifies a token at the time `now`.
///
/// # Errors
/// See [`TokenError`].
pub fn verify(token: &str, keys: &Keys, now: SystemTime) -> Result<VerifiedClaims, TokenError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::Malformed("too long"));
    }
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Malformed("not three parts"));
    };
    let header = object(header)?;
    // Read before it is believed: which issuer's keys are to decide. Nothing else of it is used yet.
    let claims = object(payload)?;
    let signature = base64url(signature)?;
    check_header(&header)?;
    let issuer = select_issuer(&claims, keys)?;
    let set = issuer.current();
    let key = select_key(&header, issuer, &set)?;
    check_signature(token, &signature, key)?;
    check_audience(&claims, issuer)?;
    let expires_at = check_times(&claims, keys.leeway(), now)?;
    let subject = subject(&claims)?.to_owned();
    // By which it can be revoked (RFC 7519 section 4.1.7: a string).
    if claims.get("jti").is_some_and(|jti| !jti.is_string()) {
        return Err(TokenError::Malformed("jti is no text"));
    }
    Ok(VerifiedClaims { issuer: issuer.config.issuer.clone(), subject, expires_at, claims })
}

/// A part of the token as a JSON object without duplicate names (RFC 7515 section 4).
fn object(part: &str) -> Result<Map<String, Value>, TokenError> {
    strict_json::object(&base64url(part)?)
        .ok_or(TokenError::Malformed("not a JSON object with distinct names and no NUL"))
}

/// RFC 7515 section 2: without padding, line breaks or white space.
fn base64url(part: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed("not base64url"))
}

/// What a header may hold. Keys that come with the token (`jwk`, `jku`, `x5u`, `x5c`) would let anyone sign;
/// extensions that we do not know (`crit`, `b64`, `zip`) change what was signed.
fn check_header(header: &Map<String, Value>) -> Result<(), TokenError> {
    if ["jwk", "jku", "x5u", "x5c"].iter().any(|name| header.contains_key(*name)) {
        return Err(TokenError::Malformed("its header brings a key"));
    }
    if ["crit", "b64", "zip"].iter().any(|name| header.contains_key(*name)) {
        return Err(TokenError::Malformed("its header demands an extension"));
    }
    match header.get("typ") {
        None => Ok(()),
        Some(Value::String(typ)) if ["jwt", "at+jwt"].contains(&typ.to_ascii_lowercase().as_str()) => Ok(()),
        Some(_) => Err(TokenError::Malformed("its typ is neither JWT nor at+jwt")),
    }
}

fn select_issuer<'k>(claims: &Map<String, Value>, keys: &'k Keys) -> Result<&'k IssuerKeys, TokenError> {
    match claims.get("iss") {
        Some(Value::String(issuer)) => keys.issuer(issuer).ok_or(TokenError::Issuer("iss is not configured")),
        Some(_) => Err(TokenError::Issuer("iss is no text")),
        None => Err(TokenError::Issuer("iss is missing")),
    }
}

fn select_key<'k>(
    header: &Map<String, Value>,
    issuer: &IssuerKeys,
    set: &'k KeySet,
) -> Result<&'k VerificationKey, TokenError> {
    let Some(Value::String(algorithm)) = header.get("alg") else {
        return Err(TokenError::Malformed("alg is missing or no text"));
    };
    match header.get("kid") {
        None => set.choose(algorithm, None, issuer.index),
        Some(Value::String(kid)) => set.choose(algorithm, Some(kid), issuer.index),
        Some(_) => Err(TokenError::Malformed("kid is no text")),
    }
}

/// Only the signature is left to the library: it has no clock here, and its other checks are laxer than ours.
fn check_signature(token: &str, signature: &[u8], key: &VerificationKey) -> Result<(), TokenError> {
    if signature.is_empty() {
        return Err(TokenError::Signature("there is none"));
    }
    let mut validation = Validation::new(key.algorithm);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    match jsonwebtoken::decode::<IgnoredAny>(token, &key.key, &validation) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            ErrorKind::InvalidSignature => TokenError::Signature("no key of the issuer made it"),
            _ => TokenError::Malformed("a field of its header or claims has a wrong type"),
        }),
    }
}

/// RFC 7519 section 4.1.3: a text or an array of texts.
fn check_audience(claims: &Map<String, Value>, issuer: &IssuerKeys) -> Result<(), TokenError> {
    let is_ours = |value: &Value| issuer.config.audience.iter().any(|ours| value.as_str() == Some(ours));
    let found = match claims.get("aud") {
        None => return Err(TokenError::Audience("aud is missing")),
        Some(one @ Value::String(_)) => is_ours(one),
        Some(Value::Array(list)) if list.iter().all(Value::is_string) => list.iter().any(is_ours),
        Some(_) => return Err(TokenError::Audience("aud is neither text nor an array of texts")),
    };
    if found { Ok(()) } else { Err(TokenError::Audience("aud names others")) }
}

/// `exp` in whole seconds, if the token is valid at `now`, give or take the leeway.
fn check_times(claims: &Map<String, Value>, leeway: Duration, now: SystemTime) -> Result<u64, TokenError> {
    let expires = time(claims, "exp")?.ok_or(TokenError::Malformed("exp is missing"))?;
    let not_before = time(claims, "nbf")?;
    // A clock before 1970 must not make every token valid.
    let now = now
        .duration_since(UNIX_EPOCH)
        .map_err(|error| TokenError::NotYetValid { seconds_left: error.duration().as_secs() })?
        .as_secs_f64();
    let leeway = leeway.as_secs_f64();
    if now > expires + leeway {
        return Err(TokenError::Expired { seconds_ago: (now - expires) as u64 });
    }
    match not_before {
        Some(start) if now + leeway < start => {
            Err(TokenError::NotYetValid { seconds_left: (start - now).ceil() as u64 })
        }
        _ => Ok(expires as u64),
    }
}

/// RFC 7519 section 2, NumericDate: seconds since 1970, perhaps with a fraction.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<f64>, TokenError> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => match number.as_f64() {
            Some(seconds) if (0.0..=LATEST).contains(&seconds) => Ok(Some(seconds)),
            _ => Err(TokenError::Malformed("a time is out of range")),
        },
        Some(_) => Err(TokenError::Malformed("a time is no number")),
    }
}

fn subject(claims: &Map<String, Value>) -> Result<&str, TokenError> {
    match claims.get("sub") {
        None => Err(TokenError::Malformed("sub is missing")),
        Some(Value::String(subject)) if subject.is_empty() => Err(TokenError::Malformed("sub is empty")),
        // PostgreSQL's text takes no NUL, and a log line is one line.
        Some(Value::String(subject)) if subject.chars().any(char::is_control) => {
            Err(TokenError::Malformed("sub has control characters"))
        }
        Some(Value::String(subject)) => Ok(subject),
        Some(_) => Err(TokenError::Malformed("sub is no text")),
    }
}

#[cfg(test)]
mod tests;
