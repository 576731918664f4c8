//! Token commands as messages: what of them is answered without a server, in either protocol.
//!
//! Where a statement or portal is a token command, its name lives here. PostgreSQL never hears of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut as _, BytesMut};

use super::{permitted, prepared};
use crate::pool::budget::{self, Kept};
use crate::tenancy::token_command::{self, Form, Given, Misplaced, TokenCommand, TokenText};
use crate::wire::frame::{HEADER, Header, split_cstr};
use crate::wire::report::{Report, Sqlstate};
use crate::wire::violation::Violation;
use crate::wire::{speak, tag};

/// Token commands that one client may have prepared, and portals of them: there are six ways to write one.
const MAX_NAMES: usize = 64;

/// Types of `set_config`'s parameters (`pg_type.dat`).
const TEXT: u32 = 25;
const BOOL: u32 = 16;

/// What one client has prepared of token commands.
#[derive(Default)]
pub struct TokenStatements {
    unnamed: Option<Prepared>,
    named: BTreeMap<Box<[u8]>, Prepared>,
    portals: BTreeMap<Box<[u8]>, (Asked, Kept)>,
    /// Another setting that the last message is about to change.
    pub(super) other: Option<Vec<u8>>,
}

/// A token command, and the types that its client gave for parameters.
struct Prepared {
    command: Arc<TokenCommand>,
    types: Arc<[u32]>,
    /// Which setting it is of is told by its parameters, and the server has it.
    is_on_server: bool,
    /// How much of the memory for all clients: nothing has verified that what it has for a token is one.
    _kept: Kept,
}

/// A token command that is executed.
#[derive(Clone)]
pub struct Asked {
    /// The token.
    pub value: Given<TokenText>,
    /// For this transaction alone.
    pub is_local: bool,
    /// By a simple query.
    pub is_simple: bool,
    form: Form,
}

/// What a message means that has to do with tokens.
pub enum Meaning {
    /// It is answered by this.
    Said(BytesMut),
    /// A token command is executed.
    Asked(Asked),
    /// It is wrong; nothing of it may reach a server.
    Wrong(Report),
    /// More of it must be here first.
    More,
}

impl TokenStatements {
    /// What a message at the head of what a client sent has to do with tokens; `None` if nothing, and it goes on as any
    /// other. Notes what it prepares and binds. Who has no context prepares here also what could be of another setting.
    pub fn meaning(
        &mut self,
        header: Header,
        bytes: &[u8],
        standard_strings: bool,
        has_context: bool,
    ) -> Option<Meaning> {
        let frame = header.frame();
        let here = bytes.get(HEADER..frame.min(bytes.len()))?;
        let is_whole = bytes.len() >= frame;
        match header.tag {
            tag::QUERY | tag::PARSE => self.text((header, here), is_whole, standard_strings, has_context),
            // Of a longer one, as much as is kept in one piece.
            tag::BIND if !is_whole && bytes.len() < permitted::MAX_WHOLE => Some(Meaning::More),
            tag::BIND if self.is_stray(here) => Some(Meaning::Wrong(misplaced_report(Misplaced::Unknown))),
            _ if self.unnamed.is_none() && self.named.is_empty() && self.portals.is_empty() => None,
            tag::BIND => self.bind(here, is_whole, frame),
            tag::DESCRIBE | tag::CLOSE | tag::EXECUTE if !is_whole => {
                (frame <= permitted::MAX_WHOLE).then_some(Meaning::More)
            }
            tag::DESCRIBE => self.describe(here),
            tag::CLOSE => self.close(here),
            tag::EXECUTE => {
                let (portal, _) = split_cstr(here)?;
                self.portals.get(portal).map(|(asked, _)| Meaning::Asked(asked.clone()))
            }
            _ => None,
        }
    }

    /// Whether a Bind brings the setting's name to a statement that is not known to be a token command.
    fn is_stray(&self, here: &[u8]) -> bool {
        if memchr::memmem::find(here, token_command::NAME).is_none() {
            return false;
        }
        let names = split_cstr(here).and_then(|(_, rest)| split_cstr(rest));
        let Some((_, rest)) = names.filter(|(statement, _)| self.prepared(statement).is_none()) else {
            return false;
        };
        // What is cut off, or malformed, may have it for a parameter of its own.
        read_parameters(rest)
            .is_none_or(|all| all.iter().flatten().any(|(value, _)| token_command::is_name(value)))
    }

    /// Portals end with their transaction.
    pub fn forget_portals(&mut self) {
        self.portals.clear();
    }

    /// DEALLOCATE ALL and its kin.
    pub fn forget(&mut self) {
        self.named.clear();
    }

