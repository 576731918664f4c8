//! Where sequences run: a database with a canary for each organization, and what stands before it.

use pgtenant::cli::demo::throwaway::Options;
use tokio_postgres::Client;

use super::actor::{Actor, Outcome, cancels};
use super::data::{Class, Only, Sequence, Step};
use super::forged::tokens;
use crate::harness::gate::Gate;
use crate::harness::org;
use crate::harness::postgres::{Database, Shared, password_of, random_name};
use crate::seal::Seal;

/// Who attacks, and whom.
const MALLORY: u32 = 1;
const VICTIM: u32 = 2;

/// What stands between a client and PostgreSQL.
pub struct Target {
    pub port: u16,
    pub database: String,
    pub kind: Kind,
    /// Kept running as long as the target is used.
    _keeper: Option<Box<dyn std::any::Any + Send>>,
    gate: Option<Gate>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The proxy, sealed policies.
    Pgtenant,
    /// Nothing: a session of the application's role that has a seal, sealed policies.
    Past,
    /// Another pooler: policies on a plain setting, which the application sets before everything that it does.
    Other,
}

/// The setting in which applications have their organization where there is no seal.
const PLAIN: &str = "app.organization";

impl Target {
    pub fn gate(gate: Gate) -> Self {
        let (port, database) = (gate.port(), "app".to_owned());
        Self { port, database, kind: Kind::Pgtenant, _keeper: None, gate: Some(gate) }
    }

    pub fn past(database: &Database) -> Self {
        Self {
            port: database.port,
            database: database.name.clone(),
            kind: Kind::Past,
            _keeper: None,
            gate: None,
        }
    }

    pub fn other(port: u16, database: &str, keeper: Box<dyn std::any::Any + Send>) -> Self {
        Self { port, database: database.to_owned(), kind: Kind::Other, _keeper: Some(keeper), gate: None }
    }

    /// Whether a sequence means anything there.
    pub fn suits(&self, sequence: &Sequence, version: u32) -> bool {
        sequence.since <= version
            && match (sequence.only, self.kind) {
                (None, _) | (Some(_), Kind::Pgtenant) | (Some(Only::Proxy), Kind::Other) => true,
                (Some(Only::Pgtenant), _) | (Some(Only::Proxy), Kind::Past) => false,
            }
    }

    fn password(&self, organization: u32) -> String {
        match &self.gate {
            Some(gate) => gate.token(org(organization)).sign(),
            None => password_of("app"),
        }
    }

    fn setting(&self) -> &'static str {
        if self.kind == Kind::Other { PLAIN } else { "pgtenant.seal" }
    }
}

/// A database of its own cluster: what some attacks do is seen in all databases.
pub struct Stage {
    pub shared: Shared,
    pub database: Database,
    admin: Client,
}

impl Stage {
    /// `is_sealed`: policies ask for the seal, else for a plain setting.
    pub async fn set(options: &Options, is_sealed: bool, classes: &[Class]) -> Self {
        let shared = Shared::start(options);
        let database = shared.database().await;
        let admin = database.admin().await;
        let whose = match is_sealed {
            true => "pgtenant.organization_id()".to_owned(),
            false => format!("NULLIF(current_setting('{PLAIN}', true), '')::uuid"),
        };
        let grants = format!(
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT TEMPORARY ON DATABASE {} TO app",
            database.name
        );
        admin.batch_execute(&grants).await.unwrap();
        admin.batch_execute(&CANARIES.replace("{whose}", &whose)).await.unwrap();
        for class in classes {
            let setup = class.setup.replace("{whose}", &whose);
            admin.batch_execute(&setup).await.unwrap_or_else(|e| panic!("{}: {e:?}", class.class));
        }
        Self { shared, database, admin }
    }

