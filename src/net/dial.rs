//! Signing in to a PostgreSQL server: TCP or a Unix socket, TLS, authentication, up to its first ReadyForQuery.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use rustls::ClientConfig;

use super::buffer::Buffer;
use super::stream::Stream;
use super::watched::Watched;
use super::way::{CancelTarget, Way};
use crate::config::{Secret, Server};
use crate::wire::frame::{HEADER, peek, split_cstr};
use crate::wire::report::ServerReport;
use crate::wire::startup::{CancelKey, SECRET_BYTES};
use crate::wire::violation::Violation;
use crate::wire::{speak, tag};

/// From the first SYN to ReadyForQuery; PostgreSQL's own `authentication_timeout` is 60 s, libpq's users expect less.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A message of the sign-in longer than this is none (PostgreSQL's errors are far shorter).
const MAX_SIGN_IN_MESSAGE: usize = 30_000;

/// How to reach and enter one server as one role in one database.
#[derive(Clone)]
pub struct Dialer {
    way: Way,
    dbname: String,
    role: String,
    password: Option<Secret>,
}

/// A signed-in connection to a server, as PostgreSQL starts it: nobody's state is on it.
pub struct Dialled {
    /// The connection.
    pub stream: Stream,
    /// What was read ahead (nothing, from a server that keeps to the protocol).
    pub incoming: Buffer,
    /// For cancelling what it runs; holds the server's process id.
    pub target: CancelTarget,
    /// ParameterStatus values at sign-in.
    pub parameters: BTreeMap<String, String>,
}

/// Why a server cannot be used; the sentence is for clients and operators.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// Nothing answers there: it may come back, so it is worth waiting.
    #[error("cannot reach PostgreSQL at {address}: {reason}")]
    Unreachable {
        /// host:port, or a socket's path.
        address: String,
        /// The system's word.
        reason: String,
    },
    /// PostgreSQL answers with an error.
    #[error("PostgreSQL at {address} refused the sign-in of role \"{role}\": {} ({})", .report.message, .report.code)]
    Refused {
        /// host:port
        address: String,
        /// Who wanted to sign in.
        role: String,
        /// What PostgreSQL said.
        report: Box<ServerReport>,
    },
    /// The two sides cannot agree on how: TLS, method, protocol.
    #[error("cannot sign in to PostgreSQL at {address}: {reason}")]
    Unsupported {
        /// host:port
        address: String,
        /// What stands in the way, and what to do.
        reason: String,
    },
}

impl DialError {
    /// Whether waiting may help: the server is away, starting, stopping, or full.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { report, .. } => report.code.starts_with("57P") || report.code == "53300",
            Self::Unsupported { .. } => false,
        }
    }
}

impl Dialer {
    /// Prepares to enter `dbname` on `server` as `role`; `tls` is what [`super::tls::watched_connector`] makes for this
    /// server.
    pub fn new(
        server: Arc<Server>,
        tls: Option<Arc<Watched<ClientConfig>>>,
        dbname: &str,
        role: &str,
        password: Option<Secret>,
    ) -> Self {
        Self { way: Way::new(server, tls), dbname: dbname.to_owned(), role: role.to_owned(), password }
    }

    /// Whether it leads to the same place, by the same right.
    pub fn leads_as(&self, other: &Self) -> bool {
        self.way.leads_as(&other.way)
            && (&self.dbname, &self.role, &self.password) == (&other.dbname, &other.role, &other.password)
    }

    /// Connects and signs in within [`CONNECT_TIMEOUT`].
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self) -> Result<Dialled, DialError> {
        match tokio::time::timeout(CONNECT_TIMEOUT, self.dial_unbounded()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.way.unreachable("no answer within 10 s")),
        }
    }

    async fn dial_unbounded(&self) -> Result<Dialled, DialError> {
        let stream = self.way.connect().await?;
        SignIn { dialer: self, stream, incoming: Buffer::default(), out: BytesMut::new() }.run().await
    }

    /// Whether anything listens there; PostgreSQL logs nothing of a connection that closes without a word.
    ///
    /// # Errors
    /// It does not, or not within a second.
    pub async fn probe(&self) -> Result<(), DialError> {
        match tokio::time::timeout(Duration::from_secs(1), self.way.reach()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.way.unreachable(error)),
            Err(_) => Err(self.way.unreachable("no answer within 1 s")),
        }
    }

    /// The server's address, for messages.
    pub fn address(&self) -> String {
        self.way.address()
    }
}

