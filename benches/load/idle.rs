//! Signed-in clients that do nothing, and what they cost.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::connection::Connection;
use crate::{Failure, Target};

/// Sign-ins at a time: less than what a listening socket lets wait.
const AT_ONCE: usize = 64;

/// Clients from one source address.
const PER_SOURCE: usize = 5000;

/// Before memory is read: what was needed for signing in may be given back.
const SETTLE: Duration = Duration::from_secs(3);

/// Options of `idle`.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    target: Target,
    #[arg(long)]
    clients: usize,
    /// The process whose memory is told.
    #[arg(long)]
    pid: u32,
}

pub fn run(options: &Options) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let before = resident(options.pid)?;
    let mut connections = runtime.block_on(open(options))?;
    std::thread::sleep(SETTLE);
    let after = resident(options.pid)?;
    // Whoever was closed meanwhile did not cost anything: the last one is asked, and the first.
    for at in [0, connections.len() - 1] {
        runtime.block_on(connections[at].simple("SELECT 1", "1"))?;
    }
    println!("clients: {}", connections.len());
    println!("VmRSS before: {before} kB");
    println!("VmRSS after: {after} kB");
    Ok(())
}

async fn open(options: &Options) -> Result<Vec<Connection>, Failure> {
    let organizations = options.target.read_organizations()?;
    let target = Arc::new(options.target.clone());
    let mut signing_in = JoinSet::new();
    let mut connections = Vec::with_capacity(options.clients);
    for number in 0..options.clients {
        if signing_in.len() == AT_ONCE
            && let Some(done) = signing_in.join_next().await
        {
            connections.push(done??);
        }
        let target = target.clone();
        let password = organizations[number % organizations.len()].password.clone();
        let source = u8::try_from(1 + number / PER_SOURCE)?;
        signing_in.spawn(async move { Connection::open(&target, &password, Some(source)).await });
    }
    while let Some(done) = signing_in.join_next().await {
        connections.push(done??);
    }
    Ok(connections)
}

/// Kilobytes that a process has in memory.
fn resident(pid: u32) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|rest| rest.split_whitespace().next()).ok_or("no VmRSS")?;
    Ok(number.parse()?)
}
