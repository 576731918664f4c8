//! `pgtenant token inspect`: what is in a token, and whether the proxy would take it.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::{Failure, Format, NO, load, refusal, times, usage};
use crate::auth::token::{self, Keys, MAX_TOKEN_BYTES, TokenError};
use crate::server::fetch_keys;
use crate::tenancy::context::{Mapping, MappingError, Wanted};

/// Options of `token inspect`.
#[derive(clap::Args)]
#[command(after_help = "Example:
  pgtenant token inspect - < token.txt
  pgtenant token inspect --config pgtenant.toml \"$TOKEN\"")]
pub(super) struct Args {
    /// The token; - reads it from standard input, where other users of this machine cannot see it.
    #[arg(default_value = "-", hide_default_value = true)]
    token: String,
    /// Verify it as a proxy with this configuration would; exit 1 if it is refused.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the report is written.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// The claims that are times (RFC 7519 section 4.1; `auth_time` is OpenID Connect's).
const TIMES: [&str; 5] = ["exp", "nbf", "iat", "auth_time", "updated_at"];

/// The last second of the year 9999.
const LATEST: f64 = 253_402_300_799.0;

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let text = read(&args.token)?;
    let now = SystemTime::now();
    let parts = Parts::read(&text)?;
    let verdict = match &args.config {
        Some(file) => Some(verify(&text, file, now)?),
        None => None,
    };
    match args.format {
        Format::Text => print!("{}", parts.text(verdict.as_ref(), now)),
        Format::Json => println!("{:#}", parts.json(verdict.as_ref(), now)),
    }
    match verdict {
        Some(Err(_)) => Err(Failure::Silent(ExitCode::from(NO))),
        _ => Ok(()),
    }
}

/// What a proxy would say: as whom it takes the client, or why not.
type Verdict = Result<String, Refused>;

/// A refusal: what the client is told, and what the log says more.
pub(super) struct Refused {
    reason: String,
    detail: String,
}

impl From<TokenError> for Refused {
    fn from(error: TokenError) -> Self {
        Self { reason: error.to_string(), detail: error.detail() }
    }
}

impl From<MappingError> for Refused {
    fn from(error: MappingError) -> Self {
        Self { reason: "token refused: no organization".to_owned(), detail: error.to_string() }
    }
}

fn verify(text: &str, file: &Path, now: SystemTime) -> Result<Verdict, Failure> {
    let config = load(file).map_err(Failure::Silent)?;
    let keys = Keys::load(&config.jwt).map_err(|error| usage(format!("{}: {error}", file.display())))?;
    let keys = Arc::new(keys);
    if keys.are_fetched() {
        let runtime = crate::cli::runtime().map_err(|error| usage(error.to_string()))?;
        for (issuer, reason) in runtime.block_on(fetch_keys(&keys)) {
            eprintln!("pgtenant: the keys of issuer \"{issuer}\" cannot be fetched: {reason}");
        }
    }
    let mapping = Mapping {
        claims: config.claims,
        id_type: config.context.id_type,
        leeway: config.jwt.leeway,
        settings: config.context.settings,
    };
    Ok(judge(text, &keys, &mapping, now))
}

/// As a sign-in to a tenant-scoped role that asks for no particular organization.
pub(super) fn judge(text: &str, keys: &Keys, mapping: &Mapping, now: SystemTime) -> Verdict {
    let verified = token::verify(text, keys, now)?;
    let context = mapping.resolve(&verified, &Wanted::default())?;
    let project = context.project().map_or("none (the whole organization)", |project| project.as_str());
    let (organization, subject) = (context.organization().as_str(), context.subject());
    Ok(format!("organization {organization}, project {project}, subject {subject}"))
}

fn read(argument: &str) -> Result<String, Failure> {
    if argument != "-" {
        return Ok(argument.trim().to_owned());
    }
    let input = std::io::stdin();
    if input.is_terminal() {
        eprintln!("paste the token, then press Enter and Ctrl-D");
    }
    let mut text = String::new();
    // Room for white space around it; what is longer is refused as a token, not here.
    let limit = 2 * MAX_TOKEN_BYTES as u64;
    input.take(limit).read_to_string(&mut text).map_err(|error| {
        usage(format!("cannot read standard input: {error}; give the token as an argument"))
    })?;
    Ok(text.trim().to_owned())
}

/// Header and claims, unverified.
pub(super) struct Parts {
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

impl Parts {
    pub(super) fn read(text: &str) -> Result<Self, Failure> {
        let object = |name: &str, part: Option<&str>| {
            let bytes = part.and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
            let object = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            object.ok_or_else(|| {
                refusal(format!(
                    "this is no JSON Web Token: its {name} cannot be read; was all of it copied?"
                ))
            })
        };
        let mut parts = text.split('.');
        Ok(Self { header: object("header", parts.next())?, claims: object("claims part", parts.next())? })
    }

    pub(super) fn text(&self, verdict: Option<&Verdict>, now: SystemTime) -> String {
        let mut out = String::new();
        for (title, object) in [("header", &self.header), ("claims", &self.claims)] {
            let _ = writeln!(out, "{title}");
            let width = object.keys().map(|name| shown(name).chars().count()).max().unwrap_or(0);
            for (name, value) in object {
                let _ = write!(out, "  {:width$}  {}", shown(name), shown(&value.to_string()));
                if let (Some(time), "claims") = (time(name, value), title) {
                    let _ =
                        write!(out, "  ({}, {})", times::utc(time), times::relative(name, time, unix(now)));
                }
                out.push('\n');
            }
        }
        let _ = match verdict {
            None => writeln!(out, "signature not checked; --config FILE verifies it"),
            Some(Ok(context)) => writeln!(out, "accepted: {}", shown(context)),
            Some(Err(Refused { reason, detail })) => writeln!(out, "{reason} ({detail})"),
        };
        out
    }

    pub(super) fn json(&self, verdict: Option<&Verdict>, now: SystemTime) -> Value {
        let times: Map<String, Value> = self
            .claims
            .iter()
            .filter_map(|(name, value)| Some((name, time(name, value)?)))
            .map(|(name, time)| {
                let told =
                    json!({ "utc": times::utc(time), "relative": times::relative(name, time, unix(now)) });
                (name.clone(), told)
            })
            .collect();
        let verdict = match verdict {
            None => Value::Null,
            Some(Ok(context)) => json!({ "accepted": true, "context": context }),
            Some(Err(Refused { reason, detail })) => {
                json!({ "accepted": false, "reason": reason, "detail": detail })
            }
        };
        json!({ "header": self.header, "claims": self.claims, "times": times, "verdict": verdict })
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The Unix seconds of a claim that is a time.
fn time(name: &str, value: &Value) -> Option<u64> {
    let seconds = value.as_f64().filter(|seconds| (0.0..=LATEST).contains(seconds))?;
    TIMES.contains(&name).then_some(seconds as u64)
}

/// A stranger's text on a terminal: without what steers the terminal or turns the direction of writing.
fn shown(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if steers(c) { c.escape_unicode().to_string() } else { c.to_string() }).collect()
}
