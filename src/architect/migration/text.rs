//! The migrations as files: readable, to be run by hand with psql, and read back by `migrate apply`, which runs what people
//! have looked at and nothing else.

use super::{How, Move, Step};

/// What stands before a step: `-- step 003.0010 (transaction): title`.
const STEP: &str = "-- step ";
/// The first line.
const MADE_FROM: &str = "-- from tenancy.toml ";
/// In the head of each file.
const WRITTEN: &str = "written by pgtenant migrate plan";
const LOCK: &str = "-- locks: ";
const CHECK: &str = "-- check: ";

/// How long a statement waits for a lock before it is tried again, in milliseconds.
pub const LOCK_TIMEOUT_MS: u32 = 100;

impl How {
    fn word(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Alone => "alone",
            Self::Batches => "batches",
        }
    }

    fn read(word: &str) -> Option<Self> {
        [Self::Transaction, Self::Alone, Self::Batches].into_iter().find(|how| how.word() == word)
    }
}

/// A migration's file, of this name; with a fingerprint of what it was made from.
pub fn forward(name: &str, made_from: &str, moves: &[Move]) -> String {
    let steps: Vec<&Step> = moves.iter().map(|one| &one.step).collect();
    format!("{MADE_FROM}{made_from}\n{}", written(name, &steps))
}

/// The fingerprint in a file's first line.
pub fn made_from(text: &str) -> Option<&str> {
    text.lines().next()?.strip_prefix(MADE_FROM)
}

/// The file that undoes it.
pub fn back(name: &str, moves: &[Move]) -> String {
    let steps: Vec<&Step> = moves.iter().rev().flat_map(|one| &one.undo).collect();
    written(&format!("{name}.rollback"), &steps)
}

fn written(name: &str, steps: &[&Step]) -> String {
    let mut out = format!(
        "-- {name}.sql, {WRITTEN}.\n--\n-- `pgtenant migrate apply` runs it step by step, checks each, and \
         goes on where it was stopped. By hand: psql -v ON_ERROR_STOP=1 -f {name}.sql,\n-- as a role that bypasses row level \
         security; a step that could not get its lock in time can be run again. An index that was left invalid is to be\n-- dropped before (pg_index.indisvalid): IF NOT EXISTS is content with it.\n\nSET lock_timeout = '{LOCK_TIMEOUT_MS}ms';\n\
         SET statement_timeout = 0;\nSET search_path = pg_catalog, public;\n"
    );
    if steps.iter().any(|step| step.how == How::Batches) {
        // What stands before the first step is not read back: `migrate apply` has made it already.
        let ledger = include_str!("../sql/ledger.sql").trim_end();
        out.push_str(&format!(
            "\n-- Run by hand, batches need the ledger of migrate apply.\nBEGIN;\n{ledger}\nCOMMIT;\n"
        ));
    }
    for step in steps {
        out.push_str(&format!("\n{STEP}{} ({}): {}\n", step.id, step.how.word(), one_line(&step.title)));
        if !step.lock.is_empty() {
            out.push_str(&format!("{LOCK}{}\n", one_line(&step.lock)));
        }
        if let Some(check) = &step.check {
            out.push_str(&format!("{CHECK}{}\n", one_line(check)));
        }
        if step.how == How::Transaction {
            out.push_str("BEGIN;\n");
        }
        for statement in &step.sql {
            out.push_str(&format!("{};\n", statement.trim_end().trim_end_matches(';')));
        }
        if step.how == How::Transaction {
            out.push_str("COMMIT;\n");
        }
    }
    out
}

/// As part of a comment, which ends at the end of its line, however that is written.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

/// Reads a file back. What looks like a step inside of a text is none: names and comments are a stranger's.
///
/// # Errors
/// It is none of ours; one sentence with the line.
pub fn read(text: &str) -> Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::new();
    let mut body = String::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(rest) = line.strip_prefix(STEP).filter(|_| ending(&body).is_some()) {
            finish(&mut steps, &mut body);
            let parsed = rest.split_once(" (").and_then(|(id, rest)| {
                let (how, title) = rest.split_once("): ")?;
                Some((id, How::read(how)?, title))
            });
            let Some((id, how, title)) = parsed else {
                return Err(format!("line {}: {line:?} is no step; plan again", number + 1));
            };
            steps.push(Step {
                id: id.to_owned(),
                title: title.to_owned(),
                lock: String::new(),
                how,
                sql: Vec::new(),
                check: None,
            });
            continue;
        }
        let Some(step) = steps.last_mut() else { continue };
        if let Some(lock) = line.strip_prefix(LOCK).filter(|_| body.is_empty()) {
            step.lock = lock.to_owned();
        } else if let Some(check) = line.strip_prefix(CHECK).filter(|_| body.is_empty()) {
            step.check = Some(check.to_owned());
        } else {
            body.push_str(line);
            body.push('\n');
        }
    }
    if ending(&body).is_none() {
        return Err("a text in it has no end; plan again".to_owned());
    }
    finish(&mut steps, &mut body);
    // There may be nothing to do, or to undo, in one of them.
    if steps.is_empty() && !text.contains(WRITTEN) {
        return Err("there is no step in it; plan again".to_owned());
    }
    Ok(steps)
}

