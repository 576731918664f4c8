//! Texts that switch the token of a live connection: `SET pgtenant.token`, `RESET pgtenant.token`, and `set_config`.
//!
//! They are answered by the proxy and never reach a server. What mentions the token in another way is refused: a server
//! that got it would show it to everyone who shares the role (`pg_stat_activity`).

use std::fmt;
use std::sync::{Arc, LazyLock};

use aho_corasick::AhoCorasick;
use zeroize::Zeroizing;

use super::scanner::{Scanner, Token};
use super::words::any_of;

/// The setting, in lower case.
pub const NAME: &[u8] = b"pgtenant.token";

/// PostgreSQL's identifiers end here (`NAMEDATALEN` - 1).
const MAX_IDENTIFIER: usize = 63;

/// A command has three parameters at most; each further one would only be described.
const MAX_PARAMETER: u16 = 16;

/// The column that `set_config` returns, unless it is named otherwise.
const COLUMN: &[u8] = b"set_config";

/// A token on its way in, wiped when it is dropped, printed never.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText(Zeroizing<Vec<u8>>);

impl TokenText {
    /// Takes the bytes in.
    pub fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// The bytes, for who verifies them and for who sent them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<token>")
    }
}

/// A statement that switches the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenCommand {
    /// The setting, where it is a parameter: it is a token command when that is [`NAME`], in whatever case.
    pub name: Option<u16>,
    /// The token, or where it comes from.
    pub value: Given<TokenText>,
    /// Whether it holds for the transaction alone.
    pub is_local: Given<bool>,
    /// How it is written, which is how it is answered.
    pub form: Form,
}

/// A value in a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given<T> {
    /// As a constant.
    Constant(T),
    /// As a parameter; the first is 1.
    Parameter(u16),
    /// RESET, DEFAULT: as at sign-in.
    AtSignIn,
}

/// How a token command is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// `SET`
    Set,
    /// `RESET`
    Reset,
    /// `SELECT set_config(...)`, with the name of its column.
    Function(Arc<[u8]>),
}

/// A text that would have a server see a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misplaced {
    /// It is one of several statements of a text.
    NotAlone,
    /// The token is not a plain constant or parameter, or there is more to the statement.
    Form,
    /// The message is longer than is kept in one piece.
    TooLong,
    /// A statement that the proxy does not know as a token command is given the setting's name.
    Unknown,
}

impl Misplaced {
    /// What is wrong.
    pub fn detail(self) -> &'static str {
        match self {
            Self::NotAlone => "It is one of several statements in one text.",
            Self::Form => {
                "The token must be a plain string constant or a parameter, and the statement nothing else."
            }
            Self::TooLong => "The message is too long.",
            Self::Unknown => {
                "The statement is not known to be a token command; prepare it anew, under another name."
            }
        }
    }
}

impl TokenCommand {
    /// How many parameters it takes.
    pub fn parameters(&self) -> u16 {
        let of = |number: Option<u16>| number.unwrap_or(0);
        of(self.value.parameter()).max(of(self.is_local.parameter())).max(of(self.name))
    }
}

impl<T> Given<T> {
    /// The parameter's number.
    pub fn parameter(&self) -> Option<u16> {
        match self {
            Self::Parameter(number) => Some(*number),
            _ => None,
        }
    }
}

/// Words without which a text has nothing to do with the token.
static MENTIONS: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| any_of(["pgtenant", "set_config"]));

/// Whether this is the name of the setting.
pub fn is_name(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(NAME)
}

/// Whether a text, or a part of one, may have to do with the token.
pub fn may_concern(sql: &[u8]) -> bool {
    MENTIONS.as_ref().is_none_or(|word| word.is_match(sql))
}

/// What a text, up to its first NUL, asks of the token; `None` if it has nothing to do with it.
///
/// # Errors
/// See [`Misplaced`].
pub fn read(sql: &[u8], standard_strings: bool) -> Option<Result<TokenCommand, Misplaced>> {
    if !may_concern(sql) {
        return None;
    }
    let sql = memchr::memchr(0, sql).map_or(sql, |end| &sql[..end]);
    // Older and newer versions of PostgreSQL read `\v` in a constant differently: what they would not agree on is refused.
    let command = |has_vertical_tabs| {
        Tokens {
            scanner: Scanner::new(sql, standard_strings).decoding().with_vertical_tabs(has_vertical_tabs),
        }
        .command()
    };
    match command(false) {
        Some(older)
            if memchr::memmem::find(sql, br"\v").is_none() || command(true).as_ref() == Some(&older) =>
        {
            Some(Ok(older))
        }
        Some(_) => Some(Err(Misplaced::Form)),
        None => {
            let found = is_mentioned(sql, (standard_strings, false), 0);
            found.or_else(|| is_mentioned(sql, (standard_strings, true), 0)).map(Err)
        }
    }
}

