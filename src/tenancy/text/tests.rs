//! Texts that change settings, and texts that only look like it.

use proptest::prelude::*;

use super::*;

fn read(sql: &str) -> Touched {
    let mut touched = Touched::default();
    touched.add(&Effects::of(sql.as_bytes(), true).touched);
    touched
}

/// session, local, opaque, names
fn told(sql: &str) -> (bool, usize, bool, String) {
    let touched = read(sql);
    let names = touched.names.into_iter().collect::<Vec<_>>().join(",");
    (touched.session, touched.local, touched.opaque, names)
}

#[test]
fn what_is_set_for_the_session_is_seen() {
    for (sql, names) in [
        ("SET work_mem = '8MB'", ""),
        ("set Session work_mem to 1", ""),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", ""),
        ("SET TIME ZONE 'UTC'", ""),
        ("SET NAMES 'latin1'", ""),
        ("SET app.tenant = 'x'", "app.tenant"),
        ("SET \"App\".\"Tenant\" = 'x'", "app.tenant"),
        ("/* a /* nested */ ' comment */ SET -- and\n app /**/ . /**/ tenant TO 'x'", "app.tenant"),
        ("SELECT 1; SET a.b.c = 1; SELECT 2", "a.b.c"),
        ("SELECT 'it''s; not the end'; SET a.b = 1", "a.b"),
        ("SELECT $$; SET no.no = 1; $$; SET a.b = 1", "a.b"),
        ("SELECT $x$ $$ ; SET no.no = 1 $x$; SET a.b = 1", "a.b"),
        ("SELECT \"odd;name\"; SET a.b = 1", "a.b"),
        ("SELECT E'\\'; SET no.no = 1; '; SET a.b = 1", "a.b"),
        ("SELECT E'a'\n'\\'; SET no.no = 1; '; SET a.b = 1", "a.b"),
        ("SELECT a$b$c; SET a.b = 1", "a.b"),
        ("SELECT $1; SET a.b = 1", "a.b"),
        ("SELECT 1/*; SET no.no = 1*/; SET a.b = 1", "a.b"),
        ("SET ROLE accountant", "role"),
        ("SELECT set_config('app.tenant', 'x', false)", "app.tenant"),
        ("SELECT pg_catalog . \"set_config\" ( 'App.Tenant' , $1, true)", "app.tenant"),
        ("SELECT set_config($$a.b$$, '', false)", "a.b"),
    ] {
        assert_eq!(told(sql), (true, 0, false, names.to_owned()), "{sql}");
    }
}

#[test]
fn what_ends_with_the_transaction_is_told_apart() {
    for sql in [
        "SET LOCAL a.b = 1",
        "BEGIN; set local x = 1",
        "SET TRANSACTION READ ONLY",
        "SET CONSTRAINTS ALL DEFERRED",
    ] {
        assert_eq!(told(sql), (false, 1, false, String::new()), "{sql}");
    }
    assert_eq!(told("SET LOCAL a.b = 1; SET LOCAL c = 1; SET d = 1"), (true, 2, false, String::new()));
}

#[test]
fn what_sets_nothing_is_left_alone() {
    for sql in [
        "UPDATE t SET a = 1",
        "SELECT 'SET a.b = 1'",
        "-- SET a.b = 1",
        "/* SET a.b = 1; */ SELECT 1",
        "SELECT 1 AS set",
        "SELECT settings FROM t; INSERT INTO offsets VALUES (1)",
        "DO $$ BEGIN SET a.b = 1; END $$",
        "SELECT set_config FROM t",
        "",
    ] {
        assert_eq!(told(sql), (false, 0, false, String::new()), "{sql}");
    }
}

#[test]
fn what_cannot_be_told_is_said_to_be_so() {
    for sql in [
        "SET U&\"a\\0062\".c = 1",
        "SET pgtenant.seal = 'x'",
        "SET \"PgTenant\".seal = 'x'",
        "SELECT set_config($1, $2, false)",
        "SELECT set_config('a' || '.b', '', false)",
        "SELECT set_config(E'\\x61.b', '', false)",
        "SELECT set_config('pgtenant.seal', 'x', false)",
        "SET SESSION AUTHORIZATION x",
    ] {
        assert!(read(sql).opaque, "{sql}");
    }
}

