//! The composition root of `hostlerd`.
//!
//! Purpose: builds adapters, runs the checks, wires tasks, and orders start and shutdown:
//!
//! ```text
//!  sockets ─▶ logs ─▶ configuration ─▶ checks ─▶ supervisor ─▶ server ─▶ READY=1 ─▶ … ─▶ SIGTERM
//!                          │               │                                               │
//!                          └── failure: 503 that names the cause to all who wait           ▼
//!                              on the sockets, then the cause's exit status      drain ─▶ stop or keep ─▶ exit
//! ```
//! Owner of: every task of the daemon. Invariants: nothing is accepted before READY; a failed start never leaves a
//! client hanging; the sockets belong to systemd, so what arrives between two daemons waits in them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::adapters::engine::Profiles;
use crate::adapters::podman::{self, Helpers};
use crate::adapters::state_file::StateFile;
use crate::adapters::systemd::{self, Handed};
use crate::checks::Probes;
use crate::config::{Config, GpuBackend};
use crate::console::Desk;
use crate::console::metrics::Scrapes;
use crate::control::bus::{self, Bus};
use crate::control::polkit::{Gate, Patience};
use crate::control::{Context, Facts};
use crate::observe::log;
use crate::observe::metrics::Metrics;
use crate::observe::telling::Telling;
use crate::observe::timeline::Timeline;
use crate::proxy::port::Behind;
use crate::proxy::{self, Cause, Limits, Listener, Server, Upstream};
use crate::supervisor::state;
use crate::supervisor::task::{Clock, Ports, Running, Supervisor};
use crate::supervisor::witness::Witness;

pub mod allocator;
mod alone;
mod begin;
mod core;
mod door;
mod expected;
mod files;
mod left;
mod manager;
mod options;
mod pending;
mod plane;
mod pulse;
mod recall;
mod reload;
mod signals;
mod sockets;
mod told;
mod traces;
mod validate;

pub use crate::checks::{Exit, StartFailure};
pub use alone::has_no_locks;
pub use expected::expected;
pub use options::{Options, but};
pub use plane::Plane;
use recall::Recalled;
use reload::Root;
use signals::Signals;
use told::Told;
use traces::Tracing;
use validate::Proven;

/// How long clients that wait on the sockets are served the reason of a failed start. It also bounds how often a start
/// that cannot succeed is tried while clients keep coming.
const REFUSAL_GRACE: Duration = Duration::from_secs(2);
/// How long READY waits for the bus.
const BUS_TIME: Duration = Duration::from_secs(3);
/// Beyond the drain: stopping containers, which have their own stop time-outs.
const STOP_EXTENSION: Duration = Duration::from_secs(120);

/// Runs the daemon to its end.
///
/// `sockets` are those handed over by systemd, taken before any thread was started.
pub async fn run(options: Options, sockets: Vec<(String, Handed)>) -> Exit {
    // First: a stop that comes while the daemon begins ends the models that an earlier one left, as any stop does.
    let mut signals = Signals::listen();
    let sockets = match sockets::handed(sockets) {
        Ok(sockets) => sockets,
        Err(failure) => return fail(Vec::new(), &failure).await,
    };
    let config = match options.load() {
        Ok(config) => config,
        Err(errors) => {
            let message = format!("the configuration is not valid:\n{errors}");
            return fail(sockets, &StartFailure::new(Exit::Config, message)).await;
        }
    };
    let filter = options.filter(&config);
    if let Err(message) = filter.and_then(|it| log::set(it).map_err(|err| format!("{err:#}"))) {
        return fail(sockets, &StartFailure::new(Exit::Config, message)).await;
    }
    let held = alone::take(&config.podman.engine_dir, &recall::state_dir(options.user));
    let _alone = match held {
        Ok(alone) => alone,
        Err(failure) => return fail(sockets, &failure).await,
    };
    let (file, journal) = (recall::footprints(options.user), recall::journal(options.user));
    let book = recall::book(&file);
    let record = recall::record(&journal);
    let (generation, pins) = (record.generation(), record.pins().clone());
    let (journal, trouble) = Told::new(journal);
    let metrics = Arc::new(Metrics::default());
    let helpers = Helpers {
        calls: Some(metrics.clone()),
        record,
        journal: Some(Arc::new(journal)),
        scopes: Some(Arc::new(manager::of_containers(options.user))),
        left: watch::Sender::default(),
        ..Helpers::default()
    };
    let left = helpers.left.subscribe();
    podman::fixes_are_for(options.user);
    let ports = ports(&config, file, helpers);
    let user = options.service_user();
    let begun = tokio::select! {
        begun = begin::begin(&config, &ports, &user, sockets) => begun,
        () = signals.stop() => return begin::end(&config, &ports.containers, options.user).await,
    };
    let begin::Begun { proven, sockets, images, models } = match begun {
        Ok(begun) => begun,
        Err(exit) => return exit,
    };
    let core = state::Recalled { book, images, generation, pins };
    let recalled = Recalled { core, models, journal: trouble, left };
    serve(options, config, ports, proven, recalled, sockets, (metrics, signals)).await
}

