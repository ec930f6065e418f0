//! What operators and reloads do to each other, and to clients. Each of these was found by the simulation.

use super::super::reconfiguring::configure;
use super::*;
use crate::plan::Standing;
use crate::supervisor::instance::Life;
use crate::types::{EngineKind, Evict, GpuId, OnFull, SleepLevel};

fn load(waiter: u64, model: &str, evict: Evict) -> Event {
    let wish = Wish { evict: Some(evict), ..Wish::default() };
    Event::Load { waiter: WaiterId(waiter), model: name(model), wish }
}

/// One serves a request and is to leave for another that an operator wants at any price.
fn draining() -> (Host, InstanceId) {
    let mut host = Host::new(vec![spec("busy", 60), spec("m", 60)]);
    let busy = host.ready(1, "busy");
    host.tell(load(2, "m", Evict::Any));
    assert_eq!(host.phase("busy"), Phase::Draining);
    (host, busy)
}

#[test]
fn who_drains_for_somebody_that_gave_up_serves_on() {
    let (mut host, _) = draining();
    host.acquire(3, "busy");
    assert!(host.grants().is_empty(), "no new request while it drains");
    host.tell(Event::Cancel { waiter: WaiterId(2) });
    assert_eq!((host.grants(), host.phase("busy")), (vec![3], Phase::Ready));
}

#[test]
fn who_is_pinned_while_it_drains_stays() {
    let (mut host, busy) = draining();
    host.tell(Event::Pin { waiter: WaiterId(3), model: name("busy"), pinned: true });
    host.release(&busy);
    assert_eq!((host.stops(), host.phase("busy")), (vec![], Phase::Ready));
}

#[test]
fn who_is_removed_while_it_drains_goes_for_that() {
    let (mut host, busy) = draining();
    configure(&mut host, vec![spec("m", 60)]);
    host.tell(Event::Cancel { waiter: WaiterId(2) });
    host.release(&busy);
    assert_eq!(host.stops(), [busy]);
}

#[test]
fn while_one_drains_nobody_else_has_to_go() {
    let mut host = Host::new(vec![spec("busy", 60), spec("idle", 30), spec("m", 70)]);
    let idle = host.ready(1, "idle");
    host.release(&idle);
    host.ready(2, "busy");
    host.pass(1);
    host.observe();
    host.tell(load(3, "m", Evict::Any));
    let gone = |host: &Host| [host.phase("busy"), host.phase("idle")];
    let first = gone(&host);
    assert_eq!(first, [Phase::Draining, Phase::Ready], "60 and the free 10 are enough");
    host.pass(2);
    host.observe();
    assert_eq!(gone(&host), first);
}

#[test]
fn an_operators_wish_refuses_operators_only() {
    let mut host = Host::new(vec![spec("busy", 60), spec("m", 60)]);
    let busy = host.ready(1, "busy");
    host.acquire(2, "m");
    host.tell(load(3, "m", Evict::None));
    assert_eq!(host.denials(), [(3, "no_room")]);
    assert_eq!(host.phase("m"), Phase::Waiting, "the client waits on");
    host.pass(1);
    host.release(&busy);
    assert_eq!(host.stops(), [busy], "and is let evict as its model may");
}

#[test]
fn a_wish_lasts_no_longer_than_whoever_wished() {
    let mut host = Host::new(vec![spec("busy", 60), spec("m", 60)]);
    host.ready(1, "busy");
    host.tell(Event::Load { waiter: WaiterId(2), model: name("m"), wish: Wish::default() });
    let mut other = spec("busy", 60);
    other.pin = true;
    configure(&mut host, vec![other, spec("m", 60)]);
    host.tell(load(3, "m", Evict::Any));
    host.tell(Event::Cancel { waiter: WaiterId(3) });
    configure(&mut host, vec![spec("busy", 60), spec("m", 60)]);
    assert_eq!(host.phase("busy"), Phase::Ready, "the other operator wishes for idle ones");
}

#[test]
fn an_unload_is_done_when_nothing_is_left() {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.acquire(1, "m");
    let id = host.launch();
    let fault = fault("podman died on the way").leaving_something();
    host.tell(Event::LaunchFailed { instance: id.clone(), fault });
    host.tell(Event::Unload { waiter: WaiterId(2), model: name("m"), haste: Haste::Drain });
    assert!(host.done().is_empty(), "something of it is being removed");
    host.stopped(&id);
    assert_eq!(host.done(), [2]);
}

