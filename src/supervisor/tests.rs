//! The core, event by event. The simulation in `tests/sim` explores the combinations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::effect::{Effect, Notice, StopReason};
use super::event::{Event, Observation, Passed};
use super::ports::{Endpoint, Found, FoundIdentity, LaunchOrder, Launched};
use super::state::{Recalled, Settings, State};
use crate::plan::{ReleaseRule, Rules, SleepRules, Usage, policy};
use crate::types::{
    Bytes, DayMinute, Denied, Eviction, Fault, FaultCode, Generation, GpuId, GpuReading,
    GpuSnapshot, Haste, Hours, InstanceId, Known, ModelName, ModelSpec, Moment, Need, NeedSource,
    OnFull, Phase, Placement, Silence, Verdict, WaiterId, Wish, test_spec,
};

use rig::{Host, MIN_RESIDENCY, fault, launched, name, spec};

#[test]
fn many_requests_for_a_cold_model_make_one_container() {
    let mut host = Host::new(vec![spec("m", 10)]);
    assert_eq!(host.phase("m"), Phase::Stopped);
    host.acquire(1, "m");
    let id = host.launch();
    assert_eq!(host.phase("m"), Phase::Starting);
    for waiter in 2..4 {
        host.acquire(waiter, "m");
        assert!(host.order().is_none());
    }
    host.acquire(4, "m");
    assert_eq!(host.denials(), [(4, "queue_full")]);
    host.tell(Event::Cancel { waiter: WaiterId(2) });
    host.start(&id);
    assert_eq!(host.phase("m"), Phase::Loading);
    assert!(host.out.iter().any(|e| matches!(e, Effect::AwaitReady { .. })));
    host.heal(&id);
    assert_eq!(host.grants(), [1, 3], "whoever left gets nothing");
    host.acquire(5, "m");
    assert_eq!(host.grants(), [5], "a ready model answers at once");
    let status = host.state.status(host.now);
    assert_eq!((status.models[0].in_flight, status.models[0].queued), (3, 0));
    assert_eq!(host.state.live().count(), 1);
}

#[test]
fn names_are_resolved_or_refused() {
    let mut with_alias = spec("m", 10);
    with_alias.aliases = vec![name("gpt-4o")];
    let mut host = Host::new(vec![with_alias]);
    for unknown in ["x", "", "../etc", &"y".repeat(999)] {
        host.acquire(1, unknown);
        assert_eq!(host.denials(), [(1, "model_not_found")]);
        let Denied::UnknownModel { model } = host.denied() else { panic!() };
        assert!(model.len() <= 200);
    }
    host.acquire(2, "gpt-4o");
    assert_eq!(host.launch().model, name("m"));
    host.tell(Event::Load { waiter: WaiterId(3), model: name("nope"), wish: Wish::default() });
    assert_eq!(host.denials(), [(3, "model_not_found")]);
    host.tell(Event::Unload { waiter: WaiterId(4), model: name("nope"), haste: Haste::Drain });
    assert_eq!(host.denials(), [(4, "model_not_found")]);
}

#[test]
fn a_failed_load_is_told_and_not_repeated_at_once() {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.acquire(1, "m");
    let id = host.launch();
    host.tell(Event::LaunchFailed { instance: id.clone(), fault: fault("no image") });
    assert_eq!(host.denials(), [(1, "model_load_failed")]);
    let about = |s: u64| Duration::from_millis(s * 750)..=Duration::from_secs(s);
    assert!(about(1).contains(&host.denied().retry_after().unwrap()));
    assert_eq!(host.phase("m"), Phase::Failed);
    host.acquire(2, "m");
    assert_eq!(host.denials(), [(2, "model_load_failed")]);
    host.observe();
    host.pass(1);
    host.acquire(3, "m");
    let second = host.launch();
    host.start(&second);
    host.tell(Event::Died { instance: second.clone(), fault: fault("exit 1") });
    assert_eq!(host.stops(), std::slice::from_ref(&second));
    host.stopped(&second);
    assert!(about(2).contains(&host.denied().retry_after().unwrap()), "doubled");
    assert_eq!(host.state.status(host.now).models[0].error, Some(fault("exit 1")));
    // An operator's word overrides the delay.
    host.observe();
    host.tell(Event::Load { waiter: WaiterId(4), model: name("m"), wish: Wish::default() });
    let third = host.launch();
    host.start(&third);
    host.heal(&third);
    assert_eq!(host.done(), [4]);
    assert_eq!(host.state.status(host.now).models[0].error, None);
}

