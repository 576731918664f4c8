//! What the guard lets pass, and what not in whatever spelling.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::SettingValue;

const PREPARED: Under = Under { is_prepared: true, is_read_only: false };

fn guard() -> Guard {
    let setting = |name: &str| ContextSetting { name: name.to_owned(), value: SettingValue::Organization };
    Guard::new(&[setting("app.organization"), setting("request.jwt.claims"), setting("app.vendor")])
}

fn check(sql: &str) -> Result<Open, Breach> {
    guard().check(sql.as_bytes(), true, Under::default())
}

#[test]
fn every_spelling_that_changes_a_setting_of_the_context_is_refused() {
    for sql in [
        "SET app.organization = 'x'",
        "set session APP.Organization to 'x'",
        "SET LOCAL app.organization = DEFAULT",
        "SET \"app.organization\" = 'x'",
        "SET \"app\" . \"organization\" = 'x'",
        "SET app /* - */ . -- -\n organization TO x",
        "SET U&\"\\0061pp\".organization = 'x'",
        "SET U&\"!0061pp\" UESCAPE '!' . organization = 'x'",
        "SET U&\"apppp\" UESCAPE 'p' . organization = 'x'",
        "SET U&\"!0061pp\" UESCAPE E'\\041' . organization = 'x'",
        "SET app.U&\"organizatio\\+00006E\" = 'x'",
        "RESET app.organization",
        "SELECT 1; /* ; */ SET request.jwt.claims = '{}'",
        "SELECT $a$;$a$; RESET request.jwt.claims",
        "BEGIN; SELECT '; '; SET app.organization = 'x'; COMMIT",
        "SELECT 'a\\'; SET app.organization = 'x' --'",
        "ALTER ROLE app SET app.organization = 'x'",
        "ALTER DATABASE app SET app.organization = 'x'",
        "ALTER ROLE app RESET app.organization",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET app.organization = 'x' AS 'select 1'",
        "ALTER FUNCTION f() SET app.organization FROM CURRENT",
        "SELECT set_config('app.organization', 'x', false)",
        "SELECT pg_catalog.set_config ( 'APP.ORGANIZATION' , 'x', true)",
        "SELECT \"set_config\"(E'app\\x2eorganization', 'x', true)",
        "SELECT U&\"\\0073et_config\"(U&'app\\002Eorganization', 'x', true)",
        "SELECT U&\"s!0065t_config\" UESCAPE '!' ('app.organization', 'x', true)",
        "SELECT set_config(U&'apppp.organization' UESCAPE 'p', 'x', true)",
        "SELECT set_config(U&'app!002Eorganization' UESCAPE E'\\x21', 'x', true)",
        "SELECT set_config('app.'\n'organization', 'x', true)",
        "SELECT set_config($$app.organization$$::text, 'x', true)",
        "SELECT set_config('app.organization'::pg_catalog.varchar, 'x', true)",
        "SELECT set_config('app.organization!'::varchar(16), 'x', true)",
        "SELECT set_config('app.organization '::bpchar, 'x', true)",
        "SELECT set_config(bpchar 'app.organization ', 'x', true)",
        "SELECT set_config('app.organization' COLLATE \"C\", 'x', true)",
        "SELECT set_config('app.' || 'organization', 'x', true)",
        "SELECT set_config(name => 'app.organization', new_value => 'x', is_local => true)",
        "SELECT set_config(setting_name := 'x', new_value := 'x', is_local := true)",
        "SELECT set_config(n, 'x', true) FROM names",
        "SELECT set_config($1, 'x', true)",
        "PREPARE p AS SELECT set_config($1, $2, false)",
        "SELECT set_config(VARIADIC x, 'x', true)",
        "UPDATE pg_settings SET setting = 'x' WHERE name = 'TimeZone'",
        "WITH u AS (UPDATE pg_catalog.\"pg_settings\" SET setting = 'x' RETURNING 1) SELECT 1",
        "DO $$ BEGIN SET app.organization = 'x'; END $$",
        "DO 'BEGIN PERFORM set_config(''app.organization'', ''x'', false); END'",
        "DO $$ BEGIN EXECUTE 'SET app.organization = 1'; END $$",
        "DO $$ BEGIN EXECUTE $q$ SELECT set_config('app.organization', 'x', true) $q$; END $$",
        "DO E'BEGIN SET\\vapp.organization = 1; END'",
        "DO E'BEGIN SET\\x0bapp.organization = 1; END'",
        "SELECT set_config(E'app.\\vendor', 'x', true)",
        "DO E'BEGIN SET app.\\vendor = 1; END'",
        "DO E'BEGIN SET \\x61pp.organization = 1; END'",
        "CREATE FUNCTION f(text) RETURNS text LANGUAGE sql AS 'select set_config($1, $2, true)'",
        "SELECT query_to_xml('select set_config(''app.organization'', ''x'', false)', true, false, '')",
        "SET pgtenant.seal = 'x'",
        "SELECT set_config('PgTenant.Claims', 'x', false)",
        "SET client_encoding = 'SJIS'",
        "SET NAMES 'big5'",
        "SET client_encoding TO gb18030",
        "SELECT set_config('client_encoding', 'Shift_JIS_2004', false)",
        "SELECT set_config('client_encoding', n, false) FROM names",
    ] {
        assert!(check(sql).is_err(), "{sql}");
    }
}

