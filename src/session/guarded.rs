//! What a client may not say of settings that belong to the context.

use std::sync::Arc;

use super::permitted::{MAX_STATEMENT, MAX_WHOLE};
use super::prepared::ClientStatements;
use super::requests::Requests;
use super::tokens::read_parameters;
use crate::config::PoolMode;
use crate::pool::due::Due;
use crate::pool::server::BoundServer;
use crate::tenancy::guard::{Breach, Guard, Under, check_encoding};
use crate::tenancy::text::Effects;
use crate::wire::frame::{HEADER, Header, split_cstr};
use crate::wire::report::{Report, Sqlstate};
use crate::wire::{speak, tag};

/// What becomes of a message.
pub(super) enum Judged {
    /// It goes on as any other.
    Passes,
    /// It must not reach the server.
    Refused(Report),
    /// More of it must be here first.
    NeedsMore,
    /// A query that is longer than a buffer, and is read whole before the server gets any of it.
    Collect,
}

/// The guard over one client.
#[derive(Default)]
pub(super) struct Guarded {
    guard: Option<Arc<Guard>>,
    /// It has prepared what changes a setting whose name is a parameter.
    by_parameter: bool,
    /// Its client_encoding is one in which texts cannot be read.
    is_unreadable: bool,
    /// Its context is one under which nothing is written.
    is_read_only: bool,
    /// A query is being collected, not a Parse.
    pub(super) collects_query: bool,
}

impl Requests {
    /// From now on the client's texts are read for settings that belong to the context.
    #[must_use]
    pub fn guarded_by(mut self, guard: Option<Arc<Guard>>) -> Self {
        self.guarded.guard = guard;
        self
    }

    /// Whether it is.
    pub fn is_under_read_only(&self) -> bool {
        self.guarded.is_read_only
    }

    /// Whether the client's context is one under which nothing is written.
    pub fn is_read_only(&mut self, is_read_only: bool) {
        self.guarded.is_read_only = is_read_only;
    }

