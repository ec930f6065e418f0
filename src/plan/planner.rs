//! The planner: `(now, rules, ledger, holders, want) → (decision, report, claim)`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::claims::Claims;
use super::eviction::{Candidate, Choice};
use super::footprint::Needs;
use super::holder::{Holder, Standing};
use super::ledger::{Ledger, Row};
use super::policy::Policy;
use super::sleep::{self, Leave, SleepRules, Victim};
use crate::types::{
    Bytes, GpuId, InstanceId, ModelName, Moment, OnFull, Placement, Report, Verdict,
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
    /// Devices on which loads failed, with how often: of those with room it takes one where fewer did. Nobody leaves for that.
    pub shunned: &'a BTreeMap<GpuId, u32>,
    /// It may evict only models whose priority is not above this.
    pub priority: i8,
    /// What happens when there is no room.
    pub on_full: OnFull,
    /// Its instance that sleeps and is to wake, on the devices in `allowed`: what that holds there counts for it.
    pub waking: Option<&'a InstanceId>,
    /// What is kept for those whose turn is before its.
    pub kept: &'a Claims,
    /// It is its turn: where those that are loading or too young still are all that is in its way, their place is kept for it.
    pub in_turn: bool,
}

/// What comes of a want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to do.
    pub decision: Decision,
    /// Why.
    pub report: Report,
    /// Where it will start as soon as what is under way there has ended; empty: nowhere, as things are.
    pub claim: Claims,
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
/// A device without a start or stop under way that has room is taken at once: of several, one where the fewest loads have
/// failed, and of those the one that is left with the least free memory, so that the largest hole stays large. Where a
/// release under way will make room, it waits for that. Otherwise the cheapest idle instances are chosen to leave, if the
/// model evicts at all; where those would disturb a load on another of their devices, their place is kept for it until that
/// is over. Otherwise it waits, or is refused. Several devices are taken only from among equal ones. What is kept for
/// others is not touched. Deterministic: the order of `holders` does not matter.
#[must_use]
pub fn plan(
    now: Moment,
    rules: Rules,
    ledger: &Ledger,
    holders: &[Holder],
    want: &Want<'_>,
) -> Plan {
    let rows = ledger.rows().into_iter().filter(|row| want.allows(&row.id));
    let rows: Vec<Row> = rows.map(|row| want.kept.apply(row)).collect();
    let stays = |h: &Holder| want.stays(now, rules, h);
    let other = |h: &&Holder| want.waking != Some(&h.instance);
    let goes = |h: &&Holder| h.standing == Standing::BesideLoad || h.standing.spared().is_none();
    let may = |h: &&Holder| goes(h) && want.forbids(now, rules, h).is_none();
    let movable: Vec<&Holder> = holders.iter().filter(other).filter(may).collect();
    let costs = rules.policy.weigh(now, &movable);
    let pairs = movable.into_iter().zip(costs);
    let movable: Vec<Candidate<'_>> =
        pairs.map(|(holder, cost)| Candidate { holder, cost }).collect();
    let now_too = |c: &&Candidate<'_>| c.holder.standing != Standing::BesideLoad;
    let candidates: Vec<Candidate<'_>> = movable.iter().copied().filter(|c| now_too(&c)).collect();
    let mut report = Report {
        model: want.model.clone(),
        need: want.shown(&rows),
        devices: rows.iter().map(|row| want.judge(row, ledger, holders, &candidates)).collect(),
        victims: want.list_victims(&rows, holders, stays),
    };
    if let Some(why) = ledger.stale() {
        let decision = Decision::Wait { why: why.to_owned(), until: None };
        return Plan { decision, report, claim: Claims::default() };
    }
    let until = want.next_settled(&rows, now, rules, holders);
    let (movable, sleep) = (&*movable, rules.sleep);
    let room = Room { rows: &rows, holders, candidates: &candidates, movable, until, sleep };
    let (mut decision, claim) = room.decide(want, &mut report);
    let lost: Vec<String> = ledger
        .silent()
        .filter(|(id, _)| want.allows(id))
        .map(|(id, silence)| format!("{id} {}", silence.why()))
        .collect();
    // What a lost device could have offered is not known: that is no "never".
    if matches!(decision, Decision::Refuse { .. }) && !lost.is_empty() {
        let why = format!("a device does not answer: {}", lost.join("; "));
        decision = Decision::Wait { why, until: None };
    }
    Plan { decision, report, claim }
}

/// What there is to choose from.
struct Room<'a> {
    rows: &'a [Row],
    holders: &'a [Holder],
    /// Who may leave now.
    candidates: &'a [Candidate<'a>],
    /// Those, and who may when a load beside them is over.
    movable: &'a [Candidate<'a>],
    until: Option<Moment>,
    sleep: SleepRules,
}

