//! The part of the core that takes another configuration while it runs.
//!
//! Invariants: what did not change keeps its container, with the requests on it; what was removed serves what it has and goes; a
//! changed model is served by its old container until nobody uses it, and then starts anew. One that is always busy makes way for
//! its own next container after `turn_after`, as it would for another model ([`turn`](super::turn)): no request is cut off for it. What
//! cannot be changed at run time is not here: the composition root names it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::effect::{Effect, Heir, Notice, StopReason};
use super::health::Health;
use super::instance::{Instance, Life, Yield};
use super::measure::Knowledge;
use super::state::{Model, Settings, State};
use crate::plan::{Leave, Loads};
use crate::types::{Denied, GpuId, ModelName, ModelSpec, Moment};

/// Another configuration, checked.
#[derive(Clone, Debug)]
pub struct Reconfiguration {
    /// The seed is ignored.
    pub settings: Settings,
    /// All models that there are to be.
    pub specs: BTreeMap<ModelName, Arc<ModelSpec>>,
    /// What their image references mean now, as far as that is known.
    pub images: BTreeMap<ModelName, String>,
}

impl State {
    pub(super) fn reconfigure(&mut self, now: Moment, new: Reconfiguration, out: &mut Vec<Effect>) {
        // Nothing of it would be served any more, and who leaves would be brought back.
        if self.shutdown.is_some() {
            return;
        }
        let Reconfiguration { settings, specs, mut images } = new;
        self.ledger.set_headroom(settings.headroom);
        self.settings = Settings { seed: self.settings.seed, ..settings };
        self.aliases.clear();
        for (name, spec) in &specs {
            let aliases = spec.aliases.iter().map(|alias| (alias.clone(), name.clone()));
            self.aliases.extend(aliases);
        }
        let names: Vec<ModelName> = self.models.keys().cloned().collect();
        for name in names.iter().filter(|name| !specs.contains_key(*name)) {
            self.retire(name, out);
        }
        for (name, spec) in specs {
            let image = images.remove(&name);
            match self.models.get_mut(&name) {
                Some(model) => {
                    let back = model.retired;
                    model.change(now, spec, image);
                    if back {
                        self.take_back(&name, out);
                    }
                }
                None => {
                    let mut model = Model::new(spec);
                    model.known.image_id = image;
                    self.models.insert(name, model);
                }
            }
        }
        self.recall_loads();
        self.note_suspects(now);
    }

    /// A model that is not configured any more.
    fn retire(&mut self, name: &ModelName, out: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(name) else { return };
        model.retired = true;
        model.wanted = false;
        model.pinned = false;
        let denied = Denied::UnknownModel { model: name.to_string() };
        model.deny_all(&denied, out);
        self.dismiss(name, StopReason::Reconfigured, out);
    }

    /// A model that was not configured any more is again. One that has not gone yet, and is as it is configured, serves on.
    fn take_back(&mut self, name: &ModelName, out: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(name) else { return };
        let goes = |i: &&Instance| {
            matches!(i.life, Life::Draining { reason: StopReason::Reconfigured, .. })
                && i.yields.is_none()
        };
        let instance = model.instance.as_ref().filter(goes).filter(|i| !model.has_changed(i));
        let Some(id) = instance.map(|i| i.id.clone()) else { return };
        if let Some(instance) = &mut model.instance {
            instance.life = Life::Ready;
        }
        self.ledger.drain(&id, false);
        out.push(Effect::Notice(Notice::Spared { instance: id }));
    }

    /// Containers of another specification go when nobody uses them; models that are configured no more go with theirs.
    pub(super) fn replace_changed(&mut self, now: Moment, out: &mut Vec<Effect>) {
        // Whoever waits for what loads already is served by it.
        let loads = |m: &Model| m.instance.as_ref().is_some_and(Instance::is_loading);
        for model in self.models.values_mut().filter(|m| !loads(m)) {
            model.deny_forbidden(out);
        }
        for model in self.models.values_mut() {
            let outdated = model.instance.as_ref().is_some_and(|i| model.has_changed(i));
            if let Some(instance) = &mut model.instance {
                instance.outdated = outdated.then(|| instance.outdated.unwrap_or(now));
            }
        }
        let profiled = self.profiled();
        let stale = |m: &Model| {
            let idle = |i: &Instance| !is_used(i) && !is_going(i) && !i.disturbs(&profiled);
            m.instance.as_ref().is_some_and(|i| m.may_be_renewed(i, &profiled) && idle(i))
                // Who waits is served by what loads or wakes: it may be all but ready.
                && (m.queue.is_empty() || m.instance.as_ref().is_some_and(Instance::is_asleep))
        };
        let stale = self.models.values().filter(|m| stale(m) && !self.podman_away());
        let names: Vec<ModelName> = stale.map(|m| m.spec.name.clone()).collect();
        for name in names {
            self.dismiss(&name, StopReason::Reconfigured, out);
        }
        self.models.retain(|_, m| {
            !(m.retired && m.instance.is_none() && m.unloading.is_empty() && m.dozing.is_empty())
        });
    }

