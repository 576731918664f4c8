//! A first `tenancy.toml` from a live schema: whose each table seems to be, and what says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::catalog::{Catalog, Table};
use super::names::Name;
use super::treatment::IdColumn;

/// Names under which applications keep their customers, the plainest first.
const TENANTS: [&str; 9] = [
    "organizations",
    "organisations",
    "tenants",
    "workspaces",
    "companies",
    "teams",
    "accounts",
    "organization",
    "tenant",
];

/// What tools keep in a database for themselves, and lists that are the same for everybody.
const SHARED: &str = "schema_migrations ar_internal_metadata django_migrations django_content_type auth_permission \
     flyway_schema_history databasechangelog databasechangeloglock _prisma_migrations __efmigrationshistory alembic_version \
     knex_migrations knex_migrations_lock migrations goose_db_version spatial_ref_sys countries currencies languages timezones \
     locales plans features units";

/// People, and what is paid: of a whole organization.
const OF_ORGANIZATIONS: &str = "user users member members membership memberships person people profile profiles customer customers \
     contact contacts invoice invoices invoice_line invoice_lines subscription subscriptions payment payments role roles \
     permission permissions session sessions api_key api_keys setting settings tag tags";

/// What was found.
pub struct Guess {
    /// The table of tenants, where there is one.
    pub tenants: Option<(Name, String, IdColumn)>,
    /// The table of projects.
    pub projects: Option<(Name, String, IdColumn)>,
    /// Each table's.
    pub tables: BTreeMap<Name, Guessed>,
}

/// A table's.
pub struct Guessed {
    /// Its lines in the file.
    lines: Vec<String>,
    /// What says so.
    evidence: String,
    /// Nobody can say but a person.
    pub is_unknown: bool,
}

impl Guess {
    /// Looks at what there is.
    pub fn at(catalog: &Catalog) -> Self {
        let tenants = tenant_table(catalog);
        let projects = catalog
            .tables
            .iter()
            .filter(|table| matches!(table.name.name.as_str(), "projects" | "project"))
            .find_map(key_of);
        let mut guess = Self { tenants, projects, tables: BTreeMap::new() };
        let found = match &guess.tenants {
            Some((tenants, ..)) => guess.by_paths(catalog, tenants),
            None => guess.by_names(catalog),
        };
        guess.tables = found;
        guess
    }

    /// A single tenant: everything is the default organization's.
    fn by_names(&self, catalog: &Catalog) -> BTreeMap<Name, Guessed> {
        let project_paths =
            self.projects.as_ref().map(|(table, ..)| paths(catalog, table, &[true])).unwrap_or_default();
        let mut found = BTreeMap::new();
        for table in catalog.tables.iter().filter(|table| !table.is_part()) {
            let name = table.name.name.as_str();
            let is_projects = self.projects.as_ref().is_some_and(|(projects, ..)| *projects == table.name);
            let guessed = if is_projects {
                Guessed::new(
                    &["scope = \"organization\"", "organization = \"default\""],
                    "the projects themselves",
                )
            } else if is_word(SHARED, name) {
                Guessed::new(&["scope = \"shared\""], "by its name it is the same for all")
            } else if let Some(columns) = project_paths.get(&table.name) {
                let line = self.project_line(table, columns);
                let lines = ["scope = \"project\"", "organization = \"default\"", &line];
                Guessed::new(&lines, "a path of foreign keys leads to the projects")
            } else if self.projects.is_some() || is_word(OF_ORGANIZATIONS, name) {
                let why = "people, money, or nothing of a project: of the whole organization";
                Guessed::new(&["scope = \"organization\"", "organization = \"default\""], why)
            } else {
                let lines = ["scope = \"project\"", "organization = \"default\"", "project = \"default\""];
                Guessed::new(&lines, "no other tenant in sight: all rows are the default project's")
            };
            found.insert(table.name.clone(), guessed);
        }
        found
    }

    /// How rows find their project, on this path.
    fn project_line(&self, table: &Table, columns: &[String]) -> String {
        let projects = self.projects.as_ref().map(|(projects, ..)| projects);
        let is_direct =
            table.foreign_keys().any(|key| key.columns == columns && key.target.as_ref() == projects);
        match columns {
            [column] if is_direct => format!("project = {{ column = {column:?} }}"),
            _ => format!("project = {{ through = {} }}", list(columns)),
        }
    }

