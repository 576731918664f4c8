//! `make isolation`: the same sequences against another pooler, with what came of them beside ours.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pgtenant::cli::demo::throwaway::Options;

use super::data::{Class, classes};
use super::gate;
use super::stage::{Kind, Stage, Target};
use crate::harness::bouncer;
use crate::harness::postgres::Database;

/// What to run against: `pgbouncer`, a path of it, or the URL of a pooler that runs, with the port of its PostgreSQL.
const TARGET: &str = "PGTENANT_ISOLATION_TARGET";

const HEAD: &str = "# Isolation

Written by `make isolation`. Each sequence of the files beside this one, against each target:

- **transaction**, **session**: pgtenant in these pool modes, policies that ask for the seal
- **past it**: a session of the application's role at PostgreSQL itself, with full SQL and a seal of its own
- **{other}**: policies on a setting, which the application sets when it connects, and the victim's before everything that it
  does (`SET app.organization`); what runs then is what a hostile tenant brings by SQL injection. One server connection, as
  everywhere here, and a new one for each sequence

`held`: the other organization's row is unchanged and unseen, and its next client finds its own row and nothing else. `breached`:
not so, and why. `-`: the sequence means nothing there (tokens, messages to a proxy).
";

/// Does nothing unless it is asked to.
#[tokio::test]
async fn results_beside_another_pooler() {
    let Ok(target) = std::env::var(TARGET) else { return };
    let classes = classes();
    let mut found: BTreeMap<(usize, usize), Vec<String>> = BTreeMap::new();
    let sealed = Stage::set(&Options::default(), true, &classes).await;
    for mode in ["transaction", "session", "past"] {
        let target = match mode {
            "past" => Target::past(&sealed.database),
            mode => Target::gate(gate(&sealed, mode).run().await),
        };
        all(&sealed, &target, &classes, &mut found).await;
    }
    let plain = Stage::set(&Options::default(), false, &classes).await;
    let (other, version) = other(&target, &plain.database).await;
    all(&plain, &other, &classes, &mut found).await;
    let table = table(&classes, &found, &version, plain.shared.server.version_major());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/isolation/RESULTS.md");
    std::fs::write(&file, table).unwrap();
    println!("written: tests/it/isolation/RESULTS.md");
}

async fn all(
    stage: &Stage,
    target: &Target,
    classes: &[Class],
    found: &mut BTreeMap<(usize, usize), Vec<String>>,
) {
    let version = stage.shared.server.version_major();
    for (n, class) in classes.iter().enumerate() {
        for (m, sequence) in class.sequences.iter().enumerate() {
            let outcome = match target.suits(sequence, version) {
                false => "-".to_owned(),
                true => match stage.play(target, sequence).await {
                    wrong if wrong.is_empty() => "held".to_owned(),
                    wrong => format!("**breached**: {}", wrong[0]),
                },
            };
            found.entry((n, m)).or_default().push(outcome);
        }
    }
}

fn table(
    classes: &[Class],
    found: &BTreeMap<(usize, usize), Vec<String>>,
    other: &str,
    version: u32,
) -> String {
    let mut text = HEAD.replace("{other}", other);
    let count = |n: usize, column: usize, what: &str| {
        let of = found.iter().filter(|((class, _), _)| *class == n);
        of.filter(|(_, outcomes)| outcomes[column].starts_with(what)).count()
    };
    writeln!(
        text,
        "\nPostgreSQL {version}.\n\n| class | sequences | transaction | session | past it | {other} |"
    )
    .unwrap();
    writeln!(text, "|---|---:|---|---|---|---|").unwrap();
    for (n, class) in classes.iter().enumerate() {
        let cells = (0..4).map(|c| match (count(n, c, "held"), count(n, c, "**")) {
            (0, 0) => "-".to_owned(),
            (held, 0) => format!("{held} held"),
            (held, breached) => format!("{held} held, **{breached} breached**"),
        });
        let cells = cells.collect::<Vec<_>>().join(" | ");
        writeln!(text, "| {} | {} | {cells} |", class.class, class.sequences.len()).unwrap();
    }
    for (n, class) in classes.iter().enumerate() {
        writeln!(
            text,
            "\n## {}\n\n| sequence | transaction | session | past it | {other} |\n|---|---|---|---|---|",
            class.class
        )
        .unwrap();
        for (m, sequence) in class.sequences.iter().enumerate() {
            let cells =
                found[&(n, m)].iter().map(|cell| cell.replace('|', "/")).collect::<Vec<_>>().join(" | ");
            writeln!(text, "| {} | {cells} |", sequence.name).unwrap();
        }
    }
    text
}

/// A pooler before this database, and what it calls itself.
async fn other(target: &str, database: &Database) -> (Target, String) {
    if let Some(address) = target.strip_prefix("postgres://127.0.0.1:") {
        let port = address.split('/').next().and_then(|port| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("{TARGET}: no port in {target}"));
        return (Target::other(port, &database.name, Box::new(())), target.to_owned());
    }
    let program = match target {
        "pgbouncer" => ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"]
            .iter()
            .map(PathBuf::from)
            .find(|path| path.exists())
            .unwrap_or_else(|| panic!("PgBouncer is nowhere; name it: make isolation ARGS='--target PATH'")),
        path => PathBuf::from(path),
    };
    let version = bouncer::version(&program);
    let bouncer = bouncer::Settings::new(&program, database.port, &database.name, 1).run().await;
    let target = Target::other(bouncer.port(), "app", Box::new(bouncer));
    assert_eq!(target.kind, Kind::Other);
    (target, version)
}
