//! `pgtenant migrate`: a single-tenant application becomes multi-tenant while it is there, and single-tenant again.

mod applications;
mod at_work;
mod by_hand;
mod desk;
mod killed;
mod schemas;
mod sources;

use std::os::unix::fs::PermissionsExt as _;

use crate::commands::assert_one_sentence;
use crate::harness::client;
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, Database, Shared, password_of};
use desk::{Desk, assert_same, dumped, pg_dump};

/// A shop before it had a second customer, with what schemas have: serial and identity columns, keys of several columns, keys
/// that refer to their own table, partial, expression and unique indexes, actions of foreign keys, a view, a trigger,
/// names that must be quoted.
const SHOP: &str = include_str!("migrate/shop.sql");

async fn shop(shared: &Shared) -> Database {
    let database = shared.empty_database().await;
    database.admin().await.batch_execute(SHOP).await.unwrap();
    database
}

#[tokio::test]
async fn a_shop_gets_a_second_customer_and_can_go_back() {
    for shared in postgres::every_version() {
        let database = shop(shared).await;
        let before = dumped(&database).await;
        let desk = Desk::at(&database);
        desk.done("plan", &[]);
        desk.edit("application = [", "application = [\"app\", ");
        desk.edit("[tables.\"public.orders\"]\n", "[tables.\"public.orders\"]\naudit = true\n");
        desk.done("plan", &[]);
        let files = |desk: &Desk| {
            let mut all: Vec<_> = std::fs::read_dir(desk.folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|extension| extension != "dump"))
                .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
                .collect();
            all.sort();
            all
        };
        let planned = files(&desk);
        assert_eq!(planned.len(), 8, "{:?}", planned.iter().map(|(path, _)| path).collect::<Vec<_>>());
        desk.done("plan", &[]);
        assert_eq!(files(&desk), planned, "the same from run to run");
        assert_eq!(dumped(&database).await, before, "a plan changes nothing");
        // A backup needs a pg_dump of this version.
        let has_dump = pg_dump(&database).is_some();
        let applied = desk.done("apply", &[if has_dump { "--restore-test" } else { "--no-backup" }]);
        for (told, is_told) in
            [("read back", has_dump), ("rows are there", has_dump), ("every row is what it was", true)]
        {
            assert_eq!(applied.out.contains(told), is_told, "{told}: {applied:?}");
        }
        assert_eq!(
            desk.done("apply", &[]).out.lines().next().unwrap().split(' ').next(),
            Some("0"),
            "all is done"
        );
        let dumps = std::fs::read_dir(desk.folder.path()).unwrap().map(|entry| entry.unwrap());
        for dump in
            dumps.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "dump"))
        {
            let mode = dump.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "a backup that others can read: {mode:o}");
        }
        desk.done("verify", &[]);
        isolated(&database, shared.server.version_major()).await;
        // What pgtenant install brought is no change.
        desk.done("verify", &[]);
        let refused = desk.run("rollback", &[]);
        assert_one_sentence(&refused, 1, &["audit_log has", "nothing was changed"]);
        let emptied =
            "ALTER TABLE pgtenant.audit_log DISABLE TRIGGER append_only; TRUNCATE pgtenant.audit_log";
        database.admin().await.batch_execute(emptied).await.unwrap();
        desk.done("rollback", &["--to", "003"]);
        assert_eq!(desk.run("verify", &[]).code, 1, "004 and 005 are undone");
        desk.done("apply", &[]);
        desk.done("verify", &[]);
        desk.done("rollback", &[]);
        assert_same(&before, &dumped(&database).await, shared.server.version_major());
        desk.done("apply", &["--no-backup"]);
        desk.done("verify", &[]);
    }
}

