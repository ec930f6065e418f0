//! The core: `State::handle(now, event) → effects`.
//!
//! One model has at most one instance. Its life, with what moves it:
//!
//! ```text
//!            demand, room            Launched            Healthy
//!  (none) ───────────────▶ Starting ──────────▶ Loading ────────▶ Ready ──── idle, evicted ────┐
//!    ▲ ▲                      │  │ unload,          │ died,        │ │ unload, shutdown        │
//!    │ └─ Pulling ◀─ missing ─┘  │ deadline         │ deadline     │ ▼                         │
//!    │                           ▼                  ▼              │ Draining ── none in flight ┤
//!    │      LaunchFailed       Abandoned ──▶ Stopping ◀── died ────┘                           │
//!    ├────────────────────────┘                 │  ▲  ▲ retry on failure                        │
//!    └────────────── Stopped(Ok) ───────────────┘  └──┴────────────────────────────────────────┘
//! ```
//! In place of a stop, who is idle or evicted may fall asleep, and wake: the picture of that is in `supervisor::sleep`.
//!
//! Where others have to leave for it, it is `Pulling` first: what a launch needs of disk and registry is looked at, and pulled, before
//! anybody is told to go (`seen`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::discover::Discovery;
use super::effect::{Effect, StopReason};
use super::event::Event;
use super::health::{Failure, HealthRules};
use super::instance::Instance;
use super::measure::Knowledge;
use super::ports::Launched;
use super::queue::{Purpose, Queue, Waiter};
use super::sleep::Sleeps;
use super::sweep::Strays;
pub use super::traffic::Way;
use crate::plan::{Book, Demand, Ledger, Loads, ReleaseRule, Rules};
use crate::types::{
    Bytes, DayMinute, Denied, Generation, GpuId, Hours, InstanceId, ModelName, ModelSpec, Moment,
    Report, WaiterId, Wish,
};

/// What the core needs of the configuration, beside the models.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The longest a request waits.
    pub max_wait: Duration,
    /// Requests that may wait for one model.
    pub max_queue: usize,
    /// How long a shutdown waits for running requests.
    pub drain_timeout: Duration,
    /// Kept free on each device.
    pub headroom: Bytes,
    /// What an engine that profiles its devices takes beside what it is told ([`plan::slack`](crate::plan::slack)).
    pub slack: Bytes,
    /// How exactly releases of device memory are judged.
    pub release: ReleaseRule,
    /// Who may be evicted, and who is first.
    pub rules: Rules,
    /// Busy models take no new requests any more when another has waited so long for their place; `None`: they never make way.
    pub turn_after: Option<Duration>,
    /// Models that were never measured are loaded for that when nothing was requested for so long; `None`: never.
    pub measure_after: Option<Duration>,
    /// How engines are kept well.
    pub health: HealthRules,
    /// That begins only at these hours, local time.
    pub measure_hours: Hours,
    /// Makes instance names of two daemons differ; any number.
    pub seed: u64,
}

/// What an earlier daemon knew; by default, nothing.
#[derive(Debug, Default)]
pub struct Recalled {
    /// What was measured.
    pub book: Book,
    /// IDs of the models' images, as they are now.
    pub images: BTreeMap<ModelName, String>,
    /// The highest that was given to an incarnation.
    pub generation: Generation,
    /// Which models operators pinned, or let go, otherwise than the configuration says.
    pub pins: BTreeMap<ModelName, bool>,
}

