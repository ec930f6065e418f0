//! Engines that are not well, and models that never are.

use super::*;
use crate::supervisor::health::HealthRules;
use crate::types::{Breaker, HealthStatus};

fn watched(model: &str) -> ModelSpec {
    let mut spec = spec(model, 10);
    spec.health_interval = Some(Duration::from_secs(15));
    spec.idle_timeout = None;
    spec
}

/// Whether it was asked, and for a token.
fn asked(host: &Host) -> Option<bool> {
    host.out
        .iter()
        .find_map(|e| if let Effect::Check { token, .. } = e { Some(*token) } else { None })
}

fn answers(host: &mut Host, id: &InstanceId, result: Result<(), &str>) {
    let result = result.map_err(|why| Fault::new(FaultCode::Unhealthy, why));
    host.tell(Event::Checked { instance: id.clone(), result });
}

fn health(host: &Host) -> HealthStatus {
    host.state.status(host.now).models[0].health.clone()
}

#[test]
fn an_engine_that_hangs_is_replaced_after_so_many_failures_in_a_row() {
    let mut host = Host::new(vec![watched("m")]);
    let id = host.ready(1, "m");
    host.release(&id);
    host.pass(14);
    assert_eq!(asked(&host), None);
    host.pass(1);
    assert_eq!(asked(&host), Some(true));
    host.pass(60);
    assert_eq!(asked(&host), None, "not twice at once");
    for _ in 0..2 {
        answers(&mut host, &id, Err("no answer"));
        host.pass(5);
        assert_eq!(asked(&host), Some(true), "asked again sooner");
    }
    assert_eq!(health(&host).checks_failed, 2);
    answers(&mut host, &id, Ok(()));
    assert_eq!(health(&host).checks_failed, 0, "in a row");
    host.pass(15);
    for _ in 0..3 {
        assert!(asked(&host).is_some());
        answers(&mut host, &id, Err("no answer"));
        if host.stops().is_empty() {
            host.pass(5);
        }
    }
    assert_eq!(host.stops(), std::slice::from_ref(&id));
    host.stopped(&id);
    host.observe();
    host.acquire(2, "m");
    let next = host.launch();
    host.start(&next);
    host.heal(&next);
    assert_eq!(host.grants(), [2]);
    let restarts = host.state.status(host.now).models[0].restarts;
    assert_eq!((restarts, health(&host).breaker), (1, Breaker::Closed));
}

#[test]
fn a_busy_engine_is_not_asked_for_a_token_nor_blamed_for_a_late_one() {
    let mut host = Host::new(vec![watched("m")]);
    let id = host.ready(1, "m");
    host.pass(15);
    assert_eq!(asked(&host), Some(false), "a request runs");
    answers(&mut host, &id, Ok(()));
    host.release(&id);
    host.pass(15);
    assert_eq!(asked(&host), Some(true));
    // Somebody comes before the token does.
    host.acquire(2, "m");
    answers(&mut host, &id, Err("no token within 10 s"));
    assert_eq!(health(&host).checks_failed, 0);
    for _ in 0..3 {
        host.pass(5);
        assert_eq!(asked(&host), Some(false));
        answers(&mut host, &id, Err("/health does not answer"));
    }
    assert_eq!(host.stops(), [id], "but its health is its own");
}

#[test]
fn what_an_operator_loaded_once_and_breaks_is_not_tried_for_ever() {
    let mut host = Host::new(vec![spec("m", 60), spec("other", 60)]);
    host.tell(Event::Load { waiter: WaiterId(1), model: name("m"), wish: Wish::default() });
    let id = host.launch();
    host.start(&id);
    host.heal(&id);
    assert_eq!(host.done(), [1]);
    // It had served, and is restarted once; that fails, and he is not there any more to be told.
    host.tell(Event::Died { instance: id.clone(), fault: fault("driver") });
    host.stopped(&id);
    host.pass(1);
    host.observe();
    let again = host.launch();
    host.tell(Event::LaunchFailed { instance: again, fault: fault("no such file") });
    host.observe();
    let other = host.ready(2, "other");
    host.release(&other);
    for _ in 0..90 {
        host.pass(1);
        assert!(host.order().is_none() && host.stops().is_empty(), "{:?}", host.out);
        host.observe();
        assert!(host.order().is_none() && host.stops().is_empty(), "{:?}", host.out);
    }
    // It is loaded for whoever asks.
    host.acquire(3, "m");
    assert_eq!(host.stops(), [other]);
}

