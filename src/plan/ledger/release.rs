//! When memory has really come back.
//!
//! A driver may hold a dead process's memory for seconds. It is then in use on the device, but in no process's account. So the
//! ledger remembers how much of a device is *unexplained* while nothing is being released; what a release adds to that is
//! what has not come back. A process of a stopped instance that still has memory counts too: it has outlived its cgroup.
//! Nobody can say which of several that have gone left it, so it is one's debt and not each one's: first of those who are
//! quarantined, each up to what it has missed so far, then of those who went before others. Else one leak made every later
//! stop there wait for memory that has been written off already, and each of them charged it once more.
//!
//! One that cannot be stopped, for a process of it hangs in the kernel, may hold its memory for ever. It stays charged with it;
//! once its stops have failed for as long as a release may take, it does not keep others from its devices any more.
//!
//! Where the driver attributes nothing to processes, or lists none, there is no such account. There it is waited until the device
//! has less in use than when the stop was ordered, for [`FALL_MAX`] at most: what is in use then is foreign, hence not free. Without that
//! wait, memory that a driver is slow to give back is foreign for a second: whoever waits for it loses its place to others. On
//! the host backend memory is back with the end of its process, and the first reading after it decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Device, Hold, Ledger, ReleaseRule, Stage};
use crate::types::{Bytes, GpuId, GpuReading, InstanceId, Known, Moment, Silence};

/// So long after the end of the last process a device may take to show less memory in use. Where it keeps no accounts there may
/// be nothing to show: the process had taken nothing yet, or another has taken as much meanwhile.
const FALL_MAX: Duration = Duration::from_secs(3);

/// What has not come back, and who seems to hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Whose it was.
    pub instance: InstanceId,
    /// The devices that miss it.
    pub gpus: Vec<GpuId>,
    /// On the device where most is missing.
    pub bytes: Bytes,
    /// Processes of the instance that still have memory there; empty: the driver holds it for nobody.
    pub pids: Vec<u32>,
}

impl Ledger {
    /// The instance is being stopped.
    pub fn release(&mut self, instance: &InstanceId) {
        self.drain(instance, false);
        self.remember_use(instance);
        self.set_stage(instance, Stage::Releasing { gone: None });
    }

    /// No process of the instance is left since `now`.
    pub fn gone(&mut self, instance: &InstanceId, now: Moment) {
        self.set_stage(instance, Stage::Releasing { gone: Some(now) });
        if let Some(hold) = self.holds.get_mut(instance) {
            hold.stuck = None;
        }
    }

    /// The instance could not be stopped at `now`.
    pub fn stuck(&mut self, instance: &InstanceId, now: Moment) {
        if let Some(hold) = self.holds.get_mut(instance) {
            hold.stuck.get_or_insert(now);
        }
    }

    /// What is quarantined now.
    #[must_use]
    pub fn missing(&self) -> Vec<Missing> {
        let quarantined = self.holds.iter().filter(|(_, hold)| hold.is_quarantined());
        let missing = |(instance, hold): (&InstanceId, &Hold)| {
            let alive = hold.gpus.iter().filter_map(|g| self.devices.get(g));
            let alive: BTreeSet<u32> = alive.flat_map(|d| d.survivors(hold)).collect();
            Missing {
                instance: instance.clone(),
                gpus: hold.gpus.clone(),
                bytes: hold.missing.values().copied().max().unwrap_or(Bytes::ZERO),
                pids: alive.into_iter().collect(),
            }
        };
        quarantined.map(missing).collect()
    }

    /// Drops holds whose memory has come back by a reading begun at `taken`, quarantines those that are late.
    pub(super) fn judge_releases(&mut self, taken: Moment) {
        let mut grown = self.grown();
        for (quarantined, since, id) in self.debtors(taken) {
            let Some(hold) = self.holds.get(&id) else { continue };
            let missing = self.missing_of(hold, taken.since(since), &mut grown);
            if missing.is_empty() {
                self.holds.remove(&id);
            } else if quarantined || taken.since(since) >= self.rule.deadline {
                let since = if quarantined { since } else { taken };
                self.quarantine(&id, since, missing);
            }
        }
    }

