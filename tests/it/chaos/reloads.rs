//! Another configuration again and again, under load: nobody sees an error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ground::Ground;
use super::journal::{Audit, Book, Outcome, audit};
use super::ledger::{Terms, Workload};
use super::pooler::{Pooler, peer};
use super::report::{Report, median, seconds};
use super::{seed, size};
use crate::reload::IN_FORCE;

/// What came of reloads.
struct Course {
    book: Arc<Book>,
    took: Vec<Duration>,
    audit: Audit,
}

impl Course {
    fn troubled(&self) -> usize {
        self.book.count(Outcome::Failed) + self.book.count(Outcome::Unknown)
    }
}

async fn reload(rounds: u64, seed: u64, ground: &Ground, mut pooler: Pooler) -> Course {
    let book = Arc::new(Book::default());
    let terms = Terms {
        ports: vec![pooler.port()],
        organizations: 10,
        each: 2,
        think: Duration::from_millis(5),
        returns: true,
        seed,
    };
    let workload = Workload::start(&terms, &book, &pooler);
    let mut took = Vec::new();
    for round in 0..rounds {
        // Bounds of the pool, and a limit that nobody reaches.
        let [from, to] = if round % 2 == 0 { [4, 3] } else { [3, 4] };
        let asked = Instant::now();
        match &mut pooler {
            Pooler::Ours(gate) => {
                gate.rewrites(&format!("size = {from}"), &format!("size = {to}"));
                gate.reloads(IN_FORCE).await;
            }
            Pooler::Bouncer(bouncer) => bouncer.resizes(to).await,
        }
        took.push(asked.elapsed());
    }
    workload.stop().await;
    took.sort();
    let audit = audit(&book, &ground.admin().await).await;
    Course { book, took, audit }
}

#[tokio::test]
async fn reloads_fail_nobody() {
    let rounds = size("CHAOS_RELOADS", 25, 1_000);
    let seed = seed("reloads");
    let ground = Ground::lay(10, 4).await;
    let mut report = Report::new("Reload", &ground, seed);
    let ours = reload(rounds, seed, &ground, ground.pooler(ground.database.port, None).await).await;
    let mut theirs = None;
    if let Some(program) = peer() {
        let ground = Ground::lay(10, 4).await;
        let pooler = ground.pooler(ground.database.port, Some(&program)).await;
        theirs = Some(reload(rounds, seed, &ground, pooler).await);
    }
    let beside = |figure: fn(&Course) -> usize| theirs.as_ref().map(|course| figure(course).to_string());
    report.row_beside(
        "reloads under load",
        "1000",
        &rounds.to_string(),
        beside(|course| course.took.len()),
        rounds >= 1_000,
    );
    report.row_beside(
        "transfers that failed",
        "0",
        &ours.troubled().to_string(),
        beside(Course::troubled),
        ours.troubled() == 0,
    );
    report.row_beside(
        "transfers that are not what their client was told",
        "0",
        &ours.audit.wrong.len().to_string(),
        beside(|course| course.audit.wrong.len()),
        ours.audit.wrong.is_empty(),
    );
    report.text(&format!(
        "Each changes the pool's size between 4 and 3, under 20 clients of 10 organizations; {} transfers were committed. From the \
         signal to the new configuration in force: median {}, slowest {}.",
        ours.book.count(Outcome::Committed),
        seconds(median(&ours.took)),
        seconds(ours.took[ours.took.len() - 1])
    ));
    report.write();
    assert!(ours.audit.wrong.is_empty(), "CHAOS_SEED={seed}:\n{}", ours.audit.wrong.join("\n"));
    assert_eq!(ours.troubled(), 0, "CHAOS_SEED={seed}: {:?}", ours.book.told(Outcome::Failed));
}
