//! `pgtenant install`: the SQL interface and the seal's keys.

use std::process::ExitCode;

use super::{BAD_USAGE, ConfigFile, DONE, NO, fail, load, runtime};
use crate::architect::connect::connect;
use crate::architect::install::{self, Grants, INTERFACE_VERSION};
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
    /// Take from these roles what would get past the proxy's guard over [context.settings]: set_config, DO and CREATE
    /// FUNCTION in PL/pgSQL, temporary objects, signals, writing large objects, setseed, pg_notify. Needs a superuser.
    #[arg(long)]
    harden: bool,
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
    let grants = grants(args, &config);
    if args.print {
        println!("BEGIN;\n{}\nCOMMIT;", install::shown(&config.context, &grants));
        return ExitCode::from(DONE);
    }
    let Some(url) = &args.database else { return fail(BAD_USAGE, "--database URL is missing") };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(NO, error),
    };
    match runtime.block_on(install(url, &config.context, &grants)) {
        Ok(()) => {
            println!(
                "installed: SQL interface version {INTERFACE_VERSION} in schema pgtenant, for {}{}",
                grants.roles.join(", "),
                if args.harden { "; hardened" } else { "" }
            );
            ExitCode::from(DONE)
        }
        Err(sentence) => fail(NO, sentence),
    }
}

fn grants(args: &Args, config: &Config) -> Grants {
    let named = |is_plain: bool| {
        let roles = config.roles.values().filter(|role| (role.tenancy == Tenancy::None) == is_plain);
        roles.map(|role| role.name.clone()).collect::<Vec<_>>()
    };
    let roles = if args.role.is_empty() { named(false) } else { args.role.clone() };
    let plain = || named(true).into_iter().filter(|role| !roles.contains(role)).collect();
    Grants { harden: args.harden.then(plain), roles }
}

async fn install(url: &str, context: &Context, grants: &Grants) -> Result<(), String> {
    let mut client = connect(url).await.map_err(|e| e.to_string())?;
    install::run(&mut client, context, grants).await.map_err(|e| e.to_string())
}