/// How deep texts within texts are looked into: DO executes one, which may EXECUTE another.
const MAX_DEPTH: usize = 4;

/// Tokens that are looked at behind each `set_config(`; a longer first argument may be anything.
const MAX_ARGUMENT: usize = 64;

/// A text that is no command as a whole: whether there is one in it. How strings are read: as standard ones, with
/// vertical tabs.
fn is_mentioned(sql: &[u8], strings: (bool, bool), depth: usize) -> Option<Misplaced> {
    let mut scanner = Scanner::new(sql, strings.0).decoding().with_vertical_tabs(strings.1);
    let (mut statements, mut is_first, mut runs_texts, mut runs_prepared) = (1, true, depth > 0, false);
    let mut found = None;
    while let Some(token) = scanner.next() {
        let mut ahead = Tokens { scanner: scanner.clone() };
        match &token {
            Token::Symbol(b';') => {
                statements += usize::from(ahead.scanner.peek().is_some());
                is_first = true;
                continue;
            }
            Token::Word(word) if matches!(word.as_slice(), b"set" | b"reset") && (is_first || depth > 0) => {
                let mut behind = Tokens { scanner: ahead.scanner.clone() };
                behind.scanner.next(); // LOCAL, SESSION
                let mut is_it = || (ahead.is_name() || behind.is_name()).then_some(Misplaced::Form);
                found = found.or_else(&mut is_it);
            }
            Token::Word(word) if is_first && matches!(word.as_slice(), b"do" | b"create") => {
                runs_texts = true
            }
            Token::Word(word) if is_first && word == b"execute" => runs_prepared = true,
            Token::Word(word) | Token::Quoted(word) if word == COLUMN => {
                found = found.or_else(|| ahead.first_argument_may_be_it().then_some(Misplaced::Form));
            }
            Token::Text(text) if runs_prepared && is_name(text) => found = found.or(Some(Misplaced::Form)),
            Token::Text(text) if runs_texts && depth < MAX_DEPTH && may_concern(text) => {
                found = found.or_else(|| is_mentioned(text, strings, depth + 1));
            }
            _ => {}
        }
        // In a body, a statement begins behind other words as well.
        is_first = false;
    }
    found.map(|found| if statements > 1 { Misplaced::NotAlone } else { found })
}

/// Reads token by token; what does not fit is `None`, and nothing is taken for granted behind it.
struct Tokens<'a> {
    scanner: Scanner<'a>,
}

