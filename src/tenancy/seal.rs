//! The seal: a context as the database receives it, signed, dated, and bound to one server process.
//!
//! Text of eight lines: HMAC-SHA-256 (RFC 2104) in hexadecimal over the seven that follow; `v1`, or `v1-read-only`, which holds
//! in read-only transactions alone; key id; the
//! server's process id; expiry in Unix seconds; organization; project or nothing; SHA-256 of the payload.
//! The database checks it in plain SQL (`architect/sql/interface.sql`) with a key that only the check can read.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use aws_lc_rs::{digest, hmac};

use super::context::{TenantContext, unix_seconds};
use crate::config::Secret;

/// The process id of a server, as its BackendKeyData told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerPid(pub u32);

/// A sealed context. Only [`Sealer::seal`] makes one. Its text is bearer material for one server process: no Debug.
pub struct SealedContext {
    text: String,
    expires_at: u64,
    ends_with_token: bool,
    is_read_only: bool,
}

impl SealedContext {
    /// Whether it holds in read-only transactions alone.
    pub fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// What `pgtenant.seal` is set to.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// When it lapses, and whether sealing anew would gain time.
    pub fn lapse(&self) -> Lapse {
        Lapse { expires_at: self.expires_at, ends_with_token: self.ends_with_token }
    }
}

/// Until when a bound server's seal serves.
#[derive(Debug, Clone, Copy)]
pub struct Lapse {
    expires_at: u64,
    ends_with_token: bool,
}

impl Lapse {
    /// Whether a transaction that begins now will find the seal valid, with time to spare for the way there
    /// and for clocks that differ.
    pub fn is_fresh(self, now: SystemTime) -> bool {
        let margin = if self.ends_with_token { 1 } else { REFRESH_MARGIN };
        unix_seconds(now).saturating_add(margin) <= self.expires_at
    }
}

/// Seconds before its expiry at which a seal is no longer used for a new transaction.
const REFRESH_MARGIN: u64 = 5;

/// Makes seals with the newest key.
pub struct Sealer {
    key: hmac::Key,
    kid: String,
    lifetime: Duration,
}

impl Sealer {
    /// Seals with `key` (32 bytes); the database must have been given the same key.
    pub fn new(key: &Secret, lifetime: Duration) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key.expose()), kid: key_id(key), lifetime }
    }

    /// Seals `context` for the server process `pid`.
    pub fn seal(&self, context: &TenantContext, pid: ServerPid, now: SystemTime) -> SealedContext {
        let wanted = unix_seconds(now) + self.lifetime.as_secs();
        let last = context.expires_at().saturating_add(1);
        let expires_at = wanted.min(last);
        let project = context.project().map_or("", |project| project.as_str());
        let is_read_only = context.actor().is_some();
        let version = if is_read_only { "v1-read-only" } else { "v1" };
        let mut body = format!(
            "{version}\n{}\n{}\n{expires_at}\n{}\n{project}\n",
            self.kid,
            pid.0,
            context.organization().as_str(),
        );
        hex(context.payload_digest(), &mut body);
        let mut text = String::with_capacity(65 + body.len());
        hex(hmac::sign(&self.key, body.as_bytes()).as_ref(), &mut text);
        text.push('\n');
        text.push_str(&body);
        SealedContext { text, expires_at, ends_with_token: last <= wanted, is_read_only }
    }
}

/// Names a key without telling anything of it: eight bytes of a hash, in hexadecimal.
pub fn key_id(key: &Secret) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(b"pgtenant seal key id\0");
    hash.update(key.expose());
    let mut kid = String::new();
    hex(&hash.finish().as_ref()[..8], &mut kid);
    kid
}

/// HMAC's inner and outer pads (RFC 2104 section 2), which the database keeps instead of the key.
pub fn pads(key: &Secret) -> ([u8; 64], [u8; 64]) {
    let mut inner = [0x36; 64];
    let mut outer = [0x5c; 64];
    for (i, byte) in key.expose().iter().enumerate().take(64) {
        inner[i] ^= byte;
        outer[i] ^= byte;
    }
    (inner, outer)
}

/// Appends lower-case hexadecimal.
pub fn hex(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_id_tells_keys_apart() {
        let (a, b) = (Secret::new(vec![1; 32]), Secret::new(vec![2; 32]));
        assert_ne!(key_id(&a), key_id(&b));
        assert_eq!(key_id(&a).len(), 16);
    }

    #[test]
    fn the_pads_give_the_same_mac_as_the_library() {
        let key = Secret::new((0..32).collect());
        let (inner, outer) = pads(&key);
        let sha = |parts: &[&[u8]]| digest::digest(&digest::SHA256, &parts.concat()).as_ref().to_vec();
        let by_hand = sha(&[&outer, &sha(&[&inner, b"message"])]);
        let library = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.expose()), b"message");
        assert_eq!(by_hand, library.as_ref());
    }
}
