//! What the proxy does when everything around it fails: PostgreSQL, the network, its clients, and itself by SIGTERM.
//!
//! Small by default; `make chaos` runs it at full size and writes `tests/chaos/RESULTS.md`. `CHAOS_SEED` repeats a run as
//! far as time lets it; `CHAOS_KINDS="RestartFast Frozen"` has only these faults.

mod faults;
mod ground;
mod journal;
mod ledger;
mod neighbours;
mod outages;
mod pooler;
mod proxy;
mod reloads;
mod report;
mod session;
mod shutdown;
mod storm;

/// A size: what the variable says, or the full one where `CHAOS_FULL` is set, or the small one.
fn size(variable: &str, small: u64, full: u64) -> u64 {
    let named = std::env::var(variable).ok().filter(|text| !text.is_empty());
    match named {
        Some(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        None if is_full() => full,
        None => small,
    }
}

/// Whether what comes of it is written down.
fn is_full() -> bool {
    std::env::var_os("CHAOS_FULL").is_some()
}

/// `CHAOS_SEED`, or one that was never used before; it is printed.
fn seed(what: &str) -> u64 {
    let fresh = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = size("CHAOS_SEED", fresh % 1_000_000_000, fresh % 1_000_000_000);
    println!("chaos::{what}: CHAOS_SEED={seed}");
    seed
}
