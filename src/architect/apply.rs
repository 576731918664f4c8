//! Runs the steps: each after the other, each checked, each with its line in the ledger; and back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connect::causes;
use super::ledger::{self, Line, State};
use super::migration::text::LOCK_TIMEOUT_MS;
use super::migration::{How, Step};

/// Between two tries for a lock: from this on, twice as long each time, and up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long a step tries to get its locks; one that goes row by row, since it last got any further.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(120);

/// For so long one that has ended may seem to be at work.
const ENDING: Duration = Duration::from_secs(1);

/// Why it stopped.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Another one runs.
    #[error(
        "another pgtenant migrate is at work (server process {0}); wait for it, or end it with pg_terminate_backend({0})"
    )]
    Busy(i32),
    /// A step failed.
    #[error("step {id} ({title}) failed: {why}")]
    Failed {
        /// `003.0010`
        id: String,
        /// What it does.
        title: String,
        /// PostgreSQL's words.
        why: String,
    },
    /// A step did what it should not have, or not what it should.
    #[error("step {id} ({title}) ran, and its check says that it is not done: {check}")]
    Unchecked {
        /// `003.0010`
        id: String,
        /// What it does.
        title: String,
        /// The query whose answer is not true.
        check: String,
    },
    /// A step that is done has another text now.
    #[error(
        "step {0} was done with another text than the file has now; plan into an empty folder, or roll back first"
    )]
    Changed(String),
    /// It is on its way back.
    #[error("step {0} is being rolled back; finish that with pgtenant migrate rollback")]
    GoingBack(String),
    /// PostgreSQL refused.
    #[error("PostgreSQL refused: {}", causes(.0))]
    Refused(#[from] tokio_postgres::Error),
}

/// What it tells while it runs.
pub trait Progress {
    /// A step begins: so many of so many.
    fn step(&self, number: usize, of: usize, step: &Step);
    /// It waits for a lock; who holds it, where that is known.
    fn waits(&self, step: &Step, tries: u32, blockers: &[String]);
    /// How far a long step is, in words.
    fn goes_on(&self, how_far: &str);
}

/// Takes the right to be the only one.
///
/// # Errors
/// Somebody else has it.
pub async fn alone(client: &Client) -> Result<(), ApplyError> {
    client
        .batch_execute(
            "SET application_name = 'pgtenant migrate'; SET client_connection_check_interval = '1s'; \
             SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET search_path = pg_catalog, public",
        )
        .await?;
    // Autovacuum gives way to who has waited for a lock for so long; with PostgreSQL's 1 s nothing here ever would have. For superusers.
    let _ = client.batch_execute("SET deadlock_timeout = '50ms'").await;
    let sql = "SELECT pg_try_advisory_lock(hashtext('pgtenant migrate'), hashtext(current_database()))";
    // PostgreSQL may not have noticed yet that the last one is gone.
    let deadline = Instant::now() + ENDING;
    loop {
        if client.query_one(sql, &[]).await?.get(0) {
            return Ok(());
        }
        if Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(FIRST_PAUSE).await;
    }
    let sql = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted \
               AND (classid, objid) = (hashtext('pgtenant migrate')::bigint & 4294967295, hashtext(current_database())::bigint & 4294967295)";
    let holder = client.query_opt(sql, &[]).await?.map_or(0, |row| row.get(0));
    Err(ApplyError::Busy(holder))
}