impl Room<'_> {
    fn decide(&self, want: &Want<'_>, report: &mut Report) -> (Decision, Claims) {
        let (count, nothing) = (want.gpu_count.max(1) as usize, Claims::default());
        let ever: Vec<&Row> = self.rows.iter().filter(|row| want.fits(row, row.empty())).collect();
        if groups(&ever).iter().all(|group| group.len() < count) {
            let largest = self.rows.iter().map(Row::empty).max().unwrap_or(Bytes::ZERO);
            // Fewer equal devices than asked for can never serve it either.
            return (Decision::Refuse { largest }, nothing);
        }
        let open: Vec<&Row> = ever.iter().copied().filter(|row| !row.gated).collect();
        let roomy: Vec<&Row> =
            open.iter().copied().filter(|r| want.fits_now(r, self.holders)).collect();
        if let Some(chosen) = want.tightest(&roomy, count) {
            for device in &mut report.devices {
                if chosen.iter().any(|row| row.id == device.gpu) {
                    device.verdict = Verdict::Chosen;
                }
            }
            return (Decision::Start(want.placement(&chosen)), nothing);
        }
        // Whoever was evicted for it, or by chance, is on the way out already: nobody else has to go.
        let soon = |row: &&Row| want.fits_soon(row, self.holders);
        let soon: Vec<&Row> = ever.iter().copied().filter(soon).collect();
        let wait = |report: &Report| Decision::Wait { why: report.to_string(), until: self.until };
        if let Some(chosen) = want.tightest(&soon, count) {
            return (wait(report), want.claim(&chosen));
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
            let victims: Vec<Victim> = judged.into_iter().map(|(victim, _)| victim).collect();
            let claim = self.claim_of(want, &open, &victims);
            return (Decision::Evict(victims), claim);
        }
        // A load has its deadline: the place is kept until whoever it holds back may leave.
        let choice = Choice { candidates: self.movable, ..choice };
        if let Some(set) = choice.cheapest(&groups(&open)) {
            let stop = |instance| Victim { instance, leave: Leave::Stop };
            let victims: Vec<Victim> = set.into_iter().map(stop).collect();
            return (wait(report), self.claim_of(want, &open, &victims));
        }
        // Where only a start or stop under way is in the way, or memory is still coming back, there is room soon.
        let gate = ever.iter().any(|row| row.gated);
        if want.on_full == OnFull::Refuse && !gate {
            return (Decision::Full(report.to_string()), nothing);
        }
        let later = |row: &&Row| want.fits_later(row, self.holders);
        let later: Vec<&Row> = ever.iter().copied().filter(later).collect();
        let chosen = want.tightest(&later, count).or_else(|| self.soonest(want, &ever, count));
        (wait(report), chosen.map_or(nothing, |chosen| want.claim(&chosen)))
    }

    /// Where it will start when these have left.
    fn claim_of(&self, want: &Want<'_>, open: &[&Row], victims: &[Victim]) -> Claims {
        let free = |row: &&Row| {
            sleep::freed(row, victims, self.holders) >= want.missing(row, self.holders)
        };
        let freed: Vec<&Row> = open.iter().copied().filter(free).collect();
        let count = want.gpu_count.max(1) as usize;
        want.tightest(&freed, count).map_or_else(Claims::default, |chosen| want.claim(&chosen))
    }

    /// Where those that may leave once they have loaded and are old enough will have made room; of several places the one where
    /// the least is left to wait for. Nobody else starts on what is kept, so there the wait only gets shorter.
    fn soonest<'r>(&self, want: &Want<'_>, ever: &[&'r Row], count: usize) -> Option<Vec<&'r Row>> {
        if !want.in_turn {
            return None;
        }
        let settles = |row: &&Row| want.fits_settled(row, self.holders);
        let rows: Vec<&Row> = ever.iter().copied().filter(settles).collect();
        let settled = |row: &Row| {
            let here = self.movable.iter().filter_map(|c| c.holder.charge_on(&row.id));
            (want.missing(row, self.holders).saturating_sub(here.sum()), row.id.clone())
        };
        let full = groups(&rows).into_iter().filter(|group| group.len() >= count);
        full.map(|mut group| {
            group.sort_by_key(|row| settled(row));
            group.truncate(count);
            group
        })
        .min_by_key(|group| group.last().map(|row| settled(row)))
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

mod equal;
mod want;

pub use equal::equals;
use equal::groups;

#[cfg(test)]
mod tests;
