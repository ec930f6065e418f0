//! Requests that wait at the front door.
//!
//! Purpose: who waits for one of a model's turns (`max_concurrent`) waits for the model as who waits for its load does, and readers of the
//! picture get both as one number. Owner: the task adds it to the picture; the front door counts by its handle. Invariants: the core
//! knows nothing of it, and nothing is decided by it; what was begun ends with the drop; the picture is at most
//! [`STIR_MAX`](super::stir::STIR_MAX) behind; the lock is held for one step in a map.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::handle::Handle;
use super::stir::Stir;
use crate::types::ModelName;

/// How many wait, by model.
#[derive(Clone, Debug)]
pub(super) struct Waits {
    /// Of those for whom anybody waits.
    counts: Arc<Mutex<BTreeMap<ModelName, u32>>>,
    stir: Arc<Stir>,
}

/// One that waits, until it is dropped.
#[derive(Debug)]
pub struct Waiting {
    model: ModelName,
    waits: Waits,
}

impl Handle {
    /// A request waits for one of the model's turns from now on, until what is returned is dropped. The supervisor does not give the turns
    /// away; it shows who waits, in `queued`.
    #[must_use]
    pub fn awaits_turn(&self, model: &ModelName) -> Waiting {
        self.express.waits.begin(model)
    }
}

impl Waits {
    pub(super) fn new(stir: Arc<Stir>) -> Self {
        Self { counts: Arc::default(), stir }
    }

    /// Requests that wait for one of the model's turns.
    pub(super) fn of(&self, model: &ModelName) -> u32 {
        self.counts().get(model).copied().unwrap_or(0)
    }

    fn begin(&self, model: &ModelName) -> Waiting {
        *self.counts().entry(model.clone()).or_default() += 1;
        self.stir.stir();
        Waiting { model: model.clone(), waits: self.clone() }
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<ModelName, u32>> {
        // Nothing that is done under the lock can panic half-way.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut counts = self.waits.counts();
        if let Some(count) = counts.get_mut(&self.model) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.model);
            }
        }
        drop(counts);
        self.waits.stir.stir();
    }
}

#[cfg(test)]
mod tests {
    use super::super::handle::Ask;
    use super::*;
    use crate::types::Status;

    #[test]
    fn whoever_waits_is_counted_until_it_is_dropped_and_each_look_is_told_once() {
        let (handle, mut asks, _publish) = Handle::scripted(Status::default());
        let (m, other): (ModelName, ModelName) = ("m".parse().unwrap(), "n".parse().unwrap());
        let waits = handle.express.waits.clone();
        let mut told = || {
            let told = std::iter::from_fn(|| asks.try_recv().ok()).collect::<Vec<_>>();
            assert!(told.iter().all(|ask| matches!(ask, Ask::Stir)), "{told:?}");
            told.len()
        };
        let (first, second) = (handle.awaits_turn(&m), handle.awaits_turn(&m));
        assert_eq!((waits.of(&m), waits.of(&other), told()), (2, 0, 1));
        waits.stir.looks();
        drop(first);
        assert_eq!((waits.of(&m), told()), (1, 1));
        waits.stir.looks();
        drop(second);
        assert_eq!((waits.of(&m), told()), (0, 1));
        assert!(waits.counts().is_empty());
    }
}