/// The conversation from StartupMessage to ReadyForQuery.
struct SignIn<'a> {
    dialer: &'a Dialer,
    stream: Stream,
    incoming: Buffer,
    out: BytesMut,
}

impl SignIn<'_> {
    async fn run(mut self) -> Result<Dialled, DialError> {
        let dialer = self.dialer;
        // Protocol 3.0 is asked for: 3.2 has nothing but longer cancel keys, which only this proxy ever uses, and what
        // is between here and PostgreSQL (a balancer, another pooler) may not speak it.
        // client_encoding is fixed so that what a database or role sets as default cannot surprise the relay.
        let parameters = [
            ("user", dialer.role.as_str()),
            ("database", dialer.dbname.as_str()),
            ("application_name", "pgtenant"),
            ("client_encoding", "UTF8"),
        ];
        speak::startup(&parameters, &mut self.out);
        self.send().await?;
        self.authenticate().await?;
        self.until_ready().await
    }

    async fn authenticate(&mut self) -> Result<(), DialError> {
        loop {
            let body = self.expect(tag::AUTHENTICATION).await?;
            match body.split_first_chunk::<4>().map(|(kind, rest)| (u32::from_be_bytes(*kind), rest)) {
                Some((0, _)) => return Ok(()),
                Some((3, _)) => speak::password(dialer_password(self.dialer)?, &mut self.out),
                Some((5, salt)) => {
                    let salt = salt.try_into().map_err(|_| self.broken(Violation::Malformed(b'R')))?;
                    let answer =
                        md5_hash(self.dialer.role.as_bytes(), dialer_password(self.dialer)?.as_bytes(), salt);
                    speak::password(&answer, &mut self.out);
                }
                Some((10, mechanisms)) => {
                    let mechanisms = mechanisms.to_vec();
                    self.scram(&mechanisms).await?;
                    continue;
                }
                Some((kind, _)) => {
                    return Err(self.dialer.way.unsupported(format!(
                        "it demands authentication method {kind}, which is not supported; use scram-sha-256 in pg_hba.conf"
                    )));
                }
                None => return Err(self.broken(Violation::Malformed(b'R'))),
            }
            self.send().await?;
        }
    }

    async fn scram(&mut self, mut mechanisms: &[u8]) -> Result<(), DialError> {
        let (mut offered, mut plus_offered) = (false, false);
        while let Some((name, rest)) = split_cstr(mechanisms) {
            offered |= name == SCRAM_SHA_256.as_bytes();
            plus_offered |= name == SCRAM_SHA_256_PLUS.as_bytes();
            mechanisms = rest;
        }
        // Bound to the certificate that was shown, the sign-in is of no use to who is in between, even where nothing
        // verifies that certificate. If the offer was taken out on its way, `unrequested` lets PostgreSQL see it.
        let (mechanism, binding) = match self.stream.peer_end_point() {
            Some(hash) if plus_offered => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
            Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        if !offered && mechanism == SCRAM_SHA_256 {
            return Err(self
                .dialer
                .way
                .unsupported("it offers no SCRAM-SHA-256; use scram-sha-256 in pg_hba.conf"));
        }
        let mut scram = ScramSha256::new(dialer_password(self.dialer)?.as_bytes(), binding);
        speak::sasl_initial(mechanism, scram.message(), &mut self.out);
        self.send().await?;
        let challenge = self.sasl(11).await?;
        scram.update(&challenge).map_err(|e| self.dialer.way.unsupported(format!("SCRAM failed: {e}")))?;
        speak::sasl_response(scram.message(), &mut self.out);
        self.send().await?;
        let outcome = self.sasl(12).await?;
        // The server proves here that it knows the password too; without this it could be anyone.
        scram.finish(&outcome).map_err(|e| self.dialer.way.unsupported(format!("SCRAM failed: {e}")))
    }

    async fn sasl(&mut self, wanted: u32) -> Result<Vec<u8>, DialError> {
        let body = self.expect(tag::AUTHENTICATION).await?;
        match body.split_first_chunk::<4>() {
            Some((kind, data)) if u32::from_be_bytes(*kind) == wanted => Ok(data.to_vec()),
            _ => Err(self.broken(Violation::Malformed(b'R'))),
        }
    }

    async fn until_ready(mut self) -> Result<Dialled, DialError> {
        let mut parameters = BTreeMap::new();
        let mut key = None;
        loop {
            let (kind, body) = self.next().await?;
            match kind {
                tag::PARAMETER_STATUS => {
                    if let Some((name, rest)) = split_cstr(&body)
                        && let Some((value, _)) = split_cstr(rest)
                    {
                        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                        parameters.insert(text(name), text(value));
                    }
                }
                tag::BACKEND_KEY_DATA => match body.split_first_chunk::<4>() {
                    Some((pid, secret)) if SECRET_BYTES.contains(&secret.len()) => {
                        key = Some(CancelKey { pid: u32::from_be_bytes(*pid), secret: secret.to_vec() });
                    }
                    _ => return Err(self.broken(Violation::Malformed(kind))),
                },
                tag::READY_FOR_QUERY => {
                    let Some(key) = key else {
                        return Err(self
                            .dialer
                            .way
                            .unsupported("it told no process id; is another pooler in between?"));
                    };
                    let target = self.dialer.way.target(key, &self.stream);
                    return Ok(Dialled { stream: self.stream, incoming: self.incoming, target, parameters });
                }
                tag::NOTICE_RESPONSE => {}
                _ => return Err(self.broken(Violation::Unexpected(kind))),
            }
        }
    }

    async fn expect(&mut self, wanted: u8) -> Result<Vec<u8>, DialError> {
        loop {
            match self.next().await? {
                (kind, body) if kind == wanted => return Ok(body),
                (tag::NOTICE_RESPONSE, _) => {}
                (kind, _) => return Err(self.broken(Violation::Unexpected(kind))),
            }
        }
    }

    /// The next message; an ErrorResponse is the outcome of the whole sign-in.
    async fn next(&mut self) -> Result<(u8, Vec<u8>), DialError> {
        loop {
            let header = peek(self.incoming.filled()).map_err(|v| self.broken(v))?;
            if let Some(header) = header {
                if header.frame() > MAX_SIGN_IN_MESSAGE {
                    return Err(self.broken(Violation::Length(header.tag)));
                }
                if self.incoming.filled().len() >= header.frame() {
                    let body = self.incoming.filled()[HEADER..header.frame()].to_vec();
                    self.incoming.consume(header.frame());
                    if header.tag == tag::ERROR_RESPONSE {
                        return Err(DialError::Refused {
                            address: self.dialer.way.address(),
                            role: self.dialer.role.clone(),
                            report: Box::new(ServerReport::parse(&body)),
                        });
                    }
                    return Ok((header.tag, body));
                }
            }
            let read = std::future::poll_fn(|cx| self.incoming.poll_fill(&mut self.stream, cx)).await;
            match read {
                Ok(0) => {
                    return Err(self.dialer.way.unreachable(io::Error::from(io::ErrorKind::UnexpectedEof)));
                }
                Ok(_) => {}
                Err(e) => return Err(self.dialer.way.unreachable(e)),
            }
        }
    }

    async fn send(&mut self) -> Result<(), DialError> {
        let sent = self.stream.send(&mut self.out).await;
        sent.map_err(|e| self.dialer.way.unreachable(e))
    }

    fn broken(&self, violation: Violation) -> DialError {
        self.dialer.way.unsupported(format!("it does not keep to the protocol: {violation}"))
    }
}

fn dialer_password(dialer: &Dialer) -> Result<&str, DialError> {
    let Some(password) = &dialer.password else {
        return Err(dialer.way.unsupported(format!(
            "it demands a password; set server_password for role \"{}\"",
            dialer.role
        )));
    };
    password.expose_str().ok_or_else(|| dialer.way.unsupported("server_password is not UTF-8 text"))
}
