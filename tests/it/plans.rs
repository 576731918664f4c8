//! What one client had PostgreSQL plan is nobody else's: neither prepared statements nor plans of functions, which remember
//! the settings and the context that they were made under.

use crate::harness::client::{Raw, bind, execute, message, parse, raw, sync};
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres;
use crate::switching::{HIDDEN, gate, one, plain, prepare, run};

#[tokio::test]
async fn a_statement_is_read_under_nobody_elses_settings() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
    let text = "SELECT count(*) FROM items WHERE (body = NULL) IS NOT NULL";
    assert_eq!(plain(&mut first, "SELECT hidden('SET transform_null_equals = on')").await.error, None);
    // Parsed by the first one it would mean another thing; it must not stay for the second.
    first.send(&[parse("s", text), bind("s"), execute(), sync()].concat()).await;
    assert_ne!(one(&first.answer().await), "0");
    second.send(&[parse("s", text), bind("s"), execute(), sync()].concat()).await;
    assert_eq!(one(&second.answer().await), "0");
    // Settings that are the client's own: what was read under one client's is not the other's.
    let date = "SELECT '01/02/2026'::date = '2026-02-01'::date";
    let mut european = Raw::connect(&gate).await;
    european.startup("app", "app", &[("datestyle", "ISO, DMY")]).await;
    european.authenticate(&gate.token(org(1)).sign()).await;
    for _ in 0..3 {
        for (raw, expected) in [(&mut european, "t"), (&mut second, "f")] {
            raw.send(&[parse("d", date), bind("d"), execute(), message(b'C', b"Sd\0"), sync()].concat())
                .await;
            assert_eq!(one(&raw.answer().await), expected);
        }
    }
}

#[tokio::test]
async fn a_functions_plan_is_not_another_clients() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let gate = gate(&database).await;
        let epoch = "SELECT extract(epoch FROM ''2026-01-01 00:00''::timestamptz)::bigint::text";
        let functions = format!(
            "CREATE FUNCTION newyear() RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN ({epoch}); END';
             CREATE FUNCTION newyear_sql() RETURNS SETOF text LANGUAGE sql VOLATILE AS '{epoch}';"
        );
        database.admin().await.batch_execute(&functions).await.unwrap();
        for is_plain in [true, false] {
            for text in ["SELECT newyear()", "SELECT newyear_sql()"] {
                let (mut tokyo, mut other) = (Raw::connect(&gate).await, raw(&gate, 2).await);
                tokyo.startup("app", "app", &[("TimeZone", "Asia/Tokyo")]).await;
                tokyo.authenticate(&gate.token(org(1)).sign()).await;
                let own = one(&plain(&mut other, text).await);
                for _ in 0..2 {
                    assert_eq!(one(&plain(&mut tokyo, text).await), "1767193200", "{text}");
                    let seen = if is_plain { plain(&mut other, text).await } else { other.query(text).await };
                    assert_eq!(one(&seen), own, "{text} ({is_plain})");
                    assert_ne!(own, "1767193200", "{text}");
                }
            }
        }
    }
}

/// What is executed before the other client's statement, by which settings; the statement; what the other one must see.
const BENT: [(&str, &str, &str); 5] = [
    ("datestyle = 'ISO, DMY'", "SELECT '01/02/2026'::date = '2026-02-01'::date FROM items LIMIT 1", "f"),
    ("extra_float_digits = -14", "SELECT (0.1::float8 + 0.2::float8)::text", "0.30000000000000004"),
    ("transform_null_equals = on", "SELECT count(*) FROM items WHERE (body = NULL) IS NOT NULL", "0"),
    ("search_path = pg_catalog, information_schema", "SELECT to_regclass('items') IS NOT NULL", "t"),
    ("bytea_output = 'escape'", "SELECT '\\x00'::bytea::text", "\\x00"),
];

