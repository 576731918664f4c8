//! Rules that matter, as tests: the floors, where pgwire may be used, and what no file may hold.
//!
//! Each failure lists `file:line`. A rule that is in the way is changed here, in the open.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The house, from the ground up. Imports point downward; on one floor they may point sideways, but on the floor for
/// operators: there neither knows the other.
const FLOORS: [&[&str]; 8] = [
    &["config", "wire", "observe"],
    &["net", "auth"],
    &["tenancy"],
    &["pool"],
    &["session"],
    &["admin", "architect"],
    &["server"],
    &["cli"],
];

/// The floor whose modules do not know each other.
const STRANGERS: usize = 5;

/// Longer files hold more than one idea.
const FILE_LINES: usize = 500;

/// Longer functions have an inner structure that deserves names.
const FUNCTION_LINES: usize = 100;

#[test]
fn imports_point_downward() {
    let floor = |module: &str| FLOORS.iter().position(|floor| floor.contains(&module));
    let mut findings = Vec::new();
    for file in rust_files("src").into_iter().filter(|file| !file.is_test()) {
        let Some(module) = file.module() else { continue };
        let Some(from) = floor(&module) else {
            findings.push(format!("{}: module {module} has no floor in tests/tidy.rs", file.at(0)));
            continue;
        };
        for (line, used) in crate_paths(&file.code) {
            match floor(&used) {
                Some(to) if to > from => {
                    findings
                        .push(format!("{}: {module} (floor {from}) uses {used} (floor {to})", file.at(line)));
                }
                Some(to) if to == from && from == STRANGERS && used != module => {
                    findings
                        .push(format!("{}: {module} and {used} are not to know each other", file.at(line)));
                }
                _ => {}
            }
        }
    }
    report("imports must point downward", &findings);
}

#[test]
fn pgwire_stays_inside_wire() {
    let outside = |file: &Source| file.module().as_deref() != Some("wire");
    let findings = lines_with(rust_files("src").into_iter().filter(outside), |line| has_word(line, "pgwire"));
    report("pgwire is used inside src/wire/ only", &findings);
}

#[test]
fn every_file_says_what_it_is_for() {
    let files = rust_files("src").into_iter().chain(rust_files("tests")).chain(rust_files("fuzz"));
    let findings: Vec<_> =
        files.filter(|file| !file.text.starts_with("//! ")).map(|file| file.at(0)).collect();
    report("the first line of a file is `//! ` and what it is for", &findings);
}

#[test]
fn nothing_panics_by_choice() {
    let product = rust_files("src").into_iter().filter(|file| !file.is_test());
    // A text, blanked, is what Option's and Result's `expect` take; clippy tells the rest.
    let panics = [".unwrap()", ".expect( "];
    let findings = lines_with(product, |line| panics.iter().any(|panic| line.contains(panic)));
    report("no unwrap and no expect outside tests", &findings);
}

#[test]
fn nothing_is_left_undone() {
    let files: Vec<_> = rust_files("src").into_iter().chain(rust_files("tests")).collect();
    let words = ["todo!", "unimplemented!", "#[ignore"];
    let mut findings = Vec::new();
    for file in &files {
        let everything = blank(&file.text);
        let undone = |line: &str| words.iter().any(|word| line.contains(word));
        findings.extend(numbered(&everything).filter(|(_, line)| undone(line)).map(|(n, _)| file.at(n)));
        let marker = concat!("FIX", "ME");
        findings
            .extend(numbered(&file.text).filter(|(_, line)| has_word(line, marker)).map(|(n, _)| file.at(n)));
    }
    report("nothing is left undone or ignored", &findings);
}

#[test]
fn files_and_functions_are_short() {
    let mut findings = Vec::new();
    for file in rust_files("src") {
        let lines = file.text.lines().count();
        if lines > FILE_LINES {
            findings.push(format!("{}: {lines} lines; a file has at most {FILE_LINES}", file.at(0)));
        }
        for (line, length) in functions(&file.code) {
            if length > FUNCTION_LINES {
                findings.push(format!(
                    "{}: {length} lines; a function has at most {FUNCTION_LINES}",
                    file.at(line)
                ));
            }
        }
    }
    report("files and functions are short", &findings);
}

#[test]
fn no_path_of_one_machine() {
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    // Preceded by a name it is part of a longer path, or of an address.
    let starts_path = |line: &str, at: usize| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !(c.is_alphanumeric() || "._-})/$".contains(c)))
    };
    let is_found = |line: &str| {
        places.iter().any(|place| line.match_indices(place).any(|(at, _)| starts_path(line, at)))
    };
    let mut findings = Vec::new();
    for (path, text) in text_files() {
        let lines = numbered(&text).filter(|(_, line)| is_found(line));
        findings.extend(lines.map(|(line, _)| format!("{path}:{}", line + 1)));
    }
    report("no file names a path of one machine", &findings);
}

