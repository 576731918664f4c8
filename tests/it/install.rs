//! `pgtenant install`, also in a database where somebody else was first.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::commands::{Ran, assert_one_sentence, run};
use crate::harness::client;
use crate::harness::gate::{Gate, SEAL_KEY, Setup, Written};
use crate::harness::org;
use crate::harness::postgres::{self, Database, ROWS_PER_ORGANIZATION, Shared};

#[tokio::test]
async fn install_makes_everything_and_again_changes_nothing() {
    let database = postgres::shared().database().await;
    let admin = database.admin().await;
    admin.batch_execute("DROP SCHEMA pgtenant CASCADE").await.unwrap();
    let setup = || Gate::with(&database);
    let mut states = Vec::new();
    for _ in 0..2 {
        let done = install(&setup().write(), &database.url, &[]);
        assert_eq!((done.code, done.err.as_str()), (0, ""), "{done:?}");
        assert!(done.out.contains("for app\n"), "{done:?}");
        states.push(interface(&database).await);
    }
    assert_eq!(states[0], states[1]);
    let gate = setup().run().await;
    let client = client::connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let found = client::value(&client, "SELECT pgtenant.organization_id()").await.unwrap();
    assert_eq!(found, Some(org(1)));
}

#[tokio::test]
async fn install_upgrades_and_changes_keys_under_clients_that_go_on() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let client = client::connect(&gate, "app", &gate.token(org(2)).sign()).await;
    let rows = async |client: &tokio_postgres::Client| {
        client::value(client, "SELECT count(*) || ' of ' || min(body) FROM items").await
    };
    let expected = format!("{ROWS_PER_ORGANIZATION} of org-2");
    assert_eq!(rows(&client).await.unwrap().as_ref(), Some(&expected));
    let before = interface(&database).await;
    database.admin().await.batch_execute("UPDATE pgtenant.interface SET version = 0").await.unwrap();
    let new_key = STANDARD.encode([7; 32]);
    let both = r#"[{ file = "context.new.secret" }, { file = "context.seal_key.secret" }]"#;
    let next = || Gate::with(&database).secret("context", "new", &new_key).unset("context", "new");
    let next = || next().set("context", "seal_key", both);
    let next_gate = next().run().await;
    let early = client::connect(&next_gate, "app", &next_gate.token(org(2)).sign()).await;
    assert!(rows(&early).await.is_err(), "a seal by a key that is not installed");
    assert_eq!(install(&next().write(), &database.url, &[]).code, 0);
    let after = interface(&database).await;
    assert_eq!((&after.version, &after.functions), (&before.version, &before.functions));
    assert_eq!((before.keys.len(), after.keys.len()), (1, 2));
    assert!(after.keys.contains(&before.keys[0]), "the old key must serve until it is taken away");
    for (gate, client) in [(&gate, &client), (&next_gate, &early)] {
        assert_eq!(rows(client).await.unwrap().as_ref(), Some(&expected));
        let fresh = client::connect(gate, "app", &gate.token(org(2)).sign()).await;
        assert_eq!(rows(&fresh).await.unwrap().as_ref(), Some(&expected));
    }
}

#[tokio::test]
async fn install_prints_without_a_key_and_without_a_change() {
    let database = postgres::shared().database().await;
    database.admin().await.batch_execute("DROP SCHEMA pgtenant CASCADE").await.unwrap();
    let written = Gate::with(&database).write();
    let printed = install(&written, &database.url, &["--print"]);
    assert_eq!((printed.code, printed.err.as_str()), (0, ""));
    assert!(printed.out.starts_with("BEGIN;") && printed.out.contains("pgtenant.seal_keys"), "{printed:?}");
    let key = STANDARD.decode(SEAL_KEY).unwrap();
    let pad = |with: u8| key.iter().map(|byte| byte ^ with).collect::<Vec<u8>>();
    for secret in [key.clone(), pad(0x36), pad(0x5c)] {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let base64 = STANDARD.encode(&secret);
        let shown = [hex.as_str(), base64.trim_end_matches('=')];
        assert!(shown.iter().all(|shown| !printed.out.to_lowercase().contains(&shown.to_lowercase())));
    }
    let there = client::value(&database.admin().await, "SELECT to_regnamespace('pgtenant')").await.unwrap();
    assert_eq!(there, None, "something was installed");
}

#[test]
fn install_tells_in_one_sentence_that_there_is_no_database() {
    let written = Setup::new(5432, "app").write();
    let unreachable = install(&written, "postgres://postgres@127.0.0.1:1/app", &[]);
    assert_one_sentence(&unreachable, 1, &["cannot connect to the database", "refused"]);
    let nonsense = install(&written, "no url", &[]);
    assert_one_sentence(&nonsense, 1, &["cannot connect to the database", "URL"]);
}

