//! The gate that requests pass before they ask for a lease.
//!
//! Purpose: [`Admission`] over real time, with callers that wait and may leave. Owner: `service` holds one; a request holds its
//! [`Slot`] until its answer has ended. Invariants: a slot is given back by `Drop`, whatever ends the request; the lock is held for
//! the length of one call of the pure part; a request that no limit concerns does not touch it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::{Admission, Caller, Let, Refused, Ticket, Wish};
use super::error::ApiError;
use super::keys::Key;
use super::port::Observer;
use super::rules::SharedRules;
use crate::supervisor::handle::Handle;
use crate::types::{DoorSpec, ModelName, Moment};

/// What the lock guards.
#[derive(Debug, Default)]
struct Inner {
    admission: Admission,
    waiting: BTreeMap<Ticket, oneshot::Sender<()>>,
}

/// The gate.
pub(super) struct Gate {
    inner: Mutex<Inner>,
    began: Instant,
    rules: SharedRules,
    supervisor: Handle,
    observer: Arc<dyn Observer>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// A request that is seen to wait for its turn at a model that runs elsewhere.
struct Waits<'a>(&'a dyn Observer, &'a ModelName);

impl<'a> Waits<'a> {
    fn begin(observer: &'a dyn Observer, model: &'a ModelName) -> Self {
        observer.awaits_turn(model, true);
        Self(observer, model)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.awaits_turn(self.1, false);
    }
}

/// A right to one request at once.
#[derive(Debug)]
pub(super) struct Slot {
    gate: Arc<Gate>,
    ticket: Ticket,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut inner = self.gate.inner();
        inner.waiting.remove(&self.ticket);
        let turns = inner.admission.leave(self.ticket);
        inner.wake(&turns);
    }
}

impl Inner {
    /// What tells that it is this one's turn.
    fn wait(&mut self, ticket: Ticket) -> oneshot::Receiver<()> {
        let (turn, wait) = oneshot::channel();
        self.waiting.insert(ticket, turn);
        wait
    }

    /// Tells those whose turn it is.
    fn wake(&mut self, turns: &[Ticket]) {
        for turn in turns {
            if let Some(waiting) = self.waiting.remove(turn) {
                // Who has left meanwhile gives the turn on when its own slot is dropped.
                let _ = waiting.send(());
            }
        }
    }
}

/// A place among those who wait for a turn; given up when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    slot: Slot,
    /// `None`: it is its turn.
    turn: Option<oneshot::Receiver<()>>,
}

impl Place {
    /// Whether nothing has to be waited for.
    pub const fn is_turn(&self) -> bool {
        self.turn.is_none()
    }

    /// Who cannot use a turn for now lets others go first, and keeps its place in the order of arrival.
    pub fn step_aside(&mut self) {
        let mut inner = self.slot.gate.inner();
        inner.waiting.remove(&self.slot.ticket);
        let turns = inner.admission.aside(self.slot.ticket);
        inner.wake(&turns);
    }

    /// From now on it can.
    pub fn come_back(&mut self) {
        let ticket = self.slot.ticket;
        let mut inner = self.slot.gate.inner();
        let turns = inner.admission.back(ticket);
        self.turn = None;
        if !turns.contains(&ticket) {
            self.turn = Some(inner.wait(ticket));
        }
        inner.wake(&turns);
    }

    /// Its slot, which is to be used where it is its turn.
    pub fn into_slot(self) -> Slot {
        self.slot
    }

    /// Waits for the turn.
    ///
    /// # Errors
    /// 503 where it did not come in time.
    pub async fn turn(
        self,
        model: &ModelName,
        spec: &DoorSpec,
        wait_max: Duration,
    ) -> Result<Slot, ApiError> {
        let Self { slot, turn } = self;
        let Some(turn) = turn else { return Ok(slot) };
        let gate = slot.gate.clone();
        // Who waits for one of this host's models is in the supervisor's picture, which everybody reads.
        let far = gate.rules.load().externals.contains_key(model);
        let _seen = far.then(|| Waits::begin(&*gate.observer, model));
        let _shown = (!far).then(|| gate.supervisor.awaits_turn(model));
        if tokio::time::timeout(wait_max, turn).await.is_ok() {
            return Ok(slot);
        }
        let limit = spec.max_concurrent.unwrap_or_default();
        let message = format!(
            "model {model} serves {limit} requests at once (max_concurrent), and no turn came within {wait_max:?}"
        );
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "model_busy", message);
        Err(error.retry_after(Duration::from_secs(5)))
    }
}

