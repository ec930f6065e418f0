//! Requests for one model are served together, and nobody waits for ever meanwhile: two models that cannot both be loaded, second
//! by second, with loads and stops that take their time.

use super::*;

const SECONDS: u64 = 3600;
const LOAD: u64 = 40;
const STOP: u64 = 2;
const TURN: u64 = 30;
/// The default of `min_residency`.
const STAY: u64 = 10;
/// What the core learns a second late: it is told the time and the device's memory once a second.
const LATE: u64 = 3;

struct Street {
    host: Host,
    service: u64,
    at: u64,
    due: BTreeMap<u64, Vec<Event>>,
    /// Who waits: for which model, since when.
    waiting: BTreeMap<u64, (&'static str, u64)>,
    /// How long each of a model's requests waited.
    waited: BTreeMap<&'static str, Vec<u64>>,
    loads: u64,
    denied: u64,
    asked: u64,
    /// The most requests that one load has let in at once.
    together: usize,
}

impl Street {
    fn new(service: u64, turn_after: Option<u64>) -> Self {
        let mut host = Host::new(vec![spec("a", 80), spec("b", 80)]);
        let settings = &mut host.state.settings;
        settings.turn_after = turn_after.map(Duration::from_secs);
        settings.rules.min_residency = Duration::from_secs(STAY);
        settings.max_queue = 1000;
        Self {
            host,
            service,
            at: 0,
            due: BTreeMap::new(),
            waiting: BTreeMap::new(),
            waited: BTreeMap::new(),
            loads: 0,
            denied: 0,
            asked: 0,
            together: 0,
        }
    }

    fn soon(&mut self, seconds: u64, event: Event) {
        self.due.entry(self.at + seconds).or_default().push(event);
    }

    fn tell(&mut self, event: Event) {
        self.host.tell(event);
        self.obey();
    }

    /// The world does what the core has just ordered.
    fn obey(&mut self) {
        let mut let_in = 0;
        for effect in std::mem::take(&mut self.host.out) {
            if let Effect::Launch(order) = effect {
                self.loads += 1;
                let (instance, launched) = (order.instance.clone(), launched(&order.instance));
                self.soon(1, Event::Launched { instance: instance.clone(), launched });
                self.soon(LOAD, Event::Healthy { instance });
            } else if let Effect::Stop { instance, .. } = effect {
                self.soon(STOP, Event::Stopped { instance, result: Ok(()) });
            } else if let Effect::Grant { waiter, instance, .. } = effect {
                let_in += 1;
                let (model, since) = self.waiting.remove(&waiter.0).unwrap();
                assert_eq!(instance.model, name(model));
                self.waited.entry(model).or_default().push(self.at - since);
                let back = Event::Used(vec![Passed { instance, taken: 0, returned: 1 }]);
                self.soon(self.service, back);
            } else if let Effect::Deny { waiter, .. } = effect {
                self.waiting.remove(&waiter.0).unwrap();
                self.denied += 1;
            }
        }
        self.together = self.together.max(let_in);
    }

    /// One second, in which these are asked for.
    fn second(&mut self, asked: &[&'static str]) {
        for event in self.due.remove(&self.at).unwrap_or_default() {
            self.tell(event);
        }
        for model in asked {
            self.asked += 1;
            let waiter = self.asked;
            self.waiting.insert(waiter, (model, self.at));
            self.host.acquire(waiter, model);
            self.obey();
        }
        self.at += 1;
        self.host.pass(1);
        self.obey();
        self.host.observe();
        self.obey();
    }

    fn longest(&self, model: &str) -> u64 {
        self.waited[model].iter().copied().max().unwrap()
    }
}

/// An hour in which one is asked every second, so that it is never idle, and the other once a minute.
fn busy(turn_after: Option<u64>) -> Street {
    let mut street = Street::new(5, turn_after);
    for second in 0..SECONDS {
        let asked: &[&str] = if second % 60 == 30 { &["a", "b"] } else { &["a"] };
        street.second(asked);
    }
    street
}

#[test]
fn who_waits_for_a_busy_model_waits_no_longer_than_a_bound() {
    let street = busy(Some(TURN));
    assert_eq!(street.denied, 0);
    // Its turn; those that run end; the swap.
    let swap = street.service + STOP + LOAD + LATE;
    assert!(street.longest("b") <= TURN + swap, "{}", street.longest("b"));
    // The busy one waits for the swap to the other, its stay, and the swap back.
    let back = swap + STAY + swap;
    assert!(street.longest("a") <= back, "{}", street.longest("a"));
    // No more loads than there are requests for the other, and as many back.
    assert!(street.loads <= 2 * 60 + 1, "{}", street.loads);
    // All who came during a swap are let in at once.
    assert!(street.together as u64 > LOAD, "{}", street.together);
    // Without turns the other is kept out: the bound is theirs.
    assert!(busy(None).denied > 50);
}

#[test]
fn alternating_requests_share_their_swaps() {
    let mut street = Street::new(1, Some(TURN));
    for second in 0..SECONDS {
        street.second(&[if second % 2 == 0 { "a" } else { "b" }]);
    }
    // Served in the order of their arrival each of the 3,600 would be a swap. Together it is one for each stay at most.
    let stay = STOP + LOAD + STAY;
    assert!(street.loads <= SECONDS / stay + 1, "{}", street.loads);
    assert_eq!(street.denied, 0);
    for model in ["a", "b"] {
        // It has just left: the other comes, stays, makes way in turn at the latest, and goes.
        let bound = 2 * (STOP + LOAD + LATE) + TURN.max(STAY) + street.service;
        assert!(street.longest(model) <= bound, "{model}: {}", street.longest(model));
        assert!(
            street.waited[model].len() as u64 > SECONDS / 2 - bound,
            "all but the last are served"
        );
    }
}
