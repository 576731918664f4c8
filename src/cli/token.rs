//! `pgtenant token`: development keys, tokens, and a look into one.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::{BAD_USAGE, DONE, Format, NO, fail, load};
use crate::auth::signing::{Algorithm, SigningKey};
use crate::auth::token::{self, Keys, MAX_TOKEN_BYTES};
use crate::config::parse_duration;
use crate::tenancy::context::{Mapping, Wanted, unix_seconds};

/// Options of `token`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a key for development, and the JWK Set or secret that goes into the configuration.
    #[command(after_help = "Example:\n  pgtenant token keygen --algorithm ES256 --out dev")]
    Keygen(Keygen),
    /// Make a token; only the token is printed.
    #[command(
        after_help = "Example:\n  pgtenant token mint --key dev.pem --issuer https://login.example.com/ --audience pgtenant \\\n    --subject ada --organization 018f6f3e-0000-7000-8000-000000000001"
    )]
    Mint(Box<Mint>),
    /// Show what a token says; with --config, also whether it would be accepted.
    #[command(after_help = "Example:\n  pgtenant token inspect --config pgtenant.toml - < token")]
    Inspect(Inspect),
}

#[derive(clap::Args)]
struct Keygen {
    /// What it signs with.
    #[arg(long, value_enum, default_value = "ES256")]
    algorithm: Algorithm,
    /// Name of the key in tokens; by default its thumbprint (RFC 7638).
    #[arg(long)]
    kid: Option<String>,
    /// Files are PREFIX.pem, PREFIX.pub.pem and PREFIX.jwks.json; for HS256, PREFIX.secret.
    #[arg(long, value_name = "PREFIX")]
    out: PathBuf,
    /// Replace files that exist.
    #[arg(long)]
    force: bool,
}

#[derive(clap::Args)]
struct Mint {
    /// Private key in PEM form (PKCS#8), or a file with a shared secret for HS256.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Needed only to take the key file as a shared secret; otherwise the key says it.
    #[arg(long, value_enum)]
    algorithm: Option<Algorithm>,
    /// Name of the key; by default its thumbprint (RFC 7638).
    #[arg(long)]
    kid: Option<String>,
    /// iss
    #[arg(long)]
    issuer: String,
    /// aud
    #[arg(long)]
    audience: String,
    /// sub
    #[arg(long)]
    subject: String,
    /// The organization's id.
    #[arg(long)]
    organization: String,
    /// The project's id; without one the token is for the whole organization.
    #[arg(long)]
    project: Option<String>,
    /// A role; may be repeated.
    #[arg(long = "role")]
    roles: Vec<String>,
    /// How long it is valid, such as 15m or 1h.
    #[arg(long, default_value = "1h", value_parser = duration)]
    expires_in: Duration,
    /// From when on it is valid, counted from now.
    #[arg(long, value_parser = duration)]
    not_before_in: Option<Duration>,
    /// Claim for the organization.
    #[arg(long, default_value = "org_id")]
    organization_claim: String,
    /// Claim for the project.
    #[arg(long, default_value = "project_id")]
    project_claim: String,
    /// Another claim, as name=JSON; may be repeated.
    #[arg(long = "claim", value_name = "NAME=JSON")]
    claims: Vec<String>,
}

#[derive(clap::Args)]
struct Inspect {
    /// The token, or - for standard input (which keeps it out of the shell's history).
    #[arg(default_value = "-")]
    token: String,
    /// Verify it as this configuration would.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the report is written.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write a duration such as 90s, 15m or 1h".to_owned())
}

pub(super) fn run(args: Args) -> ExitCode {
    let outcome = match args.command {
        Command::Keygen(args) => keygen(args),
        Command::Mint(args) => mint(&args),
        Command::Inspect(args) => return inspect(&args),
    };
    match outcome {
        Ok(()) => ExitCode::from(DONE),
        Err(sentence) => fail(BAD_USAGE, sentence),
    }
}

