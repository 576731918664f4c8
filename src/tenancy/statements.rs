//! The statements that clean a server and bind it to a context, as protocol messages.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use bytes::{Bytes, BytesMut};

use super::inert;
use super::seal::SealedContext;
use super::settings::Settings;
use crate::wire::speak;

/// Which statements bind: the first the context, the second the client's settings.
type Names = [&'static str; 2];

/// On a server that was cleaned: the first was parsed then, and nothing of a client's came in between. So a client that
/// keeps its server finds no unnamed statement, as in a new session.
pub const NAMED: Names = ["pgtenant_bind", SETTINGS];

/// In a batch behind a wipe: SQL can neither make nor drop it.
pub const UNNAMED: Names = ["", ""];

/// The same where plans are kept.
pub const LIGHT: Names = ["pgtenant_light", ""];

/// Names of statements that live for a moment on a server that its client keeps.
const REBIND: &str = "pgtenant_rebind";
const SETTINGS: &str = "pgtenant_settings";
const INQUIRY: &str = "pgtenant_inquiry";

/// Prefix of every server-side statement name that is ours; a client's Bind cannot name one of them.
pub const OWN_PREFIX: &[u8] = b"pgtenant_";

/// Seed of `random()`, seal, the payload that it covers, and a text that comes back.
///
/// The seal and the payload travel as parameters: statement texts are visible to whoever shares the role. Everything is
/// schema-qualified, so a hostile `search_path` changes nothing.
const BIND_SQL: &str = "SELECT pg_catalog.setseed($1::pg_catalog.float8), pg_catalog.pg_advisory_unlock_all(), \
     pg_catalog.set_config('pgtenant.seal', $2::pg_catalog.text, false) IS NOT NULL \
     AND pg_catalog.set_config('pgtenant.claims', $3::pg_catalog.text, false) IS NOT NULL, $4::pg_catalog.text";

/// The same with the payload's settings.
const BIND_WITH_SETTINGS_SQL: &str = "SELECT pg_catalog.setseed($1::pg_catalog.float8), pg_catalog.pg_advisory_unlock_all(), \
     pg_catalog.set_config('pgtenant.seal', $2::pg_catalog.text, false) IS NOT NULL \
     AND pg_catalog.set_config('pgtenant.claims', $3::pg_catalog.text, false) IS NOT NULL, \
     (SELECT pg_catalog.count(pg_catalog.set_config(s.key, s.value, false)) FROM pg_catalog.json_each_text( \
     $3::pg_catalog.json OPERATOR(pg_catalog.->) 'settings'::pg_catalog.text) AS s), $4::pg_catalog.text";

/// The same where the role may not change settings by functions (`install --harden`): the database does it, after it has
/// checked the seal.
const BIND_HARDENED_SQL: &str = "SELECT pgtenant.bind($1::pg_catalog.float8, $2::pg_catalog.text, $3::pg_catalog.text, false), \
     pg_catalog.pg_advisory_unlock_all(), $4::pg_catalog.text";

/// The same for a client that keeps its server, with its locks and its seed.
const REBIND_SQL: &str = "SELECT pg_catalog.set_config('pgtenant.seal', $1::pg_catalog.text, $3::pg_catalog.bool) IS NOT NULL \
     AND pg_catalog.set_config('pgtenant.claims', $2::pg_catalog.text, $3::pg_catalog.bool) IS NOT NULL";

/// See [`BIND_WITH_SETTINGS_SQL`].
const REBIND_WITH_SETTINGS_SQL: &str = "SELECT pg_catalog.set_config('pgtenant.seal', $1::pg_catalog.text, $3::pg_catalog.bool) IS NOT NULL \
     AND pg_catalog.set_config('pgtenant.claims', $2::pg_catalog.text, $3::pg_catalog.bool) IS NOT NULL \
     AND (SELECT pg_catalog.count(pg_catalog.set_config(s.key, s.value, $3::pg_catalog.bool)) FROM pg_catalog.json_each_text( \
     $2::pg_catalog.json OPERATOR(pg_catalog.->) 'settings'::pg_catalog.text) AS s) IS NOT NULL";

/// See [`BIND_HARDENED_SQL`].
const REBIND_HARDENED_SQL: &str =
    "SELECT pgtenant.bind(NULL, $1::pg_catalog.text, $2::pg_catalog.text, $3::pg_catalog.bool)";

/// Behind what binds anew, for a context under which nothing is written.
const READ_ONLY_SQL: &str = " AND pg_catalog.set_config('transaction_read_only', 'on', true) IS NOT NULL \
     AND pg_catalog.set_config('default_transaction_read_only', 'on', $3::pg_catalog.bool) IS NOT NULL";

/// How a server is put under a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// By the seal alone.
    #[default]
    Seal,
    /// By the seal, and by settings for policies that read them.
    WithSettings,
    /// The same where the role may not call `set_config` and `setseed` itself.
    Hardened,
}

