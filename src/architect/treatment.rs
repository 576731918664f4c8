//! `tenancy.toml`: which table belongs to whom, and how its rows find their organization and project.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::mapping::Mapping;
use super::names::Name;
use crate::config::IdType;

/// What the file says.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Treatment {
    /// Who gets at rows, and how.
    pub roles: Roles,
    /// The tenants.
    pub organizations: Tenants,
    /// What an organization is divided into.
    pub projects: Tenants,
    /// Who owns the rows of tables that say `default`.
    pub default: Owner,
    /// Who owns the rows that find no organization, where a table says `otherwise = "quarantine"`.
    #[serde(default)]
    pub quarantine: Option<Owner>,
    /// Each table's, by `schema.name`.
    pub tables: BTreeMap<String, Entry>,
    /// The files that sources name, by what they name them.
    #[serde(skip)]
    pub mappings: BTreeMap<PathBuf, Mapping>,
}

/// Roles.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Roles {
    /// Those that the proxy signs in with; made where there are none.
    pub application: Vec<String>,
    /// Those that work as before until cut-over.
    #[serde(default)]
    pub legacy: Vec<String>,
}

/// A table of tenants.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Tenants {
    /// The table, made where there is none.
    pub table: String,
    /// Its key.
    #[serde(default = "id")]
    pub id: String,
    /// The key's type.
    #[serde(rename = "type")]
    pub kind: IdColumn,
    /// What the column of other tables is called that says whose a row is.
    pub column: String,
}

/// Types that ids of tenants may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdColumn {
    /// uuid
    Uuid,
    /// bigint
    Bigint,
    /// integer
    Integer,
    /// text
    Text,
}

/// An organization and a project of it, which rows are given.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The organization's id, as text.
    pub organization: String,
    /// What it is called, where its row is made.
    #[serde(default = "unnamed")]
    pub organization_name: String,
    /// The id of its project, as text.
    pub project: String,
    /// What that is called.
    #[serde(default = "unnamed")]
    pub project_name: String,
}

/// How a table is treated.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Whose its rows are.
    pub scope: Scope,
    /// How they find their organization.
    pub organization: Option<Source>,
    /// How they find their project.
    pub project: Option<Source>,
    /// What becomes of rows that find none.
    #[serde(default)]
    pub otherwise: Otherwise,
    /// Unique constraints and indexes that stay as they are, over all organizations.
    #[serde(default)]
    pub global_uniques: Vec<String>,
    /// Changes of its rows are kept in `pgtenant.audit_log`.
    #[serde(default)]
    pub audit: bool,
}

/// Whose rows a table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// An organization's.
    Organization,
    /// A project's.
    Project,
    /// Everybody's, to be read.
    Shared,
    /// Nobody has said.
    Unknown,
}

/// How rows find their organization or project.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// They belong to that of `[default]`.
    Default,
    /// A column says it that is there already.
    Column(String),
    /// They have that of the row which these columns, a foreign key, refer to.
    Through(Vec<String>),
    /// An SQL expression over the table's columns.
    Expression(String),
    /// A CSV file, beside `tenancy.toml`, whose header names columns of the table, and last `id`: whose rows with these values are.
    Mapping(PathBuf),
}

/// What becomes of rows that find no organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Otherwise {
    /// They are listed, and the migration stops.
    #[default]
    Stop,
    /// They are the default organization's.
    Default,
    /// They are the quarantine's: an organization that nobody works in.
    Quarantine,
}

fn id() -> String {
    "id".to_owned()
}

fn unnamed() -> String {
    "Default".to_owned()
}

impl IdColumn {
    /// The type as SQL writes it.
    pub fn sql(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::Bigint => "bigint",
            Self::Integer => "integer",
            Self::Text => "text",
        }
    }

    /// The type of the context's ids where tenants' ids are of this one.
    pub fn of_context(self) -> IdType {
        match self {
            Self::Uuid => IdType::Uuid,
            Self::Bigint | Self::Integer => IdType::Bigint,
            Self::Text => IdType::Text,
        }
    }

    /// Of a column of this type, if tenants' ids may have it.
    pub fn of(sql: &str) -> Option<Self> {
        Some(match sql {
            "uuid" => Self::Uuid,
            "bigint" => Self::Bigint,
            "integer" => Self::Integer,
            "text" | "character varying" => Self::Text,
            other if other.starts_with("character varying(") => Self::Text,
            _ => return None,
        })
    }
}

impl Treatment {
    /// Reads the file, and the CSV files that it names.
    ///
    /// # Errors
    /// One sentence: it cannot be read, or is no such file; with the line.
    pub fn read_with_files(file: &Path) -> Result<Self, String> {
        let mut read = Self::read(file)?;
        let folder = file.parent().unwrap_or(Path::new("."));
        let sources = read.tables.values().flat_map(|entry| [&entry.organization, &entry.project]);
        for source in sources.flatten() {
            let Source::Mapping(name) = source else { continue };
            if !read.mappings.contains_key(name) {
                read.mappings.insert(name.clone(), Mapping::read(&folder.join(name))?);
            }
        }
        Ok(read)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// One sentence: it cannot be read, or is no such file; with the line.
    pub fn read(file: &Path) -> Result<Self, String> {
        let at = |what: &dyn std::fmt::Display| format!("{}: {what}", file.display());
        let text = std::fs::read_to_string(file).map_err(|error| at(&error))?;
        toml::from_str(&text).map_err(|error| at(&error.to_string().trim_end()))
    }

    /// Whom rows that find no organization are given, if somebody.
    pub fn otherwise(&self, entry: &Entry) -> Option<&Owner> {
        match entry.otherwise {
            Otherwise::Stop => None,
            Otherwise::Default => Some(&self.default),
            Otherwise::Quarantine => self.quarantine.as_ref(),
        }
    }

    /// The table of organizations.
    pub fn organizations(&self) -> Option<Name> {
        Name::parse(&self.organizations.table)
    }

    /// The table of projects.
    pub fn projects(&self) -> Option<Name> {
        Name::parse(&self.projects.table)
    }

    /// How a table is treated.
    pub fn of(&self, name: &Name) -> Option<&Entry> {
        self.tables.get(&name.to_string())
    }
}
