//! Accepting connections, and ending well.
//!
//! Purpose: the accept loop with its bounds, and the drain. Owner: the composition root, which runs [`Server::serve`] as one
//! task. Invariants: no error of `accept` ends the loop; there are never more connections than [`Crowd`] has room for (the next ones
//! wait in the kernel's queue); after `serve` returns no connection is left.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::conn;
use super::crowd::{self, Crowd, Guest};
use super::end::End;
use super::external;
use super::forward::{Engines, Upstream};
use super::gate::Gate;
use super::port::Behind;
use super::room::Housed;
use super::rules::{Rules, SharedRules};
use super::service::Service;
use super::stream::{Listener, Peer, Stream};
use crate::supervisor::handle::Handle;
use crate::types::Bytes;

/// hyper ends a connection whose first request has not arrived yet at once; so long it is given to arrive. Until then it is
/// also served: no shutdown of the supervisor should begin before.
pub const LAST_REQUESTS: Duration = Duration::from_millis(250);

/// How long clients may take to hear that their answers are broken off.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Bounds on what clients may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request body.
    pub max_body: Bytes,
    /// Connections served at once: over TCP, and as many by Unix sockets. Those for monitoring have a bound of their own.
    pub max_connections: usize,
    /// From a head's first byte (for the first request: from `accept`) to its last.
    pub header_timeout: Duration,
    /// Each such period must bring at least a KiB of the body (a MiB where an engine waits for it), or its end.
    pub body_progress_timeout: Duration,
    /// For each MiB of a large body: one that comes at least so fast may go to the engine as it comes. A slower one would keep the
    /// engine waiting, and is taken in first.
    pub flow_pace: Duration,
    /// Between two requests on one connection.
    pub idle_timeout: Duration,
    /// How long a client may take no bytes of an answer that waits for it.
    pub stall_timeout: Duration,
    /// Header lines in one request.
    pub max_headers: usize,
    /// Bytes of a request's head; at least 8 KiB.
    pub max_header_bytes: Bytes,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body: Bytes::mib(32),
            max_connections: 4096,
            header_timeout: Duration::from_secs(10),
            body_progress_timeout: Duration::from_secs(30),
            flow_pace: Duration::from_millis(500),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(300),
            max_headers: 100,
            max_header_bytes: Bytes(32 << 10),
        }
    }
}

/// How a server ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were cut because their requests did not end within the drain's time.
    pub aborted: usize,
}

/// The HTTP server.
pub struct Server {
    service: Arc<Service>,
    limits: Arc<Limits>,
    ending: CancellationToken,
    end: End,
}

impl Server {
    /// A server that asks `supervisor` for leases and reports its status.
    #[must_use]
    pub fn new(supervisor: Handle, limits: Limits, upstream: Upstream) -> Self {
        Self::with(supervisor, limits, upstream, Rules::default().shared(), Behind::default())
    }

    /// The same, by rules that somebody holds already, and with who is behind it.
    #[must_use]
    pub fn with(
        supervisor: Handle,
        limits: Limits,
        upstream: Upstream,
        rules: SharedRules,
        behind: Behind,
    ) -> Self {
        let limits = Arc::new(limits);
        let (ending, end) = (CancellationToken::new(), End::default());
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let gate = Gate::new(rules.clone(), supervisor.clone(), behind.observer.clone());
        let service = Service {
            supervisor,
            gate,
            limits: limits.clone(),
            engines: Engines::new(upstream),
            rules,
            budget: Arc::default(),
            answers: Arc::default(),
            healths: behind.healths,
            tunnels: TaskTracker::new(),
            closed: Notify::new(),
            cut: end.over.token(),
            created: unix.as_secs(),
            ending: ending.clone(),
            observer: behind.observer,
            console: behind.console,
        };
        Self { service: Arc::new(service), limits, ending, end }
    }

    /// The rules that it serves by, which may be replaced at any time; at first those that ask for nothing.
    #[must_use]
    pub fn rules(&self) -> SharedRules {
        self.service.rules.clone()
    }

