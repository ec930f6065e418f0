//! Room for the futures of requests.
//!
//! Purpose: a request's future is large, for a few requests need much, and lives for a moment: to ask the allocator for such a piece and to
//! give it back costs more than what is done in it, the more so since what comes back has grown cold. So rooms are used again. Owner: the
//! thread of requests; a request has one while its answer is made. Invariants: what stands empty is bounded; a future that is dropped
//! before its end takes its room with it.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Empty rooms of a thread, of some 3 kB each.
const EMPTY_MAX: usize = 64;

/// A [`Place`] for some kind of future.
type Room = Box<dyn Any + Send>;

/// Where a future of one kind is made, so that it is moved once, or none.
type Place<F> = Pin<Box<Option<F>>>;

thread_local! {
    static EMPTY: RefCell<Vec<Room>> = const { RefCell::new(Vec::new()) };
}

/// A future in a room of its own, and small itself. Not to be polled any more once it has ended.
pub(super) struct Housed<F> {
    room: Option<Room>,
    kind: PhantomData<fn() -> F>,
}

impl<F: Future + Send + 'static> Housed<F> {
    /// Takes a future in.
    pub fn new(future: F) -> Self {
        // All of a thread are of one kind, but for tests.
        let empty = EMPTY.with_borrow_mut(Vec::pop).filter(|room| room.is::<Place<F>>());
        let mut room = empty.unwrap_or_else(|| Box::new(Place::<F>::from(Box::new(None))));
        if let Some(place) = room.downcast_mut::<Place<F>>() {
            place.set(Some(future));
        }
        Self { room: Some(room), kind: PhantomData }
    }
}

impl<F: Future + Send + 'static> Future for Housed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let place = self.room.as_mut().and_then(|room| room.downcast_mut::<Place<F>>());
        let Some(place) = place else { return Poll::Pending };
        let Some(future) = place.as_mut().as_pin_mut() else { return Poll::Pending };
        let output = std::task::ready!(future.poll(cx));
        place.set(None);
        if let Some(room) = self.room.take() {
            EMPTY.with_borrow_mut(|empty| {
                if empty.len() < EMPTY_MAX {
                    empty.push(room);
                }
            });
        }
        Poll::Ready(output)
    }
}

#[cfg(test)]
mod tests {
    use hyper::Response;

    use super::*;
    use crate::proxy::answer::{Answer, Source};

    fn empty() -> usize {
        EMPTY.with_borrow(Vec::len)
    }

    async fn answered() -> Response<Answer> {
        tokio::task::yield_now().await;
        let busy = crate::proxy::conn::tests::busy();
        Response::new(Answer { source: Source::Whole(None), record: None, busy })
    }

    #[tokio::test]
    async fn a_room_is_used_again_and_few_stand_empty() {
        assert_eq!(empty(), 0);
        Housed::new(answered()).await;
        assert_eq!(empty(), 1);
        let second = Housed::new(answered());
        assert_eq!(empty(), 0);
        drop(second);
        assert_eq!(empty(), 0, "it was not finished");
        let many: Vec<Housed<_>> = (0..EMPTY_MAX + 5).map(|_| Housed::new(answered())).collect();
        for one in many {
            one.await;
        }
        assert_eq!(empty(), EMPTY_MAX);
        // One of another kind finds no room, and leaves its own.
        assert_eq!(Housed::new(std::future::ready(7)).await, 7);
        assert_eq!(empty(), EMPTY_MAX);
    }
}
