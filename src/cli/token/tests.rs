//! From a key to a token that the proxy takes.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use serde_json::{Value, json};

use super::inspect::{Parts, judge};
use super::*;
use crate::auth::token::{Keys, TokenError, verify};
use crate::config::{ClaimPaths, IdType, Issuer, Jwt, KeySource, Secret};
use crate::tenancy::context::Mapping;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn command(words: &[&str]) -> Result<Command, String> {
    let words = ["token"].iter().chain(words);
    Line::try_parse_from(words).map(|line| line.args.command).map_err(|error| error.to_string())
}

fn keygen(words: &[&str]) -> Result<(), Failure> {
    match command(&[&["keygen"], words].concat()).unwrap() {
        Command::Keygen(args) => keygen::run(&args),
        _ => unreachable!(),
    }
}

fn mint(key: &Path, words: &[&str]) -> Result<String, Failure> {
    let start =
        ["mint", "--key", key.to_str().unwrap(), "--issuer", "i", "--audience", "a", "--subject", "ann"];
    match command(&[&start[..], &["--organization", "o"], words].concat()).unwrap() {
        Command::Mint(args) => mint::mint(&args, now()),
        _ => unreachable!(),
    }
}

fn told(failure: Failure) -> (u8, String) {
    match failure {
        Failure::Told(code, sentence) => (code, sentence),
        Failure::Silent(_) => unreachable!(),
    }
}

fn keys(algorithm: &str, source: KeySource) -> Keys {
    let issuer = Issuer {
        issuer: "i".to_owned(),
        audience: vec!["a".to_owned()],
        algorithms: vec![algorithm.to_owned()],
        oauth_scope: String::new(),
        keys: source,
    };
    Keys::load(&Jwt { issuers: vec![issuer], leeway: Duration::ZERO }).unwrap()
}

fn mode(file: &Path) -> u32 {
    std::fs::metadata(file).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_token_from_a_generated_key_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    for algorithm in ["RS256", "ES256", "EdDSA"] {
        let prefix = folder.path().join(format!("dev.{algorithm}"));
        let prefix = prefix.to_str().unwrap();
        for kid in [&["--kid", "my-kid"][..], &["--force"]] {
            keygen(&[&["--algorithm", algorithm, "--out", prefix], kid].concat()).unwrap();
            let key = folder.path().join(format!("dev.{algorithm}.pem"));
            assert_eq!(mode(&key), 0o600);
            let token = mint(&key, &["--algorithm", algorithm]).unwrap();
            let sources = [
                KeySource::JwksFile(format!("{prefix}.jwks.json").into()),
                KeySource::KeyFile(format!("{prefix}.pub.pem").into()),
            ];
            for source in sources {
                assert_eq!(verify(&token, &keys(algorithm, source), now()).unwrap().subject(), "ann");
            }
            let header = Parts::read(&token).unwrap().json(None, now())["header"].clone();
            assert_eq!(header["kid"] == "my-kid", kid[0] == "--kid", "{header}");
        }
    }
}

#[test]
fn a_shared_secret_is_one_file_for_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("dev");
    keygen(&["--algorithm", "hs256", "--out", prefix.to_str().unwrap()]).unwrap();
    let file = folder.path().join("dev.secret");
    assert_eq!((mode(&file), std::fs::read_dir(folder.path()).unwrap().count()), (0o600, 1));
    let token = mint(&file, &[]).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let secret = Secret::new(text.strip_suffix('\n').unwrap().as_bytes().to_vec());
    assert!(verify(&token, &keys("HS256", KeySource::Secret(secret)), now()).is_ok());
}

#[test]
fn no_key_is_overwritten_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("dev");
    let words = ["--algorithm", "EdDSA", "--out", prefix.to_str().unwrap()];
    keygen(&words).unwrap();
    let read = || std::fs::read(folder.path().join("dev.pem")).unwrap();
    let first = read();
    let (code, sentence) = told(keygen(&words).unwrap_err());
    assert!(code == NO && sentence.contains("--force"), "{sentence}");
    assert_eq!(read(), first);
    keygen(&[&words[..], &["--force"]].concat()).unwrap();
    assert_ne!(read(), first);
}

