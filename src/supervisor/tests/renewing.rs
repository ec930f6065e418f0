//! A model that is always busy comes to be as it is configured.

use super::reconfiguring::{changed, configure};
use super::yielding::{gib, reading};
use super::*;
use crate::supervisor::effect::{Heir, Notice, StopReason};
use crate::types::EngineKind;

const TURN: Duration = Duration::from_secs(30);

/// `m` serves one request, has done so for long, and another configuration asks for another container.
fn busy() -> (Host, InstanceId) {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.state.settings.turn_after = Some(TURN);
    let old = host.ready(1, "m");
    host.pass(600);
    configure(&mut host, vec![changed("m", 10)]);
    (host, old)
}

fn pass(host: &mut Host, seconds: u64) {
    (0..seconds / 10).for_each(|_| host.pass(10));
}

fn notices(host: &Host) -> Vec<Notice> {
    let notice = |e: &Effect| if let Effect::Notice(n) = e { Some(n.clone()) } else { None };
    host.out.iter().filter_map(notice).collect()
}

fn waits(host: &Host) -> Option<String> {
    host.state.status(host.now).models[0].waiting_for.clone()
}

#[test]
fn a_new_alias_comes_to_a_model_whose_requests_follow_each_other_without_a_gap() {
    let vllm = |aliases: &[&str]| {
        let mut spec = spec("m", 10);
        spec.engine = EngineKind::Vllm;
        spec.aliases = aliases.iter().map(|alias| name(alias)).collect();
        spec
    };
    let mut host = Host::new(vec![vllm(&[])]);
    host.state.settings.turn_after = Some(TURN);
    let old = host.ready(1, "m");
    host.pass(600);
    assert_eq!(waits(&host), None);
    configure(&mut host, vec![vllm(&["other"])]);
    assert!(waits(&host).unwrap().contains("as it is configured now"));
    for waiter in 2..=4 {
        assert_eq!(host.phase("m"), Phase::Ready);
        host.acquire(waiter, "m");
        assert_eq!(host.grants(), [waiter]);
        host.release(&old);
        host.pass(9);
    }
    assert_eq!(host.state.next_deadline(), Some(host.now + Duration::from_secs(3)));
    host.pass(3);
    assert_eq!((host.phase("m"), host.stops()), (Phase::Draining, vec![]));
    let yielding = Notice::Yielding { instance: old.clone(), to: Heir::Successor, busy: true };
    assert_eq!(notices(&host), [yielding]);
    assert!(waits(&host).unwrap().contains("as it is configured now"));
    host.acquire(5, "other");
    assert!(host.grants().is_empty(), "no new ones");
    // However long they take: longer than any drain.
    host.pass(100);
    assert!(host.stops().is_empty());
    host.release(&old);
    assert_eq!(host.stops(), std::slice::from_ref(&old));
    let reason = StopReason::Reconfigured;
    assert_eq!(notices(&host), [Notice::Stopping { instance: old.clone(), reason }]);
    host.stopped(&old);
    host.pass(1);
    host.observe();
    let order = host.order().unwrap();
    assert_eq!(order.spec.aliases, [name("other")]);
    host.start(&order.instance);
    host.heal(&order.instance);
    assert_eq!((host.grants(), waits(&host)), (vec![5], None));
}

#[test]
fn where_turns_are_off_it_is_served_by_its_old_container_until_it_is_idle() {
    let (mut host, old) = busy();
    host.state.settings.turn_after = None;
    pass(&mut host, 1000);
    assert_eq!(host.phase("m"), Phase::Ready);
    host.release(&old);
    assert_eq!(host.stops(), [old]);
    // Switched off in the middle of a drain.
    let (mut host, _) = busy();
    host.pass(30);
    host.acquire(2, "m");
    host.state.settings.turn_after = None;
    configure(&mut host, vec![changed("m", 10)]);
    assert_eq!((host.phase("m"), host.grants()), (Phase::Ready, vec![2]));
}

