//! The server with everything around it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hostler::proxy::port::{Behind, Observer, Seen, Side};
use hostler::proxy::{Drained, Key, Limits, Listener, Rules, Server, SharedRules, Upstream};
use hostler::supervisor::handle::{Ask, Handle, Lease};
use hostler::supervisor::ports::Endpoint;
use hostler::types::{
    Denied, Generation, HealthStatus, InstanceId, Known, ModelName, ModelStatus, Phase, Status,
};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Family, Step};
use crate::wire::{self, Client, Reply};

/// How the scripted supervisor answers.
#[derive(Clone, Debug)]
pub enum Policy {
    Grant,
    Deny(Denied),
    /// Keeps callers waiting until [`Supervisor::grant_held`].
    Hold,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Happened {
    Asked(String),
    /// Where a ready engine listens, for which nothing is loaded.
    Reached(String),
    Cancelled,
    Released,
}

type Answer = oneshot::Sender<Result<Lease, Denied>>;

pub struct Supervisor {
    pub happened: mpsc::UnboundedReceiver<Happened>,
    pub status: watch::Sender<Arc<Status>>,
    /// Something is counted that it should look at: here, that a request waits for its turn. Told once.
    pub stirred: Arc<Notify>,
    held: Arc<Mutex<Vec<Answer>>>,
    handle: Handle,
    endpoint: Endpoint,
}

impl Supervisor {
    fn start(policy: Policy, endpoint: Endpoint, status: Status) -> Self {
        let (handle, mut asks, publish) = Handle::scripted(status);
        let (report, happened) = mpsc::unbounded_channel();
        let held = Arc::new(Mutex::new(Vec::new()));
        let (keep, giver, target) = (held.clone(), handle.clone(), endpoint.clone());
        let stirred = Arc::new(Notify::new());
        let stir = stirred.clone();
        tokio::spawn(async move {
            while let Some(ask) = asks.recv().await {
                match ask {
                    Ask::Acquire { model, answer, .. } => {
                        let _ = report.send(Happened::Asked(model));
                        match &policy {
                            Policy::Grant => drop(answer.send(Ok(lease(&giver, &target)))),
                            Policy::Deny(denied) => drop(answer.send(Err(denied.clone()))),
                            Policy::Hold => keep.lock().unwrap().push(answer),
                        }
                    }
                    Ask::Reach { model, answer } => {
                        let _ = report.send(Happened::Reached(model.to_string()));
                        let _ = answer.send(Ok((instance(), target.clone())));
                    }
                    Ask::Cancel { .. } => drop(report.send(Happened::Cancelled)),
                    Ask::Release { .. } => drop(report.send(Happened::Released)),
                    Ask::Stir => stir.notify_one(),
                    other @ (Ask::Operate { .. }
                    | Ask::Preview { .. }
                    | Ask::Trouble { .. }
                    | Ask::Configure(..)
                    | Ask::Shutdown { .. }) => {
                        panic!("the proxy must not ask for {other:?}")
                    }
                }
            }
        });
        Self { happened, status: publish, stirred, held, handle, endpoint }
    }

    pub async fn next(&mut self) -> Happened {
        wire::soon("the supervisor to be asked", self.happened.recv()).await.unwrap()
    }

    pub async fn expect(&mut self, want: &[Happened]) {
        for want in want {
            assert_eq!(self.next().await, *want);
        }
    }

    /// Asserts that nothing else was asked for.
    pub fn quiet(&mut self) {
        if let Ok(happened) = self.happened.try_recv() {
            panic!("the supervisor saw {happened:?}");
        }
    }

    /// Refuses all who wait.
    pub fn deny_held(&self, denied: &Denied) {
        for answer in std::mem::take(&mut *self.held.lock().unwrap()) {
            let _ = answer.send(Err(denied.clone()));
        }
    }

    /// Changes what is seen of a model.
    pub fn show(&self, name: &str, change: impl FnOnce(&mut ModelStatus)) {
        self.status.send_modify(|status| {
            let mut changed = (**status).clone();
            change(changed.models.iter_mut().find(|m| m.name.as_str() == name).unwrap());
            *status = Arc::new(changed);
        });
    }

    /// Grants a lease to all who wait; `false` for each that has left (its lease comes back).
    pub fn grant_held(&self) -> Vec<bool> {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        held.into_iter().map(|a| a.send(Ok(lease(&self.handle, &self.endpoint))).is_ok()).collect()
    }
}

/// Of what every lease is.
pub fn instance() -> InstanceId {
    InstanceId::new("m".parse().unwrap(), Generation(1), 1)
}

fn lease(handle: &Handle, endpoint: &Endpoint) -> Lease {
    let instance = instance();
    Lease::scripted(instance, endpoint.clone(), handle)
}

/// How a request ended.
#[derive(Debug)]
pub struct End {
    pub instance: Option<InstanceId>,
    pub status: Option<u16>,
    pub refused: Option<&'static str>,
    pub broken_by: Option<Side>,
    pub queue: Option<Duration>,
    pub total: Duration,
    pub bytes: u64,
}

/// Passes on how requests end.
pub struct Ends(mpsc::UnboundedSender<End>);

impl Ends {
    pub fn behind() -> (Behind, mpsc::UnboundedReceiver<End>) {
        let (report, ends) = mpsc::unbounded_channel();
        (Behind { observer: Arc::new(Self(report)), ..Behind::default() }, ends)
    }
}

impl Observer for Ends {
    fn begun(&self) {}

