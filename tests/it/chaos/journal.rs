//! The clients' journal: what they were told of each transfer, what they saw that must never be, and what PostgreSQL has
//! in the end.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::ledger::{ACCOUNTS, BALANCE};
use super::session::Lost;
use crate::harness::org;

/// What a client knows of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Its commit was answered.
    Committed,
    /// The connection was lost after the commit was sent, or the answer says that nobody knows.
    Unknown,
    /// It was told so, or never asked for a commit.
    Failed,
}

pub struct Entry {
    pub organization: u32,
    pub id: String,
    pub outcome: Outcome,
    /// The error's code, or what else became of it.
    pub why: String,
    /// What was being asked when that came.
    pub at: String,
}

/// How a client that does not come back ended.
#[derive(Debug, Clone)]
pub struct Ending {
    pub lost: Lost,
    /// Its BEGIN had been answered and its COMMIT had not.
    pub in_transaction: bool,
}

/// How much is remembered of what a client met.
const REMEMBERED: usize = 256;

/// What all clients write into.
#[derive(Default)]
pub struct Book {
    pub is_over: AtomicBool,
    pub entries: Mutex<Vec<Entry>>,
    /// What must never be: foreign rows, answers to other questions, clients that are stuck.
    pub violations: Mutex<Vec<String>>,
    /// What clients were told, and when.
    pub errors: Mutex<Vec<(Instant, String)>>,
    /// What each client met since the last mark.
    met: Mutex<BTreeMap<usize, Vec<(Instant, String)>>>,
    pub endings: Mutex<Vec<Ending>>,
    /// Since when progress is measured, and by which number.
    mark: Mutex<(u64, Option<Instant>)>,
    /// Of each client: the last mark it passed, and how long that took.
    passed: Mutex<BTreeMap<usize, (u64, Duration)>>,
    pub transactions: AtomicU64,
}

impl Book {
    pub fn violation(&self, what: String) {
        self.violations.lock().unwrap().push(what);
    }

    /// From now on each client's next success counts.
    pub fn mark(&self, at: Instant) -> u64 {
        // What it is at, it is at still.
        for met in self.met.lock().unwrap().values_mut() {
            met.drain(..met.len().saturating_sub(1));
        }
        let mut mark = self.mark.lock().unwrap();
        *mark = (mark.0 + 1, Some(at));
        mark.0
    }

    /// What the client that took longest to pass this mark met until then, for people.
    pub fn slowest(&self, mark: u64) -> String {
        let Some(since) = self.mark.lock().unwrap().1 else { return String::new() };
        let passed = self.passed.lock().unwrap();
        let slowest = passed.iter().filter(|(_, (last, _))| *last == mark).max_by_key(|(_, (_, took))| *took);
        let Some((client, (_, took))) = slowest else { return String::new() };
        let met = self.met.lock().unwrap();
        let each = met
            .get(client)
            .into_iter()
            .flatten()
            .map(|(at, what)| (at.saturating_duration_since(since), what));
        let each: Vec<_> =
            each.filter(|(at, _)| at <= took).map(|(at, what)| format!("{at:.0?} {what}")).collect();
        format!("client {client}: {}", each.join(", "))
    }

    /// How long the slowest client took to pass this mark, once all have; how many have not yet.
    pub fn passed(&self, mark: u64, clients: usize) -> Result<Duration, usize> {
        let passed = self.passed.lock().unwrap();
        let those: Vec<_> =
            passed.values().filter(|(last, _)| *last == mark).map(|(_, took)| *took).collect();
        match those.len() == clients {
            true => Ok(those.into_iter().max().unwrap_or_default()),
            false => Err(clients - those.len()),
        }
    }

    pub fn progress(&self, client: usize) {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        let (mark, since) = *self.mark.lock().unwrap();
        let Some(since) = since else { return };
        let mut passed = self.passed.lock().unwrap();
        let last = passed.entry(client).or_insert((0, Duration::ZERO));
        if last.0 != mark {
            *last = (mark, since.elapsed());
        }
    }

