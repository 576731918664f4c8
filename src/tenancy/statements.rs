//! The statements that clean a server and bind it to a context, as protocol messages.

use std::collections::BTreeSet;

use bytes::BytesMut;

use super::seal::SealedContext;
use super::settings::Settings;
use crate::wire::speak;

/// Name of the prepared statement that binds; it is made anew by every cleaning, so no client can have dropped it.
const BIND: &str = "pgtenant_bind";

/// Names of statements that live for a moment on a server that its client keeps.
const SETTINGS: &str = "pgtenant_settings";
const INQUIRY: &str = "pgtenant_inquiry";

/// Prefix of every server-side statement name that is ours; a client's Bind cannot name one of them.
pub const OWN_PREFIX: &[u8] = b"pgtenant_";

/// The seal and the payload that it covers travel as parameters: statement texts are visible to whoever shares the role.
/// Everything is schema-qualified, so a hostile `search_path` changes nothing.
const BIND_SQL: &str = "SELECT pg_catalog.set_config('pgtenant.seal', $1::pg_catalog.text, false) IS NOT NULL \
     AND pg_catalog.set_config('pgtenant.claims', $2::pg_catalog.text, false) IS NOT NULL";

/// A new session needs only this to be clean: PostgreSQL starts it without anyone's state.
pub fn prepare(out: &mut BytesMut) {
    speak::parse(BIND, BIND_SQL, out);
    speak::sync(out);
}

/// Removes everything that a client can leave on a server.
///
/// DISCARD ALL: cursors, role and session authorization, settings, prepared statements (SQL-level and protocol-level),
/// LISTEN, advisory locks, cached plans, temporary tables, sequence state. The Parse of the unnamed statement replaces
/// what a client left there (and its Close leaves none), and `setseed` what it left in `random()`. DISCARD ALL refuses to run in a transaction
/// block, so its success also proves that none is open.
///
/// The last row that comes back ends with `nonce`, which nobody can know before: when it is seen, every earlier answer
/// has been read, whatever a client may have left owing.
pub fn clean(seed: f64, nonce: &str, out: &mut BytesMut) {
    speak::query("DISCARD ALL", out);
    speak::parse(BIND, BIND_SQL, out);
    speak::parse("", "SELECT pg_catalog.setseed($1::pg_catalog.float8), $2::pg_catalog.text", out);
    speak::bind_and_execute("", &[seed.to_string().as_bytes(), nonce.as_bytes()], out);
    speak::close_statement(b"", out);
    speak::sync(out);
}

/// Binds a clean server: the seal first, while nothing of the client's is there that could disturb it, then the
/// client's settings, committed together in a step of their own.
/// Writes nothing (and says so) when there is nothing to bind.
pub fn bind(sealed: Option<(&SealedContext, &str)>, settings: &Settings, out: &mut BytesMut) -> bool {
    if let Some((sealed, payload)) = sealed {
        speak::bind_and_execute(BIND, &[sealed.text().as_bytes(), payload.as_bytes()], out);
    }
    if !settings.is_empty() {
        set("", settings, out);
        speak::close_statement(b"", out);
    }
    let something = sealed.is_some() || !settings.is_empty();
    if something {
        speak::sync(out);
    }
    something
}

/// Binds a server anew that its client keeps, between two of its transactions. Whatever the client dropped or prepared
/// meanwhile, the statements are ours: each is closed and parsed first, and the unnamed one stays the client's.
/// Writes nothing (and says so) when there is nothing to bind.
pub fn rebind(sealed: Option<(&SealedContext, &str)>, settings: &Settings, out: &mut BytesMut) -> bool {
    if let Some((sealed, payload)) = sealed {
        speak::close_statement(BIND.as_bytes(), out);
        speak::parse(BIND, BIND_SQL, out);
        speak::bind_and_execute(BIND, &[sealed.text().as_bytes(), payload.as_bytes()], out);
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
