//! `hostler wait`: until a model, or the daemon, is where somebody needs it.

use std::time::Duration;

use clap::Args;
use futures_util::StreamExt as _;

use super::bus::{failure, not_running};
use super::exit::{Exit, Failure, Outcome};
use super::{Context, elsewhere};

/// The words for phases.
const PHASES: [&str; 12] = [
    "stopped", "waiting", "pulling", "starting", "loading", "ready", "draining", "dozing",
    "asleep", "waking", "stopping", "failed",
];

/// Waits until a model is in a phase, or, without a model, until the daemon runs. It loads nothing.
#[derive(Debug, Args)]
pub struct Wait {
    /// Its name, or an alias. Without: wait for the daemon.
    model: Option<String>,

    /// The phase that is waited for. A model that fails ends the wait, unless that is what is waited for.
    #[arg(long, default_value = "ready", value_parser = phase)]
    phase: String,

    /// Wait no longer than this. Such as 90s or 10m.
    #[arg(long, value_name = "TIME", value_parser = time)]
    timeout: Option<Duration>,
}

impl Wait {
    pub async fn run(self, context: &Context) -> Outcome {
        let limit = self.timeout.unwrap_or(Duration::MAX);
        let what = self.model.as_deref().unwrap_or("the daemon");
        let late =
            || Failure::new(Exit::Timeout, format!("{what}: not within the time that was given"));
        let work = async {
            match &self.model {
                Some(model) => self.phase_of(context, model).await,
                None => daemon(context).await,
            }
        };
        match tokio::time::timeout(limit.min(Duration::from_secs(1 << 32)), work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(late()),
        }
    }

    async fn phase_of(&self, context: &Context, model: &str) -> Outcome {
        let bus = context.bus().await?;
        let failed = |err: zbus::Error| failure(&err, bus.user);
        // Before the first look, so that no change is missed.
        let mut changes = bus.manager.receive_signal("ModelStateChanged").await.map_err(failed)?;
        let mut owner = bus.manager.receive_owner_changed().await.map_err(failed)?;
        loop {
            let (_, document) = bus.status().await?;
            let now = document.model(model);
            let now = now.ok_or_else(|| elsewhere::absent(&document, model))?;
            if now.phase == self.phase {
                context.out.say(&format!("{}: {}", now.name, now.phase));
                let row = serde_json::json!({"model": now.name, "phase": now.phase});
                return if context.out.json { context.out.document(&row) } else { Ok(()) };
            }
            if now.phase == "failed" {
                let why = now.error.as_ref().map(|f| f.message.clone()).unwrap_or_default();
                return Err(Failure::new(Exit::Failed, format!("{} failed: {why}", now.name)));
            }
            tokio::select! {
                change = changes.next() => if change.is_none() { return Err(not_running(bus.user)) },
                owner = owner.next() => if !matches!(owner, Some(Some(_))) { return Err(not_running(bus.user)) },
            }
        }
    }
}

/// Until it has its name on the bus, which it takes when it is ready.
async fn daemon(context: &Context) -> Outcome {
    let bus = context.bus_even_idle().await?;
    let failed = |err: zbus::Error| failure(&err, bus.user);
    let mut owner = bus.manager.receive_owner_changed().await.map_err(failed)?;
    loop {
        if context.bus().await.is_ok() {
            context.out.say("the daemon runs");
            let row = serde_json::json!({"running": true});
            return if context.out.json { context.out.document(&row) } else { Ok(()) };
        }
        if owner.next().await.is_none() {
            return Err(not_running(bus.user));
        }
    }
}

/// A phase's word.
///
/// # Errors
/// For any other, with the list.
pub fn phase(text: &str) -> Result<String, String> {
    if PHASES.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("phases are {}", PHASES.join(", ")))
    }
}

/// A length of time: `90s`, `10m`, `1h 30m`.
///
/// # Errors
/// For any other text, with an example.
pub fn time(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| "a time is such as 90s, 10m or \"1h 30m\"".to_owned())?;
    Duration::try_from(span).map_err(|_| "a time is not negative".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Phase;

    #[test]
    fn times_and_phases() {
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time("1h 30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "5", "-5s", "soon"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert_eq!(phase(Phase::Asleep.as_str()), Ok("asleep".to_owned()));
        assert!(phase("up").unwrap_err().contains("stopped"));
    }
}
