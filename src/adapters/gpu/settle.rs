//! What a reading comes to where some devices did not let themselves be read.
//!
//! Purpose: tell a device that is gone from one that has a bad moment, and a snapshot with losses from a failure. Owner: [`super::reader`].
//! Invariants: pure; gone is what fell off the bus or is not listed any more, and nothing else.

use std::collections::BTreeSet;

use super::cause::Trouble;
use crate::supervisor::ports::GpuError;
use crate::types::{GpuId, GpuReading, GpuSnapshot, Silence};

/// The same error, of a device that has a name.
pub(super) fn about(id: GpuId, error: GpuError) -> (GpuId, GpuError) {
    let error =
        if let GpuError::Lost(_, why) = error { GpuError::Lost(id.clone(), why) } else { error };
    (id, error)
}

/// A snapshot of whatever answered. If nothing did, the reason of the first device is the reason of all, unless all were read before and
/// are gone since: then that is known of each, and what runs on them has failed.
pub(super) fn settle(
    devices: Vec<GpuReading>,
    failed: Vec<(GpuId, GpuError)>,
    seen: &BTreeSet<GpuId>,
    driver: String,
) -> Result<GpuSnapshot, Trouble> {
    let lost: Vec<(GpuId, Silence)> =
        failed.iter().map(|(id, error)| (id.clone(), silence(error))).collect();
    let gone = |(id, why): &(GpuId, Silence)| seen.contains(id) && matches!(why, Silence::Gone(_));
    let all_gone = lost.iter().all(gone);
    match failed.into_iter().next() {
        Some((_, error)) if devices.is_empty() && !all_gone => Err(Trouble::Device(error)),
        _ => Ok(GpuSnapshot { devices, lost, driver }),
    }
}

/// Why a device is in `lost`: without its identifier, which stands beside it. Only what is not there any more is gone: a driver
/// under load, or a slice that is reset, has other words, and what runs serves on.
pub(super) fn silence(error: &GpuError) -> Silence {
    match error {
        GpuError::Lost(_, why) => Silence::Gone(why.clone()),
        GpuError::NotFound { present, .. } => {
            let there = present.iter().map(GpuId::as_str).collect::<Vec<_>>().join(", ");
            let there = if there.is_empty() { "nothing".to_owned() } else { there };
            Silence::Gone(format!(
                "NVML does not list it any more, only {there}: it was taken out, or its MIG devices were made anew; restart hostler to use what is there"
            ))
        }
        GpuError::LibraryMissing(_)
        | GpuError::DriverNotLoaded(_)
        | GpuError::VersionMismatch(_)
        | GpuError::MemoryUnsupported(_)
        | GpuError::ZeroMemory(_)
        | GpuError::NoDevices
        | GpuError::Timeout(_)
        | GpuError::NoFirstAnswer(_)
        | GpuError::HostMemory(_)
        | GpuError::Other(_) => Silence::Unread(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Bytes;

    #[test]
    fn what_is_lost_is_told_of_each_once_it_was_read() {
        let id = GpuId::new("GPU-1");
        let error = || vec![(id.clone(), GpuError::Lost(id.clone(), "off the bus".into()))];
        let reading = GpuReading {
            id: GpuId::new("GPU-0"),
            name: "test".into(),
            total: Bytes(1),
            used: Bytes(0),
            processes: Vec::new(),
        };
        let never = BTreeSet::new();
        let snapshot = settle(vec![reading], error(), &never, "580.1".into()).unwrap();
        assert_eq!(snapshot.lost, [(id.clone(), Silence::Gone("off the bus".to_owned()))]);
        assert_eq!(snapshot.driver, "580.1");
        assert!(matches!(
            settle(Vec::new(), error(), &never, String::new()),
            Err(Trouble::Device(GpuError::Lost(..)))
        ));
        // The only one of this host, which models may run on.
        let seen = BTreeSet::from([id.clone()]);
        let snapshot = settle(Vec::new(), error(), &seen, String::new()).unwrap();
        assert_eq!((snapshot.devices.len(), snapshot.lost.len()), (0, 1));
        // Or that are made anew, as MIG devices are: those that models ran on do not exist any more.
        let present = vec![GpuId::new("GPU-2")];
        let unlisted = vec![(id.clone(), GpuError::NotFound { wanted: id.clone(), present })];
        let snapshot = settle(Vec::new(), unlisted, &seen, String::new()).unwrap();
        let [(_, Silence::Gone(why))] = &snapshot.lost[..] else { panic!("{snapshot:?}") };
        assert!(why.contains("GPU-2") && why.contains("restart hostler"), "{why}");
        let zero = vec![(id.clone(), GpuError::ZeroMemory(id.clone()))];
        assert!(matches!(
            settle(Vec::new(), zero, &seen, String::new()),
            Err(Trouble::Device(GpuError::ZeroMemory(_)))
        ));
    }
}
