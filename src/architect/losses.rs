//! What rolling back would lose, or mix up: then it is refused before anything is undone.

use tokio_postgres::Client;

use super::migrate::Stop;
use super::migration::{Step, items, mapping_table};
use super::names::{Name, ident, literal};
use super::treatment::{Entry, Otherwise, Source, Treatment};

fn refused<T>(why: impl std::fmt::Display) -> Result<T, Stop> {
    Err(Stop::Failed(format!("{why}; nothing was changed")))
}

/// Nothing is lost: the audit log is empty, every row's organization and project can be found without their columns, and tables of tenants that
/// go have nobody in them who came later.
///
/// # Errors
/// What would be lost.
pub async fn none(client: &Client, treatment: &Treatment, undo: &[Step]) -> Result<(), Stop> {
    if there(client, "pgtenant.audit_log").await? {
        let kept: i64 = client.query_one("SELECT count(*) FROM pgtenant.audit_log", &[]).await?.get(0);
        if kept > 0 {
            return refused(format!(
                "pgtenant.audit_log has {kept} rows, which would be lost: save them, then empty it (ALTER TABLE pgtenant.audit_log DISABLE \
                 TRIGGER append_only first)"
            ));
        }
    }
    owned(client, treatment, undo).await?;
    doubled(client, undo).await?;
    let (default, quarantine) = (&treatment.default, &treatment.quarantine);
    if let Some(name) = treatment.organizations()
        && undo.iter().any(|step| step.sql.contains(&format!("DROP TABLE IF EXISTS {name}")))
        && there(client, &name.to_string()).await?
    {
        let own: Vec<_> =
            std::iter::once(default).chain(quarantine).map(|owner| literal(&owner.organization)).collect();
        let sql = format!(
            "SELECT count(*) FROM {name} WHERE {} NOT IN ({})",
            ident(&treatment.organizations.id),
            own.join(", ")
        );
        let others: i64 = client.query_one(sql.as_str(), &[]).await?.get(0);
        if others > 0 {
            return refused(format!(
                "{name} has {others} organizations that came later, and they would be lost with it"
            ));
        }
    }
    for (text, entry) in &treatment.tables {
        let Some(table) = Name::parse(text) else { continue };
        for (source, column, is_project) in [
            (&entry.organization, &treatment.organizations.column, false),
            (&entry.project, &treatment.projects.column, true),
        ] {
            let has_column = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = $2 AND NOT attisdropped)";
            if !client.query_one(has_column, &[&text, column]).await?.get::<_, bool>(0) {
                continue;
            }
            let Some(value) =
                value(client, treatment, (&table, entry), (source.as_ref(), column, is_project)).await?
            else {
                continue;
            };
            let (this, column) = (ident(&table.name), ident(column));
            let sql = format!(
                "SELECT count(*), min({this}.{column}::text) FROM {table} AS {this} WHERE {this}.{column} IS DISTINCT FROM {value}"
            );
            let row = client.query_one(sql.as_str(), &[]).await?;
            let count: i64 = row.get(0);
            if count > 0 {
                let one: Option<String> = row.get(1);
                return refused(format!(
                    "{count} rows of {table} belong to others than what is left would say ({column} {}): rolling back would mix them up",
                    one.unwrap_or_default()
                ));
            }
        }
    }
    Ok(())
}

/// With a role that the migration made go the things that it owns: there must be none.
async fn owned(client: &Client, treatment: &Treatment, undo: &[Step]) -> Result<(), Stop> {
    let goes =
        |role: &&String| undo.iter().any(|step| step.sql.contains(&format!("DROP OWNED BY {}", ident(role))));
    for role in treatment.roles.application.iter().filter(goes) {
        let sql = "SELECT pg_describe_object(classid, objid, objsubid) FROM pg_shdepend \
                   WHERE refclassid = 'pg_authid'::regclass AND refobjid = (SELECT oid FROM pg_roles WHERE rolname = $1) AND deptype = 'o' \
                   AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1 LIMIT 1";
        if let Some(row) = client.query_opt(sql, &[role]).await? {
            let what: String = row.get(0);
            return refused(format!(
                "role {role} owns {what}, which would go with it: REASSIGN OWNED BY {} TO another role first",
                ident(role)
            ));
        }
    }
    Ok(())
}

