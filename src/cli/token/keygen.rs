//! `pgtenant token keygen`: a signing key, and what the proxy needs to verify its tokens.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{Failure, refusal, usage};
use crate::auth::signing::{Algorithm, SigningKey};

/// Options of `token keygen`.
#[derive(clap::Args)]
#[command(after_help = "Example:
  pgtenant token keygen --algorithm ES256 --out dev
  pgtenant token keygen --algorithm HS256 --out dev")]
pub(super) struct Args {
    /// What its tokens are signed with.
    #[arg(long, value_enum, ignore_case = true)]
    algorithm: Algorithm,
    /// The key's name in tokens; by default its thumbprint (RFC 7638).
    #[arg(long, value_name = "ID")]
    kid: Option<String>,
    /// Writes PREFIX.pem (private), PREFIX.pub.pem and PREFIX.jwks.json; for HS256 only PREFIX.secret.
    #[arg(long, value_name = "PREFIX")]
    out: PathBuf,
    /// Replace files that are there.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.kid.is_some() && args.algorithm == Algorithm::Hs256 {
        return Err(usage("--kid does not go with HS256: a shared secret has no name; leave it out"));
    }
    let key = SigningKey::generate(args.algorithm).map_err(|error| refusal(error.to_string()))?;
    let key = match &args.kid {
        Some(kid) => key.with_kid(Some(kid.clone())),
        None => key,
    };
    let files = files(&key, &args.out);
    if let Some(there) = files.iter().find(|file| !args.force && file.path.exists()) {
        return Err(refusal(format!(
            "{} is there already; use another --out, or --force",
            there.path.display()
        )));
    }
    for file in &files {
        file.write(args.force).map_err(|error| {
            refusal(format!("cannot write {}: {error}; is --out in a folder of yours?", file.path.display()))
        })?;
    }
    for file in &files {
        println!("wrote {}  ({})", file.path.display(), file.what);
    }
    println!(
        "\nFor the configuration of the proxy (issuer and audience as in your tokens):\n\n{}",
        toml(&key, &args.out)
    );
    Ok(())
}

/// A file to write.
struct File {
    path: PathBuf,
    what: &'static str,
    mode: u32,
    text: Zeroizing<Vec<u8>>,
}

fn files(key: &SigningKey, prefix: &Path) -> Vec<File> {
    let file = |suffix, what, mode, text: &[u8]| File {
        path: with_suffix(prefix, suffix),
        what,
        mode,
        text: Zeroizing::new(text.to_vec()),
    };
    let (Some(private), Some(public)) = (key.private_pem(), key.public_pem()) else {
        let mut secret = key.private_text();
        secret.push(b'\n');
        return vec![file(".secret", "shared secret: keep it", 0o600, &secret)];
    };
    vec![
        file(".pem", "private key: keep it", 0o600, private.as_bytes()),
        file(".pub.pem", "public key", 0o644, public.as_bytes()),
        file(".jwks.json", "public key as a JWK Set", 0o644, key.public_jwks().as_bytes()),
    ]
}

/// The prefix may have dots of its own.
fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(prefix);
    path.push(suffix);
    path.into()
}

impl File {
    /// Whole or not at all, never readable by others in between, and over no file that appeared meanwhile.
    fn write(&self, force: bool) -> std::io::Result<()> {
        let folder =
            self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let permissions = std::fs::Permissions::from_mode(self.mode);
        let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(folder)?;
        file.write_all(&self.text)?;
        let persisted = if force { file.persist(&self.path) } else { file.persist_noclobber(&self.path) };
        persisted.map(drop).map_err(|error| error.error)
    }
}

/// What to paste; paths are absolute, because relative ones start at the configuration's folder.
fn toml(key: &SigningKey, prefix: &Path) -> String {
    let (suffix, algorithm) = match key.algorithm() {
        Algorithm::Hs256 => (".secret", "HS256"),
        other => (".jwks.json", other.name()),
    };
    let path = with_suffix(prefix, suffix);
    let path = std::path::absolute(&path).unwrap_or(path);
    // JSON's strings are TOML's basic strings.
    let path = serde_json::Value::from(path.to_string_lossy());
    let source = match key.algorithm() {
        Algorithm::Hs256 => format!("secret = {{ file = {path} }}"),
        _ => format!("jwks_file = {path}"),
    };
    format!(
        "[[jwt.issuers]]\nissuer = \"https://dev.example/\"\naudience = [\"pgtenant\"]\nalgorithms = [\"{algorithm}\"]\n{source}"
    )
}
