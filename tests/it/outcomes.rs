//! What a client is told when PostgreSQL is lost: rolled back, or not known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::harness::client::{Raw, bind, execute, message, parse, raw, sync, value};
use crate::harness::gate::Gate;
use crate::harness::postgres;
use crate::harness::{eventually, org};
use crate::revoked::revoke;

/// Passes bytes to PostgreSQL; answers can be held back, and everything be cut.
pub struct Wire {
    pub port: u16,
    pub is_mute: Arc<AtomicBool>,
    /// Bytes that went to PostgreSQL.
    sent: Arc<AtomicUsize>,
    cut: Arc<Notify>,
}

impl Wire {
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Self {
            port: listener.local_addr().unwrap().port(),
            is_mute: Arc::default(),
            sent: Arc::default(),
            cut: Arc::default(),
        };
        let (is_mute, sent, cut) = (wire.is_mute.clone(), wire.sent.clone(), wire.cut.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (is_mute, sent, cut) = (is_mute.clone(), sent.clone(), cut.clone());
                tokio::spawn(async move {
                    let far = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                    let (mut near_in, mut near_out) = near.into_split();
                    let (mut far_in, mut far_out) = far.into_split();
                    let answers = async {
                        let mut bytes = [0; 4096];
                        while let Ok(count @ 1..) = far_in.read(&mut bytes).await {
                            if !is_mute.load(Ordering::SeqCst)
                                && near_out.write_all(&bytes[..count]).await.is_err()
                            {
                                break;
                            }
                        }
                    };
                    let questions = async {
                        let mut bytes = [0; 4096];
                        while let Ok(count @ 1..) = near_in.read(&mut bytes).await {
                            if far_out.write_all(&bytes[..count]).await.is_err() {
                                break;
                            }
                            sent.fetch_add(count, Ordering::SeqCst);
                        }
                    };
                    tokio::select! {
                        () = questions => {}
                        () = answers => {}
                        () = cut.notified() => {}
                    }
                });
            }
        });
        wire
    }
}

#[tokio::test]
async fn an_unknown_outcome_is_told_as_one() {
    let database = postgres::shared().database().await;
    let wire = Wire::to(database.port).await;
    let admin = database.admin().await;
    let insert = |n: u32| format!("INSERT INTO items (body) VALUES ('lost {n}')");
    let query = |sql: &str| message(b'Q', format!("{sql}\0").as_bytes());
    let extended = |sql: &str| [parse("", sql), bind(""), execute(), sync()].concat();
    for mode in ["transaction", "session"] {
        let gate = Gate::with(&database).mode(mode).pool_size(1);
        let gate = gate.set("servers.main", "port", &wire.port.to_string());
        let gate = gate.run().await;
        let is_session = mode == "session";
        for (n, begin, last, expected) in [
            // Its COMMIT arrived, and its answer did not.
            (1, "BEGIN", query("COMMIT"), "08007"),
            (2, "BEGIN", extended("COMMIT"), "08007"),
            (3, "SELECT 1", query(&insert(3)), "08007"),
            (4, "SELECT 1", extended(&insert(4)), "08007"),
            (5, "BEGIN", query("SELECT 1; COMMIT"), "08007"),
            // Certainly rolled back, but where it was not read what was executed.
            (6, "BEGIN", query(&insert(6)), "08006"),
            (7, "BEGIN", extended(&insert(7)), if is_session { "08007" } else { "08006" }),
            (8, "SELECT 1", query("SELECT count(*) FROM items"), "08006"),
            (9, "BEGIN", query("ROLLBACK"), "08006"),
        ] {
            let mut client = raw(&gate, 1).await;
            client.query(begin).await;
            if begin == "BEGIN" && n != 6 && n != 7 {
                client.query(&insert(n)).await;
            }
            wire.is_mute.store(true, Ordering::SeqCst);
            let before = wire.sent.load(Ordering::SeqCst);
            client.send(&last).await;
            eventually("it is sent", async || (wire.sent.load(Ordering::SeqCst) > before).then_some(()))
                .await;
            let is_there = format!("SELECT count(*) FROM items WHERE body = 'lost {n}'");
            if expected == "08007" && n != 7 {
                eventually("committed", async || {
                    (value(&admin, &is_there).await.unwrap().unwrap() == "1").then_some(())
                })
                .await;
            }
            wire.cut.notify_waiters();
            let (code, said) = client.expect_error().await;
            assert_eq!(code, expected, "{mode} {n}: {said}");
            wire.is_mute.store(false, Ordering::SeqCst);
            if expected == "08006" {
                assert_eq!(value(&admin, &is_there).await.unwrap().unwrap(), "0", "{mode} {n}");
            }
            drop::<Raw>(client);
            admin.execute("DELETE FROM items WHERE body LIKE 'lost %'", &[]).await.unwrap();
        }
        // Everybody else goes on, with new servers.
        eventually("served again", async || {
            let mut client = raw(&gate, 2).await;
            client.query("SELECT 1").await.error.is_none().then_some(())
        })
        .await;
        assert!(!gate.log().contains(&org(9)));
    }
}