#[test]
fn white_space_is_clean() {
    let kinds = [".rs", ".toml", ".md", ".sh", ".sql"];
    let mut findings = Vec::new();
    for (path, text) in text_files() {
        if !kinds.iter().any(|kind| path.ends_with(kind)) {
            continue;
        }
        for (line, content) in numbered(&text) {
            if content.contains('\t') {
                findings.push(format!("{path}:{}: a tab", line + 1));
            }
            if content.trim_end() != content {
                findings.push(format!("{path}:{}: white space at the end", line + 1));
            }
        }
        if !text.is_empty() && !text.ends_with('\n') {
            findings.push(format!("{path}:{}: no newline at the end", text.lines().count()));
        }
    }
    report("no tabs, nothing after the end of a line", &findings);
}

/// Rows such as "| `serve` | the proxy |" or "| `pgtenant serve` | ..." against the variants of `enum Command`.
#[test]
fn readme_names_every_command() {
    let (readme, cli) =
        (read("README.md").expect("README.md"), read("src/cli/mod.rs").expect("src/cli/mod.rs"));
    let (_, body) = cli.split_once("enum Command {").expect("src/cli/mod.rs has an enum Command");
    let variants = body.lines().take_while(|line| *line != "}").filter_map(|line| {
        let name = line.strip_prefix("    ")?;
        let is_variant = name.starts_with(|c: char| c.is_ascii_uppercase());
        is_variant.then(|| name.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_lowercase())
    });
    let commands: BTreeSet<String> = variants.collect();
    let rows: Vec<_> = numbered(&readme).filter_map(|(line, row)| Some((line, command_of(row)?))).collect();
    let mut findings: Vec<_> = commands
        .iter()
        .filter(|command| !rows.iter().any(|(_, row)| row == *command))
        .map(|command| format!("README.md:1: no row for `{command}`"))
        .collect();
    let unknown = rows.iter().filter(|(_, row)| !commands.contains(row));
    findings
        .extend(unknown.map(|(line, row)| format!("README.md:{}: there is no command `{row}`", line + 1)));
    report("README's table of commands is that of the program", &findings);
}

/// The command that a row of a table is about: its first cell is code that starts with `pgtenant `.
fn command_of(row: &str) -> Option<String> {
    let cell = row.strip_prefix("| `pgtenant ")?;
    let command: String = cell.chars().take_while(char::is_ascii_lowercase).collect();
    (!command.is_empty()).then_some(command)
}

/// A Rust file, as it is and without comments, texts and tests.
struct Source {
    path: String,
    text: String,
    /// Line by line the same, with comments, the inside of texts, and test modules blanked.
    code: String,
}

impl Source {
    /// `file:line`, from a line counted from 0.
    fn at(&self, line: usize) -> String {
        format!("{}:{}", self.path, line + 1)
    }

    /// The module of the house that it belongs to; none for `lib.rs` and `main.rs`.
    fn module(&self) -> Option<String> {
        let path = self.path.strip_prefix("src/")?;
        let (module, _) = path.split_once('/').or_else(|| path.split_once('.'))?;
        (!["lib", "main"].contains(&module)).then(|| module.to_owned())
    }

    /// A file that holds nothing but tests: `tests.rs`, or in a folder `tests`.
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }
}

fn rust_files(folder: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    walk(&root().join(folder), &mut paths);
    let rust = paths.into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "rs"));
    rust.map(|path| {
        let text = std::fs::read_to_string(&path).unwrap();
        let code = without_tests(&blank(&text));
        Source { path: relative(&path), text, code }
    })
    .collect()
}

/// Every text file that is tracked or about to be.
fn text_files() -> Vec<(String, String)> {
    let git = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .ok()
        .filter(|output| output.status.success() && !output.stdout.is_empty());
    let paths: Vec<String> = match git {
        Some(output) => String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect(),
        // An archive without git's data.
        None => {
            let mut found = Vec::new();
            walk(&root(), &mut found);
            found.iter().map(|path| relative(path)).collect()
        }
    };
    // What cannot be read as text is not text, or was removed and not yet committed so.
    paths
        .into_iter()
        .filter_map(|path| Some((read(&path).ok()?, path)))
        .map(|(text, path)| (path, text))
        .collect()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut entries: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let is_kept = !["target", ".git"].iter().any(|name| path.ends_with(name));
        if path.is_dir() && is_kept {
            walk(&path, found);
        } else if path.is_file() {
            found.push(path);
        }
    }
}