    /// What a client asks, or is told.
    pub fn meets(&self, client: usize, what: &str) {
        let mut met = self.met.lock().unwrap();
        let met = met.entry(client).or_default();
        if met.len() >= REMEMBERED {
            met.drain(..REMEMBERED / 2);
        }
        met.push((Instant::now(), what.to_owned()));
    }

    pub fn error(&self, client: usize, word: String) {
        self.meets(client, &word);
        self.errors.lock().unwrap().push((Instant::now(), word));
    }

    pub fn count(&self, outcome: Outcome) -> usize {
        self.entries.lock().unwrap().iter().filter(|entry| entry.outcome == outcome).count()
    }

    /// What transfers of this outcome were told, by code.
    pub fn told(&self, outcome: Outcome) -> BTreeMap<String, usize> {
        let mut told = BTreeMap::new();
        for entry in self.entries.lock().unwrap().iter().filter(|entry| entry.outcome == outcome) {
            *told.entry(entry.why.clone()).or_default() += 1;
        }
        told
    }
}

/// Accounts for these organizations.
pub async fn endow(admin: &Client, organizations: u32) {
    for n in 1..=organizations {
        let sql = format!(
            "INSERT INTO accounts SELECT '{}', n, {BALANCE} FROM generate_series(1, {ACCOUNTS}) n",
            org(n)
        );
        admin.batch_execute(&sql).await.unwrap();
    }
}

/// What the journal and PostgreSQL do not agree about; asked past the proxy.
pub async fn audit(book: &Book, admin: &Client) -> Audit {
    let mut audit =
        Audit { wrong: std::mem::take(&mut *book.violations.lock().unwrap()), ..Audit::default() };
    let sums = format!(
        "SELECT organization_id::text, sum(balance)::text FROM accounts GROUP BY 1 HAVING sum(balance) <> {}",
        ACCOUNTS * BALANCE
    );
    for row in admin.query(&sums, &[]).await.unwrap() {
        let (whose, sum): (String, String) = (row.get(0), row.get(1));
        audit.wrong.push(format!("organization {whose} has {sum} in the end"));
    }
    // Each balance is what its transfers make it.
    let balances = format!(
        "SELECT a.organization_id::text, a.id FROM accounts a WHERE a.balance <> {BALANCE} \
         + (SELECT coalesce(sum(amount), 0) FROM transfers t \
            WHERE t.organization_id = a.organization_id AND t.payee = a.id) \
         - (SELECT coalesce(sum(amount), 0) FROM transfers t \
            WHERE t.organization_id = a.organization_id AND t.payer = a.id)"
    );
    for row in admin.query(&balances, &[]).await.unwrap() {
        let (whose, account): (String, i32) = (row.get(0), row.get(1));
        audit.wrong.push(format!("account {account} of {whose} is not what its transfers make it"));
    }
    let mut there: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for row in admin.query("SELECT id::text, organization_id::text FROM transfers", &[]).await.unwrap() {
        there.entry(row.get(0)).or_insert_with(|| (row.get(1), 0)).1 += 1;
    }
    for Entry { organization, id, outcome, why, at } in book.entries.lock().unwrap().iter() {
        let (whose, times) = there.remove(id).unwrap_or_else(|| (org(*organization), 0));
        let is_right = match outcome {
            Outcome::Committed => times == 1,
            Outcome::Unknown => times <= 1,
            Outcome::Failed => times == 0,
        };
        if !is_right || whose != org(*organization) {
            audit.wrong.push(format!(
                "transfer {id}: {outcome:?} ({why}, {at}), and {times} times there, of {whose}"
            ));
        }
        if *outcome == Outcome::Unknown && times == 1 {
            audit.unknown_there += 1;
        }
    }
    audit.wrong.extend(there.keys().map(|id| format!("transfer {id} is there, and nobody made it")));
    audit
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Audit {
    pub wrong: Vec<String>,
    /// Of those that nobody could know of.
    pub unknown_there: usize,
}