impl Tokens<'_> {
    /// The command, if the text is nothing else.
    fn command(&mut self) -> Option<TokenCommand> {
        let command = match self.scanner.next()? {
            Token::Word(verb) => match verb.as_slice() {
                b"set" => self.set()?,
                b"reset" => self.is_name().then_some(TokenCommand {
                    name: None,
                    value: Given::AtSignIn,
                    is_local: Given::Constant(false),
                    form: Form::Reset,
                })?,
                b"select" => self.function()?,
                _ => return None,
            },
            _ => return None,
        };
        while self.symbol(b';') {}
        self.scanner.peek().is_none().then_some(command)
    }

    fn set(&mut self) -> Option<TokenCommand> {
        let mut is_local = false;
        let before = self.scanner.clone();
        if let Some(Token::Word(scope)) = self.scanner.next()
            && matches!(scope.as_slice(), b"local" | b"session")
            && !matches!(self.scanner.peek(), Some(Token::Symbol(b'.')))
        {
            is_local = scope == b"local";
        } else {
            self.scanner = before;
        }
        if !self.is_name() || !(self.symbol(b'=') || self.word(b"to")) {
            return None;
        }
        let value = match self.scanner.next()? {
            Token::Text(token) => Given::Constant(TokenText::new(&token)),
            Token::Word(word) if word == b"default" => Given::AtSignIn,
            _ => return None,
        };
        Some(TokenCommand { name: None, value, is_local: Given::Constant(is_local), form: Form::Set })
    }

    fn function(&mut self) -> Option<TokenCommand> {
        let before = self.scanner.clone();
        if !(self.word(b"pg_catalog") && self.symbol(b'.')) {
            self.scanner = before;
        }
        if !(self.word(COLUMN) && self.symbol(b'(')) {
            return None;
        }
        let name = match self.scanner.next()? {
            Token::Text(name) if is_name(&name) => None,
            Token::Symbol(b'$') => Some(self.number()?),
            _ => return None,
        };
        if !(self.cast() && self.symbol(b',')) {
            return None;
        }
        let value = match self.scanner.next()? {
            Token::Text(token) => Given::Constant(TokenText::new(&token)),
            Token::Symbol(b'$') => Given::Parameter(self.number()?),
            _ => return None,
        };
        if !(self.cast() && self.symbol(b',')) {
            return None;
        }
        let is_local = match self.scanner.next()? {
            Token::Word(word) | Token::Text(word) => Given::Constant(boolean(&word)?),
            Token::Symbol(b'$') => Given::Parameter(self.number()?),
            _ => return None,
        };
        if !(self.cast() && self.symbol(b')')) {
            return None;
        }
        let mut numbers: Vec<u16> =
            [name, value.parameter(), is_local.parameter()].into_iter().flatten().collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        // One parameter for two is not worth the trouble.
        if numbers.len() < count {
            return None;
        }
        let mut column = self.alias()?;
        column.truncate(MAX_IDENTIFIER); // as PostgreSQL does
        Some(TokenCommand { name, value, is_local, form: Form::Function(column.into()) })
    }

    /// `[[AS] name]`
    fn alias(&mut self) -> Option<Vec<u8>> {
        let is_explicit = self.word(b"as");
        match self.scanner.peek() {
            Some(Token::Word(name)) if is_explicit || !is_clause(&name) => {
                self.scanner.next();
                Some(name)
            }
            Some(Token::Quoted(name)) => {
                self.scanner.next();
                Some(name)
            }
            _ if is_explicit => None,
            _ => Some(COLUMN.to_vec()),
        }
    }

    /// The name of the setting as an identifier.
    fn is_name(&mut self) -> bool {
        let mut name = Vec::new();
        loop {
            match self.scanner.next() {
                Some(Token::Word(part) | Token::Quoted(part)) => name.extend(part.to_ascii_lowercase()),
                _ => return false,
            }
            if !self.symbol(b'.') {
                return name == NAME;
            }
            if name.len() >= NAME.len() {
                return false; // whatever follows
            }
            name.push(b'.');
        }
    }

    /// Behind `set_config`: whether the name of the setting is anywhere in the first argument, or it cannot be told because
    /// an escape character of its own is named.
    fn first_argument_may_be_it(&mut self) -> bool {
        if !self.symbol(b'(') {
            return false;
        }
        let mut depth = 0;
        for _ in 0..MAX_ARGUMENT {
            match self.scanner.next() {
                Some(Token::Text(text)) if is_name(&text) => return true,
                Some(Token::Word(word)) if word == b"uescape" => return true,
                Some(Token::Symbol(b'(')) => depth += 1,
                Some(Token::Symbol(b')')) if depth > 0 => depth -= 1,
                None | Some(Token::Symbol(b',' | b')' | b';')) if depth == 0 => return false,
                None => return false,
                _ => {}
            }
        }
        true
    }

    /// `::text` and the like, or nothing; false if it is cut off.
    fn cast(&mut self) -> bool {
        while self.symbol(b':') {
            if !(self.symbol(b':') && matches!(self.scanner.next(), Some(Token::Word(_)))) {
                return false;
            }
            if self.symbol(b'.') && !matches!(self.scanner.next(), Some(Token::Word(_))) {
                return false;
            }
        }
        true
    }

    fn number(&mut self) -> Option<u16> {
        let mut number: u16 = 0;
        let mut digits = 0;
        while let Some(Token::Symbol(digit @ b'0'..=b'9')) = self.scanner.peek() {
            self.scanner.next();
            number = number.checked_mul(10)?.checked_add(u16::from(digit - b'0'))?;
            digits += 1;
        }
        (digits > 0 && (1..=MAX_PARAMETER).contains(&number)).then_some(number)
    }

    fn symbol(&mut self, symbol: u8) -> bool {
        let is_there = self.scanner.peek() == Some(Token::Symbol(symbol));
        if is_there {
            self.scanner.next();
        }
        is_there
    }

    fn word(&mut self, word: &[u8]) -> bool {
        let is_there = matches!(self.scanner.peek(), Some(Token::Word(found)) if found == word);
        if is_there {
            self.scanner.next();
        }
        is_there
    }
}

/// `true`, `false` and what PostgreSQL takes for them as a constant.
pub fn boolean(word: &[u8]) -> Option<bool> {
    match word.to_ascii_lowercase().as_slice() {
        b"true" | b"t" | b"on" | b"yes" | b"1" => Some(true),
        b"false" | b"f" | b"off" | b"no" | b"0" => Some(false),
        _ => None,
    }
}

/// Key words that begin something behind a SELECT's columns.
fn is_clause(word: &[u8]) -> bool {
    matches!(
        word,
        b"from"
            | b"where"
            | b"union"
            | b"intersect"
            | b"except"
            | b"order"
            | b"limit"
            | b"offset"
            | b"into"
            | b"is"
            | b"and"
            | b"or"
            | b"not"
            | b"group"
            | b"having"
            | b"fetch"
            | b"for"
            | b"in"
            | b"like"
            | b"between"
            | b"window"
            | b"collate"
    )
}

#[cfg(test)]
#[path = "token_command/tests.rs"]
mod tests;
