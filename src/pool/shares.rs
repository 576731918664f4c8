//! Whose turn it is: weighted fair shares of server time. Pure: time is an argument.
//!
//! Start-time Fair Queueing (P. Goyal, H. M. Vin, H. Chen, "Start-time Fair Queueing: A Scheduling Algorithm for Integrated
//! Services Packet Switching Networks", SIGCOMM 1996) over several servers at once (J. Blanquer, B. Özden, "Fair Queuing for
//! Aggregated Multiple Links", SIGCOMM 2001). What a transaction costs is not known before it ends; so a flow is charged what
//! it has attained so far, at least what its last ones cost ("refresh charging": J. Mace et al., "2DFQ: Two-Dimensional Fair
//! Queuing for Multi-Tenant Cloud Services", SIGCOMM 2016). Long transactions do not win by being few.
//!
//! A flow that was idle begins at the virtual time of those who are served: it gets the next server, and nothing for the
//! time when it asked for none. The time in which PostgreSQL answers nobody is charged to nobody ([`super::clock`]).

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use super::clock::Clock;

/// Nanoseconds since some moment that never changes.
pub type Nanos = u64;

/// Server time divided by weight, in 1/2^16 nanoseconds.
type Virtual = u128;

/// How many of the last transactions the estimate of the next one's cost follows, as a power of two.
const MEMORY: u32 = 3;

/// Where several hold servers, this long after one of them was given back PostgreSQL is taken to answer nobody; longer by twice what
/// their transactions usually take.
const SILENCE: Nanos = 100_000_000;

/// So many organizations that hold servers are several.
const SEVERAL: usize = 3;

/// When a server was taken: by the clock on the wall, and by that of server time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Since {
    wall: Nanos,
    served: Nanos,
}

/// A flow's rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Of server time, where more is wanted than there is: twice the weight, twice the time. At least 1.
    pub weight: u32,
    /// Servers that it may hold at once.
    pub servers: usize,
}

/// Who waits for servers and who holds them, by flow.
pub struct Shares<K> {
    index: HashMap<K, usize>,
    flows: Vec<Flow<K>>,
    vacant: Vec<usize>,
    /// Flows that wait and may hold one more server. Their place is at most what they have attained, which grows.
    ready: BTreeSet<Place>,
    /// Flows that neither wait nor hold anything, but had more than the virtual time says.
    resting: BTreeSet<Place>,
    /// The most that a flow had attained when it was served; while nobody waits it goes on with the clock, which is what a
    /// server gives.
    virtual_time: Virtual,
    /// Until when it has gone on.
    looked_at: Nanos,
    /// Of equals, who came first.
    arrivals: u64,
    clock: Clock,
    /// How many flows hold servers.
    holding: usize,
}

type Place = (Virtual, u64, usize);

struct Flow<K> {
    key: K,
    share: Share,
    /// By transactions that are over.
    charged: Virtual,
    /// Servers that it holds.
    holds: usize,
    /// When each of them was taken, added up.
    since: u128,
    /// How many of it wait.
    waits: usize,
    /// What its last transactions took, in nanoseconds.
    usual: u64,
    place: Option<Place>,
}

impl<K: Hash + Eq + Clone> Default for Shares<K> {
    fn default() -> Self {
        Self {
            index: HashMap::new(),
            flows: Vec::new(),
            vacant: Vec::new(),
            ready: BTreeSet::new(),
            resting: BTreeSet::new(),
            virtual_time: 0,
            looked_at: 0,
            arrivals: 0,
            clock: Clock::default(),
            holding: 0,
        }
    }
}

impl<K: Hash + Eq + Clone> Shares<K> {
    /// One more of a flow waits.
    pub fn waits(&mut self, key: &K, share: Share, now: Nanos) {
        let now = self.served(now);
        let at = self.wake(key, share, now);
        self.flows[at].waits += 1;
        self.list(at, now);
    }

    /// One of a flow waits no longer, and was not served.
    pub fn gives_up(&mut self, key: &K, now: Nanos) {
        let now = self.served(now);
        let Some(&at) = self.index.get(key) else { return };
        self.flows[at].waits = self.flows[at].waits.saturating_sub(1);
        self.list(at, now);
    }

