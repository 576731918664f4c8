//! 005: rows find whose they are; then nothing may be without an organization, and keys lead with it, or do so at the cut-over.

use super::batches::{BATCH_MS, Batches};
use super::design::{Design, TenantColumn, Tenanted};
use super::expand::{self, has_constraint};
use super::keys::{self, Reference, Replaced, Unique};
use super::{How, Move, Moves, Part, partitions, sources};
use crate::architect::catalog::{Constraint, Kind};
use crate::architect::names::{Name, composed, dollar_quoted, ident, idents, literal};
use crate::architect::treatment::Source;

pub(super) fn moves(design: &Design<'_>) -> Vec<Move> {
    let mut moves = Moves::new(Part::Data);
    for one in &design.tables {
        one.tenant_columns().for_each(|column| backfill(design, one, column, &mut moves));
    }
    // A table's NOT NULL is that of all that inherit from it.
    for one in design.tables.iter().filter(|one| !one.is_heir()) {
        one.tenant_columns().for_each(|column| not_null(one, column, &mut moves));
    }
    let references = keys::references(design);
    references.iter().for_each(|reference| validate(design, reference, &mut moves));
    design.tables.iter().for_each(|one| statistics(one, &mut moves));
    if design.treatment.roles.legacy.is_empty() {
        contract(design, &mut moves);
    }
    design.tables.iter().filter(|one| one.entry.audit).for_each(|one| expand::audit(one, &mut moves));
    moves.all
}

/// How the titles of the steps end in which keys change places.
pub const LEADS: &str = "leads with the organization";

/// Keys with the organization take the places of those without. Legacy roles do not ask by organization: while they are at work,
/// theirs stay.
pub(super) fn contract(design: &Design<'_>, moves: &mut Moves) {
    keys::references(design).iter().for_each(|reference| take_over(design, reference, moves));
    for unique in keys::uniques(design) {
        swap(design, &unique, moves);
    }
}

fn backfill(design: &Design<'_>, one: &Tenanted<'_>, column: &TenantColumn<'_>, moves: &mut Moves) {
    let table = &one.table.name;
    let is_project = one.project.as_ref().is_some_and(|project| project.name == column.name);
    let Some(value) = sources::value(design, one, column) else {
        return nobody_is_left_out(design, one, column, moves);
    };
    let id = next_id(moves);
    let rows = one.own_rows(design.catalog);
    let (this, name) = (ident(&one.table.name.name), ident(column.name));
    let complaint = complaint(one, &rows, &name);
    let wrong = format!("{this}.{name} IS NULL");
    let (column_name, complaint) = (name.as_str(), Some(complaint.as_str()));
    let batches =
        Batches { one, rows: &rows, column: column_name, value: &value, wrong: &wrong, id: &id, complaint };
    let what = if is_project { "project" } else { "organization" };
    let lock = format!("ROW EXCLUSIVE, and some rows for about {BATCH_MS} ms at a time");
    moves
        .add(format!("rows of {table} find their {what}"), lock.clone(), How::Batches, vec![batches.sql()])
        .checked(format!("SELECT NOT EXISTS (SELECT FROM {rows} WHERE {name} IS NULL)"));
    if let (Source::Through(_), Some(held)) = (column.source, sources::value_held(design, one, column)) {
        // What a row hangs on may have been given away while a batch looked at it. From now on foreign keys take care.
        let (id, wrong) = (next_id(moves), format!("{this}.{name} IS DISTINCT FROM {value}"));
        let batches = Batches { value: &held, wrong: &wrong, id: &id, complaint: None, ..batches };
        moves.add(
            format!("rows of {table} whose {what} changed meanwhile"),
            lock,
            How::Batches,
            vec![batches.sql()],
        );
    }
}

/// Of the step that is added next.
fn next_id(moves: &Moves) -> String {
    format!("{}.{:04}", Part::Data.number(), (moves.all.len() + 1) * 10)
}