/// One configured model.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) spec: Arc<ModelSpec>,
    pub(super) instance: Option<Instance>,
    pub(super) queue: Queue,
    /// Operators that wait until it is gone.
    pub(super) unloading: Vec<WaiterId>,
    /// Operators that wait until it sleeps.
    pub(super) dozing: Vec<WaiterId>,
    /// How operators want it loaded, the last one's word last. Those who do not wait any more wish for nothing.
    pub(super) wishes: Vec<(WaiterId, Wish)>,
    /// Failures of starts and of running engines.
    pub(super) restarts: u32,
    /// It is not configured any more, and is forgotten when its container is gone.
    pub(super) retired: bool,
    /// To be kept loaded without a request: pinned, or an operator asked.
    pub(super) wanted: bool,
    /// Never evicted, never idled out.
    pub(super) pinned: bool,
    pub(super) failure: Option<Failure>,
    /// Who wants it measured.
    pub(super) discovery: Discovery,
    /// What is known of its memory.
    pub(super) known: Knowledge,
    pub(super) last_load: Option<Duration>,
    /// How long its loads took.
    pub(super) loads: Loads,
    pub(super) last_used: Option<Moment>,
    /// How it was used, and how long its loads take.
    pub(super) demand: Demand,
    /// Why it has no instance although it is wanted.
    pub(super) waiting_for: Option<String>,
    /// Its weights and images were seen to be here for the load that is wanted: others may be asked to leave for it.
    pub(super) seen: bool,
    /// Since when it has waited for room, and when that was last so.
    pub(super) hunger: Option<(Moment, Moment)>,
    /// When it has to be planned for again although nothing may have happened.
    pub(super) plan_at: Option<Moment>,
    /// The last plan made for it.
    pub(super) report: Option<Arc<Report>>,
    /// How it slept.
    pub(super) sleeps: Sleeps,
}

/// The shutdown under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shutdown {
    pub(super) keep: bool,
    /// Running requests are cut off then.
    pub(super) deadline: Moment,
    /// They have been.
    pub(super) cut: bool,
}

/// All state there is. See the module's text.
#[derive(Debug)]
pub struct State {
    pub(super) settings: Settings,
    pub(super) models: BTreeMap<ModelName, Model>,
    pub(super) aliases: BTreeMap<ModelName, ModelName>,
    pub(super) ledger: Ledger,
    /// What was measured, by this daemon and earlier ones.
    pub(super) book: Book,
    /// When it is written down once more, as that has failed.
    pub(super) save_at: Option<Moment>,
    /// What an earlier daemon left is known; nothing is started before, lest a model get a second container.
    pub(super) surveyed: bool,
    /// Instances of nobody that are being removed: what an earlier daemon or a failed launch left. The value is when a failed stop is tried again.
    pub(super) orphans: BTreeMap<InstanceId, Option<Moment>>,
    /// Containers with our labels of which nothing is known.
    pub(super) strays: Strays,
    /// Where those of them run that were found running: their processes are accounted for, and named if they survive.
    pub(super) running_orphans: BTreeMap<InstanceId, Launched>,
    pub(super) shutdown: Option<Shutdown>,
    pub(super) exited: bool,
    pub(super) problems: BTreeMap<&'static str, (String, Moment)>,
    /// Devices under pressure, and lost ones, with how many readings in a row said so.
    pub(super) pressed: BTreeMap<GpuId, u32>,
    pub(super) losses: BTreeMap<GpuId, u32>,
    /// Devices on which a model failed to load that loaded elsewhere then, with its name. Whatever has loaded there since clears one.
    pub(super) suspects: BTreeMap<GpuId, ModelName>,
    /// The background picks no model to measure before.
    pub(super) discover_from: Moment,
    /// The clock on the wall, as last told; `None`: not told yet.
    pub(super) local_time: Option<DayMinute>,
    /// Stops that failed and are tried again, and why.
    pub(super) stuck: BTreeMap<InstanceId, super::schedule::Stuck>,
    /// Pins otherwise than configured, as they were last written down.
    pub(super) pins: BTreeMap<ModelName, bool>,
    next_generation: u64,
    random: u64,
}