#[tokio::test]
async fn a_statement_that_all_have_prepared_is_bent_by_nobody() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let (gate, admin) = (gate(&database).await, database.admin().await);
        for (setting, text, expected) in BENT {
            let (name, value) = setting.split_once(" = ").unwrap();
            let value = value.trim_matches('\'');
            // In sight and out of it; and where its table changes, so that PostgreSQL reads the text anew.
            for hides in [false, true] {
                let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
                for raw in [&mut first, &mut second] {
                    prepare(raw, "s", text).await;
                }
                assert_eq!(one(&run(&mut second, "s").await), expected, "{text}");
                admin.batch_execute("ALTER TABLE items SET (fillfactor = 90)").await.unwrap();
                let set = if hides {
                    format!("SELECT U&\"\\0073et_config\"('{name}', '{value}', true)")
                } else {
                    format!("SET LOCAL {setting}")
                };
                let begin = [parse("", "BEGIN"), bind(""), execute(), parse("", &set), bind(""), execute()];
                let end = [bind("s"), execute(), parse("", "COMMIT"), bind(""), execute(), sync()];
                first.send(&[begin.concat(), end.concat()].concat()).await;
                assert_eq!(first.answer().await.error, None, "{set}");
                for _ in 0..2 {
                    assert_eq!(one(&run(&mut second, "s").await), expected, "{set}: {text}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_temporary_type_breaks_nothing() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let gate = gate(&database).await;
        let types = "CREATE TYPE mood AS ENUM ('happy'); CREATE DOMAIN email AS text CHECK (VALUE <> '');
             CREATE FUNCTION feels() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN 'happy'::mood; END $$";
        database.admin().await.batch_execute(types).await.unwrap();
        let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
        for raw in [&mut first, &mut second] {
            prepare(raw, "s", "SELECT 'happy'::mood::text").await;
            prepare(raw, "e", "SELECT length('a'::email)").await;
        }
        let make = "CREATE TYPE pg_temp.mood AS ENUM (''happy''); CREATE DOMAIN pg_temp.email AS text";
        assert_eq!(plain(&mut first, &format!("SELECT hidden('{make}')")).await.error, None);
        for name in ["s", "e"] {
            run(&mut first, name).await;
        }
        plain(&mut first, "SELECT feels()").await;
        for _ in 0..2 {
            assert_eq!(one(&run(&mut second, "s").await), "happy");
            assert_eq!(one(&run(&mut second, "e").await), "1");
            assert_eq!(one(&plain(&mut second, "SELECT feels()").await), "happy");
        }
    }
}

/// What only reads and writes rows has nothing dropped, but for texts in which somebody's data may be.
#[tokio::test]
async fn what_nobody_can_have_bent_is_kept() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let gate = gate(&database).await;
        let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
        let (kept, forgotten) =
            ("SELECT DISTINCT body FROM items", "SELECT body FROM items WHERE body <> 'x'");
        for raw in [&mut first, &mut second] {
            prepare(raw, "k", kept).await;
            prepare(raw, "f", forgotten).await;
        }
        for _ in 0..3 {
            for (raw, body) in [(&mut first, "org-1"), (&mut second, "org-2")] {
                assert_eq!(one(&run(raw, "k").await), body);
                assert_eq!(one(&run(raw, "f").await), body);
            }
        }
        // Since before this second client had the server for the last time.
        let look = format!(
            "SELECT statement = '{kept}', now() - prepare_time > '30 ms' FROM pg_prepared_statements \
             WHERE statement LIKE '% body %' AND NOT statement LIKE '%LIKE%' ORDER BY 1"
        );
        tokio::time::sleep(std::time::Duration::from_millis(40)).await;
        run(&mut first, "k").await;
        let seen = plain(&mut second, &look).await;
        let row = vec![Some("t".to_owned()), Some("t".to_owned())];
        assert_eq!(seen.rows, [row], "on PostgreSQL {}", shared.server.version_major());
        // That text was not one of those: everything is dropped.
        assert_eq!(plain(&mut first, &look).await.rows, Vec::<Vec<_>>::new());
        assert_eq!(gate.log().matches("a server was closed").count(), 0, "{}", gate.log());
    }
}

