//! Clients that move money within their organization and keep a journal of what they were told of each transfer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::journal::{Book, Ending, Entry, Outcome};
use super::pooler::Pooler;
use super::session::{Answer, Lost, Session};
use crate::harness::{Dice, org};

/// Of each organization, with so much in each.
pub const ACCOUNTS: i64 = 10;
pub const BALANCE: i64 = 1_000;

/// The longest pause before a client connects again.
const BACKOFF: Duration = Duration::from_millis(200);

/// No key keeps a transfer from being there twice: that is to be seen.
pub const TABLES: &str = "
    CREATE TABLE accounts (
        organization_id uuid NOT NULL DEFAULT pgtenant.organization_id(),
        id int NOT NULL,
        balance bigint NOT NULL,
        PRIMARY KEY (organization_id, id)
    ) WITH (fillfactor = 50);
    CREATE TABLE transfers (
        organization_id uuid NOT NULL DEFAULT pgtenant.organization_id(),
        id uuid NOT NULL,
        payer int NOT NULL,
        payee int NOT NULL,
        amount bigint NOT NULL
    );
    ALTER TABLE accounts ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    ALTER TABLE transfers ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY organization ON accounts USING (organization_id = (SELECT pgtenant.organization_id()));
    CREATE POLICY organization ON transfers USING (organization_id = (SELECT pgtenant.organization_id()));
    GRANT SELECT, INSERT, UPDATE ON accounts, transfers TO app;
";

/// What a client asks.
struct Texts {
    see: String,
    take: String,
    note: String,
    whole: String,
}

impl Texts {
    /// `whose`: the organization, where no policy says it.
    fn new(whose: Option<&str>) -> Self {
        let own = whose.map(|id| format!("organization_id = '{id}'"));
        let [only, and] =
            ["WHERE", "AND"].map(|word| own.as_ref().map(|own| format!(" {word} {own}")).unwrap_or_default());
        let (column, value) = match whose {
            Some(id) => (", organization_id", format!(", '{id}'")),
            None => ("", String::new()),
        };
        let note = format!(
            "INSERT INTO transfers (id, payer, payee, amount{column}) VALUES ($2::uuid, $3::int, $4::int, $5::bigint{value}) \
             RETURNING $1::text, organization_id::text, amount"
        );
        Self {
            see: format!("SELECT $1::text, organization_id::text, balance FROM accounts{only}"),
            take: format!(
                "UPDATE accounts SET balance = balance - $2::bigint WHERE id = $3::int{and} \
                 RETURNING $1::text, organization_id::text, balance"
            ),
            whole: format!(
                "WITH moved AS (UPDATE accounts SET balance = balance + \
                 CASE id WHEN $3::int THEN -$5::bigint ELSE $5::bigint END WHERE id IN ($3::int, $4::int){and}) {note}"
            ),
            note,
        }
    }

    /// By the name that it is prepared under.
    fn of(&self, name: &str) -> String {
        match name {
            "see" => self.see.clone(),
            "take" => self.take.clone(),
            "note" => self.note.clone(),
            _ => self.whole.clone(),
        }
    }
}

/// Clients at work, until it is told to stop.
pub struct Workload {
    pub book: Arc<Book>,
    clients: Vec<JoinHandle<()>>,
}

/// Who works, where, and how.
#[derive(Clone)]
pub struct Terms {
    /// Clients take turns by number.
    pub ports: Vec<u16>,
    pub organizations: u32,
    pub each: u32,
    /// The longest pause between two transactions.
    pub think: Duration,
    /// Who loses its connection comes back.
    pub returns: bool,
    pub seed: u64,
}

