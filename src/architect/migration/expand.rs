//! 003: everything that can be added while the application goes on as it is.

use std::collections::BTreeSet;

use super::design::{Design, TenantColumn, Tenanted};
use super::keys::{self, Replaced, Unique};
use super::{How, Move, Moves, Part, partitions, sources, tenants};
use crate::architect::install;
use crate::architect::names::{Name, composed, dollar_quoted, ident, idents, literal};
use crate::architect::treatment::Source;

/// A lock that nobody notices.
pub(super) const SHORT: &str = "ACCESS EXCLUSIVE, milliseconds: no row is read or rewritten";

pub(super) fn moves(design: &Design<'_>) -> Vec<Move> {
    let mut moves = Moves::new(Part::Transformation);
    interface(design, &mut moves);
    defaults(design, &mut moves);
    operations(design, &mut moves);
    tenants::moves(design, &mut moves);
    design.tables.iter().for_each(|one| sources::mappings(design, one, &mut moves));
    // Those that inherit have the columns of what they inherit from.
    design.tables.iter().filter(|one| !one.is_heir()).for_each(|one| columns(design, one, &mut moves));
    design.tables.iter().for_each(|one| triggers(design, one, &mut moves));
    for unique in keys::uniques(design) {
        unique_index(design, &unique, &mut moves);
    }
    for index in keys::indexes(design) {
        let name = Name::new(&index.one.table.name.schema, &index.name);
        if index.one.table.is_partitioned {
            partitions::index(design, index.one, &name, (false, &index.tail), &mut moves);
            continue;
        }
        let size = index.one.table.rows;
        moves
            .add(
                format!("index {name}"),
                concurrent_lock(size),
                How::Alone,
                vec![keys::concurrently(false, &index.name, &index.one.table.name, &index.tail)],
            )
            .checked(is_valid(&name))
            .undone(
                format!("no index {name}"),
                How::Alone,
                vec![format!("DROP INDEX CONCURRENTLY IF EXISTS {name}")],
            );
    }
    for reference in keys::references(design) {
        if reference.one.table.is_partitioned {
            partitions::reference(design, &reference, &mut moves);
            continue;
        }
        let (table, name) = (&reference.one.table.name, ident(&reference.name));
        let add = format!("ALTER TABLE {table} ADD CONSTRAINT {name} {} NOT VALID", reference.definition());
        moves
            .add(
                format!("foreign key {} of {table}", reference.name),
                format!(
                    "SHARE ROW EXCLUSIVE on {table} and {}, milliseconds: rows are checked later",
                    reference.target
                ),
                How::Transaction,
                vec![add],
            )
            .checked(has_reference(&reference))
            .undone(
                format!("no foreign key {} of {table}", reference.name),
                How::Transaction,
                vec![format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}")],
            );
    }
    moves.all
}

fn interface(design: &Design<'_>, moves: &mut Moves) {
    if design.catalog.interface {
        return;
    }
    let id_type = design.treatment.organizations.kind.of_context();
    moves
        .add(
            "schema pgtenant: functions that tell the context, and check its seal",
            "none on tables of the application",
            How::Transaction,
            vec![install::without_keys(id_type)],
        )
        .checked("SELECT to_regprocedure('pgtenant.organization_id()') IS NOT NULL")
        .undone(
            "no schema pgtenant",
            How::Transaction,
            vec!["DROP SCHEMA IF EXISTS pgtenant CASCADE".to_owned()],
        );
}

/// The audit log with its trigger function, and what operators look at.
fn operations(design: &Design<'_>, moves: &mut Moves) {
    let treatment = design.treatment;
    let sql = include_str!("../sql/operations.sql")
        .replace("{organization}", treatment.organizations.kind.sql())
        .replace("{project}", treatment.projects.kind.sql())
        .replace("{column}", &treatment.organizations.column.replace('\'', "''"));
    let undo = [
        "DROP VIEW IF EXISTS pgtenant.index_usage, pgtenant.policy_costs",
        "DROP FUNCTION IF EXISTS pgtenant.slow_statements(float8, integer), pgtenant.organization_sizes(name)",
        "DROP TABLE IF EXISTS pgtenant.audit_log",
        "DROP FUNCTION IF EXISTS pgtenant.audit(), pgtenant.append_only()",
    ];
    moves
        .add("the audit log, and views for operators", "none on tables of the application", How::Transaction, vec![sql])
        .checked("SELECT to_regclass('pgtenant.audit_log') IS NOT NULL AND to_regclass('pgtenant.index_usage') IS NOT NULL")
        .undone("no audit log, no such views", How::Transaction, undo.map(str::to_owned).to_vec());
}

