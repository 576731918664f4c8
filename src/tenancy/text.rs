//! What a client's SQL text does to its session, as far as it can be seen: settings, and what only a session of its own
//! can keep.
//!
//! What is seen decides what is asked of the server afterwards, and spares a client what could only half work. It never
//! decides what a client may reach: a text that hides what it does (in a function, in a literal that is executed) costs
//! its client a setting that does not follow it, no more.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

use super::blocks::Block;
use super::scanner::{Scanner, Token};
use super::stakes::Stake;
use super::words::any_of;

/// Names remembered of one client.
const MAX_NAMES: usize = 64;

/// PostgreSQL's identifiers end here (`NAMEDATALEN` - 1).
const MAX_IDENTIFIER: usize = 63;

/// A name's length at most; PostgreSQL's own identifiers end at 63.
const MAX_NAME: usize = 128;

/// What a text does to the session it runs in.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Settings.
    pub touched: Touched,
    /// What it does that lasts only where the session is the client's own.
    pub needs_session: Option<NeedsSession>,
    /// It may leave something in the session that its command tag does not tell.
    pub leaves: bool,
    /// It begins a transaction block.
    pub begins: bool,
    /// It drops prepared statements.
    pub deallocates: Option<Deallocates>,
    /// How many statements it has, if that was looked at.
    pub statements: usize,
    /// What may have been committed if no answer comes.
    pub stake: Stake,
}

/// What a session keeps for later transactions, and a pooled server cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeedsSession {
    /// LISTEN
    Listen,
    /// SQL-level PREPARE
    Prepare,
    /// CREATE TEMPORARY ..., unless it is dropped with its transaction.
    Temporary,
    /// DECLARE ... WITH HOLD
    Holdable,
    /// `pg_advisory_lock` and its kin, those that end with the transaction excepted.
    AdvisoryLock,
}

/// Which prepared statements a text drops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deallocates {
    /// DEALLOCATE ALL, DISCARD ALL
    All,
    /// DEALLOCATE name
    One(Box<[u8]>),
}

/// Words without which a text has no effects that are looked for here. Most texts end with this search.
static MENTIONS: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
    any_of([
        "set",
        "listen",
        "prepare",
        "temp",
        "hold",
        "advisory",
        "deallocate",
        "discard",
        "begin",
        "start",
    ])
});

/// Words that do something which no command tag tells.
static HIDDEN: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
    let words = ["set_config", "temp", "pg_advisory", "pg_try_advisory", "setseed"];
    AhoCorasick::builder().ascii_case_insensitive(true).build(words).ok()
});

/// The same of what would bring a token to a server.
static TOKENS: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
    let words = ["pgtenant.token", "pgtenant\".\"token", "pgtenant\".token", "pgtenant.\"token"];
    AhoCorasick::builder().ascii_case_insensitive(true).build(words).ok()
});

/// The longest of them, less one byte.
const LONGEST_HIDDEN: usize = 15;

/// A text that is too long to be read, watched for such words while it passes.
#[derive(Debug, Default)]
pub struct Watch {
    /// The end of what has passed.
    tail: Vec<u8>,
    /// The setting of the token was named in it.
    pub names_token: bool,
}

impl Watch {
    /// Whether such a word is in what passes now, or ends there.
    pub fn sees(&mut self, passing: &[u8]) -> bool {
        let is_in = |text: &[u8]| HIDDEN.as_ref().is_none_or(|words| words.is_match(text));
        let names_token = |text: &[u8]| TOKENS.as_ref().is_none_or(|words| words.is_match(text));
        self.tail.extend_from_slice(&passing[..passing.len().min(LONGEST_HIDDEN)]);
        let is_seen = is_in(&self.tail) || is_in(passing);
        self.names_token |= names_token(&self.tail) || names_token(passing);
        self.tail.extend_from_slice(&passing[passing.len().min(LONGEST_HIDDEN)..]);
        self.tail.drain(..self.tail.len().saturating_sub(LONGEST_HIDDEN));
        is_seen
    }
}

/// Whether a text, up to its first NUL, is one query that does nothing to its session as far as it can be seen, and that
/// PostgreSQL takes in any transaction.
pub fn is_plain(sql: &[u8], standard_strings: bool) -> bool {
    let sql = memchr::memchr(0, sql).map_or(sql, |end| &sql[..end]);
    let is_query = matches!(Scanner::new(sql, standard_strings).next(), Some(Token::Word(verb)) if matches!(
        verb.as_slice(),
        b"select" | b"insert" | b"update" | b"delete" | b"merge" | b"values" | b"with" | b"table"
    ));
    if !is_query {
        return false;
    }
    let Effects { touched, needs_session, leaves, begins, deallocates, statements, stake: _ } =
        Effects::of(sql, standard_strings);
    let is_silent = touched == Touched::default() && needs_session.is_none() && !leaves;
    is_silent && !begins && deallocates.is_none() && statements <= 1
}

