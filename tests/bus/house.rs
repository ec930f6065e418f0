//! The private bus, the daemon's half on it, and the other ends of everything.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use hostler::control::bus::{self, Bus};
use hostler::control::polkit::Gate;
use hostler::control::{Context, Facts, Host, HostFuture, Reloaded};
use hostler::supervisor::handle::{Ask, Handle};
use hostler::types::{
    Bytes, Check, ExternalStatus, Generation, GpuId, GpuProcess, GpuStatus, HealthStatus,
    InstanceId, Known, ModelName, ModelStatus, Moment, Need, NeedSource, Phase, Status,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// A dbus-daemon that ends with this.
pub struct Daemon {
    child: Child,
    pub address: String,
}

impl Daemon {
    pub fn start(address: &str) -> Self {
        let mut child = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", "--print-address", "--address", address])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|err| panic!("dbus-daemon: {err}; run tests/host/prereqs.sh"));
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, address: line.trim().to_owned() }
    }
}

impl Daemon {
    /// It answers nobody from now on.
    pub fn hang(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a test lets the composition root answer.
#[derive(Default)]
pub struct Root {
    pub checks: Mutex<Vec<Check>>,
    pub reload: Mutex<Option<Result<Reloaded, String>>>,
    /// The next reload says to the first that it has begun, and waits for the second.
    pub reloads_at: Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>>,
    pub log: Mutex<Option<Result<OwnedFd, String>>>,
    pub externals: Mutex<Vec<ExternalStatus>>,
    /// What was asked.
    pub asked: Mutex<Vec<String>>,
}

impl Host for Root {
    fn validate(&self) -> HostFuture<'_, Vec<Check>> {
        self.asked.lock().unwrap().push("validate".to_owned());
        let checks = self.checks.lock().unwrap().clone();
        Box::pin(async move { checks })
    }

    fn reload(&self) -> HostFuture<'_, Result<Reloaded, String>> {
        self.asked.lock().unwrap().push("reload".to_owned());
        let answer = self.reload.lock().unwrap().clone().unwrap_or_else(|| Ok(Reloaded::default()));
        let at = self.reloads_at.lock().unwrap().take();
        Box::pin(async move {
            if let Some((begun, go)) = at {
                begun.send(()).unwrap();
                let _ = go.await;
            }
            answer
        })
    }

    fn catch_up(&self) -> HostFuture<'_, ()> {
        self.asked.lock().unwrap().push("catch up".to_owned());
        Box::pin(async {})
    }

    fn open_log(
        &self,
        instance: InstanceId,
        lines: Option<usize>,
        follow: bool,
    ) -> HostFuture<'_, Result<OwnedFd, String>> {
        self.asked.lock().unwrap().push(format!("log {instance} {lines:?} {follow}"));
        let answer = self.log.lock().unwrap().take().unwrap_or_else(|| Err("no log".to_owned()));
        Box::pin(async move { answer })
    }

    fn externals(&self) -> Vec<ExternalStatus> {
        self.externals.lock().unwrap().clone()
    }
}

/// All of it.
pub struct House {
    pub daemon: Daemon,
    pub root: Arc<Root>,
    pub asks: mpsc::UnboundedReceiver<Ask>,
    pub status: watch::Sender<Arc<Status>>,
    stop: CancellationToken,
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl House {
    pub async fn open(status: Status) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self::with(status, Gate::Owner { uid }).await
    }

    pub async fn with(status: Status, gate: Gate) -> Self {
        Self::on(Daemon::start("unix:tmpdir=/tmp"), status, gate).await
    }

    /// On a bus that may have others on it.
    pub async fn on(daemon: Daemon, status: Status, gate: Gate) -> Self {
        let (handle, asks, status) = Handle::scripted(status);
        let root = Arc::new(Root::default());
        let facts = Facts {
            version: "1.2.3".to_owned(),
            podman: "5.4.2".to_owned(),
            listeners: vec!["127.0.0.1:8711".to_owned(), "/run/hostler/http.sock".to_owned()],
        };
        let context = Context::new(handle, root.clone(), facts, gate);
        let stop = CancellationToken::new();
        let (first, ready) = oneshot::channel();
        let bus = Bus::Address(daemon.address.clone());
        tokio::spawn(bus::run(context, bus, stop.clone(), first));
        ready.await.unwrap();
        Self { daemon, root, asks, status, stop }
    }

    /// A client of its own.
    pub async fn client(&self) -> zbus::Connection {
        zbus::connection::Builder::address(self.daemon.address.as_str()).build().await.unwrap()
    }

    /// `busctl` with arguments; its output.
    pub async fn busctl(&self, args: &[&str]) -> Result<String, String> {
        let address = format!("--address={}", self.daemon.address);
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        let run = move || Command::new("busctl").arg(address).args(args).output().unwrap();
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// `busctl call` of the manager.
    pub async fn manager(&self, args: &[&str]) -> Result<String, String> {
        let call = ["call", "org.hostler1", "/org/hostler1", "org.hostler1.Manager"];
        self.busctl(&[&call, args].concat()).await
    }
}

impl House {
    /// `busctl get-property`.
    pub async fn get(&self, object: &str, interface: &str, property: &str) -> String {
        let get = ["get-property", "org.hostler1", object, interface, property];
        self.busctl(&get).await.unwrap()
    }

