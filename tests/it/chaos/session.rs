//! A client that expects to be cut off: each of its steps may fail, and says how.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::harness::client::{close, error_fields, message, parse, startup, sync, try_columns};

/// Whoever hears nothing for so long is stuck: far above every time limit of the proxy.
const STUCK: Duration = Duration::from_secs(30);

/// Why a connection is no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// It was closed; the last error's code, if one came.
    Closed(Option<String>),
    /// Nothing came for [`STUCK`].
    Stuck,
    /// What came is not the protocol.
    Garbled(String),
}

impl Lost {
    /// A word for tables.
    pub fn word(&self) -> String {
        match self {
            Self::Closed(Some(code)) => code.clone(),
            Self::Closed(None) => "closed".to_owned(),
            Self::Stuck => "stuck".to_owned(),
            Self::Garbled(_) => "garbled".to_owned(),
        }
    }
}

/// What came up to ReadyForQuery.
#[derive(Debug, Default)]
pub struct Answer {
    pub rows: Vec<Vec<Option<String>>>,
    pub tags: Vec<String>,
    /// SQLSTATE and message of the first error.
    pub error: Option<(String, String)>,
    /// Of ReadyForQuery: `I`, `T` or `E`.
    pub status: u8,
    parses: usize,
}

/// A signed-in connection.
pub struct Session {
    stream: BufReader<TcpStream>,
    prepared: BTreeSet<&'static str>,
}

impl Session {
    /// Signs in as the application's role, with a token.
    pub async fn open(port: u16, token: &str) -> Result<Self, Lost> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|_| Lost::Closed(None))?;
        Self::over(stream, token).await
    }

    /// The same on a connection that is there.
    pub async fn over(stream: TcpStream, token: &str) -> Result<Self, Lost> {
        tokio::time::timeout(STUCK, Self::enter(stream, token)).await.unwrap_or(Err(Lost::Stuck))
    }

    async fn enter(stream: TcpStream, token: &str) -> Result<Self, Lost> {
        let _ = stream.set_nodelay(true);
        let mut session = Self { stream: BufReader::new(stream), prepared: BTreeSet::new() };
        session.send(&startup(196_608, b"user\0app\0database\0app\0\0")).await;
        let mut code = None;
        loop {
            let (kind, body) = session.hear(&code).await?;
            match kind {
                b'R' if body == 3_u32.to_be_bytes() => {
                    session.send(&message(b'p', format!("{token}\0").as_bytes())).await;
                }
                b'E' => code = Some(error_fields(&body).0),
                b'Z' => return Ok(session),
                b'R' | b'S' | b'K' | b'N' => {}
                other => return Err(Lost::Garbled(format!("'{}' while signing in", char::from(other)))),
            }
        }
    }

    /// By the simple protocol.
    pub async fn query(&mut self, sql: &str) -> Result<Answer, Lost> {
        self.send(&message(b'Q', format!("{sql}\0").as_bytes())).await;
        self.answer().await
    }

    /// By a named prepared statement, which is prepared in the same batch where it is not yet.
    pub async fn execute(&mut self, name: &'static str, sql: &str, values: &[&str]) -> Result<Answer, Lost> {
        let mut batch = Vec::new();
        let is_new = !self.prepared.contains(name);
        if is_new {
            batch.extend(parse(name, sql));
        }
        batch.extend(bind(name, values));
        batch.extend(message(b'E', b"\0\0\0\0\0"));
        batch.extend(sync());
        self.send(&batch).await;
        let answer = self.answer().await?;
        if is_new && answer.parses == 1 {
            self.prepared.insert(name);
        }
        Ok(answer)
    }

    /// The statement is closed, and prepared anew when it is next used.
    pub async fn forget(&mut self, name: &'static str) -> Result<(), Lost> {
        if self.prepared.contains(name) {
            self.send(&[close(name), sync()].concat()).await;
            // A Close that was refused has closed nothing.
            if self.answer().await?.error.is_none() {
                self.prepared.remove(name);
            }
        }
        Ok(())
    }

    /// Leaves with Terminate.
    pub async fn leave(mut self) {
        self.send(&message(b'X', b"")).await;
    }

    /// Reads until it is closed: the code of the last error.
    pub async fn farewell(mut self) -> Lost {
        loop {
            match self.answer().await {
                Ok(_) => {}
                Err(lost) => return lost,
            }
        }
    }

    /// An error shows when the answer is read: what came before it may say why.
    async fn send(&mut self, bytes: &[u8]) {
        let _ = tokio::time::timeout(STUCK, self.stream.get_mut().write_all(bytes)).await;
    }

    async fn answer(&mut self) -> Result<Answer, Lost> {
        tokio::time::timeout(STUCK, self.collect()).await.unwrap_or(Err(Lost::Stuck))
    }

    async fn collect(&mut self) -> Result<Answer, Lost> {
        let mut answer = Answer::default();
        let mut is_over = false;
        loop {
            let code = answer.error.as_ref().map(|(code, _)| code.clone());
            let (kind, body) = self.hear(&code).await?;
            if is_over {
                return Err(Lost::Garbled(format!("'{}' after FATAL {code:?}", char::from(kind))));
            }
            is_over = kind == b'E' && body.starts_with(b"SFATAL\0");
            match kind {
                b'D' => match try_columns(&body) {
                    Some(row) => answer.rows.push(row),
                    None => return Err(Lost::Garbled(format!("a row that is none, after {code:?}"))),
                },
                b'C' => answer.tags.push(String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned()),
                b'E' => answer.error = answer.error.or_else(|| Some(error_fields(&body))),
                b'1' => answer.parses += 1,
                b'Z' => {
                    answer.status = body.first().copied().unwrap_or_default();
                    return Ok(answer);
                }
                b'2' | b'3' | b'I' | b'N' | b'S' | b'T' | b'n' | b's' => {}
                other => return Err(Lost::Garbled(format!("a message '{}'", char::from(other)))),
            }
        }
    }

    /// Type and body of the next message; `code`: of an error that came before.
    async fn hear(&mut self, code: &Option<String>) -> Result<(u8, Vec<u8>), Lost> {
        let closed = |_| Lost::Closed(code.clone());
        let mut header = [0; 5];
        self.stream.read_exact(&mut header).await.map_err(closed)?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if !(4..1 << 20).contains(&length) {
            return Err(Lost::Garbled(format!("a length of {length}")));
        }
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body).await.map_err(closed)?;
        Ok((header[0], body))
    }
}