    /// There are tenants already: who refers to them, and who to those.
    fn by_paths(&self, catalog: &Catalog, tenants: &Name) -> BTreeMap<Name, Guessed> {
        let to_tenants = paths(catalog, tenants, &[true, false]);
        // A project that a row may be without is not made a condition for seeing it.
        let to_projects = match &self.projects {
            Some((projects, ..)) if to_tenants.contains_key(projects) => paths(catalog, projects, &[true]),
            _ => BTreeMap::new(),
        };
        let mut found = BTreeMap::new();
        for table in catalog.tables.iter().filter(|table| !table.is_part() && table.name != *tenants) {
            let direct = table
                .foreign_keys()
                .find(|key| key.target.as_ref() == Some(tenants) && key.columns.len() == 1);
            let mut guessed = if let Some(key) = direct {
                let line = format!("organization = {{ column = {:?} }}", key.columns[0]);
                let mut guessed = Guessed::new(
                    &["scope = \"organization\"", &line],
                    &format!("{} refers to the tenants", key.name),
                );
                if !table.are_not_null(&key.columns) {
                    guessed.lines.push("otherwise = \"stop\"".to_owned());
                    guessed.evidence.push_str(", but may be NULL");
                }
                guessed
            } else if let Some(columns) = to_tenants.get(&table.name) {
                let line = format!("organization = {{ through = {} }}", list(columns));
                Guessed::new(
                    &["scope = \"organization\"", &line],
                    "a path of foreign keys leads to the tenants",
                )
            } else if is_word(SHARED, &table.name.name) {
                Guessed::new(&["scope = \"shared\""], "by its name it is the same for all")
            } else {
                let mut guessed =
                    Guessed::new(&["scope = \"unknown\""], "no path of foreign keys leads to the tenants");
                guessed.is_unknown = true;
                guessed
            };
            if let Some(columns) = to_projects.get(&table.name).filter(|_| !guessed.is_unknown) {
                guessed.lines[0] = "scope = \"project\"".to_owned();
                guessed.lines.insert(2, self.project_line(table, columns));
                guessed.evidence.push_str(", and one to the projects");
            }
            found.insert(table.name.clone(), guessed);
        }
        found
    }

    /// The file.
    ///
    /// # Errors
    /// The system has no random bytes for ids.
    pub fn to_toml(&self, catalog: &Catalog) -> Result<String, String> {
        let mut out = String::from(HEAD);
        let legacy = catalog.logins.iter().map(|role| format!("{role:?}")).collect::<Vec<_>>().join(", ");
        let schema = catalog.tables.first().map_or("public", |table| &table.name.schema);
        let schema =
            if catalog.tables.iter().any(|table| table.name.schema == "public") { "public" } else { schema };
        let application = format!("{}_tenant", catalog.database);
        let _ = write!(
            out,
            "[roles]\n# Those that the proxy signs in with; made where there are none, without a password.\napplication = [{application:?}]\n\
             # Those that work as before until cut-over: past the proxy, with every row in sight.\nlegacy = [{legacy}]\n"
        );
        // One type for both: it is that of the context's ids.
        let of_tenants =
            self.tenants.as_ref().or(self.projects.as_ref()).map_or(IdColumn::Uuid, |found| found.2);
        for (table, found, column, what) in [
            ("organizations", &self.tenants, "organization_id", "The tenants."),
            ("projects", &self.projects, "project_id", "What an organization is divided into."),
        ] {
            let made = Name::new(schema, table).to_string();
            let (name, id, kind) = match found {
                Some((name, id, kind)) => (name.to_string(), id.as_str(), *kind),
                None => (made, "id", of_tenants),
            };
            let how = if found.is_some() { "It is there." } else { "It is made." };
            let _ = write!(
                out,
                "\n# {what} {how}\n[{table}]\ntable = {name:?}\nid = {id:?}\ntype = {:?}\ncolumn = {column:?}\n",
                kind.sql()
            );
        }
        let id = |found: &Option<(Name, String, IdColumn)>| {
            default_id(found.as_ref().map_or(of_tenants, |found| found.2))
        };
        let (organization, project) = (id(&self.tenants)?, id(&self.projects)?);
        let _ = write!(
            out,
            "\n# Who owns the rows of tables that say \"default\".\n[default]\norganization = {organization:?}\n\
             organization_name = \"Default\"\nproject = {project:?}\nproject_name = \"Default\"\n"
        );
        for (name, guessed) in &self.tables {
            let rows = catalog.table(name).map_or(0, |table| table.rows);
            let _ = write!(
                out,
                "\n# guess: {}; about {rows} rows\n[tables.{:?}]\n",
                guessed.evidence,
                name.to_string()
            );
            guessed.lines.iter().for_each(|line| out.push_str(&format!("{line}\n")));
        }
        Ok(out)
    }
}

