//! What has happened lately.
//!
//! Purpose: the last notices in order, for those who look, and each new one for those who listen. Owner: the composition root. Invariants:
//! bounded; every entry has a number of its own, so that who listens can see that something was left out; nobody misses what happens
//! between looking and listening, because both are one step.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::broadcast;

use crate::supervisor::witness::{Line, Notice, Witness};
use crate::types::Moment;

/// Entries that are kept.
pub const KEPT: usize = 256;

/// One entry.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Entry {
    /// Counts from 1 since the daemon's start, without gaps.
    pub number: u64,
    /// When, on the daemon's clock.
    pub at: Moment,
    /// What.
    #[serde(flatten)]
    pub line: Line,
}

#[derive(Debug)]
struct Book {
    last: u64,
    kept: VecDeque<Arc<Entry>>,
}

/// The last notices.
#[derive(Debug)]
pub struct Timeline {
    book: Mutex<Book>,
    news: broadcast::Sender<Arc<Entry>>,
}

impl Default for Timeline {
    fn default() -> Self {
        let book = Book { last: 0, kept: VecDeque::with_capacity(KEPT) };
        Self { book: Mutex::new(book), news: broadcast::Sender::new(KEPT) }
    }
}

impl Timeline {
    /// What is kept, oldest first, and all that comes after it.
    pub fn follow(&self) -> (Vec<Arc<Entry>>, broadcast::Receiver<Arc<Entry>>) {
        // No step of a change can panic half done.
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        (book.kept.iter().cloned().collect(), self.news.subscribe())
    }
}

impl Witness for Timeline {
    fn see(&self, at: Moment, notice: &Notice, _: Option<&str>) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.last += 1;
        let entry = Arc::new(Entry { number: book.last, at, line: Line::from(notice) });
        if book.kept.len() == KEPT {
            book.kept.pop_front();
        }
        book.kept.push_back(entry.clone());
        // Under the lock, so that nobody who begins to follow now gets it twice or never. An error: nobody listens.
        let _ = self.news.send(entry);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::{Generation, InstanceId};

    fn ready(timeline: &Timeline, load_ms: u64) {
        let instance = InstanceId::new("org/m".parse().unwrap(), Generation(1), 1);
        let at = Moment(Duration::from_millis(load_ms));
        timeline.see(at, &Notice::Ready { instance, load_ms: Some(load_ms) }, None);
    }

    #[test]
    fn who_follows_gets_each_entry_once_and_the_oldest_are_dropped() {
        let timeline = Timeline::default();
        for ms in 0..300 {
            ready(&timeline, ms);
        }
        let (kept, mut news) = timeline.follow();
        assert_eq!(kept.len(), KEPT);
        assert!(kept.iter().map(|e| e.number).eq(300 - KEPT as u64 + 1..=300));
        ready(&timeline, 7000);
        assert_eq!(news.try_recv().unwrap().number, 301);
        assert!(news.try_recv().is_err());
    }

    #[test]
    fn an_entry_in_json() {
        let timeline = Timeline::default();
        ready(&timeline, 1500);
        let json = serde_json::to_value(&*timeline.follow().0[0]).unwrap();
        let instance = InstanceId::new("org/m".parse().unwrap(), Generation(1), 1);
        assert_eq!(
            json,
            serde_json::json!({
                "number": 1, "at": {"secs": 1, "nanos": 500_000_000}, "kind": "ready", "weight": "info",
                "model": "org/m", "instance": instance.to_string(), "took_ms": 1500,
                "text": "org/m: ready after 1500 ms"
            })
        );
    }
}
