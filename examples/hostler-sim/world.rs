//! The host around the core: everything succeeds, and takes its time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use hostler::config::{self, Defaults, Source};
use hostler::plan::{ReleaseRule, Rules, SleepRules, Usage, policy};
use hostler::supervisor::effect::{Effect, Notice, StopReason};
use hostler::supervisor::event::{Event, Observation, Passed};
use hostler::supervisor::health::HealthRules;
use hostler::supervisor::ports::{Endpoint, Launched};
use hostler::supervisor::state::{Settings, State};
use hostler::types::{
    Bytes, Eviction, GpuId, GpuReading, GpuSnapshot, Hours, InstanceId, Known, ModelName,
    ModelSpec, Moment, ProcessMemory, WaiterId,
};

use crate::Model;
use crate::outcome::Outcome;
use crate::trace::Request;

/// What does not change during a replay.
#[derive(Clone, Debug)]
pub struct Host {
    pub eviction: Eviction,
    pub gpus: u32,
    pub memory: Bytes,
    /// How long a request runs.
    pub service: Duration,
    /// How long stopping an engine takes.
    pub stop: Duration,
    pub min_residency: Duration,
    pub turn_after: Option<Duration>,
    pub max_wait: Duration,
    pub idle_timeout: Option<Duration>,
}

/// What is bound to happen.
#[derive(Debug)]
enum Due {
    Ready(InstanceId),
    Stopped(InstanceId),
    Served(InstanceId),
}

/// One container.
#[derive(Debug)]
struct Container {
    pid: u32,
    gpus: Vec<GpuId>,
    bytes: Bytes,
}

/// The core and what surrounds it.
pub struct World {
    host: Host,
    state: State,
    now: Moment,
    loads: BTreeMap<ModelName, Duration>,
    containers: BTreeMap<InstanceId, Container>,
    /// By time, then in the order in which it was arranged.
    agenda: BTreeMap<(Moment, u64), Due>,
    arranged: u64,
    /// Since when each waits.
    waiting: BTreeMap<WaiterId, Moment>,
    loaded_before: BTreeSet<ModelName>,
    outcome: Outcome,
}

impl World {
    pub fn new(models: &[Model], host: Host) -> Result<Self> {
        let specs = specs(models, &host)?;
        let settings = Settings {
            max_wait: host.max_wait,
            max_queue: 100_000,
            drain_timeout: Duration::from_secs(30),
            headroom: Bytes::mib(512),
            slack: Bytes::ZERO,
            release: ReleaseRule::default(),
            rules: Rules {
                policy: policy::named(host.eviction),
                min_residency: host.min_residency,
                sleep: SleepRules::NEVER,
            },
            turn_after: host.turn_after,
            measure_after: None,
            health: HealthRules::default(),
            measure_hours: Hours::ALL,
            seed: 1,
        };
        let loads = models.iter().map(|m| Ok((m.name.parse()?, m.load)));
        let mut world = Self {
            state: State::new(settings, &specs),
            host,
            now: Moment::START,
            loads: loads.collect::<Result<_>>()?,
            containers: BTreeMap::new(),
            agenda: BTreeMap::new(),
            arranged: 0,
            waiting: BTreeMap::new(),
            loaded_before: BTreeSet::new(),
            outcome: Outcome::default(),
        };
        world.observe()?;
        world.tell(Event::Found(vec![]))?;
        Ok(world)
    }

    /// Lets all requests come, and waits until the last one is answered.
    pub fn replay(mut self, trace: &[Request]) -> Result<Outcome> {
        for (n, request) in (0..).zip(trace) {
            while self.advance(Some(request.at))? {}
            self.now = request.at;
            let waiter = WaiterId(n);
            self.waiting.insert(waiter, self.now);
            self.tell(Event::Acquire { waiter, model: request.model.clone(), wait: None })?;
        }
        while !self.waiting.is_empty() {
            ensure!(self.advance(None)?, "{} requests are never answered", self.waiting.len());
        }
        Ok(self.outcome)
    }

    /// Goes to the next thing that happens up to `end`; false: there is none.
    fn advance(&mut self, end: Option<Moment>) -> Result<bool> {
        let agenda = self.agenda.keys().next().map(|(at, _)| *at);
        let due = self.state.next_deadline();
        let next = agenda.into_iter().chain(due).min();
        let Some(next) = next.filter(|at| end.is_none_or(|end| *at <= end)) else {
            return Ok(false);
        };
        // A deadline that is not looked at any more would stop the time.
        ensure!(next >= self.now, "due at {next:?}, still pending at {:?}", self.now);
        self.now = next;
        if agenda != Some(next) {
            self.tell(Event::Tick)?;
            ensure!(self.state.next_deadline() != Some(next), "a deadline at {next:?} stays");
            return Ok(true);
        }
        match self.agenda.pop_first() {
            Some((_, Due::Ready(instance))) => self.tell(Event::Healthy { instance })?,
            Some((_, Due::Served(instance))) => {
                self.tell(Event::Used(vec![Passed { instance, taken: 0, returned: 1 }]))?;
            }
            Some((_, Due::Stopped(instance))) => {
                self.containers.remove(&instance);
                self.tell(Event::Stopped { instance, result: Ok(()) })?;
            }
            None => {}
        }
        Ok(true)
    }

