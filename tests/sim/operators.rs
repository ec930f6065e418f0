//! Operators, whoever edits the configuration, and the checks that engines are put to.

use std::sync::Arc;
use std::time::Duration;

use hostler::supervisor::event::{Event, Reconfiguration};
use hostler::types::{
    Evict, Fault, FaultCode, Haste, InstanceId, ModelName, OnFull, Phase, WaiterId, Wish,
};

use crate::case::{gpu, interval, model};
use crate::engines::Life;
use crate::faults::Kind;
use crate::invariants::{Rule, Step};
use crate::world::{Happening, World};

impl World {
    pub(crate) fn operator(&mut self) -> Step {
        if self.core.is_none() {
            return Ok(());
        }
        let waiter = self.next_waiter();
        let model = model(self.rng.below(self.case.specs.len() as u64 + 1));
        match self.rng.below(5) {
            0 | 1 => self.tell(Event::Load { waiter, model, wish: Wish::default() }),
            2 => self.tell(Event::Measure { waiter, model }),
            _ => self.tell(Event::Unload { waiter, model, haste: Haste::Drain }),
        }
    }

    /// An operator makes room for those who would wait for it for ever.
    pub(crate) fn unload_ready(&mut self) -> Step {
        let Some(core) = &self.core else { return Ok(()) };
        let status = core.status(self.now);
        let holds = |phase| matches!(phase, Phase::Ready | Phase::Asleep);
        for ready in status.models.into_iter().filter(|m| holds(m.phase)) {
            let waiter = self.next_waiter();
            self.tell(Event::Unload { waiter, model: ready.name, haste: Haste::Drain })?;
        }
        Ok(())
    }

    /// One of all verbs. Now and then whoever wants it has no patience.
    pub(crate) fn desk(&mut self) -> Step {
        if self.core.is_none() {
            return Ok(());
        }
        let waiter = self.next_waiter();
        if self.rng.chance(25) {
            let patience = Duration::from_millis(self.rng.below(30_000));
            self.later(patience, Happening::ClientLeaves(waiter));
        }
        let model = model(self.rng.below(self.case.specs.len() as u64 + 1));
        let event = match self.rng.below(12) {
            0..3 => Event::Load { waiter, model, wish: self.wish() },
            3 => Event::Unload { waiter, model, haste: Haste::Now },
            4 => Event::Unload { waiter, model, haste: Haste::Drain },
            5 => Event::Pin { waiter, model, pinned: true },
            6 => Event::Pin { waiter, model, pinned: false },
            7 | 8 => Event::Sleep { waiter, model },
            9 | 10 => Event::Wake { waiter, model },
            _ => Event::Measure { waiter, model },
        };
        self.tell(event)
    }

    fn wish(&mut self) -> Wish {
        let evict = [None, None, Some(Evict::None), Some(Evict::Idle), Some(Evict::Any)];
        let bound = self.rng.chance(15);
        let device = gpu(self.rng.below(self.devices.len() as u64) as usize);
        Wish {
            pin: self.rng.chance(15),
            evict: evict[self.rng.below(5) as usize],
            gpus: if bound { vec![device] } else { vec![] },
        }
    }

    /// The daemon is told to read its configuration again, and something in it is another.
    pub(crate) fn configured(&mut self) -> Step {
        if self.core.is_none() || self.shutting_down {
            return Ok(());
        }
        self.edit();
        self.history.note(self.now, || "the configuration changes".into());
        let images = self.case.names().into_iter().map(|n| (n.clone(), self.image(&n))).collect();
        let (settings, specs) = (self.case.settings.clone(), self.case.specs.clone());
        // What passed before, the core hears under the old one.
        self.tell_passed()?;
        self.reference.reconfigured(self.now, &self.case);
        self.tell(Event::Configure(Box::new(Reconfiguration { settings, specs, images })))
    }

    fn edit(&mut self) {
        let names = self.case.names();
        let name = names[self.rng.below(names.len() as u64) as usize].clone();
        // Those who are always busy stay, and alike.
        let what = if self.case.rush { 3 } else { self.rng.below(6) };
        match what {
            0 if names.len() > 2 => {
                let spec = self.case.specs.remove(&name);
                self.case.removed.extend(spec.map(|spec| (name, spec)));
            }
            1 | 2 if !self.case.removed.is_empty() => {
                let back = self.case.removed.pop_first();
                self.case.specs.extend(back);
            }
            3 => {
                let version = self.rng.below(3);
                self.change(&name, |spec| spec.args = vec![format!("--version={version}")]);
            }
            _ => self.change_policy(&name),
        }
    }

    fn change(&mut self, name: &ModelName, change: impl FnOnce(&mut hostler::types::ModelSpec)) {
        if let Some(spec) = self.case.specs.get_mut(name) {
            change(Arc::make_mut(spec));
        }
    }

    /// What shapes no container.
    fn change_policy(&mut self, name: &ModelName) {
        let (pin, priority) = (self.rng.chance(20), [0, 0, 5][self.rng.below(3) as usize]);
        let idle = self.rng.chance(60).then_some(Duration::from_secs(20));
        let on_full = if self.rng.chance(20) { OnFull::Wait } else { OnFull::Evict };
        let bound = self.rng.chance(15);
        let device = gpu(self.rng.below(self.devices.len() as u64) as usize);
        let health = interval(&mut self.rng);
        self.change(name, |spec| {
            (spec.pin, spec.priority, spec.idle_timeout) = (pin, priority, idle);
            (spec.on_full, spec.health_interval) = (on_full, health);
            spec.gpus = if bound { vec![device] } else { vec![] };
        });
    }

    /// An engine is asked whether it is well.
    pub(crate) fn check_up(&mut self, id: &InstanceId, timeout: Duration) {
        let hangs = self.strikes(Kind::CheckHangs);
        let usual = Duration::from_millis(5 + self.rng.below(300));
        let took = if hangs { timeout } else { usual };
        self.later(took, Happening::Checked(self.stats.daemons, id.clone(), hangs));
    }

    pub(crate) fn checked(&mut self, id: &InstanceId, hung: bool) -> Step {
        let fails = hung || self.strikes(Kind::CheckFails);
        let now = self.now;
        let well = self.containers.get(id).is_some_and(|c| {
            c.life == Life::Ready && !c.stopping && c.sick_from.is_none_or(|at| at > now)
        });
        let fault = || Fault::new(FaultCode::Unhealthy, "it is not well");
        let result = if fails || !well { Err(fault()) } else { Ok(()) };
        self.tell(Event::Checked { instance: id.clone(), result, silent: hung })
    }

    /// When nothing is under way any more, everything runs as it is configured.
    pub(crate) fn check_configured(&self) -> Step {
        let stale = self.containers.iter().find(|(id, c)| {
            let spec = self.case.specs.get(&id.model);
            !c.damaged && spec.is_none_or(|s| s.spec_hash() != c.order.spec.spec_hash())
        });
        let what = || {
            format!("{} is not what is configured", stale.map_or("", |(id, _)| id.model.as_str()))
        };
        Rule::ReloadDone.check(stale.is_none(), what)
    }

    pub(crate) fn gives_up(&mut self, waiter: WaiterId) -> Step {
        if !self.reference.is_waiting(waiter) {
            return Ok(());
        }
        self.tell(Event::Cancel { waiter })
    }
}