    /// Who is to have the next server: of those that wait and may hold one more, the one that has attained least for its
    /// weight.
    pub fn next(&mut self, now: Nanos) -> Option<K> {
        let now = self.served(now);
        loop {
            let place = self.ready.pop_first()?;
            let at = place.2;
            let attained = self.flows[at].attained(now);
            // It may have attained more since it was put there; then it is looked at again where it belongs.
            if self.ready.first().is_some_and(|next| next.0 < attained) && attained > place.0 {
                self.put(at, (attained, place.1, at));
                continue;
            }
            self.put(at, place);
            return Some(self.flows[at].key.clone());
        }
    }

    /// Those that come next, and have attained hardly more than the first: at most `slack` for a weight of 1.
    pub fn near(&self, now: Nanos, slack: Nanos) -> impl Iterator<Item = K> {
        let now = self.served(now);
        let first = self.ready.first().map_or(0, |place| self.flows[place.2].attained(now));
        let most = first + (u128::from(slack) << 16);
        self.ready
            .iter()
            .take_while(move |place| place.0 <= most)
            .map(|place| self.flows[place.2].key.clone())
    }

    /// One of a flow that waits is served. From when on.
    pub fn is_served(&mut self, key: &K, now: Nanos) -> Since {
        let since = self.begins(now);
        self.goes_on(since.served);
        if let Some(&at) = self.index.get(key) {
            self.flows[at].waits = self.flows[at].waits.saturating_sub(1);
            self.hold(at, since.served);
        }
        since
    }

    /// A flow is given a server without having waited. From when on; none if it may hold no more.
    pub fn takes(&mut self, key: &K, share: Share, now: Nanos) -> Option<Since> {
        let since = self.begins(now);
        let at = self.wake(key, share, since.served);
        if self.flows[at].holds >= share.servers {
            self.list(at, since.served);
            return None;
        }
        self.hold(at, since.served);
        Some(since)
    }

    /// A flow gives back a server that it took at `since`.
    pub fn gives_back(&mut self, key: &K, since: Since, now: Nanos) {
        self.clock.stirs(now, self.patience(now));
        let (wall, now) = (now, self.served(now));
        self.goes_on(now);
        let Some(&at) = self.index.get(key) else { return };
        let flow = &mut self.flows[at];
        flow.charged += flow.scaled(u128::from(now.saturating_sub(since.served)));
        flow.since = flow.since.saturating_sub(u128::from(since.served));
        // By the wall: what takes long may be all that there is.
        let took = wall.saturating_sub(since.wall);
        flow.usual = flow.usual - (flow.usual >> MEMORY) + (took >> MEMORY);
        if flow.holds == 1 {
            self.holding -= 1;
        }
        flow.holds = flow.holds.saturating_sub(1);
        self.list(at, now);
    }

    /// Flows that may hold a certain number of servers may hold so many from now on, those that wait already included.
    pub fn bound(&mut self, servers: usize, now: Nanos) {
        let now = self.served(now);
        for at in self.index.values().copied().collect::<Vec<_>>() {
            let share = &mut self.flows[at].share;
            if share.servers != usize::MAX && share.servers != servers {
                share.servers = servers;
                self.list(at, now);
            }
        }
    }

    /// Servers that a flow holds.
    pub fn holds(&self, key: &K) -> usize {
        self.index.get(key).map_or(0, |&at| self.flows[at].holds)
    }

    /// Servers that a flow may hold besides.
    pub fn room(&self, key: &K) -> usize {
        self.index.get(key).map_or(usize::MAX, |&at| {
            let flow = &self.flows[at];
            flow.share.servers.saturating_sub(flow.holds)
        })
    }

    /// How many of a flow wait.
    pub fn waiting(&self, key: &K) -> usize {
        self.index.get(key).map_or(0, |&at| self.flows[at].waits)
    }

    /// What a flow's transactions took lately, in nanoseconds; 0 if none is over.
    pub fn usual(&self, key: &K) -> u64 {
        self.index.get(key).map_or(0, |&at| self.flows[at].usual)
    }

