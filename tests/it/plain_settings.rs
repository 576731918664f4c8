//! `[context.settings]`: policies that read plain settings, the guard over these, and what hardening takes away.

use crate::commands::{Ran, run};
use crate::harness::client::{Raw, bind, execute, message, parse, raw, sync};
use crate::harness::gate::{Gate, Setup, Written};
use crate::harness::org;
use crate::harness::postgres::{self, Database, ROWS_PER_ORGANIZATION, password_of};

/// What a policy reads in place of the seal.
const PLAIN: &str = "
    DROP POLICY organization ON items;
    CREATE POLICY organization ON items AS RESTRICTIVE
        USING (organization_id = NULLIF(current_setting('app.organization', true), '')::uuid);
    ALTER TABLE items ALTER organization_id SET DEFAULT NULLIF(current_setting('app.organization', true), '')::uuid";

fn settings(setup: Setup) -> Setup {
    setup.toml(
        "[context.settings]\n\"app.organization\" = \"$organization\"\n\"App.Project\" = \"$project\"\n\
         \"app.who\" = \"$subject\"\n\"app.tier\" = \"$claims.plan.tier\"\n\"app.seats\" = \"$claims.plan.seats\"\n\
         \"app.price\" = \"$$9\"\n\"request.jwt.claims\" = \"$claims\"\n\"request.roles\" = \"$roles\"",
    )
}

async fn plain(database: &Database) {
    database.admin().await.batch_execute(PLAIN).await.unwrap();
}

async fn one(client: &mut Raw, sql: &str) -> String {
    let answer = client.query(sql).await;
    assert_eq!(answer.error, None, "{sql}");
    answer.rows[0][0].clone().unwrap_or_default()
}

async fn whose(client: &mut Raw) -> String {
    one(client, "SELECT COALESCE(min(body) || ' to ' || max(body), 'nobody') || ', ' || count(*) FROM items")
        .await
}

fn of(n: u32) -> String {
    format!("org-{n} to org-{n}, {ROWS_PER_ORGANIZATION}")
}

/// The code of what a client gets for a text, in both protocols.
async fn refused(client: &mut Raw, sql: &str) -> [String; 2] {
    let simple = client.query(sql).await.error.map_or(String::new(), |error| error.0);
    client.send(&[parse("", sql), bind(""), execute(), sync()].concat()).await;
    [simple, client.answer().await.error.map_or(String::new(), |error| error.0)]
}

#[tokio::test]
async fn a_context_brings_its_settings_and_takes_them_away() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        plain(&database).await;
        let setup =
            settings(Gate::with(&database)).pool_size(1).role("reports", &["jwt", "scram"], "optional");
        let gate = setup.run().await;
        let plan = serde_json::json!({ "tier": "gold", "seats": 3 });
        let token = gate.token(org(1)).subject("zo\u{eb}").roles(&["admin"]).claim("plan", plan);
        let mut first = Raw::connect(&gate).await;
        first.startup("app", "app", &[("client_encoding", "LATIN1")]).await;
        first.password(&token.sign()).await;
        while first.read_message().await.unwrap().0 != b'Z' {}
        let mut second = raw(&gate, 2).await;
        for _ in 0..2 {
            assert_eq!((whose(&mut first).await, whose(&mut second).await), (of(1), of(2)));
            let sql = "SELECT concat_ws('|', current_setting('app.who') = 'zo' || chr(235), \
                       current_setting('app.project'), current_setting('app.tier'), current_setting('app.seats'), \
                       current_setting('app.price'), current_setting('request.jwt.claims')::json ->> 'org_id', \
                       current_setting('request.roles'))";
            let expected = format!("t||gold|3|$9|{}|[\"admin\"]", org(1));
            assert_eq!(one(&mut first, sql).await, expected);
            assert_eq!(one(&mut second, "SELECT current_setting('app.tier')").await, "");
            // What undoes all settings does not outlive its transaction.
            assert_eq!(first.query("RESET ALL").await.error, None);
            assert_eq!(first.query("DISCARD ALL").await.error, None);
        }
        switched_within_a_transaction(&gate, &mut first).await;
        // A user who may do without a token finds nothing of anyone's, whatever was there before.
        let mut reports = Raw::connect(&gate).await;
        reports.sign_in("reports", "app", &gate.token(org(3)).sign()).await;
        assert_eq!(whose(&mut reports).await, of(3));
        let sql = format!(
            "SET pgtenant.token = '{}'",
            gate.token(org(4)).project(crate::harness::project(4, 1)).sign()
        );
        assert_eq!(reports.query(&sql).await.error, None);
        assert_eq!(
            one(&mut reports, "SELECT current_setting('app.project')").await,
            crate::harness::project(4, 1)
        );
        let mut plain = Raw::connect(&gate).await;
        plain.sign_in("plain", "app", &password_of("plain")).await;
        let sql = "SELECT COALESCE(current_setting('app.organization', true), '')";
        assert_eq!(one(&mut plain, sql).await, "");
    }
}

