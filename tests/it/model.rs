//! Many clients of several organizations over few servers, doing whatever clients do in random order: queries, writes,
//! errors, transactions and savepoints, switches of tokens good and bad, batches, pipelines, cancels, disconnects. A model
//! says who may see what; every answer is compared with it, and in the end every row that was written.
//!
//! `MODEL_STEPS=1000000 cargo test --release --test it -- model --nocapture` is a night's size; a failure names its seed,
//! which `MODEL_SEED` repeats (the order among clients is the machine's).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::harness::client::{Raw, bind, execute, message, parse, startup, sync};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, Database};
use crate::harness::{Dice, org};

const CLIENTS: u64 = 8;
const ORGANIZATIONS: u64 = 4;
/// Of all clients together.
const STEPS: u64 = 6_000;

const WHOSE: &str = "SELECT DISTINCT body FROM items";
const MARKS: &str =
    "CREATE TABLE marks (organization_id uuid NOT NULL DEFAULT pgtenant.organization_id(), said text);
     ALTER TABLE marks ENABLE ROW LEVEL SECURITY; ALTER TABLE marks FORCE ROW LEVEL SECURITY;
     CREATE POLICY tenant ON marks USING (organization_id = (SELECT pgtenant.organization_id()));
     GRANT SELECT, INSERT ON marks TO app";

/// What one client does at once.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Look,
    Write,
    Fail,
    Begin,
    Commit,
    Rollback,
    Savepoint,
    RollbackTo,
    Switch {
        to: u32,
        is_local: bool,
    },
    Refused,
    Reset,
    /// A query that may be cancelled.
    Sleep,
}

/// Whose rows a client sees; `None` after a token that was refused.
type Whose = Option<u32>;

/// The settings of a transaction, which roll back.
#[derive(Debug, Clone)]
struct Layer {
    session: Whose,
    local: Whose,
    written: Vec<u32>,
}

#[derive(Debug)]
struct Block {
    now: Layer,
    saved: Vec<Layer>,
    has_failed: bool,
    /// By a token that was refused: nothing but its end is let through.
    is_barred: bool,
}

/// What must come of a step.
#[derive(Debug, PartialEq)]
struct Outcome {
    seen: Option<u32>,
    error: Option<&'static str>,
    status: u8,
}

/// One client, as it must be.
struct Model {
    home: u32,
    session: Whose,
    block: Option<Block>,
    /// Rows that it has committed, by organization.
    written: BTreeMap<u32, u64>,
}

impl Model {
    fn new(home: u32) -> Self {
        Self { home, session: Some(home), block: None, written: BTreeMap::new() }
    }

    fn status(&self) -> u8 {
        match &self.block {
            None => b'I',
            Some(block) if block.has_failed => b'E',
            Some(_) => b'T',
        }
    }

    fn done(&self) -> Outcome {
        Outcome { seen: None, error: None, status: self.status() }
    }

    fn error(&mut self, code: &'static str) -> Outcome {
        if let Some(block) = &mut self.block {
            block.has_failed = true;
        }
        Outcome { seen: None, error: Some(code), status: self.status() }
    }

    fn commit(&mut self, layer: Layer) {
        self.session = layer.session;
        layer.written.iter().for_each(|whose| *self.written.entry(*whose).or_default() += 1);
    }

    /// A step as a message of its own.
    fn step(&mut self, step: &Step) -> Outcome {
        match step {
            Step::Switch { to, is_local: false } if self.block.is_none() => {
                self.session = Some(*to);
                return self.done();
            }
            Step::Switch { .. } if self.block.is_none() => return self.done(),
            Step::Refused if self.block.is_none() => {
                self.session = None;
                return self.error("28000");
            }
            Step::Reset if self.block.is_none() => {
                self.session = Some(self.home);
                return self.done();
            }
            _ if self.block.is_none() && self.session.is_none() => return self.error("28000"),
            Step::Begin => {
                let now = Layer { session: self.session, local: None, written: Vec::new() };
                self.block = Some(Block { now, saved: Vec::new(), has_failed: false, is_barred: false });
                return self.done();
            }
            Step::Commit | Step::Rollback => {
                let block = self.block.take().unwrap();
                if block.is_barred {
                    self.session = None;
                } else if *step == Step::Commit && !block.has_failed {
                    self.commit(block.now);
                }
                return self.done();
            }
            _ if self.block.is_none() => {
                let mut now = Layer { session: self.session, local: None, written: Vec::new() };
                let outcome = within(&mut now, step, self.home);
                if outcome.error.is_none() {
                    self.commit(now);
                }
                return Outcome { status: b'I', ..outcome };
            }
            _ => {}
        }
        self.step_in_block(step)
    }

