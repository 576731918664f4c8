//! A client's settings follow it, whichever server it gets, and nobody else finds them.

use tokio_postgres::Client;

use crate::harness::client::{Raw, bind, connect, execute, parse, sync, value};
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres::{self, Database};

/// One server for all; what `client` sees of a setting after somebody else had the server.
async fn shown(client: &Client, other: &Client, name: &str) -> String {
    value(other, "SELECT 1").await.unwrap();
    let sql = format!("SELECT COALESCE(current_setting('{name}', true), '')");
    value(client, &sql).await.unwrap().unwrap()
}

async fn gate(database: &Database) -> Gate {
    Gate::with(database).pool_size(1).run().await
}

async fn member(gate: &Gate, n: u32) -> Client {
    connect(gate, "app", &gate.token(org(n)).sign()).await
}

#[tokio::test]
async fn what_is_set_follows_its_client_however_it_was_set() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let (other, same) = (member(&gate, 2).await, member(&gate, 1).await);
    for (set, name, expected) in [
        ("SET statement_timeout = '7s'", "statement_timeout", "7s"),
        ("SET search_path = nowhere, public", "search_path", "nowhere, public"),
        ("SET app.tenant = 'it''s mine'", "app.tenant", "it's mine"),
        ("SET \"App\".\"Tenant\" TO mine", "app.tenant", "mine"),
        ("SELECT set_config('app.tenant', 'mine', false)", "app.tenant", "mine"),
        ("SELECT set_config('work_mem', '77MB', false)", "work_mem", "77MB"),
        ("SELECT 1; SET work_mem = '3MB'; SELECT 2", "work_mem", "3MB"),
        ("BEGIN; SET work_mem = '7MB'; COMMIT", "work_mem", "7MB"),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "transaction_isolation",
            "serializable",
        ),
        ("SET TIME ZONE 'Asia/Tokyo'", "timezone", "Asia/Tokyo"),
        ("/* a comment */ set /**/ Session work_mem = '5MB'", "work_mem", "5MB"),
        (
            "SET work_mem = '6MB'; SET app.a = 'x'; BEGIN; SET LOCAL work_mem = '9MB'; COMMIT",
            "work_mem",
            "6MB",
        ),
    ] {
        let client = member(&gate, 1).await;
        client.batch_execute(set).await.unwrap();
        for _ in 0..2 {
            assert_eq!(shown(&client, &other, name).await, expected, "{set}");
        }
        for stranger in [&same, &other] {
            assert_ne!(shown(stranger, &client, name).await, expected, "{set}");
        }
        // In the extended protocol too.
        let client = member(&gate, 1).await;
        for statement in set.split(';').map(str::trim) {
            client.execute(statement, &[]).await.unwrap();
        }
        assert_eq!(shown(&client, &other, name).await, expected, "{set}");
        assert_eq!(value(&client, "SELECT DISTINCT body FROM public.items").await.unwrap().unwrap(), "org-1");
    }
}

#[tokio::test]
async fn what_was_taken_back_does_not_follow() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let other = member(&gate, 2).await;
    for (set, name, expected) in [
        ("BEGIN; SET work_mem = '77MB'; ROLLBACK", "work_mem", "4MB"),
        ("BEGIN; SET LOCAL work_mem = '77MB'; COMMIT", "work_mem", "4MB"),
        ("BEGIN; SET LOCAL app.a = 'x'; COMMIT", "app.a", ""),
        ("BEGIN; SAVEPOINT s; SET work_mem = '77MB'; ROLLBACK TO s; COMMIT", "work_mem", "4MB"),
        ("SET work_mem = '77MB'; RESET work_mem", "work_mem", "4MB"),
        ("SET work_mem = '77MB'; RESET ALL", "work_mem", "4MB"),
        ("SET work_mem = '77MB'; SET work_mem TO DEFAULT", "work_mem", "4MB"),
        ("SET app.a = 'x'; RESET app.a", "app.a", ""),
        ("SELECT set_config('app.a', 'x', true)", "app.a", ""),
    ] {
        let client = member(&gate, 1).await;
        client.batch_execute(set).await.unwrap();
        assert_eq!(shown(&client, &other, name).await, expected, "{set}");
        // Taken back in a transaction of its own.
        if let Some((first, then)) = set.split_once("; RESET") {
            let client = member(&gate, 1).await;
            client.batch_execute(first).await.unwrap();
            assert_ne!(shown(&client, &other, name).await, expected, "{first}");
            client.batch_execute(&format!("RESET{then}")).await.unwrap();
            assert_eq!(shown(&client, &other, name).await, expected, "{set}");
        }
    }
    let client = member(&gate, 1).await;
    client.batch_execute("SET work_mem = '77MB'").await.unwrap();
    client.batch_execute("DISCARD ALL").await.unwrap();
    assert_eq!(shown(&client, &other, "work_mem").await, "4MB");
}

