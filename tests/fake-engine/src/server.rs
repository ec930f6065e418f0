//! The engine's life: loading, listening, connections, signals, the end.
//!
//! [`Engine::serve`] owns the listener and all connections; when it returns, they are gone. It never
//! ends the process itself: it says how, and the program does it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::config::Listen;
use crate::knobs::{Fail, Flavor, Term};
use crate::state::{Engine, Exit, Phase, add, pause};
use crate::vram::{NoMemory, too_little};

/// Idle connections live so long, in both engines.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long a clean end waits for streams to write their last event.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// What a request may do to its connection.
#[derive(Debug)]
pub(crate) struct Wire {
    /// Closes after the present answer, unannounced.
    pub close: Notify,
    pub requests: AtomicU64,
    descriptor: OwnedFd,
}

impl Wire {
    /// Makes the coming close a reset instead of an orderly end; a Unix socket has no such thing.
    pub(crate) fn reset_on_close(&self) {
        let socket = socket2::SockRef::from(&self.descriptor);
        let _no_tcp = socket.set_linger(Some(Duration::ZERO));
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Engine {
    /// Runs the engine from its start to its end.
    pub async fn serve(self: Arc<Self>) -> Exit {
        let mut exit = self.exit.subscribe();
        let life = pin!(Arc::clone(&self).live());
        let outcome = tokio::select! {
            biased;
            end = exit.wait_for(Option::is_some) => end.ok().and_then(|end| *end),
            outcome = life => match outcome {
                Ok(()) => Some(Exit::Code(0)),
                Err(message) => {
                    eprintln!("{message}");
                    Some(Exit::Code(1))
                }
            },
        };
        let exit = outcome.unwrap_or(Exit::Code(0));
        self.end(exit);
        // A killed process could not tidy up; in-process callers must see the memory go all the same.
        self.memory.release();
        exit
    }

    async fn live(self: Arc<Self>) -> Result<(), String> {
        let start = self.count_start()?;
        self.arm();
        let knobs = self.knobs();
        if knobs.flavor == Flavor::Vllm {
            self.load(start).await?;
            return self.accept(self.listen().await?).await;
        }
        pause(knobs.load.bind).await;
        let listener = self.listen().await?;
        let loading = async {
            match self.load(start).await {
                Ok(()) => std::future::pending().await,
                Err(message) => message,
            }
        };
        tokio::select! {
            failed = loading => Err(failed),
            outcome = self.accept(listener) => outcome,
        }
    }

    /// Counts this start in STATE_DIR; the number is 1 without one.
    fn count_start(&self) -> Result<u64, String> {
        let Some(dir) = &self.config.state_dir else { return Ok(1) };
        let path = dir.join("starts");
        let before = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0_u64,
            Err(error) => return Err(format!("fake-engine: {}: {error}", path.display())),
        };
        std::fs::write(&path, format!("{}\n", before + 1))
            .map_err(|error| format!("fake-engine: {}: {error}", path.display()))?;
        Ok(before + 1)
    }

    async fn load(self: &Arc<Self>, start: u64) -> Result<(), String> {
        let knobs = self.knobs();
        if knobs.flavor == Flavor::Vllm {
            pause(knobs.load.bind).await;
        }
        self.set_phase(Phase::Loading);
        if knobs.fail == Fail::Vram {
            return Err(too_little(knobs.flavor, 0.9, 1 << 30, 1 << 30, 1 << 30).to_string());
        }
        self.load_memory().await.map_err(|error| error.to_string())?;
        if let Fail::First(failures) = knobs.fail
            && start <= failures
        {
            return Err(format!("fake-engine: start {start} of {failures} that fail"));
        }
        self.set_phase(Phase::Warmup);
        pause(knobs.load.warmup).await;
        if self.control.borrow().frozen {
            // FAIL=hang while loading: never ready.
            std::future::pending::<()>().await;
        }
        if knobs.flavor == Flavor::LlamaCpp {
            self.set_phase(Phase::Ready);
        }
        Ok(())
    }

    async fn load_memory(&self) -> Result<(), NoMemory> {
        let knobs = self.knobs();
        let Some(vram) = knobs.vram else {
            pause(knobs.load.weights).await;
            return Ok(());
        };
        let needs = self.memory.begin(&self.config, &knobs, vram)?;
        self.memory.load_weights(needs, knobs.ramp, knobs.load.weights, knobs.flavor).await?;
        self.memory.complete(needs, knobs.flavor)
    }

    async fn listen(&self) -> Result<Listener, String> {
        match &self.config.listen {
            Listen::Unix(path) => UnixListener::bind(path).map(Listener::Unix).map_err(|error| {
                format!("fake-engine: cannot listen on {}: {error}", path.display())
            }),
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address)
                    .await
                    .map_err(|error| format!("fake-engine: cannot listen on {address}: {error}"))?;
                self.address.send_replace(listener.local_addr().ok());
                Ok(Listener::Tcp(listener))
            }
        }
    }

    async fn accept(self: &Arc<Self>, listener: Listener) -> Result<(), String> {
        let mut connections = JoinSet::new();
        let mut stop = self.stop_listening.subscribe();
        if self.knobs().flavor == Flavor::Vllm {
            self.set_phase(Phase::Ready);
        }
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                accepted = listener.accept(self) => match accepted {
                    Ok(connection) => drop(connections.spawn(connection)),
                    Err(error) => eprintln!("fake-engine: cannot accept: {error}, ignoring"),
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        if self.phase() == Phase::CoreDead {
            // The process's end is on a timer.
            std::future::pending::<()>().await;
        }
        let rest = async { while connections.join_next().await.is_some() {} };
        let _some_had_more_to_say = tokio::time::timeout(LAST_WORDS, rest).await;
        Ok(())
    }

    /// What SIGTERM does, as the TERM knob says. Returns at once.
    pub fn terminate(self: &Arc<Self>) {
        add(&self.counters.terms, 1);
        let delay = match self.knobs().term {
            Term::Ignore => return,
            Term::Clean => Duration::ZERO,
            Term::Slow(delay) => delay,
        };
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            pause(delay).await;
            let listening = engine.phase() == Phase::Ready;
            engine.set_phase(Phase::Ending);
            engine.stop_listening.send_replace(true);
            if !listening {
                engine.end(Exit::Code(0));
            }
        });
    }
}

