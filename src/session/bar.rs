//! What a client may still send that has no context: whatever could run under another one is refused.

use super::requests::Requests;
use crate::config::PoolMode;
use crate::session::permitted;
use crate::tenancy::blocks::Block;
use crate::wire::frame::{HEADER, Header, split_cstr};
use crate::wire::report::{Report, Sqlstate};
use crate::wire::tag;

/// Portals that are remembered of a client without a context; it needs one.
const MAX_PORTALS: usize = 16;

/// Why a client that has a server has no context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bar {
    /// It brought no token yet: it may begin a transaction, in which it brings one.
    Missing,
    /// Its token was refused in a transaction, which has failed by that. It may only end it: rolled back to a savepoint,
    /// the transaction would go on under the context before.
    Refused,
}

impl Bar {
    /// Whether a text may run.
    fn admits(self, text: &[u8]) -> bool {
        match Block::of(text) {
            Some(Block::Ends) => true,
            Some(Block::Begins) => self == Self::Missing,
            None => false,
        }
    }

    /// What the client is told of anything else.
    fn report(self) -> Report {
        match self {
            Self::Missing => Report::new(Sqlstate::INVALID_AUTHORIZATION, "no tenant context")
                .hint("Bring a token first: SET pgtenant.token = '...'."),
            Self::Refused => Report::new(
                Sqlstate::FAILED_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block",
            )
            .detail("Its token was refused.")
            .hint("End it by ROLLBACK, then bring a good token."),
        }
    }
}

impl Requests {
    /// Why a message must not reach the server, if the client has no context and it could do anything. `named`: the text
    /// of a prepared statement of this client's.
    pub(super) fn barred<'t>(
        &mut self,
        header: Header,
        bytes: &[u8],
        named: impl FnOnce(&[u8]) -> Option<&'t [u8]>,
    ) -> Option<Report> {
        let bar = self.bar?;
        let here = bytes.get(HEADER..header.frame().min(bytes.len())).unwrap_or_default();
        let is_whole = bytes.len() >= header.frame();
        let admits = match header.tag {
            tag::QUERY => is_whole && bar.admits(here),
            tag::PARSE => {
                let admitted = split_cstr(here).filter(|(_, text)| is_whole && bar.admits(text));
                self.has_admitted_unnamed |= admitted.is_some_and(|(name, _)| name.is_empty());
                admitted.is_some()
            }
            tag::BIND => {
                match split_cstr(here).and_then(|(portal, rest)| Some((portal, split_cstr(rest)?.0))) {
                    Some((portal, statement)) => {
                        let admits = match statement {
                            b"" => self.has_admitted_unnamed,
                            // In session mode a name's meaning is PostgreSQL's alone.
                            name if self.mode() != PoolMode::Session => {
                                named(name).is_some_and(|text| bar.admits(text))
                            }
                            _ => false,
                        };
                        let admits = admits && self.admitted_portals.len() < MAX_PORTALS;
                        if admits {
                            self.admitted_portals.push(portal.into());
                        }
                        admits
                    }
                    // Not enough is here to tell, or it is no Bind.
                    None => !is_whole && here.len() <= 2 * permitted::MAX_NAME,
                }
            }
            // A portal from before may be a ROLLBACK TO, which PostgreSQL executes also in a transaction that has failed.
            tag::EXECUTE => split_cstr(here).is_some_and(|(portal, _)| self.is_admitted_portal(portal)),
            // What else there is runs nothing, or goes on with what was admitted.
            _ => true,
        };
        (!admits).then(|| bar.report())
    }

    /// From now on the client has no context, or has one again.
    pub fn bar(&mut self, bar: Option<Bar>) {
        (self.bar, self.has_admitted_unnamed) = (bar, false);
        self.admitted_portals.clear();
    }

    /// The client has brought a token: what follows in its batch may run, which PostgreSQL skips if it does not take the
    /// new context. For what comes behind the batch, that must be known.
    pub fn lift_bar(&mut self) {
        self.is_lifting |= self.bar.is_some();
        self.bar = None;
    }

    /// A batch has been answered, and whether something of it failed.
    pub fn is_answered(&mut self, has_failed: bool) {
        if std::mem::take(&mut self.is_lifting) && has_failed {
            self.bar(Some(Bar::Missing));
        }
    }

    fn is_admitted_portal(&self, portal: &[u8]) -> bool {
        self.admitted_portals.iter().any(|admitted| **admitted == *portal)
    }
}
