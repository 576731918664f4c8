//! SIGTERM under load: no transaction is cut, idle clients are told, and the exit code is 0.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ground::{Ground, token};
use super::journal::{Book, Ending, Outcome, audit};
use super::ledger::{Terms, Workload};
use super::report::{Report, median, seconds};
use super::session::{Lost, Session};
use super::{seed, size};
use crate::harness::Dice;

/// What the proxy gives transactions.
const GRACE: Duration = Duration::from_secs(25);

/// How long a transaction goes on after the signal.
const LONGER: Duration = Duration::from_millis(300);

#[tokio::test]
async fn no_transaction_is_cut_by_sigterm() {
    let rounds = size("CHAOS_SIGTERMS", 3, 100);
    let organizations = 10;
    let seed = seed("shutdown");
    let ground = Ground::lay(organizations, 8).await;
    let mut report = Report::new("SIGTERM", &ground, seed);
    let mut dice = Dice(seed);
    let book = Arc::new(Book::default());
    let (mut took, mut endings) = (Vec::new(), Vec::new());
    let (mut wrong, mut exits, mut untold) = (Vec::new(), 0, 0);
    for round in 1..=rounds {
        let gate = ground.gate(ground.database.port).run().await;
        let terms = Terms {
            ports: vec![gate.port()],
            organizations,
            each: 3,
            think: Duration::from_millis(15),
            returns: false,
            seed: seed ^ round,
        };
        let mut idle = Vec::new();
        for n in 1..=5 {
            idle.push(Session::open(gate.port(), &token(&gate, n)).await.unwrap());
        }
        let workload = Workload::start(&terms, &book, |n| token(&gate, n));
        let mut longer = Session::open(gate.port(), &token(&gate, 1)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300 + dice.roll(200))).await;
        let begun = longer.query("BEGIN").await;
        assert!(begun.is_ok_and(|answer| answer.error.is_none()), "a transaction begins");
        let asked = Instant::now();
        gate.signal("TERM");
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
        let status = gate.wait_exit(GRACE).await;
        took.push(asked.elapsed());
        exits += usize::from(status.code() != Some(0));
        workload.stop().await;
        match longer {
            Ok(lost) => untold += usize::from(!is_told(&lost)),
            Err(lost) => wrong.push(format!("round {round}: the longer transaction was cut: {lost:?}")),
        }
        untold += idle.iter().filter(|lost| !is_told(lost)).count();
        endings.append(&mut book.endings.lock().unwrap());
        println!("{round} of {rounds}: {status}, after {:?}", asked.elapsed());
    }
    let cut: Vec<&Ending> = endings.iter().filter(|ending| ending.in_transaction).collect();
    wrong.extend(cut.iter().map(|ending| format!("a transaction was cut: {ending:?}")));
    let working: Vec<&Ending> = endings.iter().filter(|ending| !is_told(&ending.lost)).collect();
    untold += working.len();
    let audit = audit(&book, &ground.admin().await).await;
    took.sort();
    report.row("SIGTERMs under load", "100", &rounds.to_string(), rounds >= 100);
    report.row("transactions that had begun and were cut", "0", &wrong.len().to_string(), wrong.is_empty());
    report.row("clients that were not told 57P01", "0", &untold.to_string(), untold == 0);
    report.row("exit codes other than 0", "0", &exits.to_string(), exits == 0);
    report.row(
        "from the signal to the end, the slowest",
        &format!("{} and no longer than the transactions", seconds(GRACE)),
        &format!("{} (median {})", seconds(took[took.len() - 1]), seconds(median(&took))),
        took[took.len() - 1] < LONGER + Duration::from_secs(3),
    );
    report.row(
        "transfers that are not what their client was told",
        "0",
        &audit.wrong.len().to_string(),
        audit.wrong.is_empty(),
    );
    report.text(&format!(
        "Each time 30 clients at work, five idle ones, and a transaction that goes on for {} after the signal. {} \
         transfers were committed, {} failed, and of {} nobody could know ({} of them are there): sent without BEGIN, when the \
         signal came.",
        seconds(LONGER),
        book.count(Outcome::Committed),
        book.count(Outcome::Failed),
        book.count(Outcome::Unknown),
        audit.unknown_there
    ));
    report.write();
    wrong.extend(working.iter().map(|ending| format!("not told: {ending:?}")));
    wrong.extend(audit.wrong);
    assert!(wrong.is_empty() && exits == 0 && untold == 0, "CHAOS_SEED={seed}:\n{}", wrong.join("\n"));
}

fn is_told(lost: &Lost) -> bool {
    *lost == Lost::Closed(Some("57P01".to_owned()))
}
