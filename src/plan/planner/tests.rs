//! The planner, by small situations.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::plan::{ReleaseRule, Usage};
use crate::types::{Generation, GpuReading, GpuSnapshot, Known};

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
        let placement = Placement { gpus: ids.clone(), need, device_total: Bytes(0) };
        ledger.reserve(id.clone(), &placement);
        match standing {
            Standing::Idle | Standing::Busy | Standing::Pinned => ledger.confirm(&id),
            Standing::Starting => {}
            Standing::Leaving => ledger.release(&id),
        }
        gpus.iter().for_each(|g| used[*g] += charge);
        let seen: BTreeMap<GpuId, Known<Bytes>> =
            ids.iter().map(|g| (g.clone(), Known::Known(Bytes(*charge)))).collect();
        usage.insert(id.clone(), Usage { pids: vec![], bytes: seen });
        let charges = ids.into_iter().map(|g| (g, Bytes(*charge))).collect();
        let last_used = Moment::from_secs(*last_used);
        out.push(Holder { instance: id, charges, standing: *standing, last_used });
    }
    let reading = |(n, (total, _)): (usize, &(u64, u64))| GpuReading {
        id: gpu(n),
        name: "X".into(),
        total: Bytes(*total),
        used: Bytes(used[n]),
        processes: vec![],
    };
    let devices = devices.iter().enumerate().map(reading).collect();
    ledger.observe(Moment::START, &GpuSnapshot { devices, lost: vec![] }, &usage);
    (ledger, out)
}

fn ask(
    world: &(Ledger, Vec<Holder>),
    bytes: u64,
    count: u32,
    allowed: &[GpuId],
) -> (Decision, Report) {
    let source = if bytes == 0 { NeedSource::Exclusive } else { NeedSource::Declared };
    let model: ModelName = "want".parse().unwrap();
    let need = Need { bytes: Bytes(bytes), source };
    plan(&world.0, &world.1, &Want { model: &model, need, gpu_count: count, allowed })
}

fn started(decision: &Decision) -> Vec<String> {
    match decision {
        Decision::Start(p) => p.gpus.iter().map(ToString::to_string).collect(),
        other @ (Decision::Evict(_) | Decision::Wait(_) | Decision::Refuse { .. }) => {
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
        assert!(matches!(decision, Decision::Wait(_)), "{decision:?}");
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
    assert_eq!(decision, Decision::Evict(vec![inst(2)]));
    assert_eq!(report.victims.iter().filter(|v| v.chosen).count(), 1);
    assert_eq!(report.devices[0].verdict, Verdict::FitsAfterEviction);
}

#[test]
fn busy_pinned_and_foreign_memory_makes_it_wait_and_says_so() {
    for (standing, word) in [(Standing::Busy, "serves requests"), (Standing::Pinned, "pinned")] {
        let w = world(&[(100, 0)], &[(vec![0], 80, standing, 0)]);
        let (decision, report) = ask(&w, 50, 1, &[]);
        let Decision::Wait(why) = decision else { panic!("{decision:?}") };
        assert!(why.contains(word) && why.contains("m0"), "{why}");
        assert_eq!(report.devices[0].verdict, Verdict::Occupied);
    }
    let (decision, _) = ask(&world(&[(100, 80)], &[]), 50, 1, &[]);
    let Decision::Wait(why) = decision else { panic!("{decision:?}") };
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
    assert_eq!(decision, Decision::Evict(vec![inst(0)]));
}

#[test]
fn without_any_idea_of_the_need_it_gets_the_device_to_itself() {
    let w = world(&[(100, 5)], &[]);
    let Decision::Start(placement) = ask(&w, 0, 1, &[]).0 else { panic!() };
    assert_eq!(placement.need.bytes, Bytes(95));
    let w = world(&[(100, 0)], &[(vec![0], 10, Standing::Idle, 0)]);
    assert_eq!(ask(&w, 0, 1, &[]).0, Decision::Evict(vec![inst(0)]));
}

#[test]
fn nothing_is_promised_on_stale_numbers() {
    let mut w = world(&[(100, 0)], &[]);
    w.0.mark_stale("nvml did not answer");
    assert_eq!(ask(&w, 10, 1, &[]).0, Decision::Wait("nvml did not answer".into()));
}

fn any_standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        6 => Just(Standing::Idle),
        1 => Just(Standing::Busy),
        1 => Just(Standing::Pinned),
    ]
}

proptest! {
    #[test]
    fn no_proper_subset_of_the_victims_would_do(
        holders in prop::collection::vec((0_usize..2, 1_u64..40, any_standing(), 0_u64..9), 0..7),
        bytes in 1_u64..100,
    ) {
        let holders: Vec<HolderCase> =
            holders.into_iter().map(|(g, c, s, u)| (vec![g], c, s, u)).collect();
        let w = world(&[(150, 0), (150, 10)], &holders);
        let again = ask(&w, bytes, 1, &[]);
        let (decision, _) = ask(&w, bytes, 1, &[]);
        prop_assert_eq!(&decision, &again.0, "deterministic");
        let rows = w.0.rows();
        match decision {
            Decision::Start(p) => {
                let row = rows.iter().find(|r| r.id == p.gpus[0]).unwrap();
                prop_assert!(row.free >= Bytes(bytes));
                let tighter = rows.iter().any(|r| r.free >= Bytes(bytes) && r.free < row.free);
                prop_assert!(!tighter, "keeps the largest hole");
            }
            Decision::Evict(set) => {
                prop_assert!(rows.iter().all(|r| r.free < Bytes(bytes)), "evicts only if it must");
                let on = |g: &GpuId, skip: Option<&InstanceId>| -> Bytes {
                    let left = w.1.iter().filter(|h| set.contains(&h.instance) && Some(&h.instance) != skip);
                    left.filter_map(|h| h.charge_on(g)).sum()
                };
                let enough = |skip: Option<&InstanceId>| {
                    rows.iter().any(|r| r.free + on(&r.id, skip) >= Bytes(bytes))
                };
                prop_assert!(enough(None));
                for victim in &set {
                    prop_assert!(!enough(Some(victim)), "{victim} leaves in vain");
                    let holder = w.1.iter().find(|h| h.instance == *victim).unwrap();
                    prop_assert_eq!(holder.standing, Standing::Idle);
                }
            }
            Decision::Wait(_) => {
                let idle = |g: &GpuId| -> Bytes {
                    let idle = w.1.iter().filter(|h| h.standing == Standing::Idle);
                    idle.filter_map(|h| h.charge_on(g)).sum()
                };
                prop_assert!(rows.iter().all(|r| r.free + idle(&r.id) < Bytes(bytes)));
            }
            Decision::Refuse { .. } => prop_assert!(bytes > 150),
        }
    }
}

#[test]
fn a_lost_device_is_no_never() {
    let mut w = world(&[(100, 0)], &[]);
    let lost = GpuSnapshot { devices: vec![], lost: vec![(gpu(0), "fell off the bus".into())] };
    w.0.observe(Moment::from_secs(1), &lost, &BTreeMap::new());
    let (decision, _) = ask(&w, 10, 1, &[]);
    assert!(matches!(&decision, Decision::Wait(why) if why.contains("bus")), "{decision:?}");
}
