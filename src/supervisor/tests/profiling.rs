//! What nobody waits for does not begin beside an engine that profiles its device: it would take what comes back for its own.

use super::reconfiguring::configure;
use super::yielding::{gib, reading};
use super::*;
use crate::types::{EngineKind, Evict, SleepLevel};

/// `a` of 40 GiB, and `b` of 20 that profiles its device, on the first of two.
fn specs() -> [ModelSpec; 2] {
    [("a", 40), ("b", 20)].map(|(model, vram)| {
        let mut spec = spec(model, gib(vram));
        spec.gpus = vec![GpuId::new("GPU-0")];
        spec.engine = if model == "b" { EngineKind::Vllm } else { EngineKind::Llamacpp };
        spec
    })
}

fn host(specs: [ModelSpec; 2]) -> Host {
    let mut host = Host::bare(specs.into());
    host.tell(Event::Found(vec![]));
    reading(&mut host, [0, 0], false, &[]);
    host
}

/// `a` is idle, and `b` loads.
fn loading(specs: [ModelSpec; 2]) -> (Host, [InstanceId; 2]) {
    let mut host = host(specs);
    let a = host.ready(1, "a");
    reading(&mut host, [40, 0], false, &[(&a, 40)]);
    host.release(&a);
    host.pass(60);
    host.acquire(2, "b");
    let b = host.launch();
    (host, [a, b])
}

#[test]
fn an_idle_model_stops_when_the_load_beside_it_is_over() {
    let (mut host, [a, b]) = loading(specs());
    for _ in 0..2 {
        host.pass(60);
        assert!(host.stops().is_empty(), "b is {}", host.phase("b"));
        assert!(host.state.next_deadline() > Some(host.now), "it is not due");
        host.start(&b);
    }
    host.heal(&b);
    assert_eq!(host.stops(), std::slice::from_ref(&a));
    // It failed: the same.
    let (mut host, [a, b]) = loading(specs());
    host.start(&b);
    host.pass(60);
    host.tell(Event::Died { instance: b.clone(), fault: fault("exit 1") });
    assert_eq!(host.stops(), [b, a]);
}

#[test]
fn beside_an_engine_that_does_not_look_or_on_another_device_it_stops_when_due() {
    let changes: [fn(&mut ModelSpec); 2] =
        [|b| b.engine = EngineKind::Llamacpp, |b| b.gpus = vec![GpuId::new("GPU-1")]];
    for change in changes {
        let mut specs = specs();
        change(&mut specs[1]);
        let (mut host, [a, _]) = loading(specs);
        host.pass(60);
        assert_eq!(host.stops(), [a]);
    }
}

#[test]
fn a_changed_model_goes_when_the_load_beside_it_is_over() {
    let (mut host, [a, b]) = loading(specs());
    let [mut changed, other] = specs();
    changed.args = vec!["--changed".to_owned()];
    configure(&mut host, vec![changed, other]);
    assert!(host.stops().is_empty());
    host.heal(&b);
    assert!(host.stops().is_empty(), "it only starts");
    host.start(&b);
    host.heal(&b);
    assert_eq!(host.stops(), [a]);
}

#[test]
fn who_was_measured_is_told_at_once_and_goes_when_the_load_beside_it_is_over() {
    let mut host = host(specs());
    host.tell(Event::Measure { waiter: WaiterId(7), model: name("a") });
    let a = host.launch();
    host.start(&a);
    host.heal(&a);
    reading(&mut host, [40, 0], false, &[(&a, 40)]);
    host.acquire(2, "b");
    let b = host.launch();
    host.start(&b);
    for _ in 0..30 {
        reading(&mut host, [40, 0], false, &[(&a, 40)]);
        if !host.done().is_empty() {
            break;
        }
    }
    assert_eq!((host.done(), host.stops()), (vec![7], vec![]));
    host.heal(&b);
    assert_eq!(host.stops(), [a]);
}

/// `a`, which may, sleeps.
fn asleep(specs: [ModelSpec; 2]) -> (Host, InstanceId) {
    let mut host = host(specs);
    host.state.settings.rules.sleep =
        SleepRules { host_ram_budget: Bytes(gib(50)), residual_max: Bytes(gib(2)) };
    host.acquire(1, "a");
    let a = host.launch();
    host.start(&a);
    host.heal(&a);
    host.tell(Event::Sung { instance: a.clone(), result: Ok(" 5, 6, 7,".to_owned()) });
    reading(&mut host, [40, 0], false, &[(&a, 40)]);
    host.release(&a);
    host.pass(100);
    assert_eq!(host.phase("a"), Phase::Dozing);
    host.tell(Event::Slept { instance: a.clone(), result: Ok(()) });
    reading(&mut host, [1, 0], false, &[(&a, 1)]);
    (host, a)
}

#[test]
fn a_sleeper_stays_until_the_load_beside_it_is_over() {
    let [mut a, b] = specs();
    a.sleep_timeout = Some(Duration::from_secs(1000));
    (a.engine, a.sleep_level) = (EngineKind::Vllm, Some(SleepLevel::One));
    let (mut host, a) = asleep([a, b]);
    assert_eq!(host.phase("a"), Phase::Asleep);
    host.pass(990);
    host.acquire(2, "b");
    let b = host.launch();
    host.start(&b);
    host.pass(60);
    assert!(host.stops().is_empty() && host.state.next_deadline() > Some(host.now));
    host.heal(&b);
    assert_eq!(host.stops(), [a]);
}

