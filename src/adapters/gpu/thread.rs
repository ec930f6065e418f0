//! One OS thread that does one blocking job on request.
//!
//! Purpose: keep calls that may hang in a driver away from the async runtime. Owner: [`super::Nvml`] holds one.
//! Invariants: there is at most one thread, and it is never abandoned for a second one, because a driver that hangs
//! once hangs every thread that enters it; a caller never waits longer than its deadline; while the thread is known to
//! hang, callers are turned away at once; requests whose caller has left are skipped, so that a hang leaves no backlog.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

/// The blocking job; runs on the thread, may keep state.
pub(super) type Job<A> = Box<dyn FnMut() -> A + Send>;

/// Why a request was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// Not within the deadline, or an earlier request still hangs.
    Timeout,
    /// The job panicked, or the thread could not be made.
    Broken(String),
}

/// One request: its number, and where the answer goes.
struct Request<A> {
    number: u64,
    answer: oneshot::Sender<A>,
}

/// What callers and thread share about progress.
///
/// The thread is stuck while `finished < hung`. Two counters and not a flag: a caller that times out at the very moment
/// the thread answers could set a flag that nobody would clear again.
#[derive(Default)]
struct Progress {
    /// Number of the latest request that the thread is done with.
    finished: AtomicU64,
    /// Highest number of a request whose caller gave up waiting.
    hung: AtomicU64,
}

impl Progress {
    fn is_stuck(&self) -> bool {
        self.finished.load(Ordering::Acquire) < self.hung.load(Ordering::Acquire)
    }
}

/// The callers' side. The thread is made at the first call and ends when this is dropped and it is not stuck.
pub(super) struct Worker<A> {
    name: &'static str,
    make: Box<dyn Fn() -> Job<A> + Send + Sync>,
    progress: Arc<Progress>,
    queue: Mutex<Queue<A>>,
}

struct Queue<A> {
    /// Number of the latest request.
    last: u64,
    /// `None` until the thread has been made.
    requests: Option<mpsc::Sender<Request<A>>>,
}

impl<A: Send + 'static> Worker<A> {
    /// `name` is the thread's name as tools show it (at most 15 bytes); `make` makes the job.
    pub(super) fn new(
        name: &'static str,
        make: impl Fn() -> Job<A> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            make: Box::new(make),
            progress: Arc::default(),
            queue: Mutex::new(Queue { last: 0, requests: None }),
        }
    }

    /// Runs the job once and waits at most `deadline` for what it returns.
    pub(super) async fn call(&self, deadline: Duration) -> Result<A, NoAnswer> {
        if self.progress.is_stuck() {
            return Err(NoAnswer::Timeout);
        }
        let (number, answer) = self.submit()?;
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(NoAnswer::Broken(format!("the {} thread panicked", self.name))),
            Err(_) => {
                self.progress.hung.fetch_max(number, Ordering::AcqRel);
                Err(NoAnswer::Timeout)
            }
        }
    }

    /// Puts a request into the queue, and makes the thread if there is none yet.
    fn submit(&self) -> Result<(u64, oneshot::Receiver<A>), NoAnswer> {
        let (sender, receiver) = oneshot::channel();
        // Numbering and sending under one lock: the thread must see the numbers in order.
        let mut queue = self.queue();
        let requests = match queue.requests.take() {
            Some(requests) => requests,
            None => self.spawn()?,
        };
        queue.last += 1;
        let number = queue.last;
        // The thread never ends while a sender lives, so a failure here has no way to happen; it would be reported as a
        // dropped answer.
        let _ = requests.send(Request { number, answer: sender });
        queue.requests = Some(requests);
        Ok((number, receiver))
    }

    fn spawn(&self) -> Result<mpsc::Sender<Request<A>>, NoAnswer> {
        let (sender, receiver) = mpsc::channel();
        let (job, progress) = ((self.make)(), Arc::clone(&self.progress));
        std::thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || serve(&receiver, job, &progress))
            .map_err(|e| {
                NoAnswer::Broken(format!("the {} thread could not be started: {e}", self.name))
            })?;
        Ok(sender)
    }

    fn queue(&self) -> MutexGuard<'_, Queue<A>> {
        // Nothing under the lock can leave the queue half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread: answers until the last sender is gone.
