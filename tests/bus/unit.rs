//! A model as a unit: the process of `hostler-model@NAME.service`, with the test as its systemd.
#![expect(clippy::disallowed_types, reason = "the macro of D-Bus interfaces names HashMap")]

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hostler::control::error::Error;
use hostler::control::options::Options;
use hostler::control::polkit::Gate;
use hostler::supervisor::handle::Verb;
use hostler::types::{Denied, Fault, FaultCode, Haste, Wish};
use rustix::process::Signal;
use tokio::sync::Notify;
use zbus::OwnedObjectPath;

use crate::cli::{end, next, spawn, spawn_on};
use crate::house::{Daemon, House, status};
use crate::signals::send;

/// Who is told how a unit is.
struct Systemd {
    socket: Arc<UnixDatagram>,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Systemd {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = Arc::new(UnixDatagram::bind(&path).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { socket, path, _dir: dir }
    }

    /// What a process finds it by.
    fn env(&self) -> [(&str, &str); 1] {
        [("NOTIFY_SOCKET", self.path.to_str().unwrap())]
    }

    /// The next state that it is told, of those that begin so.
    async fn told(&self, begins: &'static str) -> String {
        let socket = Arc::clone(&self.socket);
        let wait = tokio::task::spawn_blocking(move || {
            let mut buffer = [0_u8; 4096];
            loop {
                let count = socket.recv(&mut buffer).unwrap();
                let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                if let Some(line) = text.lines().find(|line| line.starts_with(begins)) {
                    return line.to_owned();
                }
            }
        });
        tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap().unwrap()
    }
}

/// A daemon that is nothing but its manager.
async fn serve(daemon: &Daemon, manager: impl zbus::object_server::Interface) -> zbus::Connection {
    zbus::connection::Builder::address(daemon.address.as_str())
        .serve_at("/org/hostler1", manager)
        .name("org.hostler1")
        .build()
        .await
        .unwrap()
}

/// systemd's manager on the bus, as far as it is asked: the daemon's unit in a state, and the job of the model's.
#[derive(Clone)]
struct Manager(Arc<Mutex<Told>>);

struct Told {
    active: &'static str,
    sub: &'static str,
    job: &'static str,
}

impl Manager {
    /// On a bus until the connection ends.
    async fn on(
        address: &str,
        active: &'static str,
        sub: &'static str,
    ) -> (Self, zbus::Connection) {
        let manager = Self(Arc::new(Mutex::new(Told { active, sub, job: "stop" })));
        let path = |text: &'static str| OwnedObjectPath::try_from(text).unwrap();
        let bus = zbus::connection::Builder::address(address)
            .serve_at("/org/freedesktop/systemd1", Asked)
            .serve_at(path("/unit"), Unit(manager.clone()))
            .serve_at(path("/job"), Job(manager.clone()))
            .name("org.freedesktop.systemd1")
            .build()
            .await
            .unwrap();
        (manager, bus)
    }

    fn set(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.0.lock().unwrap());
    }
}

struct Asked;

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Asked {
    fn get_unit(&self, _name: String) -> OwnedObjectPath {
        OwnedObjectPath::try_from("/unit").unwrap()
    }

    #[zbus(name = "GetUnitByPID")]
    fn get_unit_by_pid(&self, _pid: u32) -> OwnedObjectPath {
        OwnedObjectPath::try_from("/unit").unwrap()
    }
}

struct Unit(Manager);

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn active_state(&self) -> String {
        self.0.0.lock().unwrap().active.to_owned()
    }

    #[zbus(property)]
    fn sub_state(&self) -> String {
        self.0.0.lock().unwrap().sub.to_owned()
    }

    #[zbus(property)]
    fn job(&self) -> (u32, OwnedObjectPath) {
        (1, OwnedObjectPath::try_from("/job").unwrap())
    }
}

struct Job(Manager);

#[zbus::interface(name = "org.freedesktop.systemd1.Job")]
impl Job {
    #[zbus(property)]
    fn job_type(&self) -> String {
        self.0.0.lock().unwrap().job.to_owned()
    }
}

