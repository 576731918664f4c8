//! How commands on the token are read: every spelling, and what only looks like one.

use super::*;

fn command(sql: &str) -> Option<TokenCommand> {
    read(sql.as_bytes(), true).and_then(Result::ok)
}

fn constant(token: &str) -> Given<TokenText> {
    Given::Constant(TokenText::new(token.as_bytes()))
}

#[test]
fn every_way_to_write_it_is_read() {
    for (sql, value, is_local) in [
        ("SET pgtenant.token = 'a.b.c'", constant("a.b.c"), false),
        ("set session PGTENANT.Token to 'a.b.c';", constant("a.b.c"), false),
        ("/* x */ SET LOCAL \"pgtenant\" . \"token\" TO E'a.b.c' ; ; -- y", constant("a.b.c"), true),
        ("SET \"pgtenant.token\" = $$a.b.c$$", constant("a.b.c"), false),
        ("SET U&\"pgtenant\".token = 'x'", constant("x"), false),
        ("SET pgtenant.token = U&'a!002eb.c' UESCAPE '!'", constant("a.b.c"), false),
        ("SET pgtenant.U&\"tok\\0065n\" = E'a\\x2eb'", constant("a.b"), false),
        ("SELECT set_config(E'pgtenant\\u002etoken', $1, true)", Given::Parameter(1), true),
        ("SET LOCAL pgtenant.token TO DEFAULT", Given::AtSignIn, true),
        ("RESET pgtenant.token", Given::AtSignIn, false),
        ("SELECT set_config('pgtenant.token', 'a', true)", constant("a"), true),
        (
            "SELECT pg_catalog.set_config('PgTenant.token'::text, $1::varchar, FALSE::boolean)",
            Given::Parameter(1),
            false,
        ),
        ("select set_config ( 'pgtenant.token' , $12 , 't' ) as done;", Given::Parameter(12), true),
    ] {
        let read = command(sql).unwrap_or_else(|| panic!("{sql}"));
        assert_eq!((&read.value, &read.is_local), (&value, &Given::Constant(is_local)), "{sql}");
    }
    let both =
        command("SELECT set_config('pgtenant.token', $2, $1) x").unwrap_or_else(|| panic!("no command"));
    assert_eq!((both.value, both.is_local), (Given::Parameter(2), Given::Parameter(1)));
    assert_eq!(both.form, Form::Function(b"x".as_slice().into()));
}

#[test]
fn what_a_server_would_see_is_refused() {
    for sql in [
        "SET pgtenant.token = 'a'; SELECT 1",
        "SELECT 1; SET pgtenant.token = 'a'",
        "BEGIN; SET LOCAL pgtenant.token TO 'a'; COMMIT",
        "SELECT set_config('pgtenant.token', 'a', true), 1",
        "SELECT set_config('pgtenant.token', 'a', true) IS NULL",
        "SELECT count(*) FROM (SELECT pg_catalog.set_config('pgtenant.token', 'a', true)) x",
        "WITH x AS (SELECT \"set_config\"('pgtenant.token', 'a', true)) SELECT FROM x",
        "SELECT set_config('pgtenant.token', 'a' || 'b', true)",
        "SELECT set_config('pgtenant.token', $1, $1)",
        "SET pgtenant.token = a",
        "SET pgtenant.token = E'\\va'",
        "SELECT set_config($1, E'\\va', false)",
        "SET U&\"pgtenant\".token = 'a', 'b'",
        "SELECT set_config(('pgtenant.token'), 'a', false)",
        "SELECT set_config(CAST('pgtenant.token' AS text), 'a', false)",
        "SELECT set_config(text 'pgtenant.token', 'a', false)",
        "SELECT set_config(E'pgtenant\\x2etoken', 'a', false), 1",
        "SELECT set_config(U&'pgtenant!002etoken' UESCAPE '!', 'a', false), 1",
        "SELECT U&\"set_config\"('pgtenant.token', 'a', false), 1",
        "DO $$ BEGIN PERFORM set_config('pgtenant.token', 'a', false); END $$",
        "DO $$ BEGIN EXECUTE 'SET pgtenant.token = ''a'''; END $$",
        "DO E'BEGIN SET\\vpgtenant.token = 1; END'",
        "PREPARE p AS SELECT set_config($1, $2, $3); EXECUTE p('pgtenant.token', 'a', false)",
        "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT set_config('pgtenant.token', 'a', false) $$",
        "SET pgtenant.token = 'a', 'b'",
        "SET SESSION pgtenant.token",
        "RESET pgtenant.token; SELECT 1",
    ] {
        assert!(matches!(read(sql.as_bytes(), true), Some(Err(_))), "{sql}");
    }
}

#[test]
fn what_only_speaks_of_it_passes() {
    for sql in [
        "SELECT set_config($1, $1, true)",
        "SELECT set_config($1, $2, true) FROM t",
        "SELECT set_config('app.x', $1, true)",
        "SELECT 'pgtenant.token'",
        "SELECT current_setting('pgtenant.token', true)",
        "SHOW pgtenant.token",
        "SELECT set_config('pgtenant.tokens', 'a', true)",
        "SET pgtenant.seal = 'a'",
        "SET app.x = 'pgtenant.token'",
        "-- SET pgtenant.token = 'a'\nSELECT 1",
        "SELECT 'SET pgtenant.token = 1'",
        "UPDATE t SET x = 'pgtenant.token'",
        "RESET ALL",
    ] {
        assert_eq!(read(sql.as_bytes(), true), None, "{sql}");
    }
}

#[test]
fn a_token_is_never_printed() {
    let printed = format!("{:?}", read(b"SET pgtenant.token = 'a.b.c'", true));
    assert!(!printed.contains("a.b.c") && printed.contains("<token>"), "{printed}");
}

/// Each is looked into as far as a name is long, or a few words: texts of one word a thousand times take no longer for it.
#[test]
fn what_is_too_long_to_be_told_may_be_it() {
    let long = |count: usize| {
        format!("SELECT 1, set_config({}'pgtenant' || '.token', 'x', false)", "(a + b) + ".repeat(count))
    };
    assert!(read(long(1).as_bytes(), true).is_none());
    assert!(matches!(read(long(40).as_bytes(), true), Some(Err(Misplaced::Form))));
    let many = "SELECT ".to_owned() + &"set_config(a, 'pgtenant.token') , ".repeat(20_000);
    assert!(read(many.as_bytes(), true).is_none_or(|read| read.is_err()));
}
