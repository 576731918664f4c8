//! Keys that make tokens: for development, the demo and tests. Production tokens come from an identity provider.

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair,
};
use aws_lc_rs::{digest, rand, rsa};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::token::MIN_SECRET_BYTES;

/// Algorithms of RFC 7518 and RFC 8037 that pgtenant accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Algorithm {
    /// HMAC with SHA-256 and a shared secret.
    #[value(name = "HS256")]
    Hs256,
    /// RSASSA-PKCS1-v1_5 with SHA-256, 2048 bits.
    #[value(name = "RS256")]
    Rs256,
    /// ECDSA with P-256 and SHA-256.
    #[value(name = "ES256")]
    Es256,
    /// Ed25519.
    #[value(name = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// The name in JOSE headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    fn jose(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Hs256 => jsonwebtoken::Algorithm::HS256,
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

/// A key that cannot be made, read or used. Says nothing of the key itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SigningError(String);

/// A signing key.
pub struct SigningKey {
    algorithm: Algorithm,
    kid: Option<String>,
    /// PKCS#8; the secret itself for HS256.
    private: Zeroizing<Vec<u8>>,
    /// SPKI; empty for a shared secret.
    public: Vec<u8>,
    /// The public members of its JWK, in the order of RFC 7638.
    jwk: Value,
    encoding: EncodingKey,
}

impl SigningKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn generate(algorithm: Algorithm) -> Result<Self, SigningError> {
        let failed = |_| SigningError("no key could be generated".to_owned());
        let private = Zeroizing::new(match algorithm {
            Algorithm::Hs256 => {
                let mut secret = Zeroizing::new([0; 32]);
                rand::fill(secret.as_mut()).map_err(failed)?;
                URL_SAFE_NO_PAD.encode(secret.as_ref()).into_bytes()
            }
            Algorithm::Rs256 => {
                let pair = rsa::KeyPair::generate(KeySize::Rsa2048).map_err(failed)?;
                let der: Pkcs8V1Der<'_> = pair.as_der().map_err(failed)?;
                der.as_ref().to_vec()
            }
            Algorithm::Es256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed)?;
                pair.to_pkcs8v1().map_err(failed)?.as_ref().to_vec()
            }
            Algorithm::EdDsa => {
                let pair = Ed25519KeyPair::generate().map_err(failed)?;
                pair.to_pkcs8v1().map_err(failed)?.as_ref().to_vec()
            }
        });
        Self::from_private(algorithm, &private)
    }

    /// Takes a private key: PKCS#8 in DER form, or the bytes of a shared secret.
    ///
    /// # Errors
    /// It is no key of that algorithm.
    pub fn from_private(algorithm: Algorithm, private: &[u8]) -> Result<Self, SigningError> {
        let made = match algorithm {
            Algorithm::Hs256 => {
                let is_long = private.len() >= MIN_SECRET_BYTES;
                is_long.then(|| (Vec::new(), Value::Null, EncodingKey::from_secret(private)))
            }
            Algorithm::Rs256 => rsa_parts(private),
            Algorithm::Es256 => ec_parts(private),
            Algorithm::EdDsa => ed_parts(private),
        };
        let Some((public, jwk, encoding)) = made else {
            let what = match algorithm {
                Algorithm::Hs256 => format!("a secret for HS256 needs at least {MIN_SECRET_BYTES} bytes"),
                other => format!("the key is no private key for {}", other.name()),
            };
            return Err(SigningError(what));
        };
        // RFC 7638: the members in lexical order, without white space; `jwk` is written so.
        let thumbprint = base64url(digest::digest(&digest::SHA256, jwk.to_string().as_bytes()).as_ref());
        let kid = (algorithm != Algorithm::Hs256).then_some(thumbprint);
        Ok(Self { algorithm, kid, private: Zeroizing::new(private.to_vec()), public, jwk, encoding })
    }

    /// Reads a PEM file's text (PKCS#8), finding out its algorithm.
    ///
    /// # Errors
    /// It is no private key that pgtenant can use.
    pub fn from_pem(text: &[u8]) -> Result<Self, SigningError> {
        let pem = pem::parse(text).map_err(|_| SigningError("the key is not in PEM form".to_owned()))?;
        let key = match pem.tag() {
            "PRIVATE KEY" => [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256]
                .into_iter()
                .find_map(|algorithm| Self::from_private(algorithm, pem.contents()).ok())
                .ok_or("the key is neither RSA (2048 bits or more), P-256 nor Ed25519"),
            "PUBLIC KEY" => Err("a public key cannot sign; give the file with the private key"),
            _ => Err("the PEM holds no PKCS#8 private key; convert it with: openssl pkcs8 -topk8 -nocrypt"),
        };
        key.map_err(|why| SigningError(why.to_owned()))
    }

    /// Its algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its name in tokens: the thumbprint of RFC 7638, unless another was given; none for a shared secret.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Names it otherwise.
    #[must_use]
    pub fn with_kid(mut self, kid: Option<String>) -> Self {
        self.kid = kid;
        self
    }

    /// A JWK Set with its public part; empty for a shared secret.
    pub fn public_jwks(&self) -> String {
        let mut keys = Vec::new();
        if let Value::Object(mut jwk) = self.jwk.clone() {
            jwk.insert("alg".to_owned(), self.algorithm.name().into());
            jwk.insert("use".to_owned(), "sig".into());
            jwk.extend(self.kid.clone().map(|kid| ("kid".to_owned(), Value::String(kid))));
            keys.push(Value::Object(jwk));
        }
        format!("{:#}\n", json!({ "keys": keys }))
    }

    /// Its public part as PEM (SPKI); none for a shared secret.
    pub fn public_pem(&self) -> Option<String> {
        (self.algorithm != Algorithm::Hs256).then(|| pem("PUBLIC KEY", &self.public))
    }

    /// The private key as PEM (PKCS#8); none for a shared secret.
    pub fn private_pem(&self) -> Option<Zeroizing<String>> {
        (self.algorithm != Algorithm::Hs256).then(|| Zeroizing::new(pem("PRIVATE KEY", &self.private)))
    }

    /// The private key as it is kept in a file: PEM (PKCS#8), or the bytes of the shared secret.
    pub fn private_text(&self) -> Zeroizing<Vec<u8>> {
        match self.private_pem() {
            Some(pem) => Zeroizing::new(pem.as_bytes().to_vec()),
            None => self.private.clone(),
        }
    }

    /// Makes a token of these claims.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn sign(&self, claims: &Value) -> Result<String, SigningError> {
        let mut header = Header::new(self.algorithm.jose());
        header.kid.clone_from(&self.kid);
        jsonwebtoken::encode(&header, claims, &self.encoding)
            .map_err(|_| SigningError("the token could not be signed".to_owned()))
    }
}