    /// Those who are gone by a reading begun at `taken`, since when they are or are quarantined, in the order in which what
    /// nobody accounts for is theirs.
    fn debtors(&self, taken: Moment) -> Vec<(bool, Moment, InstanceId)> {
        let debtor = |(id, hold): (&InstanceId, &Hold)| match hold.stage {
            Stage::Releasing { gone: Some(gone) } if taken >= gone => {
                Some((false, gone, id.clone()))
            }
            Stage::Quarantined { since } => Some((true, since, id.clone())),
            Stage::Reserved
            | Stage::Confirmed
            | Stage::Dozing { .. }
            | Stage::Asleep
            | Stage::Releasing { .. } => None,
        };
        let mut debtors: Vec<(bool, Moment, InstanceId)> =
            self.holds.iter().filter_map(debtor).collect();
        debtors.sort_by(|a, b| (!a.0, a.1, &a.2).cmp(&(!b.0, b.1, &b.2)));
        debtors
    }

    /// Charged from now on with what is missing, where it is.
    fn quarantine(
        &mut self,
        instance: &InstanceId,
        since: Moment,
        missing: BTreeMap<GpuId, Bytes>,
    ) {
        let Some(hold) = self.holds.get_mut(instance) else { return };
        hold.stage = Stage::Quarantined { since };
        hold.gpus.retain(|gpu| missing.contains_key(gpu));
        hold.missing = missing;
    }

    /// What is in use on its devices while it still lives.
    pub(super) fn remember_use(&mut self, instance: &InstanceId) {
        let Some(hold) = self.holds.get_mut(instance) else { return };
        if !matches!(hold.stage, Stage::Releasing { .. }) {
            let used = |gpu: &GpuId| Some((gpu.clone(), self.devices.get(gpu)?.reading.used));
            hold.before = hold.gpus.iter().filter_map(used).collect();
            hold.held = hold.gpus.iter().map(|gpu| (gpu.clone(), hold.seen(gpu))).collect();
        }
    }

    /// In use beyond the usual without anybody to account for it, on each device that keeps accounts; without what those may
    /// still hold who cannot be stopped.
    fn grown(&self) -> BTreeMap<GpuId, Bytes> {
        let grown = |(id, device): (&GpuId, &Device)| {
            let grown = device.unexplained()?.saturating_sub(device.unexplained_at_rest);
            let given_up = self.holds.values().filter(|h| h.gpus.contains(id));
            let given_up = given_up.filter(|h| h.is_given_up(self.taken, self.rule));
            let kept = given_up.map(|h| device.unlisted(h)).sum();
            Some((id.clone(), grown.saturating_sub(kept)))
        };
        self.devices.iter().filter_map(grown).collect()
    }

    /// What has not come back of a hold, so long after its end, on the devices that miss it; never more than it was charged
    /// with there, and its part is taken from what has `grown`.
    fn missing_of(
        &self,
        hold: &Hold,
        after: Duration,
        grown: &mut BTreeMap<GpuId, Bytes>,
    ) -> BTreeMap<GpuId, Bytes> {
        let mut on = |gpu: &GpuId| {
            let device = self.devices.get(gpu)?;
            let charge = hold.charge(gpu);
            match device.lost {
                None => {}
                Some(Silence::Gone(_)) => return None,
                // Nobody can say: it is not free before it was seen to be.
                Some(Silence::Unread(_)) => return Some(charge),
            }
            let Some(unclaimed) = grown.get_mut(gpu) else {
                let used = device.reading.used;
                let before = hold.before.get(gpu).filter(|_| !device.reading.id.is_host());
                let fell = before.is_none_or(|before| used + self.rule.slack < *before);
                return (!fell && after < FALL_MAX).then(|| charge.min(used));
            };
            let alive = device.survivors_hold(hold).min(charge);
            let kept = charge.saturating_sub(alive).min(*unclaimed);
            *unclaimed = unclaimed.saturating_sub(kept);
            Some(alive + kept)
        };
        let missing = hold.gpus.iter().filter_map(|gpu| Some((gpu.clone(), on(gpu)?)));
        missing.filter(|(_, bytes)| *bytes > self.rule.slack).collect()
    }

