//! Small schemas, each with something that a migration can trip over.

use super::desk::{Desk, assert_same, dumped};
use crate::commands::assert_one_sentence;
use crate::harness::client;
use crate::harness::postgres::{self, Database, Shared};

const TENANTS: &str = "
CREATE TABLE accounts (id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE users (id bigint PRIMARY KEY, account_id bigint NOT NULL REFERENCES accounts, email text NOT NULL);
CREATE TABLE devices (id bigint PRIMARY KEY, user_id bigint NOT NULL REFERENCES users);
INSERT INTO accounts VALUES (1, 'one'), (2, 'two');
INSERT INTO users SELECT n, 1 + n % 2, 'u' || n FROM generate_series(1, 20) AS n;
";

async fn laid(shared: &Shared, sql: &str) -> (Database, Desk) {
    let database = shared.empty_database().await;
    database.admin().await.batch_execute(&format!("{TENANTS}{sql}")).await.unwrap();
    let desk = Desk::at(&database);
    (database, desk)
}

async fn value(database: &Database, sql: &str) -> String {
    client::value(&database.admin().await, sql).await.unwrap().unwrap_or_default()
}

/// Each is migrated with nothing edited, checked, and is afterwards what it was.
#[tokio::test]
async fn schemas_go_there_and_back() {
    for shared in postgres::every_version() {
        let version = shared.server.version_major();
        for (sql, rows, check, told) in SCHEMAS {
            if sql.contains("SET NULL (") && version < 15 {
                continue;
            }
            let (database, desk) = laid(shared, sql).await;
            let before = dumped(&database).await;
            desk.done("plan", &[]);
            let status = desk.done("status", &[]);
            assert!(status.out.contains("\n0 of ") && status.out.contains("next is 003.0010"), "{status:?}");
            desk.done("apply", &["--no-backup"]);
            let status = desk.done("status", &[]);
            assert!(status.out.lines().last().is_some_and(|line| line.starts_with("all ")), "{status:?}");
            desk.done("verify", &[]);
            assert_eq!(value(&database, UNKNOWN_TO_THE_PLANNER).await, "", "PostgreSQL {version}");
            database.admin().await.batch_execute(rows).await.unwrap();
            assert_eq!(value(&database, check).await, told, "PostgreSQL {version}: {check}");
            desk.done("verify", &[]);
            desk.done("rollback", &[]);
            assert_same(&before, &dumped(&database).await, version);
        }
    }
}

/// Tables that have rows, and no statistics of whose they are. (That of projects is new, which is enough for autovacuum.)
const UNKNOWN_TO_THE_PLANNER: &str = "
SELECT string_agg(attrelid::regclass::text, ', ') FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
WHERE attname = 'organization_id' AND relkind = 'r' AND relnamespace = 'public'::regnamespace AND pg_relation_size(attrelid) > 0
AND relname <> 'projects' AND NOT EXISTS (SELECT FROM pg_statistic WHERE starelid = attrelid AND staattnum = attnum)
";

/// A schema; what is done to it once it is migrated and undone again, or nothing; a question, and the answer.
const SCHEMAS: [(&str, &str, &str, &str); 7] = [
    // Its organization is part of its key, and not the first of it.
    (
        "CREATE TABLE memberships (user_id bigint REFERENCES users, account_id bigint REFERENCES accounts, PRIMARY KEY (user_id, account_id));
         INSERT INTO memberships SELECT id, account_id FROM users;",
        "",
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'memberships_pkey'",
        "PRIMARY KEY (account_id, user_id)",
    ),
    // A view that is grouped by a key cannot be without it.
    (
        "CREATE TABLE orders (id bigint PRIMARY KEY, user_id bigint NOT NULL REFERENCES users, note text, quantity integer);
         CREATE VIEW totals AS SELECT id, note, sum(quantity) FROM orders GROUP BY id;
         INSERT INTO orders SELECT n, 1 + n % 20, 'note', n FROM generate_series(1, 100) AS n;",
        "",
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'orders_pkey'",
        "PRIMARY KEY (id)",
    ),
    // Nor can logical replication.
    (
        "CREATE TABLE feeds (id bigint PRIMARY KEY, user_id bigint NOT NULL REFERENCES users, token text NOT NULL);
         CREATE UNIQUE INDEX feeds_token ON feeds (token);
         ALTER TABLE feeds REPLICA IDENTITY USING INDEX feeds_token;
         INSERT INTO feeds SELECT n, 1 + n % 20, 'token ' || n FROM generate_series(1, 100) AS n;",
        "",
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'feeds'::regclass AND indisreplident",
        "feeds_token",
    ),
    // Keys whose values JSON does not have, and more rows than a batch.
    (
        "CREATE TABLE nodes (path text[], seen tstzrange, user_id bigint NOT NULL REFERENCES users, PRIMARY KEY (path, seen));
         INSERT INTO nodes SELECT ARRAY['root', n::text, 'a \"quoted\" one'], tstzrange(now(), now() + n * interval '1 hour'), 1 + n % 20
             FROM generate_series(1, 3000) AS n;",
        "",
        "SELECT count(*) FROM nodes n JOIN users u ON u.id = n.user_id WHERE n.organization_id = u.account_id",
        "3000",
    ),
    // Rows that cannot be told apart, those of partitions too.
    (
        "CREATE TABLE clicks (user_id bigint NOT NULL REFERENCES users, at date NOT NULL, what text) PARTITION BY RANGE (at);
         CREATE TABLE clicks_early PARTITION OF clicks FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
         CREATE TABLE clicks_late PARTITION OF clicks FOR VALUES FROM ('2026-02-01') TO ('2027-01-01');
         CREATE TABLE taps (user_id bigint NOT NULL REFERENCES users, what text);
         INSERT INTO clicks SELECT 1 + n % 20, date '2026-01-01' + n % 300, repeat('x', 100) FROM generate_series(1, 4000) AS n;
         INSERT INTO taps SELECT 1 + n % 20, repeat('x', 100) FROM generate_series(1, 4000) AS n;",
        "",
        "SELECT (SELECT count(*) FROM clicks c JOIN users u ON u.id = c.user_id WHERE c.organization_id = u.account_id)
             + (SELECT count(*) FROM taps t JOIN users u ON u.id = t.user_id WHERE t.organization_id = u.account_id)",
        "8000",
    ),
    // Of a key's columns some become NULL, and its organization does not.
    (
        "CREATE TABLE places (region text, id bigint, user_id bigint NOT NULL REFERENCES users, PRIMARY KEY (region, id));
         CREATE TABLE visits (id bigint PRIMARY KEY, user_id bigint NOT NULL REFERENCES users, region text NOT NULL, place bigint,
             FOREIGN KEY (region, place) REFERENCES places (region, id) ON DELETE SET NULL (place));
         INSERT INTO places SELECT 'north', n, n FROM generate_series(1, 20) AS n;
         INSERT INTO visits SELECT n, n, 'north', n FROM generate_series(1, 20) AS n;",
        "BEGIN; DELETE FROM places WHERE id = 7; CREATE TABLE found AS SELECT region || ' ' || coalesce(place::text, 'none') || ' '
             || organization_id AS row FROM visits WHERE id = 7; INSERT INTO places (region, id, user_id, organization_id) VALUES ('north', 7, 7, 2);
         UPDATE visits SET place = 7 WHERE id = 7; COMMIT; ALTER TABLE found SET SCHEMA pgtenant; SET search_path = pgtenant, public",
        "SELECT row FROM pgtenant.found",
        "north none 2",
    ),
    // What it may see was narrower before.
    (
        "CREATE TABLE letters (id bigint PRIMARY KEY, user_id bigint NOT NULL REFERENCES users, owner text NOT NULL DEFAULT current_user);
         ALTER TABLE letters ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY own ON letters USING (owner = current_user);
         INSERT INTO letters SELECT n, n, CASE n % 2 WHEN 0 THEN 'app' ELSE 'somebody' END FROM generate_series(1, 20) AS n;",
        "",
        "SELECT string_agg(polname || ' ' || polpermissive, ', ' ORDER BY polname) FROM pg_policy WHERE polrelid = 'letters'::regclass",
        "own true, tenant_floor false",
    ),
];

/// What would fail later, or let somebody see too much, is told before anything is changed.
#[tokio::test]
async fn what_cannot_be_is_told_before_it_begins() {
    let shared = postgres::shared();
    for (sql, action, told) in [
        (
            "CREATE TABLE orders (id bigint PRIMARY KEY, user_id bigint NOT NULL REFERENCES users); GRANT ALL ON orders TO PUBLIC;",
            "plan",
            &["PUBLIC has", "public.orders", "REVOKE"][..],
        ),
        (
            "CREATE TABLE orders (id bigint PRIMARY KEY, user_id bigint NOT NULL REFERENCES users);
             CREATE POLICY old ON orders USING (true);",
            "plan",
            &["public.orders has policies that are not in force"],
        ),
        (
            "ALTER TABLE users ENABLE ROW LEVEL SECURITY; CREATE POLICY tenant_floor ON users USING (true);",
            "plan",
            &["public.users has a policy called tenant_floor already", "RENAME TO"],
        ),
        // Somebody was recommended by somebody of another account.
        (
            "ALTER TABLE users ADD referred_by bigint REFERENCES users; UPDATE users SET referred_by = id - 1 WHERE id > 1;",
            "apply",
            &[
                "19 rows of public.users refer by users_referred_by_fkey (referred_by) to rows of another organization",
                "{\"id\": 2}",
                "nothing was changed",
            ],
        ),
    ] {
        let (database, desk) = laid(shared, sql).await;
        let before = dumped(&database).await;
        if action == "apply" {
            desk.done("plan", &[]);
        }
        let ran = desk.run(action, if action == "apply" { &["--no-backup"] } else { &[] });
        assert_ne!(ran.code, 0, "{sql}: {ran:?}");
        assert!(told.iter().all(|part| ran.err.contains(part)), "{told:?}: {ran:?}");
        assert_same(&before, &dumped(&database).await, 15);
    }
}

/// There are organizations already, of another kind, or without the one that rows are given.
#[tokio::test]
async fn a_default_organization_must_be_there() {
    let database = postgres::shared().empty_database().await;
    let admin = database.admin().await;
    let sql = "CREATE TABLE organizations (id uuid PRIMARY KEY, name text); CREATE TABLE notes (id bigint PRIMARY KEY, body text)";
    admin.batch_execute(sql).await.unwrap();
    let desk = Desk::at(&database);
    desk.done("plan", &[]);
    let ran = desk.run("apply", &["--no-backup"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    for part in ["public.organizations has no row", "[default]", "nothing was changed"] {
        assert!(ran.err.contains(part), "{part}: {ran:?}");
    }
    admin
        .batch_execute("DROP TABLE organizations; CREATE TABLE organizations (id bigint PRIMARY KEY)")
        .await
        .unwrap();
    let ran = desk.run("plan", &[]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("id of public.organizations is bigint"), "{ran:?}");
}

/// The schema is not what was planned for.
#[tokio::test]
async fn what_was_made_after_the_plan_is_planned_anew() {
    let (database, desk) = laid(postgres::shared(), "").await;
    desk.done("plan", &[]);
    let admin = database.admin().await;
    admin.batch_execute("ALTER TABLE users ADD UNIQUE (email)").await.unwrap();
    let ran = desk.run("apply", &["--no-backup"]);
    assert_one_sentence(
        &ran,
        2,
        &["the schema of the database was changed", "plan again", "nothing was changed"],
    );
    desk.done("plan", &[]);
    admin.batch_execute("CREATE INDEX ON users (id, email)").await.unwrap();
    assert_eq!(desk.run("apply", &["--no-backup"]).code, 2, "an index is one");
    desk.done("plan", &[]);
    admin
        .batch_execute("INSERT INTO users VALUES (78, 1, 'u78'); ANALYZE; COMMENT ON TABLE users IS 'People'")
        .await
        .unwrap();
    desk.done("apply", &["--no-backup"]);
}

/// Rows that find nothing stop it; once they do, it goes on.
#[tokio::test]
async fn corrected_rows_are_found_when_it_goes_on() {
    let sql = "CREATE TABLE regions (name text PRIMARY KEY, account bigint NOT NULL);
        CREATE TABLE events (id bigint PRIMARY KEY, region text NOT NULL);
        INSERT INTO regions VALUES ('north', 1);
        INSERT INTO events SELECT n, 'north' FROM generate_series(1, 2000) AS n;";
    let (database, desk) = laid(postgres::shared(), sql).await;
    desk.run("plan", &[]);
    for table in ["regions", "events"] {
        let (scope, how) = match table {
            "regions" => ("shared", ""),
            // Once it is being migrated, one of them is nobody's.
            _ => (
                "organization",
                "organization = { expression = \"(SELECT r.account FROM public.regions r WHERE r.name = region AND (id <> 3 OR r.account = 1 \
                 AND to_regnamespace('pgtenant') IS NULL OR EXISTS (SELECT FROM public.regions WHERE name = 'mended')))\" }\n",
            ),
        };
        let text = std::fs::read_to_string(desk.tenancy()).unwrap();
        let (head, rest) = text.split_once(&format!("[tables.\"public.{table}\"]\n")).unwrap();
        let rest = rest.find("\n[").map_or("", |next| &rest[next..]);
        let text = format!("{head}[tables.\"public.{table}\"]\nscope = \"{scope}\"\n{how}{rest}");
        std::fs::write(desk.tenancy(), text).unwrap();
    }
    desk.done("plan", &[]);
    let stopped = desk.run("apply", &["--no-backup"]);
    assert_eq!(stopped.code, 1, "{stopped:?}");
    assert!(
        stopped.err.contains("1 rows of public.events do not find their organization_id")
            && stopped.err.contains("{\"id\": 3}"),
        "{stopped:?}"
    );
    assert_eq!(desk.run("apply", &[]).code, 1, "it is as before");
    database.admin().await.batch_execute("INSERT INTO regions VALUES ('mended', 1)").await.unwrap();
    desk.done("apply", &[]);
    desk.done("verify", &[]);
    assert_eq!(value(&database, "SELECT count(*) FROM events WHERE organization_id = 1").await, "2000");
}

/// Whatever is changed of what isolation rests on.
#[tokio::test]
async fn what_was_changed_since_is_found() {
    let sql =
        "CREATE TABLE orders (id bigint PRIMARY KEY, user_id bigint NOT NULL REFERENCES users, note text);
        CREATE TABLE migration_notes (id bigint PRIMARY KEY, user_id bigint NOT NULL REFERENCES users);
        CREATE VIEW recent AS SELECT * FROM orders;
        INSERT INTO orders SELECT n, 1 + n % 20, 'note' FROM generate_series(1, 100) AS n;";
    let (database, desk) = laid(postgres::shared(), sql).await;
    desk.done("plan", &[]);
    desk.done("apply", &["--no-backup"]);
    desk.done("verify", &[]);
    let role = format!("{}_tenant", database.name);
    let admin = database.admin().await;
    for (change, undo, told) in [
        (
            "ALTER POLICY tenant_floor ON orders USING (true) WITH CHECK (true)",
            "ALTER POLICY tenant_floor ON orders USING (organization_id = (SELECT pgtenant.organization_id())) \
             WITH CHECK (organization_id = (SELECT pgtenant.organization_id()))",
            "policy tenant_floor on public.orders was changed",
        ),
        (
            "CREATE POLICY more ON migration_notes USING (true)",
            "DROP POLICY more ON migration_notes",
            "policy more on public.migration_notes came later",
        ),
        (
            "CREATE POLICY more ON orders USING (true)",
            "DROP POLICY more ON orders",
            "policy more on public.orders came later",
        ),
        (
            "ALTER VIEW recent RESET (security_invoker)",
            "ALTER VIEW recent SET (security_invoker = true)",
            "view public.recent was changed",
        ),
        (
            &format!("ALTER ROLE {role} BYPASSRLS"),
            &format!("ALTER ROLE {role} NOBYPASSRLS"),
            "bypasses row level security t",
        ),
        (
            &format!("GRANT TRUNCATE ON orders TO {role}"),
            &format!("REVOKE TRUNCATE ON orders FROM {role}"),
            "rights of",
        ),
        (
            &format!("CREATE VIEW everything AS SELECT * FROM orders; GRANT SELECT ON everything TO {role}"),
            "DROP VIEW everything",
            "view public.everything came later",
        ),
        (
            "ALTER TABLE orders ALTER organization_id SET DEFAULT 1",
            "ALTER TABLE orders ALTER organization_id SET DEFAULT pgtenant.row_organization(NULL)",
            "column organization_id of public.orders is gone",
        ),
        (
            "ALTER TABLE orders NO FORCE ROW LEVEL SECURITY",
            "ALTER TABLE orders FORCE ROW LEVEL SECURITY",
            "policies on public.orders hold for its owner too",
        ),
    ] {
        admin.batch_execute(change).await.unwrap();
        let found = desk.run("verify", &[]);
        assert_eq!(found.code, 1, "{change}: {found:?}");
        assert!(found.out.contains(told), "{told}: {found:?}");
        admin.batch_execute(undo).await.unwrap();
        desk.done("verify", &[]);
    }
}

/// What one organization may have because another one has it is in the way of the way back.
#[tokio::test]
async fn values_that_two_organizations_have_are_told_before_the_way_back() {
    let (database, desk) =
        laid(postgres::shared(), "CREATE UNIQUE INDEX users_email ON users (lower(email));").await;
    let before = dumped(&database).await;
    desk.done("plan", &[]);
    desk.done("apply", &["--no-backup"]);
    let admin = database.admin().await;
    admin.batch_execute("INSERT INTO users VALUES (99, 1, 'U1')").await.unwrap();
    let role = format!("{}_tenant", database.name);
    let refused = desk.run("rollback", &[]);
    assert_one_sentence(
        &refused,
        1,
        &["several organizations have u1 in public.users", "users_email", "nothing was changed"],
    );
    admin.batch_execute("DELETE FROM users WHERE id = 99").await.unwrap();
    admin
        .batch_execute(&format!("CREATE TABLE theirs (id int); ALTER TABLE theirs OWNER TO {role}"))
        .await
        .unwrap();
    let refused = desk.run("rollback", &[]);
    assert_one_sentence(&refused, 1, &["owns table theirs", "REASSIGN OWNED", "nothing was changed"]);
    admin.batch_execute("DROP TABLE theirs").await.unwrap();
    desk.done("verify", &[]);
    desk.done("rollback", &[]);
    assert_same(&before, &dumped(&database).await, 15);
}
