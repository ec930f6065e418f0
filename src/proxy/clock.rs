//! The time, as the turn of a connection has it.
//!
//! ```text
//!   the connection's turn ──▶ now(), now(), …   one and the same, read once
//!                         ──▶ by(deadline, …)   pending: the turn's earliest deadline is when the connection looks again
//! ```
//! Purpose: a request asks for the time at a dozen places, most of them in the same turn, and waits for several things with a deadline each.
//! To read the clock for each, and to hand a timer of its own to the runtime for each, costs more than what is done between them. So a turn
//! has one time, and a connection one timer ([`super::conn`]). Owner: the thread of requests. Invariants: no time is later than the
//! clock's, nor older than the turn; whoever is polled outside of a turn gets the clock's time and a timer of its own; a deadline is
//! noticed by who is polled, as with any timer.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

#[derive(Clone, Copy)]
enum Turn {
    /// Nobody has one.
    None,
    /// Its time, once somebody has asked for it, and the earliest deadline that somebody in it waits for.
    Some { now: Option<Instant>, due: Option<Instant> },
}

thread_local! {
    static TURN: Cell<Turn> = const { Cell::new(Turn::None) };
}

/// Puts back what was before, however the turn ends.
struct Ends(Turn);

impl Drop for Ends {
    fn drop(&mut self) {
        TURN.set(self.0);
    }
}

/// A turn. To be begun by who looks at [`due`] before it ends.
pub(super) fn turn<R>(work: impl FnOnce() -> R) -> R {
    let _ends = Ends(TURN.replace(Turn::Some { now: None, due: None }));
    work()
}

/// The time.
pub(super) fn now() -> Instant {
    match TURN.get() {
        Turn::Some { now: Some(now), .. } => now,
        Turn::Some { now: None, .. } | Turn::None => read(),
    }
}

/// The time as the clock has it, which is the turn's from then on.
pub(super) fn read() -> Instant {
    let now = Instant::now();
    if let Turn::Some { due, .. } = TURN.get() {
        TURN.set(Turn::Some { now: Some(now), due });
    }
    now
}

/// How long ago that was.
pub(super) fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}

/// The earliest deadline that was waited for in this turn.
pub(super) fn due() -> Option<Instant> {
    match TURN.get() {
        Turn::Some { due, .. } => due,
        Turn::None => None,
    }
}

/// What comes of it by then; `None`: nothing did.
pub(super) async fn by<F: Future + Unpin>(deadline: Instant, mut future: F) -> Option<F::Output> {
    let mut own: Option<Pin<Box<Sleep>>> = None;
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = pin!(&mut future).poll(cx) {
            return Poll::Ready(Some(value));
        }
        let Turn::Some { due, .. } = TURN.get() else {
            let timer = own.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            return timer.as_mut().poll(cx).map(|()| None);
        };
        let now = now();
        if now >= deadline {
            return Poll::Ready(None);
        }
        let due = Some(due.map_or(deadline, |due| due.min(deadline)));
        TURN.set(Turn::Some { now: Some(now), due });
        Poll::Pending
    })
    .await
}

/// The same from now on.
pub(super) async fn within<F: Future + Unpin>(time: Duration, future: F) -> Option<F::Output> {
    by(now() + time, future).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_turn_has_one_time() {
        let start = Instant::now();
        let times = std::future::poll_fn(|cx| {
            Poll::Ready(turn(|| {
                let first = now();
                let passes = pin!(tokio::time::advance(SECOND));
                let _ = passes.poll(cx);
                [first, now(), read(), now()].map(|at| at - start)
            }))
        });
        assert_eq!(times.await, [Duration::ZERO, Duration::ZERO, SECOND, SECOND]);
        tokio::time::advance(SECOND).await;
        assert_eq!((now() - start, since(start)), (2 * SECOND, 2 * SECOND), "outside it goes on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_knows_its_earliest_deadline() {
        let start = Instant::now();
        let (mut late, mut soon) =
            (pin!(within(9 * SECOND, pending())), pin!(within(4 * SECOND, pending())));
        for (passed, ends, due_in) in [(0, false, Some(4)), (3, false, Some(4)), (4, true, Some(9))]
        {
            tokio::time::advance(start + passed * SECOND - Instant::now()).await;
            std::future::poll_fn(|cx| {
                turn(|| {
                    assert_eq!(due(), None);
                    assert!(late.as_mut().poll(cx).is_pending());
                    assert_eq!(soon.as_mut().poll(cx).is_ready(), ends, "after {passed} s");
                    assert_eq!(due(), due_in.map(|secs| start + secs * SECOND));
                });
                Poll::Ready(())
            })
            .await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn outside_of_a_turn_it_has_a_timer_of_its_own() {
        let start = Instant::now();
        assert_eq!(within(SECOND, pending()).await, None);
        assert_eq!(start.elapsed(), SECOND);
        assert_eq!(by(start, std::future::ready(7)).await, Some(7), "what is there is taken");
    }

    fn pending() -> std::future::Pending<()> {
        std::future::pending()
    }
}
