//! `pgtenant migrate`: from one tenant to many, and back.

mod bar;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use tokio_postgres::Client;

use super::{BAD_USAGE, DONE, NO, fail, runtime};
use crate::architect::apply::{self, ApplyError};
use crate::architect::catalog::{Catalog, Table};
use crate::architect::connect::{causes, connect};
use crate::architect::guess::Guess;
use crate::architect::migration::{self, Design, Part, Step, text};
use crate::architect::names::{Name, ident, literal};
use crate::architect::treatment::{Entry, Scope, Source, Treatment};
use crate::architect::{backup, ledger, pace, report, verify};
use bar::Bar;

/// Options that every action has.
#[derive(clap::Args)]
pub(super) struct Place {
    /// The database, as a superuser or a role with BYPASSRLS (postgres://...).
    #[arg(long, value_name = "URL")]
    database: String,
    /// Which table belongs to whom; the migrations lie beside it.
    #[arg(long, value_name = "FILE", default_value = "tenancy.toml")]
    tenancy: PathBuf,
}

#[derive(Subcommand)]
pub(super) enum Action {
    /// Look at the schema, write a first tenancy.toml where there is none, and from it the migrations, their rollbacks and a report.
    #[command(
        after_help = "Example:\n  pgtenant migrate plan --database postgres://postgres@localhost/app --tenancy migration/tenancy.toml"
    )]
    Plan {
        #[command(flatten)]
        place: Place,
        /// Also write what distributes the tables over several machines: citus.sql.
        #[arg(long, value_name = "SYSTEM", value_parser = ["citus"])]
        distribute: Option<String>,
    },
    /// Back up, then run the migrations step by step, each checked. Stopped at any point, it goes on where it was.
    #[command(
        after_help = "Example:\n  pgtenant migrate apply --database postgres://postgres@localhost/app --restore-test\n  pgtenant migrate apply --database postgres://postgres@localhost/app --cut-over"
    )]
    Apply {
        #[command(flatten)]
        place: Place,
        /// No backup: there is another one.
        #[arg(long)]
        no_backup: bool,
        /// Restore the backup into a database of its own, count its rows, and drop it again. Nobody should write meanwhile.
        #[arg(long, conflicts_with = "no_backup")]
        restore_test: bool,
        /// Go all the way: legacy roles see no row without a context any more, nor do the tables' owners.
        #[arg(long)]
        cut_over: bool,
    },
    /// What is done, and what comes next.
    #[command(
        after_help = "Example:\n  pgtenant migrate status --database postgres://postgres@localhost/app"
    )]
    Status {
        #[command(flatten)]
        place: Place,
    },
    /// Whether everything that was promised is there, and whether something came since that has no tenant (exit code 1).
    #[command(
        after_help = "Example:\n  pgtenant migrate verify --database postgres://postgres@localhost/app || exit 1"
    )]
    Verify {
        #[command(flatten)]
        place: Place,
    },
    /// Undo what was applied, the last step first. Refused once rows of other organizations would be lost.
    #[command(
        after_help = "Example:\n  pgtenant migrate rollback --database postgres://postgres@localhost/app --to 003"
    )]
    Rollback {
        #[command(flatten)]
        place: Place,
        /// Down to this migration, which stays.
        #[arg(long, value_name = "NUMBER", value_parser = ["003", "004"])]
        to: Option<String>,
    },
}

/// What went wrong, and the exit code.
struct Stop(u8, String);

impl From<ApplyError> for Stop {
    fn from(error: ApplyError) -> Self {
        Self(NO, error.to_string())
    }
}

impl From<tokio_postgres::Error> for Stop {
    fn from(error: tokio_postgres::Error) -> Self {
        Self(NO, format!("PostgreSQL refused: {}", causes(&error)))
    }
}

pub(super) fn run(action: &Action) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(NO, error),
    };
    let ended = runtime.block_on(async {
        match action {
            Action::Plan { place, distribute } => plan(place, distribute.is_some()).await,
            Action::Apply { place, no_backup, restore_test, cut_over } => {
                apply_all(
                    place,
                    &Wanted { backup: !no_backup, restore_test: *restore_test, cut_over: *cut_over },
                )
                .await
            }
            Action::Status { place } => status(place).await,
            Action::Verify { place } => verified(place).await,
            Action::Rollback { place, to } => rollback(place, to.as_deref()).await,
        }
    });
    match ended {
        Ok(()) => ExitCode::from(DONE),
        Err(Stop(code, sentence)) => fail(code, sentence),
    }
}

