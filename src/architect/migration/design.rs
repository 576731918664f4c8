//! What is to become of each table: the schema and `tenancy.toml` brought together, or all that contradicts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::obstacles;
use crate::architect::catalog::{Catalog, Constraint, Table};
use crate::architect::names::Name;
use crate::architect::treatment::{Entry, IdColumn, Otherwise, Scope, Source, Treatment};

/// A schema and what is to become of it.
pub struct Design<'a> {
    /// What there is.
    pub catalog: &'a Catalog,
    /// What is to become of it.
    pub treatment: &'a Treatment,
    /// The table of organizations.
    pub organizations: Name,
    /// It is not there yet.
    pub makes_organizations: bool,
    /// The table of projects.
    pub projects: Name,
    /// It is not there yet.
    pub makes_projects: bool,
    /// Tables of organizations and projects, those before others that these find their organization through.
    pub tables: Vec<Tenanted<'a>>,
    /// Tables for all to read.
    pub shared: Vec<&'a Table>,
    /// What a person should know or decide.
    pub notes: Vec<String>,
}

/// A table of an organization, or of a project.
#[derive(Clone)]
pub struct Tenanted<'a> {
    /// As it is.
    pub table: &'a Table,
    /// What it inherits its columns from; itself, if it does not.
    pub whole: &'a Table,
    /// As it is to be.
    pub entry: &'a Entry,
    /// The column that says whose a row is.
    pub organization: TenantColumn<'a>,
    /// The same of its project.
    pub project: Option<TenantColumn<'a>>,
}

/// A column that says whose a row is.
#[derive(Clone)]
pub struct TenantColumn<'a> {
    /// Its name.
    pub name: &'a str,
    /// How existing rows get it.
    pub source: &'a Source,
}

impl TenantColumn<'_> {
    /// Whether it is to be added.
    pub fn is_new(&self) -> bool {
        !matches!(self.source, Source::Column(_))
    }
}

