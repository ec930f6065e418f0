//! The ledger, by small histories.

use super::*;
use crate::types::{Generation, GpuReading, Need, NeedSource, ProcessMemory};

fn gpu() -> GpuId {
    GpuId::new("GPU-a")
}

fn id(n: u64) -> InstanceId {
    InstanceId::new("m".parse().unwrap(), Generation(n), 0)
}

fn placement(bytes: u64) -> Placement {
    let need = Need { bytes: Bytes(bytes), source: NeedSource::Declared };
    Placement { gpus: vec![gpu()], need, budget: need.bytes, device_total: Bytes(1000) }
}

fn reading(used: u64) -> GpuSnapshot {
    let device = GpuReading {
        id: gpu(),
        name: "X".into(),
        total: Bytes(1000),
        used: Bytes(used),
        processes: vec![],
    };
    GpuSnapshot { devices: vec![device], lost: vec![], driver: String::new() }
}

fn seen(n: u64, bytes: Known<Bytes>) -> BTreeMap<InstanceId, Usage> {
    let bytes = BTreeMap::from([(gpu(), bytes)]);
    BTreeMap::from([(id(n), Usage { pids: vec![u32::try_from(n).unwrap()], bytes })])
}

#[test]
fn nothing_is_known_before_the_first_reading() {
    let mut ledger = Ledger::new(Bytes(0), ReleaseRule::exact(Duration::from_secs(30)));
    assert!(ledger.stale().is_some());
    assert!(ledger.rows().is_empty());
    ledger.observe(Moment::START, &reading(0), &BTreeMap::new());
    assert!(ledger.stale().is_none());
    ledger.mark_stale("nvml hangs");
    assert_eq!(ledger.stale(), Some("nvml hangs"));
    assert_eq!(ledger.status()[0].free, Known::Unknown);
}

#[test]
fn a_promise_is_charged_before_it_is_used_and_not_twice_after() {
    let mut ledger = Ledger::new(Bytes(100), ReleaseRule::exact(Duration::from_secs(30)));
    ledger.observe(Moment::START, &reading(50), &BTreeMap::new());
    ledger.reserve(id(1), &placement(300));
    let row = &ledger.rows()[0];
    assert_eq!((row.reserved, row.foreign, row.free), (Bytes(300), Bytes(50), Bytes(550)));
    assert!(row.gated);
    ledger.observe(Moment::from_secs(1), &reading(250), &seen(1, Known::Known(Bytes(200))));
    assert_eq!(ledger.rows()[0].free, Bytes(550));
    ledger.confirm(&id(1));
    // It took more than it was promised: the truth is charged.
    ledger.observe(Moment::from_secs(2), &reading(450), &seen(1, Known::Known(Bytes(400))));
    let row = &ledger.rows()[0];
    assert_eq!((row.confirmed, row.foreign, row.free), (Bytes(400), Bytes(50), Bytes(450)));
    assert!(!row.gated);
    assert_eq!(ledger.hold(&id(1)).unwrap().observed_peak(), Some(Bytes(400)));
    assert_eq!(ledger.hold(&id(1)).unwrap().observed_total(), Known::Known(Bytes(400)));
}

#[test]
fn a_release_counts_only_when_it_was_seen_afterwards() {
    let mut ledger = Ledger::new(Bytes(0), ReleaseRule::exact(Duration::from_secs(30)));
    ledger.observe(Moment::START, &reading(0), &BTreeMap::new());
    ledger.reserve(id(1), &placement(400));
    ledger.confirm(&id(1));
    ledger.release(&id(1));
    ledger.observe(Moment::from_secs(5), &reading(0), &BTreeMap::new());
    assert_eq!(ledger.rows()[0].releasing, Bytes(400), "processes may live");
    ledger.gone(&id(1), Moment::from_secs(6));
    ledger.observe(Moment::from_secs(5), &reading(0), &BTreeMap::new());
    assert_eq!(ledger.rows()[0].free, Bytes(600), "that reading was begun before the end");
    ledger.observe(Moment::from_secs(7), &reading(0), &BTreeMap::new());
    assert_eq!(ledger.rows()[0].free, Bytes(1000));
    assert!(ledger.hold(&id(1)).is_none());
}