#[test]
fn backslashes_count_when_strings_are_not_standard() {
    let sql = b"SELECT '\\'; SET no.no = 1; '; SET a.b = 1";
    let mut touched = Touched::default();
    touched.add(&Effects::of(sql, false).touched);
    assert_eq!(touched.names.into_iter().collect::<Vec<_>>(), ["a.b"]);
}

#[test]
fn names_are_bounded() {
    let mut touched = Touched::default();
    for n in 0..MAX_NAMES {
        touched.add(&Effects::of(format!("SET a.n{n} = 1").as_bytes(), true).touched);
    }
    assert!(!touched.opaque);
    touched.add(&Effects::of(b"SET a.n1 = 2", true).touched);
    assert!(!touched.opaque, "known already");
    touched.add(&Effects::of(b"SET a.more = 1", true).touched);
    assert!(touched.opaque && touched.names.len() == MAX_NAMES);
    touched.begin();
    touched.add(&Effects::of(format!("SET a.{} = 1", "x".repeat(MAX_NAME)).as_bytes(), true).touched);
    assert!(touched.opaque);
}

#[test]
fn what_needs_a_session_of_its_own_is_seen() {
    for (sql, needs) in [
        ("LISTEN x", Some(NeedsSession::Listen)),
        ("prepare p(int) as select $1", Some(NeedsSession::Prepare)),
        ("PREPARE TRANSACTION 'x'", None),
        ("CREATE TEMP TABLE t (a int)", Some(NeedsSession::Temporary)),
        ("create or replace temporary view v as select 1", Some(NeedsSession::Temporary)),
        ("CREATE TEMP TABLE t (a int) ON COMMIT DROP", None),
        ("CREATE TABLE t (temp int)", None),
        ("CREATE TABLE temp (a int)", None),
        ("DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT 1", Some(NeedsSession::Holdable)),
        ("DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1", None),
        ("SELECT pg_advisory_lock(1)", Some(NeedsSession::AdvisoryLock)),
        ("SELECT pg_advisory_xact_lock(1), 'pg_advisory_lock'", None),
        ("DO $$ BEGIN PERFORM pg_advisory_lock(1); END $$", None),
        ("SELECT 'LISTEN x'", None),
    ] {
        assert_eq!(Effects::of(sql.as_bytes(), true).needs_session, needs, "{sql}");
    }
}

#[test]
fn what_is_left_dropped_and_begun_is_seen() {
    let of = |sql: &str| Effects::of(sql.as_bytes(), true);
    for (sql, leaves) in [
        ("SELECT 1 INTO TEMP t", true),
        ("SELECT 1 INTO LOCAL TEMPORARY TABLE t", true),
        ("CREATE TABLE pg_temp.t AS SELECT 1", true),
        ("SELECT setseed(0.5)", true),
        ("SELECT temp FROM readings", false),
        ("INSERT INTO temperatures SELECT temp FROM t", false),
        ("SELECT a INTO t FROM temp", false),
    ] {
        assert_eq!(of(sql).leaves, leaves, "{sql}");
    }
    for (sql, drops) in [
        ("DEALLOCATE ALL", Some(Deallocates::All)),
        ("deallocate prepare all", Some(Deallocates::All)),
        ("DISCARD ALL", Some(Deallocates::All)),
        ("DISCARD PLANS", None),
        ("DEALLOCATE Some", Some(Deallocates::One(b"some".as_slice().into()))),
        ("DEALLOCATE PREPARE \"So me\"", Some(Deallocates::One(b"So me".as_slice().into()))),
        ("DEALLOCATE prepare", Some(Deallocates::One(b"prepare".as_slice().into()))),
    ] {
        assert_eq!(of(sql).deallocates, drops, "{sql}");
    }
    assert!(of("BEGIN").begins && of("start transaction").begins && !of("SELECT 'BEGIN'").begins);
    assert_eq!(of("BEGIN; SELECT ';'; ; COMMIT;").statements, 3);
}

