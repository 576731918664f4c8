//! The door: commands, their options, exit codes. 0 done, 1 the answer is no, 2 bad usage or configuration.

mod check;
pub mod demo;
mod install;
mod migrate;
mod serve;
mod token;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::config::{self, Config};

/// Tenant-aware connection pooling for PostgreSQL.
#[derive(Parser)]
#[command(name = "pgtenant", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy.
    #[command(after_help = "Example:\n  pgtenant serve --config /etc/pgtenant/pgtenant.toml")]
    Serve(serve::Args),
    /// Check a configuration: all mistakes at once, each with its key and line.
    #[command(after_help = "Example:\n  pgtenant check --config pgtenant.toml --connect")]
    Check(check::Args),
    /// Show it all on a throwaway PostgreSQL: a helpdesk application, four organizations, ready-to-paste psql lines.
    #[command(after_help = "Example:\n  pgtenant demo\n  pgtenant demo --once")]
    Demo(demo::Args),
    /// Make development keys and tokens, or look into a token.
    Token(token::Args),
    /// Install the SQL interface and the seal's key into a database whose tables are multi-tenant already.
    #[command(
        after_help = "Example:\n  pgtenant install --config pgtenant.toml --database postgres://postgres@localhost/app --role app\n  pgtenant install --config pgtenant.toml --print"
    )]
    Install(install::Args),
    /// Make a single-tenant database multi-tenant while it is in use, and back.
    #[command(
        subcommand,
        after_help = "Example:\n  pgtenant migrate plan --database postgres://postgres@localhost/app\n  pgtenant migrate apply --database postgres://postgres@localhost/app\n  pgtenant migrate verify --database postgres://postgres@localhost/app"
    )]
    Migrate(migrate::Action),
}

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Done.
const DONE: u8 = 0;
/// The answer is no.
const NO: u8 = 1;
/// Bad usage or configuration.
const BAD_USAGE: u8 = 2;

/// Runs the command line.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Token(args) => token::run(args),
        Command::Install(args) => install::run(&args),
        Command::Migrate(action) => migrate::run(&action),
    }
}

/// Loads a configuration or says on standard error what is wrong with it.
fn load(file: &Path) -> Result<Config, ExitCode> {
    config::load(file).map_err(|mistakes| {
        eprintln!("{mistakes}");
        ExitCode::from(BAD_USAGE)
    })
}

/// One sentence on standard error, and its exit code.
fn fail(code: u8, sentence: impl std::fmt::Display) -> ExitCode {
    eprintln!("pgtenant: {sentence}");
    ExitCode::from(code)
}

/// A runtime for the control plane: one thread.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// The configuration file, for commands that take one.
#[derive(clap::Args, Debug)]
pub(crate) struct ConfigFile {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}