/// RESET goes back to what the client gave at start-up, as on PostgreSQL.
#[tokio::test]
async fn a_reset_goes_back_to_the_connection_string() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let other = member(&gate, 2).await;
    let mut raw = Raw::connect(&gate).await;
    let startup = [("options", "-c work_mem=8MB -c app.a=start"), ("application_name", "billing")];
    raw.startup("app", "app", &startup).await;
    raw.authenticate(&gate.token(org(1)).sign()).await;
    let see = "SELECT current_setting('work_mem') || current_setting('app.a') || current_setting('application_name')";
    for (sql, expected) in [
        ("SELECT 1", "8MBstartbilling"),
        ("SET work_mem = '9MB'; SET app.a = 'changed'", "9MBchangedbilling"),
        ("RESET work_mem", "8MBchangedbilling"),
        ("RESET ALL", "8MBstartbilling"),
        ("SET application_name = 'other'", "8MBstartother"),
        ("DISCARD ALL", "8MBstartbilling"),
    ] {
        assert_eq!(raw.query(sql).await.error, None, "{sql}");
        value(&other, "SELECT 1").await.unwrap();
        assert_eq!(raw.query(see).await.rows, [[Some(expected.to_owned())]], "{sql}");
    }
}

#[tokio::test]
async fn a_role_that_was_set_follows() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let admin = database.admin().await;
    let role = format!("team_{}", postgres::random_name());
    let make = format!("CREATE ROLE {role}; GRANT {role} TO app; GRANT app TO {role}");
    let make = make.replace(&format!("; GRANT app TO {role}"), "");
    admin.batch_execute(&make).await.unwrap();
    let (client, other) = (member(&gate, 1).await, member(&gate, 2).await);
    client.batch_execute(&format!("SET ROLE {role}")).await.unwrap();
    let seen = shown(&client, &other, "role").await;
    let others = shown(&other, &client, "role").await;
    client.batch_execute("RESET ROLE").await.unwrap();
    let back = shown(&client, &other, "role").await;
    admin.batch_execute(&format!("REVOKE {role} FROM app")).await.unwrap();
    drop((client, other, gate));
    admin.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
    assert_eq!((seen.as_str(), others.as_str(), back.as_str()), (role.as_str(), "none", "none"));
}

/// A SET that was prepared long before it runs; one whose name nobody can read.
#[tokio::test]
async fn a_set_that_comes_late_or_in_disguise_is_nobody_elses() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let (same, other) = (member(&gate, 1).await, member(&gate, 2).await);
    let mut raw = Raw::connect(&gate).await;
    raw.sign_in("app", "app", &gate.token(org(1)).sign()).await;
    raw.send(&[parse("late", "SET app.late = 'x'"), sync()].concat()).await;
    assert_eq!(raw.kinds().await, "1Z");
    value(&other, "SELECT 1").await.unwrap();
    raw.send(&[bind("late"), execute(), sync()].concat()).await;
    assert_eq!(raw.answer().await.error, None);
    value(&other, "SELECT 1").await.unwrap();
    let seen = raw.query("SELECT current_setting('app.late', true)").await;
    assert_eq!(seen.rows, [[Some("x".to_owned())]]);
    for disguise in [
        "SET U&\"\\0061pp\".late = 'y'",
        "DO $$ BEGIN PERFORM set_config('app.late', 'y', false); END $$",
        "SELECT set_config('app.' || 'late', 'y', false)",
        "SELECT set_config('pgtenant.' || 'seal', 'y', false)",
        "DO $$ BEGIN SET pgtenant.claims = 'y'; END $$",
    ] {
        assert_eq!(raw.query(disguise).await.error, None, "{disguise}");
        for stranger in [&same, &other] {
            let sql = "SELECT COALESCE(current_setting('app.late', true), '')";
            assert_eq!(value(stranger, sql).await.unwrap().unwrap(), "", "{disguise}");
            assert!(value(stranger, "SELECT DISTINCT body FROM items").await.is_ok(), "{disguise}");
        }
        let own = raw.query("SELECT DISTINCT body FROM items").await;
        assert_eq!(own.rows, [[Some("org-1".to_owned())]], "{disguise}");
    }
    // What can be seen is refused at once.
    for plain in
        ["SET pgtenant.seal = 'y'", "RESET pgtenant.claims", "SELECT set_config('pgtenant.seal', '', true)"]
    {
        assert_eq!(raw.query(plain).await.error.unwrap().0, "42501", "{plain}");
    }
}

/// Settings in another encoding, and more of them than can follow.
#[tokio::test]
async fn odd_and_many_settings_harm_nobody() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let other = member(&gate, 2).await;
    let mut latin = Raw::connect(&gate).await;
    latin.startup("app", "app", &[("client_encoding", "LATIN1")]).await;
    latin.authenticate(&gate.token(org(1)).sign()).await;
    latin.send(&crate::harness::client::message(b'Q', b"SET app.name = 'Jos\xe9'\0")).await;
    assert_eq!(latin.answer().await.error, None);
    value(&other, "SELECT 1").await.unwrap();
    let seen = latin
        .query("SELECT ascii(substr(current_setting('app.name'), 4)) || current_setting('client_encoding')")
        .await;
    assert_eq!(seen.rows, [[Some("233LATIN1".to_owned())]]);
    let client = member(&gate, 1).await;
    for n in 0..70 {
        client.batch_execute(&format!("SET app.n{n} = 'x'")).await.unwrap();
    }
    client.batch_execute(&format!("SET app.n0 = '{}'", "y".repeat(100_000))).await.unwrap();
    assert_eq!(shown(&client, &other, "app.n0").await, "x", "too long: the last one that could follow");
    assert_eq!(value(&client, "SELECT DISTINCT body FROM items").await.unwrap().unwrap(), "org-1");
}

