//! Prometheus metrics: handles registered once and held, never looked up on the path of a query.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Installs the recorder for the whole process and describes every metric.
///
/// # Errors
/// A recorder is installed already.
pub fn install(budget: Duration) -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &buckets(budget))?
        .install_recorder()?;
    describe();
    gauge!("pgtenant_budget_seconds").set(budget.as_secs_f64());
    gauge!("pgtenant_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

/// Upper edges in seconds, one of them exactly the budget.
pub fn buckets(budget: Duration) -> Vec<f64> {
    const EDGES_US: [u64; 17] = [
        50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
        2_000_000, 5_000_000, 10_000_000,
    ];
    let mut edges: Vec<Duration> = EDGES_US.iter().map(|us| Duration::from_micros(*us)).collect();
    edges.push(budget);
    edges.sort();
    edges.dedup();
    edges.iter().map(Duration::as_secs_f64).collect()
}

fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_histogram!("pgtenant_query_seconds", "First client byte of a query to its ReadyForQuery.");
    describe_histogram!(
        "pgtenant_phase_seconds",
        "A query's time by phase: wait (for a server), context (binding, where PostgreSQL answers it by itself), server (PostgreSQL at work), client (reading)."
    );
    describe_counter!("pgtenant_queries_total", "Queries answered: a ReadyForQuery each.");
    describe_counter!("pgtenant_over_budget_total", "Queries that took longer than the budget.");
    describe_counter!("pgtenant_errors_total", "ErrorResponses from PostgreSQL by class of SQLSTATE.");
    describe_gauge!("pgtenant_clients", "Connected clients by state: active (on a server), waiting, idle.");
    describe_gauge!("pgtenant_servers", "Server connections by state: active, idle.");
    describe_gauge!("pgtenant_waiting_clients", "Clients that wait for a server.");
    describe_gauge!("pgtenant_kept_bytes", "Texts of prepared statements and long messages that are kept.");
    describe_gauge!("pgtenant_oldest_wait_seconds", "How long the first of them has waited.");
    describe_counter!(
        "pgtenant_shed_queries_total",
        "Queries refused at once, because no server would have come free within wait_timeout."
    );
    describe_gauge!("pgtenant_pool_size", "Server connections that the database's pools may open.");
    describe_counter!(
        "pgtenant_binds_total",
        "Leases by kind: reused (bound already), bound (clean), switched (cleaned first)."
    );
    describe_counter!(
        "pgtenant_bind_failures_total",
        "Bindings that PostgreSQL did not acknowledge; both connections closed."
    );
    describe_counter!(
        "pgtenant_seal_refusals_total",
        "Seals that the database refused; the server was closed."
    );
    describe_counter!("pgtenant_sign_ins_total", "Clients' sign-ins by result.");
    describe_counter!(
        "pgtenant_jwks_refreshes_total",
        "Fetches of an issuer's JWK Set by result: ok, failed (no answer, or another), unusable (no usable key)."
    );
    describe_gauge!("pgtenant_jwks_age_seconds", "Since an issuer's JWK Set was last fetched with success.");
    describe_gauge!("pgtenant_budget_seconds", "The latency that every query must stay within.");
    describe_gauge!("pgtenant_build_info", "Constant 1, labelled with the version.");
}

/// The handles of one database.
pub struct DatabaseMetrics {
    query: Histogram,
    wait: Histogram,
    context: Histogram,
    server: Histogram,
    client: Histogram,
    queries: Counter,
    over_budget: Counter,
    /// Leases of a server that was bound to an equal context.
    pub reused: Counter,
    /// Leases of a clean server.
    pub bound: Counter,
    /// Leases of a server that had to be cleaned first.
    pub switched: Counter,
    /// Bindings that failed.
    pub bind_failures: Counter,
    /// Seals that the database refused.
    pub seal_refusals: Counter,
    /// Queries that would have waited longer than they may.
    pub shed: Counter,
    connected: AtomicUsize,
    clients_active: Gauge,
    clients_waiting: Gauge,
    clients_idle: Gauge,
    servers_active: Gauge,
    servers_idle: Gauge,
    waiting: Gauge,
    oldest: Gauge,
    pool_size: Gauge,
    budget: Duration,
    name: String,
}

/// A signed-in client that is counted until this is dropped.
pub struct Arrived<'a>(&'a DatabaseMetrics);

impl Drop for Arrived<'_> {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the pools of a database hold at one moment; gauges are set from it when Prometheus asks, not on every lease.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stock {
    /// Servers on lease, or being opened or cleaned.
    pub active: usize,
    /// Servers on the shelf.
    pub idle: usize,
    /// Clients in line.
    pub waiting: usize,
    /// How long the first of them has waited.
    pub oldest: Duration,
    /// Sum of the pools' sizes.
    pub size: usize,
}

