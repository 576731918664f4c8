//! Which messages may reach a pooled server at all, and how much of them at a time.

use crate::config::PoolMode;
use crate::net::buffer::{BUFFER_SIZE, Buffer};
use crate::tenancy::text::{Effects, NeedsSession};
use crate::wire::frame::{HEADER, Header};
use crate::wire::report::{Report, Sqlstate};
use crate::wire::tag;
use crate::wire::violation::Violation;

/// A portal's or statement's name at most; PostgreSQL's own limit for identifiers is 63.
pub const MAX_NAME: usize = 1024;

/// A message is remembered or rewritten in one piece up to this size.
pub const MAX_WHOLE: usize = BUFFER_SIZE - 1024;

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
        | tag::COPY_DATA
        | tag::COPY_DONE
        | tag::COPY_FAIL => Ok(()),
        tag::SYNC | tag::TERMINATE | tag::FLUSH if header.body == 0 => Ok(()),
        // PostgreSQL would refuse it and skip what follows, without owing an answer.
        tag::SYNC | tag::TERMINATE | tag::FLUSH => Err(Violation::Malformed(header.tag).into()),
        tag::FUNCTION_CALL => Err(Report::new(
            Sqlstate::NOT_SUPPORTED,
            "the function call protocol is not supported through pgtenant",
        )
        .hint("Call the function with SELECT.")),
        other => Err(Violation::Unexpected(other).into()),
    }
}

/// What a server gets in place of a simple query that is refused. It cannot succeed.
pub const REFUSED: &str = "pgtenant refused what stood here";

/// Why a text is not executed: it would only half work on a server that its client does not keep. `is_outside`: it is
/// certain to be executed outside a transaction block, so that whatever it makes would be gone at once.
pub fn refusal(mode: PoolMode, effects: &Effects, is_outside: bool) -> Option<Report> {
    if let Some(report) = refusal_at_parse(mode, effects) {
        return Some(report);
    }
    let is_alone = effects.statements == 1 && is_outside;
    let (what, hint) = match effects.needs_session.filter(|_| is_alone && mode != PoolMode::Session)? {
        NeedsSession::Listen => return None, // refused above
        NeedsSession::Prepare => (
            "PREPARE outside a transaction",
            "Prepare by the protocol, as drivers do, inside a transaction, or with pool_mode = \"session\".",
        ),
        NeedsSession::Temporary => (
            "a temporary object outside a transaction",
            "Make and use it in one transaction, or use pool_mode = \"session\" for this database.",
        ),
        NeedsSession::Holdable => (
            "a cursor WITH HOLD outside a transaction",
            "Open and read it in one transaction, or use pool_mode = \"session\" for this database.",
        ),
        NeedsSession::AdvisoryLock => (
            "a session-level advisory lock outside a transaction",
            "Use pg_advisory_xact_lock in a transaction, or pool_mode = \"session\" for this database.",
        ),
    };
    Some(
        Report::new(Sqlstate::NOT_SUPPORTED, format!("{what} does not last with {}", setting(mode)))
            .detail("The next transaction may run on another server.")
            .hint(hint),
    )
}

/// The same, of what is not even worth preparing.
pub fn refusal_at_parse(mode: PoolMode, effects: &Effects) -> Option<Report> {
    if mode == PoolMode::Session {
        return None;
    }
    if effects.needs_session == Some(NeedsSession::Listen) {
        let what = format!("LISTEN does not work with {}", setting(mode));
        return Some(Report::new(Sqlstate::NOT_SUPPORTED, what).hint(
            "Use pool_mode = \"session\" for the database that clients listen on; NOTIFY works in every mode.",
        ));
    }
    if mode == PoolMode::Statement && effects.begins {
        return Some(block_refused());
    }
    None
}

/// In statement mode there are no transaction blocks.
pub fn block_refused() -> Report {
    let what = format!("transaction blocks are not allowed with {}", setting(PoolMode::Statement));
    Report::new(Sqlstate::NOT_SUPPORTED, what).hint(
        "Send the statements as one simple query, or use pool_mode = \"transaction\" for this database.",
    )
}

/// Names with our prefix are not for clients.
pub fn reserved_name() -> Report {
    Report::new(
        Sqlstate::RESERVED_NAME,
        "prepared statement names that begin with \"pgtenant_\" are reserved",
    )
    .hint("Choose another name.")
}

fn setting(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Session => "pool_mode = \"session\"",
        PoolMode::Transaction => "pool_mode = \"transaction\"",
        PoolMode::Statement => "pool_mode = \"statement\"",
    }
}