/// Tells everybody why there is no daemon: the journal, systemd, and the clients that wait on the sockets.
async fn fail(sockets: Vec<Listener>, failure: &StartFailure) -> Exit {
    let exit = failure.exit;
    let status = exit as u8;
    tracing::error!(kind = "daemon_start_failed", code = %exit, status, "start failed ({exit}, exit status {status}): {failure}");
    let first = failure.message.lines().take(2).collect::<Vec<_>>().join(" ");
    systemd::status(&format!("Failed ({exit}): {first}"));
    systemd::extend_timeout(REFUSAL_GRACE * 10);
    if !sockets.is_empty() {
        let brief = format!("hostler could not start ({exit}); its host's journal says why");
        let cause = format!("hostler could not start ({exit}): {failure}");
        proxy::refuse(sockets, Cause { cause, brief }, REFUSAL_GRACE).await;
    }
    exit
}

fn ports(config: &Config, file: StateFile, helpers: Helpers) -> Ports {
    if config.gpu.backend == GpuBackend::Host {
        tracing::info!(
            "[gpu] backend = \"host\": models are placed in host memory, no GPU is used"
        );
    }
    let Probes { containers, gpus } = Probes::with(config, helpers);
    let shelf = Arc::new(file);
    Ports { containers, gpus, engines: Arc::new(Profiles::here()), shelf }
}

