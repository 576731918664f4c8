//! What every black-box test stands on: PostgreSQL, an issuer of tokens, the proxy, and clients.
//!
//! ```text
//! let database = postgres::shared().database().await;
//! let gate = Gate::with(&database).pool_size(1).run().await;
//! let client = client::connect(&gate, "app", &gate.token(org(1)).sign()).await;
//! ```
#![allow(dead_code, missing_docs, reason = "not every feature uses every helper")]

pub mod authority;
pub mod bouncer;
pub mod client;
pub mod endpoint;
pub mod gate;
pub mod issuer;
pub mod postgres;

use std::time::Duration;

/// How long anything may take before a test fails instead of hanging; far above what is expected.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Id of the n-th seeded organization (1 to 4; others exist nowhere).
pub fn org(n: u32) -> String {
    format!("0a000000-0000-7000-8000-{n:012}")
}

/// Id of the m-th project (1 or 2) of the n-th organization.
pub fn project(n: u32, m: u32) -> String {
    format!("0b000000-0000-7000-8000-{n:06}{m:06}")
}

/// Memory that a process holds now, in KiB; 0 where the system does not tell.
pub fn resident_kib(pid: u32) -> u64 {
    of_status(pid, "VmRSS:")
}

/// Memory that it has asked for, touched or not.
pub fn data_kib(pid: u32) -> u64 {
    of_status(pid, "VmData:")
}

fn of_status(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
}

/// Polls until `probe` has an answer; panics with `what` when patience is at its end.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A small generator (SplitMix64), so that a failure can be repeated by its seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}
