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
