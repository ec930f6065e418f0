//! The world around the core.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hostler::plan::{ReleaseRule, Rules, Usage, policy};
use hostler::supervisor::effect::{Effect, Notice, StopReason};
use hostler::supervisor::event::{Event, Observation};
use hostler::supervisor::ports::{Endpoint, Found, FoundIdentity, LaunchOrder, Launched};
use hostler::supervisor::state::{Settings, State};
use hostler::types::{
    Bytes, Denied, EngineKind, Eviction, Fault, FaultCode, GpuId, GpuReading, GpuSnapshot,
    ImageRef, InstanceId, Known, ModelName, ModelSpec, Moment, OnFull, Phase, ProcessMemory,
    Transport, WaiterId, Weights,
};

use crate::rng::Rng;

mod checks;

const MODELS: u64 = 6;
const GPUS: u64 = 2;
const TOTAL: u64 = 100;
const HEADROOM: u64 = 2;
/// Of the order of what happens between two requests here.
const MIN_RESIDENCY: Duration = Duration::from_secs(5);
const MAX_WAIT: Duration = Duration::from_secs(60);

/// A container as it really is, whatever the core believes.
#[derive(Debug)]
struct Container {
    order: LaunchOrder,
    life: Life,
    /// What it really takes on each device once it has loaded.
    appetite: u64,
    leases: u32,
    /// When it became ready.
    ready: Option<Moment>,
    /// It was told to stop although requests ran on it.
    cut_off: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Creating,
    /// Its image is on the way; nothing of it is on a device.
    Pulling,
    Loading,
    Ready,
    Dead,
    /// A stop is under way.
    Stopping,
}

#[derive(Debug, Default)]
pub struct Stats {
    pub grants: u64,
    pub denials: u64,
    pub loads: u64,
    pub evictions: u64,
}

pub struct World {
    rng: Rng,
    now: Moment,
    state: State,
    specs: BTreeMap<ModelName, Arc<ModelSpec>>,
    containers: BTreeMap<InstanceId, Container>,
    /// Memory of dead processes that the driver has not given back: (device, bytes, until).
    lagging: Vec<(u64, u64, Moment)>,
    foreign: Vec<u64>,
    waiting: BTreeSet<WaiterId>,
    operators: BTreeSet<WaiterId>,
    leases: Vec<InstanceId>,
    next_waiter: u64,
    shutting_down: bool,
    pub exited: bool,
    pub stats: Stats,
    pub history: Vec<Line>,
}

/// One line of a history; formatted only when somebody reads it.
#[derive(Debug, Clone)]
pub enum Line {
    Event(Moment, Event),
    Effect(Effect),
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Event(now, event) => write!(f, "{:>9.3} {event:?}", now.0.as_secs_f64()),
            Self::Effect(effect) => write!(f, "            → {effect:?}"),
        }
    }
}

fn model(n: u64) -> ModelName {
    format!("m{n}").parse().unwrap()
}

fn gpu(n: u64) -> GpuId {
    GpuId::new(&format!("GPU-{n}"))
}

