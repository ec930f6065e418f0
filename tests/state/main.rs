//! The state on disk: the production book in the production file, on a real file system.
//!
//! `damage` flips bits and cuts files; `kill` ends writers by SIGKILL at random moments. No state of the disk fails a load,
//! and what was once saved is never lost but for the one generation that was damaged.
#![expect(clippy::unwrap_used, reason = "a panic is how a test reports its failure")]

mod damage;
mod kill;

use hostler::adapters::state_file::StateFile;
use hostler::plan::{Book, Confidence, Footprint, Key, Loads, Source};
use hostler::types::Bytes;

/// Where the tests write, unless they say otherwise: below cargo's target directory, which is on a disk.
const DISK: &str = env!("CARGO_TARGET_TMPDIR");

/// A new directory in `parent`, and the state file in it.
fn place(parent: &str) -> (tempfile::TempDir, StateFile) {
    let dir = tempfile::tempdir_in(parent).unwrap();
    let file = StateFile::new(dir.path(), "footprints");
    (dir, file)
}

/// A book of some models that tells by itself which generation it is.
fn book(generation: u64, models: u32) -> Book {
    let mut book = Book::default();
    for model in 0..models {
        let key = Key {
            model: format!("m{model}").parse().unwrap(),
            image_digest: "sha256:0123456789abcdef".into(),
            args_hash: "0123456789abcdef01234567".into(),
            gpu_name: "NVIDIA H100 80GB HBM3".into(),
            tensor_parallel: 1,
            driver: "580.95.05".into(),
        };
        book.record(Footprint {
            key,
            bytes_per_device: Bytes::gib(10),
            peak_per_device: Bytes::gib(11),
            samples: 15,
            spread: Bytes::mib(2),
            confidence: Confidence::High,
            source: Source::Process,
            measured_at_unix_s: generation,
            loads: Loads::default(),
        });
    }
    book
}

/// The generation of a book of [`book`]; a mix of two generations fails the test.
fn generation(book: &Book) -> u64 {
    let mut all = book.iter().map(|f| f.measured_at_unix_s);
    let first = all.next().unwrap();
    assert!(all.all(|g| g == first), "a mix of generations");
    first
}
