//! How fast batches may follow each other: slower while standbys lag behind or many sessions are at work.

use std::fmt;
use std::time::Duration;

use tokio_postgres::Client;

use super::apply::Progress;

/// A standby that is further behind than this is waited for.
const MAX_LAG: Duration = Duration::from_secs(5);

/// While so many other sessions are active, batches pause.
const MAX_ACTIVE: i64 = 50;

/// Between two looks, and how long batches pause where one says so.
const EVERY: Duration = Duration::from_millis(500);

/// Looks until it is dropped, and tells the batches by `pgtenant.migration_pace`; and people how far a long step is.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn keep(
    client: &Client,
    progress: &dyn Progress,
) -> Result<std::convert::Infallible, tokio_postgres::Error> {
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
        if let Some(row) = client.query_opt(HOW_FAR, &[]).await? {
            let far = Far { done: row.get(0), of: row.get(1), seconds: row.get(2), what: row.get(3) };
            progress.goes_on(&far.to_string());
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Of the step that goes row by row, or of the index that is being built.
const HOW_FAR: &str = "\
    SELECT rows, total, extract(epoch FROM clock_timestamp() - started)::float8, 'rows' \
    FROM pgtenant.migration_steps WHERE state = 'running' AND total > 0 \
    UNION ALL \
    SELECT blocks_done, blocks_total, extract(epoch FROM clock_timestamp() - query_start)::float8, 'blocks (' || phase || ')' \
    FROM pg_stat_progress_create_index JOIN pg_stat_activity USING (pid) \
    WHERE pg_stat_progress_create_index.datname = current_database() AND blocks_total > 0 LIMIT 1";

/// How far something is.
struct Far<'a> {
    done: i64,
    of: i64,
    seconds: f64,
    what: &'a str,
}

impl fmt::Display for Far<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, of, what, .. } = *self;
        write!(f, "{done} of about {of} {what}")?;
        let rate = done as f64 / self.seconds;
        // At first it says nothing.
        if self.seconds < 2.0 || rate <= 0.0 {
            return Ok(());
        }
        let left = Duration::from_secs_f64(((of - done).max(0) as f64 / rate).min(1e9));
        write!(f, ", {rate:.0}/s, {} left", indicatif::HumanDuration(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_is_with_the_rate_and_what_is_left() {
        let far = |done, seconds| Far { done, of: 10_000, seconds, what: "rows" }.to_string();
        assert_eq!(far(0, 1.0), "0 of about 10000 rows");
        assert_eq!(far(2_500, 5.0), "2500 of about 10000 rows, 500/s, 15 seconds left");
        assert_eq!(far(12_000, 5.0), "12000 of about 10000 rows, 2400/s, 0 seconds left");
    }
}
