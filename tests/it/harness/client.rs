//! Clients: a driver, real psql, and raw messages.

use std::process::{Command, ExitStatus};

use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;

use super::PATIENCE;
use super::gate::Gate;

/// A driver's connection through the gate; panics if it is refused.
pub async fn connect(gate: &Gate, role: &str, password: &str) -> tokio_postgres::Client {
    match try_connect(gate, role, password).await {
        Ok(client) => client,
        Err(error) => panic!("{role} could not connect: {error:?}"),
    }
}

pub async fn try_connect(
    gate: &Gate,
    role: &str,
    password: &str,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    connect_with(&config(gate, role, password)).await
}

/// To be changed before [`connect_with`].
pub fn config(gate: &Gate, role: &str, password: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(gate.port()).user(role).password(password).dbname(&gate.database);
    config.connect_timeout(PATIENCE);
    config
}

pub async fn connect_with(
    config: &tokio_postgres::Config,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The first column of the first row, as text.
pub async fn value(
    client: &tokio_postgres::Client,
    sql: &str,
) -> Result<Option<String>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    Ok(messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// Runs psql, without anyone's `.psqlrc`: status, standard output, standard error.
pub async fn psql(gate: &Gate, role: &str, password: &str, args: &[&str]) -> (ExitStatus, String, String) {
    let mut command = Command::new("psql");
    command
        .args([
            "-X",
            "-w",
            "-h",
            "127.0.0.1",
            "-p",
            &gate.port().to_string(),
            "-U",
            role,
            "-d",
            &gate.database,
        ])
        .args(args)
        .env("PGPASSWORD", password)
        .env("PGCONNECT_TIMEOUT", "10")
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null());
    let output =
        tokio::task::spawn_blocking(move || command.output().expect("psql is installed")).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status, text(&output.stdout), text(&output.stderr))
}

/// What bytes may come and go by: a socket, or TLS over one.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// A connection that speaks the protocol byte by byte. Everything on it ends in time or panics.
pub struct Raw {
    stream: Box<dyn Wire>,
    /// BackendKeyData as it came: process id and secret key.
    pub key: Vec<u8>,
}

/// What came between a query and ReadyForQuery.
#[derive(Debug, Default)]
pub struct Answer {
    pub rows: Vec<Vec<Option<String>>>,
    pub tags: Vec<String>,
    /// SQLSTATE and message of the first error.
    pub error: Option<(String, String)>,
    /// Of ReadyForQuery: `I`, `T` or `E`.
    pub status: u8,
}

impl Raw {
    pub async fn connect(gate: &Gate) -> Self {
        Self::connect_to(gate.port()).await
    }

