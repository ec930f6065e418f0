//! How far the files are, and whether anybody still waits for the hub.
//!
//! Purpose: tells the progress, and gives up a hub that says nothing. Owner: the command, for as long as it runs. Invariants: only
//! the hub is given up, never this host: while it writes or checks, the silence does not count, however long that takes; and then a
//! line is told each time, so that whoever reads them sees that the container lives.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::line;

/// How often the progress is told.
const TELL: Duration = Duration::from_millis(500);
/// Without a byte for so long the hub is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// What this host is doing, while nothing is awaited from the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Here {
    /// Brings bytes to the disk.
    Writing,
    /// Has gone through so many of so many bytes for the digest.
    Checking { done: u64, of: u64 },
}

/// What the meter shows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shown {
    /// Bytes of all files.
    pub at: u64,
    /// What is done here; `None`: the hub is awaited.
    pub here: Option<Here>,
}

/// Counts bytes of all files, and knows who is at work.
#[derive(Clone, Default)]
pub(super) struct Meter(Arc<Mutex<Shown>>);

impl Meter {
    /// Starts to tell.
    pub fn start() -> Self {
        let meter = Self::default();
        // Whoever has fetched all, or failed, has nobody left to give up.
        let shown = Arc::downgrade(&meter.0);
        let mut watch = Watch::new(Instant::now());
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(TELL);
                let Some(shown) = shown.upgrade() else { return };
                match watch.look(Instant::now(), Self(shown).shown()) {
                    Ok(told) => told.iter().for_each(line),
                    Err(why) => {
                        line(&json!({"error": why}));
                        std::process::exit(1);
                    }
                }
            }
        });
        meter
    }

    pub fn shown(&self) -> Shown {
        *self.lock()
    }

    pub fn add(&self, bytes: u64) {
        self.lock().at += bytes;
    }

    pub fn take(&self, bytes: u64) {
        let mut shown = self.lock();
        shown.at = shown.at.saturating_sub(bytes);
    }

    /// Does what this host has to do, for which the hub is not to blame.
    pub fn here<T>(&self, what: Here, work: impl FnOnce() -> T) -> T {
        self.at_work(what);
        let done = work();
        self.lock().here = None;
        done
    }

    /// Within [`Meter::here`]: how far it is.
    pub fn at_work(&self, what: Here) {
        self.lock().here = Some(what);
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at the meter now and then.
pub(super) struct Watch {
    at: u64,
    since: Instant,
}

impl Watch {
    pub fn new(now: Instant) -> Self {
        Self { at: 0, since: now }
    }

    /// What is to be told; or why the hub is given up.
    pub fn look(&mut self, now: Instant, shown: Shown) -> Result<Option<Value>, String> {
        let moved = shown.at != self.at;
        if moved || shown.here.is_some() {
            (self.at, self.since) = (shown.at, now);
        }
        let told = match shown.here {
            // Each piece that comes is written, too: only what takes longer is worth a word.
            _ if moved => json!({"at": shown.at}),
            Some(Here::Writing) => json!({"writing": true}),
            Some(Here::Checking { done, of }) => {
                json!({"checking": (u128::from(done) * 100).checked_div(u128::from(of)).unwrap_or(100)})
            }
            None if now.duration_since(self.since) > SILENCE => {
                return Err(format!(
                    "the hub said nothing for {} s; run the same command again to go on where it stopped",
                    SILENCE.as_secs()
                ));
            }
            None => return Ok(None),
        };
        Ok(Some(told))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_that_says_nothing_is_given_up_and_one_that_speaks_is_not() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let (meter, mut watch) = (Meter::default(), Watch::new(began));
        assert_eq!(watch.look(after(59), meter.shown()), Ok(None));
        meter.add(7);
        assert_eq!(watch.look(after(61), meter.shown()), Ok(Some(json!({"at": 7}))));
        assert_eq!(watch.look(after(121), meter.shown()), Ok(None));
        let why = watch.look(after(122), meter.shown()).unwrap_err();
        assert!(why.contains("nothing for 60 s"), "{why}");
    }

    #[test]
    fn work_of_this_host_is_told_each_time_and_no_silence_of_the_hub() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let (meter, mut watch) = (Meter::default(), Watch::new(began));
        meter.here(Here::Writing, || {
            for seconds in [100, 200] {
                let told = watch.look(after(seconds), meter.shown());
                assert_eq!(told, Ok(Some(json!({"writing": true}))));
            }
        });
        meter.here(Here::Checking { done: 0, of: 3 }, || {
            meter.at_work(Here::Checking { done: 2, of: 3 });
            let told = watch.look(after(300), meter.shown());
            assert_eq!(told, Ok(Some(json!({"checking": 66}))));
        });
        // From then on it counts again.
        assert_eq!(watch.look(after(360), meter.shown()), Ok(None));
        assert!(watch.look(after(361), meter.shown()).is_err());
    }
}
