//! What is at stake when a connection is lost while a text runs: nothing, its own writes, or those of its transaction.

use super::scanner::{Scanner, Token};

/// What may have been committed by the time that an answer does not come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stake {
    /// Nothing, but for what functions do that are called in a SELECT.
    #[default]
    Nothing,
    /// What the text itself writes, where no transaction block is open.
    Statement,
    /// A transaction block's writes: the text may end it.
    Block,
}

impl Stake {
    /// Reads a text up to its first NUL. In doubt more is at stake.
    pub fn of(sql: &[u8]) -> Self {
        let sql = memchr::memchr(0, sql).map_or(sql, |end| &sql[..end]);
        let mut scanner = Scanner::new(sql, true);
        let verb = match scanner.next() {
            Some(Token::Word(verb)) => verb,
            None => return Self::Nothing,
            Some(_) => return Self::Statement, // a parenthesis and a SELECT, or an error
        };
        // Whatever stands behind a semicolon may end a block; one in a string is as good as one.
        let rest = memchr::memchr(b';', sql).map_or(&[][..], |semicolon| &sql[semicolon + 1..]);
        if !rest.trim_ascii().is_empty() {
            return Self::Block;
        }
        match verb.as_slice() {
            b"commit" | b"end" | b"prepare" => Self::Block,
            b"select" | b"values" | b"table" | b"show" | b"explain" | b"fetch" | b"move" | b"close"
            | b"declare" | b"set" | b"reset" | b"begin" | b"start" | b"rollback" | b"abort"
            | b"savepoint" | b"release" | b"listen" | b"unlisten" | b"deallocate" | b"discard" => {
                Self::Nothing
            }
            _ => Self::Statement,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_committed() {
        for (sql, stake) in [
            ("SELECT pg_sleep(1)", Stake::Nothing),
            (" /* x */ select 1;", Stake::Nothing),
            ("", Stake::Nothing),
            ("ROLLBACK", Stake::Nothing),
            ("INSERT INTO t VALUES (1)", Stake::Statement),
            ("WITH x AS (DELETE FROM t RETURNING 1) SELECT 1", Stake::Statement),
            ("(SELECT 1)", Stake::Statement),
            ("CALL p()\0\0", Stake::Statement),
            ("COMMIT", Stake::Block),
            ("-- so\nEnd;", Stake::Block),
            ("PREPARE TRANSACTION 'x'", Stake::Block),
            ("SELECT 1; COMMIT", Stake::Block),
            ("SELECT ';', 1", Stake::Block),
        ] {
            assert_eq!(Stake::of(sql.as_bytes()), stake, "{sql}");
        }
    }
}
