//! What would make a migration fail later fails before its first step: nothing is changed yet.

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::mapping::Mapping;
use super::migrate::{Stop, Tell};
use super::migration::{Design, TenantColumn, Tenanted};
use super::names::{ident, idents};
use super::treatment::{Otherwise, Source};
use super::{apply, crossing};

/// A standby that is further behind than this, in seconds, is told of: batches wait for it.
const LAG: f64 = 5.0;

/// Connections that a migration takes: its own, one that looks how busy the server is, and one that a person looks with.
const CONNECTIONS: i32 = 3;

fn refused<T>(why: impl std::fmt::Display) -> Result<T, Stop> {
    Err(Stop::Failed(format!("{why}; nothing was changed")))
}

/// Its version, the role's rights, free connections; and who will be waited for.
///
/// # Errors
/// What is missing.
pub async fn server(client: &Client, tell: &dyn Tell) -> Result<(), Stop> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int, rolsuper OR rolbypassrls, rolsuper, pg_is_in_recovery(), \
             current_setting('max_connections')::int - (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend') \
             FROM pg_roles WHERE rolname = current_user",
            &[],
        )
        .await?;
    let (version, bypasses, is_superuser, is_standby, free): (i32, bool, bool, bool, i32) =
        (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
    if version < 140_000 {
        return refused("PostgreSQL 14 or newer is needed");
    }
    if is_standby {
        return refused("this server is a standby; use the primary");
    }
    if !bypasses {
        return refused(
            "this role does not bypass row level security: it would not see every row, and could neither back up nor verify",
        );
    }
    if !is_superuser {
        return refused(
            "this role is no superuser: it could not make roles, nor keep triggers from what is not theirs",
        );
    }
    if free < CONNECTIONS {
        return refused("fewer than three connections are free (max_connections)");
    }
    for long in apply::blockers(client).await {
        tell.result(&format!("{long}: CREATE INDEX CONCURRENTLY waits for it"));
    }
    let behind = "SELECT format('standby %s is %s s behind', application_name, extract(epoch FROM replay_lag)::integer) \
                  FROM pg_stat_replication WHERE extract(epoch FROM replay_lag)::float8 > $1 ORDER BY 1";
    for row in client.query(behind, &[&LAG]).await? {
        tell.result(&format!("{}: batches wait until it has caught up", row.get::<_, &str>(0)));
    }
    Ok(())
}

