//! The daemon's own supervisor and server, over containers that are tasks of this process.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use hostler::adapters::engine::Profiles;
use hostler::config::{self, Defaults, Source};
use hostler::console::Desk;
use hostler::console::metrics::Scrapes;
use hostler::control::polkit::Gate;
use hostler::control::{Context, Facts};
use hostler::observe::metrics::Metrics;
use hostler::observe::timeline::Timeline;
use hostler::plan::{ReleaseRule, Rules as Planning, SleepRules, policy};
use hostler::proxy::port::{Behind, Observer};
use hostler::proxy::{Key, Limits, Rules, Server, Upstream};
use hostler::supervisor::health::HealthRules;
use hostler::supervisor::state::Settings;
use hostler::supervisor::task::{Clock, Ports, Supervisor};
use hostler::supervisor::witness::Witness;
use hostler::types::{Bytes, Eviction, Hours};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::world::World;

/// A client's key.
pub const KEY: &str = "sk-test";
/// An administrator's.
pub const ADMIN: &str = "sk-boss";

/// Who sees its requests, and what happens to its models.
pub type Watchers = (Arc<dyn Observer>, Arc<dyn Witness>);

pub struct House {
    pub address: SocketAddr,
    _world: Arc<World>,
    _stop: tokio_util::sync::DropGuard,
}

impl House {
    /// Models of one engine each, by the keys of their configuration; `knobs` are the stand-in's.
    pub async fn new(model: &str, knobs: &[(&str, &str)], rules: impl FnOnce(&mut Rules)) -> Self {
        Self::watched(model, knobs, rules, |_, metrics, timeline| {
            (metrics.clone(), Arc::new((metrics, timeline)))
        })
        .await
    }

    /// The same with somebody who looks on.
    pub async fn watched(
        model: &str,
        knobs: &[(&str, &str)],
        rules: impl FnOnce(&mut Rules),
        watchers: impl FnOnce(&Arc<World>, Arc<Metrics>, Arc<Timeline>) -> Watchers,
    ) -> Self {
        let root = tempfile::tempdir().unwrap();
        let common = [("FAKE_RATE", "500"), ("FAKE_TTFT", "5ms")];
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let env = common.iter().chain(knobs).map(pair).collect();
        let world =
            Arc::new(World { root, env, containers: Mutex::default(), elsewhere: OnceLock::new() });
        let text = format!(
            "[gpu]\nbackend = \"host\"\n[models.\"org/fake\"]\nengine = \"llamacpp\"\n\
             image = \"localhost/e\"\naliases = [\"gpt-4o\", \"claude-x\"]\nvram = \"1GiB\"\n{model}\n"
        );
        let config = config::parse(&[Source::settings("/f", text)], &Defaults::system()).unwrap();
        let settings = Settings {
            max_wait: Duration::from_secs(60),
            max_queue: 100,
            drain_timeout: Duration::from_secs(1),
            headroom: Bytes::ZERO,
            slack: Bytes::ZERO,
            release: ReleaseRule::default(),
            rules: Planning {
                policy: policy::named(Eviction::Cost),
                min_residency: Duration::ZERO,
                sleep: SleepRules { host_ram_budget: Bytes::ZERO, residual_max: Bytes::ZERO },
            },
            measure_after: None,
            turn_after: None,
            measure_hours: Hours::ALL,
            health: HealthRules::default(),
            seed: 1,
        };
        let ports = Ports {
            containers: world.clone(),
            gpus: world.clone(),
            engines: Arc::new(Profiles::default()),
            shelf: world.clone(),
        };
        let (gpus, engines) = (ports.gpus.clone(), ports.engines.clone());
        let (mut supervisor, handle) = Supervisor::new(
            settings,
            &config.models,
            ports,
            Clock::start(),
            vec![],
            world.devices(),
        );
        let (metrics, timeline) = (Arc::new(Metrics::default()), Arc::new(Timeline::default()));
        let (observer, witness) = watchers(&world, metrics.clone(), timeline.clone());
        supervisor.witnessed_by(witness);
        let running = supervisor.spawn(handle.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let models = config.models.values();
        let mut all = Rules {
            keys: vec![key("tester", KEY, false), key("boss", ADMIN, true)],
            aliases: models
                .clone()
                .flat_map(|m| m.aliases.iter().map(|a| (a.clone(), m.name.clone())))
                .collect(),
            models: models.map(|m| (m.name.clone(), Arc::new(m.door.clone()))).collect(),
            ..Rules::default()
        };
        rules(&mut all);
        let (all, behind) = (all.shared(), Behind::default());
        world.elsewhere.set((all.clone(), behind.healths.clone())).unwrap();
        let (facts, gate) = (facts(), Gate::Owner { uid: 0 });
        let handle = running.handle;
        let scrapes = Scrapes { handle: handle.clone(), metrics, gpus, engines };
        let desk = Desk {
            scrapes,
            timeline,
            control: Context::new(handle.clone(), world.clone(), facts, gate),
            runtime: tokio::runtime::Handle::current(),
        };
        let behind = Behind { observer, console: Arc::new(desk), ..behind };
        let (limits, upstream) = (Limits::default(), Upstream::default());
        let server = Server::with(handle, limits, upstream, all, behind);
        let stop = CancellationToken::new();
        tokio::spawn(server.serve(vec![listener.into()], stop.clone(), Duration::from_secs(1)));
        Self { address, _world: world, _stop: stop.drop_guard() }
    }
}

fn facts() -> Facts {
    Facts { version: "0.1.0".into(), podman: "5.4.2".into(), listeners: vec![] }
}

fn key(name: &str, secret: &str, admin: bool) -> Key {
    Key {
        name: name.into(),
        digest: Sha256::digest(secret).into(),
        models: vec![],
        per_minute: None,
        concurrent: None,
        share: 1,
        admin,
    }
}
