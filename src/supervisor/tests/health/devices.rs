//! Loads that fail on one device and not on another.

use super::*;

fn gpu(which: &str) -> GpuId {
    GpuId::new(&format!("GPU-{which}"))
}

/// A reading of two devices of 100 bytes: others use half of the first, and what is ready holds what it was promised.
fn reading(host: &mut Host) {
    let status = host.state.status(host.now);
    let ready = status.models.iter().filter(|m| m.phase == Phase::Ready);
    let holds = ready.map(|m| (m.instance.clone().unwrap(), &m.gpus, m.planned.unwrap().bytes));
    let holds: Vec<_> = holds.collect();
    let device = |id: GpuId, foreign| GpuReading {
        name: "X".into(),
        total: Bytes(100),
        used: holds.iter().filter(|(_, on, _)| on.contains(&id)).map(|(.., n)| *n).sum::<Bytes>()
            + Bytes(foreign),
        id,
        processes: vec![],
    };
    let devices = vec![device(gpu("a"), 50), device(gpu("b"), 0)];
    let usage = holds.iter().map(|(id, on, bytes)| {
        let bytes = on.iter().map(|gpu| (gpu.clone(), Known::Known(*bytes))).collect();
        (id.clone(), Usage { pids: vec![9], bytes })
    });
    let usage = usage.collect();
    host.now = host.now + Duration::from_secs(2);
    let devices = Ok(GpuSnapshot { devices, lost: vec![], driver: String::new() });
    host.tell(Event::Observed(Observation { taken: host.now, unix_s: 1, devices, usage }));
}

fn host() -> Host {
    let specs = [("m", 40), ("small", 10), ("large", 45)].map(|(name, vram)| spec(name, vram));
    let mut host = Host::bare(specs.into());
    host.tell(Event::Found(vec![]));
    reading(&mut host);
    host
}

/// Asks for a model, and says where it is started.
fn placed(host: &mut Host, waiter: u64, model: &str) -> (InstanceId, GpuId) {
    host.acquire(waiter, model);
    let order = host.order().expect("a launch");
    (order.instance, order.placement.gpus[0].clone())
}

/// One more start of it that ends so; where it was.
fn fails(host: &mut Host, waiter: u64, code: FaultCode) -> GpuId {
    let (instance, on) = placed(host, waiter, "m");
    host.tell(Event::LaunchFailed { instance, fault: Fault::new(code, "exit 1") });
    assert_eq!(host.denials(), [(waiter, "model_load_failed")]);
    host.now = host.now + Duration::from_secs(60);
    let denied = host.denied().to_string();
    assert_eq!(denied.contains(on.as_str()), code.may_be_the_devices(), "{denied}");
    reading(host);
    on
}

/// Asks for a model, which is ready then; where.
fn loads(host: &mut Host, waiter: u64, model: &str) -> GpuId {
    let (id, on) = placed(host, waiter, model);
    host.start(&id);
    host.heal(&id);
    host.release(&id);
    reading(host);
    on
}

fn suspected(host: &Host) -> Option<String> {
    let problems = host.state.status(host.now).problems;
    assert!(problems.iter().all(|p| p.code != "gpu_suspect" || !p.hinders_requests()));
    problems.into_iter().find(|p| p.code == "gpu_suspect").map(|p| p.message)
}

#[test]
fn a_device_on_which_alone_a_load_failed_is_avoided_until_one_succeeds_there() {
    let mut host = host();
    assert_eq!(fails(&mut host, 1, FaultCode::EngineExited), gpu("a"), "the tightest hole");
    assert_eq!(suspected(&host), None, "it may be the model");
    assert_eq!(loads(&mut host, 2, "m"), gpu("b"));
    let told = suspected(&host).expect("a problem");
    assert!(told.starts_with("GPU-a: m failed to load there"), "{told}");
    // 50 are free on the first, and 60 on the other: without that it would go to the first.
    assert_eq!(loads(&mut host, 3, "small"), gpu("b"));
    host.tell(Event::Unload { waiter: WaiterId(4), model: name("m"), haste: Haste::Drain });
    let gone = host.stops()[0].clone();
    host.stopped(&gone);
    reading(&mut host);
    assert_eq!(loads(&mut host, 5, "m"), gpu("b"), "nor does it forget when it was unloaded");
    assert_eq!(loads(&mut host, 6, "large"), gpu("b"));
    host.tell(Event::Unload { waiter: WaiterId(7), model: name("small"), haste: Haste::Drain });
    let gone = host.stops()[0].clone();
    host.stopped(&gone);
    reading(&mut host);
    assert!(suspected(&host).is_some());
    host.tell(Event::Load {
        waiter: WaiterId(8),
        model: name("small"),
        wish: Wish { gpus: vec![gpu("a")], ..Wish::default() },
    });
    let id = host.launch();
    host.start(&id);
    host.heal(&id);
    assert_eq!(suspected(&host), None, "it is well");
}

#[test]
fn what_fails_everywhere_is_tried_in_turn_and_accuses_no_device() {
    let mut host = host();
    let on: Vec<GpuId> = (1..5).map(|n| fails(&mut host, n, FaultCode::LoadTimeout)).collect();
    assert_eq!(on, ["a", "b", "a", "b"].map(gpu));
    assert_eq!(suspected(&host), None);
    assert_eq!(
        (loads(&mut host, 5, "m"), suspected(&host)),
        (gpu("a"), None),
        "here it failed, too"
    );
    // What no device can have done counts for none.
    let mut host = self::host();
    let on: Vec<GpuId> = (1..4).map(|n| fails(&mut host, n, FaultCode::ImageMissing)).collect();
    assert_eq!(on, ["a", "a", "a"].map(gpu));
    assert_eq!((loads(&mut host, 9, "m"), suspected(&host)), (gpu("a"), None));
}

#[test]
fn what_took_too_long_goes_elsewhere_and_accuses_no_device() {
    let mut host = host();
    assert_eq!(fails(&mut host, 1, FaultCode::LoadTimeout), gpu("a"));
    assert_eq!((loads(&mut host, 2, "m"), suspected(&host)), (gpu("b"), None));
    // Nor does a model that is not there any more.
    let mut host = self::host();
    assert_eq!(fails(&mut host, 1, FaultCode::EngineExited), gpu("a"));
    assert_eq!(loads(&mut host, 2, "m"), gpu("b"));
    assert!(suspected(&host).is_some());
    super::super::reconfiguring::configure(&mut host, vec![spec("small", 10)]);
    assert_eq!(suspected(&host), None);
}
