//! Somebody at the other end of a socket: sends a step, and keeps every byte that comes back.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::data::Step;
use super::stage::Target;
use crate::harness::client::{Raw, Wire, bind, error_fields, execute, message, parse, startup, sync};

/// How long an answer may take that is not sure to come.
const SOON: Duration = Duration::from_secs(5);
/// How long silence lasts that counts as an end.
const SILENCE: Duration = Duration::from_millis(150);
const CANCEL_REQUEST: u32 = 80_877_102;

pub struct Actor {
    stream: Box<dyn Wire>,
    /// BackendKeyData.
    pub key: Vec<u8>,
    /// Everything that came since it signed in, or tried to.
    pub heard: Vec<u8>,
}

/// What came of a step.
#[derive(Debug, Default)]
pub struct Outcome {
    pub code: Option<String>,
    pub rows: Vec<Vec<Option<String>>>,
    pub is_closed: bool,
}

impl Outcome {
    /// Whether it is what a file says: `ok`, an SQLSTATE, `closed`, `rows N`, `= value`.
    pub fn is(&self, wanted: &str) -> bool {
        let first = || self.rows.first().and_then(|row| row.first()).cloned().flatten();
        match wanted.split_once(' ') {
            Some(("=", value)) => self.code.is_none() && first().as_deref() == Some(value),
            Some(("rows", count)) => self.code.is_none() && self.rows.len().to_string() == count,
            _ if wanted == "ok" => self.code.is_none() && !self.is_closed,
            _ if wanted == "closed" => self.is_closed,
            _ => self.code.as_deref() == Some(wanted),
        }
    }
}

impl Actor {
    /// Signs in; `None` if it is refused or sent away.
    pub async fn arrives(
        target: &Target,
        password: &str,
        parameters: &[(String, String)],
    ) -> Result<Self, (Outcome, Vec<u8>)> {
        let mut raw = Raw::connect_to(target.port).await;
        let parameters: Vec<_> = parameters.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        raw.startup("app", &target.database, &parameters).await;
        let mut heard = Vec::new();
        match raw.enters(password, &mut heard).await {
            Ok(()) => {
                let key = std::mem::take(&mut raw.key);
                Ok(Self { stream: raw.into_stream(), key, heard })
            }
            Err(code) => {
                let is_closed = code.is_none();
                Err((Outcome { code, is_closed, ..Outcome::default() }, heard))
            }
        }
    }

    /// Does a step.
    pub async fn does(&mut self, step: &Step, fill: impl Fn(&str) -> String) -> Outcome {
        let query = |sql: &str| message(b'Q', &[fill(sql).as_bytes(), b"\0"].concat());
        if let Some(sql) = &step.sql {
            return self.asks(&query(sql), 1).await;
        }
        if let Some(sql) = &step.starts {
            self.sends(&query(sql)).await;
            return Outcome::default();
        }
        if let Some(sql) = &step.prepared {
            let with: Vec<_> = step.with.iter().map(|value| fill(value)).collect();
            return self
                .asks(&[parse("", &fill(sql)), bind_with(&with), execute(), sync()].concat(), 1)
                .await;
        }
        if !step.batch.is_empty() {
            let all = step.batch.iter().map(|sql| [parse("", &fill(sql)), bind(""), execute()].concat());
            return self.asks(&[all.collect::<Vec<_>>().concat(), sync()].concat(), 1).await;
        }
        if !step.pipeline.is_empty() {
            let all: Vec<_> = step.pipeline.iter().map(|sql| query(sql)).collect();
            return self.asks(&all.concat(), all.len()).await;
        }
        if let Some(bytes) = &step.raw {
            let bytes = bytes_of(&fill(bytes));
            return self.asks(&bytes, usize::MAX).await;
        }
        Outcome::default()
    }

    /// A Query outside of any sequence.
    pub async fn query(&mut self, sql: &str) -> Outcome {
        self.asks(&message(b'Q', &[sql.as_bytes(), b"\0"].concat()), 1).await
    }

    async fn sends(&mut self, bytes: &[u8]) {
        // It may have been closed.
        let _ = timeout(SOON, self.stream.write_all(bytes)).await;
    }

    /// Sends, and reads as many ReadyForQuery; with `usize::MAX` until nothing comes any more.
    async fn asks(&mut self, bytes: &[u8], readies: usize) -> Outcome {
        self.sends(bytes).await;
        let (mut outcome, mut left) = (Outcome::default(), readies);
        while left > 0 {
            let patience = if readies == usize::MAX { SILENCE } else { SOON };
            let Ok(next) = timeout(patience, self.next()).await else {
                if readies != usize::MAX {
                    outcome.code = Some("no answer".to_owned());
                }
                break;
            };
            let Some((kind, body)) = next else {
                outcome.is_closed = true;
                break;
            };
            match kind {
                b'E' => outcome.code = outcome.code.or_else(|| Some(error_fields(&body).0)),
                b'D' => outcome.rows.push(columns(&body)),
                b'Z' => left = left.saturating_sub(1),
                // CopyInResponse, CopyBothResponse: nothing is copied.
                b'G' | b'W' => self.sends(&message(b'f', b"no\0")).await,
                _ => {}
            }
        }
        outcome
    }

    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut header = [0; 5];
        self.stream.read_exact(&mut header).await.ok()?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut body = vec![0; length.checked_sub(4)?];
        self.stream.read_exact(&mut body).await.ok()?;
        self.heard.extend_from_slice(&body);
        Some((header[0], body))
    }
}

/// A cancel request on a connection of its own.
pub async fn cancels(target: &Target, key: &[u8]) {
    let mut raw = Raw::connect_to(target.port).await;
    raw.send(&startup(CANCEL_REQUEST, key)).await;
    raw.expect_close().await;
}

fn bind_with(parameters: &[String]) -> Vec<u8> {
    let mut body = b"\0\0\0\0".to_vec();
    body.extend((parameters.len() as u16).to_be_bytes());
    for parameter in parameters {
        body.extend((parameter.len() as u32).to_be_bytes());
        body.extend(parameter.as_bytes());
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

/// Hexadecimal with spaces; texts in quotes stand for themselves, `<length>` in front of a body for its length.
fn bytes_of(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, part) in text.split('\'').enumerate() {
        if index % 2 == 1 {
            bytes.extend(part.as_bytes());
            continue;
        }
        for pair in part.split_whitespace() {
            bytes.push(u8::from_str_radix(pair, 16).unwrap_or_else(|_| panic!("no byte: {pair}")));
        }
    }
    bytes
}

fn columns(body: &[u8]) -> Vec<Option<String>> {
    let mut rest = body.get(2..).unwrap_or_default();
    let mut columns = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = i32::from_be_bytes(*length);
        let (value, after) = after.split_at(usize::try_from(length).unwrap_or(0).min(after.len()));
        columns.push((length >= 0).then(|| String::from_utf8_lossy(value).into_owned()));
        rest = after;
    }
    columns
}
