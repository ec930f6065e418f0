//! Of several devices, which.

use super::*;

/// Where it starts, after loads have failed so often on each of the devices.
fn after(w: &(Ledger, Vec<Holder>), bytes: u64, count: u32, failures: &[u32]) -> Decision {
    let model: ModelName = "want".parse().unwrap();
    let shunned = failures.iter().enumerate().map(|(n, times)| (gpu(n), *times)).collect();
    let want = Want { shunned: &shunned, ..want(&model, bytes, count, &[]) };
    plan(NOW, rules(Eviction::Lru), &w.0, &w.1, &want).decision
}

#[test]
fn where_loads_failed_it_starts_only_if_there_is_room_nowhere_else() {
    let empty = world(&[(100, 10), (100, 0)], &[]);
    let on = |w: &(Ledger, Vec<Holder>), failures: &[u32]| started(&after(w, 50, 1, failures));
    assert_eq!(on(&empty, &[0, 0]), ["GPU-0"]);
    assert_eq!(on(&empty, &[1, 0]), ["GPU-1"]);
    assert_eq!(on(&empty, &[1, 1]), ["GPU-0"], "where all have failed, as ever");
    assert_eq!(on(&empty, &[2, 1]), ["GPU-1"], "and in turn");
    // Nobody leaves so that it need not go there.
    for standing in [Standing::Pinned, Standing::Idle] {
        let full = world(&[(100, 0), (100, 0)], &[(vec![1], 80, standing, 0)]);
        assert_eq!(on(&full, &[1, 0]), ["GPU-0"], "{standing:?}");
    }
}

#[test]
fn of_several_devices_the_fewest_are_those_where_loads_failed() {
    let three = world(&[(100, 0), (100, 0), (100, 0)], &[]);
    let on = |failures: &[u32]| started(&after(&three, 50, 2, failures));
    assert_eq!(on(&[0, 0, 0]), ["GPU-0", "GPU-1"]);
    assert_eq!(on(&[1, 0, 0]), ["GPU-1", "GPU-2"]);
    assert_eq!(on(&[1, 1, 0]), ["GPU-0", "GPU-2"]);
    // Two sorts of devices, two of each.
    let sorts = world(&[(100, 0), (100, 0), (200, 0), (200, 0)], &[]);
    assert_eq!(started(&after(&sorts, 50, 2, &[0, 1, 0, 0])), ["GPU-2", "GPU-3"]);
}

/// A process sees one slice (MIG) alone, however many its container has.
#[test]
fn slices_are_never_taken_together() {
    let reading = |id: &&str| GpuReading {
        id: GpuId::new(id),
        name: "X MIG 3g.40gb".into(),
        total: Bytes(100),
        used: Bytes(0),
        processes: vec![],
    };
    let there = |ids: &[&str]| {
        let mut ledger = Ledger::new(Bytes(0), ReleaseRule::default());
        let devices = ids.iter().map(reading).collect();
        let snapshot = GpuSnapshot { devices, lost: vec![], driver: String::new() };
        ledger.observe(Moment::START, &snapshot, &BTreeMap::new());
        (ledger, vec![])
    };
    let slices = there(&["MIG-a", "MIG-b"]);
    assert_eq!(ask(&slices, 50, 2, &[]).0, Decision::Refuse { largest: Bytes(100) });
    assert_eq!(started(&ask(&slices, 50, 1, &[]).0), ["MIG-a"]);
    assert_eq!(started(&ask(&there(&["GPU-a", "GPU-b"]), 50, 2, &[]).0), ["GPU-a", "GPU-b"]);
}
