//! A noisy organization beside quiet ones, and two that want everything; with PgBouncer's figures beside ours.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::ground::Ground;
use super::pooler::{Pooler, peer};
use super::report::{Report, quantile, seconds};
use super::{seed, size};
use crate::harness::{Dice, bouncer, org};

const NAP: &str = "SELECT pg_sleep(0.02)";
/// As long in the mean. Queries that all take equally long fall into step: their servers come free in waves.
const UNEVEN: &str = "SELECT pg_sleep(0.01 + 0.02 * random())";
const NAP_TIME: Duration = Duration::from_millis(20);

/// Organizations: the noisy one is the first.
const NOISY: u32 = 1;

/// Clients that ask one thing, until they are told to stop.
struct Crowd {
    is_over: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    times: Arc<Mutex<Vec<Duration>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// `think`: the longest pause between two queries.
    async fn gather(
        target: &Pooler,
        organizations: impl Iterator<Item = u32>,
        sql: &'static str,
        think: Duration,
    ) -> Self {
        let mut crowd = Self {
            is_over: Arc::default(),
            done: Arc::default(),
            times: Arc::default(),
            clients: Vec::new(),
        };
        for (n, organization) in organizations.enumerate() {
            let client = target.client(organization).await;
            let (is_over, done, times) = (crowd.is_over.clone(), crowd.done.clone(), crowd.times.clone());
            let mut dice = Dice(n as u64);
            crowd.clients.push(tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let pause = dice.roll(1 + think.as_millis() as u64);
                    if pause > 0 {
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                    }
                    let begun = Instant::now();
                    client.simple_query(sql).await.unwrap();
                    times.lock().unwrap().push(begun.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        crowd
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// What it did in this time: how many a second, and how long they took, sorted.
    async fn measured(&self, long: Duration) -> (f64, Vec<Duration>) {
        self.times.lock().unwrap().clear();
        let (before, begun) = (self.done(), Instant::now());
        tokio::time::sleep(long).await;
        let rate = (self.done() - before) as f64 / begun.elapsed().as_secs_f64();
        let mut times = std::mem::take(&mut *self.times.lock().unwrap());
        times.sort();
        (rate, times)
    }

    async fn ends(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

/// What quiet ones waited and noisy ones got, apart and together.
struct Found {
    name: String,
    quiet_alone: Vec<Duration>,
    quiet_beside: Vec<Duration>,
    noisy_alone: f64,
    noisy_beside: f64,
}

impl Found {
    /// What is left to the noisy one.
    fn part(&self) -> f64 {
        self.noisy_beside / self.noisy_alone
    }
}

struct Sizes {
    noisy: usize,
    quiet: u32,
    think: Duration,
    long: Duration,
}

async fn measure(name: &str, sql: &'static str, target: &Pooler, sizes: &Sizes) -> Found {
    let settle = sizes.long / 4;
    let those = 2..2 + sizes.quiet;
    let quiet = Crowd::gather(target, those, "SELECT 1", sizes.think).await;
    tokio::time::sleep(settle).await;
    let (_, quiet_alone) = quiet.measured(sizes.long).await;
    quiet.ends().await;
    let noisy = Crowd::gather(target, std::iter::repeat_n(NOISY, sizes.noisy), sql, Duration::ZERO).await;
    tokio::time::sleep(settle).await;
    let (noisy_alone, _) = noisy.measured(sizes.long).await;
    let quiet = Crowd::gather(target, 2..2 + sizes.quiet, "SELECT 1", sizes.think).await;
    tokio::time::sleep(settle).await;
    let ((noisy_beside, _), (_, quiet_beside)) =
        tokio::join!(noisy.measured(sizes.long), quiet.measured(sizes.long));
    tokio::join!(quiet.ends(), noisy.ends());
    let name = format!("{name}, `{sql}`");
    Found { name, quiet_alone, quiet_beside, noisy_alone, noisy_beside }
}

#[tokio::test]
async fn quiet_organizations_do_not_feel_a_noisy_one() {
    let sizes = Sizes {
        noisy: size("CHAOS_NOISY", 40, 300) as usize,
        quiet: size("CHAOS_QUIET", 8, 50) as u32,
        think: Duration::from_millis(200),
        long: Duration::from_millis(1000 * size("CHAOS_NEIGHBOUR_SECONDS", 1, 20)),
    };
    let seed = seed("neighbours");
    let servers = if sizes.noisy > 100 { 20 } else { 4 };
    let ground = Ground::lay(1, servers).await;
    let mut report = Report::new("Noisy neighbour", &ground, seed);
    let target = ground.pooler(ground.database.port, None).await;
    let mut all = Vec::new();
    for sql in [NAP, UNEVEN] {
        all.push(measure("pgtenant", sql, &target, &sizes).await);
    }
    drop(target);
    if let Some(program) = peer() {
        let bouncer = ground.pooler(ground.database.port, Some(&program)).await;
        let name = bouncer::version(&program);
        for sql in [NAP, UNEVEN] {
            all.push(measure(&name, sql, &bouncer, &sizes).await);
        }
    }
    let turns = weights(&ground, &sizes).await;
    let ours = &all[0];
    let slowest =
        |found: &Found| [&found.quiet_alone, &found.quiet_beside].map(|times| quantile(times, 0.99));
    let instead =
        |[alone, beside]: [Duration; 2]| format!("{} instead of {}", seconds(beside), seconds(alone));
    let [alone, beside] = slowest(ours);
    report.row_beside(
        "p99 of quiet organizations beside a noisy one",
        "30 ms, and one of its queries (20 ms) above twice that without",
        &instead([alone, beside]),
        all.get(2).map(|found| instead(slowest(found))),
        beside <= Duration::from_millis(30).min(2 * alone + NAP_TIME),
    );
    for (n, which) in ["", ", where they vary"].into_iter().enumerate() {
        let what = format!("the noisy one's throughput beside quiet ones, of that alone{which}");
        let peer = all.get(2 + n).map(|found| format!("{:.3}", found.part()));
        report.row_beside(&what, "0.95", &format!("{:.3}", all[n].part()), peer, all[n].part() >= 0.95);
    }
    let ratio = turns[1] as f64 / turns[0] as f64;
    report.row(
        "two that want everything, with weights of 1 and 4: server time",
        "4 within 5 %",
        &format!("{ratio:.3}"),
        (3.8..=4.2).contains(&ratio),
    );
    report.text(&format!(
        "{servers} servers; {} clients of one organization with queries of 20 ms, or of 10 to 30 ms; {} organizations with one client each that asks `SELECT 1` \
         after up to {}; {} each. Weights: {} clients of either; {} and {} queries of equal length.",
        sizes.noisy,
        sizes.quiet,
        seconds(sizes.think),
        seconds(sizes.long),
        sizes.noisy / 2,
        turns[0],
        turns[1]
    ));
    let rate = |found: &Found| found.quiet_beside.len() as f64 / sizes.long.as_secs_f64();
    let lost = |found: &Found| {
        let servers = (1.0 - found.part()).max(0.0) * servers as f64;
        Duration::from_secs_f64(servers / rate(found).max(1.0))
    };
    let times = |times: &[Duration]| {
        format!("{} / {}", seconds(quantile(times, 0.5)), seconds(quantile(times, 0.99)))
    };
    let rows = all.iter().map(|found| {
        vec![
            found.name.clone(),
            times(&found.quiet_alone),
            times(&found.quiet_beside),
            format!("{:.0}/s", found.noisy_alone),
            format!("{:.0}/s", found.noisy_beside),
            format!("{:.0}/s", rate(found)),
            seconds(lost(found)),
        ]
    });
    let head = [
        "",
        "quiet p50 / p99, alone",
        "beside the noisy one",
        "noisy, alone",
        "beside quiet ones",
        "quiet, beside it",
        "a server's time that each takes",
    ];
    report.table(&head, rows.collect());
    report.text(
        "Quiet ones that wait less ask more often. What each of their queries takes of a server's time is what the noisy one lost, \
         divided by them: the query, and that the server changes hands twice.",
    );
    report.write();
    // Tests are not timed: these are far from what is expected.
    assert!(!ours.quiet_beside.is_empty() && beside < Duration::from_secs(2), "{beside:?}");
    assert!((2.0..8.0).contains(&ratio), "{turns:?}");
}

/// How often each of two was served that have weights of 1 and 4 and want everything.
async fn weights(ground: &Ground, sizes: &Sizes) -> [u64; 2] {
    let heavy = format!("[limits.organization.\"{}\"]\nweight = 4", org(2));
    let target = Pooler::ours(ground.gate(ground.database.port).toml(&heavy)).await;
    let each = sizes.noisy / 2;
    let crowds = [
        Crowd::gather(&target, std::iter::repeat_n(1, each), NAP, Duration::ZERO).await,
        Crowd::gather(&target, std::iter::repeat_n(2, each), NAP, Duration::ZERO).await,
    ];
    tokio::time::sleep(sizes.long / 4).await;
    let before = crowds.each_ref().map(Crowd::done);
    tokio::time::sleep(sizes.long).await;
    let turns = [crowds[0].done() - before[0], crowds[1].done() - before[1]];
    let [first, second] = crowds;
    tokio::join!(first.ends(), second.ends());
    turns
}