    /// Those of another specification that are busy all the time take no new requests any more, and go when the last one is over.
    pub(super) fn renew_busy(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let (turn_after, profiled) = (self.renew_after(), self.profiled());
        for model in self.models.values_mut() {
            if model.renewal_at(turn_after, &profiled).is_none_or(|at| at > now) {
                continue;
            }
            let Some(instance) = &mut model.instance else { continue };
            let to = Heir::Successor;
            instance.life = Life::Draining { reason: StopReason::Reconfigured, until: None };
            // Its place is its own: the ledger promises it to nobody before it is left.
            instance.yields =
                Some(Yield { to: to.clone(), cut: false, leave: Leave::Stop, since: now });
            let instance = instance.id.clone();
            out.push(Effect::Notice(Notice::Yielding { instance, to, busy: true }));
        }
    }

    /// How long a busy one of another specification serves on; `None`: until it is idle, or podman is back.
    pub(super) fn renew_after(&self) -> Option<Duration> {
        self.turn_after().filter(|_| self.shutdown.is_none() && !self.podman_away())
    }
}

fn is_used(instance: &Instance) -> bool {
    instance.in_flight > 0
}

fn is_going(instance: &Instance) -> bool {
    matches!(
        instance.life,
        // Whoever falls asleep is judged when it sleeps.
        Life::Dozing { .. }
            | Life::Draining { .. }
            | Life::Abandoned { .. }
            | Life::Stopping { .. }
    )
}

impl Model {
    /// Whether a container is not what the configuration asks for now.
    pub(super) fn has_changed(&self, instance: &Instance) -> bool {
        let allowed = &self.spec.gpus;
        let elsewhere = |gpus: &[GpuId]| gpus.iter().any(|g| !allowed.contains(g));
        // Asked in every turn: what is the very same needs no digest.
        let same = Arc::ptr_eq(&instance.spec, &self.spec)
            || instance.spec.spec_hash() == self.spec.spec_hash();
        !same || (!allowed.is_empty() && elsewhere(&instance.placement.gpus))
    }

    /// Whether one that is idle or drains may go for a container as it is configured now: not beside a load that nobody who waits for it
    /// should disturb.
    pub(super) fn may_be_renewed(&self, instance: &Instance, profiled: &[GpuId]) -> bool {
        let waits = self.asked_since().is_none() && instance.disturbs(profiled);
        instance.outdated.is_some() && !waits
    }

    /// When it takes no new requests any more, as it is busy and configured otherwise now. It has served for as long before. Not beside a load that
    /// it would disturb: who asks for it is served still.
    pub(super) fn renewal_at(
        &self,
        turn_after: Option<Duration>,
        profiled: &[GpuId],
    ) -> Option<Moment> {
        let busy = |i: &&Instance| i.is_ready() && is_used(i) && i.rests_until.is_none();
        let instance = self.instance.as_ref().filter(busy)?;
        let since = instance.outdated.filter(|_| !instance.disturbs(profiled))?;
        let served = instance.ready_since.max(instance.serves_from);
        Some(served.map_or(since, |served| since.max(served)) + turn_after?)
    }

    /// What a model waits for that is served by a container of an older configuration.
    pub(super) const RENEWAL: &'static str =
        "for the last request on its older container, to start anew as it is configured now";

    fn change(&mut self, now: Moment, spec: Arc<ModelSpec>, image: Option<String>) {
        let back = std::mem::take(&mut self.retired);
        if *self.spec == *spec && !back {
            return;
        }
        if self.spec.pin != spec.pin || back {
            // An operator's own pin lasts until the configuration says something else.
            self.pinned = spec.pin;
            self.wanted = spec.pin || self.queue.has_operators();
        }
        self.seen = false;
        if self.spec.spec_hash() != spec.spec_hash() {
            self.sleeps = super::sleep::Sleeps::default();
        }
        // Other weights under the same name, too: what was measured is not what comes.
        let mut known = Knowledge::of(&spec);
        if !self.known.is_as(&known) {
            let same = self.spec.image == spec.image;
            known.image_id = image.or(self.known.image_id.take().filter(|_| same));
            self.known = known;
            // Files of which nothing was known are no others when they have been read: its loads were of them.
            let is_read = self.spec.anatomy.is_none() && spec.anatomy.is_some();
            if !is_read || self.spec.spec_hash() != spec.spec_hash() {
                self.loads = Loads::default();
            }
            self.discovery.tried = false;
        }
        // What failed is not what comes: a longer time for its load, say, which its fault asks for.
        if let Some(failure) = &mut self.failure {
            failure.retry_at = now;
            failure.count = 0;
            failure.failed_on.clear();
        }
        if let Some(instance) = &mut self.instance
            && instance.spec.spec_hash() == spec.spec_hash()
        {
            // The same container under another policy. One that is to be replaced stays what it was.
            if instance.spec.health_interval != spec.health_interval {
                instance.health = Health::begin(now, spec.health_interval);
            }
            instance.spec = spec.clone();
        }
        self.spec = spec;
    }
}
