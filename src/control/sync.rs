//! What changed, said on the bus.
//!
//! Purpose: compares two published pictures and emits objects' appearance and disappearance, `PropertiesChanged` and
//! `ModelStateChanged`. Owner: the bus task, one [`Publisher`] a connection. Invariants: states are sent with their values and at once;
//! counters that change with every request are only invalidated, at most once in [`HOT_INTERVAL`]: a busy daemon must not flood the
//! bus.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath, Variant, fdo};

use super::gpu::Gpu;
use super::manager::{Manager, ManagerSignals};
use super::model::Model;
use super::{Context, UNKNOWN, bytes, document, path, us};
use crate::types::{GpuStatus, ModelStatus, SleepLevel, Status};

/// Between two announcements of counters.
pub(super) const HOT_INTERVAL: Duration = Duration::from_secs(1);

/// Announces differences on one connection.
pub(super) struct Publisher {
    context: Arc<Context>,
    bus: Connection,
    /// Said so far.
    last: Arc<Status>,
    /// Said so far of counters.
    hot: Arc<Status>,
    hot_at: Instant,
}

impl Publisher {
    /// Puts up the objects of everything that there is.
    pub(super) async fn start(context: Arc<Context>, bus: Connection) -> zbus::Result<Self> {
        let now = context.handle.status();
        let publisher =
            Self { context, bus, last: now.clone(), hot: now.clone(), hot_at: Instant::now() };
        for model in &now.models {
            publisher.add_model(model).await?;
        }
        for gpu in &now.gpus {
            publisher.add_gpu(gpu).await?;
        }
        Ok(publisher)
    }

    async fn add_model(&self, model: &ModelStatus) -> zbus::Result<()> {
        let object = Model::new(self.context.clone(), model.name.clone());
        self.bus.object_server().at(path::model(model.name.as_str()), object).await.map(drop)
    }

    async fn add_gpu(&self, gpu: &GpuStatus) -> zbus::Result<()> {
        let object = Gpu::new(self.context.clone(), gpu.id.clone());
        self.bus.object_server().at(path::gpu(gpu.id.as_str()), object).await.map(drop)
    }

    /// When counters have to be announced although nothing else happens; `None`: they are.
    pub(super) fn hot_due(&self) -> Option<Instant> {
        (self.hot != self.last).then_some(self.hot_at)
    }

    /// Says what is different now.
    pub(super) async fn publish(&mut self) -> zbus::Result<()> {
        let now = self.context.handle.status();
        let before = std::mem::replace(&mut self.last, now.clone());
        self.objects(&before, &now).await?;
        self.manager(&before, &now).await?;
        for model in &now.models {
            let Some(old) = before.models.iter().find(|old| old.name == model.name) else {
                continue;
            };
            if old != model {
                self.model(old, model).await?;
            }
        }
        for gpu in &now.gpus {
            let Some(old) = before.gpus.iter().find(|old| old.id == gpu.id) else { continue };
            let mut changes = Changes::default();
            changes.value("Total", bytes(old.total), bytes(gpu.total));
            changes.value("Headroom", old.headroom.0, gpu.headroom.0);
            self.emit(path::gpu(gpu.id.as_str()), "org.hostler1.Gpu", changes).await?;
        }
        if self.hot_at <= Instant::now() && self.hot != self.last {
            self.hot_at = Instant::now() + HOT_INTERVAL;
            let before = std::mem::replace(&mut self.hot, now.clone());
            self.counters(&before, &now).await?;
        }
        Ok(())
    }

    async fn objects(&self, before: &Status, now: &Status) -> zbus::Result<()> {
        let server = self.bus.object_server();
        for model in now.models.iter().filter(|m| !before.models.iter().any(|o| o.name == m.name)) {
            self.add_model(model).await?;
        }
        for model in before.models.iter().filter(|o| !now.models.iter().any(|m| m.name == o.name)) {
            server.remove::<Model, _>(path::model(model.name.as_str())).await?;
        }
        for gpu in now.gpus.iter().filter(|g| !before.gpus.iter().any(|o| o.id == g.id)) {
            self.add_gpu(gpu).await?;
        }
        for gpu in before.gpus.iter().filter(|o| !now.gpus.iter().any(|g| g.id == o.id)) {
            server.remove::<Gpu, _>(path::gpu(gpu.id.as_str())).await?;
        }
        Ok(())
    }

    async fn manager(&self, before: &Status, now: &Status) -> zbus::Result<()> {
        let mut changes = Changes::default();
        changes.value("State", document::state(before), document::state(now));
        let problems = |s: &Status| -> Vec<(String, String)> {
            s.problems.iter().map(|p| (p.code.to_owned(), p.message.clone())).collect()
        };
        let gists = |s: &Status| -> Vec<(&'static str, String)> {
            s.problems.iter().map(|p| (p.code, p.gist())).collect()
        };
        // Other amounts of memory come with every reading, for as long as it lasts.
        if before.problems != now.problems && gists(before) != gists(now) {
            changes.value("Problems", problems(before), problems(now));
        }
        self.emit(path::manager(), "org.hostler1.Manager", changes).await
    }

    async fn model(&self, old: &ModelStatus, new: &ModelStatus) -> zbus::Result<()> {
        let object = path::model(new.name.as_str());
        self.emit(object.clone(), "org.hostler1.Model", model_states(old, new)).await?;
        if old.phase != new.phase {
            let manager = self.bus.object_server().interface::<_, Manager>(path::ROOT).await?;
            let (from, to) = (old.phase.as_str(), new.phase.as_str());
            manager.model_state_changed(&object, new.name.as_str(), from, to).await?;
        }
        Ok(())
    }

