//! Properties that every cost has, and the arithmetic under it.

use super::*;
use crate::plan::Standing;
use crate::types::{Generation, GpuId, InstanceId};

fn minutes(n: u64) -> Moment {
    Moment(Duration::from_mins(n))
}

fn holder(n: u64, last_used: Moment, demand: Demand) -> Holder {
    Holder {
        instance: InstanceId::new(format!("m{n}").parse().unwrap(), Generation(n), 0),
        charges: vec![(GpuId::host(), Bytes::gib(8))],
        standing: Standing::Idle,
        last_used,
        ready_since: Some(Moment::START),
        priority: 0,
        demand,
        sleep: Err("its engine does not sleep"),
        host_ram: Bytes::ZERO,
    }
}

fn loaded(took: u64) -> Demand {
    let mut demand = Demand::default();
    demand.loaded(Duration::from_secs(took));
    demand
}

/// Costs in the order given.
fn costs(now: Moment, holders: &[Holder]) -> Vec<Cost> {
    CostAware.weigh(now, &holders.iter().collect::<Vec<_>>())
}

#[test]
fn half_is_forgotten_in_a_half_life() {
    assert_eq!(decayed(ONE, Duration::ZERO), ONE);
    for halves in 1..=20 {
        let left = decayed(ONE, HALF_LIFE * halves);
        assert_eq!(left, ONE >> halves);
    }
    assert_eq!(decayed(ONE, HALF_LIFE * 1000), 0);
    assert_eq!(decayed(ONE, Duration::MAX), 0);
    // In between it follows the curve, and never rises.
    let half = decayed(ONE, HALF_LIFE / 2);
    assert!(half.abs_diff(741_455) < 10, "{half}");
    let mut last = ONE;
    for second in 0..1200 {
        let left = decayed(ONE, Duration::from_secs(second));
        assert!(left <= last);
        last = left;
    }
}

#[test]
fn frequency_is_a_share_of_minutes_and_a_burst_is_one_need() {
    let mut steady = Demand::default();
    let mut burst = Demand::default();
    for minute in 0..120 {
        steady.used(minutes(minute));
    }
    for ms in 0..10_000 {
        burst.used(minutes(119) + Duration::from_millis(ms));
    }
    let (steady, burst) = (steady.frequency(minutes(119)), burst.frequency(minutes(119)));
    assert!(steady > ONE * 9 / 10 && steady <= ONE, "{steady}");
    assert!(burst < ONE / 10, "{burst}");
    let mut fifth = Demand::default();
    for n in 0..60 {
        fifth.used(minutes(5 * n));
    }
    let share = fifth.frequency(minutes(297));
    assert!(share.abs_diff(ONE / 5) < ONE / 25, "every fifth minute is {share} of {ONE}");
}

#[test]
fn a_longer_load_and_a_fresher_use_cost_more() {
    let now = minutes(60);
    let all = [
        holder(0, minutes(50), loaded(10)),
        holder(1, minutes(50), loaded(60)),
        holder(2, minutes(59), loaded(60)),
    ];
    let found = costs(now, &all);
    assert!(found[0] < found[1] && found[1] < found[2], "{found:?}");
    assert_eq!(found[0].0 * 6, found[1].0);
}

#[test]
fn habits_count_beside_the_last_use() {
    let now = minutes(60);
    let mut often = loaded(30);
    for minute in (0..58).step_by(2) {
        often.used(minutes(minute));
    }
    let mut once = loaded(30);
    once.used(minutes(57));
    // The one was used a little earlier, but every other minute.
    let found = costs(now, &[holder(0, minutes(56), often), holder(1, minutes(57), once)]);
    assert!(found[0] > found[1], "{found:?}");
}

#[test]
fn the_unknown_is_guessed_from_its_memory_and_never_free() {
    let far = Moment(Duration::from_hours(24 * 30));
    let found = costs(far, &[holder(0, Moment::START, Demand::default())]);
    assert!(found[0] > Cost(0));
    // 10 s and 8 GiB at 1 GB/s.
    assert_eq!(reload(&holder(0, far, Demand::default())), Duration::from_millis(18_589));
}

#[test]
fn the_last_loads_count_most() {
    let mut demand = loaded(100);
    demand.loaded(Duration::from_secs(20));
    demand.loaded(Duration::from_secs(20));
    assert_eq!(demand.reload(), Some(Duration::from_secs(40)));
}

#[test]
fn by_age_alone_any_number_of_older_ones_leaves_first() {
    let all: Vec<Holder> =
        (0..5).map(|n| holder(n, minutes(5 - n), loaded(1000 * n + 1))).collect();
    let found = Lru.weigh(minutes(9), &all.iter().collect::<Vec<_>>());
    assert_eq!(found.iter().map(|c| c.0).collect::<Vec<_>>(), [16, 8, 4, 2, 1]);
    // Of equally old ones the identifier decides, and more than there are bits do no harm.
    let many: Vec<Holder> = (0..300).map(|n| holder(n, minutes(1), loaded(1))).collect();
    let found = Lru.weigh(minutes(9), &many.iter().collect::<Vec<_>>());
    assert_eq!(found.iter().copied().max(), Some(Cost(1 << 126)));
}