#[test]
fn an_engine_that_dies_while_it_serves_is_replaced_at_once() {
    let mut host = Host::new(vec![spec("m", 10)]);
    let id = host.ready(1, "m");
    host.tell(Event::Died { instance: id.clone(), fault: fault("segfault") });
    assert_eq!(host.stops(), std::slice::from_ref(&id));
    host.acquire(2, "m");
    assert!(host.denials().is_empty(), "it waits for the next one");
    host.release(&id);
    host.stopped(&id);
    host.pass(1);
    host.observe();
    let next = host.launch();
    host.start(&next);
    host.heal(&next);
    assert_eq!(host.grants(), [2]);
    // A second death right after is not made good without a delay.
    host.tell(Event::Died { instance: next.clone(), fault: fault("segfault") });
    host.stopped(&next);
    host.acquire(3, "m");
    assert_eq!(host.denials(), [(3, "model_load_failed")]);
}

#[test]
fn a_launch_that_hangs_is_stopped_when_it_comes_back() {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.acquire(1, "m");
    let id = host.launch();
    host.pass(600);
    assert!(host.stops().is_empty(), "half a container cannot be stopped");
    assert_eq!(host.phase("m"), Phase::Stopping);
    host.start(&id);
    assert_eq!(host.stops(), std::slice::from_ref(&id));
    host.stopped(&id);
    assert!(host.out.iter().any(|e| matches!(e, Effect::Notice(Notice::Failed { .. }))));
}

#[test]
fn an_unload_lets_running_requests_finish() {
    let mut host = Host::new(vec![spec("m", 10)]);
    let id = host.ready(1, "m");
    host.tell(Event::Unload { waiter: WaiterId(2), model: name("m"), haste: Haste::Drain });
    assert_eq!(host.phase("m"), Phase::Draining);
    host.acquire(3, "m");
    assert!(host.grants().is_empty(), "no new lease on a draining instance");
    host.release(&id);
    assert_eq!(host.stops(), std::slice::from_ref(&id));
    host.stopped(&id);
    assert_eq!(host.done(), [2]);
    // What is gone already needs no unloading.
    let mut host = Host::new(vec![spec("m", 10)]);
    host.tell(Event::Unload { waiter: WaiterId(1), model: name("m"), haste: Haste::Drain });
    assert_eq!(host.done(), [1]);
}

#[test]
fn an_unload_in_the_middle_of_a_start_waits_for_the_launch() {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.acquire(1, "m");
    let id = host.launch();
    host.tell(Event::Unload { waiter: WaiterId(2), model: name("m"), haste: Haste::Drain });
    assert_eq!(host.denials(), [(1, "model_unloaded")]);
    assert!(host.stops().is_empty() && host.done().is_empty());
    host.tell(Event::LaunchFailed { instance: id, fault: fault("never mind") });
    assert_eq!(host.done(), [2]);
    assert_eq!(host.phase("m"), Phase::Stopped, "nobody wanted it: not a failure");
}

#[test]
fn what_never_fits_is_refused_at_once() {
    let mut host = Host::new(vec![spec("big", 101)]);
    host.acquire(1, "big");
    assert_eq!(host.denials(), [(1, "model_never_fits")]);
    host.tell(Event::Load { waiter: WaiterId(2), model: name("big"), wish: Wish::default() });
    assert_eq!(host.denials(), [(2, "model_never_fits")]);
    assert_eq!(host.state.next_deadline(), None);
}

