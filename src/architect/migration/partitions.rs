//! Partitioned tables: CONCURRENTLY and NOT VALID are for their partitions only, so each gets its own part, and the whole takes
//! them up without looking at a row.

use super::design::{Design, Tenanted};
use super::expand::{SHORT, concurrent_lock, is_valid};
use super::keys::{self, Reference};
use super::{How, Moves};
use crate::architect::catalog::{Constraint, Table};
use crate::architect::names::{Name, composed, dollar_quoted, ident, literal};

/// A table's partitions, and theirs.
pub(super) fn of<'a>(design: &Design<'a>, table: &Name) -> Vec<&'a Table> {
    design.catalog.parts(table).into_iter().filter(|part| part.is_partition).collect()
}

/// Those of them that have rows.
fn leaves<'a>(design: &Design<'a>, table: &Name) -> Vec<&'a Table> {
    of(design, table).into_iter().filter(|part| !part.is_partitioned).collect()
}

/// An index of the whole, unique or not, with what stands behind its name and table.
pub(super) fn index(
    design: &Design<'_>,
    one: &Tenanted<'_>,
    name: &Name,
    (is_unique, tail): (bool, &str),
    moves: &mut Moves,
) {
    let (table, parts) = (&one.table.name, of(design, &one.table.name));
    let create = keys::create(is_unique);
    let of_part = |part: &Name| match part == table {
        true => name.clone(),
        false => Name::new(&part.schema, &composed(&[&part.name, &name.name])),
    };
    // It has no rows of its own: there is nothing that it could be built from CONCURRENTLY.
    let empty = |of: &Name| {
        let body = format!(
            " BEGIN\n    {create} IF NOT EXISTS {} ON ONLY {of}{tail};\nEND ",
            ident(&of_part(of).name)
        );
        format!("DO {}", dollar_quoted(&body))
    };
    let wholes = parts.iter().filter(|part| part.is_partitioned).map(|part| empty(&part.name));
    let drops = parts.iter().filter(|part| part.is_partitioned).rev();
    let drops = drops.map(|part| format!("DROP INDEX IF EXISTS {}", of_part(&part.name)));
    moves
        .add(
            format!("index {name} of all partitions, empty"),
            format!("SHARE on {table}, milliseconds"),
            How::Transaction,
            std::iter::once(empty(table)).chain(wholes).collect(),
        )
        .undone(
            format!("no index {name}"),
            How::Transaction,
            std::iter::once(format!("DROP INDEX IF EXISTS {name}")).chain(drops).collect(),
        );
    for leaf in leaves(design, table) {
        let own = of_part(&leaf.name);
        moves
            .add(
                format!("index {own}"),
                concurrent_lock(leaf.rows),
                How::Alone,
                vec![keys::concurrently(is_unique, &own.name, &leaf.name, tail)],
            )
            .checked(is_valid(&own))
            .undone(
                format!("no index {own}"),
                How::Alone,
                vec![format!("DROP INDEX CONCURRENTLY IF EXISTS {own}")],
            );
    }
    // The innermost first: an index is whole when each partition's is part of it.
    let attach = parts.iter().rev().filter_map(|part| {
        let whole = of_part(part.parents.first()?);
        Some(format!("ALTER INDEX {whole} ATTACH PARTITION {}", of_part(&part.name)))
    });
    moves
        .add(
            format!("index {name} is that of all partitions"),
            format!("{SHORT} ({table})"),
            How::Transaction,
            attach.collect(),
        )
        .checked(is_valid(name))
        .undone(
            format!("index {name} is gone"),
            How::Transaction,
            vec![format!("DROP INDEX IF EXISTS {name}")],
        );
}

/// A foreign key of each partition, which is not validated yet.
pub(super) fn reference(design: &Design<'_>, reference: &Reference<'_>, moves: &mut Moves) {
    let (table, name) = (&reference.one.table.name, ident(&reference.name));
    let leaves = leaves(design, table);
    let each =
        |what: &dyn Fn(&Name) -> String| leaves.iter().map(|leaf| what(&leaf.name)).collect::<Vec<_>>();
    moves
        .add(
            format!("foreign key {} of each partition of {table}", reference.name),
            format!(
                "SHARE ROW EXCLUSIVE on partitions and {}, milliseconds: rows are checked later",
                reference.target
            ),
            How::Transaction,
            not_valid(design, reference),
        )
        .undone(
            format!("no foreign key {} of partitions of {table}", reference.name),
            How::Transaction,
            each(&|leaf| format!("ALTER TABLE {leaf} DROP CONSTRAINT IF EXISTS {name}")),
        );
}

fn not_valid(design: &Design<'_>, reference: &Reference<'_>) -> Vec<String> {
    let (name, definition) = (ident(&reference.name), reference.definition());
    let leaves = leaves(design, &reference.one.table.name).into_iter();
    leaves
        .map(|leaf| format!("ALTER TABLE {} ADD CONSTRAINT {name} {definition} NOT VALID", leaf.name))
        .collect()
}

/// It holds for all rows, and is the whole's.
pub(super) fn validate(design: &Design<'_>, reference: &Reference<'_>, check: String, moves: &mut Moves) {
    let (table, name) = (&reference.one.table.name, ident(&reference.name));
    let leaves = leaves(design, table);
    for leaf in leaves {
        moves.add(
            format!("foreign key {} of {} holds for all rows", reference.name, leaf.name),
            "SHARE UPDATE EXCLUSIVE: reads and writes go on",
            How::Transaction,
            vec![format!("ALTER TABLE {} VALIDATE CONSTRAINT {name}", leaf.name)],
        );
    }
    moves
        .add(
            format!("foreign key {} of {table}", reference.name),
            format!("SHARE ROW EXCLUSIVE on {table} and {}, milliseconds", reference.target),
            How::Transaction,
            // Each partition's is valid: no row is looked at.
            vec![format!(
                "DO {}",
                dollar_quoted(&format!(
                    " BEGIN\n    ALTER TABLE {table} ADD CONSTRAINT {name} {};\nEND ",
                    reference.definition()
                ))
            )],
        )
        .checked(check)
        .undone(
            format!("no foreign key {} of {table}", reference.name),
            How::Transaction,
            // Partitions lose theirs with it, and get back what 003 gave them.
            std::iter::once(format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}"))
                .chain(not_valid(design, reference))
                .collect(),
        );
}

/// The old foreign key again, in the same way.
pub(super) fn old_reference(design: &Design<'_>, table: &Name, old: &Constraint) -> [Vec<String>; 3] {
    let name = ident(&old.name);
    let leaves = leaves(design, table);
    let each =
        |what: &dyn Fn(&Name) -> String| leaves.iter().map(|leaf| what(&leaf.name)).collect::<Vec<_>>();
    [
        each(&|leaf| format!("ALTER TABLE {leaf} ADD CONSTRAINT {name} {} NOT VALID", old.definition)),
        each(&|leaf| format!("ALTER TABLE {leaf} VALIDATE CONSTRAINT {name}")),
        vec![format!("ALTER TABLE {table} ADD CONSTRAINT {name} {}", old.definition)],
    ]
}

/// What stays as it is.
pub(super) fn notes(one: &Tenanted<'_>) -> Option<String> {
    let key = one.table.primary_key()?;
    Some(format!(
        "{}: the primary key of a partitioned table cannot be exchanged without rebuilding it; {} stays unique over all organizations, and \
         an index beside it leads with the organization.",
        one.table.name,
        literal(&key.name)
    ))
}