fn keygen(args: Keygen) -> Result<(), String> {
    let mut key = SigningKey::generate(args.algorithm).map_err(|e| e.to_string())?;
    if args.kid.is_some() {
        key = key.with_kid(args.kid);
    }
    let name = |suffix: &str| {
        let mut path = args.out.clone().into_os_string();
        path.push(suffix);
        PathBuf::from(path)
    };
    let write =
        |suffix: &str, content: &[u8], mode: u32| write_file(&name(suffix), content, mode, args.force);
    let line = if args.algorithm == Algorithm::Hs256 {
        write(".secret", &key.private_text(), 0o600)?;
        format!("secret = {{ file = \"{}\" }}", name(".secret").display())
    } else {
        write(".pem", &key.private_text(), 0o600)?;
        write(".pub.pem", key.public_pem().as_bytes(), 0o644)?;
        write(".jwks.json", key.public_jwks().as_bytes(), 0o644)?;
        format!("jwks_file = \"{}\"", name(".jwks.json").display())
    };
    println!(
        "\nFor the configuration:\n\n[[jwt.issuers]]\nissuer = \"https://login.example.com/\"\naudience = [\"pgtenant\"]\nalgorithms = [\"{}\"]\n{line}",
        args.algorithm.name()
    );
    Ok(())
}

fn write_file(path: &Path, content: &[u8], mode: u32, force: bool) -> Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).mode(mode);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let written = options.open(path).and_then(|mut file| file.write_all(content));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            format!("{} exists already; replace it with --force", path.display())
        }
        _ => format!("cannot write {}: {error}", path.display()),
    })?;
    println!("wrote {}", path.display());
    Ok(())
}

fn mint(args: &Mint) -> Result<(), String> {
    let text = std::fs::read(&args.key).map_err(|e| format!("cannot read {}: {e}", args.key.display()))?;
    let key = match args.algorithm {
        Some(Algorithm::Hs256) => {
            // The same bytes that the proxy reads: without one trailing newline.
            let secret = text.strip_suffix(b"\n").unwrap_or(&text);
            SigningKey::from_private(Algorithm::Hs256, secret.to_vec())
        }
        _ => SigningKey::from_pem(&text),
    };
    let mut key =
        key.map_err(|e| format!("{}: {e}; for a shared secret add --algorithm HS256", args.key.display()))?;
    if args.algorithm.is_some_and(|wanted| wanted != key.algorithm()) {
        return Err(format!("{} is a key for {}", args.key.display(), key.algorithm().name()));
    }
    if args.kid.is_some() {
        key = key.with_kid(args.kid.clone());
    }
    let token = key.sign(&Value::Object(claims(args)?)).map_err(|e| e.to_string())?;
    println!("{token}");
    Ok(())
}

fn claims(args: &Mint) -> Result<Map<String, Value>, String> {
    let now = unix_seconds(SystemTime::now());
    let mut claims = Map::new();
    claims.insert("iss".to_owned(), json!(args.issuer));
    claims.insert("aud".to_owned(), json!(args.audience));
    claims.insert("sub".to_owned(), json!(args.subject));
    claims.insert("iat".to_owned(), json!(now));
    claims.insert("exp".to_owned(), json!(now + args.expires_in.as_secs()));
    claims.extend(args.not_before_in.map(|later| ("nbf".to_owned(), json!(now + later.as_secs()))));
    let id = |text: &str| text.parse::<i64>().map_or_else(|_| json!(text), |number| json!(number));
    claims.insert(args.organization_claim.clone(), id(&args.organization));
    claims.extend(args.project.as_deref().map(|project| (args.project_claim.clone(), id(project))));
    if !args.roles.is_empty() {
        claims.insert("roles".to_owned(), json!(args.roles));
    }
    for claim in &args.claims {
        let wrong = || format!("--claim {claim}: write name=JSON, such as plan='\"gold\"'");
        let (name, value) = claim.split_once('=').ok_or_else(wrong)?;
        claims.insert(name.to_owned(), serde_json::from_str(value).map_err(|_| wrong())?);
    }
    Ok(claims)
}

