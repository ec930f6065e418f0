//! What operators may wish: pins, evictions, haste, dry runs; and taking a wish back.

use super::*;
use crate::types::{Evict, Outcome};

fn load(waiter: u64, model: &str, wish: Wish) -> Event {
    Event::Load { waiter: WaiterId(waiter), model: name(model), wish }
}

fn evict(evict: Evict) -> Wish {
    Wish { evict: Some(evict), ..Wish::default() }
}

fn pinned(host: &Host, model: &str) -> bool {
    let status = host.state.status(host.now);
    status.models.iter().find(|m| m.name == name(model)).unwrap().pinned
}

#[test]
fn a_wished_pin_begins_with_ready_and_ends_with_the_unload() {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.tell(load(1, "m", Wish { pin: true, ..Wish::default() }));
    let id = host.launch();
    host.start(&id);
    assert!(!pinned(&host, "m"), "a load that fails leaves no pin");
    host.heal(&id);
    assert_eq!(host.done(), [1]);
    assert!(pinned(&host, "m"));
    host.pass(1000);
    assert_eq!(host.phase("m"), Phase::Ready, "it is not idled out");
    host.tell(Event::Unload { waiter: WaiterId(2), model: name("m"), haste: Haste::Drain });
    host.stopped(&id);
    assert_eq!(host.done(), [2]);
    assert!(!pinned(&host, "m") && host.order().is_none());
}

#[test]
fn a_pin_loads_and_an_unpinned_model_is_idle_from_then_on() {
    let mut host = Host::new(vec![spec("m", 10)]);
    let pin = |waiter, pinned| Event::Pin { waiter: WaiterId(waiter), model: name("m"), pinned };
    host.tell(pin(1, true));
    assert_eq!(host.done(), [1], "at once");
    let id = host.launch();
    host.start(&id);
    host.heal(&id);
    host.pass(1000);
    host.tell(pin(2, false));
    assert_eq!((host.done(), host.phase("m")), (vec![2], Phase::Ready));
    host.pass(99);
    assert_eq!(host.phase("m"), Phase::Ready);
    host.pass(1);
    assert_eq!(host.stops(), [id]);
    // A pin that is taken back before it came to anything.
    let mut host = Host::new(vec![spec("a", 90), spec("m", 90)]);
    host.ready(1, "a");
    host.tell(pin(2, true));
    assert_eq!(host.phase("m"), Phase::Waiting);
    host.tell(pin(3, false));
    assert_eq!(host.phase("m"), Phase::Stopped);
}

/// What was written down about pins, if anything was.
fn kept(host: &Host) -> Option<BTreeMap<ModelName, bool>> {
    host.out
        .iter()
        .rev()
        .find_map(|e| if let Effect::KeepPins(pins) = e { Some(pins.clone()) } else { None })
}

fn pins(pins: &[(&str, bool)]) -> BTreeMap<ModelName, bool> {
    pins.iter().map(|(model, pinned)| (name(model), *pinned)).collect()
}

#[test]
fn what_is_said_about_pins_outlives_the_daemon() {
    let mut own = spec("own", 10);
    (own.pin, own.idle_timeout) = (true, None);
    let specs = || vec![spec("m", 10), own.clone(), spec("other", 10)];
    let pin = |waiter, pinned| Event::Pin { waiter: WaiterId(waiter), model: name("m"), pinned };
    let mut host = Host::new(specs());
    assert_eq!(kept(&host), None, "as configured");
    host.tell(pin(1, true));
    assert_eq!(kept(&host), Some(pins(&[("m", true)])));
    host.tell(pin(2, true));
    assert_eq!(kept(&host), None, "no news");
    host.tell(Event::Unload { waiter: WaiterId(3), model: name("own"), haste: Haste::Now });
    let said = pins(&[("m", true), ("own", false)]);
    assert_eq!(kept(&host), Some(said.clone()));
    host.tell(Event::Shutdown { keep: true });
    assert_eq!(kept(&host), None, "the next daemon is told all of it");

    let mut next = Host::bare(specs());
    next.state.remember(Recalled { pins: said.clone(), ..Recalled::default() });
    next.tell(Event::Found(vec![]));
    next.observe();
    assert!(pinned(&next, "m") && !pinned(&next, "own"));
    let id = next.launch();
    assert_eq!(
        id.model,
        name("m"),
        "what was pinned and is not there comes back; what was let go does not"
    );
    next.start(&id);
    next.heal(&id);
    next.pass(1000);
    assert_eq!((next.phase("m"), next.phase("own")), (Phase::Ready, Phase::Stopped));
    assert_eq!(kept(&next), None);
    // Models that are let go with the daemon come back as they are configured.
    next.tell(Event::Shutdown { keep: false });
    assert_eq!(kept(&next), Some(pins(&[])));

    // What the configuration says by now needs no word of an operator's, nor do models that are gone.
    let mut changed = spec("m", 10);
    (changed.pin, changed.idle_timeout) = (true, None);
    let mut next = Host::bare(vec![changed]);
    next.state.remember(Recalled { pins: said, ..Recalled::default() });
    next.tell(Event::Found(vec![]));
    assert_eq!(kept(&next), Some(pins(&[])));
    assert!(pinned(&next, "m"));
}

