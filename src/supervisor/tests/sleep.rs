//! Models that sleep instead of being stopped. The host has 50 bytes for their weights; asleep they may keep 10.

mod asked;
mod judged;
mod night;
mod turns;

use super::*;
use crate::supervisor::ports::CanaryError;
use crate::types::SleepLevel;
use night::{ANSWER, Night, sleeper};

#[test]
fn an_idle_model_sleeps_and_wakes_for_the_next_request() {
    let mut night = Night::new(vec![sleeper("m", 60, 40)]);
    let id = night.loaded(1, "m", 55);
    night.pass(99);
    assert!(night.asks("sleep") && night.host.stops().is_empty());
    assert_eq!(night.phase(&id), Phase::Dozing);
    assert_eq!(night.free(), Known::Known(Bytes(40)), "nothing is free on its word");
    night.slept(&id);
    night.holds(&id, 5);
    night.observe_from(Duration::from_millis(1));
    assert_eq!(night.phase(&id), Phase::Dozing, "begun before it slept");
    night.observe();
    assert_eq!((night.phase(&id), night.free()), (Phase::Asleep, Known::Known(Bytes(95))));
    let status = night.counts("m");
    assert_eq!((status.level, status.host_ram), (Some(SleepLevel::One), Bytes(40)));
    assert_eq!((status.sleeps, status.residual), (1, Some(Bytes(5))));
    night.pass(500);
    night.host.acquire(2, "m");
    assert!(night.asks("wake") && night.host.order().is_none());
    assert_eq!(night.phase(&id), Phase::Waking);
    assert_eq!(night.free(), Known::Known(Bytes(40)), "its whole need is reserved again");
    assert!(night.host.grants().is_empty());
    night.pass(2);
    night.woken(&id);
    assert!(night.asks("canary") && night.host.grants().is_empty());
    night.sung(&id, ANSWER);
    assert_eq!((night.host.grants(), night.phase(&id)), (vec![2], Phase::Ready));
    let status = night.counts("m");
    assert_eq!((status.wakes, status.wake_ms, status.host_ram), (1, Some(2000), Bytes(0)));
    assert_eq!((status.wake_failures, status.canary_failures), (0, 0));
}

#[test]
fn requests_that_come_while_it_falls_asleep_are_answered_after_the_wake() {
    let mut night = Night::new(vec![sleeper("m", 60, 40)]);
    let id = night.loaded(1, "m", 55);
    night.pass(100);
    night.host.acquire(2, "m");
    assert!(night.host.grants().is_empty() && night.host.stops().is_empty());
    night.slept(&id);
    night.host.acquire(3, "m");
    night.holds(&id, 5);
    night.observe();
    assert!(night.asks("wake"), "it wakes as soon as it sleeps");
    night.host.acquire(4, "m");
    night.woken(&id);
    night.sung(&id, ANSWER);
    assert_eq!(night.host.grants(), [2, 3, 4]);
}

#[test]
fn a_victim_sleeps_and_its_memory_goes_to_who_asked() {
    let mut night = Night::new(vec![sleeper("a", 60, 40), sleeper("b", 80, 30)]);
    let a = night.loaded(1, "a", 60);
    night.host.acquire(2, "b");
    assert!(night.asks("sleep"), "{:?}", night.host.out);
    assert!(night.host.order().is_none());
    night.slept(&a);
    night.holds(&a, 8);
    night.observe();
    let b = night.finish_load(2, 80);
    assert_eq!((night.phase(&a), night.phase(&b)), (Phase::Asleep, Phase::Ready));
    // Back again: there is room for one alone, and of the host for one's weights alone.
    night.host.acquire(3, "a");
    assert_eq!(night.host.stops(), std::slice::from_ref(&b), "40 + 30 are more than 50");
    let report = night.host.state.status(night.host.now).models[0].report.clone().unwrap();
    assert!(report.to_string().contains("host_ram_budget has no room"), "{report}");
    night.held.remove(&b);
    night.host.stopped(&b);
    night.pass(1);
    night.observe();
    assert!(night.asks("wake"));
    night.woken(&a);
    night.sung(&a, ANSWER);
    assert_eq!(night.host.grants(), [3]);
}