impl Gate {
    /// A gate that nobody has passed. `rules`: where the limits are that hold now.
    pub fn new(rules: SharedRules, supervisor: Handle, observer: Arc<dyn Observer>) -> Arc<Self> {
        let (inner, began) = (Mutex::default(), Instant::now());
        Arc::new(Self { inner, began, rules, supervisor, observer })
    }

    /// Holds to the limits of new rules whenever there are some, for as long as it is polled.
    pub async fn follow(&self) {
        let mut replaced = self.rules.replaced();
        // What was replaced before is news, too.
        replaced.mark_changed();
        while replaced.changed().await.is_ok() {
            let rules = self.rules.load();
            let mut inner = self.inner();
            for (model, spec) in &rules.models {
                let turns = inner.admission.limit(model, spec.max_concurrent);
                inner.wake(&turns);
            }
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing that is done under the lock can panic half-way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place among those who wait for a turn; `None`: no limit concerns this request.
    ///
    /// # Errors
    /// 429 where the key has used up what it may, 503 where too many wait.
    pub fn place(
        self: &Arc<Self>,
        key: Option<&Key>,
        model: &ModelName,
        spec: &DoorSpec,
        queue_max: usize,
    ) -> Result<Option<Place>, ApiError> {
        let limited = key.is_some_and(|k| k.per_minute.is_some() || k.concurrent.is_some());
        if !limited && spec.max_concurrent.is_none() {
            return Ok(None);
        }
        // Its own rules may be older than those of who is here.
        let limit = spec.max_concurrent.and_then(|limit| {
            let rules = self.rules.load();
            rules.models.get(model).map_or(Some(limit), |spec| spec.max_concurrent)
        });
        let wish = Wish { model, limit, queue_max };
        let (slot, turn) = self.arrive(&caller(key), wish).map_err(|r| refused(&r, model))?;
        Ok(Some(Place { slot, turn }))
    }

    /// A slot, and what to wait for if it is not its turn yet.
    fn arrive(
        self: &Arc<Self>,
        caller: &Caller,
        wish: Wish<'_>,
    ) -> Result<(Slot, Option<oneshot::Receiver<()>>), Refused> {
        let now = Moment::START + self.began.elapsed();
        let mut inner = self.inner();
        let slot = |ticket| Slot { gate: self.clone(), ticket };
        Ok(match inner.admission.arrive(now, caller, wish)? {
            Let::Run(ticket) => (slot(ticket), None),
            Let::Wait(ticket) => (slot(ticket), Some(inner.wait(ticket))),
        })
    }
}

fn caller(key: Option<&Key>) -> Caller {
    match key {
        None => Caller { name: String::new(), per_minute: None, concurrent: None, share: 1 },
        Some(key) => Caller {
            name: key.name.clone(),
            per_minute: key.per_minute,
            concurrent: key.concurrent,
            share: key.share,
        },
    }
}

fn refused(refused: &Refused, model: &ModelName) -> ApiError {
    let too_many = StatusCode::TOO_MANY_REQUESTS;
    match refused {
        Refused::Rate { retry_after } => {
            let message = "this key has used up its requests per minute (per_minute)";
            ApiError::new(too_many, "rate_limited", message).retry_after(*retry_after)
        }
        Refused::Concurrency { limit } => {
            let message =
                format!("this key has {limit} requests under way, as many as it may (concurrent)");
            let error = ApiError::new(too_many, "too_many_at_once", message);
            error.retry_after(Duration::from_secs(1))
        }
        Refused::QueueFull { queued } => {
            let message = format!("{queued} requests already wait for a turn at model {model}");
            let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "queue_full", message);
            error.retry_after(Duration::from_secs(1))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::super::external::External;
    use super::super::rules::Rules;
    use super::*;
    use crate::supervisor::handle::Ask;
    use crate::types::{Origin, Status};

    /// How many are seen to wait.
    #[derive(Default)]
    struct Seen(AtomicI64);

    impl Observer for Seen {
        fn begun(&self) {}

        fn ended(&self, _: &crate::proxy::port::Seen<'_>) {}

        fn awaits_turn(&self, _: &ModelName, begins: bool) {
            self.0.fetch_add(if begins { 1 } else { -1 }, Ordering::Relaxed);
        }
    }

    const WAIT_MAX: Duration = Duration::from_secs(5);

    /// Waits for a turn.
    async fn enter(
        gate: &Arc<Gate>,
        model: &ModelName,
        spec: &DoorSpec,
    ) -> Result<Option<Slot>, ApiError> {
        match gate.place(None, model, spec, 2)? {
            None => Ok(None),
            Some(place) => place.turn(model, spec, WAIT_MAX).await.map(Some),
        }
    }

    fn spec(limit: u32) -> DoorSpec {
        DoorSpec { max_concurrent: Some(limit), ..DoorSpec::default() }
    }

    fn supervisor() -> Handle {
        Handle::scripted(Status::default()).0
    }

    /// Rules by which a model runs elsewhere.
    fn elsewhere(model: &ModelName) -> Rules {
        let origin = Origin { tls: false, host: "far".into(), port: 80, prefix: String::new() };
        let external = External { origin, key: None, health: "/".into() };
        Rules { externals: [(model.clone(), Arc::new(external))].into(), ..Rules::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_comes_when_another_request_ends_or_gives_up() {
        let seen = Arc::new(Seen::default());
        let model: ModelName = "m".parse().unwrap();
        let gate = Gate::new(elsewhere(&model).shared(), supervisor(), seen.clone());
        let limit = spec(1);
        assert!(enter(&gate, &model, &DoorSpec::default()).await.unwrap().is_none());
        let first = enter(&gate, &model, &limit).await.unwrap().unwrap();
        let mut second = Box::pin(enter(&gate, &model, &limit));
        let mut third = Box::pin(enter(&gate, &model, &limit));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(futures_util::poll!(&mut third).is_pending());
        assert_eq!(seen.0.load(Ordering::Relaxed), 2);
        let full = enter(&gate, &model, &limit).await.unwrap_err();
        assert_eq!((full.status.as_u16(), full.code), (503, "queue_full"));
        drop(first);
        // It is the second one's turn, which gives up before it takes it.
        drop(second);
        let third = third.await.unwrap().unwrap();
        assert_eq!(seen.0.load(Ordering::Relaxed), 0);
        let late = enter(&gate, &model, &limit).await.unwrap_err();
        assert_eq!((late.code, late.retry_after_secs()), ("model_busy", Some(5)));
        drop(third);
        enter(&gate, &model, &limit).await.unwrap().unwrap();
        assert!(gate.inner().waiting.is_empty());
        assert_eq!(seen.0.load(Ordering::Relaxed), 0);
    }

    /// The supervisor has them in its picture; an observer that counted them as well would count them twice.
    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_model_of_this_host_is_told_to_its_supervisor_alone() {
        let (supervisor, mut asks, _publish) = Handle::scripted(Status::default());
        let seen = Arc::new(Seen::default());
        let gate = Gate::new(Rules::default().shared(), supervisor, seen.clone());
        let (model, limit): (ModelName, _) = ("m".parse().unwrap(), spec(1));
        let _first = enter(&gate, &model, &limit).await.unwrap().unwrap();
        assert!(asks.try_recv().is_err(), "nobody waits");
        let mut second = Box::pin(enter(&gate, &model, &limit));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(matches!(asks.try_recv(), Ok(Ask::Stir)));
        assert_eq!(seen.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_limit_holds_for_who_waits_and_who_knows_an_older_one() {
        let model: ModelName = "m".parse().unwrap();
        let with = |spec| Rules {
            models: BTreeMap::from([(model.clone(), Arc::new(spec))]),
            ..Rules::default()
        };
        let rules = with(spec(1)).shared();
        let gate = Gate::new(rules.clone(), supervisor(), Arc::new(Seen::default()));
        let follower = gate.clone();
        let following = tokio::spawn(async move { follower.follow().await });
        let old = spec(1);
        let _first = enter(&gate, &model, &old).await.unwrap().unwrap();
        let second = enter(&gate, &model, &old);
        let raised = async { rules.store(Arc::new(with(spec(3)))) };
        let (second, ()) = tokio::join!(second, raised);
        let _second = second.unwrap().unwrap();
        let _third = enter(&gate, &model, &old).await.unwrap().unwrap();
        let fourth = enter(&gate, &model, &old);
        let lifted = async { rules.store(Arc::new(with(DoorSpec::default()))) };
        let (fourth, ()) = tokio::join!(fourth, lifted);
        let _fourth = fourth.unwrap().unwrap();
        following.abort();
    }
}
