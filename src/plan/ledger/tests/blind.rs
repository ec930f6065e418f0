//! Drivers that list no processes at all: virtual GPUs, some versions, another PID namespace.

use super::*;

/// One of 400 that was ready, of which the driver said nothing, is gone since the sixth second; `listed`: but for that process then.
fn gone(listed: &[(u32, u64)]) -> Ledger {
    let mut ledger = Ledger::new(Bytes(0), ReleaseRule::exact(Duration::from_secs(30)));
    ledger.observe(Moment::START, &reading(30), &BTreeMap::new());
    ledger.reserve(id(1), &placement(400));
    ledger.confirm(&id(1));
    ledger.observe(Moment::from_secs(5), &reading(430), &seen(1, Known::Unknown));
    if !listed.is_empty() {
        let held = seen(1, Known::Known(Bytes(400)));
        ledger.observe(Moment::from_secs(5), &with(430, listed), &held);
    }
    ledger.release(&id(1));
    ledger.gone(&id(1), Moment::from_secs(6));
    ledger
}

#[test]
fn an_empty_list_is_no_account() {
    // In use when its stop was ordered: 430.
    for (used, at, releasing, foreign, free) in
        [(430, 7, 400, 30, 570), (30, 7, 0, 30, 970), (430, 9, 0, 430, 570)]
    {
        let mut ledger = gone(&[]);
        ledger.observe(Moment::from_secs(at), &reading(used), &BTreeMap::new());
        let row = &ledger.rows()[0];
        let expected = (Bytes(releasing), Bytes(foreign), Bytes(free));
        assert_eq!((row.releasing, row.foreign, row.free), expected, "{used} at {at} s");
    }
}

#[test]
fn one_that_was_empty_before_the_process_had_anything_is_one_again() {
    let mut ledger = gone(&[(1, 400)]);
    for at in [7, 9] {
        ledger.observe(Moment::from_secs(at), &reading(430), &BTreeMap::new());
        assert_eq!(ledger.rows()[0].releasing, Bytes(400), "it lags at {at} s");
    }
    ledger.observe(Moment::from_secs(10), &reading(30), &BTreeMap::new());
    assert_eq!(ledger.rows()[0].free, Bytes(970));
}

/// Until an engine has its context the driver names nobody, and does not say what it holds.
#[test]
fn a_load_beside_what_is_quarantined_takes_it_for_nobodys() {
    let mut ledger = leaked();
    ledger.reserve(id(2), &placement(400));
    ledger.confirm(&id(2));
    ledger.observe(Moment::from_secs(40), &with(230, &[]), &seen(2, Known::Unknown));
    assert_eq!(ledger.rows()[0].quarantined, Bytes(200));
}
