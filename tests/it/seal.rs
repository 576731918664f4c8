//! The seal past the proxy: a session with full SQL as the application's role, on every version of PostgreSQL.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::harness::client::{connect, value};
use crate::harness::gate::{Gate, SEAL_KEY, Setup};
use crate::harness::postgres::{self, ROWS_PER_ORGANIZATION};
use crate::harness::{org, project};

/// The eight lines, made here once more from their description.
pub struct Seal {
    version: &'static str,
    kid: String,
    pid: i32,
    expires: u64,
    organization: String,
    project: String,
    payload: &'static str,
}

impl Seal {
    pub fn of(pid: i32, organization: &str) -> Self {
        let mut named = digest::Context::new(&digest::SHA256);
        named.update(b"pgtenant seal key id\0");
        named.update(&key());
        let kid = hex(&named.finish().as_ref()[..8]);
        let (organization, project) = (organization.to_owned(), String::new());
        Self { version: "v1", kid, pid, expires: now() + 30, organization, project, payload: "{}" }
    }

    fn body(&self) -> String {
        let payload = hex(digest::digest(&digest::SHA256, self.payload.as_bytes()).as_ref());
        let Self { version, kid, pid, expires, organization, project, .. } = self;
        format!("{version}\n{kid}\n{pid}\n{expires}\n{organization}\n{project}\n{payload}")
    }

    pub fn text(&self) -> String {
        let body = self.body();
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key()), body.as_bytes());
        format!("{}\n{body}", hex(mac.as_ref()))
    }
}

fn key() -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(SEAL_KEY).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

async fn pid(client: &Client) -> i32 {
    client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0)
}

async fn put(client: &Client, seal: &str) {
    client.execute("SELECT set_config('pgtenant.seal', $1, false)", &[&seal]).await.unwrap();
}

/// SQLSTATE and message.
async fn refused(client: &Client, sql: &str) -> (String, String) {
    let error = client.simple_query(sql).await.expect_err(sql);
    let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
    (error.code().code().to_owned(), error.message().to_owned())
}

const ROWS: &str = "SELECT count(*) || ' of ' || min(body) FROM public.items";

#[tokio::test]
async fn only_a_true_seal_of_this_process_in_its_time_is_taken() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let client = database.direct("app").await;
        let own = pid(&client).await;
        let other = database.direct("app").await;
        for none in ["", "RESET"] {
            let sql = if none.is_empty() { "SET pgtenant.seal = ''" } else { "RESET pgtenant.seal" };
            client.batch_execute(sql).await.unwrap();
            assert_eq!(refused(&client, ROWS).await, ("42501".into(), "no tenant context".into()), "{sql}");
        }
        // The control: a true one is taken, so what is refused below is refused for its own reason.
        let good = Seal::of(own, &org(3));
        put(&client, &good.text()).await;
        let expected = format!("{ROWS_PER_ORGANIZATION} of org-3");
        assert_eq!(value(&client, ROWS).await.unwrap(), Some(expected.clone()));
        let text = good.text();
        let (mac, body) = text.split_once('\n').unwrap();
        let edited = |from: &str, to: &str| format!("{mac}\n{}", body.replacen(from, to, 1));
        let forgeries = [
            ("another organization", edited(&org(3), &org(4))),
            ("a later expiry", edited(&good.expires.to_string(), "99999999999")),
            ("another process", edited(&own.to_string(), &pid(&other).await.to_string())),
            ("another version", edited("v1", "v2")),
            ("a line more", format!("{text}\n")),
            ("a line less", text.rsplit_once('\n').unwrap().0.to_owned()),
            ("the MAC in capitals", format!("{}\n{body}", mac.to_uppercase())),
            ("half a MAC", format!("{}\n{body}", &mac[..63])),
            ("no MAC", format!("\n{body}")),
            ("a MAC of zeros", format!("{}\n{body}", "0".repeat(64))),
            ("an unknown key", edited(&good.kid, "0000000000000000")),
            ("an empty key id", edited(&good.kid, "")),
            ("words", "organization = everyone".to_owned()),
            ("newlines", "\n".repeat(20)),
            ("a megabyte", "x".repeat(1_000_000)),
            ("not ASCII", format!("{text}\u{2028}")),
            ("true, but of another process", Seal::of(pid(&other).await, &org(3)).text()),
            ("true, but expired", Seal { expires: now() - 1, ..Seal::of(own, &org(3)) }.text()),
            ("true, but of another version", Seal { version: "v2", ..Seal::of(own, &org(3)) }.text()),
        ];
        for (what, forged) in forgeries {
            put(&client, &forged).await;
            for sql in [
                ROWS,
                "SELECT pgtenant.project_id()",
                "SELECT pgtenant.claims()",
                "SELECT pgtenant.context()",
            ] {
                let expected = ("42501".into(), "tenant context refused".into());
                assert_eq!(refused(&client, sql).await, expected, "{what}: {sql}");
            }
        }
        put(&client, &text).await;
        assert_eq!(value(&client, ROWS).await.unwrap(), Some(expected));
        // What the seal covers by its digest.
        client
            .batch_execute("SELECT set_config('pgtenant.claims', '{\"roles\": [\"admin\"]}', false)")
            .await
            .unwrap();
        assert_eq!(refused(&client, "SELECT pgtenant.has_role('admin')").await.0, "42501");
        client.batch_execute("RESET pgtenant.claims").await.unwrap();
        assert_eq!(refused(&client, "SELECT pgtenant.roles()").await.0, "42501");
    }
}

