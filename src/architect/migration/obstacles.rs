//! What stands in the way of a design, and what a person should know of it.

use std::collections::{BTreeMap, BTreeSet};

use super::design::Design;
use super::{data, keys, partitions, policies, sources};
use crate::architect::catalog::{Kind, Policy, Table, View};
use crate::architect::names::{Name, ident, idents};

/// Roles that policies would not hold for, or whose rights would be mixed up with those that they have already.
pub(super) fn roles(design: &Design<'_>) -> Vec<String> {
    let roles = &design.treatment.roles;
    let mut wrong = Vec::new();
    for role in &roles.application {
        let has_rights = |table: &&Table| table.owner == *role || table.grantees.contains(role);
        if roles.legacy.contains(role) {
            wrong.push(format!("[roles]: {role:?} cannot be an application's and a legacy role at once"));
        } else if design.catalog.mighty.contains(role) {
            wrong.push(format!(
                "[roles]: {role:?} is a superuser, bypasses row level security, manages roles, or is a member of another role; name one that \
                 is none of these"
            ));
        } else if let Some(table) = design.catalog.tables.iter().find(has_rights) {
            wrong.push(format!(
                "[roles]: {role:?} has rights on {} already; name another role, which the proxy signs in with, and keep this one as legacy",
                table.name
            ));
        }
    }
    let unknown = roles.legacy.iter().filter(|role| !design.catalog.roles.contains(role));
    wrong.extend(unknown.map(|role| format!("[roles]: there is no legacy role {role:?}")));
    if roles.application.is_empty() {
        wrong.push("[roles]: application is empty; name a role that the proxy signs in with".to_owned());
    }
    wrong
}

/// What cannot be migrated as it is.
pub(super) fn mistakes(design: &Design<'_>) -> Vec<String> {
    let mut wrong: Vec<String> = names(design)
        .filter(|name| name.contains(|c: char| c.is_control()))
        .map(|name| format!("the name {name:?} has a control character in it; rename what is called so"))
        .collect();
    for one in &design.tables {
        let lost = one
            .table
            .foreign_keys()
            .filter(|key| matches!(key.on_update, 'n' | 'd') && !one.leads(&key.columns));
        wrong.extend(lost.map(|key| {
            format!(
                "{} of {} is ON UPDATE SET NULL or SET DEFAULT, which would take the organization with it; change that first",
                key.name, one.table.name
            )
        }));
    }
    for one in &design.tables {
        for part in design.catalog.parts(&one.whole.name) {
            for column in one.tenant_columns().filter(|column| !column.is_new()) {
                let differs = one.whole.column(column.name).zip(part.column(column.name)).is_some_and(
                    |(whole, own)| whole.default != own.default || whole.is_not_null != own.is_not_null,
                );
                if differs && !one.is_heir() {
                    wrong.push(format!(
                        "{} of {} has a DEFAULT or NOT NULL of its own, which {} does not have: make them the same first",
                        column.name, part.name, one.whole.name
                    ));
                }
            }
        }
    }
    wrong.extend(guarded_already(design));
    for view in exposing(design) {
        if view.is_public && (view.is_materialized || design.catalog.version < 15) {
            wrong.push(format!(
                "view {} shows rows of all organizations, and PUBLIC may read it: REVOKE ALL ON {} FROM PUBLIC first",
                view.name, view.name
            ));
        }
    }
    wrong.extend(taken(design));
    wrong
}

/// Tables whose policies would be mistaken for those of organizations, or would come into force; and rights that none covers.
fn guarded_already(design: &Design<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    for table in guarded(design).into_values() {
        let name = &table.name;
        let is_ours = |policy: &&Policy| policies::NAMES.contains(&policy.name.as_str());
        if let Some(policy) = table.policies.iter().find(is_ours) {
            let policy = ident(&policy.name);
            wrong.push(format!(
                "{name} has a policy called {policy} already: rename it (ALTER POLICY {policy} ON {name} RENAME TO ...)"
            ));
        } else if let Some(policy) = table.policies.first().filter(|_| !table.has_policies) {
            wrong.push(format!(
                "{name} has policies that are not in force, and would be with row level security ({}): drop them first",
                policy.name
            ));
        }
        // PostgreSQL, Row Security Policies: what they do not cover.
        let is_uncovered = |right: &&String| ["TRUNCATE", "REFERENCES", "TRIGGER"].contains(&right.as_str());
        if let Some(right) = table.public_rights.iter().find(is_uncovered) {
            wrong.push(format!(
                "PUBLIC has {right} on {name}, which no policy covers: REVOKE {right} ON {name} FROM PUBLIC first"
            ));
        }
    }
    wrong
}

