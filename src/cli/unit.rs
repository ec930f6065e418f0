//! `hostler unit`: the process of `hostler-model@NAME.service`.
//!
//! Purpose: the unit is active exactly while its model is loaded and pinned, so that other units can require it. Owner: systemd.
//!
//! ```text
//!  start ─▶ load and pin ─▶ READY=1 ─▶ watch ─┬─ SIGTERM: unpin, unload, end; before a restart of the unit: end
//!              │ failure: STATUS=, journal     ├─ an operator unloads or unpins it: fail with that reason
//!              ▼                               └─ the daemon leaves: wait for the next, load and pin again
//!             exit status
//! ```
//! Invariants: a restart of the daemon, which keeps its models and their pins, neither ends the unit nor reloads the model, also while the
//! unit's first load is on, and however long no daemon can start; whoever comes after one that ended with its models is asked anew; the
//! unit's end is the pin's, also while one daemon follows another, and a restart of the unit is no end.

use std::time::Duration;

use clap::Args;
use futures_util::StreamExt as _;
use tokio::task::JoinHandle;
use zbus::OwnedObjectPath;

use super::Context;
use super::bus::{Bus, Options, failure, not_running};
use super::document::Model;
use super::elsewhere::unknown;
use super::exit::{Exit, Failure, Outcome};
use super::job::Watch;
use super::output::tell;
use super::{signals, start};
use crate::adapters::systemd;
use crate::adapters::systemd::manager::{self, StopJob};

/// How long a unit that is stopped waits for a daemon that left, to take the pin back.
const LAST_WORD: Duration = Duration::from_secs(10);
/// A look without a signal.
const LOOK: Duration = Duration::from_secs(10);

/// Loads and pins a model, reports to systemd, and lets the model go on SIGTERM.
#[derive(Debug, Args)]
pub struct Unit {
    /// The instance's name as it is written: %i.
    written: String,

    /// The same, unescaped: %I.
    unescaped: String,
}

impl Unit {
    pub async fn run(self, context: &Context) -> Outcome {
        let outcome = self.live(context).await;
        if let Err(failure) = &outcome {
            systemd::status(&format!("Failed: {}", failure.message));
        }
        outcome
    }

    async fn live(&self, context: &Context) -> Outcome {
        let mut signals = signals::hold();
        let bus = context.bus_even_idle().await?;
        let mut owner = bus.manager.receive_owner_changed().await;
        let owner = owner.as_mut().map_err(|err| failure(err, bus.user))?;
        let mut so_far = SoFar::default();
        loop {
            let left = tokio::select! {
                left = self.hold(context, &bus, &mut so_far) => left,
                () = signals.interrupted() => return so_far.end(context, &bus).await,
            };
            match left {
                Ok(()) => {}
                // It left in the middle of something.
                Err(failure) if failure.exit == Exit::NotRunning && so_far.name.is_some() => {}
                // The first call starts a daemon. One that systemd goes on to try is waited for as any that left; else there is none.
                Err(failure) if failure.exit == Exit::NotRunning && start::goes_on(&bus).await => {}
                Err(failure) => return Err(failure),
            }
            let left =
                if so_far.name.is_some() { "The daemon left" } else { "There is no daemon yet" };
            systemd::status(&format!("{left}; waiting for the next"));
            let back = async {
                // What was said before it left is no news.
                while owner.next().await.ok_or_else(|| not_running(bus.user))?.is_none()
                    || !bus.is_owned().await?
                {}
                Ok::<(), Failure>(())
            };
            tokio::pin!(back);
            tokio::select! {
                back = &mut back => back?,
                () = signals.interrupted() => {
                    if restarts(&bus).await {
                        return Ok(());
                    }
                    return match tokio::time::timeout(LAST_WORD, back).await {
                        Ok(Ok(())) => so_far.let_go(context, &bus).await,
                        // Nobody runs who could hold the pin.
                        _ => Ok(()),
                    };
                }
            }
        }
    }

    /// Loads and pins the model, and looks after that until the daemon leaves.
    async fn hold(&self, context: &Context, bus: &Bus, so_far: &mut SoFar) -> Outcome {
        // Before the load, for a name that is none must not wait for anything.
        let name = so_far.name.insert(self.name(bus).await?).clone();
        systemd::status(&format!("Loading {name}"));
        let mut watch = Watch::new(bus).await?;
        let asked = so_far.asked.insert(tokio::spawn(load(bus.clone(), name.clone()))).await;
        so_far.asked = None;
        let job = asked.map_err(|err| Failure::new(Exit::Failed, err.to_string()))??;
        watch.ended(context, bus, &job, &name).await?;
        if !std::mem::replace(&mut so_far.ready, true) {
            systemd::ready(&format!("{name} is ready"));
            tell(format_args!("{name} is ready"));
        }
        stay(bus, &name).await
    }

