//! Whether a text would change a setting that belongs to the context: those named `pgtenant.*`, which the seal protects, and
//! those of `[context.settings]`, which nothing else protects.
//!
//! A plain setting can be changed by whoever runs SQL. So whatever a client's text says of one is refused here, read exactly
//! as PostgreSQL reads it, and in doubt refused; what no text shows (a function that somebody else made, a name that is put
//! together while it runs) is taken from the role by `install --harden`.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

use super::scanner::{Scanner, Token};
use super::settings::{READ_ONLY, Settings};
use super::words::any_of;
use crate::config::ContextSetting;
use crate::wire::report::{Report, Sqlstate};

/// Constants that are texts themselves are read this deep.
const MAX_DEPTH: usize = 4;

/// PostgreSQL cuts each part of a name off here (`NAMEDATALEN` - 1).
const MAX_IDENTIFIER: usize = 63;

/// Functions that execute a text.
const EXECUTING: [&str; 8] = [
    "query_to_xml",
    "query_to_xmlschema",
    "query_to_xml_and_xmlschema",
    "ts_stat",
    "ts_rewrite",
    "dblink",
    "dblink_exec",
    "crosstab",
];

/// Encodings in which a byte of a character may look like a backslash: PostgreSQL reads its text after it has converted it.
const AMBIGUOUS: [&str; 17] = [
    "sjis",
    "shiftjis",
    "mskanji",
    "win932",
    "windows932",
    "shiftjis2004",
    "big5",
    "win950",
    "windows950",
    "gbk",
    "win936",
    "windows936",
    "uhc",
    "win949",
    "windows949",
    "gb18030",
    "johab",
];

/// The settings of the context.
#[derive(Debug, Default)]
pub struct Guard {
    names: Vec<String>,
    /// Words without one of which a text names none of them. `None` where only `pgtenant.*` is guarded.
    mentions: Option<AhoCorasick>,
}

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Breach {
    /// It changes this setting.
    Names(String),
    /// It calls `set_config` with a name that is not told.
    Computed,
    /// It has texts within texts within texts.
    Nested,
    /// It would make a transaction write that is not to.
    Writable,
    /// It updates `pg_settings`.
    View,
    /// It calls what only the proxy may: a statement of its own, or a function of the interface.
    Own(String),
    /// It changes a role or a database, which all clients of a pool share.
    Shared,
    /// It sets `client_encoding` to one in which it could not be read.
    Encoding(String),
}

/// What a text has that is judged when its parameters are known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    /// A parameter is the name of a setting that is changed.
    pub by_parameter: bool,
}

impl Guard {
    /// Guards these.
    pub fn new(settings: &[ContextSetting]) -> Self {
        let names: Vec<String> = settings.iter().map(|setting| setting.name.clone()).collect();
        if names.is_empty() {
            return Self::default();
        }
        // The first part of a name, for there may be anything between its parts.
        let parts = names.iter().filter_map(|name| name.split('.').next());
        let words = [
            "pgtenant",
            "set_config",
            "u&",
            "\\",
            "pg_settings",
            "client_encoding",
            "names",
            "put_back",
            "alter",
        ];
        let mentions = any_of(parts.chain(words));
        Self { names, mentions }
    }

    /// Whether there are plain settings to guard, which nothing but this protects.
    pub fn is_strict(&self) -> bool {
        !self.names.is_empty()
    }

    /// Whether a setting of this name belongs to the context.
    pub fn covers(&self, name: &[u8]) -> bool {
        // As a constant of type character, N'...' loses its blanks on the way to text.
        let name = name.trim_ascii_end();
        let is_own = name.get(..9).is_some_and(|start| start.eq_ignore_ascii_case(b"pgtenant."));
        is_own || self.names.iter().any(|guarded| guarded.as_bytes().eq_ignore_ascii_case(name))
    }

    /// What is wrong with a Bind that brings this as a setting's name, if anything.
    pub fn check_bound(&self, name: &[u8], is_read_only: bool) -> Option<Breach> {
        // Which value it would get is another parameter, or none.
        if (self.is_strict() || is_read_only) && name.eq_ignore_ascii_case(b"client_encoding") {
            return Some(Breach::Computed);
        }
        let covers = self.covers(name) || is_read_only && makes_writable(name);
        covers.then(|| breach(name))
    }

