//! The planner: `(now, rules, ledger, holders, want) → (decision, report)`.

use std::time::Duration;

use super::eviction::{Candidate, Choice};
use super::footprint::Needs;
use super::holder::{Holder, Standing};
use super::ledger::{Ledger, Row};
use super::policy::Policy;
use super::sleep::{self, Leave, SleepRules, Victim};
use crate::types::{
    Bytes, DeviceVerdict, GpuId, InstanceId, ModelName, Moment, Need, NeedSource, OnFull,
    Placement, Report, Verdict, VictimVerdict,
};

/// What holds for every plan.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whose memory is worth most.
    pub policy: &'static dyn Policy,
    /// An instance that became ready less than this ago leaves only for a model of higher priority.
    pub min_residency: Duration,
    /// Who may sleep instead of being stopped.
    pub sleep: SleepRules,
}

/// What a model wants.
#[derive(Clone, Debug)]
pub struct Want<'a> {
    /// Who.
    pub model: &'a ModelName,
    /// How much on each device.
    pub needs: &'a Needs,
    /// On how many devices; at least 1.
    pub gpu_count: u32,
    /// Devices it may use; empty: all.
    pub allowed: &'a [GpuId],
    /// It may evict only models whose priority is not above this.
    pub priority: i8,
    /// What happens when there is no room.
    pub on_full: OnFull,
    /// Its instance that sleeps and is to wake, on the devices in `allowed`: what that holds there counts for it.
    pub waking: Option<&'a InstanceId>,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start it there.
    Start(Placement),
    /// Put these to sleep or stop them, then ask again.
    Evict(Vec<Victim>),
    /// Nothing can be done now; ask again when something has changed.
    Wait {
        /// For people.
        why: String,
        /// Something will have changed by itself then: an instance may be evicted that is too young now.
        until: Option<Moment>,
    },
    /// There is no room, and the model does not want to wait for it. The text is for people.
    Full(String),
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
/// Otherwise the cheapest idle instances are chosen to leave, if the model evicts at all. Otherwise it waits, or is
/// refused. Several devices are taken only from among equal ones. Deterministic: the order of `holders` does not matter.
#[must_use]
pub fn plan(
    now: Moment,
    rules: Rules,
    ledger: &Ledger,
    holders: &[Holder],
    want: &Want<'_>,
) -> (Decision, Report) {
    let rows: Vec<Row> = ledger.rows().into_iter().filter(|row| want.allows(&row.id)).collect();
    let stays = |h: &Holder| want.stays(now, rules, h);
    let other = |h: &&Holder| want.waking != Some(&h.instance);
    let movable: Vec<&Holder> =
        holders.iter().filter(other).filter(|h| stays(h).is_none()).collect();
    let costs = rules.policy.weigh(now, &movable);
    let pairs = movable.into_iter().zip(costs);
    let candidates: Vec<Candidate<'_>> =
        pairs.map(|(holder, cost)| Candidate { holder, cost }).collect();
    let mut report = Report {
        model: want.model.clone(),
        need: want.shown(&rows),
        devices: rows.iter().map(|row| want.judge(row, holders, &candidates)).collect(),
        victims: want.list_victims(&rows, holders, stays),
    };
    if let Some(why) = ledger.stale() {
        return (Decision::Wait { why: why.to_owned(), until: None }, report);
    }
    let until = want.next_settled(&rows, now, rules, holders);
    let room = Room { rows: &rows, holders, candidates: &candidates, until, sleep: rules.sleep };
    let mut decision = room.decide(want, &mut report);
    let lost: Vec<String> = ledger
        .lost()
        .filter(|(id, _)| want.allows(id))
        .map(|(id, why)| format!("{id} {why}"))
        .collect();
    // What a lost device could have offered is not known: that is no "never".
    if matches!(decision, Decision::Refuse { .. }) && !lost.is_empty() {
        let why = format!("a device is lost: {}", lost.join("; "));
        decision = Decision::Wait { why, until: None };
    }
    (decision, report)
}

