//! Loads whose only purpose is a measurement.

use super::*;

fn gib(n: u64) -> u64 {
    n << 30
}

fn reading(host: &mut Host, of: Option<&InstanceId>, used: u64) {
    let holds: Vec<(&InstanceId, u64)> = of.into_iter().map(|id| (id, used)).collect();
    readings(host, &[used], &holds);
}

/// A reading of devices of 100 GiB, with what each instance holds on its first.
fn readings(host: &mut Host, used: &[u64], holds: &[(&InstanceId, u64)]) {
    let device = |(n, used): (usize, &u64)| GpuReading {
        id: GpuId::new(&format!("GPU-{n}")),
        name: "X".into(),
        total: Bytes(gib(100)),
        used: Bytes(gib(*used)),
        processes: vec![],
    };
    let devices = used.iter().enumerate().map(device).collect();
    let usage = |(id, bytes): &(&InstanceId, u64)| {
        let live = host.state.live().find(|live| live.id == *id).unwrap();
        let bytes = BTreeMap::from([(live.gpus[0].clone(), Known::Known(Bytes(gib(*bytes))))]);
        ((*id).clone(), Usage { pids: vec![9], bytes })
    };
    let usage = holds.iter().map(usage).collect();
    host.now = host.now + Duration::from_secs(2);
    let taken = host.now;
    let devices = Ok(GpuSnapshot { devices, lost: vec![], driver: String::new() });
    host.tell(Event::Observed(Observation { taken, unix_s: 1, devices, usage }));
}

/// Two models of 60 GiB each, with their images here.
fn host(measure_after: Option<u64>) -> Host {
    let mut host = Host::bare(vec![spec("a", gib(60)), spec("b", gib(60))]);
    host.state.settings.measure_after = measure_after.map(Duration::from_secs);
    let images = ["a", "b"].map(|m| (name(m), "1".to_owned())).into();
    host.state.remember(Recalled { images, ..Recalled::default() });
    host.tell(Event::Found(vec![]));
    reading(&mut host, None, 0);
    host
}

fn measure(host: &mut Host, id: &InstanceId) {
    for _ in 0..6 {
        reading(host, Some(id), 40);
        if !host.stops().is_empty() || !host.done().is_empty() {
            return;
        }
    }
    panic!("it was never measured");
}

#[test]
fn an_operators_measurement_loads_measures_and_lets_go() {
    let mut host = host(None);
    host.tell(Event::Measure { waiter: WaiterId(7), model: name("a") });
    let id = host.launch();
    host.start(&id);
    host.heal(&id);
    assert!(host.done().is_empty(), "ready is not measured");
    measure(&mut host, &id);
    assert_eq!((host.done(), host.stops()), (vec![7], vec![id.clone()]));
    host.stopped(&id);
    assert_eq!(host.phase("a"), Phase::Stopped);
}

#[test]
fn what_somebody_uses_stays_after_the_measurement() {
    let mut host = host(None);
    host.tell(Event::Measure { waiter: WaiterId(7), model: name("a") });
    let id = host.launch();
    host.start(&id);
    host.acquire(1, "a");
    host.heal(&id);
    assert_eq!(host.grants(), [1]);
    host.release(&id);
    measure(&mut host, &id);
    assert_eq!((host.done(), host.stops()), (vec![7], vec![]));
}

#[test]
fn a_measurement_that_cannot_be_is_told() {
    let mut host = host(None);
    host.tell(Event::Measure { waiter: WaiterId(6), model: name("nobody") });
    assert_eq!(host.denials(), [(6, "model_not_found")]);
    host.tell(Event::Measure { waiter: WaiterId(7), model: name("a") });
    let id = host.launch();
    host.tell(Event::LaunchFailed { instance: id, fault: fault("broken") });
    assert_eq!(host.denials(), [(7, "model_load_failed")]);
    host.pass(100);
    assert!(host.order().is_none(), "it is not tried again by itself");
    host.tell(Event::Measure { waiter: WaiterId(8), model: name("a") });
    host.tell(Event::Unload { waiter: WaiterId(9), model: name("a"), haste: Haste::Drain });
    assert_eq!(host.denials(), [(8, "model_unloaded")]);
    host.tell(Event::Measure { waiter: WaiterId(10), model: name("b") });
    host.tell(Event::Shutdown { keep: false });
    assert_eq!(host.denials(), [(10, "shutting_down")]);
}