/// What a simple query does, where it can go to a server together with its binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Simple {
    /// One plain query that does not write by its own words, whose answers are the same in the extended protocol.
    Reads,
    /// One plain query that writes and returns no rows; the same but for rows that rules add.
    Writes,
    /// It begins a transaction block, and is nothing else.
    Begins,
    /// Anything else.
    Other,
}

/// What a simple query does. String constants are read as standard ones.
pub fn simple(sql: &[u8]) -> Simple {
    let mut scanner = Scanner::new(sql, true);
    let (mut verb, mut has_ended, mut changes) = (Vec::new(), false, false);
    while let Some(token) = scanner.next() {
        match token {
            Token::Symbol(b';') => has_ended = true,
            _ if has_ended => return Simple::Other,
            Token::Word(word) if verb.is_empty() => verb = word,
            _ if verb.is_empty() => return Simple::Other,
            // It is told of rows before they are there; here PostgreSQL writes first, and then tells of them.
            Token::Word(word) if word == b"returning" => return Simple::Other,
            Token::Word(word) => {
                changes |= matches!(word.as_slice(), b"insert" | b"update" | b"delete" | b"merge");
                if is_telltale(&word) {
                    return Simple::Other;
                }
            }
            Token::Quoted(word) if is_telltale(&word) => return Simple::Other,
            // It may be a name that is written in code points.
            Token::Other => return Simple::Other,
            _ => {}
        }
    }
    if matches!(verb.as_slice(), b"begin" | b"start") {
        return if Block::of(sql) == Some(Block::Begins) { Simple::Begins } else { Simple::Other };
    }
    // In the extended protocol a parameter is one.
    let has_parameters = sql.windows(2).any(|two| two[0] == b'$' && two[1].is_ascii_digit());
    if has_parameters || !is_plain(sql, true) {
        return Simple::Other;
    }
    match verb.as_slice() {
        b"with" if changes => Simple::Other,
        b"select" | b"values" | b"table" | b"with" => Simple::Reads,
        _ => Simple::Writes,
    }
}

/// Whether PostgreSQL's own relation of that name tells the protocols apart: the rule by which an UPDATE of `pg_settings` sets
/// something returns a row, and `pg_cursors` has the portal that a query runs in.
fn is_telltale(name: &[u8]) -> bool {
    name.starts_with(b"pg_settings") || name.starts_with(b"pg_cursor")
}

impl Effects {
    /// Reads a text. `standard_strings`: whether `standard_conforming_strings` is on.
    pub fn of(sql: &[u8], standard_strings: bool) -> Self {
        let mut effects = Self { stake: Stake::of(sql), ..Self::default() };
        if MENTIONS.as_ref().is_some_and(|words| !words.is_match(sql)) {
            return effects;
        }
        let mut scanner = Scanner::new(sql, standard_strings);
        let mut statement: Option<Command> = None;
        while let Some(token) = scanner.next() {
            match (token, &mut statement) {
                (Token::Symbol(b';'), _) => statement = None,
                (Token::Word(verb), None) => statement = Some(effects.begin(&verb, &mut scanner)),
                (Token::Word(word), Some(command)) => effects.word(&word, command, &mut scanner),
                (Token::Quoted(word), Some(command)) => effects.name(&word, command, &mut scanner),
                (_, Some(command)) => command.last = Vec::new(),
                (_, None) => {
                    effects.statements += 1;
                    statement = Some(Command::default());
                }
            }
        }
        effects
    }

    /// The first word of a statement.
    fn begin(&mut self, verb: &[u8], scanner: &mut Scanner<'_>) -> Command {
        self.statements += 1;
        let mut command = Command::default();
        match verb {
            b"set" => self.touched.read_set(scanner),
            b"listen" => self.needs_session = Some(NeedsSession::Listen),
            b"prepare" => match scanner.peek() {
                Some(Token::Word(next)) if next == b"transaction" => {}
                _ => self.needs_session = Some(NeedsSession::Prepare),
            },
            b"begin" | b"start" => self.begins = true,
            b"create" => command.creates = true,
            b"explain" => command.explains = true,
            b"declare" => command.declares = true,
            b"deallocate" => self.deallocates = deallocated(scanner),
            b"discard" => match scanner.peek() {
                Some(Token::Word(what)) if what == b"all" => self.deallocates = Some(Deallocates::All),
                Some(Token::Word(what)) if what.starts_with(b"temp") => self.leaves = true,
                _ => {}
            },
            _ => {}
        }
        command
    }

