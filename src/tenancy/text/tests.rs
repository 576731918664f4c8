//! Texts that change settings, and texts that only look like it.

use proptest::prelude::*;

use super::*;

fn read(sql: &str) -> Touched {
    let mut touched = Touched::default();
    touched.read(sql.as_bytes(), true);
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
    touched.read(sql, false);
    assert_eq!(touched.names.into_iter().collect::<Vec<_>>(), ["a.b"]);
}

#[test]
fn names_are_bounded() {
    let mut touched = Touched::default();
    for n in 0..MAX_NAMES {
        touched.read(format!("SET a.n{n} = 1").as_bytes(), true);
    }
    assert!(!touched.opaque);
    touched.read(b"SET a.n1 = 2", true);
    assert!(!touched.opaque, "known already");
    touched.read(b"SET a.more = 1", true);
    assert!(touched.opaque && touched.names.len() == MAX_NAMES);
    touched.begin();
    touched.read(format!("SET a.{} = 1", "x".repeat(MAX_NAME)).as_bytes(), true);
    assert!(touched.opaque);
}

proptest! {
    #[test]
    fn no_text_panics(sql in proptest::collection::vec(any::<u8>(), 0..200), standard in any::<bool>()) {
        Touched::default().read(&sql, standard);
    }

    #[test]
    fn no_text_of_its_own_characters_panics(sql in "(set|set_config|[ ;'\"$\\\\/*eEuU&(.ab\n-]){0,60}") {
        Touched::default().read(sql.as_bytes(), true);
    }
}
