//! Looking after what runs: whether it is ready, lives, is well, and whether there is more than we know of.
//!
//! Owner: the executor. Invariant: life and death are asked of the kernel alone, so that neither a podman nor a driver that hangs
//! hides a death.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Executor, Once, Ports};
use crate::supervisor::event::Event;
use crate::supervisor::express::Turnstile;
use crate::supervisor::ports::{Endpoint, Ill, Launched};
use crate::types::{Fault, FaultCode, InstanceId, ModelSpec};

/// Between two questions whether a loading engine is ready: a hundredth of the time that it has taken so far, but at least and at
/// most this. So one that is quick is found ready at once. Cheap: one local connection, or none while nobody listens.
const PROBE_PAUSE: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(20)];
/// How often it is looked whether a loading engine has written something.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
/// How long podman is asked about a death, or for the last words of one that is to stop: neither must wait for a podman that hangs.
pub(super) const OBITUARY_TIME: Duration = Duration::from_secs(2);

impl Executor {
    /// Asks podman for all that is ours. Not while the last answer is still to come.
    pub(in crate::supervisor) fn sweep(&self) {
        let Some(one) = Once::begin(&self.sweeping) else { return };
        let (ports, events, taken) = (self.ports.clone(), self.events.clone(), self.clock.now());
        self.runtime.spawn(async move {
            let list = ports.containers.list().await;
            let _ = events.send(Event::Swept { taken, list });
            drop(one);
        });
    }

    /// Looks who of these has died. The kernel alone is asked, so that neither a podman nor a driver that hangs hides a death.
    pub(in crate::supervisor) fn watch<'a>(
        &mut self,
        watched: impl Iterator<Item = (&'a InstanceId, &'a Launched)>,
    ) {
        let mut alive = BTreeSet::new();
        for (id, launched) in watched {
            alive.insert(id.clone());
            let dead =
                self.ports.containers.pids(&launched.cgroup).is_ok_and(|pids| pids.is_empty());
            if dead && self.dying.insert(id.clone()) {
                let (ports, events, instance) =
                    (self.ports.clone(), self.events.clone(), id.clone());
                self.runtime.spawn(async move {
                    let fault = obituary(&ports, &instance, "ended while it served").await;
                    let _ = events.send(Event::Died { instance, fault });
                });
            }
        }
        self.dying.retain(|id| alive.contains(id));
    }

    /// Asks an engine whether it is well. `way`: where it is heard what it says to others meanwhile: one that is too busy to speak of its
    /// health while it answers requests is well. What silence means of one that answers nobody the core decides.
    pub(in crate::supervisor) fn check(
        &self,
        (instance, way): (InstanceId, Option<Arc<Turnstile>>),
        spec: Arc<ModelSpec>,
        endpoint: Endpoint,
        token: bool,
        timeout: Duration,
    ) {
        let (ports, id) = (self.ports.clone(), instance.clone());
        let work = async move {
            let said = || way.as_ref().map(|way| way.said());
            let before = said();
            let Err(Ill { why, silent }) =
                ports.engines.check(spec, endpoint, token, timeout).await
            else {
                return Ok((Ok(()), false));
            };
            if silent && said() != before {
                return Ok((Ok(()), false));
            }
            let log = last_lines(&ports, &id).await;
            let message = format!("the engine of {id} runs but is not well: {why}");
            Ok((Err(Fault::new(FaultCode::Unhealthy, message).with_log(log)), silent))
        };
        self.answer(work, move |answer| {
            let (result, silent) = answer.unwrap_or_else(|fault| (Err(fault), false));
            Event::Checked { instance, result, silent }
        });
    }
}

/// Until the engine is ready or dead; what it writes meanwhile is told.
pub(super) async fn load(
    ports: &Ports,
    events: &mpsc::UnboundedSender<Event>,
    instance: InstanceId,
    spec: Arc<ModelSpec>,
    launched: Launched,
) -> Event {
    let told = async {
        let mut last = Vec::new();
        loop {
            tokio::time::sleep(LOG_INTERVAL).await;
            let line = ports.containers.log_tail(instance.clone(), 1).await;
            if !line.is_empty() && line != last {
                let _ = events.send(Event::LoadProgress { instance: instance.clone() });
                last = line;
            }
        }
    };
    tokio::select! {
        event = probe_until_ready(ports, events, instance.clone(), spec, launched) => event,
        event = told => event,
    }
}

/// Until the engine is ready or dead. The deadline is the core's: it stops the instance, which ends this.
async fn probe_until_ready(
    ports: &Ports,
    events: &mpsc::UnboundedSender<Event>,
    instance: InstanceId,
    spec: Arc<ModelSpec>,
    launched: Launched,
) -> Event {
    let mut strange: Option<String> = None;
    let began = tokio::time::Instant::now();
    loop {
        match ports.engines.probe(spec.clone(), launched.endpoint.clone()).await {
            Ok(true) => return Event::Healthy { instance },
            Ok(false) => {}
            Err(answer) => {
                if strange.as_ref() != Some(&answer) {
                    tracing::warn!(%instance, %answer, "unexpected answer to a health probe, retrying");
                    strange = Some(answer.clone());
                    let _ = events.send(Event::Strange { instance: instance.clone(), answer });
                }
            }
        }
        if ports.containers.pids(&launched.cgroup).is_ok_and(|pids| pids.is_empty()) {
            let fault = obituary(ports, &instance, "ended while it loaded").await;
            return Event::Died { instance, fault };
        }
        let [least, most] = PROBE_PAUSE;
        tokio::time::sleep((began.elapsed() / 100).clamp(least, most)).await;
    }
}

/// What an engine wrote last, for its fault.
pub(super) async fn last_lines(ports: &Ports, instance: &InstanceId) -> Vec<String> {
    let log = ports.containers.log_tail(instance.clone(), Fault::LINES_MAX);
    tokio::time::timeout(OBITUARY_TIME, log).await.unwrap_or_default()
}

/// What is known about the end of an engine.
async fn obituary(ports: &Ports, instance: &InstanceId, how: &str) -> Fault {
    let ending = ports.containers.ending(instance.clone());
    let ending = tokio::time::timeout(OBITUARY_TIME, ending);
    let (ending, log) = tokio::join!(ending, last_lines(ports, instance));
    let ending = ending.unwrap_or_default();
    let ending = ending.map_or_else(|| "exit code unknown".to_owned(), |end| end.to_string());
    let message = format!("the engine of {instance} {how} ({ending})");
    Fault::new(FaultCode::EngineExited, message).with_log(log)
}
