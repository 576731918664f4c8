//! A CSV file (RFC 4180) that says whose rows are: values of some columns, and an organization's or project's id.

use std::collections::BTreeSet;
use std::path::Path;

/// How many lines such a file may have: they become part of a migration that people read. More of them belong into a table of
/// the database, and an expression that looks there.
const MAX_LINES: usize = 100_000;

/// What the last column is called.
const ID: &str = "id";

/// A file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Columns of the table that it is for.
    pub columns: Vec<String>,
    /// Their values, and last the id.
    pub lines: Vec<Vec<String>>,
}

impl Mapping {
    /// The values of each column that it has for rows.
    pub fn by_column(&self) -> Vec<Vec<&str>> {
        (0..self.columns.len()).map(|n| self.lines.iter().map(|line| line[n].as_str()).collect()).collect()
    }

    /// Reads it.
    ///
    /// # Errors
    /// One sentence: it cannot be read, or says nothing, or two things of one value.
    pub fn read(file: &Path) -> Result<Self, String> {
        let at = |what: &dyn std::fmt::Display| format!("{}: {what}", file.display());
        let mut reader =
            csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_path(file).map_err(|error| at(&error))?;
        let mut columns: Vec<String> =
            reader.headers().map_err(|error| at(&error))?.iter().map(str::to_owned).collect();
        if columns.len() < 2 || columns.pop().as_deref() != Some(ID) {
            return Err(at(&"its first line names columns of the table, and last \"id\": region,id"));
        }
        let (mut lines, mut seen) = (Vec::new(), BTreeSet::new());
        for record in reader.records() {
            let record = record.map_err(|error| at(&error))?;
            let mut line: Vec<String> = record.iter().map(str::to_owned).collect();
            let number = record.position().map_or(0, csv::Position::line);
            if let Some(id) = line.last_mut() {
                *id = id.trim().to_owned();
            }
            if line.iter().any(|value| value.contains(char::is_control)) {
                return Err(at(&format!(
                    "line {number} has a control character in it; look it up with an expression instead"
                )));
            }
            if line.last().is_none_or(String::is_empty) {
                return Err(at(&format!("line {number} has no id")));
            }
            if !seen.insert(line[..columns.len()].to_vec()) {
                return Err(at(&format!(
                    "line {number} says of {} what another line said already",
                    line[..columns.len()].join(", ")
                )));
            }
            lines.push(line);
            if lines.len() > MAX_LINES {
                return Err(at(&format!(
                    "it has more than {MAX_LINES} lines; load them into a table, and look there with an expression"
                )));
            }
        }
        Ok(Self { columns, lines })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(text: &str) -> Result<Mapping, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Mapping::read(file.path()).map_err(|sentence| sentence.rsplit("/").next().unwrap().to_owned())
    }

    #[test]
    fn values_and_whose_they_are() {
        let read = read("region,\"pla\"\"n\",id\n\"a, b\", gold , 7\neast,gold,8\n").unwrap();
        assert_eq!(read.columns, ["region", "pla\"n"]);
        assert_eq!(read.lines, [["a, b", " gold ", "7"], ["east", "gold", "8"]]);
    }

    #[test]
    fn what_it_does_not_say_is_told_with_the_line() {
        for (text, told) in [
            ("", "first line names columns"),
            ("id\n1\n", "first line names columns"),
            ("region,organization\nwest,1\n", "first line names columns"),
            ("region,id\nwest,1\nwest,2\n", "line 3 says of west"),
            ("region,id\nwest,\n", "line 2 has no id"),
            ("region,id\n\"we\r\nst\",1\n", "line 2 has a control character"),
            ("region,id\nwest,1,2\n", "record 1"),
        ] {
            let sentence = read(text).unwrap_err();
            assert!(sentence.contains(told), "{text:?}: {sentence}");
        }
    }
}
