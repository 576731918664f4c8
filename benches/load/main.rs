//! A load generator for what pgbench cannot do: many clients, each with a password (or token) of its own.
//!
//! `run` speaks in pgbench's words, so that one reader serves both.

mod connection;
mod idle;
mod run;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Any failure ends a measurement; who reads the sentence is a person.
type Failure = Box<dyn Error + Send + Sync>;

/// Load for a PostgreSQL server or pooler.
#[derive(Parser)]
#[command(name = "load")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One row by primary key, over and over, by clients of different organizations.
    Run(run::Options),
    /// Signs clients in, leaves them idle, and tells the resident memory of a process before and after.
    Idle(idle::Options),
}

/// Where and as whom clients sign in.
#[derive(Args, Clone)]
struct Target {
    /// Address and port of the server or pooler.
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    user: String,
    #[arg(long)]
    database: String,
    /// Lines of: organization, password or token, first and last id of the organization's rows.
    #[arg(long)]
    organizations: PathBuf,
}

/// An organization, and how its clients sign in.
#[derive(Clone)]
struct Organization {
    id: String,
    password: String,
    first_row: u64,
    last_row: u64,
}

impl Target {
    fn read_organizations(&self) -> Result<Vec<Organization>, Failure> {
        let text = std::fs::read_to_string(&self.organizations)?;
        let found: Option<Vec<_>> = text.lines().map(organization).collect();
        match found {
            Some(found) if !found.is_empty() => Ok(found),
            _ => Err("--organizations: not lines of organization, password, first and last id".into()),
        }
    }
}

fn organization(line: &str) -> Option<Organization> {
    let [id, password, first, last] = line.split_whitespace().collect::<Vec<_>>()[..] else { return None };
    let (first_row, last_row) = (first.parse().ok()?, last.parse().ok()?);
    (first_row <= last_row).then(|| Organization {
        id: id.to_owned(),
        password: password.to_owned(),
        first_row,
        last_row,
    })
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(options) => run::run(&options),
        Command::Idle(options) => idle::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("load: {failure}");
            ExitCode::FAILURE
        }
    }
}
