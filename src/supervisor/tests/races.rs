//! Orders of events that once went wrong.

use super::*;

#[test]
fn an_engine_that_dies_after_each_long_load_is_not_restarted_without_a_delay() {
    let mut host = Host::new(vec![spec("m", 10)]);
    for round in 1..3 {
        host.observe();
        host.acquire(round, "m");
        let id = host.launch();
        host.start(&id);
        host.pass(70);
        host.heal(&id);
        host.pass(1);
        host.tell(Event::Died { instance: id.clone(), fault: fault("segfault") });
        host.stopped(&id);
        host.pass(1);
    }
    host.acquire(3, "m");
    assert_eq!(host.denials(), [(3, "model_load_failed")], "a load is no service");
}

#[test]
fn what_was_just_adopted_is_not_evicted_for_memory_that_is_its_own() {
    let a = spec("a", 40);
    let id = InstanceId::new(name("a"), Generation(3), 9);
    let mut host = Host::bare(vec![a.clone(), spec("b", 40)]);
    host.tell(Event::Found(vec![found(&id, &a, true)]));
    // Read before the clock was started: the memory is in use, by nobody that is known yet.
    host.used = 40;
    host.observe();
    host.acquire(1, "b");
    host.heal(&id);
    assert!(host.stops().is_empty(), "there is room for both");
    assert!(host.order().is_none(), "nor is it known yet");
    let seen = BTreeMap::from([(GpuId::host(), Known::Known(Bytes(40)))]);
    let device = GpuReading {
        id: GpuId::host(),
        name: "X".into(),
        total: Bytes(100),
        used: Bytes(40),
        processes: vec![],
    };
    host.tell(Event::Observed(Observation {
        taken: host.now,
        devices: Ok(GpuSnapshot { devices: vec![device], lost: vec![] }),
        usage: BTreeMap::from([(id, Usage { pids: vec![7], bytes: seen })]),
    }));
    assert_eq!(host.launch().model, name("b"));
}
