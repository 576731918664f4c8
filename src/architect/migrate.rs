//! The way from one tenant to many, and back: what `pgtenant migrate` does, and `pgtenant demo` with it.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use tokio_postgres::Client;

use super::apply::{self, ApplyError, Progress};
use super::catalog::{Catalog, Table};
use super::connect::{causes, connect};
use super::guess::Guess;
use super::migration::{self, Design, Move, Part, Step, text};
use super::names::{Name, ident, literal};
use super::treatment::{Entry, Otherwise, Scope, Source, Treatment};
use super::{backup, ledger, losses, pace, precheck, promises, report, verify};

/// Which database, and where the files of its migration lie.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its URL, as a superuser.
    pub database: String,
    /// `tenancy.toml`; the migrations lie beside it.
    pub tenancy: PathBuf,
}

/// Why it stopped, in a sentence.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// A file says what cannot be done.
    #[error("{0}")]
    Wrong(String),
    /// It was tried, and failed; or something is not as it should be.
    #[error("{0}")]
    Failed(String),
}

impl From<ApplyError> for Stop {
    fn from(error: ApplyError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<tokio_postgres::Error> for Stop {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Failed(format!("PostgreSQL refused: {}", causes(&error)))
    }
}

/// Whom it tells what it does, and what came out.
pub trait Tell: Progress {
    /// A line of what came out.
    fn result(&self, line: &str);
    /// What it is at.
    fn says(&self, what: &str);
}

async fn open(place: &Place) -> Result<deadpool_postgres::Object, Stop> {
    connect(&place.database).await.map_err(|error| Stop::Failed(error.to_string()))
}

/// Reads the schema, writes a first `tenancy.toml` where there is none, and from it the migrations.
///
/// # Errors
/// The file contradicts the schema or itself; a file cannot be written; PostgreSQL refuses.
pub async fn plan(place: &Place, with_citus: bool, tell: &dyn Tell) -> Result<(), Stop> {
    let client = open(place).await?;
    if ledger::exists(&client).await? {
        let sentence = "this database is being migrated, or was: see pgtenant migrate status; to plan anew, roll back first";
        return Err(Stop::Failed(sentence.to_owned()));
    }
    client.batch_execute("SET search_path = pg_catalog").await?;
    let catalog = Catalog::read(&client).await.map_err(|error| Stop::Failed(error.to_string()))?;
    if catalog.tables.is_empty() {
        return Err(Stop::Failed(format!("database {} has no tables", catalog.database)));
    }
    if !place.tenancy.exists() {
        let guess = Guess::at(&catalog);
        write(&place.tenancy, &guess.to_toml(&catalog).map_err(Stop::Failed)?)?;
        tell.result(&format!("wrote {}: check what is marked as a guess", place.tenancy.display()));
    }
    let treatment = Treatment::read_with_files(&place.tenancy).map_err(Stop::Wrong)?;
    let design = Design::new(&catalog, &treatment)
        .map_err(|mistakes| Stop::Wrong(format!("{}:\n{mistakes}", place.tenancy.display())))?;
    let parts = migration::moves(&design);
    let folder = folder_of(&place.tenancy);
    let (files, made_from) = (files_of(&parts), fingerprint(place, &treatment)?);
    let made_from = format!("{made_from} {}", catalog.fingerprint);
    // Of a plan before.
    for name in [CUT_OVER_FILE.to_owned(), format!("{CUT_OVER_FILE}.rollback")] {
        let _ = std::fs::remove_file(folder.join(format!("{name}.sql")));
    }
    for (name, moves) in files {
        let forward = text::forward(name, &made_from, moves);
        let told = |step: &Step| (step.id.clone(), step.how, step.check.clone());
        let is_read = text::read(&forward)
            .is_ok_and(|steps| steps.iter().map(told).eq(moves.iter().map(|one| told(&one.step))));
        if !is_read && !moves.is_empty() {
            let why = "an expression in it has a comment or a quote without an end; put it into a function";
            return Err(Stop::Wrong(format!("{}: {why}", place.tenancy.display())));
        }
        write(&folder.join(format!("{name}.sql")), &forward)?;
        write(&folder.join(format!("{name}.rollback.sql")), &text::back(name, moves))?;
    }
    write(&folder.join("report.md"), &report::markdown(&design, &parts))?;
    if with_citus {
        write(&folder.join("citus.sql"), &migration::distribute::citus(&design))?;
    }
    let steps: usize = parts.iter().map(|(_, moves)| moves.len()).sum();
    tell.result(&format!(
        "wrote 003, 004, 005, their rollbacks and report.md: {steps} steps for {} tables",
        design.tables.len()
    ));
    tell.result("next: read report.md, then pgtenant migrate apply");
    Ok(())
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write(file: &Path, text: &str) -> Result<(), Stop> {
    std::fs::write(file, text)
        .map_err(|error| Stop::Failed(format!("cannot write {}: {error}", file.display())))
}

/// Of `tenancy.toml` and the files that it names, so that nobody changes them and applies what was planned before.
fn fingerprint(place: &Place, treatment: &Treatment) -> Result<String, Stop> {
    let text = std::fs::read(&place.tenancy)
        .map_err(|error| Stop::Wrong(format!("{}: {error}", place.tenancy.display())))?;
    let mut all = Context::new(&SHA256);
    all.update(&text);
    for mapping in treatment.mappings.values() {
        mapping.lines.iter().flatten().chain(&mapping.columns).for_each(|value| all.update(value.as_bytes()));
    }
    Ok(all.finish().as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// The files were planned from what `tenancy.toml` says now, and for the schema that is there now.
fn made_from(place: &Place, fingerprint: &str, catalog: &Catalog) -> Result<(), Stop> {
    let name = format!("{}.sql", Part::Transformation.file());
    let text = std::fs::read_to_string(folder_of(&place.tenancy).join(&name)).unwrap_or_default();
    let Some((tenancy, schema)) = text::made_from(&text).and_then(|both| both.split_once(' ')) else {
        return Ok(());
    };
    let what = match (tenancy == fingerprint, schema == catalog.fingerprint) {
        (true, true) => return Ok(()),
        (false, _) => format!("{} or a file that it names", place.tenancy.display()),
        (true, false) => "the schema of the database".to_owned(),
    };
    Err(Stop::Wrong(format!(
        "{what} was changed after {name} was planned from it: run pgtenant migrate plan again; nothing was changed"
    )))
}

/// The cut-over has a file of its own: it comes after 005, and when people say so.
const CUT_OVER_FILE: &str = "004_multi_tenant_rls_policies.cut_over";

/// Each file's name, without what comes behind its last dot, and what is in it.
fn files_of(parts: &[(Part, Vec<Move>)]) -> Vec<(&'static str, &[Move])> {
    let mut files: Vec<(&str, &[Move])> = Vec::new();
    for (part, moves) in parts {
        // In 004 keys change places at the cut-over only, and before it.
        let is_last = |one: &Move| {
            *part == Part::Policies
                && (one.step.title.starts_with(migration::CUT_OVER)
                    || one.step.title.ends_with(migration::LEADS))
        };
        match moves.iter().position(is_last) {
            Some(at) => files.extend([(part.file(), &moves[..at]), (CUT_OVER_FILE, &moves[at..])]),
            None => files.push((part.file(), moves)),
        }
    }
    files
}

/// The steps of all files, in the order in which they are applied, and those of the cut-over.
fn steps(place: &Place) -> Result<(Vec<Step>, Vec<Step>), Stop> {
    let mut steps = Vec::new();
    for part in Part::ALL {
        steps.extend(read(place, &format!("{}.sql", part.file()))?);
    }
    Ok((steps, read_if_there(place, &format!("{CUT_OVER_FILE}.sql"))?))
}

/// Where there are no legacy roles, nothing is cut over.
fn read_if_there(place: &Place, name: &str) -> Result<Vec<Step>, Stop> {
    if !folder_of(&place.tenancy).join(name).exists() {
        return Ok(Vec::new());
    }
    read(place, name)
}

fn read(place: &Place, name: &str) -> Result<Vec<Step>, Stop> {
    let file = folder_of(&place.tenancy).join(name);
    let at = |what: String| Stop::Wrong(format!("{}: {what}", file.display()));
    let text = std::fs::read_to_string(&file)
        .map_err(|error| at(format!("{error}; run pgtenant migrate plan first")))?;
    text::read(&text).map_err(at)
}

/// What [`apply()`] is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// A backup first.
    pub backup: bool,
    /// Which is restored into a database of its own.
    pub restore_test: bool,
    /// All the way: legacy roles see nothing any more.
    pub cut_over: bool,
}

/// Runs the steps that are not done yet. Returns how many.
///
/// # Errors
/// What is in the way before the first step; or the step that failed: what was done before it stays.
pub async fn apply(place: &Place, wanted: Wanted, tell: &dyn Tell) -> Result<usize, Stop> {
    let (mut all, last) = steps(place)?;
    if wanted.cut_over {
        all.extend(last);
    }
    let treatment = Treatment::read(&place.tenancy).map_err(Stop::Wrong)?;
    let client = open(place).await?;
    apply::alone(&client).await?;
    precheck::server(&client, tell).await?;
    let catalog = Catalog::read(&client).await.map_err(|error| Stop::Failed(error.to_string()))?;
    let is_fresh = ledger::read(&client).await?.is_empty();
    if is_fresh {
        let treatment = Treatment::read_with_files(&place.tenancy).map_err(Stop::Wrong)?;
        made_from(place, &fingerprint(place, &treatment)?, &catalog)?;
        let design = Design::new(&catalog, &treatment)
            .map_err(|mistakes| Stop::Wrong(format!("{}:\n{mistakes}", place.tenancy.display())))?;
        precheck::rows(&client, &design, tell).await?;
        precheck::disk(&client, migration::growth(&design), tell).await?;
        if wanted.backup {
            backed_up(place, &client, &catalog, wanted.restore_test, tell).await?;
        }
    }
    ledger::open(&client).await?;
    if is_fresh {
        for (name, columns) in old_columns(&catalog, &treatment) {
            tell.says(&format!("summing up {name}"));
            verify::sum_up(&client, &name, &columns, "before").await?;
        }
    }
    let ran = paced(place, &client, &all, tell).await?;
    tell.result(&format!("{ran} steps, of {}", all.len()));
    for (name, columns) in old_columns(&catalog, &treatment) {
        tell.says(&format!("summing up {name} again"));
        verify::sum_up(&client, &name, &columns, "after").await?;
    }
    let differences = verify::differences(&client).await?;
    if differences.is_empty() {
        tell.result("every row is what it was");
    }
    for difference in differences {
        tell.result(&format!("{difference}: if nobody wrote to it meanwhile, compare it with the backup"));
    }
    for line in quarantined(&client, &treatment).await? {
        tell.result(&line);
    }
    promises::keep(&client, &treatment).await?;
    Ok(ran)
}

/// Rows that found no organization, by table, in words.
async fn quarantined(client: &Client, treatment: &Treatment) -> Result<Vec<String>, Stop> {
    let Some(quarantine) = &treatment.quarantine else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (text, entry) in &treatment.tables {
        let (Some(name), Otherwise::Quarantine) = (Name::parse(text), entry.otherwise) else { continue };
        let column = match &entry.organization {
            Some(Source::Column(column)) => column,
            _ => &treatment.organizations.column,
        };
        let own = literal(&quarantine.organization);
        let sql = format!("SELECT count(*) FROM {name} WHERE {} = {own}", ident(column));
        let rows: i64 = client.query_one(sql.as_str(), &[]).await?.get(0);
        if rows > 0 {
            found.push(format!(
                "{rows} rows of {name} are in quarantine: organization {}",
                quarantine.organization
            ));
        }
    }
    Ok(found)
}

async fn backed_up(
    place: &Place,
    client: &Client,
    catalog: &Catalog,
    restore_test: bool,
    tell: &dyn Tell,
) -> Result<(), Stop> {
    let unchanged = |why: String| Stop::Failed(format!("{why}; nothing was changed"));
    tell.says("backing up");
    let taken = backup::take(&place.database, folder_of(&place.tenancy), catalog.version, ordinary(catalog));
    let taken = taken.map_err(unchanged)?;
    tell.result(&format!(
        "backup: {} ({} kB, {} tables), read back",
        taken.file.display(),
        taken.bytes / 1024,
        taken.tables
    ));
    if restore_test {
        let tables: Vec<_> = catalog.tables.iter().map(|table| table.name.clone()).collect();
        let rows = backup::restore_test(client, &place.database, &taken, catalog.version, &tables).await;
        let rows = rows.map_err(unchanged)?;
        tell.result(&format!("restored into a database of its own: all {rows} rows are there"));
    }
    Ok(())
}

/// Runs the steps; beside them somebody looks whether batches should follow more slowly.
async fn paced(place: &Place, client: &Client, all: &[Step], tell: &dyn Tell) -> Result<usize, Stop> {
    let watcher = open(place).await?;
    let ran = tokio::select! {
        ran = apply::forward(client, all, tell) => ran,
        Err(error) = pace::keep(&watcher, tell) => Err(ApplyError::Refused(error)),
    };
    ran.map_err(|error| {
        let more = "what was done before it is in force; pgtenant migrate apply goes on from there, pgtenant migrate rollback goes back";
        Stop::Failed(format!("{error}; {more}"))
    })
}

/// Tables whose rows are to be what they were, with the columns that they had.
fn old_columns(catalog: &Catalog, treatment: &Treatment) -> Vec<(Name, Vec<String>)> {
    let named = catalog.tables.iter().filter_map(|table| Some((table, treatment.of(&table.name)?)));
    let tenanted = named.filter(|(_, entry)| matches!(entry.scope, Scope::Organization | Scope::Project));
    let columns = |table: &Table, entry: &Entry| {
        let usual = [&treatment.organizations.column, &treatment.projects.column];
        let is_tenants = |name: &String| {
            let there = [&entry.organization, &entry.project].into_iter().flatten();
            usual.contains(&name) || there.into_iter().any(|source| *source == Source::Column(name.clone()))
        };
        let all = table.columns.iter().map(|column| &column.name);
        all.filter(|name| !is_tenants(name)).cloned().collect()
    };
    tenanted.map(|(table, entry)| (table.name.clone(), columns(table, entry))).collect()
}

fn ordinary(catalog: &Catalog) -> usize {
    catalog.tables.iter().filter(|table| !table.is_partitioned).count()
}

/// Each step and how far it is.
///
/// # Errors
/// A file is missing; PostgreSQL refuses.
pub async fn status(place: &Place, tell: &dyn Tell) -> Result<(), Stop> {
    let (mut all, last) = steps(place)?;
    all.extend(last);
    let client = open(place).await?;
    let lines = ledger::read(&client).await?;
    let mut next = None;
    for step in &all {
        let line = lines.get(&step.id);
        let state = line.map_or("-", |line| line.state.word());
        if line.is_none_or(|line| line.state != ledger::State::Done) && next.is_none() {
            next = Some(&step.id);
        }
        let took = line.and_then(|line| line.took_ms).map(|took| format!(", {took} ms")).unwrap_or_default();
        let rows =
            line.filter(|line| line.rows > 0).map(|line| format!(", {} rows", line.rows)).unwrap_or_default();
        tell.result(&format!("{} {state:8} {}{rows}{took}", step.id, step.title));
    }
    let done = lines.values().filter(|line| line.state == ledger::State::Done).count();
    match next {
        Some(next) => tell.result(&format!("{done} of {} steps are done; next is {next}", all.len())),
        None => tell.result(&format!("all {done} steps are done")),
    }
    Ok(())
}

/// Whether all that was promised is there, and nothing has come that has no tenant.
///
/// # Errors
/// How much is not as it should be; what, it has told.
pub async fn verify(place: &Place, tell: &dyn Tell) -> Result<(), Stop> {
    let (mut all, last) = steps(place)?;
    let treatment = Treatment::read(&place.tenancy).map_err(Stop::Wrong)?;
    let client = open(place).await?;
    client.batch_execute("SET search_path = pg_catalog, public").await?;
    let lines = ledger::read(&client).await?;
    if last.iter().any(|step| lines.contains_key(&step.id)) {
        all.extend(last);
    } else if !last.is_empty() {
        let legacy = treatment.roles.legacy.join(", ");
        tell.result(&format!("not cut over: {legacy} see every row of every organization"));
    }
    let mut found = verify::findings(&client, &all, &treatment).await?;
    if all.iter().all(|step| lines.get(&step.id).is_some_and(|line| line.state == ledger::State::Done)) {
        found.extend(promises::broken(&client, &treatment).await?);
    }
    if found.is_empty() {
        tell.result(&format!("all {} steps hold, and every table has its tenant", all.len()));
        return Ok(());
    }
    found.iter().for_each(|finding| tell.result(finding));
    Err(Stop::Failed(format!("{} findings", found.len())))
}

/// Undoes what was applied, down to the migration of this number, which stays.
///
/// # Errors
/// Rows would be lost or mixed up; or the step that failed: what was undone before it stays so.
pub async fn rollback(place: &Place, to: Option<&str>, tell: &dyn Tell) -> Result<(), Stop> {
    let mut undo = read_if_there(place, &format!("{CUT_OVER_FILE}.rollback.sql"))?;
    for part in Part::ALL.iter().rev() {
        undo.extend(read(place, &format!("{}.rollback.sql", part.file()))?);
    }
    let treatment = Treatment::read(&place.tenancy).map_err(Stop::Wrong)?;
    let client = open(place).await?;
    apply::alone(&client).await?;
    if !ledger::exists(&client).await? {
        tell.result("nothing was applied");
        return Ok(());
    }
    let keep = to.map_or_else(String::new, |to| format!("{to}.9999"));
    if to.is_none() {
        losses::none(&client, &treatment, &undo).await?;
    }
    let undone = apply::back(&client, &undo, &keep, tell).await.map_err(|error| {
        Stop::Failed(format!(
            "{error}; what was undone before it stays so; pgtenant migrate rollback goes on from there"
        ))
    })?;
    if to.is_none() && ledger::exists(&client).await? {
        // If anything else is in it, the schema was there before.
        client
            .batch_execute(
                "DROP TABLE pgtenant.migration_steps, pgtenant.migration_checksums, pgtenant.migration_pace; \
                 DROP TABLE IF EXISTS pgtenant.migration_promises; \
                 DO 'BEGIN DROP SCHEMA pgtenant; EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END'",
            )
            .await?;
    }
    tell.result(&format!("{undone} steps are undone"));
    Ok(())
}
