//! Engines that are not well.

mod breaker;
mod devices;

use super::*;
use crate::types::{Breaker, EngineKind, HealthStatus};

fn watched(model: &str) -> ModelSpec {
    let mut spec = spec(model, 10);
    spec.health_interval = Some(Duration::from_secs(15));
    spec.idle_timeout = None;
    spec.engine = EngineKind::Vllm;
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
    host.tell(Event::Checked { instance: id.clone(), result, silent: false });
}

fn says_nothing(host: &mut Host, id: &InstanceId) {
    let result = Err(Fault::new(FaultCode::Unhealthy, "no answer within 10s"));
    host.tell(Event::Checked { instance: id.clone(), result, silent: true });
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

/// Its few threads are all at work, on whole answers that began together: nobody is told a word for minutes.
#[test]
fn an_engine_that_is_waited_for_may_be_silent_for_as_long_as_clients_wait() {
    let mut host = Host::new(vec![watched("m")]);
    let patience = host.state.settings.health.patience.as_secs();
    let id = host.ready(1, "m");
    host.pass(15);
    says_nothing(&mut host, &id);
    for _ in 1..patience / 5 {
        host.pass(5);
        assert_eq!(asked(&host), Some(false));
        says_nothing(&mut host, &id);
        assert_eq!((health(&host).checks_failed, host.stops().len()), (0, 0));
    }
    // A word to anybody, and all is as if nothing had been.
    host.pass(5);
    answers(&mut host, &id, Ok(()));
    host.pass(15);
    for _ in 0..=patience / 5 + 1 {
        assert!(host.stops().is_empty());
        says_nothing(&mut host, &id);
        host.pass(5);
    }
    assert_eq!(health(&host).checks_failed, 2);
    says_nothing(&mut host, &id);
    assert_eq!(host.stops(), [id], "it hangs");
}

#[test]
fn silence_is_a_failure_where_nobody_waits() {
    let mut host = Host::new(vec![watched("m")]);
    let id = host.ready(1, "m");
    host.pass(15);
    says_nothing(&mut host, &id);
    assert_eq!(health(&host).checks_failed, 0);
    host.release(&id);
    for _ in 0..3 {
        host.pass(5);
        assert!(host.stops().is_empty());
        says_nothing(&mut host, &id);
    }
    assert_eq!(host.stops(), [id]);
}

/// Its loop answers between batches, and one that its last client has left goes on for a minute or two on a slow host.
#[test]
fn a_llama_server_is_asked_for_more_when_nobody_was_there_for_long() {
    let mut slow = watched("m");
    slow.engine = EngineKind::Llamacpp;
    let mut host = Host::new(vec![slow]);
    let id = host.ready(1, "m");
    host.release(&id);
    for _ in 0..7 {
        host.pass(15);
        assert_eq!(asked(&host), Some(false), "its last client may have left it with a batch");
        answers(&mut host, &id, Ok(()));
    }
    host.pass(15);
    for _ in 0..3 {
        assert_eq!(asked(&host), Some(true));
        assert!(host.stops().is_empty());
        says_nothing(&mut host, &id);
        if host.stops().is_empty() {
            host.pass(5);
        }
    }
    assert_eq!(host.stops(), [id]);
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
