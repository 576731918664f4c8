//! `pgtenant.migration_steps`: what is done, in the database that it was done to.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use tokio_postgres::Client;

use super::migration::Step;

/// A step's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `003.0010`
    pub id: String,
    /// In which order they were begun.
    pub number: i64,
    /// What it does.
    pub title: String,
    /// Of its text.
    pub hash: String,
    /// How far it is.
    pub state: State,
    /// Rows that it changed.
    pub rows: i64,
    /// Of its undoing, how many steps are done.
    pub undone: usize,
    /// How long it took, in milliseconds.
    pub took_ms: Option<i64>,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was begun, and is not done.
    Running,
    /// It is done.
    Done,
    /// It is being undone.
    Undoing,
}

impl State {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Undoing => "undoing",
        }
    }
}

/// Whether there is a ledger.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn exists(client: &Client) -> Result<bool, tokio_postgres::Error> {
    let row = client.query_one("SELECT to_regclass('pgtenant.migration_steps') IS NOT NULL", &[]).await?;
    Ok(row.get(0))
}

/// Makes it, where there is none.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn open(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(&format!("BEGIN;\n{}\nCOMMIT;", include_str!("sql/ledger.sql"))).await
}

/// All lines; none where there is no ledger.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn read(client: &Client) -> Result<BTreeMap<String, Line>, tokio_postgres::Error> {
    if !exists(client).await? {
        return Ok(BTreeMap::new());
    }
    let sql = "SELECT id, number, title, hash, state, rows, undone, \
               (extract(epoch FROM finished - started) * 1000)::bigint FROM pgtenant.migration_steps";
    let rows = client.query(sql, &[]).await?;
    let lines = rows.iter().map(|row| {
        let state = match row.get::<_, &str>(4) {
            "done" => State::Done,
            "undoing" => State::Undoing,
            _ => State::Running,
        };
        let undone: i64 = row.get(6);
        Line {
            id: row.get(0),
            number: row.get(1),
            title: row.get(2),
            hash: row.get(3),
            state,
            rows: row.get(5),
            undone: usize::try_from(undone).unwrap_or_default(),
            took_ms: row.get(7),
        }
    });
    Ok(lines.map(|line| (line.id.clone(), line)).collect())
}

/// A step is begun, or begun again.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn begin(client: &Client, step: &Step) -> Result<(), tokio_postgres::Error> {
    let sql = "INSERT INTO pgtenant.migration_steps (id, title, hash, state) VALUES ($1, $2, $3, 'running') \
               ON CONFLICT (id) DO UPDATE SET attempts = migration_steps.attempts + 1, hash = excluded.hash, \
               title = excluded.title, state = 'running', undone = 0";
    client.execute(sql, &[&step.id, &step.title, &hash_of(step)]).await.map(drop)
}

/// How far a step is that goes row by row; nothing at its begin.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn position(client: &Client, id: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let sql = "SELECT position::text FROM pgtenant.migration_steps WHERE id = $1";
    Ok(client.query_opt(sql, &[&id]).await?.and_then(|row| row.get(0)))
}

/// A step is done.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn done(client: &Client, step: &Step) -> Result<(), tokio_postgres::Error> {
    let sql =
        "UPDATE pgtenant.migration_steps SET state = 'done', finished = clock_timestamp() WHERE id = $1";
    client.execute(sql, &[&step.id]).await.map(drop)
}

/// So many steps of its undoing are done; of all of them, it was never done. The ledger may be gone with it.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn undone(client: &Client, id: &str, count: usize, of: usize) -> Result<(), tokio_postgres::Error> {
    if !exists(client).await? {
        return Ok(());
    }
    if count == of {
        return client.execute("DELETE FROM pgtenant.migration_steps WHERE id = $1", &[&id]).await.map(drop);
    }
    let sql = "UPDATE pgtenant.migration_steps SET state = 'undoing', undone = $2 WHERE id = $1";
    client.execute(sql, &[&id, &i64::try_from(count).unwrap_or(i64::MAX)]).await.map(drop)
}

/// Of a step's statements.
pub fn hash_of(step: &Step) -> String {
    let text = step.sql.join(";\n");
    digest(&SHA256, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
