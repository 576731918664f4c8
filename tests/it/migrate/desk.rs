//! A folder with a `tenancy.toml`, the command run on it, and what a database is before and after.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::commands::Ran;
use crate::harness::postgres::Database;

/// A folder for `tenancy.toml` and what lies beside it.
pub struct Desk {
    pub folder: TempDir,
    pub url: String,
}

impl Desk {
    pub fn at(database: &Database) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), url: database.url.clone() }
    }

    pub fn tenancy(&self) -> std::path::PathBuf {
        self.folder.path().join("tenancy.toml")
    }

    pub fn run(&self, action: &str, more: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
        command
            .args(["migrate", action, "--database", &self.url, "--tenancy"])
            .arg(self.tenancy())
            .args(more);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }

    pub fn done(&self, action: &str, more: &[&str]) -> Ran {
        let ran = self.run(action, more);
        assert_eq!(ran.code, 0, "{action}: {ran:?}");
        ran
    }

    /// Changes the file.
    pub fn edit(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.tenancy()).unwrap();
        assert!(text.contains(from), "{from}: {text}");
        std::fs::write(self.tenancy(), text.replace(from, to)).unwrap();
    }
}

/// What pg_dump tells of a database, less what differs from run to run. Where there is no pg_dump of this version: its schema, as
/// the architect reads it, and a sum of each table's rows.
pub async fn dumped(database: &Database) -> String {
    let Some(pg_dump) = pg_dump(database) else { return summed_up(database).await };
    let output = Command::new(pg_dump)
        .args(["--no-owner", "--exclude-table-data=pgtenant.migration_*", "--dbname", &database.url])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let kept =
        text.lines().filter(|line| !line.starts_with("--") && !line.starts_with("\\") && !line.is_empty());
    kept.collect::<Vec<_>>().join("\n")
}

/// One that is not older than the server.
pub fn pg_dump(database: &Database) -> Option<PathBuf> {
    let all = [database.bin.join("pg_dump"), "pg_dump".into()];
    let server = major(&database.bin.join("postgres"));
    all.into_iter().find(|program| major(program) >= server)
}

fn major(program: &Path) -> Option<u32> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty())?.parse().ok()
}

async fn summed_up(database: &Database) -> String {
    let admin = database.admin().await;
    admin.batch_execute("SET search_path = pg_catalog").await.unwrap();
    let row = admin.query_one(include_str!("../../../src/architect/sql/catalog.sql"), &[]).await.unwrap();
    let mut catalog: serde_json::Value = row.get(0);
    let mut sums = Vec::new();
    for table in catalog["tables"].as_array_mut().unwrap() {
        for estimate in ["rows", "bytes", "writes"] {
            table.as_object_mut().unwrap().remove(estimate);
        }
        table["indexes"].as_array_mut().unwrap().iter_mut().for_each(|index| index["bytes"] = 0.into());
        let name = format!("{}.\"{}\"", table["schema"].as_str().unwrap(), table["name"].as_str().unwrap());
        let sql =
            format!("SELECT coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text FROM {name} t");
        sums.push(format!("{name} {}", admin.query_one(&sql, &[]).await.unwrap().get::<_, String>(0)));
    }
    catalog.as_object_mut().unwrap().retain(|key, _| ["tables", "views", "definers"].contains(&key.as_str()));
    format!("{}\n{}", serde_json::to_string_pretty(&catalog).unwrap(), sums.join("\n"))
}

/// The same lines.
pub fn assert_same(before: &str, after: &str, version: u32) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (was, is) = (lines(before), lines(after));
    let gone: Vec<_> = was.iter().filter(|line| !is.contains(line)).collect();
    let new: Vec<_> = is.iter().filter(|line| !was.contains(line)).collect();
    let some =
        |lines: &[&String]| lines.iter().take(10).map(|line| format!("\n  {line}")).collect::<String>();
    assert!(
        gone.is_empty() && new.is_empty(),
        "PostgreSQL {version}: {} lines are gone:{}\n{} are new:{}",
        gone.len(),
        some(&gone),
        new.len(),
        some(&new)
    );
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    // Rows that were changed lie elsewhere, and are dumped in another order.
    assert_eq!(sorted(was), sorted(is), "PostgreSQL {version}: not as often");
}
