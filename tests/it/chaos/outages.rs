//! Clients at work while faults come one after the other: what they were told is true, and they go on soon afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::faults::Fault;
use super::ground::{Between, Ground, token};
use super::journal::{Book, Outcome, audit};
use super::ledger::{Terms, Workload};
use super::report::{Report, median, seconds};
use super::{seed, size};
use crate::harness::Dice;

/// From PostgreSQL's return until every client has had a transaction.
const RECOVERY: Duration = Duration::from_secs(2);

/// Who has had none after so long is stuck.
const STUCK: Duration = Duration::from_secs(20);

/// How long after a fault an error may still be its doing.
const AFTERMATH: Duration = Duration::from_secs(2);

/// What happened.
#[derive(Default)]
struct Course {
    /// Of each kind, how long the slowest client took; none where nobody waited for it.
    recoveries: BTreeMap<Fault, Vec<Option<Duration>>>,
    /// When errors are to be expected.
    windows: Vec<(Instant, Instant)>,
    /// There was time between them.
    has_calm: bool,
    /// KiB, in the order of time.
    memory: Vec<u64>,
}

impl Course {
    async fn fault(&mut self, fault: Fault, stage: &Stage, dice: &mut Dice, waits: bool) {
        let begun = Instant::now();
        let healed = fault.strike(&stage.ground, &stage.between, dice).await;
        let mut took = None;
        if waits {
            self.has_calm = true;
            took = Some(stage.recovery(fault, healed).await);
        }
        let until = healed + took.unwrap_or_default() + AFTERMATH;
        self.windows.push((begun, until));
        self.recoveries.entry(fault).or_default().push(took);
        self.memory.push(stage.between.gate.resident_kib());
    }

    fn count(&self) -> usize {
        self.recoveries.values().map(Vec::len).sum()
    }

    /// Errors that no fault explains.
    fn unexplained(&self, book: &Book) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for (at, word) in book.errors.lock().unwrap().iter() {
            if !self.windows.iter().any(|(begin, end)| (begin..=end).contains(&at)) {
                *found.entry(word.clone()).or_default() += 1;
            }
        }
        found
    }
}

struct Stage {
    ground: Ground,
    between: Between,
    workload: Workload,
    seed: u64,
    organizations: u32,
}

impl Stage {
    async fn set(what: &str, organizations: u32, pool_size: usize) -> Self {
        let seed = seed(what);
        let ground = Ground::lay(organizations, pool_size).await;
        let between = Between::run(&ground).await;
        let terms = Terms {
            ports: vec![between.gate.port(), between.front.port()],
            organizations,
            each: 2,
            think: Duration::from_millis(100),
            returns: true,
            seed,
        };
        let workload = Workload::start(&terms, &Arc::new(Book::default()), |n| token(&between.gate, n));
        let stage = Self { ground, between, workload, seed, organizations };
        let mark = stage.workload.book.mark(Instant::now());
        stage.all_pass(mark).await.unwrap_or_else(|left| panic!("{left} clients do not begin"));
        stage
    }

    async fn all_pass(&self, mark: u64) -> Result<Duration, usize> {
        let deadline = Instant::now() + STUCK;
        loop {
            match self.workload.book.passed(mark, self.workload.clients()) {
                Err(left) if Instant::now() > deadline => return Err(left),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                Ok(took) => return Ok(took),
            }
        }
    }

    /// From this moment until each client has had a transaction.
    async fn recovery(&self, after: Fault, healed: Instant) -> Duration {
        let book = &self.workload.book;
        assert!(self.between.gate.resident_kib() > 0, "pgtenant ended after {after:?}");
        let mark = book.mark(healed);
        match self.all_pass(mark).await {
            Ok(took) => {
                if took > RECOVERY {
                    println!("the slowest, {took:.0?} after {after:?}: {}", book.slowest(mark));
                }
                took
            }
            Err(left) => {
                book.violation(format!("{left} clients had no transaction for {STUCK:?} after {after:?}"));
                STUCK
            }
        }
    }

