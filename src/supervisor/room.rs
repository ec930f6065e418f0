//! The part of the core that finds room: for starts and for wakes, in the order of those who wait.
//!
//! Owner: [`State`]. Invariants: whose turn is first is planned for first, and what it will get of memory that is on its way
//! is kept for it ([`Claims`]), so nobody is overtaken for ever; a measurement that has been evicted once is not evicted again
//! by its equals, so it comes to its end as well; nobody is made to leave for a model whose weights and images were not seen to be here.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::effect::{Effect, Notice, StopReason};
use super::instance::{Instance, Life};
use super::measure::Measuring;
use super::ports::LaunchOrder;
use super::state::{Model, State};
use crate::plan::{self, Claims, Decision, Holder, Needs, Plan, Standing, Want, estimate};
use crate::types::{Bytes, Evict, GpuId, InstanceId, ModelName, Moment, Placement, Wish};

/// What a model wants: a start, or the wake of its instance.
#[derive(Clone)]
pub(super) struct Spot {
    needs: Needs,
    gpu_count: u32,
    allowed: Vec<GpuId>,
    waking: Option<InstanceId>,
    in_turn: bool,
}

impl Spot {
    /// The same for one whose turn it is.
    pub(super) fn in_turn(&self) -> Self {
        Self { in_turn: true, ..self.clone() }
    }
}

impl State {
    pub(super) fn start_wanted(&mut self, now: Moment, out: &mut Vec<Effect>) {
        for model in self.models.values_mut() {
            model.plan_at = None;
        }
        if self.shutdown.is_some() || !self.surveyed {
            return;
        }
        let mut kept = Claims::default();
        for (.., name) in self.queue_for_room(now) {
            self.find_room(now, &name, &mut kept, out);
        }
    }

    /// All who wait for room: the highest priority first, then whoever has waited longest; at the same moment requests before
    /// measurements, or one that was evicted for a request would have its room back before it.
    fn queue_for_room(&mut self, now: Moment) -> Vec<(Reverse<i8>, Moment, bool, ModelName)> {
        let mut wanted = Vec::new();
        let turn_after = self.turn_after();
        for model in self.models.values_mut() {
            let asleep = model.instance.as_ref().map(Instance::is_asleep);
            if asleep == Some(false) || !model.is_demanded() {
                model.waiting_for = None;
                model.seen &= model.is_demanded();
                continue;
            }
            if asleep.is_none() && model.failure.as_ref().is_some_and(|f| f.retry_at > now) {
                continue;
            }
            if let Some(orphan) = self.orphans.keys().find(|id| id.model == model.spec.name) {
                model.waiting_for =
                    Some(format!("{orphan}, left behind earlier, is removed first"));
                continue;
            }
            // Whose requests gave up and came again waits on: by the oldest that is there it would lose its place each time.
            let hungry = model.hungry_since(now, turn_after);
            let since = model.asked_since().into_iter().chain(hungry).min().unwrap_or(now);
            let (priority, name) = (Reverse(model.spec.priority), model.spec.name.clone());
            wanted.push((priority, since, model.queue.is_empty(), name));
        }
        wanted.sort();
        wanted
    }