    /// A further word that is not quoted.
    fn word(&mut self, word: &[u8], command: &mut Command, scanner: &mut Scanner<'_>) {
        let is_modifier = matches!(word, b"or" | b"replace" | b"global" | b"local" | b"recursive");
        match word {
            b"temp" | b"temporary" if command.creates => {
                self.leaves = true;
                self.needs_session = Some(NeedsSession::Temporary);
            }
            // SELECT ... INTO TEMPORARY t
            b"temp" | b"temporary" if command.is_into => self.leaves = true,
            b"drop" if command.last == b"commit" && self.needs_session == Some(NeedsSession::Temporary) => {
                self.needs_session = None; // ON COMMIT DROP
            }
            b"hold" if command.declares && command.last == b"with" => {
                self.needs_session = Some(NeedsSession::Holdable);
            }
            _ => self.name(word, command, scanner),
        }
        // EXPLAIN ANALYZE CREATE TEMP TABLE t AS ... makes it.
        command.creates = command.creates && is_modifier || command.explains && word == b"create";
        command.is_into = word == b"into" || command.is_into && is_modifier;
        command.last = word.to_vec();
    }

    /// A name, quoted or not.
    fn name(&mut self, word: &[u8], command: &mut Command, scanner: &mut Scanner<'_>) {
        command.last = Vec::new();
        match word {
            b"set_config" => self.touched.read_set_config(scanner),
            b"pg_advisory_lock"
            | b"pg_advisory_lock_shared"
            | b"pg_try_advisory_lock"
            | b"pg_try_advisory_lock_shared" => {
                self.leaves = true;
                self.needs_session = Some(NeedsSession::AdvisoryLock);
            }
            b"setseed" | b"pg_temp" => self.leaves = true,
            _ => {}
        }
    }
}

/// What was read of a statement.
#[derive(Default)]
struct Command {
    /// CREATE, and nothing but modifiers so far.
    creates: bool,
    /// INTO, and nothing but modifiers behind it.
    is_into: bool,
    declares: bool,
    explains: bool,
    /// The word before, in lower case; empty behind anything else.
    last: Vec<u8>,
}

/// Behind DEALLOCATE.
fn deallocated(scanner: &mut Scanner<'_>) -> Option<Deallocates> {
    let mut name = scanner.next()?;
    if matches!(&name, Token::Word(word) if word == b"prepare")
        && matches!(scanner.peek(), Some(Token::Word(_) | Token::Quoted(_)))
    {
        name = scanner.next()?;
    }
    match name {
        Token::Word(word) if word == b"all" => Some(Deallocates::All),
        Token::Word(name) | Token::Quoted(name) => Some(Deallocates::One(name.into())),
        _ => None,
    }
}

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

    /// A setting of this name is about to be changed for the session.
    pub fn sets(&mut self, name: Vec<u8>) {
        self.session = true;
        self.name(name);
    }

    /// Behind SET.
    fn read_set(&mut self, scanner: &mut Scanner<'_>) {
        self.sets += 1;
        let mut token = scanner.next();
        if let Some(Token::Word(word)) = &token {
            match word.as_slice() {
                // With a dot behind it, it is the beginning of a name.
                b"local" | b"transaction" | b"constraints"
                    if !matches!(scanner.peek(), Some(Token::Symbol(b'.'))) =>
                {
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
        self.opaque |= part.len() > MAX_IDENTIFIER;
        let mut name = part;
        while matches!(scanner.peek(), Some(Token::Symbol(b'.'))) {
            scanner.next();
            let Some(Token::Word(part) | Token::Quoted(part)) = scanner.next() else {
                self.opaque = true;
                return;
            };
            // PostgreSQL cuts it, also where there is a dot in it.
            self.opaque |= part.len() > MAX_IDENTIFIER;
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
        // PostgreSQL cuts each part.
        if name.split(|byte| *byte == b'.').any(|part| part.len() > MAX_IDENTIFIER) {
            self.opaque = true;
            return;
        }
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

#[cfg(test)]
#[path = "text/tests.rs"]
mod tests;
