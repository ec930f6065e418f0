//! The arithmetic of one want: what it needs where, what is in its way, and what is said about it.

use super::{Candidate, Claims, Rules, Want};
use crate::plan::holder::{Holder, Standing};
use crate::plan::ledger::{Ledger, Row};
use crate::types::{
    Bytes, DeviceVerdict, GpuId, Moment, Need, NeedSource, OnFull, Placement, Verdict,
    VictimVerdict,
};

impl Want<'_> {
    pub(super) fn allows(&self, gpu: &GpuId) -> bool {
        self.allowed.is_empty() || self.allowed.iter().any(|wanted| gpu.may_be(wanted))
    }

    pub(super) fn on(&self, row: &Row) -> Need {
        self.needs.on(&row.name, row.empty(), row.alone)
    }

    /// The need that a report shows where it differs by device: the largest that is known.
    pub(super) fn shown(&self, rows: &[Row]) -> Need {
        rows.iter().map(|row| self.on(row)).max_by_key(|n| n.bytes).unwrap_or(self.needs.other.need)
    }

    pub(super) fn exclusive(&self, row: &Row) -> bool {
        self.on(row).source == NeedSource::Exclusive
    }

    pub(super) fn fits(&self, row: &Row, offered: Bytes) -> bool {
        offered > Bytes::ZERO && offered >= self.on(row).bytes
    }

    pub(super) fn fits_now(&self, row: &Row, holders: &[Holder]) -> bool {
        let free = row.free + self.held(row, holders);
        self.missing(row, holders) == Bytes::ZERO && self.fits(row, free)
    }

    /// What its sleeping instance is charged there.
    pub(super) fn held(&self, row: &Row, holders: &[Holder]) -> Bytes {
        let own = holders.iter().find(|h| self.waking == Some(&h.instance));
        own.and_then(|h| h.charge_on(&row.id)).unwrap_or(Bytes::ZERO)
    }

    /// It fits now, or will when what is being released has come back.
    pub(super) fn fits_soon(&self, row: &Row, holders: &[Holder]) -> bool {
        (!row.gated || row.soon > row.free) && self.fits_later(row, holders)
    }

    /// The same, or it will once whatever starts there has become ready.
    pub(super) fn fits_later(&self, row: &Row, holders: &[Holder]) -> bool {
        // What drains closes no device, and leaves it.
        if !row.gated && (row.soon <= row.free || self.fits_now(row, holders)) {
            return self.fits_now(row, holders);
        }
        let stays = |h: &&Holder| {
            h.standing != Standing::Leaving && h.charge_on(&row.id).is_some_and(|c| c > Bytes::ZERO)
        };
        let alone = row.kept == Bytes::ZERO && !holders.iter().any(|h| stays(&h));
        self.fits(row, row.soon + self.held(row, holders)) && (!self.exclusive(row) || alone)
    }

    /// It fits once what starts there is ready, and whoever may leave for it but for their age has left.
    pub(super) fn fits_settled(&self, row: &Row, holders: &[Holder]) -> bool {
        let there = |h: &&Holder| {
            self.waking != Some(&h.instance)
                && h.charge_on(&row.id).is_some_and(|c| c > Bytes::ZERO)
        };
        let leaves = |h: &Holder| match h.standing {
            Standing::Idle | Standing::Starting | Standing::Asleep | Standing::BesideLoad => {
                h.priority <= self.priority
            }
            Standing::Leaving => true,
            Standing::Busy | Standing::Measuring | Standing::Pinned => false,
        };
        if self.exclusive(row) {
            return row.kept == Bytes::ZERO && holders.iter().filter(there).all(leaves);
        }
        let goes = |h: &&Holder| h.standing != Standing::Leaving && leaves(h);
        let movable = holders.iter().filter(there).filter(goes);
        let freed: Bytes = movable.filter_map(|h| h.charge_on(&row.id)).sum();
        // Not by what is free: where others have taken what was promised, that much less comes back.
        let coming = row.soon.saturating_sub(row.free);
        self.missing(row, holders) + row.kept <= freed + coming
    }

    /// Kept for it on the devices on which it will start.
    pub(super) fn claim(&self, chosen: &[&Row]) -> Claims {
        let whole = |row: &Row| if self.exclusive(row) { row.total } else { self.on(row).bytes };
        Claims::on(chosen.iter().map(|row| (&row.id, whole(row))))
    }

    /// What must be freed on a device before it can be used. Without any idea of the need that is everything of ours.
    pub(super) fn missing(&self, row: &Row, holders: &[Holder]) -> Bytes {
        if self.exclusive(row) {
            holders.iter().filter_map(|h| h.charge_on(&row.id)).sum()
        } else {
            let spoken_for = row.spoken_for().saturating_sub(self.held(row, holders));
            (self.on(row).bytes + spoken_for).saturating_sub(row.total)
        }
    }

    pub(super) fn placement(&self, chosen: &[&Row]) -> Placement {
        let mut gpus: Vec<GpuId> = chosen.iter().map(|row| row.id.clone()).collect();
        gpus.sort();
        let smallest = |f: fn(&Row) -> Bytes| chosen.iter().map(|r| f(r)).min();
        // Equal devices have equal needs, but for what one of them cannot give.
        let needs = chosen.iter().map(|row| self.on(row));
        let mut need = needs.min_by_key(|need| need.bytes).unwrap_or(self.needs.other.need);
        let device_total = smallest(|r| r.total).unwrap_or(Bytes::ZERO);
        if need.source == NeedSource::Exclusive {
            need.bytes = smallest(|r| r.free).unwrap_or(Bytes::ZERO);
        }
        // Told all that is free, an engine that looks at it after its context is there would refuse to start.
        let most = need.bytes.saturating_sub(self.needs.slack);
        let budget = self.needs.budget.map_or(most, |budget| budget.min(most));
        Placement { gpus, need, budget, device_total }
    }

    pub(super) fn judge(
        &self,
        row: &Row,
        ledger: &Ledger,
        holders: &[Holder],
        candidates: &[Candidate<'_>],
    ) -> DeviceVerdict {
        let could: Bytes = candidates.iter().filter_map(|c| c.holder.charge_on(&row.id)).sum();
        let verdict = if !self.fits(row, row.empty()) {
            Verdict::TooSmall
        } else if row.kept > Bytes::ZERO {
            Verdict::Kept
        } else if row.gated {
            Verdict::Gated
        } else if self.fits_now(row, holders) {
            Verdict::Fits
        } else if could > Bytes::ZERO && could >= self.missing(row, holders) {
            Verdict::FitsAfterEviction
        } else if self.fits(row, row.empty().saturating_sub(row.foreign)) {
            Verdict::Occupied
        } else {
            Verdict::Foreign
        };
        DeviceVerdict {
            gpu: row.id.clone(),
            free: row.free,
            empty: row.empty(),
            reserved: row.reserved + row.confirmed + row.releasing,
            quarantined: row.quarantined,
            foreign: row.foreign,
            kept: row.kept,
            holders: ledger.holders_on(&row.id),
            verdict,
        }
    }

    /// Why an instance may not leave for this model; `None`: it may.
    pub(super) fn stays(&self, now: Moment, rules: Rules, holder: &Holder) -> Option<&'static str> {
        holder.standing.spared().or_else(|| self.forbids(now, rules, holder))
    }

    /// The same of one that could leave.
    pub(super) fn forbids(
        &self,
        now: Moment,
        rules: Rules,
        holder: &Holder,
    ) -> Option<&'static str> {
        match self.on_full {
            OnFull::Wait => return Some("on_full = \"wait\" evicts nobody"),
            OnFull::Refuse => return Some("on_full = \"refuse\" evicts nobody"),
            OnFull::Evict => {}
        }
        if holder.priority > self.priority {
            Some("its priority is higher")
        } else if self.too_young_until(now, rules, holder).is_some() {
            Some("it became ready less than min_residency ago")
        } else {
            None
        }
    }

    /// When an instance is old enough to leave for this model; `None`: it is, or its age does not matter.
    pub(super) fn too_young_until(
        &self,
        now: Moment,
        rules: Rules,
        holder: &Holder,
    ) -> Option<Moment> {
        let settled = holder.ready_since? + rules.min_residency;
        Some(settled).filter(|at| *at > now && holder.priority == self.priority)
    }

    /// When the first of those that may not leave only for their age will be old enough.
    pub(super) fn next_settled(
        &self,
        rows: &[Row],
        now: Moment,
        rules: Rules,
        holders: &[Holder],
    ) -> Option<Moment> {
        let here = |h: &&Holder| rows.iter().any(|row| h.charge_on(&row.id).is_some());
        let idle = |h: &&Holder| h.standing == Standing::Idle && self.on_full == OnFull::Evict;
        let young = holders.iter().filter(here).filter(idle);
        young.filter_map(|h| self.too_young_until(now, rules, h)).min()
    }

    pub(super) fn list_victims(
        &self,
        rows: &[Row],
        holders: &[Holder],
        stays: impl Fn(&Holder) -> Option<&'static str>,
    ) -> Vec<VictimVerdict> {
        let here = |h: &&Holder| {
            self.waking != Some(&h.instance)
                && rows.iter().any(|row| h.charge_on(&row.id).is_some())
        };
        let verdict = |h: &Holder| VictimVerdict {
            instance: h.instance.clone(),
            spared: stays(h),
            chosen: false,
            asleep: None,
            stopped_because: None,
        };
        let mut all: Vec<VictimVerdict> = holders.iter().filter(here).map(verdict).collect();
        all.sort_by(|a, b| a.instance.cmp(&b.instance));
        all
    }
}