    /// Starts or wakes a model for which there is room, or makes room for it. `kept`: for those before it, and then for it.
    fn find_room(
        &mut self,
        now: Moment,
        name: &ModelName,
        kept: &mut Claims,
        out: &mut Vec<Effect>,
    ) {
        let holders = self.holders(Some(name));
        let Some(model) = self.models.get(name) else { return };
        let spot = match &model.instance {
            None => self.cold(model, model.wish()),
            Some(instance) if instance.is_asleep() => self.warm(model, instance),
            Some(_) => return,
        };
        let Plan { decision, report, claim } = self.plan_in_turn(now, model, &spot, kept, &holders);
        let moves = spot.waking.is_some()
            && self.is_better_off_elsewhere(now, model, &spot, kept, &holders, &decision);
        let waits = matches!(decision, Decision::Wait { .. } | Decision::Full(_)) && !moves;
        let (decision, moves) = (self.feasible(decision, moves), moves && !self.podman_away());
        let measured = if waits { self.in_background(name, (&report, &claim)) } else { Vec::new() };
        let comes = matches!(decision, Decision::Evict(_) | Decision::Wait { .. }) && !moves;
        if (comes || !measured.is_empty()) && self.is_unseen(name) {
            kept.add(claim);
            self.look(now, name, report.need, out);
            return;
        }
        if !measured.is_empty() {
            self.end_background(now, name, &measured, out);
            self.find_room(now, name, kept, out);
            return;
        }
        kept.add(claim);
        let need = report.need.bytes;
        let turn_after = self.turn_after();
        let Some(model) = self.models.get_mut(name) else { return };
        model.report = Some(Arc::new(report));
        // What an operator's wish makes impossible is no refusal of those who wish for less.
        let wish = model.wish().is_some();
        let denied = match &decision {
            Decision::Full(why) if wish => Some(model.no_room(why)),
            Decision::Refuse { largest } if wish => Some(model.never_fits(need, *largest)),
            Decision::Full(_)
            | Decision::Refuse { .. }
            | Decision::Start(_)
            | Decision::Evict(_)
            | Decision::Wait { .. } => None,
        };
        if let Some(denied) = denied.filter(|_| !moves) {
            model.waiting_for = None;
            model.deny_operators(&denied, out);
            if model.is_asked_for() {
                self.find_room(now, name, kept, out);
            }
            return;
        }
        match decision {
            _ if moves => self.dismiss(name, StopReason::Moved, out),
            Decision::Start(place) if spot.waking.is_some() => {
                self.wake(now, name, place.need.bytes, out);
            }
            Decision::Start(placement) => self.start(now, name, placement, out),
            Decision::Evict(victims) => self.evict(now, name, &victims, out),
            Decision::Wait { .. } if !model.is_asked_for() => model.discovery.give_up(),
            Decision::Wait { why, until } => {
                let turn = model.hunger(now, turn_after).filter(|at| *at > now);
                model.plan_at = [until, turn].into_iter().flatten().min();
                model.wait(why, out);
            }
            Decision::Full(why) => {
                // Said before nobody wants it any more.
                if model.queue.is_empty() {
                    model.wait(why.clone(), out);
                }
                model.turn_away(&why, out);
                model.wait(why, out);
            }
            Decision::Refuse { largest } => model.refuse(need, largest, out),
        }
    }

    /// What would be decided for an operator's wish now. Nobody is before him: a dry run takes nothing from those who wait.
    pub(super) fn dry_run(&self, now: Moment, model: &Model, wish: &Wish) -> Plan {
        let asleep = model.instance.as_ref().filter(|i| i.is_asleep());
        let cold = || self.cold(model, Some(wish));
        let spot = asleep.map_or_else(cold, |instance| self.warm(model, instance));
        let holders = self.holders_for(Some(model), wish.evict == Some(Evict::Any));
        self.plan(now, model, &spot, Some(wish), &Claims::default(), &holders)
    }

    pub(super) fn plan(
        &self,
        now: Moment,
        model: &Model,
        spot: &Spot,
        wish: Option<&Wish>,
        kept: &Claims,
        holders: &[Holder],
    ) -> Plan {
        let want = Want {
            model: &model.spec.name,
            needs: &spot.needs,
            gpu_count: spot.gpu_count,
            allowed: &spot.allowed,
            shunned: &self.shunned(model),
            priority: model.priority(wish),
            on_full: model.on_full(wish),
            waking: spot.waking.as_ref(),
            kept,
            in_turn: spot.in_turn,
        };
        plan::plan(now, self.settings.rules, &self.ledger, holders, &want)
    }

    /// A start wherever it may be.
    fn cold(&self, model: &Model, wish: Option<&Wish>) -> Spot {
        let gpu_count = model.spec.gpu_count;
        let wished = wish.map(|wish| &wish.gpus).filter(|gpus| !gpus.is_empty());
        let allowed = wished.unwrap_or(&model.spec.gpus).clone();
        Spot { needs: self.needs(model), gpu_count, allowed, waking: None, in_turn: false }
    }

    /// A wake where it sleeps.
    fn warm(&self, model: &Model, asleep: &Instance) -> Spot {
        let allowed = asleep.placement.gpus.clone();
        let other = self.wake_need(model, asleep);
        Spot {
            needs: Needs { other, by_name: BTreeMap::new(), budget: None, slack: Bytes::ZERO },
            gpu_count: u32::try_from(allowed.len()).unwrap_or(1),
            allowed,
            waking: Some(asleep.id.clone()),
            in_turn: false,
        }
    }