/// What there is to choose from.
struct Room<'a> {
    rows: &'a [Row],
    holders: &'a [Holder],
    candidates: &'a [Candidate<'a>],
    until: Option<Moment>,
    sleep: SleepRules,
}

impl Room<'_> {
    fn decide(&self, want: &Want<'_>, report: &mut Report) -> Decision {
        let count = want.gpu_count.max(1) as usize;
        let ever: Vec<&Row> = self.rows.iter().filter(|row| want.fits(row, row.empty())).collect();
        if groups(&ever).iter().all(|group| group.len() < count) {
            let largest = self.rows.iter().map(Row::empty).max().unwrap_or(Bytes::ZERO);
            // Fewer equal devices than asked for can never serve it either.
            return Decision::Refuse { largest };
        }
        let open: Vec<&Row> = ever.iter().copied().filter(|row| !row.gated).collect();
        let roomy: Vec<&Row> =
            open.iter().copied().filter(|r| want.fits_now(r, self.holders)).collect();
        if let Some(chosen) = tightest(&roomy, count) {
            for device in &mut report.devices {
                if chosen.iter().any(|row| row.id == device.gpu) {
                    device.verdict = Verdict::Chosen;
                }
            }
            return Decision::Start(want.placement(&chosen));
        }
        // Whoever was evicted for it, or by chance, is on the way out already: nobody else has to go.
        let soon = |row: &&Row| want.fits_soon(row, self.holders);
        let soon: Vec<&Row> = ever.iter().copied().filter(soon).collect();
        if tightest(&soon, count).is_some() {
            return Decision::Wait { why: report.to_string(), until: self.until };
        }
        let missing = |row: &Row| want.missing(row, self.holders);
        let choice = Choice { candidates: self.candidates, missing: &missing, count };
        if let Some(set) = choice.cheapest(&groups(&open)) {
            let judged = sleep::gentlest(&choice, &groups(&open), &set, self.sleep, self.holders);
            for (victim, why) in &judged {
                let shown = report.victims.iter_mut().find(|v| v.instance == victim.instance);
                if let Some(shown) = shown {
                    shown.chosen = true;
                    shown.stopped_because = *why;
                    if let Leave::Sleep { level, .. } = victim.leave {
                        shown.asleep = Some(level);
                    }
                }
            }
            return Decision::Evict(judged.into_iter().map(|(victim, _)| victim).collect());
        }
        // Where only a start or stop under way is in the way, or memory is still coming back, there is room soon.
        let gate = ever.iter().any(|row| row.gated);
        match want.on_full {
            OnFull::Refuse if !gate => Decision::Full(report.to_string()),
            OnFull::Refuse | OnFull::Wait | OnFull::Evict => {
                Decision::Wait { why: report.to_string(), until: self.until }
            }
        }
    }
}

/// Equal devices together: an engine that is spread over several runs at the pace of the smallest.
fn groups<'a>(rows: &[&'a Row]) -> Vec<Vec<&'a Row>> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|g| (g[0].total, &g[0].name) == (row.total, &row.name)) {
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

impl<'a> Want<'a> {
    /// The same for its instance that sleeps on `gpus`, and can wake only there.
    #[must_use]
    pub fn to_wake(self, instance: &'a InstanceId, gpus: &'a [GpuId]) -> Self {
        let gpu_count = u32::try_from(gpus.len()).unwrap_or(1);
        Self { gpu_count, allowed: gpus, waking: Some(instance), ..self }
    }
}

