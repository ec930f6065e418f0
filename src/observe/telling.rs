//! Which requests get a line of their own.
//!
//! Purpose: a line for each request is what an operator wants, until there are thousands a second: a flood, a stranger's too, writes the
//! journal over, and journald, which takes 10,000 lines of a service each 30 s unless it was told otherwise, then drops whatever else the
//! daemon says. So at most so many requests a second are told one by one; the others are counted, and a line says how many there were.
//! Owner: the composition root, which puts it before the front door and says what was counted. Invariants: each request is told or
//! counted; a quarter of the lines is for those that failed; it takes no lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::proxy::port::{Observer, Seen, Side};

/// Between two lines about what was not told.
const INTERVAL: Duration = Duration::from_secs(10);

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By an answer, or by its client.
    Answered,
    /// By a status of 400 and more.
    Refused,
    /// By a status of 500 and more, or broken off by the engine or this host.
    Failed,
}

impl End {
    fn of(seen: &Seen<'_>) -> Self {
        match seen.status {
            Some(500..) => Self::Failed,
            _ if seen.broken_by.is_some_and(|side| side != Side::Client) => Self::Failed,
            Some(400..) => Self::Refused,
            _ => Self::Answered,
        }
    }
}

/// Counts lines, and requests without one.
#[derive(Debug)]
pub struct Telling {
    began: Instant,
    /// Lines a second.
    most: AtomicU32,
    second: AtomicU64,
    /// In that second.
    told: AtomicU32,
    /// By [`End`], since the last line about them.
    untold: [AtomicU64; 3],
}

impl Telling {
    /// At most so many lines a second.
    #[must_use]
    pub fn new(most: u32) -> Self {
        Self {
            began: Instant::now(),
            most: most.into(),
            second: 0.into(),
            told: 0.into(),
            untold: Default::default(),
        }
    }

    /// So many from now on.
    pub fn set(&self, most: u32) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Whether a request that ended like this is told, in that second since the start. One thread calls it; were there several, a few
    /// lines more could come of it and nothing else.
    fn takes(&self, second: u64, end: End) -> bool {
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.told.store(0, Ordering::Relaxed);
        }
        let most = self.most.load(Ordering::Relaxed);
        let room = if end == End::Failed { most } else { most - most / 4 };
        let told = self.told.load(Ordering::Relaxed);
        let takes = told < room;
        if takes {
            self.told.store(told + 1, Ordering::Relaxed);
        } else {
            self.untold[end as usize].fetch_add(1, Ordering::Relaxed);
        }
        takes
    }

    /// Says how many were not told since it was last called, if any.
    pub fn say(&self) {
        let [answered, refused, failed] =
            std::array::from_fn(|i| self.untold[i].swap(0, Ordering::Relaxed));
        let (lines, most) = (answered + refused + failed, self.most.load(Ordering::Relaxed));
        if lines > 0 {
            tracing::info!(
                // As the lines that it stands for: they may be switched off.
                target: "hostler::proxy",
                kind = "requests_untold",
                lines,
                "{lines} requests have no line of their own, for there were more than [log] request_lines = {most} a second: {answered} answered, {refused} refused, {failed} failed"
            );
        }
    }

    /// Says so now and then, for ever.
    pub async fn keep_saying(&self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.say();
        }
    }
}

impl Observer for Telling {
    fn begun(&self) {}

    fn ended(&self, _: &Seen<'_>) {}

    fn tells(&self, seen: &Seen<'_>, at: Instant) -> bool {
        self.takes(at.saturating_duration_since(self.began).as_secs(), End::of(seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::port::Gaps;

    #[test]
    fn so_many_a_second_are_told_and_the_others_are_counted() {
        let telling = Telling::new(8);
        let takes = |second, end| telling.takes(second, end);
        let told = |second, end, of| (0..of).filter(|_| takes(second, end)).count();
        assert_eq!(told(0, End::Answered, 100), 6);
        assert_eq!(told(0, End::Refused, 10), 0);
        assert_eq!(told(0, End::Failed, 10), 2, "what is kept for them");
        assert_eq!(told(1, End::Failed, 10), 8);
        assert_eq!(told(2, End::Refused, 3), 3);
        let untold = |i: usize| telling.untold[i].load(Ordering::Relaxed);
        assert_eq!([untold(0), untold(1), untold(2)], [94, 10, 8 + 2]);
        telling.set(1);
        assert_eq!(told(3, End::Answered, 5), 1);
        telling.say();
        assert_eq!([untold(0), untold(1), untold(2)], [0; 3]);
    }

    #[test]
    fn a_failure_is_the_engines_or_the_hosts() {
        let end = |status, broken_by| {
            End::of(&Seen {
                route: "chat_completions",
                model: None,
                instance: None,
                status,
                refused: None,
                key: None,
                broken_by,
                total: Duration::ZERO,
                queue: None,
                asked_first: None,
                first_byte: None,
                gaps: &Gaps::default(),
                bytes: 0,
                routine: false,
                traced: None,
            })
        };
        assert_eq!(end(Some(200), None), End::Answered);
        assert_eq!(end(Some(200), Some(Side::Client)), End::Answered);
        assert_eq!(end(None, Some(Side::Client)), End::Answered);
        assert_eq!(end(Some(429), None), End::Refused);
        assert_eq!(end(Some(503), None), End::Failed);
        assert_eq!(end(Some(200), Some(Side::Engine)), End::Failed);
        assert_eq!(end(Some(200), Some(Side::Host)), End::Failed);
    }
}
