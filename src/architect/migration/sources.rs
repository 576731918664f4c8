//! How a row finds whose it is: as an expression over its columns, and the tables that such expressions look in.

use super::design::{Design, TenantColumn, Tenanted};
use super::{How, Moves};
use crate::architect::names::{Name, composed, ident, idents, literal};
use crate::architect::treatment::Source;

/// So many lines of a mapping stand in one statement.
const LINES: usize = 500;

/// What a row's column is set to; nothing where it is what it is, or what an INSERT says.
pub(super) fn value(design: &Design<'_>, one: &Tenanted<'_>, column: &TenantColumn<'_>) -> Option<String> {
    value_and(design, one, column, "")
}

/// The same, where what a row hangs on is as it is at that moment, and stays so until the transaction is over: nobody gives it away
/// meanwhile. As a foreign key does it.
pub(super) fn value_held(
    design: &Design<'_>,
    one: &Tenanted<'_>,
    column: &TenantColumn<'_>,
) -> Option<String> {
    value_and(design, one, column, " FOR KEY SHARE")
}

fn value_and(
    design: &Design<'_>,
    one: &Tenanted<'_>,
    column: &TenantColumn<'_>,
    lock: &str,
) -> Option<String> {
    let is_project = one.project.as_ref().is_some_and(|project| project.name == column.name);
    let otherwise = design.treatment.otherwise(one.entry);
    let otherwise =
        otherwise.map(|owner| literal(if is_project { &owner.project } else { &owner.organization }));
    match (found(design, one, column, lock), otherwise) {
        (Some(found), Some(otherwise)) => Some(format!("coalesce({found}, {otherwise})")),
        (None, Some(otherwise)) => matches!(column.source, Source::Column(_)).then_some(otherwise),
        (found, None) => found,
    }
}

fn found(design: &Design<'_>, one: &Tenanted<'_>, column: &TenantColumn<'_>, lock: &str) -> Option<String> {
    let is_project = one.project.as_ref().is_some_and(|project| project.name == column.name);
    let this = ident(&one.table.name.name);
    match column.source {
        Source::Expression(sql) => Some(format!("({sql})")),
        Source::Mapping(file) => {
            let columns = &design.treatment.mappings.get(file)?.columns;
            let on: Vec<_> = columns
                .iter()
                .map(|name| format!("pgtenant_mapping.{} = {this}.{}", ident(name), ident(name)))
                .collect();
            let table = mapping_table(&one.table.name, column.name);
            Some(format!(
                "(SELECT pgtenant_mapping.pgtenant_id FROM {table} AS pgtenant_mapping WHERE {})",
                on.join(" AND ")
            ))
        }
        Source::Through(columns) => {
            let key = one.foreign_key(columns)?;
            let target = key.target.as_ref()?;
            let parent = design.tenanted(target);
            let theirs = match parent {
                // A project's row says which project it is by its key.
                _ if is_project && *target == design.projects => design.treatment.projects.id.as_str(),
                Some(parent) if is_project => parent.project.as_ref()?.name,
                Some(parent) => parent.organization.name,
                None => return None,
            };
            let rows = parent.map_or_else(|| target.to_string(), |parent| parent.own_rows(design.catalog));
            let on = columns.iter().zip(&key.target_columns);
            let on: Vec<_> = on
                .map(|(own, its)| format!("pgtenant_parent.{} = {this}.{}", ident(its), ident(own)))
                .collect();
            Some(format!(
                "(SELECT pgtenant_parent.{} FROM {rows} AS pgtenant_parent WHERE {}{lock})",
                ident(theirs),
                on.join(" AND ")
            ))
        }
        Source::Default | Source::Column(_) => None,
    }
}

