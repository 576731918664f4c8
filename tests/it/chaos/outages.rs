//! Clients at work while faults come one after the other: what they were told is true, and they go on soon afterwards.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::faults::Fault;
use super::ground::{Between, Ground};
use super::journal::{Audit, Book, Outcome, audit};
use super::ledger::{Terms, Workload};
use super::pooler::peer;
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
        self.memory.push(stage.between.pooler.resident_kib());
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
    async fn set(seed: u64, organizations: u32, pool_size: usize, peer: Option<&Path>) -> Self {
        let ground = Ground::lay(organizations, pool_size).await;
        let between = Between::run(&ground, peer).await;
        let terms = Terms {
            ports: vec![between.pooler.port(), between.front.port()],
            organizations,
            each: 2,
            think: Duration::from_millis(100),
            returns: true,
            seed,
        };
        let workload = Workload::start(&terms, &Arc::new(Book::default()), &between.pooler);
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
        assert!(self.between.pooler.resident_kib() > 0, "the proxy ended after {after:?}");
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

    /// The end: clients leave, and PostgreSQL is asked.
    async fn closes(self, course: &Course) -> End {
        let Self { ground, between, workload, .. } = self;
        let book = workload.book.clone();
        workload.stop().await;
        let unexplained = course.has_calm.then(|| course.unexplained(&book));
        let audit = audit(&book, &ground.admin().await).await;
        let left = ground.leftovers().await;
        let log = between.pooler.log();
        let silent = between.pooler.is_ours().then(|| without_a_cause(&book, &log));
        End { book, audit, left, silent, unexplained, log }
    }
}

/// How it ended.
struct End {
    book: Arc<Book>,
    audit: Audit,
    /// Servers.
    left: Vec<String>,
    /// Errors whose cause the log does not tell; none where it is another's log.
    silent: Option<BTreeMap<String, usize>>,
    /// Errors that no fault explains, where there was time between them.
    unexplained: Option<BTreeMap<String, usize>>,
    log: String,
}

impl End {
    fn rows(&self, report: &mut Report, peer: Option<&End>) {
        let mut zero = |what: &str, reached: String, peer: Option<String>, is_met: bool| {
            report.row_beside(what, "0", &reached, peer, is_met);
        };
        if let Some(silent) = &self.silent {
            let what = "errors that the proxy told clients and whose cause its log does not tell";
            zero(what, counts(silent), None, silent.is_empty());
        }
        let wrong = |end: &End| end.audit.wrong.len().to_string();
        zero(
            "transfers of which the commit was answered, and that are not there exactly once; failed ones that are; \
             balances and sums that are not right; foreign rows; answers to other questions; clients that are stuck",
            wrong(self),
            peer.map(wrong),
            self.audit.wrong.is_empty(),
        );
        let left = |end: &End| end.left.len().to_string();
        let what = "servers left beyond the pool's size, or in a transaction";
        zero(what, left(self), peer.map(left), self.left.is_empty());
        if let Some(unexplained) = &self.unexplained {
            let what = "errors of clients when nothing had happened for 2 s";
            let peer = peer.and_then(|end| end.unexplained.as_ref()).map(counts);
            zero(what, counts(unexplained), peer, unexplained.is_empty());
        }
    }

    fn texts(&self, report: &mut Report, whose: &str) {
        let [committed, unknown, failed] =
            [Outcome::Committed, Outcome::Unknown, Outcome::Failed].map(|outcome| self.book.count(outcome));
        report.text(&format!(
            "{whose}{committed} transfers were committed, {failed} failed, and of {unknown} nobody could know ({} of them are \
             there).",
            self.audit.unknown_there
        ));
        report.text(&format!(
            "What clients were told of those that nobody could know of: {}. Of those that failed: {}.",
            counts(&self.book.told(Outcome::Unknown)),
            counts(&self.book.told(Outcome::Failed))
        ));
    }

    /// What was wrong, by kind: whose it was and which is left out.
    fn kinds_of_wrong(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for wrong in &self.audit.wrong {
            let words = wrong.split_whitespace().filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
            let kind: Vec<_> = words.take(12).collect();
            *kinds.entry(format!("\"{}\"", kind.join(" "))).or_default() += 1;
        }
        kinds
    }

