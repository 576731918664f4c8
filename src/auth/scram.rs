//! The server's side of SCRAM-SHA-256 (RFC 5802, RFC 7677; PostgreSQL documentation, 53.3 "SASL Authentication").
//!
//! A state machine without sockets: [`ServerFirst::start`] answers the client's first message and gives the
//! [`Exchange`] that checks its last one.

use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq as _;

/// PostgreSQL's default (`scram_iterations`).
const ITERATIONS: u32 = 4096;

/// A verifier with more would make each sign-in expensive for us.
const MAX_ITERATIONS: u32 = 1_000_000;

/// What is kept of a password: enough to check it, not enough to use it elsewhere.
#[derive(Clone)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

/// Why a sign-in by SCRAM fails. The client is told only that its password is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// A message does not have the form of RFC 5802.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The proof does not fit.
    #[error("wrong password")]
    WrongPassword,
}

impl Verifier {
    /// Takes a secret as configured: PostgreSQL's `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, or else
    /// a password.
    pub fn from_secret(secret: &[u8]) -> Self {
        let written = std::str::from_utf8(secret).ok().and_then(Self::parse);
        written.unwrap_or_else(|| {
            let mut salt = [0; 16];
            // Without random bytes the salt is only less good: the password still has to fit.
            let _ = rand::fill(&mut salt);
            Self::derive(secret, &salt, ITERATIONS)
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("SCRAM-SHA-256$")?;
        let (head, keys) = rest.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let key = |text: &str| -> Option<[u8; 32]> { STANDARD.decode(text).ok()?.try_into().ok() };
        Some(Self {
            iterations: iterations.parse().ok().filter(|n| (1..=MAX_ITERATIONS).contains(n))?,
            salt: STANDARD.decode(salt).ok()?,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }

    fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let mut salted = [0; 32];
        let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, &normalized(password), &mut salted);
        Self {
            iterations,
            salt: salt.to_owned(),
            stored_key: sha256(&mac(&salted, b"Client Key")),
            server_key: mac(&salted, b"Server Key"),
        }
    }

    /// Whether a password in clear is the right one.
    pub fn matches(&self, password: &[u8]) -> bool {
        let given = Self::derive(password, &self.salt, self.iterations);
        given.stored_key.ct_eq(&self.stored_key).into()
    }
}

/// SASLprep (RFC 4013) where it applies; other passwords as they are, as PostgreSQL does.
fn normalized(password: &[u8]) -> Vec<u8> {
    let prepared = std::str::from_utf8(password).ok().and_then(|text| stringprep::saslprep(text).ok());
    prepared.map_or_else(|| password.to_owned(), |text| text.into_owned().into_bytes())
}

/// The answer to a client's first message.
pub struct ServerFirst;

impl ServerFirst {
    /// Answers client-first with server-first. `nonce` is the server's part, random and printable.
    ///
    /// # Errors
    /// The message is malformed, or asks for channel binding, which was not offered.
    pub fn start(
        client_first: &[u8],
        verifier: &Verifier,
        nonce: &str,
    ) -> Result<(Exchange, Vec<u8>), ScramError> {
        let message = text(client_first)?;
        let malformed = ScramError::Malformed("client-first");
        let (flag, rest) = message.split_once(',').ok_or(malformed)?;
        let (authorization, bare) = rest.split_once(',').ok_or(malformed)?;
        if !matches!(flag, "n" | "y") {
            return Err(ScramError::Malformed("channel binding was not offered"));
        }
        if !authorization.is_empty() && !authorization.starts_with("a=") {
            return Err(malformed);
        }
        // The user's name is the one in the start-up packet; this field is ignored, as in PostgreSQL.
        let mut attributes = bare.split(',');
        let _user = attributes.next().filter(|user| user.starts_with("n=")).ok_or(malformed)?;
        let client_nonce =
            attributes.next().and_then(|attribute| attribute.strip_prefix("r=")).ok_or(malformed)?;
        if client_nonce.is_empty() || !client_nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(malformed);
        }
        let combined = format!("{client_nonce}{nonce}");
        let server_first =
            format!("r={combined},s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations);
        let exchange = Exchange {
            verifier: verifier.clone(),
            gs2_header: format!("{flag},{authorization},"),
            nonce: combined,
            auth_message: format!("{bare},{server_first},"),
        };
        Ok((exchange, server_first.into_bytes()))
    }
}

/// An exchange that waits for the client's proof.
pub struct Exchange {
    verifier: Verifier,
    gs2_header: String,
    nonce: String,
    auth_message: String,
}

impl Exchange {
    /// Checks client-final and answers with server-final, which proves to the client that we know its password too.
    ///
    /// # Errors
    /// The message is malformed or of another exchange, or the password is wrong.
    pub fn finish(self, client_final: &[u8]) -> Result<Vec<u8>, ScramError> {
        let message = text(client_final)?;
        let malformed = ScramError::Malformed("client-final");
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(malformed)?;
        let mut attributes = without_proof.split(',');
        let binding =
            attributes.next().and_then(|attribute| attribute.strip_prefix("c=")).ok_or(malformed)?;
        let nonce = attributes.next().and_then(|attribute| attribute.strip_prefix("r=")).ok_or(malformed)?;
        if STANDARD.decode(binding).ok().as_deref() != Some(self.gs2_header.as_bytes()) {
            return Err(ScramError::Malformed("channel binding does not match"));
        }
        if nonce != self.nonce {
            return Err(ScramError::Malformed("nonce does not match"));
        }
        let proof: [u8; 32] = STANDARD.decode(proof).ok().and_then(|p| p.try_into().ok()).ok_or(malformed)?;
        let auth_message = self.auth_message + without_proof;
        let signature = mac(&self.verifier.stored_key, auth_message.as_bytes());
        let mut client_key = proof;
        client_key.iter_mut().zip(signature).for_each(|(key, byte)| *key ^= byte);
        if !bool::from(sha256(&client_key).ct_eq(&self.verifier.stored_key)) {
            return Err(ScramError::WrongPassword);
        }
        let server_signature = mac(&self.verifier.server_key, auth_message.as_bytes());
        Ok(format!("v={}", STANDARD.encode(server_signature)).into_bytes())
    }
}

fn text(message: &[u8]) -> Result<&str, ScramError> {
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))
}

