//! Texts that begin or end a transaction block, and do nothing else.

use super::scanner::{Scanner, Token};

/// What such a text does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// `BEGIN`, `START TRANSACTION`, with whatever characteristics.
    Begins,
    /// `COMMIT`, `END`, `ROLLBACK`, `ABORT`: nothing of the transaction goes on.
    Ends,
}

impl Block {
    /// Reads a text up to its first NUL; `None` if it does anything else.
    pub fn of(sql: &[u8]) -> Option<Self> {
        let sql = memchr::memchr(0, sql).map_or(sql, |end| &sql[..end]);
        // Such a text has no string constants, so it does not matter how they are read.
        let mut scanner = Scanner::new(sql, true);
        let mut words = Vec::new();
        while let Some(token) = scanner.next() {
            match token {
                Token::Word(word) => words.push(word),
                Token::Symbol(b',') => {}
                Token::Symbol(b';') if is_over(&mut scanner) => break,
                _ => return None,
            }
        }
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        match words.as_slice() {
            [b"begin", ..] | [b"start", b"transaction", ..] => Some(Self::Begins),
            [b"commit" | b"end" | b"rollback" | b"abort", rest @ ..] => {
                let rest = rest
                    .strip_prefix(&[&b"work"[..]])
                    .or(rest.strip_prefix(&[&b"transaction"[..]]))
                    .unwrap_or(rest);
                matches!(rest, [] | [b"and", b"no", b"chain"]).then_some(Self::Ends)
            }
            _ => None,
        }
    }
}

fn is_over(scanner: &mut Scanner<'_>) -> bool {
    while let Some(Token::Symbol(b';')) = scanner.peek() {
        scanner.next();
    }
    scanner.peek().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ends_the_whole_block_ends_it() {
        for sql in
            ["ROLLBACK", " commit work ; ;", "END TRANSACTION;", "/* x */ abort -- y", "COMMIT AND NO CHAIN"]
        {
            assert_eq!(Block::of(sql.as_bytes()), Some(Block::Ends), "{sql}");
        }
        for sql in ["BEGIN", "begin isolation level serializable, read only;", "START TRANSACTION READ WRITE"]
        {
            assert_eq!(Block::of(sql.as_bytes()), Some(Block::Begins), "{sql}");
        }
        for sql in [
            "",
            "ROLLBACK TO s",
            "ROLLBACK TO SAVEPOINT s",
            "ROLLBACK AND CHAIN",
            "COMMIT; SELECT 1",
            "ROLLBACK; BEGIN",
            "ROLLBACK PREPARED 'x'",
            "COMMIT PREPARED 'x'",
            "BEGIN; SELECT 1",
            "START",
            "SELECT 1",
            "\"rollback\"",
        ] {
            assert_eq!(Block::of(sql.as_bytes()), None, "{sql}");
        }
    }
}
