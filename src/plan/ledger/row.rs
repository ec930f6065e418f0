//! What of each device is whose, in sums.

use super::{Device, Ledger, Stage};
use crate::types::{Bytes, GpuId};

/// One device's sums. See [`Ledger::rows`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Identity.
    pub id: GpuId,
    /// Product name: devices of one name and size are equal.
    pub name: String,
    /// Memory that models could ever use.
    pub total: Bytes,
    /// In use by anybody at the last reading.
    pub used: Bytes,
    /// Kept free.
    pub headroom: Bytes,
    /// Charged to instances that start.
    pub reserved: Bytes,
    /// Charged to instances that are ready.
    pub confirmed: Bytes,
    /// Charged to instances that stop.
    pub releasing: Bytes,
    /// Not given back by instances that are gone.
    pub quarantined: Bytes,
    /// In use by anybody else.
    pub foreign: Bytes,
    /// What one instance that is alone there can be promised: beside what others use and what was not given back.
    pub alone: Bytes,
    /// In use by instances beyond what was promised to them.
    pub excess: Bytes,
    /// What may be promised now.
    pub free: Bytes,
    /// The same once what is being released has come back; equal to `free` where nothing is.
    pub soon: Bytes,
    /// A start or a stop is under way on it, or what has just become ready on it is not measured yet, or it is kept.
    pub gated: bool,
    /// Kept for models whose turn is before that of the one that is planned for.
    pub kept: Bytes,
}

impl Ledger {
    /// The sums of every device that can be used now, in the order of the identifiers.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let usable = self.devices.iter().filter(|(_, d)| d.lost.is_none());
        usable.map(|(id, device)| self.row(id, device)).collect()
    }

    pub(super) fn row(&self, id: &GpuId, device: &Device) -> Row {
        let mut sums = [Bytes::ZERO; 4];
        let (mut attributed, mut excess) = (Bytes::ZERO, Bytes::ZERO);
        let (mut coming, mut lagging) = (Bytes::ZERO, Bytes::ZERO);
        let mut gated = false;
        // Ready, and no reading has looked at it yet: what it uses is charged to it, and seems to be foreign as well.
        let mut unseen = false;
        for hold in self.holds.values().filter(|h| h.gpus.contains(id)) {
            let charge = hold.charge(id);
            let (slot, gates) = match hold.stage {
                Stage::Reserved => (0, true),
                Stage::Confirmed | Stage::Asleep => (1, false),
                Stage::Releasing { .. } => (2, !hold.is_given_up(self.taken, self.rule)),
                Stage::Dozing { .. } => (2, true),
                Stage::Quarantined { .. } => (3, false),
            };
            sums[slot] += charge;
            gated |= gates;
            if hold.draining {
                coming += charge;
            }
            unseen |= hold.stage == Stage::Confirmed && hold.observed.is_empty();
            let known = hold.in_use(id);
            excess += hold.excess(id);
            attributed += known;
            if matches!(hold.stage, Stage::Releasing { .. }) && hold.stuck.is_none() {
                coming += charge;
                // Of dead processes, while the driver keeps it: nobody's now, and coming back as well.
                lagging += charge.saturating_sub(known);
            }
            if let Stage::Dozing { residual, .. } = hold.stage {
                coming += charge.saturating_sub(residual);
            }
        }
        let foreign = device.reading.used.saturating_sub(attributed);
        gated |= unseen && foreign > Bytes::ZERO;
        let spoken_for = sums.into_iter().sum::<Bytes>() + foreign + self.headroom;
        let lagging = lagging.min(foreign);
        let later = spoken_for.saturating_sub(coming + lagging);
        let [reserved, confirmed, releasing, quarantined] = sums;
        let others = foreign.saturating_sub(lagging) + quarantined + self.headroom;
        Row {
            id: id.clone(),
            name: device.reading.name.clone(),
            total: device.reading.total,
            used: device.reading.used,
            headroom: self.headroom,
            reserved,
            confirmed,
            releasing,
            quarantined,
            foreign,
            alone: device.reading.total.saturating_sub(others),
            excess,
            free: device.reading.total.saturating_sub(spoken_for),
            soon: device.reading.total.saturating_sub(later),
            gated,
            kept: Bytes::ZERO,
        }
    }
}