/// Runs what is not done yet.
///
/// # Errors
/// It stopped at a step; what was done before it stays, and it can go on from there.
pub async fn forward(client: &Client, steps: &[Step], progress: &dyn Progress) -> Result<usize, ApplyError> {
    ledger::open(client).await?;
    let lines = ledger::read(client).await?;
    if let Some(changed) = steps.iter().find(|step| {
        lines
            .get(&step.id)
            .is_some_and(|line| line.state == State::Done && line.hash != ledger::hash_of(step))
    }) {
        return Err(ApplyError::Changed(changed.id.clone()));
    }
    if let Some(line) = lines.values().find(|line| line.state == State::Undoing) {
        return Err(ApplyError::GoingBack(line.id.clone()));
    }
    let mut ran = 0;
    for (number, step) in steps.iter().enumerate() {
        let state = lines.get(&step.id).map(|line| line.state);
        if state == Some(State::Done) {
            continue;
        }
        progress.step(number + 1, steps.len(), step);
        // Its line was written by its own transaction: it is there, and only its check was not seen.
        if !(state == Some(State::Running) && step.how == How::Transaction) {
            run(client, step, Direction::Forward, progress).await?;
        }
        checked(client, step).await?;
        ran += 1;
    }
    Ok(ran)
}

/// Undoes what is done, the last first; down to the step of this id, which stays. Returns how many.
///
/// # Errors
/// It stopped at a step, and can go on from there.
pub async fn back(
    client: &Client,
    undo: &[Step],
    keep: &str,
    progress: &dyn Progress,
) -> Result<usize, ApplyError> {
    let lines = ledger::read(client).await?;
    let mut by_id: BTreeMap<&str, Vec<&Step>> = BTreeMap::new();
    undo.iter().for_each(|step| by_id.entry(&step.id).or_default().push(step));
    // With it goes all that was done later: the cut-over, of 004, stands upon 005.
    let first = lines.values().filter(|line| line.id.as_str() > keep).map(|line| line.number).min();
    let mut done: Vec<&Line> =
        lines.values().filter(|line| first.is_some_and(|first| line.number >= first)).collect();
    done.sort_by_key(|line| std::cmp::Reverse(line.number));
    let of = done.len();
    for (number, line) in done.into_iter().enumerate() {
        let steps = by_id.get(line.id.as_str()).map(Vec::as_slice).unwrap_or_default();
        if steps.is_empty() {
            // Backfilled columns go with the columns.
            ledger::undone(client, &line.id, 0, 0).await?;
            continue;
        }
        for (count, step) in steps.iter().enumerate().skip(line.undone) {
            progress.step(number + 1, of, step);
            run(client, step, Direction::Back { count: count + 1, of: steps.len() }, progress).await?;
        }
    }
    Ok(of)
}

/// Which way.
#[derive(Clone, Copy)]
enum Direction {
    Forward,
    /// So many of its undoing's steps are done with this one.
    Back {
        count: usize,
        of: usize,
    },
}