    /// The model that is meant: `org-qwen` is `org/qwen` to systemd, and a model of its own to whoever did not escape it.
    async fn name(&self, bus: &Bus) -> Outcome<String> {
        for name in [&self.unescaped, &self.written] {
            // The first call, which may have to start the daemon.
            match bus.model_started(name).await {
                Ok(_) => return Ok(name.clone()),
                Err(failure) if failure.exit == Exit::NotFound => {}
                Err(failure) if failure.exit == Exit::Usage => {}
                Err(failure) => return Err(failure),
            }
        }
        Err(unknown(&self.unescaped))
    }
}

/// How far a unit has come.
#[derive(Debug, Default)]
struct SoFar {
    /// The model's name, once the daemon has said it.
    name: Option<String>,
    /// A call to load it that was not answered yet. It goes on when nobody waits for it: the daemon may act on it at any time until then.
    asked: Option<JoinHandle<Outcome<OwnedObjectPath>>>,
    /// systemd was told that the unit is.
    ready: bool,
}

impl SoFar {
    /// Ends the unit. Before a restart the model stays as it is: the unit's next process finds it.
    async fn end(self, context: &Context, bus: &Bus) -> Outcome {
        if restarts(bus).await { Ok(()) } else { self.let_go(context, bus).await }
    }

    /// Lets the model go, where it may be held.
    async fn let_go(self, context: &Context, bus: &Bus) -> Outcome {
        let Some(name) = self.name else { return Ok(()) };
        systemd::stopping(&format!("Unloading {name}"));
        if let Some(asked) = self.asked {
            // Else the load may overtake the unload that follows it, and stay.
            let _ = tokio::time::timeout(LAST_WORD, asked).await;
        }
        let_go(context, bus, &name).await
    }
}

/// Whether systemd is about to start the unit again.
async fn restarts(bus: &Bus) -> bool {
    match manager::stop_job(bus.user).await {
        Ok(job) => job == StopJob::Restart,
        Err(why) => {
            tell(format_args!("{why}; this is taken for a stop"));
            false
        }
    }
}

/// Asks for the model, pinned.
async fn load(bus: Bus, name: String) -> Outcome<OwnedObjectPath> {
    let mut options = Options::new();
    options.insert("pin", true.into());
    bus.begin("Load", &(&name, &options)).await
}

/// Until the daemon leaves.
///
/// # Errors
/// If the model is no longer what the unit stands for.
async fn stay(bus: &Bus, name: &str) -> Outcome {
    let failed = |err: zbus::Error| failure(&err, bus.user);
    let mut owner = bus.manager.receive_owner_changed().await.map_err(failed)?;
    let mut changes = bus.manager.receive_signal("ModelStateChanged").await.map_err(failed)?;
    let mut look = tokio::time::interval(LOOK);
    loop {
        match bus.status().await {
            Ok((_, document)) => {
                let model = document.model(name).ok_or_else(|| unknown(name))?;
                judge(model)?;
                systemd::status(&line(model));
            }
            Err(failure) if failure.exit == Exit::NotRunning => return Ok(()),
            Err(failure) => return Err(failure),
        }
        tokio::select! {
            _ = look.tick() => {}
            _ = changes.next() => {}
            owner = owner.next() => if !matches!(owner, Some(Some(_))) { return Ok(()) },
        }
    }
}

/// Whether the model is still pinned; a pinned one that died is loaded again by the daemon.
fn judge(model: &Model) -> Outcome {
    if model.pinned {
        return Ok(());
    }
    let message = format!("{} was unpinned or unloaded by an operator", model.name);
    Err(Failure::new(Exit::Failed, message))
}

/// What systemctl status shows.
fn line(model: &Model) -> String {
    let mut text = format!("{} is {}", model.name, model.phase);
    if model.in_flight + model.queued > 0 {
        text += &format!("; requests: {} running, {} waiting", model.in_flight, model.queued);
    }
    if let Some(fault) = model.error.as_ref().filter(|_| model.phase != "ready") {
        text += &format!("; {}", fault.message);
    }
    text
}

/// Unpins and unloads it, and waits for that.
async fn let_go(context: &Context, bus: &Bus, name: &str) -> Outcome {
    let mut watch = Watch::new(bus).await?;
    let job = match bus.begin("Unload", &(name, "drain")).await {
        Ok(job) => job,
        // Without a daemon, or with one that stops, there is nothing to let go.
        Err(failure) if failure.exit == Exit::NotRunning => return Ok(()),
        Err(failure) => return Err(failure),
    };
    match watch.ended(context, bus, &job, name).await {
        Err(failure) if failure.exit == Exit::NotRunning => Ok(()),
        ended => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::document::tests::example;

    #[test]
    fn a_model_that_was_let_go_ends_the_unit() {
        let mut model = example().models.remove(0);
        model.pinned = true;
        assert!(judge(&model).is_ok());
        model.pinned = false;
        assert!(judge(&model).unwrap_err().message.contains("operator"));
    }
}
