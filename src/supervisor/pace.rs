//! The part of the core that watches loads get on, or not. The times are [`crate::plan::Pace`]'s.

use super::effect::{Effect, Notice};
use super::event::Observation;
use super::instance::{Canary, Instance, Life};
use super::state::{Model, State};
use crate::plan::Pace;
use crate::types::{Bytes, Fault, FaultCode, InstanceId, Moment, Phase, Pulled};

/// Less memory than this is no sign: what a process holds goes up and down.
const GROWTH: Bytes = Bytes::mib(4);

impl Model {
    /// For a load that begins now.
    pub(super) fn pace(&self, now: Moment) -> Pace {
        let weights = self.spec.anatomy.as_ref().map(|anatomy| anatomy.weights);
        Pace::new(now, self.loads.expected(weights), self.spec.load_timeout)
    }
}

impl Instance {
    fn gets_on(&mut self, now: Moment) {
        // Once it was ready and is asked its canary, it has a deadline of its own.
        if self.canary != Canary::None {
            return;
        }
        if let Life::Loading { deadline } = &mut self.life {
            self.pace.gets_on(now);
            *deadline = self.pace.deadline();
        }
    }

    /// The fault of a load that took too long.
    pub(super) fn too_slow(&self) -> Fault {
        let mut message = format!("{} was not ready {}", self.spec.name, self.pace.why());
        if let Some(answer) = &self.strange {
            message += &format!("; what was last wrong when it was asked for its health: {answer}");
        }
        Fault::new(FaultCode::LoadTimeout, message)
    }
}

impl State {
    /// Its launch has come to a phase.
    pub(super) fn progress(
        &mut self,
        now: Moment,
        id: &InstanceId,
        phase: Phase,
        out: &mut Vec<Effect>,
    ) {
        let Some(instance) = self.instance_mut(id) else { return };
        if let (Life::Abandoned { fault }, Phase::Pulling) = (&instance.life, phase) {
            // Nothing of it is there, nor will be: a pull ends the launch, and its end is of nobody.
            let fault = fault.clone();
            self.ledger.withdraw(id);
            self.finish(now, id, fault, false, out);
            return;
        }
        match (&mut instance.life, phase) {
            // A pull ends the launch, well or not. Nothing of it is on a device, and it may take an hour: others may have the room
            // meanwhile.
            (
                life @ (Life::Starting { .. } | Life::Pulling { begun: false, .. }),
                Phase::Pulling,
            ) => {
                *life = Life::Pulling { begun: true, pulled: None };
                self.ledger.withdraw(id);
                out.push(Effect::Notice(Notice::Pulling { instance: id.clone() }));
            }
            (Life::Starting { .. }, Phase::Starting) => {
                // The load's clock starts when podman is asked.
                instance.load_began = Some(now);
                instance.begun = true;
                instance.pace = instance.pace.from(now);
                instance.life = Life::Starting { deadline: instance.pace.deadline() };
            }
            _ => {}
        }
    }

    /// The pull of its image has got on.
    pub(super) fn pulled(&mut self, id: &InstanceId, news: Pulled) {
        if let Some(Life::Pulling { pulled, .. }) = self.instance_mut(id).map(|i| &mut i.life) {
            *pulled = Some(news);
        }
    }

    /// Its log has grown.
    pub(super) fn load_progress(&mut self, now: Moment, id: &InstanceId) {
        if let Some(instance) = self.instance_mut(id) {
            instance.gets_on(now);
        }
    }

    /// It said something strange when asked whether it is ready.
    pub(super) fn strange(&mut self, id: &InstanceId, answer: String) {
        if let Some(instance) = self.instance_mut(id) {
            instance.strange = Some(answer);
        }
    }

    /// After a reading: whose memory has grown while it loads.
    pub(super) fn note_growth(&mut self, now: Moment, observation: &Observation) {
        for instance in self.models.values_mut().filter_map(|m| m.instance.as_mut()) {
            let Some(usage) = observation.usage.get(&instance.id) else { continue };
            let held: Bytes = usage.bytes.values().filter_map(|bytes| bytes.get()).sum();
            if held >= instance.grown_to + GROWTH {
                instance.grown_to = held;
                instance.gets_on(now);
            }
        }
    }
}
