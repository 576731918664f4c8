//! A cursor over a TOML document that notes every mistake with its key and line, and forgets no key.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::secret::Secret;

/// One mistake in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// The key, dotted.
    pub key: String,
    /// Its line, counted from 1; none for a key that is missing altogether.
    pub line: Option<usize>,
    /// What is wrong, and what to do.
    pub message: String,
}

/// All mistakes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    /// The file.
    pub file: PathBuf,
    /// In the order of their lines.
    pub list: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", self.file.display())?;
            if let Some(line) = mistake.line {
                write!(f, ":{line}")?;
            }
            let colon = if mistake.key.is_empty() { "" } else { ": " };
            write!(f, ": {}{colon}{}", mistake.key, mistake.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// What all cursors of one document share.
pub(super) struct Book<'d> {
    text: &'d str,
    folder: PathBuf,
    env: &'d dyn Fn(&str) -> Option<String>,
    mistakes: RefCell<Vec<Mistake>>,
}

impl<'d> Book<'d> {
    pub(super) fn new(text: &'d str, file: &Path, env: &'d dyn Fn(&str) -> Option<String>) -> Self {
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        Self { text, folder, env, mistakes: RefCell::default() }
    }

    pub(super) fn line(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
    }

    pub(super) fn note(&self, key: impl Into<String>, line: Option<usize>, message: impl Into<String>) {
        self.mistakes.borrow_mut().push(Mistake { key: key.into(), line, message: message.into() });
    }

    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        let mut list = self.mistakes.into_inner();
        list.sort_by_key(|mistake| mistake.line.unwrap_or(usize::MAX));
        list
    }
}

/// A table being read: whatever was not asked for when it is dropped is an unknown key.
pub(super) struct Section<'b, 'd> {
    book: &'b Book<'d>,
    path: String,
    line: Option<usize>,
    table: Option<&'b DeTable<'d>>,
    known: RefCell<BTreeSet<&'static str>>,
    is_open: bool,
}

impl<'b, 'd> Section<'b, 'd> {
    /// The whole document.
    pub(super) fn root(book: &'b Book<'d>, table: &'b DeTable<'d>) -> Self {
        Self {
            book,
            path: String::new(),
            line: None,
            table: Some(table),
            known: RefCell::default(),
            is_open: false,
        }
    }

    /// Whether it is there at all.
    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// One entry; none if the key is not there.
    pub(super) fn get(&self, key: &'static str) -> Option<Item<'b, 'd>> {
        self.known.borrow_mut().insert(key);
        let (name, value) = self.table?.iter().find(|(name, _)| name.get_ref().as_ref() == key)?;
        Some(self.item(name.get_ref(), value))
    }

    /// One entry that must be there.
    pub(super) fn require(&self, key: &'static str, what: &str) -> Option<Item<'b, 'd>> {
        let item = self.get(key);
        if item.is_none() && self.is_present() {
            self.note_at(key, format!("is missing: {what}"));
        }
        item
    }

    /// A table below this one; absent ones read as empty.
    pub(super) fn section(&self, key: &'static str) -> Section<'b, 'd> {
        match self.get(key) {
            Some(item) => item.into_section(),
            None => Section {
                book: self.book,
                path: self.path_of(key),
                line: None,
                table: None,
                known: RefCell::default(),
                is_open: false,
            },
        }
    }

    /// All entries, for tables whose keys are names that the user chose.
    pub(super) fn entries(&mut self) -> Vec<(String, Item<'b, 'd>)> {
        self.is_open = true;
        let table = self.table.into_iter().flatten();
        table.map(|(name, value)| (name.get_ref().to_string(), self.item(name.get_ref(), value))).collect()
    }

    /// A key of the contract that this version does not build; `hint` says what serves instead, or is empty.
    pub(super) fn not_built(&self, key: &'static str, hint: &str) {
        if let Some(item) = self.get(key) {
            item.not_built(hint);
        }
    }

    /// Notes a mistake about a key that is not there.
    pub(super) fn note_at(&self, key: &str, message: impl Into<String>) {
        self.book.note(self.path_of(key), self.line, message);
    }

    /// Notes a mistake about the table as a whole.
    pub(super) fn note(&self, message: impl Into<String>) {
        self.book.note(self.path.clone(), self.line, message);
    }

    fn item(&self, name: &str, value: &'b Spanned<DeValue<'d>>) -> Item<'b, 'd> {
        let line = self.book.line(value.span().start);
        Item { book: self.book, path: self.path_of(name), line, value: value.get_ref() }
    }

