//! One client connection with as little of its own as libpq has: what is measured is behind it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::IsNull;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::{backend, frontend};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::{Failure, Target};

/// The one prepared statement.
const STATEMENT: &str = "row";

/// A signed-in client.
pub struct Connection {
    stream: TcpStream,
    input: BytesMut,
    output: BytesMut,
}

/// What a query brought.
#[derive(Default)]
pub struct Answer {
    pub rows: usize,
    /// Whether the first column of every row was what was expected.
    pub is_own: bool,
}

impl Connection {
    /// Signs in, from `127.0.0.<source>` if that is given: one address has some 28,000 ports.
    pub async fn open(target: &Target, password: &str, source: Option<u8>) -> Result<Self, Failure> {
        let socket = TcpSocket::new_v4()?;
        if let Some(last) = source {
            socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 0))?;
        }
        let stream = socket.connect(target.address).await?;
        stream.set_nodelay(true)?;
        // Small, for there may be thousands; a read makes room where there is need.
        let mut connection = Self { stream, input: BytesMut::new(), output: BytesMut::new() };
        let parameters = [("user", target.user.as_str()), ("database", target.database.as_str())];
        frontend::startup_message(parameters, &mut connection.output)?;
        connection.sign_in(password).await?;
        Ok(connection)
    }

    async fn sign_in(&mut self, password: &str) -> Result<(), Failure> {
        let mut scram = None;
        self.flush().await?;
        loop {
            match self.message().await? {
                backend::Message::AuthenticationCleartextPassword => {
                    frontend::password_message(password.as_bytes(), &mut self.output)?;
                }
                backend::Message::AuthenticationSasl(_) => {
                    let fresh = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                    frontend::sasl_initial_response(SCRAM_SHA_256, fresh.message(), &mut self.output)?;
                    scram = Some(fresh);
                }
                backend::Message::AuthenticationSaslContinue(body) => {
                    let scram = scram.as_mut().ok_or("SASL out of turn")?;
                    scram.update(body.data())?;
                    frontend::sasl_response(scram.message(), &mut self.output)?;
                }
                backend::Message::AuthenticationSaslFinal(body) => {
                    scram.as_mut().ok_or("SASL out of turn")?.finish(body.data())?;
                }
                backend::Message::ErrorResponse(body) => return Err(error(&body)),
                backend::Message::ReadyForQuery(_) => return Ok(()),
                _ => {}
            }
            self.flush().await?;
        }
    }

    /// Prepares the statement that [`Connection::row`] runs.
    pub async fn prepare(&mut self, sql: &str) -> Result<(), Failure> {
        frontend::parse(STATEMENT, sql, [], &mut self.output)?;
        frontend::sync(&mut self.output);
        self.answer("").await.map(drop)
    }

    /// Runs the prepared statement with `parameter`; `expected` is what the first column must say.
    pub async fn row(&mut self, parameter: u64, expected: &str) -> Result<Answer, Failure> {
        let text = parameter.to_string();
        let write = |value: &str, out: &mut BytesMut| {
            out.extend_from_slice(value.as_bytes());
            Ok(IsNull::No)
        };
        frontend::bind("", STATEMENT, [], [text.as_str()], write, [], &mut self.output)
            .map_err(|_| "cannot write a Bind")?;
        frontend::execute("", 0, &mut self.output)?;
        frontend::sync(&mut self.output);
        self.answer(expected).await
    }

    /// A simple query, as drivers send BEGIN and COMMIT; `expected` is what the first column of its rows must say.
    pub async fn simple(&mut self, sql: &str, expected: &str) -> Result<Answer, Failure> {
        frontend::query(sql, &mut self.output)?;
        self.answer(expected).await
    }

    async fn answer(&mut self, expected: &str) -> Result<Answer, Failure> {
        self.flush().await?;
        let mut answer = Answer { rows: 0, is_own: true };
        let mut failure = None;
        loop {
            match self.message().await? {
                backend::Message::DataRow(row) => {
                    answer.rows += 1;
                    let first = row.ranges().next()?.flatten();
                    answer.is_own &= first.is_some_and(|range| &row.buffer()[range] == expected.as_bytes());
                }
                backend::Message::ErrorResponse(body) => failure = Some(error(&body)),
                backend::Message::ReadyForQuery(_) => return failure.map_or(Ok(answer), Err),
                _ => {}
            }
        }
    }

    async fn message(&mut self) -> Result<backend::Message, Failure> {
        loop {
            if let Some(message) = backend::Message::parse(&mut self.input)? {
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err("the server closed the connection".into());
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        if !self.output.is_empty() {
            self.stream.write_all(&self.output).await?;
            self.output.clear();
        }
        Ok(())
    }
}

/// Code and sentence of an error.
fn error(body: &backend::ErrorResponseBody) -> Failure {
    let mut fields = body.fields();
    let mut said = Vec::new();
    while let Ok(Some(field)) = fields.next() {
        if matches!(field.type_(), b'C' | b'M') {
            said.push(String::from_utf8_lossy(field.value_bytes()).into_owned());
        }
    }
    said.join(": ").into()
}