    async fn counters(&self, before: &Status, now: &Status) -> zbus::Result<()> {
        for model in &now.models {
            let Some(old) = before.models.iter().find(|old| old.name == model.name) else {
                continue;
            };
            let mut changes = Changes::default();
            changes.stale("VramObserved", old.observed != model.observed);
            changes.stale("Footprint", old.footprint != model.footprint);
            changes.stale("ActiveRequests", old.in_flight != model.in_flight);
            changes.stale("QueuedRequests", old.queued != model.queued);
            changes.stale("LastUsedTimestamp", old.last_used != model.last_used);
            changes.stale("Report", old.report != model.report);
            self.emit(path::model(model.name.as_str()), "org.hostler1.Model", changes).await?;
        }
        for gpu in &now.gpus {
            let Some(old) = before.gpus.iter().find(|old| old.id == gpu.id) else { continue };
            let mut changes = Changes::default();
            changes.stale("Reserved", old.reserved != gpu.reserved);
            changes.stale("Confirmed", old.confirmed != gpu.confirmed);
            changes.stale("Releasing", old.releasing != gpu.releasing);
            changes.stale("Quarantined", old.quarantined != gpu.quarantined);
            changes.stale("Foreign", old.foreign != gpu.foreign);
            changes.stale("Free", old.free != gpu.free);
            changes.stale("Processes", old.processes != gpu.processes);
            self.emit(path::gpu(gpu.id.as_str()), "org.hostler1.Gpu", changes).await?;
        }
        let sum = |s: &Status, of: fn(&ModelStatus) -> u32| s.models.iter().map(of).sum::<u32>();
        let mut changes = Changes::default();
        let active = |s| sum(s, |m| m.in_flight);
        changes.stale("ActiveRequests", active(before) != active(now));
        let queued = |s| sum(s, |m| m.queued);
        changes.stale("QueuedRequests", queued(before) != queued(now));
        self.emit(path::manager(), "org.hostler1.Manager", changes).await
    }

    async fn emit(
        &self,
        object: OwnedObjectPath,
        interface: &'static str,
        changes: Changes,
    ) -> zbus::Result<()> {
        if changes.values.is_empty() && changes.stale.is_empty() {
            return Ok(());
        }
        let emitter = SignalEmitter::new(&self.bus, object)?;
        let interface = InterfaceName::try_from(interface)?;
        let stale = Cow::Owned(changes.stale);
        fdo::Properties::properties_changed(&emitter, interface, changes.values, stale).await
    }
}

/// The contents of one `PropertiesChanged`.
#[derive(Default)]
struct Changes {
    values: HashMap<&'static str, Variant<'static>>,
    stale: Vec<&'static str>,
}

impl Changes {
    fn value<T: PartialEq + Into<Variant<'static>>>(&mut self, name: &'static str, old: T, new: T) {
        if old != new {
            self.values.insert(name, new.into());
        }
    }

    fn stale(&mut self, name: &'static str, changed: bool) {
        if changed {
            self.stale.push(name);
        }
    }
}

/// Properties of a model that are sent with their values; the getters in `model` say the same.
fn model_states(old: &ModelStatus, new: &ModelStatus) -> Changes {
    let mut changes = Changes::default();
    macro_rules! send {
        ($($name:literal: $get:expr;)+) => {{
            // One after the other: closures in a list would all have to have one type.
            $({
                let get = $get;
                changes.value($name, get(old), get(new));
            })+
        }};
    }
    send! {
        "Aliases": |m: &ModelStatus| m.aliases.iter().map(ToString::to_string).collect::<Vec<String>>();
        "Engine": |m: &ModelStatus| m.engine.to_owned();
        "Phase": |m: &ModelStatus| m.phase.as_str().to_owned();
        "Container": |m: &ModelStatus| m.instance.as_ref().map(ToString::to_string).unwrap_or_default();
        "ContainerID": |m: &ModelStatus| m.container.clone().unwrap_or_default();
        "Gpus": |m: &ModelStatus| m.gpus.iter().map(|g| g.as_str().to_owned()).collect::<Vec<String>>();
        "VramPlanned": |m: &ModelStatus| m.planned.map_or(UNKNOWN, |need| need.bytes.0);
        "FootprintConfidence": |m: &ModelStatus| m.footprint.as_ref().map_or("none", |f| f.confidence).to_owned();
        "IdleTimeoutUSec": |m: &ModelStatus| m.idle_timeout.map_or(UNKNOWN, us);
        "Pinned": |m: &ModelStatus| m.pinned;
        "LoadUSec": |m: &ModelStatus| m.load_ms.map_or(UNKNOWN, |ms| ms.saturating_mul(1000));
        "LastError": |m: &ModelStatus| m.error.as_ref().map_or_else(Default::default, |f| (f.code.as_str().to_owned(), f.message.clone()));
        "Restarts": |m: &ModelStatus| m.restarts;
        "WaitingFor": |m: &ModelStatus| m.waiting_for.clone().unwrap_or_default();
        "SleepLevel": |m: &ModelStatus| m.sleep.as_ref().and_then(|s| s.level).map_or(0, SleepLevel::number);
    }
    changes
}
