//! Arrivals and ends in an order of the test's own, and in any.

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
fn who_is_aside_lets_others_go_first_and_keeps_its_place() {
    let mut admission = Admission::default();
    let m = model("m");
    let wish = Wish { queue_max: 1, ..wish(&m, 1) };
    let arrive = |admission: &mut Admission| admission.arrive(Moment::START, &caller("a"), wish);
    let first = ran(arrive(&mut admission));
    let slow = waits(arrive(&mut admission));
    assert_eq!(admission.aside(slow), []);
    // It takes no place in the queue meanwhile, and no turn that comes.
    let third = waits(arrive(&mut admission));
    assert_eq!(admission.leave(first), [third]);
    assert_eq!(admission.leave(third), []);
    let fourth = ran(arrive(&mut admission));
    let fifth = waits(arrive(&mut admission));
    assert_eq!(admission.back(slow), []);
    assert_eq!(admission.back(slow), [], "twice changes nothing");
    assert_eq!(admission.leave(fourth), [slow], "it came before the fifth");
    // One that runs gives its turn on.
    assert_eq!(admission.aside(slow), [fifth]);
    assert_eq!(admission.aside(slow), [], "twice changes nothing");
    assert_eq!(admission.leave(fifth), []);
    assert_eq!(admission.back(slow), [slow]);
    assert_eq!(admission.aside(slow), []);
    assert_eq!(admission.leave(slow), [], "it may leave from there");
    assert!(admission.places.is_empty() && admission.entries.is_empty());
    // Whom no limit concerns runs on.
    let free = Wish { limit: None, ..wish };
    let free = ran(admission.arrive(Moment::START, &caller("a"), free));
    assert_eq!((admission.aside(free), admission.back(free)), (vec![], vec![free]));
    assert_eq!(admission.leave(free), []);
    assert!(admission.places.is_empty() && admission.entries.is_empty());
}

#[test]
fn a_limit_that_was_raised_lets_in_who_waits() {
    let mut admission = Admission::default();
    let m = model("m");
    let arrive = |admission: &mut Admission, limit| {
        admission.arrive(Moment::START, &caller("a"), wish(&m, limit))
    };
    assert_eq!(admission.limit(&m, Some(5)), [], "nobody is here");
    let first = ran(arrive(&mut admission, 1));
    let [second, third] = [1, 1].map(|limit| waits(arrive(&mut admission, limit)));
    assert_eq!(admission.limit(&m, Some(1)), []);
    assert_eq!(admission.limit(&m, Some(2)), [second]);
    // Whoever was told of the old limit changes nothing.
    let fourth = waits(arrive(&mut admission, 1));
    assert_eq!(admission.limit(&m, Some(5)), [third, fourth]);
    let fifth = ran(arrive(&mut admission, 5));
    // A lower one takes nothing away.
    assert_eq!(admission.limit(&m, Some(1)), []);
    let sixth = waits(arrive(&mut admission, 1));
    assert_eq!(admission.leave(first), []);
    assert_eq!(admission.limit(&m, None), [sixth]);
    for ticket in [second, third, fourth, fifth, sixth] {
        assert_eq!(admission.leave(ticket), []);
    }
    assert!(admission.places.is_empty() && admission.entries.is_empty());
}

/// A key's limits bring it here before its model has one.
#[test]
fn who_came_before_there_was_a_limit_frees_no_turn() {
    let m = model("m");
    for steps_aside in [false, true] {
        let mut admission = Admission::default();
        let free = Wish { limit: None, ..wish(&m, 1) };
        let key = Caller { concurrent: Some(9), ..caller("key") };
        let early = ran(admission.arrive(Moment::START, &key, free));
        assert_eq!(admission.limit(&m, Some(1)), []);
        let first = ran(admission.arrive(Moment::START, &caller("a"), wish(&m, 1)));
        let second = waits(admission.arrive(Moment::START, &caller("a"), wish(&m, 1)));
        if steps_aside {
            assert_eq!(admission.aside(early), []);
            assert_eq!(admission.back(early), [early]);
        }
        assert_eq!(admission.leave(early), [], "it had no turn");
        assert_eq!(admission.leave(first), [second]);
        assert_eq!(admission.leave(second), []);
        assert!(admission.places.is_empty() && admission.entries.is_empty());
    }
}

