//! The core's lease, idle, evict and stop under every order of messages that a scheduler can make of them.
//!
//! Clients, podman, engines and the driver are threads that speak to the owner by its channel, as in the daemon; `shuttle` runs
//! them in orders of its choice, many thousands of them, and shows the one that breaks something. `SCHEDULES=n` says how many.
//!
//! What must hold in each: a client that waits is granted a lease, never refused and never forgotten; what is stopped serves
//! nobody; a model has one container at most; no byte is promised twice. Time passes only while nothing else is to do, up to the
//! next thing that is due soon: so an idle time ends before, between and after any two messages.
#![expect(clippy::unwrap_used, reason = "a panic is how a test reports its failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hostler::plan::{ReleaseRule, Rules, SleepRules, Usage, policy};
use hostler::supervisor::effect::Effect;
use hostler::supervisor::event::{Event, Observation, Passed};
use hostler::supervisor::health::HealthRules;
use hostler::supervisor::ports::{Endpoint, Launched};
use hostler::supervisor::state::{Settings, State};
use hostler::types::{
    Bytes, Eviction, GpuId, GpuReading, GpuSnapshot, Hours, InstanceId, ModelName, ModelSpec,
    Moment, WaiterId,
};
use shuttle::sync::mpsc::{Receiver, Sender, channel};
use shuttle::sync::{Arc, Mutex};
use shuttle::thread;

/// Memory of the one device; each model takes most of it, so that one makes the other leave.
const TOTAL: u64 = 100;
const SIZE: u64 = 60;
/// What is due later than this does not come about by itself.
const SOON: Duration = Duration::from_secs(30);
const NEVER: Duration = Duration::from_secs(100_000);

enum Message {
    Event(Event),
    /// A request, with where its answer goes.
    Asks(WaiterId, &'static str, Sender<InstanceId>),
    /// A client has what it came for, or left.
    Gone,
}

/// What is true, as opposed to what the core knows.
#[derive(Default)]
struct World {
    alive: BTreeMap<InstanceId, u64>,
    leases: BTreeMap<InstanceId, u32>,
}

fn spec(name: &str) -> ModelSpec {
    let text = format!(
        "[gpu]\nbackend = \"host\"\n[models.{name}]\nengine = \"llamacpp\"\nimage = \"localhost/e:1\"\nload_timeout = \"24h\"\nidle_timeout = \"10s\"\nhealth_interval = \"never\"\n"
    );
    let source = hostler::config::Source::settings("/test", text);
    let config = hostler::config::parse(&[source], &hostler::config::Defaults::system()).unwrap();
    let mut spec = ModelSpec::clone(config.models.values().next().unwrap());
    spec.vram = Some(Bytes(SIZE));
    spec
}

fn settings() -> Settings {
    Settings {
        max_wait: NEVER,
        max_queue: 64,
        drain_timeout: NEVER,
        headroom: Bytes(0),
        slack: Bytes(0),
        release: ReleaseRule::exact(NEVER),
        rules: Rules {
            policy: policy::named(Eviction::Lru),
            min_residency: Duration::ZERO,
            sleep: SleepRules::NEVER,
        },
        measure_after: None,
        turn_after: None,
        measure_hours: Hours::ALL,
        health: HealthRules::default(),
        seed: 1,
    }
}

struct Owner {
    state: State,
    now: Moment,
    tell: Sender<Message>,
    world: Arc<Mutex<World>>,
    pending: BTreeMap<WaiterId, Sender<InstanceId>>,
}

impl Owner {
    fn run(mut self, inbox: &Receiver<Message>, clients: usize) {
        let mut gone = 0;
        while gone < clients {
            let due = self.state.next_deadline().filter(|at| *at <= self.now + SOON);
            let message = match due {
                // Nothing is to do: time passes, or does not yet.
                Some(at) => match inbox.try_recv() {
                    Ok(message) => message,
                    Err(_) => {
                        self.now = self.now.max(at);
                        Message::Event(Event::Tick)
                    }
                },
                None => inbox.recv().unwrap(),
            };
            match message {
                Message::Event(event) => self.handle(event),
                Message::Asks(waiter, model, answer) => {
                    self.pending.insert(waiter, answer);
                    self.handle(Event::Acquire { waiter, model: model.to_owned(), wait: None });
                }
                Message::Gone => gone += 1,
            }
        }
    }

