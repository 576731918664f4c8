//! JSON Web Tokens, verified more strictly than any library does by default (RFC 7519, RFC 8725).
//!
//! A token is verified against exactly one issuer's keys, by one algorithm per key. Time is an argument.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::strict_json;
use crate::config::{Issuer, Jwt, KeySource};

/// A longer token is refused unread; PostgreSQL itself takes no longer password than this.
pub const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// A JWKS file holds a few keys.
const MAX_JWKS_BYTES: u64 = 256 * 1024;

/// RFC 7518 section 3.3: a key of size 2048 bits or larger MUST be used.
const MIN_RSA_MODULUS_BYTES: usize = 256;

/// The claims of a token whose signature, issuer, audience, times and subject hold. Only [`verify`] makes one.
#[derive(Debug)]
pub struct VerifiedClaims {
    issuer: String,
    subject: String,
    expires_at: u64,
    claims: Map<String, Value>,
}

impl VerifiedClaims {
    /// `iss`
    pub fn issuer(&self) -> &str {
        &self.issuer
    }
    /// `sub`
    pub fn subject(&self) -> &str {
        &self.subject
    }
    /// `exp`, in whole Unix seconds.
    pub fn expires_at(&self) -> u64 {
        self.expires_at
    }
    /// All claims.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }
}

