//! Statement names on their way to a server: what a message means there is what it meant to its client, to the byte.
#![no_main]

use std::collections::HashMap;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use pgtenant::config::PoolMode;
use pgtenant::tenancy::text::{Effects, NeedsSession};
use pgtenant_fuzz::client::Client;

/// Names that mean something to somebody.
const NAMES: [&[u8]; 8] =
    [b"", b"a", b"b", b"pgtenant_1", b"pgtenant_2", b"pgtenant_trial", b"?", b"pgtenant_bind"];

const TEXTS: [&[u8]; 6] = [
    b"SELECT 1",
    b"SELECT $1",
    b"LISTEN x",
    b"CREATE TEMP TABLE t ()",
    b"BEGIN",
    b"INSERT INTO t VALUES ($1)",
];

/// What whoever had the server before has left as its unnamed statement.
const LEFT: &[u8] = b"what somebody else prepared";

#[derive(Debug, Arbitrary)]
enum Request<'a> {
    Parse { name: Name<'a>, text: Text<'a>, types: &'a [u8] },
    Bind { portal: Name<'a>, statement: Name<'a>, rest: &'a [u8] },
    DescribeStatement(Name<'a>),
    CloseStatement(Name<'a>),
    DescribePortal(Name<'a>),
    ClosePortal(Name<'a>),
    Execute { portal: Name<'a>, most: [u8; 4] },
    Query(Text<'a>),
    CopyData(&'a [u8]),
    Flush,
    Sync,
}

#[derive(Debug)]
struct Name<'a>(&'a [u8]);

#[derive(Debug)]
struct Text<'a>(&'a [u8]);

impl<'a> Arbitrary<'a> for Name<'a> {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(or_some(u, &NAMES)?))
    }
}

impl<'a> Arbitrary<'a> for Text<'a> {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(or_some(u, &TEXTS)?))
    }
}

/// One of these, or any other bytes without a NUL.
fn or_some<'a>(u: &mut Unstructured<'a>, known: &[&'static [u8]]) -> arbitrary::Result<&'a [u8]> {
    match known.get(usize::from(u.arbitrary::<u8>()? % (known.len() as u8 + 2))) {
        Some(known) => Ok(known),
        None => Ok(u.arbitrary::<&[u8]>()?.split(|byte| *byte == 0).next().unwrap_or_default()),
    }
}

impl Request<'_> {
    fn message(&self) -> Message {
        let (tag, parts): (u8, &[&[u8]]) = match self {
            Self::Parse { name, text, types } => (b'P', &[name.0, b"\0", text.0, b"\0", types]),
            Self::Bind { portal, statement, rest } => (b'B', &[portal.0, b"\0", statement.0, b"\0", rest]),
            Self::DescribeStatement(name) => (b'D', &[b"S", name.0, b"\0"]),
            Self::CloseStatement(name) => (b'C', &[b"S", name.0, b"\0"]),
            Self::DescribePortal(name) => (b'D', &[b"P", name.0, b"\0"]),
            Self::ClosePortal(name) => (b'C', &[b"P", name.0, b"\0"]),
            Self::Execute { portal, most } => (b'E', &[portal.0, b"\0", most]),
            Self::Query(text) => (b'Q', &[text.0, b"\0"]),
            Self::CopyData(bytes) => (b'd', &[bytes]),
            Self::Flush => (b'H', &[]),
            Self::Sync => (b'S', &[]),
        };
        Message { tag, body: parts.concat() }
    }
}

/// A message as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    tag: u8,
    body: Vec<u8>,
}

impl Message {
    fn written(&self) -> Vec<u8> {
        [&[self.tag][..], &(4 + self.body.len() as u32).to_be_bytes(), &self.body].concat()
    }
}

/// What a message has PostgreSQL do, but for names of statements and what is done to them.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// Portal, the text of the statement with its types, and the rest.
    Bind(Vec<u8>, Meaning, Vec<u8>),
    Describe(Meaning),
    /// The proxy's own refusal.
    Refusal,
    /// As it is.
    Other(Message),
}

/// What a name of a statement stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning {
    Text(Vec<u8>),
    Nothing,
}

/// Names of statements and what they stand for.
#[derive(Default)]
struct Session {
    named: HashMap<Vec<u8>, Vec<u8>>,
    unnamed: Option<Vec<u8>>,
}

impl Session {
    fn meaning(&self, name: &[u8]) -> Meaning {
        let text = if name.is_empty() { self.unnamed.as_ref() } else { self.named.get(name) };
        text.map_or(Meaning::Nothing, |text| Meaning::Text(text.clone()))
    }