    fn text(
        &mut self,
        (header, here): (Header, &[u8]),
        is_whole: bool,
        standard_strings: bool,
        has_context: bool,
    ) -> Option<Meaning> {
        let is_parse = header.tag == tag::PARSE;
        let (name, text) = if is_parse { split_cstr(here).unwrap_or((here, b"")) } else { (&b""[..], here) };
        let found = match is_whole {
            true => token_command::read(text, standard_strings),
            false if header.frame() <= permitted::MAX_WHOLE => return Some(Meaning::More),
            // A longer one is watched while it passes.
            false => None,
        };
        if name.is_empty() {
            self.unnamed = None;
        } else if is_whole {
            self.named.remove(name);
        }
        let command = match found? {
            Ok(command) => command,
            Err(misplaced) => return Some(Meaning::Wrong(misplaced_report(misplaced))),
        };
        if !is_parse && command.name.is_some() {
            return None; // PostgreSQL says that there is no such parameter
        }
        if !is_parse {
            return Some(match Asked::by_constants(&command) {
                Some(asked) => Meaning::Asked(Asked { is_simple: true, ..asked }),
                None => Meaning::Wrong(no_parameter(command.parameters())),
            });
        }
        let types = split_cstr(text).and_then(|(_, types)| read_types(types));
        let Some(types) = types else { return Some(Meaning::Wrong(Violation::Malformed(tag::PARSE).into())) };
        let is_on_server = has_context && command.name.is_some();
        let Some(kept) = counted(name, here.len()) else {
            return (!is_on_server).then(|| Meaning::Wrong(prepared::no_memory()));
        };
        let prepared = Prepared { command: Arc::new(command), types, is_on_server, _kept: kept };
        if name.is_empty() {
            self.unnamed = Some(prepared);
        } else if self.named.len() < MAX_NAMES && name.len() <= permitted::MAX_NAME {
            self.named.insert(name.into(), prepared);
        } else if !is_on_server {
            let report = Report::new(Sqlstate::LIMIT_EXCEEDED, "too many prepared token commands");
            return Some(Meaning::Wrong(report.hint("Close statements that are no longer used.")));
        }
        (!is_on_server).then(|| said(speak::parse_complete))
    }

    fn prepared(&self, name: &[u8]) -> Option<&Prepared> {
        if name.is_empty() { self.unnamed.as_ref() } else { self.named.get(name) }
    }

    fn bind(&mut self, here: &[u8], is_whole: bool, frame: usize) -> Option<Meaning> {
        let names = split_cstr(here).and_then(|(portal, rest)| Some((portal, split_cstr(rest)?)));
        let Some((portal, (statement, rest))) = names else {
            return (!is_whole && frame <= permitted::MAX_WHOLE).then_some(Meaning::More);
        };
        let Some(prepared) = self.prepared(statement) else {
            self.portals.remove(portal);
            return None;
        };
        if !is_whole {
            let is_long = frame > permitted::MAX_WHOLE;
            return match is_long {
                false => Some(Meaning::More),
                true if prepared.is_on_server && !token_command::may_concern(rest) => None,
                true => Some(Meaning::Wrong(misplaced_report(Misplaced::TooLong))),
            };
        }
        let Some(parameters) = read_parameters(rest) else {
            return Some(Meaning::Wrong(Violation::Malformed(tag::BIND).into()));
        };
        let command = &prepared.command;
        if let Some(number) = command.name
            && !parameters
                .get(usize::from(number) - 1)
                .is_some_and(|name| name.is_some_and(|(name, _)| token_command::is_name(name)))
        {
            let is_on_server = prepared.is_on_server;
            self.other =
                parameters.get(usize::from(number) - 1).copied().flatten().map(|(name, _)| name.to_vec());
            self.portals.remove(portal);
            let report = Report::new(Sqlstate::INVALID_AUTHORIZATION, "no tenant context");
            return (!is_on_server).then(|| {
                Meaning::Wrong(report.hint("Bring a token first, then prepare this statement anew."))
            });
        }
        if parameters.len() != usize::from(command.parameters()) {
            let message = format!(
                "bind message supplies {} parameters, but prepared statement \"{}\" requires {}",
                parameters.len(),
                String::from_utf8_lossy(statement),
                command.parameters()
            );
            return Some(Meaning::Wrong(Report::new(Sqlstate::PROTOCOL_VIOLATION, message)));
        }
        let Some(asked) = Asked::by_parameters(command, &parameters) else {
            let report = Report::new(
                Sqlstate::INVALID_PARAMETER,
                "a parameter of the token command is NULL or no boolean",
            );
            return Some(Meaning::Wrong(report.hint("Give the token as text, and is_local as a boolean.")));
        };
        if self.portals.len() >= MAX_NAMES || portal.len() > permitted::MAX_NAME {
            return Some(Meaning::Wrong(Report::new(Sqlstate::LIMIT_EXCEEDED, "too many portals")));
        }
        // Where the token is a constant, the portal has another copy of it.
        let token = if let Given::Constant(token) = &asked.value { token.expose().len() } else { 0 };
        let Some(kept) = counted(portal, here.len().max(token)) else {
            return Some(Meaning::Wrong(prepared::no_memory()));
        };
        self.portals.insert(portal.into(), (asked, kept));
        Some(said(|out| out.put_slice(b"2\0\0\0\x04")))
    }

