//! The planner, by small situations.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::plan::{Demand, Promise, ReleaseRule, Standing, Usage, policy};
use crate::types::{
    DeviceHolder, Eviction, Generation, GpuReading, GpuSnapshot, Known, Need, NeedSource,
};

fn gpu(n: usize) -> GpuId {
    GpuId::new(&format!("GPU-{n}"))
}

fn inst(n: u64) -> InstanceId {
    InstanceId::new(format!("m{n}").parse().unwrap(), Generation(n), 0)
}

/// Devices as (total, foreign); holders as (devices, charge, standing, last used).
type HolderCase = (Vec<usize>, u64, Standing, u64);

fn world(devices: &[(u64, u64)], holders: &[HolderCase]) -> (Ledger, Vec<Holder>) {
    let mut ledger = Ledger::new(Bytes(0), ReleaseRule::default());
    let mut used: Vec<u64> = devices.iter().map(|d| d.1).collect();
    let mut usage = BTreeMap::new();
    let mut out = Vec::new();
    for (n, (gpus, charge, standing, last_used)) in holders.iter().enumerate() {
        let id = inst(n as u64);
        let need = Need { bytes: Bytes(*charge), source: NeedSource::Declared };
        let ids: Vec<GpuId> = gpus.iter().map(|g| gpu(*g)).collect();
        let placement =
            Placement { gpus: ids.clone(), need, budget: need.bytes, device_total: Bytes(0) };
        ledger.reserve(id.clone(), &placement);
        match standing {
            Standing::Idle
            | Standing::Busy
            | Standing::Measuring
            | Standing::Pinned
            | Standing::Asleep
            | Standing::BesideLoad => {
                ledger.confirm(&id);
            }
            Standing::Starting => {}
            Standing::Leaving => ledger.release(&id),
        }
        gpus.iter().for_each(|g| used[*g] += charge);
        let seen: BTreeMap<GpuId, Known<Bytes>> =
            ids.iter().map(|g| (g.clone(), Known::Known(Bytes(*charge)))).collect();
        usage.insert(id.clone(), Usage { pids: vec![], bytes: seen });
        let charges = ids.into_iter().map(|g| (g, Bytes(*charge))).collect();
        let last_used = Moment::from_secs(*last_used);
        out.push(Holder {
            instance: id,
            charges,
            standing: *standing,
            last_used,
            ready_since: Some(Moment::START),
            priority: 0,
            demand: Demand::default(),
            sleep: Err("its engine does not sleep"),
            host_ram: Bytes::ZERO,
        });
    }
    let reading = |(n, (total, _)): (usize, &(u64, u64))| GpuReading {
        id: gpu(n),
        name: "X".into(),
        total: Bytes(*total),
        used: Bytes(used[n]),
        processes: vec![],
    };
    let devices = devices.iter().enumerate().map(reading).collect();
    ledger.observe(
        Moment::START,
        &GpuSnapshot { devices, lost: vec![], driver: String::new() },
        &usage,
    );
    (ledger, out)
}

/// The time of all plans here, and the least residency.
const NOW: Moment = Moment::from_secs(100);
const MIN_RESIDENCY: Duration = Duration::from_secs(30);

fn rules(eviction: Eviction) -> Rules {
    let policy = policy::named(eviction);
    Rules { policy, min_residency: MIN_RESIDENCY, sleep: SleepRules::NEVER }
}

fn want<'a>(model: &'a ModelName, bytes: u64, count: u32, allowed: &'a [GpuId]) -> Want<'a> {
    let source = if bytes == 0 { NeedSource::Exclusive } else { NeedSource::Declared };
    let other = Need { bytes: Bytes(bytes), source };
    // A test's few bytes; never given back.
    let needs = Box::leak(Box::new(Needs {
        other: other.into(),
        by_name: BTreeMap::new(),
        budget: None,
        slack: Bytes::ZERO,
    }));
    let (on_full, priority) = (OnFull::Evict, 0);
    let kept = Box::leak(Box::default());
    Want {
        model,
        needs,
        gpu_count: count,
        allowed,
        shunned: Box::leak(Box::default()),
        priority,
        on_full,
        waking: None,
        kept,
        in_turn: false,
    }
}

fn ask(
    world: &(Ledger, Vec<Holder>),
    bytes: u64,
    count: u32,
    allowed: &[GpuId],
) -> (Decision, Report) {
    let model: ModelName = "want".parse().unwrap();
    let want = want(&model, bytes, count, allowed);
    let plan = plan(NOW, rules(Eviction::Lru), &world.0, &world.1, &want);
    (plan.decision, plan.report)
}

