//! Whether what was promised is there: rows and checksums, each step's own check, and what was added since without a tenant.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::catalog::Catalog;
use super::ledger::{self, State};
use super::migration::Step;
use super::names::{Name, ident, literal};
use super::treatment::{Scope, Treatment};

/// Rows of a table, and a checksum over some of its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// Of the table.
    pub rows: i64,
    /// As text: it is longer than any integer.
    pub checksum: String,
}

/// Counts and sums up a table over the columns that it had before, and keeps it in the ledger; a sum that was kept before
/// stays.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn sum_up(
    client: &Client,
    table: &Name,
    columns: &[String],
    moment: &str,
) -> Result<Sum, tokio_postgres::Error> {
    let kept =
        "SELECT rows, checksum::text FROM pgtenant.migration_checksums WHERE (table_name, moment) = ($1, $2)";
    if moment == "before"
        && let Some(row) = client.query_opt(kept, &[&table.to_string(), &moment]).await?
    {
        return Ok(Sum { rows: row.get(0), checksum: row.get(1) });
    }
    // As rows are written must not depend on who asks.
    client
        .batch_execute("SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1; SET bytea_output = 'hex'")
        .await?;
    let columns: Vec<_> = columns.iter().map(|name| ident(name)).collect();
    let sql = format!(
        "SELECT count(*), coalesce(sum(hashtextextended(pgtenant_row::text, 0)::numeric), 0)::text FROM (SELECT {} FROM {table}) AS pgtenant_row",
        columns.join(", ")
    );
    let row = client.query_one(&sql, &[]).await?;
    let sum = Sum { rows: row.get(0), checksum: row.get(1) };
    let keep = "INSERT INTO pgtenant.migration_checksums (table_name, moment, rows, checksum) VALUES ($1, $2, $3, $4::text::numeric) \
                ON CONFLICT (table_name, moment) DO UPDATE SET rows = excluded.rows, checksum = excluded.checksum, taken = now()";
    client.execute(keep, &[&table.to_string(), &moment, &sum.rows, &sum.checksum]).await?;
    Ok(sum)
}

/// Tables whose rows are not what they were, in words: somebody wrote, or something is wrong.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn differences(client: &Client) -> Result<Vec<String>, tokio_postgres::Error> {
    let sql = "SELECT format('%s had %s rows and has %s', b.table_name, b.rows, a.rows) \
               || CASE WHEN a.rows = b.rows THEN ', with other values' ELSE '' END \
               FROM pgtenant.migration_checksums AS b JOIN pgtenant.migration_checksums AS a USING (table_name) \
               WHERE b.moment = 'before' AND a.moment = 'after' AND (a.rows, a.checksum) <> (b.rows, b.checksum) ORDER BY 1";
    Ok(client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// What is not as it was promised, in words; nothing where all is well.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn findings(
    client: &Client,
    steps: &[Step],
    treatment: &Treatment,
) -> Result<Vec<String>, super::apply::ApplyError> {
    let mut found = Vec::new();
    let lines = ledger::read(client).await?;
    for step in steps {
        let state = lines.get(&step.id).map(|line| line.state);
        if state != Some(State::Done) {
            found.push(format!("step {} ({}) is not done", step.id, step.title));
            continue;
        }
        let Some(check) = &step.check else { continue };
        match client.query_opt(check.as_str(), &[]).await {
            Ok(row) if row.as_ref().and_then(|row| row.get::<_, Option<bool>>(0)) == Some(true) => {}
            Ok(_) => found.push(format!("step {} ({}) does not hold any more: {check}", step.id, step.title)),
            Err(error) => found.push(format!(
                "step {} ({}) cannot be checked: {}",
                step.id,
                step.title,
                super::connect::causes(&error)
            )),
        }
    }
    let catalog = Catalog::read(client).await.map_err(|error| match error {
        super::catalog::CatalogError::Refused(error) => super::apply::ApplyError::Refused(error),
        other => super::apply::ApplyError::Failed {
            id: "-".to_owned(),
            title: "the schema".to_owned(),
            why: other.to_string(),
        },
    })?;
    let tenants: [Option<Name>; 2] = [treatment.organizations(), treatment.projects()];
    for table in &catalog.tables {
        if tenants.iter().flatten().any(|name| *name == table.name) {
            continue;
        }
        // A partition is whose its whole is.
        let whole = &catalog.whole(table).name;
        match treatment.of(whole).map(|entry| entry.scope) {
            None => {
                found
                    .push(format!("table {} came later and is nobody's: add it to tenancy.toml", table.name));
            }
            Some(Scope::Organization | Scope::Project) if !table.has_policies => {
                found.push(format!("table {} has no row level security", table.name));
            }
            _ => {}
        }
    }
    found.extend(invalid_indexes(client, &catalog).await?);
    Ok(found)
}

async fn invalid_indexes(client: &Client, catalog: &Catalog) -> Result<Vec<String>, tokio_postgres::Error> {
    let by_table: BTreeMap<String, ()> =
        catalog.tables.iter().map(|table| (table.name.to_string(), ())).collect();
    let names: Vec<_> = by_table.keys().map(|name| format!("{}::regclass", literal(name))).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid AND indrelid IN ({}) ORDER BY 1",
        names.join(", ")
    );
    let rows = client.query(&sql, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| {
            format!("index {} is invalid: drop it, or REINDEX INDEX CONCURRENTLY", row.get::<_, &str>(0))
        })
        .collect())
}
