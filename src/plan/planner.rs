//! The planner: `(ledger, holders, want) → (decision, report)`.

use super::eviction;
use super::ledger::{Ledger, Row};
use crate::types::{
    Bytes, DeviceVerdict, GpuId, InstanceId, ModelName, Moment, Need, NeedSource, Placement,
    Report, Verdict, VictimVerdict,
};

/// What a model wants.
#[derive(Clone, Debug)]
pub struct Want<'a> {
    /// Who.
    pub model: &'a ModelName,
    /// How much on each device.
    pub need: Need,
    /// On how many devices; at least 1.
    pub gpu_count: u32,
    /// Devices it may use; empty: all.
    pub allowed: &'a [GpuId],
}

/// An instance that holds memory, as far as the planner must know it.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Who.
    pub instance: InstanceId,
    /// Charged on each device, as the ledger has it.
    pub charges: Vec<(GpuId, Bytes)>,
    /// Whether it could leave.
    pub standing: Standing,
    /// When a lease was last given or returned.
    pub last_used: Moment,
}

impl Holder {
    pub(super) fn charge_on(&self, gpu: &GpuId) -> Option<Bytes> {
        self.charges.iter().find(|(g, _)| g == gpu).map(|(_, bytes)| *bytes)
    }
}

/// Whether an instance could leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Ready, nothing in flight, not pinned: it may be evicted.
    Idle,
    /// Serves requests.
    Busy,
    /// Pinned.
    Pinned,
    /// Its load is under way.
    Starting,
    /// It is leaving already.
    Leaving,
}

impl Standing {
    const fn spared(self) -> Option<&'static str> {
        match self {
            Self::Idle => None,
            Self::Busy => Some("it serves requests"),
            Self::Pinned => Some("it is pinned"),
            Self::Starting => Some("it is loading"),
            Self::Leaving => Some("it is leaving already"),
        }
    }
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start it there.
    Start(Placement),
    /// Stop these, then ask again.
    Evict(Vec<InstanceId>),
    /// Nothing can be done now; ask again when something has changed. The text is for people.
    Wait(String),
    /// It can never fit: `largest` is the most that any allowed device offers when empty.
    Refuse {
        /// See above.
        largest: Bytes,
    },
}

/// Decides where a model goes.
///
/// A device without a start or stop under way that has room is taken at once: of several, the one that is left with the
/// least free memory, so that the largest hole stays large. Where a release under way will make room, it waits for that.
/// Otherwise idle instances are chosen to leave. Otherwise it waits. Several devices are taken only from among equal ones. Deterministic.
#[must_use]
pub fn plan(ledger: &Ledger, holders: &[Holder], want: &Want<'_>) -> (Decision, Report) {
    let rows: Vec<Row> = ledger.rows().into_iter().filter(|row| want.allows(&row.id)).collect();
    let want = &want.possible(&rows);
    let mut report = Report {
        model: want.model.clone(),
        need: want.need,
        devices: rows.iter().map(|row| want.judge(row, holders)).collect(),
        victims: want.list_victims(&rows, holders),
    };
    if let Some(why) = ledger.stale() {
        return (Decision::Wait(why.to_owned()), report);
    }
    let mut decision = decide(&rows, holders, want, &mut report);
    let lost: Vec<String> = ledger
        .lost()
        .filter(|(id, _)| want.allows(id))
        .map(|(id, why)| format!("{id} {why}"))
        .collect();
    // What a lost device could have offered is not known: that is no "never".
    if matches!(decision, Decision::Refuse { .. }) && !lost.is_empty() {
        decision = Decision::Wait(format!("a device is lost: {}", lost.join("; ")));
    }
    (decision, report)
}

