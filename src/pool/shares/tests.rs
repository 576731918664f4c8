//! A discrete-event simulation of a pool: organizations with clients that think and ask, servers that are given to whoever
//! is next. What it shows holds for hours of traffic that no test could run.
#![allow(clippy::unwrap_used)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::{Nanos, SILENCE, Share, Shares, Since};
use crate::pool::guests::Guests;

const MILLISECOND: Nanos = 1_000_000;
const SECOND: Nanos = 1_000 * MILLISECOND;

/// An organization: how many clients it has, how long they think between two transactions, how long these take.
#[derive(Clone)]
struct Organization {
    share: Share,
    clients: usize,
    thinks: Nanos,
    takes: Nanos,
    /// Every transaction as long as any other, or as an exponential distribution has it.
    is_steady: bool,
}

/// What became of an organization.
#[derive(Clone, Default)]
struct Outcome {
    served: Nanos,
    transactions: u64,
    /// Each wait for a server, in nanoseconds; at the end those too that are not over.
    waits: Vec<Nanos>,
}

impl Outcome {
    fn percentile(&self, percent: usize) -> Nanos {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        waits.get((waits.len() * percent / 100).min(waits.len().saturating_sub(1))).copied().unwrap_or(0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client of an organization wants a server.
    Asks(usize),
    /// One that has had one since then is done; if it is a guest, since when.
    Ends(usize, Since, Option<Nanos>),
}

/// The line of one organization: when each of its clients began to wait.
type Line = VecDeque<Nanos>;

struct Simulation {
    organizations: Vec<Organization>,
    shares: Shares<usize>,
    guests: Guests,
    /// Since when organizations let servers pass.
    passing: Vec<Option<Nanos>>,
    lines: Vec<Line>,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    count: u64,
    /// Servers that nobody holds, and who had them.
    free: Vec<Option<usize>>,
    random: Random,
    outcomes: Vec<Outcome>,
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    fn around(&mut self, mean: Nanos) -> Nanos {
        (-self.unit().ln() * mean as f64) as Nanos
    }
}

impl Simulation {
    fn new(organizations: Vec<Organization>, servers: usize, seed: u64) -> Self {
        let count = organizations.len();
        let mut simulation = Self {
            organizations,
            shares: Shares::default(),
            guests: Guests::default(),
            passing: vec![None; count],
            lines: vec![Line::new(); count],
            events: BinaryHeap::new(),
            count: 0,
            free: vec![None; servers],
            random: Random(seed),
            outcomes: vec![Outcome::default(); count],
        };
        for who in 0..count {
            for _ in 0..simulation.organizations[who].clients {
                let thinks = simulation.organizations[who].thinks;
                let at = simulation.random.around(thinks.max(MILLISECOND));
                simulation.push(at, Event::Asks(who));
            }
        }
        simulation
    }

    fn push(&mut self, at: Nanos, event: Event) {
        self.count += 1;
        self.events.push(Reverse((at, self.count, event)));
    }

    fn run(mut self, until: Nanos) -> Vec<Outcome> {
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            if now > until {
                break;
            }
            match event {
                Event::Asks(who) => {
                    let share = self.organizations[who].share;
                    self.shares.waits(&who, share, now);
                    self.lines[who].push_back(now);
                }
                Event::Ends(who, since, guest) => {
                    guest.into_iter().for_each(|came| self.guests.leaves(came));
                    self.shares.gives_back(&who, since, now);
                    self.free.push(Some(who));
                    self.outcomes[who].served += now - since.wall;
                    self.outcomes[who].transactions += 1;
                    let thinks = self.organizations[who].thinks;
                    let thinks = self.random.around(thinks);
                    self.push(now + thinks, Event::Asks(who));
                }
            }
            while let Some(last) = self.free.last().copied()
                && let Some(who) = self.next(last, now)
            {
                self.free.pop();
                self.serve(who, last, now);
            }
            // All of thousands after every event would take longer than what is simulated.
            if self.count.is_multiple_of(1 + self.organizations.len() as u64 / 4) {
                self.check(now);
            }
        }
        for (line, outcome) in self.lines.iter().zip(&mut self.outcomes) {
            outcome.waits.extend(line.iter().map(|since| until.saturating_sub(*since)));
        }
        self.outcomes
    }

    /// As the pool's lines do it.
    fn next(&mut self, last: Option<usize>, now: Nanos) -> Option<usize> {
        let first = self.shares.next(now)?;
        let may_stay = |last: &usize| self.shares.waiting(last) > 0 && self.shares.room(last) > 0;
        let Some(last) = last.filter(|last| *last != first && may_stay(last)) else { return Some(first) };
        let usual = (self.shares.usual(&first), self.shares.usual(&last));
        let waits = self.lines[first].front().copied().unwrap_or(now);
        let passes = self.guests.lets_pass(usual, waits, &mut self.passing[first], now);
        Some(if passes { last } else { first })
    }

    fn serve(&mut self, who: usize, last: Option<usize>, now: Nanos) {
        let since = self.shares.is_served(&who, now);
        let is_guest = last.is_some_and(|last| last != who);
        let guest = is_guest.then(|| self.guests.comes(self.shares.usual(&who), now)).flatten();
        let asked = self.lines[who].pop_front().unwrap();
        if self.lines[who].is_empty() {
            self.passing[who] = None;
        }
        self.outcomes[who].waits.push(now - asked);
        let Organization { takes, is_steady, .. } = self.organizations[who];
        let takes = if is_steady { takes } else { self.random.around(takes) };
        self.push(now + takes.max(1), Event::Ends(who, since, guest));
    }

    /// No server is idle while somebody waits who may have it, and nobody holds more than it may.
    fn check(&self, now: Nanos) {
        for (who, organization) in self.organizations.iter().enumerate() {
            let holds = self.shares.holds(&who);
            assert!(holds <= organization.share.servers, "{who} holds {holds} at {now}");
            assert_eq!(self.shares.waiting(&who), self.lines[who].len());
            let may = holds < organization.share.servers && !self.lines[who].is_empty();
            assert!(self.free.is_empty() || !may, "{who} waits at {now} while a server is idle");
        }
    }
}

const ALL: Share = Share { weight: 1, servers: usize::MAX };

fn busy(weight: u32, clients: usize, takes: Nanos) -> Organization {
    Organization { share: Share { weight, ..ALL }, clients, thinks: 0, takes, is_steady: false }
}

fn quiet(thinks: Nanos, takes: Nanos) -> Organization {
    Organization { share: ALL, clients: 1, thinks, takes, is_steady: false }
}

fn ratio(outcomes: &[Outcome], a: usize, b: usize) -> f64 {
    outcomes[a].served as f64 / outcomes[b].served as f64
}

fn within(found: f64, wanted: f64, part: f64) -> bool {
    (found / wanted - 1.0).abs() <= part
}

#[test]
fn a_noisy_neighbour_costs_the_quiet_ones_a_part_of_one_of_its_queries() {
    let noisy =
        Organization { share: ALL, clients: 300, thinks: 0, takes: 20 * MILLISECOND, is_steady: true };
    let mut organizations = vec![noisy.clone()];
    organizations.extend(vec![quiet(20 * MILLISECOND, MILLISECOND / 5); 50]);
    let alone = Simulation::new(vec![noisy], 20, 1).run(5 * SECOND);
    let outcomes = Simulation::new(organizations, 20, 1).run(5 * SECOND);
    for quiet in &outcomes[1..] {
        assert!(quiet.percentile(99) <= 20 * MILLISECOND, "{} us", quiet.percentile(99) / 1_000);
        // The noisy one's servers come free together.
        assert!(quiet.percentile(50) <= 10 * MILLISECOND, "{} us", quiet.percentile(50) / 1_000);
    }
    // What the quiet ones need is 50 * 0.2 ms in every 20 ms or more: half a server of twenty.
    assert!(ratio(&[outcomes[0].clone(), alone[0].clone()], 0, 1) > 0.95);
}

#[test]
fn server_time_is_shared_by_weight_whatever_a_transaction_takes() {
    for (weights, takes) in [
        ([1, 4], [5 * MILLISECOND, 5 * MILLISECOND]),
        ([1, 1], [MILLISECOND, 100 * MILLISECOND]),
        ([1, 4], [100 * MILLISECOND, MILLISECOND]),
        ([3, 1], [SECOND / 4, MILLISECOND]),
    ] {
        let organizations =
            weights.iter().zip(takes).map(|(weight, takes)| busy(*weight, 60, takes)).collect();
        let outcomes = Simulation::new(organizations, 20, 7).run(30 * SECOND);
        let (found, wanted) = (ratio(&outcomes, 0, 1), f64::from(weights[0]) / f64::from(weights[1]));
        assert!(within(found, wanted, 0.05), "{weights:?} {takes:?}: {found:.3} instead of {wanted:.3}");
    }
}

#[test]
fn who_wants_less_than_its_share_leaves_the_rest_to_the_others() {
    // A third of 12 servers each would be 4: the first wants 2, so the others have 5 each.
    let small = Organization { clients: 2, ..busy(1, 2, 10 * MILLISECOND) };
    let outcomes =
        Simulation::new(vec![small, busy(1, 50, 10 * MILLISECOND), busy(1, 50, 30 * MILLISECOND)], 12, 3)
            .run(20 * SECOND);
    assert!(within(ratio(&outcomes, 1, 2), 1.0, 0.05), "{}", ratio(&outcomes, 1, 2));
    // It also waits for the next server that comes free, a millisecond and a half.
    let servers = outcomes[0].served as f64 / (20 * SECOND) as f64;
    assert!((1.6..=2.0).contains(&servers), "{servers}");
}

#[test]
fn who_may_hold_few_servers_holds_few_and_the_others_have_the_rest() {
    let capped = Organization { share: Share { weight: 1, servers: 3 }, ..busy(1, 50, 10 * MILLISECOND) };
    let outcomes = Simulation::new(vec![capped, busy(1, 50, 10 * MILLISECOND)], 12, 4).run(20 * SECOND);
    assert!(within(ratio(&outcomes, 0, 1), 3.0 / 9.0, 0.05), "{}", ratio(&outcomes, 0, 1));
}

/// What was not asked for is neither saved up nor held against anyone.
#[test]
fn the_past_gives_no_rights() {
    let shares = &mut Shares::default();
    let hour = 3_600 * SECOND;
    // One works for an hour alone.
    for n in 0..3_600 {
        let since = shares.takes(&"worker", ALL, n * SECOND).unwrap();
        shares.gives_back(&"worker", since, (n + 1) * SECOND);
    }
    // From then on both want the only server, and each has every other turn.
    let (mut now, mut turns) = (hour, Vec::new());
    for who in ["worker", "sleeper"] {
        (0..10).for_each(|_| shares.waits(&who, ALL, now));
    }
    for _ in 0..10 {
        let who = shares.next(now).unwrap();
        let since = shares.is_served(&who, now);
        shares.gives_back(&who, since, now + SECOND);
        now += SECOND;
        turns.push(who);
    }
    assert_eq!(turns.iter().filter(|who| **who == "worker").count(), 5, "{turns:?}");
    assert!(turns.windows(3).all(|three| three.iter().any(|who| *who != three[0])), "{turns:?}");
}

/// Thousands of organizations, with clients and load by Zipf's law, weights, and transactions of all lengths, at 50,000 transactions a second:
/// nobody starves, and everyone who wants its share has it.
#[test]
fn nobody_starves_among_thousands() {
    let count = 2_000;
    let organizations: Vec<_> = (1..=count)
        .map(|rank| {
            let clients = (6_000 / rank).max(1);
            let thinks = if clients > 3 { 0 } else { SECOND / 2 };
            let weight = 1 + (rank % 3) as u32;
            Organization { thinks, ..busy(weight, clients, 4 * MILLISECOND) }
        })
        .collect();
    // The small ones want 1,250 * 4 ms in half a second and more: a twentieth of 200 servers. The rest of them is for the large ones.
    let (servers, seconds) = (200, 20);
    let outcomes = Simulation::new(organizations.clone(), servers, 5).run(seconds * SECOND);
    let transactions: u64 = outcomes.iter().map(|outcome| outcome.transactions).sum();
    assert!(transactions > 45_000 * seconds, "{transactions}");
    // Those who have enough clients to want all the time.
    let large: Vec<_> = (0..count).filter(|who| organizations[*who].clients > 10).collect();
    let share = |who: usize| outcomes[who].served as f64 / f64::from(organizations[who].share.weight);
    let mean = large.iter().map(|who| share(*who)).sum::<f64>() / large.len() as f64;
    for who in large {
        assert!(within(share(who), mean, 0.05), "{who}: {} of {mean}", share(who));
    }
    // What a long transaction of their own took is on their account for a while.
    for who in (0..count).filter(|who| organizations[*who].thinks > 0) {
        let longest = outcomes[who].waits.iter().max().unwrap_or(&0);
        assert!(*longest < SECOND, "{who} waited {} ms", longest / MILLISECOND);
    }
}

#[test]
fn what_rests_is_forgotten() {
    let shares = &mut Shares::default();
    for n in 0..10_000_u64 {
        let since = shares.takes(&n, ALL, n * MILLISECOND).unwrap();
        shares.gives_back(&n, since, (n + 1) * MILLISECOND);
    }
    assert!(shares.len() < 10, "{} are remembered", shares.len());
    assert!(shares.flows.len() < 10);
}

/// While PostgreSQL is frozen, who holds a server has nothing of it, and comes after nobody for that.
#[test]
fn what_a_frozen_server_takes_is_charged_to_nobody() {
    let shares = &mut Shares::default();
    let mut now = SECOND;
    let held = ["one", "other", "third"].map(|who| (who, shares.takes(&who, ALL, now).unwrap()));
    // Those who had none, and are to wait no longer than they.
    for who in ["late", "late", "one", "other", "third"] {
        shares.waits(&who, ALL, now + MILLISECOND);
    }
    now += SECOND + SECOND / 2;
    for (who, since) in held {
        shares.gives_back(&who, since, now);
    }
    let mut waited = 0;
    while let Some(who) = shares.next(now) {
        let since = shares.is_served(&who, now);
        now += MILLISECOND;
        waited += u64::from(who == "late");
        shares.gives_back(&who, since, now);
        if who != "late" {
            break;
        }
        shares.waits(&"late", ALL, now);
        assert!(
            waited <= SILENCE / MILLISECOND + 2,
            "who held a server waits for {waited} turns of one who did not"
        );
    }
}

/// Where all that there is takes long, it is charged all the same: also to those who rest in between, and are forgotten then.
#[test]
fn long_transactions_are_no_silence() {
    for (clients, takes, thinks, most) in [(10, 5 * SECOND, 0, 1.1), (1, 60 * SECOND, SECOND, 1.1)] {
        let long = Organization { is_steady: true, thinks, ..busy(1, clients, takes) };
        let organizations = vec![long.clone(), long.clone(), long, busy(1, 10, 20 * MILLISECOND)];
        let outcomes = Simulation::new(organizations, 3, 9).run(3_600 * SECOND);
        for long in 0..3 {
            let found = ratio(&outcomes, long, 3);
            assert!(found < most, "{found:.3} of the time of short ones");
        }
    }
}
