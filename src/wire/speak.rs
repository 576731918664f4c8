//! What the proxy itself says, to clients and to servers.

use bytes::{BufMut, Bytes, BytesMut};
use pgwire::messages::extendedquery as ext;
use pgwire::messages::response::{ReadyForQuery, TransactionStatus};
use pgwire::messages::simplequery::Query;
use pgwire::messages::startup::{
    Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, Password, SASLInitialResponse,
    SASLResponse, SecretKey, SslRequest, Startup,
};

use super::report::encode;
use super::startup::CancelKey;
use super::tag;

// --- to a client ---

/// Asks for the password in clear, which is how a token travels.
pub fn request_cleartext_password(out: &mut BytesMut) {
    encode(&Authentication::CleartextPassword, out);
}

/// Offers SASL mechanisms (RFC 4422).
pub fn request_sasl(mechanisms: &[&str], out: &mut BytesMut) {
    encode(&Authentication::SASL(mechanisms.iter().map(|m| (*m).to_owned()).collect()), out);
}

/// A SASL challenge.
pub fn sasl_continue(data: Vec<u8>, out: &mut BytesMut) {
    encode(&Authentication::SASLContinue(data.into()), out);
}

/// The outcome of a SASL exchange.
pub fn sasl_final(data: Vec<u8>, out: &mut BytesMut) {
    encode(&Authentication::SASLFinal(data.into()), out);
}

/// AuthenticationOk.
pub fn authentication_ok(out: &mut BytesMut) {
    encode(&Authentication::Ok, out);
}

/// Tells which minor version is spoken from now on, and which options of the protocol are not understood.
pub fn negotiate_protocol(minor: u16, unsupported: Vec<String>, out: &mut BytesMut) {
    // The field is the whole version word in PostgreSQL's own answer; libpq reads it so.
    let newest = (3 << 16) | i32::from(minor);
    encode(&NegotiateProtocolVersion::new(newest, unsupported), out);
}

/// One ParameterStatus.
pub fn parameter_status(name: &str, value: &str, out: &mut BytesMut) {
    encode(&ParameterStatus::new(name.to_owned(), value.to_owned()), out);
}

/// The key by which this client may cancel.
pub fn backend_key_data(key: &CancelKey, out: &mut BytesMut) {
    let secret = match <[u8; 4]>::try_from(key.secret.as_slice()) {
        Ok(four) => SecretKey::I32(i32::from_be_bytes(four)),
        Err(_) => SecretKey::Bytes(Bytes::copy_from_slice(&key.secret)),
    };
    encode(&BackendKeyData::new(key.pid as i32, secret), out);
}

/// ReadyForQuery, outside a transaction.
pub fn ready_for_query(out: &mut BytesMut) {
    encode(&ReadyForQuery::new(TransactionStatus::Idle), out);
}

/// ParseComplete.
pub fn parse_complete(out: &mut BytesMut) {
    encode(&ext::ParseComplete::new(), out);
}

/// CloseComplete.
pub fn close_complete(out: &mut BytesMut) {
    encode(&ext::CloseComplete::new(), out);
}

// --- to a server ---

/// SSLRequest.
pub fn ssl_request(out: &mut BytesMut) {
    encode(&SslRequest::new(), out);
}

/// StartupMessage of protocol 3.0.
pub fn startup(parameters: &[(&str, &str)], out: &mut BytesMut) {
    let mut startup = Startup::new();
    startup.parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    encode(&startup, out);
}

/// PasswordMessage, in clear or as an md5 response.
pub fn password(password: &str, out: &mut BytesMut) {
    encode(&Password::new(password.to_owned()), out);
}

/// The first SASL response, with the mechanism chosen.
pub fn sasl_initial(mechanism: &str, data: &[u8], out: &mut BytesMut) {
    let data = Some(Bytes::copy_from_slice(data));
    encode(&SASLInitialResponse::new(mechanism.to_owned(), data), out);
}

/// A further SASL response.
pub fn sasl_response(data: &[u8], out: &mut BytesMut) {
    encode(&SASLResponse::new(Bytes::copy_from_slice(data)), out);
}

/// A simple query.
pub fn query(sql: &str, out: &mut BytesMut) {
    encode(&Query::new(sql.to_owned()), out);
}

/// A simple query, given as the body of its message.
pub fn query_raw(body: &[u8], out: &mut BytesMut) {
    out.put_u8(tag::QUERY);
    out.put_u32((4 + body.len()) as u32);
    out.put_slice(body);
}

/// A simple query, given as the body of its message, as a batch of the extended protocol: with the same rows, as text, and
/// no unnamed statement left behind.
pub fn query_as_batch(body: &[u8], out: &mut BytesMut) {
    parse_raw(b"", &[body, &[0, 0]].concat(), out);
    encode(&ext::Bind::new(None, None, Vec::new(), Vec::new(), Vec::new()), out);
    encode(&ext::Describe::new(tag::TARGET_PORTAL, None), out);
    encode(&ext::Execute::new(None, 0), out);
    close_statement(b"", out);
    sync(out);
}

/// Flush: answers are wanted now.
pub fn flush(out: &mut BytesMut) {
    encode(&ext::Flush::new(), out);
}

/// Describe of a statement that never exists: the server answers with an error, and its transaction fails.
pub fn describe_nothing(out: &mut BytesMut) {
    encode(&ext::Describe::new(tag::TARGET_STATEMENT, Some("?".to_owned())), out);
}

