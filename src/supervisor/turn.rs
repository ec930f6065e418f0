//! The part of the core that makes somebody leave: idle ones at once, busy ones in turn.
//!
//! ```text
//!   a model waits for room ── turn_after ──▶ of those that are in its way, as few as will do, take no new requests (Draining)
//!        ▲   it gave up, found room elsewhere, or the last request will not end: they serve on (Ready) ◀──┤
//!        └──── started, and may be asked to make way in its turn ◀─────────┴── their last request is over: they leave
//! ```
//! Purpose: a model is not kept out for ever by others that are always busy. Owner: [`State`]. Invariants: no request is cut off
//! for it; nobody leaves busy for whom idle ones would do; pinned ones, those of higher priority and those younger than
//! `min_residency` stay, so two models that are both always wanted change places no sooner than after `turn_after`; who drains
//! for somebody that does not wait any more serves on. So does who has drained for `max_wait`: whoever waited when that began has
//! given up, and one request that lasts for hours must not close two models. Its equals do not ask it again for as long. Nobody begins to
//! drain, or leaves, beside a load that this would disturb.
//! Who drains for a container of its own, as it is configured now (`reconfigure`), does so by the same rules, but for half as long, and
//! each time that it was in vain it rests for longer: its own clients wait for it, and nobody else gains by it.

use std::time::Duration;

use super::effect::{Effect, Heir, Notice, StopReason};
use super::instance::{Instance, Life, Yield};
use super::room::Spot;
use super::state::{Model, State};
use crate::plan::{self, Claims, Decision, Holder, Leave, Plan, Standing, Victim};
use crate::types::{Evict, InstanceId, ModelName, Moment, OnFull};

impl Model {
    /// Takes note that it waits for room; when its turn is. Whoever asks again soon after giving up waits on.
    pub(super) fn hunger(&mut self, now: Moment, turn_after: Option<Duration>) -> Option<Moment> {
        let turn_after = turn_after?;
        // A pin, an idle wish or a measurement make nobody leave who is busy.
        self.queue.oldest()?;
        let since = self.hungry_since(now, Some(turn_after)).unwrap_or(now);
        self.hunger = Some((since, now));
        Some(since + turn_after)
    }

    /// Since when it has waited for room, with no more than a pause.
    pub(super) fn hungry_since(&self, now: Moment, turn_after: Option<Duration>) -> Option<Moment> {
        let (since, last) = self.hunger.filter(|_| !self.queue.is_empty())?;
        Some(since).filter(|_| turn_after.is_some_and(|after| now.since(last) <= after))
    }

    /// Whether busy ones have to make way for it now.
    fn has_turn(&self, now: Moment, turn_after: Option<Duration>) -> bool {
        let idle_only = self.wish().is_some_and(|wish| wish.evict.is_some());
        let asked = !self.queue.is_empty() && !idle_only && self.spec.on_full == OnFull::Evict;
        let since = self.hungry_since(now, turn_after);
        asked && since.zip(turn_after).is_some_and(|(since, after)| now.since(since) >= after)
    }
}

/// Among equals in priority the young stay.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    priority: i8,
    young: bool,
}

impl Model {
    /// Whether what drains for it has to leave still: it waits, and nothing that a reload may change stands against it.
    fn may_take_the_place_of(&self, than: Rank, instance: &Instance, cut: bool) -> bool {
        let wish = self.wish();
        let cold = self.instance.as_ref().is_none_or(|i| i.is_asleep() || i.is_looked_for());
        let any = wish.is_some_and(|wish| wish.evict == Some(Evict::Any));
        let here = |gpu| self.spec.gpus.is_empty() || self.spec.gpus.contains(gpu);
        !self.queue.is_empty()
            && cold
            && (any || !cut)
            && self.on_full(wish) == OnFull::Evict
            && Rank { priority: self.priority(wish), young: false } >= than
            && instance.placement.gpus.iter().any(here)
    }
}

impl State {
    /// Less than requests wait, or nobody would live to see it.
    pub(super) fn turn_after(&self) -> Option<Duration> {
        self.settings.turn_after.map(|after| after.min(self.settings.max_wait / 2))
    }

    /// A plan in which idle ones leave; where that is not enough, and it has waited for long, busy ones too.
    pub(super) fn plan_in_turn(
        &self,
        now: Moment,
        model: &Model,
        spot: &Spot,
        kept: &Claims,
        holders: &[Holder],
    ) -> Plan {
        let plan = self.plan(now, model, spot, model.wish(), kept, holders);
        let waits = matches!(plan.decision, Decision::Wait { .. }) && plan.claim.is_empty();
        if !waits || !model.has_turn(now, self.turn_after()) {
            return plan;
        }
        let mut all = self.holders_for(Some(model), true);
        for holder in all.iter_mut().filter(|h| self.rests(h, model)) {
            holder.standing = Standing::Busy;
        }
        let turn = self.plan(now, model, &spot.in_turn(), model.wish(), kept, &all);
        let comes = matches!(turn.decision, Decision::Evict(_)) || !turn.claim.is_empty();
        if comes { turn } else { plan }
    }