/// One instance of 400 bytes on a device whose driver itself takes 30, stopped at second 6.
fn stopped() -> Ledger {
    let mut ledger = Ledger::new(Bytes(0), ReleaseRule::exact(Duration::from_secs(30)));
    ledger.observe(Moment::START, &with(30, &[]), &BTreeMap::new());
    ledger.reserve(id(1), &placement(400));
    ledger.confirm(&id(1));
    let held = seen(1, Known::Known(Bytes(400)));
    ledger.observe(Moment::from_secs(5), &with(430, &[(1, 400)]), &held);
    ledger.release(&id(1));
    ledger.gone(&id(1), Moment::from_secs(6));
    ledger
}

fn with(used: u64, processes: &[(u32, u64)]) -> GpuSnapshot {
    let mut snapshot = reading(used);
    let process =
        |(pid, bytes): &(u32, u64)| ProcessMemory { pid: *pid, bytes: Known::Known(Bytes(*bytes)) };
    snapshot.devices[0].processes = processes.iter().map(process).collect();
    snapshot
}

#[test]
fn a_late_release_gates_the_device_and_is_then_quarantined() {
    let mut ledger = stopped();
    ledger.observe(Moment::from_secs(7), &with(430, &[]), &BTreeMap::new());
    let row = &ledger.rows()[0];
    assert!(row.gated, "the next start waits");
    assert_eq!((row.releasing, row.foreign, row.free), (Bytes(400), Bytes(30), Bytes(570)));
    assert!(ledger.missing().is_empty());
    // Half of it has come back when the time is over.
    ledger.observe(Moment::from_secs(36), &with(230, &[]), &BTreeMap::new());
    let row = &ledger.rows()[0];
    assert!(!row.gated, "the rest of the device is usable");
    assert_eq!((row.quarantined, row.foreign, row.free), (Bytes(200), Bytes(30), Bytes(770)));
    assert!(ledger.missing()[0].to_string().contains("no process accounts for it"));
    ledger.observe(Moment::from_secs(90), &with(30, &[]), &BTreeMap::new());
    assert_eq!(ledger.rows()[0].free, Bytes(970));
    assert!(ledger.missing().is_empty());
}

#[test]
fn a_process_that_outlives_its_cgroup_is_named() {
    let mut ledger = stopped();
    ledger.observe(Moment::from_secs(36), &with(430, &[(1, 400), (77, 0)]), &BTreeMap::new());
    let missing = ledger.missing();
    assert_eq!((missing[0].bytes, missing[0].pids.as_slice()), (Bytes(400), &[1][..]));
    assert!(missing[0].to_string().contains("held by the processes 1"));
    assert_eq!(ledger.rows()[0].free, Bytes(570));
}

#[test]
fn a_foreign_process_that_comes_meanwhile_is_no_late_release() {
    let mut ledger = stopped();
    ledger.observe(Moment::from_secs(7), &with(530, &[(77, 500)]), &BTreeMap::new());
    let row = &ledger.rows()[0];
    assert_eq!((row.releasing, row.foreign, row.free), (Bytes(0), Bytes(530), Bytes(470)));
}

#[test]
fn without_accounts_less_in_use_decides_or_a_short_time_and_nothing_is_free_too_early() {
    let blind = |used| {
        let mut blind = with(used, &[]);
        blind.devices[0].processes = vec![ProcessMemory { pid: 9, bytes: Known::Unknown }];
        blind
    };
    // In use when its stop was ordered: 430.
    let cases =
        [(430, 8, 400, 30, 570), (429, 7, 0, 429, 571), (30, 7, 0, 30, 970), (430, 9, 0, 430, 570)];
    for (used, at, releasing, foreign, free) in cases {
        let mut ledger = stopped();
        ledger.observe(Moment::from_secs(at), &blind(used), &BTreeMap::new());
        let row = &ledger.rows()[0];
        let expected = (Bytes(releasing), Bytes(foreign), Bytes(free));
        assert_eq!((row.releasing, row.foreign, row.free), expected, "{used} at {at} s");
    }
}

