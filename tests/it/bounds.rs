//! What one client can take: of the proxy's memory, of PostgreSQL's processes, of the others' turns.

use std::time::Duration;

use pgtenant::cli::demo::throwaway::Options;
use tokio::io::AsyncWriteExt as _;

use crate::harness::client::{Raw, bind, close, execute, message, parse, raw, sync};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, Shared};
use crate::harness::{data_kib, eventually, org};
use crate::switching::metric;

const MEGABYTE: usize = 1024 * 1024;

/// Writes what the proxy will take of `chunk` in a second, at most `limit` bytes, and reads nothing.
async fn flood(raw: &mut Raw, chunk: &[u8], limit: usize) -> usize {
    let mut sent = 0;
    while sent < limit {
        match tokio::time::timeout(Duration::from_secs(1), raw.stream().write_all(chunk)).await {
            Ok(Ok(())) => sent += chunk.len(),
            Ok(Err(_)) | Err(_) => break,
        }
    }
    sent
}

/// Each may keep 16 MiB of statements; all together less than all of that.
#[tokio::test]
async fn all_clients_together_keep_no_more_than_they_may() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).set("listen", "max_kept", "\"16MiB\"").run().await;
    let text = |client: usize, n: usize| format!("SELECT '{client} {n} {}'", "x".repeat(MEGABYTE));
    let (mut clients, mut kept, mut refused) = (Vec::new(), 0, 0);
    for index in 0..6 {
        let mut client = raw(&gate, 1).await;
        for n in 0..4 {
            client.send(&[parse(&format!("s{n}"), &text(index, n)), sync()].concat()).await;
            match client.answer().await.error {
                None => kept += 1,
                Some((code, message)) => {
                    assert_eq!(
                        (code.as_str(), message.as_str()),
                        ("53200", "the proxy keeps no more texts of its clients")
                    );
                    refused += 1;
                }
            }
        }
        clients.push(client);
    }
    assert!((8..=16).contains(&kept) && refused >= 8, "{kept} {refused}");
    let (_, metrics) = gate.http("/metrics").await;
    let bytes = metrics.lines().find(|line| line.starts_with("pgtenant_kept_bytes ")).unwrap();
    assert!(bytes.rsplit(' ').next().unwrap().parse::<usize>().unwrap() <= 16 * MEGABYTE);
    // What they had is for others when they are gone; and short ones pass all the while.
    let last = clients.last_mut().unwrap();
    assert_eq!(last.query("SELECT 1").await.error, None);
    clients.clear();
    eventually("room again", async || {
        let mut client = raw(&gate, 2).await;
        client.send(&[parse("s", &text(9, 9)), bind("s"), execute(), sync()].concat()).await;
        client.answer().await.error.is_none().then_some(())
    })
    .await;
}

/// Names of one shared text, and commands with what nobody has verified to be a token, are each client's own.
#[tokio::test]
async fn names_and_token_commands_are_kept_in_the_same_memory() {
    let database = postgres::shared().database().await;
    let token = |n: usize| format!("SET pgtenant.token = '{n}{}'", "x".repeat(30_000));
    let name = |n: usize| format!("{n:01000}");
    for (count, of, text) in [(9_000, 4, None), (60, 12, Some(token))] {
        let sql = |n: usize| text.map_or("SELECT 1".to_owned(), |text| text(n));
        let gate = Gate::with(&database).set("listen", "max_kept", "\"16MiB\"").run().await;
        let (mut clients, mut kept, mut refused) = (Vec::new(), 0, 0);
        for _ in 0..of {
            let mut client = raw(&gate, 1).await;
            let names: Vec<usize> = (0..count).collect();
            for names in names.chunks(count / 30) {
                let parses = names.iter().flat_map(|n| parse(&name(*n), &sql(*n)));
                client.send(&parses.chain(sync()).collect::<Vec<_>>()).await;
                match client.answer().await.error {
                    None => kept += names.len(),
                    Some((code, said)) => {
                        assert_eq!(code, "53200", "{said}");
                        refused += 1;
                        break;
                    }
                }
            }
            clients.push(client);
        }
        assert!(kept > count && refused >= 2, "{kept} {refused} of {count}");
        // What is closed makes room, for others as well.
        let (first, rest) = clients.split_first_mut().unwrap();
        let closing = (0..count).flat_map(|n| close(&name(n))).chain(sync());
        first.send(&closing.collect::<Vec<_>>()).await;
        first.answer().await;
        let last = rest.last_mut().unwrap();
        last.send(&[parse(&name(count), &sql(count)), sync()].concat()).await;
        assert_eq!(last.answer().await.error, None);
        assert_eq!(last.query("SELECT 1").await.error, None);
    }
}

