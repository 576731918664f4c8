//! A client's settings follow it: what a transaction did to them is asked of PostgreSQL where it cannot be told.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::task::Poll;

use super::Relay;
use crate::pool::ledger::TransactionOver;
use crate::pool::server::BoundServer;
use crate::session::turn::Changes;
use crate::tenancy::settings::{self, Settings};

impl Relay {
    /// The client keeps its server. What a RESET took of its own settings is noted, to be put back ahead of what it
    /// sends next. `None` when the server was lost.
    pub(super) async fn keep(
        &mut self,
        mut server: BoundServer,
        over: &TransactionOver,
        changes: &Changes,
    ) -> Option<BoundServer> {
        if server.is_doomed() {
            return None;
        }
        if let Err(unclean) = server.settle(over).await {
            tracing::warn!(reason = %unclean, "a session's server could not be followed; it is closed");
            return None;
        }
        if !changes.resets || self.own_settings.is_empty() {
            return Some(server);
        }
        match server.settings(over, &settings::custom(&self.own_settings)).await {
            Ok(found) => {
                let found = found.unwrap_or_default();
                let lost = self.own_settings.iter().filter(|(name, _)| !settings::is_among(name, &found));
                self.lost_settings = lost.map(|(name, value)| (name.clone(), value.clone())).collect();
                Some(server)
            }
            Err(unclean) => {
                tracing::warn!(reason = %unclean, "a client's settings could not be asked for; the server is closed");
                None
            }
        }
    }

    /// The client's settings follow it to its next server, when it changed some. `None` when the server was lost.
    pub(super) async fn follow(
        &mut self,
        mut server: BoundServer,
        over: &TransactionOver,
        changes: &Changes,
    ) -> Option<BoundServer> {
        if server.is_undone() {
            return Some(server); // whatever was said of settings was of whoever had it before
        }
        let touched = self.client.requests.touched();
        // What SET LOCAL changed, and PostgreSQL reported, is undone.
        // A text that could not be read may have done anything.
        let is_local =
            changes.sets <= touched.local && !touched.session && !touched.opaque && !changes.resets;
        if is_local && changes.sets > 0 {
            server.is_known_as(self.terms.digest());
            return Some(server);
        }
        let is_new = |(name, value): (&String, &String)| self.terms.settings().get(name) != Some(value);
        let is_hidden = is_local && changes.reported.iter().any(is_new);
        if is_local && !is_hidden {
            return Some(server);
        }
        // A SET that was prepared in an earlier turn, or cannot be read, may have changed more than is told.
        let is_told = touched.session && !touched.opaque && changes.sets <= touched.seen() && !is_hidden;
        let names = touched.names.clone();
        Box::pin(self.inquire(server, over, changes, is_told, names)).await
    }

    /// Asks PostgreSQL which settings the client's session has.
    async fn inquire(
        &mut self,
        mut server: BoundServer,
        over: &TransactionOver,
        changes: &Changes,
        is_told: bool,
        names: BTreeSet<String>,
    ) -> Option<BoundServer> {
        self.hand_over().await;
        match server.settings(over, &names).await {
            Ok(found) => {
                let is_following =
                    found.is_some_and(|found| self.take_up(found, changes, server.is_read_only()));
                if is_following && is_told {
                    server.is_known_as(self.terms.digest());
                } else {
                    server.leaves_something();
                }
                Some(server)
            }
            Err(unclean) => {
                tracing::warn!(reason = %unclean, "a client's settings could not be asked for; the server is closed");
                None
            }
        }
    }

    /// The settings that were found become the client's. Whether the server may go on under them as it is.
    /// `is_read_only`: its transactions are, for a context that it had.
    fn take_up(&mut self, mut found: Settings, changes: &Changes, is_read_only: bool) -> bool {
        if is_read_only {
            found.remove(settings::READ_ONLY); // the context's
        }
        let Some(settings) =
            settings::following(&self.own_settings, found, self.client.desk.guard().as_deref())
        else {
            tracing::warn!("a client's settings are too many or too long to follow it");
            return false;
        };
        let old = self.terms.settings();
        // What was prepared under another path has its types from there.
        let is_elsewhere = ["search_path", "role"].iter().any(|name| old.get(*name) != settings.get(*name));
        // PostgreSQL would end such a session while nobody uses it.
        let may_rest = !settings.contains_key("idle_session_timeout");
        if changes.resets {
            let own = &self.own_settings;
            let back = own.keys().filter(|name| settings.get(*name) == own.get(*name));
            back.for_each(|name| self.client.reported.is_as_at_start(name, &mut self.client.outgoing));
        }
        self.terms = self.terms.with_settings(settings);
        may_rest && !is_elsewhere
    }

    /// What the client is to get leaves now, as far as it takes it: what follows is the proxy's own business.
    pub(super) async fn hand_over(&mut self) {
        poll_fn(|cx| {
            // If it is gone, its next read tells.
            let _ = self.client.stream.poll_send(cx, &mut self.client.outgoing);
            Poll::Ready(())
        })
        .await;
    }
}
