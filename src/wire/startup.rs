//! A client's first packet, read strictly: it comes from anyone on the network.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::frame::split_cstr;
use super::violation::Violation;

/// PostgreSQL's `MAX_STARTUP_PACKET_LENGTH`.
pub const MAX_STARTUP: usize = 10_000;

/// The newest minor version that is spoken: 3.2, of PostgreSQL 18.
pub const NEWEST_MINOR: u16 = 2;

/// Bytes of a cancel key's secret that any server may give (PostgreSQL documentation, 54.7 "BackendKeyData").
pub const SECRET_BYTES: RangeInclusive<usize> = 4..=256;

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// The packets that may open a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// The client asks for TLS.
    Ssl,
    /// The client asks for GSSAPI encryption, which is always declined.
    GssEnc,
    /// The client asks to cancel what another connection runs.
    Cancel(CancelKey),
    /// The client wants to sign in.
    Startup(StartupMessage),
}

/// Identifies a connection in a CancelRequest: four to 256 bytes of secret behind a process id (protocol 3.2).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CancelKey {
    /// The process id that BackendKeyData told.
    pub pid: u32,
    /// The secret that BackendKeyData told.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CancelKey {{ pid: {}, .. }}", self.pid)
    }
}

/// StartupMessage: who wants what, and the settings to start with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupMessage {
    /// Minor version asked for; the major is 3.
    pub minor: u16,
    /// `user`
    pub user: String,
    /// `database`, which defaults to the user's name.
    pub database: String,
    /// Everything else, protocol options (`_pq_.*`) apart.
    pub parameters: BTreeMap<String, String>,
    /// Protocol options, none of which is supported; the client is told so.
    pub protocol_options: Vec<String>,
}

impl StartupMessage {
    /// The minor version that is spoken with this client.
    pub fn spoken_minor(&self) -> u16 {
        self.minor.min(NEWEST_MINOR)
    }
}

/// How many bytes the opening packet has; `None` while its length word is not there.
///
/// # Errors
/// A length outside PostgreSQL's own bounds.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, Violation> {
    let Some((word, _)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*word) as usize;
    if !(8..=MAX_STARTUP).contains(&length) {
        return Err(Violation::Startup("invalid length"));
    }
    Ok(Some(length))
}

/// Reads a whole opening packet, length word included.
///
/// # Errors
/// Anything PostgreSQL itself would not take: unknown versions, missing terminators, trailing bytes, text that is not UTF-8.
pub fn parse(packet: &[u8]) -> Result<Opening, Violation> {
    let body = packet.get(4..).unwrap_or_default();
    let Some((code, rest)) = body.split_first_chunk::<4>() else {
        return Err(Violation::Startup("too short"));
    };
    match u32::from_be_bytes(*code) {
        SSL_REQUEST if rest.is_empty() => Ok(Opening::Ssl),
        GSSENC_REQUEST if rest.is_empty() => Ok(Opening::GssEnc),
        SSL_REQUEST | GSSENC_REQUEST => Err(Violation::Startup("bytes behind a request for encryption")),
        CANCEL_REQUEST => cancel(rest),
        version if version >> 16 == 3 => startup((version & 0xffff) as u16, rest),
        version => Err(Violation::Version((version >> 16) as u16, (version & 0xffff) as u16)),
    }
}

fn cancel(rest: &[u8]) -> Result<Opening, Violation> {
    let Some((pid, secret)) = rest.split_first_chunk::<4>() else {
        return Err(Violation::Startup("cancel request too short"));
    };
    if !SECRET_BYTES.contains(&secret.len()) {
        return Err(Violation::Startup("cancel key of a wrong length"));
    }
    Ok(Opening::Cancel(CancelKey { pid: u32::from_be_bytes(*pid), secret: secret.to_vec() }))
}

fn startup(minor: u16, mut rest: &[u8]) -> Result<Opening, Violation> {
    let mut parameters = BTreeMap::new();
    let mut protocol_options = Vec::new();
    loop {
        let Some((name, after)) = split_cstr(rest) else {
            return Err(Violation::Startup("no terminator"));
        };
        if name.is_empty() {
            if !after.is_empty() {
                return Err(Violation::Startup("bytes behind the terminator"));
            }
            break;
        }
        let Some((value, after)) = split_cstr(after) else {
            return Err(Violation::Startup("a parameter without a value"));
        };
        let (name, value) = (text(name)?, text(value)?);
        if name.starts_with("_pq_.") {
            protocol_options.push(name);
        } else if parameters.insert(name, value).is_some() {
            return Err(Violation::Startup("a parameter given twice"));
        }
        rest = after;
    }
    let user = parameters.remove("user").filter(|user| !user.is_empty());
    let user = user.ok_or(Violation::NoUser)?;
    let database = parameters.remove("database").filter(|name| !name.is_empty());
    let database = database.unwrap_or_else(|| user.clone());
    Ok(Opening::Startup(StartupMessage { minor, user, database, parameters, protocol_options }))
}

fn text(bytes: &[u8]) -> Result<String, Violation> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Violation::Startup("text that is not UTF-8")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
        let mut packet = ((8 + rest.len()) as u32).to_be_bytes().to_vec();
        packet.extend(code.to_be_bytes());
        packet.extend(rest);
        packet
    }

    #[test]
    fn a_startup_message_names_user_database_and_settings() {
        let read = parse(&packet(0x0003_0002, b"user\0app\0TimeZone\0UTC\0_pq_.x\x001\0\0")).unwrap();
        let Opening::Startup(startup) = read else { panic!("{read:?}") };
        assert_eq!((startup.minor, startup.user.as_str(), startup.database.as_str()), (2, "app", "app"));
        assert_eq!(startup.spoken_minor(), 2);
        assert_eq!(StartupMessage { minor: 9999, ..startup.clone() }.spoken_minor(), NEWEST_MINOR);
        assert_eq!(startup.parameters.get("TimeZone").map(String::as_str), Some("UTC"));
        assert_eq!(startup.protocol_options, ["_pq_.x"]);
    }

    #[test]
    fn malformed_openings_are_refused() {
        for (code, rest) in [
            (0x0003_0000, &b"user\0app"[..]),
            (0x0003_0000, b"user\0app\0"),
            (0x0003_0000, b"user\0app\0\0x"),
            (0x0003_0000, b"\0"),
            (0x0003_0000, b""),
            (0x0003_0000, b"user\0a\0user\0b\0\0"),
            (0x0003_0000, b"user\0\xff\0\0"),
            (0x0002_0000, b"user\0app\0\0"),
            (SSL_REQUEST, b"x"),
            (CANCEL_REQUEST, b"\0\0\0\x01\0\0"),
            (CANCEL_REQUEST, &[1; 4 + 257]),
        ] {
            assert!(parse(&packet(code, rest)).is_err(), "{code:x} {rest:?}");
        }
        assert!(length(&[0, 0, 0, 7]).is_err());
        assert!(length(&[0x7f, 0xff, 0xff, 0xff]).is_err());
        assert_eq!(length(&[0, 0]).unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = length(&bytes);
            let _ = parse(&bytes);
        }
    }
}
