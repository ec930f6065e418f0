//! What the rest of the house may ask of the supervisor.
//!
//! Purpose: callers ask for an *outcome* ("a lease on qwen3"); they never inspect and then act. Owner: every proxy and
//! control task holds a clone of [`Handle`]. Invariants: a lease that was granted is always returned, by [`Lease`]'s
//! `Drop`; a caller that gives up leaves the queue by dropping its future; a stopped supervisor answers
//! [`Denied::ShuttingDown`], it never hangs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::ports::Endpoint;
use crate::types::{Denied, InstanceId, ModelName, Status, WaiterId};

/// A right to one in-flight request on one ready instance; returned on drop, so hold it until the last body byte has
/// gone out or the client has left.
#[derive(Debug)]
pub struct Lease {
    instance: InstanceId,
    endpoint: Endpoint,
    release: mpsc::UnboundedSender<Ask>,
}

impl Lease {
    /// Which incarnation serves the request.
    #[must_use]
    pub fn instance(&self) -> &InstanceId {
        &self.instance
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn new(
        instance: InstanceId,
        endpoint: Endpoint,
        release: mpsc::UnboundedSender<Ask>,
    ) -> Self {
        Self { instance, endpoint, release }
    }

    /// A lease for a scripted supervisor, reported to it through `handle` when dropped.
    #[doc(hidden)]
    #[must_use]
    pub fn scripted(instance: InstanceId, endpoint: Endpoint, handle: &Handle) -> Self {
        Self::new(instance, endpoint, handle.asks.clone())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A supervisor that has ended has nothing left to count.
        let _ = self.release.send(Ask::Release { instance: self.instance.clone() });
    }
}

/// What travels from handles to the supervisor's task.
#[derive(Debug)]
pub enum Ask {
    /// A request wants a lease.
    Acquire {
        /// As the client wrote it: a name or an alias.
        model: String,
        /// The longest it waits; `None`: as configured.
        wait: Option<Duration>,
        /// Identity for [`Ask::Cancel`].
        waiter: WaiterId,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Lease, Denied>>,
    },
    /// The caller left before it got an answer.
    Cancel {
        /// Which.
        waiter: WaiterId,
    },
    /// A lease was dropped.
    Release {
        /// Of which incarnation.
        instance: InstanceId,
    },
    /// An operator wants a model loaded, without a request.
    Load {
        /// Name.
        model: ModelName,
        /// Answered when it is ready.
        answer: oneshot::Sender<Result<(), Denied>>,
    },
    /// An operator wants a model measured.
    Measure {
        /// Name.
        model: ModelName,
        /// Answered when it is.
        answer: oneshot::Sender<Result<(), Denied>>,
    },
    /// An operator wants a model unloaded (running requests finish first).
    Unload {
        /// Name.
        model: ModelName,
        /// Answered when it is gone.
        answer: oneshot::Sender<Result<(), Denied>>,
    },
    /// Drain, then stop or keep containers, then end.
    Shutdown {
        /// Leave the containers running.
        keep: bool,
    },
}

/// A caller's end.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) asks: mpsc::UnboundedSender<Ask>,
    pub(super) status: watch::Receiver<Arc<Status>>,
    pub(super) next: Arc<std::sync::atomic::AtomicU64>,
}

impl Handle {
    /// A handle whose supervisor is a script: the other ends of its channels. For tests of those who hold handles.
    #[doc(hidden)]
    #[must_use]
    pub fn scripted(
        status: Status,
    ) -> (Self, mpsc::UnboundedReceiver<Ask>, watch::Sender<Arc<Status>>) {
        let (asks, receive) = mpsc::unbounded_channel();
        let (publish, status) = watch::channel(Arc::new(status));
        (Self { asks, status, next: Arc::default() }, receive, publish)
    }

    /// A lease on a model, by name or alias; waits while the model is loaded, at most the configured `max_wait`. Dropping the
    /// future leaves the queue; a load that was begun goes on.
    ///
    /// # Errors
    /// The reason why there is none.
    pub async fn acquire(&self, model: &str) -> Result<Lease, Denied> {
        self.acquire_within(model, None).await
    }

    /// The same for a caller with a patience of its own; `None`: the configured one.
    ///
    /// # Errors
    /// The reason why there is no lease.
    pub async fn acquire_within(
        &self,
        model: &str,
        wait: Option<Duration>,
    ) -> Result<Lease, Denied> {
        struct Leave<'a>(&'a mpsc::UnboundedSender<Ask>, Option<WaiterId>);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                if let Some(waiter) = self.1 {
                    let _ = self.0.send(Ask::Cancel { waiter });
                }
            }
        }
        let waiter = WaiterId(self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let (answer, receive) = oneshot::channel();
        let ask = Ask::Acquire { model: model.to_owned(), wait, waiter, answer };
        self.asks.send(ask).map_err(|_| Denied::ShuttingDown)?;
        let mut leave = Leave(&self.asks, Some(waiter));
        let result = receive.await;
        leave.1 = None;
        result.unwrap_or(Err(Denied::ShuttingDown))
    }

    /// Loads a model and waits until it is ready.
    ///
    /// # Errors
    /// The reason why it is not.
    pub async fn load(&self, model: &ModelName) -> Result<(), Denied> {
        let (answer, receive) = oneshot::channel();
        let ask = Ask::Load { model: model.clone(), answer };
        self.asks.send(ask).map_err(|_| Denied::ShuttingDown)?;
        receive.await.unwrap_or(Err(Denied::ShuttingDown))
    }

    /// Loads a model if need be, waits until its memory is measured, and lets it go where nobody else used it. Room is made by
    /// idle models alone.
    ///
    /// # Errors
    /// Why it is not measured.
    pub async fn measure(&self, model: &ModelName) -> Result<(), Denied> {
        let (answer, receive) = oneshot::channel();
        let ask = Ask::Measure { model: model.clone(), answer };
        self.asks.send(ask).map_err(|_| Denied::ShuttingDown)?;
        receive.await.unwrap_or(Err(Denied::ShuttingDown))
    }

    /// Unloads a model after its running requests and waits until it is gone.
    ///
    /// # Errors
    /// [`Denied::UnknownModel`] or [`Denied::ShuttingDown`].
    pub async fn unload(&self, model: &ModelName) -> Result<(), Denied> {
        let (answer, receive) = oneshot::channel();
        let ask = Ask::Unload { model: model.clone(), answer };
        self.asks.send(ask).map_err(|_| Denied::ShuttingDown)?;
        receive.await.unwrap_or(Err(Denied::ShuttingDown))
    }

    /// Begins the shutdown; the supervisor's task ends when it is done.
    pub fn shutdown(&self, keep: bool) {
        let _ = self.asks.send(Ask::Shutdown { keep });
    }

    /// The latest picture. Cheap: an `Arc` clone.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    /// For those who wait for changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }
}
