//! Models that sleep, by chance: engines that fall asleep, wake, fail and die at any time, under requests that come at any time.
//! Memory is that of the engines, whatever the core believes of it.

use super::super::*;
use super::night::{ANSWER, sleeper};
use crate::supervisor::ports::CanaryError;
use crate::types::SleepLevel;

const TOTAL: u64 = 100;

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Loading,
    Awake,
    Asleep,
    Dead,
}

#[derive(Debug)]
struct Process {
    mode: Mode,
    size: u64,
    held: u64,
}

struct Storm {
    rng: Rng,
    state: State,
    now: Moment,
    sizes: BTreeMap<ModelName, u64>,
    processes: BTreeMap<InstanceId, Process>,
    /// What was asked of the world and not yet done.
    todo: Vec<Effect>,
    leases: Vec<InstanceId>,
    waiting: BTreeMap<WaiterId, String>,
    next: u64,
    exited: bool,
    sleeps: u32,
    wakes: u32,
    calm: bool,
}

impl Storm {
    fn new(seed: u64) -> Self {
        let mut specs =
            vec![sleeper("a", 60, 20), sleeper("b", 50, 25), sleeper("c", 35, 30), spec("d", 45)];
        specs[1].sleep_level = Some(SleepLevel::Two);
        for spec in &mut specs {
            spec.idle_timeout = Some(Duration::from_secs(20));
            spec.sleep_timeout = Some(Duration::from_secs(200));
        }
        let sizes =
            specs.iter().map(|s| (s.name.clone(), s.vram.map_or(0, |vram| vram.0))).collect();
        let mut storm = Self {
            rng: Rng(seed),
            state: Host::bare(specs).state,
            now: Moment::from_secs(1),
            sizes,
            processes: BTreeMap::new(),
            todo: vec![],
            leases: vec![],
            waiting: BTreeMap::new(),
            next: 1,
            exited: false,
            sleeps: 0,
            wakes: 0,
            calm: false,
        };
        storm.tell(Event::Found(vec![]));
        storm.observe();
        storm
    }

    fn strikes(&mut self, percent: u64) -> bool {
        !self.calm && self.rng.below(100) < percent
    }

    fn tell(&mut self, event: Event) {
        for effect in self.state.handle(self.now, event) {
            match effect {
                Effect::Grant { waiter, instance, .. } => {
                    assert!(self.waiting.remove(&waiter).is_some(), "{waiter:?} is answered twice");
                    let mode = self.processes.get(&instance).map(|p| p.mode);
                    let serves = matches!(mode, Some(Mode::Awake | Mode::Dead));
                    assert!(serves, "a lease on {instance}, which is {mode:?}");
                    self.leases.push(instance);
                }
                Effect::Deny { waiter, .. } => {
                    assert!(self.waiting.remove(&waiter).is_some(), "{waiter:?} is denied twice");
                }
                Effect::Sleep { ref instance, .. } => {
                    assert!(!self.leases.contains(instance), "{instance} serves");
                    self.todo.push(effect);
                }
                Effect::Stop { ref instance } => {
                    // What was asked of it before is of no interest any more, as in the executor.
                    let id = instance.clone();
                    self.todo.retain(|e| asked_of(e) != Some(&id));
                    self.todo.push(effect);
                }
                Effect::Launch(_)
                | Effect::AwaitReady { .. }
                | Effect::Wake { .. }
                | Effect::Canary { .. } => self.todo.push(effect),
                Effect::Exit => self.exited = true,
                Effect::Reap { .. }
                | Effect::Observe
                | Effect::Save(_)
                | Effect::Done { .. }
                | Effect::Notice(_) => {}
            }
        }
        let status = self.state.status(self.now);
        let asleep: Bytes =
            status.models.iter().filter_map(|m| Some(m.sleep.as_ref()?.host_ram)).sum();
        assert!(asleep <= SLEEP.host_ram_budget, "{asleep} of the host's memory");
    }

    fn takes(&mut self, id: &InstanceId) {
        if let Some(process) = self.processes.get_mut(id) {
            process.held = process.size;
        }
        let used: u64 = self.processes.values().map(|p| p.held).sum();
        assert!(used <= TOTAL, "out of memory: {:?}", self.processes);
    }

