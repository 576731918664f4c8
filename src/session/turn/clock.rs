//! How long a query takes, and where.

use std::time::{Duration, Instant};

use crate::observe::metrics::QueryTimes;

/// The times of the query that runs.
pub(super) struct Clock {
    pub(super) times: QueryTimes,
    /// The client has not taken its results since then.
    blocked: Option<Instant>,
    /// A query runs whose end will be recorded.
    is_running: bool,
}

impl Clock {
    /// A turn begins whose client's first byte was seen at `started`.
    pub(super) fn start(started: Instant) -> Self {
        let now = Instant::now();
        let times = QueryTimes { started, leased: now, bound: now, ready: now, client: Duration::ZERO };
        Self { times, blocked: None, is_running: true }
    }

    /// Bytes of a query arrived. The first of them start its clock.
    pub(super) fn client_spoke(&mut self, is_waiting: bool) {
        if !is_waiting && !self.is_running {
            let now = Instant::now();
            self.times =
                QueryTimes { started: now, leased: now, bound: now, ready: now, client: Duration::ZERO };
            self.is_running = true;
        }
    }

    pub(super) fn client_blocks(&mut self) {
        self.blocked.get_or_insert_with(Instant::now);
    }

    pub(super) fn client_took(&mut self) {
        if let Some(since) = self.blocked.take() {
            self.times.client += since.elapsed();
        }
    }

    /// ReadyForQuery arrived `count` times; of a pipeline, the later queries began when the earlier ones ended.
    pub(super) fn ready(&mut self, count: usize, goes_on: bool) -> impl Iterator<Item = QueryTimes> + use<> {
        let now = Instant::now();
        self.times.ready = now;
        let first = self.times;
        self.times = QueryTimes { started: now, leased: now, bound: now, ready: now, client: Duration::ZERO };
        let rest = self.times;
        self.is_running = goes_on;
        std::iter::once(first).chain(std::iter::repeat_n(rest, count - 1))
    }
}