#[tokio::test]
async fn a_transaction_that_began_in_time_ends_in_its_own_time() {
    let database = postgres::shared().database().await;
    let client = database.direct("app").await;
    let seal = Seal { expires: now() + 2, ..Seal::of(pid(&client).await, &org(1)) };
    put(&client, &seal.text()).await;
    client.batch_execute("BEGIN").await.unwrap();
    assert!(value(&client, ROWS).await.is_ok());
    client.batch_execute("SELECT pg_sleep(2.5)").await.unwrap();
    assert!(value(&client, ROWS).await.is_ok(), "the same transaction");
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(refused(&client, ROWS).await.0, "42501");
}

/// Functions, operators, casts and types of the caller's own, found before PostgreSQL's.
const HOSTILE: &str = "
    CREATE SCHEMA evil;
    CREATE FUNCTION evil.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT '\\x00'::bytea $$;
    CREATE FUNCTION evil.sha256(text) RETURNS bytea LANGUAGE sql AS $$ SELECT '\\x00'::bytea $$;
    CREATE FUNCTION evil.encode(bytea, text) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
    CREATE FUNCTION evil.convert_to(text, name) RETURNS bytea LANGUAGE sql AS $$ SELECT '\\x00'::bytea $$;
    CREATE FUNCTION evil.split_part(text, text, integer) RETURNS text LANGUAGE sql
        AS $$ SELECT '0a000000-0000-7000-8000-000000000002' $$;
    CREATE FUNCTION evil.current_setting(text, boolean) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
    CREATE FUNCTION evil.pg_backend_pid() RETURNS integer LANGUAGE sql AS $$ SELECT 1 $$;
    CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'epoch'::timestamptz $$;
    CREATE FUNCTION evil.date_part(text, timestamptz) RETURNS float8 LANGUAGE sql AS $$ SELECT 0::float8 $$;
    CREATE FUNCTION evil.yes(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
    CREATE FUNCTION evil.no(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;
    CREATE FUNCTION evil.no(bytea, bytea) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;
    CREATE FUNCTION evil.no(float8, float8) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;
    CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.yes);
    CREATE OPERATOR evil.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.no);
    CREATE OPERATOR evil.<> (LEFTARG = bytea, RIGHTARG = bytea, FUNCTION = evil.no);
    CREATE OPERATOR evil.= (LEFTARG = bytea, RIGHTARG = bytea, FUNCTION = evil.no);
    CREATE OPERATOR evil.<= (LEFTARG = float8, RIGHTARG = float8, FUNCTION = evil.no);
    CREATE DOMAIN evil.text AS pg_catalog.text;
    CREATE DOMAIN evil.uuid AS pg_catalog.text;
    CREATE TABLE evil.seal_keys (kid text, inner_pad bytea, outer_pad bytea);
    CREATE TEMP TABLE seal_keys (kid text, inner_pad bytea, outer_pad bytea);
    SET search_path = evil, pg_temp, pg_catalog, public;
    SET standard_conforming_strings = off; SET backslash_quote = on; SET transform_null_equals = on;
    SET bytea_output = 'escape'; SET DateStyle = 'German'; SET timezone = 'Etc/GMT+12'; SET extra_float_digits = -15;
    SET xmloption = 'document'; SET array_nulls = off; SET client_encoding = 'LATIN1';
    SET plan_cache_mode = force_generic_plan; SET row_security = off";

