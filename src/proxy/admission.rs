//! Whose turn it is. PURE.
//!
//! Purpose: hold keys to their rates and to their number of requests at once, give a model no more requests at once than it is
//! allowed, and share its turns fairly among the holders of keys. Owner: `gate`, which asks it under a lock that is held for no
//! longer than one of these calls. Invariants: a ticket is in exactly one state until it is given back, and giving it back
//! twice changes nothing; each model has a queue of its own, so nobody waits behind another model; queues are bounded.
//!
//! ```text
//!  arrive ──▶ refused
//!     ├─────▶ free ──leave──▶ (gone): no limit concerned it when it came
//!     ├─────▶ running ──leave──▶ (gone), and the next of that model runs
//!     └─────▶ waiting ──turn───▶ running
//!               ▲ └───aside───▶ aside ◀──aside── running
//!               └─────back────────┘
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
    /// Requests that the model is given at once. Where some are here already, [`Admission::limit`] alone changes it.
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

/// Where a ticket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Waits,
    /// It could not use a turn now.
    Aside,
    Runs,
    /// No limit concerned it when it came: nobody counts it.
    Free,
}

#[derive(Debug)]
struct Entry {
    model: ModelName,
    caller: String,
    share: u32,
    stand: Stand,
}

/// A model with a limit.
#[derive(Debug, Default)]
struct Place {
    limit: u32,
    running: u32,
    /// By caller.
    shares: BTreeMap<String, u32>,
    waiting: Vec<Ticket>,
    /// How many are aside.
    aside: u32,
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
                let new = || Place { limit, ..Place::default() };
                let place = self.places.entry(wish.model.clone()).or_insert_with(new);
                let full = place.running >= place.limit || !place.waiting.is_empty();
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
            stand: Stand::Waits,
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

    /// A model is given so many requests at once from now on; `None`: any number. The tickets whose turn it is now.
    pub fn limit(&mut self, model: &ModelName, limit: Option<u32>) -> Vec<Ticket> {
        let limit = limit.unwrap_or(u32::MAX);
        match self.places.get_mut(model) {
            Some(place) if place.limit != limit => {
                place.limit = limit;
                self.turns(model)
            }
            Some(_) | None => Vec::new(),
        }
    }

    /// A request has ended, or given up while it waited. The tickets whose turn it is now.
    pub fn leave(&mut self, ticket: Ticket) -> Vec<Ticket> {
        let Some(entry) = self.entries.remove(&ticket) else { return Vec::new() };
        if let Some(holder) = self.holders.get_mut(&entry.caller) {
            holder.present = holder.present.saturating_sub(1);
        }
        self.withdraw(ticket, &entry);
        self.turns(&entry.model)
    }

    /// A request cannot use a turn for now, and others go first. Its place in the order of arrival is kept. The tickets whose turn it is
    /// now.
    pub fn aside(&mut self, ticket: Ticket) -> Vec<Ticket> {
        let Some(mut entry) = self.entries.remove(&ticket) else { return Vec::new() };
        let model = entry.model.clone();
        if !matches!(entry.stand, Stand::Aside | Stand::Free) {
            self.withdraw(ticket, &entry);
            entry.stand = Stand::Aside;
            if let Some(place) = self.places.get_mut(&model) {
                place.aside += 1;
            }
        }
        self.entries.insert(ticket, entry);
        self.turns(&model)
    }

    /// It can again. The tickets whose turn it is now: its own, if it is.
    pub fn back(&mut self, ticket: Ticket) -> Vec<Ticket> {
        let Some(entry) = self.entries.get_mut(&ticket) else { return Vec::new() };
        match (entry.stand, self.places.get_mut(&entry.model)) {
            (Stand::Aside, Some(place)) => {
                entry.stand = Stand::Waits;
                place.aside = place.aside.saturating_sub(1);
                place.waiting.push(ticket);
                let model = entry.model.clone();
                self.turns(&model)
            }
            (Stand::Runs | Stand::Free, _) => vec![ticket],
            (Stand::Aside | Stand::Waits, _) => Vec::new(),
        }
    }

    /// What its place counts of it.
    fn withdraw(&mut self, ticket: Ticket, entry: &Entry) {
        let Some(place) = self.places.get_mut(&entry.model) else { return };
        match entry.stand {
            Stand::Waits => place.waiting.retain(|t| *t != ticket),
            Stand::Aside => place.aside = place.aside.saturating_sub(1),
            Stand::Runs => {
                place.running = place.running.saturating_sub(1);
                if let Some(running) = place.shares.get_mut(&entry.caller) {
                    *running = running.saturating_sub(1);
                }
                place.shares.retain(|_, running| *running > 0);
            }
            // A place that there is now came after it.
            Stand::Free => {}
        }
    }

    /// Gives out what turns there are.
    fn turns(&mut self, model: &ModelName) -> Vec<Ticket> {
        let mut turns = Vec::new();
        while let Some(next) = self.next_of(model) {
            self.run(next);
            turns.push(next);
        }
        let over = |p: &Place| p.running == 0 && p.waiting.is_empty() && p.aside == 0;
        if self.places.get(model).is_some_and(over) {
            self.places.remove(model);
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
        let Some(place) = self.places.get_mut(&entry.model) else {
            entry.stand = Stand::Free;
            return;
        };
        entry.stand = Stand::Runs;
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
mod tests;