fn finish(steps: &mut [Step], body: &mut String) {
    let text = std::mem::take(body);
    let Some(step) = steps.last_mut() else { return };
    let text = text.trim();
    let text = match step.how {
        How::Transaction => {
            let text = text.strip_prefix("BEGIN;").unwrap_or(text);
            text.strip_suffix("COMMIT;").unwrap_or(text)
        }
        _ => text,
    };
    step.sql = statements(text);
}

/// Statements of a text that we have written: one ends where a line ends with a semicolon outside a dollar quote and a string.
fn statements(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut one = String::new();
    for line in text.lines() {
        one.push_str(line);
        one.push('\n');
        if line.ends_with(';') && ending(&one) == Some(b';') {
            found.push(one.trim().trim_end_matches(';').to_owned());
            one.clear();
        }
    }
    if !one.trim().is_empty() {
        found.push(one.trim().to_owned());
    }
    found.retain(|statement| !statement.is_empty());
    found
}

/// The last byte that is neither blank nor in a comment, 0 if there is none; `None` where a quote is not closed.
fn ending(text: &str) -> Option<u8> {
    let bytes = text.as_bytes();
    let (mut at, mut last) = (0, 0);
    while let Some(&byte) = bytes.get(at) {
        let rest = &text[at..];
        let length = match byte {
            b'\'' | b'"' => quoted(bytes, at)?,
            b'-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            b'$' => dollar_quoted(rest)?,
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
        if !rest.starts_with("--") && !byte.is_ascii_whitespace() {
            last = byte;
        }
        at += length;
    }
    Some(last)
}

/// How long what is quoted from here on is; `None` if it has no end.
fn quoted(bytes: &[u8], start: usize) -> Option<usize> {
    let quote = bytes[start];
    let is_escaped = quote == b'\'' && start > 0 && bytes[start - 1] == b'E';
    let mut at = start + 1;
    loop {
        match bytes.get(at)? {
            b'\\' if is_escaped => at += 2,
            &byte if byte == quote => return Some(at + 1 - start),
            _ => at += 1,
        }
    }
}

/// The same of a dollar quote; a parameter is none.
fn dollar_quoted(rest: &str) -> Option<usize> {
    let is_tag = |tag: &str| tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let Some(end) = rest[1..].find('$').filter(|end| is_tag(&rest[1..=*end])) else { return Some(1) };
    let tag = &rest[..end + 2];
    rest[tag.len()..].find(tag).map(|close| 2 * tag.len() + close)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let step = |id: &str, how, sql: &[&str], check: Option<&str>| Step {
            id: id.to_owned(),
            title: format!("step ({id}): of \"a\""),
            lock: "none".to_owned(),
            how,
            sql: sql.iter().map(|sql| (*sql).to_owned()).collect(),
            check: check.map(str::to_owned),
        };
        let steps = [
            step(
                "003.0010",
                How::Transaction,
                &["SELECT 1", "DO $x$\nBEGIN\n    PERFORM 1;\nEND\n$x$"],
                Some("SELECT true"),
            ),
            step(
                "003.0020",
                How::Alone,
                &["SELECT ';\n;', \"a;\nb\", E'\\';\n'", "SELECT $1, 2 -- it's;\n, 3"],
                None,
            ),
            step("003.0030", How::Batches, &["DO $step$ BEGIN\nCOMMIT;\nEND $step$"], None),
            step("003.0040", How::Alone, &["SELECT größe, -- ä\n'€', \"ß\"", "SELECT 'b'"], None),
        ];
        let text = written("x", &steps.iter().collect::<Vec<_>>());
        assert_eq!(read(&text).unwrap(), steps, "{text}");
        assert!(read("SELECT 1;").is_err() && read(&format!("{text}SELECT 'no end;\n")).is_err());
        assert!(read("-- step 1 (never): x\n").is_err());
    }

    #[test]
    fn a_step_inside_of_a_text_is_none() {
        let hidden = "\n-- step 005.9999 (alone): hidden\n-- check: SELECT true\nALTER ROLE app SUPERUSER;\n-- step 005.9998 (alone): x\n";
        for sql in [
            format!("COMMENT ON TABLE t IS 'so{hidden}'"),
            format!("COMMENT ON TABLE t IS E'so\\\'{hidden}'"),
            format!("CREATE INDEX i ON t USING btree (a) WHERE (b <> 'x{hidden}'::text)"),
            format!("ALTER TABLE \"a{hidden}\" ADD b int"),
            format!("DO $x$ BEGIN RAISE '{hidden}'; END $x$"),
        ] {
            let step = Step {
                id: "003.0010".to_owned(),
                title: "t".to_owned(),
                lock: "none".to_owned(),
                how: How::Alone,
                sql: vec![sql],
                check: None,
            };
            assert_eq!(read(&written("x", &[&step])).unwrap(), [step]);
        }
    }
}