fn spec(n: u64, rng: &mut Rng) -> ModelSpec {
    let size = [10, 25, 40, 60, 90, 120][n as usize % 6];
    ModelSpec {
        name: model(n),
        aliases: vec![format!("alias{n}").parse().unwrap()],
        engine: EngineKind::Vllm,
        image: ImageRef::parse("localhost/fake").unwrap(),
        weights: Weights::Builtin,
        anatomy: None,
        transport: Transport::Unix,
        // One of them has no idea what it needs.
        vram: if n == 2 { None } else { Some(Bytes(size)) },
        context: None,
        parallel: None,
        gpu_count: if n == 3 { 2 } else { 1 },
        gpus: if n == 1 { vec![gpu(1)] } else { vec![] },
        args: vec![],
        env: BTreeMap::new(),
        shm_size: Bytes(0),
        idle_timeout: if rng.chance(70) { Some(Duration::from_secs(20)) } else { None },
        load_timeout: Duration::from_secs(40),
        stop_timeout: Duration::from_secs(10),
        pin: n == 0 && rng.chance(30),
        priority: [0, 0, 0, -5, 5][rng.below(5) as usize],
        on_full: match rng.below(10) {
            0 => OnFull::Wait,
            1 => OnFull::Refuse,
            _ => OnFull::Evict,
        },
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let specs: BTreeMap<ModelName, Arc<ModelSpec>> =
            (0..MODELS).map(|n| (model(n), Arc::new(spec(n, &mut rng)))).collect();
        let eviction = if rng.chance(70) { Eviction::Cost } else { Eviction::Lru };
        let settings = Settings {
            max_wait: MAX_WAIT,
            max_queue: 12,
            drain_timeout: Duration::from_secs(15),
            headroom: Bytes(HEADROOM),
            release: ReleaseRule::exact(Duration::from_secs(30)),
            rules: Rules { policy: policy::named(eviction), min_residency: MIN_RESIDENCY },
            measure_after: None,
            seed,
        };
        let state = State::new(settings, &specs);
        let mut world = Self {
            rng,
            now: Moment::from_secs(1),
            state,
            specs: specs.clone(),
            containers: BTreeMap::new(),
            lagging: Vec::new(),
            foreign: vec![0; GPUS as usize],
            waiting: BTreeSet::new(),
            operators: BTreeSet::new(),
            leases: Vec::new(),
            next_waiter: 1,
            shutting_down: false,
            exited: false,
            stats: Stats::default(),
            history: Vec::new(),
        };
        world.leave_something_behind(&specs);
        world
    }

    /// What an earlier daemon may have left on the host.
    fn leave_something_behind(&mut self, specs: &BTreeMap<ModelName, Arc<ModelSpec>>) {
        let mut found = Vec::new();
        for n in 0..self.rng.below(3) {
            let spec = specs[&model(n)].clone();
            let bytes = spec.vram.unwrap_or(Bytes(30));
            let instance = InstanceId::new(model(n), hostler::types::Generation(40 + n), 7);
            let need = hostler::types::Need { bytes, source: hostler::types::NeedSource::Declared };
            let placement = hostler::types::Placement {
                gpus: vec![gpu(if n == 1 { 1 } else { 0 })],
                need,
                budget: need.bytes,
                device_total: Bytes(TOTAL),
            };
            let mut spec_hash = spec.spec_hash();
            if self.rng.chance(30) {
                spec_hash.0.push('x');
            }
            let identity = FoundIdentity { instance: instance.clone(), spec_hash, placement };
            let alive = self.rng.chance(70);
            let order = LaunchOrder {
                instance: instance.clone(),
                spec,
                placement: identity.placement.clone(),
                image_id: None,
            };
            let life = if alive { Life::Loading } else { Life::Dead };
            let appetite = bytes.0;
            let container =
                Container { order, life, appetite, leases: 0, ready: None, cut_off: false };
            self.containers.insert(instance.clone(), container);
            let running = alive.then(|| launched(&instance));
            found.push(Found {
                container: instance.to_string(),
                identity: Some(identity),
                running,
            });
        }
        let observed = self.observation();
        self.tell(Event::Observed(observed)).unwrap();
        self.tell(Event::Found(found)).unwrap();
    }

    pub fn tail(&self) -> String {
        let from = self.history.len().saturating_sub(60);
        lines(&self.history[from..])
    }

    /// Something happens.
    pub fn step(&mut self) -> Result<(), String> {
        self.now = self.now + Duration::from_millis(self.rng.below(1_500));
        match self.rng.below(100) {
            0..32 => self.client_comes(),
            32..40 => self.client_leaves(),
            40..60 => self.lease_ends(),
            60..84 => self.container_moves(),
            84..87 => self.foreign_moves(),
            87..89 => self.operator(),
            89 if self.rng.chance(3) => {
                self.shutting_down = true;
                self.tell(Event::Shutdown { keep: false })
            }
            89..92 => {
                // A completion of an incarnation that nobody remembers.
                let ghost = InstanceId::new(model(0), hostler::types::Generation(0), 1);
                self.tell(Event::Healthy { instance: ghost.clone() })?;
                self.tell(Event::Release { instance: ghost })
            }
            _ => self.observe(),
        }?;
        self.tell(Event::Tick)
    }

    /// Nobody comes any more, faults cease, time goes on: everything must come to rest.
    pub fn settle(&mut self) -> Result<(), String> {
        self.foreign.fill(0);
        while let Some(instance) = self.leases.pop() {
            self.give_back(instance)?;
        }
        for turn in 0..400 {
            self.now = self.now + Duration::from_secs(1);
            // A load that evicts nobody, or only the less important, waits for ever unless an operator makes room.
            if turn % 50 == 49 && !self.operators.is_empty() {
                self.unload_ready()?;
            }
            let ids: Vec<InstanceId> = self.containers.keys().cloned().collect();
            for id in ids {
                self.advance(&id, true)?;
            }
            self.observe()?;
            while let Some(instance) = self.leases.pop() {
                self.give_back(instance)?;
            }
        }
        if !self.waiting.is_empty() {
            return Err(format!("never answered: {:?}", self.waiting));
        }
        if !self.operators.is_empty() {
            return Err(format!("operators never answered: {:?}", self.operators));
        }
        self.shutting_down = true;
        self.tell(Event::Shutdown { keep: false })?;
        for _ in 0..100 {
            self.now = self.now + Duration::from_secs(1);
            let ids: Vec<InstanceId> = self.containers.keys().cloned().collect();
            for id in ids {
                self.advance(&id, true)?;
            }
            self.tell(Event::Tick)?;
        }
        if !self.exited {
            return Err("the shutdown never ended".into());
        }
        if !self.containers.is_empty() {
            return Err(format!("left behind: {:?}", self.containers.keys()));
        }
        Ok(())
    }

    fn client_comes(&mut self) -> Result<(), String> {
        let waiter = WaiterId(self.next_waiter);
        self.next_waiter += 1;
        let n = self.rng.below(MODELS + 1);
        let name = if self.rng.chance(20) { format!("alias{n}") } else { format!("m{n}") };
        self.waiting.insert(waiter);
        self.tell(Event::Acquire { waiter, model: name })
    }

    fn client_leaves(&mut self) -> Result<(), String> {
        let at = self.rng.below(self.waiting.len() as u64) as usize;
        let Some(waiter) = self.waiting.iter().nth(at).copied() else { return Ok(()) };
        self.waiting.remove(&waiter);
        self.tell(Event::Cancel { waiter })
    }

    fn lease_ends(&mut self) -> Result<(), String> {
        if self.leases.is_empty() {
            return Ok(());
        }
        let at = self.rng.below(self.leases.len() as u64) as usize;
        let instance = self.leases.swap_remove(at);
        self.give_back(instance)
    }

    fn give_back(&mut self, instance: InstanceId) -> Result<(), String> {
        if let Some(c) = self.containers.get_mut(&instance) {
            c.leases -= 1;
        }
        self.tell(Event::Release { instance })
    }

    fn operator(&mut self) -> Result<(), String> {
        let waiter = WaiterId(self.next_waiter);
        self.next_waiter += 1;
        self.operators.insert(waiter);
        let model = model(self.rng.below(MODELS + 1));
        if self.rng.chance(50) {
            self.tell(Event::Load { waiter, model })
        } else {
            self.tell(Event::Unload { waiter, model })
        }
    }

    fn unload_ready(&mut self) -> Result<(), String> {
        let status = self.state.status(self.now);
        for ready in status.models.into_iter().filter(|m| m.phase == Phase::Ready) {
            let waiter = WaiterId(self.next_waiter);
            self.next_waiter += 1;
            self.operators.insert(waiter);
            self.tell(Event::Unload { waiter, model: ready.name })?;
        }
        Ok(())
    }

    fn foreign_moves(&mut self) -> Result<(), String> {
        let at = self.rng.below(GPUS) as usize;
        let room = TOTAL.saturating_sub(self.used(at as u64) - self.foreign[at]);
        self.foreign[at] = if self.rng.chance(50) { 0 } else { self.rng.below(room.min(50) + 1) };
        self.observe()
    }

    fn container_moves(&mut self) -> Result<(), String> {
        let at = self.rng.below(self.containers.len() as u64) as usize;
        let Some(id) = self.containers.keys().nth(at).cloned() else { return Ok(()) };
        let kind = self.rng.chance(88);
        self.advance(&id, kind)
    }

    /// One container goes one step on: the good way, or with a fault.
    fn advance(&mut self, id: &InstanceId, well: bool) -> Result<(), String> {
        let Some(container) = self.containers.get_mut(id) else { return Ok(()) };
        let instance = id.clone();
        let fault = Fault::new(FaultCode::EngineExited, "it broke");
        match (container.life, well) {
            (Life::Creating, true) => {
                container.life = Life::Loading;
                let launched = launched(id);
                self.tell(Event::Launched { instance, launched })
            }
            (Life::Creating, false) if self.rng.chance(30) => {
                let pulls = self.rng.chance(50);
                let phase = if pulls { Phase::Pulling } else { Phase::Starting };
                if pulls {
                    container.life = Life::Pulling;
                }
                self.tell(Event::Progress { instance, phase })
            }
            (Life::Pulling, well) => {
                self.containers.remove(id);
                let pulled = Fault::new(FaultCode::ImagePulled, "it is here now");
                let fault = if well { pulled } else { fault };
                self.tell(Event::LaunchFailed { instance, fault })
            }
            (Life::Creating, false) if self.rng.chance(30) => {
                // podman failed on the way, and nobody could clean up: it runs, and has memory.
                container.life = Life::Loading;
                self.tell(Event::LaunchFailed { instance, fault: fault.leaving_something() })
            }
            (Life::Creating, false) => {
                self.containers.remove(id);
                self.tell(Event::LaunchFailed { instance, fault })
            }
            (Life::Loading, true) => {
                container.life = Life::Ready;
                container.ready = Some(self.now);
                self.tell(Event::Healthy { instance })
            }
            (Life::Loading | Life::Ready, false) => {
                self.die(id);
                self.tell(Event::Died { instance, fault })
            }
            (Life::Stopping, true) => {
                self.die(id);
                self.containers.remove(id);
                self.tell(Event::Stopped { instance, result: Ok(()) })
            }
            (Life::Stopping, false) => {
                let fault = Fault::new(FaultCode::StopFailed, "it will not go");
                self.tell(Event::Stopped { instance, result: Err(fault) })
            }
            (Life::Ready, true) => Ok(()),
            (Life::Dead, _) => self.tell(Event::Died { instance, fault }),
        }
    }

    /// The processes end; the driver may keep the memory for a while.
    fn die(&mut self, id: &InstanceId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if matches!(container.life, Life::Loading | Life::Ready | Life::Stopping) {
            let until = self.now
                + Duration::from_secs(if self.rng.chance(3) { 40 } else { self.rng.below(5) });
            for gpu in &container.order.placement.gpus {
                let n = index(gpu);
                self.lagging.push((n, container.appetite, until));
            }
        }
        container.life = Life::Dead;
        container.appetite = 0;
    }

    fn used(&self, n: u64) -> u64 {
        let on = |c: &&Container| c.order.placement.gpus.contains(&gpu(n));
        let running = self
            .containers
            .values()
            .filter(on)
            .filter(|c| !matches!(c.life, Life::Creating | Life::Pulling));
        let lagging = self.lagging.iter().filter(|l| l.0 == n && l.2 > self.now);
        self.foreign[n as usize]
            + running.map(|c| c.appetite).sum::<u64>()
            + lagging.map(|l| l.1).sum::<u64>()
    }

    fn observation(&self) -> Observation {
        let device = |n| GpuReading {
            id: gpu(n),
            name: "X".into(),
            total: Bytes(TOTAL),
            used: Bytes(self.used(n)),
            processes: self.processes(n),
        };
        let devices = (0..GPUS).map(device).collect();
        let usage = |(id, c): (&InstanceId, &Container)| {
            let held = |g: &GpuId| (g.clone(), Known::Known(Bytes(c.appetite)));
            let gpus: BTreeMap<GpuId, Known<Bytes>> =
                c.order.placement.gpus.iter().map(held).collect();
            (id.clone(), Usage { pids: vec![pid(id)], bytes: gpus })
        };
        let running = self
            .containers
            .iter()
            .filter(|(_, c)| !matches!(c.life, Life::Creating | Life::Pulling));
        let snapshot = GpuSnapshot { devices, lost: vec![], driver: String::new() };
        Observation {
            taken: self.now,
            unix_s: 1_800_000_000,
            devices: Ok(snapshot),
            usage: running.map(usage).collect(),
        }
    }

    /// Everybody who has memory on a device, as the driver lists them; what lags is nobody's.
    fn processes(&self, n: u64) -> Vec<ProcessMemory> {
        let on = |c: &&Container| c.order.placement.gpus.contains(&gpu(n));
        let running = self
            .containers
            .values()
            .filter(on)
            .filter(|c| !matches!(c.life, Life::Creating | Life::Pulling));
        let held = running.map(|c| (pid(&c.order.instance), c.appetite));
        let foreign = std::iter::once((1, self.foreign[n as usize]));
        let all = held.chain(foreign).filter(|(_, bytes)| *bytes > 0);
        all.map(|(pid, bytes)| ProcessMemory { pid, bytes: Known::Known(Bytes(bytes)) }).collect()
    }

    fn observe(&mut self) -> Result<(), String> {
        let mut observation = self.observation();
        if !self.shutting_down && self.rng.chance(5) {
            observation.devices = Err("nvml did not answer".into());
        }
        self.tell(Event::Observed(observation))
    }

    fn tell(&mut self, event: Event) -> Result<(), String> {
        self.history.push(Line::Event(self.now, event.clone()));
        let effects = self.state.handle(self.now, event);
        for effect in effects {
            self.history.push(Line::Effect(effect.clone()));
            self.obey(effect)?;
        }
        self.check()
    }

    fn obey(&mut self, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Launch(order) => self.launch(order),
            Effect::Stop { instance } => self.stop(&instance),
            Effect::Grant { waiter, instance, .. } => self.grant(waiter, instance),
            Effect::Deny { waiter, denied } => {
                self.stats.denials += 1;
                let operator = self.operators.remove(&waiter);
                if !self.waiting.remove(&waiter) && !operator {
                    return Err(format!("{waiter:?} is refused without having asked"));
                }
                if denied == Denied::ShuttingDown && !self.shutting_down {
                    return Err("nobody has asked for a shutdown".into());
                }
                Ok(())
            }
            Effect::Done { waiter } => match self.operators.remove(&waiter) {
                true => Ok(()),
                false => Err(format!("{waiter:?} is told twice")),
            },
            Effect::Notice(Notice::Stopping { instance, reason }) => {
                self.stats.evictions += u64::from(reason == StopReason::Evicted);
                let busy = self.containers.get(&instance).is_some_and(|c| c.leases > 0);
                let gentle = matches!(reason, StopReason::Evicted | StopReason::Idle);
                if gentle && busy {
                    return Err(format!("{instance} is stopped ({reason:?}) while it serves"));
                }
                if reason == StopReason::Evicted { self.check_eviction(&instance) } else { Ok(()) }
            }
            Effect::Exit => {
                self.exited = true;
                Ok(())
            }
            Effect::AwaitReady { .. }
            | Effect::Reap { .. }
            | Effect::Save(_)
            | Effect::Observe
            | Effect::Notice(_) => Ok(()),
        }
    }

    fn launch(&mut self, order: LaunchOrder) -> Result<(), String> {
        if self.shutting_down {
            return Err(format!("{} is started during a shutdown", order.instance));
        }
        let same = |c: &&Container| {
            c.order.instance.model == order.instance.model && c.life != Life::Pulling
        };
        if let Some(other) = self.containers.values().find(same) {
            return Err(format!("{} beside {}", order.instance, other.order.instance));
        }
        self.stats.loads += 1;
        self.check_room(&order)?;
        let need = order.placement.need.bytes;
        // Declarations are not always true: now and then it takes a little less than it was promised.
        let appetite = need.0 - self.rng.below(need.0 / 4 + 1);
        let instance = order.instance.clone();
        let container = Container {
            order,
            life: Life::Creating,
            appetite,
            leases: 0,
            ready: None,
            cut_off: false,
        };
        self.containers.insert(instance, container);
        Ok(())
    }

    /// Held by nobody any more, at the time of the last reading that the core can have seen.
    fn lagging_on(&self, n: u64) -> u64 {
        self.lagging.iter().filter(|l| l.0 == n && l.2 > self.now).map(|l| l.1).sum()
    }

    fn stop(&mut self, id: &InstanceId) -> Result<(), String> {
        let Some(container) = self.containers.get_mut(id) else {
            return Err(format!("{id} is stopped and does not exist"));
        };
        if container.life == Life::Creating {
            return Err(format!("{id} is stopped in the middle of its creation"));
        }
        let dead = container.life == Life::Dead;
        container.cut_off = container.leases > 0 && !dead;
        container.life = Life::Stopping;
        Ok(())
    }

    fn grant(&mut self, waiter: WaiterId, id: InstanceId) -> Result<(), String> {
        self.stats.grants += 1;
        if !self.waiting.remove(&waiter) {
            return Err(format!("{waiter:?} is answered without waiting"));
        }
        let Some(container) = self.containers.get_mut(&id) else {
            return Err(format!("a lease on {id}, which does not exist"));
        };
        // A death that the core has not been told of yet is nobody's fault.
        if !matches!(container.life, Life::Ready | Life::Dead) {
            return Err(format!("a lease on {id}, which is {:?}", container.life));
        }
        container.leases += 1;
        self.leases.push(id);
        Ok(())
    }
}

fn index(gpu: &GpuId) -> u64 {
    gpu.as_str().trim_start_matches("GPU-").parse().unwrap()
}

/// Every incarnation has one process.
fn pid(id: &InstanceId) -> u32 {
    u32::try_from(id.generation.0).unwrap() * 10
        + u32::from(id.model.as_str().as_bytes()[1] - b'0')
        + 100
}

fn launched(id: &InstanceId) -> Launched {
    let endpoint = Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 1)));
    Launched {
        container: id.to_string(),
        cgroup: "/nowhere".into(),
        endpoint,
        image_id: "1".into(),
    }
}

/// Formats a history.
pub fn lines(history: &[Line]) -> String {
    history.iter().map(|line| format!("{line}\n")).collect()
}
