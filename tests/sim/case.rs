//! What a seed draws before anything happens: the devices, the models, the settings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hostler::plan::{ReleaseRule, Rules, SleepRules, policy};
use hostler::supervisor::health::HealthRules;
use hostler::supervisor::state::Settings;
use hostler::types::{
    Bytes, EngineKind, Eviction, GpuId, Hours, ImageRef, ModelName, ModelSpec, OnFull, SleepLevel,
    Transport, Weights,
};

use crate::faults::{Kind, Weather};
use crate::rng::Rng;

/// Makes of a seed another, for what is drawn apart. With this number the seeds of the corpus mean what they meant before
/// models slept.
const NIGHT: u64 = 7 << 32;
/// The same for operators at their desks.
const OFFICE: u64 = 4922 << 32;

/// The same for models that are always busy.
const RUSH: u64 = 5 << 32;
/// The same for those of them that are changed under way.
const FASHION: u64 = 65 << 32;
/// The same for displays and such, which hold a little of each device for ever.
const DISPLAY: u64 = 81 << 32;

/// Configured models by name.
pub type Specs = BTreeMap<ModelName, Arc<ModelSpec>>;

/// One world before its first moment.
#[derive(Clone, Debug)]
pub struct Case {
    /// Memory of each device.
    pub totals: Vec<u64>,
    pub specs: Specs,
    /// Models that were configured once, and may be again.
    pub removed: Specs,
    pub settings: Settings,
    /// Nothing goes wrong, and everybody is asked for all the time.
    pub rush: bool,
    pub weather: Weather,
    /// In use on each device by others, from the beginning on, and never more.
    pub resident: u64,
    /// Between two clients, on average half of it.
    pub gap_ms: u64,
    /// Between two readings of the devices.
    pub observe_ms: u64,
    /// The driver says which process holds how much.
    pub numbers: bool,
}

pub fn model(n: u64) -> ModelName {
    format!("m{n}").parse().unwrap()
}

pub fn gpu(n: usize) -> GpuId {
    GpuId::new(["GPU-0", "GPU-1", "GPU-2", "GPU-3"][n])
}

impl Case {
    pub fn draw(seed: u64, rng: &mut Rng) -> Self {
        let count = 1 + rng.below(4) as usize;
        let equal = rng.chance(60);
        let one =
            |rng: &mut Rng| if equal { 100 } else { [100, 60, 100, 40][rng.below(4) as usize] };
        let totals: Vec<u64> = (0..count).map(|_| one(rng)).collect();
        let models = 3 + rng.below(6);
        let ranked = rng.chance(50);
        let specs =
            (0..models).map(|n| (model(n), Arc::new(spec(n, count, ranked, rng)))).collect();
        let eviction = if rng.chance(70) { Eviction::Cost } else { Eviction::Lru };
        let min_residency = Duration::from_secs([0, 2, 5, 10][rng.below(4) as usize]);
        let settings = Settings {
            max_wait: Duration::from_secs([20, 60, 120][rng.below(3) as usize]),
            max_queue: [4, 12, 64][rng.below(3) as usize],
            drain_timeout: Duration::from_secs(15),
            headroom: Bytes(rng.below(3)),
            slack: Bytes(2),
            release: ReleaseRule::exact(Duration::from_secs(30)),
            rules: Rules {
                policy: policy::named(eviction),
                min_residency,
                sleep: SleepRules::NEVER,
            },
            turn_after: None,
            measure_after: rng.chance(30).then_some(Duration::from_secs(15)),
            health: HealthRules::default(),
            measure_hours: Hours::ALL,
            seed,
        };
        let mut case = Self {
            totals,
            specs,
            removed: Specs::new(),
            rush: false,
            settings,
            weather: Weather::draw(rng),
            resident: 0,
            gap_ms: [200, 1_000, 3_000, 10_000][rng.below(4) as usize],
            observe_ms: 500 + rng.below(2_000),
            numbers: rng.chance(80),
        };
        let mut night = Rng::new(seed ^ NIGHT);
        if night.chance(40) {
            case.lull(&mut night);
        }
        let mut office = Rng::new(seed ^ OFFICE);
        if office.chance(40) {
            case.open_office(&mut office);
        }
        let mut rush = Rng::new(seed ^ RUSH);
        if rush.chance(3) {
            case.hurry(&mut rush);
            if Rng::new(seed ^ FASHION).chance(50) {
                case.weather.set(Kind::Configured, 4);
            }
        }
        let mut display = Rng::new(seed ^ DISPLAY);
        if !case.rush && display.chance(15) {
            case.plug_in(&mut display);
        }
        case
    }

    /// Others use a little of each device. What they use and what an engine needs is known to the byte, so that it can be said what fits.
    fn plug_in(&mut self, rng: &mut Rng) {
        self.resident = 1 + rng.below(4);
        self.numbers = true;
        // Whoever holds memory for ever keeps its PID for as long.
        for kind in [Kind::ForeignGrows, Kind::PidReuse, Kind::TakesMore] {
            self.weather.set(kind, 0);
        }
        for spec in self.specs.values_mut() {
            let spec = Arc::make_mut(spec);
            // None is declared to need just what a device has without them: that would be waited for.
            let told = spec.vram.map(|vram| if vram.0 < 40 { vram } else { Bytes(vram.0 - 8) });
            spec.vram = told.filter(|_| rng.chance(60));
        }
    }

