//! Errors as PostgreSQL tells them: severity, SQLSTATE, one sentence, a detail and a hint.

use bytes::BytesMut;
use pgwire::messages::Message;
use pgwire::messages::response::{ErrorResponse, NoticeResponse};

use super::frame::split_cstr;
use super::violation::Violation;

/// A five-character error code (PostgreSQL documentation, appendix A).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sqlstate(pub &'static str);

impl Sqlstate {
    /// connection_failure: the server connection is gone, or binding it failed.
    pub const CONNECTION_FAILURE: Self = Self("08006");
    /// sqlclient_unable_to_establish_sqlconnection: PostgreSQL cannot be reached.
    pub const CANNOT_CONNECT: Self = Self("08001");
    /// sqlserver_rejected_establishment_of_sqlconnection: PostgreSQL refused the proxy's sign-in.
    pub const SERVER_REJECTED: Self = Self("08004");
    /// transaction_resolution_unknown: whether it was committed cannot be told.
    pub const OUTCOME_UNKNOWN: Self = Self("08007");
    /// protocol_violation
    pub const PROTOCOL_VIOLATION: Self = Self("08P01");
    /// feature_not_supported
    pub const NOT_SUPPORTED: Self = Self("0A000");
    /// reserved_name
    pub const RESERVED_NAME: Self = Self("42939");
    /// invalid_parameter_value
    pub const INVALID_PARAMETER: Self = Self("22023");
    /// undefined_parameter
    pub const UNDEFINED_PARAMETER: Self = Self("42P02");
    /// no_active_sql_transaction
    pub const NO_TRANSACTION: Self = Self("25P01");
    /// in_failed_sql_transaction
    pub const FAILED_TRANSACTION: Self = Self("25P02");
    /// invalid_authorization_specification
    pub const INVALID_AUTHORIZATION: Self = Self("28000");
    /// invalid_password
    pub const INVALID_PASSWORD: Self = Self("28P01");
    /// invalid_catalog_name: no such database
    pub const NO_SUCH_DATABASE: Self = Self("3D000");
    /// `read_only_sql_transaction`
    pub const READ_ONLY_TRANSACTION: Self = Self("25006");
    /// `insufficient_privilege`
    pub const INSUFFICIENT_PRIVILEGE: Self = Self("42501");
    /// invalid_sql_statement_name: a prepared statement that does not exist
    pub const NO_SUCH_STATEMENT: Self = Self("26000");
    /// duplicate_prepared_statement
    pub const DUPLICATE_STATEMENT: Self = Self("42P05");
    /// too_many_connections
    pub const TOO_MANY_CONNECTIONS: Self = Self("53300");
    /// configuration_limit_exceeded: more than was configured for an organization
    pub const CONFIGURATION_LIMIT: Self = Self("53400");
    /// idle_in_transaction_session_timeout
    pub const IDLE_IN_TRANSACTION: Self = Self("25P03");
    /// transaction_timeout
    pub const TRANSACTION_TIMEOUT: Self = Self("25P04");
    /// out_of_memory
    pub const OUT_OF_MEMORY: Self = Self("53200");
    /// program_limit_exceeded: longer than a named limit allows
    pub const LIMIT_EXCEEDED: Self = Self("54000");
    /// query_canceled
    pub const QUERY_CANCELED: Self = Self("57014");
    /// admin_shutdown
    pub const ADMIN_SHUTDOWN: Self = Self("57P01");
    /// cannot_connect_now
    pub const CANNOT_CONNECT_NOW: Self = Self("57P03");
    /// internal_error
    pub const INTERNAL: Self = Self("XX000");
}

/// What a client is told when something is refused or broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The SQLSTATE.
    pub code: Sqlstate,
    /// One sentence.
    pub message: String,
    /// More about this instance.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// The function that PostgreSQL would name: some drivers know an error by it, because texts are translated.
    pub routine: Option<&'static str>,
}

