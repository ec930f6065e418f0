//! Devices, the driver's word on them, and the foreign processes there.

use std::time::Duration;

use hostler::plan::Usage;
use hostler::supervisor::event::{Event, Observation};
use hostler::types::{
    Bytes, GpuReading, GpuSnapshot, InstanceId, Known, Moment, ProcessMemory, Silence,
};

use crate::case::gpu;
use crate::engines::{Container, broke, pid};
use crate::faults::Kind;
use crate::invariants::Step;
use crate::world::{Happening, World};

/// Memory of a dead process that the driver has not given back.
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    pub bytes: u64,
    pub until: Moment,
    /// Of a container that the core takes for foreign: counted as that.
    pub foreign: bool,
}

#[derive(Debug)]
pub struct Device {
    pub total: u64,
    /// In foreign use for ever.
    pub resident: u64,
    pub foreign: u64,
    pub foreign_pid: u32,
    pub lag: Vec<Lag>,
    pub lost: bool,
    /// In foreign use by the last reading that the core was given.
    pub told_foreign: u64,
    /// The last reading that was due showed it.
    pub read: bool,
}

impl Device {
    pub fn new(total: u64, resident: u64) -> Self {
        Self {
            total,
            resident,
            foreign: resident,
            foreign_pid: 1,
            lag: vec![],
            lost: false,
            told_foreign: 0,
            read: false,
        }
    }

    pub fn lagging(&self, now: Moment) -> u64 {
        self.lag.iter().filter(|l| l.until > now).map(|l| l.bytes).sum()
    }

    /// Of that, what the core knows to be its own.
    pub fn lagging_ours(&self, now: Moment) -> u64 {
        let ours = self.lag.iter().filter(|l| l.until > now && !l.foreign);
        ours.map(|l| l.bytes).sum()
    }

    /// Nothing that is not the core's is in the way here.
    pub fn is_calm(&self, now: Moment) -> bool {
        let calm = self.foreign.max(self.told_foreign) <= self.resident;
        self.read && !self.lost && calm && self.lagging(now) == 0
    }
}

/// What a reading has shown, beside what the core is told.
#[derive(Debug)]
pub struct Shown {
    foreign: Vec<Option<u64>>,
    held: Vec<(InstanceId, u64)>,
}

impl World {
    /// In use by anybody.
    pub(crate) fn used(&self, at: usize) -> u64 {
        let device = &self.devices[at];
        device.foreign + device.lagging(self.now) + self.on(at).map(|c| c.held).sum::<u64>()
    }

    /// A reading is begun. What it shows is of now; it is told when it has come to its end.
    pub(crate) fn observe(&mut self) -> Step {
        let slow = self.strikes(Kind::NvmlSlow);
        let ms = if slow { self.rng.below(8_000) } else { self.rng.below(60) };
        let mut deaths = Vec::new();
        let mut usage = std::collections::BTreeMap::new();
        let Some(core) = &self.core else { return Ok(()) };
        for live in core.state().live() {
            match self.containers.get(live.id).filter(|c| c.lives()) {
                Some(container) => drop(usage.insert(live.id.clone(), self.usage(container))),
                None if live.watched => deaths.push(live.id.clone()),
                None => {}
            }
        }
        let shown = self.shown(&usage);
        let mut devices = Ok(self.snapshot());
        if self.strikes(Kind::NvmlFails) {
            devices = Err("nvml did not answer".to_owned());
        }
        let observation =
            Observation { taken: self.now, unix_s: self.now.0.as_secs(), devices, usage };
        self.observing = true;
        let told = Happening::Observed(self.stats.daemons, Box::new((deaths, observation, shown)));
        self.later(Duration::from_millis(ms), told);
        Ok(())
    }

    pub(crate) fn observed(&mut self, told: (Vec<InstanceId>, Observation, Shown)) -> Step {
        let (deaths, observation, shown) = told;
        self.observing = false;
        self.observe_at =
            self.observe_at.max(self.now + Duration::from_millis(self.case.observe_ms));
        if std::mem::take(&mut self.observe_again) {
            self.observe_at = self.now;
        }
        for instance in deaths {
            self.tell(Event::Died { instance, fault: broke("it ended while it served") })?;
        }
        self.note_shown(&observation, shown);
        self.tell(Event::Observed(observation))
    }

