//! The `pgtenant` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgtenant::cli::run()
}