    fn step_in_block(&mut self, step: &Step) -> Outcome {
        let block = self.block.as_mut().unwrap();
        match step {
            Step::Refused if !block.is_barred => {
                block.is_barred = true;
                return self.error("28000");
            }
            Step::RollbackTo if !block.is_barred => {
                block.now = block.saved.last().unwrap().clone();
                block.has_failed = false;
                return self.done();
            }
            _ if block.has_failed => return self.error("25P02"),
            Step::Savepoint => block.saved.push(block.now.clone()),
            _ => {
                let outcome = within(&mut block.now, step, self.home);
                if let Some(code) = outcome.error {
                    return self.error(code);
                }
                return Outcome { status: b'T', ..outcome };
            }
        }
        self.done()
    }

    /// Steps as one batch of the extended protocol: what is seen, and how it ends.
    fn batch(&mut self, steps: &[Step]) -> (Vec<u32>, Outcome) {
        let is_alone = self.block.is_none();
        let mut seen = Vec::new();
        if is_alone {
            let now = Layer { session: self.session, local: None, written: Vec::new() };
            self.block = Some(Block { now, saved: Vec::new(), has_failed: false, is_barred: false });
        }
        let mut end = self.done();
        for step in steps {
            let has_context =
                self.block.as_ref().is_some_and(|block| block.now.local.or(block.now.session).is_some());
            let needs_none = matches!(step, Step::Switch { .. } | Step::Refused | Step::Reset);
            end = match has_context || needs_none {
                true => self.step_in_block(step),
                false => self.error("28000"),
            };
            seen.extend(end.seen.take());
            if end.error.is_some() {
                break;
            }
        }
        if is_alone {
            let block = self.block.take().unwrap();
            if block.is_barred {
                self.session = None;
            } else if !block.has_failed {
                self.commit(block.now);
            }
            end.status = b'I';
        }
        (seen, end)
    }
}

/// What a step does to the settings of its transaction, where nothing stands in its way.
fn within(now: &mut Layer, step: &Step, home: u32) -> Outcome {
    let mut outcome = Outcome { seen: None, error: None, status: b'T' };
    match step {
        Step::Look => outcome.seen = now.local.or(now.session),
        Step::Write => now.written.extend(now.local.or(now.session)),
        Step::Fail => outcome.error = Some("22012"),
        Step::Switch { to, is_local: true } => now.local = Some(*to),
        Step::Switch { to, .. } => (now.session, now.local) = (Some(*to), None),
        Step::Reset => (now.session, now.local) = (Some(home), None),
        Step::Sleep => {}
        other => panic!("{other:?} has no business here"),
    }
    outcome
}

/// A client and its model.
struct Player {
    gate: Arc<Gate>,
    raw: Raw,
    model: Model,
    dice: Dice,
    written: BTreeMap<u32, u64>,
    /// What it did since it came, for a failure.
    past: Vec<String>,
}

impl Player {
    async fn arrives(gate: &Arc<Gate>, home: u32) -> Raw {
        crate::harness::client::raw(gate, home).await
    }

    /// Steps that make sense now.
    fn choose(&mut self, may_refuse: bool) -> Step {
        let to = 1 + self.dice.roll(ORGANIZATIONS) as u32;
        let is_local = self.dice.roll(2) == 0;
        let (is_in_block, has_saved) = match &self.model.block {
            None => (false, false),
            Some(block) => (true, !block.saved.is_empty()),
        };
        match self.dice.roll(20) {
            0..=4 => Step::Look,
            5..=6 => Step::Write,
            7 => Step::Fail,
            8..=10 if is_in_block => Step::Commit,
            11 if is_in_block => Step::Rollback,
            12 if is_in_block => Step::Savepoint,
            13 if has_saved => Step::RollbackTo,
            8..=13 if !is_in_block => Step::Begin,
            14..=16 => Step::Switch { to, is_local },
            17 if may_refuse => Step::Refused,
            18 => Step::Reset,
            _ => Step::Look,
        }
    }

