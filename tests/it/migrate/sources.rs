//! How rows find whose they are: by files, by paths to projects, or not at all.

use pgtenant::cli::demo::throwaway::Options;

use super::desk::{Desk, assert_same, dumped};
use crate::harness::client;
use crate::harness::postgres::{self, Database, Shared};

async fn agency() -> (Database, Desk) {
    let database = postgres::shared().empty_database().await;
    database.admin().await.batch_execute(include_str!("agency.sql")).await.unwrap();
    let desk = Desk::at(&database);
    assert_eq!(desk.run("plan", &[]).code, 2, "events are nobody's");
    desk.edit(
        "[tables.\"public.events\"]\nscope = \"unknown\"",
        "[tables.\"public.events\"]\nscope = \"organization\"\norganization = { mapping = \"accounts.csv\" }",
    );
    (database, desk)
}

async fn number(database: &Database, sql: &str) -> String {
    client::value(&database.admin().await, sql).await.unwrap().unwrap()
}

/// `apply` ends with all of this told.
fn refused_by(desk: &Desk, told: &[&str]) {
    let ran = desk.run("apply", &["--no-backup"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    for part in told {
        assert!(ran.err.contains(part), "{part}: {ran:?}");
    }
}

#[tokio::test]
async fn rows_that_a_file_does_not_know_stop_it_or_are_put_in_quarantine() {
    let (database, desk) = agency().await;
    let before = dumped(&database).await;
    let file = desk.folder.path().join("accounts.csv");
    let told = |told: &[&str]| {
        let ran = desk.run("plan", &[]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(told.iter().all(|part| ran.err.contains(part)), "{told:?}: {ran:?}");
    };
    told(&["accounts.csv", "No such file"]);
    std::fs::write(&file, "name,id\naccount 1,1\n").unwrap();
    told(&["public.events", "accounts.csv names a column \"name\""]);
    // 'account 5' is nowhere in it.
    std::fs::write(&file, "account_name,id\naccount 1,1\naccount 2,2\n\"account 3\",3\naccount 4, 4\n")
        .unwrap();
    desk.done("plan", &[]);
    refused_by(
        &desk,
        &[
            "20 rows of public.events would find no organization_id, the first of them {\"id\": 4}",
            "nothing was changed",
        ],
    );
    std::fs::write(
        &file,
        "account_name,id\naccount 1,1\naccount 2,2\naccount 3,3\naccount 4,4\naccount 5,77\n",
    )
    .unwrap();
    desk.done("plan", &[]);
    refused_by(&desk, &["1 ids", "public.events", "are not in public.accounts, the first of them 77"]);
    std::fs::write(&file, "account_name,id\naccount 1,one\n").unwrap();
    desk.done("plan", &[]);
    refused_by(&desk, &["invalid input syntax for type", "one"]);
    assert_same(&before, &dumped(&database).await, 15);
    // They were there when it was looked, and are not when they are needed.
    let expression = "(SELECT a.id FROM accounts AS a WHERE a.name = account_name \
                      AND (account_name <> 'account 5' OR to_regnamespace('pgtenant') IS NULL))";
    desk.edit("mapping = \"accounts.csv\"", &format!("expression = \"{expression}\""));
    desk.done("plan", &[]);
    refused_by(
        &desk,
        &[
            "20 rows of public.events do not find their organization_id",
            "{\"id\": 4}",
            "otherwise = \"quarantine\"",
            "migrate apply goes on",
            "rollback goes back",
        ],
    );
    // As it was told: back, another word in the file, and again.
    desk.done("rollback", &[]);
    assert_same(&before, &dumped(&database).await, 15);
    desk.edit(&format!("expression = \"{expression}\""), "mapping = \"accounts.csv\"");
    std::fs::write(&file, "account_name,id\naccount 1,1\naccount 2,2\n\"account 3\",3\naccount 4, 4\n")
        .unwrap();
    desk.edit("mapping = \"accounts.csv\" }", "mapping = \"accounts.csv\" }\notherwise = \"quarantine\"");
    told(&["public.events", "there is no [quarantine]"]);
    desk.edit("\n[default]\n", "\n[quarantine]\norganization = \"99\"\nproject = \"99\"\n\n[default]\n");
    desk.done("plan", &[]);
    let stopped = desk.run("apply", &["--no-backup"]);
    assert_eq!(stopped.code, 1, "{stopped:?}");
    assert!(stopped.err.contains("public.accounts has no row 99"), "{stopped:?}");
    assert!(
        stopped.err.contains("Insert it, then go on; what was done before it is in force"),
        "{stopped:?}"
    );
    database.admin().await.batch_execute("INSERT INTO accounts VALUES (99, 'Nobody')").await.unwrap();
    let applied = desk.done("apply", &[]);
    assert!(
        applied.out.contains("20 rows of public.events are in quarantine: organization 99"),
        "{applied:?}"
    );
    desk.done("verify", &[]);
    let sql = "SELECT string_agg(DISTINCT account_name || ' ' || organization_id, ', ' ORDER BY account_name || ' ' || organization_id) FROM events";
    assert_eq!(
        number(&database, sql).await,
        "account 1 1, account 2 2, account 3 3, account 4 4, account 5 99"
    );
    desk.done("rollback", &[]);
    database.admin().await.batch_execute("DELETE FROM accounts WHERE id = 99").await.unwrap();
    assert_same(&before, &dumped(&database).await, 15);
}

#[tokio::test]
async fn rows_that_would_stop_it_are_told_before_it_begins() {
    let (database, desk) = agency().await;
    desk.edit("mapping = \"accounts.csv\"", "expression = \"CASE WHEN id <> 7 THEN 1 END\"");
    let admin = database.admin().await;
    admin
        .batch_execute(
            "INSERT INTO users (id, account_id, email) VALUES (99, NULL, 'nobody@example.com'); \
             CREATE UNIQUE INDEX not_whole ON likes (comment_post, comment_number); \
             UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'not_whole'::regclass; \
             ALTER TABLE posts DROP CONSTRAINT posts_user_id_fkey; UPDATE posts SET user_id = 4711 WHERE id = 3; \
             ALTER TABLE posts ADD CONSTRAINT posts_user_id_fkey FOREIGN KEY (user_id) REFERENCES users NOT VALID",
        )
        .await
        .unwrap();
    let before = dumped(&database).await;
    desk.done("plan", &[]);
    let refused = desk.run("apply", &["--no-backup"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    for part in [
        "1 rows of public.users would find no account_id, the first of them {\"id\": 99}",
        "1 rows of public.events would find no organization_id, the first of them {\"id\": 7}",
        "1 rows of public.posts refer to nothing by posts_user_id_fkey",
        "nothing was changed",
    ] {
        assert!(refused.err.contains(part), "{part}: {refused:?}");
    }
    assert!(refused.out.contains("index not_whole of public.likes is invalid"), "{refused:?}");
    assert_same(&before, &dumped(&database).await, 15);
}

/// Accounts with projects of their own: what hangs on a project is a project's, and moves with what it hangs on.
const BOARDS: &str = "
CREATE TABLE accounts (id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE projects (id bigint PRIMARY KEY, account_id bigint NOT NULL REFERENCES accounts, name text NOT NULL);
CREATE TABLE people (id bigint PRIMARY KEY, account_id bigint NOT NULL REFERENCES accounts, favourite bigint REFERENCES projects);
CREATE TABLE tickets (id bigint PRIMARY KEY, project_id bigint NOT NULL REFERENCES projects, title text NOT NULL);
CREATE TABLE notes (id bigint PRIMARY KEY, ticket_id bigint NOT NULL REFERENCES tickets ON DELETE CASCADE, body text NOT NULL);
INSERT INTO accounts VALUES (1, 'one'), (2, 'two');
INSERT INTO projects VALUES (11, 1, 'a'), (12, 1, 'b'), (21, 2, 'c');
INSERT INTO people VALUES (1, 1, 11), (2, 2, NULL);
INSERT INTO tickets SELECT n, (ARRAY[11, 12, 21])[1 + n % 3], 'ticket ' || n FROM generate_series(1, 300) AS n;
INSERT INTO notes SELECT n, 1 + n % 300, 'note ' || n FROM generate_series(1, 900) AS n;
";

#[tokio::test]
async fn projects_that_are_there_are_found_and_rows_move_with_what_they_hang_on() {
    for shared in postgres::every_version() {
        let database = shared.empty_database().await;
        let admin = database.admin().await;
        admin.batch_execute(BOARDS).await.unwrap();
        let before = dumped(&database).await;
        let desk = Desk::at(&database);
        desk.done("plan", &[]);
        let text = std::fs::read_to_string(desk.tenancy()).unwrap();
        for lines in [
            "[tables.\"public.tickets\"]\nscope = \"project\"\norganization = { through = [\"project_id\"] }\nproject = { column = \"project_id\" }\n",
            "[tables.\"public.notes\"]\nscope = \"project\"\norganization = { through = [\"ticket_id\"] }\nproject = { through = [\"ticket_id\"] }\n",
            "[tables.\"public.people\"]\nscope = \"organization\"\norganization = { column = \"account_id\" }\n",
        ] {
            assert!(text.contains(lines), "{lines}: {text}");
        }
        desk.done("apply", &["--no-backup"]);
        desk.done("verify", &[]);
        let wrong = "SELECT count(*) FROM notes n JOIN tickets t ON t.id = n.ticket_id JOIN projects p ON p.id = t.project_id \
                     WHERE (n.organization_id, n.project_id) IS DISTINCT FROM (p.account_id, p.id) OR t.organization_id <> p.account_id";
        assert_eq!(number(&database, wrong).await, "0");
        // The application moves a ticket as it always did, and knows nothing of its notes' project.
        admin.batch_execute("UPDATE tickets SET project_id = 12 WHERE id = 3").await.unwrap();
        assert_eq!(number(&database, wrong).await, "0");
        assert_eq!(
            number(&database, "SELECT count(*) FROM notes WHERE ticket_id = 3 AND project_id = 12").await,
            "3"
        );
        // But not to somebody else's.
        let refused =
            admin.batch_execute("UPDATE tickets SET project_id = 21 WHERE id = 3").await.unwrap_err();
        assert_eq!(refused.code().map(|code| code.code()), Some("23503"), "{refused}");
        admin.batch_execute("UPDATE tickets SET project_id = 11 WHERE id = 3").await.unwrap();
        desk.done("rollback", &[]);
        assert_same(&before, &dumped(&database).await, shared.server.version_major());
    }
}

/// Whose column says nothing is in quarantine, and is there no longer after the way back; what only the new columns say keeps it from going.
#[tokio::test]
async fn the_way_back_restores_what_was_empty_and_loses_nobody() {
    let (database, desk) = agency().await;
    std::fs::write(
        desk.folder.path().join("accounts.csv"),
        (1..=5).fold("account_name,id\n".to_owned(), |text, n| format!("{text}account {n},{n}\n")),
    )
    .unwrap();
    desk.edit(
        "{ column = \"account_id\" }\notherwise = \"stop\"",
        "{ column = \"account_id\" }\notherwise = \"default\"",
    );
    let ran = desk.run("plan", &[]);
    assert!(
        ran.code == 2 && ran.err.contains("nobody could tell afterwards which rows had nothing in it"),
        "{ran:?}"
    );
    desk.edit("otherwise = \"default\"", "otherwise = \"quarantine\"");
    desk.edit("\n[default]\n", "\n[quarantine]\norganization = \"1\"\nproject = \"99\"\n\n[default]\n");
    let ran = desk.run("plan", &[]);
    assert!(ran.code == 2 && ran.err.contains("[quarantine] has the organization of [default]"), "{ran:?}");
    desk.edit("[quarantine]\norganization = \"1\"", "[quarantine]\norganization = \"99\"");
    desk.done("plan", &[]);
    let admin = database.admin().await;
    admin
        .batch_execute(
            "INSERT INTO accounts VALUES (99, 'Nobody'); INSERT INTO users (id, account_id, email) VALUES (99, NULL, 'nobody@example.com'); \
             INSERT INTO posts (id, user_id, body) VALUES (99999, 99, 'nobody''s')",
        )
        .await
        .unwrap();
    let before = dumped(&database).await;
    let applied = desk.done("apply", &["--no-backup"]);
    assert!(applied.out.contains("1 rows of public.users are in quarantine"), "{applied:?}");
    assert_eq!(number(&database, "SELECT organization_id FROM posts WHERE id = 99999").await, "99");
    // Only its organization says whose it is.
    admin
        .batch_execute(
            "INSERT INTO events (id, account_name, what, organization_id) VALUES (1000, NULL, 'by 3', 3)",
        )
        .await
        .unwrap();
    let refused = desk.run("rollback", &[]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.err.contains("1 rows of public.events belong to others")
            && refused.err.contains("nothing was changed"),
        "{refused:?}"
    );
    desk.done("verify", &[]);
    admin.batch_execute("DELETE FROM events WHERE what = 'by 3'").await.unwrap();
    std::fs::remove_file(desk.folder.path().join("accounts.csv")).unwrap();
    desk.done("rollback", &[]);
    assert_same(&before, &dumped(&database).await, 15);
}

/// A foreign key to another project's row was never a mistake: it still is none.
#[tokio::test]
async fn rows_may_refer_to_other_projects_of_their_organization() {
    let database = postgres::shared().empty_database().await;
    let admin = database.admin().await;
    admin.batch_execute(BOARDS).await.unwrap();
    admin
        .batch_execute("ALTER TABLE tickets ADD duplicate_of bigint REFERENCES tickets; UPDATE tickets SET duplicate_of = 3 WHERE id = 1")
        .await
        .unwrap();
    let before = dumped(&database).await;
    let desk = Desk::at(&database);
    desk.done("plan", &[]);
    desk.done("apply", &["--no-backup"]);
    desk.done("verify", &[]);
    admin.batch_execute("UPDATE tickets SET project_id = 12 WHERE id = 3; UPDATE tickets SET project_id = 11 WHERE id = 3").await.unwrap();
    // But not to another organization's.
    let refused = admin.batch_execute("UPDATE tickets SET duplicate_of = 2 WHERE id = 1").await.unwrap_err();
    assert_eq!(refused.code().map(|code| code.code()), Some("23503"), "{refused}");
    desk.done("rollback", &[]);
    assert_same(&before, &dumped(&database).await, 15);
}

/// Tables that inherit, with keys that they do not have in common, and partitions of partitions.
const FAMILY: &str = "
CREATE TABLE accounts (id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE users (id bigint PRIMARY KEY, account_id bigint NOT NULL REFERENCES accounts);
CREATE TABLE documents (id bigint PRIMARY KEY, user_id bigint NOT NULL REFERENCES users, title text NOT NULL DEFAULT 'untitled');
CREATE TABLE letters (recipient text NOT NULL, PRIMARY KEY (id), FOREIGN KEY (user_id) REFERENCES users) INHERITS (documents);
CREATE TABLE love_letters (flowers boolean, UNIQUE (recipient)) INHERITS (letters);
CREATE INDEX ON letters (recipient);
CREATE TABLE pages (document_id bigint NOT NULL REFERENCES documents, number integer NOT NULL, PRIMARY KEY (document_id, number));
CREATE TABLE readings (id bigint NOT NULL, user_id bigint NOT NULL REFERENCES users, day date NOT NULL, region text NOT NULL,
    PRIMARY KEY (id, day, region)) PARTITION BY RANGE (day);
CREATE INDEX ON readings (user_id, day);
CREATE TABLE readings_2025 PARTITION OF readings FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY LIST (region);
CREATE TABLE readings_2025_eu PARTITION OF readings_2025 FOR VALUES IN ('eu');
CREATE TABLE readings_2025_us PARTITION OF readings_2025 FOR VALUES IN ('us');
CREATE TABLE readings_2026 PARTITION OF readings FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO accounts SELECT n, 'account ' || n FROM generate_series(1, 4) AS n;
INSERT INTO users SELECT n, 1 + n % 4 FROM generate_series(1, 40) AS n;
INSERT INTO documents SELECT n, 1 + n % 40 FROM generate_series(1, 700) AS n;
INSERT INTO letters SELECT n, 1 + (n + 1) % 40, 'letter', 'somebody' FROM generate_series(1, 300) AS n;
INSERT INTO love_letters SELECT n, 1 + (n + 2) % 40, 'love letter', 'number ' || n, true FROM generate_series(1, 200) AS n;
INSERT INTO pages SELECT 1 + n % 700, 1 + n / 700 FROM generate_series(0, 1399) AS n;
INSERT INTO readings SELECT n, 1 + n % 40, date '2025-01-01' + n, (ARRAY['eu', 'us'])[1 + n % 2] FROM generate_series(0, 699) AS n;
";

#[tokio::test]
async fn tables_that_inherit_and_partitions_of_partitions() {
    for shared in postgres::every_version() {
        let database = shared.empty_database().await;
        let admin = database.admin().await;
        admin.batch_execute(FAMILY).await.unwrap();
        let before = dumped(&database).await;
        let desk = Desk::at(&database);
        desk.done("plan", &[]);
        let text = std::fs::read_to_string(desk.tenancy()).unwrap();
        for part in ["letters", "readings_2025"] {
            assert!(!text.contains(part), "{part} is part of another table: {text}");
        }
        desk.done("apply", &["--no-backup"]);
        desk.done("verify", &[]);
        for table in [
            "ONLY documents",
            "ONLY letters",
            "love_letters",
            "readings",
            "readings_2025",
            "readings_2025_us",
        ] {
            let wrong = format!(
                "SELECT count(*) FROM {table} t JOIN users u ON u.id = t.user_id WHERE t.organization_id IS DISTINCT FROM u.account_id"
            );
            assert_eq!(number(&database, &wrong).await, "0", "{table}");
        }
        // With no context nobody sees a row: not through the whole, and not by itself.
        let role = format!("{}_tenant", database.name);
        admin
            .batch_execute(&format!("GRANT SELECT ON readings_2025_us, readings_2025 TO {role}"))
            .await
            .unwrap();
        for table in [
            "documents",
            "ONLY documents",
            "letters",
            "love_letters",
            "readings",
            "readings_2025",
            "readings_2025_us",
        ] {
            admin.batch_execute(&format!("SET ROLE {role}")).await.unwrap();
            let refused = client::value(&admin, &format!("SELECT count(*) FROM {table}")).await;
            admin.batch_execute("RESET ROLE").await.unwrap();
            let code = refused.as_ref().err().and_then(|error| error.code()).map(|code| code.code());
            assert_eq!(code, Some("42501"), "{table}: {refused:?}");
        }
        let foreign = "INSERT INTO letters (id, user_id, recipient, organization_id) VALUES (999, 1, 'x', 4)";
        let refused = admin.batch_execute(foreign).await.unwrap_err();
        assert_eq!(refused.code().map(|code| code.code()), Some("23503"), "{refused}");
        let invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
        assert_eq!(number(&database, invalid).await, "0");
        admin
            .batch_execute(&format!("REVOKE ALL ON readings_2025_us, readings_2025 FROM {role}"))
            .await
            .unwrap();
        desk.done("rollback", &[]);
        assert_same(&before, &dumped(&database).await, shared.server.version_major());
    }
}

#[tokio::test]
async fn what_is_asked_most_gets_an_index_that_leads_with_the_organization() {
    let settings = vec![("shared_preload_libraries".to_owned(), "pg_stat_statements".to_owned())];
    let shared = Shared::start(&Options { settings, ..Options::default() });
    let database = shared.empty_database().await;
    let admin = database.admin().await;
    admin.batch_execute(include_str!("agency.sql")).await.unwrap();
    admin.batch_execute(VISITS).await.unwrap();
    admin.batch_execute("CREATE EXTENSION pg_stat_statements; ANALYZE").await.unwrap();
    for n in 0..30_i64 {
        admin
            .query("SELECT body FROM posts WHERE region = $1 ORDER BY at DESC LIMIT 3", &[&"eu"])
            .await
            .unwrap();
        admin.query("SELECT id FROM visits WHERE page = $1", &[&"/"]).await.unwrap();
        // Served already; a table of no size; and once is never.
        admin.query("SELECT body FROM posts WHERE user_id = $1", &[&n]).await.unwrap();
        admin.query("SELECT id FROM users WHERE email > $1", &[&"x"]).await.unwrap();
    }
    admin.query("SELECT body FROM posts WHERE touched = 7", &[]).await.unwrap();
    let desk = Desk::at(&database);
    desk.run("plan", &[]);
    desk.edit(
        "[tables.\"public.events\"]\nscope = \"unknown\"",
        "[tables.\"public.events\"]\nscope = \"shared\"",
    );
    desk.done("plan", &[]);
    let read = |name: &str| std::fs::read_to_string(desk.folder.path().join(name)).unwrap();
    let sql = read("003_multi_tenant_transformation.sql");
    let indexes: Vec<_> = sql
        .lines()
        .filter(|line| line.contains("CREATE INDEX CONCURRENTLY") && line.contains(" ON public.posts "))
        .collect();
    assert_eq!(
        indexes,
        [
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS posts_user_id_idx_tenant ON public.posts USING btree (organization_id, user_id);",
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS posts_organization_id_region_at_idx ON public.posts USING btree (organization_id, region, at);",
        ]
    );
    assert!(!sql.contains("users_account_id_email_idx"), "a small table: {sql}");
    for part in [
        "CREATE INDEX IF NOT EXISTS visits_account_id_page_idx ON ONLY public.visits USING btree (account_id, page);",
        "CONCURRENTLY IF NOT EXISTS visits_early_visits_account_id_page_idx ON public.visits_early ",
        "ALTER INDEX public.visits_account_id_page_idx ATTACH PARTITION public.visits_late_visits_account_id_page_idx;",
    ] {
        assert!(sql.contains(part), "{part}: {sql}");
    }
    let report = read("report.md");
    assert!(
        report.contains("posts_organization_id_region_at_idx is new: pg_stat_statements has 30 calls"),
        "{report}"
    );
    assert!(report.contains("Index public.posts_user_id_idx (public.posts) is redundant"), "{report}");
    let line = report.lines().find(|line| line.starts_with("| public.posts | 12000 |")).unwrap();
    assert!(line.ends_with("| 2 s | an organization's | organization_id: through user_id |"), "{line}");
    assert!(
        report.contains("INSERT ... ON CONFLICT (email) is then ON CONFLICT (account_id, email)"),
        "{report}"
    );
    desk.done("apply", &["--no-backup"]);
    desk.done("verify", &[]);
    let valid = "SELECT string_agg(i.indisvalid::text, ' ') FROM pg_index AS i WHERE i.indexrelid::regclass::text ~ 'visits.*_page_idx$'";
    assert_eq!(number(&database, valid).await, "true true true");
}

const VISITS: &str = "CREATE TABLE visits (id bigint NOT NULL, at date NOT NULL, page text, account_id bigint NOT NULL REFERENCES accounts)
        PARTITION BY RANGE (at);
    CREATE TABLE visits_early PARTITION OF visits FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
    CREATE TABLE visits_late PARTITION OF visits FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');
    INSERT INTO visits SELECT n, DATE '2026-01-01' + n % 300, '/' || n, 1 + n % 4 FROM generate_series(1, 20000) AS n";

/// What would stop it halfway, because the file's lines are no rows, is told before it begins.
#[tokio::test]
async fn lines_that_cannot_be_rows_are_told_before_it_begins() {
    let (database, desk) = agency().await;
    let alter = "ALTER TABLE events ALTER account_name TYPE varchar(12)";
    database.admin().await.batch_execute(alter).await.unwrap();
    let before = dumped(&database).await;
    let file = desk.folder.path().join("accounts.csv");
    for (lines, told) in [
        ("id,id\n1,1\n01,2\n", "two lines of the file for public.events are the same {\"id\": 1}"),
        (
            "account_name,id\naccount 1,1\na longer account,2\n",
            "does not fit into its columns: {\"account_name\": \"a longer account\"}",
        ),
    ] {
        std::fs::write(&file, lines).unwrap();
        desk.done("plan", &[]);
        refused_by(&desk, &[told, "nothing was changed"]);
    }
    assert_same(&before, &dumped(&database).await, 15);
}