    /// Nothing, or why the test fails.
    fn wrong(self) -> Vec<String> {
        let mut wrong = [self.audit.wrong, self.left].concat();
        if !wrong.is_empty() {
            wrong.push(self.log);
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

/// One fault after the other, each once all are well again.
async fn one_by_one(stage: &Stage, wanted: u64) -> Course {
    let (mut dice, mut deck, mut course) = (Dice(stage.seed), Vec::new(), Course::default());
    for n in 1..=wanted {
        tokio::time::sleep(Duration::from_millis(100 + dice.roll(300))).await;
        let fault = next(&mut deck, &mut dice);
        course.fault(fault, stage, &mut dice, true).await;
        let took = course.recoveries[&fault].last().copied().flatten().unwrap_or_default();
        println!("{n} of {wanted}: {fault:?}, recovered in {took:?}");
    }
    course
}

#[tokio::test]
async fn no_transfer_is_lost_or_made_whatever_fails() {
    let organizations = size("CHAOS_ORGANIZATIONS", 6, 50) as u32;
    let wanted = size("CHAOS_FAULTS", 12, 500);
    let seed = seed("outages");
    let pool_size = if organizations > 10 { 20 } else { 4 };
    let stage = Stage::set(seed, organizations, pool_size, None).await;
    let mut report = Report::new("Faults", &stage.ground, seed);
    let begun = Instant::now();
    let course = one_by_one(&stage, wanted).await;
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
    let end = stage.closes(&course).await;
    let mut theirs = None;
    if let Some(program) = peer() {
        // Each kind five times, where ours has each 26 times.
        let stage = Stage::set(seed, organizations, pool_size, Some(&program)).await;
        let course = one_by_one(&stage, wanted.min(5 * Fault::ALL.len() as u64)).await;
        let end = stage.closes(&course).await;
        theirs = Some((course, end));
    }
    let (peers_course, peers_end) =
        (theirs.as_ref().map(|(course, _)| course), theirs.as_ref().map(|(_, end)| end));
    let peers_count = peers_course.map(|course| course.count().to_string());
    report.row_beside("faults", "500", &course.count().to_string(), peers_count, course.count() >= 500);
    recoveries(&mut report, &course, peers_course);
    end.rows(&mut report, peers_end);
    end.texts(&mut report, "");
    if let Some(end) = peers_end {
        end.texts(&mut report, "PgBouncer: ");
        report.text(&format!("What was wrong with it: {}.", counts(&end.kinds_of_wrong())));
    }
    report.write();
    let wrong = end.wrong();
    assert!(wrong.is_empty(), "CHAOS_SEED={seed}:\n{}", wrong.join("\n"));
}

/// What was waited for after a fault, sorted.
fn sorted<'a>(taken: impl IntoIterator<Item = &'a Option<Duration>>) -> Vec<Duration> {
    let mut taken: Vec<_> = taken.into_iter().flatten().copied().collect();
    taken.sort();
    taken
}

fn late(taken: &[Duration]) -> usize {
    taken.iter().filter(|took| **took > RECOVERY).count()
}

/// By kind, and the slowest of all.
fn recoveries(report: &mut Report, course: &Course, peer: Option<&Course>) {
    let last = |taken: &[Duration]| taken.last().copied().unwrap_or_default();
    let rows = course.recoveries.iter().map(|(fault, taken)| {
        let taken = sorted(taken);
        let mut cells = vec![
            fault.name().to_owned(),
            taken.len().to_string(),
            seconds(median(&taken)),
            seconds(last(&taken)),
            late(&taken).to_string(),
        ];
        if let Some(peer) = peer {
            let taken = sorted(peer.recoveries.get(fault).into_iter().flatten());
            cells.extend([median(&taken), last(&taken)].map(seconds));
        }
        cells
    });
    let mut head = vec!["fault", "times", "recovery, median", "slowest", "beyond 2 s"];
    if peer.is_some() {
        head.extend(["PgBouncer's, median", "slowest"]);
    }
    let rows = rows.collect();
    let all = |course: &Course| sorted(course.recoveries.values().flatten());
    let told = |taken: &[Duration]| format!("{} (median {})", seconds(last(taken)), seconds(median(taken)));
    let ours = all(course);
    report.row_beside(
        "from PostgreSQL's return until every client has had a transaction: the slowest",
        &seconds(RECOVERY),
        &told(&ours),
        peer.map(|course| {
            let taken = all(course);
            format!("{}; beyond 2 s: {} of {}", told(&taken), late(&taken), taken.len())
        }),
        last(&ours) <= RECOVERY,
    );
    report.table(&head, rows);
    if peer.is_some() {
        report.text(&format!(
            "Who has no transaction for {} counts as that. PgBouncer has `server_login_retry = 1` instead of its 15 s; its clients \
             name their organization in each statement, where ours have it from their token.",
            seconds(STUCK)
        ));
    }
}

/// A fault every second, and then all of them go on.
async fn without_a_break(stage: &Stage, long: Duration) -> Course {
    let (mut dice, mut deck, mut course) = (Dice(stage.seed), Vec::new(), Course::default());
    let begun = Instant::now();
    while begun.elapsed() < long {
        let due = Instant::now() + Duration::from_secs(1);
        let fault = next(&mut deck, &mut dice);
        course.fault(fault, stage, &mut dice, false).await;
        assert!(stage.between.pooler.resident_kib() > 0, "the proxy ended after {fault:?}");
        tokio::time::sleep_until(due.into()).await;
    }
    stage.recovery(Fault::ServersCut, Instant::now()).await;
    course
}

/// Nothing unless it is asked to.
#[tokio::test]
async fn soak() {
    let long = Duration::from_secs(size("CHAOS_SOAK_SECONDS", 0, 1_800));
    if long.is_zero() {
        return;
    }
    let seed = seed("soak");
    let stage = Stage::set(seed, 50, 20, None).await;
    let mut report = Report::new("Soak", &stage.ground, seed);
    let begun = Instant::now();
    let course = without_a_break(&stage, long).await;
    let took = begun.elapsed();
    let end = stage.closes(&course).await;
    let mut theirs = None;
    if let Some(program) = peer() {
        let stage = Stage::set(seed, 50, 20, Some(&program)).await;
        let course = without_a_break(&stage, long / 6).await;
        let end = stage.closes(&course).await;
        theirs = Some((course, end));
    }
    let (peers_course, peers_end) =
        (theirs.as_ref().map(|(course, _)| course), theirs.as_ref().map(|(_, end)| end));
    let minutes = |long: Duration| format!("{:.1}", long.as_secs_f64() / 60.0);
    let peers_minutes = peers_course.map(|_| minutes(long / 6));
    report.row_beside("minutes", "30", &minutes(long), peers_minutes, long.as_secs() >= 1_800);
    let told = |(early, late): (u64, u64)| format!("{early} KiB, then {late} KiB");
    let (early, late) = thirds(&course.memory);
    report.row_beside(
        "resident memory, median of the last third, against that of the second sixth",
        "no more than a tenth and 4 MiB above",
        &told((early, late)),
        peers_course.map(|course| told(thirds(&course.memory))),
        late <= early + early / 10 + 4096,
    );
    end.rows(&mut report, peers_end);
    let took = seconds(took);
    report.text(&format!("{} faults within {took}, one a second where they take no longer.", course.count()));
    end.texts(&mut report, "");
    if let (Some(course), Some(end)) = (peers_course, peers_end) {
        end.texts(&mut report, &format!("PgBouncer, {} faults: ", course.count()));
        report.text(&format!("What was wrong with it: {}.", counts(&end.kinds_of_wrong())));
    }
    report.write();
    let wrong = end.wrong();
    assert!(wrong.is_empty(), "CHAOS_SEED={seed}:\n{}", wrong.join("\n"));
}

/// Medians of the second sixth, and of the last third.
fn thirds(memory: &[u64]) -> (u64, u64) {
    let of = |part: &[u64]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part.get(part.len() / 2).copied().unwrap_or_default()
    };
    let third = memory.len() / 3;
    (of(&memory[third / 2..third]), of(&memory[2 * third..]))
}