    /// The text of a step; `{}` in a Write is what the model says.
    fn text(&self, step: &Step) -> String {
        let whose = match &self.model.block {
            Some(block) => block.now.local.or(block.now.session),
            None => self.model.session,
        };
        self.text_of(step, whose)
    }

    fn text_of(&self, step: &Step, whose: Whose) -> String {
        match step {
            Step::Look => WHOSE.to_owned(),
            Step::Write => format!("INSERT INTO marks (said) VALUES ('org-{}')", whose.unwrap_or(0)),
            Step::Fail => "SELECT 1/0".to_owned(),
            Step::Begin => "BEGIN".to_owned(),
            Step::Commit => "COMMIT".to_owned(),
            Step::Rollback => "ROLLBACK".to_owned(),
            Step::Savepoint => "SAVEPOINT s".to_owned(),
            Step::RollbackTo => "ROLLBACK TO s".to_owned(),
            Step::Switch { to, is_local } => {
                let scope = if *is_local { "LOCAL " } else { "" };
                format!("SET {scope}pgtenant.token = '{}'", self.gate.token(org(*to)).sign())
            }
            Step::Refused => {
                format!("SET pgtenant.token = '{}'", self.gate.token(org(1)).expires_in(-999).sign())
            }
            Step::Reset => "RESET pgtenant.token".to_owned(),
            Step::Sleep => "SELECT pg_sleep(0.02)".to_owned(),
        }
    }

    fn message(&mut self, step: &Step) -> Vec<u8> {
        let text = self.text(step);
        match self.dice.roll(2) {
            0 => message(b'Q', format!("{text}\0").as_bytes()),
            _ => [parse("", &text), bind(""), execute(), sync()].concat(),
        }
    }

    async fn check(&mut self, expected: &Outcome, seen: &[u32], what: &str) {
        let answer = self.raw.answer().await;
        let bodies: Vec<_> = answer.rows.iter().filter_map(|row| row[0].clone()).collect();
        let bodies: Vec<_> = bodies.iter().filter(|body| body.starts_with("org-")).cloned().collect();
        let wanted: Vec<_> = seen.iter().map(|whose| format!("org-{whose}")).collect();
        let error = answer.error.as_ref().map(|(code, _)| code.as_str());
        assert_eq!(
            (error, answer.status),
            (expected.error, expected.status),
            "{what}: {answer:?}; it did {:#?}",
            self.past
        );
        assert_eq!(bodies, wanted, "{what}: {answer:?}; it did {:#?}", self.past);
    }

    /// A few messages, sent before anything is read.
    async fn pipeline(&mut self) {
        let count = 1 + self.dice.roll(5);
        let (mut bytes, mut expected, mut forms) = (Vec::new(), Vec::new(), String::new());
        for _ in 0..count {
            let step = self.choose(true);
            let message = self.message(&step);
            forms.push(char::from(message[0]));
            bytes.extend(message);
            let outcome = self.model.step(&step);
            expected.push((step, outcome));
        }
        let all = format!("{:?}", expected.iter().map(|(step, _)| step).collect::<Vec<_>>());
        self.past.push(format!("{all} in {}", forms));
        self.raw.send(&bytes).await;
        for (step, outcome) in expected {
            let seen: Vec<u32> = outcome.seen.into_iter().collect();
            self.check(&outcome, &seen, &format!("{step:?} of {all}")).await;
        }
    }

    /// One batch of the extended protocol.
    async fn batch(&mut self) {
        let has_failed = self.model.block.as_ref().is_some_and(|block| block.has_failed);
        let mut steps = Vec::new();
        for _ in 0..1 + self.dice.roll(5) {
            // Whether a token is looked at behind an error is a matter of time.
            let may_refuse = !has_failed && !steps.contains(&Step::Fail);
            match self.choose(may_refuse) {
                step @ (Step::Look | Step::Write | Step::Fail | Step::Switch { .. } | Step::Reset) => {
                    steps.push(step)
                }
                Step::Refused => {
                    steps.push(Step::Refused);
                    break;
                }
                _ => {}
            }
        }
        let mut bytes = Vec::new();
        let (mut session, mut local) = match &self.model.block {
            Some(block) => (block.now.session, block.now.local),
            None => (self.model.session, None),
        };
        for step in &steps {
            let text = self.text_of(step, local.or(session));
            bytes.extend([parse("", &text), bind(""), execute()].concat());
            match step {
                Step::Switch { to, is_local: true } => local = Some(*to),
                Step::Switch { to, .. } => (session, local) = (Some(*to), None),
                Step::Reset => (session, local) = (Some(self.model.home), None),
                _ => {}
            }
        }
        bytes.extend(sync());
        let (seen, outcome) = self.model.batch(&steps);
        self.past.push(format!("batch {steps:?}"));
        self.raw.send(&bytes).await;
        self.check(&outcome, &seen, &format!("batch {steps:?}")).await;
    }