    /// Does as PostgreSQL does. Parse and Close change only what names stand for.
    fn take(&mut self, message: &Message) -> Option<Event> {
        let body = &message.body[..];
        match (message.tag, body.first()) {
            (b'P', _) => {
                let (name, text) = cut(body);
                if name.is_empty() {
                    self.unnamed = Some(text.to_vec());
                } else {
                    assert!(self.named.insert(name.to_vec(), text.to_vec()).is_none(), "it has that already");
                }
                None
            }
            (b'C', Some(b'S')) => {
                let (name, _) = cut(&body[1..]);
                self.named.remove(name);
                self.unnamed = self.unnamed.take().filter(|_| !name.is_empty());
                None
            }
            (b'B', _) => {
                let (portal, rest) = cut(body);
                let (name, rest) = cut(rest);
                Some(Event::Bind(portal.to_vec(), self.meaning(name), rest.to_vec()))
            }
            (b'D', Some(b'S')) if body == b"S?\0" => Some(Event::Refusal),
            (b'D', Some(b'S')) => Some(Event::Describe(self.meaning(cut(&body[1..]).0))),
            _ => {
                // A simple query drops the unnamed statement.
                self.unnamed = self.unnamed.take().filter(|_| message.tag != b'Q');
                Some(Event::Other(message.clone()))
            }
        }
    }
}

fn cut(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).expect("a NUL");
    (&bytes[..end], &bytes[end + 1..])
}

fuzz_target!(|requests: Vec<Request>| {
    // Token commands are answered by the proxy, and DEALLOCATE takes names back: other targets' and tests' business.
    let is_elsewhere = |text: &[u8]| {
        let lower = text.to_ascii_lowercase();
        let has = |word: &[u8]| lower.windows(word.len()).any(|window| window == word);
        has(b"pgtenant") || has(b"set_config") || has(b"deallocate") || has(b"discard")
    };
    let mut client = Client::new(PoolMode::Transaction, true);
    let (mut sent, mut total) = (Vec::new(), 0);
    for request in &requests {
        if let Request::Parse { text, .. } | Request::Query(text) = request
            && is_elsewhere(text.0)
        {
            return;
        }
        let message = request.message();
        total += message.written().len();
        if total > 16 * 1024 {
            break;
        }
        client.send(&message.written());
        sent.push(message);
    }
    if client.is_refused() {
        return; // names of kilobytes
    }
    let mut server = Session { unnamed: Some(LEFT.to_vec()), ..Session::default() };
    let carried = messages(&client.carried());
    let events: Vec<Event> = carried.iter().filter_map(|message| server.take(message)).collect();
    check(&sent, events, client.waiting() == 0);
});

/// Every message that the client sent, against what became of it.
fn check(sent: &[Message], events: Vec<Event>, is_all: bool) {
    let mut events = events.into_iter();
    let (mut session, mut is_skipping) = (Session::default(), false);
    for message in sent {
        is_skipping &= message.tag != b'S';
        if is_skipping {
            continue;
        }
        let (mut expected, mut may_be_refused) = (None, false);
        if message.tag == b'P' && is_refused(message, &session) {
            expected = Some(Event::Refusal);
        } else if message.tag == b'D' && message.body == b"S?\0" {
            // Where there is no such statement, it is on the wire what a refusal is.
            let meaning = session.meaning(b"?");
            expected =
                Some(if meaning == Meaning::Nothing { Event::Refusal } else { Event::Describe(meaning) });
            may_be_refused = true;
        } else {
            may_be_refused = matches!(message.tag, b'B' | b'D');
            expected = session.take(message).or(expected);
        }
        let Some(expected) = expected else { continue };
        let Some(found) = events.next() else {
            assert!(!is_all, "{expected:?} is lost");
            return;
        };
        match found {
            Event::Refusal if expected == Event::Refusal => is_skipping = !may_be_refused,
            Event::Refusal if may_be_refused => is_skipping = true,
            // A text that would only half work.
            Event::Other(Message { tag: b'Q', .. }) if message.tag == b'Q' => {}
            found => assert_eq!(found, expected),
        }
    }
    assert_eq!(events.next(), None, "nobody sent it");
}

/// A Parse of a name that is taken, or of a text that no pooled server can keep.
fn is_refused(parse: &Message, session: &Session) -> bool {
    let (name, rest) = cut(&parse.body);
    let (text, _) = cut(rest);
    let is_taken = !name.is_empty() && session.named.contains_key(name);
    is_taken || Effects::of(text, true).needs_session == Some(NeedsSession::Listen)
}

/// What is written, taken apart again.
fn messages(mut bytes: &[u8]) -> Vec<Message> {
    let mut found = Vec::new();
    while let [tag, a, b, c, d, rest @ ..] = bytes {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize - 4;
        found.push(Message { tag: *tag, body: rest[..length].to_vec() });
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty(), "half a message");
    found
}
