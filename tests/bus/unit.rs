//! A model as a unit: the process of `hostler-model@NAME.service`, with the test as its systemd.
#![expect(clippy::disallowed_types, reason = "the macro of D-Bus interfaces names HashMap")]

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_models_unit_is_ready_with_its_model_and_lets_it_go() {
    let mut first = status();
    first.models[1].pinned = true;
    let mut house = House::open(first).await;
    let systemd = Systemd::new();
    // As systemd gives it: escaped, and unescaped to a name that is none.
    let child = spawn(&house, &["unit", "small", "sma/ll"], &systemd.env());
    let (model, verb, answer) = next(&mut house).await;
    let wish = Wish { pin: true, ..Wish::default() };
    assert_eq!((model.as_str(), verb), ("small", Verb::Load(wish)));
    answer.send(Ok(())).unwrap();
    systemd.told("READY=1").await;
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