#[test]
fn everything_else_passes() {
    for sql in [
        "SELECT current_setting('app.organization')::uuid",
        "SHOW app.organization",
        "SELECT 1",
        "UPDATE app SET organization = 'x' WHERE name = 'app.organization'",
        "INSERT INTO notes VALUES ('SET app.organization = 1; set_config(x)')",
        "INSERT INTO notes VALUES (E'it\\'s SET app.organization = 1')",
        "SELECT 1 -- SET app.organization = 'x'",
        "/* SET app.organization = 'x' /* nested */ */ SELECT 1",
        "SET app.theme = 'dark'",
        "SET LOCAL statement_timeout = 1",
        "SET client_encoding = 'UTF8'",
        "SELECT set_config('app.theme', 'dark', false), set_config('client_encoding', 'LATIN1', true)",
        "CREATE POLICY p ON t USING (org = current_setting('app.organization', true)::uuid)",
        "CREATE FUNCTION f() RETURNS uuid LANGUAGE sql AS $$ SELECT current_setting('app.organization')::uuid $$",
        "SELECT name FROM pg_settings",
        "SELECT names, set_config FROM app",
    ] {
        assert_eq!(check(sql), Ok(Open::default()), "{sql}");
    }
}

/// A tenant would shut all others out by it: the role is everybody's.
#[test]
fn what_all_organizations_share_is_not_altered() {
    let plain = Guard::new(&[]);
    for sql in [
        "ALTER ROLE app PASSWORD 'x'",
        "SELECT 1; alter/**/user CURRENT_USER SET search_path = nowhere",
        "ALTER ROLE ALL IN DATABASE app RESET ALL",
        "ALTER DATABASE app SET default_transaction_read_only = on",
    ] {
        assert_eq!(plain.check(sql.as_bytes(), true, Under::default()), Err(Breach::Shared), "{sql}");
        assert_eq!(check(sql), Err(Breach::Shared), "{sql}");
    }
    assert_eq!(check("DO $$ BEGIN ALTER ROLE app SET work_mem = 64; END $$"), Err(Breach::Shared));
    assert_eq!(check("DO $$ BEGIN EXECUTE 'ALTER USER app PASSWORD ''x'''; END $$"), Err(Breach::Shared));
    for sql in
        ["ALTER TABLE role ADD x int", "ALTER USER MAPPING FOR app SERVER s", "SELECT alter, role FROM t"]
    {
        assert!(check(sql).is_ok(), "{sql}");
    }
}