impl Workload {
    pub fn start(terms: &Terms, book: &Arc<Book>, pooler: &Pooler) -> Self {
        let mut clients = Vec::new();
        for n in 0..(terms.organizations * terms.each) as usize {
            let organization = 1 + n as u32 % terms.organizations;
            let own = org(organization);
            let member = Member {
                number: n,
                organization,
                texts: Texts::new((!pooler.is_ours()).then_some(&own)),
                own,
                port: terms.ports[n / terms.organizations as usize % terms.ports.len()],
                token: pooler.credential(organization),
                think: terms.think,
                returns: terms.returns,
                dice: Dice(terms.seed ^ (n as u64 + 1).wrapping_mul(0x5851_f42d_4c95_7f2d)),
                book: book.clone(),
                in_transaction: false,
                at: String::new(),
            };
            clients.push(tokio::spawn(member.works()));
        }
        Self { book: book.clone(), clients }
    }

    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// They finish what they are at; who does not is a violation.
    pub async fn stop(self) {
        self.book.is_over.store(true, Ordering::Relaxed);
        for (n, mut client) in self.clients.into_iter().enumerate() {
            match tokio::time::timeout(Duration::from_secs(40), &mut client).await {
                Ok(ended) => ended.unwrap(),
                Err(_) => {
                    client.abort();
                    self.book.violation(format!("client {n} does not come to an end"));
                }
            }
        }
        self.book.is_over.store(false, Ordering::Relaxed);
    }
}

/// One client of one organization.
struct Member {
    number: usize,
    organization: u32,
    own: String,
    texts: Texts,
    port: u16,
    token: String,
    think: Duration,
    returns: bool,
    dice: Dice,
    book: Arc<Book>,
    in_transaction: bool,
    /// What it asked last.
    at: String,
}

/// A transfer to be made.
struct Transfer {
    id: String,
    payer: String,
    payee: String,
    amount: String,
}

/// Why a transaction did not succeed.
enum Trouble {
    Lost(Lost),
    /// An error after which the connection goes on.
    Told(String),
}

impl From<Lost> for Trouble {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

impl Member {
    async fn works(mut self) {
        let mut pause = Duration::from_millis(20);
        let mut session = None;
        while !self.book.is_over.load(Ordering::Relaxed) {
            let mut open = match session.take() {
                Some(open) => open,
                None => match self.signs_in().await {
                    Ok(open) => open,
                    Err(lost) => {
                        self.lost(&lost, "signing in");
                        if !self.returns {
                            return self.ends(lost);
                        }
                        let jitter = self.dice.roll(1 + pause.as_millis() as u64);
                        tokio::time::sleep(pause / 2 + Duration::from_millis(jitter / 2)).await;
                        pause = (pause * 2).min(BACKOFF);
                        continue;
                    }
                },
            };
            match self.transaction(&mut open).await {
                Ok(()) => {
                    pause = Duration::from_millis(20);
                    self.book.progress(self.number);
                    let think = self.dice.roll(1 + self.think.as_millis() as u64);
                    tokio::time::sleep(Duration::from_millis(think)).await;
                    session = Some(open);
                }
                Err(Trouble::Told(code)) => {
                    self.book.error(self.number, code);
                    tokio::time::sleep(pause).await;
                    session = Some(open);
                }
                Err(Trouble::Lost(lost)) => {
                    self.lost(&lost, "at work");
                    if !self.returns {
                        return self.ends(lost);
                    }
                }
            }
        }
    }

    async fn signs_in(&mut self) -> Result<Session, Lost> {
        self.asks("signing in");
        Session::open(self.port, &self.token).await
    }

    fn asks(&mut self, what: impl Into<String>) {
        self.at = what.into();
        self.book.meets(self.number, &self.at);
    }

    fn lost(&self, lost: &Lost, when: &str) {
        if matches!(lost, Lost::Stuck | Lost::Garbled(_)) {
            self.book.violation(format!("client {}, {when}: {lost:?}", self.number));
        }
        self.book.error(self.number, lost.word());
    }

    fn ends(self, lost: Lost) {
        let ending = Ending { lost, in_transaction: self.in_transaction };
        self.book.endings.lock().unwrap().push(ending);
    }

    /// One of a random kind.
    async fn transaction(&mut self, session: &mut Session) -> Result<(), Trouble> {
        let transfer = self.transfer();
        match self.dice.roll(8) {
            0 | 1 => self.in_block(session, &transfer, false).await,
            2 | 3 => self.in_block(session, &transfer, true).await,
            4 => self.in_one_text(session, &transfer).await,
            5 => self.in_one_statement(session, &transfer).await,
            6 => {
                let is_prepared = self.dice.roll(2) == 0;
                self.looks(session, is_prepared).await
            }
            _ => {
                let names = ["see", "take", "note", "whole"];
                let name = names[self.dice.roll(4) as usize];
                session.forget(name).await?;
                self.looks(session, true).await
            }
        }
    }