/// The unit asks for its model, with a pin, and is ready with it.
async fn is_loaded(house: &mut House, systemd: &Systemd) {
    let (model, verb, answer) = next(house).await;
    let wish = Wish { pin: true, ..Wish::default() };
    assert_eq!((model.as_str(), verb), ("small", Verb::Load(wish)));
    answer.send(Ok(())).unwrap();
    systemd.told("READY=1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_a_models_unit_leaves_the_model_as_it_is() {
    let mut first = status();
    first.models[1].pinned = true;
    let mut house = House::open(first).await;
    let (manager, _bus) = Manager::on(&house.daemon.address, "active", "running").await;
    manager.set(|told| told.job = "restart");
    for _ in 0..2 {
        let systemd = Systemd::new();
        let child = spawn(&house, &["unit", "small", "small"], &systemd.env());
        // The next process finds it: nothing was asked for in between.
        is_loaded(&mut house, &systemd).await;
        send(&child, Signal::TERM);
        let ended = tokio::select! {
            ended = end(child) => ended,
            (_, verb, _) = next(&mut house) => panic!("it asked for {verb:?}"),
        };
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    // In the middle of its load as well, and with a stop it goes.
    for job in ["restart", "stop"] {
        manager.set(|told| told.job = job);
        let child = spawn(&house, &["unit", "small", "small"], &[]);
        let (_, verb, _answer) = next(&mut house).await;
        assert!(matches!(verb, Verb::Load(_)), "{verb:?}");
        send(&child, Signal::TERM);
        if job == "stop" {
            let (_, verb, answer) = next(&mut house).await;
            assert_eq!(verb, Verb::Unload(Haste::Drain));
            answer.send(Ok(())).unwrap();
        }
        let ended = tokio::select! {
            ended = end(child) => ended,
            (_, verb, _) = next(&mut house) => panic!("it asked for {verb:?}"),
        };
        assert_eq!(ended.code, 0, "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_to_be_started_again_is_waited_for() {
    let daemon = Daemon::start("unix:tmpdir=/tmp");
    let (manager, _bus) = Manager::on(&daemon.address, "activating", "auto-restart").await;
    let systemd = Systemd::new();
    let child = spawn_on(&daemon.address, &["unit", "small", "small"], &systemd.env());
    systemd.told("STATUS=There is no daemon yet").await;
    manager.set(|told| (told.active, told.sub) = ("active", "running"));
    let mut first = status();
    first.models[1].pinned = true;
    let uid = rustix::process::geteuid().as_raw();
    let mut house = House::on(daemon, first, Gate::Owner { uid }).await;
    let (_, verb, answer) = next(&mut house).await;
    assert!(matches!(verb, Verb::Load(_)), "{verb:?}");
    answer.send(Ok(())).unwrap();
    systemd.told("READY=1").await;
    send(&child, Signal::TERM);
    let (_, verb, answer) = next(&mut house).await;
    assert_eq!(verb, Verb::Unload(Haste::Drain));
    answer.send(Ok(())).unwrap();
    assert_eq!(end(child).await.code, 0);

    // One that systemd does not try either is said to be none, at once.
    let daemon = Daemon::start("unix:tmpdir=/tmp");
    let (_manager, _bus) = Manager::on(&daemon.address, "failed", "failed").await;
    let ended = end(spawn_on(&daemon.address, &["unit", "small", "small"], &[])).await;
    assert_eq!(ended.code, 3, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_models_unit_is_ready_with_its_model_and_lets_it_go() {
    let mut first = status();
    first.models[1].pinned = true;
    let mut house = House::open(first).await;
    let systemd = Systemd::new();
    // As systemd gives it: escaped, and unescaped to a name that is none.
    let child = spawn(&house, &["unit", "small", "sma/ll"], &systemd.env());
    is_loaded(&mut house, &systemd).await;
    send(&child, Signal::TERM);
    systemd.told("STOPPING=1").await;
    let (_, verb, answer) = next(&mut house).await;
    assert_eq!(verb, Verb::Unload(Haste::Drain));
    answer.send(Ok(())).unwrap();
    let ended = end(child).await;
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_models_unit_fails_with_the_reason() {
    let mut house = House::open(status()).await;
    let systemd = Systemd::new();
    let child = spawn(&house, &["unit", "small", "small"], &systemd.env());
    let (_, _, answer) = next(&mut house).await;
    let fault = Fault::new(FaultCode::EngineExited, "exit code 1");
    let model = "small".parse().unwrap();
    answer.send(Err(Denied::LoadFailed { model, fault, retry_after: Duration::ZERO })).unwrap();
    let status = systemd.told("STATUS=Failed").await;
    assert!(status.contains("exit code 1"), "{status}");
    assert_eq!(end(child).await.code, 1);
    // Unpinned behind its back.
    let child = spawn(&house, &["unit", "small", "small"], &systemd.env());
    next(&mut house).await.2.send(Ok(())).unwrap();
    let status = systemd.told("STATUS=Failed").await;
    assert!(status.contains("by an operator"), "{status}");
    assert_eq!(end(child).await.code, 1);
    let unknown = end(spawn(&house, &["unit", "x", "x"], &systemd.env())).await;
    assert_eq!(unknown.code, 4, "{unknown:?}");
}

/// A daemon that is told to stop when a model is to be loaded.
struct Leaving;

#[zbus::interface(name = "org.hostler1.Manager")]
impl Leaving {
    async fn get_model(&self, _name: String) -> OwnedObjectPath {
        OwnedObjectPath::try_from("/org/hostler1/model/small").unwrap()
    }

    async fn load(
        &self,
        _name: String,
        _options: Options,
        #[zbus(connection)] connection: &zbus::Connection,
    ) -> Result<OwnedObjectPath, Error> {
        connection.release_name("org.hostler1").await.unwrap();
        Err(Error::from(Denied::ShuttingDown))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_restarted_meanwhile_does_not_fail_a_models_unit() {
    let daemon = Daemon::start("unix:tmpdir=/tmp");
    let leaving = serve(&daemon, Leaving).await;
    let systemd = Systemd::new();
    let child = spawn_on(&daemon.address, &["unit", "small", "small"], &systemd.env());
    systemd.told("STATUS=The daemon left").await;
    drop(leaving);
    let mut first = status();
    first.models[1].pinned = true;
    let uid = rustix::process::geteuid().as_raw();
    let mut house = House::on(daemon, first, Gate::Owner { uid }).await;
    let (model, verb, answer) = next(&mut house).await;
    let wish = Wish { pin: true, ..Wish::default() };
    assert_eq!((model.as_str(), verb), ("small", Verb::Load(wish)));
    // And once more, in the middle of the load.
    answer.send(Err(Denied::ShuttingDown)).unwrap();
    systemd.told("STATUS=The daemon left").await;
    // And where not even the bus comes back there is nobody to wait for.
    drop(house);
    let ended = end(child).await;
    assert_eq!(ended.code, 3, "{ended:?}");
}

/// A daemon that thinks before it loads, as while polkit is asked.
struct Slow {
    loads: Arc<Notify>,
    go: Arc<Notify>,
    unloads: Arc<Notify>,
}

#[zbus::interface(name = "org.hostler1.Manager")]
impl Slow {
    async fn get_model(&self, _name: String) -> OwnedObjectPath {
        OwnedObjectPath::try_from("/org/hostler1/model/small").unwrap()
    }

    async fn load(&self, _name: String, _options: Options) -> OwnedObjectPath {
        self.loads.notify_one();
        self.go.notified().await;
        OwnedObjectPath::try_from("/org/hostler1/job/1").unwrap()
    }

    async fn unload(&self, _name: String, _mode: String) -> Result<OwnedObjectPath, Error> {
        self.unloads.notify_one();
        Err(Error::from(Denied::ShuttingDown))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unload_does_not_overtake_the_load() {
    let daemon = Daemon::start("unix:tmpdir=/tmp");
    let (loads, go, unloads) = <(Arc<Notify>, Arc<Notify>, Arc<Notify>)>::default();
    let slow = Slow { loads: loads.clone(), go: go.clone(), unloads: unloads.clone() };
    let _bus = serve(&daemon, slow).await;
    let child = spawn_on(&daemon.address, &["unit", "small", "small"], &[]);
    loads.notified().await;
    send(&child, Signal::TERM);
    let early = tokio::time::timeout(Duration::from_millis(500), unloads.notified()).await;
    assert!(early.is_err(), "the load that was asked for is not answered yet");
    go.notify_one();
    unloads.notified().await;
    let ended = end(child).await;
    assert_eq!(ended.code, 0, "{ended:?}");
}