/// All that contradicts.
#[derive(Debug)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl<'a> Design<'a> {
    /// Brings both together.
    ///
    /// # Errors
    /// All that contradicts.
    pub fn new(catalog: &'a Catalog, treatment: &'a Treatment) -> Result<Self, Mistakes> {
        let mut wrong = Vec::new();
        let mut named = |what: &str, text: &str| {
            Name::parse(text).unwrap_or_else(|| {
                wrong.push(format!("[{what}] table = {text:?} is no name; write \"schema.name\""));
                Name::new("", "")
            })
        };
        let organizations = named("organizations", &treatment.organizations.table);
        let projects = named("projects", &treatment.projects.table);
        let mut design = Self {
            makes_organizations: catalog.table(&organizations).is_none(),
            makes_projects: catalog.table(&projects).is_none(),
            catalog,
            treatment,
            organizations,
            projects,
            tables: Vec::new(),
            shared: Vec::new(),
            notes: Vec::new(),
        };
        let [of_organizations, of_projects] =
            [&treatment.organizations, &treatment.projects].map(|tenants| tenants.kind.of_context());
        if of_organizations != of_projects {
            wrong.push(format!(
                "[projects] type = {:?} is not that of [organizations]: a context's ids are of one type",
                treatment.projects.kind.sql()
            ));
        }
        wrong.extend(design.kinds());
        wrong.extend(design.strangers());
        wrong.extend(obstacles::roles(&design));
        let mut found = Vec::new();
        for table in &catalog.tables {
            if table.name == design.organizations {
                continue;
            }
            match design.treat(table) {
                Ok(Some(tenanted)) => found.push(tenanted),
                Ok(None) => {}
                Err(mistake) => wrong.push(mistake),
            }
        }
        wrong.extend(found.iter().flat_map(|one| mistakes_of(one, &found, &design)));
        if !wrong.is_empty() {
            return Err(Mistakes(wrong));
        }
        design.tables = in_order(found)?;
        let wrong = obstacles::mistakes(&design);
        if !wrong.is_empty() {
            return Err(Mistakes(wrong));
        }
        design.notes = obstacles::notes(&design);
        Ok(design)
    }

    /// Tables of tenants that are there, with ids of other types than the file says.
    fn kinds(&self) -> Vec<String> {
        let both = [
            ("organizations", &self.organizations, &self.treatment.organizations),
            ("projects", &self.projects, &self.treatment.projects),
        ];
        let there = both
            .into_iter()
            .filter_map(|(what, name, tenants)| Some((what, tenants, self.catalog.table(name)?)));
        let wrong = there.filter_map(|(what, tenants, table)| {
            let (name, id) = (&table.name, &tenants.id);
            let Some(column) = table.column(id) else {
                return Some(format!("[{what}] id = {id:?}: {name} has no such column"));
            };
            (IdColumn::of(&column.kind) != Some(tenants.kind)).then(|| {
                format!(
                    "[{what}] type = {:?}: {id} of {name} is {}; say that, or name another table, which is made where there is none",
                    tenants.kind.sql(),
                    column.kind
                )
            })
        });
        wrong.collect()
    }

    /// Tables that the file names and the database does not have.
    fn strangers(&self) -> Vec<String> {
        let there: BTreeSet<String> =
            self.catalog.tables.iter().map(|table| table.name.to_string()).collect();
        let named = self.treatment.tables.keys().filter(|name| !there.contains(*name));
        named
            .map(|name| {
                format!("[tables.{name:?}]: the database has no such table; take it out, or correct its name")
            })
            .collect()
    }

    fn treat(&mut self, table: &'a Table) -> Result<Option<Tenanted<'a>>, String> {
        let name = &table.name;
        let whole = self.catalog.whole(table);
        if table.is_part() && self.treatment.of(name).is_some() {
            return Err(format!(
                "table {name} is part of {}: say it of that, and take it out of the file",
                whole.name
            ));
        }
        if table.parents.len() > 1 {
            return Err(format!(
                "table {name} inherits from several tables: this version does not migrate it; ALTER TABLE {name} NO INHERIT all but one"
            ));
        }
        if table.is_partition {
            return Ok(None);
        }
        let Some(entry) = self.treatment.of(&whole.name) else {
            if table.is_part() {
                return Ok(None);
            }
            return Err(format!(
                "table {name} is not in the file; add [tables.{:?}] with its scope",
                name.to_string()
            ));
        };
        if entry.scope == Scope::Shared {
            self.shared.push(table);
            return Ok(None);
        }
        if entry.scope == Scope::Unknown {
            return Err(format!(
                "[tables.{:?}]: scope is \"unknown\"; say whose its rows are",
                whole.name.to_string()
            ));
        }
        let missing = |what: &str| {
            format!("[tables.{:?}]: {what} is missing; say how its rows find theirs", whole.name.to_string())
        };
        let source = entry.organization.as_ref().ok_or_else(|| missing("organization"))?;
        let organization = column(source, &self.treatment.organizations.column);
        let project = match (entry.scope, &entry.project) {
            (Scope::Project, Some(source)) => Some(column(source, &self.treatment.projects.column)),
            (Scope::Project, None) => return Err(missing("project")),
            (_, Some(_)) => {
                return Err(format!(
                    "[tables.{:?}]: project is given, but its scope is not \"project\"",
                    name.to_string()
                ));
            }
            (_, None) => None,
        };
        Ok(Some(Tenanted { table, whole, entry, organization, project }))
    }

    /// A table of an organization or a project.
    pub fn tenanted(&self, name: &Name) -> Option<&Tenanted<'a>> {
        self.tables.iter().find(|one| one.table.name == *name)
    }
}

fn column<'a>(source: &'a Source, usual: &'a str) -> TenantColumn<'a> {
    let name = if let Source::Column(name) = source { name } else { usual };
    TenantColumn { name, source }
}

impl<'a> Tenanted<'a> {
    /// `organization_id`, or `organization_id, project_id`.
    pub fn lead(&self, with_project: bool) -> Vec<&'a str> {
        let project = self.project.as_ref().filter(|_| with_project).map(|column| column.name);
        std::iter::once(self.organization.name).chain(project).collect()
    }

    /// Columns that say whose a row is.
    pub fn tenant_columns(&self) -> impl Iterator<Item = &TenantColumn<'a>> {
        std::iter::once(&self.organization).chain(&self.project)
    }

    /// Whether this key leads with the organization already.
    pub fn leads(&self, columns: &[String]) -> bool {
        columns.first().is_some_and(|first| first == self.organization.name)
    }

    /// The foreign key of these columns; for a table that inherits, that of what it inherits from will do.
    pub fn foreign_key(&self, columns: &[String]) -> Option<&'a Constraint> {
        self.table.foreign_keys().chain(self.whole.foreign_keys()).find(|key| key.columns == columns)
    }

    /// It inherits from another table.
    pub fn is_heir(&self) -> bool {
        self.table.is_part()
    }

    /// The table as FROM and UPDATE name its own rows: without those of tables that inherit from it.
    pub fn own_rows(&self, catalog: &Catalog) -> String {
        let has_heirs = !self.table.is_partitioned && !catalog.parts(&self.table.name).is_empty();
        format!("{}{}", if has_heirs { "ONLY " } else { "" }, self.table.name)
    }
}

