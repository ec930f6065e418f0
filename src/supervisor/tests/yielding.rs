//! Giving way: to others' memory, and to lost devices.

use super::*;
use crate::types::{Anatomy, Silence, SleepLevel};

pub(super) fn gib(n: u64) -> u64 {
    n << 30
}

/// A reading of two devices of 100 GiB: (in use, lost), with what each instance holds on each of its devices.
pub(super) fn reading(host: &mut Host, used: [u64; 2], lost: bool, holds: &[(&InstanceId, u64)]) {
    silent(host, used, lost.then(|| Silence::Gone("fell off the bus".into())), holds);
}

/// The same where the first may not answer.
fn silent(host: &mut Host, used: [u64; 2], why: Option<Silence>, holds: &[(&InstanceId, u64)]) {
    let gpu = |n: usize| GpuId::new(&format!("GPU-{n}"));
    let device = |n: usize| GpuReading {
        id: gpu(n),
        name: "X".into(),
        total: Bytes(gib(100)),
        used: Bytes(gib(used[n])),
        processes: vec![],
    };
    let (devices, lost) = match why {
        Some(why) => (vec![device(1)], vec![(gpu(0), why)]),
        None => (vec![device(0), device(1)], vec![]),
    };
    let usage = |(id, bytes): &(&InstanceId, u64)| {
        let live = host.state.live().find(|l| l.id == *id).unwrap();
        let on = |gpu: &GpuId| (gpu.clone(), Known::Known(Bytes(gib(*bytes))));
        let bytes = live.gpus.iter().map(on).collect();
        ((*id).clone(), Usage { pids: vec![9], bytes })
    };
    let usage = holds.iter().map(usage).collect();
    host.now = host.now + Duration::from_secs(2);
    let taken = host.now;
    let devices = Ok(GpuSnapshot { devices, lost, driver: String::new() });
    host.tell(Event::Observed(Observation { taken, unix_s: 1, devices, usage }));
}

/// Three models of 30 GiB on the first device, `c` used last.
fn three() -> (Host, [InstanceId; 3]) {
    let specs = ["a", "b", "c"].map(|m| {
        let mut spec = spec(m, gib(30));
        spec.gpus = vec![GpuId::new("GPU-0")];
        spec
    });
    let mut host = Host::bare(specs.to_vec());
    host.tell(Event::Found(vec![]));
    reading(&mut host, [0, 0], false, &[]);
    let mut ids = Vec::new();
    for (n, m) in (0..).zip(["a", "b", "c"]) {
        let id = host.ready(n, m);
        ids.push(id);
        let holds: Vec<(&InstanceId, u64)> = ids.iter().map(|id| (id, 30)).collect();
        reading(&mut host, [30 * (n + 1), 0], false, &holds);
        host.pass(60);
    }
    (host, ids.try_into().unwrap())
}

fn problem(host: &Host, code: &str) -> bool {
    host.state.status(host.now).problems.iter().any(|p| p.code == code)
}

#[test]
fn idle_models_yield_to_others_and_nobody_else_does() {
    let (mut host, [a, b, c]) = three();
    host.release(&a);
    host.release(&b);
    let holds = [(&a, 30), (&b, 30), (&c, 30)];
    // Within what there is.
    for _ in 0..3 {
        reading(&mut host, [99, 0], false, &holds);
        assert!(host.stops().is_empty());
    }
    // One reading is none.
    reading(&mut host, [101, 0], false, &holds);
    assert!(host.stops().is_empty());
    reading(&mut host, [101, 0], false, &holds);
    let first = host.stops();
    assert_eq!(first.len(), 1, "one is enough: {first:?}");
    assert!(first == [a.clone()] || first == [b.clone()], "{first:?}");
    // While it goes, the numbers are not settled.
    reading(&mut host, [101, 0], false, &holds);
    assert!(host.stops().is_empty());
    host.stopped(&first[0]);
    let left = if first[0] == a { &b } else { &a };
    reading(&mut host, [71, 0], false, &[(left, 30), (&c, 30)]);
    // They want still more: the second idle one goes; who serves, stays, and that is said.
    for _ in 0..2 {
        reading(&mut host, [105, 0], false, &[(left, 30), (&c, 30)]);
    }
    assert_eq!(host.stops(), std::slice::from_ref(left));
    host.stopped(left);
    reading(&mut host, [75, 0], false, &[(&c, 30)]);
    for _ in 0..3 {
        reading(&mut host, [110, 0], false, &[(&c, 30)]);
        assert!(host.stops().is_empty());
    }
    assert!(problem(&host, "memory_pressure"));
    reading(&mut host, [40, 0], false, &[(&c, 30)]);
    assert!(!problem(&host, "memory_pressure"));
}