#[test]
fn what_is_the_proxys_own_is_not_called() {
    for sql in [
        "SELECT pgtenant.put_back('client_encoding', 'SJIS')",
        "SET search_path = pgtenant; SELECT \"put_back\"('client_encoding', 'SJIS')",
        "SELECT U&\"put\\005fback\"('client_encoding', 'SJIS')",
        "EXECUTE pgtenant_bind(0.5, '', '{}', 'x')",
        "EXECUTE \"pgtenant_settings\"('app.organization', 'x')",
        "CREATE AGGREGATE pg_temp.a(text, boolean) (sfunc = set_config, stype = text, initcond = 'app.organization')",
        "CREATE OPERATOR ## (function = pg_catalog.set_config)",
    ] {
        assert!(check(sql).is_err(), "{sql}");
    }
    assert!(check("SELECT pgtenant.organization_id(), pgtenant.context()").is_ok());
    assert_eq!(guard().check_bound(b"client_encoding", false), Some(Breach::Computed));
    assert_eq!(Guard::new(&[]).check_bound(b"client_encoding", false), None);
}

/// Found by fuzzing: PostgreSQL takes the blanks off a constant of type character where it becomes text.
#[test]
fn blanks_behind_a_name_do_not_hide_it() {
    assert!(check("SELECT set_config(n'app.organization  ', 'x', true)").is_err());
    assert!(check("SELECT set_config(N'pgtenant.seal ', 'x', true)").is_err());
    assert!(check("SELECT set_config(n'app.theme ', 'x', true)").is_ok());
}

#[test]
fn a_parameter_for_the_name_is_left_open() {
    for (sql, expected) in [
        ("SELECT set_config($1, $2, true)", true),
        ("SELECT set_config($1::text, $2, true)", true),
        ("SELECT set_config('app.theme', $1, true)", false),
    ] {
        let open = guard().check(sql.as_bytes(), true, PREPARED).unwrap();
        assert_eq!(open.by_parameter, expected, "{sql}");
    }
    assert!(guard().check(b"SELECT set_config($1 || 'x', $2, true)", true, PREPARED).is_err());
    assert!(guard().check(b"DO $$ BEGIN PERFORM set_config($1, $2, true); END $$", true, PREPARED).is_err());
}

#[test]
fn where_nothing_is_configured_only_the_seal_is_spoken_of() {
    let guard = Guard::new(&[]);
    assert!(!guard.is_strict());
    for (sql, is_refused) in [
        ("SET pgtenant.seal = 'x'", true),
        ("SELECT set_config('pgtenant.seal', 'x', false)", true),
        ("RESET PgTenant.Seal", true),
        ("SET app.organization = 'x'", false),
        ("SELECT set_config(n, 'x', true) FROM pgtenant", false),
        ("UPDATE pg_settings SET setting = 'x'", false),
        ("SET client_encoding = 'SJIS'", false),
    ] {
        assert_eq!(guard.check(sql.as_bytes(), true, Under::default()).is_err(), is_refused, "{sql}");
    }
}

#[test]
fn nothing_makes_a_transaction_write_under_who_acts_for_somebody() {
    let check = |sql: &str, is_prepared: bool| {
        Guard::new(&[]).check(sql.as_bytes(), true, Under { is_prepared, is_read_only: true })
    };
    for sql in [
        "BEGIN READ WRITE",
        "START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ /* */ WRITE",
        "SET TRANSACTION READ WRITE",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        "SET transaction_read_only = off",
        "SET LOCAL default_transaction_read_only TO 0",
        "RESET default_transaction_read_only",
        "SELECT set_config('Transaction_Read_Only', 'off', true)",
        "SELECT set_config(n, 'off', true) FROM t",
        "DO $$ BEGIN SET TRANSACTION READ WRITE; END $$",
        "RESET ALL; COMMIT; DELETE FROM t",
        "SELECT 1; DISCARD ALL",
        "UPDATE pg_settings SET setting = 'off' WHERE name = 'transaction_read_only'",
    ] {
        assert!(check(sql, false).is_err(), "{sql}");
    }
    for sql in
        ["RESET ALL", "RESET ALL;", "EXECUTE pgtenant_settings('default_transaction_read_only', 'off')"]
    {
        assert!(check(sql, false).is_err(), "{sql}");
    }
    for sql in ["BEGIN READ ONLY", "SELECT read, write FROM t", "DISCARD ALL", "SELECT 'read write'"] {
        assert!(check(sql, false).is_ok(), "{sql}");
    }
    assert!(check("RESET ALL", true).is_err() && check("SELECT set_config($1, 'x', true)", true).is_ok());
}
