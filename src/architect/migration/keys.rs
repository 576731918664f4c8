//! Keys, indexes and foreign keys that lead with the organization, in place of those that do not.

use std::collections::BTreeSet;

use super::design::{Design, TenantColumn, Tenanted};
use crate::architect::catalog::{Constraint, Index};
use crate::architect::names::{Name, composed, ident, idents};
use crate::architect::treatment::Source;

/// A unique index that leads with the organization.
pub struct Unique<'a> {
    /// Whose it is.
    pub one: &'a Tenanted<'a>,
    /// Its name while the old one is there.
    pub name: String,
    /// What stands behind its name and table.
    pub tail: String,
    /// Its columns.
    pub columns: Vec<String>,
    /// What it takes the place of.
    pub replaces: Option<Replaced<'a>>,
}

/// What a unique index takes the place of.
#[derive(Clone, Copy)]
pub enum Replaced<'a> {
    /// A primary key or unique constraint, and its index.
    Constraint(&'a Constraint, &'a Index),
    /// A unique index without a constraint.
    Index(&'a Index),
}

/// A foreign key of an organization's own.
pub struct Reference<'a> {
    /// Whose it is.
    pub one: &'a Tenanted<'a>,
    /// Its name.
    pub name: String,
    /// Its columns.
    pub columns: Vec<String>,
    /// What it refers to.
    pub target: Name,
    /// There.
    pub target_columns: Vec<String>,
    /// What it takes the place of.
    pub replaces: Option<&'a Constraint>,
    /// What stands behind the columns: ON DELETE and the like.
    pub tail: String,
}

/// An index that leads with the organization.
pub struct Leading<'a> {
    /// Whose it is.
    pub one: &'a Tenanted<'a>,
    /// Its name.
    pub name: String,
    /// What stands behind its name and table.
    pub tail: String,
    /// The one that it makes redundant, if it is of one.
    pub of: Option<&'a Index>,
    /// How often queries were seen that it is for.
    pub calls: Option<i64>,
}

/// A table of fewer rows is read through as fast.
const WORTH_AN_INDEX: i64 = 1_000;

impl Reference<'_> {
    /// `FOREIGN KEY ...`
    pub fn definition(&self) -> String {
        format!(
            "FOREIGN KEY ({}) REFERENCES {} ({}){}",
            idents(&self.columns),
            self.target,
            idents(&self.target_columns),
            self.tail
        )
    }
}

/// All unique indexes that are to be made.
pub fn uniques<'a>(design: &'a Design<'a>) -> Vec<Unique<'a>> {
    let mut found: Vec<Unique<'a>> = Vec::new();
    for one in &design.tables {
        for index in one.table.indexes.iter().filter(|index| index.is_unique && index.is_valid) {
            let columns: Vec<String> = index.columns.iter().flatten().cloned().collect();
            if one.leads(&columns) || one.entry.global_uniques.contains(&index.name) {
                continue;
            }
            let constraint = index.constraint.as_ref();
            let constraint =
                constraint.and_then(|name| one.table.constraints.iter().find(|one| one.name == *name));
            let name = composed(&[&index.name, "tenant"]);
            let lead = one.lead(false);
            found.push(Unique {
                one,
                tail: leading(index, &lead),
                name,
                columns: with_lead(&lead, &columns),
                replaces: Some(constraint.map_or(Replaced::Index(index), |c| Replaced::Constraint(c, index))),
            });
        }
    }
    for reference in references(design) {
        let Some(parent) = design.tenanted(&reference.target) else { continue };
        let wanted: BTreeSet<&String> = reference.target_columns.iter().collect();
        let is_there = |columns: &[String]| columns.iter().collect::<BTreeSet<_>>() == wanted;
        let has_own = parent.table.indexes.iter().any(|index| {
            let columns: Vec<String> = index.columns.iter().flatten().cloned().collect();
            index.is_unique && !index.is_partial && columns.len() == index.columns.len() && is_there(&columns)
        });
        let is_planned =
            found.iter().any(|one| one.one.table.name == reference.target && is_there(&one.columns));
        if has_own || is_planned {
            continue;
        }
        let parts: Vec<&str> = std::iter::once(parent.table.name.name.as_str())
            .chain(reference.target_columns.iter().map(String::as_str))
            .chain(["key"])
            .collect();
        let name = composed(&parts);
        let tail = btree(&reference.target_columns);
        found.push(Unique { one: parent, name, tail, columns: reference.target_columns, replaces: None });
    }
    found
}

