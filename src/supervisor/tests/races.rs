//! Orders of events that once went wrong.

use super::*;
use crate::supervisor::notice::Line;
use crate::types::ProcessMemory;

/// What one reading says of one device.
fn device(n: u64, used: u64) -> GpuReading {
    GpuReading {
        id: GpuId::new(&format!("GPU-{n}")),
        name: "X".into(),
        total: Bytes(100),
        used: Bytes(used),
        processes: vec![ProcessMemory { pid: 1, bytes: Known::Known(Bytes(used)) }],
    }
}

/// A reading of several devices, with what each instance holds.
fn reading(host: &mut Host, used: &[u64], usage: &[(&InstanceId, u64, u64)]) {
    let devices = (0..).zip(used).map(|(n, used)| device(n, *used)).collect();
    let one = |(id, gpu, bytes): &(&InstanceId, u64, u64)| {
        let gpu = GpuId::new(&format!("GPU-{gpu}"));
        let bytes = BTreeMap::from([(gpu, Known::Known(Bytes(*bytes)))]);
        ((*id).clone(), Usage { pids: vec![9], bytes })
    };
    let usage = usage.iter().map(one).collect();
    let devices = Ok(GpuSnapshot { devices, lost: vec![], driver: String::new() });
    host.tell(Event::Observed(Observation {
        taken: host.now,
        unix_s: 1_800_000_000,
        devices,
        usage,
    }));
}

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
        unix_s: 1_800_000_000,
        devices: Ok(GpuSnapshot { devices: vec![device], lost: vec![], driver: String::new() }),
        usage: BTreeMap::from([(id, Usage { pids: vec![7], bytes: seen })]),
    }));
    assert_eq!(host.launch().model, name("b"));
}

#[test]
fn a_model_that_waits_for_a_release_evicts_nobody_else_meanwhile() {
    let mut host = Host::bare(vec![spec("a", 80), spec("b", 80), spec("c", 80)]);
    host.tell(Event::Found(vec![]));
    reading(&mut host, &[0, 0], &[]);
    let a = host.ready(1, "a");
    let b = host.ready(2, "b");
    reading(&mut host, &[80, 80], &[(&a, 0, 80), (&b, 1, 80)]);
    host.release(&a);
    host.pass(1);
    host.release(&b);
    host.acquire(3, "c");
    assert_eq!(host.stops(), std::slice::from_ref(&a), "one leaves");
    host.pass(1);
    assert!(host.stops().is_empty(), "its memory is on its way: {:?}", host.stops());
    // Its processes are dead and the driver lags: the memory is nobody's, and on its way all the same.
    reading(&mut host, &[80, 80], &[(&a, 0, 0), (&b, 1, 80)]);
    assert!(host.stops().is_empty(), "still on its way: {:?}", host.stops());
    // A stop that fails may never end: then it is no reason to spare the other.
    let result = Err(fault("it will not go"));
    host.tell(Event::Stopped { instance: a, result });
    assert_eq!(host.stops(), [b]);
}

#[test]
fn what_a_failed_launch_left_behind_is_removed_before_the_next() {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.acquire(1, "m");
    let id = host.launch();
    let left = fault("podman hangs").leaving_something();
    host.tell(Event::LaunchFailed { instance: id.clone(), fault: left });
    assert_eq!(host.denials(), [(1, "model_load_failed")], "told at once");
    assert_eq!(host.stops(), std::slice::from_ref(&id));
    host.tell(Event::Stopped { instance: id.clone(), result: Err(fault("podman hangs")) });
    host.pass(5);
    assert_eq!(host.stops(), std::slice::from_ref(&id), "tried again");
    host.acquire(2, "m");
    host.observe();
    assert!(host.order().is_none(), "never two containers of one model");
    host.stopped(&id);
    host.pass(1);
    host.observe();
    assert!(host.launch().generation > id.generation);
}

