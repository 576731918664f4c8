//! The end: readiness off, no new clients, transactions finish, idle clients get 57P01.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::keeper::Pools;
use crate::session::Gate;

/// Resolves on the first SIGTERM or SIGINT. The second one ends the process at once.
pub(super) fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: transactions finish, then pgtenant stops"),
            _ = interrupt.recv() => tracing::info!("SIGINT: transactions finish, then pgtenant stops"),
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(1);
        });
    })
}

/// SIGUSR1 pauses all pools and SIGUSR2 resumes them, as in PgBouncer.
pub(super) fn pause_by_signals(pools: Pools) -> io::Result<impl Future<Output = ()>> {
    let mut pause = signal(SignalKind::user_defined1())?;
    let mut resume = signal(SignalKind::user_defined2())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = pause.recv() => {
                    tracing::info!("SIGUSR1: paused; no transaction begins until SIGUSR2");
                    pools.pause();
                }
                _ = resume.recv() => {
                    tracing::info!("SIGUSR2: resumed");
                    pools.resume();
                }
            }
        }
    })
}

/// Asks clients to leave and waits for them, at most for `grace`.
pub(super) async fn drain(gate: &Arc<Gate>, grace: Duration) {
    gate.drain();
    let deadline = Instant::now() + grace;
    while gate.clients() > 0 {
        if Instant::now() >= deadline {
            tracing::warn!(
                clients = gate.clients(),
                "stopped with transactions unfinished: the grace is over"
            );
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