/// The application's own statements, through the proxy, under two organizations.
async fn isolated(database: &Database, version: u32) {
    let admin = database.admin().await;
    let sql = "SELECT id::text FROM organizations";
    let first: String = admin.query_one(sql, &[]).await.unwrap().get(0);
    let second = "00000000-0000-4000-8000-000000000002";
    let project = "00000000-0000-4000-8000-000000000003";
    admin
        .batch_execute(&format!(
            "INSERT INTO organizations (id, name) VALUES ('{second}', 'Second'); \
             INSERT INTO projects (organization_id, id, name) VALUES ('{second}', '{project}', 'Its own')"
        ))
        .await
        .unwrap();
    postgres::install(Gate::with(database), &database.url).await;
    let gate = Gate::with(database).run().await;
    let ours = client::connect(&gate, "app", &gate.token(first.as_str()).sign()).await;
    let theirs = client::connect(&gate, "app", &gate.token(second).project(project).sign()).await;
    let count = async |client: &tokio_postgres::Client| {
        client::value(client, "SELECT count(*) FROM orders").await.unwrap()
    };
    assert_eq!((count(&ours).await.as_deref(), count(&theirs).await.as_deref()), (Some("300"), Some("0")));
    // Before 15 a foreign key that sets to NULL keeps the key that it refers to.
    let id = if version < 15 { 1001 } else { 1 };
    theirs
        .batch_execute(&format!(
            "INSERT INTO customers (id, email, name) VALUES ({id}, 'a1@example.com', 'the same as theirs'); \
             INSERT INTO orders (id, customer_id, status) VALUES (1, {id}, 'new')"
        ))
        .await
        .unwrap();
    // Customer 7 is somebody else's: nothing can refer to it.
    let refused = theirs
        .batch_execute("INSERT INTO orders (id, customer_id, status) VALUES (2, 7, 'new')")
        .await
        .unwrap_err();
    assert_eq!(refused.code().map(|code| code.code()), Some("23503"), "{refused}");
    assert_eq!((count(&ours).await.as_deref(), count(&theirs).await.as_deref()), (Some("300"), Some("1")));
    // Whatever rights somebody gave: a partition by itself, and a view of a view, show no more.
    admin.batch_execute("GRANT SELECT ON visits_2025, busy_customers TO PUBLIC").await.unwrap();
    for sql in [
        "SELECT count(*) FROM visits_2025",
        "SELECT count(*) FROM visits",
        "SELECT count(*) FROM busy_customers",
    ] {
        if version < 15 && sql.contains("busy") {
            continue; // its roles get no right to a view that reads past policies; who gives it one decides otherwise
        }
        assert_eq!(client::value(&theirs, sql).await.unwrap().as_deref(), Some("0"), "{sql}");
        assert_ne!(client::value(&ours, sql).await.unwrap().as_deref(), Some("0"), "{sql}");
    }
    admin.batch_execute("REVOKE SELECT ON visits_2025, busy_customers FROM PUBLIC").await.unwrap();
    // What was done is kept, for each to see its own.
    let kept =
        "SELECT string_agg(action || ' ' || table_name || ' ' || subject, ',') FROM pgtenant.audit_log";
    let told = client::value(&theirs, kept).await.unwrap();
    assert_eq!(told.as_deref(), Some("INSERT public.orders someone"), "who, what and where");
    assert_eq!(client::value(&ours, kept).await.unwrap(), None);
    for sql in [
        "DELETE FROM pgtenant.audit_log",
        "INSERT INTO pgtenant.audit_log (organization_id, table_name, action) VALUES (pgtenant.organization_id(), 'x', 'INSERT')",
    ] {
        let refused = theirs.batch_execute(sql).await.unwrap_err();
        assert_eq!(refused.code().map(|code| code.code()), Some("42501"), "{sql}: {refused}");
    }
    let refused = admin.batch_execute("UPDATE pgtenant.audit_log SET subject = 'nobody'").await.unwrap_err();
    assert_eq!(
        refused.code().map(|code| code.code()),
        Some("42501"),
        "not even by a superuser, without saying so: {refused}"
    );
    drop((ours, theirs));
    admin
        .batch_execute(&format!(
            "DELETE FROM orders WHERE organization_id = '{second}'; DELETE FROM customers WHERE organization_id = '{second}'; \
             DELETE FROM projects WHERE organization_id = '{second}'; DELETE FROM organizations WHERE id = '{second}'"
        ))
        .await
        .unwrap();
}

/// An agency whose old application works as `reports`.
async fn agency_at_work() -> Database {
    let database = postgres::shared().empty_database().await;
    let admin = database.admin().await;
    admin.batch_execute(include_str!("migrate/agency.sql")).await.unwrap();
    admin
        .batch_execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO reports")
        .await
        .unwrap();
    database
}