async fn switched_within_a_transaction(gate: &Gate, client: &mut Raw) {
    let switch =
        |n: u32, scope: &str| format!("SET {scope} pgtenant.token = '{}'", gate.token(org(n)).sign());
    assert_eq!(client.query("BEGIN").await.error, None);
    assert_eq!(client.query(&switch(2, "LOCAL")).await.error, None);
    assert_eq!(whose(client).await, of(2));
    assert_eq!(client.query("SAVEPOINT s").await.error, None);
    assert_eq!(client.query(&switch(3, "")).await.error, None);
    assert_eq!(whose(client).await, of(3));
    assert_eq!(client.query("ROLLBACK TO s").await.error, None);
    assert_eq!(whose(client).await, of(2));
    assert_eq!(client.query("COMMIT").await.error, None);
    assert_eq!(whose(client).await, of(1));
}

#[tokio::test]
async fn a_session_without_a_context_has_none_of_the_settings() {
    let database = postgres::shared().database().await;
    plain(&database).await;
    for mode in ["session", "transaction"] {
        let gate =
            settings(Gate::with(&database)).mode(mode).role("reports", &["scram"], "optional").run().await;
        let mut client = Raw::connect(&gate).await;
        client.sign_in("reports", "app", &password_of("reports")).await;
        for _ in 0..2 {
            assert_eq!(whose(&mut client).await, "nobody, 0");
            let set = format!("SET pgtenant.token = '{}'", gate.token(org(2)).sign());
            assert_eq!(client.query(&set).await.error, None);
            assert_eq!(whose(&mut client).await, of(2));
            assert_eq!(client.query("RESET pgtenant.token").await.error, None);
        }
        assert_eq!(client.query("BEGIN").await.error, None);
        assert_eq!(
            client.query(&format!("SET pgtenant.token = '{}'", gate.token(org(2)).sign())).await.error,
            None
        );
        assert_eq!(whose(&mut client).await, of(2));
        assert_eq!(client.query("RESET pgtenant.token").await.error, None);
        assert_eq!(whose(&mut client).await, "nobody, 0");
        assert_eq!(client.query("COMMIT").await.error, None);
    }
}

/// Sequences by which a client would run as another organization, if nobody read its texts.
#[tokio::test]
async fn no_client_changes_them_by_anything_that_can_be_seen() {
    let database = postgres::shared().database().await;
    plain(&database).await;
    let gate = settings(Gate::with(&database)).pool_size(2).run().await;
    let mut client = raw(&gate, 1).await;
    let foreign = org(2);
    let long = format!("/* {} */", "x".repeat(100_000));
    for sql in [
        format!("SET app.organization = '{foreign}'"),
        format!("{long} SET app.organization = '{foreign}'"),
        format!("SELECT set_config('app.organization', '{foreign}', {long} false)"),
        format!("SELECT 'a\\'; SET app.organization = '{foreign}' --'"),
        format!("SET U&\"!0061pp\" UESCAPE '!'.organization = '{foreign}'"),
        format!("DO $$ BEGIN PERFORM set_config('app.organization', '{foreign}', false); END $$"),
        format!(
            "SELECT query_to_xml('SELECT set_config(''app.organization'', ''{foreign}'', false)', true, true, '')"
        ),
        format!("SELECT set_config('app.' || 'organization', '{foreign}', false)"),
        format!("COPY (SELECT set_config('app.organization', '{foreign}', false)) TO STDOUT"),
        format!("EXPLAIN ANALYZE SELECT set_config('app.organization', '{foreign}', false)"),
        format!("ALTER ROLE app SET app.organization = '{foreign}'"),
        "RESET request.jwt.claims".to_owned(),
        "SET client_encoding = 'SJIS'".to_owned(),
    ] {
        let start = &sql[..sql.len().min(80)];
        assert_eq!(refused(&mut client, &sql).await, ["42501", "42501"], "{start}");
        assert_eq!(whose(&mut client).await, of(1), "{start}");
        assert_eq!(client.query("BEGIN").await.error, None);
        assert_eq!(client.query(&sql).await.error.unwrap().0, "42501", "{start}");
        assert_eq!(client.query("SELECT 1").await.error.unwrap().0, "25P02");
        assert_eq!(client.query("ROLLBACK").await.error, None);
    }
    // Names that come as parameters.
    let name = |value: &str| {
        let mut body = b"\0\0\0\0\0\x02".to_vec();
        for value in [value, &foreign] {
            body.extend((value.len() as u32).to_be_bytes());
            body.extend(value.as_bytes());
        }
        body.extend([0, 0]);
        message(b'B', &body)
    };
    for (given, code) in [
        ("app.organization", "42501"),
        ("APP.Organization ", "42501"),
        ("pgtenant.seal", "42501"),
        ("app.mine", ""),
    ] {
        let sql = "SELECT set_config($1::text, $2, false)";
        client.send(&[parse("", sql), name(given), execute(), sync()].concat()).await;
        assert_eq!(client.answer().await.error.map_or(String::new(), |error| error.0), code, "{given}");
        assert_eq!(whose(&mut client).await, of(1), "{given}");
    }
    // Texts of more than can be read, and long ones that are harmless.
    let harmless = format!("SELECT length('{}')", "y".repeat(200_000));
    assert_eq!(one(&mut client, &harmless).await, "200000");
    let endless = format!("SELECT length('{}')", "y".repeat(5_000_000));
    assert_eq!(client.query(&endless).await.error.unwrap().0, "54000");
    assert_eq!(whose(&mut client).await, of(1));
    // Start-up.
    for (key, value) in [
        ("app.organization", foreign.as_str()),
        ("options", "-c App.Organization=x"),
        ("client_encoding", "BIG5"),
    ] {
        let mut stranger = Raw::connect(&gate).await;
        stranger.startup("app", "app", &[(key, value)]).await;
        assert_eq!(stranger.expect_error().await.0, "42501", "{key}");
    }
}