fn inspect(args: &Inspect) -> ExitCode {
    let token = match read_token(&args.token) {
        Ok(token) => token,
        Err(error) => return fail(BAD_USAGE, format!("cannot read the token: {error}")),
    };
    let mut parts = token.split('.').map(|part| {
        URL_SAFE_NO_PAD.decode(part).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
    });
    let (Some(Some(header)), Some(Some(claims))) = (parts.next(), parts.next()) else {
        return fail(NO, "this is no JSON Web Token: it has no readable header and claims");
    };
    let verdict = match &args.config {
        None => None,
        Some(file) => match verdict(file, &token) {
            Ok(verdict) => Some(verdict),
            Err(code) => return code,
        },
    };
    let times = times(&claims);
    match args.format {
        Format::Json => {
            let (accepted, reason) = match &verdict {
                None => (Value::Null, Value::Null),
                Some(Ok(context)) => (json!(true), json!(context)),
                Some(Err(reason)) => (json!(false), json!(reason)),
            };
            let report = json!({ "header": header, "claims": claims, "times": times, "accepted": accepted, "reason": reason });
            println!("{report:#}");
        }
        Format::Text => {
            println!("header: {header:#}\nclaims: {claims:#}");
            for (name, text) in &times {
                println!("{name}: {}", text.as_str().unwrap_or_default());
            }
            match &verdict {
                None => println!("signature: not checked; add --config FILE to verify it"),
                Some(Ok(context)) => println!("accepted: {context}"),
                Some(Err(reason)) => println!("{reason}"),
            }
        }
    }
    ExitCode::from(if matches!(verdict, Some(Err(_))) { NO } else { DONE })
}

fn read_token(argument: &str) -> std::io::Result<String> {
    if argument != "-" {
        return Ok(argument.trim().to_owned());
    }
    let mut text = String::new();
    std::io::stdin().take(MAX_TOKEN_BYTES as u64 + 2).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// Whether a configuration accepts the token, and as whom.
fn verdict(file: &Path, token: &str) -> Result<Result<String, String>, ExitCode> {
    let config = load(file)?;
    let keys = Keys::load(&config.jwt).map_err(|e| fail(BAD_USAGE, e))?;
    let mapping =
        Mapping { claims: config.claims, id_type: config.context.id_type, leeway: config.jwt.leeway };
    Ok(match token::verify(token, &keys, SystemTime::now()) {
        Err(error) if error.detail().is_empty() => Err(error.to_string()),
        Err(error) => Err(format!("{error} ({})", error.detail())),
        Ok(verified) => match mapping.resolve(&verified, &Wanted::default()) {
            Err(error) => Err(format!("token refused: {error}")),
            Ok(context) => Ok(format!(
                "organization {}, project {}, subject {}",
                context.organization().as_str(),
                context.project().map_or("none (the whole organization)", |project| project.as_str()),
                context.subject()
            )),
        },
    })
}

/// The token's times, in words.
fn times(claims: &Value) -> Map<String, Value> {
    let now = unix_seconds(SystemTime::now()) as i64;
    let mut times = Map::new();
    for (claim, past, future) in [
        ("iat", "issued", "issued in the future,"),
        ("nbf", "valid since", "valid in"),
        ("exp", "expired", "expires in"),
    ] {
        let Some(at) = claims.get(claim).and_then(Value::as_f64) else { continue };
        let distance = at as i64 - now;
        let text = match distance {
            1.. => format!("{future} {}", span(distance)),
            _ => format!("{past} {} ago", span(-distance)),
        };
        times.insert(claim.to_owned(), text.into());
    }
    times
}

fn span(seconds: i64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}