/// Those who come too many wait in the system's queue, and are served when others leave.
#[tokio::test]
async fn without_file_descriptors_nobody_is_lost_and_nothing_spins() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).descriptors(48).run().await;
    assert!(gate.log().contains("too few file descriptors"), "{}", gate.log());
    let mut waiting = Vec::new();
    for _ in 0..60 {
        waiting.push(Raw::connect(&gate).await);
    }
    eventually("none left", async || gate.log().contains("cannot accept a client").then_some(())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(gate.log().matches("cannot accept a client").count(), 1);
    let last = waiting.pop();
    drop(waiting);
    let mut last = last.unwrap();
    last.sign_in("app", "app", &gate.token(org(1)).sign()).await;
    assert_eq!(last.query("SELECT 1").await.error, None);
}

#[tokio::test]
async fn who_reads_nothing_is_not_read_for_ever() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(2).run().await;
    let mut client = raw(&gate, 1).await;
    let before = gate.resident_kib();
    // Answers that the proxy gives itself: five bytes for each of these.
    let closes = close("x").repeat(100_000);
    let sent = flood(&mut client, &closes, 200 * MEGABYTE).await;
    let after = gate.resident_kib();
    assert!(after < before + 16 * 1024, "{before} to {after} KiB for {} MB", sent / MEGABYTE);
}

/// Who has sent half a message, or waits for a server, holds its bytes and no buffer of 32 KiB.
#[tokio::test]
async fn who_waits_holds_no_buffer() {
    const CLIENTS: usize = 400;
    let database = postgres::shared().database().await;
    let gate =
        Gate::with(&database).pool_size(1).set("databases.app.pool", "wait_timeout", "\"60s\"").run().await;
    let mut holder = raw(&gate, 1).await;
    holder.query("BEGIN").await;
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        clients.push(raw(&gate, 1 + n as u32 % 4).await);
    }
    let before = data_kib(gate.pid());
    let sql = format!("SELECT 1 -- {}\0", "x".repeat(500));
    let query = message(b'Q', sql.as_bytes());
    let (half, rest) = query.split_at(query.len() / 2);
    let bound = before + CLIENTS as u64 * 12;
    for client in &mut clients {
        client.send(half).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let halves = data_kib(gate.pid());
    // And half of the next one behind it.
    let more = [rest, half].concat();
    for client in &mut clients {
        client.send(&more).await;
    }
    eventually("all of them to wait", async || {
        (metric(&gate, "pgtenant_waiting_clients{").await == CLIENTS as f64).then_some(())
    })
    .await;
    let waiting = data_kib(gate.pid());
    assert!(halves < bound && waiting < bound, "{before}, then {halves} and {waiting} KiB");
    holder.query("COMMIT").await;
    for client in &mut clients {
        let answer = client.answer().await;
        assert_eq!((answer.error, answer.rows.len()), (None, 1));
        client.send(rest).await;
        let answer = client.answer().await;
        assert_eq!((answer.error, answer.rows.len()), (None, 1));
    }
}

