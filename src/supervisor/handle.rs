//! What the rest of the house may ask of the supervisor.
//!
//! Purpose: callers ask for an *outcome* ("a lease on qwen3"); they never inspect and then act. Owner: every proxy and
//! control task holds a clone of [`Handle`]. Invariants: a lease that was granted is always returned, by [`Lease`]'s
//! `Drop`; a caller that gives up leaves the queue by dropping its future; a stopped supervisor answers
//! [`Denied::ShuttingDown`], it never hangs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::event::Reconfiguration;
use super::execute::Clock;
use super::express::{Express, Turnstile, Turnstiles};
pub use super::meter::Meter;
use super::ports::Endpoint;
pub use super::waits::Waiting;
use crate::types::{Denied, Haste, InstanceId, ModelName, Moment, Preview, Status, WaiterId, Wish};

/// A right to one in-flight request on one ready instance; returned on drop, so hold it until the last body byte has
/// gone out or the client has left.
#[derive(Debug)]
pub struct Lease(Arc<Turnstile>);

impl Lease {
    /// Which incarnation serves the request.
    #[must_use]
    pub fn instance(&self) -> &InstanceId {
        &self.0.instance
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// Where to count what the model streams.
    #[must_use]
    pub fn meter(&self) -> &Meter {
        &self.0.meter
    }

    /// The engine has answered, or gone on with its answer: it lives, however it answers when it is asked for its health.
    pub fn heard(&self) {
        self.0.says();
    }

    /// One that is counted there already.
    pub(super) const fn at(way: Arc<Turnstile>) -> Self {
        Self(way)
    }

    /// A lease for a scripted supervisor, reported to it through `handle` when dropped.
    #[doc(hidden)]
    #[must_use]
    pub fn scripted(instance: InstanceId, endpoint: Endpoint, handle: &Handle) -> Self {
        Arc::new(Turnstile::shut(instance, endpoint, handle.asks.clone())).admit()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.give_back();
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
        /// Its ID, for the journal.
        request: Option<Arc<str>>,
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
    /// A lease was dropped whose end may be waited for.
    Release {
        /// Of which incarnation.
        instance: InstanceId,
    },
    /// Leases are taken and dropped without asking: look at them soon.
    Stir,
    /// An operator wants something of a model.
    Operate {
        /// Identity for [`Ask::Cancel`].
        waiter: WaiterId,
        /// Which.
        model: ModelName,
        /// What.
        verb: Verb,
        /// The number of the job that it is for.
        job: Option<u32>,
        /// Answered when it is so.
        answer: oneshot::Sender<Result<(), Denied>>,
    },
    /// An operator wants to know what a load would do.
    Preview {
        /// Which.
        model: ModelName,
        /// How.
        wish: Wish,
        /// Answered at once.
        answer: oneshot::Sender<Result<Preview, Denied>>,
    },
    /// Somebody wants to know where a ready engine listens, without a lease.
    Reach {
        /// Which, by name or alias.
        model: ModelName,
        /// Answered at once.
        answer: oneshot::Sender<Result<(InstanceId, Endpoint), Denied>>,
    },
    /// Another configuration. Answered when readers see it.
    Configure(Box<Reconfiguration>, oneshot::Sender<Result<(), Denied>>),
    /// A problem elsewhere, or its end (`None`).
    Trouble {
        /// Stable word.
        code: &'static str,
        /// For people.
        message: Option<String>,
    },
    /// Drain, then stop or keep containers, then end.
    Shutdown {
        /// Leave the containers running.
        keep: bool,
    },
}

/// What an operator wants of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Ready.
    Load(Wish),
    /// Measured.
    Measure,
    /// Gone.
    Unload(Haste),
    /// Pinned, or no longer.
    Pin(bool),
    /// Asleep.
    Sleep,
    /// Awake.
    Wake,
}

/// Tells the supervisor that a caller has left before it got its answer.
struct Leave<'a> {
    asks: &'a mpsc::UnboundedSender<Ask>,
    waiter: WaiterId,
    answered: bool,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let _ = self.asks.send(Ask::Cancel { waiter: self.waiter });
        }
    }
}