/// Some tables say whose their rows are, others are found by paths, one by an expression; a legacy role goes on writing.
#[tokio::test]
async fn rows_find_their_organization_and_a_legacy_role_goes_on_until_cut_over() {
    let database = agency_at_work().await;
    let admin = database.admin().await;
    let before = dumped(&database).await;
    let desk = Desk::at(&database);
    let ran = desk.run("plan", &[]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("public.events") && ran.err.contains("unknown"), "{ran:?}");
    desk.edit("[tables.\"public.events\"]\nscope = \"unknown\"", EVENTS);
    desk.edit("application = [", "application = [\"app\", ");
    desk.done("plan", &[]);
    let text = std::fs::read_to_string(desk.tenancy()).unwrap();
    assert!(text.contains("legacy = [\"reports\"]"), "{text}");
    // The old application writes what it always wrote.
    let legacy = database.direct("reports").await;
    legacy
        .batch_execute("INSERT INTO posts (id, user_id, body) VALUES (20001, 3, 'by the old one'); INSERT INTO comments VALUES (20001, 1, NULL, 'and more')")
        .await
        .unwrap();
    desk.done("apply", &["--no-backup"]);
    desk.done("verify", &[]);
    legacy.batch_execute("INSERT INTO comments VALUES (20001, 2, 1, 'still'); UPDATE posts SET body = 'changed' WHERE id = 20001").await.unwrap();
    let wrong = "SELECT count(*) FROM posts p JOIN users u ON u.id = p.user_id WHERE p.organization_id <> u.account_id \
                 OR p.id <> 20001 AND touched <> 0";
    assert_eq!(
        client::value(&admin, wrong).await.unwrap().as_deref(),
        Some("0"),
        "whose they are, and no trigger ran"
    );
    let wrong = "SELECT count(*) FROM comments c JOIN posts p ON p.id = c.post_id WHERE c.organization_id <> p.organization_id";
    assert_eq!(client::value(&admin, wrong).await.unwrap().as_deref(), Some("0"));
    let mighty = "SELECT count(*) FROM pg_roles WHERE rolname = 'app' AND rolsuper";
    assert_eq!(
        client::value(&admin, mighty).await.unwrap().as_deref(),
        Some("0"),
        "what a comment says was run"
    );
    let wrong = "SELECT count(*) FROM events WHERE account_name <> 'account ' || organization_id";
    assert_eq!(client::value(&admin, wrong).await.unwrap().as_deref(), Some("0"));
    desk.done("rollback", &[]);
    admin.batch_execute("DELETE FROM posts WHERE id = 20001").await.unwrap();
    assert_same(&before, &dumped(&database).await, 15);
    // All the way, in two steps.
    desk.done("apply", &["--no-backup"]);
    assert!(desk.done("verify", &[]).out.contains("not cut over: reports see every row"));
    // Who does not ask by organization finds rows by the old keys, as fast as ever.
    let key = "SELECT array_length(conkey, 1) FROM pg_constraint WHERE conrelid = 'posts'::regclass AND contype = 'p'";
    assert_eq!(client::value(&admin, key).await.unwrap().as_deref(), Some("1"));
    desk.done("apply", &["--cut-over"]);
    assert_eq!(client::value(&admin, key).await.unwrap().as_deref(), Some("2"));
    assert!(!desk.done("verify", &[]).out.contains("not cut over"));
    let seen = client::value(&legacy, "SELECT count(*) FROM posts").await;
    assert!(
        seen.is_err() || seen.unwrap().as_deref() == Some("0"),
        "a legacy role sees rows after the cut-over"
    );
    // The cut-over stands upon 005: they go back together.
    desk.done("rollback", &["--to", "004"]);
    desk.done("apply", &["--cut-over"]);
    desk.done("verify", &[]);
}

/// With no rule left out and none silenced.
#[tokio::test]
async fn a_linter_of_migrations_has_nothing_to_say() {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from);
    let cache = cache.or_else(|| Some(std::path::PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let squawk = cache.unwrap_or_default().join("pgtenant-squawk/bin/squawk");
    if !squawk.exists() {
        assert!(std::env::var_os("CI").is_none(), "no {}: tests/squawk.sh fetches it", squawk.display());
        println!("left out: no {}", squawk.display());
        return;
    }
    for schema in [SHOP, include_str!("migrate/agency.sql")] {
        let database = postgres::shared().empty_database().await;
        database.admin().await.batch_execute(schema).await.unwrap();
        let desk = Desk::at(&database);
        if schema != SHOP {
            let grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO reports";
            database.admin().await.batch_execute(grant).await.unwrap();
        }
        desk.run("plan", &[]);
        if schema != SHOP {
            desk.edit("application = [", "application = [\"app\", ");
            desk.edit("[tables.\"public.events\"]\nscope = \"unknown\"", EVENTS);
            desk.edit("{ column = \"account_id\" }\notherwise = \"stop\"", "{ column = \"account_id\" }");
            desk.done("plan", &[]);
        }
        let mut command = std::process::Command::new(&squawk);
        command.arg("--pg-version=15.0").current_dir(desk.folder.path());
        let mut files = FILES.map(|file| format!("{file}.sql")).to_vec();
        if schema != SHOP {
            files.push("004_multi_tenant_rls_policies.cut_over.sql".to_owned());
        }
        command.args(&files);
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && told.contains(&format!("Found 0 issues in {} files", files.len())),
            "{}: {told}",
            output.status
        );
    }
}

