//! How whoever has to leave leaves: asleep or stopped.
//!
//! Purpose: the ladder. A victim sleeps with its weights in the host's memory (level 1) where the budget has room for them;
//! else it sleeps without them (level 2) if its model may; else it is stopped. Owner: [`super::plan`] decides for
//! victims, [`idle_leave`] for the idle. Invariants: nobody sleeps for whom the device would then still be too full; the
//! host's memory is charged from the plan on.
//!
//! # No step from level 1 to level 2
//! Both levels give the same device memory back (weights and cache), so one that keeps too much at level 1 would keep as
//! much at level 2. And an engine that sleeps at level 1 cannot be sent deeper: vLLM ignores `/sleep` while it sleeps. So
//! the level is chosen once, by the host's memory, and whoever keeps too much is stopped.

use super::eviction::{Candidate, Choice, dearest_first};
use super::holder::Holder;
use super::ledger::Row;
use crate::types::{Bytes, InstanceId, SleepLevel};

/// What all sleep is subject to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepRules {
    /// Host memory for the weights of all that sleep; zero: nobody sleeps.
    pub host_ram_budget: Bytes,
    /// Whoever holds more than this on a device after falling asleep is stopped.
    pub residual_max: Bytes,
}

impl SleepRules {
    /// Nobody sleeps.
    pub const NEVER: Self = Self { host_ram_budget: Bytes::ZERO, residual_max: Bytes::ZERO };
}

/// What an instance is to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sleeper {
    /// The deepest that its model may sleep.
    pub deepest: SleepLevel,
    /// What it is expected to keep on each of its devices.
    pub residual: Bytes,
    /// What its weights take of the host's memory at level 1.
    pub weights: Bytes,
}

impl Sleeper {
    /// Host memory that it takes at that level.
    #[must_use]
    pub const fn host_ram(&self, level: SleepLevel) -> Bytes {
        match level {
            SleepLevel::One => self.weights,
            // Its processes hold what they hold awake.
            SleepLevel::Two => Bytes::ZERO,
        }
    }
}

/// How an instance leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Its container is stopped.
    Stop,
    /// It is put to sleep.
    Sleep {
        /// How deep.
        level: SleepLevel,
        /// Host memory charged to that.
        host_ram: Bytes,
        /// What it is expected to keep on each of its devices.
        residual: Bytes,
    },
}

impl Leave {
    /// What it frees of a charge.
    fn frees(self, charge: Bytes) -> Bytes {
        match self {
            Self::Stop => charge,
            Self::Sleep { residual, .. } => charge.saturating_sub(residual),
        }
    }
}

/// Somebody who has to leave, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Who.
    pub instance: InstanceId,
    /// How.
    pub leave: Leave,
}

/// Host memory that may still be charged to sleep.
fn host_ram_free(rules: SleepRules, holders: &[Holder]) -> Bytes {
    rules.host_ram_budget.saturating_sub(holders.iter().map(|h| h.host_ram).sum())
}

/// The highest rung of the ladder on which there is room, or why there is none.
fn rung(rules: SleepRules, host_ram_free: Bytes, holder: &Holder) -> Result<Leave, &'static str> {
    let sleeper = holder.sleep?;
    if sleeper.residual > rules.residual_max {
        return Err("it was seen to keep more device memory asleep than sleep_residual_max");
    }
    let level = if rules.host_ram_budget == Bytes::ZERO {
        return Err("host_ram_budget is 0");
    } else if sleeper.weights <= host_ram_free {
        SleepLevel::One
    } else if sleeper.deepest >= SleepLevel::Two {
        SleepLevel::Two
    } else {
        return Err("host_ram_budget has no room for its weights");
    };
    let host_ram = sleeper.host_ram(level);
    Ok(Leave::Sleep { level, host_ram, residual: sleeper.residual })
}

/// How an instance leaves that is unused for its idle time-out. `holders`: all, it included.
#[must_use]
pub fn idle_leave(rules: SleepRules, holders: &[Holder], instance: &InstanceId) -> Leave {
    idle_rung(rules, holders, instance).unwrap_or(Leave::Stop)
}

/// How an instance would fall asleep. `holders`: all, it included.
///
/// # Errors
/// Why it would be stopped instead, for people.
pub fn idle_rung(
    rules: SleepRules,
    holders: &[Holder],
    instance: &InstanceId,
) -> Result<Leave, &'static str> {
    let holder = holders.iter().find(|h| h.instance == *instance).ok_or("it is not loaded")?;
    rung(rules, host_ram_free(rules, holders), holder)
}

/// A victim with the reason why it is stopped, if it is.
pub(super) type Judged = (Victim, Option<&'static str>);

/// Of those who have to leave, as many as can are put to sleep. The one whose return costs most is asked first. Room for
/// the wanted model comes first: `set` makes it if all of it is stopped, and the outcome makes it as well.
pub(super) fn gentlest(
    choice: &Choice<'_>,
    groups: &[Vec<&Row>],
    set: &[InstanceId],
    rules: SleepRules,
    holders: &[Holder],
) -> Vec<Judged> {
    let chosen = |c: &&Candidate<'_>| set.contains(&c.holder.instance);
    let mut members: Vec<&Candidate<'_>> = choice.candidates.iter().filter(chosen).collect();
    members.sort_by(dearest_first);
    let mut free = host_ram_free(rules, holders);
    let mut leaves = vec![Leave::Stop; members.len()];
    let mut reasons: Vec<Option<&'static str>> = vec![None; members.len()];
    for at in 0..members.len() {
        match rung(rules, free, members[at].holder) {
            Ok(leave) => {
                leaves[at] = leave;
                if makes_room(choice, groups, &members, &leaves) {
                    if let Leave::Sleep { host_ram, .. } = leave {
                        free = free.saturating_sub(host_ram);
                    }
                } else {
                    leaves[at] = Leave::Stop;
                    reasons[at] = Some("asleep it would still hold memory that is needed");
                }
            }
            Err(why) => reasons[at] = Some(why),
        }
    }
    let victims = members.iter().zip(leaves).map(|(member, leave)| {
        let instance = member.holder.instance.clone();
        Victim { instance, leave }
    });
    let mut judged: Vec<Judged> = victims.zip(reasons).collect();
    judged.sort_by(|a, b| a.0.instance.cmp(&b.0.instance));
    judged
}

/// What the victims free on a device, as each of them leaves.
pub(super) fn freed(row: &Row, victims: &[Victim], holders: &[Holder]) -> Bytes {
    let of = |victim: &Victim| {
        let holder = holders.iter().find(|h| h.instance == victim.instance)?;
        holder.charge_on(&row.id).map(|charge| victim.leave.frees(charge))
    };
    victims.iter().filter_map(of).sum()
}

fn makes_room(
    choice: &Choice<'_>,
    groups: &[Vec<&Row>],
    members: &[&Candidate<'_>],
    leaves: &[Leave],
) -> bool {
    let freed = |row: &Row| -> Bytes {
        let of = |(member, leave): (&&Candidate<'_>, &Leave)| {
            member.holder.charge_on(&row.id).map(|charge| leave.frees(charge))
        };
        members.iter().zip(leaves).filter_map(of).sum()
    };
    let enough = |row: &&&Row| freed(row) >= (choice.missing)(row);
    groups.iter().any(|group| group.iter().filter(enough).count() >= choice.count)
}

#[cfg(test)]
mod tests;