fn evict(victims: &[u64]) -> Decision {
    let stop = |n: &u64| Victim { instance: inst(*n), leave: Leave::Stop };
    Decision::Evict(victims.iter().map(stop).collect())
}

fn started(decision: &Decision) -> Vec<String> {
    match decision {
        Decision::Start(p) => p.gpus.iter().map(ToString::to_string).collect(),
        other @ (Decision::Evict(_)
        | Decision::Wait { .. }
        | Decision::Full(_)
        | Decision::Refuse { .. }) => {
            panic!("not started: {other:?}")
        }
    }
}

#[test]
fn the_tightest_hole_that_fits_is_taken() {
    let w = world(&[(100, 0), (100, 40), (100, 70)], &[]);
    let (decision, report) = ask(&w, 50, 1, &[]);
    assert_eq!(started(&decision), ["GPU-1"]);
    let verdicts: Vec<Verdict> = report.devices.iter().map(|d| d.verdict).collect();
    assert_eq!(verdicts, [Verdict::Fits, Verdict::Chosen, Verdict::Foreign]);
    assert_eq!(started(&ask(&w, 50, 1, &[gpu(0)]).0), ["GPU-0"], "constraints bind");
}

#[test]
fn a_device_where_something_starts_or_stops_is_left_alone() {
    for standing in [Standing::Starting, Standing::Leaving] {
        let w = world(&[(100, 0)], &[(vec![0], 10, standing, 0)]);
        let (decision, report) = ask(&w, 50, 1, &[]);
        assert!(matches!(decision, Decision::Wait { .. }), "{decision:?}");
        assert_eq!(report.devices[0].verdict, Verdict::Gated);
        let two = world(&[(100, 0), (100, 0)], &[(vec![0], 10, standing, 0)]);
        assert_eq!(started(&ask(&two, 50, 1, &[]).0), ["GPU-1"]);
    }
}

#[test]
fn the_longest_unused_leaves_and_nobody_in_vain() {
    let idle = |charge, used| (vec![0], charge, Standing::Idle, used);
    let w = world(&[(100, 0)], &[idle(20, 3), idle(10, 1), idle(60, 2)]);
    // 10 free; 40 wanted: the 10 first looked at is spared once the 60 goes.
    let (decision, report) = ask(&w, 40, 1, &[]);
    assert_eq!(decision, evict(&[2]));
    assert_eq!(report.victims.iter().filter(|v| v.chosen).count(), 1);
    assert_eq!(report.devices[0].verdict, Verdict::FitsAfterEviction);
}

#[test]
fn busy_pinned_and_foreign_memory_makes_it_wait_and_says_so() {
    for (standing, word) in [(Standing::Busy, "serves requests"), (Standing::Pinned, "pinned")] {
        let w = world(&[(100, 0)], &[(vec![0], 80, standing, 0)]);
        let (decision, report) = ask(&w, 50, 1, &[]);
        let Decision::Wait { why, .. } = decision else { panic!("{decision:?}") };
        assert!(why.contains(word) && why.contains("m0"), "{why}");
        let device = &report.devices[0];
        assert_eq!(device.verdict, Verdict::Occupied);
        assert_eq!(
            (device.free, device.reserved, device.foreign),
            (Bytes(20), Bytes(80), Bytes(0))
        );
        assert_eq!(device.holders, [DeviceHolder { instance: inst(0), bytes: Bytes(80) }]);
    }
    let (decision, report) = ask(&world(&[(100, 80)], &[]), 50, 1, &[]);
    assert_eq!((report.devices[0].foreign, report.devices[0].reserved), (Bytes(80), Bytes(0)));
    let Decision::Wait { why, .. } = decision else { panic!("{decision:?}") };
    assert!(why.contains("not Hostler's"), "{why}");
}

#[test]
fn what_can_never_fit_is_refused_with_the_largest_offer() {
    let w = world(&[(100, 0), (200, 0)], &[]);
    assert_eq!(ask(&w, 201, 1, &[]).0, Decision::Refuse { largest: Bytes(200) });
    assert_eq!(ask(&w, 150, 1, &[gpu(0)]).0, Decision::Refuse { largest: Bytes(100) });
    assert_eq!(ask(&w, 50, 2, &[]).0, Decision::Refuse { largest: Bytes(200) }, "not equal");
    assert_eq!(ask(&w, 50, 1, &[gpu(7)]).0, Decision::Refuse { largest: Bytes(0) });
}

