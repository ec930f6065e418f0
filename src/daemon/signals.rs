//! What the daemon is told by signals.
//!
//! Purpose: SIGTERM and SIGINT end the daemon, SIGHUP has it read the configuration again, as `systemctl reload` does. Owner: [`super::run`],
//! from its first moment: a signal that nobody listens for ends the process, and leaves models of which nobody knows. Invariant: what
//! comes while nobody waits for it is kept until somebody does.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::reload::Root;

/// `None`: they cannot be handled.
pub(super) struct Signals(Option<Heard>);

struct Heard {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// From now on.
    pub(super) fn listen() -> Self {
        let heard = || {
            let term = signal(SignalKind::terminate())?;
            let int = signal(SignalKind::interrupt())?;
            let hup = signal(SignalKind::hangup())?;
            std::io::Result::Ok(Heard { term, int, hup })
        };
        let heard = heard();
        if let Err(err) = &heard {
            tracing::error!(
                "signals cannot be handled ({err}); stop with SIGKILL, containers will be adopted"
            );
        }
        Self(heard.ok())
    }

    /// The daemon is to end.
    pub(super) async fn stop(&mut self) {
        let Some(Heard { term, int, .. }) = &mut self.0 else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    }

    /// The same, while reloads are done.
    pub(super) async fn asked_to_stop(&mut self, root: &Root) {
        let Some(Heard { term, int, hup }) = &mut self.0 else {
            return std::future::pending().await;
        };
        let reloads = async {
            while hup.recv().await.is_some() {
                // It says itself what came of it.
                let _ = root.reload().await;
            }
            std::future::pending().await
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            () = reloads => {}
        }
    }
}