    /// A query that is cancelled, or was over by then.
    async fn cancel(&mut self) {
        let text = self.text(&Step::Sleep);
        self.past.push("cancel".to_owned());
        self.raw.send(&message(b'Q', format!("{text}\0").as_bytes())).await;
        let mut other = Raw::connect(&self.gate).await;
        other.send(&startup(80_877_102, &self.raw.key)).await;
        other.expect_close().await;
        let answer = self.raw.answer().await;
        let has_been_cancelled = answer.error.as_ref().is_some_and(|(code, _)| code == "57014");
        let expected = match has_been_cancelled {
            true => {
                let usual = self.model.step(&Step::Look);
                assert_eq!(usual.error, None, "it was refused, and is not cancelled");
                self.model.error("57014")
            }
            false => self.model.step(&Step::Sleep),
        };
        let error = answer.error.as_ref().map(|(code, _)| code.as_str());
        assert_eq!(
            (error, answer.status),
            (expected.error, expected.status),
            "{answer:?}; it did {:#?}",
            self.past
        );
    }

    /// It leaves, wherever it is, and somebody else comes.
    async fn leave(&mut self) {
        let home = 1 + self.dice.roll(ORGANIZATIONS) as u32;
        for (whose, count) in std::mem::replace(&mut self.model, Model::new(home)).written {
            *self.written.entry(whose).or_default() += count;
        }
        self.past.clear();
        self.raw = Self::arrives(&self.gate, home).await;
    }

    async fn plays(mut self, steps: u64) -> BTreeMap<u32, u64> {
        for _ in 0..steps {
            match self.dice.roll(20) {
                0..=9 => self.pipeline().await,
                10..=16 => self.batch().await,
                17..=18 => self.cancel().await,
                _ => self.leave().await,
            }
        }
        self.leave().await;
        self.written
    }
}

async fn play(database: &Database, gate: Gate, seed: u64) {
    let steps = std::env::var("MODEL_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(STEPS);
    let admin = database.admin().await;
    admin.batch_execute(MARKS).await.unwrap();
    println!("MODEL_SEED={seed}");
    let gate = Arc::new(gate);
    let mut players = Vec::new();
    for number in 0..CLIENTS {
        let home = 1 + (number % ORGANIZATIONS) as u32;
        let raw = Player::arrives(&gate, home).await;
        let dice = Dice(seed.wrapping_add(number));
        let player = Player {
            gate: gate.clone(),
            raw,
            model: Model::new(home),
            dice,
            written: BTreeMap::new(),
            past: Vec::new(),
        };
        players.push(tokio::spawn(player.plays(steps / CLIENTS)));
    }
    let mut written = BTreeMap::<u32, i64>::new();
    for player in players {
        for (whose, count) in player.await.unwrap() {
            *written.entry(whose).or_default() += i64::try_from(count).unwrap();
        }
    }
    let rows = admin
        .query("SELECT organization_id::text, said, count(*) FROM marks GROUP BY 1, 2", &[])
        .await
        .unwrap();
    let found: BTreeMap<(String, String), i64> =
        rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let wanted =
        written.into_iter().map(|(whose, count)| ((org(whose), format!("org-{whose}")), count)).collect();
    assert_eq!(found, wanted, "every row is whose it says, and none is missing");
    assert!(!gate.log().contains("panicked"), "{}", gate.log());
}

fn seed() -> u64 {
    let given = std::env::var("MODEL_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64)
}

#[tokio::test]
async fn nobody_sees_or_writes_what_the_model_does_not_say() {
    let database = postgres::shared().database().await;
    let gate =
        Gate::with(&database).pool_size(3).set("databases.app.pool", "wait_timeout", "\"20s\"").run().await;
    play(&database, gate, seed()).await;
}

#[tokio::test]
async fn nor_does_anybody_in_session_mode() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).mode("session").pool_size(CLIENTS as usize + 2).run().await;
    play(&database, gate, seed()).await;
}
