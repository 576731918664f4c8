//! Keys that verify tokens: whose, by which algorithm, under which name (RFC 7517, RFC 7518).

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rsa::PublicEncryptingKey;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use serde_json::Value;

use super::TokenError;
use super::refresh::Refresh;
use crate::auth::strict_json;
use crate::config::{Issuer, Jwt, KeySource};

/// A file with keys is short; more is a mistaken path.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// RFC 7518 section 3.2: a key of the same size as the hash output or larger MUST be used.
pub(crate) const MIN_SECRET_BYTES: usize = 32;

/// RFC 7518 section 3.3 demands 2048 bits; the verifier takes no more than 8192.
const RSA_SIZE: &str = "an RSA key must have 2048 to 8192 bits";

/// Keys that cannot be used: one sentence with the issuer, the file and what is wrong.
#[derive(Debug, thiserror::Error)]
#[error("issuer \"{issuer}\": {problem}")]
pub struct KeysError {
    issuer: String,
    problem: String,
}

/// The keys of all issuers.
pub struct Keys {
    issuers: Vec<IssuerKeys>,
    leeway: Duration,
}

impl Keys {
    /// Reads the keys of every configured issuer.
    ///
    /// # Errors
    /// A file that cannot be read or holds no usable key; an issuer that is there twice.
    pub fn load(jwt: &Jwt) -> Result<Self, KeysError> {
        let mut issuers: Vec<IssuerKeys> = Vec::new();
        for issuer in &jwt.issuers {
            let failed = |problem| KeysError { issuer: issuer.issuer.clone(), problem };
            if issuers.iter().any(|other| other.config.issuer == issuer.issuer) {
                return Err(failed("is configured twice; give it all its keys in one JWK Set".to_owned()));
            }
            let keys = KeySet(issuer_keys(issuer).map_err(failed)?);
            issuers.push(IssuerKeys {
                index: issuers.len(),
                config: issuer.clone(),
                keys: ArcSwap::from_pointee(keys),
                refresh: Refresh::default(),
            });
        }
        Ok(Self { issuers, leeway: jwt.leeway })
    }

    pub(super) fn issuer(&self, name: &str) -> Option<&IssuerKeys> {
        self.issuers.iter().find(|known| known.config.issuer == name)
    }

    pub(super) fn at(&self, index: usize) -> Option<&IssuerKeys> {
        self.issuers.get(index)
    }

    /// The issuers, in the order in which the configuration names them.
    pub fn issuers(&self) -> impl Iterator<Item = &Issuer> {
        self.issuers.iter().map(|issuer| &issuer.config)
    }

    /// Reads an issuer's file again. Tokens are verified by the former keys until the new ones are known to be usable.
    ///
    /// # Errors
    /// The file holds no usable key: the former ones stay.
    pub fn reload(&self, index: usize) -> Result<(), KeysError> {
        let Some(issuer) = self.issuers.get(index) else { return Ok(()) };
        let keys = issuer_keys(&issuer.config).map_err(|problem| issuer.failed(problem))?;
        issuer.keys.store(Arc::new(KeySet(keys)));
        Ok(())
    }

    /// Takes a JWK Set that was fetched for an issuer. Returns how many keys of it are usable.
    ///
    /// # Errors
    /// None is: the former ones stay.
    pub fn take(&self, index: usize, jwks: &[u8]) -> Result<usize, KeysError> {
        let Some(issuer) = self.issuers.get(index) else { return Ok(0) };
        let keys = of_jwks(jwks, &issuer.config).map_err(|problem| issuer.failed(problem))?;
        let count = keys.len();
        issuer.keys.store(Arc::new(KeySet(keys)));
        Ok(count)
    }

    pub(super) fn leeway(&self) -> Duration {
        self.leeway
    }
}

/// One issuer, to whom no other issuer's key speaks.
pub(super) struct IssuerKeys {
    pub(super) index: usize,
    pub(super) config: Issuer,
    keys: ArcSwap<KeySet>,
    pub(super) refresh: Refresh,
}

/// An issuer's keys at one time.
pub(super) struct KeySet(Vec<VerificationKey>);

impl IssuerKeys {
    /// The keys as they are now.
    pub(super) fn current(&self) -> Arc<KeySet> {
        self.keys.load_full()
    }

