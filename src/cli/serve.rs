//! `pgtenant serve`: the proxy.

use std::process::ExitCode;

use super::{BAD_USAGE, ConfigFile, DONE, NO, fail, load, runtime};
use crate::observe::log;
use crate::server::{Proxy, ServeError, stop_signal};

/// Options of `serve`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let config = match load(&args.file.config) {
        Ok(config) => config,
        Err(code) => return code,
    };
    log::start();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(NO, format!("cannot start: {error}")),
    };
    let served = runtime.block_on(async {
        let stop = stop_signal()?;
        Proxy::bind(&config).await?.run(stop).await
    });
    match served {
        Ok(()) => ExitCode::from(DONE),
        Err(error @ ServeError::Configuration(_)) => fail(BAD_USAGE, error),
        Err(error) => fail(NO, error),
    }
}