#[tokio::test]
async fn a_hostile_search_path_changes_nothing() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let admin = database.admin().await;
        let grant = format!(
            "GRANT CREATE, TEMP ON DATABASE {} TO app; GRANT CREATE ON SCHEMA public TO app",
            database.name
        );
        admin.batch_execute(&grant).await.unwrap();
        let client = database.direct("app").await;
        let own = pid(&client).await;
        client.batch_execute(HOSTILE).await.unwrap();
        client.batch_execute("RESET row_security").await.unwrap();
        let set = |seal: String| format!("SELECT pg_catalog.set_config('pgtenant.seal', '{seal}', false)");
        let good = Seal::of(own, &org(1));
        client.batch_execute(&set(good.text())).await.unwrap();
        let whose = "SELECT (SELECT pgtenant.organization_id())::pg_catalog.text";
        assert_eq!(value(&client, whose).await.unwrap(), Some(org(1)));
        for forged in
            [good.text().replace(&org(1), &org(2)), Seal { expires: now() - 5, ..good }.text(), "x".into()]
        {
            client.batch_execute(&set(forged)).await.unwrap();
            assert_eq!(refused(&client, whose).await.0, "42501");
            assert_eq!(refused(&client, "SELECT pgtenant.context()").await.0, "42501");
        }
        // Nothing of the interface can be put aside, nor its owner's rights be had.
        for sql in [
            "CREATE OR REPLACE FUNCTION pgtenant.organization_id() RETURNS uuid LANGUAGE sql AS $$ SELECT NULL::uuid $$",
            "CREATE FUNCTION pgtenant.more() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$",
            "ALTER FUNCTION pgtenant.organization_id() OWNER TO app",
            "ALTER FUNCTION pgtenant.organization_id() RESET ALL",
            "ALTER FUNCTION pgtenant.organization_id() SECURITY INVOKER",
            "DROP SCHEMA pgtenant CASCADE",
            "GRANT pgtenant_owner TO app",
            "SET ROLE pgtenant_owner",
            "SET SESSION AUTHORIZATION pgtenant_owner",
            "ALTER TABLE public.items DISABLE ROW LEVEL SECURITY",
            "DROP POLICY organization ON public.items",
            "INSERT INTO pgtenant.seal_keys VALUES ('mine', '\\x00', '\\x00')",
            "DELETE FROM pgtenant.seal_keys",
            "UPDATE pgtenant.interface SET version = 0",
            "SET row_security = off; SELECT count(*) FROM public.items",
        ] {
            assert!(client.batch_execute(sql).await.is_err(), "{sql}");
        }
    }
}