#[test]
fn what_a_model_takes_beyond_its_need_is_not_taken_by_others() {
    // All is its own, or the device was not empty before.
    for (before, need, own) in [(0, 90, 95), (10, 80, 85), (0, 90, 98)] {
        let mut model = spec("m", gib(need));
        model.gpus = vec![GpuId::new("GPU-0")];
        let mut host = Host::bare(vec![model]);
        host.state.ledger.set_headroom(Bytes(gib(10)));
        host.tell(Event::Found(vec![]));
        reading(&mut host, [before, 0], false, &[]);
        let id = host.ready(1, "m");
        reading(&mut host, [before + own, 0], false, &[(&id, own)]);
        host.release(&id);
        for _ in 0..3 {
            reading(&mut host, [before + own, 0], false, &[(&id, own)]);
            assert!(host.stops().is_empty(), "it would leave for nobody");
        }
        for _ in 0..2 {
            assert!(host.stops().is_empty());
            reading(&mut host, [before + own + 3, 0], false, &[(&id, own)]);
        }
        assert_eq!(host.stops(), [id], "others have taken of the headroom");
    }
}

#[test]
fn an_engine_that_takes_all_of_the_headroom_hides_nobody() {
    let mut model = spec("m", gib(60));
    model.gpus = vec![GpuId::new("GPU-0")];
    let mut host = Host::bare(vec![model]);
    host.state.ledger.set_headroom(Bytes(gib(10)));
    host.tell(Event::Found(vec![]));
    reading(&mut host, [0, 0], false, &[]);
    let id = host.ready(1, "m");
    reading(&mut host, [72, 0], false, &[(&id, 72)]);
    host.release(&id);
    // Half of the headroom is still there.
    for _ in 0..3 {
        reading(&mut host, [95, 0], false, &[(&id, 72)]);
        assert!(host.stops().is_empty());
    }
    for _ in 0..2 {
        assert!(host.stops().is_empty());
        reading(&mut host, [100, 0], false, &[(&id, 72)]);
    }
    assert_eq!(host.stops(), [id], "others have filled the device");
}

/// A model of 30 GiB on each of its devices that may sleep, with weights of 40.
fn sleeper(model: &str, gpus: &[&str]) -> ModelSpec {
    let mut spec = spec(model, gib(30));
    spec.gpus = gpus.iter().map(|gpu| GpuId::new(gpu)).collect();
    spec.gpu_count = u32::try_from(gpus.len()).unwrap();
    spec.sleep_level = Some(SleepLevel::One);
    let source = "a test".to_owned();
    spec.anatomy =
        Some(Anatomy { weights: Bytes(gib(40)), projector: Bytes::ZERO, cache: None, source });
    spec
}

/// Others take both devices at once, beside idle models with weights of 40 GiB on a host with room for 50: who falls asleep
/// and who is stopped.
fn squeezed(specs: Vec<ModelSpec>) -> (Vec<InstanceId>, Vec<InstanceId>) {
    let names: Vec<String> = specs.iter().map(|s| s.name.to_string()).collect();
    let mut host = Host::bare(specs);
    host.state.settings.rules.sleep =
        SleepRules { host_ram_budget: Bytes(gib(50)), residual_max: Bytes(gib(10)) };
    host.tell(Event::Found(vec![]));
    reading(&mut host, [0, 0], false, &[]);
    let mut ids = Vec::new();
    for (n, m) in (0..).zip(&names) {
        host.acquire(n, m);
        let id = host.launch();
        host.start(&id);
        host.heal(&id);
        host.tell(Event::Sung { instance: id.clone(), result: Ok("5".to_owned()) });
        assert_eq!(host.grants(), [n]);
        ids.push(id);
    }
    let holds: Vec<(&InstanceId, u64)> = ids.iter().map(|id| (id, 30)).collect();
    reading(&mut host, [30, 30], false, &holds);
    ids.iter().for_each(|id| host.release(id));
    host.pass(60);
    for _ in 0..2 {
        assert!(host.stops().is_empty());
        reading(&mut host, [101, 101], false, &holds);
    }
    let sleeps = |e: &Effect| {
        if let Effect::Sleep { instance, .. } = e { Some(instance.clone()) } else { None }
    };
    (host.out.iter().filter_map(sleeps).collect(), host.stops())
}