fn mac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    out.copy_from_slice(tag.as_ref());
    out
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    use proptest::prelude::*;

    /// The client of rust-postgres as an independent party.
    fn sign_in(verifier: &Verifier, password: &[u8]) -> Result<(), ScramError> {
        let mut client = ScramSha256::new(password, ChannelBinding::unsupported());
        let (exchange, server_first) = ServerFirst::start(client.message(), verifier, "servernonce")?;
        client.update(&server_first).unwrap();
        let server_final = exchange.finish(client.message())?;
        client.finish(&server_final).unwrap();
        Ok(())
    }

    #[test]
    fn the_right_password_signs_in_and_no_other() {
        for password in ["hunter2", "pässwörd", "\u{2168}", ""] {
            let verifier = Verifier::from_secret(password.as_bytes());
            assert_eq!(sign_in(&verifier, password.as_bytes()), Ok(()), "{password}");
            assert_eq!(sign_in(&verifier, b"wrong"), Err(ScramError::WrongPassword), "{password}");
            assert!(verifier.matches(password.as_bytes()) && !verifier.matches(b"wrong"));
        }
    }

    #[test]
    fn postgresqls_own_verifier_is_understood() {
        // RFC 7677 section 3: password "pencil".
        let salted = Verifier::derive(b"pencil", &STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), 4096);
        let text = format!(
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==${}:{}",
            STANDARD.encode(salted.stored_key),
            STANDARD.encode(salted.server_key)
        );
        assert_eq!(STANDARD.encode(salted.server_key), "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=");
        assert_eq!(sign_in(&Verifier::from_secret(text.as_bytes()), b"pencil"), Ok(()));
    }

    #[test]
    fn channel_binding_downgrades_and_foreign_nonces_are_refused() {
        let verifier = Verifier::from_secret(b"x");
        let start = |first: &[u8]| ServerFirst::start(first, &verifier, "s").map(|(exchange, _)| exchange);
        assert!(start(b"p=tls-server-end-point,,n=,r=abc").is_err());
        assert!(start(b"n,,n=,r=").is_err());
        assert!(start(b"n,,r=abc").is_err());
        let exchange = start(b"n,,n=,r=abc").unwrap();
        let other = exchange.finish(b"c=biws,r=abcX,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        assert_eq!(other, Err(ScramError::Malformed("nonce does not match")));
        let exchange = start(b"y,,n=,r=abc").unwrap();
        let other = exchange.finish(b"c=biws,r=abcs,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        assert_eq!(other, Err(ScramError::Malformed("channel binding does not match")));
    }

    proptest! {
        #[test]
        fn no_message_panics(first in proptest::collection::vec(any::<u8>(), 0..100), last in "[ -~]{0,100}") {
            let verifier = Verifier { iterations: 1, salt: vec![1], stored_key: [0; 32], server_key: [0; 32] };
            let _ = ServerFirst::start(&first, &verifier, "s");
            let (exchange, _) = ServerFirst::start(b"n,,n=,r=abc", &verifier, "s").unwrap();
            let _ = exchange.finish(last.as_bytes());
        }
    }
}
