//! Busy models that make way, and sleep.

use super::*;

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
    night.host.tell(Event::Unload {
        waiter: WaiterId(9),
        model: name("a"),
        haste: Haste::Drain,
    });
    night.host.release(&a);
    assert_eq!(night.host.stops(), std::slice::from_ref(&a));
}