    /// Runs a sequence. What was wrong, if anything was.
    pub async fn play(&self, target: &Target, sequence: &Sequence) -> Vec<String> {
        let markers = [random_name(), random_name()].map(|name| format!("m{name}"));
        self.prepare(sequence, &markers).await;
        let before = self.victims_rows().await;
        let mut cast = Cast::new(target);
        let mut wrong = Vec::new();
        for (index, step) in sequence.steps.iter().enumerate() {
            let outcome = cast.plays(step).await;
            let wanted = match step.past.all() {
                past if target.kind == Kind::Past && !past.is_empty() => past,
                _ => step.gives.all(),
            };
            if target.kind != Kind::Other && !wanted.is_empty() && !wanted.iter().any(|one| outcome.is(one)) {
                wrong.push(format!("step {}: {outcome:?} instead of {wanted:?}", index + 1));
            }
        }
        if cast.has_heard(&markers[1]) {
            wrong.push("the victim's row was seen".to_owned());
        }
        drop(cast);
        wrong.extend(self.judge(target, &markers, &before).await);
        self.tidy().await;
        if target.kind == Kind::Other {
            // What one sequence leaves there is not held against the next.
            let fresh = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
            self.admin.batch_execute(fresh).await.unwrap();
            crate::harness::eventually("a new server there", async || {
                let mut actor = Actor::arrives(target, &target.password(MALLORY), &[]).await.ok()?;
                actor.query("SELECT pg_sleep(0.02)").await.is("ok").then_some(())
            })
            .await;
        }
        wrong
    }

    /// One canary each, which nobody has seen.
    async fn prepare(&self, sequence: &Sequence, markers: &[String; 2]) {
        let rows = [(MALLORY, &markers[0]), (VICTIM, &markers[1])]
            .map(|(n, marker)| format!("('{}', {n}, 'u{n}', '{marker}')", org(n)))
            .join(", ");
        let fresh = format!(
            "DELETE FROM canary; INSERT INTO canary (organization_id, id, name, secret) VALUES {rows}; ANALYZE canary"
        );
        self.admin.batch_execute(&fresh).await.unwrap();
        let setup = sequence.setup.as_str();
        self.admin.batch_execute(setup).await.unwrap_or_else(|e| panic!("{}: {e:?}", sequence.name));
    }

    /// All that belongs to the victim, with the transactions that wrote it.
    async fn victims_rows(&self) -> Vec<String> {
        let sql = format!(
            "SELECT xmin::text || ctid::text || c::text FROM canary c WHERE organization_id = '{}' ORDER BY id",
            org(VICTIM)
        );
        self.admin.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// After a sequence: the victim's row is as it was, and each organization sees its own and nothing else, at once and
    /// with the settings of a new session.
    async fn judge(&self, target: &Target, markers: &[String; 2], before: &[String]) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.victims_rows().await != before {
            wrong.push("the victim's rows were changed".to_owned());
        }
        let planted = "SELECT count(*) FROM canary WHERE (organization_id, name) NOT IN (SELECT o.id, 'u' || right(o.name, 1) \
                       FROM organizations o) AND organization_id <> $1::text::uuid";
        let planted: i64 = self.admin.query_one(planted, &[&org(MALLORY)]).await.unwrap().get(0);
        if planted > 0 {
            wrong.push("rows were planted".to_owned());
        }
        for (who, own, other) in [(VICTIM, 1, 0), (MALLORY, 0, 1)] {
            let mut cast = Cast::new(target);
            let looks = Step {
                who: Some(if who == VICTIM { "victim" } else { "mallory" }.to_owned()),
                sql: Some("SELECT secret FROM public.canary".to_owned()),
                ..Step::default()
            };
            let outcome = cast.plays(&looks).await;
            let seen: Vec<_> = outcome.rows.iter().filter_map(|row| row[0].as_deref()).collect();
            if who == VICTIM && seen != [markers[own].as_str()] {
                wrong.push(format!("the victim sees {seen:?} {:?}", outcome.code));
            }
            if seen.contains(&markers[other].as_str()) {
                wrong.push("the other's row is seen afterwards".to_owned());
            }
            if who == VICTIM {
                let settings = Step { sql: Some(SETTINGS.to_owned()), ..looks };
                let outcome = cast.plays(&settings).await;
                if !outcome.rows.is_empty() || outcome.code.is_some() {
                    wrong.push(format!("the victim finds {:?} {:?}", outcome.rows, outcome.code));
                }
            }
        }
        wrong
    }

    /// What an attack may have changed for all that come after, where that is PostgreSQL's own.
    async fn tidy(&self) {
        let back = "ALTER ROLE app RESET ALL; ALTER ROLE app IN DATABASE {} RESET ALL; \
                    SELECT lo_unlink(oid) FROM pg_largeobject_metadata";
        self.admin.batch_execute(&back.replace("{}", &self.database.name)).await.unwrap();
    }
}

