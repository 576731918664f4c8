//! How a client takes an idle server, or a place in the line where it may have none.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::lease::{Pool, State};
use super::queue::{Queue, Turn, Wants};
use super::server::{Idle, Resting as _, Shard, TermsDigest};
use super::shares::Share;
use super::shelf::{self, Choice, Offer};
use super::supply::MAX_OPENING;
use super::switch::First;
use super::terms::Terms;
use crate::wire::report::{Report, Sqlstate};

impl Pool {
    /// Takes an idle server, or a place in the line.
    pub(super) fn choose(self: &Arc<Self>, terms: &Terms, shard: Shard) -> Result<Idle, Turn> {
        let now = SystemTime::now();
        let who = self.wants(terms, shard);
        let mut state = self.lock();
        let has_room = self.has_room(&state);
        let offers = state.idle.iter().map(|idle| offer(idle, terms.digest(), shard, now));
        let choice = match state.waiting.may_take(&who) && !state.is_paused {
            true => shelf::choose(offers, has_room),
            false => Choice::Wait,
        };
        match choice {
            Choice::Take { index, grow } => {
                let server = self.take_idle(&mut state, index, (terms, &who), now);
                if grow && state.opening == 0 {
                    self.open(&mut state, shard);
                }
                Ok(server)
            }
            choice @ (Choice::Open | Choice::Wait) => {
                let in_vain = (choice == Choice::Open).then(|| self.was_refused(&state)).flatten();
                if let Some(report) = in_vain.or_else(|| self.comes_too_late(&mut state, &who)) {
                    return Err(Queue::refused(report));
                }
                let turn = state.waiting.join(&who);
                if state.is_closing {
                    state.waiting.dismiss();
                } else if choice == Choice::Open {
                    self.open(&mut state, shard);
                }
                Err(turn)
            }
        }
    }

    /// Who would be served behind its deadline is told so at once, and spares all others its wait.
    fn comes_too_late(&self, state: &mut State, who: &Wants) -> Option<Report> {
        // How fast the line moved before a pause, and does not in it, tells nothing of what comes behind it.
        if state.is_paused {
            return None;
        }
        let limit = self.limits().wait_timeout;
        let (expected, ahead) = state.waiting.expects(who)?;
        if expected <= limit {
            return None;
        }
        self.settings.metrics.shed.increment(1);
        let message = format!("no server would come free within wait_timeout ({limit:?})");
        let report = Report::new(Sqlstate::TOO_MANY_CONNECTIONS, message)
            .detail(format!(
                "{ahead} clients of the same organization come first, about {expected:.1?} for a server."
            ))
            .hint("Try again later; raise pool.size, or make transactions shorter.");
        Some(report)
    }

    /// An idle server that needs no step of its own before the client's first message.
    pub(super) fn take_ready(
        self: &Arc<Self>,
        terms: &Terms,
        shard: Shard,
        first: First,
        now: SystemTime,
    ) -> Option<Idle> {
        let who = self.wants(terms, shard);
        let mut state = self.lock();
        if !state.waiting.may_take(&who) || state.is_paused {
            return None;
        }
        let has_room = self.has_room(&state);
        let offers = state.idle.iter().map(|idle| offer(idle, terms.digest(), shard, now));
        let Choice::Take { index, grow: false } = shelf::choose(offers, has_room) else { return None };
        let is_ready = match &state.idle[index] {
            Idle::Used(used) => used.serves(terms.digest(), now) || used.may_switch_with(first, terms),
            Idle::Clean(..) => true,
        };
        is_ready.then(|| self.take_idle(&mut state, index, (terms, &who), now))
    }

    /// Whether anyone's share of it is counted: where there are no organizations, all clients are one.
    pub(super) fn charges(&self) -> bool {
        self.settings.sealer.is_some()
    }

    fn wants(&self, terms: &Terms, shard: Shard) -> Wants {
        let [flow, project] = terms.flows();
        Wants { terms: terms.digest(), shard, flow, project, share: self.share(terms) }
    }

    fn share(&self, terms: &Terms) -> Share {
        let Some(context) = terms.context() else { return Share { weight: 1, servers: usize::MAX } };
        let weight = self.settings.organizations.load().of(context.organization().as_str()).weight;
        Share { weight, servers: self.limits().per_organization }
    }

    /// Whether one more server may be opened.
    fn has_room(&self, state: &State) -> bool {
        state.open < self.limits().size && state.quick() < MAX_OPENING
    }

    /// Who can take a server over needs no clean one.
    fn take_idle(
        self: &Arc<Self>,
        state: &mut State,
        index: usize,
        (terms, who): (&Terms, &Wants),
        now: SystemTime,
    ) -> Idle {
        let mut server = state.idle.remove(index);
        if self.charges() {
            state.waiting.takes(who, Instant::now()).into_iter().for_each(|holder| server.hold(holder));
        }
        let needs_clean = match &server {
            Idle::Used(used) => !used.serves(terms.digest(), now) && !used.may_switch(terms),
            Idle::Clean(clean, _) => clean.was_needed(terms),
        };
        if needs_clean {
            state.clean_wanted = (state.clean_wanted + 1).min(self.limits().size);
        }
        server
    }
}

fn offer(idle: &Idle, wanted: TermsDigest, shard: Shard, now: SystemTime) -> Offer {
    let (serves, is_clean) = match idle {
        Idle::Clean(..) => (false, true),
        Idle::Used(used) => (used.serves(wanted, now), false),
    };
    Offer { serves, is_clean, is_home: idle.shard() == shard }
}
