//! The statements that clean a server and bind it to a context, as protocol messages.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};

use super::seal::SealedContext;
use super::settings::Settings;
use crate::wire::speak;

/// Name of the prepared statement that binds; whoever executes it has made sure that it is ours.
const BIND: &str = "pgtenant_bind";

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

/// The same for a client that keeps its server, with its locks and its seed.
const REBIND_SQL: &str = "SELECT pg_catalog.set_config('pgtenant.seal', $1::pg_catalog.text, false) IS NOT NULL \
     AND pg_catalog.set_config('pgtenant.claims', $2::pg_catalog.text, false) IS NOT NULL";

/// Divides by zero if any prepared statement was made by SQL, under whatever name, or one of so many was dropped by it, if the session listens (UNLISTEN counts
/// only when its transaction ends), or if the transaction is not one that a new session would begin. What passes has only statements that were parsed by the protocol, where all names are ours.
///
/// It is executed before anything of the last client's is undone, so it relies on no setting: everything is qualified,
/// the operators too.
const CHECK_SQL: &str = "SELECT 1 OPERATOR(pg_catalog./) ( \
     pg_catalog.count(*) FILTER (WHERE p.from_sql) OPERATOR(pg_catalog.=) 0 \
     AND pg_catalog.count(*) OPERATOR(pg_catalog.>=) $1::pg_catalog.int8 \
     AND pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.=) 'read committed' \
     AND pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'off' \
     AND NOT EXISTS (SELECT FROM pg_catalog.pg_listening_channels()))::pg_catalog.int4 \
     FROM pg_catalog.pg_prepared_statement() AS p";

/// What DISCARD ALL does, but for prepared statements and plans, for channels, of which there are none ([`CHECK_SQL`]), and
/// for advisory locks, which [`BIND_SQL`] releases (PostgreSQL documentation, "DISCARD").
const WIPES: [(&str, &str); 5] = [
    ("pgtenant_wipe_cursors", "CLOSE ALL"),
    ("pgtenant_wipe_role", "SET SESSION AUTHORIZATION DEFAULT"),
    ("pgtenant_wipe_settings", "RESET ALL"),
    ("pgtenant_wipe_tables", "DISCARD TEMP"),
    ("pgtenant_wipe_sequences", "DISCARD SEQUENCES"),
];

/// The messages that execute them.
static WIPE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut out = BytesMut::new();
    WIPES.iter().for_each(|(name, _)| speak::bind_and_execute(name, &[], &mut out));
    out.freeze()
});

/// Whether prepared statements may outlive a wipe on servers of this database and role.
///
/// A function that is declared IMMUTABLE but reads a setting would have one client's value in a plan that the next one
/// uses. So there must be none that could: whose text reads settings or tables, or names a function that is not
/// immutable. And the transactions of a new session must be those that [`CHECK_SQL`] expects.
pub const MAY_KEEP: &str = "WITH own AS MATERIALIZED (SELECT p.oid, p.proname, p.provolatile = 'i' AS fixed, \
     l.lanname NOT IN ('internal', 'c') AND p.prokind IN ('f', 'w') AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d \
       WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid AND d.deptype = 'e') AS doubtful \
     FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
     WHERE p.pronamespace NOT IN ('pg_catalog'::pg_catalog.regnamespace, 'information_schema'::pg_catalog.regnamespace)), \
     fixed AS MATERIALIZED (SELECT pg_catalog.lower(pg_catalog.pg_get_functiondef(oid)) AS text FROM own \
       WHERE fixed AND doubtful LIMIT 101) \
     SELECT pg_catalog.current_setting('transaction_isolation') = 'read committed' \
       AND pg_catalog.current_setting('transaction_read_only') = 'off' \
       AND (SELECT pg_catalog.count(*) FROM fixed) <= 100 \
       AND NOT EXISTS (SELECT FROM fixed WHERE text ~ '(setting|\\mfrom\\M|\\mexecute\\M|\\mperform\\M)' \
         OR EXISTS (SELECT FROM own WHERE NOT own.fixed AND pg_catalog.strpos(text, pg_catalog.lower(proname)) > 0))";

/// A new session needs only this to be clean: PostgreSQL starts it without anyone's state.
pub fn prepare(out: &mut BytesMut) {
    speak::parse(BIND, BIND_SQL, out);
    speak::sync(out);
}

/// Removes everything that a client can leave on a server.
///
/// DISCARD ALL: cursors, role and session authorization, settings, prepared statements (SQL-level and protocol-level),
/// LISTEN, advisory locks, cached plans, temporary tables, sequence state. The Close drops what the client left as the
/// unnamed statement, and `setseed` what it left in `random()`. DISCARD ALL refuses to run in a transaction
/// block, so its success also proves that none is open.
///
/// The last row that comes back ends with `nonce`, which nobody can know before: when it is seen, every earlier answer
/// has been read, whatever a client may have left owing.
pub fn clean(seed: f64, nonce: &str, out: &mut BytesMut) {
    speak::query("DISCARD ALL", out);
    speak::close_statement(b"", out);
    speak::parse(BIND, BIND_SQL, out);
    finish(seed, nonce, out);
}