/// The times of one query by phase.
#[derive(Debug, Clone, Copy)]
pub struct QueryTimes {
    /// First client byte.
    pub started: Instant,
    /// A server was there.
    pub leased: Instant,
    /// Its binding was acknowledged.
    pub bound: Instant,
    /// ReadyForQuery arrived.
    pub ready: Instant,
    /// Of that, spent while the client did not take its results.
    pub client: Duration,
}

impl DatabaseMetrics {
    /// Registers the handles for `database`.
    pub fn new(database: &str, budget: Duration) -> Self {
        let db = || database.to_owned();
        let phase =
            |phase: &'static str| histogram!("pgtenant_phase_seconds", "database" => db(), "phase" => phase);
        let bind = |kind: &'static str| counter!("pgtenant_binds_total", "database" => db(), "kind" => kind);
        let clients = |state: &'static str| gauge!("pgtenant_clients", "database" => db(), "state" => state);
        let servers = |state: &'static str| gauge!("pgtenant_servers", "database" => db(), "state" => state);
        Self {
            query: histogram!("pgtenant_query_seconds", "database" => db()),
            wait: phase("wait"),
            context: phase("context"),
            server: phase("server"),
            client: phase("client"),
            queries: counter!("pgtenant_queries_total", "database" => db()),
            over_budget: counter!("pgtenant_over_budget_total", "database" => db()),
            reused: bind("reused"),
            bound: bind("bound"),
            switched: bind("switched"),
            bind_failures: counter!("pgtenant_bind_failures_total", "database" => db()),
            seal_refusals: counter!("pgtenant_seal_refusals_total", "database" => db()),
            shed: counter!("pgtenant_shed_queries_total", "database" => db()),
            connected: AtomicUsize::new(0),
            clients_active: clients("active"),
            clients_waiting: clients("waiting"),
            clients_idle: clients("idle"),
            servers_active: servers("active"),
            servers_idle: servers("idle"),
            waiting: gauge!("pgtenant_waiting_clients", "database" => db()),
            oldest: gauge!("pgtenant_oldest_wait_seconds", "database" => db()),
            pool_size: gauge!("pgtenant_pool_size", "database" => db()),
            budget,
            name: database.to_owned(),
        }
    }

    /// Records one answered query.
    pub fn query(&self, times: &QueryTimes) {
        let total = times.ready.saturating_duration_since(times.started);
        self.query.record(total);
        self.wait.record(times.leased.saturating_duration_since(times.started));
        self.context.record(times.bound.saturating_duration_since(times.leased));
        let after_binding = times.ready.saturating_duration_since(times.bound);
        self.server.record(after_binding.saturating_sub(times.client));
        self.client.record(times.client);
        self.queries.increment(1);
        if total > self.budget {
            self.over_budget.increment(1);
        }
    }

    /// Counts a signed-in client until the guard is dropped.
    pub fn arrive(&self) -> Arrived<'_> {
        self.connected.fetch_add(1, Ordering::Relaxed);
        Arrived(self)
    }

    /// Sets the gauges from what the pools hold now.
    pub fn publish(&self, stock: Stock) {
        let connected = self.connected.load(Ordering::Relaxed);
        // A server that is opened or cleaned has no client; then fewer clients are active than servers.
        let active = stock.active.min(connected.saturating_sub(stock.waiting));
        self.clients_active.set(active as f64);
        self.clients_waiting.set(stock.waiting as f64);
        self.clients_idle.set(connected.saturating_sub(active + stock.waiting) as f64);
        self.servers_active.set(stock.active as f64);
        self.servers_idle.set(stock.idle as f64);
        self.waiting.set(stock.waiting as f64);
        self.oldest.set(stock.oldest.as_secs_f64());
        self.pool_size.set(stock.size as f64);
    }

    /// Counts an ErrorResponse by the class of its SQLSTATE. Rare enough to look its counter up.
    pub fn error(&self, sqlstate: &str) {
        let class = sqlstate.get(..2).filter(|c| c.bytes().all(|b| b.is_ascii_alphanumeric()));
        let class = class.unwrap_or("XX").to_owned();
        counter!("pgtenant_errors_total", "database" => self.name.clone(), "sqlstate_class" => class)
            .increment(1);
    }
}

/// Bytes that clients have the proxy keep beyond their buffers.
pub fn kept(bytes: usize) {
    gauge!("pgtenant_kept_bytes").set(bytes as f64);
}

/// Counts sign-ins by their result: `ok`, or why not.
pub fn sign_in(result: &'static str) {
    counter!("pgtenant_sign_ins_total", "result" => result).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_an_exact_edge() {
        assert!(buckets(Duration::from_millis(200)).contains(&0.2));
        let odd = buckets(Duration::from_millis(137));
        assert!(odd.contains(&0.137) && odd.is_sorted());
    }
}