    fn handle(&mut self, event: Event) {
        if let Event::Cancel { waiter } = &event {
            self.pending.remove(waiter);
        }
        self.now = self.now + Duration::from_millis(1);
        for effect in self.state.handle(self.now, event) {
            self.obey(effect);
        }
    }

    /// Completions come from a thread of their own, whenever it is run.
    fn later(&self, work: impl FnOnce(&Mutex<World>) -> Event + Send + 'static) {
        let (tell, world) = (self.tell.clone(), self.world.clone());
        thread::spawn(move || {
            let event = work(&world);
            let _ = tell.send(Message::Event(event));
        });
    }

    fn obey(&mut self, effect: Effect) {
        match effect {
            Effect::Launch(order) => self.later(move |world| {
                let instance = order.instance;
                let mut world = world.lock().unwrap();
                let twin = world.alive.keys().find(|other| other.model == instance.model);
                assert_eq!(twin, None, "{instance} is a second container");
                world.alive.insert(instance.clone(), SIZE);
                let used: u64 = world.alive.values().sum();
                assert!(used <= TOTAL, "{:?} are more than there is", world.alive);
                let endpoint = Endpoint::Unix("/e".into());
                let (container, cgroup) = (instance.to_string(), "/c".into());
                let image_id = "1".to_owned();
                Event::Launched {
                    instance,
                    launched: Launched { container, cgroup, endpoint, image_id },
                }
            }),
            Effect::Provide { instance, .. } => {
                self.later(move |_| Event::Provided { instance, image_id: "1".to_owned() });
            }
            Effect::AwaitReady { instance, .. } => self.later(move |_| Event::Healthy { instance }),
            Effect::Stop { instance, .. } => {
                let leases = self.world.lock().unwrap().leases.get(&instance).copied().unwrap_or(0);
                assert_eq!(leases, 0, "{instance} is stopped under a request");
                self.later(move |world| {
                    world.lock().unwrap().alive.remove(&instance);
                    Event::Stopped { instance, result: Ok(()) }
                });
            }
            Effect::Observe => {
                // Begun now, told later: it may be old by then.
                let taken = self.now;
                self.later(move |world| Event::Observed(observe(&world.lock().unwrap(), taken)));
            }
            Effect::Grant { waiter, instance, .. } => {
                *self.world.lock().unwrap().leases.entry(instance.clone()).or_default() += 1;
                let taken = self
                    .pending
                    .remove(&waiter)
                    .is_some_and(|answer| answer.send(instance.clone()).is_ok());
                if !taken {
                    // As the daemon's lease does when nobody takes it.
                    give_back(&self.world, &self.tell, instance);
                }
            }
            Effect::Deny { waiter, denied } => panic!("{waiter:?} is refused: {denied}"),
            Effect::Notice(_) | Effect::Save(_) | Effect::KeepPins(_) | Effect::Done { .. } => {}
            other @ (Effect::Sleep { .. }
            | Effect::Wake { .. }
            | Effect::Canary { .. }
            | Effect::Check { .. }
            | Effect::Reap { .. }
            | Effect::Exit) => panic!("nobody asked for {other:?}"),
        }
    }
}

fn observe(world: &World, taken: Moment) -> Observation {
    let id = GpuId::host();
    let used = Bytes(world.alive.values().sum());
    let device = GpuReading {
        id: id.clone(),
        name: "X".into(),
        total: Bytes(TOTAL),
        used,
        processes: vec![],
    };
    let devices = Ok(GpuSnapshot { devices: vec![device], lost: vec![], driver: String::new() });
    let usage = world.alive.iter().map(|(instance, bytes)| {
        let bytes = BTreeMap::from([(id.clone(), hostler::types::Known::Known(Bytes(*bytes)))]);
        (instance.clone(), Usage { pids: vec![1], bytes })
    });
    Observation { taken, unix_s: 1_800_000_000, devices, usage: usage.collect() }
}

fn give_back(world: &Mutex<World>, tell: &Sender<Message>, instance: InstanceId) {
    *world.lock().unwrap().leases.get_mut(&instance).unwrap() -= 1;
    let back = Event::Used(vec![Passed { instance, taken: 0, returned: 1 }]);
    let _ = tell.send(Message::Event(back));
}

/// A request; `patient` or not: one that is not leaves at once, whatever has become of it.
fn client(
    tell: &Sender<Message>,
    world: &Mutex<World>,
    waiter: u64,
    model: &'static str,
    patient: bool,
) {
    let waiter = WaiterId(waiter);
    let (answer, granted) = channel();
    tell.send(Message::Asks(waiter, model, answer)).unwrap();
    if patient {
        let instance = granted.recv().unwrap();
        let world_now = world.lock().unwrap();
        assert!(
            world_now.alive.contains_key(&instance),
            "a lease on {instance}, which is not there"
        );
        drop(world_now);
        thread::yield_now();
        assert!(
            world.lock().unwrap().alive.contains_key(&instance),
            "{instance} was stopped under its request"
        );
        give_back(world, tell, instance);
    } else {
        thread::yield_now();
        tell.send(Message::Event(Event::Cancel { waiter })).unwrap();
        // A grant that crossed it comes back by itself.
        if let Ok(instance) = granted.try_recv() {
            give_back(world, tell, instance);
        }
    }
    let _ = tell.send(Message::Gone);
}

/// One world, from the first message to the last.
fn history(requests: &'static [(&'static str, bool)]) {
    let specs: BTreeMap<ModelName, _> =
        ["a", "b"].map(|name| (name.parse().unwrap(), std::sync::Arc::new(spec_of(name)))).into();
    let (tell, inbox) = channel();
    let world = Arc::new(Mutex::new(World::default()));
    let state = State::new(settings(), &specs);
    let pending = BTreeMap::new();
    let now = Moment::from_secs(1);
    let mut owner = Owner { state, now, tell: tell.clone(), world: world.clone(), pending };
    owner.handle(Event::Observed(observe(&World::default(), now)));
    owner.handle(Event::Found(vec![]));
    let threads: Vec<_> = (1..)
        .zip(requests)
        .map(|(waiter, (model, patient))| {
            let (tell, world) = (tell.clone(), world.clone());
            thread::spawn(move || client(&tell, &world, waiter, model, *patient))
        })
        .collect();
    owner.run(&inbox, requests.len());
    for thread in threads {
        thread.join().unwrap();
    }
    let world = world.lock().unwrap();
    let models: BTreeSet<_> = world.alive.keys().map(|id| &id.model).collect();
    assert_eq!(models.len(), world.alive.len());
}

/// Parsing a configuration is most of a history otherwise.
fn spec_of(name: &str) -> ModelSpec {
    use std::sync::OnceLock;
    static SPECS: OnceLock<BTreeMap<&'static str, ModelSpec>> = OnceLock::new();
    SPECS.get_or_init(|| ["a", "b"].map(|name| (name, spec(name))).into())[name].clone()
}

fn count() -> usize {
    std::env::var("SCHEDULES").ok().map_or(1_000, |text| text.parse().unwrap())
}

#[test]
fn fault_18_an_idle_unload_never_beats_a_request() {
    shuttle::check_random(|| history(&[("a", true), ("a", true), ("a", true)]), count());
}

#[test]
fn evictions_wait_for_requests_and_requests_for_evictions() {
    shuttle::check_random(
        || history(&[("a", true), ("b", true), ("a", true), ("b", true)]),
        count(),
    );
}

#[test]
fn those_who_leave_leave_no_trace() {
    shuttle::check_random(
        || history(&[("a", false), ("b", true), ("a", true), ("a", false)]),
        count(),
    );
}