#[test]
fn what_is_configured_again_as_it_was_serves_on() {
    let (mut host, old) = busy();
    host.pass(30);
    host.acquire(2, "m");
    assert_eq!(host.phase("m"), Phase::Draining);
    configure(&mut host, vec![spec("m", 10)]);
    assert_eq!((host.phase("m"), host.grants()), (Phase::Ready, vec![2]));
    assert_eq!(notices(&host), [Notice::Spared { instance: old }]);
    pass(&mut host, 600);
    assert_eq!((host.phase("m"), waits(&host)), (Phase::Ready, None));
    // Changed once more its time begins anew.
    configure(&mut host, vec![changed("m", 10)]);
    host.pass(29);
    assert_eq!(host.phase("m"), Phase::Ready);
    host.pass(1);
    assert_eq!(host.phase("m"), Phase::Draining);
}

#[test]
fn one_request_that_does_not_end_closes_no_model_for_its_length() {
    let (mut host, old) = busy();
    let max_wait = host.state.settings.max_wait.as_secs();
    let since = host.now;
    pass(&mut host, 30);
    for waiter in [2, 3, 4] {
        pass(&mut host, max_wait / 2 - 10);
        host.acquire(waiter, "m");
        assert_eq!(host.phase("m"), Phase::Draining);
        assert_eq!(host.state.next_deadline(), Some(host.now + Duration::from_secs(10)));
        host.pass(10);
        assert_eq!((host.phase("m"), host.grants()), (Phase::Ready, vec![waiter]));
        assert!(waits(&host).is_some(), "it is not as it is configured yet");
        // It is tried again, `turn_after` behind `max_wait`, or behind as long as it has been asked for.
        let rest = max_wait.max(host.now.since(since).as_secs()) + TURN.as_secs();
        pass(&mut host, rest - 10);
        assert_eq!(host.phase("m"), Phase::Ready);
        pass(&mut host, 10);
        assert_eq!(host.phase("m"), Phase::Draining);
    }
    (0..4).for_each(|_| host.release(&old));
    assert_eq!(host.stops(), [old]);
}

/// `a` serves a request that does not end, is to start anew, and `b` waits for its place.
#[test]
fn one_that_cannot_start_anew_keeps_its_equals_out_no_longer_than_anybody() {
    let mut host = Host::new(vec![spec("a", 60), spec("b", 60)]);
    host.state.settings.turn_after = Some(TURN);
    let max_wait = host.state.settings.max_wait;
    let a = host.ready(1, "a");
    host.pass(600);
    configure(&mut host, vec![changed("a", 60), spec("b", 60)]);
    let began = host.now;
    let to = Heir::Other(name("b"));
    let yielding = Notice::Yielding { instance: a.clone(), to, busy: true };
    let mut waiter = 2;
    while !notices(&host).contains(&yielding) {
        assert!(host.now.since(began) < 2 * max_wait + TURN, "its turn does not come");
        if host.state.status(host.now).models[1].queued == 0 {
            host.acquire(waiter, "b");
            waiter += 1;
        } else {
            host.pass(10);
        }
    }
    host.release(&a);
    assert_eq!(host.stops(), [a]);
}

#[test]
fn who_waited_for_one_that_made_way_in_vain_is_served_before_it_goes_for_itself() {
    let mut host = Host::new(vec![spec("a", 60), spec("b", 60)]);
    host.state.settings.turn_after = Some(TURN);
    let _a = host.ready(1, "a");
    host.pass(600);
    host.acquire(2, "b");
    host.pass(30);
    assert_eq!(host.phase("a"), Phase::Draining);
    configure(&mut host, vec![changed("a", 60), spec("b", 60)]);
    host.pass(100);
    host.acquire(3, "a");
    host.tell(Event::Cancel { waiter: WaiterId(2) });
    assert_eq!((host.phase("a"), host.grants()), (Phase::Ready, vec![3]));
    host.pass(29);
    assert_eq!(host.phase("a"), Phase::Ready);
    host.pass(1);
    assert_eq!(host.phase("a"), Phase::Draining);
}

