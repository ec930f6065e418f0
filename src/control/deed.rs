//! What an operator wants done, once it is known that they may.
//!
//! Purpose: the one way from a wish to a job, whichever door it came through. Owner: none. Invariant: nothing is checked here but what
//! the supervisor itself refuses; whoever calls has asked who it is for.

use std::future::Future;
use std::sync::Arc;

use super::Context;
use super::error::Error;
use super::jobs::Kind;
use crate::types::{Denied, Haste, ModelName, Wish};

/// One operation that takes a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Makes a model ready.
    Load(ModelName, Wish),
    /// Unpins it and makes it leave.
    Unload(ModelName, Haste),
    /// The same with all.
    UnloadAll(Haste),
    /// Finds out what it needs.
    Measure(ModelName),
    /// Puts it to sleep.
    Sleep(ModelName),
    /// Wakes it.
    Wake(ModelName),
}

impl Context {
    /// Begins a job; its number.
    ///
    /// # Errors
    /// If too many run already.
    pub async fn start(self: &Arc<Self>, deed: Deed) -> Result<u32, Error> {
        let handle = self.handle.clone();
        match deed {
            Deed::Load(model, wish) => {
                let name = model.clone();
                let work = async move { handle.load_as(&name, wish).await };
                self.work(Kind::Load, Some(model), work).await
            }
            Deed::Unload(model, haste) => {
                let name = model.clone();
                let work = async move { handle.unload_as(&name, haste).await };
                self.work(Kind::Unload, Some(model), work).await
            }
            Deed::UnloadAll(haste) => {
                self.work(Kind::UnloadAll, None, async move { handle.unload_all(haste).await })
                    .await
            }
            Deed::Measure(model) => {
                let name = model.clone();
                self.work(Kind::Measure, Some(model), async move { handle.measure(&name).await })
                    .await
            }
            Deed::Sleep(model) => {
                let name = model.clone();
                self.work(Kind::Sleep, Some(model), async move { handle.sleep(&name).await }).await
            }
            Deed::Wake(model) => {
                let name = model.clone();
                self.work(Kind::Wake, Some(model), async move { handle.wake(&name).await }).await
            }
        }
    }

    async fn work<F>(
        self: &Arc<Self>,
        kind: Kind,
        model: Option<ModelName>,
        work: F,
    ) -> Result<u32, Error>
    where
        F: Future<Output = Result<(), Denied>> + Send + 'static,
    {
        self.begin(kind, model, async move { work.await.map_err(Error::from) }).await
    }
}