    /// Whether what a client brings at start-up is none of the context's.
    ///
    /// # Errors
    /// It is (42501).
    pub fn check_startup(&self, settings: &Settings) -> Result<(), Report> {
        for (name, value) in settings {
            if self.covers(name.as_bytes()) {
                return Err(Breach::Names(name.clone()).report());
            }
            if name == "client_encoding" && self.is_strict() {
                check_encoding(value.as_bytes()).map_err(|breach| breach.report())?;
            }
        }
        Ok(())
    }

    /// Reads a text, up to its first NUL.
    ///
    /// # Errors
    /// It changes what it must not.
    pub fn check(&self, sql: &[u8], standard_strings: bool, under: Under) -> Result<Open, Breach> {
        let sql = memchr::memchr(0, sql).map_or(sql, |end| &sql[..end]);
        let mut reader = Reader { guard: self, under, has_vertical_tabs: false };
        let mentions = under.is_read_only
            || match &self.mentions {
                Some(words) => words.is_match(sql),
                None => self.is_strict() || mentions_own(sql),
            };
        if !mentions {
            return Ok(Open::default());
        }
        let mut open = reader.read(sql, standard_strings, 0)?;
        // How strings are read may change before this text is, and depends on PostgreSQL's version: either way it must be
        // harmless.
        if reader.is_strict() && memchr::memchr(b'\\', sql).is_some() {
            for (standard, has_vertical_tabs) in
                [(!standard_strings, false), (standard_strings, true), (!standard_strings, true)]
            {
                reader.has_vertical_tabs = has_vertical_tabs;
                open.by_parameter |= reader.read(sql, standard, 0)?.by_parameter;
            }
        }
        Ok(open)
    }
}

/// How a text comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Under {
    /// By Parse: its parameters come later, and other messages before its transaction ends.
    pub is_prepared: bool,
    /// Under a context under which nothing is written.
    pub is_read_only: bool,
}

/// One reading.
struct Reader<'g> {
    guard: &'g Guard,
    under: Under,
    has_vertical_tabs: bool,
}

