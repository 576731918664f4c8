//! A client's own settings, which follow it to whichever server it next gets.

use std::collections::BTreeMap;

use crate::wire::report::{Report, Sqlstate};

/// Settings of one client: what it gave at start-up and what PostgreSQL reported that it changed since.
pub type Settings = BTreeMap<String, String>;

/// Settings at most, and bytes of one value: a client cannot make every binding slow or large.
const MAX_SETTINGS: usize = 64;
const MAX_VALUE: usize = 4096;

/// Reads start-up parameters, `options` included, into settings.
///
/// # Errors
/// A setting that a client may not give (42501), or options in a form that PostgreSQL would not take either.
pub fn from_startup(parameters: &BTreeMap<String, String>) -> Result<Settings, Report> {
    let mut settings = Settings::new();
    for (name, value) in parameters {
        match name.as_str() {
            "options" => {
                for (name, value) in options(value)? {
                    insert(&mut settings, name, value)?;
                }
            }
            "replication" => {} // refused earlier, unless it says no
            "pgtenant.organization" | "pgtenant.project" => {} // chosen from the token's claims
            _ => insert(&mut settings, name.clone(), value.clone())?,
        }
    }
    Ok(settings)
}

fn insert(settings: &mut Settings, name: String, value: String) -> Result<(), Report> {
    if is_reserved(&name) {
        return Err(Report::new(
            Sqlstate::INSUFFICIENT_PRIVILEGE,
            format!("setting \"{name}\" may not be given at start-up"),
        )
        .hint("The context comes from the token, and the role from the user that signs in."));
    }
    if settings.len() == MAX_SETTINGS || value.len() > MAX_VALUE || name.len() > 128 {
        return Err(Report::new(Sqlstate::LIMIT_EXCEEDED, "too many or too long settings at start-up"));
    }
    settings.insert(canonical(&name), value);
    Ok(())
}

/// Settings by which a client would change whose context or rights it has.
fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("pgtenant.")
        || matches!(name.as_str(), "role" | "session_authorization" | "is_superuser")
}

/// Setting names are case-insensitive; two are reported in mixed case, and clients look for exactly that.
fn canonical(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    match lower.as_str() {
        "datestyle" => "DateStyle".to_owned(),
        "timezone" => "TimeZone".to_owned(),
        "intervalstyle" => "IntervalStyle".to_owned(),
        _ => lower,
    }
}

/// Reads `-c name=value` and `--name=value`; a backslash keeps the next character, as PostgreSQL's `pg_split_opts`.
fn options(text: &str) -> Result<Vec<(String, String)>, Report> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => word.get_or_insert_default().extend(characters.next()),
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    let refused = || {
        Report::new(Sqlstate::NOT_SUPPORTED, "start-up options other than -c name=value are not supported")
            .hint("Write each setting as -c name=value.")
    };
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let assignment = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            Some("") => words.next().ok_or_else(refused)?,
            Some(assignment) => assignment.to_owned(),
            None => return Err(refused()),
        };
        let (name, value) = assignment.split_once('=').ok_or_else(refused)?;
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, Report> {
        from_startup(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn options_are_read_as_postgresql_reads_them() {
        let settings = read(&[("options", r"-c search_path=a\ b --work-mem=8MB  -cTimeZone=UTC")]).unwrap();
        assert_eq!(settings.get("search_path").unwrap(), "a b");
        assert_eq!(settings.get("work_mem").unwrap(), "8MB");
        assert_eq!(settings.get("TimeZone").unwrap(), "UTC");
    }

    #[test]
    fn nobody_brings_a_context_or_a_role_at_start_up() {
        for (name, value) in [
            ("pgtenant.seal", "x"),
            ("PgTenant.Claims", "x"),
            ("role", "postgres"),
            ("session_authorization", "postgres"),
            ("options", "-c pgtenant.seal=x"),
            ("options", r"-c pgtenant\.seal=x"),
            ("options", "--PGTENANT.seal=x"),
            ("options", "-c role=postgres"),
        ] {
            let refused = read(&[(name, value)]).unwrap_err();
            assert_eq!(refused.code, Sqlstate::INSUFFICIENT_PRIVILEGE, "{name}={value}");
        }
        assert!(read(&[("options", "-h localhost")]).is_err());
        assert!(read(&[("options", "-c")]).is_err());
    }
}
