//! `pgtenant migrate`: from one tenant to many, and back.

mod bar;

use std::path::PathBuf;
use std::process::ExitCode;

use super::{BAD_USAGE, DONE, NO, fail, runtime};
use crate::architect::migrate::{self, Stop, Wanted};
use bar::Bar;
use clap::Subcommand;

/// Options that every action has.
#[derive(clap::Args)]
pub(super) struct At {
    /// The database, as a superuser (postgres://...).
    #[arg(long, value_name = "URL")]
    database: String,
    /// Which table belongs to whom; the migrations lie beside it.
    #[arg(long, value_name = "FILE", default_value = "tenancy.toml")]
    tenancy: PathBuf,
}

#[derive(Subcommand)]
pub(super) enum Action {
    /// Look at the schema, write a first tenancy.toml where there is none, and from it the migrations, their rollbacks and a report.
    #[command(
        after_help = "Example:\n  pgtenant migrate plan --database postgres://postgres@localhost/app --tenancy migration/tenancy.toml"
    )]
    Plan {
        #[command(flatten)]
        at: At,
        /// Also write what distributes the tables over several machines: citus.sql.
        #[arg(long, value_name = "SYSTEM", value_parser = ["citus"])]
        distribute: Option<String>,
    },
    /// Back up, then run the migrations step by step, each checked. Stopped at any point, it goes on where it was.
    #[command(
        after_help = "Example:\n  pgtenant migrate apply --database postgres://postgres@localhost/app --restore-test\n  pgtenant migrate apply --database postgres://postgres@localhost/app --cut-over"
    )]
    Apply {
        #[command(flatten)]
        at: At,
        /// No backup: there is another one.
        #[arg(long)]
        no_backup: bool,
        /// Restore the backup into a database of its own, count its rows, and drop it again. Nobody should write meanwhile.
        #[arg(long, conflicts_with = "no_backup")]
        restore_test: bool,
        /// Go all the way: keys that lead with the organization take the places of the others (until then, what is unique is so among all
        /// organizations), and legacy roles see no row without a context any more, nor do the tables' owners.
        #[arg(long)]
        cut_over: bool,
    },
    /// What is done, and what comes next.
    #[command(
        after_help = "Example:\n  pgtenant migrate status --database postgres://postgres@localhost/app"
    )]
    Status {
        #[command(flatten)]
        at: At,
    },
    /// Whether everything that was promised is there and as it was, policies, rights, keys and views included, and whether something
    /// came since that has no tenant (exit code 1).
    #[command(
        after_help = "Example:\n  pgtenant migrate verify --database postgres://postgres@localhost/app || exit 1"
    )]
    Verify {
        #[command(flatten)]
        at: At,
    },
    /// Undo what was applied, the last step first. Refused once rows of other organizations would be lost.
    #[command(
        after_help = "Example:\n  pgtenant migrate rollback --database postgres://postgres@localhost/app --to 003"
    )]
    Rollback {
        #[command(flatten)]
        at: At,
        /// Down to this migration, which stays.
        #[arg(long, value_name = "NUMBER", value_parser = ["003", "004"])]
        to: Option<String>,
    },
}

impl At {
    fn place(&self) -> migrate::Place {
        migrate::Place { database: self.database.clone(), tenancy: self.tenancy.clone() }
    }
}

pub(super) fn run(action: &Action) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(NO, error),
    };
    let tell = Bar::start();
    let ended = runtime.block_on(async {
        match action {
            Action::Plan { at, distribute } => migrate::plan(&at.place(), distribute.is_some(), &tell).await,
            Action::Apply { at, no_backup, restore_test, cut_over } => {
                let wanted = Wanted { backup: !no_backup, restore_test: *restore_test, cut_over: *cut_over };
                migrate::apply(&at.place(), wanted, &tell).await.map(drop)
            }
            Action::Status { at } => migrate::status(&at.place(), &tell).await,
            Action::Verify { at } => migrate::verify(&at.place(), &tell).await,
            Action::Rollback { at, to } => migrate::rollback(&at.place(), to.as_deref(), &tell).await,
        }
    });
    drop(tell);
    match ended {
        Ok(()) => ExitCode::from(DONE),
        Err(stop @ Stop::Wrong(_)) => fail(BAD_USAGE, stop),
        Err(stop @ Stop::Failed(_)) => fail(NO, stop),
    }
}