fn decide(rows: &[Row], holders: &[Holder], want: &Want<'_>, report: &mut Report) -> Decision {
    let count = want.gpu_count.max(1) as usize;
    let ever: Vec<&Row> = rows.iter().filter(|row| want.fits(row, row.empty())).collect();
    if groups(&ever).iter().all(|group| group.len() < count) {
        let largest = rows.iter().map(Row::empty).max().unwrap_or(Bytes::ZERO);
        // Fewer equal devices than asked for can never serve it either.
        return Decision::Refuse { largest };
    }
    let open: Vec<&Row> = ever.iter().copied().filter(|row| !row.gated).collect();
    let now: Vec<&Row> = open.iter().copied().filter(|r| want.fits_now(r, holders)).collect();
    if let Some(chosen) = tightest(&now, count) {
        for device in &mut report.devices {
            if chosen.iter().any(|row| row.id == device.gpu) {
                device.verdict = Verdict::Chosen;
            }
        }
        return Decision::Start(want.placement(&chosen));
    }
    // Whoever was evicted for it, or by chance, is on the way out already: nobody else has to go.
    let soon: Vec<&Row> = ever.iter().copied().filter(|r| want.fits_soon(r, holders)).collect();
    if tightest(&soon, count).is_some() {
        return Decision::Wait(report.to_string());
    }
    if let Some(set) = cheapest_eviction(&open, holders, want, count) {
        for victim in &mut report.victims {
            victim.chosen = set.contains(&victim.instance);
        }
        return Decision::Evict(set);
    }
    Decision::Wait(report.to_string())
}

/// Equal devices together: an engine that is spread over several runs at the pace of the smallest.
fn groups<'a>(rows: &[&'a Row]) -> Vec<Vec<&'a Row>> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|g| g[0].total == row.total) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// The `count` equal devices with the least free memory; ties go to the lower identifier.
fn tightest<'a>(rows: &[&'a Row], count: usize) -> Option<Vec<&'a Row>> {
    let full = groups(rows).into_iter().filter(|g| g.len() >= count);
    full.map(|mut group| {
        group.sort_by(|a, b| (a.free, &a.id).cmp(&(b.free, &b.id)));
        group.truncate(count);
        group
    })
    .min_by(|a, b| (a[0].free, &a[0].id).cmp(&(b[0].free, &b[0].id)))
}

fn cheapest_eviction(
    open: &[&Row],
    holders: &[Holder],
    want: &Want<'_>,
    count: usize,
) -> Option<Vec<InstanceId>> {
    let mut best: Option<((usize, Moment), Vec<InstanceId>)> = None;
    for group in groups(open).iter().filter(|g| g.len() >= count) {
        // For each device the set that frees enough there; the `count` cheapest devices together.
        let mut sets: Vec<((usize, Moment), &GpuId, Vec<InstanceId>)> = Vec::new();
        for row in group {
            if let Some(set) = eviction::victims(holders, &row.id, want.missing(row, holders)) {
                sets.push((eviction::cost(holders, &set), &row.id, set));
            }
        }
        if sets.len() < count {
            continue;
        }
        sets.sort();
        sets.truncate(count);
        let devices: Vec<&Row> =
            group.iter().copied().filter(|r| sets.iter().any(|s| *s.1 == r.id)).collect();
        let union = sets.into_iter().flat_map(|s| s.2).collect();
        let union = prune(union, &devices, holders, want);
        let cost = eviction::cost(holders, &union);
        if !union.is_empty() && best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, union));
        }
    }
    best.map(|(_, set)| set)
}

/// Spares whoever need not leave after all: one that spans two devices may make another's leaving unnecessary.
fn prune(
    mut set: Vec<InstanceId>,
    devices: &[&Row],
    holders: &[Holder],
    want: &Want<'_>,
) -> Vec<InstanceId> {
    set.sort();
    set.dedup();
    let freed = |set: &[InstanceId], gpu: &GpuId| -> Bytes {
        let leaving = holders.iter().filter(|h| set.contains(&h.instance));
        leaving.filter_map(|h| h.charge_on(gpu)).sum()
    };
    for at in (0..set.len()).rev() {
        let mut without = set.clone();
        without.remove(at);
        if devices.iter().all(|row| freed(&without, &row.id) >= want.missing(row, holders)) {
            set = without;
        }
    }
    set
}