/// All foreign keys that are to be made.
pub fn references<'a>(design: &'a Design<'a>) -> Vec<Reference<'a>> {
    let mut found = Vec::new();
    for one in &design.tables {
        for key in one.table.foreign_keys() {
            let Some(target) = &key.target else { continue };
            let Some(parent) = design.tenanted(target) else { continue };
            if one.leads(&key.columns) {
                continue;
            }
            let with_project = stays_in_project(one, parent, key);
            let columns = with_lead(&one.lead(with_project), &key.columns);
            let target_columns = with_lead(&parent.lead(with_project), &key.target_columns);
            found.push(Reference {
                one,
                name: composed(&[&key.name, "tenant"]),
                tail: tail(
                    key,
                    design.catalog.version,
                    with_project && moves_along(one, parent) || hangs_on(one, key),
                ),
                columns,
                target: target.clone(),
                target_columns,
                replaces: Some(key),
            });
        }
        found.extend(to_tenants(one, design));
    }
    found
}

/// That its organization, and its project, exist.
fn to_tenants<'a>(one: &'a Tenanted<'a>, design: &'a Design<'a>) -> Option<Reference<'a>> {
    let name = &one.table.name.name;
    if let Some(project) = &one.project {
        let is_there = matches!(project.source, Source::Column(_));
        let projects = design.tenanted(&design.projects);
        let own = projects
            .map_or(design.treatment.organizations.column.as_str(), |projects| projects.organization.name);
        return (!is_there).then(|| Reference {
            one,
            name: composed(&[name, project.name, "fkey"]),
            columns: one.lead(true).into_iter().map(str::to_owned).collect(),
            target: design.projects.clone(),
            target_columns: vec![own.to_owned(), design.treatment.projects.id.clone()],
            replaces: None,
            tail: String::new(),
        });
    }
    one.organization.is_new().then(|| Reference {
        one,
        name: composed(&[name, one.organization.name, "fkey"]),
        columns: vec![one.organization.name.to_owned()],
        target: design.organizations.clone(),
        target_columns: vec![design.treatment.organizations.id.clone()],
        replaces: None,
        tail: String::new(),
    })
}