    /// `busctl call` of the ready model.
    pub async fn model(&self, args: &[&str]) -> Result<String, String> {
        let call = ["call", "org.hostler1", "/org/hostler1/model/org_2fm", "org.hostler1.Model"];
        self.busctl(&[&call, args].concat()).await
    }

    /// Everything that the daemon says from now on.
    pub async fn monitor(&self) -> Monitor {
        let client = self.client().await;
        let rule = zbus::MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender("org.hostler1")
            .build()
            .unwrap();
        let stream = zbus::MessageStream::for_match_rule(rule, &client, None).await.unwrap();
        Monitor { stream, seen: Vec::new() }
    }
}

/// Signals, as lines.
pub struct Monitor {
    stream: zbus::MessageStream,
    seen: Vec<String>,
}

impl Monitor {
    /// Waits for a signal that was not waited for before.
    pub async fn until(&mut self, want: &str) {
        let wait = async {
            loop {
                if let Some(at) = self.seen.iter().position(|line| line.starts_with(want)) {
                    self.seen.remove(at);
                    return;
                }
                let message = self.stream.next().await.unwrap().unwrap();
                self.seen.extend(lines(&message));
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(found.is_ok(), "no {want:?} in {:#?}", self.seen);
    }

    /// Whether one has come that was not waited for.
    pub fn has(&self, what: &str) -> bool {
        self.seen.iter().any(|line| line.starts_with(what))
    }
}

/// A signal as one line, `PropertiesChanged` as one for each property: `+` with its value, `-` without.
fn lines(message: &zbus::Message) -> Vec<String> {
    let header = message.header();
    let member = header.member().unwrap().to_string();
    let body = message.body();
    match member.as_str() {
        "PropertiesChanged" => {
            type Changed = (String, BTreeMap<String, zbus::OwnedVariant>, Vec<String>);
            let (interface, values, stale): Changed = body.deserialize().unwrap();
            let values = values.keys().map(|name| format!("+{name}"));
            let stale = stale.iter().map(|name| format!("-{name}"));
            values.chain(stale).map(|what| format!("{member} {interface} {what}")).collect()
        }
        "InterfacesAdded" => {
            type Added =
                (zbus::OwnedObjectPath, BTreeMap<String, BTreeMap<String, zbus::OwnedVariant>>);
            let (object, _): Added = body.deserialize().unwrap();
            vec![format!("{member} {object}")]
        }
        "InterfacesRemoved" => {
            let (object, _): (zbus::OwnedObjectPath, Vec<String>) = body.deserialize().unwrap();
            vec![format!("{member} {object}")]
        }
        "JobNew" => {
            let (object, kind, model): (zbus::OwnedObjectPath, String, String) =
                body.deserialize().unwrap();
            vec![format!("{member} {object} {kind} {model}")]
        }
        _ => {
            let (object, a, b, c): (zbus::OwnedObjectPath, String, String, String) =
                body.deserialize().unwrap();
            vec![format!("{member} {object} {a} {b} {c}")]
        }
    }
}

/// A ready model with an alias, a stopped one, a device.
pub fn status() -> Status {
    let gpu = GpuId::new("GPU-1");
    let name: ModelName = "org/m".parse().unwrap();
    let ready = ModelStatus {
        name: name.clone(),
        aliases: vec!["gpt-4o".parse().unwrap()],
        engine: "vllm",
        image: "localhost/vllm:1".to_owned(),
        image_id: Some("f00d".to_owned()),
        context: Some(4096),
        phase: Phase::Ready,
        instance: Some(InstanceId::new(name.clone(), Generation(3), 0xbeef)),
        container: Some("c0ffee".to_owned()),
        gpus: vec![gpu.clone()],
        planned: Some(Need { bytes: Bytes::gib(2), source: NeedSource::Declared }),
        footprint: None,
        observed: Known::Known(Bytes::gib(1)),
        in_flight: 2,
        queued: 1,
        pinned: false,
        idle_timeout: Some(Duration::from_secs(60)),
        progress: None,
        restarts: 1,
        chunks: 1234,
        last_used: Some(Moment::from_secs(5)),
        load_ms: Some(1500),
        error: None,
        waiting_for: None,
        report: None,
        sleep: None,
        health: HealthStatus::default(),
    };
    let stopped = ModelStatus {
        name: "small".parse().unwrap(),
        aliases: vec![],
        engine: "llamacpp",
        image: "localhost/llama-server:1".to_owned(),
        image_id: None,
        context: None,
        phase: Phase::Stopped,
        instance: None,
        container: None,
        gpus: vec![],
        planned: None,
        observed: Known::Unknown,
        in_flight: 0,
        queued: 0,
        idle_timeout: None,
        restarts: 0,
        last_used: None,
        load_ms: None,
        ..ready.clone()
    };
    let device = GpuStatus {
        id: gpu,
        name: "H200".to_owned(),
        total: Known::Known(Bytes::gib(8)),
        headroom: Bytes::mib(512),
        reserved: Bytes::ZERO,
        confirmed: Bytes::gib(2),
        releasing: Bytes::ZERO,
        quarantined: Bytes::ZERO,
        foreign: Known::Unknown,
        free: Known::Known(Bytes::gib(5)),
        processes: vec![
            GpuProcess { pid: 7, model: Some(name), bytes: Known::Known(Bytes::gib(1)) },
            GpuProcess { pid: 8, model: None, bytes: Known::Unknown },
        ],
    };
    Status { models: vec![ready, stopped], gpus: vec![device], ..Status::default() }
}