    /// A turn begins, in this client_encoding.
    pub fn is_encoded<'a>(&mut self, client_encoding: impl FnOnce() -> Option<&'a str>) {
        let is_strict = self.guarded.guard.as_ref().is_some_and(|guard| guard.is_strict());
        let is_unreadable = || check_encoding(client_encoding().unwrap_or_default().as_bytes()).is_err();
        self.guarded.is_unreadable = is_strict && is_unreadable();
    }

    /// Whether a message changes a setting that belongs to the context, as far as it can be seen.
    /// `statements`: what the client has prepared.
    pub(super) fn judge(&mut self, header: Header, bytes: &[u8], statements: &ClientStatements) -> Judged {
        // Taken and put back: all clients share it, and counting its holders would have the threads fight over a cache line.
        let Some(guard) = self.guarded.guard.take() else { return Judged::Passes };
        let judged = self.judge_by(&guard, header, bytes, statements);
        self.guarded.guard = Some(guard);
        judged
    }

    fn judge_by(
        &mut self,
        guard: &Guard,
        header: Header,
        bytes: &[u8],
        statements: &ClientStatements,
    ) -> Judged {
        let here = bytes.get(HEADER..header.frame().min(bytes.len())).unwrap_or_default();
        let is_whole = bytes.len() >= header.frame();
        let is_long = header.frame() > MAX_WHOLE;
        // It may have been prepared under another token.
        if header.tag == tag::BIND
            && self.guarded.is_read_only
            && let Some((_, (name, _))) =
                split_cstr(here).and_then(|(portal, rest)| Some((portal, split_cstr(rest)?)))
        {
            let text = match name {
                b"" => statements.unnamed(),
                _ => statements.get(name).map(|statement| &*statement.text_and_types),
            };
            if let Some(Err(breach)) = text.map(|text| self.read_guarded(guard, text, true)) {
                return Judged::Refused(breach.report());
            }
        }
        match header.tag {
            tag::QUERY if is_whole => refused(self.read_guarded(guard, here, false)),
            tag::PARSE if is_whole => {
                let text = split_cstr(here).map_or(here, |(_, text)| text);
                refused(self.read_guarded(guard, text, true))
            }
            // There it is not collected, and would pass unread.
            tag::PARSE
                if is_long
                    && self.mode() == PoolMode::Session
                    && (guard.is_strict() || self.guarded.is_read_only) =>
            {
                Judged::Refused(too_long(header))
            }
            tag::QUERY | tag::PARSE if !is_long => Judged::NeedsMore,
            // What the seal alone protects needs no more.
            _ if !guard.is_strict() && !self.guarded.is_read_only => Judged::Passes,
            tag::QUERY | tag::PARSE if header.body > MAX_STATEMENT => Judged::Refused(too_long(header)),
            tag::QUERY => Judged::Collect,
            tag::BIND if self.guarded.by_parameter => match (is_whole, is_long) {
                (true, _) => refused(bound_name(guard, here, self.guarded.is_read_only).map_or(Ok(()), Err)),
                (false, false) => Judged::NeedsMore,
                (false, true) => Judged::Refused(too_long(header)),
            },
            _ => Judged::Passes,
        }
    }

    /// The same of a Parse that was collected.
    pub(super) fn judge_parse(&mut self, body: &[u8]) -> Option<Report> {
        let guard = self.guarded.guard.clone()?;
        let text = split_cstr(body).map_or(body, |(_, text)| text);
        self.read_guarded(&guard, text, true).err().map(|breach| breach.report())
    }

    fn read_guarded(&mut self, guard: &Guard, text: &[u8], is_prepared: bool) -> Result<(), Breach> {
        let (text, types) = split_cstr(text).unwrap_or((text, &[]));
        if self.guarded.is_unreadable && !text.is_ascii() {
            return Err(Breach::Encoding("of this session".to_owned()));
        }
        let under = Under { is_prepared, is_read_only: self.guarded.is_read_only };
        let open = guard.check(text, !self.backslashes, under)?;
        // As another type, a setting's name has other spellings.
        if open.by_parameter
            && (guard.is_strict() || self.guarded.is_read_only)
            && is_prepared
            && !types.get(2..).unwrap_or_default().chunks(4).all(is_textual)
        {
            return Err(Breach::Computed);
        }
        self.guarded.by_parameter |= open.by_parameter;
        Ok(())
    }

    /// A query that is longer than a buffer is here whole.
    pub(super) fn take_collected_query(&mut self, body: &[u8], server: &mut BoundServer) {
        let Some(guard) = self.guarded.guard.clone() else { return };
        if let Err(breach) = self.read_guarded(&guard, body, false) {
            return self.say_query_error(&breach.report(), server);
        }
        // As any other that is too long to be looked at: it may have done anything.
        *server.unnamed_is_ours() = true;
        self.unnamed = Effects::default();
        self.touched.opaque = true;
        server.leaves_something();
        speak::query_raw(body, server.outgoing());
        server.owe(Due::Query(None));
    }
}

fn refused(read: Result<(), Breach>) -> Judged {
    match read {
        Ok(()) => Judged::Passes,
        Err(breach) => Judged::Refused(breach.report()),
    }
}

/// A parameter's declared type: none, text or character varying.
fn is_textual(oid: &[u8]) -> bool {
    oid.try_into().is_ok_and(|oid| matches!(u32::from_be_bytes(oid), 0 | 25 | 1043))
}

/// A parameter of a Bind that is the name of a guarded setting; a Bind that cannot be read counts as one.
fn bound_name(guard: &Guard, body: &[u8], is_read_only: bool) -> Option<Breach> {
    let rest = split_cstr(body).and_then(|(_, rest)| split_cstr(rest)).map(|(_, rest)| rest);
    let Some(parameters) = rest.and_then(read_parameters) else { return Some(Breach::Computed) };
    let mut names = parameters.iter().flatten().map(|(name, _)| name.trim_ascii_end());
    names.find_map(|name| guard.check_bound(name, is_read_only))
}

fn too_long(header: Header) -> Report {
    Report::new(Sqlstate::LIMIT_EXCEEDED, "message too long to be read for settings of the tenant context")
        .detail(format!("{} bytes.", header.body))
        .hint("Send large values as bound parameters, or by COPY.")
}
