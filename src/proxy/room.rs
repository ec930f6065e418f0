//! Room for the futures of requests.
//!
//! Purpose: a request's future is large, for a few requests need much, and lives for a moment: to ask the allocator for such a piece and to
//! give it back costs more than what is done in it, the more so since what comes back has grown cold. So rooms are used again. Owner: the
//! thread of requests; a request has one while its answer is made. Invariants: what stands empty is bounded; a future that is dropped
//! before its end takes its room with it.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::Response;
use tokio_util::sync::ReusableBoxFuture;

use super::answer::Answer;

/// Empty rooms of a thread, of some 3 kB each.
const EMPTY_MAX: usize = 64;

type Room = ReusableBoxFuture<'static, Response<Answer>>;

thread_local! {
    static EMPTY: RefCell<Vec<Room>> = const { RefCell::new(Vec::new()) };
}

/// A future in a room of its own.
pub(super) struct Housed(Option<Room>);

impl Housed {
    /// Takes a future in.
    pub fn new(future: impl Future<Output = Response<Answer>> + Send + 'static) -> Self {
        Self(Some(match EMPTY.with_borrow_mut(Vec::pop) {
            Some(mut room) => {
                room.set(future);
                room
            }
            None => Room::new(future),
        }))
    }
}

impl Future for Housed {
    type Output = Response<Answer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<Answer>> {
        let Some(room) = &mut self.0 else { return Poll::Pending };
        let answer = std::task::ready!(room.poll(cx));
        if let Some(room) = self.0.take() {
            EMPTY.with_borrow_mut(|empty| {
                if empty.len() < EMPTY_MAX {
                    empty.push(room);
                }
            });
        }
        Poll::Ready(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::answer::Source;

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
        let many: Vec<Housed> = (0..EMPTY_MAX + 5).map(|_| Housed::new(answered())).collect();
        for one in many {
            one.await;
        }
        assert_eq!(empty(), EMPTY_MAX);
    }
}
