//! What a margin may keep a model from, and what not.

use super::*;

#[test]
fn a_margin_gives_way_to_what_others_use_and_what_was_seen_does_not() {
    let model: ModelName = "want".parse().unwrap();
    let at = |foreign: &[u64], holders: &[HolderCase]| {
        let devices: Vec<(u64, u64)> = foreign.iter().map(|f| (100, *f)).collect();
        let w = world(&devices, holders);
        let mut want = want(&model, 0, u32::try_from(devices.len()).unwrap(), &[]);
        let need = Need { bytes: Bytes(105), source: NeedSource::Measured };
        let other = Promise { need, least: Bytes(93) };
        want.needs = Box::leak(Box::new(Needs { other, ..want.needs.clone() }));
        plan(NOW, rules(Eviction::Lru), &w.0, &w.1, &want).decision
    };
    let promised = |decision| match decision {
        Decision::Start(placement) => Some(placement.need.bytes.0),
        Decision::Evict(_)
        | Decision::Wait { .. }
        | Decision::Full(_)
        | Decision::Refuse { .. } => None,
    };
    assert_eq!(promised(at(&[2], &[])), Some(98));
    assert_eq!(promised(at(&[7, 2], &[])), Some(93), "as much as each of them has");
    let waits = at(&[8], &[]);
    assert!(matches!(waits, Decision::Wait { .. }), "{waits:?}");
    // One of ours goes for it, and makes room for all of the margin that there can be.
    assert_eq!(at(&[2], &[(vec![0], 1, Standing::Idle, 0)]), evict(&[0]));
    let waits = at(&[2], &[(vec![0], 1, Standing::Busy, 0)]);
    assert!(matches!(waits, Decision::Wait { .. }), "{waits:?}");
}
