//! What must hold of the core after every event, as the world sees it.

use super::*;

impl World {
    /// What must hold after every event.
    pub(super) fn check(&self) -> Result<(), String> {
        let status = self.state.status(self.now);
        for gpu in &status.gpus {
            let promised = gpu.reserved + gpu.confirmed + gpu.releasing;
            if promised + gpu.headroom > Bytes(TOTAL) {
                return Err(format!("{} promises {promised} of {TOTAL}", gpu.id));
            }
        }
        for model in &status.models {
            if model.in_flight > 0
                && !matches!(model.phase, Phase::Ready | Phase::Draining | Phase::Stopping)
            {
                return Err(format!("{} serves while {}", model.name, model.phase));
            }
            if model.queued > 0 && model.phase == Phase::Ready && !self.shutting_down {
                return Err(format!("{} lets {} wait although ready", model.name, model.queued));
            }
        }
        // Time-outs are kept to the turn: nobody waits past a deadline that has been looked at.
        match self.state.next_deadline() {
            Some(due) if due < self.now && !self.exited => {
                Err(format!("due at {due:?}, still pending"))
            }
            _ => Ok(()),
        }
    }

    /// Somebody waits who may evict this one.
    pub(super) fn check_eviction(&self, instance: &InstanceId) -> Result<(), String> {
        let Some(container) = self.containers.get(instance) else {
            return Err(format!("{instance} is evicted and does not exist"));
        };
        let victim = &container.order.spec;
        let settled = container.ready.is_some_and(|at| self.now.since(at) >= MIN_RESIDENCY);
        let status = self.state.status(self.now);
        let asks = status.models.iter().filter(|m| {
            let why = m.waiting_for.as_deref().unwrap_or_default();
            why.contains("to be evicted") && why.contains(victim.name.as_str())
        });
        let may = |spec: &ModelSpec| {
            let older = spec.priority == victim.priority && settled;
            spec.on_full == OnFull::Evict && (spec.priority > victim.priority || older)
        };
        match asks.filter_map(|m| self.specs.get(&m.name)).find(|spec| may(spec)) {
            // An operator's unload takes the pin away.
            Some(_) if status.models.iter().any(|m| m.name == victim.name && m.pinned) => {
                Err(format!("{instance} is pinned and evicted"))
            }
            Some(_) => Ok(()),
            None => Err(format!("{instance} is evicted for nobody who may")),
        }
    }

    /// No device is promised twice.
    pub(super) fn check_room(&self, order: &LaunchOrder) -> Result<(), String> {
        let need = order.placement.need.bytes;
        for gpu in &order.placement.gpus {
            let n = index(gpu);
            // Whose image is on the way has no place any more.
            let on = |c: &&Container| {
                c.order.placement.gpus.contains(gpu) && c.life != super::Life::Pulling
            };
            let promised: u64 = self
                .containers
                .values()
                .filter(on)
                .map(|c| c.order.placement.need.bytes.0.max(c.appetite))
                .sum();
            // What the world itself knows: promises to everything that still exists, and what only the driver holds.
            let lagging: u64 = self.lagging_on(n);
            let sum = promised + lagging + need.0 + HEADROOM;
            if sum > TOTAL {
                return Err(format!("{} over-commits {gpu}: {sum} of {TOTAL}", order.instance));
            }
        }
        Ok(())
    }
}