    fn transfer(&mut self) -> Transfer {
        let (high, low) = (self.dice.roll(u64::MAX), self.dice.roll(u64::MAX));
        let hex = format!("{high:016x}{low:016x}");
        let id = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
        let payer = self.dice.roll(ACCOUNTS as u64);
        let payee = (payer + 1 + self.dice.roll(ACCOUNTS as u64 - 1)) % ACCOUNTS as u64;
        let amount = (1 + self.dice.roll(9)).to_string();
        Transfer { id, payer: (payer + 1).to_string(), payee: (payee + 1).to_string(), amount }
    }

    /// BEGIN, four statements, COMMIT.
    async fn in_block(
        &mut self,
        session: &mut Session,
        transfer: &Transfer,
        is_prepared: bool,
    ) -> Result<(), Trouble> {
        let moved = self.up_to_commit(session, transfer, is_prepared).await;
        self.in_transaction &= moved.is_ok() || matches!(moved, Err(Trouble::Lost(_)));
        if let Err(trouble) = moved {
            self.enter(transfer, Outcome::Failed, &trouble);
            if let Trouble::Told(_) = trouble {
                session.query("ROLLBACK").await?;
            }
            return Err(trouble);
        }
        self.asks("COMMIT");
        let answer = session.query("COMMIT").await;
        let settled = self.settle(transfer, answer, "COMMIT");
        self.in_transaction = matches!(settled, Err(Trouble::Lost(_)));
        settled
    }

    async fn up_to_commit(
        &mut self,
        session: &mut Session,
        transfer: &Transfer,
        is_prepared: bool,
    ) -> Result<(), Trouble> {
        let Transfer { id, payer, payee, amount } = transfer;
        self.asks("BEGIN");
        let begun = fine(session.query("BEGIN").await?)?;
        self.in_transaction = true;
        if begun.tags != ["BEGIN"] {
            self.book.violation(format!("BEGIN was answered by {begun:?}"));
        }
        self.looks(session, is_prepared).await?;
        let less = format!("-{amount}");
        let mut steps = [(payer, amount.as_str()), (payee, less.as_str())];
        steps.sort(); // accounts are always locked in one order
        for (account, amount) in steps {
            self.ask(session, is_prepared, "take", &[amount, account], 1).await?;
        }
        self.ask(session, is_prepared, "note", &[id, payer, payee, amount], 1).await?;
        Ok(())
    }

    /// All of it in one Query.
    async fn in_one_text(&mut self, session: &mut Session, transfer: &Transfer) -> Result<(), Trouble> {
        let Transfer { id, payer, payee, amount } = transfer;
        let marker = self.marker();
        let mut steps = [(payer, amount.clone()), (payee, format!("-{amount}"))];
        steps.sort();
        let [first, second] = steps.map(|(account, amount)| {
            fill(&self.texts.take, &[marker.as_str(), amount.as_str(), account.as_str()])
        });
        let note = fill(&self.texts.note, &[marker.as_str(), id, payer, payee, amount]);
        self.asks("all in one text");
        let answer = session.query(&format!("BEGIN; {first}; {second}; {note}; COMMIT")).await;
        if let Ok(answer) = &answer
            && answer.error.is_none()
        {
            self.check(answer, &marker, 3);
        }
        let is_aborted = answer.as_ref().is_ok_and(|answer| answer.status != b'I');
        let settled = self.settle(transfer, answer, "COMMIT");
        if is_aborted {
            session.query("ROLLBACK").await?;
        }
        settled
    }

    /// One statement without BEGIN, which PostgreSQL commits.
    async fn in_one_statement(&mut self, session: &mut Session, transfer: &Transfer) -> Result<(), Trouble> {
        let Transfer { id, payer, payee, amount } = transfer;
        let marker = self.marker();
        self.asks("one statement");
        let answer = session.execute("whole", &self.texts.whole, &[&marker, id, payer, payee, amount]).await;
        if let Ok(answer) = &answer
            && answer.error.is_none()
        {
            self.check(answer, &marker, 1);
        }
        self.settle(transfer, answer, "INSERT 0 1")
    }