    /// How many flows are known.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// What the clock of server time shows.
    fn served(&self, now: Nanos) -> Nanos {
        self.clock.shows(now, self.patience(now))
    }

    /// Somebody takes a server.
    fn begins(&mut self, now: Nanos) -> Since {
        self.clock.stirs(now, self.patience(now));
        Since { wall: now, served: self.served(now) }
    }

    /// For how long nobody may be done until PostgreSQL is taken to answer nobody.
    fn patience(&self, now: Nanos) -> Nanos {
        if self.holding < SEVERAL || self.clock.silence(now) <= SILENCE {
            return Nanos::MAX;
        }
        let usual = self.flows.iter().filter(|flow| flow.holds > 0).map(|flow| flow.usual).max();
        SILENCE.saturating_add(usual.unwrap_or(0).saturating_mul(2))
    }

    /// A flow that is about to want something. One that wanted nothing so far begins now.
    fn wake(&mut self, key: &K, share: Share, now: Nanos) -> usize {
        self.goes_on(now);
        let at = match self.index.get(key) {
            Some(&at) => at,
            None => self.add(key),
        };
        let (virtual_time, flow) = (self.virtual_time, &mut self.flows[at]);
        flow.share = Share { weight: share.weight.max(1), ..share };
        if flow.waits == 0 {
            flow.charged += virtual_time.saturating_sub(flow.attained(now));
        }
        at
    }

    fn goes_on(&mut self, now: Nanos) {
        if self.ready.is_empty() {
            self.virtual_time += u128::from(now.saturating_sub(self.looked_at)) << 16;
            self.forget();
        }
        self.looked_at = self.looked_at.max(now);
    }

    fn add(&mut self, key: &K) -> usize {
        let flow = Flow {
            key: key.clone(),
            share: Share { weight: 1, servers: usize::MAX },
            charged: 0,
            holds: 0,
            since: 0,
            waits: 0,
            usual: 0,
            place: None,
        };
        let at = match self.vacant.pop() {
            Some(at) => {
                self.flows[at] = flow;
                at
            }
            None => {
                self.flows.push(flow);
                self.flows.len() - 1
            }
        };
        self.index.insert(key.clone(), at);
        at
    }

    fn hold(&mut self, at: usize, now: Nanos) {
        let flow = &mut self.flows[at];
        self.virtual_time = self.virtual_time.max(flow.attained(now));
        self.holding += usize::from(flow.holds == 0);
        flow.holds += 1;
        flow.since += u128::from(now);
        self.list(at, now);
        self.forget();
    }

    /// Puts a flow where it belongs now.
    fn list(&mut self, at: usize, now: Nanos) {
        if let Some(place) = self.flows[at].place.take() {
            self.ready.remove(&place);
            self.resting.remove(&place);
        }
        let flow = &self.flows[at];
        let place = (flow.attained(now), self.arrivals, at);
        self.arrivals += 1;
        if flow.waits > 0 && flow.holds < flow.share.servers {
            self.put(at, place);
        } else if flow.waits == 0 && flow.holds == 0 {
            self.resting.insert(place);
            self.flows[at].place = Some(place);
        }
    }

    fn put(&mut self, at: usize, place: Place) {
        self.ready.insert(place);
        self.flows[at].place = Some(place);
    }

    /// Who rests and had no more than anyone else begins anew when it comes again: nothing of it need be known.
    fn forget(&mut self) {
        while let Some(&place @ (attained, _, at)) = self.resting.first() {
            if attained > self.virtual_time {
                return;
            }
            self.resting.remove(&place);
            self.index.remove(&self.flows[at].key);
            self.vacant.push(at);
        }
    }
}

impl<K> Flow<K> {
    /// Server time so far, for its weight: of transactions that are over, and of those that run, each at least as long as
    /// usual.
    fn attained(&self, now: Nanos) -> Virtual {
        let holds = self.holds as u128;
        let running = (holds * u128::from(now)).saturating_sub(self.since);
        self.charged + self.scaled(running.max(holds * u128::from(self.usual)))
    }

    fn scaled(&self, nanoseconds: u128) -> Virtual {
        (nanoseconds << 16) / u128::from(self.share.weight)
    }
}

#[cfg(test)]
mod tests;