#[tokio::test]
async fn texts_that_are_outstanding_are_counted() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(2).run().await;
    let mut client = raw(&gate, 1).await;
    let before = gate.resident_kib();
    // Parse and Close of ever new texts, and no Sync.
    for n in 0..120 {
        let text = format!("SELECT '{n}{}'", "x".repeat(MEGABYTE));
        client.send(&[parse("a", &text), close("a")].concat()).await;
    }
    client.send(&sync()).await;
    assert_eq!(client.answer().await.error, None);
    let after = gate.resident_kib();
    // The pool shares 64 MiB of texts.
    assert!(after < before + 90 * 1024, "{before} to {after} KiB");
    // Names are no way around it.
    client.send(&[parse(&"n".repeat(2_000), "SELECT 1"), sync()].concat()).await;
    assert_eq!(client.expect_error().await.0, "08P01");
}

#[tokio::test]
async fn settings_that_change_in_a_long_transaction_take_no_memory() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut client = raw(&gate, 1).await;
    client.query("BEGIN").await;
    let before = gate.resident_kib();
    let name = "n".repeat(60);
    let pair = format!("SET LOCAL application_name = '{name}a'; SET LOCAL application_name = '{name}b';");
    for _ in 0..30 {
        assert_eq!(client.query(&pair.repeat(1_000)).await.error, None);
    }
    let after = gate.resident_kib();
    assert!(after < before + 6 * 1024, "{before} to {after} KiB");
}

#[tokio::test]
async fn everyone_who_waits_gets_a_server_while_there_is_room() {
    let database = postgres::shared().database().await;
    let gate =
        Gate::with(&database).pool_size(10).set("databases.app.pool", "wait_timeout", "\"5s\"").run().await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(raw(&gate, 1).await);
    }
    for client in &mut clients {
        client.send(&message(b'Q', b"SELECT pg_sleep(7)\0")).await;
    }
    for client in &mut clients {
        assert_eq!(client.answer().await.error, None);
    }
}