    /// Serves until `shutdown`, then drains: closes the listeners (a socket that systemd holds goes on queueing), gives requests
    /// on their way a moment to arrive, lets running requests finish for at most `drain_timeout`, tells the rest that their answers
    /// end here, and cuts whoever does not listen.
    pub async fn serve(
        self,
        listeners: Vec<Listener>,
        shutdown: CancellationToken,
        drain_timeout: Duration,
    ) -> Drained {
        let mut connections = JoinSet::new();
        // They may have been bound elsewhere.
        let listeners = match listeners.into_iter().map(Listener::rehomed).collect() {
            Ok(listeners) => listeners,
            Err(error) => {
                let error: io::Error = error;
                tracing::error!(%error, "the sockets cannot be taken over by the thread of requests");
                return Drained::default();
            }
        };
        let listeners: Vec<Listener> = listeners;
        let (rules, healths) = (self.service.rules.clone(), self.service.healths.clone());
        let supervisor = self.service.supervisor.clone();
        let now = move || supervisor.now();
        let watch = tokio::spawn(external::watch(rules, healths, now, self.end.drain.token()));
        let engines = self.service.engines.clone();
        let sweeps = tokio::spawn(async move { engines.pool.sweep_on().await });
        let gate = self.service.gate.clone();
        let turns = tokio::spawn(async move { gate.follow().await });
        self.accept_until(&listeners, &shutdown, &mut connections).await;
        drop(listeners);
        self.ending.cancel();
        let drained = self.drain(connections, drain_timeout).await;
        for task in [watch, sweeps, turns] {
            task.abort();
        }
        drained
    }

    async fn accept_until(
        &self,
        listeners: &[Listener],
        shutdown: &CancellationToken,
        connections: &mut JoinSet<()>,
    ) {
        let mut turn = 0;
        let mut errors = AcceptErrors::default();
        let mut at_once = 0;
        // Once: to ask anew each time is to take locks.
        let ended = shutdown.cancelled();
        let look = tokio::time::sleep(crowd::LOOK);
        tokio::pin!(ended, look);
        let mut crowd = Crowd::new(self.limits.max_connections);
        loop {
            let waits = crowd.is_waiting();
            tokio::select! {
                biased;
                () = &mut ended => break,
                Some(ended) = connections.join_next() => reap(ended),
                // Where WebSockets alone fill the house there is no connection that could end.
                () = self.service.closed.notified(), if waits => {}
                () = &mut look, if waits => {
                    crowd.make_room(Instant::now());
                    look.as_mut().reset(Instant::now() + crowd::LOOK);
                }
                accepted = errors.accept(crowd.comes(listeners, &mut turn)) => {
                    let Some(came) = accepted else { continue };
                    if !crowd.came(came) {
                        look.as_mut().reset(Instant::now() + crowd::LOOK);
                    }
                }
            }
            while let Some(guest) = crowd.let_in() {
                connections.spawn(Box::pin(self.connection(guest)));
                if at_once > 0 {
                    at_once -= 1;
                    continue;
                }
                // Those who are here come before those who still queue.
                let since = Instant::now();
                tokio::task::yield_now().await;
                at_once = let_in(since.elapsed());
            }
        }
        // They are here already, and no longer in a queue from which somebody else could take them.
        while let Some(guest) = crowd.let_last_in() {
            connections.spawn(Box::pin(self.connection(guest)));
        }
    }

