//! The keeper looks after all pools once a second: servers that are too old or idle for too long are closed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::config::Config;
use crate::observe::metrics::{DatabaseMetrics, Stock};
use crate::pool::Pool;
use crate::pool::server::Shard;

/// How often.
const ROUND: Duration = Duration::from_secs(1);

/// The main thread's reactor: what it opens moves to the thread of its first client.
pub(super) const HERE: Shard = Shard(usize::MAX);

/// All pools, by database and role.
#[derive(Clone, Default)]
pub(super) struct Pools(Arc<ArcSwap<BTreeMap<String, RolePools>>>);

/// The pools of one database, by role.
type RolePools = BTreeMap<String, Arc<Pool>>;

impl Pools {
    /// Only one thread adds.
    pub(super) fn add(&self, database: &str, role: &str, pool: Arc<Pool>) {
        let mut pools = BTreeMap::clone(&self.0.load());
        pools.entry(database.to_owned()).or_default().insert(role.to_owned(), pool);
        self.0.store(Arc::new(pools));
    }

    pub(super) fn get(&self, database: &str, role: &str) -> Option<Arc<Pool>> {
        self.0.load().get(database)?.get(role).cloned()
    }

    pub(super) fn metrics_of(&self, database: &str) -> Option<Arc<DatabaseMetrics>> {
        self.0.load().get(database)?.values().next().map(|pool| pool.shared_metrics())
    }

    /// Those that a configuration names.
    pub(super) fn by_name(&self, config: &Config) -> HashMap<(String, String), Arc<Pool>> {
        let pools = self.0.load();
        let pools = pools.iter().flat_map(|(database, roles)| {
            roles.iter().map(|(role, pool)| ((database.clone(), role.clone()), pool.clone()))
        });
        pools.filter(|((database, role), _)| is_named(config, database, role)).collect()
    }

    /// Those that it does not name serve whoever is connected, and keep nothing ready.
    pub(super) fn retire_others(&self, config: &Config) {
        for (database, roles) in self.0.load().iter() {
            let others = roles.iter().filter(|(role, _)| !is_named(config, database, role));
            others.for_each(|(_, pool)| pool.retire());
        }
    }

    /// Sets the gauges of every database.
    pub(super) fn publish(&self) {
        for roles in self.0.load().values() {
            let mut stock = Stock::default();
            for pool in roles.values() {
                let count = pool.count();
                stock.active += count.open - count.idle;
                stock.idle += count.idle;
                stock.waiting += count.waiting;
                stock.size += count.size;
                stock.oldest = stock.oldest.max(count.oldest);
            }
            if let Some(pool) = roles.values().next() {
                pool.metrics().publish(stock);
            }
        }
    }

    /// Why pools cannot serve.
    pub(super) fn troubles(&self) -> Vec<String> {
        let mut troubles: Vec<String> =
            self.all().iter().filter_map(|pool| pool.unready().map(|t| t.to_string())).collect();
        troubles.sort();
        troubles.dedup();
        troubles
    }

    /// Closes what is idle, at the end.
    pub(super) fn close(&self) {
        self.all().iter().for_each(|pool| pool.close_idle());
    }

    /// No transaction begins, and idle servers are closed, until [`Pools::resume`] (PgBouncer's PAUSE).
    pub(super) fn pause(&self) {
        self.all().iter().for_each(|pool| pool.pause());
    }

    /// Transactions begin again.
    pub(super) fn resume(&self) {
        self.all().iter().for_each(|pool| pool.resume(HERE));
    }

    fn all(&self) -> Vec<Arc<Pool>> {
        self.0.load().values().flat_map(|roles| roles.values().cloned()).collect()
    }
}

fn is_named(config: &Config, database: &str, role: &str) -> bool {
    config.databases.contains_key(database) && config.roles.contains_key(role)
}

/// Makes its rounds until it is aborted.
pub(super) async fn keep(pools: Pools, metrics: PrometheusHandle) {
    let mut round = tokio::time::interval(ROUND);
    loop {
        round.tick().await;
        for pool in pools.all() {
            pool.close_expired(Instant::now());
            pool.check(HERE).await;
            pool.keep_stocked(HERE);
        }
        // Samples of histograms are kept until somebody folds them in; between scrapes that is us.
        metrics.run_upkeep();
    }
}
