//! Models' files that nobody could read when the daemon came up, or at the last reload: their disk came later, or they did.
//!
//! Owner: the composition root runs the task until the drain. Invariant: an engine that has been started has found its files, so
//! that is when they are looked at again; its own load was planned without, and the next one is planned with what they say.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::reload::Root;
use crate::types::{InstanceId, ModelName, Phase, Status};

/// Has the files of models looked at again that started although nothing was known of them.
pub async fn follow(root: Arc<Root>) {
    let mut changes = root.handle.watch();
    let mut seen = BTreeSet::new();
    loop {
        let up = started(&changes.borrow_and_update());
        let fresh: BTreeSet<ModelName> = up.difference(&seen).map(|id| id.model.clone()).collect();
        if !fresh.is_empty() {
            root.look_again(&fresh).await;
        }
        seen = up;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Those whose containers were started.
fn started(status: &Status) -> BTreeSet<InstanceId> {
    let up = status.models.iter().filter(|model| match model.phase {
        Phase::Loading
        | Phase::Ready
        | Phase::Draining
        | Phase::Dozing
        | Phase::Asleep
        | Phase::Waking => true,
        Phase::Stopped
        | Phase::Waiting
        | Phase::Pulling
        | Phase::Starting
        | Phase::Stopping
        | Phase::Failed => false,
    });
    up.filter_map(|model| model.instance.clone()).collect()
}