    fn describe(&self, here: &[u8]) -> Option<Meaning> {
        let (name, _) = split_cstr(here.get(1..)?)?;
        if here[0] == tag::TARGET_STATEMENT {
            let prepared = self.prepared(name).filter(|prepared| !prepared.is_on_server)?;
            return Some(said(|out| {
                describe_parameters(prepared, out);
                describe_result(&prepared.command.form, out);
            }));
        }
        let (asked, _) = self.portals.get(name)?;
        Some(said(|out| describe_result(&asked.form, out)))
    }

    fn close(&mut self, here: &[u8]) -> Option<Meaning> {
        let (name, _) = split_cstr(here.get(1..)?)?;
        let is_ours = if here[0] != tag::TARGET_STATEMENT {
            self.portals.remove(name).is_some()
        } else if name.is_empty() {
            self.unnamed.take().is_some_and(|closed| !closed.is_on_server)
        } else {
            self.named.remove(name).is_some_and(|closed| !closed.is_on_server)
        };
        is_ours.then(|| said(speak::close_complete))
    }
}

impl Asked {
    /// The answer to its execution.
    pub fn answer(&self) -> BytesMut {
        let mut out = BytesMut::new();
        let command_tag: &[u8] = match &self.form {
            Form::Set => b"SET",
            Form::Reset => b"RESET",
            Form::Function(_) => {
                if self.is_simple {
                    describe_result(&self.form, &mut out);
                }
                let value = match &self.value {
                    Given::Constant(token) => token.expose(),
                    _ => b"",
                };
                out.put_u8(tag::DATA_ROW);
                out.put_u32((4 + 2 + 4 + value.len()) as u32);
                out.put_u16(1);
                out.put_u32(value.len() as u32);
                out.put_slice(value);
                b"SELECT 1"
            }
        };
        out.put_u8(tag::COMMAND_COMPLETE);
        out.put_u32((4 + command_tag.len() + 1) as u32);
        out.put_slice(command_tag);
        out.put_u8(0);
        out
    }

    /// Whether it is `SET LOCAL`, of which PostgreSQL warns where there is no transaction.
    pub fn is_set_local(&self) -> bool {
        self.is_local && self.form == Form::Set
    }

    fn by_constants(command: &TokenCommand) -> Option<Self> {
        let Given::Constant(is_local) = command.is_local else { return None };
        if command.value.parameter().is_some() {
            return None;
        }
        Some(Self { value: command.value.clone(), is_local, is_simple: false, form: command.form.clone() })
    }

    fn by_parameters(command: &TokenCommand, parameters: &[Value<'_>]) -> Option<Self> {
        let parameter = |number: u16| parameters.get(usize::from(number) - 1).copied().flatten();
        let value = match &command.value {
            Given::Parameter(number) => Given::Constant(TokenText::new(parameter(*number)?.0)),
            other => other.clone(),
        };
        let is_local = match &command.is_local {
            Given::Constant(is_local) => *is_local,
            Given::Parameter(number) => match parameter(*number)? {
                ([byte], true) => *byte != 0,
                (text, false) => token_command::boolean(text)?,
                _ => return None,
            },
            Given::AtSignIn => return None,
        };
        Some(Self { value, is_local, is_simple: false, form: command.form.clone() })
    }
}

/// Counts what a statement or portal of this name keeps; a short one without a name is less than its client's buffers.
fn counted(name: &[u8], bytes: usize) -> Option<Kept> {
    let is_counted = !name.is_empty() || bytes > budget::UNCOUNTED;
    if is_counted { budget::keep(bytes) } else { Some(Kept::default()) }
}

fn said(write: impl FnOnce(&mut BytesMut)) -> Meaning {
    let mut out = BytesMut::new();
    write(&mut out);
    Meaning::Said(out)
}

/// Whether a Parse's body is a token command, or has one in its text.
pub(super) fn is_in_parse(body: &[u8], standard_strings: bool) -> bool {
    split_cstr(body).is_some_and(|(_, text)| {
        token_command::read(text, standard_strings)
            .is_some_and(|found| found.is_err() || found.is_ok_and(|command| command.name.is_none()))
    })
}

/// What a client is told whose text would bring a token to a server.
pub(super) fn misplaced_report(misplaced: Misplaced) -> Report {
    Report::new(Sqlstate::NOT_SUPPORTED, "a token cannot be switched by this text")
        .detail(misplaced.detail())
        .hint("Send SET pgtenant.token = '...' or SELECT set_config('pgtenant.token', $1, false) as a statement of its own.")
}

fn no_parameter(number: u16) -> Report {
    Report::new(Sqlstate::UNDEFINED_PARAMETER, format!("there is no parameter ${number}"))
}

/// The types behind a Parse's text.
fn read_types(bytes: &[u8]) -> Option<Arc<[u32]>> {
    let (count, mut rest) = bytes.split_first_chunk::<2>()?;
    let mut types = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (one, after) = rest.split_first_chunk::<4>()?;
        types.push(u32::from_be_bytes(*one));
        rest = after;
    }
    rest.is_empty().then(|| types.into())
}