#[test]
fn without_attribution_the_promise_stands_in() {
    let mut ledger = Ledger::new(Bytes(0), ReleaseRule::exact(Duration::from_secs(30)));
    ledger.reserve(id(1), &placement(300));
    ledger.observe(Moment::START, &reading(350), &seen(1, Known::Unknown));
    let row = &ledger.rows()[0];
    assert_eq!((row.foreign, row.free), (Bytes(50), Bytes(650)));
    assert_eq!(ledger.hold(&id(1)).unwrap().observed_total(), Known::Unknown);
    assert_eq!(ledger.hold(&id(1)).unwrap().observed_peak(), None);
}

#[test]
fn what_was_in_use_before_an_orphan_went_is_not_its_debt() {
    let mut ledger = Ledger::new(Bytes(0), ReleaseRule::exact(Duration::from_secs(30)));
    // Adopted only to be stopped: its release has begun before the first reading.
    ledger.reserve(id(1), &placement(300));
    ledger.release(&id(1));
    let reading = |used, held: u64| {
        let mut snapshot = reading(used);
        let bytes = Known::Known(Bytes(held));
        snapshot.devices[0].processes = vec![ProcessMemory { pid: 7, bytes }];
        snapshot
    };
    // 70 bytes are the driver's own, before and after.
    ledger.observe(Moment::START, &reading(370, 300), &BTreeMap::new());
    ledger.gone(&id(1), Moment::from_secs(1));
    ledger.observe(Moment::from_secs(2), &reading(70, 0), &BTreeMap::new());
    assert_eq!(ledger.hold(&id(1)), None, "all of it has come back");
    let row = &ledger.rows()[0];
    assert_eq!((row.foreign, row.free, row.gated), (Bytes(70), Bytes(930), false));
}

/// [`stopped`], with 200 of its bytes quarantined.
fn leaked() -> Ledger {
    let mut ledger = stopped();
    ledger.observe(Moment::from_secs(36), &with(230, &[]), &BTreeMap::new());
    assert_eq!(ledger.rows()[0].quarantined, Bytes(200));
    ledger
}

/// Loads another one of 400 bytes.
fn load(ledger: &mut Ledger, n: u64, at: u64, used: u64, processes: &[(u32, u64)]) {
    ledger.reserve(id(n), &placement(400));
    ledger.confirm(&id(n));
    let seen = seen(n, Known::Known(Bytes(400)));
    ledger.observe(Moment::from_secs(at), &with(used, processes), &seen);
}

fn end(ledger: &mut Ledger, n: u64, at: u64) {
    ledger.release(&id(n));
    ledger.gone(&id(n), Moment::from_secs(at));
}

#[test]
fn what_is_quarantined_is_not_the_debt_of_those_who_stop_later() {
    let mut ledger = leaked();
    load(&mut ledger, 2, 40, 630, &[(2, 400)]);
    end(&mut ledger, 2, 41);
    ledger.observe(Moment::from_secs(42), &with(230, &[]), &BTreeMap::new());
    assert!(ledger.hold(&id(2)).is_none(), "all that it held has come back");
    let row = &ledger.rows()[0];
    assert_eq!((row.quarantined, row.foreign, row.free), (Bytes(200), Bytes(30), Bytes(770)));
    assert!(!row.gated);
    // Nor is what the driver has taken for itself meanwhile, and what comes back late is told apart from what never does.
    load(&mut ledger, 3, 50, 680, &[(3, 400)]);
    ledger.observe(Moment::from_secs(53), &with(680, &[(3, 400)]), &BTreeMap::new());
    end(&mut ledger, 3, 54);
    ledger.observe(Moment::from_secs(55), &with(380, &[]), &BTreeMap::new());
    let row = &ledger.rows()[0];
    assert_eq!((row.quarantined, row.releasing, row.gated), (Bytes(200), Bytes(400), true));
    assert_eq!(row.foreign, Bytes(0), "what is left of it is charged already");
    ledger.observe(Moment::from_secs(56), &with(280, &[]), &BTreeMap::new());
    let row = &ledger.rows()[0];
    assert_eq!((row.quarantined, row.foreign, row.free), (Bytes(200), Bytes(80), Bytes(720)));
    assert!(!row.gated);
    // It is given back after all.
    ledger.observe(Moment::from_secs(57), &with(80, &[]), &BTreeMap::new());
    assert_eq!((ledger.holds().count(), ledger.rows()[0].free), (0, Bytes(920)));
}

