//! Whose turn it is. PURE.
//!
//! Purpose: hold keys to their rates and to their number of requests at once, give a model no more requests at once than it is
//! allowed, and share its turns fairly among the holders of keys. Owner: `gate`, which asks it under a lock that is held for no
//! longer than one of these calls. Invariants: a ticket is in exactly one state until it is given back, and giving it back
//! twice changes nothing; each model has a queue of its own, so nobody waits behind another model; queues are bounded.
//!
//! ```text
//!  arrive ──▶ refused
//!     ├─────▶ running ──leave──▶ (gone), and the next of that model runs
//!     └─────▶ waiting ──turn───▶ running
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::{ModelName, Moment};

/// A request that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// Who asks. Requests without a key all count as one holder, `""`, of which nothing is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// The key's name.
    pub name: String,
    /// Requests in a minute.
    pub per_minute: Option<u32>,
    /// Requests at once.
    pub concurrent: Option<u32>,
    /// Weight at a model's queue.
    pub share: u32,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    pub model: &'a ModelName,
    /// Requests that the model is given at once.
    pub limit: Option<u32>,
    /// Requests that may wait for their turn.
    pub queue_max: usize,
}

/// The answer to a request that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Let {
    /// It may go on.
    Run(Ticket),
    /// It waits for its turn.
    Wait(Ticket),
}

/// Why a request is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The key's rate is used up.
    Rate {
        /// Until the next request may come.
        retry_after: Duration,
    },
    /// The key has as many requests as it may.
    Concurrency {
        /// How many.
        limit: u32,
    },
    /// As many wait for the model as may.
    QueueFull {
        /// How many.
        queued: usize,
    },
}

/// One request's worth of a rate, in thousandths of a millionth: whole numbers stay exact over any time.
const TOKEN: u128 = 60_000_000_000;

/// What a key's holder has used.
#[derive(Debug)]
struct Holder {
    /// Left of the rate; a request costs [`TOKEN`], and a nanosecond brings as many as requests are allowed in a minute.
    left: u128,
    at: Moment,
    present: u32,
}

#[derive(Debug)]
struct Entry {
    model: ModelName,
    caller: String,
    share: u32,
    running: bool,
}

/// A model with a limit.
#[derive(Debug, Default)]
struct Place {
    limit: u32,
    running: u32,
    /// By caller.
    shares: BTreeMap<String, u32>,
    /// In the order of arrival.
    waiting: Vec<Ticket>,
}

/// All that is let in and counted.
#[derive(Debug, Default)]
pub(super) struct Admission {
    holders: BTreeMap<String, Holder>,
    places: BTreeMap<ModelName, Place>,
    entries: BTreeMap<Ticket, Entry>,
    next: u64,
}

