//! A client's SQL text, read as PostgreSQL's scanner reads it (PostgreSQL documentation, 4.1 "Lexical Structure"), as
//! far as it matters here: words, quoted names, string constants, and where each ends.

/// As much of a token as matters here.
#[derive(Debug, PartialEq, Eq)]
pub enum Token {
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

/// What is not as written between quotes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    /// Two quotes, which stand for one.
    Quotes,
    /// Those, and escapes behind backslashes.
    Escapes,
    /// Nothing: in bit strings, the first quote is the last.
    Nothing,
}

/// Reads a text token by token.
#[derive(Clone)]
pub struct Scanner<'a> {
    rest: &'a [u8],
    standard_strings: bool,
    /// Escapes and code points are read, so that every constant and name has its value.
    decodes: bool,
    /// `\v` in escapes is a vertical tab, as for PostgreSQL 18; for PostgreSQL 15, it is a `v`.
    has_vertical_tabs: bool,
}

impl<'a> Scanner<'a> {
    /// Begins at the start of a text. `standard_strings`: whether `standard_conforming_strings` is on.
    pub fn new(sql: &'a [u8], standard_strings: bool) -> Self {
        Self { rest: sql, standard_strings, decodes: false, has_vertical_tabs: false }
    }

    /// Reads escapes and code points too: what is written in them then comes as [`Token::Text`] or [`Token::Quoted`].
    pub fn decoding(mut self) -> Self {
        self.decodes = true;
        self
    }

    /// Whether `\v` is a vertical tab, which depends on PostgreSQL's version.
    pub fn with_vertical_tabs(mut self, has_vertical_tabs: bool) -> Self {
        self.has_vertical_tabs = has_vertical_tabs;
        self
    }

    /// How many bytes of the text are not read yet.
    #[cfg(fuzzing)]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Passes white space and comments, so that what is left begins with a token.
    #[cfg(fuzzing)]
    pub fn skip_to_token(&mut self) {
        self.skip_space();
    }

    /// The next token, which stays.
    pub fn peek(&self) -> Option<Token> {
        self.clone().next()
    }

    /// The next token; none at the end.
    pub fn next(&mut self) -> Option<Token> {
        self.skip_space();
        let (&first, after) = self.rest.split_first()?;
        let plain = if self.standard_strings { Within::Quotes } else { Within::Escapes };
        match first {
            b'\'' => Some(self.constant(1, plain)),
            b'"' => Some(Token::Quoted(self.quoted(1, b'"', Within::Quotes).0)),
            b'$' => Some(self.dollar()),
            _ if is_identifier_start(first) => Some(match (first.to_ascii_lowercase(), after) {
                (b'e', [b'\'', ..]) => self.constant(2, Within::Escapes),
                (b'b' | b'x', [b'\'', ..]) => self.constant(2, Within::Nothing),
                (b'n', [b'\'', ..]) => self.constant(2, plain),
                (b'u', [b'&', b'\'', ..]) => match self.constant(3, Within::Quotes) {
                    Token::Text(value) if self.decodes => Token::Text(self.code_points(&value)),
                    _ => Token::Other,
                },
                (b'u', [b'&', b'"', ..]) => match self.quoted(3, b'"', Within::Quotes).0 {
                    name if self.decodes => Token::Quoted(self.code_points(&name)),
                    _ => Token::Other,
                },
                _ => self.word(),
            }),
            _ => {
                self.rest = after;
                Some(Token::Symbol(first))
            }
        }
    }

    /// White space and comments; block comments nest.
    fn skip_space(&mut self) {
        loop {
            self.skip_lines();
            let [b'/', b'*', rest @ ..] = self.rest else { return };
            self.rest = after_comment(rest);
        }
    }

