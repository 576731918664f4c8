//! A streaming standby: the context is bound and checked there as on the primary, though nothing can be written.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use pgtenant::cli::demo::throwaway::{Options, Throwaway};

use crate::commands::run;
use crate::harness::client::{Raw, bind, execute, parse, raw, sync};
use crate::harness::gate::{Gate, Setup};
use crate::harness::postgres::{self, Database, ROWS_PER_ORGANIZATION, Shared};
use crate::harness::{eventually, org};

/// A second cluster that follows the first: its files are copied by the low-level API (PostgreSQL documentation, 26.3.3),
/// because not every installation of the tests has `pg_basebackup`.
async fn follow(primary: &Shared) -> Throwaway {
    let bin = primary.server.bin().to_owned();
    let mut standby = Throwaway::start(&Options { bin: Some(bin), ..Options::default() }).unwrap();
    standby.stop_server().unwrap();
    let (from, data) = (primary.server.data_dir(), standby.data_dir());
    let owner = std::fs::metadata(&data).unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    let (start, stop) = match primary.server.version_major() {
        14 => ("pg_start_backup('it', true, false)", "pg_stop_backup(false, false)"),
        _ => ("pg_backup_start('it', true)", "pg_backup_stop(false)"),
    };
    let admin = primary.admin("postgres").await;
    // Other tests write a lot: what the standby has not had yet must still be there.
    admin.batch_execute("ALTER SYSTEM SET wal_keep_size = '4GB'").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    admin.batch_execute(&format!("SELECT {start}")).await.unwrap();
    copy(&from, &data);
    let label = admin.query_one(&format!("SELECT labelfile FROM {stop}"), &[]).await.unwrap();
    std::fs::write(data.join("backup_label"), label.get::<_, String>(0)).unwrap();
    std::fs::write(data.join("standby.signal"), "").unwrap();
    let conf = data.join("postgresql.conf");
    let own = format!(
        "unix_socket_directories = '{}'\nprimary_conninfo = '{}'\n",
        standby.socket_dir().display(),
        primary.server.url("postgres")
    );
    std::fs::write(&conf, std::fs::read_to_string(&conf).unwrap() + &own).unwrap();
    give(&data, owner.uid(), owner.gid());
    standby.start_server().unwrap();
    standby
}

/// All but what belongs to the running server; files may vanish meanwhile.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    std::fs::set_permissions(to, Permissions::from_mode(0o700)).unwrap();
    // Other tests drop their databases.
    for entry in std::fs::read_dir(from).into_iter().flatten().map_while(Result::ok) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => copy(&from, &to),
            _ if entry.file_name().to_string_lossy().starts_with("postmaster.") => {}
            _ => drop(std::fs::copy(from, to)),
        }
    }
}

/// Everything below belongs to this user.
fn give(path: &Path, uid: u32, gid: u32) {
    chown(path, Some(uid), Some(gid)).unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), uid, gid);
        }
    }
}

fn before(standby: &Throwaway, database: &Database) -> Setup {
    Setup::new(standby.port(), &database.name)
}

async fn whose(client: &mut Raw) -> String {
    let sql = "SELECT count(*) || ' of ' || min(body) || ' to ' || max(body) FROM items";
    let simple = client.query(sql).await;
    client.send(&[parse("", sql), bind(""), execute(), sync()].concat()).await;
    let extended = client.answer().await;
    assert_eq!((&simple.error, &simple.rows), (&extended.error, &extended.rows));
    simple.rows[0][0].clone().unwrap()
}

fn of(n: u32) -> String {
    format!("{ROWS_PER_ORGANIZATION} of org-{n} to org-{n}")
}

async fn code(client: &mut Raw, sql: &str) -> String {
    client.query(sql).await.error.map_or(String::new(), |error| error.0)
}

async fn serves(shared: &Shared) {
    let database = shared.database().await;
    let standby = follow(shared).await;
    for mode in ["transaction", "session"] {
        let size = if mode == "session" { 2 } else { 1 };
        let gate = before(&standby, &database).mode(mode).pool_size(size).run().await;
        let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
        for _ in 0..3 {
            assert_eq!((whose(&mut first).await, whose(&mut second).await), (of(1), of(2)), "{mode}");
        }
        // As on any standby.
        assert_eq!(code(&mut first, "UPDATE items SET counter = 1").await, "25006");
        assert_eq!(code(&mut first, "BEGIN READ WRITE").await, "0A000");
        // What is left is cleaned, what is forged is refused.
        assert_eq!(code(&mut first, "SET work_mem = '77MB'").await, "");
        assert_eq!(whose(&mut second).await, of(2));
        assert_ne!(second.query("SHOW work_mem").await.rows[0][0].as_deref(), Some("77MB"));
        let forged = format!(
            "DO $$ BEGIN PERFORM set_config('pgtenant' || '.seal', replace(current_setting('pgtenant.seal'), \
             '{}', '{}'), false); END $$; SELECT count(*) FROM items",
            org(1),
            org(2)
        );
        assert_eq!(code(&mut first, &forged).await, "42501");
    }
    let gate = before(&standby, &database).pool_size(1).run().await;
    let mut client = raw(&gate, 1).await;
    assert_eq!(code(&mut client, "DISCARD ALL").await, "");
    assert_eq!(whose(&mut client).await, of(1));
    let switch = format!("SET pgtenant.token = '{}'", gate.token(org(2)).sign());
    assert_eq!(code(&mut client, &switch).await, "");
    assert_eq!(whose(&mut client).await, of(2));
    let acting = gate.token(org(1)).claim("act", serde_json::json!({ "sub": "support" })).sign();
    assert_eq!(code(&mut client, &format!("SET pgtenant.token = '{acting}'")).await, "");
    assert_eq!(whose(&mut client).await, of(1));

    // What is written on the primary is seen there, under the same policies.
    let writer = Gate::with(&database).run().await;
    let mut writer = raw(&writer, 3).await;
    assert_eq!(code(&mut writer, "INSERT INTO items (body) VALUES ('org-3')").await, "");
    let mut reader = raw(&gate, 3).await;
    eventually("the row", async || {
        let seen = reader.query("SELECT count(*) FROM items").await;
        (seen.rows[0][0].clone() == Some((ROWS_PER_ORGANIZATION + 1).to_string())).then_some(())
    })
    .await;
    let checked = run(&["check", "--connect"], Some(gate.config()));
    assert!(
        checked.out.contains("as app: ok (sealed)") || shared.server.version_major() == 14,
        "{checked:?}"
    );
}

#[tokio::test]
async fn a_standby_serves_reads_under_the_context() {
    for shared in postgres::every_version() {
        serves(shared).await;
    }
}