    fn connection(&self, guest: Guest) -> impl Future<Output = ()> + Send + 'static {
        let Guest { stream, peer, pulse } = guest;
        let service = self.service.clone();
        let answer = move |request, busy| Housed::new(service.clone().answer(request, busy, peer));
        conn::run(stream, pulse, self.limits.clone(), self.end.clone(), answer)
    }

    async fn drain(&self, mut connections: JoinSet<()>, timeout: Duration) -> Drained {
        let deadline = Instant::now() + timeout;
        let arrive = tokio::time::sleep(LAST_REQUESTS.min(timeout));
        tokio::pin!(arrive);
        loop {
            tokio::select! {
                () = &mut arrive => break,
                Some(ended) = connections.join_next() => reap(ended),
            }
        }
        self.end.drain.give();
        let tunnels = &self.service.tunnels;
        tunnels.close();
        if tokio::time::timeout_at(deadline, finish(&mut connections, tunnels)).await.is_ok() {
            return Drained::default();
        }
        let aborted = connections.len() + tunnels.len();
        self.end.over.give();
        let heard = tokio::time::timeout(LAST_WORDS, finish(&mut connections, tunnels));
        if heard.await.is_err() {
            connections.shutdown().await;
            tunnels.wait().await;
        }
        Drained { aborted }
    }
}

/// How many clients come in behind the next one without a turn of the others between them, when the others' last turn took so long. A
/// burst is served piece by piece that way, while what each piece needs is in the processor's cache; and where all turns are long, new
/// clients still come in at two thousand a second.
fn let_in(turn: Duration) -> usize {
    const EACH: u128 = 500;
    usize::try_from(turn.as_micros() / EACH).unwrap_or(usize::MAX).min(64)
}

/// Until nobody is left.
async fn finish(connections: &mut JoinSet<()>, tunnels: &TaskTracker) {
    while let Some(ended) = connections.join_next().await {
        reap(ended);
    }
    tunnels.wait().await;
}

/// A connection's task returns nothing; only a bug is worth a word.
fn reap(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "a connection's task panicked; its client was cut off"
        );
    }
}

/// Backs off from accept errors, so that a lack of file descriptors neither ends the server nor burns a core.
#[derive(Default)]
pub(super) struct AcceptErrors {
    pause: Duration,
    until: Option<Instant>,
}

impl AcceptErrors {
    const PAUSE_MIN: Duration = Duration::from_millis(20);
    const PAUSE_MAX: Duration = Duration::from_secs(1);

    /// The next connection, once the pause is over; `None` after an error. Safe to drop at any time: a connection that was accepted is
    /// returned without waiting, and the next call takes up a pause where this one left it.
    pub async fn accept(
        &mut self,
        next: impl Future<Output = io::Result<(Stream, Peer)>>,
    ) -> Option<(Stream, Peer)> {
        if let Some(until) = self.until {
            tokio::time::sleep_until(until).await;
            self.until = None;
        }
        match next.await {
            Ok(accepted) => {
                self.pause = Duration::ZERO;
                Some(accepted)
            }
            Err(error) => {
                self.note(&error);
                None
            }
        }
    }

    fn note(&mut self, error: &io::Error) {
        if is_about_one_connection(error) {
            return;
        }
        if self.pause.is_zero() {
            tracing::warn!(
                %error,
                "cannot accept connections (too many open files? see LimitNOFILE=), retrying"
            );
        }
        self.pause = (self.pause * 2).clamp(Self::PAUSE_MIN, Self::PAUSE_MAX);
        self.until = Some(Instant::now() + self.pause);
    }
}

/// Errors of a connection that died in the queue say nothing about the next one.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_queues_waits_longer_for_a_busy_house_but_not_for_ever() {
        let micros = Duration::from_micros;
        assert_eq!((let_in(Duration::ZERO), let_in(micros(499))), (0, 0));
        assert_eq!((let_in(micros(500)), let_in(micros(15_000))), (1, 30));
        assert_eq!(let_in(Duration::MAX), 64);
    }

    #[tokio::test(start_paused = true)]
    async fn accept_errors_pause_and_never_end() {
        let mut errors = AcceptErrors::default();
        let full = io::Error::from_raw_os_error(24);
        for want in [20, 40, 80, 160, 320, 640, 1000, 1000] {
            errors.note(&full);
            let until = errors.until.unwrap();
            assert_eq!(until - Instant::now(), Duration::from_millis(want));
        }
        let mut errors = AcceptErrors::default();
        errors.note(&io::ErrorKind::ConnectionAborted.into());
        assert_eq!(errors.until, None, "one dead connection must not delay the others");
    }
}