#[test]
fn what_two_leave_together_is_quarantined_once() {
    let mut ledger = Ledger::new(Bytes(0), ReleaseRule::exact(Duration::from_secs(30)));
    ledger.observe(Moment::START, &with(30, &[]), &BTreeMap::new());
    load(&mut ledger, 1, 5, 430, &[(1, 400)]);
    load(&mut ledger, 2, 6, 830, &[(1, 400), (2, 400)]);
    end(&mut ledger, 1, 7);
    end(&mut ledger, 2, 8);
    // One of them has given back all, and nobody can say which.
    for at in [9, 40] {
        ledger.observe(Moment::from_secs(at), &with(430, &[]), &BTreeMap::new());
        let row = &ledger.rows()[0];
        assert_eq!((row.releasing + row.quarantined, row.free), (Bytes(400), Bytes(570)));
    }
    assert_eq!(ledger.missing().len(), 1);
    assert!(!ledger.rows()[0].gated);
}

#[test]
fn memory_is_quarantined_on_the_device_that_misses_it() {
    let other = GpuId::new("GPU-b");
    let two = |used: [u64; 2], processes: &[(u32, u64)]| {
        let mut snapshot = with(used[0], processes);
        let second = GpuReading { id: other.clone(), ..with(used[1], processes).devices.remove(0) };
        snapshot.devices.push(second);
        snapshot
    };
    let mut ledger = Ledger::new(Bytes(0), ReleaseRule::exact(Duration::from_secs(30)));
    ledger.observe(Moment::START, &two([0, 0], &[]), &BTreeMap::new());
    let both = Placement { gpus: vec![gpu(), other.clone()], ..placement(400) };
    ledger.reserve(id(1), &both);
    ledger.confirm(&id(1));
    let bytes = both.gpus.iter().map(|gpu| (gpu.clone(), Known::Known(Bytes(400)))).collect();
    let usage = BTreeMap::from([(id(1), Usage { pids: vec![1], bytes })]);
    ledger.observe(Moment::from_secs(5), &two([400, 400], &[(1, 400)]), &usage);
    end(&mut ledger, 1, 6);
    ledger.observe(Moment::from_secs(36), &two([300, 0], &[]), &BTreeMap::new());
    let rows = ledger.rows();
    assert_eq!((rows[0].quarantined, rows[0].free), (Bytes(300), Bytes(700)));
    assert_eq!((rows[1].quarantined, rows[1].free), (Bytes(0), Bytes(1000)));
    assert!(ledger.holders_on(&other).is_empty());
    assert_eq!(ledger.missing()[0].gpus, [gpu()]);
}