fn mistakes_of(one: &Tenanted<'_>, all: &[Tenanted<'_>], design: &Design<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    let name = one.table.name.to_string();
    for column in one.tenant_columns() {
        match column.source {
            Source::Column(there) if one.table.column(there).is_none() => {
                wrong.push(format!("[tables.{name:?}]: there is no column {there:?}"));
            }
            Source::Through(columns) => {
                let Some(key) = one.foreign_key(columns) else {
                    wrong.push(format!("[tables.{name:?}]: {columns:?} is no foreign key; name its columns as the constraint does"));
                    continue;
                };
                let is_found = key.target.as_ref().is_some_and(|target| {
                    *target == design.projects || all.iter().any(|other| other.table.name == *target)
                });
                if !is_found {
                    let target = key.target.as_ref().map(Name::to_string).unwrap_or_default();
                    wrong.push(format!(
                        "[tables.{name:?}]: {columns:?} leads to {target}, which has no organization"
                    ));
                }
            }
            Source::Mapping(file) => {
                let named = design.treatment.mappings.get(file).map(|mapping| mapping.columns.as_slice());
                let unknown =
                    named.unwrap_or_default().iter().filter(|name| one.table.column(name).is_none());
                wrong.extend(unknown.map(|column| {
                    format!(
                        "[tables.{name:?}]: {} names a column {column:?}, which there is not",
                        file.display()
                    )
                }));
            }
            _ => {}
        }
        if column.is_new() && one.table.column(column.name).is_some() {
            wrong.push(format!(
                "[tables.{name:?}]: there is a column {:?} already; say {{ column = {:?} }}, or choose another name in \
                 [organizations] and [projects]",
                column.name, column.name
            ));
        }
    }
    let is_project_sure = one.project.as_ref().is_none_or(|project| *project.source == Source::Default);
    if one.entry.otherwise != Otherwise::Stop && !design.makes_projects && !is_project_sure {
        wrong.push(format!(
            "[tables.{name:?}]: otherwise needs a project that every organization has, and {} is the application's own; say scope = \
             \"organization\", or correct the rows",
            design.projects
        ));
    }
    let has_column = one.tenant_columns().any(|column| !column.is_new());
    if one.entry.otherwise == Otherwise::Default && has_column {
        wrong.push(format!(
            "[tables.{name:?}]: otherwise = \"default\" would fill a column that is there, and nobody could tell afterwards which rows had \
             nothing in it; say \"quarantine\", or fill it first"
        ));
    }
    if one.entry.otherwise == Otherwise::Quarantine {
        let organization = &design.treatment.default.organization;
        if design.treatment.quarantine.as_ref().is_some_and(|other| other.organization == *organization) {
            wrong.push("[quarantine] has the organization of [default]; give it one of its own".to_owned());
        }
        if design.treatment.quarantine.is_none() {
            wrong.push(format!(
                "[tables.{name:?}]: otherwise = \"quarantine\", and there is no [quarantine]; add one with organization and project"
            ));
        }
    }
    let all = std::iter::once(one.table).chain(design.catalog.parts(&one.table.name));
    let uniques: BTreeSet<&str> =
        all.flat_map(|table| &table.indexes).map(|index| index.name.as_str()).collect();
    let unknown =
        one.entry.global_uniques.iter().filter(|global| !one.is_heir() && !uniques.contains(global.as_str()));
    wrong.extend(unknown.map(|global| {
        format!("[tables.{name:?}]: global_uniques names {global:?}, which is no unique index")
    }));
    wrong
}

/// Those first that others find their organization through.
fn in_order(mut left: Vec<Tenanted<'_>>) -> Result<Vec<Tenanted<'_>>, Mistakes> {
    let mut done: Vec<Tenanted<'_>> = Vec::new();
    while !left.is_empty() {
        let waiting: BTreeMap<Name, ()> = left.iter().map(|one| (one.table.name.clone(), ())).collect();
        let is_ready = |one: &Tenanted<'_>| {
            one.tenant_columns().all(|column| match column.source {
                Source::Through(columns) => {
                    let target = one.foreign_key(columns).and_then(|key| key.target.as_ref());
                    target.is_none_or(|target| !waiting.contains_key(target))
                }
                _ => true,
            })
        };
        let (ready, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(is_ready);
        if ready.is_empty() {
            let names: Vec<_> = rest.iter().map(|one| one.table.name.to_string()).collect();
            return Err(Mistakes(vec![format!(
                "tables find their organization through each other, in a circle: {}; have one of them find it another way",
                names.join(", ")
            )]));
        }
        done.extend(ready);
        left = rest;
    }
    Ok(done)
}
