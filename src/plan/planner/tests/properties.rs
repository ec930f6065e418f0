//! What must hold of every plan, whatever the world.

use super::*;

/// One holder: its devices, what it has on each, standing, seconds of last use, of readiness, of a load, and priority.
#[derive(Clone, Debug)]
struct Case {
    gpus: Vec<usize>,
    charge: u64,
    standing: Standing,
    used: u64,
    ready: u64,
    load: u64,
    priority: i8,
}

fn standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        12 => Just(Standing::Idle),
        2 => Just(Standing::Busy),
        1 => Just(Standing::Pinned),
        1 => Just(Standing::Starting),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let gpus = prop_oneof![
        4 => (0_usize..3).prop_map(|g| vec![g]),
        1 => (0_usize..3).prop_map(|g| vec![g, (g + 1) % 3]),
    ];
    let priority = prop_oneof![3 => Just(0_i8), 1 => -1_i8..2];
    (gpus, 1_u64..40, standing(), 0_u64..9, 40_u64..90, 0_u64..4, priority).prop_map(
        |(gpus, charge, standing, used, ready, load, priority)| Case {
            gpus,
            charge,
            standing,
            used,
            ready,
            load,
            priority,
        },
    )
}

fn built(cases: &[Case]) -> (Ledger, Vec<Holder>) {
    let plain: Vec<HolderCase> =
        cases.iter().map(|c| (c.gpus.clone(), c.charge, c.standing, c.used)).collect();
    let mut w = world(&[(150, 0), (150, 10), (150, 20)], &plain);
    for (holder, case) in w.1.iter_mut().zip(cases) {
        holder.ready_since = Some(Moment::from_secs(case.ready));
        holder.priority = case.priority;
        // Nothing learned, a load of no time at all, and real ones.
        if case.load > 0 {
            holder.demand.loaded(Duration::from_secs((case.load - 1) * 20));
            holder.demand.used(Moment::from_secs(case.used));
        }
    }
    w
}

/// Whether `count` devices without a start or stop have room once these have left.
fn enough(w: &(Ledger, Vec<Holder>), leaving: &[&InstanceId], bytes: u64, count: usize) -> bool {
    let room = |row: &&Row| {
        let left = w.1.iter().filter(|h| leaving.contains(&&h.instance));
        let freed: Bytes = left.filter_map(|h| h.charge_on(&row.id)).sum();
        let spoken = row.reserved + row.confirmed + row.foreign;
        !row.gated && row.total + freed >= spoken + Bytes(bytes)
    };
    w.0.rows().iter().filter(room).count() >= count
}

