//! Whose turn it is: nobody is overtaken for ever.

use super::*;

fn gpus() -> [GpuId; 2] {
    [GpuId::new("GPU-0"), GpuId::new("GPU-1")]
}

/// A reading of two devices of 100 bytes, on which each of these holds so much of each of its own.
fn reading(host: &mut Host, holds: &[(&InstanceId, u64)]) {
    let status = host.state.status(host.now);
    let on = |id: &InstanceId| {
        let model = status.models.iter().find(|m| m.instance.as_ref() == Some(id));
        model.map(|m| m.gpus.clone()).unwrap_or_default()
    };
    let device = |gpu: &GpuId| {
        let here = holds.iter().filter(|(id, _)| on(id).contains(gpu));
        GpuReading {
            id: gpu.clone(),
            name: "X".into(),
            total: Bytes(100),
            used: Bytes(here.map(|(_, bytes)| bytes).sum()),
            processes: vec![],
        }
    };
    let use_of = |(id, bytes): &(&InstanceId, u64)| {
        let bytes = on(id).into_iter().map(|gpu| (gpu, Known::Known(Bytes(*bytes)))).collect();
        ((*id).clone(), Usage { pids: vec![9], bytes })
    };
    let devices = gpus().iter().map(device).collect();
    let devices = Ok(GpuSnapshot { devices, lost: vec![], driver: String::new() });
    let usage = holds.iter().map(use_of).collect();
    host.now = host.now + Duration::from_secs(2);
    let taken = host.now;
    host.tell(Event::Observed(Observation { taken, unix_s: 1, devices, usage }));
}

/// Two devices; `big` needs both, the others one each.
fn host() -> Host {
    let mut big = spec("big", 60);
    big.gpu_count = 2;
    let mut host = Host::bare(vec![big, spec("s", 60), spec("t", 60), spec("beside", 30)]);
    host.tell(Event::Found(vec![]));
    reading(&mut host, &[]);
    host
}

fn up(host: &mut Host) -> InstanceId {
    let id = host.launch();
    host.start(&id);
    host.heal(&id);
    id
}

fn waiting_for(host: &Host, model: &str) -> String {
    let status = host.state.status(host.now);
    status.models.iter().find(|m| m.name == name(model)).unwrap().waiting_for.clone().unwrap()
}

fn on(host: &Host, model: &str) -> Vec<GpuId> {
    let status = host.state.status(host.now);
    status.models.iter().find(|m| m.name == name(model)).unwrap().gpus.clone()
}

#[test]
fn what_was_evicted_does_not_take_the_next_hole_of_the_one_it_left_for() {
    let mut host = host();
    host.tell(Event::Measure { waiter: WaiterId(1), model: name("s") });
    let s = up(&mut host);
    reading(&mut host, &[(&s, 60)]);
    host.tell(Event::Load { waiter: WaiterId(2), model: name("big"), wish: Wish::default() });
    assert_eq!(host.stops(), std::slice::from_ref(&s));
    host.stopped(&s);
    assert!(host.order().is_none(), "the other device is free, and kept");
    let why = waiting_for(&host, "s");
    assert!(why.contains("kept for a model whose turn is first"), "{why}");
    reading(&mut host, &[]);
    let big = up(&mut host);
    assert_eq!((big.model.clone(), host.done()), (name("big"), vec![2]));
    // Now it is the other's turn, and once evicted it is not evicted a second time.
    reading(&mut host, &[(&big, 60)]);
    assert_eq!(host.stops(), std::slice::from_ref(&big));
    host.stopped(&big);
    reading(&mut host, &[]);
    let s = up(&mut host);
    assert_eq!(s.model, name("s"));
    host.tell(Event::Load { waiter: WaiterId(3), model: name("big"), wish: Wish::default() });
    for _ in 0..4 {
        reading(&mut host, &[(&s, 60)]);
        assert!(host.stops().is_empty() && host.done().is_empty(), "{:?}", host.out);
    }
    reading(&mut host, &[(&s, 60)]);
    assert_eq!((host.done(), host.stops()), (vec![1], vec![s.clone()]));
    host.stopped(&s);
    reading(&mut host, &[]);
    assert_eq!(host.launch().model, name("big"));
}

#[test]
fn a_higher_priority_evicts_what_is_measured_whenever_it_wants() {
    let mut first = spec("first", 60);
    first.priority = 1;
    let mut host = Host::new(vec![first, spec("s", 60)]);
    host.tell(Event::Measure { waiter: WaiterId(1), model: name("s") });
    for round in 0..3 {
        let s = up(&mut host);
        host.pass(1);
        host.acquire(10 + round, "first");
        assert_eq!(host.stops(), std::slice::from_ref(&s), "round {round}");
        host.stopped(&s);
        host.observe();
        let first = up(&mut host);
        host.release(&first);
        host.pass(1);
        host.tell(Event::Unload {
            waiter: WaiterId(20),
            model: name("first"),
            haste: Haste::Drain,
        });
        host.stopped(&first);
        host.observe();
    }
}

#[test]
fn who_needs_several_devices_waits_for_loads_on_them_one_time_only() {
    let mut host = host();
    host.acquire(1, "beside");
    let beside = host.launch();
    host.acquire(2, "big");
    assert!(host.order().is_none());
    // A load on the other device would be in its way when this one is over, and so on for ever.
    host.pass(1);
    host.acquire(3, "t");
    assert!(host.order().is_none(), "{:?}", host.out);
    host.start(&beside);
    host.heal(&beside);
    assert_eq!(host.launch().model, name("big"));
}

#[test]
fn who_waits_for_what_will_not_come_by_itself_keeps_nothing() {
    let mut host = host();
    let s = host.ready(1, "s");
    reading(&mut host, &[(&s, 60)]);
    // It serves: nobody knows for how long.
    host.acquire(2, "big");
    assert!(host.stops().is_empty());
    host.acquire(3, "t");
    assert_eq!(host.launch().model, name("t"));
    assert_ne!(on(&host, "t"), on(&host, "s"));
}

#[test]
fn devices_load_side_by_side_and_each_one_model_at_a_time() {
    let mut host = host();
    host.acquire(1, "s");
    let s = host.launch();
    host.acquire(2, "t");
    let t = host.launch();
    assert_ne!(on(&host, "s"), on(&host, "t"));
    // There is room for it beside either.
    host.acquire(3, "beside");
    assert!(host.order().is_none());
    host.start(&s);
    host.start(&t);
    assert!(host.order().is_none(), "engines profile the whole device until they are ready");
    host.heal(&t);
    assert_eq!(host.launch().model, name("beside"));
    assert_eq!(on(&host, "beside"), on(&host, "t"));
}