impl State {
    /// The state before anything is known of the host. Feed it an observation and what was found before any request.
    #[must_use]
    pub fn new(settings: Settings, specs: &BTreeMap<ModelName, Arc<ModelSpec>>) -> Self {
        let mut models = BTreeMap::new();
        let mut aliases = BTreeMap::new();
        for (name, spec) in specs {
            for alias in &spec.aliases {
                aliases.insert(alias.clone(), name.clone());
            }
            models.insert(name.clone(), Model::new(spec.clone()));
        }
        let ledger = Ledger::new(settings.headroom, settings.release);
        let random = settings.seed;
        Self {
            settings,
            models,
            aliases,
            ledger,
            book: Book::default(),
            save_at: None,
            surveyed: false,
            orphans: BTreeMap::new(),
            strays: Strays::new(),
            running_orphans: BTreeMap::new(),
            shutdown: None,
            exited: false,
            problems: BTreeMap::new(),
            pressed: BTreeMap::new(),
            losses: BTreeMap::new(),
            suspects: BTreeMap::new(),
            discover_from: Moment::START,
            local_time: None,
            stuck: BTreeMap::new(),
            pins: BTreeMap::new(),
            next_generation: 1,
            random,
        }
    }

    /// Begins with what an earlier daemon knew.
    pub fn remember(&mut self, recalled: Recalled) {
        self.book = recalled.book;
        self.recall_loads();
        self.raise_generation(recalled.generation);
        self.recall_pins(recalled.pins);
        for (name, id) in recalled.images {
            if let Some(model) = self.models.get_mut(&name) {
                model.known.image_id = Some(id);
            }
        }
    }

    /// Takes one event in and says what to do. Never blocks, never fails.
    pub fn handle(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        match event {
            Event::Acquire { waiter, model, wait } => {
                let deadline = now + wait.unwrap_or(self.settings.max_wait);
                self.acquire(now, waiter, &model, deadline, &mut out);
            }
            Event::Cancel { waiter } => self.cancel(waiter, &mut out),
            Event::Used(passed) => passed.iter().for_each(|passed| self.used(now, passed)),
            Event::Load { waiter, model, wish } => self.load(now, waiter, &model, wish, &mut out),
            Event::Pin { waiter, model, pinned } => {
                self.pin(now, waiter, &model, pinned, &mut out);
            }
            Event::Sleep { waiter, model } => self.sleep(now, waiter, &model, &mut out),
            Event::Wake { waiter, model } => self.wake_asked(now, waiter, &model, &mut out),
            Event::Measure { waiter, model } => {
                self.measure_on_demand(now, waiter, &model, &mut out);
            }
            Event::Unload { waiter, model, haste } => self.unload(waiter, &model, haste, &mut out),
            Event::Shutdown { keep } => self.begin_shutdown(now, keep, &mut out),
            Event::Found(found) => self.take_over(now, found, &mut out),
            Event::Progress { instance, phase } => self.progress(now, &instance, phase, &mut out),
            Event::Pulled { instance, pulled } => self.pulled(&instance, pulled),
            Event::Provided { instance, image_id } => self.provided(&instance, image_id, &mut out),
            Event::Launched { instance, launched } => {
                self.launched(&instance, launched, &mut out);
            }
            Event::LaunchFailed { instance, fault } => {
                self.launch_failed(now, &instance, fault, &mut out);
            }
            Event::LoadProgress { instance } => self.load_progress(now, &instance),
            Event::Strange { instance, answer } => self.strange(&instance, answer),
            Event::Healthy { instance } => self.healthy(now, &instance, &mut out),
            Event::Slept { instance, result } => self.slept(now, &instance, result, &mut out),
            Event::Woken { instance, result } => self.woken(&instance, result, &mut out),
            Event::Sung { instance, result } => self.sung(now, &instance, result, &mut out),
            Event::Checked { instance, result, silent } => {
                self.checked(now, &instance, (result, silent), &mut out);
            }
            Event::Died { instance, fault } => self.died(&instance, fault, &mut out),
            Event::Wrote { instance, log } => self.wrote(&instance, log),
            Event::Stopped { instance, result } => self.stopped(now, &instance, result, &mut out),
            Event::Swept { taken, list } => self.swept(now, taken, list, &mut out),
            Event::Observed(observation) => self.observed(now, &observation, &mut out),
            Event::Saved(result) => self.saved(now, result),
            Event::Configure(new) => self.reconfigure(now, *new, &mut out),
            Event::LocalTime(minute) => self.local_time = Some(minute),
            Event::Trouble { code, message } => {
                self.note(code, now, message.into_iter().collect());
            }
            Event::Tick => {}
        }
        self.schedule(now, &mut out);
        self.keep_pins(&mut out);
        out
    }

