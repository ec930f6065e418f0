//! Leases that need no asking.
//!
//! ```text
//!   owner's turn:  shut all ─▶ tell the core what went through ─▶ events, effects ─▶ open those that the core names
//!   between turns: a request passes an open turnstile by itself; the owner is stirred, and looks a moment later
//! ```
//! Purpose: a request for a ready model, when nothing else is going on, costs one atomic step and not a turn of the owner. Owner: the
//! task, which alone opens and shuts; every lease holds its instance's [`Turnstile`]. Invariants: while the owner decides, all are
//! shut, so what it was told of is all that there is, and an instance that leaves has no way in; every lease is counted at its
//! turnstile, whoever granted it; what passes is told to the core at the next turn, which is at most [`STIR_MAX`](super::stir::STIR_MAX) away, and at
//! once if the turnstile is shut, for then somebody may wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use super::event::Passed;
use super::handle::{Ask, Lease};
use super::meter::Meter;
use super::ports::Endpoint;
use super::stir::Stir;
use super::traffic::Way;
use super::waits::Waits;
use crate::types::{InstanceId, ModelName, ModelStatus};

const SHUT: u64 = 1 << 63;
const TAKEN_SHIFT: u32 = 32;
const TAKEN_MASK: u32 = u32::MAX >> 1;

/// The way to one instance, where its leases are counted.
#[derive(Debug)]
pub(super) struct Turnstile {
    pub(super) instance: InstanceId,
    pub(super) endpoint: Endpoint,
    pub(super) meter: Meter,
    /// How often the engine has said something to who holds a lease.
    said: AtomicU64,
    /// In one word, so that all is of one moment: shut (1 bit), how many passed by themselves (31, it wraps), how many are
    /// in flight (32).
    word: AtomicU64,
    stir: Arc<Stir>,
}

/// What the counters of a turnstile say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    shut: bool,
    taken: u32,
    in_flight: u32,
}

impl Count {
    fn of(word: u64) -> Self {
        Self {
            shut: word & SHUT != 0,
            taken: (word >> TAKEN_SHIFT) as u32 & TAKEN_MASK,
            in_flight: word as u32,
        }
    }

    fn word(self) -> u64 {
        let shut = if self.shut { SHUT } else { 0 };
        shut | u64::from(self.taken & TAKEN_MASK) << TAKEN_SHIFT | u64::from(self.in_flight)
    }
}

impl Turnstile {
    /// One that is shut, and that nobody ever opens.
    pub(super) fn shut(
        instance: InstanceId,
        endpoint: Endpoint,
        asks: mpsc::UnboundedSender<Ask>,
    ) -> Self {
        Self::new(instance, endpoint, Meter::default(), Stir::new(asks))
    }

    fn new(instance: InstanceId, endpoint: Endpoint, meter: Meter, stir: Arc<Stir>) -> Self {
        let (word, said) = (AtomicU64::new(SHUT), AtomicU64::new(0));
        Self { instance, endpoint, meter, said, word, stir }
    }

