//! The log: one line per event on standard error, as text on a terminal and as JSON elsewhere.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Target of the lines that security is about: who was refused what, from where, and why. Their field `event` says which:
/// `sign_in_refused`, `token_refused`, `seal_refused`, `connection_refused`.
pub const SECURITY: &str = "pgtenant::security";

/// Starts logging. `PGTENANT_LOG` takes a level (`debug`) or targets (`pgtenant::pool=debug`); the default is `info`.
///
/// Secrets cannot reach it: their types print a placeholder.
pub fn start() {
    let filter = EnvFilter::try_from_env("PGTENANT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call (tests in one process) keeps the first log.
    let _ = if std::io::stderr().is_terminal() {
        builder.try_init()
    } else {
        builder.json().flatten_event(true).with_ansi(false).try_init()
    };
}