#[test]
fn a_shutdown_drains_then_stops_everything() {
    let mut host = Host::new(vec![spec("a", 40), spec("b", 40)]);
    let a = host.ready(1, "a");
    let b = host.ready(2, "b");
    host.release(&b);
    host.tell(Event::Shutdown { keep: false });
    assert_eq!(host.stops(), std::slice::from_ref(&b));
    host.acquire(3, "a");
    assert_eq!(host.denials(), [(3, "shutting_down")]);
    host.tell(Event::Load { waiter: WaiterId(4), model: name("b"), wish: Wish::default() });
    assert_eq!(host.denials(), [(4, "shutting_down")]);
    host.tell(Event::Shutdown { keep: true });
    host.stopped(&b);
    assert!(!host.exited());
    host.pass(30);
    assert_eq!(host.stops(), std::slice::from_ref(&a), "the drain is over");
    host.stopped(&a);
    assert!(host.exited());
    host.pass(1);
    assert!(!host.exited(), "once");
}

fn found(id: &InstanceId, spec: &ModelSpec, alive: bool) -> Found {
    let need = Need { bytes: Bytes(40), source: NeedSource::Declared };
    let placement =
        Placement { gpus: vec![GpuId::host()], need, budget: need.bytes, device_total: Bytes(100) };
    let spec_hash = spec.spec_hash();
    let identity = FoundIdentity { instance: id.clone(), spec_hash, placement };
    Found {
        container: id.to_string(),
        identity: Some(identity),
        running: alive.then(|| launched(id)),
    }
}

#[test]
fn what_an_earlier_daemon_left_is_adopted_or_removed() {
    let (a, b) = (spec("a", 40), spec("b", 40));
    let mut changed = b.clone();
    changed.args = vec!["--other".into()];
    let id = |model: &str, generation| InstanceId::new(name(model), Generation(generation), 9);
    let mut host = Host::bare(vec![a.clone(), b]);
    host.acquire(1, "a");
    assert!(host.order().is_none(), "nothing starts before the survey");
    let damaged = Found { container: "c0ffee".into(), identity: None, running: None };
    host.tell(Event::Found(vec![
        found(&id("a", 3), &a, true),
        found(&id("a", 5), &a, true),
        found(&id("a", 4), &a, false),
        found(&id("b", 8), &changed, true),
        found(&id("gone", 2), &spec("gone", 1), true),
        damaged,
    ]));
    let mut stops = host.stops();
    stops.sort();
    assert_eq!(stops, [id("a", 3), id("a", 4), id("b", 8), id("gone", 2)]);
    assert!(
        host.out.iter().any(|e| matches!(e, Effect::Reap { container } if container == "c0ffee"))
    );
    assert!(host.out.iter().any(|e| matches!(e, Effect::Notice(Notice::Adopted { .. }))));
    host.heal(&id("a", 5));
    assert_eq!(host.grants(), [1]);
    // The successor of an orphan waits until the orphan is gone.
    host.observe();
    host.acquire(2, "b");
    assert!(host.order().is_none());
    assert!(host.state.status(host.now).models[1].waiting_for.clone().unwrap().contains("earlier"));
    host.tell(Event::Stopped { instance: id("b", 8), result: Err(fault("busy")) });
    host.pass(5);
    assert_eq!(host.stops(), [id("b", 8)]);
    for orphan in [id("a", 3), id("a", 4), id("b", 8), id("gone", 2)] {
        host.stopped(&orphan);
    }
    host.pass(1);
    host.observe();
    assert!(host.launch().generation > Generation(8), "generations never come again");
}

#[test]
fn completions_of_earlier_incarnations_change_nothing() {
    let mut host = Host::new(vec![spec("m", 10)]);
    let id = host.ready(1, "m");
    let ghost = InstanceId::new(name("m"), Generation(0), 0);
    let stranger = InstanceId::new(name("other"), Generation(1), 0);
    for old in [ghost, stranger] {
        host.heal(&old);
        host.release(&old);
        host.tell(Event::Died { instance: old.clone(), fault: fault("old") });
        host.tell(Event::LaunchFailed { instance: old.clone(), fault: fault("old") });
        host.tell(Event::Progress { instance: old.clone(), phase: Phase::Pulling });
        host.stopped(&old);
        host.tell(Event::Stopped { instance: old.clone(), result: Err(fault("old")) });
        assert!(host.out.is_empty(), "{:?}", host.out);
        // One that still comes up must not live on.
        host.start(&old);
        assert_eq!(host.stops(), [old]);
    }
    // Repeats for the living one are harmless too.
    host.start(&id);
    host.heal(&id);
    host.tell(Event::LaunchFailed { instance: id.clone(), fault: fault("late") });
    host.stopped(&id);
    assert_eq!(host.phase("m"), Phase::Ready);
}

