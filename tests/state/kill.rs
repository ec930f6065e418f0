//! Writers that die in the middle.
//!
//! The test runs its own binary again as a writer, which saves one generation after the other and reports each on its
//! standard output once it is saved. It is killed at a random moment; what is on disk then has to be the last generation
//! that it reported, or the one after it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hostler::adapters::state_file::{Loaded, StateFile};
use hostler::plan::Book;

use super::{DISK, book, generation, place};

/// Tells the writer where to write; absent in an ordinary test run.
const WRITE_IN: &str = "HOSTLER_TEST_WRITE_IN";
/// All of them together.
const KILLS: u32 = 1000;
/// Writers at a time, each in a directory of its own.
const WRITERS: u32 = 4;
/// A kill comes so long after the first save at most: less than one save on a slow disk, some twenty in memory.
const DELAY_US_MAX: u64 = 8_000;
/// Every other writer writes there, if it exists. A save on a disk is nearly all fsync, and so would be the moments of the
/// kills; in memory they fall on the other steps.
const MEMORY: &str = "/dev/shm";
/// What one line of the writer says before the generation.
const SAVED: &str = "saved generation ";

/// Not a test but the writer; an ordinary run passes it by.
#[test]
fn writer() {
    let Ok(dir) = std::env::var(WRITE_IN) else { return };
    let file = StateFile::new(dir, "footprints");
    let mut next = match file.load(Book::decode) {
        Loaded::Current(book) | Loaded::Previous(book, _) => generation(&book) + 1,
        Loaded::Fresh(_) => 1,
    };
    let mut out = std::io::stdout();
    loop {
        file.save(&book(next, 20).encode()).unwrap();
        // Nobody listens any more: the test is over.
        if writeln!(out, "\n{SAVED}{next}").is_err() {
            return;
        }
        next += 1;
    }
}

/// Starts a writer, kills it, and returns the last generation that it reported.
fn kill_one(dir: &std::path::Path, delay: Duration) -> Option<u64> {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::writer", "--nocapture", "--test-threads=1"])
        .env(WRITE_IN, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines().map_while(Result::ok);
    let reported = |line: String| line.strip_prefix(SAVED)?.parse::<u64>().ok();
    let first = lines.by_ref().find_map(reported);
    std::thread::sleep(delay);
    writer.kill().unwrap();
    let rest = lines.filter_map(reported).last();
    let status = writer.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
    rest.or(first)
}

/// What a series of kills came to.
#[derive(Debug, Default)]
struct Tally {
    /// Generations that were saved.
    saves: u64,
    /// Kills before the rename: a file that nobody will ever name was left.
    unnamed: u32,
    /// Kills between the link and the rename: both names were of one generation.
    linked: u32,
    /// Kills after the rename and before the report.
    unreported: u32,
}

/// Kills `times` writers in one directory.
fn kill_many(parent: &str, seed: u64, times: u32) -> Tally {
    let (dir, file) = place(parent);
    let names = || {
        let entries = std::fs::read_dir(dir.path()).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let mut tally = Tally::default();
    let mut random = seed;
    for round in 0..times {
        let at = || format!("seed {seed}, round {round}");
        // Knuth's: good enough to hit every step of a save.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        let delay = Duration::from_micros((random >> 33) % DELAY_US_MAX);
        let Some(reported) = kill_one(dir.path(), delay) else {
            panic!("{}: the writer failed", at())
        };
        let last = tally.saves;
        assert!(reported > last, "{}: {last} was there, but {reported} was written", at());
        tally.unnamed += u32::from(names().iter().any(|n| n.ends_with(".tmp")));
        let Loaded::Current(newest) = file.load(Book::decode) else {
            panic!("{}: the newest generation cannot be read", at())
        };
        let found = generation(&newest);
        let allowed = reported..=reported + 1;
        assert!(allowed.contains(&found), "{}: {reported} was reported, {found} found", at());
        tally.unreported += u32::from(found > reported);
        // Not there at the first generation, and between the unlink of the old one and the link of the new one.
        if let Ok(bytes) = std::fs::read(file.previous_path()) {
            let previous = generation(&Book::decode(&bytes).unwrap());
            let kept = previous..=previous + 1;
            assert!(kept.contains(&found), "{}: {previous} is kept beside {found}", at());
            tally.linked += u32::from(found == previous);
        }
        let names = names();
        assert!(names.len() <= 2, "{}: cut-off saves are not swept: {names:?}", at());
        tally.saves = found;
    }
    tally
}

#[test]
fn fault_26_a_thousand_kills_lose_nothing_that_was_saved() {
    let start = Instant::now();
    let memory = if std::path::Path::new(MEMORY).is_dir() { MEMORY } else { DISK };
    let mut sum = Tally::default();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..WRITERS)
            .map(|n| {
                let parent = [DISK, memory][n as usize % 2];
                scope.spawn(move || kill_many(parent, u64::from(n) + 1, KILLS / WRITERS))
            })
            .collect();
        for tally in all.into_iter().map(|thread| thread.join().unwrap()) {
            sum.saves += tally.saves;
            sum.unnamed += tally.unnamed;
            sum.linked += tally.linked;
            sum.unreported += tally.unreported;
        }
    });
    println!("{KILLS} kills in {:.1} s: {sum:?}", start.elapsed().as_secs_f64());
    // Kills that all fell between two saves would prove nothing.
    assert!(sum.unnamed > KILLS / 10, "{sum:?}");
    assert!(sum.saves > u64::from(KILLS), "{sum:?}");
}
