//! Engines that sleep, as they really are.

use std::time::Duration;

use hostler::supervisor::event::Event;
use hostler::supervisor::ports::CanaryError;
use hostler::types::{Bytes, InstanceId, NeedSource, SleepLevel};

use crate::engines::{Container, Life};
use crate::faults::Kind;
use crate::invariants::{Rule, Step};
use crate::world::{Happening, World};

/// What every engine answers after its load, and again while nothing is wrong with it.
const ANSWER: &str = "5, 6, 7";

/// One container's sleep, as the core has been told of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sleep {
    /// From the order to sleep until it has answered as after its load.
    pub ordered: bool,
    /// What it may be promised when it wakes; `None`: the core does not take it for asleep.
    pub awake: Option<u64>,
    /// What it was seen to take of that; all, where nobody looked.
    pub least: u64,
    /// What its weights take of the host's memory, by the plan.
    pub host_ram: u64,
    /// It was asked its canary, and has not answered.
    pub asked: bool,
}

impl World {
    pub(crate) fn sleep(&mut self, id: &InstanceId, level: SleepLevel) -> Step {
        let took = Duration::from_millis(100 + self.rng.below(4_000));
        let hangs = self.strikes(Kind::SleepHangs);
        let Some(c) = self.containers.get_mut(id) else { return Ok(()) };
        let (leases, life) = (c.leases, c.life);
        let free = leases == 0;
        Rule::SleepsIdle.check(free, || format!("{id} is to sleep, with {leases} leases"))?;
        let awake = matches!(life, Life::Ready | Life::Dead) && !c.stopping && !c.sleep.ordered;
        Rule::SleepsIdle.check(awake, || format!("{id} is to sleep while {life:?}"))?;
        c.sleep.ordered = true;
        if level == SleepLevel::One {
            // Its context, which is promised beside what it is told, stays on the device.
            let told = c.order.placement.budget.0.max(c.seen.unwrap_or(0));
            c.sleep.host_ram = told.min(c.claim()) * c.gpus.len() as u64;
        }
        self.stats.sleeps += 1;
        if !hangs {
            self.later(took, Happening::FallsAsleep(id.clone()));
        }
        self.check_host_ram()
    }

    /// By the plan, with everything that has not ended: a process keeps what it has until then.
    fn check_host_ram(&self) -> Step {
        let sum: u64 = self.containers.values().map(|c| c.sleep.host_ram).sum();
        let budget = self.case.settings.rules.sleep.host_ram_budget.0;
        let what = || format!("those who sleep take {sum} of the host, of {budget}");
        Rule::HostRam.check(sum <= budget, what)
    }

    fn dozes(&self, id: &InstanceId) -> bool {
        self.containers.get(id).is_some_and(|c| c.sleep.ordered && !c.stopping && c.probed_once())
    }

    /// It says that it sleeps; what it gives back is given back soon.
    pub(crate) fn falls_asleep(&mut self, id: &InstanceId) -> Step {
        if !self.dozes(id) {
            return Ok(());
        }
        let instance = id.clone();
        let ready = self.containers.get(id).is_some_and(|c| c.life == Life::Ready);
        if self.strikes(Kind::SleepFails) || !ready {
            let result = Err("it would not".to_owned());
            return self.tell(Event::Slept { instance, result });
        }
        let limit = self.case.settings.rules.sleep.residual_max.0;
        let keeps = match self.strikes(Kind::KeepsTooMuch) {
            true => limit + 1 + self.rng.below(60),
            false => self.rng.below(limit + 1),
        };
        let after = Duration::from_millis(self.rng.below(3_000));
        if let Some(c) = self.containers.get_mut(id) {
            c.life = Life::Asleep;
        }
        self.later(after, Happening::GivesBack(id.clone(), keeps));
        if self.strikes(Kind::DiesAsleep) {
            let after = Duration::from_millis(self.rng.below(60_000));
            self.later(after, Happening::EngineDies(id.clone()));
        }
        self.tell(Event::Slept { instance, result: Ok(()) })
    }

    pub(crate) fn gives_back(&mut self, id: &InstanceId, keeps: u64) {
        if let Some(c) = self.containers.get_mut(id).filter(|c| c.life == Life::Asleep) {
            c.held = c.held.min(keeps);
        }
    }

