//! Clients that wait for a server: organizations by weighted fair shares of server time, their projects in turn, and the
//! clients of one in the order in which they came, but for a few who are passed over because a server suits another better.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::guests::Guests;
use super::holder::Holder;
use super::pace::Pace;
use super::server::{Idle, Resting as _, Shard, TermsDigest};
use super::shares::{Nanos, Share, Shares};
use crate::wire::report::Report;

/// Why a client got no server.
#[derive(Debug)]
pub enum Unserved {
    /// It is told.
    Refused(Report),
    /// It did not wait.
    Gone,
}

impl From<Report> for Unserved {
    fn from(report: Report) -> Self {
        Self::Refused(report)
    }
}

/// Whose account a server's time goes to: an organization's, or that of all who have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow(pub u128);

/// Who wants a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wants {
    pub(super) terms: TermsDigest,
    pub(super) shard: Shard,
    pub(super) flow: Flow,
    pub(super) project: Flow,
    pub(super) share: Share,
}

/// A client's place in the line: what it gets when its turn comes.
pub(super) type Turn = oneshot::Receiver<Result<Idle, Report>>;

/// How many from the head of a line a server is matched with, and how many organizations.
const LOOK_AHEAD: usize = 16;

/// How often one may be passed over before it is served, whatever comes.
const MAX_PASSED_OVER: usize = 8;

/// How far behind the first an organization may be (in server time for a weight of 1) and still be given the server, because
/// it was on that before: a change of hands costs about a tenth of this.
const SLACK: Duration = Duration::from_millis(1);

/// The lines.
pub(super) struct Queue {
    shares: Shares<Flow>,
    lines: HashMap<Flow, Line>,
    guests: Guests,
    /// What time is counted from.
    epoch: Instant,
}

/// One organization's.
#[derive(Default)]
struct Line {
    projects: HashMap<Flow, VecDeque<Waiting>>,
    /// Whose turn it is: projects that have somebody waiting.
    turns: VecDeque<Flow>,
    pace: Pace,
    /// Since when it lets servers pass.
    passing: Option<Nanos>,
}

/// Somebody in a line.
struct Waiting {
    hand: oneshot::Sender<Result<Idle, Report>>,
    /// What it wants to be bound to, and where it runs.
    wants: (TermsDigest, Shard),
    /// Later ones were served first this often.
    passed_over: usize,
    since: Nanos,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            shares: Shares::default(),
            lines: HashMap::new(),
            guests: Guests::default(),
            epoch: Instant::now(),
        }
    }
}

impl Queue {
    /// Joins at the end of its line.
    pub(super) fn join(&mut self, who: &Wants) -> Turn {
        let (hand, turn) = oneshot::channel();
        let now = self.nanos(Instant::now());
        self.shares.waits(&who.flow, who.share, now);
        let line = self.lines.entry(who.flow);
        let line = line.or_insert_with(|| Line { pace: Pace::starts(now), ..Line::default() });
        let project = line.projects.entry(who.project).or_insert_with(|| {
            line.turns.push_back(who.project);
            VecDeque::new()
        });
        (0..first_who_left(project)).for_each(|_| self.shares.gives_up(&who.flow, now));
        project.push_back(Waiting { hand, wants: (who.terms, who.shard), passed_over: 0, since: now });
        turn
    }

    /// How long one would have to wait that joins now, if that can be told, and behind how many: projects take turns.
    pub(super) fn expects(&mut self, who: &Wants) -> Option<(Duration, usize)> {
        let (now, line) = (self.nanos(Instant::now()), self.lines.get_mut(&who.flow)?);
        for waiting in line.projects.values_mut() {
            (0..first_who_left(waiting)).for_each(|_| self.shares.gives_up(&who.flow, now));
        }
        let own = line.projects.get(&who.project).map_or(0, VecDeque::len);
        let others = line.projects.iter().filter(|(project, _)| **project != who.project);
        let ahead = own + others.map(|(_, waiting)| waiting.len().min(own + 1)).sum::<usize>();
        // Whoever comes first has nobody to wait for but those who are served.
        if ahead == 0 {
            return None;
        }
        let expected = line.pace.expects(ahead, now)?;
        Some((Duration::from_nanos(expected), ahead))
    }

    /// The turn of one that is told at once that there is none.
    pub(super) fn refused(report: Report) -> Turn {
        let (hand, turn) = oneshot::channel();
        let _ = hand.send(Err(report)); // whose other end is here
        turn
    }

