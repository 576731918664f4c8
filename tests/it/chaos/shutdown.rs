//! SIGTERM under load: no transaction is cut, idle clients are told, and the exit code is 0.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ground::Ground;
use super::journal::{Audit, Book, Ending, Outcome, audit};
use super::ledger::{Terms, Workload};
use super::pooler::{Pooler, peer};
use super::report::{Report, median, seconds};
use super::session::{Lost, Session};
use super::{seed, size};
use crate::harness::Dice;

/// What the proxy gives transactions.
const GRACE: Duration = Duration::from_secs(25);

/// How long a transaction goes on after the signal.
const LONGER: Duration = Duration::from_millis(300);

/// What came of all rounds.
#[derive(Default)]
struct Course {
    book: Arc<Book>,
    took: Vec<Duration>,
    /// Transactions that were cut.
    cut: Vec<String>,
    /// Clients that were not told.
    untold: Vec<String>,
    /// Codes other than 0, and processes that did not end within the grace.
    exits: usize,
    audit: Audit,
}

impl Course {
    async fn run(rounds: u64, seed: u64, organizations: u32, peer: Option<&Path>) -> (Self, Ground) {
        let ground = Ground::lay(organizations, 8).await;
        let (mut course, mut dice) = (Self::default(), Dice(seed));
        for round in 1..=rounds {
            let pooler = ground.pooler(ground.database.port, peer).await;
            let terms = Terms {
                ports: vec![pooler.port()],
                organizations,
                each: 3,
                think: Duration::from_millis(15),
                returns: false,
                seed: seed ^ round,
            };
            course.round(&format!("{round} of {rounds}"), pooler, &terms, &mut dice).await;
        }
        course.took.sort();
        course.audit = audit(&course.book, &ground.admin().await).await;
        (course, ground)
    }

    async fn round(&mut self, round: &str, mut pooler: Pooler, terms: &Terms, dice: &mut Dice) {
        let mut idle = Vec::new();
        for n in 1..=5 {
            idle.push(Session::open(pooler.port(), &pooler.credential(n)).await.unwrap());
        }
        let workload = Workload::start(terms, &self.book, &pooler);
        let mut longer = Session::open(pooler.port(), &pooler.credential(1)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300 + dice.roll(200))).await;
        let begun = longer.query("BEGIN").await;
        assert!(begun.is_ok_and(|answer| answer.error.is_none()), "a transaction begins");
        let asked = Instant::now();
        pooler.ends_safely();
        let longer = async {
            tokio::time::sleep(LONGER).await;
            let answer = longer.query("SELECT count(*) FROM accounts").await?;
            assert_eq!(answer.rows.len(), 1, "{answer:?}");
            let answer = longer.query("COMMIT").await?;
            assert_eq!(answer.tags, ["COMMIT"]);
            Ok::<_, Lost>(longer.farewell().await)
        };
        let idle = async {
            let mut ends = Vec::new();
            for session in idle {
                ends.push(session.farewell().await);
            }
            ends
        };
        let (longer, idle) = tokio::join!(longer, idle);
        let status = pooler.wait_exit(GRACE).await;
        self.took.push(asked.elapsed());
        self.exits += usize::from(status.is_none_or(|status| status.code() != Some(0)));
        workload.stop().await;
        let mut lost = idle;
        match longer {
            Ok(last) => lost.push(last),
            Err(lost) => self.cut.push(format!("round {round}: the longer transaction was cut: {lost:?}")),
        }
        for Ending { lost: last, in_transaction } in self.book.endings.lock().unwrap().drain(..) {
            if in_transaction {
                self.cut.push(format!("round {round}: a transaction was cut: {last:?}"));
            }
            lost.push(last);
        }
        let untold = lost.iter().filter(|lost| !is_told(lost));
        self.untold.extend(untold.map(|lost| format!("round {round}: not told: {lost:?}")));
        println!("{round}: {status:?}, after {:?}", asked.elapsed());
    }

    fn slowest(&self) -> Duration {
        self.took.last().copied().unwrap_or_default()
    }
}

#[tokio::test]
async fn no_transaction_is_cut_by_sigterm() {
    let rounds = size("CHAOS_SIGTERMS", 3, 100);
    let organizations = 10;
    let seed = seed("shutdown");
    let (ours, ground) = Course::run(rounds, seed, organizations, None).await;
    let mut report = Report::new("SIGTERM", &ground, seed);
    let mut theirs = None;
    if let Some(program) = peer() {
        theirs = Some(Course::run(rounds.div_ceil(5), seed, organizations, Some(&program)).await.0);
    }
    let beside = |figure: fn(&Course) -> String| theirs.as_ref().map(figure);
    report.row_beside(
        "SIGTERMs under load",
        "100",
        &rounds.to_string(),
        beside(|course| format!("{} (SIGINT)", course.took.len())),
        rounds >= 100,
    );
    let mut zero = |what: &str, count: fn(&Course) -> usize| {
        let peer = theirs.as_ref().map(|course| count(course).to_string());
        report.row_beside(what, "0", &count(&ours).to_string(), peer, count(&ours) == 0);
    };
    zero("transactions that had begun and were cut", |course| course.cut.len());
    zero("clients that were not told 57P01", |course| course.untold.len());
    zero("exit codes other than 0", |course| course.exits);
    zero("transfers that are not what their client was told", |course| course.audit.wrong.len());
    let took =
        |course: &Course| format!("{} (median {})", seconds(course.slowest()), seconds(median(&course.took)));
    report.row_beside(
        "from the signal to the end, the slowest",
        &format!("{} and no longer than the transactions", seconds(GRACE)),
        &took(&ours),
        theirs.as_ref().map(took),
        ours.slowest() < LONGER + Duration::from_secs(3),
    );
    report.text(&format!(
        "Each time 30 clients at work, five idle ones, and a transaction that goes on for {} after the signal. {} \
         transfers were committed, {} failed, and of {} nobody could know ({} of them are there): sent without BEGIN, when the \
         signal came.",
        seconds(LONGER),
        ours.book.count(Outcome::Committed),
        ours.book.count(Outcome::Failed),
        ours.book.count(Outcome::Unknown),
        ours.audit.unknown_there
    ));
    if theirs.is_some() {
        report.text(
            "PgBouncer gets SIGINT, which lets transactions end; its SIGTERM waits until every client has left by itself.",
        );
    }
    report.write();
    let exits = ours.exits;
    let wrong = [ours.cut, ours.untold, ours.audit.wrong].concat();
    assert!(wrong.is_empty() && exits == 0, "CHAOS_SEED={seed}:\n{}", wrong.join("\n"));
}

fn is_told(lost: &Lost) -> bool {
    *lost == Lost::Closed(Some("57P01".to_owned()))
}