impl Style {
    fn bind_sql(self) -> &'static str {
        match self {
            Style::Seal => BIND_SQL,
            Style::WithSettings => BIND_WITH_SETTINGS_SQL,
            Style::Hardened => BIND_HARDENED_SQL,
        }
    }

    fn rebind_sql(self) -> &'static str {
        match self {
            Style::Seal => REBIND_SQL,
            Style::WithSettings => REBIND_WITH_SETTINGS_SQL,
            Style::Hardened => REBIND_HARDENED_SQL,
        }
    }
}

/// What DISCARD ALL does (PostgreSQL documentation, "DISCARD"), but for advisory locks, which [`BIND_SQL`] releases: as
/// statements that may share a transaction with others, which DISCARD ALL itself refuses.
///
/// The transaction itself began under what the last client may have left as its default. So its characteristics are set,
/// before anything takes a snapshot; SET TRANSACTION would do it too, and have PostgreSQL log a warning. Whatever was planned before is planned anew: with other
/// settings a plan of the last client's may have another result.
const WIPES: [&str; 10] = [
    "SET transaction_isolation = 'read committed'",
    "SET transaction_read_only = off",
    "SET SESSION AUTHORIZATION DEFAULT",
    "RESET ALL",
    "CLOSE ALL",
    "DEALLOCATE ALL",
    "UNLISTEN *",
    "DISCARD PLANS",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
];

/// Those of them that are executed where statements and plans stay; by name, for none but inert texts came in between.
static LIGHT_WIPES: LazyLock<Vec<(String, &str)>> = LazyLock::new(|| {
    let kept = ["DEALLOCATE ALL", "DISCARD PLANS"];
    let wipes = WIPES.into_iter().filter(|sql| !kept.contains(sql)).enumerate();
    wipes.map(|(index, sql)| (format!("pgtenant_wipe{index}"), sql)).collect()
});

/// The messages that execute them.
static LIGHT_WIPE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut out = BytesMut::new();
    LIGHT_WIPES.iter().for_each(|(name, _)| speak::bind_and_execute(name, &[], &mut out));
    out.freeze()
});

/// Asked of a clean server: whether a new session's transactions are those that [`WIPES`] set; and whether there are no
/// functions, but for those of PostgreSQL and of extensions, that
/// - say IMMUTABLE and are not in C: such a one may say so and read a setting or a table, and then its result is a
///   constant in plans;
/// - have a name that an inert text may call: another one than PostgreSQL's would run;
/// - can be called like a column, of a row or of whatever has any type: `(value).name` and `table.name` are calls too.
///
/// And whether the role may change settings by functions.
pub static POSTURE: LazyLock<String> = LazyLock::new(|| {
    let names = inert::callable().collect::<Vec<_>>().join(",");
    format!(
        "SELECT pg_catalog.current_setting('transaction_isolation') = 'read committed' \
         AND pg_catalog.current_setting('transaction_read_only') = 'off', \
         NOT EXISTS (SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
           WHERE p.pronamespace NOT IN ('pg_catalog'::pg_catalog.regnamespace, 'information_schema'::pg_catalog.regnamespace) \
           AND (p.provolatile = 'i' AND l.lanname NOT IN ('internal', 'c') \
             OR p.proname = ANY ('{{{names}}}'::pg_catalog.name[]) \
             OR p.pronargs > 0 AND p.pronargs - p.pronargdefaults <= 1 AND EXISTS (SELECT FROM pg_catalog.pg_type a \
               WHERE a.oid = p.proargtypes[0] AND a.typtype IN ('c', 'p'))) \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass \
             AND d.objid = p.oid AND d.deptype = 'e')), \
         pg_catalog.has_function_privilege('pg_catalog.set_config(text, text, boolean)', 'EXECUTE') \
         AND pg_catalog.has_function_privilege('pg_catalog.setseed(double precision)', 'EXECUTE'), \
         NOT EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_type <> '1' AND r.oid >= {})",
        inert::FIRST_NORMAL_OID
    )
});

/// The messages that wipe.
static WIPE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut out = BytesMut::new();
    for sql in WIPES {
        speak::parse("", sql, &mut out);
        speak::bind_and_execute("", &[], &mut out);
    }
    out.freeze()
});

/// Writes what binds the servers of one pool, and what cleans them.
#[derive(Debug, Clone, Default)]
pub struct Binder {
    style: Style,
    /// The payload where there is no context: what empties the settings that a context would bring.
    nothing: Arc<str>,
}