    pub(super) fn resolve(&mut self, name: &str) -> Option<&mut Model> {
        let name = self.aliases.get(name).map_or(name, ModelName::as_str);
        self.models.get_mut(name).filter(|model| !model.retired)
    }

    fn acquire(
        &mut self,
        now: Moment,
        waiter: WaiterId,
        name: &str,
        deadline: Moment,
        out: &mut Vec<Effect>,
    ) {
        let deny = |denied| Effect::Deny { waiter, denied };
        let max_queue = self.settings.max_queue;
        let shutting_down = self.shutdown.is_some();
        let Some(model) = self.resolve(name) else {
            out.push(deny(Denied::UnknownModel { model: name.chars().take(200).collect() }));
            return;
        };
        if shutting_down {
            out.push(deny(Denied::ShuttingDown));
        } else if let Some(denied) = model.refusal(now) {
            out.push(deny(denied));
        } else if model.queue.len() >= max_queue {
            let (model, queued) = (model.spec.name.clone(), model.queue.len());
            let retry_after = Duration::from_secs(1);
            out.push(deny(Denied::QueueFull { model, queued, retry_after }));
        } else {
            // `schedule` grants it at once if the model is ready.
            let purpose = Purpose::Lease { deadline };
            model.queue.push(Waiter { id: waiter, purpose, since: now });
        }
    }

    fn begin_shutdown(&mut self, now: Moment, keep: bool, out: &mut Vec<Effect>) {
        if self.shutdown.is_some() {
            return;
        }
        self.shutdown =
            Some(Shutdown { keep, deadline: now + self.settings.drain_timeout, cut: false });
        for model in self.models.values_mut() {
            model.wanted = false;
            model.discovery.end(&Denied::ShuttingDown, out);
            for waiting in model.queue.drain() {
                out.push(Effect::Deny { waiter: waiting.id, denied: Denied::ShuttingDown });
            }
        }
        if !keep {
            let names: Vec<ModelName> = self.models.keys().cloned().collect();
            for name in names {
                self.dismiss(&name, StopReason::Shutdown, out);
            }
        }
    }

    pub(super) fn next_instance(&mut self, model: &ModelName) -> InstanceId {
        let generation = Generation(self.next_generation);
        self.next_generation += 1;
        // splitmix64: names need not be secret, only different from those of an earlier daemon.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bits = u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(0);
        InstanceId::new(model.clone(), generation, bits)
    }

    pub(super) fn raise_generation(&mut self, seen: Generation) {
        self.next_generation = self.next_generation.max(seen.0 + 1);
    }

    pub(super) fn instance_mut(&mut self, id: &InstanceId) -> Option<&mut Instance> {
        self.models.get_mut(&id.model)?.instance.as_mut().filter(|i| i.id == *id)
    }
}

impl Model {
    pub(super) fn new(spec: Arc<ModelSpec>) -> Self {
        let pinned = spec.pin;
        let known = Knowledge::of(&spec);
        Self {
            spec,
            instance: None,
            queue: Queue::default(),
            unloading: Vec::new(),
            dozing: Vec::new(),
            wishes: Vec::new(),
            restarts: 0,
            retired: false,
            wanted: pinned,
            pinned,
            failure: None,
            discovery: Discovery::default(),
            known,
            last_load: None,
            loads: Loads::default(),
            last_used: None,
            demand: Demand::default(),
            waiting_for: None,
            seen: false,
            hunger: None,
            plan_at: None,
            report: None,
            sleeps: Sleeps::default(),
        }
    }
}