impl Reader<'_> {
    fn is_strict(&self) -> bool {
        self.guard.is_strict() || self.under.is_read_only
    }

    fn covers(&self, name: &[u8]) -> bool {
        self.guard.covers(name) || self.under.is_read_only && makes_writable(name)
    }

    fn read(&self, sql: &[u8], standard: bool, depth: usize) -> Result<Open, Breach> {
        let mut scanner = Scanner::new(sql, standard).decoding().with_vertical_tabs(self.has_vertical_tabs);
        let mut statement = Statement::default();
        let (mut open, mut statements) = (Open::default(), 0);
        while let Some(token) = scanner.next() {
            match token {
                Token::Symbol(b';') => statement = Statement::default(),
                Token::Word(word) => {
                    if word == b"alter" && (!statement.begun || depth > 0) && alters_shared(&scanner) {
                        return Err(Breach::Shared);
                    }
                    if !statement.begun {
                        statement.begin(&word);
                        statements += 1;
                    }
                    if matches!(word.as_slice(), b"reset" | b"discard") {
                        self.check_all(&scanner, word == b"discard" && statements == 1 && depth == 0)?;
                    }
                    match word.as_slice() {
                        b"set" | b"reset" => self.read_set(&mut scanner)?,
                        b"update" => statement.updates = true,
                        b"read" if self.under.is_read_only && is_word(&scanner, b"write") => {
                            return Err(Breach::Writable);
                        }
                        _ => {
                            open.by_parameter |= self.read_name(
                                &word,
                                &mut statement,
                                &mut scanner,
                                self.under.is_prepared && depth == 0,
                            )?
                        }
                    }
                }
                Token::Quoted(word) => {
                    statement.begun = true;
                    open.by_parameter |= self.read_name(
                        &word,
                        &mut statement,
                        &mut scanner,
                        self.under.is_prepared && depth == 0,
                    )?;
                }
                // It may be executed.
                Token::Text(text) if (statement.executes || depth > 0) && self.is_strict() => {
                    if depth == MAX_DEPTH {
                        return Err(Breach::Nested);
                    }
                    self.read(&text, standard, depth + 1)?;
                }
                Token::Text(_) | Token::Other | Token::Symbol(_) => statement.begun = true,
            }
        }
        Ok(open)
    }

    /// Behind what takes all settings back, and with them what makes the next transaction read-only. DISCARD ALL may stand
    /// alone: PostgreSQL refuses it in a transaction, and the next turn is bound anew.
    fn check_all(&self, scanner: &Scanner<'_>, may_stand: bool) -> Result<(), Breach> {
        let mut ahead = scanner.clone();
        let takes_all = matches!(ahead.next(), Some(Token::Word(what)) if what == b"all");
        let is_alone =
            may_stand && matches!(ahead.next(), None | Some(Token::Symbol(b';'))) && ahead.next().is_none();
        if self.under.is_read_only && takes_all && (self.under.is_prepared || !is_alone) {
            return Err(Breach::Writable);
        }
        Ok(())
    }

    /// A word that is no SET: whether it calls `set_config` with a parameter for the name.
    fn read_name(
        &self,
        word: &[u8],
        statement: &mut Statement,
        scanner: &mut Scanner<'_>,
        is_prepared: bool,
    ) -> Result<bool, Breach> {
        if word == b"set_config" && matches!(scanner.peek(), Some(Token::Symbol(b'('))) {
            scanner.next();
            return self.read_set_config(scanner, is_prepared && !statement.prepares);
        }
        // As a part of an aggregate or an operator it is called with whatever that is.
        if word == b"set_config" && statement.executes && self.is_strict() {
            return Err(Breach::Computed);
        }
        if self.is_strict() && (word == b"put_back" || word.starts_with(b"pgtenant_")) {
            return Err(Breach::Own(String::from_utf8_lossy(word).into_owned()));
        }
        if word == b"pg_settings" && statement.updates && self.is_strict() {
            return Err(Breach::View);
        }
        if EXECUTING.iter().any(|name| name.as_bytes() == word) {
            statement.executes = true;
        }
        Ok(false)
    }

    /// Behind SET and RESET, wherever they stand: SET, ALTER ROLE ... SET, CREATE FUNCTION ... SET.
    fn read_set(&self, scanner: &mut Scanner<'_>) -> Result<(), Breach> {
        let mut name = dotted(scanner);
        if matches!(name.as_slice(), b"local" | b"session") {
            name = dotted(scanner);
        }
        if self.covers(&name) {
            return Err(breach(&name));
        }
        if self.is_strict() && matches!(name.as_slice(), b"names" | b"client_encoding") {
            if matches!(scanner.peek(), Some(Token::Symbol(b'='))) || is_word(scanner, b"to") {
                scanner.next();
            }
            return match scanner.peek() {
                Some(Token::Word(value) | Token::Quoted(value) | Token::Text(value)) => {
                    check_encoding(&value)
                }
                _ => Ok(()), // a syntax error
            };
        }
        Ok(())
    }

    /// Behind `set_config(`.
    fn read_set_config(&self, scanner: &mut Scanner<'_>, is_prepared: bool) -> Result<bool, Breach> {
        let first = scanner.next();
        if let Some(Token::Text(name)) = first {
            if !matches!(behind_cast(scanner), Some(Token::Symbol(b','))) {
                return if self.is_strict() { Err(Breach::Computed) } else { Ok(false) };
            }
            if self.covers(&name) {
                return Err(breach(&name));
            }
            if self.is_strict() && name.eq_ignore_ascii_case(b"client_encoding") {
                return match scanner.next() {
                    Some(Token::Text(value)) => check_encoding(&value).map(|()| false),
                    _ => Err(Breach::Computed),
                };
            }
            return Ok(false);
        }
        if !self.is_strict() {
            return Ok(is_prepared && matches!(first, Some(Token::Symbol(b'$'))));
        }
        if !(is_prepared && matches!(first, Some(Token::Symbol(b'$')))) {
            return Err(Breach::Computed);
        }
        while matches!(scanner.peek(), Some(Token::Symbol(b'0'..=b'9'))) {
            scanner.next();
        }
        if matches!(behind_cast(scanner), Some(Token::Symbol(b','))) {
            Ok(true)
        } else {
            Err(Breach::Computed)
        }
    }
}

/// What is wrong with changing a setting of this name.
fn breach(name: &[u8]) -> Breach {
    if makes_writable(name) {
        Breach::Writable
    } else {
        Breach::Names(String::from_utf8_lossy(name).into_owned())
    }
}

/// Settings by which a transaction writes or not.
fn makes_writable(name: &[u8]) -> bool {
    let name = name.trim_ascii_end();
    [&b"transaction_read_only"[..], READ_ONLY.as_bytes()].iter().any(|other| name.eq_ignore_ascii_case(other))
}

/// What was read of a statement.
#[derive(Default)]
struct Statement {
    begun: bool,
    /// Its constants may be texts that are executed.
    executes: bool,
    /// PREPARE: its parameters do not come by Bind.
    prepares: bool,
    updates: bool,
}