/// Of a table whose changes are kept.
pub(super) fn audit(one: &Tenanted<'_>, moves: &mut Moves) {
    let (table, columns) = (&one.table.name, one.tenant_columns().map(|column| literal(column.name)));
    let drop = format!("DROP TRIGGER IF EXISTS pgtenant_audit ON {table}");
    let create = format!(
        "CREATE TRIGGER pgtenant_audit AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW\n    \
         EXECUTE FUNCTION pgtenant.audit({})",
        columns.collect::<Vec<_>>().join(", ")
    );
    let there = format!(
        "SELECT count(*) = 1 FROM pg_trigger WHERE tgrelid = {}::regclass AND tgname = 'pgtenant_audit'",
        literal(&table.to_string())
    );
    moves
        .add(
            format!("changes of {table} are kept"),
            format!("SHARE ROW EXCLUSIVE on {table}, milliseconds"),
            How::Transaction,
            vec![drop.clone(), create],
        )
        .checked(there)
        .undone(format!("changes of {table} are not kept"), How::Transaction, vec![drop]);
}

/// What a new row's organization and project are where an INSERT does not say so.
fn defaults(design: &Design<'_>, moves: &mut Moves) {
    let legacy = &design.treatment.roles.legacy;
    let mut sql = row_defaults(design, legacy);
    // Owners too: what they write is written by functions with their rights, and triggers, that legacy roles call.
    let owners = design.tables.iter().map(|one| &one.table.owner).filter(|_| !legacy.is_empty());
    for role in legacy.iter().chain(owners).collect::<BTreeSet<_>>() {
        let role = ident(role);
        sql.push(format!("GRANT USAGE ON SCHEMA pgtenant TO {role}"));
        sql.push(format!(
            "GRANT EXECUTE ON FUNCTION {} TO {role}",
            ROW_DEFAULTS.map(|name| signature(name, design)).join(", ")
        ));
    }
    let drop = ROW_DEFAULTS.map(|name| format!("DROP FUNCTION IF EXISTS {}", signature(name, design)));
    moves
        .add("what a new row belongs to where an INSERT does not say so", "none", How::Transaction, sql)
        .checked("SELECT count(*) = 2 FROM pg_proc WHERE pronamespace = 'pgtenant'::regnamespace AND proname IN ('row_organization', 'row_project')")
        .undone("no such functions", How::Transaction, drop.to_vec());
}

const ROW_DEFAULTS: [&str; 2] = ["row_organization", "row_project"];

fn signature(name: &str, design: &Design<'_>) -> String {
    let kind = if name == "row_project" {
        design.treatment.projects.kind
    } else {
        design.treatment.organizations.kind
    };
    format!("pgtenant.{name}({})", kind.sql())
}