/// Every place where a key might be seen: none shows it, in any of its forms.
#[tokio::test]
async fn nobody_can_read_the_key() {
    let key = key();
    let pad = |with: u8| -> Vec<u8> { (0..64).map(|i| key.get(i).unwrap_or(&0) ^ with).collect() };
    let forms = [hex(&key), hex(&pad(0x36)), hex(&pad(0x5c)), SEAL_KEY.to_owned()];
    let bytes = |pad: Vec<u8>| pad.iter().take(8).map(u8::to_string).collect::<Vec<_>>().join(" ");
    let forms = [&forms[..], &[bytes(pad(0x36)), bytes(pad(0x5c))]].concat(); // as plan trees print constants
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let admin = database.admin().await;
        admin.batch_execute("ANALYZE").await.unwrap();
        let (client, notices) = database.direct_and_loud("app").await;
        put(&client, &Seal::of(pid(&client).await, &org(1)).text()).await;
        for sql in [
            "TABLE pgtenant.seal_keys",
            "COPY pgtenant.seal_keys TO STDOUT",
            "SELECT count(*) FROM pgtenant.seal_keys",
            "SELECT stavalues1 FROM pg_statistic",
            "DO $$ BEGIN LOCK TABLE pgtenant.seal_keys; END $$",
            "SELECT pg_read_file('postgresql.auto.conf')",
        ] {
            let refused = refused(&client, sql).await;
            assert_eq!(refused.0, "42501", "{sql}: {}", refused.1);
        }
        let loud = "SET client_min_messages = 'debug1'; SET debug_print_parse = on; SET debug_print_rewritten = on; \
                    SET debug_print_plan = on; SET log_statement_stats = off; SET plan_cache_mode = force_custom_plan";
        for part in loud.split("; ") {
            // Some are a superuser's alone: then they show nothing either.
            let _ = client.batch_execute(part).await;
        }
        for sql in [
            "SELECT prosrc FROM pg_proc",
            "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'pgtenant'::regnamespace",
            "SELECT * FROM pg_stats WHERE schemaname = 'pgtenant'",
            "SELECT * FROM pg_stat_activity",
            "SELECT * FROM pg_settings",
            "SELECT * FROM pg_prepared_statements",
            "SELECT * FROM pg_description",
            "EXPLAIN (ANALYZE, VERBOSE, BUFFERS) SELECT pgtenant.organization_id(), pgtenant.context()",
            "SELECT pgtenant.organization_id(), pgtenant.claims(), pgtenant.context()",
        ] {
            let shown = everything(&client, sql).await + &notices.lock().unwrap();
            for form in &forms {
                assert!(!shown.contains(form), "{sql} shows the key: {form}");
            }
        }
        let notices = notices.lock().unwrap();
        assert!(
            notices.contains("PLANNEDSTMT"),
            "plan trees were not shown, so they were not looked at: {notices}"
        );
    }
}

async fn everything(client: &Client, sql: &str) -> String {
    let mut shown = String::new();
    match client.simple_query(sql).await {
        Ok(messages) => {
            for message in messages {
                if let SimpleQueryMessage::Row(row) = message {
                    (0..row.len()).for_each(|column| shown.push_str(row.get(column).unwrap_or_default()));
                }
            }
        }
        Err(error) => shown.push_str(&format!("{error:?}")),
    }
    shown
}

#[tokio::test]
async fn every_helper_is_stable_restricted_and_runs_as_its_owner() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let sql = "SELECT proname::text, provolatile::text || proparallel::text || prosecdef || \
                   (proowner = 'pgtenant_owner'::regrole) || \
                   has_function_privilege('plain', oid, 'EXECUTE') || array_to_string(proconfig, ',') \
                   FROM pg_proc WHERE pronamespace = 'pgtenant'::regnamespace \
                   AND proname NOT IN ('bind', 'put_back')"; // these change the session
        let functions = database.admin().await.query(sql, &[]).await.unwrap();
        assert!(functions.len() >= 10);
        for function in functions {
            let (name, found): (String, String) = (function.get(0), function.get(1));
            assert_eq!(found, "srtruetruefalsesearch_path=pg_catalog, pg_temp", "{name}");
        }
    }
}

#[tokio::test]
async fn the_context_can_be_asked_for() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let gate = Gate::with(&database).run().await;
        let token = gate.token(org(2)).project(project(2, 1)).subject("ada").roles(&["agent", "lead"]);
        let client = connect(&gate, "app", &token.claim("plan", "gold").sign()).await;
        let guard = format!("SELECT pgtenant.require_organization('{}')::text", org(2));
        for (sql, expected) in [
            ("SELECT pgtenant.organization_id()", Some(org(2))),
            ("SELECT pgtenant.project_id()", Some(project(2, 1))),
            ("SELECT pgtenant.subject()", Some("ada".to_owned())),
            ("SELECT pgtenant.roles()", Some("{agent,lead}".to_owned())),
            ("SELECT pgtenant.has_role('lead')", Some("t".to_owned())),
            ("SELECT pgtenant.has_role('admin')", Some("f".to_owned())),
            ("SELECT pgtenant.claim('plan')", Some("gold".to_owned())),
            ("SELECT pgtenant.claim('nothing')", None),
            ("SELECT pgtenant.claims() ->> 'sub'", Some("ada".to_owned())),
            ("SELECT pgtenant.context() ->> 'organization'", Some(org(2))),
            ("SELECT pgtenant.context() ->> 'project'", Some(project(2, 1))),
            (guard.as_str(), Some(String::new())),
        ] {
            assert_eq!(value(&client, sql).await.unwrap(), expected, "{sql}");
        }
        let other = format!("SELECT pgtenant.require_organization('{}')", org(1));
        assert_eq!(refused(&client, &other).await, ("42501".into(), "not the current organization".into()));
        let whole = connect(&gate, "app", &gate.token(org(2)).sign()).await;
        assert_eq!(value(&whole, "SELECT pgtenant.project_id()").await.unwrap(), None);
        assert_eq!(value(&whole, "SELECT pgtenant.subject()").await.unwrap().as_deref(), Some("someone"));
    }
}

