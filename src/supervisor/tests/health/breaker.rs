//! Models that never are well: what is not tried any more.

use super::super::*;
use super::{health, watched};
use crate::supervisor::health::HealthRules;
use crate::types::Breaker;

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
