//! A client's own settings, which follow it to whichever server it next gets.

use std::collections::{BTreeMap, BTreeSet};

use super::context::Wanted;
use super::guard::Guard;
use crate::wire::report::{Report, Sqlstate};

/// Settings of one client: what it gave at start-up and what PostgreSQL reported that it changed since.
pub type Settings = BTreeMap<String, String>;

/// Settings at most, and bytes of one value: a client cannot make every binding slow or large.
const MAX_SETTINGS: usize = 64;
const MAX_VALUE: usize = 4096;

/// What makes transactions read-only that do not say otherwise.
pub const READ_ONLY: &str = "default_transaction_read_only";

/// Bytes of all settings that follow a client.
pub const MAX_FOLLOWING: usize = 64 * 1024;

/// Reads start-up parameters into settings, and into what is wanted of the token's claims. As on PostgreSQL, a
/// parameter of its own prevails over the same one in `options`.
///
/// # Errors
/// A setting that a client may not give (42501), or options in a form that PostgreSQL would not take either.
pub fn from_startup(parameters: &BTreeMap<String, String>) -> Result<(Settings, Wanted), Report> {
    let (mut settings, mut wanted) = (Settings::new(), Wanted::default());
    let in_options = options(parameters.get("options").map_or("", String::as_str))?;
    // `replication` is refused earlier, unless it says no.
    let own = parameters.iter().filter(|(name, _)| !matches!(name.as_str(), "options" | "replication"));
    let own = own.map(|(name, value)| (name.clone(), value.clone()));
    for (name, value) in in_options.into_iter().chain(own) {
        match name.to_ascii_lowercase().as_str() {
            "pgtenant.organization" => wanted.organization = Some(value),
            "pgtenant.project" => wanted.project = Some(value),
            "pgtenant.sign_in" => {
                wanted.by_oauth = match value.as_str() {
                    "oauth" => true,
                    "jwt" | "scram" => false,
                    _ => {
                        let message =
                            format!("invalid value for parameter \"pgtenant.sign_in\": \"{value}\"");
                        let report = Report::new(Sqlstate::INVALID_PARAMETER, message);
                        return Err(report.hint("Use oauth or jwt; without it, a user that may sign in by either is asked for a password."));
                    }
                }
            }
            _ => insert(&mut settings, name, value)?,
        }
    }
    Ok((settings, wanted))
}

/// Whether a setting was found to hold on. A setting of nobody's that was reset is empty.
pub fn is_among(name: &str, found: &Settings) -> bool {
    let found = found.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
    found.is_some_and(|(_, value)| !name.contains('.') || !value.is_empty())
}

/// The settings that follow a client: its own from the start-up, and over them what its session has. `None` when they
/// are more than [`MAX_FOLLOWING`] bytes.
pub fn following(own: &Settings, found: Settings, guard: Option<&Guard>) -> Option<Settings> {
    let mut settings = own.clone();
    for (name, value) in found {
        let is_set = match name.as_str() {
            "role" => value != "none",
            // One that was reset is empty from then on, unless the client gave it at start-up.
            name if name.contains('.') && own.contains_key(name) && value.is_empty() => false,
            // Properties of a transaction, which is over.
            "transaction_isolation" | "transaction_read_only" | "transaction_deferrable" => false,
            name => !is_reserved(name) && guard.is_none_or(|guard| !guard.covers(name.as_bytes())),
        };
        if is_set {
            settings.insert(canonical(&name), value);
        }
    }
    let bytes: usize = settings.iter().map(|(name, value)| name.len() + value.len()).sum();
    (bytes <= MAX_FOLLOWING).then_some(settings)
}

/// Settings that PostgreSQL does not list by itself.
pub fn custom(settings: &Settings) -> BTreeSet<String> {
    settings.keys().filter(|name| name.contains('.')).cloned().collect()
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
        startup(pairs).map(|(settings, _)| settings)
    }

    fn startup(pairs: &[(&str, &str)]) -> Result<(Settings, Wanted), Report> {
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
    fn a_parameter_of_its_own_prevails_over_options() {
        let pairs = [
            ("options", "-c pgtenant.organization=1 -c PgTenant.Project=2 -c work_mem=1MB"),
            ("work_mem", "2MB"),
        ];
        let (settings, wanted) = startup(&pairs).unwrap();
        assert_eq!(settings.get("work_mem").unwrap(), "2MB");
        assert_eq!((wanted.organization.as_deref(), wanted.project.as_deref()), (Some("1"), Some("2")));
        let pairs = [&pairs[..], &[("pgtenant.organization", "3")]].concat();
        assert_eq!(startup(&pairs).unwrap().1.organization.as_deref(), Some("3"));
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