    /// The end: clients leave, and PostgreSQL is asked. What was wrong.
    async fn closes(self, report: &mut Report, course: &Course) -> Vec<String> {
        let Self { ground, between, workload, .. } = self;
        let book = workload.book.clone();
        workload.stop().await;
        let unexplained = course.unexplained(&book);
        let found = audit(&book, &ground.admin().await).await;
        let left = ground.leftovers().await;
        let silent = without_a_cause(&book, &between.gate.log());
        report.row(
            "errors that the proxy told clients and whose cause its log does not tell",
            "0",
            &counts(&silent),
            silent.is_empty(),
        );
        let entries = |outcome| book.count(outcome);
        let [committed, unknown, failed] =
            [Outcome::Committed, Outcome::Unknown, Outcome::Failed].map(entries);
        report.row(
            "transfers of which the commit was answered, and that are not there exactly once; failed ones that are; \
             balances and sums that are not right; foreign rows; answers to other questions; clients that are stuck",
            "0",
            &found.wrong.len().to_string(),
            found.wrong.is_empty(),
        );
        report.row(
            "servers left beyond the pool's size, or in a transaction",
            "0",
            &left.len().to_string(),
            left.is_empty(),
        );
        if course.has_calm {
            report.row(
                "errors of clients when nothing had happened for 2 s",
                "0",
                &counts(&unexplained),
                unexplained.is_empty(),
            );
        }
        report.text(&format!(
            "{committed} transfers were committed, {failed} failed, and of {unknown} nobody could know ({} of them are \
             there).",
            found.unknown_there
        ));
        report.text(&format!(
            "What clients were told of those that nobody could know of: {}. Of those that failed: {}.",
            counts(&book.told(Outcome::Unknown)),
            counts(&book.told(Outcome::Failed))
        ));
        let mut wrong = [found.wrong, left].concat();
        if !wrong.is_empty() {
            wrong.push(between.gate.log());
        }
        wrong
    }
}

/// Codes of the proxy's own, with how many more were told than the log has lines for; one line may stand for all who waited
/// for a server that could not be opened.
fn without_a_cause(book: &Book, log: &str) -> BTreeMap<String, usize> {
    let lines = |what: &[&str]| log.lines().filter(|line| what.iter().any(|one| line.contains(one))).count();
    let lost = lines(&["a server was closed", "the connection to PostgreSQL was lost", "08006", "08007"]);
    let unopened = lines(&["cannot open a server", "a new server failed at once"]);
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for (_, word) in book.errors.lock().unwrap().iter() {
        *told.entry(word.clone()).or_default() += 1;
    }
    let of = |code: &str| told.get(code).copied().unwrap_or_default();
    let mut silent = BTreeMap::new();
    let untold = (of("08006") + of("08007")).saturating_sub(lost);
    if untold > 0 {
        silent.insert("08006 or 08007".to_owned(), untold);
    }
    for code in ["08001", "08004", "53300"] {
        if of(code) > 0 && unopened == 0 {
            silent.insert(code.to_owned(), of(code));
        }
    }
    silent
}

fn counts(of: &BTreeMap<String, usize>) -> String {
    let each: Vec<_> = of.iter().map(|(word, count)| format!("{word} {count}")).collect();
    if each.is_empty() { "none".to_owned() } else { each.join(", ") }
}

/// All kinds in turn, or those of `CHAOS_KINDS`, in random order.
fn next(deck: &mut Vec<Fault>, dice: &mut Dice) -> Fault {
    if deck.is_empty() {
        let only = std::env::var("CHAOS_KINDS").unwrap_or_default();
        let is_named = |kind: &&Fault| only.split_whitespace().any(|name| name == format!("{kind:?}"));
        deck.extend(Fault::ALL.iter().filter(|kind| only.is_empty() || is_named(kind)));
        assert!(!deck.is_empty(), "CHAOS_KINDS={only} names none of {:?}", Fault::ALL);
    }
    let at = dice.roll(deck.len() as u64) as usize;
    deck.swap_remove(at)
}

