//! What people read before they apply: each table's treatment, locks and times, disk, and what is theirs to decide.

use std::fmt::Write as _;

use super::migration::{Design, How, Move, Part, asked, growth, takes};
use super::names::ident;
use super::treatment::Source;

/// The report, as Markdown.
pub fn markdown(design: &Design<'_>, parts: &[(Part, Vec<Move>)]) -> String {
    let mut out = format!(
        "# {}: from one tenant to many\n\nWritten by `pgtenant migrate plan`.\n",
        design.catalog.database
    );
    decisions(design, &mut out);
    tables(design, &mut out);
    let _ = write!(
        out,
        "\n## Disk and time\n\nThe database grows by about {}: new indexes, and what rows that are updated in batches leave to VACUUM. No \
         table is rewritten. The backup comes on top. The steps take about {}, most of them beside the application, which keeps about 0.7 of its \
         throughput meanwhile.\n",
        size(i64::try_from(growth(design)).unwrap_or(i64::MAX)),
        duration(design.tables.iter().map(|one| takes(design, one)).sum()),
    );
    let _ = write!(out, "\n## Steps\n\n| step | what | how | locks |\n|---|---|---|---|\n");
    for (_, moves) in parts {
        for Move { step, .. } in moves {
            let how = match step.how {
                How::Transaction => "one transaction",
                How::Alone => "outside transactions",
                How::Batches => "in batches",
            };
            let _ = writeln!(
                out,
                "| {} | {} | {how} | {} |",
                step.id,
                step.title.replace('|', "\\|"),
                step.lock.replace('|', "\\|")
            );
        }
    }
    let _ = write!(
        out,
        "\nA step waits for a lock for 0.1 s and tries again, so that nobody queues behind it for longer. CREATE INDEX CONCURRENTLY waits for transactions that are older, \
         and nobody queues behind it.\n\n## Then\n\n\
         - `pgtenant migrate apply`: a backup first, then the steps. Stopped at any point, it goes on.\n\
         - `pgtenant install --config pgtenant.toml`: the seal's key, which is in no file here.\n\
         - `pgtenant migrate rollback`: back to what it was; refused once rows of other organizations would be lost.\n"
    );
    out
}

fn decisions(design: &Design<'_>, out: &mut String) {
    let _ = write!(out, "\n## To decide\n\n");
    let legacy = &design.treatment.roles.legacy;
    if !legacy.is_empty() {
        let names: Vec<_> = legacy.iter().map(|role| ident(role)).collect();
        let _ = writeln!(
            out,
            "- Legacy roles see every row of every organization, past the proxy, until `pgtenant migrate apply --cut-over`, which also puts keys that lead with the organization in the places of theirs: {}.",
            names.join(", ")
        );
    }
    let _ = writeln!(
        out,
        "- Whoever is neither an application's nor a legacy role, superusers and roles that are made later among them, says whose a row is when it \
         inserts one: defaults ask for the context. Does the old application sign in as a superuser? Give it a role of its own first, and name that \
         as legacy."
    );
    for role in design.treatment.roles.application.iter().filter(|role| !design.catalog.roles.contains(role))
    {
        let role = ident(role);
        let _ = writeln!(
            out,
            "- Role {role} is made without a password: `ALTER ROLE {role} PASSWORD '...'`, and the same to the proxy."
        );
    }
    for note in &design.notes {
        let _ = writeln!(out, "- {note}");
    }
    for index in asked(design) {
        let _ = writeln!(out, "- {index}");
    }
    for index in super::migration::redundant(design) {
        let _ = writeln!(out, "- {index}");
    }
}

fn tables(design: &Design<'_>, out: &mut String) {
    let _ = write!(
        out,
        "\n## Tables\n\n| table | rows | size | about | whose | existing rows |\n|---|---:|---:|---:|---|---|\n"
    );
    for one in &design.tables {
        let whose = if one.project.is_some() { "a project's" } else { "an organization's" };
        let found: Vec<_> =
            one.tenant_columns().map(|column| format!("{}: {}", column.name, words(column.source))).collect();
        let table = one.table;
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {whose} | {} |",
            table.name,
            table.rows,
            size(table.bytes),
            duration(takes(design, one)),
            found.join("; ")
        );
    }
    for table in &design.shared {
        let _ = writeln!(
            out,
            "| {} | {} | {} | - | shared, to be read | - |",
            table.name,
            table.rows,
            size(table.bytes)
        );
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..2 => "a second".to_owned(),
        2..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    }
}

fn words(source: &Source) -> String {
    match source {
        Source::Default => "the default one".to_owned(),
        Source::Column(column) => format!("in {column} already"),
        Source::Through(columns) => format!("through {}", columns.join(", ")),
        Source::Mapping(file) => format!("by {}", file.display()),
        Source::Expression(sql) => format!("`{}`", sql.replace('|', "\\|")),
    }
}

fn size(bytes: i64) -> String {
    match bytes {
        ..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} kB", bytes / 1024),
        _ => format!("{} MB", bytes / 1_048_576),
    }
}