    pub(super) fn evict(
        &mut self,
        now: Moment,
        name: &ModelName,
        victims: &[Victim],
        out: &mut Vec<Effect>,
    ) {
        let mut cut = false;
        if let Some(model) = self.models.get_mut(name) {
            let names: Vec<String> = victims.iter().map(|v| v.instance.model.to_string()).collect();
            model.waiting_for = Some(format!("{} to be evicted", names.join(", ")));
            cut = model.wish().is_some_and(|wish| wish.evict == Some(Evict::Any));
        }
        for Victim { instance, leave } in victims {
            if let Some(model) = self.models.get_mut(&instance.model) {
                let measured = !model.discovery.waiters.is_empty();
                model.discovery.evicted = measured.then_some(now);
            }
            self.put_off(now, &instance.model);
            let busy = self.instance_mut(instance).is_some_and(|i| i.in_flight > 0);
            let to = Heir::Other(name.clone());
            let yielding = Notice::Yielding { instance: instance.clone(), to: to.clone(), busy };
            out.push(Effect::Notice(yielding));
            self.leave(now, &instance.model, *leave, StopReason::Evicted, out);
            if let Some(victim) = self.instance_mut(instance)
                && matches!(victim.life, Life::Draining { .. })
            {
                victim.rests_until = None;
                victim.yields = Some(Yield { to, cut, leave: *leave, since: now });
                self.ledger.drain(instance, true);
            }
        }
    }

    /// The last request is over on one that makes way: it sleeps where the plan said so, as far as the host has room still. Nobody
    /// is served in between. Whether it does.
    pub(super) fn falls_asleep_in_turn(
        &mut self,
        now: Moment,
        id: &InstanceId,
        reason: StopReason,
        out: &mut Vec<Effect>,
    ) -> bool {
        let Some(model) = self.models.get_mut(&id.model) else { return false };
        let same = model.instance.as_ref().is_some_and(|i| !model.has_changed(i));
        let Some(instance) = model.instance.as_mut().filter(|_| same) else { return false };
        let sleeps = |y: &Yield| matches!(y.leave, Leave::Sleep { .. });
        if !instance.yields.as_ref().is_some_and(sleeps) {
            return false;
        }
        (instance.life, instance.yields) = (Life::Ready, None);
        self.ledger.drain(id, false);
        let leave = plan::idle_leave(self.settings.rules.sleep, &self.holders(None), id);
        if leave == Leave::Stop && self.podman_away() {
            return true;
        }
        self.leave(now, &id.model, leave, reason, out);
        true
    }

    /// Whether it is busy with what did not end in an earlier turn, and is left alone by its equals.
    fn rests(&self, holder: &Holder, to: &Model) -> bool {
        let instance = self.models.get(&holder.instance.model).and_then(|m| m.instance.as_ref());
        let busy = |i: &Instance| i.is_ready() && i.in_flight > 0 && i.rests_until.is_some();
        instance.is_some_and(busy) && to.priority(to.wish()) <= holder.priority
    }

    /// Those that drain for a model which does not wait for them any more serve on: so do those that were pinned since, those that are
    /// as they are configured again, those that have drained for too long, and those that podman is not there to stop.
    pub(super) fn reprieve(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let max_wait = self.settings.max_wait;
        let profiled = self.profiled();
        for instance in self.models.values_mut().filter_map(|m| m.instance.as_mut()) {
            // What did not end has ended once nothing runs: it may make way, sleep and wake, and is asked as anybody then. What has
            // ended, and may not go for a load beside it, serves those who wait for it meanwhile.
            let busy = instance.in_flight > 0;
            instance.rests_until = instance.rests_until.filter(|until| busy && *until > now);
            let stays = busy || instance.disturbs(&profiled);
            if stays && instance.spared_at(max_wait).is_some_and(|at| at <= now) {
                instance.rests_until = Some(now + max_wait);
                // For itself it need not hurry: each time it is let be for as long again. Its equals do not wait for that.
                let itself = instance.yields.as_ref().is_some_and(|y| y.to == Heir::Successor);
                let asked = instance.outdated.filter(|_| itself).map(|since| now.since(since));
                instance.serves_from = asked.map(|asked| now + asked.max(max_wait));
            }
        }
        let away = self.podman_away();
        let leaves = |m: &Model, instance: &Instance, yields: &Yield| {
            if away && (yields.leave == Leave::Stop || m.has_changed(instance)) {
                return false;
            }
            let Heir::Other(to) = &yields.to else {
                return self.turn_after().is_some() && m.may_be_renewed(instance, &profiled);
            };
            let to = self.models.get(to).filter(|_| !m.pinned);
            let least = self.settings.rules.min_residency;
            let young = instance.ready_since.is_some_and(|at| now.since(at) < least);
            let rank = Rank { priority: m.spec.priority, young };
            to.is_some_and(|to| to.may_take_the_place_of(rank, instance, yields.cut))
        };
        let spared = |m: &Model| {
            let instance = m.instance.as_ref()?;
            let drains = matches!(instance.life, Life::Draining { .. });
            let yields = instance.yields.as_ref().filter(|_| drains)?;
            let leaves = instance.rests_until.is_none() && leaves(m, instance, yields);
            (!leaves).then(|| instance.id.clone())
        };
        for id in self.models.values().filter_map(spared).collect::<Vec<InstanceId>>() {
            if let Some(instance) = self.instance_mut(&id) {
                (instance.life, instance.yields) = (Life::Ready, None);
                // Those who waited for it meanwhile are served first.
                instance.serves_from = instance.serves_from.max(Some(now));
            }
            self.ledger.drain(&id, false);
            out.push(Effect::Notice(Notice::Spared { instance: id }));
        }
    }
}
