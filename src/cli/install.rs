//! `pgtenant install`: the SQL interface and the seal's keys.

use std::process::ExitCode;

use super::{BAD_USAGE, ConfigFile, DONE, NO, fail, load, runtime};
use crate::architect::connect::{causes, connect};
use crate::architect::install::{INTERFACE_VERSION, Keys, sql};
use crate::config::{Config, Tenancy};

/// Options of `install`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    /// The database, as a role that may create roles and schemas (postgres://...).
    #[arg(long, value_name = "URL", required_unless_present = "print")]
    database: Option<String>,
    /// Roles that may use the interface; by default every configured role with tenancy.
    #[arg(long, value_name = "ROLE")]
    role: Vec<String>,
    /// Print the SQL, with the key hidden, instead of running it.
    #[arg(long)]
    print: bool,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let config = match load(&args.file.config) {
        Ok(config) => config,
        Err(code) => return code,
    };
    if config.context.seal_keys.is_empty() {
        return fail(BAD_USAGE, "context.seal_key is not set; make one with: openssl rand -base64 32");
    }
    let roles = roles(args, &config);
    if args.print {
        println!("BEGIN;\n{}\nCOMMIT;", sql(&config.context, &roles, Keys::Hidden));
        return ExitCode::from(DONE);
    }
    let Some(url) = &args.database else { return fail(BAD_USAGE, "--database URL is missing") };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(NO, error),
    };
    match runtime.block_on(install(url, &sql(&config.context, &roles, Keys::Included))) {
        Ok(()) => {
            println!(
                "installed: SQL interface version {INTERFACE_VERSION} in schema pgtenant, for {}",
                roles.join(", ")
            );
            ExitCode::from(DONE)
        }
        Err(sentence) => fail(NO, sentence),
    }
}

fn roles(args: &Args, config: &Config) -> Vec<String> {
    if !args.role.is_empty() {
        return args.role.clone();
    }
    let tenant_scoped = config.roles.values().filter(|role| role.tenancy != Tenancy::None);
    tenant_scoped.map(|role| role.name.clone()).collect()
}

/// Runs it in one transaction: a failure leaves everything as it was.
async fn install(url: &str, sql: &str) -> Result<(), String> {
    let mut client = connect(url).await.map_err(|e| e.to_string())?;
    // A key must not reach the server's log by way of a logged statement, as far as we may say so.
    let quiet = "SET LOCAL log_statement = 'none'; SET LOCAL log_min_duration_statement = -1; \
                 SET LOCAL log_min_error_statement = 'panic'";
    let nothing_changed = |e: tokio_postgres::Error| format!("nothing was changed: {}", causes(&e));
    let transaction = client.transaction().await.map_err(nothing_changed)?;
    let savepoint = "SAVEPOINT quiet";
    transaction.batch_execute(savepoint).await.map_err(nothing_changed)?;
    if transaction.batch_execute(quiet).await.is_err() {
        // Only a superuser may; others install with the server's own settings.
        transaction.batch_execute("ROLLBACK TO SAVEPOINT quiet").await.map_err(nothing_changed)?;
    }
    transaction.batch_execute(sql).await.map_err(nothing_changed)?;
    transaction.commit().await.map_err(nothing_changed)
}
