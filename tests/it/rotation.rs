//! The seal's key is replaced under clients that go on: by `pgtenant install` and by files alone, and no query fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::commands::run;
use crate::harness::client::{connect, raw, value};
use crate::harness::gate::{Gate, SEAL_KEY, Setup};
use crate::harness::postgres::{self, Database, ROWS_PER_ORGANIZATION};
use crate::harness::{eventually, org};

const LOADED: &str = "\"key\":\"context.seal_key\"";
const BOTH: &str = r#"[{ file = "seal.key" }, { file = "seal.other.key" }]"#;

fn setup(database: &Database, first: &str, other: &str) -> Setup {
    let setup = Gate::with(database).file("seal.key", first).file("seal.other.key", other);
    setup.set("context", "seal_key", BOTH).set("context", "seal_lifetime", "\"10s\"")
}

fn install(setup: &Setup, database: &Database) {
    let done = run(&["install", "--database", &database.url, "--role", "app"], Some(&setup.write()));
    assert_eq!(done.code, 0, "{done:?}");
}

async fn kids(database: &Database) -> Vec<String> {
    let rows = database.admin().await.query("SELECT kid FROM pgtenant.seal_keys ORDER BY 1", &[]).await;
    rows.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The key id in the seal that a client's queries run under.
async fn sealed_by(gate: &Gate) -> String {
    let mut client = raw(gate, 3).await;
    let found = client.query("SELECT split_part(current_setting('pgtenant.seal'), E'\\n', 3)").await;
    found.rows[0][0].clone().unwrap()
}

#[tokio::test]
async fn a_key_is_replaced_and_no_query_fails() {
    let database = postgres::shared().database().await;
    let (old, new) = (SEAL_KEY.to_owned(), STANDARD.encode([7; 32]));
    let gates = [
        setup(&database, &old, &new).pool_size(2).run().await,
        setup(&database, &old, &new).pool_size(3).mode("session").run().await,
    ];
    let (is_over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for (gate, organizations) in [(&gates[0], 1..=4), (&gates[1], 1..=2)] {
        for n in organizations {
            let client = connect(gate, "app", &gate.token(org(n)).sign()).await;
            let (is_over, done) = (is_over.clone(), done.clone());
            let expected = format!("{ROWS_PER_ORGANIZATION} of org-{n}");
            clients.push(tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let seen = value(&client, "SELECT count(*) || ' of ' || min(body) FROM items").await;
                    assert_eq!(seen.unwrap().as_ref(), Some(&expected));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
    }

    // Nothing of it waits for a transaction that stays open, nor anybody behind it.
    let mut open = raw(&gates[1], 4).await;
    open.query("BEGIN").await;
    assert_eq!(open.query("SELECT count(*) FROM items").await.error, None);

    // 1. The database learns the next key; all proxies still seal with the first.
    let before = kids(&database).await;
    install(&setup(&database, &old, &new), &database);
    let both = kids(&database).await;
    assert_eq!((before.len(), both.len()), (1, 2));
    assert_eq!(sealed_by(&gates[0]).await, before[0]);

    // A file that holds no key changes nothing, and is told of without what it holds.
    let replace = |gate: &Gate, content: &str| {
        std::fs::write(gate.config().folder().join("seal.key"), content).unwrap();
    };
    replace(&gates[0], "c2hvcnQ=\n");
    eventually("a warning", async || gates[0].log().contains("32 random bytes").then_some(())).await;
    assert!(!gates[0].log().contains("c2hvcnQ"));
    assert_eq!(sealed_by(&gates[0]).await, before[0]);

    // 2. The proxies seal with the next one, without a restart.
    for gate in &gates {
        replace(gate, &format!("{new}\n"));
        eventually("the key", async || {
            let log = gate.log();
            log.lines().any(|l| l.contains(LOADED) && l.contains("anew")).then_some(())
        })
        .await;
    }
    let now = sealed_by(&gates[0]).await;
    assert!(both.contains(&now) && now != before[0]);

    // 3. Once the last seal of the old key has lapsed, the database forgets it.
    database.admin().await.batch_execute("SELECT pg_sleep(11)").await.unwrap();
    let single = Gate::with(&database).file("seal.key", new.as_str());
    install(&single.set("context", "seal_key", r#"{ file = "seal.key" }"#), &database);
    assert_eq!(kids(&database).await, [now]);
    let so_far = done.load(Ordering::Relaxed);
    eventually("more queries", async || (done.load(Ordering::Relaxed) > so_far + 200).then_some(())).await;
    is_over.store(true, Ordering::Relaxed);
    assert_eq!(open.query("SELECT 1; COMMIT").await.error, None);
    for client in clients {
        client.await.unwrap();
    }
    for gate in &gates {
        let (_, metrics) = gate.http("/metrics").await;
        assert!(metrics.contains("pgtenant_seal_refusals_total{database=\"app\"} 0"), "{metrics}");
        assert!(!gate.log().contains(new.as_str()) && !gate.log().contains(old.as_str()));
    }
}