    fn failed(&self, problem: String) -> KeysError {
        KeysError { issuer: self.config.issuer.clone(), problem }
    }
}

impl KeySet {
    /// Whether no token can be verified.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one key that may have made a token with this header.
    pub(super) fn choose(
        &self,
        algorithm: &str,
        kid: Option<&str>,
        issuer: usize,
    ) -> Result<&VerificationKey, TokenError> {
        if self.is_empty() {
            return Err(TokenError::UnknownKey(issuer));
        }
        let mut of_algorithm = self.0.iter().filter(|key| name(key.algorithm) == algorithm).peekable();
        if of_algorithm.peek().is_none() {
            return Err(TokenError::Signature("its algorithm is not accepted from this issuer"));
        }
        let mut candidates = of_algorithm.filter(|key| match (kid, &key.name) {
            (None, _) | (_, KeyName::Any) => true,
            (Some(kid), KeyName::Kid(name)) => kid == name,
            (Some(_), KeyName::None) => false,
        });
        match (candidates.next(), candidates.next()) {
            (Some(key), None) => Ok(key),
            (None, _) => Err(TokenError::UnknownKey(issuer)),
            (Some(_), Some(_)) => {
                Err(TokenError::Signature("it does not say which of the issuer's keys made it"))
            }
        }
    }
}

/// A key and the only algorithm that it may be used with.
pub(super) struct VerificationKey {
    name: KeyName,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// How tokens name a key.
enum KeyName {
    /// The issuer's only key, configured by hand: it has no name here, and what the issuer calls it is not known.
    Any,
    /// A key of a JWK Set without `kid`: tokens with a `kid` mean another.
    None,
    /// Its `kid`.
    Kid(String),
}

fn issuer_keys(issuer: &Issuer) -> Result<Vec<VerificationKey>, String> {
    match &issuer.keys {
        KeySource::Secret(secret) if secret.expose().len() < MIN_SECRET_BYTES => {
            Err(format!("secret must have at least {MIN_SECRET_BYTES} bytes (RFC 7518 section 3.2)"))
        }
        KeySource::Secret(_) if !accepts(issuer, Algorithm::HS256) => {
            Err("secret is for HS256, which is not in algorithms".to_owned())
        }
        KeySource::Secret(secret) => {
            let key = DecodingKey::from_secret(secret.expose());
            Ok(vec![VerificationKey { name: KeyName::Any, algorithm: Algorithm::HS256, key }])
        }
        KeySource::KeyFile(file) => {
            let failed = |problem| format!("key_file {}: {problem}", file.display());
            let key = read(file).and_then(|pem| of_pem(&pem, issuer)).map_err(failed)?;
            Ok(vec![key])
        }
        // It is fetched when the proxy runs.
        KeySource::JwksUrl(_) => Ok(Vec::new()),
        KeySource::JwksFile(file) => {
            let failed = |problem| format!("jwks_file {}: {problem}", file.display());
            read(file).and_then(|text| of_jwks(&text, issuer)).map_err(failed)
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("is longer than {MAX_FILE_BYTES} bytes; is it the right file?"));
    }
    Ok(bytes)
}

/// The key of a PEM file; its algorithm is what the key is, not what the configuration says.
fn of_pem(text: &[u8], issuer: &Issuer) -> Result<VerificationKey, String> {
    let pem = pem::parse(text).map_err(|_| "is not in PEM form".to_owned())?;
    if pem.tag() != "PUBLIC KEY" {
        return Err(format!(
            "holds \"{}\" where \"PUBLIC KEY\" (SPKI) is expected",
            pem.tag().escape_default()
        ));
    }
    let der = pem.contents();
    let (algorithm, key) = if ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der).is_ok() {
        (Algorithm::RS256, DecodingKey::from_rsa_pem(text))
    } else if ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, der).is_ok() {
        (Algorithm::ES256, DecodingKey::from_ec_pem(text))
    } else if ParsedPublicKey::new(&ED25519, der).is_ok() {
        (Algorithm::EdDSA, DecodingKey::from_ed_pem(text))
    } else {
        return Err("is no public key of type RSA, P-256 or Ed25519".to_owned());
    };
    if !accepts(issuer, algorithm) {
        return Err(format!("is a key for {}, which is not in algorithms", name(algorithm)));
    }
    let key = key.map_err(|_| "is malformed".to_owned())?;
    sound(algorithm, &key)?;
    Ok(VerificationKey { name: KeyName::Any, algorithm, key })
}