#[test]
fn a_model_that_used_the_whole_device_fits_it_again() {
    let mut whole = spec("m", 10);
    whole.vram = None;
    let mut host = Host::new(vec![whole]);
    let id = host.ready(1, "m");
    let seen = BTreeMap::from([(GpuId::host(), Known::Known(Bytes(98)))]);
    host.used = 98;
    let device = GpuReading {
        id: GpuId::host(),
        name: "X".into(),
        total: Bytes(100),
        used: Bytes(98),
        processes: vec![],
    };
    host.tell(Event::Observed(Observation {
        taken: host.now,
        unix_s: 1_800_000_000,
        devices: Ok(GpuSnapshot { devices: vec![device], lost: vec![], driver: String::new() }),
        usage: BTreeMap::from([(id.clone(), Usage { pids: vec![7], bytes: seen })]),
    }));
    host.release(&id);
    host.pass(100);
    host.stopped(&id);
    host.used = 0;
    host.pass(1);
    host.observe();
    host.acquire(2, "m");
    assert_eq!(host.denials(), [], "it ran here before");
    assert_eq!(host.order().unwrap().placement.need.bytes, Bytes(100));
}

#[test]
fn a_container_on_a_device_that_its_model_may_not_use_any_more_is_not_adopted() {
    let id = |model: &str| InstanceId::new(name(model), Generation(3), 9);
    let mut bound = spec("bound", 40);
    bound.gpus = vec![GpuId::new("GPU-0")];
    let (free, other) = (spec("free", 40), spec("other", 40));
    let specs = [bound, free, other];
    let mut host = Host::bare(specs.to_vec());
    reading(&mut host, &[0, 0], &[]);
    let on = |spec: &ModelSpec, gpu: &str| {
        let mut found = found(&id(spec.name.as_str()), spec, true);
        let placement = &mut found.identity.as_mut().unwrap().placement;
        placement.gpus = vec![GpuId::new(gpu)];
        found
    };
    // Bound elsewhere; as it was; of the other backend, or on a device that was taken out of the configuration.
    host.tell(Event::Found(vec![
        on(&specs[0], "GPU-1"),
        on(&specs[1], "GPU-1"),
        on(&specs[2], "host"),
    ]));
    let mut stops = host.stops();
    stops.sort();
    assert_eq!(stops, [id("bound"), id("other")]);
    assert_eq!(host.phase("free"), Phase::Loading);
}

#[test]
fn an_adoption_says_nothing_about_how_long_a_load_takes() {
    let a = spec("a", 40);
    let id = InstanceId::new(name("a"), Generation(3), 9);
    let mut host = Host::bare(vec![a.clone()]);
    host.tell(Event::Found(vec![found(&id, &a, true)]));
    host.heal(&id);
    assert_eq!(host.phase("a"), Phase::Ready);
    let ready = Notice::Ready { instance: id, load_ms: None };
    assert!(host.out.iter().any(|e| matches!(e, Effect::Notice(n) if *n == ready)));
    assert_eq!(Line::from(&ready).took_ms, None);
    assert_eq!(host.state.status(host.now).models[0].load_ms, None);
}

#[test]
fn what_survives_an_orphan_is_named() {
    // A container of an earlier daemon whose model is configured otherwise now.
    let mut earlier = spec("a", 40);
    earlier.args = vec!["--other".into()];
    let id = InstanceId::new(name("a"), Generation(3), 9);
    let mut left = found(&id, &earlier, true);
    left.identity.as_mut().unwrap().placement.gpus = vec![GpuId::new("GPU-0")];
    let mut host = Host::bare(vec![spec("a", 40)]);
    reading(&mut host, &[0], &[]);
    host.tell(Event::Found(vec![left]));
    assert_eq!(host.stops(), std::slice::from_ref(&id));
    assert_eq!(
        host.state.live().map(|live| (live.id, live.watched)).collect::<Vec<_>>(),
        [(&id, false)]
    );
    reading(&mut host, &[40], &[(&id, 0, 40)]);
    let gpu = &host.state.status(host.now).gpus[0];
    assert_eq!((gpu.releasing, gpu.foreign), (Bytes(40), Known::Known(Bytes(0))), "it is ours");
    host.stopped(&id);
    assert_eq!(host.state.live().count(), 0);
    // Its process goes on: it is the one that the driver lists.
    host.pass(40);
    let device = GpuReading {
        processes: vec![ProcessMemory { pid: 9, bytes: Known::Known(Bytes(40)) }],
        ..device(0, 40)
    };
    let devices = Ok(GpuSnapshot { devices: vec![device], lost: vec![], driver: String::new() });
    let (taken, usage) = (host.now, BTreeMap::new());
    host.tell(Event::Observed(Observation { taken, unix_s: 1, devices, usage }));
    let problems = host.state.status(host.now).problems;
    let named = problems.iter().find(|p| p.code == "memory_quarantined").unwrap();
    assert!(named.message.contains("held by the processes 9"), "{}", named.message);
}
