//! What a proxy does about those who try: failed sign-ins are answered later each time, and every refusal leaves one line
//! that says who, from where and why, with no token and no literal.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::client::{connect, raw, try_connect, value};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, password_of};
use crate::harness::{eventually, org};

/// The lines about security, parsed.
fn lines(gate: &Gate) -> Vec<Value> {
    let log = gate.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "pgtenant::security").collect()
}

#[tokio::test]
async fn failed_sign_ins_are_answered_later_each_time() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).set("listen", "failed_sign_in_delay", "\"200ms\"").run().await;
    let mut took = Vec::new();
    for _ in 0..3 {
        let started = Instant::now();
        assert!(try_connect(&gate, "plain", "wrong").await.is_err());
        took.push(started.elapsed());
    }
    for (took, least) in took.iter().zip([200, 400, 800]) {
        assert!(*took >= Duration::from_millis(least), "{took:?}");
    }
    // Whoever knows the password does not wait, meanwhile and afterwards.
    let started = Instant::now();
    let (failed, good) = tokio::join!(try_connect(&gate, "app", "eyJ.e30.x"), async {
        (connect(&gate, "plain", &password_of("plain")).await, started.elapsed())
    });
    assert!(failed.is_err() && started.elapsed() >= Duration::from_millis(1600));
    assert!(good.1 < Duration::from_millis(1600), "{:?}", good.1);
    let failures: Vec<_> = lines(&gate).iter().map(|line| line["failures"].as_u64().unwrap()).collect();
    assert_eq!(failures, [1, 2, 3, 4]);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn memory_is_kept_private() {
    use std::os::unix::fs::MetadataExt;
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gate.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"]);
    // What cannot be dumped belongs to root, whoever runs it.
    assert_eq!(std::fs::metadata(format!("/proc/{}/environ", gate.pid())).unwrap().uid(), 0);
}

#[tokio::test]
async fn every_refusal_leaves_one_line() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let expired = gate.token(org(1)).expires_in(-600).sign();
    assert!(try_connect(&gate, "app", &expired).await.is_err());
    assert!(try_connect(&gate, "nobody", "secret-word").await.is_err());
    let mut client = raw(&gate, 2).await;
    client.query(&format!("SET pgtenant.token = '{expired}'")).await;
    let tampering = connect(&gate, "app", &gate.token(org(3)).subject("mallory").sign()).await;
    tampering
        .batch_execute("BEGIN; SELECT set_config('pgtenant.' || 'seal', 'forged-by-mallory', true)")
        .await
        .unwrap();
    assert!(value(&tampering, "SELECT count(*) FROM items WHERE body = 'a-literal'").await.is_err());
    let (_, metrics) = gate.http("/metrics").await;
    assert!(metrics.contains("pgtenant_seal_refusals_total{database=\"app\"} 1\n"), "{metrics}");
    drop(tampering);
    let found = eventually("four lines", async || Some(lines(&gate)).filter(|lines| lines.len() == 4)).await;
    let field = |index: usize, name: &str| found[index][name].as_str().unwrap_or_default().to_owned();
    for (index, event, user, reason) in [
        (0, "sign_in_refused", "app", "token refused: expired"),
        (1, "sign_in_refused", "nobody", "password authentication failed for user \"nobody\""),
        (2, "token_refused", "app", "token refused: expired"),
        (3, "seal_refused", "app", ""),
    ] {
        assert_eq!(
            (field(index, "event").as_str(), field(index, "user").as_str()),
            (event, user),
            "{found:?}"
        );
        assert_eq!(field(index, "reason"), reason);
        assert!(field(index, "peer").starts_with("127.0.0.1:"), "{found:?}");
        assert!(field(index, "timestamp").ends_with('Z'));
    }
    assert_eq!(field(0, "database"), "app");
    assert!(field(0, "detail").starts_with("it expired 60"), "{found:?}");
    assert_eq!((field(3, "organization"), field(3, "subject")), (org(3), "mallory".to_owned()));
    let log = gate.log();
    for secret in ["eyJ", "secret-word", "forged-by-mallory", "a-literal"] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}
