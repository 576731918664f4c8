//! Which messages may reach a pooled server at all, and how much of them at a time.

use crate::net::buffer::Buffer;
use crate::wire::frame::{HEADER, Header};
use crate::wire::report::{Report, Sqlstate};
use crate::wire::tag;
use crate::wire::violation::Violation;

/// Text and types of a named prepared statement at most: it is kept as long as any client holds it.
pub const MAX_STATEMENT: usize = 4 * 1024 * 1024;

/// Outstanding answers of one client past which it is not read further.
pub const MAX_OUTSTANDING: usize = 4096;

/// Bytes of outstanding unnamed statements, likewise.
pub const MAX_TEXTS: usize = 1024 * 1024;

/// Bytes queued for a server past which the client is not read further: what it sends next waits in its own socket.
pub const HIGH_WATER: usize = 64 * 1024;

/// Refuses a named statement that is too long to be kept before the rest of it arrives.
///
/// # Errors
/// It is.
pub fn check_statement_length(header: Header, incoming: &Buffer) -> Result<(), Report> {
    let is_named = incoming.filled().get(HEADER).is_some_and(|first| *first != 0);
    if header.tag == tag::PARSE && header.body > MAX_STATEMENT && is_named {
        return Err(Report::new(Sqlstate::LIMIT_EXCEEDED, "prepared statement too long")
            .detail(format!("{} bytes; at most {MAX_STATEMENT} can be pooled.", header.body))
            .hint("Use the unnamed statement for texts of this size."));
    }
    Ok(())
}

/// Refuses what no pooled server may see.
///
/// # Errors
/// It is such.
pub fn check_known(header: Header) -> Result<(), Report> {
    match header.tag {
        tag::QUERY
        | tag::PARSE
        | tag::BIND
        | tag::DESCRIBE
        | tag::EXECUTE
        | tag::CLOSE
        | tag::FLUSH
        | tag::COPY_DATA
        | tag::COPY_DONE
        | tag::COPY_FAIL => Ok(()),
        tag::SYNC | tag::TERMINATE if header.body == 0 => Ok(()),
        tag::SYNC | tag::TERMINATE => Err(Violation::Malformed(header.tag).into()),
        tag::FUNCTION_CALL => Err(Report::new(
            Sqlstate::NOT_SUPPORTED,
            "the function call protocol is not supported through pgtenant",
        )
        .hint("Call the function with SELECT.")),
        other => Err(Violation::Unexpected(other).into()),
    }
}
