//! The keeper looks after all pools once a second: servers that are too old or idle for too long are closed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;

use crate::observe::metrics::Stock;
use crate::pool::Pool;
use crate::pool::server::Shard;

/// How often.
const ROUND: Duration = Duration::from_secs(1);

/// The main thread's reactor: what it opens moves to the thread of its first client.
const HERE: Shard = Shard(usize::MAX);

/// All pools, by database and role.
#[derive(Clone, Default)]
pub(super) struct Pools(Arc<BTreeMap<String, RolePools>>);

/// The pools of one database, by role.
type RolePools = Vec<(String, Arc<Pool>)>;

impl Pools {
    pub(super) fn add(&mut self, database: &str, role: &str, pool: Arc<Pool>) {
        // Only while the proxy is assembled, when nobody else holds it.
        if let Some(pools) = Arc::get_mut(&mut self.0) {
            pools.entry(database.to_owned()).or_default().push((role.to_owned(), pool));
        }
    }

    pub(super) fn by_name(&self) -> HashMap<(String, String), Arc<Pool>> {
        let pools = self.0.iter().flat_map(|(database, roles)| {
            roles.iter().map(|(role, pool)| ((database.clone(), role.clone()), pool.clone()))
        });
        pools.collect()
    }

    /// Sets the gauges of every database.
    pub(super) fn publish(&self) {
        for roles in self.0.values() {
            let mut stock = Stock::default();
            for (_, pool) in roles {
                let count = pool.count();
                stock.active += count.open - count.idle;
                stock.idle += count.idle;
                stock.waiting += count.waiting;
                stock.size += count.size;
            }
            if let Some((_, pool)) = roles.first() {
                pool.metrics().publish(stock);
            }
        }
    }

    /// Why pools cannot serve.
    pub(super) fn troubles(&self) -> Vec<String> {
        let mut troubles: Vec<String> =
            self.all().filter_map(|pool| pool.trouble().map(|t| t.to_string())).collect();
        troubles.sort();
        troubles.dedup();
        troubles
    }

    /// Closes what is idle, at the end.
    pub(super) fn close(&self) {
        self.all().for_each(|pool| pool.close_idle());
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.0.values().flatten().map(|(_, pool)| pool)
    }
}

/// Makes its rounds until it is aborted.
pub(super) async fn keep(pools: Pools, metrics: PrometheusHandle) {
    let mut round = tokio::time::interval(ROUND);
    loop {
        round.tick().await;
        for pool in pools.all() {
            pool.close_expired(Instant::now());
            pool.check().await;
            pool.keep_stocked(HERE);
        }
        // Samples of histograms are kept until somebody folds them in; between scrapes that is us.
        metrics.run_upkeep();
    }
}
