//! Migrations that are killed again and again.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::desk::{Desk, assert_same, dumped};
use super::{EVENTS, shop};
use crate::harness::client;
use crate::harness::postgres::{Database, Shared};
use crate::harness::{Dice, eventually};

/// Killed again and again, it gets where it gets otherwise; and back.
#[tokio::test]
async fn killed_at_any_step_it_goes_on() {
    let shared = Shared::start(&pgtenant::cli::demo::throwaway::Options::default());
    goes_on([shop(&shared).await, shop(&shared).await], &shared, "").await;
}

/// The same where rows find their organizations batch by batch.
#[tokio::test]
async fn killed_between_batches_it_goes_on() {
    let shared = Shared::start(&pgtenant::cli::demo::throwaway::Options::default());
    let both = [shared.empty_database().await, shared.empty_database().await];
    for database in &both {
        database.admin().await.batch_execute(include_str!("agency.sql")).await.unwrap();
    }
    goes_on(both, &shared, "[tables.\"public.events\"]\nscope = \"unknown\"").await;
}

/// `unknown`: of a plan that does not know whose events are.
async fn goes_on([whole, killed]: [Database; 2], shared: &Shared, unknown: &str) {
    // A sequence skips numbers when PostgreSQL crashes, and when the default organization was made is another time.
    let dumped = async |database: &Database| without_times(&dumped(database).await);
    let before = dumped(&killed).await;
    let desk = Desk::at(&whole);
    desk.run("plan", &[]);
    let role = format!("{}_tenant", whole.name);
    desk.edit(&role, "app");
    if !unknown.is_empty() {
        desk.edit(unknown, EVENTS);
    }
    desk.done("plan", &[]);
    desk.done("apply", &["--no-backup"]);
    let expected = dumped(&whole).await;
    let desk = Desk { url: killed.url.clone(), ..desk };
    let mut dice = Dice(seed());
    let kills = desk.killed(shared, &killed, "apply", &["--no-backup"], &mut dice).await;
    assert!(kills > 10, "{kills}");
    assert_same(&expected, &dumped(&killed).await, 15);
    desk.done("verify", &[]);
    let kills = desk.killed(shared, &killed, "rollback", &[], &mut dice).await;
    assert!(kills > 3, "{kills}");
    assert_same(&before, &dumped(&killed).await, 15);
}

/// Whom SIGKILL ends.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Pgtenant,
    /// Its server process; all of PostgreSQL ends with it, and recovers.
    Postgres,
}

impl Victim {
    /// `MIGRATE_VICTIM` says which; otherwise any.
    fn any(dice: &mut Dice) -> Self {
        match std::env::var("MIGRATE_VICTIM").as_deref() {
            Ok("postgres") => Self::Postgres,
            Ok("pgtenant") => Self::Pgtenant,
            Ok(other) => panic!("MIGRATE_VICTIM={other} is neither postgres nor pgtenant"),
            Err(_) if dice.roll(4) == 0 => Self::Postgres,
            Err(_) => Self::Pgtenant,
        }
    }

    /// Some steps are over in a few milliseconds: whoever is to ask PostgreSQL is connected before.
    async fn hunted(self, database: &Database) -> Hunter {
        let admin = match self {
            Self::Pgtenant => None,
            Self::Postgres => Some(database.admin().await),
        };
        Hunter { victim: self, admin }
    }
}

/// Who is ready to kill.
struct Hunter {
    victim: Victim,
    admin: Option<tokio_postgres::Client>,
}

impl Hunter {
    async fn kills(self, child: &mut Child) {
        let sql =
            "SELECT pid::text FROM pg_stat_activity WHERE application_name = 'pgtenant migrate' LIMIT 1";
        match self.admin {
            // It may have ended.
            None => drop(child.kill()),
            Some(admin) => {
                if let Ok(Some(pid)) = client::value(&admin, sql).await {
                    Command::new("kill").args(["-KILL", &pid]).status().unwrap();
                }
            }
        }
    }
}

/// A shop in which a role works until the cut-over.
async fn shop_at_work(shared: &Shared) -> Database {
    let database = shop(shared).await;
    let grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO reports";
    database.admin().await.batch_execute(grant).await.unwrap();
    database
}

/// Killed when a step has just begun, the one after the other; it goes on, and from what is left there it also goes back. Every
/// step is killed where `MIGRATE_EVERY` is 1 (`make migrate-bench`); by default some are, others each time.
#[tokio::test]
async fn killed_at_every_step_it_goes_on_or_back() {
    let every: u64 = std::env::var("MIGRATE_EVERY").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let shared = Shared::start(&pgtenant::cli::demo::throwaway::Options::default());
    let (whole, killed) = (shop_at_work(&shared).await, shop_at_work(&shared).await);
    let before = without_times(&dumped(&killed).await);
    let desk = Desk::at(&whole);
    desk.done("plan", &[]);
    desk.edit(&format!("{}_tenant", whole.name), "app");
    desk.done("plan", &[]);
    desk.done("apply", &["--no-backup", "--cut-over"]);
    let expected = without_times(&dumped(&whole).await);
    let desk = Desk { url: killed.url.clone(), ..desk };
    let mut dice = Dice(seed());
    let (mut kills, mut last) = (0, String::new());
    let mut wanted = 1 + dice.roll(every);
    while let Some(step) = desk.killed_after(&killed, wanted, &last, &mut dice).await {
        eventually("nobody at work", async || nobody_works(&shared, &killed).await).await;
        let copy = shared.copy_of(&killed).await;
        let back = Desk { url: copy.url.clone(), folder: tempfile::tempdir().unwrap() };
        for entry in std::fs::read_dir(desk.folder.path()).unwrap().map(Result::unwrap) {
            std::fs::copy(entry.path(), back.folder.path().join(entry.file_name())).unwrap();
        }
        back.done("rollback", &[]);
        assert_same(&before, &without_times(&dumped(&copy).await), 15);
        drop(copy);
        (kills, last, wanted) = (kills + 1, step, 1 + dice.roll(2 * every - 1));
        println!("killed in {last}");
    }
    println!("{kills} kills");
    assert!(kills * every >= 30, "{kills}");
    assert_same(&expected, &without_times(&dumped(&killed).await), 15);
    desk.done("verify", &[]);
}