#[test]
fn who_keeps_too_much_is_stopped_and_not_asked_again() {
    let mut night = Night::new(vec![sleeper("m", 60, 40)]);
    let id = night.loaded(1, "m", 55);
    night.pass(100);
    night.slept(&id);
    // It says that it sleeps and gives nothing back, as vLLM does without its option.
    night.observe();
    night.pass(9);
    night.observe();
    assert_eq!((night.phase(&id), night.free()), (Phase::Dozing, Known::Known(Bytes(40))));
    night.pass(1);
    assert_eq!(night.host.stops(), std::slice::from_ref(&id));
    let failed = |e: &Effect| matches!(e, Effect::Notice(Notice::SleepFailed { why, .. }) if why.contains("55 B"));
    assert!(night.host.out.iter().any(failed), "{:?}", night.host.out);
    night.held.remove(&id);
    night.host.stopped(&id);
    night.pass(1);
    night.observe();
    let id = night.loaded(2, "m", 55);
    night.pass(100);
    assert_eq!(night.host.stops(), [id], "it was seen to be of no use");
    let status = night.counts("m");
    assert_eq!((status.sleeps, status.sleep_failures), (0, 1));
}

#[test]
fn who_does_not_fall_asleep_is_stopped() {
    for how in 0..3 {
        let mut night = Night::new(vec![sleeper("m", 60, 40)]);
        let id = night.loaded(1, "m", 55);
        night.pass(100);
        match how {
            0 => {
                let result = Err("/sleep: answered 500".to_owned());
                night.host.tell(Event::Slept { instance: id.clone(), result });
            }
            1 => night.host.tell(Event::Died { instance: id.clone(), fault: fault("segfault") }),
            _ => night.pass(75),
        }
        night.host.acquire(2, "m");
        let stopping = night.host.state.live().count();
        assert_eq!((night.phase(&id), stopping), (Phase::Stopping, 1), "{how}");
        night.slept(&id);
        night.host.stopped(&id);
        night.held.remove(&id);
        night.pass(1);
        night.observe();
        let next = night.finish_load(2, 55);
        assert!(next.generation > id.generation);
        assert_eq!(night.counts("m").sleep_failures, 1);
        assert!(night.host.state.status(night.host.now).models[0].error.is_none());
    }
}

#[test]
fn another_answer_after_the_wake_is_a_cold_start() {
    for how in 0..5 {
        let mut night = Night::new(vec![sleeper("m", 60, 40)]);
        let id = night.loaded(1, "m", 55);
        night.lulled(&id, 5);
        night.host.acquire(2, "m");
        let sung = |result| Event::Sung { instance: id.clone(), result };
        if how < 2 {
            night.woken(&id);
        }
        match how {
            0 => night.sung(&id, "!!!!!!!!"),
            1 => night.host.tell(sung(Err(CanaryError::Failed("no answer".into())))),
            2 => {
                let result = Err("/wake_up: answered 500".to_owned());
                night.host.tell(Event::Woken { instance: id.clone(), result });
            }
            3 => night.host.tell(Event::Died { instance: id.clone(), fault: fault("OOM") }),
            _ => night.pass(120),
        }
        let failed = |e: &Effect| matches!(e, Effect::Notice(Notice::WakeFailed { .. }));
        assert!(night.host.out.iter().any(failed), "{how}");
        let next = night.is_replaced(&id);
        // What comes late is of nobody.
        night.woken(&id);
        night.sung(&id, ANSWER);
        assert!(night.host.grants().is_empty());
        assert_eq!(night.phase(&next), Phase::Starting);
        let status = night.counts("m");
        assert_eq!((status.wakes, status.wake_failures), (0, 1));
        assert_eq!(status.canary_failures, u64::from(how < 2));
    }
}

#[test]
fn after_three_failures_in_a_row_it_is_always_stopped() {
    let mut night = Night::new(vec![sleeper("m", 60, 40)]);
    let mut id = night.loaded(1, "m", 55);
    for turn in 2..5 {
        night.lulled(&id, 5);
        night.host.acquire(turn, "m");
        night.woken(&id);
        night.sung(&id, "!!!!!!!!");
        night.is_replaced(&id);
        // `is_replaced` has the order; the request still waits.
        id = night.finish_load(turn, 55);
    }
    night.pass(100);
    assert_eq!(night.host.stops(), [id]);
}