/// The proxy itself ends a connection whose COMMIT hangs: here because no standby acknowledges it, though it is done.
#[tokio::test]
async fn an_outcome_that_a_limit_or_a_revocation_cuts_off_is_told_as_unknown() {
    let own = postgres::Shared::start(&pgtenant::cli::demo::throwaway::Options::default());
    let database = own.database().await;
    let admin = database.admin().await;
    let limits = format!("[limits.organization.\"{}\"]\ntransaction_time = \"1s\"", org(1));
    let gate = Gate::with(&database).set("jwt", "revoked", "\"revoked.toml\"").file("revoked.toml", "");
    let gate = gate.toml(&limits).run().await;
    let query = |sql: &str| message(b'Q', format!("{sql}\0").as_bytes());
    let extended = |sql: &str| [parse("", sql), bind(""), execute(), sync()].concat();
    let insert = |n: u32| format!("INSERT INTO items (body) VALUES ('cut {n}')");
    let mut clients = Vec::new();
    for n in 1..=6 {
        let mut client = raw(&gate, if n < 5 { 1 } else { 2 }).await;
        assert_eq!(client.query("SELECT 1").await.error, None);
        clients.push(client);
    }
    admin.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await.unwrap();
    admin.batch_execute("ALTER SYSTEM SET synchronous_commit = 'on'").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    for (n, begin, last, expected) in [
        (1, format!("BEGIN; {}", insert(1)), query("COMMIT"), ("08007", "transaction timeout")),
        (2, format!("BEGIN; {}", insert(2)), extended("COMMIT"), ("08007", "transaction timeout")),
        (3, "SELECT 1".to_owned(), query(&insert(3)), ("08007", "transaction timeout")),
        (4, format!("BEGIN; {}", insert(4)), query("SELECT pg_sleep(60)"), ("25P04", "transaction timeout")),
        (5, format!("BEGIN; {}", insert(5)), query("COMMIT"), ("08007", "was revoked")),
        (6, format!("BEGIN; {}", insert(6)), query("SELECT pg_sleep(60)"), ("57P01", "was revoked")),
    ] {
        let mut client = clients.remove(0);
        assert_eq!(client.query(&begin).await.error, None);
        client.send(&last).await;
        if n >= 5 {
            revoke(&gate, &format!("kill = true\norganizations = ['{}']\n# {n}", org(2))).await;
        }
        let (code, said) = client.expect_error().await;
        assert_eq!(code, expected.0, "{n}: {said}");
        assert!(said.contains(expected.1), "{n}: {said}");
        if n >= 5 {
            revoke(&gate, &format!("# {n}")).await;
        }
        let is_there = format!("SELECT count(*) FROM items WHERE body = 'cut {n}'");
        let count = if expected.0 == "08007" { "1" } else { "0" };
        eventually("its outcome", async || {
            (value(&admin, &is_there).await.unwrap().unwrap() == count).then_some(())
        })
        .await;
    }
}