/// Describe of a statement.
pub fn describe_statement(name: &[u8], out: &mut BytesMut) {
    out.put_u8(tag::DESCRIBE);
    out.put_i32((4 + 1 + name.len() + 1) as i32);
    out.put_u8(tag::TARGET_STATEMENT);
    out.put_slice(name);
    out.put_u8(0);
}

/// Parse without parameter types.
pub fn parse(name: &str, sql: &str, out: &mut BytesMut) {
    encode(&ext::Parse::new(Some(name.to_owned()), sql.to_owned(), Vec::new()), out);
}

/// Parse from text and types as a client sent them, byte for byte, under a name of ours.
pub fn parse_raw(name: &[u8], text_and_types: &[u8], out: &mut BytesMut) {
    out.reserve(6 + name.len() + text_and_types.len());
    out.put_u8(tag::PARSE);
    out.put_i32((4 + name.len() + 1 + text_and_types.len()) as i32);
    out.put_slice(name);
    out.put_u8(0);
    out.put_slice(text_and_types);
}

/// Close of a statement; no name is the unnamed one.
pub fn close_statement(name: &[u8], out: &mut BytesMut) {
    out.put_u8(tag::CLOSE);
    out.put_i32((4 + 1 + name.len() + 1) as i32);
    out.put_u8(tag::TARGET_STATEMENT);
    out.put_slice(name);
    out.put_u8(0);
}

/// Bind of text parameters to a named statement, and its execution; all results as text.
///
/// Written by hand: it is on the path of every transaction, and parameters need not be copied into a message first.
pub fn bind_and_execute(statement: &str, parameters: &[&[u8]], out: &mut BytesMut) {
    bind_portal_and_execute("", statement, parameters, out);
}

/// The same by a portal of this name, which must not exist: the unnamed one stays as it is.
pub fn bind_portal_and_execute(portal: &str, statement: &str, parameters: &[&[u8]], out: &mut BytesMut) {
    let values: usize = parameters.iter().map(|value| 4 + value.len()).sum();
    out.put_u8(tag::BIND);
    out.put_i32((4 + portal.len() + 1 + statement.len() + 1 + 2 + 2 + values + 2) as i32);
    out.put_slice(portal.as_bytes());
    out.put_u8(0);
    out.put_slice(statement.as_bytes());
    out.put_u8(0);
    out.put_i16(0);
    out.put_i16(parameters.len() as i16);
    for value in parameters {
        out.put_i32(value.len() as i32);
        out.put_slice(value);
    }
    out.put_i16(0);
    let portal = (!portal.is_empty()).then(|| portal.to_owned());
    encode(&ext::Execute::new(portal, 0), out);
}

/// Close of a portal.
pub fn close_portal(name: &str, out: &mut BytesMut) {
    out.put_u8(tag::CLOSE);
    out.put_i32((4 + 1 + name.len() + 1) as i32);
    out.put_u8(tag::TARGET_PORTAL);
    out.put_slice(name.as_bytes());
    out.put_u8(0);
}

/// Sync.
pub fn sync(out: &mut BytesMut) {
    encode(&ext::Sync::new(), out);
}

/// Terminate.
pub fn terminate(out: &mut BytesMut) {
    encode(&pgwire::messages::terminate::Terminate::new(), out);
}

/// CancelRequest.
pub fn cancel_request(key: &CancelKey, out: &mut BytesMut) {
    out.put_i32((12 + key.secret.len()) as i32);
    out.put_i32(80_877_102);
    out.put_u32(key.pid);
    out.put_slice(&key.secret);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use pgwire::messages::{DecodeContext, PgWireFrontendMessage};

    /// `pgwire`'s decoder as an independent reader of what we write by hand.
    #[test]
    fn hand_written_messages_are_read_back_by_the_oracle() {
        let mut out = BytesMut::new();
        bind_and_execute("s", &[b"one", b""], &mut out);
        parse_raw(b"p1", b"select $1\0\0\x01\0\0\0\x17", &mut out);
        let mut context = DecodeContext::default();
        context.awaiting_frontend_ssl = false;
        context.awaiting_frontend_startup = false;
        let mut next = || PgWireFrontendMessage::decode(&mut out, &context).unwrap().unwrap();
        let PgWireFrontendMessage::Bind(bind) = next() else { panic!("no Bind") };
        assert_eq!(bind.statement_name.as_deref(), Some("s"));
        assert_eq!(bind.parameters, [Some(Bytes::from("one")), Some(Bytes::new())]);
        assert!(matches!(next(), PgWireFrontendMessage::Execute(_)));
        let PgWireFrontendMessage::Parse(parse) = next() else { panic!("no Parse") };
        assert_eq!((parse.name.as_deref(), parse.query.as_str()), (Some("p1"), "select $1"));
        assert_eq!(parse.type_oids, [23]);
    }

    #[test]
    fn keys_of_both_lengths_are_told_byte_for_byte() {
        for length in [4, 32] {
            let key = CancelKey { pid: 7, secret: (1..=length).collect() };
            let mut out = BytesMut::new();
            backend_key_data(&key, &mut out);
            assert_eq!(out[..9], [b'K', 0, 0, 0, 8 + length, 0, 0, 0, 7]);
            assert_eq!(out[9..], key.secret);
        }
    }

    #[test]
    fn a_cancel_request_is_read_back_by_our_own_parser() {
        let key = CancelKey { pid: 7, secret: vec![1; 32] };
        let mut out = BytesMut::new();
        cancel_request(&key, &mut out);
        assert_eq!(super::super::startup::parse(&out).unwrap(), super::super::startup::Opening::Cancel(key));
    }
}