#[test]
fn a_quiet_host_measures_what_it_does_not_know_one_after_the_other() {
    let mut host = host(Some(600));
    host.pass(500);
    assert!(host.order().is_none(), "not yet");
    let due = host.state.next_deadline().unwrap();
    assert_eq!(due, Moment::from_secs(601), "it wakes up for it");
    host.now = due;
    host.tell(Event::Tick);
    let a = host.launch();
    assert_eq!(a.model, name("a"));
    host.start(&a);
    host.heal(&a);
    measure(&mut host, &a);
    assert_eq!(host.stops(), std::slice::from_ref(&a));
    host.stopped(&a);
    reading(&mut host, None, 0);
    let b = host.launch();
    assert_eq!(b.model, name("b"), "the next one");
    host.start(&b);
    host.heal(&b);
    measure(&mut host, &b);
    host.stopped(&b);
    reading(&mut host, None, 0);
    host.pass(10_000);
    assert!(host.order().is_none(), "all are known");
}

#[test]
fn discovery_makes_nobody_leave_or_wait() {
    let mut host = host(Some(600));
    let a = host.ready(1, "a");
    host.release(&a);
    reading(&mut host, Some(&a), 60);
    // Idle, but it would have to leave for `b`.
    host.state.settings.measure_after = Some(Duration::from_secs(50));
    host.pass(60);
    assert!(host.order().is_none() && host.stops().is_empty(), "{:?}", host.out);
    assert_eq!(host.phase("b"), Phase::Stopped, "it does not wait either");
    // And a request in the middle of a discovery gets the room.
    let mut host = self::host(Some(600));
    host.now = Moment::from_secs(601);
    host.tell(Event::Tick);
    let a = host.launch();
    host.start(&a);
    host.heal(&a);
    reading(&mut host, Some(&a), 60);
    host.pass(60);
    host.acquire(1, "b");
    assert_eq!(host.stops(), std::slice::from_ref(&a));
    // It does not come back for that while the request has the room, and is not forgotten either.
    host.stopped(&a);
    reading(&mut host, None, 0);
    let b = host.launch();
    assert_eq!((b.model.as_str(), host.phase("a")), ("b", Phase::Stopped));
    host.start(&b);
    host.heal(&b);
    host.release(&b);
    quiet_again(&mut host, &b);
}

/// `b` goes, and `a` has its turn after a while.
fn quiet_again(host: &mut Host, b: &InstanceId) {
    host.tell(Event::Unload { waiter: WaiterId(2), model: name("b"), haste: Haste::Drain });
    host.stopped(b);
    reading(host, None, 0);
    host.pass(600);
    assert_eq!(host.launch().model, name("a"));
}

#[test]
fn a_measurement_that_yields_to_others_waits_for_a_quiet_host() {
    let (mut host, a) = curious();
    host.start(&a);
    host.heal(&a);
    // Others have filled the device.
    while host.stops().is_empty() {
        assert!(host.now < Moment::from_secs(620), "it never yields");
        readings(&mut host, &[101], &[(&a, 30)]);
    }
    host.stopped(&a);
    readings(&mut host, &[0], &[]);
    assert!(host.order().is_none(), "not at once");
    host.pass(600);
    assert_eq!(host.launch().model, name("a"));
}

/// A quiet host that has just begun to load `a`, to know what it needs.
fn curious() -> (Host, InstanceId) {
    let mut host = host(Some(600));
    host.now = Moment::from_secs(601);
    host.tell(Event::Tick);
    let a = host.launch();
    assert_eq!(a.model, name("a"));
    (host, a)
}