/// `big` has 30 GiB on each of both devices, and a request on it; `v` takes 40 GiB of the first and profiles it, `c` needs 90 GiB of
/// the second and `d` 20 GiB.
fn spanned() -> (Host, InstanceId) {
    let specs = [("big", 30), ("v", 40), ("c", 90), ("d", 20)].map(|(model, vram)| {
        let mut spec = spec(model, gib(vram));
        spec.idle_timeout = None;
        match model {
            "big" => spec.gpu_count = 2,
            "v" => {
                (spec.engine, spec.gpus) = (EngineKind::Vllm, vec![GpuId::new("GPU-0")]);
            }
            _ => spec.gpus = vec![GpuId::new("GPU-1")],
        }
        spec
    });
    let mut host = Host::bare(specs.to_vec());
    host.tell(Event::Found(vec![]));
    reading(&mut host, [0, 0], false, &[]);
    let big = host.ready(1, "big");
    reading(&mut host, [30, 30], false, &[(&big, 30)]);
    (host, big)
}

/// `v` loads.
fn beside(host: &mut Host) -> InstanceId {
    host.acquire(2, "v");
    let v = host.launch();
    host.start(&v);
    v
}

#[test]
fn room_on_another_device_is_made_when_the_load_is_over() {
    let (mut host, big) = spanned();
    host.release(&big);
    host.pass(1);
    let v = beside(&mut host);
    host.acquire(3, "c");
    assert!(host.stops().is_empty(), "it would give 30 GiB back under the load");
    let spared = host.state.models[&name("c")].report.as_ref().unwrap().victims[0].spared;
    assert!(spared.unwrap().contains("loads beside it"), "{spared:?}");
    host.acquire(4, "d");
    assert!(host.order().is_none(), "its place is kept");
    host.pass(60);
    assert!(host.stops().is_empty() && host.denials().is_empty());
    host.heal(&v);
    assert_eq!(host.stops(), [big]);
}

#[test]
fn a_load_that_begins_beside_one_that_makes_way_is_not_disturbed_by_its_end() {
    let (mut host, big) = spanned();
    host.state.settings.turn_after = Some(Duration::from_secs(1));
    host.acquire(3, "c");
    host.pass(1);
    assert_eq!(host.phase("big"), Phase::Draining);
    let v = beside(&mut host);
    host.release(&big);
    host.pass(60);
    assert_eq!((host.phase("big"), host.stops()), (Phase::Draining, vec![]));
    host.heal(&v);
    assert_eq!(host.stops(), [big]);
}

/// An operator may have requests cut off after the time for drains; not beside a load.
#[test]
fn nor_by_one_that_is_to_go_at_any_price() {
    let (mut host, big) = spanned();
    let wish = Wish { evict: Some(Evict::Any), ..Wish::default() };
    host.tell(Event::Load { waiter: WaiterId(3), model: name("c"), wish });
    assert_eq!(host.phase("big"), Phase::Draining);
    let v = beside(&mut host);
    host.pass(40);
    assert!(host.stops().is_empty());
    assert!(host.state.next_deadline() > Some(host.now), "it is not due");
    host.heal(&v);
    host.pass(30);
    assert_eq!(host.stops(), [big]);
}

#[test]
fn others_that_use_up_the_headroom_of_another_device_wait_for_the_load_as_well() {
    let (mut host, big) = spanned();
    host.release(&big);
    let v = beside(&mut host);
    for _ in 0..3 {
        reading(&mut host, [50, 101], false, &[(&big, 30), (&v, 20)]);
        assert!(host.stops().is_empty());
    }
    let problems = host.state.status(host.now).problems;
    assert!(problems.iter().any(|p| p.code == "memory_pressure"), "{problems:?}");
    host.heal(&v);
    reading(&mut host, [70, 101], false, &[(&big, 30), (&v, 40)]);
    assert_eq!(host.stops(), [big]);
}

#[test]
fn what_the_background_measures_stays_until_the_load_beside_it_is_over() {
    let [a, b] = specs();
    let mut c = spec("c", gib(90));
    c.gpus = vec![GpuId::new("GPU-0")];
    let mut host = Host::bare(vec![a, b, c]);
    host.state.settings.measure_after = Some(Duration::from_secs(10));
    let images = [(name("a"), "1".to_owned())].into();
    host.state.remember(Recalled { images, ..Recalled::default() });
    host.tell(Event::Found(vec![]));
    reading(&mut host, [0, 0], false, &[]);
    host.pass(20);
    let a = host.launch();
    host.start(&a);
    host.heal(&a);
    reading(&mut host, [40, 0], false, &[(&a, 40)]);
    host.acquire(2, "b");
    let b = host.launch();
    host.start(&b);
    host.acquire(3, "c");
    host.pass(1);
    assert!(host.stops().is_empty());
    host.heal(&b);
    assert_eq!(host.stops(), [a]);
}

#[test]
fn a_changed_sleeper_stays_as_long_though_somebody_waits_for_it() {
    let mut specs = specs();
    (specs[0].engine, specs[0].sleep_level) = (EngineKind::Vllm, Some(SleepLevel::One));
    let (mut host, a) = asleep(specs.clone());
    host.acquire(2, "b");
    let b = host.launch();
    host.start(&b);
    specs[0].args = vec!["--changed".to_owned()];
    configure(&mut host, specs.to_vec());
    host.acquire(3, "a");
    assert_eq!((host.phase("a"), host.stops()), (Phase::Asleep, vec![]));
    host.heal(&b);
    assert_eq!(host.stops(), [a]);
}