/// All other indexes that are to be made: one for each that does not lead with the organization, and one for each foreign
/// key that has none.
pub fn indexes<'a>(design: &'a Design<'a>) -> Vec<Leading<'a>> {
    let (uniques, references) = (uniques(design), references(design));
    let mut found = Vec::new();
    for one in &design.tables {
        let mut covered: Vec<Vec<String>> =
            one.table.indexes.iter().filter(|i| !i.is_partial).map(columns_of).collect();
        covered
            .extend(uniques.iter().filter(|u| u.one.table.name == one.table.name).map(|u| u.columns.clone()));
        for index in one
            .table
            .indexes
            .iter()
            .filter(|index| !index.is_unique && index.is_valid && index.method == "btree")
        {
            let columns = columns_of(index);
            if one.leads(&columns) {
                continue;
            }
            let lead = one.lead(false);
            let name = composed(&[&index.name, "tenant"]);
            if !index.is_partial && columns.len() == index.columns.len() {
                covered.push(with_lead(&lead, &columns));
            }
            found.push(Leading { one, tail: leading(index, &lead), name, of: Some(index), calls: None });
        }
        for reference in references.iter().filter(|reference| reference.one.table.name == one.table.name) {
            // In whatever order: the organization first, then what is looked for.
            let is_covered = covered.iter().any(|columns| {
                columns.len() >= reference.columns.len()
                    && reference
                        .columns
                        .iter()
                        .all(|column| columns[..reference.columns.len()].contains(column))
            }) || reference.columns.len() == 1
                && covered.iter().any(|columns| one.leads(columns));
            if is_covered {
                continue;
            }
            let parts: Vec<&str> = std::iter::once(one.table.name.name.as_str())
                .chain(reference.columns.iter().map(String::as_str))
                .chain(["idx"])
                .collect();
            let name = composed(&parts);
            let tail = btree(&reference.columns);
            covered.push(reference.columns.clone());
            found.push(Leading { one, name, tail, of: None, calls: None });
        }
        let searches = design.catalog.searches.iter().filter(|search| search.table == one.table.name);
        for search in searches.filter(|_| one.table.rows >= WORTH_AN_INDEX) {
            let columns = with_lead(&one.lead(false), &search.columns());
            // One by which rows are found is enough, whatever else is asked of them.
            let is_covered = covered.iter().any(|there| {
                one.leads(there)
                    && there.get(1).is_some_and(|second| match search.equal.is_empty() {
                        true => search.range.as_ref() == Some(second),
                        false => search.equal.contains(second),
                    })
            });
            if is_covered || columns.len() < 2 {
                continue;
            }
            let parts: Vec<&str> = std::iter::once(one.table.name.name.as_str())
                .chain(columns.iter().map(String::as_str))
                .chain(["idx"])
                .collect();
            let (name, tail) = (composed(&parts), btree(&columns));
            covered.push(columns);
            found.push(Leading { one, name, tail, of: None, calls: Some(search.calls) });
        }
    }
    found
}

fn columns_of(index: &Index) -> Vec<String> {
    index.columns.iter().map_while(Clone::clone).collect()
}

fn with_lead(lead: &[&str], columns: &[String]) -> Vec<String> {
    let rest = columns.iter().filter(|column| !lead.contains(&column.as_str())).cloned();
    lead.iter().map(|column| (*column).to_owned()).chain(rest).collect()
}

fn btree(columns: &[String]) -> String {
    format!(" USING btree ({})", idents(columns))
}

/// An index's tail with these columns before its own; each of them once.
fn leading(index: &Index, lead: &[&str]) -> String {
    let at = index.tail.find('(').map_or(index.tail.len(), |open| open + 1);
    let (head, rest) = index.tail.split_at(at);
    let (own, behind) = items(rest);
    let is_lead =
        |n: usize| index.columns.get(n).and_then(Option::as_deref).is_some_and(|name| lead.contains(&name));
    let own = own.into_iter().enumerate().filter(|(n, _)| !is_lead(*n)).map(|(_, item)| item.trim());
    let all: Vec<_> = std::iter::once(idents(lead)).chain(own.map(str::to_owned)).collect();
    format!("{head}{}{behind}", all.join(", "))
}

/// What stands between commas, up to the parenthesis that ends it; and the rest from there on.
pub fn items(text: &str) -> (Vec<&str>, &str) {
    let (mut found, mut begin, mut depth, mut quote) = (Vec::new(), 0, 0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') if depth == 0 => {
                found.push(&text[begin..at]);
                return (found, &text[at..]);
            }
            (None, ')') => depth -= 1,
            (None, ',') if depth == 0 => {
                found.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    (found, &text[begin..])
}

/// `CREATE INDEX CONCURRENTLY ...`
pub fn concurrently(is_unique: bool, name: &str, table: &Name, tail: &str) -> String {
    format!("{} CONCURRENTLY IF NOT EXISTS {} ON {table}{tail}", create(is_unique), ident(name))
}

/// `CREATE INDEX`, or of a unique one.
pub fn create(is_unique: bool) -> &'static str {
    if is_unique { "CREATE UNIQUE INDEX" } else { "CREATE INDEX" }
}

