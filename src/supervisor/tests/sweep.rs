//! What is on the host and of nobody.

use super::*;
use crate::supervisor::sweep::STRAY_AGE;
use crate::types::{EngineKind, SleepLevel};

fn swept(host: &mut Host, list: Result<Vec<Found>, Fault>) {
    let taken = host.now;
    host.tell(Event::Swept { taken, list });
}

#[test]
fn what_podman_made_after_it_was_given_up_is_collected_by_label_and_age() {
    let m = spec("m", 40);
    let mut host = Host::new(vec![m.clone()]);
    let own = host.ready(1, "m");
    let late = InstanceId::new(name("m"), Generation(9), 7);
    let damaged = || Found { container: "c0ffee".into(), identity: None, running: None };
    let list = || vec![found(&own, &m, true), found(&late, &m, false), damaged()];
    swept(&mut host, Ok(list()));
    assert!(host.stops().is_empty(), "it may be of a decision that the list is older than");
    // One that has gone by itself is forgotten, and begins anew.
    host.pass(9);
    swept(&mut host, Ok(vec![found(&own, &m, true)]));
    host.pass(1);
    swept(&mut host, Ok(list()));
    assert!(host.stops().is_empty());
    host.pass(STRAY_AGE.as_secs());
    swept(&mut host, Ok(list()));
    assert_eq!(host.stops(), std::slice::from_ref(&late));
    let reap = |e: &Effect| matches!(e, Effect::Reap { container } if container == "c0ffee");
    assert!(host.out.iter().any(reap));
    // In good hands now.
    host.pass(STRAY_AGE.as_secs());
    swept(&mut host, Ok(vec![found(&own, &m, true), found(&late, &m, false)]));
    host.pass(STRAY_AGE.as_secs());
    swept(&mut host, Ok(vec![found(&own, &m, true), found(&late, &m, false)]));
    assert!(host.stops().is_empty());
    host.stopped(&late);
    assert_eq!(host.phase("m"), Phase::Ready);
}

#[test]
fn one_that_runs_is_charged_until_it_is_gone() {
    let m = spec("m", 40);
    let mut host = Host::new(vec![m.clone(), spec("n", 80)]);
    let stray = InstanceId::new(name("m"), Generation(9), 7);
    swept(&mut host, Ok(vec![found(&stray, &m, true)]));
    host.pass(STRAY_AGE.as_secs());
    swept(&mut host, Ok(vec![found(&stray, &m, true)]));
    assert_eq!(host.stops(), std::slice::from_ref(&stray));
    host.observe();
    host.acquire(1, "n");
    assert!(host.order().is_none(), "its memory is not free yet");
    host.stopped(&stray);
    host.pass(1);
    host.observe();
    let next = host.launch();
    assert!(next.generation > Generation(9), "generations never come again");
}

#[test]
fn a_podman_that_does_not_answer_is_a_problem_until_it_does() {
    let mut host = Host::new(vec![spec("m", 40)]);
    let own = host.ready(1, "m");
    let since = host.now;
    for _ in 0..2 {
        swept(&mut host, Err(Fault::new(FaultCode::PodmanUnreachable, "podman: refused; look")));
        let status = host.state.status(host.now);
        let problem = &status.problems[0];
        assert_eq!((problem.code, problem.since), ("podman_unreachable", since));
        assert_eq!(problem.message, "podman: refused; look");
        host.pass(5);
    }
    // Nobody suffers from it who does not need it.
    host.acquire(2, "m");
    assert_eq!(host.grants(), [2]);
    swept(&mut host, Ok(vec![found(&own, &spec("m", 40), true)]));
    assert!(host.state.status(host.now).problems.is_empty());
}

#[test]
fn a_shutdown_waits_as_long_as_an_engine_may_take_to_stop() {
    let mut slow = spec("m", 10);
    slow.stop_timeout = Duration::from_secs(300);
    let mut host = Host::new(vec![slow]);
    let id = host.ready(1, "m");
    host.release(&id);
    host.tell(Event::Shutdown { keep: false });
    assert_eq!(host.stops(), [id]);
    host.pass(30 + 300);
    assert!(!host.exited());
    host.pass(15);
    assert!(host.exited());
}

#[test]
fn a_shutdown_that_outlives_podman_ends_when_the_kernel_has_no_process_left() {
    let mut host = Host::new(vec![spec("a", 40)]);
    let a = host.ready(1, "a");
    host.release(&a);
    let seen = |host: &mut Host, pids: Vec<u32>| {
        let devices = Ok(GpuSnapshot { devices: vec![], lost: vec![], driver: String::new() });
        let usage = BTreeMap::from([(a.clone(), Usage { pids, bytes: BTreeMap::new() })]);
        let (taken, unix_s) = (host.now, 1_800_000_000);
        host.tell(Event::Observed(Observation { taken, unix_s, devices, usage }));
    };
    host.tell(Event::Shutdown { keep: false });
    seen(&mut host, vec![]);
    assert!(!host.exited(), "podman is asked first");
    let away = Err(Fault::new(FaultCode::PodmanUnreachable, "podman is gone"));
    host.tell(Event::Stopped { instance: a.clone(), result: away });
    assert!(host.out.iter().any(|e| matches!(e, Effect::Observe)), "asked of the kernel at once");
    seen(&mut host, vec![7]);
    assert!(!host.exited(), "it lives");
    seen(&mut host, vec![]);
    assert!(host.exited());

    // One that is retired while podman is away is kept account of: there is somebody to ask again.
    let mut host = Host::new(vec![spec("a", 40)]);
    let a = host.ready(1, "a");
    host.release(&a);
    host.tell(Event::Unload { waiter: WaiterId(2), model: name("a"), haste: Haste::Drain });
    let away = Err(Fault::new(FaultCode::PodmanUnreachable, "podman is gone"));
    host.tell(Event::Stopped { instance: a.clone(), result: away });
    seen(&mut host, vec![]);
    assert_eq!(host.phase("a"), Phase::Stopping);
}