fn install(config: &Written, url: &str, args: &[&str]) -> Ran {
    run(&[&["install", "--database", url, "--role", "app"], args].concat(), Some(config))
}

/// Ways past the guard that a hostile review found, in both modes, hardened or not.
#[tokio::test]
async fn nor_by_what_is_the_proxys_own_or_too_long_to_be_read() {
    for harden in [false, true] {
        let database = postgres::shared().database().await;
        plain(&database).await;
        let setup = || settings(Gate::with(&database)).pool_size(2);
        let options: &[&str] = if harden { &["--harden"] } else { &[] };
        let arguments = [&["install", "--database", &database.url, "--role", "app"][..], options].concat();
        let done = run(&arguments, Some(&setup().write()));
        assert_eq!(done.code, 0, "{done:?}");
        for mode in ["transaction", "session"] {
            let gate = setup().mode(mode).run().await;
            let mut client = raw(&gate, 1).await;
            let foreign = org(2);
            let hidden = [
                b"SELECT E'\x83\x5c'; SET app.organization = $$".as_slice(),
                foreign.as_bytes(),
                b"$$; SELECT 1 --'\0",
            ];
            for opens in [
                "SELECT pgtenant.put_back('client_encoding', 'SJIS')".to_owned(),
                format!("EXECUTE pgtenant_bind(0.5, '', '{{\"settings\":{{\"app.organization\":\"{foreign}\"}}}}', 'x')"),
                format!("EXECUTE pgtenant_settings('app.organization', '{foreign}')"),
                format!(
                    "CREATE AGGREGATE pg_temp.a(text, boolean) (sfunc = set_config, stype = text, initcond = 'app.organization'); \
                     SELECT pg_temp.a('{foreign}', false)"
                ),
                "SELECT query_to_xml('select pgtenant.put' || '_back(''client_encoding'', ''SJIS'')', true, false, '')".to_owned(),
            ] {
                client.query("BEGIN").await;
                let opened = client.query(&opens).await.error.map(|error| error.0);
                assert!(opened.as_deref() != Some("XX000") && (opened.is_some() || !opens.contains("pgtenant_")), "{opens}");
                client.send(&message(b'Q', &hidden.concat())).await;
                client.answer().await;
                let seen = client.query("SELECT DISTINCT body FROM items").await.rows;
                assert!(seen.is_empty() || seen == [[Some("org-1".to_owned())]], "{mode} {harden} {opens}: {seen:?}");
                client.query("ROLLBACK").await;
            }
            let long = format!("/*{}*/SET app.organization = '{foreign}'", "x".repeat(40_000));
            client.send(&[parse("", &long), bind(""), execute(), sync()].concat()).await;
            assert!(client.answer().await.error.is_some(), "{mode}");
            let by_parameter = parse("", "SELECT set_config($1, $2, false)");
            let values = b"\0\0\0\0\0\x02\0\0\0\x0fclient_encoding\0\0\0\x04SJIS\0\0";
            client.send(&[by_parameter, message(b'B', values), execute(), sync()].concat()).await;
            assert_eq!(client.answer().await.error.unwrap().0, "42501");
            let typed =
                message(b'P', b"\0SELECT set_config($1::text, $2, false)\0\0\x02\0\0\0\x11\0\0\0\x19");
            client.send(&[typed, sync()].concat()).await;
            assert_eq!(client.answer().await.error.unwrap().0, "42501");
            assert_eq!(whose(&mut client).await, of(1), "{mode}");
        }
    }
}

