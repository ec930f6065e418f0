//! Log lines on their way out.
//!
//! Purpose: who says a line never waits for who takes it: a thread of its own writes them, many with one system call. Owner: [`super`].
//! Invariants: lines leave in the order in which they were said; a line waits [`GATHER`] at most for company, a warning or an error not at
//! all; the queue is bounded, what does not fit is counted, and the count becomes a line as soon as lines are taken again.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// So long a line may wait for others.
const GATHER: Duration = Duration::from_millis(20);
/// So many lines wait for no more: a larger batch than the socket takes at once would put the writer to sleep in the middle of it.
const ENOUGH: usize = 64;
/// Bytes that wait at most: some seconds of a busy front door.
const MOST: usize = 4 << 20;
/// What a buffer keeps when it is empty.
const KEPT: usize = 128 << 10;

/// Where lines end up.
pub(super) trait Sink: Send {
    /// Takes all lines of a batch, however long that takes. Says how many were lost on the way.
    fn put(&mut self, batch: &Batch) -> u64;
}

/// Lines behind each other.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Batch {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The lines, one by one.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).filter_map(|(start, end)| self.bytes.get(start..*end))
    }

    /// One more.
    pub fn push(&mut self, line: &[u8]) {
        self.bytes.extend_from_slice(line);
        self.ends.push(self.bytes.len());
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.bytes.shrink_to(KEPT);
        self.ends.shrink_to(KEPT / 64);
    }
}

#[derive(Debug, Default)]
struct State {
    waiting: Batch,
    lost: u64,
    /// Lines that wait for no others.
    urgent: bool,
    /// The writer sleeps until somebody wakes it.
    asleep: bool,
    /// The writer holds lines that the sink has not taken yet.
    busy: bool,
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Lines {
    state: Mutex<State>,
    more: Condvar,
    none: Condvar,
}

impl Lines {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start(sink: impl Sink + 'static) -> io::Result<Arc<Self>> {
        let lines = Arc::new(Self::default());
        let own = lines.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || own.write_to(sink))?;
        Ok(lines)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nobody panics with the lock held; a line is better than a second panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says one line, whole.
    pub fn say(&self, line: &[u8], level: Level) {
        let mut state = self.lock();
        if state.waiting.bytes.len() + line.len() > MOST {
            state.lost += 1;
            return;
        }
        state.waiting.push(line);
        let urgent = level <= Level::WARN || state.waiting.ends.len() >= ENOUGH;
        let hurry = urgent && !state.urgent && !state.busy;
        state.urgent |= urgent;
        let wake = state.asleep || hurry;
        state.asleep = false;
        drop(state);
        if wake {
            self.more.notify_one();
        }
    }

    /// Waits until the sink has taken all that was said, or patience ends. Says whether it has.
    pub fn flush(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        state.urgent = true;
        self.more.notify_one();
        let left = |state: &mut State| state.busy || !state.waiting.ends.is_empty();
        let done = self.none.wait_timeout_while(state, patience, left);
        !done.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn write_to(&self, mut sink: impl Sink) {
        let mut batch = Batch::default();
        let mut lost = 0;
        loop {
            lost += self.take(&mut batch);
            let missed = sink.put(&batch);
            batch.clear();
            lost += missed;
            // Not while lines are lost: this one would be, too.
            if missed == 0 && lost > 0 {
                tracing::warn!(
                    kind = "log_lines_lost",
                    lines = lost,
                    "{lost} log lines were lost: nobody took them in time"
                );
                lost = 0;
            }
        }
    }

    /// Waits for lines and for company. Says how many were lost since the last time.
    fn take(&self, batch: &mut Batch) -> u64 {
        let mut state = self.lock();
        state.busy = false;
        while state.waiting.ends.is_empty() {
            state.urgent = false;
            state.asleep = true;
            self.none.notify_all();
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep = false;
        let alone = self.more.wait_timeout_while(state, GATHER, |state| !state.urgent);
        state = alone.unwrap_or_else(PoisonError::into_inner).0;
        state.busy = true;
        state.urgent = false;
        std::mem::swap(&mut state.waiting, batch);
        std::mem::take(&mut state.lost)
    }
}

/// Lines for people or programs, one after the other.
#[derive(Debug)]
pub(super) struct Stderr;

impl Sink for Stderr {
    fn put(&mut self, batch: &Batch) -> u64 {
        match io::Write::write_all(&mut io::stderr(), batch.bytes()) {
            Ok(()) => 0,
            Err(_) => batch.lines().count() as u64,
        }
    }
}

/// One line of a formatter, which writes it with one call.
#[derive(Debug)]
pub(super) struct Line {
    lines: Arc<Lines>,
    level: Level,
}

impl io::Write for Line {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.lines.say(text, self.level);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes [`Line`]s.
#[derive(Clone, Debug)]
pub(super) struct Writer(pub Arc<Lines>);

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { lines: self.0.clone(), level: Level::ERROR }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line { lines: self.0.clone(), level: *metadata.level() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);
    const NEVER: Duration = Duration::from_secs(3600);

    /// Tells what it is given and goes on when it is told how many lines it has lost.
    struct Held(Sender<Vec<String>>, Receiver<u64>);

    impl Sink for Held {
        fn put(&mut self, batch: &Batch) -> u64 {
            let lines = batch.lines().map(|line| String::from_utf8(line.into()).unwrap());
            let _ = self.0.send(lines.collect());
            self.1.recv().unwrap_or(0)
        }
    }

    fn held() -> (Arc<Lines>, Receiver<Vec<String>>, Sender<u64>) {
        let ((told, batches), (go, wait)) = (channel(), channel());
        (Lines::start(Held(told, wait)).unwrap(), batches, go)
    }

    #[test]
    fn lines_that_come_while_the_sink_is_busy_leave_together_and_in_order() {
        let (lines, batches, go) = held();
        lines.say(b"a", Level::WARN);
        assert_eq!(batches.recv_timeout(SOON).unwrap(), ["a"]);
        for line in ["b", "c", "d"] {
            lines.say(line.as_bytes(), Level::INFO);
        }
        go.send(0).unwrap();
        assert_eq!(batches.recv_timeout(SOON).unwrap(), ["b", "c", "d"]);
    }

    #[test]
    fn a_sink_that_hangs_holds_nobody_and_what_is_lost_is_told() {
        let (lines, batches, go) = held();
        let said = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .without_time()
            .with_writer(Writer(lines.clone()));
        // The writer's own line goes through the subscriber of the process.
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(said)).unwrap();
        lines.say(b"first", Level::ERROR);
        assert_eq!(batches.recv_timeout(SOON).unwrap(), ["first"]);
        let long = vec![b'x'; MOST / 4];
        for _ in 0..7 {
            lines.say(&long, Level::INFO);
        }
        assert!(!lines.flush(Duration::ZERO));
        // The sink loses a line, too; nothing is told while it does.
        go.send(1).unwrap();
        assert_eq!(batches.recv_timeout(SOON).unwrap().len(), 4);
        lines.say(b"second", Level::INFO);
        go.send(1).unwrap();
        assert_eq!(batches.recv_timeout(SOON).unwrap(), ["second"]);
        go.send(0).unwrap();
        let told = batches.recv_timeout(SOON).unwrap().concat();
        assert!(told.contains("WARN") && told.contains("5 log lines were lost"), "{told}");
        go.send(0).unwrap();
        assert!(lines.flush(NEVER));
    }
}