/// Why a token is refused. `Display` is what the client may be told; [`TokenError::detail`] is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// `exp` is past.
    #[error("token refused: expired")]
    Expired,
    /// `nbf` is to come.
    #[error("token refused: not yet valid")]
    NotYetValid,
    /// No key of the issuer made it.
    #[error("token refused: signature")]
    Signature(&'static str),
    /// `aud` is missing or names others.
    #[error("token refused: audience")]
    Audience,
    /// `iss` is missing or not configured.
    #[error("token refused: issuer")]
    Issuer,
    /// It does not have the form that is demanded.
    #[error("token refused: malformed")]
    Malformed(&'static str),
}

impl TokenError {
    /// What the log may say more; never a part of the token.
    pub fn detail(&self) -> String {
        match self {
            Self::Signature(why) | Self::Malformed(why) => (*why).to_owned(),
            _ => String::new(),
        }
    }
}

/// Keys that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("issuer {issuer}: {problem}")]
pub struct KeysError {
    issuer: String,
    problem: String,
}

/// The keys of all issuers.
pub struct Keys {
    issuers: Vec<IssuerKeys>,
    leeway: Duration,
}

struct IssuerKeys {
    issuer: String,
    audience: Vec<String>,
    keys: Vec<VerificationKey>,
}

struct VerificationKey {
    kid: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Keys {
    /// Reads the keys of every configured issuer.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no usable key.
    pub fn load(jwt: &Jwt) -> Result<Self, KeysError> {
        let issuers = jwt.issuers.iter().map(issuer_keys).collect::<Result<_, _>>()?;
        Ok(Self { issuers, leeway: jwt.leeway })
    }
}

fn issuer_keys(issuer: &Issuer) -> Result<IssuerKeys, KeysError> {
    let problem = |problem: String| KeysError { issuer: issuer.issuer.clone(), problem };
    let keys = match &issuer.keys {
        KeySource::Secret(secret) => {
            vec![VerificationKey {
                kid: None,
                algorithm: Algorithm::HS256,
                key: DecodingKey::from_secret(secret.expose()),
            }]
        }
        KeySource::KeyFile(file) => {
            let pem = std::fs::read(file).map_err(|e| problem(format!("{}: {e}", file.display())))?;
            let algorithm = issuer.algorithms.first().and_then(|name| algorithm(name));
            let algorithm = algorithm.ok_or_else(|| problem("no algorithm".to_owned()))?;
            let key = match algorithm {
                Algorithm::RS256 => DecodingKey::from_rsa_pem(&pem),
                Algorithm::ES256 => DecodingKey::from_ec_pem(&pem),
                _ => DecodingKey::from_ed_pem(&pem),
            };
            let key = key.map_err(|e| {
                problem(format!("{} is no public key for {algorithm:?}: {e}", file.display()))
            })?;
            vec![VerificationKey { kid: None, algorithm, key }]
        }
        KeySource::JwksFile(file) => {
            let shown = file.display();
            let metadata = std::fs::metadata(file).map_err(|e| problem(format!("{shown}: {e}")))?;
            if metadata.len() > MAX_JWKS_BYTES {
                return Err(problem(format!(
                    "{shown} is longer than {MAX_JWKS_BYTES} bytes; is it a JWK Set?"
                )));
            }
            let text = std::fs::read(file).map_err(|e| problem(format!("{shown}: {e}")))?;
            let set: JwkSet = serde_json::from_slice(&text)
                .map_err(|e| problem(format!("{shown} is no JWK Set (RFC 7517): {e}")))?;
            let keys: Vec<_> = set.keys.iter().filter_map(|jwk| usable(jwk, issuer)).collect();
            if keys.is_empty() {
                let wanted = issuer.algorithms.join(", ");
                return Err(problem(format!("{shown} holds no usable key for {wanted}")));
            }
            keys
        }
    };
    Ok(IssuerKeys { issuer: issuer.issuer.clone(), audience: issuer.audience.clone(), keys })
}

fn algorithm(name: &str) -> Option<Algorithm> {
    match name {
        "HS256" => Some(Algorithm::HS256),
        "RS256" => Some(Algorithm::RS256),
        "ES256" => Some(Algorithm::ES256),
        "EdDSA" => Some(Algorithm::EdDSA),
        _ => None,
    }
}

/// A key of a JWK Set, if it is a public signing key for one of the issuer's algorithms.
fn usable(jwk: &Jwk, issuer: &Issuer) -> Option<VerificationKey> {
    let kid = jwk.common.key_id.clone();
    let ignored = |why: &str| {
        tracing::warn!(
            issuer = issuer.issuer,
            kid = kid.as_deref().unwrap_or(""),
            why,
            "a key of the JWK Set is ignored"
        );
        None
    };
    let derived = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) => match URL_SAFE_NO_PAD.decode(&rsa.n) {
            Ok(modulus) if modulus.iter().skip_while(|b| **b == 0).count() >= MIN_RSA_MODULUS_BYTES => {
                Algorithm::RS256
            }
            _ => return ignored("an RSA key must have at least 2048 bits"),
        },
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        AlgorithmParameters::OctetKey(_) => return ignored("a shared secret has no place in a JWK Set"),
        _ => return ignored("its type is not supported"),
    };
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return ignored("it is not for signatures");
    }
    if jwk
        .common
        .key_operations
        .as_ref()
        .is_some_and(|operations| !operations.contains(&KeyOperations::Verify))
    {
        return ignored("it is not for verifying");
    }
    if jwk.common.key_algorithm.is_some_and(|named| named.to_string() != format!("{derived:?}")) {
        return ignored("its alg does not go with its type");
    }
    if !issuer.algorithms.iter().any(|name| algorithm(name) == Some(derived)) {
        return ignored("its algorithm is not accepted from this issuer");
    }
    match DecodingKey::from_jwk(jwk) {
        Ok(key) => Some(VerificationKey { kid, algorithm: derived, key }),
        Err(_) => ignored("it is malformed"),
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
    let header = part(header)?;
    check_header(&header)?;
    // Read before it is believed: which issuer's keys are to decide. Nothing else of it is used.
    let claims = part(payload)?;
    let issuer = claims.get("iss").and_then(Value::as_str).ok_or(TokenError::Issuer)?;
    let issuer = keys.issuers.iter().find(|known| known.issuer == issuer).ok_or(TokenError::Issuer)?;
    if signature.is_empty() {
        return Err(TokenError::Signature("none"));
    }
    let key = choose(&header, issuer)?;
    check_signature(token, key)?;
    check_audience(&claims, issuer)?;
    let expires_at = check_times(&claims, keys.leeway, now)?;
    let subject = match claims.get("sub").and_then(Value::as_str) {
        Some(subject) if !subject.is_empty() && !subject.chars().any(char::is_control) => subject.to_owned(),
        _ => return Err(TokenError::Malformed("sub is missing or no plain text")),
    };
    Ok(VerifiedClaims { issuer: issuer.issuer.clone(), subject, expires_at, claims })
}

