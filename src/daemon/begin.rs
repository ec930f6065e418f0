//! The start before anything is served, and a stop that comes during it.
//!
//! Purpose: the checks, the sockets and what is known of the models' files and images, as far as a stop has to wait for nothing of it; and the
//! end of the models that an earlier daemon left, where the administrator says "stop" before this one has taken them over. Owner:
//! [`super::run`]. Invariants: a failed start leaves no client hanging; what is stopped is ours by its labels; what `on_stop`, or a
//! restart, keeps is not touched.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::validate::{self, Proven};
use super::{STOP_EXTENSION, core, door, fail, manager, recall, sockets};
use crate::adapters::systemd;
use crate::checks::{self, Checks, Exit, StartFailure};
use crate::config::Config;
use crate::proxy::Listener;
use crate::supervisor::ports::Containers;
use crate::supervisor::task::Ports;
use crate::types::{Fault, ModelName};

/// All that serving needs.
pub(super) struct Begun {
    pub(super) proven: Proven,
    pub(super) sockets: Vec<Listener>,
    pub(super) images: BTreeMap<ModelName, String>,
    pub(super) models: core::Models,
}

/// Checks, and finds out what there is. Nothing of it outlives a stop in the middle.
///
/// # Errors
/// The exit status, when all who wait have been told why.
pub(super) async fn begin(
    config: &Config,
    ports: &Ports,
    user: &str,
    sockets: Vec<Listener>,
) -> Result<Begun, Exit> {
    let cdi_dirs: Vec<PathBuf> = checks::cdi_dirs();
    let checks = Checks {
        config,
        containers: &*ports.containers,
        gpus: &*ports.gpus,
        cdi_dirs: &cdi_dirs,
        user,
    };
    let proven = match validate::patiently(validate::gate(&checks)).await {
        Ok(proven) => proven,
        Err(failure) => return Err(fail(sockets, &failure).await),
    };
    let sockets = bound(config, sockets).await?;
    let images = validate::patiently(recall::images(&config.models, &*ports.containers)).await;
    let models = validate::patiently(core::models(config, &core::Models::new())).await;
    Ok(Begun { proven, sockets, images, models })
}

/// All sockets: those of systemd or, without it, of the configuration, and the metrics'.
async fn bound(config: &Config, sockets: Vec<Listener>) -> Result<Vec<Listener>, Exit> {
    let own = if sockets.is_empty() { sockets::bind(config) } else { Ok(Vec::new()) };
    let more: Result<Vec<Listener>, StartFailure> = own.and_then(|mut own| {
        own.extend(sockets::bind_metrics(config)?);
        Ok(own)
    });
    let mut all = sockets;
    match more {
        Ok(more) => all.extend(more),
        Err(failure) => return Err(fail(all, &failure).await),
    }
    match door::guarded(config, &all) {
        Ok(()) => Ok(all),
        Err(failure) => Err(fail(all, &failure).await),
    }
}

/// Somebody stops the daemon before it serves: what an earlier one left ends with it, unless it is to be kept.
pub(super) async fn end(config: &Config, containers: &Arc<dyn Containers>, user: bool) -> Exit {
    let keep = config.policy.keeps() || manager::restarts(user).await;
    let text = if keep { "models are kept" } else { "stopping what an earlier daemon left" };
    systemd::stopping(text);
    tracing::info!(kind = "daemon_stopping", "stopping before the start was complete: {text}");
    if !keep {
        systemd::extend_timeout(config.longest_stop() + STOP_EXTENSION);
        for (what, fault) in stop_all(containers).await {
            tracing::warn!(
                "{what} has not ended and is left; the next start takes it over: {fault}"
            );
        }
    }
    tracing::info!("stopped");
    Exit::Ok
}

/// Stops every container of ours, all at once; what did not end, and why.
async fn stop_all(containers: &Arc<dyn Containers>) -> Vec<(String, Fault)> {
    let found = match containers.list().await {
        Ok(found) => found,
        Err(fault) => return vec![("what runs of ours".to_owned(), fault)],
    };
    let mut stops = JoinSet::new();
    for item in found {
        let containers = containers.clone();
        stops.spawn(async move {
            let (what, result) = match item.identity {
                Some(found) => {
                    let id = found.instance;
                    (id.to_string(), containers.stop(id).await)
                }
                None => (item.container.clone(), containers.reap(item.container).await),
            };
            result.err().map(|fault| (what, fault))
        });
    }
    stops.join_all().await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
