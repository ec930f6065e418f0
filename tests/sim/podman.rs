//! podman: creates, pulls, stops, lists. Late, failing, or both.

use std::time::Duration;

use hostler::supervisor::event::Event;
use hostler::supervisor::ports::{Endpoint, Found, FoundIdentity, LaunchOrder, Launched};
use hostler::types::{Fault, FaultCode, InstanceId, ModelName, Phase};

use crate::engines::{Container, Life, broke};
use crate::faults::Kind;
use crate::invariants::{Rule, Step};
use crate::sleep::Sleep;
use crate::world::{Happening, World};

impl World {
    /// Whether its files and images are here; images that are not are pulled.
    pub(crate) fn provide(&mut self, id: &InstanceId) -> Step {
        let what = || format!("{id} is looked for during a shutdown");
        Rule::CleanShutdown.check(!self.shutting_down, what)?;
        self.looks.insert(id.clone());
        let (took, fails, code) = if self.strikes(Kind::PullSlow) {
            self.later(Duration::from_millis(50), Happening::Pulling(id.clone()));
            let took = Duration::from_millis(1_000 + self.rng.below(60_000));
            (took, self.strikes(Kind::PullFails), FaultCode::PullFailed)
        } else {
            (self.podman_time(1_500), self.strikes(Kind::CreateFails), FaultCode::WeightsMissing)
        };
        self.later(took, Happening::Looked(id.clone(), fails.then_some(code)));
        Ok(())
    }

    pub(crate) fn looked(&mut self, id: &InstanceId, fails: Option<FaultCode>) -> Step {
        // Of a daemon that is gone.
        if !self.looks.remove(id) {
            return Ok(());
        }
        let instance = id.clone();
        if let Some(code) = fails {
            let fault = Fault::new(code, "it is not to be had");
            return self.tell(Event::LaunchFailed { instance, fault });
        }
        self.seen.insert(id.model.clone());
        self.tell(Event::Provided { instance, image_id: self.image(&id.model) })
    }

    pub(crate) fn launch(&mut self, order: LaunchOrder) -> Step {
        let id = order.instance.clone();
        let what = || format!("{id} is started during a shutdown");
        Rule::CleanShutdown.check(!self.shutting_down, what)?;
        let there = |c: &Container| !c.damaged && c.life != Life::Pulling;
        let mut others = self.containers.iter().filter(|(_, c)| there(c));
        if let Some((other, _)) = others.find(|(other, _)| other.model == id.model) {
            return Rule::OneContainer.broken(format!("{id} beside {other}"));
        }
        self.check_room(&order)?;
        self.seen.remove(&id.model);
        self.stats.loads += 1;
        let promised = order.placement.need.bytes.0;
        // Declarations are not always true: it takes a little less than it was promised, or more.
        let appetite = if self.strikes(Kind::TakesMore) {
            promised + self.rng.below(promised / 6 + 2)
        } else {
            promised - self.rng.below(promised / 4 + 1)
        };
        let gpus = order.placement.gpus.iter().map(|g| self.index(g)).collect();
        let container = Container {
            order,
            gpus,
            life: Life::Creating,
            appetite,
            held: 0,
            promised,
            seen: None,
            leases: 0,
            ready: None,
            probed: false,
            stopping: false,
            damaged: false,
            sick_from: None,
            sleep: Sleep::default(),
        };
        self.containers.insert(id.clone(), container);
        if self.strikes(Kind::PullSlow) {
            self.later(Duration::from_millis(50), Happening::Pulling(id));
        } else {
            let took = self.podman_time(1_500);
            self.later(took, Happening::Created(id));
        }
        Ok(())
    }

    /// How long a call takes.
    fn podman_time(&mut self, usual_ms: u64) -> Duration {
        let hangs = self.strikes(Kind::PodmanHangs);
        let most = if hangs { 70_000 } else { usual_ms };
        Duration::from_millis(50 + self.rng.below(most))
    }

    /// The image is not there. Its pull is all that comes of this launch: the core plans again when it has ended.
    pub(crate) fn pulling(&mut self, id: &InstanceId) -> Step {
        if self.looks.contains(id) {
            let instance = id.clone();
            return self.tell(Event::Progress { instance, phase: Phase::Pulling });
        }
        let took = Duration::from_millis(1_000 + self.rng.below(60_000));
        let fails = self.strikes(Kind::PullFails);
        let code = if fails { FaultCode::PullFailed } else { FaultCode::ImagePulled };
        let Some(container) = self.containers.get_mut(id).filter(|c| c.life == Life::Creating)
        else {
            return Ok(());
        };
        container.life = Life::Pulling;
        self.later(took, Happening::PullEnds(id.clone(), code));
        self.tell(Event::Progress { instance: id.clone(), phase: Phase::Pulling })
    }

    pub(crate) fn launch_fails(&mut self, id: &InstanceId, code: FaultCode) -> Step {
        let begun = |c: &Container| matches!(c.life, Life::Creating | Life::Pulling);
        if !self.containers.get(id).is_some_and(begun) {
            return Ok(());
        }
        self.containers.remove(id);
        if code == FaultCode::ImagePulled {
            self.seen.insert(id.model.clone());
        }
        let fault = Fault::new(code, "podman said no");
        self.tell(Event::LaunchFailed { instance: id.clone(), fault })
    }

    fn is_creating(&self, id: &InstanceId) -> bool {
        self.containers.get(id).is_some_and(|c| c.life == Life::Creating)
    }

