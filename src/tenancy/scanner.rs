//! A client's SQL text, read as PostgreSQL's scanner reads it (PostgreSQL documentation, 4.1 "Lexical Structure"), as
//! far as it matters here: words, quoted names, string constants, and where each ends.

/// As much of a token as matters here.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A key word or unquoted identifier, in lower case.
    Word(Vec<u8>),
    /// `"..."`
    Quoted(Vec<u8>),
    /// A string constant whose value is as written.
    Text(Vec<u8>),
    /// A string constant with escapes, or a Unicode one.
    Other,
    /// Any other character.
    Symbol(u8),
}

pub(super) struct Scanner<'a> {
    rest: &'a [u8],
    standard_strings: bool,
}

impl<'a> Scanner<'a> {
    /// Begins at the start of a text. `standard_strings`: whether `standard_conforming_strings` is on.
    pub(super) fn new(sql: &'a [u8], standard_strings: bool) -> Self {
        Self { rest: sql, standard_strings }
    }

    pub(super) fn peek(&self) -> Option<Token> {
        Scanner { rest: self.rest, standard_strings: self.standard_strings }.next()
    }

    pub(super) fn next(&mut self) -> Option<Token> {
        self.skip_space();
        let (&first, after) = self.rest.split_first()?;
        match first {
            b'\'' => Some(self.constant(1, !self.standard_strings)),
            b'"' => Some(Token::Quoted(self.quoted(1, b'"', false).0)),
            b'$' => Some(self.dollar()),
            _ if is_identifier_start(first) => Some(match (first.to_ascii_lowercase(), after) {
                (b'e', [b'\'', ..]) => self.constant(2, true),
                (b'b' | b'x', [b'\'', ..]) => self.constant(2, false),
                (b'n', [b'\'', ..]) => self.constant(2, !self.standard_strings),
                (b'u', [b'&', b'\'', ..]) => {
                    self.constant(3, false);
                    Token::Other
                }
                (b'u', [b'&', b'"', ..]) => {
                    self.quoted(3, b'"', false);
                    Token::Other
                }
                _ => self.word(),
            }),
            _ => {
                self.rest = after;
                Some(Token::Symbol(first))
            }
        }
    }

    /// White space and comments; block comments nest. Whether a line ended in it.
    fn skip_space(&mut self) -> bool {
        let mut line_ended = false;
        loop {
            match self.rest {
                [b' ' | b'\t' | b'\r' | b'\n' | b'\x0b' | b'\x0c', rest @ ..] => {
                    line_ended |= matches!(self.rest[0], b'\r' | b'\n');
                    self.rest = rest;
                }
                [b'-', b'-', rest @ ..] => {
                    let end = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                    self.rest = &rest[end..];
                }
                [b'/', b'*', rest @ ..] => self.rest = after_comment(rest),
                _ => return line_ended,
            }
        }
    }

    fn word(&mut self) -> Token {
        let end = self.rest.iter().position(|byte| !is_identifier(*byte)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Token::Word(word.to_ascii_lowercase())
    }

    /// A string constant, with those that continue it on further lines.
    fn constant(&mut self, opening: usize, backslashes: bool) -> Token {
        let (mut value, mut escaped) = self.quoted(opening, b'\'', backslashes);
        loop {
            let before = self.rest;
            if !(self.skip_space() && self.rest.first() == Some(&b'\'')) {
                self.rest = before;
                break;
            }
            let (more, more_escaped) = self.quoted(1, b'\'', backslashes);
            value.extend(more);
            escaped |= more_escaped;
        }
        if escaped { Token::Other } else { Token::Text(value) }
    }

    /// Up to the closing quote; doubled quotes stand for one. Whether a backslash escaped something.
    fn quoted(&mut self, opening: usize, quote: u8, backslashes: bool) -> (Vec<u8>, bool) {
        let mut rest = &self.rest[opening..];
        let (mut value, mut escaped) = (Vec::new(), false);
        loop {
            match rest {
                [b'\\', _, after @ ..] if backslashes => {
                    escaped = true;
                    rest = after;
                }
                [a, b, after @ ..] if *a == quote && *b == quote => {
                    value.push(quote);
                    rest = after;
                }
                [a, after @ ..] => {
                    rest = after;
                    if *a == quote {
                        break;
                    }
                    value.push(*a);
                }
                [] => break, // PostgreSQL refuses it
            }
        }
        self.rest = rest;
        (value, escaped)
    }

    /// `$1`, or a dollar-quoted constant: `$tag$ ... $tag$`.
    fn dollar(&mut self) -> Token {
        let after = &self.rest[1..];
        let end = after.iter().position(|byte| !is_identifier(*byte) || *byte == b'$').unwrap_or(after.len());
        let starts_well = after.first().is_some_and(|byte| is_identifier_start(*byte) || *byte == b'$');
        if !starts_well || after.get(end) != Some(&b'$') {
            self.rest = after;
            return Token::Symbol(b'$');
        }
        let (delimiter, body) = self.rest.split_at(end + 2);
        let Some(length) = memchr::memmem::find(body, delimiter) else {
            self.rest = &[];
            return Token::Other;
        };
        self.rest = &body[length + delimiter.len()..];
        Token::Text(body[..length].to_vec())
    }
}

/// What follows a block comment whose opening is past.
fn after_comment(mut rest: &[u8]) -> &[u8] {
    let mut depth = 1;
    while depth > 0 {
        match rest {
            [b'/', b'*', after @ ..] => {
                depth += 1;
                rest = after;
            }
            [b'*', b'/', after @ ..] => {
                depth -= 1;
                rest = after;
            }
            [_, after @ ..] => rest = after,
            [] => return rest,
        }
    }
    rest
}

fn is_identifier_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_identifier(byte: u8) -> bool {
    is_identifier_start(byte) || byte.is_ascii_digit() || byte == b'$'
}