    /// The core takes it for asleep, and promises the rest of its memory to others.
    pub(crate) fn asleep(&mut self, id: &InstanceId, residual: Bytes) -> Step {
        let Some(c) = self.containers.get_mut(id) else { return Ok(()) };
        let promised = c.order.placement.need;
        // Whoever was given all that there was is given what it took of that.
        let awake = match (promised.source, c.seen) {
            (NeedSource::Exclusive, Some(seen)) => seen,
            _ => c.claim(),
        };
        // No plan promises more than a device has; what was taken of the headroom beyond that is the engine's own doing.
        let offered = c.gpus.iter().map(|at| self.devices[*at].total - self.case.headroom());
        c.sleep.awake = Some(offered.fold(awake, u64::min));
        c.sleep.least = c.seen.unwrap_or(awake);
        (c.promised, c.seen) = (residual.0, Some(residual.0));
        let (held, dead) = (c.held, c.life == Life::Dead);
        let what = || format!("{id} holds {held} asleep, and {residual} are charged");
        Rule::Capacity.check(dead || held <= residual.0, what)
    }

    pub(crate) fn wake(&mut self, id: &InstanceId) -> Step {
        let took = Duration::from_millis(50 + self.rng.below(3_000));
        let hangs = self.strikes(Kind::WakeHangs);
        let Some(c) = self.containers.get_mut(id) else { return Ok(()) };
        let Some(awake) = c.sleep.awake.take() else {
            return Rule::WakeFits.broken(format!("{id} is woken and does not sleep"));
        };
        let (gpus, least) = (c.gpus.clone(), c.sleep.least.min(awake));
        self.stats.wakes += 1;
        if !hangs {
            self.later(took, Happening::Wakes(id.clone()));
        }
        // Its margin gives way to what others use by now, and what it was seen to take does not.
        let left = gpus.iter().map(|at| {
            let device = &self.devices[*at];
            let lag = device.lagging_ours(self.now);
            device.total.saturating_sub(device.told_foreign + lag + self.case.headroom())
        });
        let awake = left.fold(awake, u64::min).max(least);
        if let Some(c) = self.containers.get_mut(id) {
            c.promised = awake;
        }
        for at in gpus {
            let (ours, rest) = self.spoken_for(at);
            let total = self.devices[at].total;
            let what = || {
                format!(
                    "{id} wakes with {awake}: {ours} promised, {rest} in use besides, of {total}"
                )
            };
            Rule::WakeFits.check(ours + rest <= total, what)?;
        }
        Ok(())
    }

    /// It takes its memory again, if that is there.
    pub(crate) fn wakes(&mut self, id: &InstanceId) -> Step {
        if !self.dozes(id) {
            return Ok(());
        }
        let instance = id.clone();
        let Some(c) = self.containers.get(id) else { return Ok(()) };
        let (asleep, more) = (c.life == Life::Asleep, c.appetite.saturating_sub(c.held));
        let full = |at: &usize| self.used(*at) + more > self.devices[*at].total;
        let full = c.gpus.iter().any(full);
        if self.strikes(Kind::WakeFails) || !asleep || full {
            let result = Err("it would not".to_owned());
            return self.tell(Event::Woken { instance, result });
        }
        if let Some(c) = self.containers.get_mut(id) {
            (c.life, c.held) = (Life::Ready, c.appetite);
        }
        self.tell(Event::Woken { instance, result: Ok(()) })
    }

    pub(crate) fn canary(&mut self, id: &InstanceId) {
        let took = Duration::from_millis(20 + self.rng.below(500));
        if let Some(c) = self.containers.get_mut(id) {
            c.sleep.asked = true;
        }
        self.later(took, Happening::Sings(id.clone()));
    }

    pub(crate) fn sings(&mut self, id: &InstanceId) -> Step {
        let Some(c) = self.containers.get_mut(id).filter(|c| !c.stopping) else { return Ok(()) };
        // Of a daemon that is gone.
        if !std::mem::take(&mut c.sleep.asked) {
            return Ok(());
        }
        let life = c.life;
        let result = match life {
            Life::Asleep => Err(CanaryError::Asleep),
            Life::Ready if self.strikes(Kind::CanaryDiffers) => Ok("!!!".to_owned()),
            Life::Ready if self.strikes(Kind::CanaryFails) => match id.generation.0 % 2 {
                0 => Err(CanaryError::Failed("it will not say".to_owned())),
                _ => Err(CanaryError::Silent("it says nothing".to_owned())),
            },
            Life::Ready => Ok(ANSWER.to_owned()),
            Life::Creating | Life::Pulling | Life::Loading | Life::Dead => {
                Err(CanaryError::Silent("nobody is there".to_owned()))
            }
        };
        self.tell(Event::Sung { instance: id.clone(), result })
    }

    /// It answers, or again as after its load: it serves.
    pub(crate) fn woken(&mut self, id: &InstanceId) {
        if let Some(c) = self.containers.get_mut(id) {
            c.sleep = Sleep::default();
            c.ready = Some(self.now);
        }
    }
}

impl Container {
    fn probed_once(&self) -> bool {
        self.ready.is_some()
    }
}