/// Parameters and results are text.
fn bind(name: &str, values: &[&str]) -> Vec<u8> {
    let mut body = format!("\0{name}\0\0\0").into_bytes();
    body.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        body.extend(value.as_bytes());
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

/// What PostgreSQL says of itself behind an answer is not taken for the answer to the next question.
#[tokio::test]
async fn the_end_of_a_server_behind_an_answer_is_no_answer() {
    use crate::harness::gate::Gate;
    use crate::harness::org;
    let database = crate::harness::postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let mut session = Session::open(gate.port(), &gate.token(org(1)).sign()).await.unwrap();
    session.query("SELECT 1").await.unwrap();
    let admin = database.admin().await;
    let answer = async {
        let answer = session.query("SELECT pg_sleep(0.3), 'first'").await;
        (answer, session)
    };
    let end = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        // Answer and end are read at once.
        gate.signal("STOP");
        tokio::time::sleep(Duration::from_millis(400)).await;
        let servers = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE usename = 'app' AND datname = current_database()";
        admin.batch_execute(servers).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        gate.signal("CONT");
    };
    let ((answer, mut session), ()) = tokio::join!(answer, end);
    assert_eq!(answer.unwrap().rows[0][1].as_deref(), Some("first"));
    // It goes on as if nothing had been, or it is told that it does not.
    match session.query("SELECT 'second'").await {
        Ok(answer) => assert_eq!((answer.error, answer.rows.len()), (None, 1)),
        Err(lost) => assert_eq!(lost, Lost::Closed(Some("57P01".to_owned()))),
    }
}
