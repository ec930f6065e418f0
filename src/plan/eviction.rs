//! Who has to leave: the cheapest set of candidates that frees enough.

use super::holder::Holder;
use super::ledger::Row;
use super::policy::Cost;
use crate::types::{Bytes, GpuId, InstanceId};

/// Up to so many candidates all sets are looked at, 65,536 at most. Hosts have a handful of idle models on the devices in
/// question; above it the cheapest set may be missed, but never one in which somebody leaves in vain.
const EXACT_MAX: usize = 16;

/// More ways than this to take several of many equal devices are not all looked at: 4 of 8 are 70.
const COMBINATIONS_MAX: usize = 100;

/// Somebody who may be asked to leave, with what that costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) holder: &'a Holder,
    pub(super) cost: Cost,
}

/// Whom to stop. Ordered by cost; of equally cheap sets the smaller one, then the one with the lower identifiers: so the
/// order is total, and nobody leaves in vain even if it costs nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Set {
    cost: Cost,
    len: usize,
    /// Ascending.
    victims: Vec<InstanceId>,
}

impl Set {
    fn of(members: &[&Candidate<'_>]) -> Self {
        let mut victims: Vec<InstanceId> =
            members.iter().map(|c| c.holder.instance.clone()).collect();
        victims.sort();
        let cost = members.iter().fold(Cost::default(), |sum, c| sum + c.cost);
        Self { cost, len: victims.len(), victims }
    }
}

/// Whom to stop so that a model finds room on several equal devices, or on one.
pub(super) struct Choice<'a> {
    pub(super) candidates: &'a [Candidate<'a>],
    /// What must be freed on a device before it can be used.
    pub(super) missing: &'a dyn Fn(&Row) -> Bytes,
    /// How many devices.
    pub(super) count: usize,
}

impl Choice<'_> {
    /// The cheapest set whose leaving makes room on enough devices of one group; no proper subset of it does, on whatever
    /// devices. Ascending; `None`: nobody can help.
    pub(super) fn cheapest(&self, groups: &[Vec<&Row>]) -> Option<Vec<InstanceId>> {
        let mut best: Option<Set> = None;
        for group in groups.iter().filter(|g| g.len() >= self.count) {
            for devices in self.combinations(group) {
                let set = cheapest(self.candidates, &self.missing(&devices));
                // Where nobody needs to leave and it still does not fit, nobody can help.
                let set = set.filter(|set| !set.victims.is_empty());
                best = match (best, set) {
                    (Some(best), Some(set)) => Some(best.min(set)),
                    (best, set) => best.or(set),
                };
            }
        }
        let best = best?;
        let chosen = |c: &&Candidate<'_>| best.victims.contains(&c.holder.instance);
        let mut members: Vec<&Candidate<'_>> = self.candidates.iter().filter(chosen).collect();
        members.sort_by(dearest_first);
        // Only where not all combinations or sets were looked at is there anything to spare.
        let enough = |set: &[&Candidate<'_>]| {
            let done = |row: &&&Row| suffices(set, &self.missing(&[row]));
            groups.iter().any(|g| g.iter().filter(done).count() >= self.count)
        };
        let kept = prune(members, enough);
        Some(Set::of(&kept).victims)
    }

    fn missing(&self, rows: &[&Row]) -> Vec<(GpuId, Bytes)> {
        rows.iter().map(|row| (row.id.clone(), (self.missing)(row))).collect()
    }

    /// All ways to take enough of equal devices; of very many only those that are cheapest one by one.
    fn combinations<'r>(&self, group: &[&'r Row]) -> Vec<Vec<&'r Row>> {
        let count = self.count;
        let mut all: Vec<Vec<&Row>> = vec![Vec::new()];
        for (at, row) in group.iter().enumerate() {
            let behind = group.len() - at - 1;
            let taken = all.iter().filter(|c| c.len() < count).cloned();
            let taken: Vec<Vec<&Row>> = taken.map(|c| [c, vec![row]].concat()).collect();
            // Those that can still become complete.
            all.extend(taken);
            all.retain(|c| c.len() + behind >= count);
            if all.len() > COMBINATIONS_MAX {
                return self.cheapest_alone(group).into_iter().collect();
            }
        }
        all
    }

    fn cheapest_alone<'r>(&self, group: &[&'r Row]) -> Option<Vec<&'r Row>> {
        let alone = |row: &&'r Row| Some((cheapest(self.candidates, &self.missing(&[row]))?, *row));
        let mut costs: Vec<(Set, &Row)> = group.iter().filter_map(alone).collect();
        costs.sort_by(|a, b| (&a.0, &a.1.id).cmp(&(&b.0, &b.1.id)));
        let rows: Vec<&Row> = costs.into_iter().map(|(_, row)| row).take(self.count).collect();
        (rows.len() == self.count).then_some(rows)
    }
}