/// What a tenant who may create schemas, or functions in `public`, prepares for the day of the installation. Each is
/// followed by what must be true afterwards.
const TRAPS: [(&str, &str); 5] = [
    (
        "CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN \
         IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN ALTER ROLE app CREATEROLE; END IF; \
         RETURN pg_catalog.format($1, $2); END $$; \
         CREATE FUNCTION public.yes(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN \
         IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN ALTER ROLE app CREATEROLE; END IF; \
         RETURN true; END $$; \
         CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.yes)",
        "installed",
    ),
    (
        "CREATE SCHEMA pgtenant; CREATE TABLE pgtenant.seal_keys (kid text PRIMARY KEY, inner_pad bytea, outer_pad bytea, \
         installed timestamptz DEFAULT now()); GRANT SELECT ON pgtenant.seal_keys TO plain; \
         CREATE FUNCTION pgtenant.spy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ALTER ROLE app CREATEROLE; RETURN new; END $$; \
         CREATE TRIGGER spy BEFORE INSERT ON pgtenant.seal_keys FOR EACH ROW EXECUTE FUNCTION pgtenant.spy()",
        "schema pgtenant is owned by app",
    ),
    (
        "CREATE SCHEMA pgtenant; CREATE FUNCTION pgtenant.k() RETURNS SETOF text LANGUAGE plpgsql SECURITY DEFINER AS \
         $$ BEGIN RETURN QUERY SELECT inner_pad::text FROM pgtenant.seal_keys; END $$; \
         GRANT EXECUTE ON FUNCTION pgtenant.k() TO plain; GRANT USAGE ON SCHEMA pgtenant TO plain",
        "schema pgtenant is owned by app",
    ),
    ("CREATE SCHEMA pgtenant; CREATE DOMAIN pgtenant.uuid AS text", "schema pgtenant is owned by app"),
    ("CREATE SCHEMA pgtenant", "schema pgtenant is owned by app"),
];

#[tokio::test]
async fn a_prepared_schema_is_not_adopted_and_no_foreign_code_runs() {
    for shared in postgres::every_version() {
        for (trap, expected) in TRAPS {
            let database = shared.empty_database().await;
            let admin = database.admin().await;
            let grant = format!(
                "GRANT CREATE ON DATABASE {} TO app; GRANT CREATE ON SCHEMA public TO app",
                database.name
            );
            admin.batch_execute(&grant).await.unwrap();
            database.direct("app").await.batch_execute(trap).await.unwrap();
            let ran = install(&Gate::with(&database).write(), &database.url, &[]);
            assert!(ran.out.contains(expected) || ran.err.contains(expected), "{trap}: {ran:?}");
            assert_eq!(ran.code, i32::from(expected != "installed"), "{trap}: {ran:?}");
            let rights = "SELECT rolcreaterole FROM pg_roles WHERE rolname = 'app'";
            let has_more: bool = admin.query_one(rights, &[]).await.unwrap().get(0);
            if has_more {
                admin.batch_execute("ALTER ROLE app NOCREATEROLE").await.unwrap();
            }
            assert!(!has_more, "the trap went off: {trap}");
            for role in ["plain", "app"] {
                let sql = format!(
                    "SELECT has_table_privilege('{role}', c.oid, 'SELECT') AND c.relowner = 'pgtenant_owner'::regrole \
                     FROM pg_class c WHERE c.oid = to_regclass('pgtenant.seal_keys')"
                );
                let reads = admin.query_opt(&sql, &[]).await.unwrap().is_some_and(|row| row.get(0));
                assert!(!reads, "{role} may read the keys: {trap}");
            }
        }
    }
}