#[tokio::test]
async fn no_transfer_is_lost_or_made_whatever_fails() {
    let organizations = size("CHAOS_ORGANIZATIONS", 6, 50) as u32;
    let wanted = size("CHAOS_FAULTS", 12, 500);
    let stage = Stage::set("outages", organizations, if organizations > 10 { 20 } else { 4 }).await;
    let mut report = Report::new("Faults", &stage.ground, stage.seed);
    let mut dice = Dice(stage.seed);
    let (mut deck, mut course) = (Vec::new(), Course::default());
    let begun = Instant::now();
    for n in 1..=wanted {
        tokio::time::sleep(Duration::from_millis(100 + dice.roll(300))).await;
        let fault = next(&mut deck, &mut dice);
        course.fault(fault, &stage, &mut dice, true).await;
        let took = course.recoveries[&fault].last().copied().flatten().unwrap_or_default();
        println!("{n} of {wanted}: {fault:?}, recovered in {took:?}");
    }
    let [all, transactions] = [
        stage.workload.clients() as u64,
        stage.workload.book.transactions.load(std::sync::atomic::Ordering::Relaxed),
    ];
    report.text(&format!(
        "{} faults within {}, under {} organizations with {all} clients, half of them behind a fault proxy of their own, \
         {} servers; {transactions} transactions.",
        course.count(),
        seconds(begun.elapsed()),
        stage.organizations,
        stage.ground.pool_size,
    ));
    report.row("faults", "500", &course.count().to_string(), course.count() >= 500);
    recoveries(&mut report, &course);
    let seed = stage.seed;
    let wrong = stage.closes(&mut report, &course).await;
    report.write();
    assert!(wrong.is_empty(), "CHAOS_SEED={seed}:\n{}", wrong.join("\n"));
}

/// By kind, and the slowest of all.
fn recoveries(report: &mut Report, course: &Course) {
    let mut rows = Vec::new();
    let mut all = Vec::new();
    for (fault, taken) in &course.recoveries {
        let mut taken: Vec<_> = taken.iter().flatten().copied().collect();
        taken.sort();
        let late = taken.iter().filter(|took| **took > RECOVERY).count();
        rows.push(vec![
            fault.name().to_owned(),
            taken.len().to_string(),
            seconds(median(&taken)),
            seconds(taken.last().copied().unwrap_or_default()),
            late.to_string(),
        ]);
        all.extend(taken);
    }
    all.sort();
    let slowest = all.last().copied().unwrap_or_default();
    report.row(
        "from PostgreSQL's return until every client has had a transaction: the slowest",
        &seconds(RECOVERY),
        &format!("{} (median {})", seconds(slowest), seconds(median(&all))),
        slowest <= RECOVERY,
    );
    let head = ["fault", "times", "recovery, median", "slowest", "beyond 2 s"];
    report.table(&head, rows);
}

/// A fault every second. Nothing unless it is asked to.
#[tokio::test]
async fn soak() {
    let long = Duration::from_secs(size("CHAOS_SOAK_SECONDS", 0, 1_800));
    if long.is_zero() {
        return;
    }
    let stage = Stage::set("soak", 50, 20).await;
    let mut report = Report::new("Soak", &stage.ground, stage.seed);
    let mut dice = Dice(stage.seed);
    let (mut deck, mut course) = (Vec::new(), Course::default());
    let begun = Instant::now();
    while begun.elapsed() < long {
        let due = Instant::now() + Duration::from_secs(1);
        let fault = next(&mut deck, &mut dice);
        course.fault(fault, &stage, &mut dice, false).await;
        assert!(stage.between.gate.resident_kib() > 0, "pgtenant ended after {fault:?}");
        tokio::time::sleep_until(due.into()).await;
    }
    // And all of them go on.
    stage.recovery(Fault::ServersCut, Instant::now()).await;
    report.row("minutes", "30", &format!("{:.1}", long.as_secs_f64() / 60.0), long.as_secs() >= 1_800);
    let third = course.memory.len() / 3;
    let of = |part: &[u64]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part.get(part.len() / 2).copied().unwrap_or_default()
    };
    let (early, late) = (of(&course.memory[third / 2..third]), of(&course.memory[2 * third..]));
    report.row(
        "resident memory, median of the last third, against that of the second sixth",
        "no more than a tenth and 4 MiB above",
        &format!("{early} KiB, then {late} KiB"),
        late <= early + early / 10 + 4096,
    );
    report.text(&format!(
        "{} faults within {}, one a second where they take no longer.",
        course.count(),
        seconds(begun.elapsed())
    ));
    let seed = stage.seed;
    let wrong = stage.closes(&mut report, &course).await;
    report.write();
    assert!(wrong.is_empty(), "CHAOS_SEED={seed}:\n{}", wrong.join("\n"));
}
