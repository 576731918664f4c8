//! The files of a migration by themselves: with psql alone, or by another tool.

use std::path::Path;
use std::process::Command;

use super::desk::{Desk, assert_same, dumped};
use super::{EVENTS, FILES, SHOP};
use crate::harness::postgres::{self, Database};

/// Runs a file with these options of PostgreSQL. What it told besides rows.
pub fn psql(database: &Database, file: &Path, options: &str) -> String {
    let mut command = Command::new("psql");
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &database.url, "-f"]).arg(file);
    let output = command.env("PGOPTIONS", options).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {told}", file.display());
    told
}

/// The files are what is run, and nothing else; and none of them has PostgreSQL read all rows of a table under its lock.
#[tokio::test]
async fn the_files_can_be_run_by_hand() {
    for schema in [SHOP, include_str!("agency.sql")] {
        let [ours, by_hand] =
            [postgres::shared().empty_database().await, postgres::shared().empty_database().await];
        for database in [&ours, &by_hand] {
            database.admin().await.batch_execute(schema).await.unwrap();
        }
        let before = dumped(&by_hand).await;
        let desk = Desk::at(&ours);
        desk.run("plan", &[]);
        desk.edit(&format!("{}_tenant", ours.name), "app");
        if schema != SHOP {
            desk.edit("[tables.\"public.events\"]\nscope = \"unknown\"", EVENTS);
        }
        desk.done("plan", &[]);
        desk.done("apply", &["--no-backup"]);
        let run = |name: &str, options: &str| {
            psql(&by_hand, &desk.folder.path().join(format!("{name}.sql")), options)
        };
        let told: String = FILES.map(|name| run(name, "-c client_min_messages=debug1")).concat();
        // Rows are looked at where a check is validated, which nobody waits for, and that spares SET NOT NULL to do so.
        let text = std::fs::read_to_string(desk.folder.path().join(format!("{}.sql", FILES[2]))).unwrap();
        let validated = text
            .lines()
            .filter(|line| line.contains("VALIDATE CONSTRAINT") && line.contains("_tenant_check"))
            .count();
        assert!(schema == SHOP || validated >= 4, "{validated}");
        assert_eq!(told.matches("verifying table").count(), validated, "{told}");
        assert_eq!(
            told.matches("are sufficient to prove that it does not contain nulls").count(),
            validated,
            "{told}"
        );
        assert!(!told.contains("rewriting table"), "{told}");
        let when = |text: String| {
            text.lines().filter(|line| !line.contains("\tDefault\t")).collect::<Vec<_>>().join("\n")
        };
        let without_ledger = async |database: &Database| {
            let ledger = "DROP TABLE IF EXISTS pgtenant.migration_steps, pgtenant.migration_checksums, pgtenant.migration_promises, pgtenant.migration_pace";
            database.admin().await.batch_execute(ledger).await.unwrap();
            when(dumped(database).await)
        };
        assert_same(&without_ledger(&ours).await, &without_ledger(&by_hand).await, 15);
        for name in FILES.iter().rev() {
            run(&format!("{name}.rollback"), "");
        }
        assert_same(&before, &dumped(&by_hand).await, 15);
    }
}

/// However large a batch grows, no more of its table is read for it than its rows.
#[tokio::test]
async fn a_batch_does_not_read_the_rest_of_its_table() {
    let database = postgres::shared().empty_database().await;
    let admin = database.admin().await;
    admin
        .batch_execute(
            "CREATE TABLE accounts (id bigint PRIMARY KEY, name text NOT NULL);
             CREATE TABLE letters (id bigint PRIMARY KEY, account_id bigint NOT NULL REFERENCES accounts, body text NOT NULL);
             CREATE TABLE pages (letter bigint NOT NULL REFERENCES letters, page int NOT NULL, PRIMARY KEY (letter, page));
             INSERT INTO accounts VALUES (1, 'one'), (2, 'two');
             INSERT INTO letters SELECT n, 1 + n % 2, 'letter ' || n FROM generate_series(1, 10000) AS n;
             INSERT INTO pages SELECT 1 + n / 3, n % 3 FROM generate_series(0, 29999) AS n;
             ANALYZE",
        )
        .await
        .unwrap();
    let desk = Desk::at(&database);
    desk.done("plan", &[]);
    let file = |name: &str| desk.folder.path().join(format!("{name}.sql"));
    FILES[..2].iter().for_each(|name| drop(psql(&database, &file(name), "")));
    let text = std::fs::read_to_string(file(FILES[2])).unwrap();
    let at = text.find("(batches): rows of public.pages find their organization").expect("a step of batches");
    let end = at + text[at..].find("\n-- step ").unwrap();
    let start = text[..at].rfind("\n-- step ").unwrap();
    let run = |part: &str| {
        std::fs::write(file("part"), part).unwrap();
        psql(&database, &file("part"), "");
    };
    let read = async || {
        let sql = "SELECT (seq_tup_read + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'pages'))::bigint, n_tup_upd
             FROM pg_stat_user_tables WHERE relname = 'pages'";
        let row = admin.query_one(sql, &[]).await.unwrap();
        [0, 1].map(|n| row.get::<_, i64>(n))
    };
    run(&text[..start]);
    let before = read().await;
    run(&text[start..end]);
    // A session tells what it read when it ends.
    let [rows, updates] = crate::harness::eventually("the rows to be told", async || {
        let after = read().await;
        let told = [0, 1].map(|n| after[n] - before[n]);
        (told[1] >= 30_000).then_some(told)
    })
    .await;
    assert_eq!(updates, 30_000);
    // Each once to see where a batch ends, once to change it, and once to see that none is left.
    assert!((90_000..100_000).contains(&rows), "{rows}");
}