#[test]
fn models_do_not_wait_for_each_other() {
    let mut admission = Admission::default();
    let (m, n) = (model("m"), model("n"));
    ran(admission.arrive(Moment::START, &caller("a"), wish(&m, 1)));
    waits(admission.arrive(Moment::START, &caller("a"), wish(&m, 1)));
    ran(admission.arrive(Moment::START, &caller("a"), wish(&n, 1)));
}

/// Who is where, as the tickets that were given out say.
#[derive(Default)]
struct Seen {
    running: Vec<Ticket>,
    waiting: Vec<Ticket>,
    aside: Vec<Ticket>,
    /// Those that no limit concerned when they came.
    free: Vec<Ticket>,
}

impl Seen {
    fn all(&self) -> Vec<Ticket> {
        [&*self.running, &self.waiting, &self.aside, &self.free].concat()
    }

    fn forget(&mut self, ticket: Ticket) {
        for all in [&mut self.running, &mut self.waiting, &mut self.aside, &mut self.free] {
            all.retain(|t| *t != ticket);
        }
    }

    fn run(&mut self, turns: Vec<Ticket>) {
        for turn in turns {
            self.forget(turn);
            self.running.push(turn);
        }
    }
}

proptest! {
    /// Whatever comes and goes: never more than the limit at once, nobody waits while there is a turn, and nothing is left.
    #[test]
    fn the_limit_holds_and_nobody_is_forgotten(
        first in 1u32..4, moves in prop::collection::vec((0u8..7, any::<prop::sample::Index>()), 1..80),
    ) {
        let mut admission = Admission::default();
        let m = model("m");
        let (mut limit, mut most) = (first, 0);
        let mut seen = Seen::default();
        for (what, which) in moves {
            let all = seen.all();
            let wish = Wish { model: &m, limit: Some(limit), queue_max: 10 };
            let one = (!all.is_empty()).then(|| *which.get(&all));
            match (what, one) {
                (2, Some(one)) => {
                    let turns = admission.leave(one);
                    seen.forget(one);
                    seen.run(turns);
                }
                (3, Some(one)) if seen.free.contains(&one) => {
                    prop_assert_eq!(admission.aside(one), []);
                    prop_assert_eq!(admission.back(one), [one]);
                }
                (3, Some(one)) => {
                    let turns = admission.aside(one);
                    seen.forget(one);
                    seen.aside.push(one);
                    seen.run(turns);
                }
                (4, Some(_)) => {
                    if let Some(one) = seen.aside.pop() {
                        seen.waiting.push(one);
                        seen.run(admission.back(one));
                    }
                }
                (5, Some(_)) => {
                    limit = 1 + u32::try_from(which.index(4)).unwrap();
                    most = seen.running.len();
                    seen.run(admission.limit(&m, Some(limit)));
                }
                (6, _) => {
                    let counted = !admission.places.is_empty();
                    let free = Wish { limit: None, ..wish };
                    let ticket = ran(admission.arrive(Moment::START, &caller("free"), free));
                    if counted { &mut seen.running } else { &mut seen.free }.push(ticket);
                    most = seen.running.len();
                }
                _ => match admission.arrive(Moment::START, &caller(&what.to_string()), wish) {
                    Ok(Let::Run(t)) => seen.running.push(t),
                    Ok(Let::Wait(t)) => seen.waiting.push(t),
                    Err(refused) => {
                        let queued = seen.waiting.len();
                        prop_assert!(queued >= 10);
                        prop_assert_eq!(refused, Refused::QueueFull { queued });
                    }
                },
            }
            // A lower limit cuts nobody off: those who ran then may run on.
            most = most.min(seen.running.len()).max(limit as usize);
            prop_assert!(seen.running.len() <= most);
            prop_assert!(seen.waiting.is_empty() || seen.running.len() >= limit as usize);
        }
        for ticket in seen.all() {
            admission.leave(ticket);
        }
        prop_assert!(admission.entries.is_empty() && admission.places.is_empty());
    }
}