#[test]
fn a_load_that_nobody_asked_for_makes_way_at_once() {
    for how in 0..3 {
        let (mut host, a) = curious();
        if how > 0 {
            host.start(&a);
        }
        if how > 1 {
            host.heal(&a);
        }
        host.acquire(1, "b");
        assert_eq!(host.phase("a"), Phase::Stopping, "{how}");
        if how == 0 {
            // A launch comes to its end first.
            host.start(&a);
        }
        assert_eq!(host.stops(), std::slice::from_ref(&a), "{how}");
        host.stopped(&a);
        reading(&mut host, None, 0);
        let b = host.launch();
        assert_eq!(b.model, name("b"));
        host.start(&b);
        host.heal(&b);
        assert_eq!(host.grants(), [1]);
        host.release(&b);
        assert_eq!(
            host.phase("a"),
            Phase::Stopped,
            "it does not come back for that while others need it"
        );
        // It was not measured, so it has its turn when the host is quiet again.
        quiet_again(&mut host, &b);
    }
}

/// Two devices: on the first one a load that nobody asked for has just begun, on the second one `b` is idle.
fn curious_beside() -> (Host, InstanceId, InstanceId) {
    let on = |model: &str, gpus: &[&str]| {
        let gpus = gpus.iter().map(|gpu| GpuId::new(gpu)).collect();
        ModelSpec { gpus, idle_timeout: None, ..spec(model, gib(60)) }
    };
    let specs = [on("a", &["GPU-0"]), on("b", &["GPU-1"]), on("x", &[]), on("y", &["GPU-0"])];
    let mut host = Host::bare(specs.to_vec());
    host.state.settings.measure_after = Some(Duration::from_secs(600));
    let images = [(name("a"), "1".to_owned())].into();
    host.state.remember(Recalled { images, ..Recalled::default() });
    host.tell(Event::Found(vec![]));
    readings(&mut host, &[0, 0], &[]);
    let b = host.ready(1, "b");
    readings(&mut host, &[0, 60], &[(&b, 60)]);
    host.release(&b);
    host.pass(700);
    let a = host.launch();
    host.start(&a);
    (host, a, b)
}

#[test]
fn no_load_makes_way_for_one_that_gets_its_room_elsewhere() {
    let (mut host, a, b) = curious_beside();
    host.acquire(2, "x");
    assert_eq!(host.stops(), std::slice::from_ref(&b));
    for _ in 0..3 {
        readings(&mut host, &[10, 60], &[(&a, 10), (&b, 60)]);
        let seen = (host.stops(), host.phase("a"));
        assert_eq!(seen, (vec![], Phase::Loading), "its place is kept for it already");
    }
    host.stopped(&b);
    readings(&mut host, &[10, 0], &[(&a, 10)]);
    assert_eq!((host.launch().model.as_str(), host.phase("a")), ("x", Phase::Loading));
}

#[test]
fn no_load_makes_way_for_one_that_it_cannot_help() {
    let (mut host, _, _) = curious_beside();
    // Nothing is promised while the devices cannot be read.
    let (taken, devices, usage) = (host.now, Err("nvml hangs".to_owned()), BTreeMap::new());
    host.tell(Event::Observed(Observation { taken, unix_s: 1, devices, usage }));
    host.acquire(2, "y");
    assert_eq!((host.phase("a"), host.phase("y")), (Phase::Loading, Phase::Waiting));
}

#[test]
fn a_load_that_somebody_waits_for_makes_no_way() {
    let (mut host, a) = curious();
    host.acquire(1, "a");
    host.acquire(2, "b");
    host.start(&a);
    assert!(host.stops().is_empty());
    host.heal(&a);
    assert_eq!(host.grants(), [1]);
    host.release(&a);
    assert!(host.stops().is_empty(), "it is young, and was used");
}

