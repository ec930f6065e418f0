//! Callers that wait for one model, in the order of their arrival.

use std::collections::VecDeque;

use crate::types::{Moment, WaiterId};

/// What a caller waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A lease, at most until then.
    Lease {
        /// When it has waited long enough.
        deadline: Moment,
    },
    /// That the model is ready, however long it takes: an operator's.
    Ready {
        /// It is pinned then.
        pin: bool,
    },
}

/// One caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) id: WaiterId,
    pub(super) purpose: Purpose,
    pub(super) since: Moment,
}

/// Callers in the order of their arrival. Leases are bounded in number by whoever pushes.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue(VecDeque<Waiter>);

impl Queue {
    pub(super) fn push(&mut self, waiter: Waiter) {
        self.0.push_back(waiter);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether operators are among them.
    pub(super) fn has_operators(&self) -> bool {
        self.first_operator().is_some()
    }

    /// The request that has waited longest.
    pub(super) fn first_lease(&self) -> Option<WaiterId> {
        let lease = |w: &&Waiter| matches!(w.purpose, Purpose::Lease { .. });
        self.0.iter().find(lease).map(|w| w.id)
    }

    /// The operator that has waited longest.
    pub(super) fn first_operator(&self) -> Option<WaiterId> {
        let operator = |w: &&Waiter| matches!(w.purpose, Purpose::Ready { .. });
        self.0.iter().find(operator).map(|w| w.id)
    }

    /// Whether it is here.
    pub(super) fn contains(&self, id: WaiterId) -> bool {
        self.0.iter().any(|w| w.id == id)
    }

    /// Operators, oldest first; the others stay.
    pub(super) fn drain_operators(&mut self) -> Vec<Waiter> {
        let operator = |w: &Waiter| matches!(w.purpose, Purpose::Ready { .. });
        let (operators, stay) = self.0.drain(..).partition(operator);
        self.0 = stay;
        Vec::from(operators)
    }

    /// Whether it was here.
    pub(super) fn remove(&mut self, id: WaiterId) -> bool {
        let before = self.0.len();
        self.0.retain(|w| w.id != id);
        self.0.len() != before
    }

    /// Everybody, oldest first; the queue is empty afterwards.
    pub(super) fn drain(&mut self) -> Vec<Waiter> {
        self.0.drain(..).collect()
    }

    /// Those whose time is over, oldest first.
    pub(super) fn expire(&mut self, now: Moment) -> Vec<Waiter> {
        let over = |w: &Waiter| match w.purpose {
            Purpose::Lease { deadline } => deadline <= now,
            Purpose::Ready { .. } => false,
        };
        if !self.0.iter().any(over) {
            return Vec::new();
        }
        let (gone, stay) = self.0.drain(..).partition(|w| over(w));
        self.0 = stay;
        Vec::from(gone)
    }

    /// Arrival of whoever has waited longest.
    pub(super) fn oldest(&self) -> Option<Moment> {
        self.0.front().map(|w| w.since)
    }

    /// When the next one's time is over.
    pub(super) fn next_deadline(&self) -> Option<Moment> {
        let deadlines = self.0.iter().filter_map(|w| match w.purpose {
            Purpose::Lease { deadline } => Some(deadline),
            Purpose::Ready { .. } => None,
        });
        deadlines.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: u64, since: u64, deadline: u64) -> Waiter {
        let deadline = Moment::from_secs(deadline);
        let purpose = Purpose::Lease { deadline };
        Waiter { id: WaiterId(id), purpose, since: Moment::from_secs(since) }
    }

    #[test]
    fn keeps_the_order_and_expires_only_leases() {
        let mut queue = Queue::default();
        assert_eq!((queue.oldest(), queue.next_deadline()), (None, None));
        let purpose = Purpose::Ready { pin: false };
        queue.push(Waiter { id: WaiterId(0), purpose, since: Moment::START });
        assert!(queue.has_operators() && queue.contains(WaiterId(0)));
        queue.push(lease(1, 1, 30));
        queue.push(lease(2, 2, 20));
        queue.push(lease(3, 3, 40));
        assert_eq!(queue.oldest(), Some(Moment::START));
        assert_eq!(queue.next_deadline(), Some(Moment::from_secs(20)));
        let gone: Vec<u64> = queue.expire(Moment::from_secs(30)).iter().map(|w| w.id.0).collect();
        assert_eq!(gone, [1, 2]);
        assert!(queue.remove(WaiterId(3)) && !queue.remove(WaiterId(3)));
        assert_eq!(queue.len(), 1);
        queue.push(lease(4, 4, 50));
        assert_eq!(queue.drain_operators().len(), 1);
        assert!(!queue.has_operators() && queue.contains(WaiterId(4)));
        assert_eq!(queue.drain().len(), 1);
        assert!(queue.is_empty());
    }
}