/// Rows that would find no organization, rows that refer to nothing, and indexes that are not whole.
///
/// # Errors
/// Which rows, and what can be done.
pub async fn rows(client: &Client, design: &Design<'_>, tell: &dyn Tell) -> Result<(), Stop> {
    let mut wrong = crossing::owners_that_are_missing(client, design).await?;
    for one in &design.tables {
        wrong.extend(crossing::rows(client, design, one).await?);
        let (table, this) = (&one.table.name, ident(&one.table.name.name));
        let rows = one.own_rows(design.catalog);
        tell.says(&format!("looking at rows of {table}"));
        for index in one.table.indexes.iter().filter(|index| !index.is_valid) {
            tell.result(&format!(
                "index {} of {table} is invalid, and is left out: drop it, or REINDEX INDEX CONCURRENTLY",
                index.name
            ));
        }
        let key = one.table.primary_key().map_or_else(|| "ctid".to_owned(), |key| idents(&key.columns));
        for column in one.tenant_columns() {
            let mapping = match column.source {
                Source::Mapping(file) => design.treatment.mappings.get(file),
                _ => None,
            };
            if let Some(mapping) = mapping {
                wrong.extend(strangers(client, design, one, column, mapping).await?);
                if !has_arrays(mapping, one) {
                    wrong.extend(misfits(client, one, mapping).await?);
                }
            }
            if one.entry.otherwise != Otherwise::Stop {
                continue;
            }
            let given: Vec<Vec<&str>> = mapping.map_or_else(Vec::new, Mapping::by_column);
            let given: Vec<&(dyn ToSql + Sync)> =
                given.iter().map(|one| one as &(dyn ToSql + Sync)).collect();
            // What a path leads to is looked at where it leads.
            let missing = match column.source {
                Source::Mapping(_) => match mapping {
                    // A type of an array has no array of its own.
                    Some(mapping) if has_arrays(mapping, one) => continue,
                    Some(mapping) => format!("NOT {}", is_in(mapping, one)),
                    None => continue,
                },
                Source::Through(columns) if !one.table.are_not_null(columns) => columns
                    .iter()
                    .map(|name| format!("{} IS NULL", ident(name)))
                    .collect::<Vec<_>>()
                    .join(" OR "),
                Source::Column(name) if !one.table.are_not_null(std::slice::from_ref(name)) => {
                    format!("{} IS NULL", ident(name))
                }
                Source::Expression(sql) => format!("({sql}) IS NULL"),
                _ => continue,
            };
            let sql = format!(
                "WITH pgtenant_missing AS (SELECT {key} FROM {rows} AS {this} WHERE {missing}) SELECT (SELECT count(*) FROM pgtenant_missing), \
                 (SELECT string_agg(to_jsonb(pgtenant_some)::text, ', ') FROM (SELECT * FROM pgtenant_missing LIMIT 5) AS pgtenant_some)"
            );
            let row = client.query_one(sql.as_str(), &given).await?;
            let count: i64 = row.get(0);
            if count > 0 {
                let some: String = row.get(1);
                wrong.push(format!(
                    "{count} rows of {table} would find no {}, the first of them {some}: correct them, or say otherwise = \"quarantine\" \
                     (or \"default\") in tenancy.toml and plan again",
                    column.name
                ));
            }
        }
        for reference in one.table.foreign_keys().filter(|key| !key.is_validated) {
            let Some(target) = &reference.target else { continue };
            let pairs = reference.columns.iter().zip(&reference.target_columns);
            let on: Vec<_> =
                pairs.map(|(own, its)| format!("parent.{} = child.{}", ident(its), ident(own))).collect();
            let given: Vec<_> =
                reference.columns.iter().map(|own| format!("child.{} IS NOT NULL", ident(own))).collect();
            let sql = format!(
                "SELECT count(*) FROM {rows} AS child WHERE {} AND NOT EXISTS (SELECT FROM {target} AS parent WHERE {})",
                given.join(" AND "),
                on.join(" AND ")
            );
            let count: i64 = client.query_one(sql.as_str(), &[]).await?.get(0);
            if count > 0 {
                wrong.push(format!(
                    "{count} rows of {table} refer to nothing by {}, which was never validated: correct them first",
                    reference.name
                ));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { refused(wrong.join("\n")) }
}

/// Lines of a CSV file that its table in the database could not have: two that are equal as values of their columns, or one that
/// is longer than its column.
async fn misfits(client: &Client, one: &Tenanted<'_>, mapping: &Mapping) -> Result<Option<String>, Stop> {
    let given = mapping.by_column();
    let given: Vec<&(dyn ToSql + Sync)> = given.iter().map(|one| one as &(dyn ToSql + Sync)).collect();
    let (lines, names) = (unnested(mapping, one), idents(&mapping.columns));
    let is_cut = mapping.columns.iter().map(|name| {
        let kind = one.table.column(name).map_or("text", |column| &column.kind);
        format!("{0} IS DISTINCT FROM {0}::{kind}", ident(name))
    });
    let sql = format!(
        "SELECT (SELECT to_jsonb(pgtenant_some)::text FROM (SELECT {names} FROM {lines} GROUP BY {names} HAVING count(*) > 1 LIMIT 1) AS pgtenant_some), \
         (SELECT to_jsonb(pgtenant_some)::text FROM (SELECT {names} FROM {lines} WHERE {} LIMIT 1) AS pgtenant_some)",
        is_cut.collect::<Vec<_>>().join(" OR ")
    );
    let row = client.query_one(sql.as_str(), &given).await?;
    let (twice, cut): (Option<String>, Option<String>) = (row.get(0), row.get(1));
    let table = &one.table.name;
    Ok(match (twice, cut) {
        (Some(line), _) => Some(format!(
            "two lines of the file for {table} are the same {line}: leave one of them in it and plan again"
        )),
        (_, Some(line)) => Some(format!(
            "a line of the file for {table} does not fit into its columns: {line}. Correct it and plan again"
        )),
        _ => None,
    })
}

fn has_arrays(mapping: &Mapping, one: &Tenanted<'_>) -> bool {
    let columns = mapping.columns.iter().filter_map(|name| one.table.column(name));
    columns.into_iter().any(|column| column.kind.ends_with("[]"))
}

/// A type without its length: a cast to it would cut off what is longer.
fn without_length(kind: &str) -> String {
    let Some((name, rest)) = kind.split_once('(') else { return kind.to_owned() };
    let behind = rest.split_once(')').map_or("", |(_, behind)| behind);
    match name {
        "character" => "bpchar".to_owned(),
        "bit" => "varbit".to_owned(),
        _ => format!("{name}{behind}"),
    }
}

/// That a CSV file has a line for a row, whose columns are parameters.
fn is_in(mapping: &Mapping, one: &Tenanted<'_>) -> String {
    let this = ident(&one.table.name.name);
    let on = mapping
        .columns
        .iter()
        .map(|name| format!("pgtenant_mapping.{} = {this}.{}", ident(name), ident(name)));
    format!("EXISTS (SELECT FROM {} WHERE {})", unnested(mapping, one), on.collect::<Vec<_>>().join(" AND "))
}

/// The lines of a CSV file, whose columns are parameters, as values of the table's types.
fn unnested(mapping: &Mapping, one: &Tenanted<'_>) -> String {
    let kinds = mapping.columns.iter().enumerate().map(|(n, name)| {
        let kind =
            one.table.column(name).map_or_else(|| "text".to_owned(), |column| without_length(&column.kind));
        format!("${}::text[]::{kind}[]", n + 1)
    });
    let (kinds, names) = (kinds.collect::<Vec<_>>().join(", "), idents(&mapping.columns));
    format!("unnest({kinds}) AS pgtenant_mapping ({names})")
}

/// Ids of a CSV file that no organization, or project, has.
async fn strangers(
    client: &Client,
    design: &Design<'_>,
    one: &Tenanted<'_>,
    column: &TenantColumn<'_>,
    mapping: &Mapping,
) -> Result<Option<String>, Stop> {
    let is_project = one.project.as_ref().is_some_and(|project| project.name == column.name);
    let (tenants, table, is_new) = match is_project {
        true => (&design.treatment.projects, &design.projects, design.makes_projects),
        false => (&design.treatment.organizations, &design.organizations, design.makes_organizations),
    };
    // What is made has the default one in it, and whom else the file names is looked at once it is there.
    if is_new {
        return Ok(None);
    }
    let sql = format!(
        "SELECT count(*), min(id::text) FROM (SELECT DISTINCT id FROM unnest($1::text[]::{}[]) AS given (id)) AS pgtenant_given \
         WHERE NOT EXISTS (SELECT FROM {table} AS tenant WHERE tenant.{} = pgtenant_given.id)",
        tenants.kind.sql(),
        ident(&tenants.id)
    );
    let ids: Vec<&str> = mapping.lines.iter().filter_map(|line| line.last()).map(String::as_str).collect();
    let row = client.query_one(sql.as_str(), &[&ids]).await?;
    let (count, first): (i64, Option<String>) = (row.get(0), row.get(1));
    Ok(first.map(|first| {
        format!(
            "{count} ids that rows of {} would find are not in {table}, the first of them {first}: insert them, or correct the file and plan again",
            one.table.name
        )
    }))
}

/// Whether there is room for so many more bytes, where this machine is the server's; elsewhere it is told how much is needed.
///
/// # Errors
/// There is not.
pub async fn disk(client: &Client, needed: u64, tell: &dyn Tell) -> Result<(), Stop> {
    let sql = "SELECT current_setting('data_directory'), coalesce(host(inet_server_addr()) IN ('127.0.0.1', '::1'), true)";
    let row = client.query_one(sql, &[]).await?;
    let (directory, is_near): (String, bool) = (row.get(0), row.get(1));
    let megabytes = |bytes: u64| bytes.div_ceil(1 << 20);
    let free = is_near.then(|| rustix::fs::statvfs(&directory).ok()).flatten();
    match free.map(|found| found.f_bavail * found.f_frsize) {
        Some(free) if free < needed => refused(format!(
            "about {} MB are needed on the server's disk, and {} are free in {directory}",
            megabytes(needed),
            megabytes(free)
        )),
        Some(_) => Ok(()),
        None => {
            let much = megabytes(needed);
            tell.result(&format!("about {much} MB are needed on the server's disk; from here it is not to be seen whether they are free"));
            Ok(())
        }
    }
}