#[test]
fn an_unload_ends_every_phase_of_sleep() {
    for phase in [Phase::Dozing, Phase::Asleep, Phase::Waking] {
        let mut night = Night::new(vec![sleeper("m", 60, 40)]);
        let id = night.loaded(1, "m", 55);
        night.pass(100);
        if phase != Phase::Dozing {
            night.slept(&id);
            night.holds(&id, 5);
            night.observe();
        }
        if phase == Phase::Waking {
            night.host.acquire(2, "m");
        }
        assert_eq!(night.phase(&id), phase);
        night.host.tell(Event::Unload {
            waiter: WaiterId(3),
            model: name("m"),
            haste: Haste::Drain,
        });
        assert_eq!(night.host.stops(), std::slice::from_ref(&id));
        night.slept(&id);
        night.woken(&id);
        night.sung(&id, ANSWER);
        assert!(!night.asks("canary") && night.host.grants().is_empty());
        night.host.stopped(&id);
        assert_eq!(night.host.done(), [3], "{phase}");
        assert_eq!(night.counts("m").wake_failures, 0);
    }
}

#[test]
fn a_shutdown_stops_those_who_sleep_or_keeps_them() {
    for keep in [false, true] {
        let mut night = Night::new(vec![sleeper("m", 60, 40)]);
        let id = night.loaded(1, "m", 55);
        night.lulled(&id, 5);
        night.host.tell(Event::Shutdown { keep });
        assert_eq!(night.host.exited(), keep);
        if !keep {
            assert_eq!(night.host.stops(), std::slice::from_ref(&id));
            night.host.stopped(&id);
            assert!(night.host.exited());
        }
    }
}

#[test]
fn a_pin_that_cannot_wake_keeps_its_sleeper_over_a_shutdown_that_keeps() {
    let mut night = Night::new(vec![sleeper("m", 60, 40), spec("other", 70)]);
    let id = night.loaded(1, "m", 55);
    night.lulled(&id, 5);
    night.host.ready(2, "other");
    night.host.tell(Event::Pin { waiter: WaiterId(3), model: "m".parse().unwrap(), pinned: true });
    night.pass(1001);
    night.host.tell(Event::Shutdown { keep: true });
    assert!(night.host.stops().is_empty(), "its time to sleep is over, its pin is not");
}

#[test]
fn what_an_earlier_daemon_sent_to_sleep_is_not_woken() {
    let spec = sleeper("m", 60, 40);
    let mut night = Night { host: Host::bare(vec![spec.clone()]), held: BTreeMap::new() };
    night.host.observe();
    let instance = InstanceId::new(name("m"), Generation(7), 1);
    let need = Need { bytes: Bytes(60), source: NeedSource::Declared };
    let placement =
        Placement { gpus: vec![GpuId::host()], need, budget: need.bytes, device_total: Bytes(100) };
    let spec_hash = spec.spec_hash();
    let identity = FoundIdentity { instance: instance.clone(), spec_hash, placement };
    let running = Some(launched(&instance));
    let found = Found { container: "c".into(), identity: Some(identity), running };
    night.host.tell(Event::Found(vec![found]));
    night.host.heal(&instance);
    assert!(night.asks("canary"));
    let result = Err(CanaryError::Asleep);
    night.host.tell(Event::Sung { instance: instance.clone(), result });
    assert_eq!(night.host.stops(), [instance]);
}

#[test]
fn an_engine_without_a_canary_serves_and_never_sleeps() {
    let mut night = Night::new(vec![sleeper("m", 60, 40)]);
    night.host.acquire(1, "m");
    let id = night.host.launch();
    night.host.start(&id);
    night.host.heal(&id);
    let result = Err(CanaryError::Failed("answered 404".into()));
    night.host.tell(Event::Sung { instance: id.clone(), result });
    assert_eq!(night.host.grants(), [1]);
    night.host.release(&id);
    night.holds(&id, 55);
    night.observe();
    night.pass(100);
    assert_eq!(night.host.stops(), [id]);
}