#[tokio::test]
async fn a_client_is_told_the_truth_of_its_settings_after_a_reset() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let other = member(&gate, 2).await;
    let mut client = Raw::connect(&gate).await;
    client.startup("app", "app", &[("application_name", "mine"), ("TimeZone", "Asia/Tokyo")]).await;
    client.authenticate(&gate.token(org(1)).sign()).await;
    let mut told = std::collections::BTreeMap::new();
    for sql in [
        "SET application_name = 'other'",
        "RESET application_name",
        "SET TimeZone = 'UTC'; SET application_name = 'x'",
        "RESET ALL",
        "BEGIN; SET LOCAL application_name = 'y'; COMMIT",
        "SET application_name = 'z'; DISCARD TEMP",
        "BEGIN; RESET application_name; ROLLBACK",
    ] {
        client.send(&crate::harness::client::message(b'Q', format!("{sql}\0").as_bytes())).await;
        value(&other, "SELECT 1").await.unwrap();
        let show = b"SELECT current_setting('application_name') || ' ' || current_setting('TimeZone')\0";
        client.send(&crate::harness::client::message(b'Q', show)).await;
        let (mut ready, mut shown) = (0, String::new());
        while ready < 2 {
            let (kind, body) = client.read_message().await.unwrap();
            match kind {
                b'S' => {
                    let text = String::from_utf8(body).unwrap();
                    let mut parts = text.split('\0').map(str::to_owned);
                    told.insert(parts.next().unwrap(), parts.next().unwrap());
                }
                b'Z' => ready += 1,
                b'D' => shown = String::from_utf8_lossy(&body[6..]).into_owned(),
                _ => {}
            }
        }
        let name = told.get("application_name").map_or("mine", String::as_str);
        let zone = told.get("TimeZone").map_or("Asia/Tokyo", String::as_str);
        assert_eq!(format!("{name} {zone}"), shown, "{sql}");
    }
}

#[tokio::test]
async fn what_cannot_be_told_is_left_to_nobody() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let mut client = Raw::connect(&gate).await;
    let mut other = Raw::connect(&gate).await;
    for raw in [&mut client, &mut other] {
        // Clients of equal terms.
        raw.sign_in("plain", "app", "plain-password").await;
    }
    let query = |sql: &str| crate::harness::client::message(b'Q', format!("{sql}\0").as_bytes());
    let long = format!("SELECT set_config('search_path', 'evil', false) /* {} */", "x".repeat(40_000));
    let bound = [
        parse("", "SELECT set_config($1, $2, false)"),
        crate::harness::client::message(b'B', b"\0\0\0\0\0\x02\0\0\0\x05app.u\0\0\0\x0242\0\0"),
        execute(),
        sync(),
    ]
    .concat();
    let looks = "SELECT current_setting('search_path') || current_setting('client_encoding') \
                 || COALESCE(current_setting('app.u', true), '') || COALESCE(current_setting('local.x', true), '')";
    let clean = other.query(looks).await.rows[0][0].clone();
    for (n, bytes) in [
        vec![query("SELECT set_config('client_' || 'encoding', 'LATIN1', false)")],
        vec![query("SELECT set_config('search_' || 'path', 'evil', false)")],
        vec![bound],
        vec![query("SET local.x = 'y'")],
        vec![query(&long)],
        vec![query("BEGIN"), query(&long), query("COMMIT")],
        // In two pieces.
        vec![query("BEGIN"), query("SELECT set_config('search_path', 'evil', false)"), query("COMMIT")],
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = Raw::connect(&gate).await;
        client.sign_in("plain", "app", "plain-password").await;
        for part in &bytes {
            let (first, second) = part.split_at(part.len().min(20));
            client.send(first).await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            client.send(second).await;
            assert_eq!(client.answer().await.error, None);
        }
        assert_eq!(other.query(looks).await.rows[0][0], clean, "case {n}");
    }
}

#[tokio::test]
async fn an_empty_setting_is_not_a_missing_one() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let (client, other) = (member(&gate, 1).await, member(&gate, 2).await);
    for sql in ["SET app.empty = ''", "SET app.gone = 'v'", "RESET app.gone"] {
        client.batch_execute(sql).await.unwrap();
    }
    value(&other, "SELECT 1").await.unwrap();
    for name in ["app.empty", "app.gone"] {
        let seen = value(&client, &format!("SELECT current_setting('{name}')")).await.unwrap();
        assert_eq!(seen.as_deref(), Some(""), "{name}");
    }
}
