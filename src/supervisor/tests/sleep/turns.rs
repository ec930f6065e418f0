//! Busy models that make way, and sleep.

use super::*;
use crate::supervisor::tests::reconfiguring::configure;

const TURN: Duration = Duration::from_secs(30);

/// `a` serves its last request and makes way for `b`, which waits.
fn yielding() -> (Night, InstanceId) {
    let mut night = Night::new(vec![sleeper("a", 60, 40), sleeper("b", 80, 30)]);
    night.host.state.settings.turn_after = Some(TURN);
    let a = night.loaded(1, "a", 60);
    night.host.acquire(2, "a");
    night.host.acquire(3, "b");
    night.pass(TURN.as_secs());
    assert_eq!((night.phase(&a), night.host.stops()), (Phase::Draining, vec![]));
    night.host.acquire(4, "a");
    (night, a)
}

/// The other specification that `a` has, or the same under another policy.
fn configure_a(night: &mut Night, change: impl Fn(&mut ModelSpec)) {
    let mut a = sleeper("a", 60, 40);
    change(&mut a);
    configure(&mut night.host, vec![a, sleeper("b", 80, 30)]);
}

fn other(spec: &mut ModelSpec) {
    spec.args = vec!["--other".to_owned()];
}

/// It sleeps, `b` has its place, serves, and leaves for whoever waits for `a`.
fn turns_twice(night: &mut Night, a: &InstanceId, waiter: u64, meanwhile: impl Fn(&mut Night)) {
    night.slept(a);
    night.holds(a, 8);
    night.observe();
    let b = night.finish_load(waiter, 80);
    assert_eq!(night.host.stops(), std::slice::from_ref(&b));
    meanwhile(night);
    night.held.remove(&b);
    night.host.stopped(&b);
    night.pass(1);
    night.observe();
}

#[test]
fn who_makes_way_sleeps_where_the_plan_said_so() {
    let (mut night, a) = yielding();
    night.host.release(&a);
    assert!(night.asks("sleep") && night.host.stops().is_empty(), "{:?}", night.host.out);
    assert!(night.host.grants().is_empty(), "nobody is served in between");
    night.slept(&a);
    night.holds(&a, 8);
    night.observe();
    assert_eq!((night.phase(&a), night.host.launch().model), (Phase::Asleep, name("b")));
    let b = night.finish_load(3, 80);
    assert_eq!((night.phase(&a), b.model.as_str()), (Phase::Asleep, "b"));
}

#[test]
fn who_makes_way_is_stopped_where_it_cannot_sleep_any_more() {
    let (mut night, a) = yielding();
    night.host.state.settings.rules.sleep.host_ram_budget = Bytes(0);
    night.host.release(&a);
    assert_eq!(night.host.stops(), std::slice::from_ref(&a));
    assert!(!night.asks("sleep"));
    // Nor one that an operator unloads meanwhile.
    let (mut night, a) = yielding();
    night.host.tell(Event::Unload { waiter: WaiterId(9), model: name("a"), haste: Haste::Drain });
    night.host.release(&a);
    assert_eq!(night.host.stops(), std::slice::from_ref(&a));
}

#[test]
fn who_slept_in_turn_serves_again_also_under_another_policy() {
    let (mut night, a) = yielding();
    night.host.release(&a);
    let policy = |spec: &mut ModelSpec| {
        (spec.idle_timeout, spec.gpus, spec.priority) = (None, vec![GpuId::host()], 1);
    };
    turns_twice(&mut night, &a, 3, |night| configure_a(night, policy));
    assert!(night.asks("wake"), "{:?}", night.host.out);
    night.woken(&a);
    night.sung(&a, ANSWER);
    assert_eq!(night.host.grants(), [4]);
    night.host.acquire(5, "a");
    assert_eq!(night.host.grants(), [5]);
}