impl Binder {
    /// For contexts whose payloads bring settings, if `nothing`, the payload of none, does so.
    pub fn new(nothing: &str) -> Self {
        let style = if nothing.is_empty() { Style::Seal } else { Style::WithSettings };
        Self { style, nothing: nothing.into() }
    }

    /// A new session needs only this to be clean: PostgreSQL starts it without anyone's state. The answer to [`POSTURE`]
    /// comes back first.
    pub fn prepare(&self, out: &mut BytesMut) {
        speak::query(&POSTURE, out);
        speak::parse(NAMED[0], self.style.bind_sql(), out);
        speak::sync(out);
    }

    /// Whether the answer, that the role may call what changes settings or not, is what has been reckoned with.
    pub fn expects(&self, may_set: bool) -> bool {
        may_set == (self.style != Style::Hardened)
    }

    /// The role may not: prepares anew.
    pub fn harden(&mut self, out: &mut BytesMut) {
        self.style = Style::Hardened;
        speak::close_statement(NAMED[0].as_bytes(), out);
        speak::parse(NAMED[0], self.style.bind_sql(), out);
        speak::sync(out);
    }

    /// Removes everything that a client can leave on a server, as a step of its own.
    ///
    /// DISCARD ALL: cursors, role and session authorization, settings, prepared statements (SQL-level and protocol-level),
    /// LISTEN, advisory locks, cached plans, temporary tables, sequence state. The Close drops what the client left as the
    /// unnamed statement, and `setseed` what it left in `random()`. DISCARD ALL refuses to run in a transaction block, so
    /// its success also proves that none is open.
    ///
    /// The last row that comes back ends with `nonce`, which nobody can know before: when it is seen, every earlier answer
    /// has been read, whatever a client may have left owing.
    pub fn clean(&self, seed: f64, nonce: &str, out: &mut BytesMut) {
        speak::query("DISCARD ALL", out);
        speak::close_statement(b"", out);
        speak::parse(NAMED[0], self.style.bind_sql(), out);
        let nothing = self.nothing.as_bytes();
        speak::bind_and_execute(
            NAMED[0],
            &[seed.to_string().as_bytes(), b"", nothing, nonce.as_bytes()],
            out,
        );
        speak::sync(out);
    }

    /// Removes everything that a client can leave on a server, at the head of a batch: where anything of it fails,
    /// PostgreSQL skips all that follows.
    ///
    /// Writes no Sync. Returns how many CommandComplete come.
    pub fn wipe(&self, out: &mut BytesMut) -> usize {
        out.extend_from_slice(&WIPE);
        speak::parse("", self.style.bind_sql(), out);
        WIPES.len()
    }

    /// The same where the last clients' statements and plans may stay, and SQL cannot have made or dropped any. `has_own`:
    /// it was done before.
    pub fn wipe_lightly(&self, has_own: bool, out: &mut BytesMut) -> usize {
        if !has_own {
            LIGHT_WIPES.iter().for_each(|(name, sql)| speak::parse(name, sql, out));
            speak::parse(LIGHT[0], self.style.bind_sql(), out);
        }
        out.extend_from_slice(&LIGHT_WIPE);
        LIGHT_WIPES.len()
    }

    /// Binds a clean server, or one that is clean when everything before it in the batch succeeds: the seal first, while
    /// nothing of the client's is there that could disturb it, then the client's settings. A row comes back that ends with
    /// `nonce`. Writes no Sync. Returns how many CommandComplete come, of which the last is the last answer.
    pub fn bind(
        &self,
        [binds, sets]: Names,
        sealed: Option<(&SealedContext, &str)>,
        settings: &Settings,
        (seed, nonce): (f64, &str),
        out: &mut BytesMut,
    ) -> usize {
        let (seal, payload) = self.told(sealed);
        speak::bind_and_execute(
            binds,
            &[seed.to_string().as_bytes(), seal.as_bytes(), payload.as_bytes(), nonce.as_bytes()],
            out,
        );
        1 + self.set(sets, settings, out)
    }

    /// Binds a server anew that its client keeps, between two of its transactions, or takes its context from it. Whatever
    /// the client dropped or prepared meanwhile, the statements are ours: each is closed and parsed first, and the unnamed
    /// one stays the client's.
    pub fn rebind(&self, sealed: Option<(&SealedContext, &str)>, settings: &Settings, out: &mut BytesMut) {
        self.put_under(sealed, false, out);
        if !settings.is_empty() {
            speak::close_statement(SETTINGS.as_bytes(), out);
            self.set(SETTINGS, settings, out);
            speak::close_statement(SETTINGS.as_bytes(), out);
        }
        speak::sync(out);
    }