#[test]
fn several_devices_are_equal_ones() {
    let w = world(&[(100, 0), (200, 0), (100, 30), (100, 10)], &[]);
    let Decision::Start(placement) = ask(&w, 50, 2, &[]).0 else { panic!() };
    assert_eq!(placement.gpus, [gpu(2), gpu(3)]);
    assert_eq!(placement.device_total, Bytes(100));
    let refused = ask(&world(&[(200, 0), (300, 0)], &[]), 50, 2, &[]).0;
    assert!(matches!(refused, Decision::Refuse { .. }), "{refused:?}");
}

/// One of two equal cards drives the display: its driver keeps some more for itself.
#[test]
fn equal_devices_may_differ_by_what_their_driver_keeps() {
    for (bytes, first) in [(10_000, 10_989), (0, 10_989), (10_987, 10_989), (10_000, 10_830)] {
        let mut w = world(&[(first, 0), (10_986, 0)], &[]);
        let (decision, _) = ask(&w, bytes, 2, &[]);
        let fits = bytes <= first.min(10_986);
        let Decision::Start(placement) = decision else {
            assert!(!fits, "{bytes} on {first}: {decision:?}");
            continue;
        };
        assert!(fits, "{placement:?}");
        let smallest = Bytes(first.min(10_986));
        assert_eq!((placement.gpus.len(), placement.device_total), (2, smallest));
        let whole = if bytes == 0 { smallest } else { Bytes(bytes) };
        assert_eq!(placement.need.bytes, whole);
        // The rest of the larger one is nobody's reason to leave.
        w = world(&[(first, 0), (10_986, 0)], &[(vec![0, 1], 9_000, Standing::Idle, 0)]);
        assert_eq!(ask(&w, bytes, 2, &[]).0, evict(&[0]));
    }
}

/// The numbers are those of an empty H100 in vLLM's own words: 78.66 of 79.19 GiB are free when it looks, and 512 MiB are kept free.
#[test]
fn what_is_told_leaves_room_for_what_comes_before_the_look() {
    let mib = |n: u64| n << 20;
    let (total, free, headroom) = (mib(81_091), mib(80_548), mib(512));
    let mut w = world(&[(total, 0)], &[]);
    w.0.set_headroom(Bytes(headroom));
    let model: ModelName = "want".parse().unwrap();
    let budget_of = |need: u64, told: Option<u64>| {
        let mut want = want(&model, need, 1, &[]);
        let (slack, budget) = (crate::plan::SLACK, told.map(Bytes));
        let need = want.needs.other.need;
        let other = Promise { need, least: need.bytes.saturating_sub(slack) };
        want.needs = Box::leak(Box::new(Needs { other, slack, budget, ..want.needs.clone() }));
        let plan = plan(NOW, rules(Eviction::Lru), &w.0, &w.1, &want);
        let Decision::Start(placement) = plan.decision else { panic!("{:?}", plan.decision) };
        assert!(placement.budget + Bytes(mib(400)) < Bytes(free), "{placement:?}");
        placement.budget
    };
    assert_eq!(budget_of(0, None), Bytes(total - headroom - mib(1024)));
    assert_eq!(budget_of(mib(21 * 1024), Some(mib(20 * 1024))), Bytes(mib(20 * 1024)));
    // All of the device was declared.
    assert_eq!(
        budget_of(total - headroom + mib(1024), Some(total - headroom)),
        Bytes(total - headroom - mib(1024))
    );
}

#[test]
fn one_that_spans_two_devices_can_free_both() {
    let w = world(
        &[(100, 0), (100, 0)],
        &[
            (vec![0, 1], 60, Standing::Idle, 9),
            (vec![0], 30, Standing::Idle, 1),
            (vec![1], 30, Standing::Idle, 1),
        ],
    );
    let (decision, _) = ask(&w, 65, 2, &[]);
    assert_eq!(decision, evict(&[0]));
}

#[test]
fn without_any_idea_of_the_need_it_gets_the_device_to_itself() {
    let w = world(&[(100, 5)], &[]);
    let Decision::Start(placement) = ask(&w, 0, 1, &[]).0 else { panic!() };
    assert_eq!(placement.need.bytes, Bytes(95));
    assert_eq!(placement.budget, Bytes(95));
    let w = world(&[(100, 0)], &[(vec![0], 10, Standing::Idle, 0)]);
    assert_eq!(ask(&w, 0, 1, &[]).0, evict(&[0]));
}

