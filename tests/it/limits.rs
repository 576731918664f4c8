//! What one organization may take: clients, queries per second, time of its transactions; refused at once where waiting
//! would be in vain.

use std::time::{Duration, Instant};

use tokio_postgres::error::DbError;

use crate::harness::client::{Raw, bind, connect, execute, message, parse, raw, sync, try_connect, value};
use crate::harness::gate::{Gate, Setup};
use crate::harness::postgres::{self, Database};
use crate::harness::{eventually, org};

/// With limits for the first organization alone.
fn limited(database: &Database, limits: &str) -> Setup {
    Gate::with(database).toml(&format!("[limits.organization.\"{}\"]\n{limits}", org(1)))
}

async fn refusal(gate: &Gate, n: u32) -> Option<DbError> {
    let error = try_connect(gate, "app", &gate.token(org(n)).sign()).await.err()?;
    Some(error.as_db_error().expect("a reason").clone())
}

async fn code(client: &mut Raw, sql: &str) -> String {
    client.query(sql).await.error.map_or(String::new(), |(code, _)| code)
}

#[tokio::test]
async fn an_organization_has_so_many_clients_and_others_have_theirs() {
    let database = postgres::shared().database().await;
    let gate = limited(&database, "max_clients = 2").run().await;
    let _first = raw(&gate, 1).await;
    let second = raw(&gate, 1).await;
    let refused = refusal(&gate, 1).await.expect("a third one is refused");
    assert_eq!(refused.code().code(), "53300");
    assert_eq!(refused.message(), "sorry, too many clients of this organization already");
    assert_eq!(refused.detail(), Some("It may have 2 (limits.max_clients)."));
    assert!(refused.hint().is_some());
    let mut other = raw(&gate, 2).await;
    // It cannot be entered by another token either; who tries stays who it was.
    let switch = format!("SET pgtenant.token = '{}'", gate.token(org(1)).sign());
    assert_eq!(code(&mut other, &switch).await, "53300");
    assert_eq!(other.query("SELECT min(body) FROM items").await.rows[0][0].as_deref(), Some("org-2"));
    drop(second);
    eventually("room for another", async || code(&mut other, &switch).await.is_empty().then_some(())).await;
    assert_eq!(other.query("SELECT min(body) FROM items").await.rows[0][0].as_deref(), Some("org-1"));
}

#[tokio::test]
async fn an_organization_asks_so_many_queries_per_second() {
    let database = postgres::shared().database().await;
    let gate = limited(&database, "queries_per_second = 5").run().await;
    let mut client = raw(&gate, 1).await;
    let mut other = raw(&gate, 2).await;
    let (mut passed, mut refused) = (0, 0);
    let began = Instant::now();
    while refused < 3 {
        match client.query("SELECT 1").await.error {
            None => passed += 1,
            Some((code, message)) => {
                assert_eq!(code, "53400");
                assert_eq!(message, "this organization asks more than 5 queries per second");
                refused += 1;
            }
        }
        assert_eq!(code(&mut other, "SELECT 1").await, "");
    }
    let most = 6 + (began.elapsed().as_secs_f64() * 5.0) as usize;
    assert!((5..=most).contains(&passed), "{passed}");
    // What has begun goes to its end, and is paid for afterwards.
    eventually("it may begin again", async || code(&mut client, "BEGIN").await.is_empty().then_some(()))
        .await;
    for _ in 0..10 {
        assert_eq!(code(&mut client, "SELECT 1").await, "");
    }
    assert_eq!(code(&mut client, "COMMIT").await, "");
    assert_eq!(code(&mut client, "SELECT 1").await, "53400");
    // Nor does sending ahead, or coming anew, help.
    let ahead = message(b'Q', b"SELECT 1\0").repeat(20);
    client.send(&ahead).await;
    let mut refused = 0;
    for _ in 0..20 {
        refused += usize::from(client.answer().await.error.is_some());
    }
    assert!(refused >= 15, "{refused}");
    assert_eq!(code(&mut raw(&gate, 1).await, "SELECT 1").await, "53400");
}