fn serve<A>(requests: &mpsc::Receiver<Request<A>>, mut job: Job<A>, progress: &Progress) {
    while let Ok(request) = requests.recv() {
        // A caller that has left wants no answer, and asking a sick driver once more would only prolong the hang.
        let answer = if request.answer.is_closed() {
            None
        } else {
            // The job's own state survives a panic; jobs hold nothing that a half-done call could break.
            catch_unwind(AssertUnwindSafe(&mut job)).ok()
        };
        // Before the answer goes out: a caller that has its answer must not find the thread stuck.
        progress.finished.fetch_max(request.number, Ordering::AcqRel);
        if let Some(answer) = answer {
            let _ = request.answer.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    /// A job that counts its runs and takes a token from a channel whenever it is told to hang.
    fn hanging() -> (Worker<usize>, Arc<AtomicU64>, mpsc::Sender<()>, Arc<AtomicUsize>) {
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let hang = Arc::new(AtomicU64::new(0));
        let runs = Arc::new(AtomicUsize::new(0));
        let (hang2, runs2) = (Arc::clone(&hang), Arc::clone(&runs));
        let worker = Worker::new("test", move || {
            let (gate, hang, runs) = (Arc::clone(&gate), Arc::clone(&hang2), Arc::clone(&runs2));
            Box::new(move || {
                if hang.load(Ordering::SeqCst) == 1 {
                    gate.lock().unwrap().recv().unwrap();
                }
                runs.fetch_add(1, Ordering::SeqCst) + 1
            })
        });
        (worker, hang, release, runs)
    }

    #[tokio::test]
    async fn answers_in_order_and_keeps_its_state() {
        let (worker, ..) = hanging();
        for n in 1..=3 {
            assert_eq!(worker.call(LONG).await, Ok(n));
        }
    }

    #[tokio::test]
    async fn a_hang_times_out_then_fails_fast_then_recovers_without_a_backlog() {
        let (worker, hang, release, runs) = hanging();
        assert_eq!(worker.call(LONG).await, Ok(1));
        hang.store(1, Ordering::SeqCst);
        // Three callers at once: one is in the job, two are queued behind it.
        let (a, b, c) = tokio::join!(worker.call(SHORT), worker.call(SHORT), worker.call(SHORT));
        assert_eq!([a, b, c], [const { Err(NoAnswer::Timeout) }; 3]);

        let before = Instant::now();
        for _ in 0..100 {
            assert_eq!(worker.call(LONG).await, Err(NoAnswer::Timeout));
        }
        assert!(before.elapsed() < LONG / 4, "calls behind a hang must not wait");

        hang.store(0, Ordering::SeqCst);
        release.send(()).unwrap();
        let answer = loop {
            match worker.call(LONG).await {
                Ok(answer) => break answer,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        // Run 1 was the first call, run 2 the one that hung; the two behind it were skipped.
        assert_eq!(answer, 3);
        assert_eq!(runs.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_and_the_thread_lives_on() {
        let runs = Arc::new(AtomicUsize::new(0));
        let worker = Worker::new("test", move || {
            let runs = Arc::clone(&runs);
            Box::new(move || {
                let n = runs.fetch_add(1, Ordering::SeqCst);
                assert!(n > 0, "the first run panics, as this test wants");
                n
            })
        });
        assert!(matches!(worker.call(LONG).await, Err(NoAnswer::Broken(_))));
        assert_eq!(worker.call(LONG).await, Ok(1));
    }

    #[tokio::test]
    async fn there_is_never_a_second_thread() {
        let made = Arc::new(AtomicUsize::new(0));
        let made2 = Arc::clone(&made);
        let worker = Worker::new("test", move || {
            made2.fetch_add(1, Ordering::SeqCst);
            Box::new(|| std::thread::sleep(SHORT * 4))
        });
        assert_eq!(made.load(Ordering::SeqCst), 0, "nothing runs before the first call");
        for _ in 0..3 {
            let _ = worker.call(SHORT / 10).await;
        }
        assert_eq!(worker.call(LONG).await, Err(NoAnswer::Timeout));
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }
}