#[test]
fn an_unload_is_done_also_where_the_next_one_starts_at_once() {
    let mut host = Host::bare(vec![spec("m", 60)]);
    host.tell(Event::Found(vec![]));
    let reading = |host: &mut Host| {
        let device = |gpu: &str| GpuReading {
            id: GpuId::new(gpu),
            name: "X".into(),
            total: Bytes(100),
            used: Bytes(0),
            processes: vec![],
        };
        let devices = ["GPU-0", "GPU-1"].map(device).to_vec();
        let devices = Ok(GpuSnapshot { devices, lost: vec![], driver: String::new() });
        let (taken, usage) = (host.now, BTreeMap::new());
        host.tell(Event::Observed(Observation { taken, unix_s: 1, devices, usage }));
    };
    reading(&mut host);
    let first = host.ready(1, "m");
    host.tell(Event::Unload { waiter: WaiterId(2), model: name("m"), haste: Haste::Drain });
    host.acquire(3, "m");
    host.release(&first);
    assert_eq!(host.stops(), std::slice::from_ref(&first));
    host.stopped(&first);
    // The other device waits for nobody's memory.
    assert_ne!(host.launch(), first);
    assert_eq!(host.done(), [2]);
}

#[test]
fn what_is_to_be_replaced_is_replaced_whatever_policy_comes_then() {
    let mut host = Host::new(vec![spec("m", 10)]);
    let old = host.ready(1, "m");
    let mut new = spec("m", 10);
    new.args = vec!["--changed".to_owned()];
    configure(&mut host, vec![new.clone()]);
    new.idle_timeout = None;
    configure(&mut host, vec![new]);
    host.release(&old);
    assert_eq!(host.stops(), [old], "it runs with the arguments of before");
}

#[test]
fn a_health_interval_counts_from_the_reload_that_brings_it() {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.ready(1, "m");
    let mut asked = spec("m", 10);
    asked.health_interval = Some(Duration::from_secs(5));
    configure(&mut host, vec![asked]);
    host.pass(5);
    assert!(host.out.iter().any(|e| matches!(e, Effect::Check { .. })), "{:?}", host.out);
}

#[test]
fn who_is_pinned_while_it_falls_asleep_is_not_evicted() {
    let mut vllm = spec("m", 60);
    (vllm.engine, vllm.sleep_level) = (EngineKind::Vllm, Some(SleepLevel::One));
    let mut host = Host::new(vec![vllm, spec("other", 100)]);
    host.acquire(1, "m");
    let id = host.launch();
    host.start(&id);
    host.heal(&id);
    host.tell(Event::Pin { waiter: WaiterId(2), model: name("m"), pinned: true });
    let standing = |host: &Host| host.state.holders(None)[0].standing;
    host.state.instance_mut(&id).unwrap().life =
        Life::Asleep { level: SleepLevel::One, since: host.now };
    assert_eq!(standing(&host), Standing::Pinned);
    host.tell(Event::Pin { waiter: WaiterId(3), model: name("m"), pinned: false });
    assert_eq!(standing(&host), Standing::Asleep);
}

#[test]
fn a_reload_that_comes_back_to_the_same_container_brings_its_policy() {
    let mut host = Host::new(vec![spec("m", 10)]);
    let id = host.ready(1, "m");
    let mut other = spec("m", 10);
    other.args = vec!["--changed".to_owned()];
    configure(&mut host, vec![other]);
    let mut back = spec("m", 10);
    back.health_interval = Some(Duration::from_secs(5));
    back.idle_timeout = Some(Duration::from_secs(7));
    configure(&mut host, vec![back]);
    host.pass(5);
    assert!(host.out.iter().any(|e| matches!(e, Effect::Check { .. })), "{:?}", host.out);
    host.release(&id);
    host.pass(7);
    assert_eq!(host.stops(), [id]);
}

#[test]
fn a_reload_may_end_what_made_a_model_drain() {
    let changes: [fn(&mut ModelSpec, &mut ModelSpec); 3] = [
        |busy, _| busy.priority = 5,
        |_, m| m.on_full = OnFull::Wait,
        |_, m| m.gpus = vec![GpuId::new("GPU-elsewhere")],
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let (mut busy, mut m) = (spec("busy", 60), spec("m", 60));
        let mut host = Host::new(vec![busy.clone(), m.clone()]);
        host.state.settings.turn_after = Some(Duration::from_secs(1));
        host.ready(1, "busy");
        host.acquire(2, "m");
        host.pass(1);
        assert_eq!(host.phase("busy"), Phase::Draining);
        change(&mut busy, &mut m);
        configure(&mut host, vec![busy, m]);
        assert_eq!(host.phase("busy"), Phase::Ready, "case {at}");
    }
}