#[test]
fn a_pinned_model_is_loaded_unasked_and_again_after_a_failure() {
    let mut pinned = spec("p", 40);
    pinned.pin = true;
    let mut host = Host::bare(vec![pinned, spec("big", 80)]);
    host.tell(Event::Found(vec![]));
    host.observe();
    let id = host.launch();
    host.tell(Event::LaunchFailed { instance: id, fault: fault("flaky") });
    host.pass(1);
    host.observe();
    let id = host.launch();
    host.start(&id);
    host.heal(&id);
    host.pass(10_000);
    assert!(host.stops().is_empty(), "a pin does not idle out");
    host.acquire(1, "big");
    assert!(host.stops().is_empty() && host.denials().is_empty(), "nor is it evicted");
    host.tell(Event::Unload { waiter: WaiterId(2), model: name("p"), haste: Haste::Drain });
    assert_eq!(host.stops(), std::slice::from_ref(&id));
}

#[test]
fn unreadable_devices_stop_new_starts_and_nothing_else() {
    let mut host = Host::new(vec![spec("a", 10), spec("b", 10)]);
    let _a = host.ready(1, "a");
    let devices = Err("nvml hangs".to_owned());
    let usage = BTreeMap::new();
    host.tell(Event::Observed(Observation {
        taken: host.now,
        unix_s: 1_800_000_000,
        devices,
        usage,
    }));
    let status = host.state.status(host.now);
    assert_eq!(status.problems[0].code, "gpu_unreadable");
    assert_eq!(status.gpus[0].free, Known::Unknown);
    host.acquire(2, "a");
    assert_eq!(host.grants(), [2]);
    host.acquire(3, "b");
    assert!(host.order().is_none());
    assert_eq!(host.phase("b"), Phase::Waiting);
    host.observe();
    assert!(host.order().is_some());
    assert!(host.state.status(host.now).problems.is_empty());
    let lost = GpuSnapshot {
        devices: vec![],
        lost: vec![(GpuId::host(), Silence::Gone("gone".into()))],
        driver: String::new(),
    };
    let usage = BTreeMap::new();
    host.tell(Event::Observed(Observation {
        taken: host.now,
        unix_s: 1_800_000_000,
        devices: Ok(lost),
        usage,
    }));
    assert_eq!(host.state.status(host.now).problems[0].code, "gpu_lost");
}

#[test]
fn what_was_measured_replaces_what_was_guessed() {
    let mut guess = spec("m", 10);
    guess.vram = None;
    guess.anatomy = None;
    let mut host = Host::new(vec![guess]);
    let id = host.ready(1, "m");
    let planned = |host: &Host| host.state.status(host.now).models[0].planned.unwrap();
    assert_eq!(planned(&host).source, NeedSource::Exclusive);
    let device = GpuReading {
        id: GpuId::host(),
        name: "X".into(),
        total: Bytes(100),
        used: Bytes(40),
        processes: vec![],
    };
    let seen = BTreeMap::from([(GpuId::host(), Known::Known(Bytes(40)))]);
    host.tell(Event::Observed(Observation {
        taken: host.now,
        unix_s: 1_800_000_000,
        devices: Ok(GpuSnapshot { devices: vec![device], lost: vec![], driver: String::new() }),
        usage: BTreeMap::from([(id.clone(), Usage { pids: vec![7], bytes: seen })]),
    }));
    assert_eq!(host.state.status(host.now).models[0].observed, Known::Known(Bytes(40)));
    host.release(&id);
    host.pass(100);
    host.stopped(&id);
    host.pass(1);
    host.observe();
    host.acquire(2, "m");
    let again = host.order().unwrap().placement.need;
    assert_eq!(again, Need { bytes: Bytes(42), source: NeedSource::Measured });
}

mod discovering;
mod health;
mod looking;
mod measuring;
mod operating;
mod profiling;
mod pulls;
mod races;
mod reconfiguring;
mod remeasuring;
mod renewing;
mod rig;
mod room;
mod sleep;
mod stopping;
mod sweep;
mod traffic;
mod yielding;