/// One with a request on it, which is to make way for another.
fn making_way() -> (Host, InstanceId) {
    let mut busy = watched("busy");
    busy.vram = Some(Bytes(60));
    let mut host = Host::new(vec![busy, spec("m", 60)]);
    host.state.settings.turn_after = Some(Duration::from_secs(1));
    let busy = host.ready(1, "busy");
    host.acquire(2, "m");
    host.pass(1);
    assert_eq!(host.phase("busy"), Phase::Draining);
    (host, busy)
}

/// No drain is cut off for a turn: a request that never ends would keep whoever waits out for ever.
#[test]
fn an_engine_that_hangs_while_it_makes_way_is_stopped() {
    let (mut host, busy) = making_way();
    host.pass(14);
    for _ in 0..3 {
        assert_eq!(asked(&host), Some(false));
        assert!(host.stops().is_empty());
        answers(&mut host, &busy, Err("no answer"));
        if host.stops().is_empty() {
            host.pass(5);
        }
    }
    assert_eq!(host.stops(), std::slice::from_ref(&busy));
    host.stopped(&busy);
    host.pass(1);
    host.observe();
    assert_eq!(host.launch().model, name("m"));
}

#[test]
fn an_engine_that_hangs_is_found_out_however_often_it_is_spared() {
    let (mut host, busy) = making_way();
    host.pass(14);
    for waiter in 2..5 {
        assert_eq!(asked(&host), Some(false));
        host.tell(Event::Cancel { waiter: WaiterId(waiter) });
        assert_eq!(host.phase("busy"), Phase::Ready);
        host.pass(1);
        assert_eq!(asked(&host), None, "not twice at once");
        host.acquire(waiter + 1, "m");
        assert_eq!(host.phase("busy"), Phase::Draining, "it waits on");
        answers(&mut host, &busy, Err("no answer"));
        if waiter < 4 {
            assert!(host.stops().is_empty());
            host.pass(5);
        }
    }
    assert_eq!(host.stops(), [busy]);
}

#[test]
fn what_an_engine_wrote_that_had_served_is_not_told_to_others() {
    for served in [false, true] {
        let mut host = Host::new(vec![watched("m")]);
        let wrote = || fault("exit 1").with_log(vec!["what it wrote".into()]);
        // The first death of one that was ready is made good at once.
        for waiter in 1..3 {
            host.pass(5);
            host.observe();
            if served {
                let id = host.ready(waiter, "m");
                host.release(&id);
                host.tell(Event::Died { instance: id.clone(), fault: wrote() });
                host.stopped(&id);
            } else {
                host.acquire(waiter, "m");
                let id = host.launch();
                host.tell(Event::LaunchFailed { instance: id, fault: wrote() });
            }
        }
        host.acquire(9, "m");
        let Denied::LoadFailed { fault, .. } = host.denied() else { panic!() };
        assert_eq!(fault.log_tail.is_empty(), served, "{fault:?}");
        let error = host.state.status(host.now).models[0].error.clone().unwrap();
        assert_eq!(*error.log_tail, ["what it wrote"], "who may read logs sees it");
    }
}

#[test]
fn who_is_not_ready_or_shall_not_be_is_not_asked() {
    let mut host = Host::new(vec![spec("m", 10)]);
    let id = host.ready(1, "m");
    host.pass(3600);
    assert_eq!(asked(&host), None, "never");
    answers(&mut host, &id, Err("of nobody"));
    assert!(host.stops().is_empty());
}

/// One failed start.
fn fail(host: &mut Host, waiter: u64) {
    host.observe();
    host.acquire(waiter, "m");
    let id = host.launch();
    let fault = fault("exit 1").with_log(vec!["no memory".into()]);
    host.tell(Event::LaunchFailed { instance: id, fault });
}

