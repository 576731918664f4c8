//! An issuer of tokens with real keys.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pgtenant::auth::signing::{Algorithm, SigningKey};
use serde_json::{Map, Value, json};

/// Who signs tokens; clones share the key.
#[derive(Clone)]
pub struct Issuer {
    pub key: Arc<SigningKey>,
    pub algorithm: Algorithm,
    /// `iss` of its tokens.
    pub name: String,
    /// `aud` of its tokens.
    pub audience: String,
}

impl Issuer {
    pub fn es256() -> Self {
        Self::of(Algorithm::Es256)
    }

    pub fn rs256() -> Self {
        Self::of(Algorithm::Rs256)
    }

    pub fn eddsa() -> Self {
        Self::of(Algorithm::EdDsa)
    }

    pub fn hs256() -> Self {
        Self::of(Algorithm::Hs256)
    }

    pub fn of(algorithm: Algorithm) -> Self {
        let key = SigningKey::generate(algorithm).unwrap();
        Self {
            key: Arc::new(key),
            algorithm,
            name: "https://login.example.test/".to_owned(),
            audience: "pgtenant".to_owned(),
        }
    }

    /// With another `iss`.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// With another `aud`.
    pub fn for_audience(mut self, audience: &str) -> Self {
        self.audience = audience.to_owned();
        self
    }

    /// A token for this organization, good for five minutes.
    pub fn token(&self, organization: impl Into<Value>) -> Token {
        let claims = json!({
            "iss": self.name,
            "aud": self.audience,
            "sub": "someone",
            "exp": now() + 300,
            "org_id": organization.into(),
        });
        let Value::Object(claims) = claims else { unreachable!("an object literal") };
        Token { key: self.key.clone(), claims }
    }
}

/// A token being made.
pub struct Token {
    key: Arc<SigningKey>,
    claims: Map<String, Value>,
}

impl Token {
    pub fn project(self, project: impl Into<Value>) -> Self {
        self.claim("project_id", project)
    }

    pub fn subject(self, subject: &str) -> Self {
        self.claim("sub", subject)
    }

    pub fn roles(self, roles: &[&str]) -> Self {
        self.claim("roles", json!(roles))
    }

    /// Seconds from now; negative: it has expired.
    pub fn expires_in(self, seconds: i64) -> Self {
        self.claim("exp", now() + seconds)
    }

    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(name.to_owned(), value.into());
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.claims.remove(name);
        self
    }

    pub fn sign(self) -> String {
        self.key.sign(&Value::Object(self.claims)).unwrap()
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}
