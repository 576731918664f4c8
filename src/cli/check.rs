//! `pgtenant check`: all mistakes of a configuration at once, and with `--connect` what the servers lack.

mod posture;
mod tier;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{BAD_USAGE, ConfigFile, DONE, Format, NO, fail, runtime};
use crate::auth::token::Keys;
use crate::config::{self, Config, Database, Role};
use crate::net::dial::Dialer;
use crate::net::tls;
use crate::pool::server::{CleanServer, Place, Shard};
use crate::server::fetch_keys;
use crate::tenancy::revoked::Revoked;
use crate::tenancy::statements::Binder;
use tier::Tier;

/// The server that is asked is closed at once; no age matters.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Options of `check`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    /// Also sign in to every server, with every role.
    #[arg(long)]
    connect: bool,
    /// How the report is written.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// One thing that is wrong.
#[derive(Serialize)]
struct Finding {
    /// The key in the configuration that it concerns.
    key: String,
    /// Its line, where there is one.
    line: Option<usize>,
    /// What is wrong and what to do.
    message: String,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let config = match config::load(&args.file.config) {
        Ok(config) => config,
        Err(mistakes) => {
            match args.format {
                Format::Text => eprintln!("{mistakes}"),
                Format::Json => {
                    let finding = |m: &config::Mistake| Finding {
                        key: m.key.clone(),
                        line: m.line,
                        message: m.message.clone(),
                    };
                    let findings: Vec<_> = mistakes.list.iter().map(finding).collect();
                    print_json(&findings);
                }
            }
            return ExitCode::from(BAD_USAGE);
        }
    };
    let mut findings = offline(&config);
    if args.connect {
        match runtime() {
            Ok(runtime) => findings.extend(runtime.block_on(online(&config, args.format))),
            Err(error) => return fail(NO, error),
        }
    }
    match args.format {
        Format::Json => print_json(&findings),
        Format::Text => {
            for finding in &findings {
                println!("{}: {}", finding.key, finding.message);
            }
            if findings.is_empty() {
                println!("{}: no mistakes", args.file.config.display());
            }
        }
    }
    ExitCode::from(if findings.is_empty() { DONE } else { NO })
}

fn print_json(findings: &[Finding]) {
    // Three strings and a number each: this cannot fail.
    println!("{}", serde_json::to_string_pretty(findings).unwrap_or_default());
}

/// What loading alone does not show: keys and certificates must be usable.
fn offline(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = Keys::load(&config.jwt) {
        findings.push(finding("jwt.issuers", error));
    }
    if let Some(Err(error)) = config.revoked.as_ref().map(|file| Revoked::load(file, config.context.id_type))
    {
        findings.push(finding("jwt.revoked", error));
    }
    if let Some(listen) = &config.listen.tls
        && let Err(error) = tls::acceptor(listen)
    {
        findings.push(finding("listen.tls", error));
    }
    let open = config.listen.tcp.iter().find(|address| !address.ip().is_loopback());
    if let (Some(address), None, true) =
        (open, &config.listen.tls, config.roles.values().any(|role| role.sign_in_jwt || role.sign_in_oauth))
    {
        let message =
            format!("tokens are refused on {address} without [listen.tls]: they would travel in clear");
        findings.push(finding("listen.tcp", message));
    }
    for database in config.databases.values() {
        if let Err(error) = tls::connector(&database.server) {
            findings.push(finding(&format!("servers.{}", database.server.name), error));
        }
    }
    findings
}

fn finding(key: &str, message: impl std::fmt::Display) -> Finding {
    Finding { key: key.to_owned(), line: None, message: message.to_string() }
}

/// Signs in to every database as every role, as the proxy would.
async fn online(config: &Config, format: Format) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Ok(keys) = Keys::load(&config.jwt).map(Arc::new) {
        for (issuer, reason) in fetch_keys(&keys).await {
            findings
                .push(finding("jwt.issuers", format!("\"{issuer}\": its keys cannot be fetched: {reason}")));
        }
    }
    for database in config.databases.values() {
        for role in config.roles.values() {
            let key = format!("databases.{} as {}", database.name, role.name);
            let (tier, found) = sign_in(config, database, role).await;
            if format == Format::Text {
                let count = found.len();
                let said = if count == 0 { "ok".to_owned() } else { format!("{count} found") };
                println!("{key}: {said}{}", tier.map_or(String::new(), |tier| format!(" ({})", tier.name())));
            }
            findings.extend(found.into_iter().map(|message| finding(&key, message)));
        }
    }
    findings
}

async fn sign_in(config: &Config, database: &Database, role: &Role) -> (Option<Tier>, Vec<String>) {
    match ask(database, role).await {
        Ok(answer) => posture::judge(config, role, &answer),
        Err(sentence) => (None, vec![sentence]),
    }
}

/// What a server answers to [`posture::QUESTION`], or why it does not.
async fn ask(database: &Database, role: &Role) -> Result<Vec<String>, String> {
    let tls = tls::watched_connector(&database.server).map_err(|e| e.to_string())?.map(Arc::new);
    let (server, password) = (database.server.clone(), role.server_password.clone());
    let dialer = Dialer::new(server, tls, &database.dbname, &role.name, password);
    let dialled = dialer.dial().await.map_err(|e| e.to_string())?;
    let place = Place::new(|_| {});
    let server =
        CleanServer::prepare(dialled, Shard(0), place, (Instant::now(), MAX_AGE), Binder::default()).await;
    let server = server.map_err(|e| e.to_string())?;
    server.ask(posture::QUESTION).await.map_err(|e| e.to_string())
}