/// All tables that get policies, and are there.
fn guarded<'a>(design: &Design<'a>) -> BTreeMap<&'a Name, &'a Table> {
    let tenants = [&design.organizations, &design.projects];
    let tenants = tenants.into_iter().filter_map(|name| design.catalog.table(name));
    let parts = design.tables.iter().flat_map(|one| partitions::of(design, &one.table.name));
    let own = design.tables.iter().map(|one| one.table);
    tenants.chain(own).chain(parts).map(|table| (&table.name, table)).collect()
}

/// Every name that gets into a file.
fn names<'a>(design: &'a Design<'_>) -> impl Iterator<Item = &'a str> {
    let (catalog, treatment) = (design.catalog, design.treatment);
    let of_tables = catalog.tables.iter().flat_map(|table| {
        let own = [table.name.schema.as_str(), &table.name.name, &table.owner].into_iter();
        own.chain(table.columns.iter().map(|column| column.name.as_str()))
            .chain(table.constraints.iter().map(|constraint| constraint.name.as_str()))
            .chain(table.indexes.iter().map(|index| index.name.as_str()))
    });
    let of_views = catalog.views.iter().flat_map(|view| [view.name.schema.as_str(), &view.name.name]);
    let of_roles = treatment.roles.application.iter().chain(&treatment.roles.legacy).map(String::as_str);
    let of_tenants = [&treatment.organizations, &treatment.projects]
        .into_iter()
        .flat_map(|tenants| [tenants.table.as_str(), &tenants.id, &tenants.column]);
    of_tables.chain(of_views).chain(of_roles).chain(of_tenants)
}

/// Names that the migration would give, and that something else has.
fn taken(design: &Design<'_>) -> Vec<String> {
    let mut there: BTreeSet<Name> = BTreeSet::new();
    for table in &design.catalog.tables {
        there.insert(table.name.clone());
        there.extend(table.indexes.iter().map(|index| Name::new(&table.name.schema, &index.name)));
    }
    let mut given = Vec::new();
    for unique in keys::uniques(design) {
        given.push(Name::new(&unique.one.table.name.schema, &unique.name));
    }
    for index in keys::indexes(design) {
        given.push(Name::new(&index.one.table.name.schema, &index.name));
    }
    let own = sources::mapping_tables(design)
        .into_iter()
        .chain(design.tables.iter().map(|one| sources::fill_function(&one.table.name)));
    let mut taken = BTreeSet::new();
    let twice: Vec<String> = own
        .filter(|name| !taken.insert(name.clone()))
        .map(|name| format!("two tables would share {name}, for their schemas' and their own names run together; rename one of them"))
        .collect();
    let mut found: Vec<String> = given
        .iter()
        .filter(|name| !there.insert((*name).clone()))
        .map(|name| format!("an index would be called {name}, and something else is; rename that"))
        .collect();
    for reference in keys::references(design) {
        let table = reference.one.table;
        if table.constraints.iter().any(|constraint| constraint.name == reference.name) {
            found.push(format!(
                "a foreign key of {} would be called {}, and another constraint is; rename that",
                table.name, reference.name
            ));
        }
    }
    for one in &design.tables {
        let there = |name: &String| one.table.constraints.iter().any(|constraint| constraint.name == *name);
        let checks = one.tenant_columns().map(|column| data::not_null_check(one, column)).filter(there);
        found.extend(checks.map(|check| {
            format!(
                "a check of {} would be called {check}, and another constraint is; rename that",
                one.table.name
            )
        }));
    }
    found.extend(twice);
    found
}

/// Views through which rows of organizations are read, however many others are in between.
pub(super) fn exposing<'a>(design: &Design<'a>) -> Vec<&'a View> {
    let mut shown: BTreeSet<&Name> = design.tables.iter().map(|one| &one.table.name).collect();
    shown.extend([&design.organizations, &design.projects]);
    let views = &design.catalog.views;
    loop {
        let before = shown.len();
        let further: Vec<&Name> = views
            .iter()
            .filter(|view| view.reads.iter().any(|name| shown.contains(name)))
            .map(|view| &view.name)
            .collect();
        shown.extend(further);
        if shown.len() == before {
            return views.iter().filter(|view| shown.contains(&view.name)).collect();
        }
    }
}

