//! Five bytes that head every message: the only thing the relay reads of most traffic.

use super::violation::Violation;

/// Bytes of a header: the type and a length that counts itself.
pub const HEADER: usize = 5;

/// A message's type and how many bytes follow the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The type byte.
    pub tag: u8,
    /// Bytes after the header, as the sender claims. Nothing is ever allocated by this number.
    pub body: usize,
}

impl Header {
    /// Bytes of the whole message.
    pub fn frame(self) -> usize {
        HEADER + self.body
    }
}

/// Reads the header at the start of `bytes`; `None` while fewer than five bytes are there.
///
/// # Errors
/// A length below 4, or over PostgreSQL's own 1 GiB, is a protocol violation: the stream cannot be followed further.
pub fn peek(bytes: &[u8]) -> Result<Option<Header>, Violation> {
    let Some((&[tag, a, b, c, d], _)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = i32::from_be_bytes([a, b, c, d]);
    if !(4..=MAX_LENGTH).contains(&length) {
        return Err(Violation::Length(tag));
    }
    Ok(Some(Header { tag, body: (length - 4) as usize }))
}

/// PostgreSQL's `PQ_LARGE_MESSAGE_LIMIT` (`MaxAllocSize - 1`): no longer message exists on either side.
const MAX_LENGTH: i32 = 0x3fff_ffff;

/// The NUL-terminated text at the start of `bytes`, and what follows its NUL; `None` without a NUL.
pub fn split_cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_header_needs_five_bytes_and_an_honest_length() {
        assert_eq!(peek(b"Q\0\0\0").unwrap(), None);
        assert_eq!(peek(b"S\0\0\0\x04").unwrap(), Some(Header { tag: b'S', body: 0 }));
        assert_eq!(peek(b"Q\0\0\0\x0aselect").unwrap(), Some(Header { tag: b'Q', body: 6 }));
        for lie in [[0, 0, 0, 3], [0, 0, 0, 0], [0xff, 0xff, 0xff, 0xff], [0x40, 0, 0, 0]] {
            let bytes = [b'Q', lie[0], lie[1], lie[2], lie[3]];
            assert!(peek(&bytes).is_err(), "{lie:?}");
        }
    }

    #[test]
    fn text_ends_at_its_nul() {
        assert_eq!(split_cstr(b"ab\0c"), Some((&b"ab"[..], &b"c"[..])));
        assert_eq!(split_cstr(b"\0"), Some((&b""[..], &b""[..])));
        assert_eq!(split_cstr(b"ab"), None);
    }
}