type Connection = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl Listener {
    async fn accept(&self, engine: &Arc<Engine>) -> io::Result<Connection> {
        let engine = Arc::clone(engine);
        Ok(match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let descriptor = stream.as_fd().try_clone_to_owned()?;
                Box::pin(connection(engine, stream, descriptor))
            }
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let descriptor = stream.as_fd().try_clone_to_owned()?;
                Box::pin(connection(engine, stream, descriptor))
            }
        })
    }
}

async fn connection(
    engine: Arc<Engine>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    descriptor: OwnedFd,
) {
    add(&engine.counters.connections, 1);
    let wire = Arc::new(Wire { close: Notify::new(), requests: AtomicU64::new(0), descriptor });
    let service = {
        let (engine, wire) = (Arc::clone(&engine), Arc::clone(&wire));
        service_fn(move |request| {
            let (engine, wire) = (Arc::clone(&engine), Arc::clone(&wire));
            async move {
                Ok::<_, std::convert::Infallible>(
                    crate::routes::answer(engine, wire, request).await,
                )
            }
        })
    };
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(KEEP_ALIVE)
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut control = engine.control.subscribe();
    let mut ending = false;
    loop {
        tokio::select! {
            // How a connection ends is the client's business; aborts are noted by the flights.
            _ = served.as_mut() => return,
            () = wire.close.notified() => served.as_mut().graceful_shutdown(),
            _ = control.wait_for(|control| control.phase == Phase::Ending), if !ending => {
                ending = true;
                served.as_mut().graceful_shutdown();
            }
        }
    }
}