/// The check runs in the leader: a worker's process id is not the seal's.
#[tokio::test]
async fn parallel_plans_survive() {
    for shared in postgres::every_version() {
        let database = shared.database().await;
        let admin = database.admin().await;
        let many = format!(
            "INSERT INTO items (organization_id, project_id, body) SELECT '{}', NULL, 'org-1' FROM generate_series(1, 50000); ANALYZE items",
            org(1)
        );
        admin.batch_execute(&many).await.unwrap();
        let gate = Gate::with(&database).run().await;
        let client = connect(&gate, "app", &gate.token(org(1)).sign()).await;
        let forced =
            if shared.server.version_major() >= 16 { "debug_parallel_query" } else { "force_parallel_mode" };
        let settings = format!(
            "BEGIN; SET LOCAL {forced} = on; SET LOCAL min_parallel_table_scan_size = 0; SET LOCAL parallel_setup_cost = 0; \
             SET LOCAL parallel_tuple_cost = 0; SET LOCAL max_parallel_workers_per_gather = 2; SET LOCAL enable_indexscan = off; \
             SET LOCAL enable_bitmapscan = off"
        );
        client.batch_execute(&settings).await.unwrap();
        let plan =
            client.query("EXPLAIN SELECT count(*), min(body), max(body) FROM items", &[]).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|line| line.get(0)).collect();
        assert!(plan.iter().any(|line| line.contains("Gather")), "not parallel: {plan:#?}");
        let counted =
            "SELECT count(*) || min(body) || max(body) || min(pgtenant.organization_id()::text) FROM items";
        assert_eq!(value(&client, counted).await.unwrap(), Some(format!("{}org-1org-1{}", 50_050, org(1))));
        client.batch_execute("COMMIT").await.unwrap();
    }
}

#[tokio::test]
async fn ids_can_be_numbers_or_text() {
    let shared = postgres::shared();
    for (id_type, mine, other, wrong) in
        [("bigint", "42", "43", "\"forty-two\""), ("text", "\"acme's\"", "\"b\\\"c\"", "\"\"")]
    {
        let database = shared.empty_database().await;
        let setup =
            || Setup::new(database.port, &database.name).set("context", "id_type", &format!("{id_type:?}"));
        postgres::install(setup(), &database.url).await;
        let admin = database.admin().await;
        admin
            .batch_execute(&format!(
                "CREATE TABLE things (organization_id {id_type} NOT NULL DEFAULT pgtenant.organization_id(), body text); \
                 GRANT SELECT, INSERT ON things TO app; \
                 ALTER TABLE things ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; \
                 CREATE POLICY own ON things USING (organization_id = (SELECT pgtenant.organization_id()))"
            ))
            .await
            .unwrap();
        let gate = setup().run().await;
        for id in [mine, other] {
            let id: serde_json::Value = serde_json::from_str(id).unwrap();
            let client = connect(&gate, "app", &gate.token(id.clone()).sign()).await;
            client.batch_execute("INSERT INTO things (body) VALUES ('mine')").await.unwrap();
            let seen =
                value(&client, "SELECT string_agg(organization_id::text, ';') FROM things").await.unwrap();
            let expected = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
            assert_eq!(seen, Some(expected));
        }
        let wrong: serde_json::Value = serde_json::from_str(wrong).unwrap();
        let refused = crate::harness::client::try_connect(&gate, "app", &gate.token(wrong).sign()).await;
        assert_eq!(refused.err().unwrap().code().unwrap().code(), "28000");
    }
}