/// What is executed without a Sync is asked as well. An ordinary batch is one query.
#[tokio::test]
async fn what_is_executed_without_a_sync_is_counted() {
    let database = postgres::shared().database().await;
    let gate = limited(&database, "queries_per_second = 10").run().await;
    let extended = [parse("", "SELECT 1"), bind(""), execute()].concat();
    let mut client = raw(&gate, 1).await;
    for _ in 0..10 {
        client.send(&[&extended[..], &sync()].concat()).await;
        assert_eq!(client.answer().await.error, None, "a second's worth");
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    // Forty at once, and half of them by a portal that is fetched from in pieces, or an empty query.
    let pieces = [
        parse("", "SELECT generate_series(1, 20)"),
        bind(""),
        message(b'E', b"\0\0\0\0\x01").repeat(10),
        [parse("", ""), bind(""), execute()].concat().repeat(10),
        message(b'H', b""),
    ];
    client.send(&[&extended.repeat(20)[..], &pieces.concat()].concat()).await;
    let mut ends = 0;
    while ends < 40 {
        let (kind, _) = client.read_message().await.expect("still connected");
        ends += usize::from(matches!(kind, b'C' | b's' | b'I'));
    }
    client.send(&sync()).await;
    assert_eq!(client.answer().await.error, None);
    let asked = Instant::now();
    assert_eq!(code(&mut client, "SELECT 1").await, "53400");
    eventually("it may begin again", async || code(&mut client, "SELECT 1").await.is_empty().then_some(()))
        .await;
    assert!(asked.elapsed() > Duration::from_millis(1500), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn transactions_end_when_their_time_is_over_whatever_their_client_sets() {
    let database = postgres::shared().database().await;
    for mode in ["transaction", "session"] {
        let limits = "transaction_time = \"1s\"\nidle_in_transaction_time = \"400ms\"";
        let gate = limited(&database, limits).mode(mode).run().await;
        let admin = database.admin().await;
        for (texts, expected) in [
            (&["SET statement_timeout = 0", "SELECT pg_sleep(600)"][..], "25P04"),
            (&["BEGIN; SET LOCAL statement_timeout = 0", "SELECT pg_sleep(600)"], "25P04"),
            (&["BEGIN; SET idle_in_transaction_session_timeout = 0", ""], "25P03"),
        ] {
            let (mut client, began) = (raw(&gate, 1).await, Instant::now());
            client.query(texts[0]).await;
            if !texts[1].is_empty() {
                client.send(&message(b'Q', format!("{}\0", texts[1]).as_bytes())).await;
            }
            let (code, said) = client.expect_error().await;
            assert_eq!(code, expected, "{texts:?}: {said}");
            assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
            eventually("its server is gone", async || {
                let left = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app' \
                            AND (state = 'active' OR state LIKE 'idle in%')";
                (value(&admin, left).await.unwrap().unwrap() == "0").then_some(())
            })
            .await;
        }
        // Short ones never notice, nor do others.
        let (mut short, mut other) = (raw(&gate, 1).await, raw(&gate, 2).await);
        for _ in 0..8 {
            assert_eq!(code(&mut short, "SELECT pg_sleep(0.2)").await, "");
        }
        assert_eq!(code(&mut other, "SELECT pg_sleep(1.3)").await, "");
        assert_eq!(code(&mut other, "BEGIN").await, "");
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(code(&mut other, "COMMIT").await, "");
    }
}

/// Who is brought to an organization within a transaction is under its limits from there on.
#[tokio::test]
async fn limits_hold_for_who_comes_within_a_transaction() {
    let database = postgres::shared().database().await;
    let gate = limited(&database, "queries_per_second = 5\ntransaction_time = \"2s\"").run().await;
    let mut native = raw(&gate, 1).await;
    let token = gate.token(org(1)).sign();
    for scope in ["SET LOCAL", "SET"] {
        let switch = format!("{scope} pgtenant.token = '{token}'");
        let (mut client, began) = (raw(&gate, 2).await, Instant::now());
        assert_eq!(code(&mut client, "BEGIN").await, "");
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert_eq!(code(&mut client, &switch).await, "");
        client.send(&message(b'Q', b"SELECT pg_sleep(60)\0")).await;
        assert_eq!(client.expect_error().await.0, "25P04");
        // Of the whole transaction, not from the switch on.
        assert!(began.elapsed() < Duration::from_millis(3100), "{:?}", began.elapsed());
        let mut client = raw(&gate, 2).await;
        assert_eq!(code(&mut client, "BEGIN").await, "");
        assert_eq!(code(&mut client, &switch).await, "");
        for _ in 0..20 {
            assert_eq!(code(&mut client, "SELECT 1").await, "");
        }
        assert_eq!(code(&mut client, "COMMIT").await, "");
        // It was all on their account; and who comes now does not come in.
        assert_eq!(code(&mut native, "SELECT 1").await, "53400");
        let mut other = raw(&gate, 2).await;
        assert_eq!(code(&mut other, "BEGIN").await, "");
        assert_eq!(code(&mut other, &switch).await, "53400");
        assert_eq!(code(&mut other, "ROLLBACK").await, "");
        assert_eq!(other.query("SELECT min(body) FROM items").await.rows[0][0].as_deref(), Some("org-2"));
        eventually("they may ask again", async || {
            code(&mut native, "SELECT 1").await.is_empty().then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn nobody_comes_within_a_transaction_where_there_is_no_room() {
    let database = postgres::shared().database().await;
    let gate = limited(&database, "max_clients = 1").run().await;
    let mut client = raw(&gate, 2).await;
    let token = gate.token(org(1)).sign();
    let (set, local) =
        (format!("SET pgtenant.token = '{token}'"), format!("SET LOCAL pgtenant.token = '{token}'"));
    // Outside of a transaction this is none of its commands, and it is none of its clients.
    assert_eq!(code(&mut client, &local).await, "");
    let native = raw(&gate, 1).await;
    for switch in [&set, &local] {
        assert_eq!(code(&mut client, "BEGIN").await, "");
        assert_eq!(code(&mut client, switch).await, "53300");
        assert_eq!(code(&mut client, "COMMIT").await, "");
        assert_eq!(client.query("SELECT min(body) FROM items").await.rows[0][0].as_deref(), Some("org-2"));
    }
    drop(native);
    for (switch, then) in [(&local, "org-2"), (&set, "org-1")] {
        eventually("room", async || {
            client.query("BEGIN").await;
            let is_in = code(&mut client, switch).await.is_empty();
            // There is room for one, and it has that.
            assert!(!is_in || refusal(&gate, 1).await.is_some());
            client.query("COMMIT").await;
            is_in.then_some(())
        })
        .await;
        assert_eq!(client.query("SELECT min(body) FROM items").await.rows[0][0].as_deref(), Some(then));
        assert_eq!(refusal(&gate, 1).await.is_some(), then == "org-1");
    }
}

/// A server is held as well by who does not end what it has begun to say; who goes on, or waits for PostgreSQL, is not idle.
#[tokio::test]
async fn who_holds_a_server_and_is_silent_is_idle_whatever_it_has_begun() {
    let database = postgres::shared().database().await;
    let admin = database.admin().await;
    admin.batch_execute("CREATE TABLE loaded (body text); GRANT ALL ON loaded TO app").await.unwrap();
    for mode in ["transaction", "session"] {
        let gate = limited(&database, "idle_in_transaction_time = \"500ms\"").mode(mode).run().await;
        let extended = |sql: &str| [parse("", sql), bind(""), execute()].concat();
        let query = |sql: &str| message(b'Q', format!("{sql}\0").as_bytes());
        let flush = message(b'H', b"");
        let update = extended("UPDATE items SET counter = 1");
        let long = query(&format!("INSERT INTO items (body) VALUES ('{}')", "x".repeat(1_000_000)));
        for (n, silent) in [
            [&update[..], &flush].concat(),
            update.clone(),
            [&update[..], &long[..50_000]].concat(),
            long[..32 * 1024].to_vec(),
            query("COPY loaded FROM STDIN"),
            extended("COPY loaded FROM STDIN"),
            [query("COPY loaded FROM STDIN"), message(b'd', b"half")[..7].to_vec()].concat(),
        ]
        .into_iter()
        .enumerate()
        {
            // Also on a server that says nothing more of its own.
            let mut client = raw(&gate, 1).await;
            assert_eq!(client.query("SELECT 1").await.error, None);
            let began = Instant::now();
            client.send(&silent).await;
            let (code, said) = client.expect_error().await;
            // Not known: behind an unread half what was executed and not answered, and what session mode does not read.
            let is_unknown = n == 2 || n == 5 && mode == "session";
            assert_eq!(code, if is_unknown { "08007" } else { "25P03" }, "{mode} {n}: {said}");
            assert_eq!(said, "terminating connection due to idle-in-transaction timeout");
            assert!(began.elapsed() < Duration::from_secs(8), "{n} {:?}", began.elapsed());
        }
        // Who asks for its answers late.
        let mut client = raw(&gate, 1).await;
        client.send(&extended("SELECT pg_sleep(1.5)")).await;
        while client.read_message().await.expect("still connected").0 != b'C' {}
        client.send(&sync()).await;
        assert_eq!(client.answer().await.status, b'I');
        // Who is slow, and goes on.
        client.send(&query("COPY loaded FROM STDIN")).await;
        for part in 0..12 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            client.send(&message(b'd', format!("slow {part}\n").as_bytes())).await;
        }
        client.send(&message(b'c', b"")).await;
        assert_eq!(client.answer().await.tags, ["COPY 12"]);
        let parts = long.chunks(long.len() / 12);
        for part in parts {
            tokio::time::sleep(Duration::from_millis(100)).await;
            client.send(part).await;
        }
        assert_eq!(client.answer().await.tags, ["INSERT 0 1"]);
    }
}

/// Many wait for one server, which is given to one of them every tenth of a second: the last of the line would wait too
/// long, and hears so at once.
#[tokio::test]
async fn who_would_be_served_too_late_hears_so_at_once() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).set("databases.app.pool", "wait_timeout", "\"2s\"");
    let gate = gate.run().await;
    let mut clients = Vec::new();
    for _ in 0..60 {
        clients.push(connect(&gate, "app", &gate.token(org(1)).sign()).await);
    }
    let asks = clients.into_iter().map(|client| {
        tokio::spawn(async move {
            let mut refusals = Vec::new();
            for _ in 0..4 {
                let began = Instant::now();
                if let Err(error) = client.query("SELECT pg_sleep(0.1)", &[]).await {
                    let error = error.as_db_error().expect("a reason").clone();
                    assert_eq!(error.code().code(), "53300");
                    refusals.push((error.message().to_owned(), began.elapsed()));
                }
            }
            refusals
        })
    });
    let mut refusals = Vec::new();
    for asked in asks.collect::<Vec<_>>() {
        refusals.extend(asked.await.unwrap());
    }
    let at_once = |(message, after): &&(String, Duration)| {
        message.starts_with("no server would come free") && *after < Duration::from_secs(1)
    };
    let shed = refusals.iter().filter(at_once).count();
    assert!(shed >= 20, "{shed} of {refusals:?}");
    let (_, metrics) = gate.http("/metrics").await;
    let counted = metrics.lines().find(|line| line.starts_with("pgtenant_shed_queries_total{")).unwrap();
    assert!(counted.rsplit(' ').next().unwrap().parse::<usize>().unwrap() >= shed);
    assert!(metrics.contains("pgtenant_oldest_wait_seconds{database=\"app\"}"));
}
