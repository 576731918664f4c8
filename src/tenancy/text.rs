//! A client's SQL text, read as PostgreSQL's scanner reads it (PostgreSQL documentation, 4.1 "Lexical Structure"), as
//! far as it takes to see which settings it changes.
//!
//! What is seen decides what is asked of the server afterwards, never what a client may do: a text that hides what it
//! does (in a function, in a literal that is executed) costs its client a setting that does not follow it, no more.

use std::collections::BTreeSet;

/// Names remembered of one client.
const MAX_NAMES: usize = 64;

/// A name's length at most; PostgreSQL's own identifiers end at 63.
const MAX_NAME: usize = 128;

/// What a client's texts do to its settings.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Settings that PostgreSQL does not list by itself: those with a dot in their name, and `role`. For the whole session.
    pub names: BTreeSet<String>,
    /// A setting is changed for the session.
    pub session: bool,
    /// How many SET statements were seen.
    sets: usize,
    /// How many settings are changed for the transaction alone.
    pub local: usize,
    /// Something may be changed that cannot be told.
    pub opaque: bool,
}

impl Touched {
    /// Forgets all but the names.
    pub fn begin(&mut self) {
        (self.session, self.sets, self.local, self.opaque) = (false, 0, 0, false);
    }

    /// How many SET statements were seen.
    pub fn seen(&self) -> usize {
        self.sets
    }

    /// Reads a text. `standard_strings`: whether `standard_conforming_strings` is on.
    pub fn read(&mut self, sql: &[u8], standard_strings: bool) {
        if !mentions_set(sql) {
            return;
        }
        let mut scanner = Scanner { rest: sql, standard_strings };
        let mut at_start = true;
        while let Some(token) = scanner.next() {
            match &token {
                Token::Symbol(b';') => {
                    at_start = true;
                    continue;
                }
                Token::Word(word) if at_start && word == b"set" => self.read_set(&mut scanner),
                Token::Word(word) | Token::Quoted(word) if word == b"set_config" => {
                    self.read_set_config(&mut scanner);
                }
                _ => {}
            }
            at_start = false;
        }
    }

    /// Another text runs, of which this is known already.
    pub fn add(&mut self, other: &Self) {
        self.session |= other.session;
        self.sets += other.sets;
        self.local += other.local;
        self.opaque |= other.opaque;
        for name in &other.names {
            self.name(name.clone().into_bytes());
        }
    }

    /// Behind SET.
    fn read_set(&mut self, scanner: &mut Scanner<'_>) {
        self.sets += 1;
        let mut token = scanner.next();
        if let Some(Token::Word(word)) = &token {
            match word.as_slice() {
                b"local" | b"transaction" | b"constraints" => {
                    self.local += 1;
                    return;
                }
                b"session" => token = scanner.next(),
                _ => {}
            }
        }
        self.session = true;
        let Some(Token::Word(part) | Token::Quoted(part)) = token else {
            self.opaque = true;
            return;
        };
        let mut name = part;
        while matches!(scanner.peek(), Some(Token::Symbol(b'.'))) {
            scanner.next();
            let Some(Token::Word(part) | Token::Quoted(part)) = scanner.next() else {
                self.opaque = true;
                return;
            };
            name.push(b'.');
            name.extend(part);
        }
        self.name(name);
    }

    /// Behind `set_config`.
    fn read_set_config(&mut self, scanner: &mut Scanner<'_>) {
        if !matches!(scanner.peek(), Some(Token::Symbol(b'('))) {
            return;
        }
        scanner.next();
        self.session = true;
        match (scanner.next(), scanner.peek()) {
            (Some(Token::Text(name)), Some(Token::Symbol(b','))) => self.name(name),
            _ => self.opaque = true,
        }
    }

    fn name(&mut self, name: Vec<u8>) {
        let Ok(name) = String::from_utf8(name.to_ascii_lowercase()) else {
            self.opaque = true;
            return;
        };
        if name.starts_with("pgtenant.") || matches!(name.as_str(), "session_authorization" | "authorization")
        {
            self.opaque = true;
        } else if name.contains('.') || name == "role" {
            let fits = self.names.len() < MAX_NAMES && name.len() <= MAX_NAME;
            if fits {
                self.names.insert(name);
            } else if !self.names.contains(&name) {
                self.opaque = true;
            }
        }
    }
}

/// Whether the three letters are there at all: most texts end here.
fn mentions_set(sql: &[u8]) -> bool {
    memchr::memchr2_iter(b's', b'S', sql)
        .any(|at| sql.get(at + 1..at + 3).is_some_and(|rest| rest.eq_ignore_ascii_case(b"et")))
}

/// As much of a token as matters here.
#[derive(Debug, PartialEq, Eq)]
enum Token {
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

struct Scanner<'a> {
    rest: &'a [u8],
    standard_strings: bool,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<Token> {
        Scanner { rest: self.rest, standard_strings: self.standard_strings }.next()
    }

    fn next(&mut self) -> Option<Token> {
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

#[cfg(test)]
#[path = "text/tests.rs"]
mod tests;