    /// Where it sleeps others stay, and a cold start has a place; or its devices are not what they were.
    fn is_better_off_elsewhere(
        &self,
        now: Moment,
        model: &Model,
        spot: &Spot,
        kept: &Claims,
        holders: &[Holder],
        decision: &Decision,
    ) -> bool {
        match decision {
            Decision::Start(_) | Decision::Evict(_) => return false,
            Decision::Refuse { .. } => return true,
            Decision::Wait { .. } | Decision::Full(_) => {}
        }
        let here = |gpu: &GpuId| spot.allowed.contains(gpu);
        let soon = self.ledger.rows().iter().any(|r| r.gated && here(&r.id));
        if soon || spot.allowed.iter().any(|gpu| kept.touch(gpu)) {
            return false;
        }
        let wish = model.wish();
        let cold = self.plan(now, model, &self.cold(model, wish), wish, kept, holders).decision;
        matches!(cold, Decision::Start(_) | Decision::Evict(_))
    }

    fn start(
        &mut self,
        now: Moment,
        name: &ModelName,
        placement: Placement,
        out: &mut Vec<Effect>,
    ) {
        let id = self.next_instance(name);
        let Some(model) = self.models.get_mut(name) else { return };
        let (spec, image_id) = (model.spec.clone(), model.known.image_id.clone());
        (model.waiting_for, model.hunger, model.seen) = (None, None, false);
        let pace = model.pace(now);
        let measuring = Measuring::new(&model.known, self.ledger.sample(&id, &placement.gpus));
        let at = placement.clone();
        model.instance =
            Some(Instance::ordered(id.clone(), spec.clone(), at, pace, measuring, now));
        self.ledger.reserve(id.clone(), &placement);
        out.push(Effect::Notice(Notice::Starting {
            instance: id.clone(),
            gpus: placement.gpus.clone(),
            planned: placement.need.bytes,
        }));
        // What is promised, and what the engine is told, are of one plan.
        let context = spec.context.or_else(|| estimate::context(&spec, placement.device_total));
        let order = LaunchOrder { instance: id, spec, placement, image_id, context };
        out.push(Effect::Launch(order));
    }

    /// Who holds memory, as the model `asking` has to see it.
    pub(super) fn holders(&self, asking: Option<&ModelName>) -> Vec<Holder> {
        let asking = asking.and_then(|name| self.models.get(name));
        let wish = asking.and_then(Model::wish).and_then(|wish| wish.evict);
        self.holders_for(asking, wish == Some(Evict::Any))
    }

    /// The same where busy ones too may leave, after the requests that they serve.
    pub(super) fn holders_for(&self, asking: Option<&Model>, busy_too: bool) -> Vec<Holder> {
        let to_measure = asking.is_some_and(|m| !m.wanted && m.queue.is_empty());
        // One that is measured may have to leave for others, but not again and again.
        let its_turn = |m: &Model| {
            m.discovery.evicted.is_some()
                && asking.is_some_and(|a| a.spec.priority <= m.spec.priority)
        };
        let profiled = self.profiled();
        let standing = |model: &Model, i: &Instance| {
            let standing = match i.life {
                Life::Dozing { .. }
                | Life::Draining { .. }
                | Life::Abandoned { .. }
                | Life::Stopping { .. } => Standing::Leaving,
                _ if model.pinned => Standing::Pinned,
                Life::Pulling { .. }
                | Life::Starting { .. }
                | Life::Loading { .. }
                | Life::Waking { .. } => Standing::Starting,
                Life::Ready if i.in_flight > 0 && !busy_too => Standing::Busy,
                Life::Ready if to_measure && model.discovery.is_wanted() => Standing::Measuring,
                Life::Ready if its_turn(model) => Standing::Measuring,
                Life::Ready => Standing::Idle,
                Life::Asleep { .. } => Standing::Asleep,
            };
            let goes = matches!(standing, Standing::Idle | Standing::Asleep);
            if goes && i.disturbs(&profiled) { Standing::BesideLoad } else { standing }
        };
        let of = |model: &Model, i: &Instance| Holder {
            instance: i.id.clone(),
            charges: self.charges(&i.id),
            standing: standing(model, i),
            last_used: i.last_used,
            ready_since: i.ready_since.filter(|_| !i.is_asleep()),
            priority: model.spec.priority,
            demand: model.demand,
            sleep: self.sleeper(model, i),
            host_ram: i.host_ram,
        };
        self.models.values().filter_map(|m| m.instance.as_ref().map(|i| of(m, i))).collect()
    }

    fn charges(&self, id: &InstanceId) -> Vec<(GpuId, Bytes)> {
        let Some(hold) = self.ledger.hold(id) else { return Vec::new() };
        hold.gpus.iter().map(|g| (g.clone(), hold.charge(g))).collect()
    }
}
