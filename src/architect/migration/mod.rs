//! The three migrations as steps: each with what it does, how, what it locks, how it is checked, and how it is undone.

mod batches;
mod data;
mod design;
pub mod distribute;
mod expand;
mod keys;
mod obstacles;
mod partitions;
mod policies;
mod sources;
mod tenants;
pub mod text;

pub use data::LEADS;
pub use design::{Design, Mistakes, TenantColumn, Tenanted};
pub use keys::{items, references};
pub use policies::CUT_OVER;
pub use sources::{mapping_table, organization_of};
pub use tenants::{is_given, owners};

/// How a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// In a transaction of its own, with its line in the ledger.
    Transaction,
    /// Statement by statement, outside a transaction (CREATE INDEX CONCURRENTLY, VALIDATE CONSTRAINT).
    Alone,
    /// As one statement that commits batch by batch, and goes on where it was.
    Batches,
}

/// Which of the three files a step is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// 003: columns, keys, indexes, foreign keys that are not validated yet.
    Transformation,
    /// 004: roles, grants, policies, views.
    Policies,
    /// 005: rows, NOT NULL, validation; keys that lead with the organization, where that does not wait for the cut-over.
    Data,
}

impl Part {
    /// All, in their order.
    pub const ALL: [Self; 3] = [Self::Transformation, Self::Policies, Self::Data];

    /// Its number.
    pub fn number(self) -> &'static str {
        match self {
            Self::Transformation => "003",
            Self::Policies => "004",
            Self::Data => "005",
        }
    }

    /// The name of its file, without what comes behind the dot.
    pub fn file(self) -> &'static str {
        match self {
            Self::Transformation => "003_multi_tenant_transformation",
            Self::Policies => "004_multi_tenant_rls_policies",
            Self::Data => "005_data_migration_existing_to_multi_tenant",
        }
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `003.0010`
    pub id: String,
    /// What it does.
    pub title: String,
    /// What it locks, and for how long.
    pub lock: String,
    /// How it runs.
    pub how: How,
    /// Its statements, without semicolons.
    pub sql: Vec<String>,
    /// A query whose answer is true when it is done.
    pub check: Option<String>,
}

/// A step and what undoes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// There.
    pub step: Step,
    /// And back, in this order; each has the step's id.
    pub undo: Vec<Step>,
}

/// Steps as they are written one behind the other.
pub(super) struct Moves {
    part: Part,
    all: Vec<Move>,
}

impl Moves {
    fn new(part: Part) -> Self {
        Self { part, all: Vec::new() }
    }

    /// Adds one.
    fn add(
        &mut self,
        title: impl Into<String>,
        lock: impl Into<String>,
        how: How,
        sql: Vec<String>,
    ) -> &mut Move {
        let id = format!("{}.{:04}", self.part.number(), (self.all.len() + 1) * 10);
        let step = Step { id, title: title.into(), lock: lock.into(), how, sql, check: None };
        self.all.push(Move { step, undo: Vec::new() });
        let last = self.all.len() - 1;
        &mut self.all[last]
    }
}

impl Move {
    /// A query whose answer is true when the step is done.
    fn checked(&mut self, sql: impl Into<String>) -> &mut Self {
        self.step.check = Some(sql.into());
        self
    }

    /// What undoes it, behind what else does.
    fn undone(&mut self, title: impl Into<String>, how: How, sql: Vec<String>) -> &mut Self {
        self.undo.push(Step {
            id: self.step.id.clone(),
            title: title.into(),
            lock: String::new(),
            how,
            sql,
            check: None,
        });
        self
    }
}

/// All steps of the three migrations.
pub fn moves(design: &Design<'_>) -> Vec<(Part, Vec<Move>)> {
    vec![
        (Part::Transformation, expand::moves(design)),
        (Part::Policies, policies::moves(design)),
        (Part::Data, data::moves(design)),
    ]
}

/// About how many bytes a database grows by: new indexes, and what batches leave to VACUUM.
pub fn growth(design: &Design<'_>) -> u64 {
    // What a b-tree of ids has for a row.
    const ENTRY: i64 = 40;
    let indexes = keys::uniques(design).iter().map(|unique| unique.one.table.rows * ENTRY).sum::<i64>()
        + keys::indexes(design).iter().map(|index| index.one.table.rows * ENTRY).sum::<i64>();
    let updated = design
        .tables
        .iter()
        .filter(|one| one.tenant_columns().any(|column| sources::value(design, one, column).is_some()));
    u64::try_from(indexes + updated.map(|one| one.table.bytes).sum::<i64>()).unwrap_or_default()
}

/// About how many seconds a table's steps take beside a load that leaves two cores little, by the rates of benches/RESULTS.md (ten
/// million rows): an idea of it, no promise.
pub fn takes(design: &Design<'_>, one: &Tenanted<'_>) -> u64 {
    // Rows a second.
    const MOVED: i64 = 5_000;
    const LOOKED_AT: i64 = 20_000;
    const INDEXED: i64 = 900_000;
    const REFERRED: i64 = 220_000;
    let of = |table: &crate::architect::names::Name| i64::from(*table == one.table.name);
    let found = one.tenant_columns().filter(|column| sources::value(design, one, column).is_some());
    let moved = found.map(|column| {
        let twice = matches!(column.source, crate::architect::treatment::Source::Through(_));
        one.table.rows / MOVED + if twice { one.table.rows / LOOKED_AT } else { 0 }
    });
    let indexes = keys::uniques(design).iter().map(|unique| of(&unique.one.table.name)).sum::<i64>()
        + keys::indexes(design).iter().map(|index| of(&index.one.table.name)).sum::<i64>();
    let references = keys::references(design).iter().map(|key| of(&key.one.table.name)).sum::<i64>();
    let seconds =
        moved.sum::<i64>() + indexes * one.table.rows / INDEXED + references * one.table.rows / REFERRED;
    u64::try_from(seconds).unwrap_or_default()
}

/// Indexes for what is asked of the database, in words.
pub fn asked(design: &Design<'_>) -> Vec<String> {
    let indexes = keys::indexes(design);
    let asked = indexes.iter().filter_map(|index| Some((index, index.calls?)));
    asked
        .map(|(index, calls)| {
            format!(
                "Index {} is new: pg_stat_statements has {calls} calls of queries that look into {} by{}, and nothing that leads with the \
                 organization is for them. Take its step out of 003 if it is not worth its writes.",
                index.name,
                index.one.table.name,
                index.tail.trim_start_matches(" USING btree")
            )
        })
        .collect()
}

/// Indexes that another one makes redundant, in words.
pub fn redundant(design: &Design<'_>) -> Vec<String> {
    let indexes = keys::indexes(design);
    let pairs = indexes.iter().filter_map(|index| Some((index, index.of?)));
    pairs
        .map(|(new, old)| {
            let schema = &new.one.table.name.schema;
            let old = crate::architect::names::Name::new(schema, &old.name);
            format!(
                "Index {old} ({}) is redundant for the application's roles once {} is there: drop it when nobody uses it any more (pg_stat_user_indexes.idx_scan).",
                new.one.table.name, new.name
            )
        })
        .collect()
}
