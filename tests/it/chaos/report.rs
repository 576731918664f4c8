//! What came of it, as Markdown: each part writes its section of `tests/chaos/RESULTS.md` and leaves the others.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::ground::Ground;
use super::is_full;
use super::pooler::name_of_peer;

/// The sections, in their order.
const SECTIONS: [&str; 6] = ["Faults", "SIGTERM", "Reload", "Noisy neighbour", "Connections", "Soak"];

const HEAD: &str = "# Chaos

Written by `make chaos`, which runs these parts one by one (`ARGS=\"--only faults\"`); each section says when, where and at what
size it was last run. `met` compares what was reached with the goal at full size; a smaller run does not meet a goal that is a
number of times. Where PgBouncer has a column (`--pgbouncer PATH`), it had the same clients, at fewer faults, SIGTERMs and minutes of soak.
";

/// One section being made.
pub struct Report {
    title: &'static str,
    lead: String,
    /// What, the goal, what was reached, the peer's figure, whether it is met.
    rows: Vec<[String; 5]>,
    rest: String,
}

impl Report {
    pub fn new(title: &'static str, ground: &Ground, seed: u64) -> Self {
        let lead = format!("{}; PostgreSQL {}; seed {seed}.", circumstances(), ground.version);
        Self { title, lead, rows: Vec::new(), rest: String::new() }
    }

    /// A line of the table: what is measured, the goal, what came out, whether that is good.
    pub fn row(&mut self, what: &str, goal: &str, reached: &str, is_met: bool) {
        self.row_beside(what, goal, reached, None, is_met);
    }

    /// The same, with the peer's figure.
    pub fn row_beside(&mut self, what: &str, goal: &str, reached: &str, peer: Option<String>, is_met: bool) {
        let met = if is_met { "yes" } else { "**no**" };
        self.rows.push([what, goal, reached, peer.as_deref().unwrap_or_default(), met].map(str::to_owned));
    }

    pub fn text(&mut self, text: &str) {
        writeln!(self.rest, "\n{text}").unwrap();
    }

    pub fn table(&mut self, head: &[&str], rows: Vec<Vec<String>>) {
        writeln!(self.rest, "\n| {} |\n|{}", head.join(" | "), "---|".repeat(head.len())).unwrap();
        for row in rows {
            writeln!(self.rest, "| {} |", row.join(" | ")).unwrap();
        }
    }

    /// Prints it; at full size, or where `CHAOS_FULL` is set with other sizes, it replaces its section of the file.
    pub fn write(self) {
        let mut text = format!("## {}\n\n{}\n\n", self.title, self.lead);
        match self.rows.iter().any(|row| !row[3].is_empty()).then(name_of_peer).flatten() {
            Some(peer) => {
                writeln!(text, "| what | to reach | reached | {peer} | met |\n|---|---|---|---|---|")
                    .unwrap();
                self.rows.iter().for_each(|row| writeln!(text, "| {} |", row.join(" | ")).unwrap());
            }
            None => {
                text.push_str("| what | to reach | reached | met |\n|---|---|---|---|\n");
                for [what, goal, reached, _, met] in &self.rows {
                    writeln!(text, "| {what} | {goal} | {reached} | {met} |").unwrap();
                }
            }
        }
        text.push_str(&self.rest);
        println!("{text}");
        if is_full() {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chaos/RESULTS.md");
            let before = std::fs::read_to_string(&file).unwrap_or_default();
            std::fs::write(&file, merged(&before, self.title, &text)).unwrap();
        }
    }
}

/// The file with this section in place of the one it had.
fn merged(before: &str, title: &str, section: &str) -> String {
    let mut kept: Vec<(String, String)> = before
        .split("\n## ")
        .skip(1)
        .map(|part| (part.lines().next().unwrap_or_default().to_owned(), format!("## {}\n", part.trim_end())))
        .filter(|(other, _)| SECTIONS.contains(&other.as_str()) && other != title)
        .collect();
    kept.push((title.to_owned(), format!("{}\n", section.trim_end())));
    kept.sort_by_key(|(title, _)| SECTIONS.iter().position(|section| section == title));
    let mut text = HEAD.to_owned();
    text.push_str("\n## What fell short\n\n");
    let mut missing = 0;
    for (title, section) in &kept {
        for row in section.lines().filter(|line| line.ends_with("| **no** |")) {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            writeln!(text, "- {title}: {}: {} instead of {}", cells[1], cells[3], cells[2]).unwrap();
            missing += 1;
        }
    }
    for title in SECTIONS.iter().filter(|title| !kept.iter().any(|(other, _)| other == *title)) {
        writeln!(text, "- {title}: not run").unwrap();
        missing += 1;
    }
    if missing == 0 {
        text.push_str("Nothing.\n");
    }
    for (_, section) in kept {
        write!(text, "\n{section}").unwrap();
    }
    text
}

/// Day, machine, and how this was built.
fn circumstances() -> String {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory: u64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let build = if cfg!(debug_assertions) { "debug build" } else { "release build" };
    format!(
        "{}; {cores} cores of {}, {} GiB, {}; {build}",
        said("date", &["-u", "+%Y-%m-%d"]),
        field("/proc/cpuinfo", "model name"),
        memory.div_ceil(1 << 20),
        said("uname", &["-sr"])
    )
}

pub fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        long if long >= 100.0 => format!("{long:.0} s"),
        long if long >= 1.0 => format!("{long:.2} s"),
        short => format!("{:.1} ms", short * 1000.0),
    }
}

/// Of sorted ones.
pub fn median(sorted: &[Duration]) -> Duration {
    quantile(sorted, 0.5)
}

/// Of sorted ones.
pub fn quantile(sorted: &[Duration], part: f64) -> Duration {
    let at = (sorted.len() as f64 * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

#[test]
fn a_section_replaces_its_own() {
    let row = "| what | to reach | reached | met |\n|---|---|---|---|\n| pace | 2 s | 3 s | **no** |\n";
    let first = merged("", "Soak", &format!("## Soak\n\nold\n\n{row}"));
    let both = merged(&first, "Faults", "## Faults\n\nnew\n");
    assert!(both.contains("- Soak: pace: 3 s instead of 2 s\n- SIGTERM: not run\n"), "{both}");
    assert!(both.find("## Faults").unwrap() < both.find("## Soak").unwrap());
    let again = merged(&both, "Soak", "## Soak\n\nnewer\n");
    assert!(!again.contains("old") && again.matches("## Soak").count() == 1 && again.contains("## Faults"));
}