#[test]
fn claims_stand_where_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dev.secret");
    std::fs::write(&file, "s".repeat(32)).unwrap();
    let claims = |words: &[&str]| -> Value {
        Parts::read(&mint(&file, words).unwrap()).unwrap().json(None, now())["claims"].clone()
    };
    let plain = json!({ "iss": "i", "aud": "a", "sub": "ann", "org_id": "o", "iat": 1_800_000_000, "exp": 1_800_003_600 });
    assert_eq!(claims(&[]), plain);
    let rich = claims(&[
        "--audience",
        "b",
        "--organization",
        "p",
        "--project",
        "q",
        "--role",
        "r",
        "--role",
        "s",
        "--expires-in",
        "90s",
        "--not-before-in",
        "1m",
        "--claim",
        "name=\"Ann\"",
        "--claim",
        "sub=42",
        "--organization-claim",
        "app.org",
        "--project-claim",
        "app.project",
        "--roles-claim",
        "app.roles",
    ]);
    let expected = json!({
        "iss": "i", "aud": ["a", "b"], "sub": 42, "name": "Ann", "iat": 1_800_000_000, "exp": 1_800_000_090,
        "nbf": 1_800_000_060, "app": { "org": ["o", "p"], "project": "q", "roles": ["r", "s"] }
    });
    assert_eq!(rich, expected);
    let (code, sentence) = told(mint(&file, &["--organization-claim", "sub.x"]).unwrap_err());
    assert!(code == BAD_USAGE && sentence.contains("no object"), "{sentence}");
}

#[test]
fn bad_options_are_told_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("dev");
    keygen(&["--algorithm", "ES256", "--out", prefix.to_str().unwrap()]).unwrap();
    let hint = |file: &str, words: &[&str]| told(mint(&folder.path().join(file), words).unwrap_err());
    let (code, sentence) = hint("dev.pub.pem", &[]);
    assert!(code == BAD_USAGE && sentence.contains("private key"), "{sentence}");
    assert!(hint("dev.pem", &["--algorithm", "HS256"]).1.contains("is a key for ES256"));
    assert!(hint("missing.pem", &[]).1.contains("token keygen"));
    std::fs::write(folder.path().join("short"), "short\n").unwrap();
    assert!(hint("short", &[]).1.contains("at least 32 bytes"));
    let wrong = command(&["mint", "--claim", "name=Ann"]).err().unwrap();
    assert!(wrong.contains("a text needs quotes"), "{wrong}");
    assert!(command(&["keygen", "--algorithm", "none", "--out", "x"]).is_err());
    assert!(
        told(keygen(&["--algorithm", "HS256", "--kid", "x", "--out", "x"]).unwrap_err()).1.contains("--kid")
    );
}

#[test]
fn a_token_is_shown_with_its_times_and_the_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dev.secret");
    std::fs::write(&file, "s".repeat(32)).unwrap();
    let token =
        mint(&file, &["--claim", "name=\"\u{9b}31m\u{202e}x\"", "--claim", "auth_time=1e300"]).unwrap();
    let parts = Parts::read(&token).unwrap();
    let text = parts.text(None, now() + Duration::from_secs(60));
    assert!(text.contains("1800003600  (2027-01-15 09:00:00 UTC, expires in 59 min)"), "{text}");
    assert!(text.contains("signature not checked") && text.contains("\\u{9b}31m\\u{202e}x"), "{text}");
    let refused = Err(TokenError::Expired { seconds_ago: 75 }.into());
    let accepted = Ok("organization o, project none, subject ann".to_owned());
    assert!(parts.text(Some(&refused), now()).ends_with("token refused: expired (it expired 75 s ago)\n"));
    assert!(
        parts
            .text(Some(&accepted), now())
            .ends_with("\naccepted: organization o, project none, subject ann\n")
    );
    assert_eq!(parts.json(Some(&accepted), now())["verdict"]["accepted"], json!(true));
    assert_eq!(parts.json(Some(&refused), now())["verdict"]["accepted"], json!(false));
    assert_eq!(parts.json(None, now())["times"]["exp"]["relative"], "expires in 60 min");
    for none in ["", "a.b.c", "eyJ9", "e30", "e30.W10.x"] {
        assert!(Parts::read(none).is_err(), "{none}");
    }
}

#[test]
fn the_verdict_says_as_whom_or_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dev.secret");
    std::fs::write(&file, "s".repeat(32)).unwrap();
    let keys = keys("HS256", KeySource::Secret(Secret::new(vec![b's'; 32])));
    let path = str::to_owned;
    let claims = ClaimPaths {
        organization: path("app.org"),
        project: path("app.project"),
        subject: path("sub"),
        roles: path("roles"),
    };
    let mapping = Mapping { claims, id_type: IdType::Text, leeway: Duration::ZERO, settings: Vec::new() };
    let verdict = |words: &[&str]| {
        let token = mint(&file, words).unwrap();
        let verdict = judge(&token, &keys, &mapping, now());
        Parts::read(&token).unwrap().json(Some(&verdict), now())["verdict"].clone()
    };
    let whole = verdict(&["--organization-claim", "app.org"]);
    assert_eq!(whole["context"], "organization o, project none (the whole organization), subject ann");
    assert_eq!(verdict(&[])["reason"], "token refused: no organization");
    assert_eq!(verdict(&["--claim", "exp=1"])["reason"], "token refused: expired");
}