/// A part of the token as a JSON object without duplicate names (RFC 7515 section 4).
fn part(text: &str) -> Result<Map<String, Value>, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed("not base64url"))?;
    strict_json::object(&bytes).ok_or(TokenError::Malformed("not a JSON object with distinct names"))
}

/// What a header may hold. Keys that come with the token (`jwk`, `jku`, `x5u`, `x5c`) would let anyone sign;
/// extensions that we do not know (`crit`, `b64`, `zip`) change what was signed.
fn check_header(header: &Map<String, Value>) -> Result<(), TokenError> {
    for name in ["jwk", "jku", "x5u", "x5c", "crit", "b64", "zip"] {
        if header.contains_key(name) {
            return Err(TokenError::Malformed("its header brings a key or an extension"));
        }
    }
    match header.get("typ") {
        None => Ok(()),
        Some(Value::String(typ)) if ["jwt", "at+jwt"].contains(&typ.to_ascii_lowercase().as_str()) => Ok(()),
        Some(_) => Err(TokenError::Malformed("its typ is not JWT")),
    }
}

/// The one key that may have made it.
fn choose<'k>(
    header: &Map<String, Value>,
    issuer: &'k IssuerKeys,
) -> Result<&'k VerificationKey, TokenError> {
    let named = header.get("alg").and_then(Value::as_str).and_then(algorithm);
    let named = named.ok_or(TokenError::Signature("its algorithm is not accepted"))?;
    let kid = match header.get("kid") {
        None => None,
        Some(Value::String(kid)) => Some(kid.as_str()),
        Some(_) => return Err(TokenError::Malformed("its kid is no text")),
    };
    let mut candidates = issuer.keys.iter().filter(|key| {
        // A configured secret or key file has no name of its own; whatever kid the issuer writes is its business.
        key.algorithm == named && (kid.is_none() || key.kid.is_none() || key.kid.as_deref() == kid)
    });
    match (candidates.next(), candidates.next()) {
        (Some(key), None) => Ok(key),
        (None, _) => Err(TokenError::Signature("the issuer has no such key")),
        (Some(_), Some(_)) => Err(TokenError::Signature("it does not say which key made it")),
    }
}

fn check_signature(token: &str, key: &VerificationKey) -> Result<(), TokenError> {
    let mut validation = Validation::new(key.algorithm);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    match jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &validation) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            ErrorKind::InvalidSignature => TokenError::Signature("wrong"),
            ErrorKind::InvalidAlgorithm => TokenError::Signature("its algorithm is not accepted"),
            _ => TokenError::Signature("unreadable"),
        }),
    }
}

fn check_audience(claims: &Map<String, Value>, issuer: &IssuerKeys) -> Result<(), TokenError> {
    let is_ours =
        |value: &Value| value.as_str().is_some_and(|aud| issuer.audience.iter().any(|ours| ours == aud));
    let found = match claims.get("aud") {
        Some(Value::Array(list)) => list.iter().all(Value::is_string) && list.iter().any(is_ours),
        Some(value) => is_ours(value),
        None => false,
    };
    if found { Ok(()) } else { Err(TokenError::Audience) }
}

/// Year 9999: later times are mistakes (milliseconds) or overflows.
const LATEST: f64 = 253_402_300_799.0;

fn check_times(claims: &Map<String, Value>, leeway: Duration, now: SystemTime) -> Result<u64, TokenError> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64();
    let time = |name| match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => match number.as_f64() {
            Some(seconds) if (0.0..=LATEST).contains(&seconds) => Ok(Some(seconds)),
            _ => Err(TokenError::Malformed("a time is out of range")),
        },
        Some(_) => Err(TokenError::Malformed("a time is no number")),
    };
    let expires = time("exp")?.ok_or(TokenError::Malformed("exp is missing"))?;
    if now > expires + leeway.as_secs_f64() {
        return Err(TokenError::Expired);
    }
    if time("nbf")?.is_some_and(|not_before| now + leeway.as_secs_f64() < not_before) {
        return Err(TokenError::NotYetValid);
    }
    Ok(expires as u64)
}

#[cfg(test)]
mod tests;
