//! File descriptors: one for each client, and one for each server.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// Beside clients and servers: listeners, reactors, logs, files that are read anew, connections that are turned away.
const OTHERS: u64 = 128;

/// Raises the limit as far as it is needed and may be; warns where that is not enough.
pub(super) fn raise_limit(config: &Config) {
    let needed = needed(config);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None is no limit.
    let Some(soft) = current.filter(|soft| *soft < needed) else { return };
    let wanted = maximum.map_or(needed, |hard| hard.min(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    let now = if raised.is_ok() { wanted } else { soft };
    if now < needed {
        tracing::warn!(
            limit = now,
            needed,
            "too few file descriptors for listen.max_clients and all servers: raise the limit (LimitNOFILE, ulimit -n) or lower those"
        );
    }
}

fn needed(config: &Config) -> u64 {
    let of_one_role: usize = config.databases.values().map(|database| database.pool.size).sum();
    let servers = of_one_role * config.roles.len();
    (config.listen.max_clients + servers) as u64 + OTHERS
}