#[test]
fn a_shutdown_does_not_wait_for_ever_for_podman() {
    let mut host = Host::new(vec![spec("a", 40)]);
    let a = host.ready(1, "a");
    host.release(&a);
    host.tell(Event::Shutdown { keep: false });
    let result = Err(fault("podman is gone"));
    host.tell(Event::Stopped { instance: a.clone(), result });
    assert_eq!(host.state.status(host.now).problems[0].code, "stop_failed");
    host.pass(5);
    assert_eq!(host.stops(), [a], "tried again");
    host.pass(25);
    assert!(!host.exited());
    host.pass(45);
    assert!(host.exited());
}

#[test]
fn a_restart_waits_for_a_stop_that_is_under_way() {
    for late in [false, true] {
        let mut host = Host::new(vec![spec("m", 10), spec("stays", 10)]);
        let stays = host.ready(1, "stays");
        host.release(&stays);
        let id = host.ready(2, "m");
        host.release(&id);
        host.tell(Event::Unload { waiter: WaiterId(3), model: name("m"), haste: Haste::Now });
        assert_eq!(host.phase("m"), Phase::Stopping);
        host.tell(Event::Shutdown { keep: true });
        assert!(!host.exited(), "the next daemon would take it for one to keep");
        if late {
            host.pass(host.state.settings.drain_timeout.as_secs());
        } else {
            host.stopped(&id);
        }
        assert!(host.exited());
        assert_eq!(host.phase("stays"), Phase::Ready);
    }
}

/// podman is not there, by the last list.
fn away(host: &mut Host) {
    swept(host, Err(Fault::new(FaultCode::PodmanUnreachable, "podman: refused")));
}

#[test]
fn fault_02_while_podman_is_away_nobody_is_told_to_go_who_could_serve_on() {
    let mut host = Host::new(vec![spec("a", 60), spec("b", 60)]);
    let a = host.ready(1, "a");
    host.release(&a);
    away(&mut host);
    host.pass(1000);
    assert!(host.stops().is_empty(), "its idle time is over, and it cannot be stopped");
    assert!(host.state.next_deadline().is_none_or(|at| at > host.now), "and nothing is due");
    host.acquire(2, "b");
    assert!(host.stops().is_empty() && host.order().is_none(), "{:?}", host.out);
    let why = host.state.status(host.now).models[1].waiting_for.clone().unwrap();
    assert!(why.starts_with("podman does not answer"), "{why}");
    host.acquire(3, "a");
    assert_eq!(host.grants(), [3], "it lives");
    host.release(&a);
    swept(&mut host, Ok(vec![found(&a, &spec("a", 60), true)]));
    assert_eq!(host.stops(), [a], "who waits has its place now");
}

#[test]
fn while_podman_is_away_a_changed_model_that_could_sleep_is_not_asked_to_make_way() {
    let gib = super::yielding::gib;
    let mut specs = ["v", "w"].map(|model| {
        let mut spec = spec(model, gib(60));
        spec.gpus = vec![GpuId::new("GPU-0")];
        spec
    });
    (specs[0].engine, specs[0].sleep_level) = (EngineKind::Vllm, Some(SleepLevel::One));
    let mut host = Host::bare(specs.to_vec());
    host.state.settings.rules.sleep =
        SleepRules { host_ram_budget: Bytes(gib(90)), residual_max: Bytes(gib(2)) };
    host.state.settings.turn_after = Some(Duration::from_secs(30));
    host.tell(Event::Found(vec![]));
    super::yielding::reading(&mut host, [0, 0], false, &[]);
    host.acquire(1, "v");
    let v = host.launch();
    host.start(&v);
    host.heal(&v);
    host.tell(Event::Sung { instance: v.clone(), result: Ok(" 5, 6, 7,".to_owned()) });
    super::yielding::reading(&mut host, [60, 0], false, &[(&v, 60)]);
    away(&mut host);
    specs[0].args = vec!["--changed".to_owned()];
    super::reconfiguring::configure(&mut host, specs.to_vec());
    host.acquire(2, "w");
    for _ in 0..10 {
        host.pass(10);
        let yields = |e: &Effect| matches!(e, Effect::Notice(Notice::Yielding { .. }));
        assert!(!host.out.iter().any(yields), "{:?}", host.out);
    }
    assert_eq!(host.phase("v"), Phase::Ready);
}

#[test]
fn while_podman_is_away_a_changed_model_serves_on() {
    for busy in [false, true] {
        let mut host = Host::new(vec![spec("m", 10)]);
        host.state.settings.turn_after = Some(Duration::from_secs(30));
        let id = host.ready(1, "m");
        away(&mut host);
        super::reconfiguring::configure(&mut host, vec![super::reconfiguring::changed("m", 10)]);
        if !busy {
            host.release(&id);
        }
        host.pass(1000);
        assert_eq!((host.phase("m"), host.stops()), (Phase::Ready, vec![]), "busy: {busy}");
        assert!(host.state.next_deadline().is_none_or(|at| at > host.now));
        swept(&mut host, Ok(vec![found(&id, &spec("m", 10), true)]));
        assert_eq!(host.phase("m"), if busy { Phase::Draining } else { Phase::Stopping });
        // It goes away again before the last request is over.
        away(&mut host);
        assert_eq!(host.phase("m"), if busy { Phase::Ready } else { Phase::Stopping });
    }
}