    /// More than fits is asked for all the time, by requests that follow each other without a gap.
    fn hurry(&mut self, rng: &mut Rng) {
        self.rush = true;
        self.weather = Weather::clear_sky();
        self.gap_ms = 100 + rng.below(200);
        self.observe_ms = 1_000;
        self.specs.retain(|name, _| name.as_str() < "m4");
        self.settings.turn_after = Some(Duration::from_secs(3 + rng.below(12)));
        for spec in self.specs.values_mut() {
            let spec = Arc::make_mut(spec);
            (spec.pin, spec.priority, spec.on_full) = (false, 0, OnFull::Evict);
            (spec.idle_timeout, spec.sleep_level) = (None, None);
            spec.vram = Some(Bytes([20, 40, 60, 90][rng.below(4) as usize]));
        }
    }

    /// Operators do whatever they may, the configuration changes, and engines are asked how they are.
    fn open_office(&mut self, rng: &mut Rng) {
        self.weather.draw_office(rng);
        self.settings.health = HealthRules {
            timeout: Duration::from_secs(10),
            patience: Duration::from_secs(600),
            failures: 1 + rng.below(3) as u32,
            probe: rng.chance(70),
            breaker_failures: 2 + rng.below(4) as u32,
            breaker_open: Duration::from_secs([30, 90, 300][rng.below(3) as usize]),
        };
        let turns = [None, Some(5), Some(20), Some(60)];
        self.settings.turn_after = turns[rng.below(4) as usize].map(Duration::from_secs);
        for spec in self.specs.values_mut() {
            Arc::make_mut(spec).health_interval = interval(rng);
        }
    }

    /// Models that are configured, in the order of their names.
    pub fn names(&self) -> Vec<ModelName> {
        self.specs.keys().cloned().collect()
    }

    /// Models may sleep.
    fn lull(&mut self, rng: &mut Rng) {
        self.numbers = true;
        self.weather.draw_night(rng);
        self.settings.rules.sleep = SleepRules {
            host_ram_budget: Bytes([30, 60, 100, 400][rng.below(4) as usize]),
            residual_max: Bytes(2 + rng.below(8)),
        };
        let vllm = |s: &&mut Arc<ModelSpec>| s.engine == EngineKind::Vllm;
        for spec in self.specs.values_mut().filter(vllm) {
            let spec = Arc::make_mut(spec);
            let level = if rng.chance(60) { SleepLevel::One } else { SleepLevel::Two };
            spec.sleep_level = rng.chance(85).then_some(level);
            spec.sleep_timeout = rng.chance(50).then_some(Duration::from_secs(30));
        }
    }

    pub fn headroom(&self) -> u64 {
        self.settings.headroom.0
    }

    /// Devices that a model may use.
    pub fn allowed(&self, spec: &ModelSpec) -> Vec<usize> {
        let may = |n: &usize| spec.gpus.is_empty() || spec.gpus.contains(&gpu(*n));
        (0..self.totals.len()).filter(may).collect()
    }

    /// Whether a model finds room on a host where nothing else runs.
    pub fn fits(&self, spec: &ModelSpec) -> bool {
        let need = spec.vram.map_or(1, |b| b.0) + self.headroom() + self.resident;
        let allowed = self.allowed(spec);
        let equal = |total: u64| allowed.iter().filter(|n| self.totals[**n] == total).count();
        let big = allowed.iter().map(|n| self.totals[*n]).filter(|total| *total >= need);
        big.max_by_key(|total| equal(*total)).is_some_and(|t| equal(t) >= spec.gpu_count as usize)
    }
}

/// Between two questions whether an engine is well.
pub fn interval(rng: &mut Rng) -> Option<Duration> {
    rng.chance(60).then(|| Duration::from_secs([5, 15, 30][rng.below(3) as usize]))
}

fn spec(n: u64, gpus: usize, ranked: bool, rng: &mut Rng) -> ModelSpec {
    let size = [5, 10, 25, 40, 60, 90, 120][rng.below(7) as usize];
    let bound = rng.chance(15);
    ModelSpec {
        name: model(n),
        aliases: vec![format!("alias{n}").parse().unwrap()],
        engine: if rng.chance(50) { EngineKind::Vllm } else { EngineKind::Llamacpp },
        image: ImageRef::parse("localhost/fake").unwrap(),
        weights: Weights::Builtin,
        projector: None,
        anatomy: None,
        transport: Transport::Unix,
        // Now and then nobody knows what it needs.
        vram: if rng.chance(10) { None } else { Some(Bytes(size)) },
        context: None,
        parallel: None,
        gpu_count: if rng.chance(20) { 2 } else { 1 },
        gpus: if bound { vec![gpu(rng.below(gpus as u64) as usize)] } else { vec![] },
        args: vec![],
        env: BTreeMap::new(),
        shm_size: Bytes(0),
        idle_timeout: if rng.chance(60) { Some(Duration::from_secs(20)) } else { None },
        load_timeout: Duration::from_secs(40),
        health_interval: None,
        stop_timeout: Duration::from_secs(10),
        pin: n == 0 && rng.chance(30),
        priority: if ranked { [0, 0, 0, -5, 5][rng.below(5) as usize] } else { 0 },
        on_full: match rng.below(10) {
            0 => OnFull::Wait,
            1 => OnFull::Refuse,
            _ => OnFull::Evict,
        },
        sleep_level: None,
        door: hostler::types::DoorSpec::default(),
        sleep_timeout: None,
    }
}