async fn run(
    client: &Client,
    step: &Step,
    direction: Direction,
    progress: &dyn Progress,
) -> Result<(), ApplyError> {
    let mut deadline = Instant::now() + LOCK_PATIENCE;
    let (mut tries, mut pause, mut place) = (0, FIRST_PAUSE, None);
    loop {
        let failed = match attempt(client, step, direction).await {
            Ok(()) => break,
            Err(error) => error,
        };
        let _ = client.batch_execute("ROLLBACK").await;
        // Where PostgreSQL is gone, the step's own failure is what is told.
        if step.how == How::Batches
            && let Ok(now) = ledger::position(client, &step.id).await
            && now != place
        {
            (deadline, pause, place) = (Instant::now() + LOCK_PATIENCE, FIRST_PAUSE, now);
        }
        if !is_worth_a_try(&failed) || Instant::now() > deadline {
            return Err(ApplyError::Failed {
                id: step.id.clone(),
                title: step.title.clone(),
                why: said(&failed),
            });
        }
        tries += 1;
        progress.waits(step, tries, &blockers(client).await);
        tokio::time::sleep(jittered(pause)).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
    Ok(())
}

async fn checked(client: &Client, step: &Step) -> Result<(), ApplyError> {
    let Some(check) = &step.check else { return Ok(()) };
    // A check that finds nothing is no.
    let is_done = client.query_opt(check.as_str(), &[]).await?.and_then(|row| row.get::<_, Option<bool>>(0));
    if is_done == Some(true) {
        return ledger::done(client, step).await.map_err(ApplyError::from);
    }
    Err(ApplyError::Unchecked { id: step.id.clone(), title: step.title.clone(), check: check.clone() })
}

async fn attempt(client: &Client, step: &Step, direction: Direction) -> Result<(), tokio_postgres::Error> {
    let timeout = format!("SET lock_timeout = '{LOCK_TIMEOUT_MS}ms'");
    client.batch_execute(&timeout).await?;
    if step.how == How::Transaction {
        client.batch_execute("BEGIN").await?;
        if matches!(direction, Direction::Forward) {
            ledger::begin(client, step).await?;
        }
        for sql in &step.sql {
            client.batch_execute(sql).await?;
        }
        over(client, step, direction).await?;
        return client.batch_execute("COMMIT").await;
    }
    if matches!(direction, Direction::Forward) {
        ledger::begin(client, step).await?;
    }
    for sql in &step.sql {
        if sql.contains(" INDEX CONCURRENTLY ") {
            clears_away(client, sql).await?;
            // It waits for all transactions that are older: a lock that nobody feels.
            client.batch_execute("SET lock_timeout = 0").await?;
        }
        client.batch_execute(sql).await?;
        client.batch_execute(&timeout).await?;
    }
    over(client, step, direction).await
}

async fn over(client: &Client, step: &Step, direction: Direction) -> Result<(), tokio_postgres::Error> {
    match direction {
        // What is checked is done when the check says so.
        Direction::Forward if step.check.is_some() => Ok(()),
        Direction::Forward => ledger::done(client, step).await,
        Direction::Back { count, of } => ledger::undone(client, &step.id, count, of).await,
    }
}

/// CREATE INDEX CONCURRENTLY leaves an invalid index where it was interrupted, and IF NOT EXISTS would be content with it.
async fn clears_away(client: &Client, sql: &str) -> Result<(), tokio_postgres::Error> {
    let invalid = "SELECT indexrelid::regclass::text, format(' EXISTS %I ON %s ', x.relname, format('%I.%I', nspname, t.relname)) \
                   FROM pg_index JOIN pg_class AS x ON x.oid = indexrelid JOIN pg_class AS t ON t.oid = indrelid \
                   JOIN pg_namespace ON pg_namespace.oid = t.relnamespace WHERE NOT indisvalid AND x.relkind = 'i'";
    for row in client.query(invalid, &[]).await? {
        let (index, made): (String, String) = (row.get(0), row.get(1));
        if sql.contains(&made) {
            client.batch_execute(&format!("DROP INDEX CONCURRENTLY IF EXISTS {index}")).await?;
        }
    }
    Ok(())
}

fn is_worth_a_try(error: &tokio_postgres::Error) -> bool {
    error
        .code()
        .is_some_and(|code| [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED].contains(code))
}

/// PostgreSQL's message, with its detail and hint.
fn said(error: &tokio_postgres::Error) -> String {
    let Some(report) = error.as_db_error() else { return causes(error) };
    let mut text = format!("{} ({})", report.message(), report.code().code());
    for more in [report.detail(), report.hint()].into_iter().flatten() {
        text.push_str(&format!("; {}", more.trim_end_matches('.')));
    }
    text
}

/// Who has been in a transaction for longest: most likely who holds what is waited for.
pub async fn blockers(client: &Client) -> Vec<String> {
    let sql = "SELECT format('server process %s (%s, %s), in its transaction for %s', pid, usename, state, \
               date_trunc('second', clock_timestamp() - xact_start)) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start < clock_timestamp() - interval '1 second' \
               ORDER BY xact_start LIMIT 3";
    let rows = client.query(sql, &[]).await.unwrap_or_default();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Between half of it and all of it, so that two who wait do not meet again.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0; 1];
    // Without random bytes it is as long as it is.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    pause - pause / 2 * u32::from(byte[0]) / 255
}
