//! `pgtenant migrate`: a single-tenant application becomes multi-tenant while it is there, and single-tenant again.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::commands::{Ran, assert_one_sentence};
use crate::harness::client;
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, Database, Shared, password_of};
use crate::harness::{Dice, eventually};

/// A shop before it had a second customer, with what schemas have: serial and identity columns, keys of several columns, keys
/// that refer to their own table, partial, expression and unique indexes, actions of foreign keys, a view, a trigger,
/// names that must be quoted.
const SHOP: &str = include_str!("migrate/shop.sql");

/// A folder for `tenancy.toml` and what lies beside it.
struct Desk {
    folder: TempDir,
    url: String,
}

impl Desk {
    fn at(database: &Database) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), url: database.url.clone() }
    }

    fn tenancy(&self) -> std::path::PathBuf {
        self.folder.path().join("tenancy.toml")
    }

    fn run(&self, action: &str, more: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
        command
            .args(["migrate", action, "--database", &self.url, "--tenancy"])
            .arg(self.tenancy())
            .args(more);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }

    fn done(&self, action: &str, more: &[&str]) -> Ran {
        let ran = self.run(action, more);
        assert_eq!(ran.code, 0, "{action}: {ran:?}");
        ran
    }

    /// Changes the file.
    fn edit(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.tenancy()).unwrap();
        assert!(text.contains(from), "{from}: {text}");
        std::fs::write(self.tenancy(), text.replace(from, to)).unwrap();
    }
}

/// What pg_dump tells of a database, less what differs from run to run. Where there is no pg_dump of this version: its schema, as
/// the architect reads it, and a sum of each table's rows.
async fn dumped(database: &Database) -> String {
    let Some(pg_dump) = pg_dump(database) else { return summed_up(database).await };
    let output = Command::new(pg_dump)
        .args(["--no-owner", "--exclude-table-data=pgtenant.migration_*", "--dbname", &database.url])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let kept =
        text.lines().filter(|line| !line.starts_with("--") && !line.starts_with("\\") && !line.is_empty());
    kept.collect::<Vec<_>>().join("\n")
}

/// One that is not older than the server.
fn pg_dump(database: &Database) -> Option<PathBuf> {
    let all = [database.bin.join("pg_dump"), "pg_dump".into()];
    let server = major(&database.bin.join("postgres"));
    all.into_iter().find(|program| major(program) >= server)
}

fn major(program: &Path) -> Option<u32> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty())?.parse().ok()
}

async fn summed_up(database: &Database) -> String {
    let admin = database.admin().await;
    admin.batch_execute("SET search_path = pg_catalog").await.unwrap();
    let row = admin.query_one(include_str!("../../src/architect/sql/catalog.sql"), &[]).await.unwrap();
    let mut catalog: serde_json::Value = row.get(0);
    let mut sums = Vec::new();
    for table in catalog["tables"].as_array_mut().unwrap() {
        for estimate in ["rows", "bytes", "writes"] {
            table.as_object_mut().unwrap().remove(estimate);
        }
        table["indexes"].as_array_mut().unwrap().iter_mut().for_each(|index| index["bytes"] = 0.into());
        let name = format!("{}.\"{}\"", table["schema"].as_str().unwrap(), table["name"].as_str().unwrap());
        let sql =
            format!("SELECT coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text FROM {name} t");
        sums.push(format!("{name} {}", admin.query_one(&sql, &[]).await.unwrap().get::<_, String>(0)));
    }
    catalog.as_object_mut().unwrap().retain(|key, _| ["tables", "views", "definers"].contains(&key.as_str()));
    format!("{}\n{}", serde_json::to_string_pretty(&catalog).unwrap(), sums.join("\n"))
}

/// The same lines.
fn assert_same(before: &str, after: &str, version: u32) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (was, is) = (lines(before), lines(after));
    let gone: Vec<_> = was.iter().filter(|line| !is.contains(line)).collect();
    let new: Vec<_> = is.iter().filter(|line| !was.contains(line)).collect();
    let some =
        |lines: &[&String]| lines.iter().take(10).map(|line| format!("\n  {line}")).collect::<String>();
    assert!(
        gone.is_empty() && new.is_empty(),
        "PostgreSQL {version}: {} lines are gone:{}\n{} are new:{}",
        gone.len(),
        some(&gone),
        new.len(),
        some(&new)
    );
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    // Rows that were changed lie elsewhere, and are dumped in another order.
    assert_eq!(sorted(was), sorted(is), "PostgreSQL {version}: not as often");
}

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
        let refused = desk.run("rollback", &[]);
        assert_one_sentence(&refused, 1, &["audit_log has", "nothing was changed"]);
        let emptied =
            "ALTER TABLE pgtenant.audit_log DISABLE TRIGGER append_only; TRUNCATE pgtenant.audit_log";
        database.admin().await.batch_execute(emptied).await.unwrap();
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