#[test]
fn what_passes_in_pieces_is_watched() {
    for pieces in [
        &["SELECT set_config('a.b', '', false)"][..],
        &["SELECT Set_", "Con", "fig('a.b', '', false)"],
        &["CREATE TE", "MP TABLE t (a int)"],
        &["x", "", "pg_try_advisor", "y_lock(1)"],
    ] {
        let mut watch = Watch::default();
        assert!(pieces.iter().any(|piece| watch.sees(piece.as_bytes())), "{pieces:?}");
    }
    let mut watch = Watch::default();
    assert!(
        !["INSERT INTO t VALUES ('se", "t the te", "nth')"].iter().any(|piece| watch.sees(piece.as_bytes()))
    );
}

proptest! {
    #[test]
    fn no_text_panics(sql in proptest::collection::vec(any::<u8>(), 0..200), standard in any::<bool>()) {
        Effects::of(&sql, standard);
    }

    #[test]
    fn no_text_of_its_own_characters_panics(sql in "(set|set_config|[ ;'\"$\\\\/*eEuU&(.ab\n-]){0,60}") {
        Effects::of(sql.as_bytes(), true);
    }
}

#[test]
fn a_name_that_postgresql_cuts_is_not_known() {
    let long = format!("{}.{}", "x".repeat(40), "y".repeat(40));
    for (sql, is_opaque) in [
        (format!("SET a.\"{long}\" = 1"), true),
        (format!("SET \"{long}\" = 1"), true),
        (format!("SET {long} = 1"), false),
    ] {
        assert_eq!(Effects::of(sql.as_bytes(), true).touched.opaque, is_opaque, "{sql}");
    }
}

#[test]
fn what_a_simple_query_does_is_seen() {
    for (sql, expected) in [
        ("SELECT 1", Simple::Reads),
        ("select a$1 from t", Simple::Other), // it may as well be a parameter
        ("SELECT 1; -- done\n;", Simple::Reads),
        ("VALUES (1)", Simple::Reads),
        ("/* one */ TABLE items", Simple::Reads),
        ("SELECT '; ROLLBACK'", Simple::Reads),
        ("SELECT 1; ROLLBACK", Simple::Other),
        ("SELECT 1; SELECT 2", Simple::Other),
        ("; SELECT 1", Simple::Other),
        ("SELECT $1", Simple::Other),
        ("(SELECT 1)", Simple::Other),
        ("SELECT set_config('a.b', 'c', false)", Simple::Other),
        ("SELECT pg_advisory_lock(1)", Simple::Other),
        ("INSERT INTO items (body) VALUES ('x')", Simple::Writes),
        ("UPDATE items SET n = n + 1", Simple::Writes),
        ("INSERT INTO items (body) VALUES ('x') RETURNING id", Simple::Other),
        ("WITH x AS (SELECT 1) DELETE FROM items", Simple::Other),
        ("WITH x AS (DELETE FROM items RETURNING id) SELECT id FROM x", Simple::Other),
        ("WITH x AS (SELECT 1) TABLE x", Simple::Reads),
        ("UPDATE pg_settings SET setting = '5MB' WHERE name = 'work_mem'", Simple::Other),
        ("SELECT name FROM pg_cursors", Simple::Other),
        ("UPDATE \"pg_settings\" SET setting = '5MB'", Simple::Other),
        ("UPDATE U&\"\\0070g_settings\" SET setting = '5MB'", Simple::Other),
        ("BEGIN", Simple::Begins),
        ("begin work;", Simple::Begins),
        ("START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY, NOT DEFERRABLE", Simple::Begins),
        ("BEGIN; SELECT 1", Simple::Other),
        ("BEGIN; COMMIT", Simple::Other),
        ("BEGIN ATOMIC", Simple::Begins), // which PostgreSQL refuses
        ("START", Simple::Other),
        ("BEGIN 'x'", Simple::Other),
        ("BEGIN \"work\"", Simple::Other),
        ("BEGIN ISOLATION LEVEL (1)", Simple::Other),
        ("COMMIT", Simple::Other),
        ("COPY items FROM STDIN", Simple::Other),
        ("EXPLAIN SELECT 1", Simple::Other),
        ("SHOW work_mem", Simple::Other),
        ("VACUUM", Simple::Other),
        ("", Simple::Other),
    ] {
        assert_eq!(simple(sql.as_bytes()), expected, "{sql}");
    }
}