/// A caller's end.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) asks: mpsc::UnboundedSender<Ask>,
    pub(super) status: watch::Receiver<Arc<Status>>,
    pub(super) next: Arc<std::sync::atomic::AtomicU64>,
    pub(super) clock: Clock,
    pub(super) job: Option<u32>,
    pub(super) express: Express,
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
        let clock = Clock::start();
        let (next, express) = (Arc::default(), Turnstiles::new(asks.clone()).express());
        (Self { asks, status, next, clock, job: None, express }, receive, publish)
    }

    /// The same handle for a job, whose number the journal's lines carry about what is done for it.
    #[must_use]
    pub fn for_job(&self, job: u32) -> Self {
        Self { job: Some(job), ..self.clone() }
    }

    /// A lease on a model, by name or alias; waits while the model is loaded, at most the configured `max_wait`. Dropping the
    /// future leaves the queue; a load that was begun goes on.
    ///
    /// # Errors
    /// The reason why there is none.
    pub async fn acquire(&self, model: &str) -> Result<Lease, Denied> {
        self.acquire_for(model, None, None).await
    }

    /// The same for a caller with a patience of its own (`None`: the configured one), and for a request with an ID, which the journal's
    /// lines about a load carry that begins for it.
    ///
    /// # Errors
    /// The reason why there is no lease.
    pub async fn acquire_for(
        &self,
        model: &str,
        wait: Option<Duration>,
        request: Option<&str>,
    ) -> Result<Lease, Denied> {
        if let Some(lease) = self.at_once(model) {
            return Ok(lease);
        }
        let mut leave = self.waiter();
        let (answer, receive) = oneshot::channel();
        let (model, request) = (model.to_owned(), request.map(Arc::from));
        let ask = Ask::Acquire { model, wait, request, waiter: leave.waiter, answer };
        self.asks.send(ask).map_err(|_| Denied::ShuttingDown)?;
        let result = receive.await;
        leave.answered = true;
        result.unwrap_or(Err(Denied::ShuttingDown))
    }

    /// A lease that is there to be taken, by name or alias; `None`: it has to be asked for.
    #[must_use]
    pub fn at_once(&self, model: &str) -> Option<Lease> {
        self.express.pass(model)
    }

    /// Loads a model as a request would and waits until it is ready. Dropping this or any other operator's future takes the wish back:
    /// a load that nobody else wants ends with it, a stop that has begun goes on.
    ///
    /// # Errors
    /// The reason why it is not.
    pub async fn load(&self, model: &ModelName) -> Result<(), Denied> {
        self.load_as(model, Wish::default()).await
    }

    /// Loads a model as wished and waits until it is ready.
    ///
    /// # Errors
    /// The reason why it is not.
    pub async fn load_as(&self, model: &ModelName, wish: Wish) -> Result<(), Denied> {
        self.operate(model, Verb::Load(wish)).await
    }

    /// Loads a model if need be, waits until its memory is measured, and lets it go where nobody else used it. Room is made by
    /// idle models alone.
    ///
    /// # Errors
    /// Why it is not measured.
    pub async fn measure(&self, model: &ModelName) -> Result<(), Denied> {
        self.operate(model, Verb::Measure).await
    }

    /// Unpins and unloads a model after its running requests and waits until it is gone.
    ///
    /// # Errors
    /// [`Denied::UnknownModel`] or [`Denied::ShuttingDown`].
    pub async fn unload(&self, model: &ModelName) -> Result<(), Denied> {
        self.unload_as(model, Haste::Drain).await
    }

    /// Unpins and unloads a model and waits until it is gone.
    ///
    /// # Errors
    /// [`Denied::UnknownModel`] or [`Denied::ShuttingDown`].
    pub async fn unload_as(&self, model: &ModelName, haste: Haste) -> Result<(), Denied> {
        self.operate(model, Verb::Unload(haste)).await
    }

    /// The same with all models at once. One that is not configured any more leaves by itself; what goes wrong with another is said
    /// when all others are gone.
    ///
    /// # Errors
    /// [`Denied::ShuttingDown`].
    pub async fn unload_all(&self, haste: Haste) -> Result<(), Denied> {
        let names: Vec<ModelName> = self.status().models.iter().map(|m| m.name.clone()).collect();
        let all = names.iter().map(|name| self.unload_as(name, haste));
        let ends = futures_util::future::join_all(all).await;
        let unknown = |end: &Result<(), Denied>| matches!(end, Err(Denied::UnknownModel { .. }));
        ends.into_iter().find(|end| end.is_err() && !unknown(end)).unwrap_or(Ok(()))
    }

    /// Pins a model, which loads it, or unpins it, which lets it go when it is idle. Does not wait for either.
    ///
    /// # Errors
    /// [`Denied::UnknownModel`] or [`Denied::ShuttingDown`].
    pub async fn pin(&self, model: &ModelName, pinned: bool) -> Result<(), Denied> {
        self.operate(model, Verb::Pin(pinned)).await
    }

    /// Puts an idle model to sleep and waits until it sleeps.
    ///
    /// # Errors
    /// The reason why it does not.
    pub async fn sleep(&self, model: &ModelName) -> Result<(), Denied> {
        self.operate(model, Verb::Sleep).await
    }

    /// Wakes a model and waits until it is ready.
    ///
    /// # Errors
    /// The reason why it is not; [`Denied::Conflict`] where it does not sleep.
    pub async fn wake(&self, model: &ModelName) -> Result<(), Denied> {
        self.operate(model, Verb::Wake).await
    }

    /// What a load as wished would do now. Changes nothing.
    ///
    /// # Errors
    /// [`Denied::UnknownModel`], [`Denied::Conflict`] or [`Denied::ShuttingDown`].
    pub async fn preview(&self, model: &ModelName, wish: Wish) -> Result<Preview, Denied> {
        let (answer, receive) = oneshot::channel();
        let ask = Ask::Preview { model: model.clone(), wish, answer };
        self.asks.send(ask).map_err(|_| Denied::ShuttingDown)?;
        receive.await.unwrap_or(Err(Denied::ShuttingDown))
    }

    /// Where a ready engine listens, for a question that is no use of the model: it neither loads nor keeps it, and the engine may be gone
    /// when it is asked.
    ///
    /// # Errors
    /// [`Denied::UnknownModel`], [`Denied::Conflict`] where none is ready, or [`Denied::ShuttingDown`].
    pub async fn reach(&self, model: &ModelName) -> Result<(InstanceId, Endpoint), Denied> {
        let (answer, receive) = oneshot::channel();
        let ask = Ask::Reach { model: model.clone(), answer };
        self.asks.send(ask).map_err(|_| Denied::ShuttingDown)?;
        receive.await.unwrap_or(Err(Denied::ShuttingDown))
    }

    /// Works by another configuration from now on. Back when readers of the status see it: whoever has added a model asks for it next.
    pub async fn configure(&self, new: Reconfiguration) {
        let (answer, receive) = oneshot::channel();
        // One that ends meanwhile has no readers.
        let _ = self.asks.send(Ask::Configure(Box::new(new), answer));
        let _ = receive.await;
    }

    /// Shows a problem of a part of the daemon that is not the supervisor's, or takes it back.
    pub fn problem(&self, code: &'static str, message: Option<String>) {
        let _ = self.asks.send(Ask::Trouble { code, message });
    }

    async fn operate(&self, model: &ModelName, verb: Verb) -> Result<(), Denied> {
        let mut leave = self.waiter();
        let (answer, receive) = oneshot::channel();
        let (waiter, model, job) = (leave.waiter, model.clone(), self.job);
        let ask = Ask::Operate { waiter, model, verb, job, answer };
        self.asks.send(ask).map_err(|_| Denied::ShuttingDown)?;
        let result = receive.await;
        leave.answered = true;
        result.unwrap_or(Err(Denied::ShuttingDown))
    }

    fn waiter(&self) -> Leave<'_> {
        let waiter = WaiterId(self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        Leave { asks: &self.asks, waiter, answered: false }
    }

    /// Begins the shutdown; the supervisor's task ends when it is done.
    pub fn shutdown(&self, keep: bool) {
        let _ = self.asks.send(Ask::Shutdown { keep });
    }

    /// The moment it is, on the clock that the picture's moments are on.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.clock.now()
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
