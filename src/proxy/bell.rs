//! What a task says to itself is heard in the same turn.
//!
//! ```text
//!   quiet ──ring──▶ rung, and the task is woken ──its turn──▶ awake ──ring──▶ rung: one look more, at once
//! ```
//! Purpose: the parts of one connection wake each other through its task: who reads a body wakes who has to fetch it. The runtime would
//! give the task another turn for that, behind all other connections, when nothing of this one is in the processor's cache any more. Owner:
//! the connection's task. Invariants: no ring is lost, whoever rings and when, but for one that is known to be in vain ([`heard`]); a
//! task that rings for ever lets the others have their turns.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Looks in one turn.
const LOOKS: usize = 4;

const QUIET: u8 = 0;
/// The task has its turn.
const AWAKE: u8 = 1;
/// Somebody rang.
const RUNG: u8 = 2;

struct Bell {
    task: Waker,
    state: AtomicU8,
}

thread_local! {
    /// Where somebody on this thread listens who rings ([`heard`]), and who did.
    static LISTENING: RefCell<Option<Rang>> = const { RefCell::new(None) };
}

type Rang = Option<Arc<Bell>>;

/// Ends the listening, however it ends.
struct Listens(Option<Rang>);

impl Listens {
    fn begin() -> Self {
        Self(LISTENING.replace(Some(None)))
    }

    fn who(&self) -> Rang {
        LISTENING.with_borrow_mut(|rang| rang.as_mut().and_then(Option::take))
    }
}

impl Drop for Listens {
    fn drop(&mut self) {
        let rang = LISTENING.replace(self.0.take()).flatten();
        rang.into_iter().for_each(|bell| bell.ring());
    }
}

/// Does what rings, and has that heard only where it says so; it rings for nothing but what it judges. What another thread says meanwhile is
/// heard in any case.
pub(super) fn heard<R>(work: impl FnOnce() -> (R, bool)) -> R {
    let listens = Listens::begin();
    let (result, matters) = work();
    if !matters {
        drop(listens.who());
    }
    result
}

impl Bell {
    /// Whether somebody listens on this thread, who hears of it then.
    fn is_noted(self: &Arc<Self>) -> bool {
        // There is none where the thread ends.
        let noted = LISTENING.try_with(|listening| match listening.borrow_mut().as_mut() {
            None => false,
            Some(Some(other)) => Arc::ptr_eq(other, self),
            Some(rang) => {
                *rang = Some(self.clone());
                true
            }
        });
        noted.unwrap_or(false)
    }

    fn ring(self: &Arc<Self>) {
        if self.is_noted() {
            return;
        }
        // Where it has rung already, a look is to come that sees all.
        if self.state.swap(RUNG, Ordering::AcqRel) == QUIET {
            self.task.wake_by_ref();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

/// A task's bell, hung up when it is polled first.
#[derive(Default)]
pub(super) struct Doorbell(Option<(Arc<Bell>, Waker)>);

impl Doorbell {
    /// Polls, and at once again if that rang.
    pub fn poll<R>(
        &mut self,
        cx: &Context<'_>,
        mut look: impl FnMut(&mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        // A task that moves on to another waker gets a new bell; who rings the old one wakes nobody who waits here.
        drop(self.0.take_if(|(bell, _)| !bell.task.will_wake(cx.waker())));
        let (bell, waker) = self.0.get_or_insert_with(|| {
            let (task, state) = (cx.waker().clone(), AtomicU8::new(QUIET));
            let bell = Arc::new(Bell { task, state });
            (bell.clone(), bell.into())
        });
        for _ in 0..LOOKS {
            bell.state.swap(AWAKE, Ordering::AcqRel);
            if let Poll::Ready(value) = look(&mut Context::from_waker(waker)) {
                return Poll::Ready(value);
            }
            let rests =
                bell.state.compare_exchange(AWAKE, QUIET, Ordering::AcqRel, Ordering::Acquire);
            if rests.is_ok() {
                return Poll::Pending;
            }
        }
        // Others first.
        bell.task.wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Looks that one poll makes where each does that, and how often the task was woken. A look is told which it is.
    fn looks_at(mut look: impl FnMut(usize, &mut Context<'_>)) -> (usize, usize) {
        let (count, mut bell, mut looks) = (Arc::<Count>::default(), Doorbell::default(), 0);
        let waker = count.clone().into();
        let polled = bell.poll(&Context::from_waker(&waker), |cx| {
            looks += 1;
            look(looks, cx);
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        (looks, count.0.load(Ordering::SeqCst))
    }

    /// The same where the first `rings` of them ring.
    fn looks(rings: usize) -> (usize, usize) {
        looks_at(|look, cx| {
            if look <= rings {
                cx.waker().wake_by_ref();
            }
        })
    }

    #[test]
    fn a_ring_in_its_turn_is_heard_in_its_turn() {
        assert_eq!(looks(0), (1, 0));
        assert_eq!(looks(1), (2, 0));
        assert_eq!(looks(LOOKS - 1), (LOOKS, 0));
        assert_eq!(looks(LOOKS), (LOOKS, 1), "others come first");
    }

    #[test]
    fn a_ring_in_vain_is_heard_by_nobody() {
        let looks = |matters| {
            looks_at(|look, cx| {
                if look == 1 {
                    heard(|| (cx.waker().wake_by_ref(), matters));
                }
            })
        };
        assert_eq!((looks(false), looks(true)), ((1, 0), (2, 0)));
        let panics = looks_at(|look, cx| {
            if look == 1 {
                let panics = std::panic::AssertUnwindSafe(|| {
                    heard(|| -> ((), bool) {
                        cx.waker().wake_by_ref();
                        panic!("as a body would")
                    });
                });
                assert!(std::panic::catch_unwind(panics).is_err());
            }
        });
        assert_eq!(panics, (2, 0), "who cannot say is heard");
    }

    #[test]
    fn a_ring_at_rest_wakes_the_task_once() {
        let (count, mut bell) = (Arc::<Count>::default(), Doorbell::default());
        let task = count.clone().into();
        let mut kept = None;
        let mut poll = |kept: &mut Option<Waker>| {
            let polled = bell.poll(&Context::from_waker(&task), |cx| {
                *kept = Some(cx.waker().clone());
                Poll::<()>::Pending
            });
            assert!(polled.is_pending());
        };
        for turn in 1..3 {
            poll(&mut kept);
            let waker = kept.take().unwrap();
            waker.wake_by_ref();
            waker.wake();
            assert_eq!(count.0.load(Ordering::SeqCst), turn);
        }
    }

    /// Two threads count up in turns: each waits for the other's ring. One that is lost ends it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_ring_is_lost_between_threads() {
        const ROUNDS: usize = 20_000;
        let (to, mut from) = tokio::sync::mpsc::channel::<usize>(1);
        let (back, mut answers) = tokio::sync::mpsc::channel::<usize>(1);
        let echo = tokio::spawn(async move {
            let mut bell = Doorbell::default();
            while let Some(n) =
                std::future::poll_fn(|cx| bell.poll(cx, |cx| from.poll_recv(cx))).await
            {
                back.send(n).await.unwrap();
            }
        });
        let mut bell = Doorbell::default();
        for n in 0..ROUNDS {
            to.send(n).await.unwrap();
            let answer = std::future::poll_fn(|cx| bell.poll(cx, |cx| answers.poll_recv(cx)));
            assert_eq!(answer.await, Some(n));
        }
        drop(to);
        echo.await.unwrap();
    }
}