    pub(crate) fn created(&mut self, id: &InstanceId) -> Step {
        let Some(container) = self.containers.get(id).filter(|c| c.life == Life::Creating) else {
            return Ok(());
        };
        let image = self.image(&id.model);
        if container.order.image_id.as_ref().is_some_and(|wanted| *wanted != image) {
            return self.launch_fails(id, FaultCode::ImageChanged);
        }
        if self.strikes(Kind::CreateFails) {
            return self.launch_fails(id, FaultCode::CreateFailed);
        }
        let dirty = self.strikes(Kind::CreateFailsDirty);
        self.engine_starts(id);
        let instance = id.clone();
        if dirty {
            let fault = broke("podman died on the way").leaving_something();
            return self.tell(Event::LaunchFailed { instance, fault });
        }
        let launched = self.launched(id);
        self.tell(Event::Launched { instance, launched })
    }

    /// Which image a model's reference means now.
    pub(crate) fn image(&self, model: &ModelName) -> String {
        format!("image{}", self.images.get(model).copied().unwrap_or(0))
    }

    fn launched(&self, id: &InstanceId) -> Launched {
        Launched {
            container: id.to_string(),
            cgroup: "/nowhere".into(),
            endpoint: Endpoint::Unix("/nowhere/e.sock".into()),
            image_id: self.image(&id.model),
        }
    }

    pub(crate) fn stop(&mut self, id: &InstanceId) -> Step {
        let slow = self.strikes(Kind::StopSlow);
        let took = if slow { Duration::from_secs(10) } else { Duration::ZERO };
        let took = took + self.podman_time(1_000);
        if let Some(container) = self.containers.get_mut(id) {
            let creates = matches!(container.life, Life::Creating | Life::Pulling);
            let what = || format!("{id} is stopped in the middle of its creation");
            Rule::StopAfterCreate.check(!creates, what)?;
            container.stopping = true;
            container.probed = false;
        }
        self.later(took, Happening::StopEnds(id.clone()));
        Ok(())
    }

    pub(crate) fn stop_ends(&mut self, id: &InstanceId) -> Step {
        let instance = id.clone();
        // A stop of a daemon that is gone, and not one of this daemon.
        if self.containers.get(id).is_some_and(|c| !c.stopping) {
            return Ok(());
        }
        if self.containers.contains_key(id) && self.strikes(Kind::StopFails) {
            if self.rng.chance(50) {
                self.die(id);
            }
            if let Some(container) = self.containers.get_mut(id) {
                container.stopping = false;
            }
            let fault = Fault::new(FaultCode::StopFailed, "it will not go");
            return self.tell(Event::Stopped { instance, result: Err(fault) });
        }
        self.die(id);
        self.containers.remove(id);
        self.tell(Event::Stopped { instance, result: Ok(()) })
    }

    pub(crate) fn reap(&mut self, container: &str) {
        let id = self.containers.keys().find(|id| id.to_string() == container).cloned();
        if let Some(id) = id {
            self.later(Duration::from_millis(300), Happening::Reaped(id));
        }
    }

    pub(crate) fn reaped(&mut self, id: &InstanceId) {
        self.die(id);
        self.containers.remove(id);
    }

    /// The daemon is gone in the middle of its calls.
    pub(crate) fn cut_calls(&mut self) {
        self.containers.retain(|_, c| c.life != Life::Pulling);
        self.looks.clear();
        self.seen.clear();
        let ids: Vec<InstanceId> = self.containers.keys().cloned().collect();
        for id in ids {
            let was_stopping = self.containers.get(&id).is_some_and(|c| c.stopping);
            if let Some(container) = self.containers.get_mut(&id) {
                (container.stopping, container.probed) = (false, false);
                (container.leases, container.ready, container.seen) = (0, None, None);
                // What it was told it does, and the next daemon charges all that it was given.
                let sleeps = std::mem::take(&mut container.sleep).ordered;
                if sleeps && container.life == Life::Ready && self.rng.chance(50) {
                    (container.life, container.held) = (Life::Asleep, container.held / 8);
                }
                container.promised = container.order.placement.need.bytes.0;
            }
            if was_stopping && self.rng.chance(70) {
                let after = Duration::from_millis(self.rng.below(5_000));
                self.later(after, Happening::EngineDies(id.clone()));
            }
            if self.is_creating(&id) {
                match self.rng.below(3) {
                    0 => drop(self.containers.remove(&id)),
                    1 => self.engine_starts(&id),
                    _ => {
                        if let Some(container) = self.containers.get_mut(&id) {
                            container.life = Life::Dead;
                        }
                    }
                }
            }
        }
    }

    /// What is there when a daemon comes up.
    pub(crate) fn list(&mut self) -> Vec<Found> {
        let ids: Vec<InstanceId> = self.containers.keys().cloned().collect();
        for id in ids {
            let damaged = self.strikes(Kind::LabelsDamaged);
            if let Some(container) = self.containers.get_mut(&id) {
                container.damaged |= damaged;
            }
        }
        let found = |(id, c): (&InstanceId, &Container)| {
            let identity = FoundIdentity {
                instance: id.clone(),
                spec_hash: c.order.spec.spec_hash(),
                placement: c.order.placement.clone(),
            };
            Found {
                container: id.to_string(),
                identity: (!c.damaged).then_some(identity),
                running: c.lives().then(|| self.launched(id)),
            }
        };
        self.containers.iter().map(found).collect()
    }
}