/// Where a column says whose rows are, it must say so for all.
fn nobody_is_left_out(design: &Design<'_>, one: &Tenanted<'_>, column: &TenantColumn<'_>, moves: &mut Moves) {
    let is_sure = one.table.column(column.name).is_some_and(|there| there.is_not_null);
    if is_sure || !matches!(column.source, Source::Column(_)) {
        return;
    }
    let (table, rows) = (&one.table.name, one.own_rows(design.catalog));
    let name = ident(column.name);
    moves
        .add(
            format!("no row of {table} is left out"),
            "none",
            How::Alone,
            vec![format!(
                "DO {}",
                dollar_quoted(&format!(
                    "\nDECLARE\n    pgtenant_left bigint;\nBEGIN\n{}END\n",
                    complaint(one, &rows, &name)
                ))
            )],
        )
        .checked(format!("SELECT NOT EXISTS (SELECT FROM {rows} WHERE {name} IS NULL)"));
}

/// Stops at rows that have none, and tells which: nobody guesses.
fn complaint(one: &Tenanted<'_>, rows: &str, column: &str) -> String {
    let table = &one.table.name;
    let key = one.table.primary_key().map(|key| idents(&key.columns)).unwrap_or_else(|| "ctid".to_owned());
    let [table_text, column_text] =
        [table.to_string(), column.to_owned()].map(|text| text.replace('\'', "''").replace('%', "%%"));
    format!(
        "    SELECT count(*) INTO pgtenant_left FROM {rows} WHERE {column} IS NULL;
    IF pgtenant_left > 0 THEN
        RAISE EXCEPTION USING ERRCODE = '23502',
            MESSAGE = format('%s rows of {table_text} do not find their {column_text}; the first of them: %s', pgtenant_left,
                (SELECT string_agg(to_jsonb(pgtenant_missing)::text, ', ') FROM (SELECT {key} FROM {rows} WHERE {column} IS NULL LIMIT 5) AS pgtenant_missing)),
            HINT = 'Correct them, or roll back, say otherwise = \"quarantine\" in tenancy.toml, plan and apply again.';
    END IF;
"
    )
}

