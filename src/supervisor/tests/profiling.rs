//! What nobody waits for does not begin beside an engine that profiles its device: it would take what comes back for its own.

use super::reconfiguring::configure;
use super::yielding::{gib, reading};
use super::*;
use crate::types::{EngineKind, SleepLevel};

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

#[test]
fn a_sleeper_stays_until_the_load_beside_it_is_over() {
    let [mut a, b] = specs();
    a.sleep_timeout = Some(Duration::from_secs(1000));
    (a.engine, a.sleep_level) = (EngineKind::Vllm, Some(SleepLevel::One));
    let mut host = host([a, b]);
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