/// Module and line (from 0) of every `crate::module`, also inside `crate::{...}`.
fn crate_paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, word) in code.match_indices("crate::") {
        // `pgtenant_crate::` is another word, and `$crate::` is nothing that a crate without macros has.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let line = code[..at].matches('\n').count();
        let rest = &code[at + word.len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(top_names(group).into_iter().map(|name| (line, name))),
            None => found.push((line, identifier(rest))),
        }
    }
    found
}

/// The first names of a group: `a::b, c::{d, e}}` has `a` and `c`.
fn top_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut depth, mut is_start) = (0_usize, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => is_start = true,
            c if is_start && !c.is_whitespace() => {
                names.push(identifier(&group[at..]));
                is_start = false;
            }
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// First line (from 0) and number of lines of every function with a body.
fn functions(code: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let is_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let body = code[at..].find(['{', ';']).filter(|end| code.as_bytes()[at + *end] == b'{');
        if let (true, Some(open)) = (is_word, body) {
            let end = at + open + matching(&code[at + open..]);
            found.push((code[..at].matches('\n').count(), code[at..end].matches('\n').count() + 1));
        }
    }
    found
}

/// Where the brace that `code` starts with is closed.
fn matching(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// Blanks what follows `#[cfg(test)]`: a module or another item in braces.
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some((before, after)) = rest.split_once("#[cfg(test)]") {
        kept.push_str(before);
        let end = match after.find(['{', ';']) {
            Some(open) if after.as_bytes()[open] == b'{' => open + matching(&after[open..]),
            Some(semicolon) => semicolon,
            None => after.len(),
        };
        kept.extend(after[..end].chars().filter(|c| *c == '\n'));
        rest = &after[end..];
    }
    kept + rest
}

/// Replaces comments and the inside of texts and characters by spaces; lines stay where they are.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => quoted(rest),
            'r' if !out.ends_with(|c: char| c.is_alphanumeric() || c == '_') || out.ends_with('b') => {
                raw(rest)
            }
            '\'' => character(rest),
            _ => 0,
        };
        if length == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    out
}

/// Length of a text in quotes.
fn quoted(text: &str) -> usize {
    let mut is_escaped = true;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            // The first quote counts as escaped: it opens.
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of a raw text such as r#"..."#; 0 if it is none.
fn raw(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    let start = 1 + hashes;
    if text.as_bytes().get(start) != Some(&b'"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    text[start + 1..].find(&end).map_or(text.len(), |at| start + 1 + at + end.len())
}

/// Length of a character such as 'x' or '\n'; 0 if it is a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((at, escaped))) => {
            let after = at + escaped.len_utf8();
            text[after..].find('\'').map_or(0, |end| after + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

fn lines_with(files: impl Iterator<Item = Source>, is_found: impl Fn(&str) -> bool) -> Vec<String> {
    let found = |file: Source| {
        let lines: Vec<_> =
            numbered(&file.code).filter(|(_, line)| is_found(line)).map(|(n, _)| file.at(n)).collect();
        lines
    };
    files.flat_map(found).collect()
}

/// Lines with their numbers, from 0.
fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate()
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part))
}

fn read(path: &str) -> std::io::Result<String> {
    std::fs::read_to_string(root().join(path))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn report(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

/// The reader of Rust above, on code that is hard to read.
#[test]
fn code_is_told_from_text() {
    let code = blank(
        "let a = \"x.unwrap() \\\" {\"; // .expect(\nlet b = r#\"{\"#; let c = '{'; fn f<'a>(x: &'a str) {}",
    );
    assert!(!code.contains("unwrap") && !code.contains("expect"), "{code}");
    assert_eq!(code.matches('{').count(), 1, "{code}");
    assert_eq!(code.lines().count(), 2);
    assert_eq!(functions("fn a() {\n {\n }\n}\nfn b();\n"), [(0, 4)]);
    let paths: Vec<_> = crate_paths("use crate::{a::b, c::{d, e}};\nuse crate::f;").into_iter().collect();
    assert_eq!(paths, [(0, "a".to_owned()), (0, "c".to_owned()), (1, "f".to_owned())]);
    assert_eq!(without_tests("a\n#[cfg(test)]\nmod t {\n x.unwrap()\n}\nb"), "a\n\n\n\n}\nb");
    assert_eq!(command_of("| `pgtenant serve` | the proxy |").as_deref(), Some("serve"));
}