#[test]
fn nothing_is_promised_on_stale_numbers() {
    let mut w = world(&[(100, 0)], &[]);
    w.0.mark_stale("nvml did not answer");
    assert_eq!(
        ask(&w, 10, 1, &[]).0,
        Decision::Wait { why: "nvml did not answer".into(), until: None }
    );
}

#[test]
fn a_young_model_stays_until_it_has_settled() {
    let mut w = world(&[(100, 0)], &[(vec![0], 80, Standing::Idle, 0)]);
    w.1[0].ready_since = Some(Moment::from_secs(90));
    let model: ModelName = "want".parse().unwrap();
    let mut want = want(&model, 50, 1, &[]);
    let at = |now, want: &Want<'_>| plan(now, rules(Eviction::Cost), &w.0, &w.1, want);
    let Plan { decision, report, .. } = at(NOW, &want);
    let Decision::Wait { why, until } = decision else { panic!("{decision:?}") };
    assert_eq!(until, Some(Moment::from_secs(120)));
    assert!(why.contains("min_residency"), "{why}");
    assert_eq!(report.devices[0].verdict, Verdict::Occupied);
    let evicted = evict(&[0]);
    assert_eq!(at(Moment::from_secs(120), &want).decision, evicted, "it is old enough");
    want.priority = 1;
    assert_eq!(at(NOW, &want).decision, evicted, "a higher priority need not wait");
}

#[test]
fn nobody_is_evicted_for_a_lower_priority() {
    let mut w = world(&[(100, 0)], &[(vec![0], 80, Standing::Idle, 0)]);
    w.1[0].priority = 1;
    let (decision, report) = ask(&w, 50, 1, &[]);
    assert!(matches!(decision, Decision::Wait { until: None, .. }), "{decision:?}");
    assert_eq!(report.victims[0].spared, Some("its priority is higher"));
}

#[test]
fn whoever_evicts_nobody_waits_or_is_refused() {
    let idle = world(&[(100, 0)], &[(vec![0], 80, Standing::Idle, 0)]);
    let gated = world(&[(100, 0)], &[(vec![0], 80, Standing::Leaving, 0)]);
    let empty = world(&[(100, 0)], &[]);
    let model: ModelName = "want".parse().unwrap();
    let mut want = want(&model, 50, 1, &[]);
    let at = |w: &(Ledger, Vec<Holder>), want: &Want<'_>| {
        plan(NOW, rules(Eviction::Cost), &w.0, &w.1, want).decision
    };
    want.on_full = OnFull::Wait;
    let decision = at(&idle, &want);
    assert!(matches!(&decision, Decision::Wait { why, until: None } if why.contains("on_full")));
    want.on_full = OnFull::Refuse;
    let decision = at(&idle, &want);
    assert!(matches!(&decision, Decision::Full(why) if why.contains("on_full")), "{decision:?}");
    // Memory that is on its way back is worth waiting for.
    assert!(matches!(at(&gated, &want), Decision::Wait { .. }));
    assert!(matches!(at(&empty, &want), Decision::Start(_)));
}

#[test]
fn what_foreign_processes_took_of_a_promise_is_freed_too() {
    // 60 promised and 50 foreign of 100: 10 too much. A need of 50 takes both instances, not only one.
    let idle = |used| (vec![0], 30, Standing::Idle, used);
    let w = world(&[(100, 50)], &[idle(1), idle(2)]);
    assert_eq!(ask(&w, 50, 1, &[]).0, evict(&[0, 1]));
}

#[test]
fn the_cheaper_return_leaves_even_if_it_was_used_last() {
    let mut w =
        world(&[(100, 0)], &[(vec![0], 50, Standing::Idle, 10), (vec![0], 50, Standing::Idle, 20)]);
    w.1[0].demand.loaded(Duration::from_mins(5));
    w.1[1].demand.loaded(Duration::from_secs(5));
    let model: ModelName = "want".parse().unwrap();
    let by = |e| plan(NOW, rules(e), &w.0, &w.1, &want(&model, 50, 1, &[])).decision;
    assert_eq!(by(Eviction::Lru), evict(&[0]));
    assert_eq!(by(Eviction::Cost), evict(&[1]));
}

mod claims;
mod equal;
mod lost;
mod margins;
mod properties;