pub(super) fn dearest_first(a: &&Candidate<'_>, b: &&Candidate<'_>) -> std::cmp::Ordering {
    (b.cost, &b.holder.instance).cmp(&(a.cost, &a.holder.instance))
}

/// What must be freed on each of some devices.
type Missing = [(GpuId, Bytes)];

/// The least [`Set`] that frees all that is missing; `None` if all candidates together would not do.
fn cheapest(candidates: &[Candidate<'_>], missing: &Missing) -> Option<Set> {
    let frees =
        |c: &&Candidate<'_>| missing.iter().any(|(gpu, _)| c.holder.charge_on(gpu).is_some());
    let mut useful: Vec<&Candidate<'_>> = candidates.iter().filter(frees).collect();
    // The dearest first: leaving them out is what brings the bound down.
    useful.sort_by(dearest_first);
    if !suffices(&useful, missing) {
        return None;
    }
    let bound = greedy(&useful, missing);
    if useful.len() > EXACT_MAX {
        return Some(bound);
    }
    let mut search = Search { useful: &useful, missing, best: bound, taken: Vec::new() };
    search.visit(0, Cost::default());
    Some(search.best)
}

fn suffices(set: &[&Candidate<'_>], missing: &Missing) -> bool {
    let freed = |gpu: &GpuId| set.iter().filter_map(|c| c.holder.charge_on(gpu)).sum::<Bytes>();
    missing.iter().all(|(gpu, bytes)| freed(gpu) >= *bytes)
}

/// A good set quickly: everybody, less the dearest who need not leave; once by their cost, once by their cost for each
/// byte that helps; the better of the two.
fn greedy(useful: &[&Candidate<'_>], missing: &Missing) -> Set {
    let helps = |c: &Candidate<'_>| -> u128 {
        let on = |(gpu, bytes): &(GpuId, Bytes)| c.holder.charge_on(gpu).map(|b| b.min(*bytes));
        missing.iter().filter_map(on).sum::<Bytes>().0.into()
    };
    let rate = |c: &Candidate<'_>| c.cost.0.saturating_mul(1 << 32) / helps(c).max(1);
    let mut by_rate = useful.to_vec();
    by_rate.sort_by(|a, b| {
        (rate(b), b.cost, &b.holder.instance).cmp(&(rate(a), a.cost, &a.holder.instance))
    });
    let spared = |order: Vec<&Candidate<'_>>| Set::of(&prune(order, |set| suffices(set, missing)));
    spared(useful.to_vec()).min(spared(by_rate))
}

/// Spares whoever need not leave, in the order given. `enough` must stay true for more victims; then no proper subset of
/// the result is enough.
fn prune<'a, 'b>(
    mut set: Vec<&'b Candidate<'a>>,
    enough: impl Fn(&[&'b Candidate<'a>]) -> bool,
) -> Vec<&'b Candidate<'a>> {
    let mut at = 0;
    while at < set.len() {
        let one = set.remove(at);
        if !enough(&set) {
            set.insert(at, one);
            at += 1;
        }
    }
    set
}

/// Depth first over all sets, cut off where no better one can follow.
struct Search<'a, 'b> {
    useful: &'b [&'b Candidate<'a>],
    missing: &'b Missing,
    best: Set,
    taken: Vec<&'b Candidate<'a>>,
}

impl Search<'_, '_> {
    fn visit(&mut self, at: usize, cost: Cost) {
        // An equally cheap set may still be smaller.
        if cost > self.best.cost {
            return;
        }
        if suffices(&self.taken, self.missing) {
            let found = Set::of(&self.taken);
            self.best = found.min(self.best.clone());
            return;
        }
        let Some(next) = self.useful.get(at) else { return };
        let mut with_all = self.taken.clone();
        with_all.extend(&self.useful[at..]);
        if !suffices(&with_all, self.missing) {
            return;
        }
        self.visit(at + 1, cost);
        self.taken.push(next);
        self.visit(at + 1, cost + next.cost);
        self.taken.pop();
    }
}