/// What stands behind the columns of a foreign key that also has the organization's: a deleted row must not take the
/// organization with it, so it is only its own columns that become NULL.
fn tail(key: &Constraint, version: u32, moves_along: bool) -> String {
    let named = if key.delete_columns.is_empty() { &key.columns } else { &key.delete_columns };
    let own = if version >= 15 { format!(" ({})", idents(named)) } else { String::new() };
    let mut tail = String::new();
    tail.push_str(match key.on_update {
        'c' => " ON UPDATE CASCADE",
        _ if moves_along => " ON UPDATE CASCADE",
        'r' => " ON UPDATE RESTRICT",
        _ => "",
    });
    match key.on_delete {
        'c' => tail.push_str(" ON DELETE CASCADE"),
        'r' => tail.push_str(" ON DELETE RESTRICT"),
        'n' if version >= 15 => tail.push_str(&format!(" ON DELETE SET NULL{own}")),
        'd' if version >= 15 => tail.push_str(&format!(" ON DELETE SET DEFAULT{own}")),
        _ => {}
    }
    if keeps(key, version) {
        // The old one acts first.
        tail.push_str(" DEFERRABLE INITIALLY DEFERRED");
    } else if key.is_deferrable {
        tail.push_str(if key.is_deferred { " DEFERRABLE INITIALLY DEFERRED" } else { " DEFERRABLE" });
    }
    tail
}

/// Whether what a row refers to is of its own project: because that is how it found its project, or because there was only one.
fn stays_in_project(one: &Tenanted<'_>, parent: &Tenanted<'_>, key: &Constraint) -> bool {
    let Some((own, theirs)) = one.project.as_ref().zip(parent.project.as_ref()) else { return false };
    match own.source {
        Source::Through(columns) => *columns == key.columns,
        Source::Default => *theirs.source == Source::Default,
        _ => false,
    }
}

/// Whether a row's organization is that of the row which this key refers to: it goes along when that one is given away, by whoever
/// may do so.
fn hangs_on(one: &Tenanted<'_>, key: &Constraint) -> bool {
    matches!(one.organization.source, Source::Through(columns) if *columns == key.columns)
}

/// Whether a row goes along when what it hangs on moves to another project: the application knows of the one's project only.
fn moves_along(one: &Tenanted<'_>, parent: &Tenanted<'_>) -> bool {
    one.project.as_ref().is_some_and(TenantColumn::is_new) && parent.project.is_some()
}

/// Whether a foreign key must stay beside the one with the organization: before PostgreSQL 15, what becomes NULL are all
/// columns of a foreign key.
pub fn keeps(key: &Constraint, version: u32) -> bool {
    version < 15 && matches!(key.on_delete, 'n' | 'd')
}

/// Whether a key must stay: because a foreign key does that refers to it, or with the partitions of its table.
pub fn is_kept(replaced: Replaced<'_>, one: &Tenanted<'_>, design: &Design<'_>) -> bool {
    if one.table.is_partitioned || is_relied_upon(replaced) {
        return true;
    }
    let columns: Vec<&String> = match replaced {
        Replaced::Constraint(constraint, _) => constraint.columns.iter().collect(),
        Replaced::Index(index) => index.columns.iter().flatten().collect(),
    };
    design.catalog.referrers().get(&one.table.name).is_some_and(|referrers| {
        referrers.iter().any(|(child, key)| {
            let is_composite = design.tenanted(&child.name).is_some();
            // In whatever order.
            key.target_columns.iter().collect::<BTreeSet<_>>() == columns.iter().copied().collect()
                && (!is_composite || keeps(key, design.catalog.version))
        })
    })
}

/// Whether a view is grouped by a key, or logical replication knows rows by it.
pub fn is_relied_upon(replaced: Replaced<'_>) -> bool {
    match replaced {
        Replaced::Constraint(constraint, index) => constraint.is_built_upon || index.is_replica_identity,
        Replaced::Index(index) => index.is_replica_identity,
    }
}