/// What a new session has otherwise, as far as clients can leave it behind; nothing, in an untouched one. What a client's
/// driver or the application sets itself is not among it.
const SETTINGS: &str = "SELECT name, setting FROM pg_settings WHERE source = 'session' AND setting <> reset_val \
    AND name NOT IN ('client_encoding', 'application_name', 'transaction_read_only', 'transaction_isolation', \
    'transaction_deferrable', 'session_authorization', 'role') \
    UNION ALL SELECT 'role', current_user WHERE current_user <> 'app' \
    UNION ALL SELECT 'read_only', 'on' WHERE current_setting('transaction_read_only') = 'on' \
    UNION ALL SELECT 'isolation', current_setting('transaction_isolation') \
        WHERE current_setting('transaction_isolation') <> 'read committed' \
    UNION ALL SELECT 'statement', name FROM pg_prepared_statements WHERE from_sql \
    UNION ALL SELECT 'cursor', name FROM pg_cursors WHERE is_holdable \
    UNION ALL SELECT 'channel', c FROM pg_listening_channels() c \
    UNION ALL SELECT 'lock', objid::text FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() \
    UNION ALL SELECT 'temporary', relname FROM pg_class WHERE relnamespace = pg_my_temp_schema() \
    UNION ALL SELECT 'function', proname FROM pg_proc WHERE pronamespace = pg_my_temp_schema()";

/// Those who play, each with a connection from its first step on.
struct Cast<'t> {
    target: &'t Target,
    actors: Vec<(String, Actor)>,
    /// What was said to those who were sent away.
    refusals: Vec<u8>,
}

impl<'t> Cast<'t> {
    fn new(target: &'t Target) -> Self {
        Self { target, actors: Vec::new(), refusals: Vec::new() }
    }

    async fn plays(&mut self, step: &Step) -> Outcome {
        let name = step.who.as_deref().unwrap_or("mallory");
        if let Some(milliseconds) = step.pause {
            tokio::time::sleep(std::time::Duration::from_millis(milliseconds)).await;
        }
        if let Some(password) = &step.signs_in {
            let password = fill(self.target, password, "");
            return match Actor::arrives(self.target, &password, &[]).await {
                Ok(_) => Outcome::default(),
                Err((refused, heard)) => {
                    self.refusals.extend(heard);
                    refused
                }
            };
        }
        if let Some(parameters) = &step.connect {
            let gone = self.actors.iter().position(|(other, _)| other == name);
            gone.into_iter().for_each(|at| self.keep(at));
            return self.arrives(name, parameters).await.err().unwrap_or_default();
        }
        if !self.actors.iter().any(|(other, _)| other == name)
            && let Err(refused) = self.arrives(name, &[]).await
        {
            return refused;
        }
        if let Some(whose) = &step.cancel {
            let key = self.cancel_key(whose).await;
            cancels(self.target, &key).await;
            return Outcome::default();
        }
        let forged = self.forged(name).await;
        let (target, whose) = (self.target, organization(name));
        let actor = &mut self.actors.iter_mut().find(|(other, _)| other == name).unwrap().1;
        if target.kind == Kind::Other && whose == VICTIM {
            actor.query(&format!("SET {PLAIN} = '{}'", org(whose))).await;
        }
        actor.does(step, |text| fill(target, text, &forged)).await
    }

    async fn arrives(&mut self, name: &str, parameters: &[(String, String)]) -> Result<(), Outcome> {
        let whose = organization(name);
        let filled: Vec<_> =
            parameters.iter().map(|(n, v)| (n.clone(), fill(self.target, v, &org(VICTIM)))).collect();
        let actor = Actor::arrives(self.target, &self.target.password(whose), &filled).await;
        let mut actor = actor.map_err(|(refused, heard)| {
            self.refusals.extend(heard);
            refused
        })?;
        if self.target.kind == Kind::Past {
            let pid = actor.key.first_chunk().map_or(0, |pid| i32::from_be_bytes(*pid));
            let seal = Seal::of(pid, &org(whose)).text();
            actor.query(&format!("SELECT set_config('pgtenant.seal', '{seal}', false)")).await;
        }
        if self.target.kind == Kind::Other {
            actor.query(&format!("SET {PLAIN} = '{}'", org(whose))).await;
        }
        self.actors.push((name.to_owned(), actor));
        Ok(())
    }