#[tokio::test]
async fn hardening_takes_what_would_get_past_the_guard() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        plain(&database).await;
        // As it is from PostgreSQL 15 on.
        database.admin().await.batch_execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC").await.unwrap();
        let setup = || settings(Gate::with(&database)).pool_size(1);
        let written = setup().write();
        let before = run(&["check", "--connect"], Some(&written));
        assert_eq!(before.code, 1, "{before:?}");
        assert!(
            before.out.contains("as app: 1 found (open)") && before.out.contains("--harden"),
            "{before:?}"
        );
        for _ in 0..2 {
            let done = install(&written, &database.url, &["--harden"]);
            assert_eq!((done.code, done.err.as_str()), (0, ""), "{done:?}");
            assert!(done.out.contains("hardened"), "{done:?}");
        }
        let after = run(&["check", "--connect"], Some(&written));
        assert_eq!(after.code, 0, "{after:?}");
        assert!(after.out.contains("as app: ok (guarded)"), "{after:?}");
        let gate = setup().run().await;
        let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
        for _ in 0..2 {
            assert_eq!((whose(&mut first).await, whose(&mut second).await), (of(1), of(2)));
            // Its own settings follow a client as ever.
            assert_eq!(first.query("SET app.mine = 'x'; SET work_mem = '7MB'").await.error, None);
            assert_eq!(whose(&mut second).await, of(2));
            let sql = "SELECT current_setting('app.mine') || current_setting('work_mem')";
            assert_eq!(one(&mut first, sql).await, "x7MB");
        }
        switched_within_a_transaction(&gate, &mut first).await;
        for sql in [
            "DO $$ BEGIN EXECUTE 'SET app' || '.organization = 1'; END $$",
            "SELECT set_config('app.mine', 'x', false)",
            "SELECT query_to_xml('SELECT set_' || 'config(''app.organization'', ''x'', false)', true, true, '')",
            "SELECT setseed(0.5)",
            "SELECT pg_terminate_backend(1)",
            "SELECT lo_create(0)",
            "SELECT pg_notify('a', 'b')",
            "BEGIN; CREATE TEMP TABLE t (a int)",
            "SELECT pgtenant.put_back('APP.organization', 'x')",
            "SELECT pgtenant.put_back('pgtenant.seal', 'x')",
            "SELECT pgtenant.bind(NULL, 'forged', '{}', false)",
        ] {
            assert_eq!(first.query(sql).await.error.unwrap().0, "42501", "{sql}");
            first.query("ROLLBACK").await;
            assert_eq!(whose(&mut first).await, of(1), "{sql}");
        }
        // A seal that is its own it may bind again, and no context: neither is another's.
        let sql = "SELECT pgtenant.bind(NULL, current_setting('pgtenant.seal'), current_setting('pgtenant.claims'), false)";
        assert_eq!(first.query(sql).await.error, None);
        let answer = first
            .query("BEGIN; SELECT pgtenant.bind(NULL, '', '{}', true); SELECT count(*) FROM items")
            .await;
        assert_eq!(answer.rows.last().unwrap()[0].as_deref(), Some("0"));
        first.query("ROLLBACK").await;
        assert_eq!((whose(&mut first).await, whose(&mut second).await), (of(1), of(2)));
        // Roles without tenants keep everything.
        let mut plain = Raw::connect(&gate).await;
        plain.sign_in("plain", "app", &password_of("plain")).await;
        assert_eq!(one(&mut plain, "SELECT set_config('app.organization', 'mine', false)").await, "mine");
        assert_eq!(plain.query("DO $$ BEGIN END $$").await.error, None);
    }
}

#[tokio::test]
async fn hardening_that_does_not_hold_is_refused() {
    let database = postgres::shared().database().await;
    let admin = database.admin().await;
    admin.batch_execute("GRANT EXECUTE ON FUNCTION set_config TO app").await.unwrap();
    let written = settings(Gate::with(&database)).write();
    let refused = install(&written, &database.url, &["--harden"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("still has what hardening takes"), "{refused:?}");
    let sql = "SELECT has_language_privilege('app', 'plpgsql', 'USAGE')";
    assert!(admin.query_one(sql, &[]).await.unwrap().get::<_, bool>(0), "something was changed");
}