    /// The first reading of a daemon's life.
    pub(crate) fn first_reading(&mut self) -> Step {
        let usage = std::collections::BTreeMap::new();
        let mut snapshot = self.snapshot();
        // A daemon does not come up before all its devices have answered.
        for (id, _) in std::mem::take(&mut snapshot.lost) {
            let at = self.index(&id);
            self.devices[at].lost = false;
            snapshot = self.snapshot();
        }
        let shown = self.shown(&usage);
        let observation = Observation { taken: self.now, unix_s: 0, devices: Ok(snapshot), usage };
        self.note_shown(&observation, shown);
        self.tell(Event::Observed(observation))
    }

    fn shown(&self, usage: &std::collections::BTreeMap<InstanceId, Usage>) -> Shown {
        let foreign = |at: usize| {
            let ours = self.on(at).filter(|c| !c.damaged);
            let known = if self.case.numbers {
                let damaged = self.on(at).filter(|c| c.damaged).map(|c| c.held).sum::<u64>();
                self.devices[at].foreign + damaged
            } else {
                // Foreign use cannot be told from what an engine has not taken of its promise, nor from what lags.
                self.used(at).saturating_sub(ours.map(Container::claim).sum())
            };
            (!self.devices[at].lost).then_some(known)
        };
        // Without numbers it is seen to be there, and nothing more.
        let held = |id: &InstanceId| match self.case.numbers {
            true => (id.clone(), self.containers[id].held),
            false => (id.clone(), 0),
        };
        Shown {
            foreign: (0..self.devices.len()).map(foreign).collect(),
            held: usage.keys().map(held).collect(),
        }
    }

    fn note_shown(&mut self, observation: &Observation, shown: Shown) {
        let good = observation.devices.is_ok();
        for (device, foreign) in self.devices.iter_mut().zip(shown.foreign) {
            device.read = good && foreign.is_some();
            device.told_foreign = foreign.filter(|_| good).unwrap_or(device.told_foreign);
        }
        for (id, held) in shown.held {
            if let Some(container) = self.containers.get_mut(&id).filter(|_| good) {
                container.seen = Some(container.seen.unwrap_or(0).max(held));
            }
        }
    }

    fn usage(&self, container: &Container) -> Usage {
        let held = |at: &usize| {
            let known = self.case.numbers && !self.devices[*at].lost;
            let bytes = if known { Known::Known(Bytes(container.held)) } else { Known::Unknown };
            (gpu(*at), bytes)
        };
        let pids = vec![pid(&container.order.instance)];
        Usage { pids, bytes: container.gpus.iter().map(held).collect() }
    }

    fn snapshot(&self) -> GpuSnapshot {
        let there = |at: &usize| !self.devices[*at].lost;
        let reading = |at: usize| GpuReading {
            id: gpu(at),
            name: format!("X{}", self.devices[at].total),
            total: Bytes(self.devices[at].total),
            used: Bytes(self.used(at)),
            processes: self.processes(at),
        };
        let all = 0..self.devices.len();
        let lost = all.clone().filter(|at| !there(at));
        let lost = lost.map(|at| (gpu(at), Silence::Gone("is lost".into()))).collect();
        let devices = all.filter(there).map(reading).collect();
        GpuSnapshot { devices, lost, driver: "1".into() }
    }

    /// Everybody who has memory on a device, as the driver lists them; what lags is nobody's.
    fn processes(&self, at: usize) -> Vec<ProcessMemory> {
        let ours = self.on(at).filter(|c| c.lives());
        let ours = ours.map(|c| (pid(&c.order.instance), c.held));
        let foreign = std::iter::once((self.devices[at].foreign_pid, self.devices[at].foreign));
        let all = ours.chain(foreign).filter(|(_, bytes)| *bytes > 0);
        let known = |b| if self.case.numbers { Known::Known(Bytes(b)) } else { Known::Unknown };
        all.map(|(pid, bytes)| ProcessMemory { pid, bytes: known(bytes) }).collect()
    }

    /// Once a second: whatever befalls the devices.
    pub(crate) fn device_weather(&mut self) {
        let at = self.rng.below(self.devices.len() as u64) as usize;
        if self.strikes(Kind::ForeignGrows) {
            let ours = self.used(at) - self.devices[at].foreign;
            // Where the driver attributes nothing, promises and others' memory may overlap: then there is none.
            let room = self.devices[at].total.saturating_sub(ours);
            let most = self.rng.below(60) + 1;
            let bytes = if self.rng.chance(40) { 0 } else { self.rng.below(room.min(most) + 1) };
            self.devices[at].foreign = bytes;
            self.history.note(self.now, || format!("foreign use of {} is {bytes}", gpu(at)));
        }
        if self.strikes(Kind::DeviceLost) {
            self.devices[at].lost = true;
            let back = Duration::from_millis(self.rng.below(30_000));
            self.later(back, Happening::DeviceBack(at));
        }
    }
}