/// The functions, for these legacy roles.
pub(super) fn row_defaults(design: &Design<'_>, legacy: &[String]) -> Vec<String> {
    let roles = legacy.iter().map(|role| literal(role)).collect::<Vec<_>>().join(", ");
    let mut sql = Vec::new();
    for (name, asks) in [("row_organization", "organization_id"), ("row_project", "project_id")] {
        let signature = signature(name, design);
        let kind = signature.rsplit_once('(').map_or("", |(_, kind)| kind.trim_end_matches(')')).to_owned();
        let exempt = match legacy.is_empty() {
            true => String::new(),
            // A legacy role that comes through the proxy has a seal, and counts as anyone else.
            false => format!(
                "    IF session_user IN ({roles}) AND coalesce(current_setting('pgtenant.seal', true), '') = '' THEN\n        \
                 RETURN legacy;\n    END IF;\n"
            ),
        };
        let body = format!("\nBEGIN\n{exempt}    RETURN pgtenant.{asks}();\nEND\n");
        sql.push(format!(
            "CREATE OR REPLACE FUNCTION pgtenant.{name}(legacy {kind}) RETURNS {kind}\n\
             LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp\nAS {}",
            dollar_quoted(&body)
        ));
        sql.push(format!("ALTER FUNCTION {signature} OWNER TO pgtenant_owner"));
        sql.push(format!("REVOKE ALL ON FUNCTION {signature} FROM PUBLIC"));
    }
    sql
}

/// What a column of the default organization's or project's is filled with.
fn constants<'a>(
    design: &'a Design<'_>,
    one: &'a Tenanted<'_>,
) -> Vec<(&'a str, &'static str, &'a str, &'static str, bool)> {
    let (treatment, default) = (design.treatment, &design.treatment.default);
    let mut found = vec![(
        one.organization.name,
        treatment.organizations.kind.sql(),
        default.organization.as_str(),
        "row_organization",
        *one.organization.source == Source::Default,
    )];
    if let Some(project) = &one.project {
        let kind = treatment.projects.kind.sql();
        found.push((project.name, kind, &default.project, "row_project", *project.source == Source::Default));
    }
    found
}

