//! Rows that refer to another organization's, and organizations that rows are given and nobody has: both are told before the first step.

use tokio_postgres::Client;

use super::migrate::Stop;
use super::migration::{Design, Tenanted, is_given, organization_of, owners, references};
use super::names::{ident, idents, literal};
use super::treatment::Source;

/// What no foreign key with the organization in it would allow, by table.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn rows(client: &Client, design: &Design<'_>, one: &Tenanted<'_>) -> Result<Vec<String>, Stop> {
    let mut wrong = Vec::new();
    for reference in references(design).iter().filter(|reference| reference.one.table.name == one.table.name)
    {
        let (Some(key), Some(parent)) = (reference.replaces, design.tenanted(&reference.target)) else {
            continue;
        };
        let both = (&one.organization.source, &parent.organization.source);
        // A row that finds its organization by this key, or all of both tables: there is nothing to be compared.
        let is_same = matches!(both, (Source::Default, Source::Default))
            || matches!(both.0, Source::Through(columns) if *columns == key.columns);
        let whose =
            [(one, "child"), (parent, "parent")].map(|(one, row)| organization_of(design, one, row, 0));
        let ([Some(own), Some(its)], false) = (whose, is_same) else { continue };
        let pairs = key.columns.iter().zip(&key.target_columns);
        let on: Vec<_> =
            pairs.map(|(own, its)| format!("parent.{} = child.{}", ident(its), ident(own))).collect();
        let shown =
            one.table.primary_key().map_or_else(|| vec!["ctid".to_owned()], |key| key.columns.clone());
        let shown = shown.iter().map(|name| format!("child.{}", ident(name))).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "WITH pgtenant_crossing AS (SELECT {shown} FROM {} AS child JOIN {} AS parent ON {} WHERE {own}::text <> {its}::text) \
             SELECT (SELECT count(*) FROM pgtenant_crossing), \
             (SELECT string_agg(to_jsonb(pgtenant_some)::text, ', ') FROM (SELECT * FROM pgtenant_crossing LIMIT 5) AS pgtenant_some)",
            one.own_rows(design.catalog),
            parent.own_rows(design.catalog),
            on.join(" AND "),
        );
        let row = client.query_one(sql.as_str(), &[]).await?;
        let (count, some): (i64, Option<String>) = (row.get(0), row.get(1));
        if let Some(some) = some {
            wrong.push(format!(
                "{count} rows of {} refer by {} ({}) to rows of another organization, the first of them {some}: correct them, or drop that \
                 key, and plan again",
                one.table.name,
                key.name,
                idents(&key.columns)
            ));
        }
    }
    Ok(wrong)
}

/// Organizations of `tenancy.toml` that the application's own table does not have.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn owners_that_are_missing(client: &Client, design: &Design<'_>) -> Result<Vec<String>, Stop> {
    if design.makes_organizations {
        return Ok(Vec::new());
    }
    let (table, tenants) = (&design.organizations, &design.treatment.organizations);
    let mut wrong = Vec::new();
    for owner in owners(design)
        .into_iter()
        .filter(|owner| **owner == design.treatment.default && is_given(design, owner))
    {
        let own = literal(&owner.organization);
        let sql = format!("SELECT EXISTS (SELECT FROM {table} WHERE {} = {own})", ident(&tenants.id));
        if !client.query_one(sql.as_str(), &[]).await?.get::<_, bool>(0) {
            wrong.push(format!(
                "{table} has no row {}, which rows of tables that say \"default\" are given: insert it, or name another one in [default] and plan \
                 again",
                owner.organization
            ));
        }
    }
    Ok(wrong)
}