fn without_times(text: &str) -> String {
    let kept = text
        .lines()
        .filter(|line| !line.starts_with("SELECT pg_catalog.setval") && !line.contains("\tDefault\t"));
    kept.collect::<Vec<_>>().join("\n")
}

async fn nobody_works(shared: &Shared, database: &Database) -> Option<()> {
    let (admin, connection) =
        tokio_postgres::connect(&shared.server.url("postgres"), tokio_postgres::NoTls).await.ok()?;
    tokio::spawn(connection);
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
    let left: i64 = admin.query_one(sql, &[&database.name]).await.ok()?.get(0);
    (left == 0).then_some(())
}

fn seed() -> u64 {
    let fresh = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("MIGRATE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(fresh % 1_000_000_000);
    println!("MIGRATE_SEED={seed}");
    seed
}

impl Desk {
    /// Runs `apply` until it has begun so many steps behind `last`, and kills it, or PostgreSQL, within a few milliseconds. In which one; none if it
    /// came to its end.
    async fn killed_after(
        &self,
        database: &Database,
        steps: u64,
        last: &str,
        dice: &mut Dice,
    ) -> Option<String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
        command
            .args(["migrate", "apply", "--no-backup", "--cut-over", "--database", &database.url, "--tenancy"])
            .arg(self.tenancy());
        let hunter = Victim::any(dice).hunted(database).await;
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let begun = lines.by_ref().map_while(Result::ok).filter(|line| line.starts_with("00"));
        // What was done is not told again, and what was being done then is told first.
        let mut begun = begun.filter(|line| line != last);
        let step = begun.nth(usize::try_from(steps).unwrap() - 1);
        drop(begun);
        let mut rest = Vec::new();
        if step.is_some() {
            std::thread::sleep(Duration::from_micros(dice.roll(3_000)));
            rest.push(format!("{:?}", hunter.victim));
            hunter.kills(&mut child).await;
        }
        rest.extend(lines.map_while(Result::ok));
        let status = child.wait().unwrap();
        assert!(is_expected(status, &rest), "{status} {step:?}: {rest:?}");
        step
    }

    /// Runs an action until it is done: each time it is killed soon after it told of a step, or its server process is. How often.
    async fn killed(
        &self,
        shared: &Shared,
        database: &Database,
        action: &str,
        more: &[&str],
        dice: &mut Dice,
    ) -> usize {
        let (mut longest, mut last) = (25, None);
        for kills in 0..400 {
            let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
            command
                .args(["migrate", action, "--database", &self.url, "--tenancy"])
                .arg(self.tenancy())
                .args(more);
            let hunter = Victim::any(dice).hunted(database).await;
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
            // What it tells before the first step is passed over.
            let mut steps = lines.by_ref().map_while(Result::ok).filter(|line| line.starts_with("00"));
            let step = (0..1 + dice.roll(3)).filter_map(|_| steps.next()).last();
            // It must get somewhere.
            longest = if step == last { (2 * longest).min(1_000) } else { 25 };
            last.clone_from(&step);
            std::thread::sleep(Duration::from_millis(dice.roll(longest)));
            hunter.kills(&mut child).await;
            let rest: Vec<_> = lines.map_while(Result::ok).collect();
            let status = child.wait().unwrap();
            assert!(is_expected(status, &rest), "{action} at {step:?}: {status}: {rest:?}");
            eventually("PostgreSQL, and nobody at work", async || {
                let (admin, connection) =
                    tokio_postgres::connect(&shared.server.url(&database.name), tokio_postgres::NoTls)
                        .await
                        .ok()?;
                tokio::spawn(connection);
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgtenant migrate'";
                let left: i64 = admin.query_one(sql, &[]).await.ok()?.get(0);
                (left == 0).then_some(())
            })
            .await;
            // Its server process may have been killed when all was done.
            if status.success() {
                return kills;
            }
        }
        panic!("{action} does not come to an end");
    }
}

/// What it says where its server process was killed.
const EXPECTED: [&str; 5] =
    ["connection closed", "cannot connect", "terminating connection", "recovery", "57P"];

/// It was killed, or came to its end, or says that PostgreSQL ended.
fn is_expected(status: ExitStatus, told: &[String]) -> bool {
    let is_told = || told.iter().any(|line| EXPECTED.iter().any(|word| line.contains(word)));
    status.success() || status.code().is_none() || is_told()
}
