//! `pgtenant serve`: the proxy.

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, setrlimit};

use super::{BAD_USAGE, ConfigFile, DONE, NO, fail, load, runtime};
use crate::observe::log;
use crate::server::{Proxy, ServeError, stop_signal};

/// Options of `serve`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
}

/// Keys and passwords of all tenants are in memory: no core file has them, and no other process of the same user reads them
/// (core(5), prctl(2)).
fn keep_memory_private() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // Where the system refuses, it is as it was.
    let _ = setrlimit(Resource::Core, none);
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

pub(super) fn run(args: &Args) -> ExitCode {
    keep_memory_private();
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
        Proxy::bind(&config).await?.reloaded_from(&args.file.config).run(stop).await
    });
    match served {
        Ok(()) => ExitCode::from(DONE),
        Err(error @ ServeError::Configuration(_)) => fail(BAD_USAGE, error),
        Err(error) => fail(NO, error),
    }
}
