//! Containers and the engines in them as they really are, whatever the core believes.

use std::time::Duration;

use hostler::supervisor::event::Event;
use hostler::supervisor::ports::LaunchOrder;
use hostler::types::{Fault, FaultCode, InstanceId, Moment};

use crate::devices::Lag;
use crate::faults::Kind;
use crate::invariants::Step;
use crate::sleep::Sleep;
use crate::world::{Happening, World};

/// One container.
#[derive(Debug)]
pub struct Container {
    pub order: LaunchOrder,
    /// Its devices.
    pub gpus: Vec<usize>,
    pub life: Life,
    /// What it takes on each device once it has loaded.
    pub appetite: u64,
    /// What it holds on each now.
    pub held: u64,
    /// What it is promised on each now.
    pub promised: u64,
    /// What the last reading showed of that; `None`: no reading has.
    pub seen: Option<u64>,
    pub leases: u32,
    /// When the core was told that it is ready.
    pub ready: Option<Moment>,
    /// The core asks whether it is ready.
    pub probed: bool,
    /// A stop is under way.
    pub stopping: bool,
    /// It cannot be told any more whose it is.
    pub damaged: bool,
    /// From then on it is not well.
    pub sick_from: Option<Moment>,
    /// What the core has been told of its sleep.
    pub sleep: Sleep,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// podman is at work; no process yet.
    Creating,
    /// podman fetches its image; nothing of it is anywhere.
    Pulling,
    /// Its processes run.
    Loading,
    /// The engine answers.
    Ready,
    /// It sleeps: its processes live, and nobody is answered.
    Asleep,
    /// No process lives.
    Dead,
}

impl Container {
    pub fn lives(&self) -> bool {
        matches!(self.life, Life::Loading | Life::Ready | Life::Asleep)
    }

    /// Nothing about it is under way.
    pub fn rests(&self) -> bool {
        let awake = self.life == Life::Ready && self.ready.is_some() && !self.sleep.ordered;
        let asleep = self.life == Life::Asleep && self.sleep.awake.is_some();
        (awake || asleep) && !self.stopping
    }

    /// What nobody else can be promised: what it was promised, or more where a reading has shown more. One that nobody
    /// knows any more is foreign, and one without processes takes nothing.
    pub fn claim(&self) -> u64 {
        let promised = self.promised;
        match self.life {
            Life::Dead | Life::Pulling => 0,
            _ if self.damaged => 0,
            Life::Creating | Life::Loading | Life::Ready | Life::Asleep => {
                promised.max(self.seen.unwrap_or(0))
            }
        }
    }

    /// Its model has an instance, and not one that may have to make room in order to wake.
    pub fn is_more_than_asleep(&self) -> bool {
        !self.damaged && self.life != Life::Pulling && self.sleep.awake.is_none()
    }

    /// As far as can be seen from outside it could be evicted.
    pub fn idle_to_the_core(&self) -> bool {
        let known = self.ready.is_some() && self.seen.is_some();
        known && !self.stopping && !self.damaged
    }
}

/// Every incarnation has one process.
pub fn pid(id: &InstanceId) -> u32 {
    let model = u32::from(id.model.as_str().as_bytes()[1] - b'0');
    u32::try_from(id.generation.0).unwrap() * 10 + model + 100
}

pub fn broke(how: &str) -> Fault {
    Fault::new(FaultCode::EngineExited, how)
}

impl World {
    /// The engine's processes have been started.
    pub(crate) fn engine_starts(&mut self, id: &InstanceId) {
        let exits = self.strikes(Kind::ExitsLoading);
        let hangs = self.strikes(Kind::HangsLoading);
        let after = Duration::from_millis(300 + self.rng.below(12_000));
        let Some(c) = self.containers.get_mut(id) else { return };
        c.life = Life::Loading;
        c.held = c.appetite / 2;
        if exits {
            self.later(after, Happening::EngineDies(id.clone()));
        } else if !hangs {
            self.later(after, Happening::EngineReady(id.clone()));
        }
    }

    /// The rest of its memory is claimed, and it answers; or there is no room for that, and it dies.
    pub(crate) fn engine_ready(&mut self, id: &InstanceId) -> Step {
        let Some(c) = self.containers.get(id).filter(|c| c.life == Life::Loading) else {
            return Ok(());
        };
        let more = c.appetite - c.held;
        let full = |at: &usize| self.used(*at) + more > self.devices[*at].total;
        if c.gpus.iter().any(full) {
            return self.engine_dies(id);
        }
        let dies = self.strikes(Kind::DiesServing);
        let after = Duration::from_millis(self.rng.below(60_000));
        if let Some(c) = self.containers.get_mut(id) {
            c.life = Life::Ready;
            c.held = c.appetite;
        }
        if dies {
            self.later(after, Happening::EngineDies(id.clone()));
        }
        if self.strikes(Kind::Sickens) {
            let from = self.now + Duration::from_millis(self.rng.below(60_000));
            if let Some(c) = self.containers.get_mut(id) {
                c.sick_from = Some(from);
            }
        }
        self.probe(id)
    }

    /// The core wants to know when it is ready.
    pub(crate) fn await_ready(&mut self, id: &InstanceId) {
        if let Some(c) = self.containers.get_mut(id) {
            c.probed = true;
        }
        self.later(Duration::from_millis(20), Happening::Probe(id.clone()));
    }

    /// What a probe finds; it is made until there is something to say.
    pub(crate) fn probe(&mut self, id: &InstanceId) -> Step {
        let now = self.now;
        let Some(c) = self.containers.get_mut(id).filter(|c| c.probed && !c.stopping) else {
            return Ok(());
        };
        let instance = id.clone();
        match c.life {
            // Whether it sleeps is not asked here.
            Life::Ready | Life::Asleep => {
                c.probed = false;
                c.ready = Some(now);
                self.tell(Event::Healthy { instance })
            }
            Life::Dead => {
                c.probed = false;
                self.tell(Event::Died { instance, fault: broke("it ended while it loaded") })
            }
            Life::Creating | Life::Pulling | Life::Loading => Ok(()),
        }
    }

    pub(crate) fn engine_dies(&mut self, id: &InstanceId) -> Step {
        self.die(id);
        // One that serves is found dead by the next reading.
        self.probe(id)
    }

    /// Its processes end; the driver may keep the memory for a while.
    pub(crate) fn die(&mut self, id: &InstanceId) {
        let lags = self.strikes(Kind::ReleaseLags);
        let never = self.strikes(Kind::ReleaseNever);
        let ms = if lags { 20_000 + self.rng.below(40_000) } else { self.rng.below(800) };
        let until =
            if never { Moment::from_secs(1 << 40) } else { self.now + Duration::from_millis(ms) };
        let reused = self.strikes(Kind::PidReuse);
        let Some(c) = self.containers.get_mut(id).filter(|c| c.lives()) else { return };
        c.life = Life::Dead;
        let foreign = c.damaged;
        let bytes = std::mem::take(&mut c.held);
        for at in c.gpus.clone() {
            self.devices[at].lag.push(Lag { bytes, until, foreign });
            if reused {
                self.devices[at].foreign_pid = pid(id);
            }
        }
        self.history.note(self.now, || format!("{id} is dead, its memory lags until {until:?}"));
    }
}
