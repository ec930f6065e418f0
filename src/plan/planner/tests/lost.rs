//! Devices that do not answer.

use super::*;
use crate::types::Silence;

#[test]
fn a_lost_device_is_no_never() {
    let mut w = world(&[(100, 0)], &[]);
    let lost = GpuSnapshot {
        devices: vec![],
        lost: vec![(gpu(0), Silence::Gone("fell off the bus".into()))],
        driver: String::new(),
    };
    w.0.observe(Moment::from_secs(1), &lost, &BTreeMap::new());
    let (decision, _) = ask(&w, 10, 1, &[]);
    assert!(matches!(&decision, Decision::Wait { why, .. } if why.contains("bus")), "{decision:?}");
}

#[test]
fn a_device_that_does_not_tell_what_it_is_may_be_the_one_that_a_model_is_bound_to() {
    let mut w = world(&[(100, 0)], &[]);
    let (model, bound): (ModelName, _) = ("want".parse().unwrap(), [gpu(7)]);
    let want = Want { allowed: &bound, ..want(&model, 10, 1, &[]) };
    let decide =
        |w: &(Ledger, Vec<Holder>)| plan(NOW, rules(Eviction::Cost), &w.0, &w.1, &want).decision;
    assert!(matches!(decide(&w), Decision::Refuse { .. }));
    let lost = GpuSnapshot {
        devices: vec![],
        lost: vec![(GpuId::at_index(1), Silence::Gone("fell off the bus".into()))],
        driver: String::new(),
    };
    w.0.observe(Moment::from_secs(1), &lost, &BTreeMap::new());
    assert!(matches!(decide(&w), Decision::Wait { .. }));
}
