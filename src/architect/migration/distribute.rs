//! The same tables over several machines, by Citus: each organization on one of them, shared tables on all.

use std::fmt::Write as _;

use super::design::Design;
use super::keys::{self, Replaced};
use crate::architect::names::literal;

/// SQL for a Citus coordinator, to be run by hand once 003 to 005 are applied (Citus documentation, "Multi-tenant Applications").
pub fn citus(design: &Design<'_>) -> String {
    let mut out = String::from(
        "-- Written by pgtenant migrate plan --distribute citus; run it on the coordinator, after 003, 004 and 005, and the cut-over where there are legacy roles.\n-- Tables of an organization \
         lie together (co-location), so that joins and foreign keys stay on one node.\n\n",
    );
    for table in &design.shared {
        out.push_str(&format!("SELECT create_reference_table({});\n", literal(&table.name.to_string())));
    }
    let organizations = literal(&design.organizations.to_string());
    let id = literal(&design.treatment.organizations.id);
    out.push_str(&format!("SELECT create_distributed_table({organizations}, {id});\n"));
    let mut distribute = |table: &str, column: &str| {
        out.push_str(&format!(
            "SELECT create_distributed_table({}, {}, colocate_with => {organizations});\n",
            literal(table),
            literal(column)
        ));
    };
    if design.makes_projects {
        distribute(&design.projects.to_string(), &design.treatment.organizations.column);
    }
    design.tables.iter().for_each(|one| distribute(&one.table.name.to_string(), one.organization.name));
    for one in design.tables.iter().filter(|one| one.is_heir()) {
        let _ = writeln!(
            out,
            "-- Citus refuses: {} inherits from {}. ALTER TABLE {} NO INHERIT {} first, or make it a partition.",
            one.table.name, one.whole.name, one.table.name, one.whole.name
        );
    }
    let kept = keys::uniques(design).into_iter().filter_map(|unique| {
        let replaced = unique.replaces?;
        let name = match replaced {
            Replaced::Constraint(constraint, _) => &constraint.name,
            Replaced::Index(index) => &index.name,
        };
        keys::is_kept(replaced, unique.one, design).then(|| format!("{} of {}", name, unique.one.table.name))
    });
    let global = design
        .tables
        .iter()
        .flat_map(|one| one.entry.global_uniques.iter().map(|name| format!("{name} of {}", one.table.name)));
    for key in kept.chain(global) {
        out.push_str(&format!("-- Citus refuses: {key} does not have the organization. Drop it first, or keep its table local.\n"));
    }
    out
}
