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
        let private = match algorithm {
            Algorithm::Hs256 => {
                let mut secret = [0; 32];
                rand::fill(&mut secret).map_err(failed)?;
                URL_SAFE_NO_PAD.encode(secret).into_bytes()
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
        };
        Self::from_private(algorithm, private)
    }

    /// Takes a private key: PKCS#8 in DER form, or the bytes of a shared secret.
    ///
    /// # Errors
    /// It is no key of that algorithm.
    pub fn from_private(algorithm: Algorithm, private: Vec<u8>) -> Result<Self, SigningError> {
        let unusable = || SigningError(format!("the key is no private key for {}", algorithm.name()));
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (public, jwk, encoding) = match algorithm {
            Algorithm::Hs256 => (Vec::new(), Value::Null, EncodingKey::from_secret(&private)),
            Algorithm::Rs256 => {
                let pair = RsaKeyPair::from_pkcs8(&private).map_err(|_| unusable())?;
                let public = pair.public_key();
                let spki: PublicKeyX509Der<'_> = public.as_der().map_err(|_| unusable())?;
                let e = encode(public.exponent().big_endian_without_leading_zero());
                let n = encode(public.modulus().big_endian_without_leading_zero());
                // What signs wants the key without its PKCS#8 wrapper, which the PEM form hides.
                let pem = pem("PRIVATE KEY", &private);
                let encoding = EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(|_| unusable())?;
                (spki.as_ref().to_vec(), json!({ "e": e, "kty": "RSA", "n": n }), encoding)
            }
            Algorithm::Es256 => {
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &private)
                    .map_err(|_| unusable())?;
                let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| unusable())?;
                // Uncompressed point: 04, x, y.
                let point = pair.public_key().as_ref();
                let (x, y) = point.get(1..).and_then(|xy| xy.split_at_checked(32)).ok_or_else(unusable)?;
                let jwk = json!({ "crv": "P-256", "kty": "EC", "x": encode(x), "y": encode(y) });
                (spki.as_ref().to_vec(), jwk, EncodingKey::from_ec_der(&private))
            }
            Algorithm::EdDsa => {
                let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&private).map_err(|_| unusable())?;
                let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| unusable())?;
                let jwk = json!({ "crv": "Ed25519", "kty": "OKP", "x": encode(pair.public_key().as_ref()) });
                (spki.as_ref().to_vec(), jwk, EncodingKey::from_ed_der(&private))
            }
        };
        // RFC 7638: the members in lexical order, without white space; serde_json's maps are sorted.
        let thumbprint = encode(digest::digest(&digest::SHA256, jwk.to_string().as_bytes()).as_ref());
        let kid = (algorithm != Algorithm::Hs256).then_some(thumbprint);
        Ok(Self { algorithm, kid, private: Zeroizing::new(private), public, jwk, encoding })
    }

    /// Reads a PEM file's text (PKCS#8), finding out its algorithm.
    ///
    /// # Errors
    /// It is no private key that pgtenant can use.
    pub fn from_pem(text: &[u8]) -> Result<Self, SigningError> {
        let pem = pem::parse(text).map_err(|_| SigningError("the key is not in PEM form".to_owned()))?;
        if pem.tag() != "PRIVATE KEY" {
            return Err(SigningError("the PEM holds no PKCS#8 private key (BEGIN PRIVATE KEY)".to_owned()));
        }
        [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256]
            .into_iter()
            .find_map(|algorithm| Self::from_private(algorithm, pem.contents().to_vec()).ok())
            .ok_or_else(|| SigningError("the key is neither RSA, P-256 nor Ed25519".to_owned()))
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

    /// Its public part as PEM (SPKI).
    pub fn public_pem(&self) -> String {
        pem("PUBLIC KEY", &self.public)
    }

    /// The private key as it is kept in a file: PEM (PKCS#8), or the text of the shared secret.
    pub fn private_text(&self) -> Zeroizing<Vec<u8>> {
        match self.algorithm {
            Algorithm::Hs256 => self.private.clone(),
            _ => Zeroizing::new(pem("PRIVATE KEY", &self.private).into_bytes()),
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

fn pem(tag: &str, der: &[u8]) -> String {
    pem::encode_config(
        &pem::Pem::new(tag, der),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}
