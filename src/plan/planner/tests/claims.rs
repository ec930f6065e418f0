//! What is kept for whom.

use super::*;

#[test]
fn what_is_on_its_way_is_claimed_and_nothing_else() {
    let model: ModelName = "want".parse().unwrap();
    let claim = |w: &(Ledger, Vec<Holder>), bytes, count| {
        let want = want(&model, bytes, count, &[]);
        let claim = plan(NOW, rules(Eviction::Cost), &w.0, &w.1, &want).claim;
        (0..2).filter(|n| claim.touch(&gpu(*n))).collect::<Vec<_>>()
    };
    let of = |standing| world(&[(100, 0), (100, 0)], &[(vec![0], 80, standing, 0)]);
    for standing in [Standing::Leaving, Standing::Idle] {
        assert_eq!(claim(&of(standing), 50, 2), [0, 1], "{standing:?}");
        assert!(claim(&of(standing), 50, 1).is_empty(), "it starts on the other");
    }
    assert!(claim(&of(Standing::Starting), 50, 2).is_empty(), "it will not leave by itself");
    assert_eq!(claim(&of(Standing::Starting), 20, 2), [0, 1], "it fits beside it");
    for standing in [Standing::Busy, Standing::Pinned] {
        assert!(claim(&of(standing), 50, 2).is_empty(), "{standing:?}");
    }
}

#[test]
fn in_its_turn_it_keeps_what_will_be_free_of_those_who_may_leave() {
    let model: ModelName = "want".parse().unwrap();
    let claim = |w: &(Ledger, Vec<Holder>), bytes, in_turn| {
        let want = Want { in_turn, ..want(&model, bytes, 1, &[]) };
        let plan = plan(NOW, rules(Eviction::Cost), &w.0, &w.1, &want);
        assert!(matches!(plan.decision, Decision::Wait { .. }), "{plan:?}");
        (0..2).filter(|n| plan.claim.touch(&gpu(*n))).collect::<Vec<_>>()
    };
    let one = |standing| world(&[(100, 0)], &[(vec![0], 80, standing, 0)]);
    let loads = one(Standing::Starting);
    assert!(claim(&loads, 50, false).is_empty(), "not its turn");
    assert_eq!(claim(&loads, 50, true), [0]);
    assert_eq!(claim(&loads, 0, true), [0], "the whole device");
    let mut young = one(Standing::Idle);
    young.1[0].ready_since = Some(NOW);
    assert_eq!(claim(&young, 50, true), [0]);
    young.1[0].priority = 1;
    assert!(claim(&young, 50, true).is_empty(), "never");
    for standing in [Standing::Busy, Standing::Pinned, Standing::Measuring] {
        assert!(claim(&one(standing), 50, true).is_empty(), "{standing:?}");
    }
    // Others have taken 40 of what was promised: when the 80 are gone there are 60.
    let pressed = world(&[(100, 40)], &[(vec![0], 80, Standing::Starting, 0)]);
    assert_eq!(claim(&pressed, 60, true), [0]);
    assert!(claim(&pressed, 61, true).is_empty());
    // Of two it takes the one where the least has to settle.
    let mut two = world(
        &[(100, 0), (100, 0)],
        &[
            (vec![0], 80, Standing::Starting, 0),
            (vec![1], 80, Standing::Idle, 0),
            (vec![1], 20, Standing::Starting, 0),
        ],
    );
    two.1[1].ready_since = Some(Moment::START);
    assert_eq!(claim(&two, 90, true), [1]);
}

#[test]
fn what_is_kept_for_others_is_neither_taken_nor_freed() {
    let w = world(&[(100, 0), (100, 0)], &[(vec![0], 40, Standing::Idle, 0)]);
    let model: ModelName = "want".parse().unwrap();
    let mut kept = Claims::default();
    let ask = |kept: &Claims, bytes| {
        let want = Want { kept, ..want(&model, bytes, 1, &[]) };
        plan(NOW, rules(Eviction::Cost), &w.0, &w.1, &want)
    };
    assert_eq!(started(&ask(&kept, 50).decision), ["GPU-0"]);
    kept.add(Claims::on([(&gpu(0), Bytes(20))].into_iter()));
    assert_eq!(started(&ask(&kept, 50).decision), ["GPU-1"]);
    kept.add(Claims::on([(&gpu(1), Bytes(50))].into_iter()));
    let waits = ask(&kept, 50);
    assert!(matches!(waits.decision, Decision::Wait { .. }), "{waits:?}");
    let verdicts: Vec<Verdict> = waits.report.devices.iter().map(|d| d.verdict).collect();
    assert_eq!(verdicts, [Verdict::Kept, Verdict::Kept]);
    assert!(waits.claim.touch(&gpu(1)), "behind the other there is room for it too");
    assert!(ask(&kept, 60).claim.is_empty());
}