impl Admission {
    /// A request comes in.
    ///
    /// # Errors
    /// When it is not let in; it leaves no trace then.
    pub fn arrive(&mut self, now: Moment, caller: &Caller, wish: Wish<'_>) -> Result<Let, Refused> {
        let holder = self.holder(now, caller);
        if let Some(limit) = caller.concurrent.filter(|limit| holder.present >= *limit) {
            return Err(Refused::Concurrency { limit });
        }
        if let Some(rate) = caller.per_minute.filter(|_| holder.left < TOKEN) {
            let nanos = (TOKEN - holder.left).div_ceil(u128::from(rate.max(1)));
            let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
            return Err(Refused::Rate { retry_after: Duration::from_nanos(nanos) });
        }
        let must_wait = match wish.limit {
            None => false,
            Some(limit) => {
                let place = self.places.entry(wish.model.clone()).or_default();
                place.limit = limit;
                let full = place.running >= limit || !place.waiting.is_empty();
                if full && place.waiting.len() >= wish.queue_max {
                    return Err(Refused::QueueFull { queued: place.waiting.len() });
                }
                full
            }
        };
        let holder = self.holder(now, caller);
        holder.present += 1;
        if caller.per_minute.is_some() {
            holder.left -= TOKEN;
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        let entry = Entry {
            model: wish.model.clone(),
            caller: caller.name.clone(),
            share: caller.share.max(1),
            running: false,
        };
        self.entries.insert(ticket, entry);
        if must_wait {
            if let Some(place) = self.places.get_mut(wish.model) {
                place.waiting.push(ticket);
            }
            return Ok(Let::Wait(ticket));
        }
        self.run(ticket);
        Ok(Let::Run(ticket))
    }

    /// A request has ended, or given up while it waited. The tickets whose turn it is now.
    pub fn leave(&mut self, ticket: Ticket) -> Vec<Ticket> {
        let Some(entry) = self.entries.remove(&ticket) else { return Vec::new() };
        if let Some(holder) = self.holders.get_mut(&entry.caller) {
            holder.present = holder.present.saturating_sub(1);
        }
        let Some(place) = self.places.get_mut(&entry.model) else { return Vec::new() };
        if entry.running {
            place.running = place.running.saturating_sub(1);
            if let Some(running) = place.shares.get_mut(&entry.caller) {
                *running = running.saturating_sub(1);
            }
            place.shares.retain(|_, running| *running > 0);
        } else {
            place.waiting.retain(|t| *t != ticket);
        }
        let mut turns = Vec::new();
        while let Some(next) = self.next_of(&entry.model) {
            self.run(next);
            turns.push(next);
        }
        if self.places.get(&entry.model).is_some_and(|p| p.running == 0 && p.waiting.is_empty()) {
            self.places.remove(&entry.model);
        }
        turns
    }

    /// Of those that wait: whoever's holder has the least running for its share, then whoever came first.
    fn next_of(&self, model: &ModelName) -> Option<Ticket> {
        let place = self.places.get(model)?;
        if place.running >= place.limit {
            return None;
        }
        let burden = |ticket: &Ticket| {
            let entry = self.entries.get(ticket)?;
            let running = place.shares.get(&entry.caller).copied().unwrap_or(0);
            // Running requests per share, as a fraction of a common denominator.
            Some(u64::from(running) * 1_000_000 / u64::from(entry.share))
        };
        place.waiting.iter().min_by_key(|t| (burden(t), **t)).copied()
    }

    fn run(&mut self, ticket: Ticket) {
        let Some(entry) = self.entries.get_mut(&ticket) else { return };
        entry.running = true;
        let Some(place) = self.places.get_mut(&entry.model) else { return };
        place.waiting.retain(|t| *t != ticket);
        place.running += 1;
        *place.shares.entry(entry.caller.clone()).or_default() += 1;
    }

    fn holder(&mut self, now: Moment, caller: &Caller) -> &mut Holder {
        let rate = u128::from(caller.per_minute.unwrap_or(0));
        // A minute's worth may come at once.
        let most = rate * TOKEN;
        let holder = self.holders.entry(caller.name.clone()).or_insert(Holder {
            left: most,
            at: now,
            present: 0,
        });
        holder.left = (holder.left + now.since(holder.at).as_nanos() * rate).min(most);
        holder.at = now;
        holder
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn caller(name: &str) -> Caller {
        Caller { name: name.into(), per_minute: None, concurrent: None, share: 1 }
    }

    fn model(name: &str) -> ModelName {
        name.parse().unwrap()
    }

    fn wish(model: &ModelName, limit: u32) -> Wish<'_> {
        Wish { model, limit: Some(limit), queue_max: 3 }
    }

    fn ran(got: Result<Let, Refused>) -> Ticket {
        match got {
            Ok(Let::Run(ticket)) => ticket,
            other @ (Ok(Let::Wait(_)) | Err(_)) => panic!("{other:?}"),
        }
    }

    fn waits(got: Result<Let, Refused>) -> Ticket {
        match got {
            Ok(Let::Wait(ticket)) => ticket,
            other @ (Ok(Let::Run(_)) | Err(_)) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_rate_lets_a_minutes_worth_in_at_once_and_then_one_by_one() {
        let mut admission = Admission::default();
        let m = model("m");
        let caller = Caller { per_minute: Some(60), ..caller("a") };
        let free = Wish { model: &m, limit: None, queue_max: 0 };
        let now = Moment::from_secs(100);
        for _ in 0..60 {
            ran(admission.arrive(now, &caller, free));
        }
        let refused = admission.arrive(now, &caller, free).unwrap_err();
        assert_eq!(refused, Refused::Rate { retry_after: Duration::from_secs(1) });
        assert!(admission.arrive(now + Duration::from_millis(999), &caller, free).is_err());
        ran(admission.arrive(now + Duration::from_secs(1), &caller, free));
        assert!(admission.arrive(now + Duration::from_secs(1), &caller, free).is_err());
        // What was refused has cost nothing, and no more than a minute's worth is saved up.
        for _ in 0..60 {
            ran(admission.arrive(now + Duration::from_secs(9999), &caller, free));
        }
        assert!(admission.arrive(now + Duration::from_secs(9999), &caller, free).is_err());
    }

    #[test]
    fn a_key_has_no_more_at_once_than_it_may() {
        let mut admission = Admission::default();
        let m = model("m");
        let caller = Caller { concurrent: Some(2), ..caller("a") };
        let free = Wish { model: &m, limit: None, queue_max: 0 };
        let first = ran(admission.arrive(Moment::START, &caller, free));
        ran(admission.arrive(Moment::START, &caller, free));
        let refused = admission.arrive(Moment::START, &caller, free).unwrap_err();
        assert_eq!(refused, Refused::Concurrency { limit: 2 });
        assert_eq!(admission.leave(first), []);
        assert_eq!(admission.leave(first), [], "twice changes nothing");
        ran(admission.arrive(Moment::START, &caller, free));
        assert!(admission.arrive(Moment::START, &caller, free).is_err());
    }

    #[test]
    fn a_models_turns_are_shared_by_weight() {
        let mut admission = Admission::default();
        let m = model("m");
        let now = Moment::START;
        let (hog, other) = (caller("hog"), caller("other"));
        let a = ran(admission.arrive(now, &hog, wish(&m, 2)));
        let b = ran(admission.arrive(now, &hog, wish(&m, 2)));
        let c = waits(admission.arrive(now, &hog, wish(&m, 2)));
        let d = waits(admission.arrive(now, &hog, wish(&m, 2)));
        let e = waits(admission.arrive(now, &other, wish(&m, 2)));
        let full = admission.arrive(now, &other, wish(&m, 2)).unwrap_err();
        assert_eq!(full, Refused::QueueFull { queued: 3 });
        assert_eq!(admission.leave(a), [e], "who has nothing running goes before who came earlier");
        assert_eq!(admission.leave(d), [], "whoever gives up leaves the queue");
        assert_eq!(admission.leave(b), [c]);
        assert_eq!(admission.leave(e), []);
        assert_eq!(admission.leave(c), []);
        assert!(admission.places.is_empty() && admission.entries.is_empty());
    }

    #[test]
    fn a_larger_share_gets_more_turns() {
        let mut admission = Admission::default();
        let m = model("m");
        let big = Caller { share: 3, ..caller("big") };
        let small = caller("small");
        let wish = Wish { model: &m, limit: Some(4), queue_max: 100 };
        let mut running = Vec::new();
        for _ in 0..4 {
            running.push(ran(admission.arrive(Moment::START, &small, wish)));
        }
        let mut names = BTreeMap::new();
        for i in 0..16 {
            let who = if i % 2 == 0 { &big } else { &small };
            names.insert(waits(admission.arrive(Moment::START, who, wish)), who.name.clone());
        }
        let first: Vec<Ticket> = running.into_iter().flat_map(|t| admission.leave(t)).collect();
        let bigs = first.iter().filter(|t| names[t] == "big").count();
        assert_eq!((first.len(), bigs), (4, 3));
    }

    #[test]
    fn models_do_not_wait_for_each_other() {
        let mut admission = Admission::default();
        let (m, n) = (model("m"), model("n"));
        ran(admission.arrive(Moment::START, &caller("a"), wish(&m, 1)));
        waits(admission.arrive(Moment::START, &caller("a"), wish(&m, 1)));
        ran(admission.arrive(Moment::START, &caller("a"), wish(&n, 1)));
    }

    proptest! {
        /// Whatever comes and goes: never more than the limit at once, nobody waits while there is a turn, and nothing is left.
        #[test]
        fn the_limit_holds_and_nobody_is_forgotten(
            limit in 1u32..4, moves in prop::collection::vec((0u8..3, any::<prop::sample::Index>()), 1..80),
        ) {
            let mut admission = Admission::default();
            let m = model("m");
            let wish = Wish { model: &m, limit: Some(limit), queue_max: 10 };
            let (mut running, mut waiting) = (Vec::new(), Vec::new());
            for (who, which) in moves {
                let all = running.len() + waiting.len();
                if who < 2 || all == 0 {
                    match admission.arrive(Moment::START, &caller(&who.to_string()), wish) {
                        Ok(Let::Run(t)) => running.push(t),
                        Ok(Let::Wait(t)) => waiting.push(t),
                        Err(refused) => prop_assert_eq!(refused, Refused::QueueFull { queued: 10 }),
                    }
                } else {
                    let at = which.index(all);
                    let gone = if at < running.len() { running.remove(at) } else { waiting.remove(at - running.len()) };
                    for turn in admission.leave(gone) {
                        waiting.retain(|t| *t != turn);
                        running.push(turn);
                    }
                }
                prop_assert!(running.len() <= limit as usize);
                prop_assert!(waiting.is_empty() || running.len() == limit as usize);
            }
            for ticket in waiting.into_iter().chain(running) {
                admission.leave(ticket);
            }
            prop_assert!(admission.entries.is_empty() && admission.places.is_empty());
        }
    }
}