fn may_leave(h: &Holder) -> bool {
    let settled = h.ready_since.is_some_and(|at| NOW.since(at) >= MIN_RESIDENCY);
    h.standing == Standing::Idle && h.priority <= 0 && (settled || h.priority < 0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_plan_evicts_no_more_than_it_must_and_nobody_it_may_not(
        cases in prop::collection::vec(case(), 0..9),
        bytes in 1_u64..160,
        count in 1_u32..4,
        lru in any::<bool>(),
        turn in any::<prop::sample::Index>(),
        failures in prop::array::uniform3(0_u32..3),
    ) {
        let w = built(&cases);
        let rules = rules(if lru { Eviction::Lru } else { Eviction::Cost });
        let model: ModelName = "want".parse().unwrap();
        let shunned: BTreeMap<GpuId, u32> = (0..3).map(gpu).zip(failures).collect();
        let want = Want { shunned: &shunned, ..want(&model, bytes, count, &[]) };
        let first = plan(NOW, rules, &w.0, &w.1, &want);

        let mut turned = w.1.clone();
        turned.rotate_left(turn.index(w.1.len().max(1)).min(w.1.len()));
        turned.reverse();
        let again = plan(NOW, rules, &w.0, &turned, &want);
        prop_assert_eq!(&again, &first, "the order of the holders is told");

        // In its turn it does the same, and may keep more.
        let due = Want { in_turn: true, ..want.clone() };
        let in_turn = plan(NOW, rules, &w.0, &w.1, &due);
        prop_assert_eq!(&plan(NOW, rules, &w.0, &turned, &due), &in_turn);
        prop_assert_eq!(&in_turn.decision, &first.decision);
        prop_assert!(first.claim.is_empty() || in_turn.claim == first.claim);

        let devices = count as usize;
        match first.decision {
            Decision::Start(p) => {
                prop_assert!(enough(&w, &[], bytes, devices));
                prop_assert_eq!(p.gpus.len(), devices);
                // Of the ways to take that many, one whose worst device is the least bad.
                let worst = p.gpus.iter().map(|g| shunned[g]).max();
                let better: Vec<GpuId> =
                    shunned.iter().filter(|(_, n)| Some(**n) < worst).map(|(g, _)| g.clone()).collect();
                let better = Want { allowed: &better, ..want.clone() };
                let instead = plan(NOW, rules, &w.0, &w.1, &better).decision;
                let none = better.allowed.is_empty() || !matches!(instead, Decision::Start(_));
                prop_assert!(none, "{p:?} instead of {instead:?}");
            }
            Decision::Evict(set) => {
                prop_assert!(!enough(&w, &[], bytes, devices), "it evicts without need");
                let all: Vec<&InstanceId> = set.iter().map(|v| &v.instance).collect();
                prop_assert!(enough(&w, &all, bytes, devices), "the victims are too few");
                // More victims never make less room, so one less is the only subset to look at.
                for spared in &all {
                    let rest: Vec<&InstanceId> = all.iter().copied().filter(|v| v != spared).collect();
                    prop_assert!(!enough(&w, &rest, bytes, devices), "{spared} leaves in vain");
                    let holder = w.1.iter().find(|h| h.instance == **spared).unwrap();
                    prop_assert!(may_leave(holder), "{holder:?}");
                }
            }
            Decision::Wait { until, .. } => {
                let all: Vec<&InstanceId> =
                    w.1.iter().filter(|h| may_leave(h)).map(|h| &h.instance).collect();
                prop_assert!(!enough(&w, &all, bytes, devices), "it waits without need");
                prop_assert!(until.is_none_or(|at| at > NOW), "it wakes in the past");
            }
            Decision::Refuse { .. } => prop_assert!(bytes > 150),
            Decision::Full(_) => prop_assert!(false, "it may evict"),
        }
    }

    #[test]
    fn the_cheapest_set_of_all_is_found(
        cases in prop::collection::vec(case(), 1..9),
        bytes in 1_u64..160,
    ) {
        let w = built(&cases);
        let movable: Vec<&Holder> = w.1.iter().filter(|h| may_leave(h)).collect();
        let costs = policy::named(Eviction::Cost).weigh(NOW, &movable);
        let model: ModelName = "want".parse().unwrap();
        let want = want(&model, bytes, 1, &[]);
        if let Decision::Evict(set) = plan(NOW, rules(Eviction::Cost), &w.0, &w.1, &want).decision {
            let sum = |bits: usize| -> u128 {
                costs.iter().enumerate().filter(|(n, _)| bits & (1 << n) != 0).map(|(_, c)| c.0).sum()
            };
            let chosen = |h: &Holder| set.iter().any(|v| v.instance == h.instance);
            let paid = movable.iter().enumerate().filter(|(_, h)| chosen(h)).fold(0, |b, (n, _)| b | 1 << n);
            for bits in 0..1_usize << movable.len() {
                let some = movable.iter().enumerate().filter(|(n, _)| bits & (1 << n) != 0);
                let ids: Vec<&InstanceId> = some.map(|(_, h)| &h.instance).collect();
                if enough(&w, &ids, bytes, 1) {
                    prop_assert!(sum(paid) <= sum(bits), "{ids:?} would have been cheaper");
                }
            }
        }
    }
}

/// Above the limit of the exact search: nobody leaves in vain there either.
#[test]
fn of_many_nobody_leaves_in_vain() {
    let mut evicted = 0;
    for seed in 0_u64..40 {
        let case = |n: u64| Case {
            gpus: vec![0],
            charge: 1 + (n * 7 + seed * 3) % 8,
            standing: Standing::Idle,
            used: (n * 5 + seed) % 9,
            ready: 40,
            load: (n + seed) % 4,
            priority: 0,
        };
        let w = built(&(0..30).map(case).collect::<Vec<_>>());
        let bytes = 60 + seed * 2;
        let model: ModelName = "want".parse().unwrap();
        let gpus = [gpu(0)];
        let want = want(&model, bytes, 1, &gpus);
        for eviction in [Eviction::Cost, Eviction::Lru] {
            let decision = plan(NOW, rules(eviction), &w.0, &w.1, &want).decision;
            let Decision::Evict(set) = decision else { continue };
            evicted += 1;
            let set: Vec<InstanceId> = set.into_iter().map(|v| v.instance).collect();
            let only = |ids: &[&InstanceId]| {
                let row = &w.0.rows()[0];
                let left = w.1.iter().filter(|h| ids.contains(&&h.instance));
                row.free + left.filter_map(|h| h.charge_on(&row.id)).sum() >= Bytes(bytes)
            };
            for spared in &set {
                let rest: Vec<&InstanceId> = set.iter().filter(|v| *v != spared).collect();
                assert!(!only(&rest), "{spared} leaves in vain, seed {seed}");
            }
        }
    }
    assert!(evicted > 40, "{evicted} of 80 evicted anybody");
}
