//! Another configuration again and again, under load: nobody sees an error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ground::{Ground, token};
use super::journal::{Book, Outcome, audit};
use super::ledger::{Terms, Workload};
use super::report::{Report, median, seconds};
use super::{seed, size};
use crate::reload::IN_FORCE;

#[tokio::test]
async fn reloads_fail_nobody() {
    let rounds = size("CHAOS_RELOADS", 25, 1_000);
    let seed = seed("reloads");
    let ground = Ground::lay(10, 4).await;
    let mut report = Report::new("Reload", &ground, seed);
    let gate = ground.gate(ground.database.port).run().await;
    let book = Arc::new(Book::default());
    let terms = Terms {
        ports: vec![gate.port()],
        organizations: 10,
        each: 2,
        think: Duration::from_millis(5),
        returns: true,
        seed,
    };
    let workload = Workload::start(&terms, &book, |n| token(&gate, n));
    let mut took = Vec::new();
    for round in 0..rounds {
        // Bounds of the pool, and a limit that nobody reaches.
        let [from, to] = if round % 2 == 0 { ["size = 4", "size = 3"] } else { ["size = 3", "size = 4"] };
        gate.rewrites(from, to);
        let asked = Instant::now();
        gate.reloads(IN_FORCE).await;
        took.push(asked.elapsed());
    }
    workload.stop().await;
    took.sort();
    let audit = audit(&book, &ground.admin().await).await;
    let (failed, unknown) = (book.count(Outcome::Failed), book.count(Outcome::Unknown));
    report.row("reloads under load", "1000", &rounds.to_string(), rounds >= 1_000);
    report.row("transfers that failed", "0", &(failed + unknown).to_string(), failed + unknown == 0);
    report.row(
        "transfers that are not what their client was told",
        "0",
        &audit.wrong.len().to_string(),
        audit.wrong.is_empty(),
    );
    report.text(&format!(
        "Each changes the pool's size between 4 and 3, under 20 clients of 10 organizations; {} transfers were committed. From the \
         signal to the new configuration in force: median {}, slowest {}.",
        book.count(Outcome::Committed),
        seconds(median(&took)),
        seconds(took[took.len() - 1])
    ));
    report.write();
    assert!(audit.wrong.is_empty(), "CHAOS_SEED={seed}:\n{}", audit.wrong.join("\n"));
    assert_eq!((failed, unknown), (0, 0), "CHAOS_SEED={seed}: {:?}", book.told(Outcome::Failed));
}