#[test]
fn what_has_just_become_ready_serves_those_who_waited_for_it_first() {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.state.settings.turn_after = Some(TURN);
    host.acquire(1, "m");
    let old = host.launch();
    host.start(&old);
    configure(&mut host, vec![changed("m", 10)]);
    host.pass(100);
    host.heal(&old);
    assert_eq!(host.grants(), [1]);
    host.pass(29);
    assert_eq!(host.phase("m"), Phase::Ready);
    host.pass(1);
    assert_eq!(host.phase("m"), Phase::Draining);
}

#[test]
fn a_pin_keeps_it_from_others_and_not_from_what_it_is_to_be() {
    let (mut host, old) = busy();
    host.tell(Event::Pin { waiter: WaiterId(2), model: name("m"), pinned: true });
    host.pass(30);
    assert_eq!(host.phase("m"), Phase::Draining);
    host.release(&old);
    host.stopped(&old);
    host.pass(1);
    host.observe();
    assert_eq!(host.order().unwrap().spec.args, ["--changed"], "by its pin alone");
}

#[test]
fn whoever_ends_it_for_another_reason_ends_it_in_the_time_for_drains() {
    let ends: [fn(&mut Host); 3] = [
        |host| {
            let (waiter, model) = (WaiterId(9), name("m"));
            host.tell(Event::Unload { waiter, model, haste: crate::types::Haste::Drain });
        },
        |host| configure(host, vec![]),
        |host| host.tell(Event::Shutdown { keep: false }),
    ];
    for (at, end) in ends.into_iter().enumerate() {
        let (mut host, old) = busy();
        host.pass(30);
        assert_eq!(host.phase("m"), Phase::Draining);
        end(&mut host);
        host.pass(29);
        assert!(host.stops().is_empty(), "case {at}");
        host.pass(1);
        assert_eq!(host.stops(), [old], "case {at}");
    }
}

#[test]
fn a_shutdown_that_keeps_models_begins_no_drain_and_cuts_nobody_off() {
    let (mut host, old) = busy();
    host.tell(Event::Shutdown { keep: true });
    host.pass(29);
    assert_eq!(host.phase("m"), Phase::Ready);
    host.pass(1);
    assert!(host.exited() && host.stops().is_empty());
    // One that drains already goes when its last request is over, and is gone before the next daemon looks.
    let (mut host, again) = busy();
    host.pass(30);
    host.tell(Event::Shutdown { keep: true });
    assert_eq!(host.phase("m"), Phase::Draining);
    host.release(&again);
    assert_eq!((host.stops(), host.exited()), (vec![again.clone()], false));
    host.stopped(&again);
    assert!(host.exited());
    assert_eq!(old, again);
}

#[test]
fn its_place_is_promised_to_nobody_before_it_is_left() {
    let (mut host, old) = {
        let mut host = Host::new(vec![spec("m", 60), spec("other", 60)]);
        host.state.settings.turn_after = Some(TURN);
        let old = host.ready(1, "m");
        host.pass(600);
        (host, old)
    };
    let mut patient = spec("other", 60);
    patient.on_full = OnFull::Refuse;
    configure(&mut host, vec![changed("m", 60), patient]);
    host.pass(30);
    assert_eq!(host.phase("m"), Phase::Draining);
    host.acquire(2, "other");
    assert_eq!(host.denials(), [(2, "no_room")], "it does not know when");
    host.acquire(3, "m");
    host.release(&old);
    host.stopped(&old);
    host.pass(1);
    host.observe();
    assert_eq!(host.launch().model, name("m"));
}