#[test]
fn two_devices_under_pressure_share_the_room_for_weights() {
    let (asleep, stopped) = squeezed(vec![sleeper("a", &["GPU-0"]), sleeper("b", &["GPU-1"])]);
    assert_eq!((asleep.len(), stopped.len()), (1, 1), "{asleep:?} sleep, {stopped:?} stop");
}

#[test]
fn who_falls_asleep_for_one_device_is_not_stopped_for_the_other() {
    let (asleep, stopped) = squeezed(vec![sleeper("m", &["GPU-0", "GPU-1"])]);
    assert_eq!((asleep.len(), stopped), (1, vec![]));
}

#[test]
fn a_lost_device_fails_its_models_only() {
    let mut elsewhere = spec("elsewhere", gib(30));
    elsewhere.gpus = vec![GpuId::new("GPU-1")];
    let mut here = spec("here", gib(30));
    here.gpus = vec![GpuId::new("GPU-0")];
    let mut host = Host::bare(vec![elsewhere, here]);
    host.tell(Event::Found(vec![]));
    reading(&mut host, [0, 0], false, &[]);
    let here = host.ready(1, "here");
    let there = host.ready(2, "elsewhere");
    let holds = [(&here, 30), (&there, 30)];
    reading(&mut host, [30, 30], false, &holds);
    reading(&mut host, [30, 30], true, &[(&there, 30)]);
    assert!(host.stops().is_empty(), "one reading is none");
    reading(&mut host, [30, 30], true, &[(&there, 30)]);
    assert_eq!(host.stops(), std::slice::from_ref(&here));
    assert!(problem(&host, "gpu_lost"));
    host.stopped(&here);
    let status = host.state.status(host.now);
    let failed = status.models.iter().find(|m| m.name == name("here")).unwrap();
    assert_eq!(failed.error.as_ref().unwrap().code, FaultCode::GpuLost);
    assert_eq!(host.phase("elsewhere"), Phase::Ready);
}

#[test]
fn a_device_that_has_another_word_for_it_fails_nobody() {
    let mut host = Host::bare(["a", "b"].map(|m| spec(m, gib(30))).into());
    host.tell(Event::Found(vec![]));
    reading(&mut host, [0, 90], false, &[]);
    let a = host.ready(1, "a");
    reading(&mut host, [30, 90], false, &[(&a, 30)]);
    let odd = || Some(Silence::Unread("an internal driver error occurred".to_owned()));
    for _ in 0..5 {
        silent(&mut host, [30, 90], odd(), &[]);
        assert!(host.stops().is_empty());
        assert!(problem(&host, "gpu_unreadable") && !problem(&host, "gpu_lost"));
    }
    host.acquire(2, "a");
    assert_eq!(host.grants(), [2], "it serves");
    // Nothing new is promised there, and nothing is free because nobody looks.
    host.acquire(3, "b");
    assert!(host.order().is_none() && host.denials().is_empty());
    (0..2).for_each(|_| host.release(&a));
    host.tell(Event::Unload { waiter: WaiterId(4), model: name("a"), haste: Haste::Drain });
    host.stopped(&a);
    silent(&mut host, [30, 90], odd(), &[]);
    assert!(host.state.ledger.hold(&a).is_some());
    reading(&mut host, [0, 90], false, &[]);
    assert!(host.state.ledger.hold(&a).is_none() && host.order().is_some());
    assert!(!problem(&host, "gpu_unreadable"));
    // One that is gone has taken with it what ran there.
    let b = host.launch();
    host.start(&b);
    host.heal(&b);
    silent(&mut host, [30, 90], odd(), &[]);
    reading(&mut host, [30, 90], true, &[]);
    assert!(host.stops().is_empty(), "one reading is none");
    reading(&mut host, [30, 90], true, &[]);
    assert_eq!(host.stops(), [b]);
}
