//! Devices that do not answer.

use super::*;

#[test]
fn a_lost_device_offers_nothing_and_comes_back() {
    let mut ledger = Ledger::new(Bytes(0), ReleaseRule::exact(Duration::from_secs(30)));
    ledger.observe(Moment::START, &reading(0), &BTreeMap::new());
    let lost = GpuSnapshot {
        devices: vec![],
        lost: vec![(gpu(), Silence::Gone("fell off the bus".into()))],
        driver: String::new(),
    };
    ledger.observe(Moment::from_secs(1), &lost, &BTreeMap::new());
    assert!(ledger.rows().is_empty());
    assert_eq!(ledger.lost().next(), Some((&gpu(), "fell off the bus")));
    assert_eq!(ledger.status()[0].total, Known::Unknown);
    ledger.observe(Moment::from_secs(2), &reading(0), &BTreeMap::new());
    assert_eq!(ledger.rows().len(), 1);
    // Unknown instances change nothing.
    ledger.confirm(&id(9));
    assert_eq!(ledger.holds().count(), 0);
}

#[test]
fn a_device_that_was_lost_from_the_start_is_told_and_offers_nothing_until_it_answers() {
    let mut ledger = Ledger::new(Bytes(0), ReleaseRule::exact(Duration::from_secs(30)));
    let mut without = reading(0);
    without.lost = vec![(GpuId::at_index(1), Silence::Gone("fell off the bus".into()))];
    ledger.observe(Moment::START, &without, &BTreeMap::new());
    assert_eq!(ledger.rows().len(), 1);
    assert_eq!(ledger.lost().collect::<Vec<_>>(), [(&GpuId::at_index(1), "fell off the bus")]);
    let totals: Vec<_> = ledger.status().iter().map(|gpu| gpu.total.get().is_some()).collect();
    assert_eq!(totals, [true, false]);
    ledger.observe(Moment::from_secs(2), &reading(0), &BTreeMap::new());
    assert_eq!((ledger.lost().count(), ledger.status().len()), (0, 1));
}
