//! `pgtenant token`: keys and tokens for development, and a look into any token.

mod inspect;
mod keygen;
mod mint;
mod times;

use std::process::ExitCode;

use clap::Subcommand;

use super::{BAD_USAGE, DONE, Format, NO, fail, load};

/// Make development keys and tokens, or look into a token.
#[derive(clap::Args)]
#[command(after_help = "Example:
  pgtenant token keygen --algorithm ES256 --out dev
  pgtenant token mint --key dev.pem --issuer https://dev.example/ --audience pgtenant --subject ann \\
      --organization 018f6f3e-0000-7000-8000-000000000001 | pgtenant token inspect -")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a signing key, and what the proxy needs to verify its tokens.
    Keygen(keygen::Args),
    /// Print a token for development; production tokens come from an identity provider.
    Mint(Box<mint::Args>),
    /// Show what is in a token, and with a configuration whether it is accepted.
    Inspect(inspect::Args),
}

/// Runs the command: 0 done, 1 the answer is no, 2 bad usage or configuration.
pub(super) fn run(args: Args) -> ExitCode {
    let done = match args.command {
        Command::Keygen(args) => keygen::run(&args),
        Command::Mint(args) => mint::run(&args),
        Command::Inspect(args) => inspect::run(&args),
    };
    match done {
        Ok(()) => ExitCode::from(DONE),
        Err(Failure::Told(code, sentence)) => fail(code, sentence),
        Err(Failure::Silent(code)) => code,
    }
}

/// How a command ends without success.
#[derive(Debug)]
enum Failure {
    /// With this exit code and sentence.
    Told(u8, String),
    /// All has been said.
    Silent(ExitCode),
}

/// Wrong options, with what to do about it.
fn usage(sentence: impl Into<String>) -> Failure {
    Failure::Told(BAD_USAGE, sentence.into())
}

/// A refusal, with what to do about it.
fn refusal(sentence: impl Into<String>) -> Failure {
    Failure::Told(NO, sentence.into())
}

#[cfg(test)]
mod tests;
