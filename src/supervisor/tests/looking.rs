//! Nobody leaves for a model whose weights and images are not known to be here.

use super::*;
use crate::supervisor::event::Reconfiguration;

fn missing() -> Fault {
    Fault::new(FaultCode::ImageMissing, "it is not here")
}

fn pulling(id: &InstanceId) -> Event {
    Event::Progress { instance: id.clone(), phase: Phase::Pulling }
}

fn provided(id: &InstanceId) -> Event {
    Event::Provided { instance: id.clone(), image_id: "2".into() }
}

/// `other` is idle on the only device, and `m` has just been asked for.
fn asked() -> (Host, InstanceId, InstanceId) {
    let other = ModelSpec { idle_timeout: None, ..spec("other", 100) };
    let mut host = Host::new(vec![spec("m", 100), other]);
    let other = host.ready(1, "other");
    host.release(&other);
    host.pass(1);
    host.slow = true;
    host.acquire(2, "m");
    let look = host.looked_for().expect("a look");
    assert_eq!((host.stops(), host.order().is_none()), (vec![], true));
    (host, look, other)
}

#[test]
fn nobody_leaves_for_what_is_not_to_be_had() {
    let (mut host, look, other) = asked();
    assert_eq!((host.phase("m"), host.phase("other")), (Phase::Starting, Phase::Ready));
    assert!(host.state.ledger.hold(&look).is_none(), "it has no place");
    host.tell(Event::LaunchFailed { instance: look, fault: missing() });
    assert_eq!((host.denials(), host.stops()), (vec![(2, "model_load_failed")], vec![]));
    // Nor at any later attempt.
    for waiter in 3..9 {
        host.pass(600);
        host.acquire(waiter, "other");
        assert_eq!(host.grants(), [waiter]);
        host.release(&other);
        host.pass(1);
        host.acquire(waiter + 10, "m");
        let look = host.looked_for().expect("another look");
        host.tell(Event::LaunchFailed { instance: look, fault: missing() });
        assert_eq!(
            (host.denials(), host.stops()),
            (vec![(waiter + 10, "model_load_failed")], vec![])
        );
    }
}

#[test]
fn once_all_is_here_others_leave_and_it_is_looked_no_more() {
    let (mut host, look, other) = asked();
    host.tell(pulling(&look));
    assert!(host.stops().is_empty());
    assert_eq!((host.phase("m"), host.phase("other")), (Phase::Pulling, Phase::Ready));
    host.tell(provided(&look));
    let again = Notice::PlannedAgain { instance: look.clone(), why: FaultCode::ImagePulled };
    assert!(host.out.iter().any(|e| matches!(e, Effect::Notice(n) if *n == again)));
    assert_eq!((host.stops(), host.looked_for()), (vec![other.clone()], None));
    host.stopped(&other);
    host.observe();
    let order = host.order().expect("a launch");
    assert_eq!(order.image_id.as_deref(), Some("2"), "it is planned for what was seen");
    // What a look that is over says changes nothing.
    host.tell(provided(&look));
    host.tell(pulling(&look));
    assert!(host.out.is_empty(), "{:?}", host.out);
    host.start(&order.instance);
    host.heal(&order.instance);
    assert_eq!(host.grants(), [2]);
    // It counts for that launch: for the next one others leave after another look.
    host.release(&order.instance);
    host.slow = false;
    host.pass(1);
    host.acquire(3, "other");
    host.stopped(&order.instance);
    host.observe();
    let other = host.launch();
    host.start(&other);
    host.heal(&other);
    host.release(&other);
    host.pass(1);
    host.slow = true;
    host.acquire(4, "m");
    assert_eq!((host.looked_for().is_some(), host.stops()), (true, vec![]));
}

#[test]
fn a_look_for_what_a_reload_has_changed_is_made_again() {
    let (mut host, look, other) = asked();
    let mut new = spec("m", 100);
    new.image = crate::types::ImageRef::parse("localhost/other:1").unwrap();
    let specs = [new, spec("other", 100)].map(|s| (s.name.clone(), Arc::new(s))).into();
    let settings = host.state.settings.clone();
    let images = BTreeMap::new();
    host.tell(Event::Configure(Box::new(Reconfiguration { settings, specs, images })));
    host.tell(provided(&look));
    assert!(host.stops().is_empty());
    let again = host.looked_for().expect("of the other image");
    host.tell(provided(&again));
    assert_eq!(host.stops(), [other]);
}

#[test]
fn what_is_only_measured_leaves_after_the_look_too() {
    let mut host = Host::bare(vec![spec("m", 100), spec("other", 100)]);
    host.state.settings.measure_after = Some(Duration::from_secs(60));
    let images = [(name("other"), "1".to_owned())].into();
    host.state.remember(Recalled { images, ..Recalled::default() });
    host.tell(Event::Found(vec![]));
    host.observe();
    host.pass(60);
    let other = host.launch();
    assert_eq!(other.model, name("other"));
    host.start(&other);
    host.slow = true;
    host.acquire(1, "m");
    let look = host.looked_for().expect("a look");
    assert!(host.stops().is_empty());
    host.tell(provided(&look));
    assert_eq!(host.stops(), [other]);
}

#[test]
fn who_finds_room_is_not_looked_for_before() {
    let mut host = Host::new(vec![spec("m", 50), spec("other", 50)]);
    host.slow = true;
    host.ready(1, "other");
    host.acquire(2, "m");
    assert_eq!((host.looked_for(), host.order().is_some()), (None, true));
}

#[test]
fn a_look_that_nobody_wants_is_over_and_told_to_be() {
    let (mut host, look, _) = asked();
    host.tell(Event::Unload { waiter: WaiterId(7), model: name("m"), haste: Haste::Drain });
    assert_eq!((host.done(), host.phase("m")), (vec![7], Phase::Stopped));
    let told: Vec<&Notice> = host
        .out
        .iter()
        .filter_map(|e| if let Effect::Notice(n) = e { Some(n) } else { None })
        .collect();
    let stopping = Notice::Stopping { instance: look.clone(), reason: StopReason::Unloaded };
    assert_eq!(told, [&stopping, &Notice::Stopped { instance: look.clone() }]);
    host.tell(provided(&look));
    assert!(host.stops().is_empty() && host.order().is_none());
}