    /// White space and comments that end with their line. Whether a line ended in it.
    fn skip_lines(&mut self) -> bool {
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
    fn constant(&mut self, opening: usize, within: Within) -> Token {
        let (mut value, mut escaped) = self.quoted(opening, b'\'', within);
        loop {
            let before = self.rest;
            if !(self.skip_lines() && self.rest.first() == Some(&b'\'')) {
                self.rest = before;
                break;
            }
            let (more, more_escaped) = self.quoted(1, b'\'', within);
            value.extend(more);
            escaped |= more_escaped;
        }
        if escaped && !self.decodes { Token::Other } else { Token::Text(value) }
    }

    /// Up to the closing quote. Whether a backslash escaped something.
    fn quoted(&mut self, opening: usize, quote: u8, within: Within) -> (Vec<u8>, bool) {
        let mut rest = &self.rest[opening..];
        let (mut value, mut escaped) = (Vec::new(), false);
        loop {
            match rest {
                [b'\\', after @ ..] if within == Within::Escapes && !after.is_empty() => {
                    escaped = true;
                    rest = match after {
                        [b'v', after @ ..] if self.has_vertical_tabs => {
                            value.push(b'\x0b');
                            after
                        }
                        _ => unescape(after, &mut value),
                    };
                }
                [a, b, after @ ..] if within != Within::Nothing && *a == quote && *b == quote => {
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

    /// Code points behind backslashes, or behind what UESCAPE names.
    fn code_points(&mut self, text: &[u8]) -> Vec<u8> {
        let mut ahead = Self { decodes: false, ..self.clone() };
        if matches!(ahead.next(), Some(Token::Word(word)) if word == b"uescape") {
            ahead.skip_space();
            // A constant with code points cannot follow; so none is read within another, however many there are.
            ahead.decodes = !matches!(ahead.rest, [b'u' | b'U', b'&', ..]);
            if let Some(Token::Text(escape)) = ahead.next()
                && let [escape] = escape[..]
            {
                self.rest = ahead.rest;
                return code_points(text, escape);
            }
        }
        code_points(text, b'\\')
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

/// Behind a backslash in a string constant with escapes (PostgreSQL documentation, 4.1.2.2). What follows it.
fn unescape<'a>(after: &'a [u8], value: &mut Vec<u8>) -> &'a [u8] {
    let point = |from: &'a [u8]| match from {
        [b'u', rest @ ..] => hexadecimal(rest, 4),
        [b'U', rest @ ..] => hexadecimal(rest, 8),
        _ => None,
    };
    let run = |from: &[u8], radix: u32, most: usize| {
        from.iter().take(most).take_while(|byte| char::from(**byte).is_digit(radix)).count()
    };
    let (digits, radix) = match after[0] {
        b'x' => (&after[1..][..run(&after[1..], 16, 2)], 16),
        b'0'..=b'7' => (&after[..run(after, 8, 3)], 8),
        _ => (&after[..0], 10),
    };
    if let Some((first, rest)) = point(after) {
        let second = rest.strip_prefix(b"\\").and_then(point);
        return push_point(first, rest, second, value);
    }
    if !digits.is_empty() {
        let byte = digits.iter().fold(0, |byte, digit| byte * radix + digit_of(*digit));
        value.push((byte & 0xff) as u8);
        return &after[usize::from(radix == 16) + digits.len()..];
    }
    value.push(match after[0] {
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        // It stands for itself.
        other => other,
    });
    &after[1..]
}

/// `\0061` and `\+000061` in a constant or name with code points (4.1.2.3).
fn code_points(text: &[u8], escape: u8) -> Vec<u8> {
    let (mut value, mut rest) = (Vec::new(), text);
    while let Some((&first, after)) = rest.split_first() {
        rest = match code_point(after) {
            _ if first != escape => {
                value.push(first);
                after
            }
            // Twice, it stands for itself.
            _ if after.first() == Some(&escape) => {
                value.push(escape);
                &after[1..]
            }
            Some((first, after)) => {
                let second = after.strip_prefix(&[escape]).and_then(code_point);
                push_point(first, after, second, &mut value)
            }
            None => {
                value.push(first); // PostgreSQL refuses it
                after
            }
        };
    }
    value
}

/// What stands behind the escape, and what follows it.
fn code_point(text: &[u8]) -> Option<(u32, &[u8])> {
    match text {
        [b'+', rest @ ..] => hexadecimal(rest, 6),
        _ => hexadecimal(text, 4),
    }
}

/// Writes a code point down, or the one that two surrogates (UTF-16) make. What follows it.
fn push_point<'a>(
    first: u32,
    after: &'a [u8],
    second: Option<(u32, &'a [u8])>,
    value: &mut Vec<u8>,
) -> &'a [u8] {
    let pair =
        second.filter(|(second, _)| (0xd800..0xdc00).contains(&first) && (0xdc00..0xe000).contains(second));
    let (point, rest) = match pair {
        Some((second, rest)) => (0x10000 + ((first & 0x3ff) << 10) + (second & 0x3ff), rest),
        None => (first, after),
    };
    value.extend(char::from_u32(point).unwrap_or('?').encode_utf8(&mut [0; 4]).bytes());
    rest
}

/// A number of exactly so many digits, and what follows it.
fn hexadecimal(text: &[u8], digits: usize) -> Option<(u32, &[u8])> {
    let (number, rest) = text.split_at_checked(digits)?;
    let is_number = number.iter().all(u8::is_ascii_hexdigit);
    is_number.then(|| (number.iter().fold(0, |number, digit| number << 4 | digit_of(*digit)), rest))
}

fn digit_of(digit: u8) -> u32 {
    char::from(digit).to_digit(16).unwrap_or_default()
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
#[path = "scanner/tests.rs"]
mod tests;
