//! A server that someone used, and how it becomes another's.

use std::time::{Instant, SystemTime};

use super::chance::{nonce, seed};
use super::{BoundServer, CleanServer, Core, TermsDigest, Unclean};
use crate::pool::due::Due;
use crate::pool::lease_state::LeaseState;
use crate::pool::statement::Statement;
use crate::pool::switch::First;
use crate::pool::terms::Terms;
use crate::tenancy::seal::{Lapse, SealedContext, ServerPid};
use crate::tenancy::statements;
use crate::wire::speak;

/// A server that someone used: it serves the same terms again, or is cleaned.
pub struct UsedServer {
    pub(super) core: Box<Core>,
    digest: TermsDigest,
    lapse: Option<Lapse>,
    is_dirty: bool,
    pub(super) idle_since: Instant,
}

impl UsedServer {
    pub(super) fn new(server: BoundServer, is_dirty: bool) -> Self {
        let BoundServer { core, digest, lapse, .. } = server;
        Self { core, digest, lapse, is_dirty, idle_since: Instant::now() }
    }

    /// Whether `wanted` may run on it as it is.
    pub fn serves(&self, wanted: TermsDigest, now: SystemTime) -> bool {
        !self.is_dirty && self.digest == wanted && self.lapse.is_none_or(|lapse| lapse.is_fresh(now))
    }

    /// Whether something was left on it that even the same client must not find again by chance.
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// The server process, which the seal is bound to.
    pub fn pid(&self) -> ServerPid {
        ServerPid(self.core.target.pid())
    }

    /// Takes it under the same terms again.
    pub fn reuse(mut self) -> BoundServer {
        self.core.ledger.take_settled_unnamed();
        BoundServer { core: self.core, digest: self.digest, lapse: self.lapse, state: LeaseState::default() }
    }

    /// Whether it may be cleaned and bound to these terms in one batch, its client's own if that may be part of a
    /// transaction: nothing visible was left on it, it has the settings that it will have, and its transactions are those
    /// that a wipe makes.
    pub fn may_switch(&self, terms: &Terms) -> bool {
        // Once in a while it is cleaned in a step of its own, and asked whether it may keep plans.
        let is_to_be_asked = self.core.ledger.is_quiet() && self.core.kept.is_in_doubt();
        !self.is_dirty && !is_to_be_asked && self.core.suits_switching(terms)
    }

    /// The same, without a round trip of its own, where the client sends this first.
    pub fn may_switch_with(&self, first: First, terms: &Terms) -> bool {
        let is_shared = match first {
            First::Apart => false,
            First::Batch | First::Read | First::Begin => true,
            First::Write => self.core.kept.has_no_rules(),
        };
        is_shared && self.may_switch(terms)
    }

    /// Whether it is to be cleaned in a step of its own for what the client sends first, so that it is asked whether the
    /// database has rules.
    pub fn is_to_be_asked_for(&self, first: First) -> bool {
        first == First::Write && self.core.kept.has_forgotten_rules()
    }

    /// Cleans it and puts it under another context, in one batch with what its client sends next, up to the Sync; or in one
    /// write with its BEGIN. Where anything of a shared batch fails, PostgreSQL skips all that follows, and undoes the
    /// rest: so nothing of the client's can run in a context that is not its own. The caller makes sure that what the
    /// client sends is what it says.
    ///
    /// Statements and plans stay where nobody can have bent them.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn switch(
        mut self,
        sealed: Option<&SealedContext>,
        terms: &Terms,
        first: First,
    ) -> Result<BoundServer, Unclean> {
        let completions = self.wipe_and_bind(sealed, terms, "")?;
        if first == First::Begin {
            speak::sync(&mut self.core.outgoing);
            self.core.ledger.goes_ahead(completions);
        } else {
            self.core.ledger.push(Due::Switch(completions));
        }
        Ok(self.bound(sealed, terms))
    }

    /// Cleans it and puts it under another context, as a step of its own, and waits until PostgreSQL has acknowledged it.
    ///
    /// # Errors
    /// It could not be shown clean and bound, and is closed.
    pub async fn take_over(
        mut self,
        sealed: Option<&SealedContext>,
        terms: &Terms,
    ) -> Result<BoundServer, Unclean> {
        let nonce = nonce()?;
        self.wipe_and_bind(sealed, terms, &nonce)?;
        speak::sync(&mut self.core.outgoing);
        self.core.prove(&nonce).await?;
        Ok(self.bound(sealed, terms))
    }

    fn bound(mut self, sealed: Option<&SealedContext>, terms: &Terms) -> BoundServer {
        self.core.ledger.take_settled_unnamed();
        let lapse = sealed.map(SealedContext::lapse);
        BoundServer { core: self.core, digest: terms.digest(), lapse, state: LeaseState::default() }
    }

    /// Queues a batch without its Sync. Returns how many CommandComplete come.
    fn wipe_and_bind(
        &mut self,
        sealed: Option<&SealedContext>,
        terms: &Terms,
        nonce: &str,
    ) -> Result<usize, Unclean> {
        let bound = sealed.zip(terms.context()).map(|(sealed, context)| (sealed, context.payload()));
        let core = &mut *self.core;
        let (names, mut completions);
        if core.ledger.is_quiet() && core.kept.is_safe() {
            let forgotten = core.kept.forget_data().map(Statement::name_of);
            forgotten.for_each(|name| speak::close_statement(&name, &mut core.outgoing));
            completions = core.binder.wipe_lightly(core.kept.has_own, &mut core.outgoing);
            core.kept.has_own = true;
            names = statements::LIGHT;
        } else {
            completions = core.binder.wipe(&mut core.outgoing);
            core.kept.discard();
            names = statements::UNNAMED;
        }
        completions += core.binder.bind(names, bound, terms.settings(), (seed()?, nonce), &mut core.outgoing);
        core.ledger.is_cleaned();
        Ok(completions)
    }

    /// Removes everything of the last client, and waits until PostgreSQL has acknowledged it.
    ///
    /// # Errors
    /// It could not be shown clean, and is closed.
    pub async fn clean(mut self) -> Result<CleanServer, Unclean> {
        let nonce = nonce()?;
        self.core.binder.clean(seed()?, &nonce, &mut self.core.outgoing);
        self.core.kept.discard();
        self.core.ledger.is_cleaned();
        self.core.prove(&nonce).await?;
        if self.core.kept.is_in_doubt() || self.core.kept.has_forgotten_rules() {
            speak::query(&statements::POSTURE, &mut self.core.outgoing);
            if !self.core.hear_posture(1).await? {
                return Err(Unclean::Hardened);
            }
        }
        Ok(CleanServer(self.core))
    }
}

impl Core {
    /// Whether the settings with which it was last bound, and its transactions, are those of a client with these terms.
    fn suits_switching(&self, terms: &Terms) -> bool {
        self.kept.is_standard
            && self.bound_with == Some(terms.settings_digest())
            && !terms.has_own_transactions()
    }
}

impl CleanServer {
    /// Whether these terms needed a clean one: no cheaper way led from its last client's terms to them.
    pub fn was_needed(&self, terms: &Terms) -> bool {
        !self.0.suits_switching(terms)
    }
}