/// A parameter's value and whether it is binary; NULL is `None`.
pub(super) type Value<'a> = Option<(&'a [u8], bool)>;

/// A Bind's values behind its names.
pub(super) fn read_parameters(bytes: &[u8]) -> Option<Vec<Value<'_>>> {
    let (count, mut rest) = bytes.split_first_chunk::<2>()?;
    let mut formats = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (format, after) = rest.split_first_chunk::<2>()?;
        formats.push(*format == [0, 1]);
        rest = after;
    }
    let (count, mut rest) = rest.split_first_chunk::<2>()?;
    let mut values = Vec::new();
    for index in 0..usize::from(u16::from_be_bytes(*count)) {
        let is_binary = match formats.as_slice() {
            [] => false,
            [one] => *one,
            each => *each.get(index)?,
        };
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (value, after) = match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => {
                let (value, after) = after.split_at_checked(length)?;
                (Some((value, is_binary)), after)
            }
            Err(_) => (None, after),
        };
        values.push(value);
        rest = after;
    }
    Some(values)
}

fn describe_parameters(prepared: &Prepared, out: &mut BytesMut) {
    let count = prepared.command.parameters();
    out.put_u8(tag::PARAMETER_DESCRIPTION);
    out.put_u32(4 + 2 + 4 * u32::from(count));
    out.put_u16(count);
    for number in 1..=count {
        let given = prepared.types.get(usize::from(number) - 1).copied().filter(|given| *given != 0);
        let is_bool = prepared.command.is_local.parameter() == Some(number);
        out.put_u32(given.unwrap_or(if is_bool { BOOL } else { TEXT }));
    }
}

fn describe_result(form: &Form, out: &mut BytesMut) {
    let Form::Function(column) = form else {
        out.put_u8(tag::NO_DATA);
        out.put_u32(4);
        return;
    };
    out.put_u8(tag::ROW_DESCRIPTION);
    out.put_u32((4 + 2 + column.len() + 1 + 18) as u32);
    out.put_u16(1);
    out.put_slice(column);
    out.put_u8(0);
    // No table, no column of one; text, of any length, without a modifier, as text.
    out.put_u32(0);
    out.put_u16(0);
    out.put_u32(TEXT);
    out.put_i16(-1);
    out.put_i32(-1);
    out.put_u16(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Bind with a parameter so long that not all of it is kept, and what is here of it.
    fn meaning(name: &[u8], here: usize) -> Option<Meaning> {
        let name = [&(name.len() as u32).to_be_bytes(), name].concat();
        let body = [b"\0s\0\0\0\0\x02", &name[..], &40_000_u32.to_be_bytes(), &[b'x'; 40_000]].concat();
        let header = Header { tag: tag::BIND, body: body.len() + 2 };
        let message = [&[tag::BIND][..], &(header.body as u32 + 4).to_be_bytes(), &body].concat();
        TokenStatements::default().meaning(header, &message[..here], true, true)
    }

    #[test]
    fn a_long_bind_is_judged_alike_in_whatever_pieces_it_comes() {
        for here in [HEADER, HEADER + 3, HEADER + 20, permitted::MAX_WHOLE - 1] {
            assert!(matches!(meaning(token_command::NAME, here), Some(Meaning::More)), "{here}");
        }
        assert!(matches!(meaning(token_command::NAME, permitted::MAX_WHOLE), Some(Meaning::Wrong(_))));
        assert!(meaning(b"pgtenant_token", permitted::MAX_WHOLE).is_none());
    }
}