    /// Organizations may hold so many servers from now on.
    pub(super) fn bound(&mut self, servers: usize) {
        let now = self.nanos(Instant::now());
        self.shares.bound(servers, now);
    }

    /// How long the first of all who wait has waited.
    pub(super) fn oldest(&self) -> Duration {
        let waiting = self.lines.values().flat_map(|line| line.projects.values().flatten());
        let first = waiting.filter(|waiting| !waiting.hand.is_closed()).map(|waiting| waiting.since).min();
        let age = first.map_or(0, |since| self.nanos(Instant::now()).saturating_sub(since));
        Duration::from_nanos(age)
    }

    /// Whether it may hold one more server.
    pub(super) fn may_take(&self, who: &Wants) -> bool {
        self.shares.holds(&who.flow) < who.share.servers
    }

    /// It takes one that nobody waits for, and is charged for it if it may.
    pub(super) fn takes(&mut self, who: &Wants, now: Instant) -> Option<Holder> {
        let now = self.nanos(now);
        let since = self.shares.takes(&who.flow, who.share, now)?;
        Some(Holder { flow: who.flow, since, guest: None })
    }

    /// A server is given back by who held it.
    pub(super) fn gives_back(&mut self, holder: Holder, now: Instant) {
        let now = self.nanos(now);
        holder.guest.into_iter().for_each(|since| self.guests.leaves(since));
        self.shares.gives_back(&holder.flow, holder.since, now);
    }

    /// Hands a server to whom it suits best among those whose turn it is; returns it if nobody waits who may have it.
    /// `charges`: its time is charged to them. `last`: who had it until now.
    pub(super) fn hand(&mut self, mut server: Idle, charges: bool, last: Option<Flow>) -> Option<Idle> {
        let now = Instant::now();
        while let Some(flow) = self.next(&server, last, now) {
            let Some(Waiting { hand, .. }) = self.take_from(flow, &server, now) else { continue };
            if charges {
                let nanos = self.nanos(now);
                let since = self.shares.is_served(&flow, nanos);
                let is_guest = last.is_some_and(|last| last != flow);
                let guest = is_guest.then(|| self.guests.comes(self.shares.usual(&flow), nanos)).flatten();
                server.hold(Holder { flow, since, guest });
            } else {
                self.shares.gives_up(&flow, self.nanos(now));
            }
            match hand.send(Ok(server)) {
                // Who waited gave up at this very moment; the server goes to the next.
                Err(Ok(mut unclaimed)) => {
                    unclaimed.let_go().into_iter().for_each(|holder| self.gives_back(holder, now));
                    server = unclaimed;
                }
                Ok(()) | Err(Err(_)) => return None,
            }
        }
        Some(server)
    }

    /// The organization that is to have this server: of those that have attained least, one that was on it; or the one that
    /// had it until now, if the first lets it pass.
    fn next(&mut self, server: &Idle, last: Option<Flow>, now: Instant) -> Option<Flow> {
        let first = self.shares.next(self.nanos(now))?;
        let Idle::Used(used) = server else { return Some(first) };
        let suits = |flow: &Flow| {
            let line = self.lines.get(flow);
            let next = line.and_then(|line| line.projects.get(line.turns.front()?)?.front());
            next.is_some_and(|waiting| used.serves(waiting.wants.0, SystemTime::now()))
        };
        let (now, slack) = (self.nanos(now), SLACK.as_nanos() as Nanos);
        if let Some(near) = self.shares.near(now, slack).take(LOOK_AHEAD).find(|flow| suits(flow)) {
            return Some(near);
        }
        let stays = last.filter(|last| self.shares.room(last) > 0 && suits(last));
        if let Some(last) = stays
            && let Some(line) = self.lines.get_mut(&first)
            && let Some(waits) = line.turns.front().and_then(|project| line.projects.get(project)?.front())
            && self.guests.lets_pass(
                (self.shares.usual(&first), self.shares.usual(&last)),
                waits.since,
                &mut line.passing,
                now,
            )
        {
            return Some(last);
        }
        Some(first)
    }

    /// The client of an organization whose turn it is; those who gave up are taken out on the way.
    fn take_from(&mut self, flow: Flow, server: &Idle, now: Instant) -> Option<Waiting> {
        let now = self.nanos(now);
        let line = self.lines.get_mut(&flow)?;
        while let Some(project) = line.turns.pop_front() {
            let Some(waiting) = line.projects.get_mut(&project) else { continue };
            (0..without_those_who_left(waiting)).for_each(|_| self.shares.gives_up(&flow, now));
            let found = take_suited(waiting, server);
            if waiting.is_empty() {
                line.projects.remove(&project);
            } else {
                line.turns.push_back(project);
            }
            if found.is_some() {
                line.pace.hands(now);
                // How fast it moved tells nothing of the line that somebody begins much later.
                if line.turns.is_empty() {
                    self.lines.remove(&flow);
                }
                return found;
            }
        }
        self.lines.remove(&flow);
        None
    }

