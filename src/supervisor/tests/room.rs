//! Who gets memory when there is too little: evictions, priorities, and those who wait or are refused.

use super::*;

#[test]
fn a_third_model_evicts_the_longest_unused_and_waits_for_its_memory() {
    let mut host = Host::new(vec![spec("a", 40), spec("b", 40), spec("c", 50)]);
    let a = host.ready(1, "a");
    host.release(&a);
    host.pass(1);
    let b = host.ready(2, "b");
    host.acquire(3, "c");
    assert_eq!(host.stops(), std::slice::from_ref(&a));
    assert!(host.out.iter().any(|e| matches!(
        e,
        Effect::Notice(Notice::Stopping { reason: StopReason::Evicted, .. })
    )));
    host.stopped(&a);
    assert!(host.order().is_none());
    host.pass(1);
    host.observe();
    let c = host.launch();
    host.start(&c);
    host.heal(&c);
    assert_eq!(host.grants(), [3]);
    // Now everybody is busy: a fourth wish waits, and is told why when its time is over.
    host.acquire(4, "a");
    assert!(host.stops().is_empty());
    let why = host.state.status(host.now).models[0].waiting_for.clone().unwrap();
    assert!(why.contains("serves requests"), "{why}");
    host.pass(240);
    assert_eq!(host.denials(), [(4, "no_room")]);
    let Denied::NoRoom { report: Some(report), .. } = host.denied() else { panic!() };
    assert_eq!(report.devices[0].verdict, Verdict::Occupied);
    assert!(report.victims.iter().all(|v| v.spared == Some("it serves requests")));
    host.release(&b);
    assert_eq!(host.phase("a"), Phase::Stopped, "nobody waits for it any more");
}

#[test]
fn a_model_that_was_just_loaded_serves_for_a_while() {
    let mut host = Host::new(vec![spec("a", 60), spec("b", 60)]);
    let a = host.ready(1, "a");
    host.release(&a);
    host.acquire(2, "b");
    assert!(host.stops().is_empty());
    let due = host.now + MIN_RESIDENCY;
    assert_eq!(host.state.next_deadline(), Some(due), "it looks again by itself");
    host.now = due;
    host.tell(Event::Tick);
    assert_eq!(host.stops(), [a]);
}

#[test]
fn a_higher_priority_goes_first_and_is_never_evicted_by_a_lower_one() {
    let mut high = spec("z", 60);
    high.priority = 1;
    let mut host = Host::new(vec![spec("a", 60), spec("b", 60), high]);
    let a = host.ready(1, "a");
    host.acquire(2, "b");
    host.pass(1);
    host.acquire(3, "z");
    host.release(&a);
    host.stopped(&a);
    host.observe();
    let z = host.launch();
    assert_eq!(z.model, name("z"), "b has waited longer");
    host.start(&z);
    host.heal(&z);
    host.release(&z);
    host.pass(50);
    assert!(host.stops().is_empty());
    let why = host.state.status(host.now).models[1].waiting_for.clone().unwrap();
    assert!(why.contains("priority is higher"), "{why}");
    // It goes when it idles out.
    host.pass(60);
    assert_eq!(host.stops(), [z]);
}

#[test]
fn what_does_not_evict_waits_or_is_refused_at_once() {
    let (mut refuse, mut wait) = (spec("r", 60), spec("w", 60));
    refuse.on_full = OnFull::Refuse;
    wait.on_full = OnFull::Wait;
    let mut host = Host::new(vec![spec("a", 60), refuse, wait]);
    let a = host.ready(1, "a");
    host.release(&a);
    host.pass(1);
    host.acquire(2, "r");
    assert_eq!(host.denials(), [(2, "no_room")]);
    let denied = host.denied().clone();
    assert!(denied.to_string().contains("on_full = \"refuse\" evicts nobody"), "{denied}");
    assert!(denied.retry_after().is_some());
    let load =
        |waiter| Event::Load { waiter: WaiterId(waiter), model: name("r"), wish: Wish::default() };
    host.tell(load(3));
    assert_eq!(host.denials(), [(3, "no_room")]);
    host.tell(Event::Tick);
    assert_eq!(host.phase("r"), Phase::Stopped, "nobody wants it any more");
    host.acquire(4, "w");
    assert!(host.stops().is_empty() && host.denials().is_empty());
    host.tell(Event::Unload { waiter: WaiterId(5), model: name("a"), haste: Haste::Drain });
    host.stopped(&a);
    host.pass(1);
    // Memory that is on its way back is waited for, and whoever has waited longest gets it.
    host.acquire(6, "r");
    assert!(host.denials().is_empty());
    host.observe();
    assert_eq!(host.launch().model, name("w"));
}

mod busy;
mod collation;
mod told;
mod turns;