    /// A lease, if it is open.
    fn pass(self: &Arc<Self>) -> Option<Lease> {
        let taken = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let count = Count::of(word);
            let passed = Count { taken: count.taken + 1, in_flight: count.in_flight + 1, ..count };
            (!count.shut).then(|| passed.word())
        });
        taken.ok()?;
        self.stir.stir();
        Some(Lease::at(self.clone()))
    }

    /// A lease that the core has granted, which counts it already.
    pub(super) fn admit(self: &Arc<Self>) -> Lease {
        self.word.fetch_add(1, Ordering::AcqRel);
        Lease::at(self.clone())
    }

    /// A lease comes back.
    pub(super) fn give_back(&self) {
        let before = Count::of(self.word.fetch_sub(1, Ordering::AcqRel));
        if before.shut {
            self.stir.release(&self.instance);
        } else {
            self.stir.stir();
        }
    }

    /// The engine has said something.
    pub(super) fn says(&self) {
        // Only whether it grows matters, so that one of two at once may be lost.
        self.said.store(self.said.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// A number that grows when the engine says something.
    pub(super) fn said(&self) -> u64 {
        self.said.load(Ordering::Relaxed)
    }
}

/// Open turnstiles, by every name of their models.
type Ways = ArcSwap<BTreeMap<ModelName, Arc<Turnstile>>>;

/// The callers' end: the open ways, and who waits for a turn.
#[derive(Clone, Debug)]
pub(super) struct Express {
    ways: Arc<Ways>,
    pub(super) waits: Waits,
}

impl Express {
    /// A lease on a model, by name or alias, where that needs no asking.
    pub(super) fn pass(&self, model: &str) -> Option<Lease> {
        self.ways.load().get(model)?.pass()
    }
}

/// One turnstile, and what the core knows of it.
#[derive(Debug)]
struct Known {
    way: Arc<Turnstile>,
    taken: u32,
    in_flight: u32,
}

impl Known {
    fn shut(&mut self) -> Option<Passed> {
        let count = Count::of(self.way.word.fetch_or(SHUT, Ordering::AcqRel));
        let taken = count.taken.wrapping_sub(self.taken) & TAKEN_MASK;
        let returned = (self.in_flight + taken).saturating_sub(count.in_flight);
        (self.taken, self.in_flight) = (count.taken, count.in_flight);
        (taken > 0 || returned > 0).then(|| Passed {
            instance: self.way.instance.clone(),
            taken,
            returned,
        })
    }
}

/// The owner's end.
#[derive(Debug)]
pub(super) struct Turnstiles {
    stir: Arc<Stir>,
    known: BTreeMap<InstanceId, Known>,
    /// Of models that were ever leased.
    meters: BTreeMap<ModelName, Meter>,
    express: Express,
}

impl Turnstiles {
    pub(super) fn new(asks: mpsc::UnboundedSender<Ask>) -> Self {
        let stir = Stir::new(asks);
        let express = Express { ways: Arc::default(), waits: Waits::new(stir.clone()) };
        Self { stir, known: BTreeMap::new(), meters: BTreeMap::new(), express }
    }

    /// For callers.
    pub(super) fn express(&self) -> Express {
        self.express.clone()
    }

    /// Puts what the core does not know into its picture: what models have streamed, and who waits for their turns.
    pub(super) fn show(&self, models: &mut [ModelStatus]) {
        for model in models {
            model.chunks = self.meters.get(&model.name).map_or(0, Meter::total);
            model.queued = model.queued.saturating_add(self.express.waits.of(&model.name));
        }
    }

    /// Shuts all, and says what went through them.
    pub(super) fn shut(&mut self) -> Vec<Passed> {
        // First, so that none of what passes is missed.
        self.stir.looks();
        self.known.values_mut().filter_map(Known::shut).collect()
    }

    /// The lease that the core has just granted.
    pub(super) fn admit(&mut self, instance: &InstanceId, endpoint: &Endpoint) -> Lease {
        let known = self.to(instance, endpoint);
        known.in_flight += 1;
        known.way.admit()
    }

    /// Opens those that lead to these, by these names.
    pub(super) fn open<'a>(&mut self, to: impl Iterator<Item = Way<'a>>) {
        let mut ways = BTreeMap::new();
        for Way { name, instance, endpoint } in to {
            let way = &self.to(instance, endpoint).way;
            way.word.fetch_and(!SHUT, Ordering::AcqRel);
            ways.insert(name.clone(), way.clone());
        }
        let old = self.express.ways.load();
        let same = ways.len() == old.len()
            && ways.iter().zip(old.iter()).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1));
        if !same {
            self.express.ways.store(Arc::new(ways));
        }
    }

    /// The way to an instance, where a lease on it was ever taken.
    pub(super) fn way(&self, instance: &InstanceId) -> Option<Arc<Turnstile>> {
        self.known.get(instance).map(|known| known.way.clone())
    }

    /// Forgets those that nobody holds a lease of and that lead to nobody who lives.
    pub(super) fn forget(&mut self, lives: impl Fn(&InstanceId) -> bool) {
        self.known.retain(|instance, known| known.in_flight > 0 || lives(instance));
    }

    fn to(&mut self, instance: &InstanceId, endpoint: &Endpoint) -> &mut Known {
        self.known.entry(instance.clone()).or_insert_with(|| {
            let meter = self.meters.entry(instance.model.clone()).or_default().clone();
            let (instance, endpoint) = (instance.clone(), endpoint.clone());
            let way = Turnstile::new(instance, endpoint, meter, self.stir.clone());
            Known { way: Arc::new(way), taken: 0, in_flight: 0 }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Generation;

    fn turnstiles() -> (Turnstiles, mpsc::UnboundedReceiver<Ask>) {
        let (asks, asked) = mpsc::unbounded_channel();
        (Turnstiles::new(asks), asked)
    }

    fn instance(n: u64) -> InstanceId {
        InstanceId::new("m".parse().unwrap(), Generation(n), 0)
    }

    fn open(turnstiles: &mut Turnstiles, instance: &InstanceId) {
        let endpoint = Endpoint::Unix("/e".into());
        let alias: ModelName = "alias".parse().unwrap();
        let way = |name| Way { name, instance, endpoint: &endpoint };
        turnstiles.open([way(&instance.model), way(&alias)].into_iter());
    }

    fn counts(passed: &[Passed]) -> Vec<(u32, u32)> {
        passed.iter().map(|p| (p.taken, p.returned)).collect()
    }

    #[test]
    fn who_passes_is_told_at_the_next_turn_and_stirs_once() {
        let (mut all, mut asked) = turnstiles();
        let express = all.express();
        assert!(express.pass("m").is_none());
        open(&mut all, &instance(1));
        let first = express.pass("m").unwrap();
        let second = express.pass("alias").unwrap();
        assert!(express.pass("other").is_none());
        assert_eq!(first.instance(), &instance(1));
        drop(second);
        assert!(matches!(asked.try_recv(), Ok(Ask::Stir)));
        assert!(asked.try_recv().is_err(), "once for all of them");

        let passed = all.shut();
        assert_eq!((passed[0].instance.clone(), counts(&passed)), (instance(1), vec![(2, 1)]));
        assert!(all.shut().is_empty(), "told once");
        assert!(express.pass("m").is_none(), "it is shut");
        // Somebody may wait for the end of this one.
        drop(first);
        assert!(matches!(asked.try_recv(), Ok(Ask::Release { instance: i }) if i == instance(1)));
        assert_eq!(counts(&all.shut()), [(0, 1)]);
        all.forget(|_| false);
        assert!(all.known.is_empty());
    }

    #[test]
    fn leases_that_the_core_granted_are_only_told_when_they_come_back() {
        let (mut all, mut asked) = turnstiles();
        let lease = all.admit(&instance(1), &Endpoint::Unix("/e".into()));
        assert!(all.shut().is_empty());
        open(&mut all, &instance(1));
        drop(lease);
        assert!(matches!(asked.try_recv(), Ok(Ask::Stir)));
        assert_eq!(counts(&all.shut()), [(0, 1)]);
        assert_eq!(all.meters[&instance(1).model].total(), 0);
    }

    #[test]
    fn the_next_incarnation_has_a_way_of_its_own() {
        let (mut all, _asked) = turnstiles();
        let express = all.express();
        open(&mut all, &instance(1));
        let old = express.pass("m").unwrap();
        all.shut();
        open(&mut all, &instance(2));
        let new = express.pass("m").unwrap();
        assert_eq!((old.instance(), new.instance()), (&instance(1), &instance(2)));
        // Held, it is remembered although its instance is gone.
        all.forget(|id| *id == instance(2));
        drop(old);
        let passed = all.shut();
        assert_eq!(counts(&passed), [(0, 1), (1, 0)]);
        all.open(std::iter::empty());
        assert!(express.pass("m").is_none());
    }

    #[test]
    fn the_counter_of_those_that_passed_wraps() {
        let near = Count { shut: false, taken: TAKEN_MASK, in_flight: 7 };
        assert_eq!(Count::of(near.word()), near);
        let (mut all, _asked) = turnstiles();
        open(&mut all, &instance(1));
        let known = all.known.get_mut(&instance(1)).unwrap();
        known.taken = TAKEN_MASK;
        known.way.word.store(Count { in_flight: 0, ..near }.word(), Ordering::Release);
        let _lease = all.express().pass("m").unwrap();
        assert_eq!(counts(&all.shut()), [(1, 0)]);
        assert!(all.express().pass("m").is_none());
    }

    /// Threads pass and come back while the owner shuts and opens.
    #[test]
    fn nothing_that_passes_is_lost() {
        let (mut all, mut asked) = turnstiles();
        let express = all.express();
        let (threads, each) = (3, 2_000);
        let (mut taken, mut returned) = (0, 0);
        std::thread::scope(|scope| {
            let passers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..each {
                            while express.pass("m").is_none() {
                                std::thread::yield_now();
                            }
                        }
                    })
                })
                .collect();
            while passers.iter().any(|p| !p.is_finished()) {
                open(&mut all, &instance(1));
                std::thread::yield_now();
                for passed in all.shut() {
                    taken += passed.taken;
                    returned += passed.returned;
                }
            }
        });
        for passed in all.shut() {
            taken += passed.taken;
            returned += passed.returned;
        }
        assert_eq!((taken, returned), (threads * each, threads * each));
        let mut stirs = 0;
        while let Ok(ask) = asked.try_recv() {
            stirs += usize::from(matches!(ask, Ask::Stir));
        }
        assert!(stirs > 0);
    }
}