#[tokio::test]
async fn who_breaks_the_protocol_leaves_nothing_running() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let admin = database.admin().await;
    for _ in 0..4 {
        let mut client = raw(&gate, 1).await;
        client.send(&message(b'Q', b"SELECT pg_sleep(60), 'left'\0")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.send(&message(b'F', b"\0\0\0\0")).await;
        client.expect_close().await;
    }
    let sql = "SELECT count(*)::int FROM pg_stat_activity WHERE query LIKE '%''left''' AND state = 'active' \
               AND datname = current_database()";
    eventually("the queries to end", async || {
        (admin.query_one(sql, &[]).await.unwrap().get::<_, i32>(0) == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_flush_with_a_body_costs_nobody_else_a_query() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    for _ in 0..10 {
        let mut client = raw(&gate, 1).await;
        client.send(&[message(b'Q', b"SELECT pg_sleep(0.02)\0"), message(b'H', b"\0")].concat()).await;
        let mut other = raw(&gate, 1).await;
        assert_eq!(other.query("SELECT 'b'").await.rows[0][0].as_deref(), Some("b"));
        let mut stranger = raw(&gate, 2).await;
        assert_eq!(stranger.query("SELECT 'c'").await.rows[0][0].as_deref(), Some("c"));
    }
}

#[tokio::test]
async fn half_a_row_is_not_completed_by_words_of_ours() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut client = raw(&gate, 1).await;
    let pid = client.query("SELECT pg_backend_pid()").await.rows[0][0].clone().unwrap();
    client.send(&message(b'Q', b"SELECT repeat('x', 60000000)\0")).await;
    let mut read = vec![0; 100_000];
    tokio::io::AsyncReadExt::read_exact(client.stream(), &mut read).await.unwrap();
    let sql = format!("SELECT pg_terminate_backend({pid})");
    database.admin().await.simple_query(&sql).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // It ends in the middle, by a reset perhaps.
    let _ = tokio::io::AsyncReadExt::read_to_end(client.stream(), &mut read).await;
    let row = read.iter().position(|byte| *byte == b'x').expect("the row");
    let rest = &read[row..];
    let is_whole = rest.len() >= 60_000_000;
    assert!(
        is_whole || rest.iter().all(|byte| *byte == b'x'),
        "{:?}",
        &rest[rest.len().saturating_sub(300)..]
    );
}

#[tokio::test]
async fn a_sync_while_a_copy_reads_is_the_copys() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut client = raw(&gate, 1).await;
    let pause = Duration::from_millis(100);
    for end in [message(b'c', b""), message(b'f', b"no\0")] {
        client
            .send(&[parse("", "COPY notes FROM STDIN"), bind(""), execute(), message(b'H', b"")].concat())
            .await;
        tokio::time::sleep(pause).await;
        client.send(&sync()).await;
        tokio::time::sleep(pause).await;
        client.send(&[message(b'd', b"777\tx\n"), end, sync()].concat()).await;
        client.answer().await;
        assert_eq!(client.query("SELECT 'next'").await.rows[0][0].as_deref(), Some("next"));
        let mut other = raw(&gate, 2).await;
        assert_eq!(other.query("DELETE FROM notes WHERE id = 777").await.error, None);
    }
}

/// The postmaster is slow to fork: the request lies in its socket while the query that it meant ends.
#[tokio::test]
async fn a_cancel_that_is_late_strikes_nobody_else() {
    let own = Shared::start(&Options::default());
    let database = own.database().await;
    let gate = Gate::with(&database)
        .pool_size(1)
        .set("listen", "sign_in_timeout", "\"1s\"")
        .set("databases.app.pool", "wait_timeout", "\"20s\"")
        .run()
        .await;
    let pid_file = own.server.data_dir().join("postmaster.pid");
    let postmaster = std::fs::read_to_string(pid_file).unwrap().lines().next().unwrap().to_owned();
    let signal = |name: &str| {
        let status = std::process::Command::new("kill").args([name, &postmaster]).status().unwrap();
        assert!(status.success());
    };
    let (mut client, mut other) = (raw(&gate, 1).await, raw(&gate, 2).await);
    client.send(&message(b'Q', b"SELECT pg_sleep(2.5)\0")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    signal("-STOP");
    let mut asker = Raw::connect(&gate).await;
    let length = u32::try_from(12 + client.key.len() - 4).unwrap();
    asker.send(&[&length.to_be_bytes()[..], &80_877_102_u32.to_be_bytes(), &client.key].concat()).await;
    // The other's query waits for the server, whoever has it by then.
    other.send(&message(b'Q', b"SELECT pg_sleep(1.5), 'mine'\0")).await;
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    signal("-CONT");
    let answer = other.answer().await;
    assert_eq!(answer.error, None);
    assert_eq!(answer.rows[0][1].as_deref(), Some("mine"));
}

/// What a client leaves takes time to remove; whoever waits gets the next server that is free, not that one.
#[tokio::test]
async fn a_long_cleaning_holds_nobody_up_who_could_have_another_server() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(2).run().await;
    let [mut mallory, mut second, mut victim] =
        [raw(&gate, 1).await, raw(&gate, 1).await, raw(&gate, 2).await];
    const PID: &str = "SELECT pg_backend_pid()";
    for _ in 0..3 {
        mallory.query("BEGIN").await;
        let dirty = mallory.query(PID).await.rows;
        second.query("BEGIN").await;
        let other = second.query(PID).await.rows;
        assert_ne!(dirty, other);
        let litter = "DO $$ BEGIN FOR i IN 1..1500 LOOP EXECUTE 'CREATE TEMP TABLE t' || i || ' (n int)'; END LOOP; END $$";
        assert_eq!(mallory.query(litter).await.error, None);
        victim.send(&message(b'Q', format!("{PID}\0").as_bytes())).await;
        eventually("the victim in the line", async || {
            let (_, metrics) = gate.http("/metrics").await;
            metrics.contains("pgtenant_waiting_clients{database=\"app\"} 1").then_some(())
        })
        .await;
        mallory.query("COMMIT").await;
        second.query("COMMIT").await;
        let served = victim.answer().await;
        assert_eq!((served.error, served.rows), (None, other));
    }
}