/// The end of a cleaning: nothing is bound, and `nonce` comes back.
pub fn finish(seed: f64, nonce: &str, out: &mut BytesMut) {
    speak::bind_and_execute(BIND, &[seed.to_string().as_bytes(), b"", b"", nonce.as_bytes()], out);
    speak::sync(out);
}

/// What of the proxy's own a server has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Own {
    /// The unnamed statement is the check.
    pub check: bool,
    /// The statements that wipe are there.
    pub wipes: bool,
}

/// Removes everything that a client can leave on a server, but for prepared statements, of which `forgotten` go; `shared`
/// are there that clients share.
///
/// First of all it is made sure that all of them were parsed by the proxy: SQL cannot touch the unnamed statement, which
/// is what checks that; it fails the batch otherwise, and all that follows is skipped. Only then are statements executed
/// by name.
///
/// Writes no Sync: what follows is skipped too if anything fails. Returns how many CommandComplete come.
pub fn wipe(
    own: Own,
    shared: usize,
    forgotten: impl Iterator<Item = impl AsRef<[u8]>>,
    out: &mut BytesMut,
) -> usize {
    if !own.check {
        speak::parse("", CHECK_SQL, out);
    }
    let named = shared + 1 + if own.wipes { WIPES.len() } else { 0 };
    speak::bind_and_execute("", &[named.to_string().as_bytes()], out);
    forgotten.for_each(|name| speak::close_statement(name.as_ref(), out));
    if !own.wipes {
        WIPES.iter().for_each(|(name, sql)| speak::parse(name, sql, out));
    }
    out.extend_from_slice(&WIPE);
    1 + WIPES.len()
}

/// Binds a clean server, or one that is clean when everything before it in the batch succeeds: the seal first, while
/// nothing of the client's is there that could disturb it, then the client's settings. Writes no Sync. Returns how many
/// CommandComplete come, of which the last is the last answer.
pub fn bind(
    sealed: Option<(&SealedContext, &str)>,
    settings: &Settings,
    seed: f64,
    out: &mut BytesMut,
) -> usize {
    let (seal, payload) = sealed.map_or(("", ""), |(sealed, payload)| (sealed.text(), payload));
    speak::bind_and_execute(
        BIND,
        &[seed.to_string().as_bytes(), seal.as_bytes(), payload.as_bytes(), b""],
        out,
    );
    if settings.is_empty() {
        return 1;
    }
    speak::close_statement(SETTINGS.as_bytes(), out);
    set(SETTINGS, settings, out);
    2
}

/// Binds a server anew that its client keeps, between two of its transactions. Whatever the client dropped or prepared
/// meanwhile, the statements are ours: each is closed and parsed first, and the unnamed one stays the client's.
/// Writes nothing (and says so) when there is nothing to bind.
pub fn rebind(sealed: Option<(&SealedContext, &str)>, settings: &Settings, out: &mut BytesMut) -> bool {
    if let Some((sealed, payload)) = sealed {
        speak::close_statement(REBIND.as_bytes(), out);
        speak::parse(REBIND, REBIND_SQL, out);
        speak::bind_and_execute(REBIND, &[sealed.text().as_bytes(), payload.as_bytes()], out);
    }
    if !settings.is_empty() {
        speak::close_statement(SETTINGS.as_bytes(), out);
        set(SETTINGS, settings, out);
        speak::close_statement(SETTINGS.as_bytes(), out);
    }
    let something = sealed.is_some() || !settings.is_empty();
    if something {
        speak::sync(out);
    }
    something
}

/// Sets settings for the session, by a prepared statement of this name.
fn set(statement: &str, settings: &Settings, out: &mut BytesMut) {
    let mut sql = String::from("SELECT ");
    let mut parameters: Vec<&[u8]> = Vec::with_capacity(2 * settings.len());
    for (index, (name, value)) in settings.iter().enumerate() {
        if index > 0 {
            sql.push_str(", ");
        }
        let (n, v) = (2 * index + 1, 2 * index + 2);
        sql.push_str(&format!(
            "pg_catalog.set_config(${n}::pg_catalog.text, ${v}::pg_catalog.text, false) IS NULL"
        ));
        parameters.push(name.as_bytes());
        parameters.push(value.as_bytes());
    }
    speak::parse(statement, &sql, out);
    speak::bind_and_execute(statement, &parameters, out);
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