fn not_null(one: &Tenanted<'_>, column: &TenantColumn<'_>, moves: &mut Moves) {
    let there = one.table.column(column.name);
    if *column.source == Source::Default || there.is_some_and(|there| there.is_not_null) {
        return;
    }
    let (table, name) = (&one.table.name, ident(column.name));
    let constraint = not_null_check(one, column);
    let check = ident(&constraint);
    // A check that is validated spares SET NOT NULL its look at every row.
    moves
        .add(
            format!("no new row of {table} is without {}", column.name),
            "ACCESS EXCLUSIVE, milliseconds: no row is read",
            How::Transaction,
            vec![format!("ALTER TABLE {table} ADD CONSTRAINT {check} CHECK ({name} IS NOT NULL) NOT VALID")],
        )
        .undone(
            format!("no check left on {table}"),
            How::Transaction,
            vec![format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {check}")],
        );
    moves.add(
        format!("nor one that is there, of {table}"),
        "SHARE UPDATE EXCLUSIVE while rows are read: reads and writes go on",
        How::Transaction,
        vec![format!("ALTER TABLE {table} VALIDATE CONSTRAINT {check}")],
    );
    // Two statements: in one, the check would be gone before it could spare the look at every row.
    let alter = [
        format!("ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL"),
        format!("ALTER TABLE {table} DROP CONSTRAINT {check}"),
    ];
    moves
        .add(
            format!("{} of {table} is NOT NULL", column.name),
            "ACCESS EXCLUSIVE, milliseconds: the check says it already",
            How::Transaction,
            vec![if_constrained(table, &constraint, &alter)],
        )
        .checked(format!(
            "SELECT attnotnull FROM pg_attribute WHERE attrelid = {}::regclass AND attname = {}",
            literal(&table.to_string()),
            literal(column.name)
        ));
}

/// The check that says NOT NULL for a while.
pub(super) fn not_null_check(one: &Tenanted<'_>, column: &TenantColumn<'_>) -> String {
    composed(&[&one.table.name.name, column.name, "tenant", "check"])
}

/// Statements that are executed where a table has a constraint of this name: once, however often the file is run.
fn if_constrained(table: &Name, constraint: &str, sql: &[String]) -> String {
    let body = format!(
        " BEGIN IF EXISTS (SELECT FROM pg_constraint WHERE conrelid = {}::regclass AND conname = {}) THEN\n    {};\nEND IF; END ",
        literal(&table.to_string()),
        literal(constraint),
        sql.join(";\n    ")
    );
    format!("DO {}", dollar_quoted(&body))
}

/// Every query is by organization from now on, and what the planner does not know of a column it takes for 200 values: of a single tenant's rows it would
/// expect one in 200. Autovacuum would not come before a tenth of them has changed.
fn statistics(one: &Tenanted<'_>, moves: &mut Moves) {
    let (table, new) =
        (&one.table.name, one.tenant_columns().filter(|column| !matches!(column.source, Source::Column(_))));
    let columns: Vec<String> = new.map(|column| column.name.to_owned()).collect();
    if !columns.is_empty() {
        moves.add(
            format!("the planner knows whose rows of {table} are"),
            "SHARE UPDATE EXCLUSIVE while a sample of the rows is read: reads and writes go on",
            How::Transaction,
            vec![format!("ANALYZE {table} ({})", idents(&columns))],
        );
    }
}

fn validate(design: &Design<'_>, reference: &Reference<'_>, moves: &mut Moves) {
    if reference.one.table.is_partitioned {
        return partitions::validate(design, reference, no_orphans(design, reference), moves);
    }
    let (table, name) = (&reference.one.table.name, &reference.name);
    moves
        .add(
            format!("foreign key {name} of {table} holds for all rows"),
            format!(
                "SHARE UPDATE EXCLUSIVE on {table}, ROW SHARE on {}: reads and writes go on",
                reference.target
            ),
            How::Transaction,
            vec![format!("ALTER TABLE {table} VALIDATE CONSTRAINT {}", ident(name))],
        )
        .checked(no_orphans(design, reference));
}

/// By a query of its own: PostgreSQL's word for it is not taken where policies may have hidden rows from it.
fn no_orphans(design: &Design<'_>, reference: &Reference<'_>) -> String {
    let pairs = reference.columns.iter().zip(&reference.target_columns);
    let on: Vec<_> =
        pairs.map(|(own, its)| format!("parent.{} = child.{}", ident(its), ident(own))).collect();
    let given: Vec<_> =
        reference.columns.iter().map(|own| format!("child.{} IS NOT NULL", ident(own))).collect();
    let target = design.tenanted(&reference.target);
    format!(
        "SELECT NOT EXISTS (SELECT FROM {} AS child WHERE {} AND NOT EXISTS (SELECT FROM {} AS parent WHERE {}))",
        reference.one.own_rows(design.catalog),
        given.join(" AND "),
        target.map_or_else(|| reference.target.to_string(), |target| target.own_rows(design.catalog)),
        on.join(" AND ")
    )
}

/// The foreign key with the organization takes the place and the name of the one without.
fn take_over(design: &Design<'_>, reference: &Reference<'_>, moves: &mut Moves) {
    let Some(old) = reference.replaces.filter(|old| !keys::keeps(old, design.catalog.version)) else {
        return;
    };
    let (table, name, was) = (&reference.one.table.name, ident(&reference.name), ident(&old.name));
    let definition = old.definition.trim_end_matches(" NOT VALID");
    let step = moves.add(
        format!("{} of {table} {LEADS}", old.name),
        format!("ACCESS EXCLUSIVE on {table} and {}, milliseconds", reference.target),
        How::Transaction,
        vec![if_constrained(
            table,
            &reference.name,
            &[
                format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {was}"),
                format!("ALTER TABLE {table} RENAME CONSTRAINT {name} TO {was}"),
            ],
        )],
    );
    step.checked(has_constraint(table, &old.name));
    step.step.sql.extend(commented(table, old));
    // Partitions first, where there are some: the whole takes theirs up.
    let (mut again, validate, whole) = match reference.one.table.is_partitioned {
        true => {
            let [leaves, validate, whole] = partitions::old_reference(design, table, old);
            (leaves, validate, whole)
        }
        false => {
            let validate = old.is_validated.then(|| format!("ALTER TABLE {table} VALIDATE CONSTRAINT {was}"));
            let again = format!("ALTER TABLE {table} ADD CONSTRAINT {was} {definition} NOT VALID");
            (vec![again], validate.into_iter().collect(), Vec::new())
        }
    };
    again.insert(0, format!("ALTER TABLE {table} RENAME CONSTRAINT {was} TO {name}"));
    let comment: Vec<_> = commented(table, old).into_iter().collect();
    if whole.is_empty() {
        again.extend(comment.clone());
    }
    step.undone(format!("{} of {table} as it was", old.name), How::Transaction, again);
    if !validate.is_empty() {
        step.undone(format!("{} of {table} holds for all rows", old.name), How::Alone, validate);
    }
    if !whole.is_empty() {
        let title = format!("{} of {table} is that of all partitions", old.name);
        step.undone(title, How::Transaction, [whole, comment].concat());
    }
}

/// The unique index with the organization takes the place and the name of the one without.
fn swap(design: &Design<'_>, unique: &Unique<'_>, moves: &mut Moves) {
    let Some(replaces) = unique.replaces.filter(|one| !keys::is_kept(*one, unique.one, design)) else {
        return;
    };
    let table = &unique.one.table.name;
    let lock = format!("ACCESS EXCLUSIVE on {table}, milliseconds");
    match replaces {
        Replaced::Constraint(old, index) => {
            let was = ident(&old.name);
            let [new, before] = [unique.name.clone(), composed(&[&old.name, "before"])]
                .map(|name| Name::new(&table.schema, &name));
            let alter =
                format!("ALTER TABLE {table} DROP CONSTRAINT {was}, {}", using_index(old, &unique.name));
            // The last one is left where this was undone before.
            let swap = expand::if_there(&new, true, &[alter, format!("DROP INDEX IF EXISTS {before}")]);
            let step =
                moves.add(format!("{} of {table} {LEADS}", old.name), lock, How::Transaction, vec![swap]);
            step.checked(format!(
                "SELECT array_length(conkey, 1) = {} FROM pg_constraint WHERE conrelid = {}::regclass AND conname = {}",
                unique.columns.len(),
                literal(&table.to_string()),
                literal(&old.name)
            ));
            step.undone(
                format!("one row for each ({}) of {table}", idents(&old.columns)),
                How::Alone,
                vec![keys::concurrently(true, &before.name, table, &index.tail)],
            );
            step.step.sql.extend(commented(table, old));
        }
        Replaced::Index(index) => {
            let [old, new] = [&index.name, &unique.name].map(|name| Name::new(&table.schema, name));
            moves
                .add(
                    format!("{old} {LEADS}"),
                    lock,
                    How::Alone,
                    vec![expand::if_there(
                        &new,
                        true,
                        &[
                            format!("DROP INDEX IF EXISTS {old}"),
                            format!("ALTER INDEX {new} RENAME TO {}", ident(&index.name)),
                        ],
                    )],
                )
                .checked(expand::is_valid(&old))
                .undone(
                    format!("{old} as it was"),
                    How::Alone,
                    vec![
                        expand::if_there(
                            &new,
                            false,
                            &[format!("ALTER INDEX IF EXISTS {old} RENAME TO {}", ident(&unique.name))],
                        ),
                        keys::concurrently(true, &index.name, table, &index.tail),
                    ],
                );
        }
    }
}

/// What was written about a constraint is written about what takes its place.
pub(super) fn commented(table: &Name, constraint: &Constraint) -> Option<String> {
    let comment = constraint.comment.as_ref()?;
    Some(format!("COMMENT ON CONSTRAINT {} ON {table} IS {}", ident(&constraint.name), literal(comment)))
}

/// `ADD CONSTRAINT ... USING INDEX ...`
pub(super) fn using_index(constraint: &Constraint, index: &str) -> String {
    let kind = if constraint.kind == Kind::Primary { "PRIMARY KEY" } else { "UNIQUE" };
    let when = match (constraint.is_deferrable, constraint.is_deferred) {
        (_, true) => " DEFERRABLE INITIALLY DEFERRED",
        (true, false) => " DEFERRABLE",
        (false, false) => "",
    };
    format!("ADD CONSTRAINT {} {kind} USING INDEX {}{when}", ident(&constraint.name), ident(index))
}
