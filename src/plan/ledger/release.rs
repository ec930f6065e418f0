//! When memory has really come back.
//!
//! A driver may hold a dead process's memory for seconds. It is then in use on the device, but in no process's account. So the
//! ledger remembers how much of a device is *unexplained* while nothing is being released; what a release adds to that is
//! what has not come back. A process of a stopped instance that still has memory counts too: it has outlived its cgroup.
//!
//! Where the driver attributes nothing to processes there is no such account. There it is waited until the device has less in
//! use than when the stop was ordered, for [`FALL_MAX`] at most: what is in use then is foreign, hence not free. Without that
//! wait, memory that a driver is slow to give back is foreign for a second: whoever waits for it loses its place to others. On
//! the host backend memory is back with the end of its process, and the first reading after it decides.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Device, Hold, Ledger, ReleaseRule, Stage};
use crate::types::{Bytes, GpuId, InstanceId, Known, Moment};

/// So long after the end of the last process a device that keeps no accounts may take to show less memory in use. There may be
/// nothing to show: the process had taken nothing yet, or another has taken as much meanwhile.
const FALL_MAX: Duration = Duration::from_secs(3);

/// What has not come back, and who seems to hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Whose it was.
    pub instance: InstanceId,
    /// On which devices.
    pub gpus: Vec<GpuId>,
    /// On the device where most is missing.
    pub bytes: Bytes,
    /// Processes of the instance that still have memory there; empty: the driver holds it for nobody.
    pub pids: Vec<u32>,
}

impl Ledger {
    /// What is quarantined now.
    #[must_use]
    pub fn missing(&self) -> Vec<Missing> {
        let quarantined = self.holds.iter().filter_map(|(instance, hold)| {
            let Stage::Quarantined { bytes, .. } = hold.stage else { return None };
            let alive = hold.gpus.iter().filter_map(|g| self.devices.get(g));
            let alive: BTreeSet<u32> = alive.flat_map(|d| d.survivors(hold)).collect();
            Some(Missing {
                instance: instance.clone(),
                gpus: hold.gpus.clone(),
                bytes,
                pids: alive.into_iter().collect(),
            })
        });
        quarantined.collect()
    }

    /// Drops holds whose memory has come back by a reading begun at `taken`, quarantines those that are late.
    pub(super) fn judge_releases(&mut self, taken: Moment) {
        let ids: Vec<InstanceId> = self.holds.keys().cloned().collect();
        for id in ids {
            let Some(hold) = self.holds.get(&id) else { continue };
            let since = match hold.stage {
                Stage::Releasing { gone: Some(gone) } if taken >= gone => gone,
                Stage::Quarantined { since, .. } => since,
                Stage::Reserved
                | Stage::Confirmed
                | Stage::Dozing { .. }
                | Stage::Asleep
                | Stage::Releasing { .. } => continue,
            };
            let missing = self.missing_of(hold, taken.since(since));
            if missing <= self.rule.slack {
                self.holds.remove(&id);
            } else if taken.since(since) >= self.rule.deadline || self.is_quarantined(&id) {
                let bytes = missing;
                let since = if self.is_quarantined(&id) { since } else { taken };
                self.set_stage(&id, Stage::Quarantined { since, bytes });
            }
        }
    }

    fn is_quarantined(&self, id: &InstanceId) -> bool {
        self.holds.get(id).is_some_and(|h| matches!(h.stage, Stage::Quarantined { .. }))
    }

    /// What is in use on its devices while it still lives.
    pub(super) fn remember_use(&mut self, instance: &InstanceId) {
        let Some(hold) = self.holds.get_mut(instance) else { return };
        if !matches!(hold.stage, Stage::Releasing { .. }) {
            let used = |gpu: &GpuId| Some((gpu.clone(), self.devices.get(gpu)?.reading.used));
            hold.before = hold.gpus.iter().filter_map(used).collect();
        }
    }

    /// What has not come back of a hold, so long after its end, on the device where most is missing; never more than it was
    /// charged with.
    fn missing_of(&self, hold: &Hold, after: Duration) -> Bytes {
        let on = |gpu: &GpuId| {
            let Some(device) = self.devices.get(gpu).filter(|d| d.lost.is_none()) else {
                return Bytes::ZERO;
            };
            let charge = hold.promised.max(hold.seen(gpu));
            let Some(unexplained) = device.unexplained() else {
                let used = device.reading.used;
                let before = hold.before.get(gpu).filter(|_| !device.reading.id.is_host());
                let fell = before.is_none_or(|before| used + self.rule.slack < *before);
                return if fell || after >= FALL_MAX { Bytes::ZERO } else { charge.min(used) };
            };
            let grown = unexplained.saturating_sub(device.unexplained_at_rest);
            (grown + device.survivors_hold(hold)).min(charge)
        };
        hold.gpus.iter().map(on).max().unwrap_or(Bytes::ZERO)
    }

    /// On devices where nothing is being released, whatever is unexplained now is normal.
    pub(super) fn learn_rest(&mut self) {
        let releasing: BTreeSet<GpuId> = self
            .holds
            .values()
            .filter(|h| matches!(h.stage, Stage::Releasing { .. } | Stage::Quarantined { .. }))
            .flat_map(|h| h.gpus.iter().cloned())
            .collect();
        for (id, device) in &mut self.devices {
            if let Some(unexplained) = device.unexplained().filter(|_| !releasing.contains(id)) {
                device.unexplained_at_rest = unexplained;
            }
        }
    }
}

impl Device {
    /// In use without being in any process's account; `None` where the driver does not keep accounts.
    pub(super) fn unexplained(&self) -> Option<Bytes> {
        if self.reading.id.is_host() {
            return None;
        }
        let accounts = self.reading.processes.iter().map(|p| p.bytes.get());
        let explained: Option<Bytes> = accounts.sum();
        explained.map(|sum| self.reading.used.saturating_sub(sum))
    }

    /// Processes of an instance that is gone which have memory here all the same.
    fn survivors<'a>(&'a self, hold: &'a Hold) -> impl Iterator<Item = u32> + 'a {
        let here = self.reading.processes.iter().filter(|p| p.bytes != Known::Known(Bytes::ZERO));
        here.map(|p| p.pid).filter(|pid| hold.pids.contains(pid))
    }

    fn survivors_hold(&self, hold: &Hold) -> Bytes {
        let mine = self.reading.processes.iter().filter(|p| hold.pids.contains(&p.pid));
        mine.filter_map(|p| p.bytes.get()).sum()
    }
}

impl ReleaseRule {
    /// A rule for tests with tiny devices: every byte counts.
    #[must_use]
    pub const fn exact(deadline: std::time::Duration) -> Self {
        Self { slack: Bytes::ZERO, deadline }
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gpus: Vec<&str> = self.gpus.iter().map(GpuId::as_str).collect();
        write!(f, "{} of {} have not come back on {}", self.bytes, self.instance, gpus.join(", "))?;
        if self.pids.is_empty() {
            write!(
                f,
                "; no process accounts for it: look at \"nvidia-smi\", a reset of the device may be needed"
            )
        } else {
            let pids: Vec<String> = self.pids.iter().map(ToString::to_string).collect();
            write!(f, "; held by the processes {}: end them", pids.join(", "))
        }
    }
}