/// The demo's application, which `pgtenant demo` migrates and serves; here also back.
#[tokio::test]
async fn the_demos_schema_goes_there_and_back() {
    let shared = Shared::start(&pgtenant::cli::demo::throwaway::Options::default());
    let database = shared.empty_database().await;
    let admin = database.admin().await;
    admin.batch_execute(include_str!("../../src/cli/demo/schema.sql")).await.unwrap();
    let rows = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/migrate-rows.sql"));
    by_hand::psql(&database, rows, "");
    let before = dumped(&database).await;
    let desk = Desk::at(&database);
    desk.done("plan", &[]);
    assert!(std::fs::read_to_string(desk.tenancy()).unwrap().contains("legacy = [\"helpdesk_app\"]"));
    let applied = desk.done("apply", &["--cut-over"]);
    assert!(applied.out.contains("every row is what it was"), "{applied:?}");
    desk.done("verify", &[]);
    desk.done("rollback", &[]);
    assert_same(&before, &dumped(&database).await, 15);
}

const FILES: [&str; 3] = [
    "003_multi_tenant_transformation",
    "004_multi_tenant_rls_policies",
    "005_data_migration_existing_to_multi_tenant",
];

const EVENTS: &str = r#"[tables."public.events"]
scope = "organization"
organization = { expression = "CASE WHEN id > 0 THEN (SELECT a.id FROM public.accounts a WHERE a.name = account_name) END" }"#;

#[tokio::test]
async fn tables_are_distributed_where_their_organizations_are() {
    let database = shop(postgres::shared()).await;
    let desk = Desk::at(&database);
    desk.done("plan", &["--distribute", "citus"]);
    let text = std::fs::read_to_string(desk.folder.path().join("citus.sql")).unwrap();
    let calls: Vec<&str> = text.lines().filter(|line| line.starts_with("SELECT ")).collect();
    assert_eq!(
        calls[..2],
        [
            "SELECT create_reference_table('public.countries');",
            "SELECT create_distributed_table('public.organizations', 'id');",
        ]
    );
    let rest = &calls[2..];
    assert_eq!(rest.len(), 8, "projects and seven tables: {rest:#?}");
    for call in rest {
        assert!(call.ends_with(", 'organization_id', colocate_with => 'public.organizations');"), "{call}");
    }
    assert!(text.contains("-- Citus refuses: visits_pkey of public.visits"), "{text}");
}