/// It may wait for ever, and nothing would ever be measured.
#[test]
fn a_pin_without_room_ends_no_measurement() {
    let mut specs = vec![spec("a", gib(30)), spec("p", gib(60)), spec("q", gib(60))];
    specs[1..].iter_mut().for_each(|spec| spec.pin = true);
    let mut host = Host::bare(specs);
    host.state.settings.measure_after = Some(Duration::from_secs(600));
    let images = [(name("a"), "1".to_owned())].into();
    host.state.remember(Recalled { images, ..Recalled::default() });
    host.tell(Event::Found(vec![]));
    reading(&mut host, None, 0);
    let p = host.launch();
    host.start(&p);
    host.heal(&p);
    reading(&mut host, Some(&p), 60);
    host.pass(600);
    let a = host.launch();
    assert_eq!((a.model.as_str(), host.phase("q")), ("a", Phase::Waiting));
    host.start(&a);
    host.heal(&a);
    host.pass(1);
    assert_eq!((host.phase("a"), host.phase("q")), (Phase::Ready, Phase::Waiting));
}

#[test]
fn two_that_are_measured_take_turns() {
    let mut host = host(None);
    host.tell(Event::Measure { waiter: WaiterId(7), model: name("a") });
    host.tell(Event::Measure { waiter: WaiterId(8), model: name("b") });
    let a = host.state.status(host.now).models[0].instance.clone().unwrap();
    host.start(&a);
    host.heal(&a);
    host.pass(60);
    assert!(host.stops().is_empty(), "it is not evicted for the other's measurement");
    measure(&mut host, &a);
    assert_eq!((host.done(), host.stops()), (vec![7], vec![a.clone()]));
    host.stopped(&a);
    reading(&mut host, None, 0);
    let b = host.launch();
    host.start(&b);
    host.heal(&b);
    measure(&mut host, &b);
    assert_eq!(host.done(), [8]);
}

#[test]
fn a_measurement_that_was_taken_back_protects_nobody() {
    let mut host = host(None);
    host.tell(Event::Measure { waiter: WaiterId(7), model: name("a") });
    let a = host.launch();
    host.start(&a);
    host.heal(&a);
    host.pass(1);
    host.acquire(1, "b");
    assert_eq!(host.stops(), std::slice::from_ref(&a), "a request comes before a measurement");
    host.stopped(&a);
    reading(&mut host, None, 0);
    let b = host.launch();
    assert_eq!(b.model, name("b"), "whom it left for");
    host.start(&b);
    host.heal(&b);
    host.release(&b);
    host.tell(Event::Cancel { waiter: WaiterId(7) });
    host.pass(1);
    host.acquire(2, "a");
    host.stopped(&b);
    reading(&mut host, None, 0);
    let a = host.launch();
    assert_eq!(a.model, name("a"));
    host.start(&a);
    host.heal(&a);
    host.release(&a);
    host.pass(1);
    host.acquire(3, "b");
    assert_eq!(host.stops(), [a], "nobody measures it any more");
}

#[test]
fn a_quiet_host_measures_only_at_its_hours() {
    let mut host = host(Some(600));
    host.state.settings.measure_hours = "22:00-06:00".parse().unwrap();
    let clock = |host: &mut Host, hour| {
        host.tell(Event::LocalTime(DayMinute::new(hour, 0).unwrap()));
    };
    host.pass(10_000);
    assert!(host.order().is_none() && host.state.next_deadline().is_none(), "no clock was seen");
    for hour in [12, 21, 6] {
        clock(&mut host, hour);
        assert!(host.order().is_none(), "{hour}");
    }
    clock(&mut host, 23);
    let a = host.launch();
    host.start(&a);
    host.heal(&a);
    // What has begun is finished, and nothing else begins.
    clock(&mut host, 6);
    measure(&mut host, &a);
    assert_eq!(host.stops(), std::slice::from_ref(&a));
    host.stopped(&a);
    reading(&mut host, None, 0);
    assert!(host.order().is_none());
    // An operator's wish knows no hours.
    host.tell(Event::Measure { waiter: WaiterId(7), model: name("b") });
    assert_eq!(host.launch().model, name("b"));
}