#[test]
fn haste_cuts_requests_off() {
    let mut host = Host::new(vec![spec("m", 10)]);
    let id = host.ready(1, "m");
    host.tell(Event::Unload { waiter: WaiterId(2), model: name("m"), haste: Haste::Now });
    assert_eq!(host.stops(), std::slice::from_ref(&id));
    host.release(&id);
    host.stopped(&id);
    assert_eq!(host.done(), [2]);
    host.pass(1);
    host.observe();
    // Also one that drains already.
    let id = host.ready(3, "m");
    host.tell(Event::Unload { waiter: WaiterId(4), model: name("m"), haste: Haste::Drain });
    assert_eq!(host.phase("m"), Phase::Draining);
    host.tell(Event::Unload { waiter: WaiterId(5), model: name("m"), haste: Haste::Now });
    assert_eq!(host.stops(), std::slice::from_ref(&id));
    host.stopped(&id);
    assert_eq!(host.done(), [4, 5]);
}

#[test]
fn an_operator_says_who_may_leave() {
    let mut keeper = spec("keeper", 60);
    keeper.priority = 9;
    let mut host = Host::new(vec![keeper, spec("m", 60)]);
    let id = host.ready(1, "keeper");
    host.tell(load(2, "m", evict(Evict::None)));
    assert_eq!(host.denials(), [(2, "no_room")]);
    // Busy, of higher priority, and young: only "any" makes it leave, when its request is over.
    host.tell(load(3, "m", evict(Evict::Idle)));
    assert!(host.denials().is_empty() && host.stops().is_empty());
    assert_eq!(host.phase("keeper"), Phase::Ready);
    host.tell(load(4, "m", evict(Evict::Any)));
    assert_eq!(host.phase("keeper"), Phase::Draining);
    host.release(&id);
    assert_eq!(host.stops(), std::slice::from_ref(&id));
    host.stopped(&id);
    host.pass(1);
    host.observe();
    let m = host.launch();
    host.start(&m);
    host.heal(&m);
    assert_eq!(host.done(), [3, 4]);
    // A pinned one never does.
    let mut keeper = spec("keeper", 60);
    keeper.pin = true;
    keeper.idle_timeout = None;
    let mut host = Host::new(vec![keeper, spec("m", 60)]);
    let id = host.state.live().count();
    assert_eq!(id, 0);
    let id = host.launch();
    host.start(&id);
    host.heal(&id);
    host.tell(load(5, "m", evict(Evict::Any)));
    assert!(host.stops().is_empty());
    assert_eq!(host.phase("m"), Phase::Waiting);
}

#[test]
fn a_wish_ends_with_whoever_had_it() {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.tell(load(1, "m", Wish::default()));
    let id = host.launch();
    host.start(&id);
    host.tell(Event::Cancel { waiter: WaiterId(1) });
    assert_eq!(host.stops(), std::slice::from_ref(&id), "nobody wants it any more");
    host.stopped(&id);
    assert_eq!(host.phase("m"), Phase::Stopped);
    host.pass(1);
    host.observe();
    // A request that waits too keeps the load going, and so does another operator.
    host.tell(load(2, "m", Wish::default()));
    let id = host.launch();
    host.acquire(3, "m");
    host.tell(Event::Cancel { waiter: WaiterId(2) });
    host.start(&id);
    host.heal(&id);
    assert_eq!(host.grants(), [3]);
    host.tell(Event::Cancel { waiter: WaiterId(9) });
    assert_eq!(host.phase("m"), Phase::Ready, "what is over cannot be taken back");
}