impl Statement {
    fn begin(&mut self, verb: &[u8]) {
        self.begun = true;
        self.prepares = verb == b"prepare";
        self.executes = matches!(verb, b"do" | b"create" | b"execute" | b"call");
    }
}

impl Breach {
    /// What the client is told.
    pub fn report(&self) -> Report {
        let denied = |message: String| Report::new(Sqlstate::INSUFFICIENT_PRIVILEGE, message);
        match self {
            Breach::Names(name) => denied(format!("setting \"{name}\" belongs to the tenant context"))
                .hint("The context comes from the token: switch it by SET pgtenant.token = '...'."),
            Breach::Computed => denied("set_config is called here with a name that cannot be told beforehand".to_owned())
                .hint("Write the setting's name as a constant, or as a parameter of its own."),
            Breach::Nested => denied("texts are nested too deep in this one to be read".to_owned())
                .hint("Make functions as another role, straight at PostgreSQL."),
            Breach::Writable => {
                Report::new(Sqlstate::READ_ONLY_TRANSACTION, "transactions are read-only under this token")
                    .hint("The token has an \"act\" claim: somebody acts for its subject.")
            }
            Breach::Own(name) => denied(format!("\"{name}\" is not for clients"))
                .hint("Names that begin with pgtenant_ are the proxy's own."),
            Breach::View => denied("pg_settings cannot be updated here".to_owned())
                .hint("Use SET, or set_config with the setting's name as a constant."),
            Breach::Shared => denied("roles and databases are not altered under a tenant context".to_owned())
                .hint("All organizations share them: do it as an administrator, straight at PostgreSQL."),
            Breach::Encoding(name) => denied(format!(
                "client_encoding \"{name}\" cannot be used here: in it, texts cannot be read before they are converted"
            ))
            .hint("Use UTF8."),
        }
    }
}

/// Whether an encoding is one in which texts can be read.
///
/// # Errors
/// It is not.
pub fn check_encoding(name: &[u8]) -> Result<(), Breach> {
    let plain: Vec<u8> =
        name.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase).collect();
    match AMBIGUOUS.iter().any(|other| other.as_bytes() == plain) {
        true => Err(Breach::Encoding(String::from_utf8_lossy(name).into_owned())),
        false => Ok(()),
    }
}

/// A name and what follows its dots, each part cut off where PostgreSQL cuts it; empty if there is none.
fn dotted(scanner: &mut Scanner<'_>) -> Vec<u8> {
    let mut name = Vec::new();
    loop {
        let Some(Token::Word(mut part) | Token::Quoted(mut part)) = scanner.peek() else { return name };
        scanner.next();
        part.truncate(MAX_IDENTIFIER);
        name.extend(part);
        if !matches!(scanner.peek(), Some(Token::Symbol(b'.'))) {
            return name;
        }
        scanner.next();
        name.push(b'.');
    }
}

/// `::text` and `::varchar`: to other types, a constant may be cast to another text than it is. What follows.
fn behind_cast(scanner: &mut Scanner<'_>) -> Option<Token> {
    loop {
        match scanner.next() {
            Some(Token::Symbol(b':')) if matches!(scanner.peek(), Some(Token::Symbol(b':'))) => {}
            other => return other,
        }
        scanner.next();
        let name = dotted(scanner);
        if !matches!(name.as_slice(), b"text" | b"varchar" | b"pg_catalog.text" | b"pg_catalog.varchar") {
            return None;
        }
    }
}

/// Behind ALTER: a role (but no user mapping, which has a server of its own) or a database.
fn alters_shared(scanner: &Scanner<'_>) -> bool {
    let mut ahead = scanner.clone();
    match ahead.next() {
        Some(Token::Word(what)) if what == b"user" => !is_word(&ahead, b"mapping"),
        Some(Token::Word(what)) => matches!(what.as_slice(), b"role" | b"database"),
        _ => false,
    }
}

fn is_word(scanner: &Scanner<'_>, wanted: &[u8]) -> bool {
    matches!(scanner.peek(), Some(Token::Word(word)) if word == wanted)
}

/// What is in every text that names one of pgtenant's settings or changes a role, if it does not hide it.
static OWN: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| any_of(["pgtenant", "set_config", "alter"]));

fn mentions_own(sql: &[u8]) -> bool {
    OWN.as_ref().is_none_or(|word| word.is_match(sql))
}

#[cfg(test)]
#[path = "guard/tests.rs"]
mod tests;
