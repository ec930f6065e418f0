//! Operators who send models to sleep, what they are told, and clients who come meanwhile.

use super::*;

#[test]
fn who_sent_it_to_sleep_is_told_so_also_where_it_wakes_at_once() {
    let mut night = Night::new(vec![sleeper("m", 60, 40)]);
    let id = night.loaded(1, "m", 55);
    night.host.tell(Event::Sleep { waiter: WaiterId(2), model: name("m") });
    assert!(night.asks("sleep"), "{:?}", night.host.out);
    night.host.acquire(3, "m");
    night.slept(&id);
    night.holds(&id, 5);
    night.observe();
    assert_eq!((night.host.done(), night.host.denials()), (vec![2], vec![]));
    assert!(night.asks("wake"), "for the client");
}

#[test]
fn a_refusal_names_what_keeps_it_from_sleeping() {
    let mut night = Night::new(vec![sleeper("m", 60, 40), sleeper("big", 40, 60)]);
    let id = night.loaded(1, "m", 55);
    night.pass(100);
    night.slept(&id);
    night.observe();
    night.pass(10);
    night.held.remove(&id);
    night.host.stopped(&id);
    night.pass(1);
    night.observe();
    night.loaded(2, "m", 55);
    night.loaded(3, "big", 40);
    let ask = |night: &mut Night, model: &str| {
        night.host.tell(Event::Sleep { waiter: WaiterId(4), model: name(model) });
        let Denied::Conflict { why, .. } = night.host.denied() else { panic!() };
        why.clone()
    };
    let why = ask(&mut night, "m");
    assert!(why.ends_with("asleep than sleep_residual_max"), "{why}");
    let why = ask(&mut night, "big");
    assert_eq!(why, "host_ram_budget has no room for its weights");
}

#[test]
fn a_failure_that_a_load_has_made_good_does_not_come_back_with_sleep() {
    let mut night = Night::new(vec![sleeper("m", 60, 40)]);
    night.host.acquire(1, "m");
    let id = night.host.launch();
    night.host.tell(Event::LaunchFailed { instance: id, fault: fault("no such argument") });
    let error = |night: &Night| night.host.state.status(night.host.now).models[0].error.clone();
    assert!(error(&night).is_some());
    night.pass(60);
    night.observe();
    let id = night.loaded(2, "m", 55);
    assert_eq!(error(&night), None);
    night.lulled(&id, 5);
    assert_eq!(error(&night), None);
}
