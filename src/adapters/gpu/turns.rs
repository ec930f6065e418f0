//! In which order NVML's devices are asked, and which is not asked for a while.
//!
//! Purpose: a device whose firmware hangs holds each call about it for the better part of a minute, and the one thread with it. Asked
//! last, it keeps nobody from being read; asked seldom, it keeps the thread busy for a small part of the time. Owner:
//! [`super::reader`]. Invariants: pure, `now` is passed in; a device that hung once is only put behind the others, as a driver under load
//! is slow at times; where nobody else is left to be read, it is asked all the same.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// After it hung twice in a row a device is left alone for so many times as long as it hung.
const REST: u32 = 10;

/// What is known of each of NVML's indices that hung when it was last asked.
#[derive(Debug, Default)]
pub(super) struct Turns(BTreeMap<u32, Hang>);

#[derive(Clone, Copy, Debug)]
struct Hang {
    took: Duration,
    row: u32,
    rests_until: Instant,
}

/// Whom to ask, in order, and who rests, with how long it hung.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub ask: Vec<u32>,
    pub resting: Vec<(u32, Duration)>,
}

impl Turns {
    /// `all_the_same`: one of them has to be asked, though all rest.
    pub(super) fn order(
        &self,
        indices: impl Iterator<Item = u32>,
        all_the_same: bool,
        now: Instant,
    ) -> Order {
        let mut ask = Vec::new();
        let mut resting = Vec::new();
        for index in indices {
            match self.0.get(&index) {
                Some(hang) if hang.row > 1 && now < hang.rests_until => {
                    resting.push((index, hang.took));
                }
                _ => ask.push(index),
            }
        }
        if ask.is_empty() && all_the_same {
            ask = resting.drain(..).map(|(index, _)| index).collect();
        }
        ask.sort_by_key(|index| self.0.contains_key(index));
        Order { ask, resting }
    }

    /// It was asked until `now`, which took so long; beyond `limit` it hung.
    pub(super) fn asked(&mut self, index: u32, took: Duration, limit: Duration, now: Instant) {
        if took < limit {
            self.0.remove(&index);
            return;
        }
        let row = self.0.get(&index).map_or(1, |hang| hang.row.saturating_add(1));
        let rests_until = now + took.saturating_mul(REST);
        self.0.insert(index, Hang { took, row, rests_until });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(3);
    const HUNG: Duration = Duration::from_secs(45);

    #[test]
    fn who_hung_is_asked_last_then_seldom_and_is_one_like_others_when_it_answers() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        let order = |turns: &Turns, at: Duration| turns.order(0..3, true, start + at);
        let all = |ask: &[u32]| Order { ask: ask.to_vec(), resting: Vec::new() };
        assert_eq!(order(&turns, Duration::ZERO), all(&[0, 1, 2]));
        turns.asked(0, HUNG, LIMIT, start);
        assert_eq!(order(&turns, Duration::ZERO), all(&[1, 2, 0]), "once may be load");
        turns.asked(0, HUNG, LIMIT, start);
        let rests = Order { ask: vec![1, 2], resting: vec![(0, HUNG)] };
        assert_eq!(order(&turns, HUNG * 9), rests);
        assert_eq!(order(&turns, HUNG * 10), all(&[1, 2, 0]));
        turns.asked(0, LIMIT / 2, LIMIT, start + HUNG * 10);
        assert_eq!(order(&turns, HUNG * 10), all(&[0, 1, 2]));
    }

    #[test]
    fn who_is_alone_is_asked_however_it_hangs() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        turns.asked(0, HUNG, LIMIT, start);
        turns.asked(0, HUNG, LIMIT, start);
        assert_eq!(turns.order(0..1, true, start), Order { ask: vec![0], resting: Vec::new() });
        let spared = Order { ask: Vec::new(), resting: vec![(0, HUNG)] };
        assert_eq!(turns.order(0..1, false, start), spared, "nobody wants it");
    }
}