    /// Puts a server under another context, or none, whatever its transaction has done so far; with `is_local` until that
    /// ends. What the client has as its unnamed statement and portal stays. Writes no Sync. Answers: CloseComplete twice,
    /// ParseComplete, BindComplete, a row, CommandComplete.
    pub fn put_under(&self, sealed: Option<(&SealedContext, &str)>, is_local: bool, out: &mut BytesMut) {
        let (seal, payload) = self.told(sealed);
        let is_read_only = sealed.is_some_and(|(sealed, _)| sealed.is_read_only());
        let is_local = if is_local { b"t" } else { b"f" };
        speak::close_portal(REBIND, out);
        speak::close_statement(REBIND.as_bytes(), out);
        // Where the database binds, it sees to that itself.
        if is_read_only && self.style != Style::Hardened {
            speak::parse(REBIND, &[self.style.rebind_sql(), READ_ONLY_SQL].concat(), out);
        } else {
            speak::parse(REBIND, self.style.rebind_sql(), out);
        }
        speak::bind_portal_and_execute(REBIND, REBIND, &[seal.as_bytes(), payload.as_bytes(), is_local], out);
    }

    /// Seal and payload as the database is told them.
    fn told<'a>(&'a self, sealed: Option<(&'a SealedContext, &'a str)>) -> (&'a str, &'a str) {
        sealed.map_or(("", &*self.nothing), |(sealed, payload)| (sealed.text(), payload))
    }

    /// Sets settings for the session, by a prepared statement of this name. Returns how many CommandComplete come.
    fn set(&self, statement: &str, settings: &Settings, out: &mut BytesMut) -> usize {
        let is_hardened = self.style == Style::Hardened;
        let mut completions = 0;
        // A function that runs as somebody else may not change it.
        if is_hardened && let Some(role) = settings.get("role") {
            speak::parse(statement, &format!("SET ROLE \"{}\"", role.replace('"', "\"\"")), out);
            speak::bind_and_execute(statement, &[], out);
            speak::close_statement(statement.as_bytes(), out);
            completions += 1;
        }
        let sets = if is_hardened { "pgtenant.put_back" } else { "pg_catalog.set_config" };
        let last = if is_hardened { "" } else { ", false" };
        let mut sql = String::from("SELECT ");
        let mut parameters: Vec<&[u8]> = Vec::with_capacity(2 * settings.len());
        for (name, value) in settings.iter().filter(|(name, _)| !(is_hardened && *name == "role")) {
            if !parameters.is_empty() {
                sql.push_str(", ");
            }
            let (n, v) = (parameters.len() + 1, parameters.len() + 2);
            sql.push_str(&format!("{sets}(${n}::pg_catalog.text, ${v}::pg_catalog.text{last}) IS NULL"));
            parameters.push(name.as_bytes());
            parameters.push(value.as_bytes());
        }
        if !parameters.is_empty() {
            speak::parse(statement, &sql, out);
            speak::bind_and_execute(statement, &parameters, out);
            completions += 1;
        }
        completions
    }
}

/// Has `nonce` come back, behind everything that is outstanding; the unnamed statement stays the client's.
pub fn probe(nonce: &str, out: &mut BytesMut) {
    speak::close_statement(INQUIRY.as_bytes(), out);
    speak::parse(INQUIRY, "SELECT $1::pg_catalog.text", out);
    speak::bind_and_execute(INQUIRY, &[nonce.as_bytes()], out);
    speak::close_statement(INQUIRY.as_bytes(), out);
    speak::sync(out);
}

/// Asks which settings were changed in the session and hold on. Names and values come as hexadecimal UTF-8, whatever the
/// client's encoding; every name is qualified, the operators too, because the client's `search_path` is in force.
pub fn inquire(names: &BTreeSet<String>, out: &mut BytesMut) {
    let hex = |what: &str| format!("pg_catalog.encode(pg_catalog.convert_to({what}, 'UTF8'), 'hex')");
    let sql = format!(
        "SELECT {}, {} FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session' \
         UNION ALL SELECT {}, {} FROM pg_catalog.unnest($1::pg_catalog.text[]) AS n \
         WHERE pg_catalog.current_setting(n, true) IS NOT NULL",
        hex("name"),
        hex("setting"),
        hex("n"),
        hex("pg_catalog.current_setting(n, true)")
    );
    speak::close_statement(INQUIRY.as_bytes(), out);
    speak::parse(INQUIRY, &sql, out);
    let quoted = names.iter().map(|name| format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")));
    let array = format!("{{{}}}", quoted.collect::<Vec<_>>().join(","));
    speak::bind_and_execute(INQUIRY, &[array.as_bytes()], out);
    speak::close_statement(INQUIRY.as_bytes(), out);
    speak::sync(out);
}
