//! `pgtenant install`: the SQL interface and the seal's keys.

use std::process::ExitCode;

use super::{BAD_USAGE, ConfigFile, DONE, NO, fail, load, runtime};
use crate::architect::connect::connect;
use crate::architect::install::{self, INTERFACE_VERSION};
use crate::config::{Config, Context, Tenancy};

/// Options of `install`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    /// The database, as a superuser (postgres://...; ?sslmode=verify-full&sslrootcert=FILE to be sure whom the key goes to; sslcert and sslkey where it asks for a certificate).
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
        println!("BEGIN;\n{}\nCOMMIT;", install::shown(&config.context, &roles));
        return ExitCode::from(DONE);
    }
    let Some(url) = &args.database else { return fail(BAD_USAGE, "--database URL is missing") };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(NO, error),
    };
    match runtime.block_on(install(url, &config.context, &roles)) {
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

async fn install(url: &str, context: &Context, roles: &[String]) -> Result<(), String> {
    let mut client = connect(url).await.map_err(|e| e.to_string())?;
    install::run(&mut client, context, roles).await.map_err(|e| e.to_string())
}