/// SPKI, the members of the JWK that RFC 7638 hashes, and what signs; none if it is no key of that kind.
type Parts = (Vec<u8>, Value, EncodingKey);

fn rsa_parts(private: &[u8]) -> Option<Parts> {
    let pair = RsaKeyPair::from_pkcs8(private).ok()?;
    let public = pair.public_key();
    let spki: PublicKeyX509Der<'_> = public.as_der().ok()?;
    let e = base64url(public.exponent().big_endian_without_leading_zero());
    let n = base64url(public.modulus().big_endian_without_leading_zero());
    // What signs takes the key without its PKCS#8 wrapper, which only reading the PEM form takes off.
    let pem = Zeroizing::new(pem("PRIVATE KEY", private));
    let encoding = EncodingKey::from_rsa_pem(pem.as_bytes()).ok()?;
    Some((spki.as_ref().to_vec(), json!({ "e": e, "kty": "RSA", "n": n }), encoding))
}

fn ec_parts(private: &[u8]) -> Option<Parts> {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, private).ok()?;
    let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().ok()?;
    // Uncompressed point: 04, x, y.
    let (x, y) = pair.public_key().as_ref().get(1..)?.split_at_checked(32)?;
    let jwk = json!({ "crv": "P-256", "kty": "EC", "x": base64url(x), "y": base64url(y) });
    Some((spki.as_ref().to_vec(), jwk, EncodingKey::from_ec_der(private)))
}

fn ed_parts(private: &[u8]) -> Option<Parts> {
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(private).ok()?;
    let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().ok()?;
    let jwk = json!({ "crv": "Ed25519", "kty": "OKP", "x": base64url(pair.public_key().as_ref()) });
    Some((spki.as_ref().to_vec(), jwk, EncodingKey::from_ed_der(private)))
}

fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn pem(tag: &str, der: &[u8]) -> String {
    pem::encode_config(
        &pem::Pem::new(tag, der),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_survives_its_file() {
        for algorithm in [Algorithm::Hs256, Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa] {
            let key = SigningKey::generate(algorithm).unwrap();
            let again = match key.private_pem() {
                Some(pem) => SigningKey::from_pem(pem.as_bytes()).unwrap(),
                None => SigningKey::from_private(algorithm, &key.private_text()).unwrap(),
            };
            assert_eq!((again.algorithm(), again.kid()), (algorithm, key.kid()));
            assert_eq!((again.public_pem(), again.public_jwks()), (key.public_pem(), key.public_jwks()));
        }
    }

    #[test]
    fn the_kid_is_the_thumbprint_of_rfc_7638() {
        // RFC 8037 appendix A.1 (the key) and A.3 (its thumbprint).
        let seed = URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
        // RFC 8410 section 7: PKCS#8 around the seed.
        let pkcs8 = [b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20", &seed[..]].concat();
        let key = SigningKey::from_private(Algorithm::EdDsa, &pkcs8).unwrap();
        assert_eq!(key.kid(), Some("kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"));
        assert!(key.public_jwks().contains("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"));
    }

    #[test]
    fn what_cannot_sign_is_refused_with_a_hint() {
        let key = SigningKey::generate(Algorithm::Es256).unwrap();
        let told = |text: &str| SigningKey::from_pem(text.as_bytes()).err().unwrap().to_string();
        assert!(told(&key.public_pem().unwrap()).contains("private key"));
        assert!(told("x").contains("PEM"));
        assert!(told(&key.private_pem().unwrap().replace("PRIVATE", "EC PRIVATE")).contains("openssl pkcs8"));
        assert!(SigningKey::from_private(Algorithm::Hs256, &[b'x'; 31]).is_err());
    }
}