    /// It leaves without a word; what it heard counts.
    fn keep(&mut self, at: usize) {
        let (_, actor) = self.actors.remove(at);
        self.refusals.extend(actor.heard);
    }

    /// A value of the setting that says it is the victim's: an edited seal of one's own, or simply the id.
    async fn forged(&mut self, name: &str) -> String {
        if self.target.kind == Kind::Other {
            return org(VICTIM);
        }
        let pid = self.actors.iter().find(|(other, _)| other == name).and_then(|(_, a)| a.key.first_chunk());
        let pid = pid.map_or(0, |pid| i32::from_be_bytes(*pid));
        Seal::of(pid, &org(MALLORY)).text().replace(&org(MALLORY), &org(VICTIM))
    }

    async fn cancel_key(&mut self, whose: &str) -> Vec<u8> {
        let name = if whose == "own" { "mallory" } else { "victim" };
        if !self.actors.iter().any(|(other, _)| other == name) {
            let _ = self.arrives(name, &[]).await;
        }
        let key = self.actors.iter().find(|(other, _)| other == name).map(|(_, actor)| actor.key.clone());
        let mut key = key.unwrap_or_else(|| vec![0; 8]);
        if whose == "half" {
            key[4..].fill(0);
        }
        key
    }

    fn has_heard(&self, marker: &str) -> bool {
        let contains = |heard: &[u8]| heard.windows(marker.len()).any(|part| part == marker.as_bytes());
        let attackers = self.actors.iter().filter(|(name, _)| name != "victim");
        contains(&self.refusals) || attackers.into_iter().any(|(_, actor)| contains(&actor.heard))
    }
}

fn organization(name: &str) -> u32 {
    match name {
        "victim" => VICTIM,
        "mallory" | "accomplice" => MALLORY,
        other => panic!("nobody is called {other}"),
    }
}

fn fill(target: &Target, text: &str, forged: &str) -> String {
    let mut text = text
        .replace("{setting}", target.setting())
        .replace("{unicode}", &in_code_points(target.setting()))
        .replace("{escaped}", &in_escapes(target.setting()))
        .replace("{class}", target.setting().split('.').next().unwrap())
        .replace("{member}", target.setting().split('.').next_back().unwrap())
        .replace("{forged}", forged)
        .replace("{victim}", &org(VICTIM))
        .replace("{own}", &org(MALLORY));
    if let Some(gate) = target.gate.as_ref().filter(|_| text.contains('{')) {
        for (name, token) in tokens(gate, &org(MALLORY), &org(VICTIM)) {
            text = text.replace(name, &token);
        }
    }
    text
}

/// `U&"\0061pp"."organization"`
fn in_code_points(name: &str) -> String {
    let (first, rest) = name.split_once('.').unwrap();
    format!("U&\"\\{:04x}{}\".\"{rest}\"", u32::from(first.as_bytes()[0]), &first[1..])
}

/// `E'\x61\u0070p.organization'`
fn in_escapes(name: &str) -> String {
    let (first, second) = (name.as_bytes()[0], name.as_bytes()[1]);
    format!("E'\\x{first:02x}\\u{:04x}{}'", u32::from(second), &name[2..])
}

/// One row of each organization, and what a schema has around it.
const CANARIES: &str = "
    CREATE TABLE canary (
        organization_id uuid NOT NULL DEFAULT {whose},
        id int NOT NULL,
        name text NOT NULL,
        secret text NOT NULL,
        touched int NOT NULL DEFAULT 0,
        PRIMARY KEY (organization_id, id)
    );
    ALTER TABLE canary ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY base ON canary USING (true);
    CREATE POLICY organization ON canary AS RESTRICTIVE
        USING (organization_id = (SELECT {whose})) WITH CHECK (organization_id = (SELECT {whose}));
    GRANT SELECT, INSERT, UPDATE, DELETE ON canary TO app;
    GRANT USAGE ON SCHEMA pgtenant TO app;
";
