//! `pgtenant demo`: a throwaway PostgreSQL, a helpdesk application with four organizations, the proxy before it.

mod stage;
mod story;
pub mod throwaway;
mod tour;

use std::path::PathBuf;
use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};

use super::{BAD_USAGE, DONE, Format, NO, fail, runtime};
use stage::Stage;
use story::COMPANIES;
use throwaway::ThrowawayError;

/// Options of `demo`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Where the proxy listens on 127.0.0.1; 0 takes a free port.
    #[arg(long, default_value_t = 6432)]
    port: u16,
    /// Where /metrics is served on 127.0.0.1; 0 takes a free port.
    #[arg(long, default_value_t = 9930)]
    http: u16,
    /// PostgreSQL's programs; found by itself in the usual places.
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// Take a guided tour and leave: exit 0 only if every step came out right.
    #[arg(long)]
    once: bool,
    /// How the tour's table is written.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// Why there is no demo.
#[derive(Debug, thiserror::Error)]
pub(super) enum DemoError {
    /// No PostgreSQL could be started.
    #[error("{0}")]
    Postgres(#[from] ThrowawayError),
    /// A file of the stage could not be written.
    #[error("cannot write into the temporary folder: {0}")]
    File(#[from] std::io::Error),
    /// Anything else, in a sentence.
    #[error("{0}")]
    Other(String),
}

pub(super) fn run(args: &Args) -> ExitCode {
    // The log would drown the table; what goes wrong is said in it.
    let stage = match Stage::build(args) {
        Ok(stage) => stage,
        Err(error @ DemoError::Postgres(ThrowawayError::NoPrograms { .. })) => return fail(BAD_USAGE, error),
        Err(error) => return fail(NO, error),
    };
    if !args.once {
        print_invitation(&stage);
        // Until Ctrl-C; the proxy drains, then PostgreSQL goes with the stage.
        return match stage.wait() {
            Ok(()) => ExitCode::from(DONE),
            Err(error) => fail(NO, error),
        };
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(NO, error),
    };
    let steps = runtime.block_on(tour::take(&stage));
    let outcome = stage.end();
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&steps).unwrap_or_default()),
        Format::Text => print_table(&steps),
    }
    if let Err(error) = outcome {
        return fail(NO, error);
    }
    let wrong = steps.iter().filter(|step| !step.right).count();
    match wrong {
        0 => ExitCode::from(DONE),
        _ => fail(NO, format!("{wrong} of {} steps came out wrong", steps.len())),
    }
}

fn print_table(steps: &[tour::Step]) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    if let Some((_, columns)) = console::Term::stdout().size_checked() {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns);
    }
    table.set_header(["", "who does what", "expected", "came out"]);
    for step in steps {
        let mark = if step.right { "ok" } else { "WRONG" };
        table.add_row([mark, &step.what, &step.expected, &step.found]);
    }
    println!("{table}");
    let right = steps.iter().filter(|step| step.right).count();
    println!("{right} of {} steps came out right.", steps.len());
}

fn print_invitation(stage: &Stage) {
    println!(
        "\nA helpdesk, written for one company, was made multi-tenant by pgtenant migrate ({} steps in {:.1} s) and runs on PostgreSQL behind \
         pgtenant.\nPaste a line; each is one project of one organization:\n",
        stage.migrated().steps,
        stage.migrated().seconds
    );
    for organization in &COMPANIES[..2] {
        for project in 1..=2 {
            let name = organization.projects[project - 1];
            match stage.token(organization.number, Some(project), 12 * 3600) {
                Ok(token) => println!(
                    "# {}, {name}\nPGPASSWORD={token} psql 'host=127.0.0.1 port={} user=app dbname=helpdesk'\n",
                    organization.name,
                    stage.port()
                ),
                Err(error) => println!("# {}: {error}", organization.name),
            }
        }
    }
    println!("Try:  SELECT count(*) FROM tickets;");
    println!("      SELECT pgtenant.context();");
    println!("      INSERT INTO tags (name) VALUES ('mine') RETURNING organization_id;");
    println!("      BEGIN; SET pgtenant.seal = 'forged'; SELECT count(*) FROM tickets;\n");
    println!("The migration: {}/report.md, beside it tenancy.toml and the SQL.", stage.folder().display());
    println!("Metrics: http://127.0.0.1:{}/metrics   Stop with Ctrl-C; nothing is kept.", stage.http_port());
}
