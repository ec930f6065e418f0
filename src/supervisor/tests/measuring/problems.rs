//! What is told of devices and footprints that cannot be read, kept or believed.

use super::*;

fn problem(host: &Host, code: &str) -> Option<String> {
    let problems = host.state.status(host.now).problems;
    problems.into_iter().find(|p| p.code == code).map(|p| p.message)
}

#[test]
fn fault_15_a_model_that_uses_no_device_is_told_and_a_problem_until_it_is_gone_or_uses_one() {
    for goes in [true, false] {
        let mut host = undeclared();
        let id = loaded(&mut host);
        host.tell(Event::Measure { waiter: WaiterId(9), model: name("m") });
        for _ in 0..30 {
            reading(&mut host, &id, Some(0), gib(1));
            assert_eq!((unmeasured(&host), problem(&host, "gpu_unused")), (None, None));
        }
        reading(&mut host, &id, Some(0), gib(1));
        let why = unmeasured(&host).expect("a notice");
        assert!(why.contains("holds no memory") && why.contains("server-cuda"), "{why}");
        assert_eq!(host.denials(), [(9, "model_unmeasurable")]);
        assert!(host.denied().to_string().contains(&why), "{}", host.denied());
        let told = problem(&host, "gpu_unused");
        assert_eq!(told, Some(format!("m: {why}")));
        let problems = host.state.status(host.now).problems;
        assert!(problems.iter().all(|p| !p.hinders_requests()), "it serves");
        if goes {
            host.tell(Event::Unload { waiter: WaiterId(7), model: name("m"), haste: Haste::Drain });
            host.stopped(&id);
            reading(&mut host, &nobody(), Some(0), gib(1));
        } else {
            let book = measure(&mut host, &id, Some(gib(30)), gib(31)).expect("a footprint");
            assert_eq!(book.iter().next().unwrap().bytes_per_device, Bytes(gib(30)));
        }
        assert_eq!(problem(&host, "gpu_unused"), None, "goes: {goes}");
    }
}

#[test]
fn a_reading_from_before_it_was_ready_does_not_count() {
    let mut host = undeclared();
    let id = loaded(&mut host);
    let device = |used| GpuReading {
        id: GpuId::new(GPU),
        name: "X".into(),
        total: Bytes(gib(100)),
        used: Bytes(used),
        processes: vec![],
    };
    for n in 0..20 {
        let bytes = BTreeMap::from([(GpuId::new(GPU), Known::Known(Bytes(gib(1))))]);
        let usage = BTreeMap::from([(id.clone(), Usage { pids: vec![9], bytes })]);
        let devices = vec![device(gib(1))];
        let devices = Ok(GpuSnapshot { devices, lost: vec![], driver: String::new() });
        let taken = Moment(Duration::from_millis(n));
        host.tell(Event::Observed(Observation { taken, unix_s: 1, devices, usage }));
        assert!(saved(&host).is_none());
    }
}

#[test]
fn a_disk_that_takes_nothing_is_a_problem_until_it_does() {
    let mut host = undeclared();
    let codes = |host: &Host| -> Vec<&str> {
        host.state.status(host.now).problems.iter().map(|p| p.code).collect()
    };
    host.tell(Event::Saved(Err("the disk is full".into())));
    assert!(codes(&host).contains(&"state_unwritable"));
    assert!(saved(&host).is_none());
    // It is tried again although nothing has happened since, until it is written.
    host.pass(29);
    assert!(saved(&host).is_none());
    host.pass(1);
    assert!(saved(&host).is_some());
    host.tell(Event::Saved(Err("the disk is full".into())));
    host.pass(30);
    assert!(saved(&host).is_some());
    host.tell(Event::Saved(Ok(())));
    assert!(!codes(&host).contains(&"state_unwritable"));
    host.pass(60);
    assert!(saved(&host).is_none());
}

#[test]
fn devices_that_cannot_be_read_are_a_problem_with_its_last_cause() {
    let mut host = undeclared();
    reading(&mut host, &nobody(), Some(0), 0);
    let mut fails = |why: &str| {
        host.now = host.now + Duration::from_secs(2);
        let (taken, usage) = (host.now, BTreeMap::new());
        let devices = Err(why.to_owned());
        host.tell(Event::Observed(Observation { taken, unix_s: 1, devices, usage }));
        let problem = host.state.status(host.now).problems[0].clone();
        assert_eq!((problem.code, problem.message.as_str()), ("gpu_unreadable", why));
        problem.since
    };
    let first = fails("NVML does not answer");
    assert_eq!(fails("the driver is gone"), first, "that began with the first");
}
