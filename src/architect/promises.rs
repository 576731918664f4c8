//! What isolation rests on, as it was when a migration was done: whatever is changed afterwards, `verify` tells.

use tokio_postgres::Client;

use super::treatment::Treatment;

const SQL: &str = include_str!("sql/promises.sql");

/// Writes down how it is now.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn keep(client: &Client, treatment: &Treatment) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN; SET LOCAL search_path = pg_catalog").await?;
    client.batch_execute("DELETE FROM pgtenant.migration_promises").await?;
    let sql = format!("INSERT INTO pgtenant.migration_promises (object, definition) {SQL}");
    client.execute(&sql, &[&treatment.roles.application]).await?;
    client.batch_execute("COMMIT").await
}

/// What is not as it was then, in words; nothing where nothing was written down. What `pgtenant install` brings later is no change.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn broken(client: &Client, treatment: &Treatment) -> Result<Vec<String>, tokio_postgres::Error> {
    let is_kept = "SELECT to_regclass('pgtenant.migration_promises') IS NOT NULL";
    if !client.query_one(is_kept, &[]).await?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    client.batch_execute("BEGIN; SET LOCAL search_path = pg_catalog").await?;
    let sql = format!(
        "WITH now AS ({SQL}), kept AS (SELECT object, definition FROM pgtenant.migration_promises) \
         SELECT CASE WHEN now.object IS NULL THEN format('%s is gone: it was %s', kept.object, kept.definition) \
             WHEN kept.object IS NULL THEN format('%s came later: %s', now.object, now.definition) \
             ELSE format('%s was changed: it was %s, and is %s', now.object, kept.definition, now.definition) END \
         FROM now FULL JOIN kept USING (object) \
         WHERE now.definition IS DISTINCT FROM kept.definition AND EXISTS (SELECT FROM kept) \
             AND (kept.object IS NOT NULL OR now.object ~ '^(policy|view|rights) ') ORDER BY 1"
    );
    let found = client.query(&sql, &[&treatment.roles.application]).await;
    client.batch_execute("COMMIT").await?;
    Ok(found?.iter().map(|row| row.get(0)).collect())
}