/// What a person should know or decide.
pub(super) fn notes(design: &Design<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    for one in &design.tables {
        let name = &one.table.name;
        if one.table.primary_key().is_none() {
            notes.push(format!(
                "{name} has no primary key: its rows cannot be told apart, and nothing can refer to them."
            ));
        }
        notes.extend(partitions::notes(one).filter(|_| one.table.is_partitioned));
        for constraint in &one.table.constraints {
            let key = &constraint.name;
            match constraint.kind {
                Kind::Exclude => notes.push(format!(
                    "{name}: the exclusion constraint {key} stays as it is, over all organizations. To have one in each, add the \
                     organization to it (extension btree_gist)."
                )),
                Kind::Foreign if constraint.is_full && constraint.columns.len() > 1 => notes.push(format!(
                    "{name}: {key} is MATCH FULL, and will not be with the organization in it; a check that all or none of ({}) are NULL \
                     keeps that.",
                    idents(&constraint.columns)
                )),
                _ => {}
            }
        }
        for global in &one.entry.global_uniques {
            notes.push(format!(
                "{name}: {global} stays unique over all organizations, so that one can learn what another one has."
            ));
        }
    }
    for table in guarded(design).into_values().filter(|table| table.has_own_policies()) {
        let own = idents(table.policies.iter().map(|policy| policy.name.as_str()));
        notes.push(format!(
            "{} has row level security of its own ({own}), which stays: of an organization's rows a role sees those that it lets through. Look \
             whether it is for the roles that the proxy signs in with.",
            table.name
        ));
    }
    notes.extend(relied_upon(design));
    let outside = design
        .catalog
        .tables
        .iter()
        .filter(|table| !table.is_part() && design.tenanted(&table.name).is_none());
    for table in outside {
        let keys = table
            .foreign_keys()
            .filter(|key| key.target.as_ref().is_some_and(|target| design.tenanted(target).is_some()));
        notes.extend(keys.map(|key| {
            format!(
                "{}: {} refers to rows of organizations from a table that is none's: it may refer to anybody's, and the key that it refers to \
                 stays unique over all.",
                table.name, key.name
            )
        }));
    }
    for view in exposing(design) {
        let name = &view.name;
        notes.extend(if view.is_materialized {
            Some(format!(
                "Materialized view {name} has rows of all organizations, and policies cannot be on it: the application's roles get no right \
                 to it."
            ))
        } else if design.catalog.version < 15 {
            Some(format!(
                "View {name} reads with its owner's rights, past the policies (security_invoker needs PostgreSQL 15): the application's roles \
                 get no right to it."
            ))
        } else if !view.is_invoker {
            Some(format!(
                "View {name} will read with the rights of who asks (security_invoker): a role that has rights on the view alone, and not on \
                 what it reads, will be refused."
            ))
        } else {
            None
        });
    }
    notes.extend(design.catalog.definers.iter().map(|definer| {
        format!("Function {definer} runs with its owner's rights; look at what it reads and writes, and who may call it.")
    }));
    notes
}

/// Keys that stay beside those that lead with the organization, and why; and what people ask for who do not know of it.
fn relied_upon(design: &Design<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    for unique in keys::uniques(design) {
        let table = &unique.one.table.name;
        let Some(replaced) = unique.replaces else { continue };
        let (name, columns) = match replaced {
            keys::Replaced::Constraint(constraint, _) => (&constraint.name, idents(&constraint.columns)),
            keys::Replaced::Index(index) => (&index.name, idents(index.columns.iter().flatten())),
        };
        if keys::is_relied_upon(replaced) {
            notes.push(format!(
                "{table}: {name} stays beside the one that leads with the organization, for a view, a function, or logical replication needs \
                 it: values of it are unique over all organizations."
            ));
        } else if !keys::is_kept(replaced, unique.one, design) {
            notes.push(format!(
                "{table}: {name} becomes unique in each organization. INSERT ... ON CONFLICT ({columns}) is then ON CONFLICT ({}), or ON \
                 CONFLICT DO NOTHING. If it must stay unique over all (a name that people sign in with, a token), say global_uniques = [{:?}].",
                idents(&unique.columns),
                name
            ));
        }
    }
    notes
}