fn columns(design: &Design<'_>, one: &Tenanted<'_>, moves: &mut Moves) {
    let table = &one.table.name;
    let (mut adds, mut sets, mut drops, mut resets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (name, kind, value, function, is_default) in constants(design, one) {
        let column = ident(name);
        let there = one.table.column(name);
        match there {
            None if is_default => {
                adds.push(format!(
                    "ADD COLUMN IF NOT EXISTS {column} {kind} NOT NULL DEFAULT {}",
                    literal(value)
                ));
            }
            None => adds.push(format!("ADD COLUMN IF NOT EXISTS {column} {kind}")),
            Some(there) => {
                resets.push(match &there.default {
                    Some(default) => format!("ALTER COLUMN {column} SET DEFAULT {default}"),
                    None => format!("ALTER COLUMN {column} DROP DEFAULT"),
                });
                // 005 sets it; here, because no key has the column any more.
                resets.extend((!there.is_not_null).then(|| format!("ALTER COLUMN {column} DROP NOT NULL")));
            }
        }
        if there.is_none() {
            drops.push(format!("DROP COLUMN IF EXISTS {column}"));
        }
        let legacy = match there.and_then(|there| there.default.as_deref()) {
            _ if is_default => literal(value),
            Some(default) => default.to_owned(),
            None => "NULL".to_owned(),
        };
        sets.push(format!("ALTER COLUMN {column} SET DEFAULT pgtenant.{function}({legacy})"));
    }
    let alter = |actions: Vec<String>| {
        (!actions.is_empty()).then(|| format!("ALTER TABLE {table}\n    {}", actions.join(",\n    ")))
    };
    let names: Vec<_> = one.tenant_columns().map(|column| literal(column.name)).collect();
    let sql: Vec<_> = alter(adds).into_iter().chain(alter(sets)).collect();
    if sql.is_empty() {
        return;
    }
    moves
        .add(format!("whose rows of {table} are"), format!("{SHORT} ({table})"), How::Transaction, sql)
        .checked(format!(
            "SELECT count(*) = {} FROM pg_attribute WHERE attrelid = {}::regclass AND NOT attisdropped AND attname IN ({})",
            names.len(),
            literal(&table.to_string()),
            names.join(", ")
        ))
        .undone(
            format!("{table} as it was"),
            How::Transaction,
            alter(resets).into_iter().chain(alter(drops)).chain(emptied(design, one)).collect(),
        );
}

/// Rows of a column that was there before have no organization again, where they had none: those in quarantine, in which nobody was before.
fn emptied(design: &Design<'_>, one: &Tenanted<'_>) -> Vec<String> {
    let Some(quarantine) = design.treatment.otherwise(one.entry) else { return Vec::new() };
    let columns = one.tenant_columns().filter(|column| !column.is_new());
    let nullable = columns.filter(|column| !one.table.are_not_null(&[column.name.to_owned()]));
    let mut sql: Vec<String> = nullable
        .map(|column| {
            let is_project = one.project.as_ref().is_some_and(|project| project.name == column.name);
            let id = if is_project { &quarantine.project } else { &quarantine.organization };
            let (table, name) = (&one.table.name, ident(column.name));
            format!("UPDATE {table} SET {name} = NULL WHERE {name} = {}", literal(id))
        })
        .collect();
    if !sql.is_empty() {
        sql.insert(0, "SET LOCAL session_replication_role = replica".to_owned());
    }
    sql
}

/// The columns by which a row finds whose it is, where that can be told.
fn found_by<'a>(design: &'a Design<'_>, column: &'a TenantColumn<'_>) -> &'a [String] {
    match column.source {
        Source::Through(columns) => columns,
        Source::Mapping(file) => design.treatment.mappings.get(file).map_or(&[], |mapping| &mapping.columns),
        Source::Default | Source::Column(_) | Source::Expression(_) => &[],
    }
}

/// Rows that legacy roles write find their organization like those that are there, and others when they are changed so that they
/// would find another one.
fn triggers(design: &Design<'_>, one: &Tenanted<'_>, moves: &mut Moves) {
    if design.treatment.roles.legacy.is_empty() {
        return;
    }
    let table = &one.table.name;
    let (mut body, mut watched) = (String::new(), BTreeSet::new());
    for column in one.tenant_columns() {
        let name = ident(column.name);
        let Some(expression) = sources::value(design, one, column) else { continue };
        let this = ident(&table.name);
        let by = found_by(design, column);
        watched.extend(by.iter().map(|name| ident(name)));
        let is_moved = by.iter().map(|name| format!("NEW.{0} IS DISTINCT FROM OLD.{0}", ident(name)));
        let is_moved = is_moved.collect::<Vec<_>>().join(" OR ");
        let or_moved = match by.is_empty() {
            true => String::new(),
            false => format!(
                "\n        OR TG_OP = 'UPDATE' AND NEW.{name} IS NOT DISTINCT FROM OLD.{name} AND ({is_moved})"
            ),
        };
        body.push_str(&format!(
            "    IF NEW.{name} IS NULL{or_moved} THEN\n        NEW.{name} := (SELECT {expression} FROM (SELECT (NEW).*) AS {this});\n    END IF;\n"
        ));
    }
    let on_update = match watched.is_empty() {
        true => String::new(),
        false => format!(" OR UPDATE OF {}", watched.into_iter().collect::<Vec<_>>().join(", ")),
    };
    if body.is_empty() {
        return;
    }
    let function = sources::fill_function(table);
    let legacy =
        design.treatment.roles.legacy.iter().map(|role| literal(role)).collect::<Vec<_>>().join(", ");
    let sql = vec![
        format!(
            "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger\nLANGUAGE plpgsql SET search_path = {}, pg_catalog, pg_temp\nAS {}",
            ident(&table.schema),
            // Who comes through the proxy has a seal, and says what its rows are by that.
            dollar_quoted(&format!(
                "\nBEGIN\n    IF session_user NOT IN ({legacy}) OR coalesce(current_setting('pgtenant.seal', true), '') <> '' THEN\n        \
                 RETURN NEW;\n    END IF;\n{body}    RETURN NEW;\nEND\n"
            ))
        ),
        format!("ALTER FUNCTION {function}() OWNER TO pgtenant_owner"),
        format!("DROP TRIGGER IF EXISTS pgtenant_fill ON {table}"),
        format!(
            "CREATE TRIGGER pgtenant_fill BEFORE INSERT{on_update} ON {table} FOR EACH ROW EXECUTE FUNCTION {function}()"
        ),
    ];
    moves
        .add(
            format!("rows that legacy roles write into {table} find whose they are"),
            format!("SHARE ROW EXCLUSIVE on {table}, milliseconds"),
            How::Transaction,
            sql,
        )
        .undone(
            format!("no trigger on {table}"),
            How::Transaction,
            vec![
                format!("DROP TRIGGER IF EXISTS pgtenant_fill ON {table}"),
                format!("DROP FUNCTION IF EXISTS {function}()"),
            ],
        );
}

fn unique_index(design: &Design<'_>, unique: &Unique<'_>, moves: &mut Moves) {
    let schema = &unique.one.table.name.schema;
    let (table, name) = (&unique.one.table.name, Name::new(schema, &unique.name));
    if unique.one.table.is_partitioned {
        return partitions::index(design, unique.one, &name, (true, &unique.tail), moves);
    }
    let step = moves.add(
        format!("{table}: one row for each ({})", idents(&unique.columns)),
        concurrent_lock(unique.one.table.rows),
        How::Alone,
        vec![keys::concurrently(true, &unique.name, table, &unique.tail)],
    );
    // 005, or the cut-over, gives it the old one's name, and its undoing puts one beside it on the old columns.
    let old = match unique.replaces {
        Some(Replaced::Constraint(constraint, _)) => &constraint.name,
        Some(Replaced::Index(index)) => &index.name,
        None => &unique.name,
    };
    let found =
        [&name, &Name::new(schema, old)].map(|name| format!("to_regclass({})", literal(&name.to_string())));
    step.checked(format!(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = coalesce({})",
        found.join(", ")
    ));
    if let Some(Replaced::Constraint(constraint, _)) = unique.replaces {
        let before = Name::new(schema, &composed(&[old, "before"]));
        let again = super::data::using_index(constraint, &before.name);
        step.undone(
            format!("{table}: {old} as it was"),
            How::Transaction,
            std::iter::once(if_there(
                &before,
                true,
                &[format!("ALTER TABLE {table} DROP CONSTRAINT {}, {again}", ident(old))],
            ))
            .chain(super::data::commented(table, constraint))
            .collect(),
        );
    }
    step.undone(
        format!("no index {name}"),
        How::Alone,
        vec![format!("DROP INDEX CONCURRENTLY IF EXISTS {name}")],
    );
}

pub(super) fn concurrent_lock(rows: i64) -> String {
    // About a million rows a second, as measured on two cores: an idea of it, no promise.
    let seconds = rows / 1_000_000;
    format!("SHARE UPDATE EXCLUSIVE: reads and writes go on; about {} s", seconds.max(1))
}

/// Statements that are executed where there is a relation of this name, or none.
pub(super) fn if_there(name: &Name, is_there: bool, sql: &[String]) -> String {
    let not = if is_there { " NOT" } else { "" };
    let body = format!(
        " BEGIN IF to_regclass({}) IS{not} NULL THEN\n    {};\nEND IF; END ",
        literal(&name.to_string()),
        sql.join(";\n    ")
    );
    format!("DO {}", dollar_quoted(&body))
}

pub(super) fn is_valid(index: &Name) -> String {
    format!("SELECT indisvalid FROM pg_index WHERE indexrelid = {}::regclass", literal(&index.to_string()))
}

/// Under its own name, or under the old one's, whose place it takes in 005 or at the cut-over.
fn has_reference(reference: &keys::Reference<'_>) -> String {
    let names = std::iter::once(&reference.name).chain(reference.replaces.map(|old| &old.name));
    format!(
        "SELECT count(*) > 0 FROM pg_constraint WHERE conrelid = {}::regclass AND conname IN ({}) AND array_length(conkey, 1) = {}",
        literal(&reference.one.table.name.to_string()),
        names.map(|name| literal(name)).collect::<Vec<_>>().join(", "),
        reference.columns.len()
    )
}

pub(super) fn has_constraint(table: &Name, name: &str) -> String {
    format!(
        "SELECT count(*) = 1 FROM pg_constraint WHERE conrelid = {}::regclass AND conname = {}",
        literal(&table.to_string()),
        literal(name)
    )
}
