//! The part of the core that sees whether a model has what its launch needs, before others leave for it.
//!
//! ```text
//!   it would have others leave, or waits ──▶ Pulling, without a place ── its weights and images are here ──▶ planned again, and `seen`
//!                                              │ they are not to be had                                           │ started, or wanted no more
//!                                              ▼                                                                  ▼
//!                                            failed, and nobody left                                            not `seen` any more
//! ```
//! Purpose: nobody leaves in vain for a model whose image or weights are missing, nor for minutes before its image has been pulled. Owner:
//! [`State`]. Invariants: who is looked for holds nothing, and has no place; what was seen counts for one launch; a launch looks itself
//! once more, for where there is room nobody looks before.

use super::effect::{Effect, Notice};
use super::instance::{Instance, Life};
use super::measure::Measuring;
use super::state::{Model, State};
use crate::plan::Sample;
use crate::types::{Bytes, FaultCode, InstanceId, ModelName, Moment, Need, Phase, Placement};

impl State {
    /// Whether nobody may be asked to leave for it yet: it has nothing here, and nobody has looked for its weights and images since it
    /// is wanted.
    pub(super) fn is_unseen(&self, name: &ModelName) -> bool {
        let cold = |m: &&Model| m.instance.is_none() && m.is_asked_for() && !m.seen;
        self.models.get(name).filter(cold).is_some() && !self.podman_away()
    }

    /// Before others have to leave for it: what its launch needs of disk and registry is looked at, and pulled where it is not here. It
    /// has no place meanwhile.
    pub(super) fn look(
        &mut self,
        now: Moment,
        name: &ModelName,
        need: Need,
        out: &mut Vec<Effect>,
    ) {
        let id = self.next_instance(name);
        let Some(model) = self.models.get_mut(name) else { return };
        let (spec, pace) = (model.spec.clone(), model.pace(now));
        let (budget, device_total) = (need.bytes, Bytes::ZERO);
        let nowhere = Placement { gpus: Vec::new(), need, budget, device_total };
        let measuring = Measuring::new(&model.known, Sample::new());
        model.waiting_for = None;
        model.instance = Some(Instance {
            life: Life::Pulling { begun: false, pulled: None },
            ..Instance::ordered(id.clone(), spec.clone(), nowhere, pace, measuring, now)
        });
        out.push(Effect::Provide { instance: id, spec });
    }

    /// What its launch needs is here: others may be asked to leave for it.
    pub(super) fn provided(&mut self, id: &InstanceId, image_id: String, out: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(&id.model) else { return };
        let looked = |i: &mut Instance| i.id == *id && matches!(i.life, Life::Pulling { .. });
        let Some(instance) = model.instance.take_if(looked) else { return };
        // A reload may want others.
        if model.known.is_of(&instance) {
            model.seen = true;
            model.known.image_is(image_id);
        }
        if instance.phase() == Phase::Pulling {
            let why = FaultCode::ImagePulled;
            out.push(Effect::Notice(Notice::PlannedAgain { instance: id.clone(), why }));
        }
    }

    /// Nothing was started, because what the plan was made from is not true any more: it is made again, at once. `seen`: its weights
    /// and images are here.
    pub(super) fn plan_again(
        &mut self,
        id: &InstanceId,
        why: FaultCode,
        seen: bool,
        out: &mut Vec<Effect>,
    ) {
        self.forget(id, seen);
        out.push(Effect::Notice(Notice::PlannedAgain { instance: id.clone(), why }));
    }

    pub(super) fn forget(&mut self, id: &InstanceId, seen: bool) {
        self.ledger.withdraw(id);
        let Some(model) = self.models.get_mut(&id.model) else { return };
        let Some(instance) = model.instance.take() else { return };
        // What a reload has learned of another stays, and what is known of an image of which nothing was heard.
        if model.known.is_of(&instance) && !instance.is_looked_for() {
            model.seen = seen;
            // Whatever its name means when it is here.
            model.known.image_changed();
        }
    }
}