#[test]
fn after_so_many_failures_the_breaker_opens_then_lets_one_try() {
    let mut host = Host::new(vec![watched("m")]);
    for n in 1..6 {
        fail(&mut host, n);
        assert_eq!(health(&host).breaker, Breaker::Closed, "{n}");
        host.pass(60);
    }
    fail(&mut host, 6);
    let seen = health(&host);
    assert_eq!((seen.breaker, seen.failures_in_a_row), (Breaker::Open, 6));
    let problem = host.state.status(host.now).problems[0].clone();
    assert_eq!(problem.code, "circuit_open");
    assert!(problem.message.contains("failed 6 times"), "{problem:?}");
    host.pass(220);
    host.acquire(7, "m");
    let Denied::LoadFailed { fault, retry_after, .. } = host.denied() else { panic!() };
    assert!(fault.message.contains("circuit breaker of m is open"), "{fault}");
    assert_eq!(*fault.log_tail, ["no memory"]);
    assert!(*retry_after <= Duration::from_secs(80), "{retry_after:?}");

    // Half open: one start, for whoever comes first.
    host.pass(80);
    assert_eq!(health(&host).breaker, Breaker::HalfOpen);
    assert!(host.state.status(host.now).problems.is_empty());
    fail(&mut host, 8);
    assert_eq!(health(&host).breaker, Breaker::Open, "and it is open again at once");
    host.pass(300);
    host.observe();
    let id = host.ready(9, "m");
    assert_eq!(health(&host).breaker, Breaker::HalfOpen, "ready, but that is no service yet");
    host.pass(60);
    assert_eq!((health(&host).breaker, health(&host).failures_in_a_row), (Breaker::Closed, 0));
    host.tell(Event::Died { instance: id.clone(), fault: super::fault("segfault") });
    host.stopped(&id);
    assert_eq!((health(&host).breaker, health(&host).failures_in_a_row), (Breaker::Closed, 1));
}

/// One start for which podman was not there.
fn unreached(host: &mut Host, waiter: u64, begun: bool) {
    host.observe();
    host.acquire(waiter, "m");
    let instance = host.launch();
    if begun {
        host.tell(Event::Progress { instance: instance.clone(), phase: Phase::Starting });
    }
    let fault = Fault::new(FaultCode::PodmanUnreachable, "podman: refused");
    host.tell(Event::LaunchFailed { instance, fault });
}

#[test]
fn a_podman_that_is_away_is_no_models_fault() {
    let mut host = Host::new(vec![watched("m")]);
    fail(&mut host, 1);
    host.pass(60);
    for n in 2..20 {
        unreached(&mut host, n, false);
        let seen = health(&host);
        assert_eq!((seen.breaker, seen.failures_in_a_row), (Breaker::Closed, 1), "{n}");
        let Denied::LoadFailed { fault, retry_after, .. } = host.denied() else { panic!() };
        assert_eq!(fault.code, FaultCode::PodmanUnreachable);
        assert!(*retry_after <= Duration::from_secs(5), "{retry_after:?}");
        host.pass(5);
    }
    assert_eq!(host.state.status(host.now).models[0].restarts, 1);
    // What had begun may have failed by what the model is.
    for n in 20..25 {
        unreached(&mut host, n, true);
        host.pass(60);
    }
    assert_eq!(health(&host).failures_in_a_row, 6);
}

#[test]
fn a_podman_that_is_away_neither_closes_a_breaker_nor_keeps_it_open() {
    let mut host = Host::new(vec![watched("m")]);
    for n in 1..7 {
        fail(&mut host, n);
        host.pass(60);
    }
    host.pass(300);
    unreached(&mut host, 7, false);
    assert_eq!(health(&host).failures_in_a_row, 6);
    host.pass(5);
    assert_eq!(health(&host).breaker, Breaker::HalfOpen);
    fail(&mut host, 8);
    assert_eq!((health(&host).breaker, health(&host).failures_in_a_row), (Breaker::Open, 7));
}

#[test]
fn a_pin_is_not_tried_for_ever_and_an_operator_may_try_at_once() {
    let mut pinned = watched("m");
    pinned.pin = true;
    let mut host = Host::new(vec![pinned]);
    let mut starts = 0;
    for _ in 0..600 {
        if let Some(order) = host.order() {
            starts += 1;
            let fault = fault("exit 1");
            host.tell(Event::LaunchFailed { instance: order.instance, fault });
        }
        host.pass(1);
        if host.order().is_none() {
            host.observe();
        }
    }
    // 1 + 2 + 4 + 8 + 16 s, then one each five minutes, each up to a quarter sooner.
    assert!((7..=9).contains(&starts), "{starts} starts in ten minutes");
    host.tell(Event::Load { waiter: WaiterId(1), model: name("m"), wish: Wish::default() });
    host.launch();
}

#[test]
fn those_that_failed_together_come_back_apart() {
    let rules = HealthRules::default();
    let delays: std::collections::BTreeSet<_> =
        (0..100).map(|n| rules.delay(5, n * 7919)).collect();
    assert!(delays.len() > 50, "{}", delays.len());
    let (least, most) = (delays.first().unwrap(), delays.last().unwrap());
    assert!(*least >= Duration::from_secs(12) && *most <= Duration::from_secs(16), "{delays:?}");
    assert_eq!(rules.delay(1, 0), Duration::from_secs(1));
    assert_eq!(rules.delay(6, 0), Duration::from_secs(300));
}

mod devices;