/// The usable keys of a JWK Set; the others are ignored, each with a warning.
fn of_jwks(text: &[u8], issuer: &Issuer) -> Result<Vec<VerificationKey>, String> {
    let set = strict_json::object(text);
    let Some(Value::Array(listed)) = set.as_ref().and_then(|set| set.get("keys")) else {
        return Err("is no JWK Set (RFC 7517 section 5)".to_owned());
    };
    let mut keys = Vec::new();
    let mut ignored = String::new();
    for jwk in listed {
        match of_jwk(jwk, issuer) {
            Ok(key) => keys.push(key),
            Err(why) => {
                let kid = jwk.get("kid").and_then(Value::as_str).unwrap_or("none");
                tracing::warn!(issuer = issuer.issuer, kid, why, "a key of the JWK Set is ignored");
                ignored.push_str(&format!("; kid {kid:?}: {why}"));
            }
        }
    }
    if keys.is_empty() {
        return Err(format!("holds no usable key for {}{ignored}", issuer.algorithms.join(", ")));
    }
    Ok(keys)
}

/// A key of a JWK Set, if it is a public signing key for one of the issuer's algorithms.
fn of_jwk(jwk: &Value, issuer: &Issuer) -> Result<VerificationKey, &'static str> {
    if jwk.get("d").is_some() {
        return Err("it is a private key, which has no place here");
    }
    let jwk: Jwk = serde_json::from_value(jwk.clone()).map_err(|_| "it is malformed")?;
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        AlgorithmParameters::OctetKey(_) => return Err("a shared secret has no place in a JWK Set"),
        _ => return Err("its type is not supported"),
    };
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return Err("its use is not sig");
    }
    if jwk.common.key_operations.as_ref().is_some_and(|list| !list.contains(&KeyOperations::Verify)) {
        return Err("its key_ops lack verify");
    }
    if jwk.common.key_algorithm.is_some_and(|named| named != algorithm.into()) {
        return Err("its alg is not supported for its type");
    }
    if !accepts(issuer, algorithm) {
        return Err("its algorithm is not accepted from this issuer");
    }
    let key = DecodingKey::from_jwk(&jwk).map_err(|_| "it is malformed")?;
    sound(algorithm, &key)?;
    let name = jwk.common.key_id.map_or(KeyName::None, KeyName::Kid);
    Ok(VerificationKey { name, algorithm, key })
}

/// Whether it will verify at all: said now, rather than as a wrong signature on every token.
fn sound(algorithm: Algorithm, key: &DecodingKey) -> Result<(), &'static str> {
    let parsed = match (algorithm, key.kind()) {
        (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
            RsaPublicKeyComponents { n, e }.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
        }
        (Algorithm::RS256, DecodingKeyKind::SecretOrDer(der)) => {
            ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der)
        }
        (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => {
            ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        }
        (_, DecodingKeyKind::SecretOrDer(point)) => ParsedPublicKey::new(&ED25519, point),
        _ => return Err("its type is not supported"),
    };
    let parsed = parsed.map_err(|_| "it is malformed")?;
    if algorithm == Algorithm::RS256 {
        // Parsing alone takes any size.
        let spki: PublicKeyX509Der<'_> = parsed.as_der().map_err(|_| "it is malformed")?;
        PublicEncryptingKey::from_der(spki.as_ref()).map_err(|_| RSA_SIZE)?;
    }
    Ok(())
}

fn accepts(issuer: &Issuer, algorithm: Algorithm) -> bool {
    issuer.algorithms.iter().any(|accepted| accepted == name(algorithm))
}

/// The names of RFC 7518 and RFC 8037 for what this version accepts.
fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::HS256 => "HS256",
        Algorithm::RS256 => "RS256",
        Algorithm::ES256 => "ES256",
        Algorithm::EdDSA => "EdDSA",
        _ => "unsupported",
    }
}