impl Guessed {
    fn new(lines: &[&str], evidence: &str) -> Self {
        Self {
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
            evidence: evidence.to_owned(),
            is_unknown: false,
        }
    }
}

const HEAD: &str = "\
# Which table belongs to whom. Written by `pgtenant migrate plan`, which never changes it once it is there: what is marked
# as a guess is yours to check and to change; then run `pgtenant migrate plan` again.
#
# scope         \"organization\", \"project\" (which is an organization's too), \"shared\" (read by all), or \"unknown\"
# organization, project: how existing rows find theirs
#               \"default\"                            that of [default]
#               { column = \"account_id\" }             a column says it that is there already
#               { through = [\"ticket_id\"] }           that of the row which this foreign key refers to
#               { expression = \"lookup(region)\" }     an SQL expression over the table's columns
#               { mapping = \"regions.csv\" }          a file beside this one: its first line names columns of the table, and last id
# otherwise     what becomes of rows that find none: \"stop\", \"default\", or \"quarantine\": an organization that nobody works in,
#               [quarantine] says which (organization = ..., project = ...)
# global_uniques = [\"users_email_key\"]               uniques that stay as they are, over all organizations
# audit = true                                       changes of its rows are kept in pgtenant.audit_log

";

/// The table that the schema's tenants seem to be in: by its name, and because paths of foreign keys lead there.
fn tenant_table(catalog: &Catalog) -> Option<(Name, String, IdColumn)> {
    TENANTS.iter().find_map(|name| {
        let table = catalog.tables.iter().find(|table| table.name.name == *name && !table.is_part())?;
        (paths(catalog, &table.name, &[true, false]).len() >= 2).then(|| key_of(table)).flatten()
    })
}

fn key_of(table: &Table) -> Option<(Name, String, IdColumn)> {
    let key = table.primary_key().filter(|key| key.columns.len() == 1)?;
    let column = table.column(&key.columns[0])?;
    Some((table.name.clone(), column.name.clone(), IdColumn::of(&column.kind)?))
}

/// From each table the foreign key by which a shortest path leads to this one: first over those that may not be NULL, then, if
/// that is asked for, over others.
fn paths(catalog: &Catalog, to: &Name, rounds: &[bool]) -> BTreeMap<Name, Vec<String>> {
    let mut found = BTreeMap::new();
    for &must_be_there in rounds {
        loop {
            let reached: BTreeSet<&Name> = found.keys().chain([to]).collect();
            let mut next = Vec::new();
            for table in
                catalog.tables.iter().filter(|table| !table.is_part() && !reached.contains(&table.name))
            {
                let mut keys = table.foreign_keys().filter(|key| {
                    key.target.as_ref().is_some_and(|target| reached.contains(target))
                        && (!must_be_there || table.are_not_null(&key.columns))
                });
                if let Some(key) = keys.next() {
                    next.push((table.name.clone(), key.columns.clone()));
                }
            }
            if next.is_empty() {
                break;
            }
            found.extend(next);
        }
    }
    found
}

fn is_word(list: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|word| word == name.to_ascii_lowercase())
}

fn list(columns: &[String]) -> String {
    format!("[{}]", columns.iter().map(|column| format!("{column:?}")).collect::<Vec<_>>().join(", "))
}

/// An id that nobody else has.
fn default_id(kind: IdColumn) -> Result<String, String> {
    Ok(match kind {
        IdColumn::Bigint | IdColumn::Integer => "1".to_owned(),
        IdColumn::Text => "default".to_owned(),
        IdColumn::Uuid => {
            let mut bytes = [0; 16];
            aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "the system has no random bytes".to_owned())?;
            // Version 4 (RFC 9562).
            (bytes[6], bytes[8]) = (bytes[6] & 0x0f | 0x40, bytes[8] & 0x3f | 0x80);
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
        }
    })
}
