//! Whether what a client sends may go to a server together with its binding.

use super::prepared::ClientStatements;
use super::requests::Requests;
use crate::pool::switch::First;
use crate::tenancy::text::{self, Simple};
use crate::tenancy::token_command;
use crate::wire::frame::{HEADER, peek, split_cstr};
use crate::wire::tag;

impl Requests {
    /// What the client has sent first. String constants are read as standard ones.
    pub fn first(&self, bytes: &[u8], statements: &ClientStatements, generation: u64) -> First {
        let query = match peek(bytes) {
            Ok(Some(header)) if header.tag == tag::QUERY => bytes.get(HEADER..header.frame()),
            _ if self.is_plain_batch(bytes, statements, generation) => return First::Batch,
            _ => None,
        };
        match query.and_then(split_cstr) {
            // A token's commands never reach a server as they are.
            Some((text, [])) if self.is_between_messages() && token_command::read(text, true).is_none() => {
                match text::simple(text) {
                    Simple::Reads => First::Read,
                    Simple::Writes => First::Write,
                    Simple::Begins => First::Begin,
                    Simple::Other => First::Apart,
                }
            }
            _ => First::Apart,
        }
    }

    /// Whether the client has sent one whole batch of the extended protocol, up to its Sync, that executes nothing but
    /// queries which neither know nor care whether something precedes them in their transaction: SELECT, INSERT, UPDATE
    /// and their kin; BEGIN, VACUUM and CALL do care. String constants are read as standard ones.
    pub fn is_plain_batch(&self, bytes: &[u8], statements: &ClientStatements, generation: u64) -> bool {
        let mut rest = bytes;
        // The text of the unnamed statement, as it stands at each Bind; named ones that the batch itself prepares.
        let mut unnamed: Option<&[u8]> = statements.unnamed();
        let mut fresh: Option<(&[u8], &[u8])> = None;
        if !self.is_between_messages() {
            return false;
        }
        while let Ok(Some(header)) = peek(rest) {
            let Some((frame, after)) = rest.split_at_checked(header.frame()) else { return false };
            let body = &frame[HEADER..];
            rest = after;
            match header.tag {
                tag::PARSE => match split_cstr(body) {
                    Some((b"", text)) => unnamed = Some(text),
                    Some((name, text)) if fresh.is_none() => fresh = Some((name, text)),
                    _ => return false,
                },
                tag::BIND => {
                    let name = split_cstr(body).and_then(|(_, rest)| split_cstr(rest)).map(|(name, _)| name);
                    let is_plain = match name {
                        Some(b"") => unnamed.is_some_and(|text| text::is_plain(text, true)),
                        Some(name) => match (statements.get(name), fresh) {
                            // A doubtful one is asked about in steps of their own.
                            (Some(known), _) => known.is_plain && !known.is_doubtful(generation),
                            (None, Some((own, text))) if own == name => text::is_plain(text, true),
                            _ => false,
                        },
                        None => false,
                    };
                    if !is_plain {
                        return false;
                    }
                }
                tag::DESCRIBE | tag::EXECUTE => {}
                tag::SYNC => return true,
                _ => return false,
            }
        }
        false
    }
}

/// Whether a Terminate is among whole messages.
pub(super) fn says_goodbye(mut bytes: &[u8]) -> bool {
    while let Ok(Some(header)) = peek(bytes) {
        if header.tag == tag::TERMINATE {
            return true;
        }
        let Some(rest) = bytes.get(header.frame()..) else { return false };
        bytes = rest;
    }
    false
}

/// Whole messages up to the first Sync or simple query, or all that are there.
pub(super) fn first_batch(bytes: &[u8]) -> &[u8] {
    let mut end = 0;
    while let Ok(Some(header)) = peek(&bytes[end..]) {
        if bytes.len() - end < header.frame() {
            break;
        }
        end += header.frame();
        if matches!(header.tag, tag::SYNC | tag::QUERY) {
            break;
        }
    }
    &bytes[..end]
}