#[test]
fn devices_that_cannot_be_are_refused_by_name() {
    let mut bound = spec("m", 10);
    bound.gpus = vec![GpuId::host()];
    let mut host = Host::new(vec![bound]);
    let gpus = vec![GpuId::new("GPU-9")];
    host.tell(load(1, "m", Wish { gpus: gpus.clone(), ..Wish::default() }));
    assert_eq!(host.denials(), [(1, "conflict")]);
    assert!(host.denied().to_string().contains("does not allow the device GPU-9"));
    let mut host = Host::new(vec![spec("m", 10)]);
    host.ready(1, "m");
    host.tell(load(2, "m", Wish { gpus, ..Wish::default() }));
    assert!(host.denied().to_string().contains("it is ready on host; unload it first"));
    let here = Wish { gpus: vec![GpuId::host()], ..Wish::default() };
    host.tell(load(3, "m", here));
    assert_eq!(host.done(), [3]);
}

#[test]
fn a_dry_run_says_what_a_load_does_and_does_nothing() {
    let mut pair = spec("pair", 60);
    pair.gpu_count = 2;
    let mut host = Host::new(vec![spec("a", 60), spec("b", 60), spec("big", 101), pair]);
    let look = |host: &Host, model: &str, wish: &Wish| {
        let before = host.state.status(host.now);
        let preview = host.state.preview(host.now, &name(model), wish).unwrap();
        assert_eq!(host.state.status(host.now), before);
        preview
    };
    let any = Wish::default();
    let preview = look(&host, "a", &any);
    assert_eq!((preview.outcome, preview.gpus[0].bytes), (Outcome::Start, Bytes(60)));
    let id = host.ready(1, "a");
    assert_eq!(look(&host, "a", &any).outcome, Outcome::Loaded);
    assert_eq!(look(&host, "b", &any).outcome, Outcome::Wait, "it is busy");
    let forced = look(&host, "b", &evict(Evict::Any));
    assert_eq!((forced.outcome, &forced.leaving[0].instance), (Outcome::Evict, &id));
    assert_eq!(look(&host, "b", &evict(Evict::None)).outcome, Outcome::Full);
    host.release(&id);
    host.pass(1);
    assert_eq!(look(&host, "b", &any).outcome, Outcome::Evict);
    let never = look(&host, "big", &any);
    assert_eq!(never.outcome, Outcome::Refuse);
    assert!(never.report.is_some() && never.why.contains("the largest offers"), "{}", never.why);
    let never = look(&host, "pair", &any);
    assert_eq!(never.outcome, Outcome::Refuse);
    assert!(
        never.why.contains("on each of 2 equal devices, and there are not so many"),
        "{}",
        never.why
    );
    assert!(host.state.preview(host.now, &name("nope"), &any).is_err());
    // What was shown is what happens.
    host.tell(load(2, "b", any));
    assert_eq!(host.stops(), [id]);
}

#[test]
fn sleep_and_wake_are_refused_with_the_reason() {
    let mut host = Host::new(vec![spec("m", 10)]);
    let sleep = |waiter| Event::Sleep { waiter: WaiterId(waiter), model: name("m") };
    host.tell(sleep(1));
    assert!(host.denied().to_string().contains("it is not loaded"));
    host.tell(Event::Wake { waiter: WaiterId(2), model: name("m") });
    assert!(host.denied().to_string().contains("it does not sleep"));
    let id = host.ready(3, "m");
    host.tell(sleep(4));
    assert!(host.denied().to_string().contains("it serves 1 requests"));
    host.release(&id);
    host.tell(sleep(5));
    assert!(host.denied().to_string().contains("it may not sleep"));
    host.tell(Event::Pin { waiter: WaiterId(6), model: name("m"), pinned: true });
    host.tell(sleep(7));
    assert!(host.denied().to_string().contains("it is pinned"));
    host.tell(Event::Wake { waiter: WaiterId(8), model: name("m") });
    assert_eq!(host.done(), [8], "it is awake");
}

#[test]
fn troubles_of_others_are_shown_until_they_are_over() {
    let mut host = Host::new(vec![]);
    let tell = |message: Option<&str>| Event::Trouble {
        code: "bus_lost",
        message: message.map(str::to_owned),
    };
    host.tell(tell(Some("gone")));
    let problems = host.state.status(host.now).problems;
    assert_eq!((problems[0].code, problems[0].message.as_str()), ("bus_lost", "gone"));
    assert!(!problems[0].hinders_requests());
    host.tell(tell(None));
    assert!(host.state.status(host.now).problems.is_empty());
}

mod desk;