    fn arrange(&mut self, after: Duration, due: Due) {
        self.arranged += 1;
        self.agenda.insert((self.now + after, self.arranged), due);
    }

    fn tell(&mut self, event: Event) -> Result<()> {
        for effect in self.state.handle(self.now, event) {
            match effect {
                Effect::Launch(order) => {
                    let instance = order.instance;
                    let container = Container {
                        pid: u32::try_from(instance.generation.0).unwrap_or(u32::MAX),
                        gpus: order.placement.gpus,
                        bytes: order.spec.vram.unwrap_or(order.placement.need.bytes),
                    };
                    self.containers.insert(instance.clone(), container);
                    let endpoint = Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 1)), None);
                    let container = instance.to_string();
                    let launched = Launched {
                        container,
                        cgroup: "/sim".into(),
                        endpoint,
                        image_id: "1".into(),
                    };
                    self.tell(Event::Launched { instance, launched })?;
                }
                // All is here, always.
                Effect::Provide { instance, .. } => {
                    self.tell(Event::Provided { instance, image_id: "1".into() })?;
                }
                Effect::AwaitReady { instance, .. } => self.load(instance),
                Effect::Stop { instance, .. } => {
                    self.arrange(self.host.stop, Due::Stopped(instance));
                }
                Effect::Observe => self.observe()?,
                Effect::Grant { waiter, instance, .. } => {
                    self.answered(waiter);
                    self.arrange(self.host.service, Due::Served(instance));
                }
                Effect::Deny { waiter, .. } => {
                    self.answered(waiter);
                    self.outcome.refused += 1;
                }
                Effect::Notice(Notice::Stopping { reason: StopReason::Evicted, .. }) => {
                    self.outcome.evictions += 1;
                }
                // No model here may sleep.
                Effect::Sleep { .. }
                | Effect::Wake { .. }
                | Effect::Canary { .. }
                | Effect::Check { .. }
                | Effect::Notice(_)
                | Effect::Reap { .. }
                | Effect::Save(_)
                | Effect::KeepPins(_)
                | Effect::Done { .. }
                | Effect::Exit => {}
            }
        }
        Ok(())
    }

    fn load(&mut self, instance: InstanceId) {
        let took = self.loads.get(&instance.model).copied().unwrap_or_default();
        if self.loaded_before.insert(instance.model.clone()) {
            self.outcome.first_loads += 1;
        } else {
            self.outcome.reloads += 1;
            self.outcome.reload += took;
        }
        self.arrange(took, Due::Ready(instance));
    }

    fn answered(&mut self, waiter: WaiterId) {
        if let Some(since) = self.waiting.remove(&waiter) {
            self.outcome.waits.push(self.now.since(since));
        }
    }

    fn observe(&mut self) -> Result<()> {
        let device = |n: u32| {
            let id = gpu(n);
            let here = self.containers.values().filter(|c| c.gpus.contains(&id));
            let processes: Vec<ProcessMemory> =
                here.map(|c| ProcessMemory { pid: c.pid, bytes: Known::Known(c.bytes) }).collect();
            let used = processes.iter().filter_map(|p| p.bytes.get()).sum();
            GpuReading { id, name: "simulated".into(), total: self.host.memory, used, processes }
        };
        let devices = (0..self.host.gpus).map(device).collect();
        let usage = self.containers.iter().map(|(id, c)| {
            let bytes = c.gpus.iter().map(|g| (g.clone(), Known::Known(c.bytes))).collect();
            (id.clone(), Usage { pids: vec![c.pid], bytes })
        });
        let observation = Observation {
            taken: self.now,
            unix_s: 1_800_000_000,
            devices: Ok(GpuSnapshot { devices, lost: vec![], driver: String::new() }),
            usage: usage.collect(),
        };
        self.tell(Event::Observed(observation))
    }
}

fn gpu(n: u32) -> GpuId {
    GpuId::new(&format!("GPU-{n}"))
}

/// The models, through the production reader of configurations.
fn specs(models: &[Model], host: &Host) -> Result<BTreeMap<ModelName, Arc<ModelSpec>>> {
    let mut text = "[gpu]\nbackend = \"nvml\"\n".to_owned();
    for model in models {
        let idle = host.idle_timeout.map_or("never".to_owned(), |d| format!("{}s", d.as_secs()));
        writeln!(
            text,
            "[models.{:?}]\nengine = \"llamacpp\"\nimage = \"localhost/sim\"\nload_timeout = \"24h\"\n\
             vram = \"{}B\"\nidle_timeout = \"{idle}\"\nargs = [\"-m\", \"/m.gguf\"]",
            model.name, model.vram.0,
        )?;
    }
    let config = config::parse(&[Source::settings("the models", text)], &Defaults::system());
    Ok(config.map_err(|errors| anyhow!("{errors}"))?.models)
}