#[test]
fn who_makes_way_is_not_kept_asleep_when_it_is_another_model_now() {
    // While it serves its last request.
    let (mut night, a) = yielding();
    configure_a(&mut night, other);
    assert_eq!((night.phase(&a), night.host.stops()), (Phase::Draining, vec![]));
    night.host.release(&a);
    assert!(!night.asks("sleep"));
    assert_eq!(night.host.stops(), std::slice::from_ref(&a));
    // While it falls asleep: nobody can stop it then.
    let (mut night, a) = yielding();
    night.host.release(&a);
    configure_a(&mut night, other);
    assert_eq!((night.phase(&a), night.host.stops()), (Phase::Dozing, vec![]));
    night.slept(&a);
    night.holds(&a, 8);
    night.observe();
    assert!(!night.asks("wake"), "though somebody waits for it");
    let b = night.is_replaced(&a);
    assert_eq!(b.model, name("b"), "it has waited for longest");
}

#[test]
fn who_wakes_of_an_older_specification_serves_who_waited_and_goes() {
    let (mut night, a) = yielding();
    night.host.release(&a);
    turns_twice(&mut night, &a, 3, |_| {});
    assert!(night.asks("wake"));
    configure_a(&mut night, other);
    night.woken(&a);
    night.sung(&a, ANSWER);
    assert_eq!((night.host.grants(), night.host.stops()), (vec![4], vec![]));
    night.host.release(&a);
    assert_eq!(night.host.stops(), std::slice::from_ref(&a), "as one that never slept");
    night.held.remove(&a);
    night.host.stopped(&a);
    night.host.acquire(5, "a");
    night.pass(1);
    night.observe();
    assert_eq!(night.host.order().unwrap().spec.args, ["--other"]);
}

#[test]
fn who_has_drained_in_vain_and_slept_since_makes_way_like_anybody() {
    let (mut night, a) = yielding();
    (0..20).for_each(|_| night.pass(10));
    night.host.acquire(5, "b");
    (0..4).for_each(|_| night.pass(10));
    assert_eq!(night.phase(&a), Phase::Ready, "its last request did not end");
    // Then it did, and it leaves as an idle one.
    night.host.release(&a);
    assert!(night.asks("sleep"), "{:?}", night.host.out);
    night.host.acquire(6, "a");
    turns_twice(&mut night, &a, 5, |_| {});
    assert!(night.asks("wake"), "{:?}", night.host.out);
    night.woken(&a);
    night.sung(&a, ANSWER);
    assert_eq!(night.host.grants(), [6]);
    night.host.acquire(8, "b");
    night.pass(TURN.as_secs());
    assert_eq!(night.phase(&a), Phase::Draining, "nothing is left of the one that did not end");
}

#[test]
fn who_woke_in_its_turn_waits_for_the_next_one_anew() {
    let (mut night, a) = yielding();
    night.host.release(&a);
    // `b` has its place, and leaves for `a` when that has waited for its turn.
    night.slept(&a);
    night.holds(&a, 8);
    night.observe();
    let b = night.serves(3, 80);
    night.pass(TURN.as_secs());
    assert_eq!(night.phase(&b), Phase::Draining);
    night.host.release(&b);
    night.held.remove(&b);
    night.host.stopped(&b);
    night.pass(1);
    night.observe();
    assert!(night.asks("wake"), "{:?}", night.host.out);
    night.woken(&a);
    night.sung(&a, ANSWER);
    assert_eq!(night.host.grants(), [4]);
    night.holds(&a, 60);
    night.observe();
    night.host.release(&a);
    // It is idle, and leaves for `b` at once; soon it is asked for again.
    night.host.acquire(5, "b");
    night.pass(1);
    night.slept(&a);
    night.holds(&a, 8);
    night.observe();
    let b = night.serves(5, 80);
    night.host.acquire(6, "a");
    night.pass(10);
    assert_eq!(night.phase(&b), Phase::Ready, "its turn is not before `turn_after`");
    night.pass(TURN.as_secs() - 10);
    assert_eq!(night.phase(&b), Phase::Draining);
}
