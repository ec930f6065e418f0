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

use super::{book, generation, place};

/// Tells the writer where to write; absent in an ordinary test run.
const WRITE_IN: &str = "HOSTLER_TEST_WRITE_IN";
/// All of them together.
const KILLS: u32 = 1000;
/// Writers at a time, each in a directory of its own.
const WRITERS: u32 = 4;
/// A kill comes so long after the first save at most; some ten saves fit in.
const DELAY_US_MAX: u64 = 8_000;
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
        .stderr(Stdio::null())
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

/// Kills `times` writers in one directory; how many generations they saved.
fn kill_many(seed: u64, times: u32) -> u64 {
    let (dir, file) = place();
    let mut random = seed;
    let mut last = 0;
    for round in 0..times {
        // Knuth's: good enough to hit every step of a save.
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let delay = Duration::from_micros((random >> 33) % DELAY_US_MAX);
        let reported = kill_one(dir.path(), delay).unwrap();
        assert!(reported > last, "round {round}: the writer went on from before {last}");
        let Loaded::Current(book) = file.load(Book::decode) else {
            panic!("seed {seed}, round {round}: the newest generation cannot be read")
        };
        let found = generation(&book);
        let allowed = reported..=reported + 1;
        assert!(allowed.contains(&found), "round {round}: {reported} was reported, found {found}");
        let previous = Book::decode(&std::fs::read(file.previous_path()).unwrap_or_default());
        if let Ok(previous) = previous {
            let previous = generation(&previous);
            assert!((found - 1..=found).contains(&previous), "{previous} is kept beside {found}");
        }
        let names = std::fs::read_dir(dir.path()).unwrap().count();
        assert!(names <= 2, "round {round}: {names} files, cut-off saves are not swept");
        last = found;
    }
    last
}

#[test]
fn a_thousand_kills_lose_nothing_that_was_saved() {
    let start = Instant::now();
    let saved: u64 = std::thread::scope(|scope| {
        let all: Vec<_> = (0..WRITERS)
            .map(|n| scope.spawn(move || kill_many(u64::from(n) + 1, KILLS / WRITERS)))
            .collect();
        all.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    println!("{KILLS} kills, {saved} saves, {:.1} s", start.elapsed().as_secs_f64());
    assert!(saved > u64::from(KILLS), "the writers hardly wrote: {saved} saves");
}