    /// All that the organization has, which is always the same.
    async fn looks(&mut self, session: &mut Session, is_prepared: bool) -> Result<(), Trouble> {
        let answer = self.ask(session, is_prepared, "see", &[], ACCOUNTS as usize).await?;
        let sum: i64 = answer.rows.iter().filter_map(|row| row.get(2)?.as_ref()?.parse::<i64>().ok()).sum();
        if sum != ACCOUNTS * BALANCE {
            self.book.violation(format!("organization {} has {sum}", self.organization));
        }
        Ok(())
    }

    /// Asks with a marker, which must come back with every row.
    async fn ask(
        &mut self,
        session: &mut Session,
        is_prepared: bool,
        name: &'static str,
        values: &[&str],
        rows: usize,
    ) -> Result<Answer, Trouble> {
        let marker = self.marker();
        let values = [&[marker.as_str()], values].concat();
        let sql = self.texts.of(name);
        self.asks(format!("{name}, {}", if is_prepared { "prepared" } else { "simple" }));
        let answer = match is_prepared {
            true => session.execute(name, &sql, &values).await?,
            false => session.query(&fill(&sql, &values)).await?,
        };
        let answer = fine(answer)?;
        self.check(&answer, &marker, rows);
        Ok(answer)
    }

    fn marker(&mut self) -> String {
        format!("m{:016x}", self.dice.roll(u64::MAX))
    }

    fn check(&self, answer: &Answer, marker: &str, rows: usize) {
        if answer.rows.len() != rows {
            self.book.violation(format!("{rows} rows were asked for: {answer:?}"));
        }
        for row in &answer.rows {
            let cell = |n: usize| row.get(n).and_then(Option::as_deref);
            if cell(0) != Some(marker) {
                self.book.violation(format!("an answer to another question than {marker}: {row:?}"));
            }
            if cell(1) != Some(&self.own) {
                self.book.violation(format!("a foreign row for {}: {row:?}", self.own));
            }
        }
    }

    /// What a commit came to, by its answer.
    fn settle(&self, transfer: &Transfer, answer: Result<Answer, Lost>, tag: &str) -> Result<(), Trouble> {
        let trouble = match answer {
            Err(lost) => Trouble::Lost(lost),
            Ok(answer) => match answer.error {
                Some((code, _)) => Trouble::Told(code),
                None if answer.tags.last().is_some_and(|last| last == tag) => {
                    self.enter(transfer, Outcome::Committed, &Trouble::Told(String::new()));
                    return Ok(());
                }
                None => Trouble::Told(format!("{:?}", answer.tags)),
            },
        };
        let outcome = match &trouble {
            Trouble::Lost(_) => Outcome::Unknown,
            Trouble::Told(code) if code == "08007" => Outcome::Unknown,
            Trouble::Told(_) => Outcome::Failed,
        };
        self.enter(transfer, outcome, &trouble);
        Err(trouble)
    }

    fn enter(&self, transfer: &Transfer, outcome: Outcome, why: &Trouble) {
        let (why, at) = match why {
            Trouble::Lost(lost) => (lost.word(), format!("closed at {}", self.at)),
            Trouble::Told(code) => (code.clone(), format!("told at {}", self.at)),
        };
        let entry = Entry { organization: self.organization, id: transfer.id.clone(), outcome, why, at };
        self.book.entries.lock().unwrap().push(entry);
    }
}

fn fine(answer: Answer) -> Result<Answer, Trouble> {
    match answer.error {
        Some((code, _)) => Err(Trouble::Told(code)),
        None => Ok(answer),
    }
}

/// The same text with its values in place, for the simple protocol.
fn fill(sql: &str, values: &[&str]) -> String {
    let mut text = sql.to_owned();
    for (n, value) in values.iter().enumerate().rev() {
        text = text.replace(&format!("${}", n + 1), &format!("'{value}'"));
    }
    text
}