    /// Tells everyone that there is nothing to wait for.
    pub(super) fn refuse_all(&mut self, why: impl Fn() -> Report) {
        for waiting in self.drain() {
            // Whoever gave up meanwhile is not to be told.
            let _ = waiting.hand.send(Err(why()));
        }
    }

    /// Everyone finds that their turn will not come.
    pub(super) fn dismiss(&mut self) {
        self.drain();
    }

    fn drain(&mut self) -> Vec<Waiting> {
        let now = self.nanos(Instant::now());
        let mut all = Vec::new();
        for (flow, line) in std::mem::take(&mut self.lines) {
            for waiting in line.projects.into_values().flatten() {
                self.shares.gives_up(&flow, now);
                all.push(waiting);
            }
        }
        all
    }

    /// How many still wait. Those who gave up are taken out.
    pub(super) fn len(&mut self) -> usize {
        let now = self.nanos(Instant::now());
        let mut count = 0;
        for (flow, line) in &mut self.lines {
            for waiting in line.projects.values_mut() {
                let before = waiting.len();
                waiting.retain(|waiting| !waiting.hand.is_closed());
                (waiting.len()..before).for_each(|_| self.shares.gives_up(flow, now));
                count += waiting.len();
            }
            line.projects.retain(|_, waiting| !waiting.is_empty());
            let projects = &line.projects;
            line.turns.retain(|project| projects.contains_key(project));
        }
        self.lines.retain(|_, line| !line.turns.is_empty());
        count
    }

    /// How many of them may have a server, if one comes.
    pub(super) fn servable(&mut self) -> usize {
        self.len();
        let of = |(flow, line): (&Flow, &Line)| {
            let waiting = line.projects.values().map(VecDeque::len).sum::<usize>();
            waiting.min(self.shares.room(flow))
        };
        self.lines.iter().map(of).sum()
    }

    /// Whether nobody waits any more.
    pub(super) fn is_empty(&self) -> bool {
        let waiting = self.lines.values().flat_map(|line| line.projects.values().flatten());
        waiting.into_iter().all(|waiting| waiting.hand.is_closed())
    }

    fn nanos(&self, at: Instant) -> Nanos {
        at.saturating_duration_since(self.epoch).as_nanos() as Nanos
    }
}

/// Takes those out at the head of a line who gave up: who came first does so first. How many.
fn first_who_left(line: &mut VecDeque<Waiting>) -> usize {
    let mut left = 0;
    while line.front().is_some_and(|first| first.hand.is_closed()) {
        line.pop_front();
        left += 1;
    }
    left
}

/// Takes those out who gave up, up to where a server is looked for; the rest of a long line is not looked through for every
/// server. How many.
fn without_those_who_left(line: &mut VecDeque<Waiting>) -> usize {
    let (mut at, mut left) = (0, 0);
    while at < LOOK_AHEAD
        && let Some(waiting) = line.get(at)
    {
        if waiting.hand.is_closed() {
            line.remove(at);
            left += 1;
        } else {
            at += 1;
        }
    }
    left
}

/// Whoever of a line has equal terms, for a cleaning costs most; of them who runs where the server's socket is registered.
fn take_suited(line: &mut VecDeque<Waiting>, server: &Idle) -> Option<Waiting> {
    let now = SystemTime::now();
    let rank = |waiting: &Waiting| {
        let (terms, shard) = waiting.wants;
        let serves = match server {
            Idle::Used(used) => used.serves(terms, now),
            Idle::Clean(..) => true,
        };
        (!serves, server.shard() != shard)
    };
    // Who has been passed over often enough closes the line behind it.
    let patient = line.iter().position(|waiting| waiting.passed_over >= MAX_PASSED_OVER);
    let candidates = patient.map_or(LOOK_AHEAD, |index| index + 1).min(LOOK_AHEAD);
    let next = match patient {
        Some(0) => 0,
        _ => line.iter().take(candidates).enumerate().min_by_key(|(_, waiting)| rank(waiting))?.0,
    };
    line.iter_mut().take(next).for_each(|earlier| earlier.passed_over += 1);
    line.remove(next)
}