#[test]
fn who_waits_for_it_is_told_why() {
    let (mut host, _) = busy();
    host.pass(30);
    let (waiter, wait) = (WaiterId(3), Some(Duration::from_secs(5)));
    host.tell(Event::Acquire { waiter, model: "m".to_owned(), wait });
    host.pass(5);
    let Denied::NoRoom { why, .. } = host.denied() else { panic!("{:?}", host.denied()) };
    assert!(why.contains("the last request on its older container"), "{why}");
}

/// `a` of 40 GiB is busy and changed, and `b` profiles the same device while it loads.
fn beside_a_load() -> (Host, [InstanceId; 2], [ModelSpec; 2]) {
    let specs = ["a", "b"].map(|model| {
        let mut spec = spec(model, gib(40));
        spec.gpus = vec![GpuId::new("GPU-0")];
        spec.engine = EngineKind::Vllm;
        spec
    });
    let mut host = Host::bare(specs.to_vec());
    host.state.settings.turn_after = Some(TURN);
    host.tell(Event::Found(vec![]));
    reading(&mut host, [0, 0], false, &[]);
    let a = host.ready(1, "a");
    reading(&mut host, [40, 0], false, &[(&a, 40)]);
    host.pass(600);
    host.acquire(2, "b");
    let b = host.launch();
    host.start(&b);
    let [mut changed, other] = specs;
    changed.args = vec!["--changed".to_owned()];
    (host, [a, b], [changed, other])
}

#[test]
fn it_does_not_begin_beside_a_load_that_it_would_disturb() {
    let (mut host, [a, b], specs) = beside_a_load();
    configure(&mut host, specs.to_vec());
    host.pass(60);
    assert_eq!(host.phase("a"), Phase::Ready);
    assert!(host.state.next_deadline() > Some(host.now), "it is not due");
    host.acquire(9, "a");
    assert_eq!((host.phase("a"), host.grants()), (Phase::Ready, vec![9]), "nor by who asks for it");
    host.heal(&b);
    assert_eq!(host.phase("a"), Phase::Draining);
    host.release(&a);
    host.release(&a);
    assert_eq!(host.stops(), [a]);
}

/// `a` drains for its next container, with requests on it, and no load is beside it.
fn draining() -> (Host, InstanceId) {
    let (mut host, [a, b], specs) = beside_a_load();
    host.tell(Event::Died { instance: b.clone(), fault: fault("exit 1") });
    host.stopped(&b);
    configure(&mut host, specs.to_vec());
    host.pass(60);
    reading(&mut host, [40, 0], false, &[(&a, 40)]);
    (host, a)
}

#[test]
fn a_drain_beside_which_a_load_begins_goes_on_where_somebody_waits_for_it() {
    for asked in [false, true] {
        let (mut host, a) = draining();
        assert_eq!(host.phase("a"), Phase::Draining);
        if asked {
            host.acquire(7, "a");
        }
        host.acquire(8, "b");
        assert_eq!(host.launch().model, name("b"));
        host.pass(1);
        let phase = if asked { Phase::Draining } else { Phase::Ready };
        assert_eq!(host.phase("a"), phase, "asked: {asked}");
        // Its last request is over, and it would disturb the load: those who wait for it are not kept waiting for that either.
        host.release(&a);
        assert!(host.stops().is_empty());
        if asked {
            host.pass(host.state.settings.max_wait.as_secs() / 2);
            assert_eq!((host.phase("a"), host.grants()), (Phase::Ready, vec![7]));
            assert!(host.state.next_deadline() > Some(host.now), "and nothing is due");
        }
    }
}

#[test]
fn its_drain_ends_when_the_load_that_began_beside_it_is_over() {
    let (mut host, a) = draining();
    host.acquire(7, "a");
    host.acquire(8, "b");
    let b = host.launch();
    host.release(&a);
    host.pass(10);
    assert_eq!((host.phase("a"), host.stops()), (Phase::Draining, vec![]));
    host.start(&b);
    host.heal(&b);
    assert_eq!(host.stops(), [a]);
}
