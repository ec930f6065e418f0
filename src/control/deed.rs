//! What an operator wants done, once it is known that they may.
//!
//! Purpose: the one way from a wish to a job, whichever door it came through. Owner: none. Invariant: nothing is checked here but what
//! the supervisor itself refuses; whoever calls has asked who it is for.

use std::sync::Arc;

use super::Context;
use super::error::Error;
use super::jobs::Kind;
use crate::types::{Haste, ModelName, Wish};

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

impl Deed {
    /// The kind of its job, which also says what whoever wants it must be allowed.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Load(..) => Kind::Load,
            Self::Unload(..) => Kind::Unload,
            Self::UnloadAll(_) => Kind::UnloadAll,
            Self::Measure(_) => Kind::Measure,
            Self::Sleep(_) => Kind::Sleep,
            Self::Wake(_) => Kind::Wake,
        }
    }

    /// Whom it is done to; `None`: all.
    const fn model(&self) -> Option<&ModelName> {
        match self {
            Self::Load(model, _)
            | Self::Unload(model, _)
            | Self::Measure(model)
            | Self::Sleep(model)
            | Self::Wake(model) => Some(model),
            Self::UnloadAll(_) => None,
        }
    }
}

impl Context {
    /// Begins a job; its number.
    ///
    /// # Errors
    /// If too many run already.
    pub async fn start(self: &Arc<Self>, deed: Deed) -> Result<u32, Error> {
        let (supervisor, model) = (self.handle.clone(), deed.model().cloned());
        self.begin(deed.kind(), model, |job| async move {
            let handle = supervisor.for_job(job);
            let done = match deed {
                Deed::Load(model, wish) => handle.load_as(&model, wish).await,
                Deed::Unload(model, haste) => handle.unload_as(&model, haste).await,
                Deed::UnloadAll(haste) => handle.unload_all(haste).await,
                Deed::Measure(model) => handle.measure(&model).await,
                Deed::Sleep(model) => handle.sleep(&model).await,
                Deed::Wake(model) => handle.wake(&model).await,
            };
            done.map_err(Error::from)
        })
        .await
    }
}