    pub async fn connect_to(port: u16) -> Self {
        let stream = within(TcpStream::connect(("127.0.0.1", port))).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    pub fn over(stream: impl Wire + 'static) -> Self {
        Self { stream: Box::new(stream), key: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        within(self.stream.write_all(bytes)).await.unwrap();
    }

    /// StartupMessage of protocol 3.0.
    pub async fn startup(&mut self, user: &str, database: &str, params: &[(&str, &str)]) {
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        for (name, value) in [("user", user), ("database", database)].iter().chain(params) {
            body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).unwrap();
        self.send(&[&length.to_be_bytes(), &body[..]].concat()).await;
    }

    /// PasswordMessage.
    pub async fn password(&mut self, password: &str) {
        self.send(&message(b'p', &[password.as_bytes(), b"\0"].concat())).await;
    }

    /// Signs in with a token or by SCRAM, whichever is asked for, and reads until ReadyForQuery.
    pub async fn sign_in(&mut self, user: &str, database: &str, password: &str) {
        self.startup(user, database, &[]).await;
        self.authenticate(password).await;
    }

    /// The same after a [`Self::startup`] of one's own; the body of a NegotiateProtocolVersion, if one came.
    pub async fn authenticate(&mut self, password: &str) -> Option<Vec<u8>> {
        self.authenticate_by(SCRAM_SHA_256, password, ChannelBinding::unsupported()).await
    }

    /// Signs in where that may be refused: the code of the error, or none where the other side just closes. Whatever is said
    /// goes to `heard`.
    pub async fn enters(&mut self, password: &str, heard: &mut Vec<u8>) -> Result<(), Option<String>> {
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        loop {
            let (kind, body) = self.read_message().await.ok_or(None)?;
            heard.extend_from_slice(&body);
            match (kind, body.get(..4).map_or(0, |code| u32::from_be_bytes(code.try_into().unwrap()))) {
                (b'R', 3) => self.password(password).await,
                (b'R', 10) => {
                    let first = scram.message();
                    let length = u32::try_from(first.len()).unwrap().to_be_bytes();
                    let body = [SCRAM_SHA_256.as_bytes(), b"\0", &length, first].concat();
                    self.send(&message(b'p', &body)).await;
                }
                (b'R', 11) => {
                    scram.update(&body[4..]).unwrap();
                    let answer = message(b'p', scram.message());
                    self.send(&answer).await;
                }
                (b'R', 12) => scram.finish(&body[4..]).unwrap(),
                (b'K', _) => self.key = body,
                (b'Z', _) => return Ok(()),
                (b'E', _) => return Err(Some(error_fields(&body).0)),
                _ => {}
            }
        }
    }

    /// The same by this mechanism, bound so.
    pub async fn authenticate_by(
        &mut self,
        mechanism: &str,
        password: &str,
        binding: ChannelBinding,
    ) -> Option<Vec<u8>> {
        let mut negotiated = None;
        let mut scram = ScramSha256::new(password.as_bytes(), binding);
        loop {
            let (kind, body) = self.read_message().await.expect("still connected while signing in");
            match (kind, body.get(..4).map_or(0, |code| u32::from_be_bytes(code.try_into().unwrap()))) {
                (b'R', 0) => {}
                (b'R', 3) => self.password(password).await,
                (b'R', 10) => {
                    let first = scram.message();
                    let length = u32::try_from(first.len()).unwrap().to_be_bytes();
                    let body = [mechanism.as_bytes(), b"\0", &length, first].concat();
                    self.send(&message(b'p', &body)).await;
                }
                (b'R', 11) => {
                    scram.update(&body[4..]).unwrap();
                    let answer = message(b'p', scram.message());
                    self.send(&answer).await;
                }
                (b'R', 12) => scram.finish(&body[4..]).unwrap(),
                (b'S' | b'N', _) => {}
                (b'v', _) => negotiated = Some(body),
                (b'K', _) => self.key = body,
                (b'Z', _) => return negotiated,
                (b'E', _) => panic!("sign-in refused: {:?}", error_fields(&body)),
                other => panic!("unexpected while signing in: {other:?}"),
            }
        }
    }

    /// Sends Query and reads until ReadyForQuery.
    pub async fn query(&mut self, sql: &str) -> Answer {
        self.send(&message(b'Q', &[sql.as_bytes(), b"\0"].concat())).await;
        self.answer().await
    }

    /// Reads until ReadyForQuery.
    pub async fn answer(&mut self) -> Answer {
        let mut answer = Answer::default();
        loop {
            let (kind, body) = self.read_message().await.expect("still connected");
            match kind {
                b'D' => answer.rows.push(columns(&body)),
                b'C' => answer.tags.push(text(&body)),
                b'E' if answer.error.is_none() => answer.error = Some(error_fields(&body)),
                b'Z' => {
                    answer.status = body[0];
                    return answer;
                }
                _ => {}
            }
        }
    }

    /// Type and body of the next message; none when the other side has closed.
    pub async fn read_message(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut header = [0; 5];
        match within(self.stream.read_exact(&mut header)).await {
            Ok(_) => {}
            // A reset is a closing too: what we had sent was not read any more.
            Err(error) if is_end(&error) => return None,
            Err(error) => panic!("{error}"),
        }
        let length = u32::from_be_bytes(header[1..].try_into().unwrap());
        let mut body = vec![0; (length as usize).checked_sub(4).expect("a length of at least 4")];
        within(self.stream.read_exact(&mut body)).await.unwrap();
        Some((header[0], body))
    }

    /// Types of all messages up to ReadyForQuery.
    pub async fn kinds(&mut self) -> String {
        let mut kinds = String::new();
        loop {
            let (kind, _) = self.read_message().await.expect("still connected");
            kinds.push(char::from(kind));
            if kind == b'Z' {
                return kinds;
            }
        }
    }

    /// SQLSTATE and message of the next error; whatever comes before it is skipped.
    pub async fn expect_error(&mut self) -> (String, String) {
        loop {
            match self.read_message().await {
                Some((b'E', body)) => return error_fields(&body),
                Some(_) => {}
                None => panic!("closed without an error"),
            }
        }
    }

    /// TLS tells of a refusal, in an alert that only reading shows.
    pub async fn expect_refusal_by_tls(&mut self) {
        let error = within(self.stream.read_u8()).await.expect_err("refused");
        assert!(error.to_string().contains("alert"), "{error}");
    }

    /// The other side closes; whatever comes before that is skipped.
    pub async fn expect_close(&mut self) {
        while self.read_message().await.is_some() {}
    }

    /// The connection, for who goes on with it alone.
    pub fn into_stream(self) -> Box<dyn Wire> {
        self.stream
    }

    /// For what this type has no word for.
    pub fn stream(&mut self) -> &mut dyn Wire {
        &mut self.stream
    }
}

pub fn startup(code: u32, rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(8 + rest.len()).unwrap();
    [&length.to_be_bytes()[..], &code.to_be_bytes(), rest].concat()
}

/// Frames a message.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind], &length.to_be_bytes()[..], body].concat()
}

/// A frame of the extended protocol, in its plainest form.
pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

/// A frame of the extended protocol, in its plainest form.
pub fn bind(statement: &str) -> Vec<u8> {
    message(b'B', format!("\0{statement}\0\0\0\0\0\0\0").as_bytes())
}

/// A frame of the extended protocol, in its plainest form.
pub fn execute() -> Vec<u8> {
    message(b'E', b"\0\0\0\0\0")
}

/// A frame of the extended protocol, in its plainest form.
pub fn sync() -> Vec<u8> {
    message(b'S', b"")
}

/// A frame of the extended protocol, in its plainest form.
pub fn close(name: &str) -> Vec<u8> {
    message(b'C', format!("S{name}\0").as_bytes())
}

/// A raw client as a user of organization `n`, signed in as the application's role.
pub async fn raw(gate: &Gate, n: u32) -> Raw {
    let mut raw = Raw::connect(gate).await;
    raw.sign_in("app", "app", &gate.token(super::org(n)).sign()).await;
    raw
}

/// SQLSTATE and message of an ErrorResponse or NoticeResponse.
pub fn error_fields(body: &[u8]) -> (String, String) {
    let field = |code: u8| {
        let field = body.split(|byte| *byte == 0).find(|field| field.first() == Some(&code));
        field.map(|field| text(&field[1..])).unwrap_or_default()
    };
    (field(b'C'), field(b'M'))
}

/// The values of a DataRow, as text.
pub fn columns(body: &[u8]) -> Vec<Option<String>> {
    try_columns(body).expect("a DataRow")
}

/// None if it is no DataRow.
pub fn try_columns(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_at_checked(2)?;
    let mut columns = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_at_checked(4)?;
        let length = i32::from_be_bytes(length.try_into().unwrap());
        // -1 is NULL.
        let (value, after) = after.split_at_checked(usize::try_from(length).unwrap_or(0))?;
        columns.push((length >= 0).then(|| text(value)));
        rest = after;
    }
    (columns.len() == usize::from(u16::from_be_bytes([count[0], count[1]]))).then_some(columns)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn is_end(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("an answer in time")
}