impl Want<'_> {
    fn allows(&self, gpu: &GpuId) -> bool {
        self.allowed.is_empty() || self.allowed.contains(gpu)
    }

    fn on(&self, row: &Row) -> Need {
        self.needs.on(&row.name, row.empty())
    }

    /// The need that a report shows where it differs by device: the largest that is known.
    fn shown(&self, rows: &[Row]) -> Need {
        rows.iter().map(|row| self.on(row)).max_by_key(|n| n.bytes).unwrap_or(self.needs.other)
    }

    fn exclusive(&self, row: &Row) -> bool {
        self.on(row).source == NeedSource::Exclusive
    }

    fn fits(&self, row: &Row, offered: Bytes) -> bool {
        offered > Bytes::ZERO && offered >= self.on(row).bytes
    }

    fn fits_now(&self, row: &Row, holders: &[Holder]) -> bool {
        let free = row.free + self.held(row, holders);
        self.missing(row, holders) == Bytes::ZERO && self.fits(row, free)
    }

    /// What its sleeping instance is charged there.
    fn held(&self, row: &Row, holders: &[Holder]) -> Bytes {
        let own = holders.iter().find(|h| self.waking == Some(&h.instance));
        own.and_then(|h| h.charge_on(&row.id)).unwrap_or(Bytes::ZERO)
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
            && self.fits(row, row.soon + self.held(row, holders))
            && !(self.exclusive(row) && holders.iter().any(|h| stays(&h)))
    }

    /// What must be freed on a device before it can be used. Without any idea of the need that is everything of ours.
    fn missing(&self, row: &Row, holders: &[Holder]) -> Bytes {
        if self.exclusive(row) {
            holders.iter().filter_map(|h| h.charge_on(&row.id)).sum()
        } else {
            let spoken_for = row.spoken_for().saturating_sub(self.held(row, holders));
            (self.on(row).bytes + spoken_for).saturating_sub(row.total)
        }
    }

    fn placement(&self, chosen: &[&Row]) -> Placement {
        let mut gpus: Vec<GpuId> = chosen.iter().map(|row| row.id.clone()).collect();
        gpus.sort();
        let smallest = |f: fn(&Row) -> Bytes| chosen.iter().map(|r| f(r)).min();
        // Equal devices have equal needs.
        let mut need = chosen.first().map_or(self.needs.other, |row| self.on(row));
        let device_total = smallest(|r| r.total).unwrap_or(Bytes::ZERO);
        if need.source == NeedSource::Exclusive {
            need.bytes = smallest(|r| r.free).unwrap_or(Bytes::ZERO);
        }
        let budget = self.needs.budget.map_or(need.bytes, |budget| budget.min(need.bytes));
        Placement { gpus, need, budget, device_total }
    }

    fn judge(&self, row: &Row, holders: &[Holder], candidates: &[Candidate<'_>]) -> DeviceVerdict {
        let could: Bytes = candidates.iter().filter_map(|c| c.holder.charge_on(&row.id)).sum();
        let verdict = if !self.fits(row, row.empty()) {
            Verdict::TooSmall
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
        DeviceVerdict { gpu: row.id.clone(), free: row.free, empty: row.empty(), verdict }
    }

    /// Why an instance may not leave for this model; `None`: it may.
    fn stays(&self, now: Moment, rules: Rules, holder: &Holder) -> Option<&'static str> {
        if let Some(why) = holder.standing.spared() {
            return Some(why);
        }
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
    fn too_young_until(&self, now: Moment, rules: Rules, holder: &Holder) -> Option<Moment> {
        let settled = holder.ready_since? + rules.min_residency;
        Some(settled).filter(|at| *at > now && holder.priority == self.priority)
    }

    /// When the first of those that may not leave only for their age will be old enough.
    fn next_settled(
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

    fn list_victims(
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

impl Row {
    /// What the device offers when nothing at all runs on it.
    fn empty(&self) -> Bytes {
        self.total.saturating_sub(self.headroom)
    }

    /// Everything that cannot be promised; more than `total` where foreign processes have taken promised memory.
    fn spoken_for(&self) -> Bytes {
        let ours = self.reserved + self.confirmed + self.releasing + self.quarantined;
        ours + self.foreign + self.headroom
    }
}

#[cfg(test)]
mod tests;