/// Its value in a plan would be one organization's, and the plan another one's.
#[tokio::test]
async fn a_function_that_lies_about_being_immutable_gives_nothing_away() {
    let database = postgres::shared().database().await;
    let admin = database.admin().await;
    admin.batch_execute(HIDDEN).await.unwrap();
    for how in [
        "LANGUAGE sql IMMUTABLE AS 'SELECT split_part(current_setting(''pgtenant.seal''), e''\\n'', 6)'",
        "LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN pgtenant.organization_id()::text; END'",
        "LANGUAGE sql IMMUTABLE AS 'SELECT organization_id::text FROM items LIMIT 1'",
        "LANGUAGE sql IMMUTABLE AS 'SELECT (SELECT t::text) FROM (TABLE items LIMIT 1) t'",
        "LANGUAGE sql IMMUTABLE AS 'SELECT table_to_xml(''items'', true, true, '''')::text'",
    ] {
        let make = format!(
            "DROP FUNCTION IF EXISTS mine() CASCADE; CREATE FUNCTION mine() RETURNS text {how};
             CREATE VIEW own AS SELECT mine() AS own; GRANT SELECT ON own TO app"
        );
        admin.batch_execute(&make).await.unwrap();
        let gate = Gate::with(&database).pool_size(1).run().await;
        let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
        for text in ["SELECT mine()", "SELECT own FROM own"] {
            for raw in [&mut first, &mut second] {
                prepare(raw, text, text).await;
            }
            for _ in 0..3 {
                // More often than PostgreSQL plans anew.
                for _ in 0..8 {
                    assert!(one(&run(&mut first, text).await).contains(&org(1)), "{how}");
                }
                let seen = one(&run(&mut second, text).await);
                assert!(!seen.contains(&org(1)) && seen.contains(&org(2)), "{how}: {seen}");
            }
        }
    }
}

/// The CHECK of a domain in an array's element is executed by Parse.
#[tokio::test]
async fn code_that_a_parse_executes_leaves_nothing_either() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let gate = gate(&database).await;
        let domain = "CREATE DOMAIN checked AS text CHECK (hidden(VALUE) = 1)";
        database.admin().await.batch_execute(domain).await.unwrap();
        let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
        plain(&mut second, "SELECT 1").await;
        let text = "SELECT count(*) FROM items WHERE (body = NULL) IS NOT NULL";
        let hidden = "SELECT '{\"SET transform_null_equals = on\"}'::checked[]";
        prepare(&mut first, "x", hidden).await;
        prepare(&mut first, "s", text).await;
        prepare(&mut second, "s", text).await;
        assert_eq!(one(&run(&mut second, "s").await), "0");
    }
}

#[tokio::test]
async fn texts_of_others_are_not_seen_nor_their_results_changed() {
    let database = postgres::shared().database().await;
    let gate = gate(&database).await;
    let (mut first, mut second) = (raw(&gate, 1).await, raw(&gate, 2).await);
    prepare(&mut first, "s", "SELECT 'secret of org-1'").await;
    run(&mut first, "s").await;
    let look = "SELECT count(*) FROM pg_prepared_statements WHERE strpos(statement, 'secret' || ' of') > 0";
    assert_eq!(one(&plain(&mut second, look).await), "0");
    // Who shadows a table in a transaction of its own is told that its result changed; nobody else is.
    let text = "SELECT DISTINCT body FROM items";
    for raw in [&mut first, &mut second] {
        prepare(raw, "b", text).await;
        raw.send(&[message(b'D', b"Sb\0"), sync()].concat()).await;
        assert_eq!(raw.answer().await.error, None);
        run(raw, "b").await;
    }
    first.query("BEGIN").await;
    run(&mut first, "b").await;
    first.query("CREATE TEMP TABLE items (body int) ON COMMIT DROP").await;
    let bent = run(&mut first, "b").await;
    first.query("ROLLBACK").await;
    assert!(bent.error.is_some_and(|(code, _)| code == "0A000"));
    assert_eq!(one(&run(&mut second, "b").await), "org-2");
}