/// What is to be unique over all again must be so.
async fn doubled(client: &Client, undo: &[Step]) -> Result<(), Stop> {
    const MADE: &str = "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS ";
    for sql in undo.iter().flat_map(|step| &step.sql) {
        let Some((name, table, keys, filter)) = sql.strip_prefix(MADE).and_then(unique_of) else { continue };
        let kind = "SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass($1)";
        let only = match client.query_opt(kind, &[&table]).await?.map(|row| row.get(0)) {
            None => continue,
            Some(true) => "",
            // Tables that inherit from it have rows of their own.
            Some(false) => "ONLY ",
        };
        let some: Vec<_> = keys.iter().map(|key| format!("({key}) IS NOT NULL")).collect();
        let sql = format!(
            "SELECT ({})::text FROM {only}{table} WHERE {} AND ({filter}) GROUP BY {} HAVING count(*) > 1 LIMIT 1",
            keys.join(", "),
            some.join(" AND "),
            keys.join(", "),
        );
        if let Some(row) = client.query_opt(sql.as_str(), &[]).await? {
            let what: Option<String> = row.get(0);
            return refused(format!(
                "several organizations have {} in {table}, where {name} would be unique over all again: change that first",
                what.unwrap_or_default()
            ));
        }
    }
    Ok(())
}

/// An index's name, its table, its keys as they stand in it, and its condition; nothing where one of the keys has an operator class,
/// an order or a collation of its own.
fn unique_of(rest: &str) -> Option<(&str, &str, Vec<&str>, &str)> {
    let (name, rest) = rest.split_once(" ON ")?;
    let (table, rest) = rest.split_once(" USING btree (")?;
    let (keys, behind) = items(rest);
    let keys: Vec<_> = keys.into_iter().map(str::trim).collect();
    let is_plain = keys.iter().all(|key| key.ends_with(')') || key.ends_with('"') || !key.contains(' '));
    let filter = behind.split_once(" WHERE ").map_or("true", |(_, filter)| filter);
    is_plain.then_some((name, table, keys, filter))
}

async fn there(client: &Client, name: &str) -> Result<bool, tokio_postgres::Error> {
    Ok(client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&name]).await?.get(0))
}

/// What would say whose a row is once the column is gone; nothing where the column stays, or a foreign key says it.
async fn value(
    client: &Client,
    treatment: &Treatment,
    (table, entry): (&Name, &Entry),
    (source, column, is_project): (Option<&Source>, &str, bool),
) -> Result<Option<String>, tokio_postgres::Error> {
    let found = match source {
        Some(Source::Default) => {
            let default = &treatment.default;
            return Ok(Some(literal(if is_project { &default.project } else { &default.organization })));
        }
        Some(Source::Expression(sql)) => format!("({sql})"),
        Some(Source::Mapping(_)) => {
            let mapping = mapping_table(table, column);
            if !there(client, &mapping.to_string()).await? {
                return Ok(None);
            }
            let keys = "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped \
                        AND attname <> 'pgtenant_id'";
            let rows = client.query(keys, &[&mapping.to_string()]).await?;
            let this = ident(&table.name);
            let on = rows.iter().map(|row| ident(row.get(0)));
            let on: Vec<_> = on.map(|key| format!("pgtenant_mapping.{key} = {this}.{key}")).collect();
            format!(
                "(SELECT pgtenant_mapping.pgtenant_id FROM {mapping} AS pgtenant_mapping WHERE {})",
                on.join(" AND ")
            )
        }
        Some(Source::Column(_) | Source::Through(_)) | None => return Ok(None),
    };
    let otherwise = treatment.otherwise(entry).filter(|_| entry.otherwise != Otherwise::Stop);
    Ok(Some(match otherwise {
        Some(owner) => {
            format!(
                "coalesce({found}, {})",
                literal(if is_project { &owner.project } else { &owner.organization })
            )
        }
        None => found,
    }))
}