#[test]
fn an_engine_that_dies_asleep_is_replaced_for_whoever_asks_next() {
    let mut night = Night::new(vec![sleeper("m", 60, 40)]);
    let id = night.loaded(1, "m", 55);
    night.lulled(&id, 5);
    assert!(night.host.state.live().all(|l| l.watched));
    night.host.tell(Event::Died { instance: id.clone(), fault: fault("killed") });
    night.host.acquire(2, "m");
    night.host.stopped(&id);
    night.held.remove(&id);
    night.pass(1);
    night.observe();
    night.finish_load(2, 55);
}

#[test]
fn sleep_ends_when_nobody_came_or_its_place_is_taken() {
    let mut night = Night::new(vec![sleeper("m", 60, 40)]);
    let id = night.loaded(1, "m", 55);
    night.lulled(&id, 5);
    assert_eq!(night.host.state.next_deadline(), Some(night.host.now + Duration::from_secs(1000)));
    night.pass(1000);
    assert_eq!(night.host.stops(), [id]);
    // Whoever sleeps where others need its last bytes is stopped for them.
    let mut night = Night::new(vec![sleeper("m", 60, 40), spec("big", 96)]);
    let id = night.loaded(1, "m", 55);
    night.lulled(&id, 5);
    night.host.acquire(2, "big");
    assert_eq!(night.host.stops(), [id]);
}

#[test]
fn a_wake_evicts_and_waits_like_a_start() {
    let mut night = Night::new(vec![sleeper("m", 60, 40), spec("other", 70)]);
    let id = night.loaded(1, "m", 60);
    night.lulled(&id, 5);
    let other = night.host.ready(2, "other");
    night.holds(&other, 70);
    night.observe();
    night.host.acquire(3, "m");
    assert!(!night.asks("wake") && night.host.stops().is_empty(), "the other one serves");
    let why = night.host.state.status(night.host.now).models[0].waiting_for.clone().unwrap();
    assert!(why.contains("serves requests"), "{why}");
    night.host.release(&other);
    night.pass(1);
    assert_eq!(night.host.stops(), std::slice::from_ref(&other));
    night.held.remove(&other);
    night.host.stopped(&other);
    night.pass(1);
    night.observe();
    assert!(night.asks("wake"));
    night.woken(&id);
    night.sung(&id, ANSWER);
    assert_eq!(night.host.grants(), [3]);
}

#[test]
fn the_hosts_memory_of_one_that_is_stopped_is_free_only_when_it_is_gone() {
    for gone in [false, true] {
        let mut night = Night::new(vec![sleeper("a", 40, 40), sleeper("b", 40, 30)]);
        let a = night.loaded(1, "a", 40);
        night.lulled(&a, 1);
        let b = night.loaded(2, "b", 40);
        night.host.tell(Event::Unload {
            waiter: WaiterId(3),
            model: name("a"),
            haste: Haste::Drain,
        });
        assert_eq!(night.host.stops(), std::slice::from_ref(&a));
        assert_eq!(night.counts("a").host_ram, Bytes(40));
        if gone {
            night.host.stopped(&a);
            night.held.remove(&a);
            night.observe();
        }
        night.pass(100);
        // 40 + 30 are more than 50, and its process has not ended.
        let slept = night.asks("sleep");
        assert_eq!((slept, night.host.stops().contains(&b)), (gone, !gone));
    }
}

#[test]
fn what_was_last_seen_loading_does_not_sleep() {
    // Nobody knows what `a` needs: it gets the whole device, and its wake what it took of that.
    let mut a = sleeper("a", 100, 10);
    a.vram = None;
    let mut night = Night::new(vec![a, sleeper("b", 20, 10)]);
    night.host.tell(Event::Load { waiter: WaiterId(1), model: name("a"), wish: Wish::default() });
    let id = night.host.launch();
    night.host.start(&id);
    night.holds(&id, 40);
    night.observe();
    night.host.heal(&id);
    night.sung(&id, ANSWER);
    assert_eq!(night.host.done(), [1]);
    night.host.pass(1);
    night.host.acquire(2, "b");
    assert_eq!(night.host.stops(), [id], "it may hold more by now than those 40");
    let report = night.host.state.status(night.host.now).models[1].report.clone().unwrap();
    assert!(report.to_string().contains("since it became ready"), "{report}");
}