    /// On devices where nothing is being released, whatever is unexplained now is normal, but for what is quarantined and what
    /// those hold who cannot be stopped.
    pub(super) fn learn_rest(&mut self) {
        let Self { devices, holds, taken, rule, .. } = self;
        for (id, device) in devices {
            let Some(unexplained) = device.unexplained() else { continue };
            let given_up = |h: &&Hold| h.is_quarantined() || h.is_given_up(*taken, *rule);
            let here = holds.values().filter(|h| h.gpus.contains(id));
            let (given_up, others): (Vec<&Hold>, Vec<&Hold>) = here.partition(given_up);
            if others.iter().any(|h| matches!(h.stage, Stage::Releasing { .. })) {
                continue;
            }
            if given_up.is_empty() {
                (device.unexplained_at_rest, device.rising) = (unexplained, None);
                continue;
            }
            let kept: Bytes = given_up.into_iter().map(|h| device.unlisted(h)).sum();
            // Of theirs is at most what has grown: they may hold less than they are charged with.
            device.rest(*taken, unexplained.saturating_sub(kept));
            device.unexplained_at_rest = device.unexplained_at_rest.min(unexplained);
        }
    }
}

impl Hold {
    /// Its stops have failed for as long as a release may take.
    pub(super) fn is_given_up(&self, at: Moment, rule: ReleaseRule) -> bool {
        self.stuck.is_some_and(|since| at.since(since) >= rule.deadline)
    }
}

impl GpuReading {
    /// In use without being in any process's account; `None` where the driver does not keep accounts.
    pub(super) fn unexplained(&self) -> Option<Bytes> {
        if self.id.is_host() {
            return None;
        }
        let accounts = self.processes.iter().map(|p| p.bytes.get());
        let explained: Option<Bytes> = accounts.sum();
        explained.map(|sum| self.used.saturating_sub(sum))
    }
}

impl Device {
    fn unexplained(&self) -> Option<Bytes> {
        if self.blind { None } else { self.reading.unexplained() }
    }

    /// Takes over what seems to be unexplained at rest, once it has been more for longer than a process's memory takes to come
    /// back. What one of somebody else's leaves for a moment would be taken for the driver's own, and what we miss with it.
    fn rest(&mut self, taken: Moment, seems: Bytes) {
        if seems <= self.unexplained_at_rest {
            self.rising = None;
            return;
        }
        let (since, least) = self.rising.unwrap_or((taken, seems));
        let least = least.min(seems);
        self.rising = Some((since, least));
        if taken.since(since) >= FALL_MAX {
            (self.unexplained_at_rest, self.rising) = (least, None);
        }
    }

    /// Processes of an instance that is gone which have memory here all the same.
    fn survivors<'a>(&'a self, hold: &'a Hold) -> impl Iterator<Item = u32> + 'a {
        let here = self.reading.processes.iter().filter(|p| p.bytes != Known::Known(Bytes::ZERO));
        here.map(|p| p.pid).filter(|pid| hold.pids.contains(pid))
    }

    /// What of a hold that has been given up is in none of its processes' accounts. Not by its promise: that it may never have
    /// had, and others' debts would be taken for it.
    fn unlisted(&self, hold: &Hold) -> Bytes {
        let id = &self.reading.id;
        let most = match hold.stage {
            Stage::Quarantined { .. } => hold.charge(id),
            Stage::Reserved
            | Stage::Confirmed
            | Stage::Dozing { .. }
            | Stage::Asleep
            | Stage::Releasing { .. } => {
                hold.seen(id).max(hold.held.get(id).copied().unwrap_or(Bytes::ZERO))
            }
        };
        most.saturating_sub(self.survivors_hold(hold))
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