    fn ended(&self, seen: &Seen<'_>) {
        let _ = self.0.send(End {
            instance: seen.instance.cloned(),
            status: seen.status,
            refused: seen.refused,
            broken_by: seen.broken_by,
            queue: seen.queue,
            total: seen.total,
            bytes: seen.bytes,
        });
    }
}

/// A key for all models, whose secret is `sk-` and its name.
pub fn key(name: &str) -> Key {
    Key {
        name: name.into(),
        digest: Sha256::digest(format!("sk-{name}")).into(),
        models: vec![],
        per_minute: None,
        concurrent: None,
        share: 1,
        admin: false,
    }
}

/// The rules of a configuration with the two models and nothing else.
pub fn rules() -> Rules {
    let name = |n: &str| -> ModelName { n.parse().unwrap() };
    Rules {
        models: [name("m"), name("org/big")].map(|m| (m, Arc::default())).into(),
        aliases: [(name("gpt-4o"), name("m"))].into(),
        ..Rules::default()
    }
}

/// What to build.
pub struct Setup {
    pub family: Family,
    pub script: Vec<Step>,
    /// Where the engine is, if it is not the scripted one.
    pub endpoint: Option<Endpoint>,
    pub policy: Policy,
    pub limits: Limits,
    pub upstream: Upstream,
    pub drain: Duration,
    pub rules: Rules,
    pub behind: Behind,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            family: Family::Unix,
            script: vec![],
            endpoint: None,
            policy: Policy::Grant,
            limits: Limits::default(),
            upstream: Upstream::default(),
            drain: Duration::from_secs(10),
            rules: rules(),
            behind: Behind::default(),
        }
    }
}

pub struct House {
    pub tcp: SocketAddr,
    pub unix: PathBuf,
    /// Where there are metrics alone.
    pub monitoring: SocketAddr,
    pub engine: Engine,
    pub supervisor: Supervisor,
    pub rules: SharedRules,
    pub stop: CancellationToken,
    pub served: JoinHandle<Drained>,
    _dir: tempfile::TempDir,
}

pub async fn house(setup: Setup) -> House {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::start(setup.family, dir.path(), setup.script).await;
    let endpoint = setup.endpoint.unwrap_or_else(|| engine.endpoint.clone());
    let supervisor = Supervisor::start(setup.policy, endpoint, two_models());
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let unix = dir.path().join("http.sock");
    let scrapes = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let monitoring = scrapes.local_addr().unwrap();
    let listeners =
        vec![tcp.into(), UnixListener::bind(&unix).unwrap().into(), Listener::Scrapes(scrapes)];
    let (handle, rules) = (supervisor.handle.clone(), setup.rules.shared());
    let server = Server::with(handle, setup.limits, setup.upstream, rules.clone(), setup.behind);
    let stop = CancellationToken::new();
    let served = tokio::spawn(server.serve(listeners, stop.clone(), setup.drain));
    House { tcp: address, unix, monitoring, engine, supervisor, rules, stop, served, _dir: dir }
}

/// A house whose engine plays `script`.
pub async fn playing(script: Vec<Step>) -> House {
    house(Setup { script, ..Setup::default() }).await
}

impl House {
    pub async fn client(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.tcp).await.unwrap())
    }

    pub async fn unix_client(&self) -> Client<UnixStream> {
        Client::new(UnixStream::connect(&self.unix).await.unwrap())
    }

    /// One request on a connection of its own.
    pub async fn ask(&self, request: impl AsRef<[u8]>) -> Reply {
        let mut client = self.client().await;
        client.send(request).await;
        client.reply().await
    }
}

fn two_models() -> Status {
    let model = |name: &str, aliases: &[&str]| ModelStatus {
        name: name.parse().unwrap(),
        aliases: aliases.iter().map(|a| a.parse().unwrap()).collect(),
        engine: "llamacpp",
        image: "localhost/llama-server:1".to_owned(),
        image_id: None,
        context: None,
        phase: Phase::Stopped,
        instance: None,
        container: None,
        gpus: vec![],
        planned: None,
        footprint: None,
        observed: Known::Unknown,
        in_flight: 0,
        queued: 0,
        pinned: false,
        idle_timeout: None,
        progress: None,
        restarts: 0,
        chunks: 0,
        last_used: None,
        load_ms: None,
        error: None,
        waiting_for: None,
        report: None,
        sleep: None,
        health: HealthStatus::default(),
    };
    Status { models: vec![model("m", &["gpt-4o"]), model("org/big", &[])], ..Status::default() }
}