impl Report {
    /// A report without detail or hint.
    pub fn new(code: Sqlstate, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: None, hint: None, routine: None }
    }

    /// Adds a DETAIL.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds a HINT.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names the function that PostgreSQL reports this from.
    #[must_use]
    pub const fn routine(mut self, routine: &'static str) -> Self {
        self.routine = Some(routine);
        self
    }

    /// Encodes as FATAL: the connection ends after it.
    pub fn fatal(&self, out: &mut BytesMut) {
        self.encode("FATAL", out);
    }

    /// Encodes as ERROR: the connection goes on.
    pub fn error(&self, out: &mut BytesMut) {
        self.encode("ERROR", out);
    }

    /// Encodes as WARNING: nothing has failed.
    pub fn warning(&self, out: &mut BytesMut) {
        encode(&NoticeResponse::new(self.fields("WARNING")), out);
    }

    fn encode(&self, severity: &str, out: &mut BytesMut) {
        encode(&ErrorResponse::new(self.fields(severity)), out);
    }

    fn fields(&self, severity: &str) -> Vec<(u8, String)> {
        let mut fields = vec![
            (b'S', severity.to_owned()),
            (b'V', severity.to_owned()),
            (b'C', self.code.0.to_owned()),
            (b'M', without_nul(&self.message)),
        ];
        fields.extend(self.detail.as_deref().map(|d| (b'D', without_nul(d))));
        fields.extend(self.hint.as_deref().map(|h| (b'H', without_nul(h))));
        fields.extend(self.routine.map(|routine| (b'R', routine.to_owned())));
        fields
    }
}

/// Encodes a message that `pgwire` cannot fail on: its lengths are ours and small.
pub(super) fn encode<M: Message>(message: &M, out: &mut BytesMut) {
    if message.encode(out).is_err() {
        debug_assert!(false, "a message of our own did not encode");
    }
}

/// A NUL would end the field early and shift what follows.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The fields of an ErrorResponse or NoticeResponse that the proxy looks at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerReport {
    /// `V`, not localized; empty if the server left it out.
    pub severity: String,
    /// `C`
    pub code: String,
    /// `M`
    pub message: String,
    /// `R`: the function that reported it, never localized.
    pub routine: String,
}

impl ServerReport {
    /// Reads the fields; whatever is malformed is left empty rather than trusted.
    pub fn parse(mut body: &[u8]) -> Self {
        let mut report = Self::default();
        while let Some((&field, rest)) = body.split_first() {
            if field == 0 {
                break;
            }
            let Some((value, rest)) = split_cstr(rest) else { break };
            let value = || String::from_utf8_lossy(value).into_owned();
            match field {
                b'V' => report.severity = value(),
                b'C' => report.code = value(),
                b'M' => report.message = value(),
                b'R' => report.routine = value(),
                _ => {} // position, file, line, ...: not for us
            }
            body = rest;
        }
        report
    }

    /// Whether the server ends the session with it.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }
}

impl From<Violation> for Report {
    fn from(violation: Violation) -> Self {
        let code = match violation {
            Violation::Version(..) => Sqlstate::NOT_SUPPORTED,
            Violation::NoUser => Sqlstate::INVALID_AUTHORIZATION,
            _ => Sqlstate::PROTOCOL_VIOLATION,
        };
        Report::new(code, violation.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_say_can_be_read_back() {
        let mut out = BytesMut::new();
        Report::new(Sqlstate::TOO_MANY_CONNECTIONS, "no\0more").hint("wait").error(&mut out);
        let read = ServerReport::parse(&out[5..]);
        assert_eq!((read.severity.as_str(), read.code.as_str()), ("ERROR", "53300"));
        assert_eq!(read.message, "no\u{fffd}more");
    }

    #[test]
    fn half_a_report_is_not_trusted() {
        assert_eq!(ServerReport::parse(b"C42501"), ServerReport::default());
        assert_eq!(ServerReport::parse(b"").code, "");
        assert_eq!(ServerReport::parse(b"C42501\0M").code, "42501");
    }
}