/// Rights that somebody was given on the key's table, or membership in its owner, do not outlive an installation.
#[tokio::test]
async fn rights_on_the_keys_are_taken_back() {
    let shared = Shared::start(&pgtenant::cli::demo::throwaway::Options::default()); // roles are a cluster's
    let database = shared.database().await;
    let admin = database.admin().await;
    admin
        .batch_execute(
            "GRANT ALL ON pgtenant.seal_keys TO plain; GRANT SELECT (inner_pad) ON pgtenant.seal_keys TO reports; \
             GRANT CREATE, USAGE ON SCHEMA pgtenant TO plain",
        )
        .await
        .unwrap();
    let written = Gate::with(&database).write();
    let done = install(&written, &database.url, &[]);
    assert_eq!(done.code, 0, "{done:?}");
    for role in ["plain", "reports"] {
        let refused =
            database.direct(role).await.query("SELECT inner_pad FROM pgtenant.seal_keys", &[]).await;
        assert_eq!(refused.unwrap_err().code().unwrap().code(), "42501", "{role}");
    }
    assert!(database.direct("plain").await.batch_execute("CREATE TABLE pgtenant.t ()").await.is_err());
    for (trap, undo, words) in [
        (
            "GRANT pgtenant_owner TO plain",
            "REVOKE pgtenant_owner FROM plain",
            "plain is a member of pgtenant_owner",
        ),
        ("ALTER ROLE pgtenant_owner LOGIN", "ALTER ROLE pgtenant_owner NOLOGIN", "pgtenant_owner may log in"),
        (
            "CREATE TRIGGER t BEFORE INSERT ON pgtenant.seal_keys EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "DROP TRIGGER t ON pgtenant.seal_keys",
            "has a trigger",
        ),
    ] {
        admin.batch_execute(trap).await.unwrap();
        let refused = install(&written, &database.url, &[]);
        assert_one_sentence_with_hint(&refused, words);
        admin.batch_execute(undo).await.unwrap();
    }
    assert_eq!(install(&written, &database.url, &[]).code, 0);
}

/// The key is in no log: neither of a superuser's installation, whatever is logged, nor of a failing one.
#[tokio::test]
async fn the_key_is_not_logged() {
    let mut shared = Shared::start(&pgtenant::cli::demo::throwaway::Options {
        settings: vec![
            ("log_statement".to_owned(), "all".to_owned()),
            ("log_min_duration_statement".to_owned(), "0".to_owned()),
            ("log_parameter_max_length_on_error".to_owned(), "-1".to_owned()),
        ],
        ..Default::default()
    });
    let database = shared.empty_database().await;
    let written = Gate::with(&database).write();
    let admin = database.admin().await;
    admin
        .batch_execute(&format!(
            "CREATE ROLE dba LOGIN PASSWORD 'dba-password' CREATEROLE; ALTER DATABASE {} OWNER TO dba; \
             GRANT pgtenant_owner TO dba",
            database.name
        ))
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    let dba = format!("postgres://dba:dba-password@127.0.0.1:{}/{}", database.port, database.name);
    let refused = install(&written, &dba, &[]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("this server logs statements"), "{refused:?}");
    let failed = install(&written, &database.url, &["--role", "nobody_of_this_name"]);
    assert_eq!(failed.code, 1, "{failed:?}");
    assert_eq!(install(&written, &database.url, &[]).code, 0);
    admin
        .batch_execute(
            "ALTER ROLE dba SET log_statement = 'ddl'; ALTER ROLE dba SET log_min_duration_statement = -1",
        )
        .await
        .unwrap();
    let done = install(&written, &dba, &[]);
    assert_eq!(done.code, 0, "{done:?}");
    shared.server.stop_server().unwrap();
    let log = shared.server.log_tail(100_000);
    assert!(
        log.contains("CREATE OR REPLACE FUNCTION pgtenant.organization_id()"),
        "the log holds statements"
    );
    let key = STANDARD.decode(SEAL_KEY).unwrap();
    for with in [0, 0x36, 0x5c] {
        let pad: String = key.iter().map(|byte| format!("{:02x}", byte ^ with)).collect();
        assert!(!log.contains(&pad), "a key is in the log");
    }
}

fn assert_one_sentence_with_hint(ran: &Ran, words: &str) {
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    assert!(ran.err.starts_with("pgtenant: nothing was changed: ") && ran.err.contains(words), "{ran:?}");
    assert!(ran.err.contains("install again"), "no hint: {ran:?}");
}

fn install(config: &Written, url: &str, args: &[&str]) -> Ran {
    run(&[&["install", "--database", url, "--role", "app"], args].concat(), Some(config))
}

/// What is installed.
#[derive(Debug, PartialEq)]
struct Interface {
    version: String,
    keys: Vec<String>,
    functions: Vec<String>,
}

async fn interface(database: &Database) -> Interface {
    let admin = database.admin().await;
    let texts = async |sql: &str| -> Vec<String> {
        admin.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    let functions = "SELECT p.oid::regprocedure || pg_get_functiondef(p.oid) || coalesce(p.proacl::text, '') \
         FROM pg_proc p WHERE p.pronamespace = 'pgtenant'::regnamespace ORDER BY 1";
    Interface {
        version: texts("SELECT version || id_type FROM pgtenant.interface").await.join(", "),
        keys: texts("SELECT row(k.*)::text FROM pgtenant.seal_keys k ORDER BY kid").await,
        functions: texts(functions).await,
    }
}