#[test]
fn who_cannot_be_stopped_stays_charged_but_is_not_in_the_way_for_ever() {
    // Whether the driver still names its process or not.
    for processes in [&[(1, 400)][..], &[]] {
        let mut ledger = Ledger::new(Bytes(0), ReleaseRule::exact(Duration::from_secs(30)));
        ledger.observe(Moment::START, &with(30, &[]), &BTreeMap::new());
        load(&mut ledger, 1, 5, 430, &[(1, 400)]);
        ledger.release(&id(1));
        ledger.stuck(&id(1), Moment::from_secs(6));
        ledger.stuck(&id(1), Moment::from_secs(20));
        ledger.observe(Moment::from_secs(35), &with(430, processes), &BTreeMap::new());
        assert!(ledger.rows()[0].gated, "it may go any moment");
        ledger.observe(Moment::from_secs(36), &with(430, processes), &BTreeMap::new());
        let row = &ledger.rows()[0];
        assert_eq!((row.releasing, row.foreign, row.free), (Bytes(400), Bytes(30), Bytes(570)));
        assert!(!row.gated, "others start beside it");
        let mut both = processes.to_vec();
        both.push((2, 400));
        load(&mut ledger, 2, 40, 830, &both);
        end(&mut ledger, 2, 41);
        ledger.observe(Moment::from_secs(42), &with(430, processes), &BTreeMap::new());
        assert!(ledger.hold(&id(2)).is_none() && !ledger.rows()[0].gated, "and leave");
        // It is gone after all, and that is seen as always.
        ledger.gone(&id(1), Moment::from_secs(50));
        ledger.observe(Moment::from_secs(51), &with(430, &[]), &BTreeMap::new());
        assert!(ledger.rows()[0].gated);
        ledger.observe(Moment::from_secs(52), &with(30, &[]), &BTreeMap::new());
        assert_eq!((ledger.holds().count(), ledger.rows()[0].free), (0, Bytes(970)));
    }
}

#[test]
fn a_foreign_process_that_ends_slowly_hides_no_quarantine() {
    let mut ledger = leaked();
    ledger.observe(Moment::from_secs(37), &with(730, &[]), &BTreeMap::new());
    for at in [38, 90] {
        ledger.observe(Moment::from_secs(at), &with(230, &[]), &BTreeMap::new());
        let row = &ledger.rows()[0];
        assert_eq!((row.quarantined, row.foreign, row.free), (Bytes(200), Bytes(30), Bytes(770)));
    }
    // One after the other do as little, however long they take together.
    for (at, used) in [(91, 530), (93, 230), (95, 630), (96, 230)] {
        ledger.observe(Moment::from_secs(at), &with(used, &[]), &BTreeMap::new());
        assert_eq!(ledger.rows()[0].quarantined, Bytes(200));
    }
}

/// [`stopped`], but its process hangs: its stops have failed for 30 s.
fn stuck(seen_of_it: u64) -> Ledger {
    let mut ledger = Ledger::new(Bytes(0), ReleaseRule::exact(Duration::from_secs(30)));
    ledger.observe(Moment::START, &with(30, &[]), &BTreeMap::new());
    ledger.reserve(id(1), &placement(400));
    ledger.confirm(&id(1));
    let processes = [(1, seen_of_it)];
    let seen = seen(1, Known::Known(Bytes(seen_of_it)));
    ledger.observe(Moment::from_secs(5), &with(30 + seen_of_it, &processes), &seen);
    ledger.release(&id(1));
    ledger.stuck(&id(1), Moment::from_secs(6));
    // The driver does not name it any more.
    nameless(&mut ledger, 36, 30 + seen_of_it);
    ledger
}

/// A reading in which the first one has no memory by the driver's lists.
fn nameless(ledger: &mut Ledger, at: u64, used: u64) {
    let seen = seen(1, Known::Known(Bytes(0)));
    ledger.observe(Moment::from_secs(at), &with(used, &[]), &seen);
}

#[test]
fn who_stops_beside_one_that_cannot_be_stopped_is_still_waited_for() {
    // Also after a foreign process has ended slowly.
    for slow in [false, true] {
        // It never had all that was promised to it.
        for seen_of_it in [100, 400] {
            let mut ledger = stuck(seen_of_it);
            let before = 30 + seen_of_it;
            if slow {
                nameless(&mut ledger, 37, before + 500);
                nameless(&mut ledger, 38, before);
            }
            load(&mut ledger, 2, 40, before + 400, &[(2, 400)]);
            end(&mut ledger, 2, 41);
            nameless(&mut ledger, 42, before + 200);
            assert!(ledger.rows()[0].gated, "{slow} {seen_of_it}");
            nameless(&mut ledger, 43, before);
            assert!(ledger.hold(&id(2)).is_none() && !ledger.rows()[0].gated);
        }
    }
}

mod blind;
mod lost;