/// Whose a row of these is, before anything is migrated; nothing where a file says it, which is no table yet. `row` is what the row is
/// called, `depth` how many such expressions this one is within.
pub fn organization_of(design: &Design<'_>, one: &Tenanted<'_>, row: &str, depth: usize) -> Option<String> {
    match one.organization.source {
        Source::Column(name) => Some(format!("{row}.{}", ident(name))),
        Source::Default => Some(literal(&design.treatment.default.organization)),
        Source::Expression(sql) => {
            let this = ident(&one.table.name.name);
            Some(format!("(SELECT ({sql}) FROM (SELECT {row}.*) AS {this})"))
        }
        Source::Mapping(_) => None,
        Source::Through(columns) => {
            let key = one.foreign_key(columns)?;
            let parent = design.tenanted(key.target.as_ref()?)?;
            let theirs = format!("pgtenant_{depth}");
            let on = columns.iter().zip(&key.target_columns);
            let on: Vec<_> =
                on.map(|(own, its)| format!("{theirs}.{} = {row}.{}", ident(its), ident(own))).collect();
            let whose = organization_of(design, parent, &theirs, depth + 1)?;
            let rows = parent.own_rows(design.catalog);
            Some(format!("(SELECT {whose} FROM {rows} AS {theirs} WHERE {})", on.join(" AND ")))
        }
    }
}

/// What a CSV file says becomes a table that expressions look in.
pub fn mapping_table(table: &Name, column: &str) -> Name {
    Name::new("pgtenant", &composed(&["mapping", &table.schema, &table.name, column]))
}

/// The function of the trigger that fills what legacy roles write.
pub(super) fn fill_function(table: &Name) -> Name {
    Name::new("pgtenant", &composed(&["fill", &table.schema, &table.name]))
}

/// All mapping tables.
pub(super) fn mapping_tables(design: &Design<'_>) -> Vec<Name> {
    let all = design.tables.iter().flat_map(|one| one.tenant_columns().map(move |column| (one, column)));
    all.filter(|(_, column)| matches!(column.source, Source::Mapping(_)))
        .map(|(one, column)| mapping_table(&one.table.name, column.name))
        .collect()
}

/// The tables of CSV files.
pub(super) fn mappings(design: &Design<'_>, one: &Tenanted<'_>, moves: &mut Moves) {
    for column in one.tenant_columns() {
        let Source::Mapping(file) = column.source else { continue };
        let Some(mapping) = design.treatment.mappings.get(file) else { continue };
        let is_project = one.project.as_ref().is_some_and(|project| project.name == column.name);
        let tenants = if is_project { &design.treatment.projects } else { &design.treatment.organizations };
        let (table, keys) = (mapping_table(&one.table.name, column.name), idents(&mapping.columns));
        let kinds = mapping.columns.iter().map(|name| {
            let kind = one.table.column(name).map_or("text", |column| column.kind.as_str());
            format!("{} {kind} NOT NULL", ident(name))
        });
        let mut sql = vec![
            format!("DROP TABLE IF EXISTS {table}"),
            format!(
                "CREATE TABLE {table} (\n    {},\n    pgtenant_id {} NOT NULL,\n    PRIMARY KEY ({keys})\n)",
                kinds.collect::<Vec<_>>().join(",\n    "),
                tenants.kind.sql()
            ),
            format!("ALTER TABLE {table} OWNER TO pgtenant_owner"),
        ];
        sql.extend(mapping.lines.chunks(LINES).map(|lines| {
            let rows = lines.iter().map(|line| {
                let values: Vec<_> = line.iter().map(|value| literal(value)).collect();
                format!("({})", values.join(", "))
            });
            format!(
                "INSERT INTO {table} ({keys}, pgtenant_id) VALUES\n    {}",
                rows.collect::<Vec<_>>().join(",\n    ")
            )
        }));
        let legacy = &design.treatment.roles.legacy;
        if !legacy.is_empty() {
            sql.push(format!("GRANT SELECT ON {table} TO {}", idents(legacy)));
        }
        moves
            .add(format!("{} as rows of {}", file.display(), one.table.name), "none", How::Transaction, sql)
            .checked(format!("SELECT count(*) = {} FROM {table}", mapping.lines.len()))
            .undone(format!("no {table}"), How::Transaction, vec![format!("DROP TABLE IF EXISTS {table}")]);
    }
}
