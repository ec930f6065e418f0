//! The ladder, by small situations on one device of 100 bytes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::plan::{
    Claims, Decision, Demand, Ledger, Needs, ReleaseRule, Rules, Standing, Usage, Want, plan,
    policy,
};
use crate::types::{
    Eviction, Generation, GpuId, GpuReading, GpuSnapshot, Known, ModelName, Moment, Need,
    NeedSource, OnFull, Placement, Report, Verdict,
};

fn gpu() -> GpuId {
    GpuId::new("GPU-a")
}

fn inst(n: u64) -> InstanceId {
    InstanceId::new(format!("m{n}").parse().unwrap(), Generation(n), 0)
}

const RULES: SleepRules = SleepRules { host_ram_budget: Bytes(100), residual_max: Bytes(10) };

fn sleeper(deepest: SleepLevel, residual: u64, weights: u64) -> Result<Sleeper, &'static str> {
    Ok(Sleeper { deepest, residual: Bytes(residual), weights: Bytes(weights) })
}

/// A holder of so many bytes, ready unless it sleeps.
fn holder(n: u64, charge: u64, standing: Standing, sleep: Result<Sleeper, &'static str>) -> Holder {
    Holder {
        instance: inst(n),
        charges: vec![(gpu(), Bytes(charge))],
        standing,
        last_used: Moment::from_secs(n),
        ready_since: None,
        priority: 0,
        demand: Demand::default(),
        sleep,
        host_ram: Bytes::ZERO,
    }
}

fn world(holders: Vec<Holder>) -> (Ledger, Vec<Holder>) {
    let mut ledger = Ledger::new(Bytes(0), ReleaseRule::default());
    let mut usage = BTreeMap::new();
    for h in &holders {
        let bytes = h.charges[0].1;
        let need = Need { bytes, source: NeedSource::Declared };
        let placement =
            Placement { gpus: vec![gpu()], need, budget: need.bytes, device_total: Bytes(100) };
        ledger.reserve(h.instance.clone(), &placement);
        ledger.confirm(&h.instance);
        let seen = BTreeMap::from([(gpu(), Known::Known(bytes))]);
        usage.insert(h.instance.clone(), Usage { pids: vec![], bytes: seen });
    }
    let used = holders.iter().map(|h| h.charges[0].1).sum();
    let device =
        GpuReading { id: gpu(), name: "X".into(), total: Bytes(100), used, processes: vec![] };
    let snapshot = GpuSnapshot { devices: vec![device], lost: vec![], driver: String::new() };
    ledger.observe(Moment::START, &snapshot, &usage);
    (ledger, holders)
}

fn ask(
    (ledger, holders): &(Ledger, Vec<Holder>),
    bytes: u64,
    sleep: SleepRules,
    waking: Option<&InstanceId>,
) -> (Decision, Report) {
    let model: ModelName = "want".parse().unwrap();
    let source = if bytes == 0 { NeedSource::Exclusive } else { NeedSource::Declared };
    let other = Need { bytes: Bytes(bytes), source };
    let needs =
        Needs { other: other.into(), by_name: BTreeMap::new(), budget: None, slack: Bytes::ZERO };
    let (on_full, priority) = (OnFull::Evict, 0);
    let want = Want {
        model: &model,
        needs: &needs,
        gpu_count: 1,
        allowed: &[],
        shunned: &BTreeMap::new(),
        priority,
        on_full,
        waking,
        kept: &Claims::default(),
        in_turn: false,
    };
    let policy = policy::named(Eviction::Lru);
    let rules = Rules { policy, min_residency: Duration::ZERO, sleep };
    let plan = plan(Moment::from_secs(100), rules, ledger, holders, &want);
    (plan.decision, plan.report)
}

/// Who leaves, and at which level if asleep.
fn leaves(decision: &Decision) -> Vec<(u64, u8)> {
    let Decision::Evict(victims) = decision else { panic!("{decision:?}") };
    let level = |v: &Victim| match v.leave {
        Leave::Stop => 0,
        Leave::Sleep { level, .. } => level.number(),
    };
    victims.iter().map(|v| (v.instance.generation.0, level(v))).collect()
}

use Standing::{Asleep, Idle};

#[test]
fn a_victim_sleeps_where_the_host_has_room_for_its_weights() {
    let w = world(vec![holder(1, 60, Idle, sleeper(SleepLevel::Two, 5, 40))]);
    let (decision, report) = ask(&w, 90, RULES, None);
    assert_eq!(leaves(&decision), [(1, 1)]);
    let Decision::Evict(victims) = decision else { panic!() };
    let (level, host_ram, residual) = (SleepLevel::One, Bytes(40), Bytes(5));
    assert_eq!(victims[0].leave, Leave::Sleep { level, host_ram, residual });
    assert_eq!(report.victims[0].asleep, Some(SleepLevel::One));
    let said = report.to_string();
    assert!(said.contains("m1 is asleep instead of stopped (level 1)"), "{said}");
}