/// Some tables say whose their rows are, others are found by paths, one by an expression; a legacy role goes on writing.
#[tokio::test]
async fn rows_find_their_organization_and_a_legacy_role_goes_on_until_cut_over() {
    let database = postgres::shared().empty_database().await;
    let admin = database.admin().await;
    admin.batch_execute(include_str!("migrate/agency.sql")).await.unwrap();
    admin
        .batch_execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO reports")
        .await
        .unwrap();
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
    // A row that finds none stops it: the state has a name, and it goes on from there.
    admin
        .batch_execute(
            "INSERT INTO users (id, account_id, email) VALUES (99, NULL, 'nobody@example.com'); \
        INSERT INTO posts (id, user_id, body) VALUES (99999, 99, 'nobody''s')",
        )
        .await
        .unwrap();
    let stopped = desk.run("apply", &["--no-backup"]);
    assert_eq!(stopped.code, 1, "{stopped:?}");
    for part in [
        "1 rows of public.users do not find their account_id",
        "{\"id\": 99}",
        "migrate apply goes on",
        "rollback goes back",
    ] {
        assert!(stopped.err.contains(part), "{part}: {stopped:?}");
    }
    admin.batch_execute("DELETE FROM users WHERE id = 99").await.unwrap();
    // The old application writes what it always wrote.
    let legacy = database.direct("reports").await;
    legacy
        .batch_execute("INSERT INTO posts (id, user_id, body) VALUES (20001, 3, 'by the old one'); INSERT INTO comments VALUES (20001, 1, NULL, 'and more')")
        .await
        .unwrap();
    desk.done("apply", &[]);
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
    let wrong = "SELECT count(*) FROM events WHERE account_name <> 'account ' || organization_id";
    assert_eq!(client::value(&admin, wrong).await.unwrap().as_deref(), Some("0"));
    desk.done("rollback", &[]);
    admin.batch_execute("DELETE FROM posts WHERE id = 20001").await.unwrap();
    assert_same(&before, &dumped(&database).await, 15);
    // All the way.
    desk.done("apply", &["--no-backup", "--cut-over"]);
    desk.done("verify", &[]);
    let seen = client::value(&legacy, "SELECT count(*) FROM posts").await;
    assert!(
        seen.is_err() || seen.unwrap().as_deref() == Some("0"),
        "a legacy role sees rows after the cut-over"
    );
}

const EVENTS: &str = r#"[tables."public.events"]
scope = "organization"
organization = { expression = "SELECT a.id FROM public.accounts a WHERE a.name = account_name" }"#;

/// Killed again and again, it gets where it gets otherwise; and back.
#[tokio::test]
async fn killed_at_any_step_it_goes_on() {
    let shared = Shared::start(&pgtenant::cli::demo::throwaway::Options::default());
    let (whole, killed) = (shop(&shared).await, shop(&shared).await);
    // A sequence skips numbers when PostgreSQL crashes, and when the default organization was made is another time.
    let dumped = async |database: &Database| {
        let text = dumped(database).await;
        text.lines()
            .filter(|line| !line.starts_with("SELECT pg_catalog.setval") && !line.contains("\tDefault\t"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    let before = dumped(&killed).await;
    let desk = Desk::at(&whole);
    desk.done("plan", &[]);
    let role = format!("{}_tenant", whole.name);
    desk.edit(&role, "app");
    desk.done("plan", &[]);
    desk.done("apply", &["--no-backup"]);
    let expected = dumped(&whole).await;
    let desk = Desk { url: killed.url.clone(), ..desk };
    let mut dice = Dice(seed());
    let kills = desk.killed(&shared, &killed, "apply", &["--no-backup"], &mut dice).await;
    assert!(kills > 10, "{kills}");
    assert_same(&expected, &dumped(&killed).await, 15);
    desk.done("verify", &[]);
    let kills = desk.killed(&shared, &killed, "rollback", &[], &mut dice).await;
    assert!(kills > 10, "{kills}");
    assert_same(&before, &dumped(&killed).await, 15);
}

fn seed() -> u64 {
    let fresh = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("MIGRATE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(fresh % 1_000_000_000);
    println!("MIGRATE_SEED={seed}");
    seed
}

impl Desk {
    /// Runs an action until it is done: each time it is killed soon after it told of a step, or its server process is. How often.
    async fn killed(
        &self,
        shared: &Shared,
        database: &Database,
        action: &str,
        more: &[&str],
        dice: &mut Dice,
    ) -> usize {
        let (mut longest, mut last) = (25, None);
        for kills in 0..400 {
            let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
            command
                .args(["migrate", action, "--database", &self.url, "--tenancy"])
                .arg(self.tenancy())
                .args(more);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
            let step = (0..1 + dice.roll(3)).filter_map(|_| lines.next()?.ok()).last();
            // It must get somewhere.
            longest = if step == last { (2 * longest).min(1_000) } else { 25 };
            last.clone_from(&step);
            std::thread::sleep(Duration::from_millis(dice.roll(longest)));
            if dice.roll(10) == 0 {
                // All of PostgreSQL ends with it, and recovers.
                let sql = "SELECT pid::text FROM pg_stat_activity WHERE application_name = 'pgtenant migrate' LIMIT 1";
                if let Ok(Some(pid)) = client::value(&database.admin().await, sql).await {
                    Command::new("kill").args(["-KILL", &pid]).status().unwrap();
                }
            } else {
                // It may have ended.
                let _ = child.kill();
            }
            let rest: Vec<_> = lines.map_while(Result::ok).collect();
            let status = child.wait().unwrap();
            if status.success() {
                return kills;
            }
            assert!(
                status.code().is_none()
                    || rest.iter().any(|line| EXPECTED.iter().any(|word| line.contains(word))),
                "{action} at {step:?}: {status}: {rest:?}"
            );
            eventually("PostgreSQL, and nobody at work", async || {
                let (admin, connection) =
                    tokio_postgres::connect(&shared.server.url(&database.name), tokio_postgres::NoTls)
                        .await
                        .ok()?;
                tokio::spawn(connection);
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgtenant migrate'";
                let left: i64 = admin.query_one(sql, &[]).await.ok()?.get(0);
                (left == 0).then_some(())
            })
            .await;
        }
        panic!("{action} does not come to an end");
    }
}

/// What it says where its server process was killed.
const EXPECTED: [&str; 5] = ["connection closed", "cannot connect", "terminat", "recovery", "57P"];

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