    /// One thing that was asked for is done, or fails.
    fn work(&mut self) {
        if self.todo.is_empty() {
            return;
        }
        let at = usize::try_from(self.rng.below(self.todo.len() as u64)).unwrap();
        let effect = self.todo.swap_remove(at);
        let id = asked_of(&effect).cloned();
        let dead = id.as_ref().and_then(|id| self.processes.get(id)).map(|p| p.mode);
        let fails = self.strikes(2) || dead == Some(Mode::Dead);
        let failed = || Err("it failed".to_owned());
        match effect {
            Effect::Launch(order) => {
                let size = self.sizes[&order.instance.model];
                let process = Process { mode: Mode::Loading, size, held: 0 };
                self.processes.insert(order.instance.clone(), process);
                let (instance, launched) = (order.instance.clone(), launched(&order.instance));
                self.tell(Event::Launched { instance, launched });
            }
            Effect::AwaitReady { instance, .. } => {
                self.takes(&instance);
                self.become_(&instance, Mode::Awake);
                self.tell(Event::Healthy { instance });
            }
            Effect::Canary { instance, .. } => {
                let result = match fails {
                    false => Ok(ANSWER.to_owned()),
                    true if self.rng.below(2) == 0 => Ok("!!!!".to_owned()),
                    true => Err(CanaryError::Failed("no answer".into())),
                };
                self.tell(Event::Sung { instance, result });
            }
            Effect::Sleep { instance, .. } => {
                let residual =
                    if self.strikes(3) { 11 + self.rng.below(20) } else { self.rng.below(11) };
                if !fails {
                    self.become_(&instance, Mode::Asleep);
                    if let Some(process) = self.processes.get_mut(&instance) {
                        process.held = residual;
                    }
                    self.sleeps += 1;
                }
                let result = if fails { failed() } else { Ok(()) };
                self.tell(Event::Slept { instance, result });
            }
            Effect::Wake { instance, .. } => {
                if !fails {
                    self.takes(&instance);
                    self.become_(&instance, Mode::Awake);
                    self.wakes += 1;
                }
                let result = if fails { failed() } else { Ok(()) };
                self.tell(Event::Woken { instance, result });
            }
            Effect::Stop { instance } => {
                self.processes.remove(&instance);
                self.tell(Event::Stopped { instance, result: Ok(()) });
            }
            other @ (Effect::Reap { .. }
            | Effect::Observe
            | Effect::Save(_)
            | Effect::Grant { .. }
            | Effect::Deny { .. }
            | Effect::Done { .. }
            | Effect::Notice(_)
            | Effect::Exit) => panic!("nobody does {other:?}"),
        }
    }

    fn become_(&mut self, id: &InstanceId, mode: Mode) {
        if let Some(process) = self.processes.get_mut(id) {
            process.mode = mode;
        }
    }

    fn observe(&mut self) {
        let live: Vec<(InstanceId, bool)> =
            self.state.live().map(|l| (l.id.clone(), l.watched)).collect();
        let mut usage = BTreeMap::new();
        for (id, watched) in live {
            let Some(process) = self.processes.get(&id) else { continue };
            if process.mode == Mode::Dead && watched {
                self.tell(Event::Died { instance: id, fault: fault("killed") });
                continue;
            }
            let bytes = BTreeMap::from([(GpuId::host(), Known::Known(Bytes(process.held)))]);
            usage.insert(id, Usage { pids: vec![1], bytes });
        }
        let used = Bytes(self.processes.values().map(|p| p.held).sum());
        let device = GpuReading {
            id: GpuId::host(),
            name: "X".into(),
            total: Bytes(TOTAL),
            used,
            processes: vec![],
        };
        let devices =
            Ok(GpuSnapshot { devices: vec![device], lost: vec![], driver: String::new() });
        let taken = self.now;
        self.tell(Event::Observed(Observation { taken, unix_s: 1, devices, usage }));
    }

    fn step(&mut self) {
        self.now = self.now + Duration::from_millis(self.rng.below(4000));
        match self.rng.below(20) {
            0..3 => {
                let waiter = WaiterId(self.next);
                self.next += 1;
                let model = ["a", "b", "c", "d"][usize::try_from(self.rng.below(4)).unwrap()];
                self.waiting.insert(waiter, model.to_owned());
                self.tell(Event::Acquire { waiter, model: model.to_owned(), wait: None });
            }
            3..7 if !self.leases.is_empty() => {
                let instance = self.leases.swap_remove(0);
                self.tell(Event::Release { instance });
            }
            7 if self.strikes(5) => {
                let ids: Vec<InstanceId> = self.processes.keys().cloned().collect();
                for id in ids.iter().take(1) {
                    self.become_(id, Mode::Dead);
                    if let Some(process) = self.processes.get_mut(id) {
                        process.held = 0;
                    }
                }
            }
            8..11 => self.observe(),
            _ => self.work(),
        }
        self.tell(Event::Tick);
    }

    /// Nobody comes, nothing fails: everything comes to rest.
    fn settle(&mut self) {
        self.calm = true;
        for _ in 0..300 {
            self.now = self.now + Duration::from_millis(500);
            while let Some(instance) = self.leases.pop() {
                self.tell(Event::Release { instance });
            }
            self.work();
            self.observe();
            self.tell(Event::Tick);
        }
        assert!(self.waiting.is_empty(), "never answered: {:?}", self.waiting);
        self.tell(Event::Shutdown { keep: false });
        for _ in 0..20 {
            self.work();
            self.tell(Event::Tick);
        }
        assert!(self.exited && self.processes.is_empty(), "{:?}", self.processes);
    }
}

/// Whom an effect that is to be done concerns.
fn asked_of(effect: &Effect) -> Option<&InstanceId> {
    match effect {
        Effect::Launch(order) => Some(&order.instance),
        Effect::AwaitReady { instance, .. }
        | Effect::Sleep { instance, .. }
        | Effect::Wake { instance, .. }
        | Effect::Canary { instance, .. }
        | Effect::Stop { instance } => Some(instance),
        Effect::Reap { .. }
        | Effect::Observe
        | Effect::Save(_)
        | Effect::Grant { .. }
        | Effect::Deny { .. }
        | Effect::Done { .. }
        | Effect::Notice(_)
        | Effect::Exit => None,
    }
}

#[test]
fn whatever_happens_memory_suffices_and_everybody_is_answered() {
    let (mut sleeps, mut wakes) = (0, 0);
    for seed in 0..60 {
        let mut storm = Storm::new(seed);
        for _ in 0..400 {
            storm.step();
        }
        storm.settle();
        sleeps += storm.sleeps;
        wakes += storm.wakes;
    }
    assert!(sleeps > 250 && wakes > 75, "{sleeps} sleeps and {wakes} wakes are too few");
}
