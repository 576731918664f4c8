//! How long a client waits for a server, and for what has to be done before that is its own.

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use super::lease::{Pool, refused};
use super::queue::{Turn, Unserved};
use super::server::{Idle, Resting as _, Shard};
use super::terms::Terms;
use crate::wire::report::{Report, Sqlstate};

/// What is left for making a server ready, from the first step that has to be waited for. Nothing is measured before.
#[derive(Default)]
pub(super) struct Patience(Option<Instant>);

impl Patience {
    /// How much is left of what a step was begun with.
    pub(super) fn left(&self) -> Duration {
        self.0.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }
}

impl Pool {
    /// Waits for a step on the way to a client's server, as long as its patience lasts and it is there. A step that is given
    /// up closes the server that it was for: what came of it is not known.
    ///
    /// # Errors
    /// It took too long, or the client left.
    pub(super) async fn in_time<T>(
        &self,
        patience: &mut Patience,
        gone: &mut (impl Future<Output = ()> + Unpin),
        step: impl Future<Output = T>,
    ) -> Result<T, Unserved> {
        let until = *patience.0.get_or_insert_with(|| Instant::now() + self.limits().wait_timeout);
        tokio::select! {
            biased;
            done = tokio::time::timeout_at(until.into(), step) => done.map_err(|_| {
                tracing::warn!(pool = self.name(), "a server was not ready in time for its client and was closed");
                self.waited_too_long().into()
            }),
            () = gone => Err(Unserved::Gone),
        }
    }

    /// Takes a server from the shelf, or waits for one.
    pub(super) async fn take(
        self: &Arc<Self>,
        terms: &Terms,
        shard: Shard,
        patience: Duration,
        gone: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<Idle, Unserved> {
        loop {
            let mut server = match self.choose(terms, shard) {
                Ok(server) => server,
                Err(turn) => self.wait(turn, patience, gone).await?,
            };
            // The reactor has noticed if the server closed or spoke while nobody held it; no system call is made here.
            let alive = server.is_alive(&mut Context::from_waker(Waker::noop()));
            if alive && server.rehome(shard).is_ok() {
                return Ok(server);
            }
        }
    }

    async fn wait(
        self: &Arc<Self>,
        mut turn: Turn,
        mut patience: Duration,
        gone: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<Idle, Unserved> {
        let in_time = async {
            loop {
                let waited = tokio::time::timeout(patience, &mut turn).await;
                match waited.is_err().then(|| self.has_paused()).flatten() {
                    Some(more) => patience = more,
                    None => return waited,
                }
            }
        };
        let unserved = tokio::select! {
            biased;
            waited = in_time => match waited {
                Ok(Ok(outcome)) => return Ok(outcome?),
                Ok(Err(_)) => {
                    return Err(Report::new(Sqlstate::ADMIN_SHUTDOWN, "pgtenant is shutting down").into());
                }
                Err(_) => self.waited_too_long().into(),
            },
            () = gone => Unserved::Gone,
        };
        turn.close();
        // A server may have been handed over at this very moment.
        if let Ok(Ok(server)) = turn.try_recv() {
            self.put_back(server);
        }
        Err(unserved)
    }

    fn waited_too_long(&self) -> Report {
        let (count, trouble) = (self.count(), self.lock().trouble.clone());
        let limit = self.limits().wait_timeout;
        if let Some(trouble) = trouble {
            return refused(&trouble)
                .hint(format!("No server could be opened within wait_timeout ({limit:?})."));
        }
        Report::new(
            Sqlstate::TOO_MANY_CONNECTIONS,
            format!("no server came free within wait_timeout ({limit:?})"),
        )
        .detail(format!(
            "Pool {}: {} of {} servers open, {} of them idle, {} clients waiting.",
            self.name(),
            count.open,
            count.size,
            count.idle,
            count.waiting
        ))
        .hint("Raise pool.size or wait_timeout, or make transactions shorter.")
    }
}
