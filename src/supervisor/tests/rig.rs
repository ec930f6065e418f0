//! A host in miniature, and the core on it.

use super::*;
use crate::supervisor::health::HealthRules;

/// Short, so that tests about other things need not wait for it.
pub(super) const MIN_RESIDENCY: Duration = Duration::from_millis(500);
/// For models that may sleep.
const SLEEP: SleepRules = SleepRules { host_ram_budget: Bytes(50), residual_max: Bytes(10) };

/// A host with one device of 100 bytes, and the core on it.
pub(super) struct Host {
    pub(super) state: State,
    pub(super) now: Moment,
    pub(super) out: Vec<Effect>,
    pub(super) used: u64,
    /// Nothing is answered to a look whether a model's weights and images are here; else they are, at once.
    pub(super) slow: bool,
}

pub(super) fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

pub(super) fn spec(model: &str, vram: u64) -> ModelSpec {
    let mut spec = test_spec(model);
    spec.vram = Some(Bytes(vram));
    spec.idle_timeout = Some(Duration::from_secs(100));
    spec
}

pub(super) fn fault(text: &str) -> Fault {
    Fault::new(FaultCode::EngineExited, text)
}

pub(super) fn launched(id: &InstanceId) -> Launched {
    let endpoint = Endpoint::Unix(format!("/run/{id}").into());
    Launched { container: id.to_string(), cgroup: "/c".into(), endpoint, image_id: "1".into() }
}

impl Host {
    pub(super) fn bare(specs: Vec<ModelSpec>) -> Self {
        let specs: BTreeMap<ModelName, Arc<ModelSpec>> =
            specs.into_iter().map(|s| (s.name.clone(), Arc::new(s))).collect();
        let settings = Settings {
            max_wait: Duration::from_secs(240),
            max_queue: 3,
            drain_timeout: Duration::from_secs(30),
            headroom: Bytes(0),
            slack: Bytes(0),
            release: ReleaseRule::exact(Duration::from_secs(30)),
            rules: Rules {
                policy: policy::named(Eviction::Cost),
                min_residency: MIN_RESIDENCY,
                sleep: SLEEP,
            },
            measure_after: None,
            turn_after: None,
            health: HealthRules::default(),
            measure_hours: Hours::ALL,
            seed: 1,
        };
        let state = State::new(settings, &specs);
        Self { state, now: Moment::from_secs(1), out: vec![], used: 0, slow: false }
    }

    pub(super) fn new(specs: Vec<ModelSpec>) -> Self {
        let mut host = Self::bare(specs);
        host.tell(Event::Found(vec![]));
        host.observe();
        host
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.out = self.state.handle(self.now, event);
        while let Some((id, at)) = self.look().filter(|_| !self.slow) {
            self.out.remove(at);
            let known = self.state.models[&id.model].known.image_id.clone();
            let image_id = known.unwrap_or_else(|| "1".to_owned());
            let seen = Event::Provided { instance: id, image_id };
            self.out.extend(self.state.handle(self.now, seen));
        }
    }

    /// For whom it is to be looked whether all is here, and where that is said.
    fn look(&self) -> Option<(InstanceId, usize)> {
        let look = |(at, e): (usize, &Effect)| {
            if let Effect::Provide { instance, .. } = e {
                Some((instance.clone(), at))
            } else {
                None
            }
        };
        self.out.iter().enumerate().find_map(look)
    }

    /// For whom it is to be looked whether all is here.
    pub(super) fn looked_for(&self) -> Option<InstanceId> {
        self.look().map(|(id, _)| id)
    }

    pub(super) fn observe(&mut self) {
        let device = GpuReading {
            id: GpuId::host(),
            name: "X".into(),
            total: Bytes(100),
            used: Bytes(self.used),
            processes: vec![],
        };
        let devices =
            Ok(GpuSnapshot { devices: vec![device], lost: vec![], driver: String::new() });
        let usage = BTreeMap::new();
        self.tell(Event::Observed(Observation {
            taken: self.now,
            unix_s: 1_800_000_000,
            devices,
            usage,
        }));
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
        self.tell(Event::Tick);
    }

    pub(super) fn acquire(&mut self, waiter: u64, model: &str) {
        let waiter = WaiterId(waiter);
        self.tell(Event::Acquire { waiter, model: model.to_owned(), wait: None });
    }

    pub(super) fn order(&self) -> Option<LaunchOrder> {
        self.out
            .iter()
            .find_map(|e| if let Effect::Launch(order) = e { Some(order.clone()) } else { None })
    }

    pub(super) fn launch(&self) -> InstanceId {
        self.order().expect("a launch").instance
    }

    pub(super) fn stops(&self) -> Vec<InstanceId> {
        let stop = |e: &Effect| {
            if let Effect::Stop { instance, .. } = e { Some(instance.clone()) } else { None }
        };
        self.out.iter().filter_map(stop).collect()
    }

    pub(super) fn grants(&self) -> Vec<u64> {
        let grant = |e: &Effect| {
            if let Effect::Grant { waiter, .. } = e { Some(waiter.0) } else { None }
        };
        self.out.iter().filter_map(grant).collect()
    }

    pub(super) fn done(&self) -> Vec<u64> {
        let done = |e: &Effect| if let Effect::Done { waiter } = e { Some(waiter.0) } else { None };
        self.out.iter().filter_map(done).collect()
    }

    pub(super) fn denials(&self) -> Vec<(u64, &'static str)> {
        let deny = |e: &Effect| {
            if let Effect::Deny { waiter, denied } = e {
                Some((waiter.0, denied.code()))
            } else {
                None
            }
        };
        self.out.iter().filter_map(deny).collect()
    }

    pub(super) fn denied(&self) -> &Denied {
        let deny = |e: &'_ Effect| matches!(e, Effect::Deny { .. });
        match self.out.iter().find(|e| deny(e)) {
            Some(Effect::Deny { denied, .. }) => denied,
            other => panic!("no denial: {other:?}"),
        }
    }

    pub(super) fn phase(&self, model: &str) -> Phase {
        let status = self.state.status(self.now);
        status.models.iter().find(|m| m.name == name(model)).unwrap().phase
    }

    pub(super) fn exited(&self) -> bool {
        self.out.iter().any(|e| matches!(e, Effect::Exit))
    }

    pub(super) fn start(&mut self, id: &InstanceId) {
        self.tell(Event::Launched { instance: id.clone(), launched: launched(id) });
    }

    pub(super) fn heal(&mut self, id: &InstanceId) {
        self.tell(Event::Healthy { instance: id.clone() });
    }

    pub(super) fn release(&mut self, id: &InstanceId) {
        self.used(id, 0, 1);
    }

    /// So many leases were taken without asking, and so many came back.
    pub(super) fn used(&mut self, id: &InstanceId, taken: u32, returned: u32) {
        self.tell(Event::Used(vec![Passed { instance: id.clone(), taken, returned }]));
    }

    pub(super) fn stopped(&mut self, id: &InstanceId) {
        self.tell(Event::Stopped { instance: id.clone(), result: Ok(()) });
    }

    /// Loads a model by a request, whose lease is kept.
    pub(super) fn ready(&mut self, waiter: u64, model: &str) -> InstanceId {
        self.acquire(waiter, model);
        let id = self.launch();
        self.start(&id);
        self.heal(&id);
        assert_eq!(self.grants(), [waiter]);
        id
    }
}