impl Want<'_> {
    /// What was measured has fitted: the margin on it is not a reason to refuse it for ever.
    fn possible(&self, rows: &[Row]) -> Self {
        let mut want = self.clone();
        if let Some(largest) = rows.iter().map(Row::empty).max().filter(|b| *b > Bytes::ZERO)
            && want.need.source == NeedSource::Measured
        {
            want.need.bytes = want.need.bytes.min(largest);
        }
        want
    }

    fn allows(&self, gpu: &GpuId) -> bool {
        self.allowed.is_empty() || self.allowed.contains(gpu)
    }

    fn exclusive(&self) -> bool {
        self.need.source == NeedSource::Exclusive
    }

    fn fits(&self, _row: &Row, offered: Bytes) -> bool {
        offered > Bytes::ZERO && offered >= self.need.bytes
    }

    fn fits_now(&self, row: &Row, holders: &[Holder]) -> bool {
        self.missing(row, holders) == Bytes::ZERO && self.fits(row, row.free)
    }

    /// It fits now, or will when what is being released has come back.
    fn fits_soon(&self, row: &Row, holders: &[Holder]) -> bool {
        if !row.gated {
            return self.fits_now(row, holders);
        }
        let stays = |h: &&Holder| {
            h.standing != Standing::Leaving && h.charge_on(&row.id).is_some_and(|c| c > Bytes::ZERO)
        };
        row.soon > row.free
            && self.fits(row, row.soon)
            && !(self.exclusive() && holders.iter().any(|h| stays(&h)))
    }

    /// What must be freed on a device before it can be used. Without any idea of the need that is everything of ours.
    fn missing(&self, row: &Row, holders: &[Holder]) -> Bytes {
        if self.exclusive() {
            holders.iter().filter_map(|h| h.charge_on(&row.id)).sum()
        } else {
            self.need.bytes.saturating_sub(row.free)
        }
    }

    fn placement(&self, chosen: &[&Row]) -> Placement {
        let mut gpus: Vec<GpuId> = chosen.iter().map(|row| row.id.clone()).collect();
        gpus.sort();
        let smallest = |f: fn(&Row) -> Bytes| chosen.iter().map(|r| f(r)).min();
        let mut need = self.need;
        if self.exclusive() {
            need.bytes = smallest(|r| r.free).unwrap_or(Bytes::ZERO);
        }
        Placement { gpus, need, device_total: smallest(|r| r.total).unwrap_or(Bytes::ZERO) }
    }

    fn judge(&self, row: &Row, holders: &[Holder]) -> DeviceVerdict {
        let verdict = if !self.fits(row, row.empty()) {
            Verdict::TooSmall
        } else if row.gated {
            Verdict::Gated
        } else if self.fits_now(row, holders) {
            Verdict::Fits
        } else if eviction::victims(holders, &row.id, self.missing(row, holders)).is_some() {
            Verdict::FitsAfterEviction
        } else if self.fits(row, row.empty().saturating_sub(row.foreign)) {
            Verdict::Occupied
        } else {
            Verdict::Foreign
        };
        DeviceVerdict { gpu: row.id.clone(), free: row.free, empty: row.empty(), verdict }
    }

    fn list_victims(&self, rows: &[Row], holders: &[Holder]) -> Vec<VictimVerdict> {
        let here = |h: &&Holder| rows.iter().any(|row| h.charge_on(&row.id).is_some());
        let verdict = |h: &Holder| VictimVerdict {
            instance: h.instance.clone(),
            spared: h.standing.spared(),
            chosen: false,
        };
        holders.iter().filter(here).map(verdict).collect()
    }
}

impl Row {
    /// What the device offers when nothing at all runs on it.
    fn empty(&self) -> Bytes {
        self.total.saturating_sub(self.headroom)
    }
}

#[cfg(test)]
mod tests;