#[test]
fn without_room_in_the_host_it_sleeps_deeper_or_is_stopped() {
    let poor = SleepRules { host_ram_budget: Bytes(39), ..RULES };
    let deep = world(vec![holder(1, 60, Idle, sleeper(SleepLevel::Two, 5, 40))]);
    assert_eq!(leaves(&ask(&deep, 90, poor, None).0), [(1, 2)]);
    let flat = world(vec![holder(1, 60, Idle, sleeper(SleepLevel::One, 5, 40))]);
    let (decision, report) = ask(&flat, 90, poor, None);
    assert_eq!(leaves(&decision), [(1, 0)]);
    assert!(report.to_string().contains("m1 is stopped: host_ram_budget has no room"), "{report}");
    for w in [&deep, &flat] {
        assert_eq!(leaves(&ask(w, 90, SleepRules::NEVER, None).0), [(1, 0)]);
    }
    // What others sleep in is taken.
    let mut other = holder(2, 5, Asleep, Err("it sleeps already"));
    other.host_ram = Bytes(61);
    let w = world(vec![flat.1[0].clone(), other.clone()]);
    assert_eq!(leaves(&ask(&w, 70, RULES, None).0), [(1, 0)]);
    other.host_ram = Bytes(60);
    let w = world(vec![flat.1[0].clone(), other]);
    assert_eq!(leaves(&ask(&w, 70, RULES, None).0), [(1, 1)]);
}

#[test]
fn nobody_sleeps_on_memory_that_is_needed() {
    let w = world(vec![holder(1, 60, Idle, sleeper(SleepLevel::Two, 5, 40))]);
    let (decision, report) = ask(&w, 96, RULES, None);
    assert_eq!(leaves(&decision), [(1, 0)]);
    assert!(report.to_string().contains("it would still hold memory that is needed"), "{report}");
    // A model that nothing is known of gets the device for itself.
    assert_eq!(leaves(&ask(&w, 0, RULES, None).0), [(1, 0)]);
    // One that was seen to keep too much is not asked again.
    let w = world(vec![holder(1, 60, Idle, sleeper(SleepLevel::Two, 11, 40))]);
    assert_eq!(leaves(&ask(&w, 50, RULES, None).0), [(1, 0)]);
}

#[test]
fn of_two_the_one_that_costs_most_to_reload_sleeps() {
    let two = |n| holder(n, 45, Idle, sleeper(SleepLevel::One, 5, 60));
    let w = world(vec![two(1), two(2)]);
    // Both have to go, and the host has room for the weights of one.
    assert_eq!(leaves(&ask(&w, 90, RULES, None).0), [(1, 0), (2, 1)]);
    let rich = SleepRules { host_ram_budget: Bytes(120), ..RULES };
    assert_eq!(leaves(&ask(&w, 90, rich, None).0), [(1, 1), (2, 1)]);
    assert_eq!(leaves(&ask(&w, 93, rich, None).0), [(1, 0), (2, 1)], "only one may keep its 5");
}

#[test]
fn who_sleeps_already_is_stopped_for_what_it_keeps() {
    let asleep = holder(1, 5, Asleep, Err("it sleeps already"));
    let w = world(vec![asleep]);
    assert_eq!(leaves(&ask(&w, 96, RULES, None).0), [(1, 0)]);
    assert!(matches!(ask(&w, 95, RULES, None).0, Decision::Start(_)));
}

#[test]
fn a_wake_counts_what_it_holds_and_never_evicts_itself() {
    let asleep = holder(1, 5, Asleep, Err("it sleeps already"));
    let me = inst(1);
    let w = world(vec![asleep.clone()]);
    assert!(matches!(ask(&w, 100, RULES, Some(&me)).0, Decision::Start(_)), "5 of it are there");
    let idle = holder(2, 40, Idle, sleeper(SleepLevel::One, 3, 10));
    let w = world(vec![asleep.clone(), idle]);
    let (decision, report) = ask(&w, 60, RULES, Some(&me));
    assert!(matches!(decision, Decision::Start(_)), "{report}");
    let (decision, report) = ask(&w, 97, RULES, Some(&me));
    assert_eq!(leaves(&decision), [(2, 1)]);
    assert_eq!(report.victims.len(), 1, "it is no victim of itself");
    assert_eq!(leaves(&ask(&w, 98, RULES, Some(&me)).0), [(2, 0)]);
    // Somebody busy is in the way.
    let busy = holder(2, 90, Standing::Busy, Err("x"));
    let (decision, report) = ask(&world(vec![asleep, busy]), 60, RULES, Some(&me));
    assert!(matches!(decision, Decision::Wait { .. }), "{decision:?}");
    assert_eq!(report.devices[0].verdict, Verdict::Occupied);
}

#[test]
fn the_idle_go_the_same_ladder() {
    let of = |h: Holder, rules| idle_leave(rules, std::slice::from_ref(&h), &h.instance);
    let sleeps = holder(1, 60, Idle, sleeper(SleepLevel::One, 5, 40));
    let (level, host_ram, residual) = (SleepLevel::One, Bytes(40), Bytes(5));
    assert_eq!(of(sleeps.clone(), RULES), Leave::Sleep { level, host_ram, residual });
    assert_eq!(of(sleeps, SleepRules::NEVER), Leave::Stop);
    assert_eq!(of(holder(1, 60, Idle, Err("its engine does not sleep")), RULES), Leave::Stop);
    assert_eq!(idle_leave(RULES, &[], &inst(1)), Leave::Stop);
}