#[tokio::test]
async fn what_is_wrong_is_told_in_a_sentence() {
    let database = shop(postgres::shared()).await;
    let desk = Desk::at(&database);
    assert_one_sentence(
        &desk.run("apply", &[]),
        2,
        &["003_multi_tenant_transformation.sql", "migrate plan first"],
    );
    desk.done("plan", &[]);
    let planned = std::fs::read_to_string(desk.tenancy()).unwrap();
    let orders = "[tables.\"public.orders\"]\nscope = \"project\"\norganization = \"default\"";
    for (from, to, told) in [
        (
            "[tables.\"public.orders\"]",
            "[tables.\"public.oders\"]",
            &["public.oders", "public.orders is not in the file"][..],
        ),
        (
            orders,
            &orders.replace("\"default\"", "{ through = [\"note\"] }"),
            &["public.orders", "is no foreign key"],
        ),
        (
            orders,
            &orders.replace("\"default\"", "{ column = \"whose\" }"),
            &["public.orders", "no column \"whose\""],
        ),
        (orders, &orders.replace("\"default\"", "{ through = [\"customer_id\"]"), &["TOML", "line"]),
        (orders, &orders.replace("\"project\"", "\"mine\""), &["mine", "line"]),
        (
            orders,
            &orders.replace("scope = \"project\"\n", "scope = \"unknown\"\n"),
            &["public.orders", "say whose its rows are"],
        ),
        (
            "[tables.\"public.customers\"]\nscope = \"organization\"\norganization = \"default\"",
            "[tables.\"public.customers\"]\nscope = \"organization\"\norganization = { through = [\"referred_by\"] }",
            &["in a circle", "public.customers"],
        ),
        ("legacy = []", "legacy = [\"nobody\"]", &["no legacy role \"nobody\""]),
        ("table = \"public.organizations\"", "table = \"organizations\"", &["schema.name"]),
    ] {
        desk.edit(from, to);
        let ran = desk.run("plan", &[]);
        assert_eq!(ran.code, 2, "{to}: {ran:?}");
        assert!(told.iter().all(|part| ran.err.contains(part)), "{told:?}: {ran:?}");
        std::fs::write(desk.tenancy(), &planned).unwrap();
    }
    desk.edit("organization_name = \"Default\"", "organization_name = \"Ours\"");
    let ran = desk.run("apply", &["--no-backup"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("run pgtenant migrate plan again; nothing was changed"), "{ran:?}");
    std::fs::write(desk.tenancy(), &planned).unwrap();
    for (sql, undo, told) in [
        ("CREATE TABLE \"a\rb\" (id int)", "DROP TABLE \"a\rb\"", &["control character"][..]),
        (
            "CREATE MATERIALIZED VIEW all_of_them AS SELECT * FROM busy_customers; GRANT SELECT ON all_of_them TO PUBLIC",
            "DROP MATERIALIZED VIEW all_of_them",
            &["public.all_of_them", "REVOKE"],
        ),
        (
            "CREATE INDEX customers_pkey_tenant ON orders (id)",
            "DROP INDEX customers_pkey_tenant",
            &["public.customers_pkey_tenant"],
        ),
        (
            "GRANT SELECT ON orders TO app",
            "REVOKE SELECT ON orders FROM app",
            &["app", "has rights on public.orders"],
        ),
    ] {
        let admin = database.admin().await;
        admin.batch_execute(sql).await.unwrap();
        desk.edit("application = [", "application = [\"app\", ");
        if sql.contains("\r") {
            desk.edit(
                "[tables.\"public.orders\"]",
                "[tables.'public.\"a\\rb\"']\nscope = \"shared\"\n[tables.\"public.orders\"]",
            );
            let text = std::fs::read_to_string(desk.tenancy()).unwrap();
            std::fs::write(desk.tenancy(), text.replace("'public.\"a\\rb\"'", "\"public.\\\"a\\rb\\\"\""))
                .unwrap();
        }
        let ran = desk.run("plan", &[]);
        assert_eq!(ran.code, 2, "{sql}: {ran:?}");
        assert!(told.iter().all(|part| ran.err.contains(part)), "{told:?}: {ran:?}");
        admin.batch_execute(undo).await.unwrap();
        std::fs::write(desk.tenancy(), &planned).unwrap();
    }
    let url = format!("postgres://app:{}@127.0.0.1:{}/{}", password_of("app"), database.port, database.name);
    let as_nobody = Desk { url, folder: desk.folder };
    let ran = as_nobody.run("apply", &["--no-backup"]);
    assert_one_sentence(&ran, 1, &["does not bypass row level security", "nothing was changed"]);
    let desk = Desk { url: database.url.clone(), folder: as_nobody.folder };
    let admin = database.admin().await;
    admin
        .batch_execute("SELECT pg_advisory_lock(hashtext('pgtenant migrate'), hashtext(current_database()))")
        .await
        .unwrap();
    let pid = client::value(&admin, "SELECT pg_backend_pid()").await.unwrap().unwrap();
    assert_one_sentence(
        &desk.run("apply", &["--no-backup"]),
        1,
        &["another pgtenant migrate is at work", &pid],
    );
    admin.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    desk.done("apply", &["--no-backup"]);
    assert_one_sentence(&desk.run("plan", &[]), 1, &["is being migrated, or was", "roll back first"]);
    let file = desk.folder.path().join("003_multi_tenant_transformation.sql");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("ADD COLUMN IF NOT EXISTS", "ADD COLUMN", 1)).unwrap();
    assert_one_sentence(&desk.run("apply", &[]), 1, &["was done with another text"]);
    // What comes later is nobody's until somebody says whose.
    std::fs::write(&file, text).unwrap();
    admin.batch_execute("CREATE TABLE later (id int)").await.unwrap();
    let drifted = desk.run("verify", &[]);
    assert_eq!(drifted.code, 1, "{drifted:?}");
    assert!(drifted.out.contains("table public.later came later"), "{drifted:?}");
}