async fn serve(
    options: Options,
    config: Config,
    ports: Ports,
    proven: Proven,
    recalled: Recalled,
    sockets: Vec<Listener>,
    (metrics, mut signals): (Arc<Metrics>, Signals),
) -> Exit {
    let user = options.user;
    let plane = match Plane::start() {
        Ok(plane) => plane,
        Err(err) => {
            let message = format!("the thread of requests could not be started: {err}");
            return fail(sockets, &StartFailure::new(Exit::Internal, message)).await;
        }
    };
    let facts = Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        podman: proven.podman.clone(),
        listeners: sockets.iter().map(Listener::shown).collect(),
    };
    let (trouble, left) = (recalled.journal.clone(), recalled.left.clone());
    let models = recalled.models.clone();
    let timeline = Arc::new(Timeline::default());
    let traces = Tracing::start(&config.traces, &metrics);
    let witness = traces.witness(Arc::new((metrics.clone(), timeline.clone())));
    let running = supervise(&config, ports.clone(), proven, recalled, witness, &plane);
    let limits = Limits {
        max_body: config.server.max_body,
        max_connections: config.server.max_connections,
        ..Limits::default()
    };
    let rules = door::rules(&config).shared();
    let exposed = sockets.iter().any(|s| s.exposed().is_ok_and(|address| address.is_some()));
    let drain_timeout = config.policy.drain_timeout;
    let upstream = Upstream { header_timeout: config.server.answer_timeout, ..Upstream::default() };
    let (handle, started, current) = (running.handle.clone(), config.clone(), config);
    let keeps = current.policy.keeps().into();
    let longest_stop = current.longest_stop().as_secs().into();
    let served_by = rules.clone();
    metrics.configured(core::names(&started));
    let healths = Arc::default();
    let telling = Arc::new(Telling::new(started.log.request_lines));
    let root = Arc::new(Root {
        options,
        started,
        keeps,
        longest_stop,
        current: (current, models).into(),
        ports,
        handle,
        rules,
        healths: Arc::clone(&healths),
        metrics: metrics.clone(),
        telling: telling.clone(),
        exposed,
    });
    let context = context(root.clone(), facts);
    let runtime = tokio::runtime::Handle::current();
    let scrapes = Scrapes {
        handle: running.handle.clone(),
        metrics: metrics.clone(),
        gpus: root.ports.gpus.clone(),
        engines: root.ports.engines.clone(),
    };
    let desk = Desk { scrapes, timeline, control: context.clone(), runtime };
    let watched = Arc::new((metrics, root.telling.clone()));
    let behind = Behind { observer: traces.observer(watched), console: Arc::new(desk), healths };
    let handle = running.handle.clone();
    let server = Server::with(handle, limits, upstream, served_by, behind);
    let stop = CancellationToken::new();
    let mut server = plane.spawn(server.serve(sockets, stop.clone(), drain_timeout));
    let control = control(context, user).await;
    systemd::ready(&validate::summary(&running.handle.status()));
    let helpers = [
        tokio::spawn(pulse::report(running.handle.clone())),
        tokio::spawn(pulse::problems(running.handle.clone())),
        tokio::spawn(pulse::feed_watchdog(running.turns.clone())),
        tokio::spawn(told::tell(running.handle.clone(), trouble)),
        tokio::spawn(left::tell(running.handle.clone(), left)),
        tokio::spawn(async move { telling.keep_saying().await }),
        tokio::spawn({
            let root = root.clone();
            async move { root.catch_up().await }
        }),
        tokio::spawn(files::follow(root.clone())),
    ];
    tracing::info!(kind = "daemon_ready", "ready: {} models configured", root.started.models.len());
    let mut task = running.task;
    let died = tokio::select! {
        () = signals.asked_to_stop(&root) => None,
        ended = &mut task => Some(("supervisor", ended.err())),
        ended = &mut server => Some(("server", ended.err())),
    };
    if let Some((what, why)) = died {
        tracing::error!("the {what} ended without having been asked to: {why:?}");
        return Exit::Internal;
    }
    helpers.iter().for_each(JoinHandle::abort);
    let keep = root.keeps.load(Ordering::Relaxed) || manager::restarts(user).await;
    systemd::stopping(if keep {
        "Draining; models are kept"
    } else {
        "Draining, then stopping models"
    });
    let stops = Duration::from_secs(root.longest_stop.load(Ordering::Relaxed));
    systemd::extend_timeout(drain_timeout + stops + STOP_EXTENSION);
    tracing::info!(
        kind = "daemon_stopping",
        "stopping: draining, then {}",
        if keep { "keeping the models" } else { "stopping the models" }
    );
    // The listeners close at once; what arrives now waits in systemd's sockets for the next daemon.
    stop.cancel();
    // Those that were accepted before are served like any other.
    tokio::time::sleep(proxy::LAST_REQUESTS).await;
    running.handle.shutdown(keep);
    let drained = server.await.unwrap_or_default();
    if drained.aborted > 0 {
        tracing::warn!("{} connections were cut off at the end of the drain", drained.aborted);
    }
    if let Err(err) = task.await {
        tracing::error!("the supervisor failed: {err}");
        return Exit::Internal;
    }
    let status = running.handle.status();
    let left = status.models.iter().filter_map(|m| m.instance.as_ref().filter(|_| !keep));
    for instance in left {
        tracing::warn!(%instance, "{instance} has not ended in its time and is left; the next start ends it");
    }
    root.telling.say();
    control.abort();
    traces.finish().await;
    tracing::info!("stopped");
    Exit::Ok
}

/// Control, before there is a bus.
fn context(root: Arc<Root>, facts: Facts) -> Arc<Context> {
    let gate = if root.options.user {
        Gate::Owner { uid: rustix::process::geteuid().as_raw() }
    } else {
        Gate::Polkit(Patience::default())
    };
    Context::new(root.handle.clone(), root, facts, gate)
}

/// Control over D-Bus. Ready when the name is owned, or cannot be had now.
async fn control(context: Arc<Context>, user: bool) -> JoinHandle<()> {
    let bus = if user { Bus::Session } else { Bus::System };
    let (first, tried) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(bus::run(context, bus, CancellationToken::new(), first));
    // Whoever starts the daemon may call it at once; a bus that hangs is not waited for.
    let _ = tokio::time::timeout(BUS_TIME, tried).await;
    task
}

fn supervise(
    config: &Config,
    ports: Ports,
    proven: Proven,
    recalled: Recalled,
    witness: Arc<dyn Witness>,
    plane: &Plane,
) -> Running {
    let Proven { devices, found, podman } = proven;
    for device in &devices.devices {
        let (id, name, total, used) = (&device.id, &device.name, device.total, device.used);
        tracing::info!(gpu = %id, "device {id} ({name}): {used} of {total} in use");
    }
    let left = found.len();
    tracing::info!("podman {podman}; {left} containers of an earlier daemon");
    let (mut supervisor, handle) = Supervisor::new(
        core::settings(config),
        &recalled.models,
        ports,
        Clock::start(),
        found,
        devices,
    );
    supervisor.remember(recalled.core);
    supervisor.witnessed_by(witness);
    supervisor.spawn_on(handle, plane.runtime())
}

/// Where the process keeps per-user files in user mode.
fn runtime_dir() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
}