    /// Names that are not bare keys stand in quotes, so that the path reads one way only.
    fn path_of(&self, key: &str) -> String {
        let is_bare =
            !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        let key = if is_bare { key.to_owned() } else { format!("{key:?}") };
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }
}

impl Drop for Section<'_, '_> {
    fn drop(&mut self) {
        if self.is_open {
            return;
        }
        let known = self.known.borrow();
        for (name, value) in self.table.into_iter().flatten() {
            let name = name.get_ref().as_ref();
            if known.contains(name) {
                continue;
            }
            let close = closest(&known, name);
            let hint = close.map(|c| format!("did you mean \"{c}\"?"));
            let hint = hint.unwrap_or_else(|| {
                format!("known here are: {}", known.iter().copied().collect::<Vec<_>>().join(", "))
            });
            let line = self.book.line(value.span().start);
            self.book.note(self.path_of(name), Some(line), format!("unknown key; {hint}"));
        }
    }
}

/// The known key that was probably meant; a short one must share most of its letters.
fn closest(known: &BTreeSet<&'static str>, name: &str) -> Option<&'static str> {
    let near = known.iter().map(|candidate| (distance(candidate, name), *candidate));
    near.filter(|(far, candidate)| *far <= 2 && far * 2 <= candidate.len()).min().map(|(_, it)| it)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// One value, with where it stands.
pub(super) struct Item<'b, 'd> {
    book: &'b Book<'d>,
    path: String,
    line: usize,
    value: &'b DeValue<'d>,
}

impl<'b, 'd> Item<'b, 'd> {
    pub(super) fn note(&self, message: impl Into<String>) {
        self.book.note(self.path.clone(), Some(self.line), message);
    }

    /// The value is one of the contract, but this version does not build it.
    pub(super) fn not_built(&self, hint: &str) {
        let gap = if hint.is_empty() { "" } else { ": " };
        self.note(format!("is not built in this version; remove it{gap}{hint}"));
    }

    pub(super) fn into_section(self) -> Section<'b, 'd> {
        let table = match self.value {
            DeValue::Table(table) => Some(table),
            _ => {
                self.note("must be a table");
                None
            }
        };
        Section {
            book: self.book,
            path: self.path,
            line: Some(self.line),
            table,
            known: RefCell::default(),
            is_open: false,
        }
    }

    pub(super) fn text(&self) -> Option<String> {
        match self.value {
            DeValue::String(text) if !text.is_empty() => Some(text.to_string()),
            DeValue::String(_) => {
                self.note("must not be empty");
                None
            }
            _ => {
                self.note("must be a string in quotes");
                None
            }
        }
    }

    /// The text if it is one, for who only looks; the reader of the key notes what is wrong.
    pub(super) fn text_quietly(&self) -> Option<String> {
        match self.value {
            DeValue::String(text) => Some(text.to_string()),
            _ => None,
        }
    }

    pub(super) fn texts(&self) -> Option<Vec<String>> {
        Some(self.items()?.iter().filter_map(Item::text).collect())
    }

    /// The elements of an array.
    pub(super) fn items(&self) -> Option<Vec<Item<'b, 'd>>> {
        let DeValue::Array(array) = self.value else {
            self.note("must be an array: [\"...\"]");
            return None;
        };
        let item = |value: &'b Spanned<DeValue<'d>>| Item {
            book: self.book,
            path: self.path.clone(),
            line: self.book.line(value.span().start),
            value: value.get_ref(),
        };
        Some(array.iter().map(item).collect())
    }

    pub(super) fn is_array(&self) -> bool {
        matches!(self.value, DeValue::Array(_))
    }

    pub(super) fn is_empty_array(&self) -> bool {
        matches!(self.value, DeValue::Array(array) if array.is_empty())
    }

    pub(super) fn flag(&self) -> Option<bool> {
        match self.value {
            DeValue::Boolean(flag) => Some(*flag),
            _ => {
                self.note("must be true or false");
                None
            }
        }
    }

    pub(super) fn number(&self, least: u64, most: u64) -> Option<u64> {
        let number = match self.value {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
            _ => None,
        };
        let number = number.filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.note(format!("must be a whole number from {least} to {most}"));
        }
        number
    }

    pub(super) fn duration(&self, least: Duration, most: Duration) -> Option<Duration> {
        let duration = self.text().map(|text| parse_duration(&text));
        match duration? {
            Some(duration) if (least..=most).contains(&duration) => Some(duration),
            Some(_) => {
                self.note(format!("must be between {} and {}", spell(least), spell(most)));
                None
            }
            None => {
                self.note("must be a duration such as \"200ms\", \"5s\", \"10m\" or \"1h\"");
                None
            }
        }
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        let text = self.text()?;
        let numeric = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.clone(),
        };
        let address = numeric.parse().ok();
        if address.is_none() {
            self.note(format!(
                "\"{text}\" is no address and port such as \"127.0.0.1:6432\" or \"[::1]:6432\""
            ));
        }
        address
    }

    /// One of the given words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let words: Vec<_> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            self.note(format!("must be one of {}", words.join(", ")));
        }
        found
    }

    /// A file that exists and can be read; relative paths start at the configuration's folder.
    pub(super) fn file(&self) -> Option<PathBuf> {
        let path = self.book.folder.join(self.text()?);
        match std::fs::File::open(&path).and_then(|file| file.metadata()) {
            Ok(metadata) if metadata.is_file() => Some(path),
            Ok(_) => {
                self.note(format!("{} is not a file", path.display()));
                None
            }
            Err(error) => {
                self.note_unreadable(&path, &error);
                None
            }
        }
    }

    /// A directory that exists; relative paths start at the configuration's folder.
    pub(super) fn folder(&self) -> Option<PathBuf> {
        let path = self.book.folder.join(self.text()?);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => return Some(path),
            Ok(_) => self.note(format!("{} is not a directory", path.display())),
            Err(error) => self.note_unreadable(&path, &error),
        }
        None
    }

    /// Another pointer to the same place, for what is found wrong after the item is consumed.
    pub(super) fn pin(&self) -> Item<'b, 'd> {
        Item { book: self.book, path: self.path.clone(), line: self.line, value: self.value }
    }

    /// A secret, which is never written into the configuration itself.
    pub(super) fn secret(self) -> Option<Secret> {
        self.secret_and_file().map(|(secret, _)| secret)
    }

    /// A secret, and the file that it stands in, if it is one.
    pub(super) fn secret_and_file(self) -> Option<(Secret, Option<PathBuf>)> {
        if !matches!(self.value, DeValue::Table(_)) {
            self.note("is a secret and must not stand here: write { file = \"...\" } or { env = \"...\" }");
            return None;
        }
        let section = self.into_section();
        let (source, name, bytes, path) = match (section.get("file"), section.get("env")) {
            (Some(file), None) => {
                let path = file.file()?;
                let bytes = std::fs::read(&path).map_err(|error| file.note_unreadable(&path, &error)).ok()?;
                (file, path.display().to_string(), bytes, Some(path))
            }
            (None, Some(env)) => {
                let name = env.text()?;
                let Some(value) = (env.book.env)(&name) else {
                    env.note(format!("environment variable {name} is not set; set it before starting"));
                    return None;
                };
                (env, format!("environment variable {name}"), value.into_bytes(), None)
            }
            _ => {
                section.note("must be exactly one of { file = \"...\" } and { env = \"...\" }");
                return None;
            }
        };
        let bytes = Zeroizing::new(bytes);
        let text = without_newline(&bytes);
        if text.is_empty() {
            source.note(format!("{name} is empty; put the secret there"));
            return None;
        }
        Some((Secret::new(text.to_vec()), path))
    }

    fn note_unreadable(&self, path: &Path, error: &std::io::Error) {
        self.note(format!(
            "cannot read {}: {error}; relative paths start at the configuration's folder",
            path.display()
        ));
    }
}

/// Editors and `echo` end a file with one newline, which is not part of the secret.
pub(super) fn without_newline(text: &[u8]) -> &[u8] {
    match text.strip_suffix(b"\n") {
        Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
        None => text,
    }
}

/// A duration as it is written in the file.
fn spell(duration: Duration) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let millis = duration.as_millis();
    // A minute stays "60s", as bounds below an hour are written.
    let fits =
        |unit: u128| millis.is_multiple_of(unit) && millis >= unit && (unit != 60_000 || millis > unit);
    match units.into_iter().find(|(unit, _)| fits(*unit)) {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None if millis == 0 => "0s".to_owned(),
        None => format!("{millis}ms"),
    }
}

/// Reads `"200ms"`, `"5s"`, `"10m"`, `"1h"`, `"1d"`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(unit).map(Duration::from_secs)
}
