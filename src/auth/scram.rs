//! The server's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677; PostgreSQL documentation, 53.3 "SASL Authentication").
//!
//! A state machine without sockets: [`ServerFirst::start`] answers the client's first message and gives the
//! [`Exchange`] that checks its last one.

use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// PostgreSQL's default (`scram_iterations`).
const ITERATIONS: u32 = 4096;

/// PostgreSQL's greatest (`scram_iterations` is an `int`). The client pays for them, not we.
const MAX_ITERATIONS: u32 = i32::MAX as u32;

/// A password in clear is checked at our cost: with more iterations it takes half a second and more.
const MAX_CLEARTEXT_ITERATIONS: u32 = 1_000_000;

/// PostgreSQL's own (`SCRAM_DEFAULT_SALT_LEN`).
const SALT_BYTES: usize = 16;

/// Longer messages are refused unread; those of real clients have about 100 bytes.
pub const MAX_MESSAGE_BYTES: usize = 1024;

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
    /// The client could bind the exchange to its connection, and was made to believe that we cannot.
    #[error("the offer of channel binding was taken out on its way")]
    Downgrade,
    /// The exchange is bound to another connection: somebody is in between.
    #[error("channel binding to another certificate")]
    WrongBinding,
    /// The proof does not fit.
    #[error("wrong password")]
    WrongPassword,
}

/// How an exchange is bound to the connection below it (RFC 5802 section 6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// `SCRAM-SHA-256`, and nothing else was offered.
    NotOffered,
    /// `SCRAM-SHA-256`, though `SCRAM-SHA-256-PLUS` was offered.
    Declined,
    /// `SCRAM-SHA-256-PLUS`: to the certificate that the client was shown, by its `tls-server-end-point`.
    EndPoint(Vec<u8>),
}

impl Binding {
    /// What client-final must carry for the flag of client-first.
    fn expected(&self, flag: &str) -> Result<Vec<u8>, ScramError> {
        let header = format!("{flag},,").into_bytes();
        match (self, flag) {
            (Self::EndPoint(hash), "p=tls-server-end-point") => Ok([&header[..], hash].concat()),
            (Self::EndPoint(_), _) => Err(ScramError::Malformed("-PLUS without tls-server-end-point")),
            (_, "n") | (Self::NotOffered, "y") => Ok(header),
            (Self::Declined, "y") => Err(ScramError::Downgrade),
            _ => Err(ScramError::Malformed("channel binding without -PLUS")),
        }
    }
}

impl Verifier {
    /// Takes a secret as configured: PostgreSQL's `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, or else
    /// a password.
    pub fn from_secret(secret: &[u8]) -> Self {
        let written = std::str::from_utf8(secret).ok().and_then(Self::parse);
        written.unwrap_or_else(|| {
            let mut salt = [0; SALT_BYTES];
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
        let mut salted = Zeroizing::new([0; 32]);
        let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, &normalized(password), salted.as_mut());
        Self {
            iterations,
            salt: salt.to_owned(),
            stored_key: sha256(&mac(salted.as_ref(), b"Client Key")),
            server_key: mac(salted.as_ref(), b"Server Key"),
        }
    }

    /// Whether a password in clear is the right one. Never, for a verifier with more than
    /// `MAX_CLEARTEXT_ITERATIONS`: such a user must sign in by SCRAM.
    pub fn matches(&self, password: &[u8]) -> bool {
        if self.iterations > MAX_CLEARTEXT_ITERATIONS {
            return false;
        }
        let given = Self::derive(password, &self.salt, self.iterations);
        given.stored_key.ct_eq(&self.stored_key).into()
    }
}

/// Verifiers of users that do not exist, so that they cannot be told from those that do.
pub struct Strangers([u8; 32]);

impl Default for Strangers {
    fn default() -> Self {
        let mut key = [0; 32];
        // Without random bytes nothing signs in anyway.
        let _ = rand::fill(&mut key);
        Self(key)
    }
}

impl Strangers {
    /// One that no password fits. The salt is the same for a name each time, as that of a user would be.
    pub fn verifier(&self, user: &str) -> Verifier {
        let secret = |purpose: &[u8]| mac(&self.0, &[purpose, user.as_bytes()].concat());
        Verifier {
            iterations: ITERATIONS,
            salt: secret(b"salt")[..SALT_BYTES].to_vec(),
            stored_key: secret(b"stored"),
            server_key: secret(b"server"),
        }
    }
}

/// SASLprep (RFC 4013) where it applies; other passwords as they are, as PostgreSQL does.
fn normalized(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let prepared = std::str::from_utf8(password).ok().and_then(|text| stringprep::saslprep(text).ok());
    Zeroizing::new(match prepared {
        Some(text) if !text.is_empty() => text.into_owned().into_bytes(),
        _ => password.to_owned(),
    })
}

/// The answer to a client's first message.
pub struct ServerFirst;

impl ServerFirst {
    /// Answers client-first with server-first. `nonce` is the server's part, random and printable.
    ///
    /// # Errors
    /// The message is malformed, does not go with the mechanism chosen, or asks to act as someone else.
    pub fn start(
        client_first: &[u8],
        binding: &Binding,
        verifier: &Verifier,
        nonce: &str,
    ) -> Result<(Exchange, Vec<u8>), ScramError> {
        let message = text(client_first)?;
        let malformed = ScramError::Malformed("client-first");
        let (flag, rest) = message.split_once(',').ok_or(malformed)?;
        let (authorization, bare) = rest.split_once(',').ok_or(malformed)?;
        let binding = binding.expected(flag)?;
        if !authorization.is_empty() {
            return Err(ScramError::Malformed("an authorization identity is not supported"));
        }
        // The user's name is the one in the start-up packet; this field is ignored, as in PostgreSQL. A mandatory
        // extension (`m=`) would stand in its place.
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
            binding,
            nonce: combined,
            auth_message: format!("{bare},{server_first},"),
        };
        Ok((exchange, server_first.into_bytes()))
    }
}

/// An exchange that waits for the client's proof.
pub struct Exchange {
    verifier: Verifier,
    binding: Vec<u8>,
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
        if STANDARD.decode(binding).ok().as_deref() != Some(&self.binding) {
            return Err(ScramError::WrongBinding);
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
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(ScramError::Malformed("too long"));
    }
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
mod tests;
