//! Who is let through without being asked about, and what becomes of it.

use super::*;
use crate::supervisor::event::Reconfiguration;

fn ways(host: &Host) -> Vec<String> {
    host.state.express().map(|way| format!("{} {}", way.name, way.instance.generation.0)).collect()
}

fn row(host: &Host, model: &str) -> (u32, Option<Moment>) {
    let status = host.state.status(host.now);
    let row = status.models.iter().find(|m| m.name == name(model)).unwrap();
    (row.in_flight, row.last_used)
}

#[test]
fn a_ready_model_is_open_by_all_its_names_and_what_passes_counts() {
    let mut with_alias = spec("m", 10);
    with_alias.aliases = vec![name("other")];
    let mut host = Host::new(vec![with_alias, spec("cold", 10)]);
    assert!(ways(&host).is_empty());
    let id = host.ready(1, "m");
    assert_eq!(ways(&host), ["m 1", "other 1"]);
    host.used(&id, 5, 2);
    assert_eq!(row(&host, "m"), (4, Some(host.now)));
    host.pass(200);
    assert!(host.stops().is_empty(), "in use, it does not idle out");
    host.used(&id, 1, 5);
    assert_eq!(row(&host, "m"), (0, Some(host.now)));
    let used = host.now;
    host.pass(99);
    assert!(host.stops().is_empty());
    assert_eq!(row(&host, "m"), (0, Some(used)));
    host.pass(1);
    assert_eq!(host.stops(), [id], "from its last use on");
    assert!(ways(&host).is_empty());
}

#[test]
fn an_idle_model_goes_and_a_busy_one_stays() {
    let mut host = Host::new(vec![spec("m", 10)]);
    let id = host.ready(1, "m");
    host.pass(500);
    assert!(host.stops().is_empty(), "it serves");
    host.release(&id);
    assert_eq!(host.state.next_deadline(), Some(host.now + Duration::from_secs(100)));
    host.pass(99);
    assert!(host.stops().is_empty());
    host.pass(1);
    assert_eq!(host.stops(), std::slice::from_ref(&id));
    // A request that comes too late for this one waits for the next.
    host.acquire(2, "m");
    assert!(host.denials().is_empty() && host.order().is_none());
    host.stopped(&id);
    assert!(host.order().is_none(), "its memory has not been seen free yet");
    assert_eq!(host.phase("m"), Phase::Waiting);
    host.pass(1);
    host.observe();
    let next = host.launch();
    assert!(next.generation > id.generation);
}

#[test]
fn nothing_is_decided_before_all_that_passed_is_known() {
    let mut host = Host::new(vec![spec("a", 10), spec("b", 10)]);
    let (a, b) = (host.ready(1, "a"), host.ready(2, "b"));
    host.release(&a);
    host.release(&b);
    // Both have just idled out, by what the core knows.
    host.now = host.now + Duration::from_secs(100);
    let passed =
        |instance: &InstanceId, returned| Passed { instance: instance.clone(), taken: 1, returned };
    host.tell(Event::Used(vec![passed(&a, 1), passed(&b, 0)]));
    assert!(host.stops().is_empty());
    assert_eq!((row(&host, "a").0, row(&host, "b").0), (0, 1));
}

#[test]
fn while_somebody_waits_for_room_every_end_is_an_event() {
    let mut host = Host::new(vec![spec("a", 60), spec("b", 60), spec("c", 20)]);
    let a = host.ready(1, "a");
    let c = host.ready(2, "c");
    host.release(&c);
    assert_eq!(ways(&host), ["a 1", "c 2"]);
    host.pass(1);
    host.acquire(3, "b");
    assert_eq!(host.phase("b"), Phase::Waiting);
    assert!(ways(&host).is_empty());
    host.acquire(4, "c");
    assert_eq!(host.grants(), [4], "by asking");
    host.release(&a);
    assert_eq!(host.stops(), [a], "at once");
}

#[test]
fn who_is_to_leave_is_not_open() {
    let mut host = Host::new(vec![spec("m", 10), spec("n", 10)]);
    host.ready(1, "m");
    let n = host.ready(2, "n");
    assert_eq!(ways(&host), ["m 1", "n 2"]);
    let unload = Event::Unload { waiter: WaiterId(9), model: name("m"), haste: Haste::Drain };
    host.tell(unload);
    assert_eq!(host.phase("m"), Phase::Draining);
    assert!(ways(&host).is_empty(), "an operator waits for the last request");

    let mut host = Host::new(vec![spec("m", 10)]);
    let id = host.ready(1, "m");
    let mut changed = spec("m", 10);
    changed.args = vec!["--changed".to_owned()];
    let specs = BTreeMap::from([(name("m"), Arc::new(changed))]);
    let settings = host.state.settings.clone();
    let new = Reconfiguration { settings, specs, images: BTreeMap::new() };
    host.tell(Event::Configure(Box::new(new)));
    assert!(ways(&host).is_empty(), "it is to be replaced as soon as it is idle");
    host.release(&id);
    assert_eq!(host.stops(), [id]);

    let mut host = Host::new(vec![spec("m", 10)]);
    host.ready(1, "m");
    host.tell(Event::Shutdown { keep: true });
    assert!(ways(&host).is_empty());
    // Of an earlier incarnation.
    host.used(&n, 3, 0);
    assert_eq!(row(&host, "m").0, 1);
}
