//! How fast batches may follow each other: slower while standbys lag behind or many sessions are at work.

use std::time::Duration;

use tokio_postgres::Client;

/// A standby that is further behind than this is waited for.
const MAX_LAG: Duration = Duration::from_secs(5);

/// While so many other sessions are active, batches pause.
const MAX_ACTIVE: i64 = 50;

/// Between two looks, and how long batches pause where one says so.
const EVERY: Duration = Duration::from_millis(500);

/// Looks until it is dropped, and tells the batches by `pgtenant.migration_pace`.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn keep(client: &Client) -> Result<std::convert::Infallible, tokio_postgres::Error> {
    let look = format!(
        "SELECT coalesce((SELECT extract(epoch FROM max(replay_lag)) > {} FROM pg_stat_replication), false) \
         OR (SELECT count(*) > {MAX_ACTIVE} FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend')",
        MAX_LAG.as_secs()
    );
    let mut paused = None;
    loop {
        let is_crowded: bool = client.query_one(look.as_str(), &[]).await?.get(0);
        let pause = if is_crowded { EVERY.as_secs_f64() * 2.0 } else { 0.0 };
        if paused != Some(is_crowded) {
            client.execute("UPDATE pgtenant.migration_pace SET pause = $1", &[&pause]).await?;
            paused = Some(is_crowded);
        }
        tokio::time::sleep(EVERY).await;
    }
}
