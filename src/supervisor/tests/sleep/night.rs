//! A host on which models sleep: it has 50 bytes for their weights, and asleep they may keep 10.

use super::*;
use crate::types::{Anatomy, SleepLevel, SleepStatus};

/// A host whose instances hold what the test says.
pub(super) struct Night {
    pub(super) host: Host,
    pub(super) held: BTreeMap<InstanceId, Known<Bytes>>,
}

pub(super) fn sleeper(model: &str, vram: u64, weights: u64) -> ModelSpec {
    let mut spec = spec(model, vram);
    spec.sleep_level = Some(SleepLevel::One);
    spec.sleep_timeout = Some(Duration::from_secs(1000));
    let source = "a test".to_owned();
    spec.anatomy =
        Some(Anatomy { weights: Bytes(weights), projector: Bytes::ZERO, cache: None, source });
    spec
}

/// What each engine continues the canary with.
pub(super) const ANSWER: &str = " 5, 6, 7,";

impl Night {
    pub(super) fn new(specs: Vec<ModelSpec>) -> Self {
        Self { host: Host::new(specs), held: BTreeMap::new() }
    }

    pub(super) fn holds(&mut self, id: &InstanceId, bytes: u64) {
        self.held.insert(id.clone(), Known::Known(Bytes(bytes)));
    }

    /// A reading that was begun so long ago.
    pub(super) fn observe_from(&mut self, before: Duration) {
        let live: Vec<InstanceId> = self.host.state.live().map(|l| l.id.clone()).collect();
        let of = |id: InstanceId| {
            let bytes = self.held.get(&id).copied().unwrap_or(Known::Known(Bytes(0)));
            let usage = Usage { pids: vec![1], bytes: BTreeMap::from([(GpuId::host(), bytes)]) };
            (id, usage)
        };
        let usage: BTreeMap<InstanceId, Usage> = live.into_iter().map(of).collect();
        let used = usage.keys().filter_map(|id| self.held.get(id)?.get()).sum();
        let device = GpuReading {
            id: GpuId::host(),
            name: "X".into(),
            total: Bytes(100),
            used,
            processes: vec![],
        };
        let devices =
            Ok(GpuSnapshot { devices: vec![device], lost: vec![], driver: String::new() });
        let taken = Moment(self.host.now.0 - before);
        self.host.tell(Event::Observed(Observation { taken, unix_s: 1, devices, usage }));
    }

    pub(super) fn observe(&mut self) {
        self.observe_from(Duration::ZERO);
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.host.pass(seconds);
    }

    pub(super) fn sung(&mut self, id: &InstanceId, answer: &str) {
        let result = Ok(answer.to_owned());
        self.host.tell(Event::Sung { instance: id.clone(), result });
    }

    pub(super) fn slept(&mut self, id: &InstanceId) {
        self.host.tell(Event::Slept { instance: id.clone(), result: Ok(()) });
    }

    pub(super) fn woken(&mut self, id: &InstanceId) {
        self.host.tell(Event::Woken { instance: id.clone(), result: Ok(()) });
    }

    /// Loaded by a request that is over, and measured.
    pub(super) fn loaded(&mut self, waiter: u64, model: &str, bytes: u64) -> InstanceId {
        self.host.acquire(waiter, model);
        self.finish_load(waiter, bytes)
    }

    /// From the order just given to the lease given back.
    pub(super) fn finish_load(&mut self, waiter: u64, bytes: u64) -> InstanceId {
        let id = self.serves(waiter, bytes);
        self.host.release(&id);
        self.pass(1);
        id
    }

    /// From the order just given to a reading while it serves.
    pub(super) fn serves(&mut self, waiter: u64, bytes: u64) -> InstanceId {
        let id = self.host.launch();
        self.host.start(&id);
        self.host.heal(&id);
        assert!(self.asks("canary"), "{:?}", self.host.out);
        assert!(self.host.grants().is_empty(), "the canary is asked alone");
        self.sung(&id, ANSWER);
        assert_eq!(self.host.grants(), [waiter]);
        self.holds(&id, bytes);
        self.observe();
        id
    }

    /// Whether the core has just asked an engine for this.
    pub(super) fn asks(&self, what: &str) -> bool {
        self.host.out.iter().any(|e| {
            matches!(
                (e, what),
                (Effect::Sleep { .. }, "sleep")
                    | (Effect::Wake { .. }, "wake")
                    | (Effect::Canary { .. }, "canary")
            )
        })
    }

    /// Idles out and falls asleep, keeping so much.
    pub(super) fn lulled(&mut self, id: &InstanceId, residual: u64) {
        self.pass(100);
        assert!(self.asks("sleep"), "{:?}", self.host.out);
        self.slept(id);
        self.holds(id, residual);
        self.observe();
        assert_eq!(self.phase(id), Phase::Asleep);
    }

    pub(super) fn phase(&self, id: &InstanceId) -> Phase {
        self.host.phase(id.model.as_str())
    }

    pub(super) fn counts(&self, model: &str) -> SleepStatus {
        let status = self.host.state.status(self.host.now);
        let found = status.models.iter().find(|m| m.name == name(model)).unwrap();
        found.sleep.clone().unwrap()
    }

    pub(super) fn free(&self) -> Known<Bytes> {
        self.host.state.status(self.host.now).gpus[0].free
    }

    /// It is stopped, and whoever waits for its model gets a new container.
    pub(super) fn is_replaced(&mut self, id: &InstanceId) -> InstanceId {
        assert_eq!(self.host.stops(), std::slice::from_ref(id));
        assert!(self.host.denials().is_empty());
        self.held.remove(id);
        self.host.stopped(id);
        self.pass(1);
        self.observe();
        self.host.launch()
    }
}