async fn open(place: &Place) -> Result<deadpool_postgres::Object, Stop> {
    connect(&place.database).await.map_err(|error| Stop(NO, error.to_string()))
}

async fn plan(place: &Place, with_citus: bool) -> Result<(), Stop> {
    let client = open(place).await?;
    if ledger::exists(&client).await? {
        let sentence = "this database is being migrated, or was: see pgtenant migrate status; to plan anew, roll back first";
        return Err(Stop(NO, sentence.to_owned()));
    }
    client.batch_execute("SET search_path = pg_catalog").await?;
    let catalog = Catalog::read(&client).await.map_err(|error| Stop(NO, error.to_string()))?;
    if catalog.tables.is_empty() {
        return Err(Stop(NO, format!("database {} has no tables", catalog.database)));
    }
    if !place.tenancy.exists() {
        let guess = Guess::at(&catalog);
        write(&place.tenancy, &guess.to_toml(&catalog).map_err(|why| Stop(NO, why))?)?;
        println!("wrote {}: check what is marked as a guess", place.tenancy.display());
    }
    let treatment = Treatment::read(&place.tenancy).map_err(|sentence| Stop(BAD_USAGE, sentence))?;
    let design = Design::new(&catalog, &treatment)
        .map_err(|mistakes| Stop(BAD_USAGE, format!("{}:\n{mistakes}", place.tenancy.display())))?;
    let parts = migration::moves(&design);
    let folder = folder_of(&place.tenancy);
    for (part, moves) in &parts {
        let forward = text::forward(*part, moves);
        let told = |step: &Step| (step.id.clone(), step.how, step.check.clone());
        let is_read = text::read(&forward)
            .is_ok_and(|steps| steps.iter().map(told).eq(moves.iter().map(|one| told(&one.step))));
        if !is_read && !moves.is_empty() {
            let why = "an expression in it has a comment or a quote without an end; put it into a function";
            return Err(Stop(BAD_USAGE, format!("{}: {why}", place.tenancy.display())));
        }
        write(&folder.join(format!("{}.sql", part.file())), &forward)?;
        write(&folder.join(format!("{}.rollback.sql", part.file())), &text::back(*part, moves))?;
    }
    write(&folder.join("report.md"), &report::markdown(&design, &parts))?;
    if with_citus {
        write(&folder.join("citus.sql"), &migration::distribute::citus(&design))?;
    }
    let steps: usize = parts.iter().map(|(_, moves)| moves.len()).sum();
    println!(
        "wrote 003, 004, 005, their rollbacks and report.md: {steps} steps for {} tables",
        design.tables.len()
    );
    println!("next: read report.md, then pgtenant migrate apply");
    Ok(())
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write(file: &Path, text: &str) -> Result<(), Stop> {
    std::fs::write(file, text).map_err(|error| Stop(NO, format!("cannot write {}: {error}", file.display())))
}

/// The steps of all files, in the order in which they are applied, and those of the cut-over.
fn steps(place: &Place) -> Result<(Vec<Step>, Vec<Step>), Stop> {
    let mut parts = Part::ALL.map(|part| read(place, &format!("{}.sql", part.file()))).into_iter();
    let mut next = || parts.next().unwrap_or_else(|| Ok(Vec::new()));
    let (mut steps, mut policies, data) = (next()?, next()?, next()?);
    let last = policies
        .iter()
        .position(|step| step.title.starts_with(migration::CUT_OVER))
        .unwrap_or(policies.len());
    let cut_over = policies.split_off(last);
    steps.extend(policies);
    steps.extend(data);
    Ok((steps, cut_over))
}

fn read(place: &Place, name: &str) -> Result<Vec<Step>, Stop> {
    let file = folder_of(&place.tenancy).join(name);
    let at = |what: String| Stop(BAD_USAGE, format!("{}: {what}", file.display()));
    let text = std::fs::read_to_string(&file)
        .map_err(|error| at(format!("{error}; run pgtenant migrate plan first")))?;
    text::read(&text).map_err(at)
}

/// What `apply` is asked for.
struct Wanted {
    backup: bool,
    restore_test: bool,
    cut_over: bool,
}

async fn apply_all(place: &Place, wanted: &Wanted) -> Result<(), Stop> {
    let (mut all, last) = steps(place)?;
    if wanted.cut_over {
        all.extend(last);
    }
    let treatment = Treatment::read(&place.tenancy).map_err(|sentence| Stop(BAD_USAGE, sentence))?;
    let client = open(place).await?;
    apply::alone(&client).await?;
    checked_before(&client).await?;
    let catalog = Catalog::read(&client).await.map_err(|error| Stop(NO, error.to_string()))?;
    let is_fresh = ledger::read(&client).await?.is_empty();
    if wanted.backup && is_fresh {
        backed_up(place, &client, &catalog, wanted.restore_test).await?;
    }
    ledger::open(&client).await?;
    let mut bar = Bar::start();
    if is_fresh {
        for (name, columns) in old_columns(&catalog, &treatment) {
            bar.says(&format!("summing up {name}"));
            verify::sum_up(&client, &name, &columns, "before").await?;
        }
    }
    let ran = paced(place, &client, &all, &mut bar).await?;
    bar.ends();
    println!("{ran} steps, of {}", all.len());
    for (name, columns) in old_columns(&catalog, &treatment) {
        verify::sum_up(&client, &name, &columns, "after").await?;
    }
    let differences = verify::differences(&client).await?;
    if differences.is_empty() {
        println!("every row is what it was");
    }
    for difference in differences {
        println!("{difference}: if nobody wrote to it meanwhile, compare it with the backup");
    }
    Ok(())
}

async fn backed_up(
    place: &Place,
    client: &Client,
    catalog: &Catalog,
    restore_test: bool,
) -> Result<(), Stop> {
    let unchanged = |why: String| Stop(NO, format!("{why}; nothing was changed"));
    println!("backing up");
    let taken = backup::take(&place.database, folder_of(&place.tenancy), catalog.version, ordinary(catalog));
    let taken = taken.map_err(unchanged)?;
    println!(
        "backup: {} ({} kB, {} tables), read back",
        taken.file.display(),
        taken.bytes / 1024,
        taken.tables
    );
    if restore_test {
        let tables: Vec<_> = catalog.tables.iter().map(|table| table.name.clone()).collect();
        let rows = backup::restore_test(client, &place.database, &taken, catalog.version, &tables).await;
        println!("restored into a database of its own: all {} rows are there", rows.map_err(unchanged)?);
    }
    Ok(())
}

/// Runs the steps; beside them somebody looks whether batches should follow more slowly.
async fn paced(place: &Place, client: &Client, all: &[Step], bar: &mut Bar) -> Result<usize, Stop> {
    let watcher = open(place).await?;
    let ran = tokio::select! {
        ran = apply::forward(client, all, bar) => ran,
        Err(error) = pace::keep(&watcher) => Err(ApplyError::Refused(error)),
    };
    ran.map_err(|error| {
        let more = "what was done before it is in force; pgtenant migrate apply goes on from there, pgtenant migrate rollback goes back";
        Stop(NO, format!("{error}; {more}"))
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

/// What would make it fail later fails now.
async fn checked_before(client: &Client) -> Result<(), Stop> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int, rolsuper OR rolbypassrls, rolsuper, pg_is_in_recovery(), \
             current_setting('max_connections')::int - (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend') \
             FROM pg_roles WHERE rolname = current_user",
            &[],
        )
        .await?;
    let (version, bypasses, is_superuser, is_standby, free): (i32, bool, bool, bool, i32) =
        (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
    let refused = |why: &str| Err(Stop(NO, format!("{why}; nothing was changed")));
    if version < 140_000 {
        return refused("PostgreSQL 14 or newer is needed");
    }
    if is_standby {
        return refused("this server is a standby; use the primary");
    }
    if !bypasses {
        return refused(
            "this role does not bypass row level security: it would not see every row, and could neither back up nor verify",
        );
    }
    if !is_superuser {
        return refused(
            "this role is no superuser: it could not make roles, nor keep triggers from what is not theirs",
        );
    }
    if free < 3 {
        return refused("fewer than three connections are free (max_connections)");
    }
    for long in apply::blockers(client).await {
        println!("{long}: CREATE INDEX CONCURRENTLY waits for it");
    }
    Ok(())
}

async fn status(place: &Place) -> Result<(), Stop> {
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
        println!("{} {state:8} {}{rows}{took}", step.id, step.title);
    }
    let done = lines.values().filter(|line| line.state == ledger::State::Done).count();
    match next {
        Some(next) => println!("{done} of {} steps are done; next is {next}", all.len()),
        None => println!("all {done} steps are done"),
    }
    Ok(())
}

async fn verified(place: &Place) -> Result<(), Stop> {
    let (mut all, last) = steps(place)?;
    let treatment = Treatment::read(&place.tenancy).map_err(|sentence| Stop(BAD_USAGE, sentence))?;
    let client = open(place).await?;
    client.batch_execute("SET search_path = pg_catalog, public").await?;
    let lines = ledger::read(&client).await?;
    if last.iter().any(|step| lines.contains_key(&step.id)) {
        all.extend(last);
    } else if !last.is_empty() {
        println!("not cut over: {} see every row of every organization", treatment.roles.legacy.join(", "));
    }
    let found = verify::findings(&client, &all, &treatment).await?;
    if found.is_empty() {
        println!("all {} steps hold, and every table has its tenant", all.len());
        return Ok(());
    }
    found.iter().for_each(|finding| println!("{finding}"));
    Err(Stop(NO, format!("{} findings", found.len())))
}

async fn rollback(place: &Place, to: Option<&str>) -> Result<(), Stop> {
    let mut undo = Vec::new();
    for part in Part::ALL.iter().rev() {
        undo.extend(read(place, &format!("{}.rollback.sql", part.file()))?);
    }
    let treatment = Treatment::read(&place.tenancy).map_err(|sentence| Stop(BAD_USAGE, sentence))?;
    let client = open(place).await?;
    apply::alone(&client).await?;
    if !ledger::exists(&client).await? {
        println!("nothing was applied");
        return Ok(());
    }
    let keep = to.map_or_else(String::new, |to| format!("{to}.9999"));
    if to.is_none() {
        loses_nothing(&client, &treatment).await?;
    }
    let mut bar = Bar::start();
    let undone = apply::back(&client, &undo, &keep, &mut bar).await.map_err(|error| {
        Stop(
            NO,
            format!(
                "{error}; what was undone before it stays so; pgtenant migrate rollback goes on from there"
            ),
        )
    })?;
    if to.is_none() && ledger::exists(&client).await? {
        // The schema was there before.
        client
            .batch_execute(
                "DROP TABLE pgtenant.migration_steps, pgtenant.migration_checksums, pgtenant.migration_pace",
            )
            .await?;
    }
    bar.ends();
    println!("{undone} steps are undone");
    Ok(())
}

/// Nobody but the default organization and project has rows.
async fn loses_nothing(client: &Client, treatment: &Treatment) -> Result<(), Stop> {
    let default = &treatment.default;
    let has_log: bool =
        client.query_one("SELECT to_regclass('pgtenant.audit_log') IS NOT NULL", &[]).await?.get(0);
    let kept: i64 = match has_log {
        true => client.query_one("SELECT count(*) FROM pgtenant.audit_log", &[]).await?.get(0),
        false => 0,
    };
    if kept > 0 {
        return Err(Stop(
            NO,
            format!(
                "pgtenant.audit_log has {kept} rows, which would be lost: save them, then empty it (ALTER TABLE pgtenant.audit_log DISABLE TRIGGER append_only first); nothing was changed"
            ),
        ));
    }
    for (text, entry) in &treatment.tables {
        let Some(name) = Name::parse(text) else { continue };
        for (source, column, own) in [
            (&entry.organization, &treatment.organizations.column, &default.organization),
            (&entry.project, &treatment.projects.column, &default.project),
        ] {
            if *source != Some(Source::Default) {
                continue;
            }
            let there = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = $2 AND NOT attisdropped)";
            if !client.query_one(there, &[&text, column]).await?.get::<_, bool>(0) {
                continue;
            }
            let (column, own) = (ident(column), literal(own));
            let sql = format!("SELECT count(*), (min({column}::text)) FROM {name} WHERE {column} <> {own}");
            let row = client.query_one(&sql, &[]).await?;
            let count: i64 = row.get(0);
            if count > 0 {
                let one: String = row.get(1);
                return Err(Stop(
                    NO,
                    format!(
                        "{count} rows of {name} belong to others than the default one ({column} {one}): rolling back would mix them up; nothing was changed"
                    ),
                ));
            }
        }
    }
    Ok(())
}
