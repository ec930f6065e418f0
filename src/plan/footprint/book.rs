//! What was measured, by key, and its form on disk.
//!
//! ```text
//!   hostler-footprints 1 <CRC32C, 8 hex digits> <bytes of the body>\n
//!   [{"key":{…},"bytes_per_device":…, …}, …]
//! ```
//! Owner: the supervisor; an adapter carries the bytes. Invariants: at most [`Book::ENTRIES_MAX`] footprints; no change of a
//! single byte, no cut and no addition is read as a book; encoding is deterministic. The checksum covers the header before it
//! and the body, so that a flipped version number is damage, not a newer version.

use super::{Footprint, KeyRef, Source};
use crate::plan::Loads;
use crate::types::sealed::{self, SealError};
use crate::types::{Bytes, ModelName};

/// What a book begins with, whatever its version.
const MAGIC: &str = "hostler-footprints";
/// Raised when the body's form changes. The header's form never changes.
const VERSION: u32 = 1;

/// Everything that was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    /// Ascending by key, each key once. Looked up in every turn, changed a few times a load.
    footprints: Vec<Footprint>,
}

/// Why bytes are no book.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// It does not begin as a book does.
    #[error("it does not begin with a header line \"{MAGIC} …\"")]
    NotABook,
    /// The header or the body is not what was written.
    #[error("its content does not match its checksum: it was cut off or changed")]
    Damaged,
    /// Intact, but of a later Hostler.
    #[error(
        "it was written by a newer version of Hostler (format {0}; this one reads format {VERSION}); \
         go back to that version to use it"
    )]
    Newer(u32),
    /// Intact, but its body is not one of a book of this version.
    #[error("its content is not understood: {0}")]
    Body(String),
}

impl Book {
    /// More footprints than that are not kept; those measured longest ago go first. About 2 MiB on disk.
    pub const ENTRIES_MAX: usize = 4096;

    /// What was measured under this very key.
    #[must_use]
    pub fn get(&self, key: KeyRef<'_>) -> Option<&Footprint> {
        self.find(key).ok().and_then(|at| self.footprints.get(at))
    }

    /// Where it is, or where it belongs.
    fn find(&self, key: KeyRef<'_>) -> Result<usize, usize> {
        self.footprints.binary_search_by(|f| f.key.borrow().cmp(&key))
    }

    /// All footprints, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Footprint> {
        self.footprints.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.footprints.len()
    }

    /// Whether nothing was measured yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.footprints.is_empty()
    }

    /// Takes in a new measurement; whether that changed anything.
    ///
    /// It replaces the earlier one of its key, whatever the clock said then, except that a difference of totals never
    /// replaces what the driver attributed. Of the peaks:
    /// * both attributed: the larger is kept for ever. The processes really held it, the key says that nothing has changed
    ///   since, and an engine that is denied its peak fails; what is promised in vain costs a neighbour at most.
    /// * both differences: the larger, but each new measurement takes back a quarter of what the old peak was higher. It
    ///   may have been somebody else's memory, and would otherwise be promised for ever.
    /// * the first attributed one after a difference: its own.
    pub fn record(&mut self, new: Footprint) -> bool {
        match self.find(new.key.borrow()) {
            Ok(at) => self.replace(at, new),
            Err(at) => {
                self.footprints.insert(at, new);
                self.shrink(at);
                true
            }
        }
    }

    fn replace(&mut self, at: usize, mut new: Footprint) -> bool {
        let Some(old) = self.footprints.get_mut(at) else { return false };
        let kept = match (old.source, new.source) {
            (Source::Process, Source::Delta) => return false,
            (Source::Delta, Source::Process) => Bytes::ZERO,
            (Source::Process, Source::Process) => old.peak_per_device,
            (Source::Delta, Source::Delta) => {
                let excess = old.peak_per_device.saturating_sub(new.peak_per_device);
                new.peak_per_device + excess.scale(3, 4)
            }
        };
        new.peak_per_device = new.peak_per_device.max(kept);
        let changed = *old != new;
        *old = new;
        changed
    }

    /// Not more than are kept; the one at `new` stays.
    fn shrink(&mut self, new: usize) {
        if self.footprints.len() > Self::ENTRIES_MAX {
            let others = self.footprints.iter().enumerate().filter(|(at, _)| *at != new);
            let oldest = others.min_by_key(|(_, f)| f.measured_at_unix_s).map(|(at, _)| at);
            if let Some(oldest) = oldest {
                self.footprints.remove(oldest);
            }
        }
    }

    /// Notes how long the loads of a specification took, with whatever was measured of it; whether anything was.
    pub fn note_loads(&mut self, model: &ModelName, args_hash: &str, loads: &Loads) -> bool {
        let of_it = |f: &&mut Footprint| f.key.model == *model && f.key.args_hash == args_hash;
        let mut any = false;
        for footprint in self.footprints.iter_mut().filter(of_it) {
            footprint.loads.clone_from(loads);
            any = true;
        }
        any
    }

    /// How long the loads of a specification took, as last noted.
    #[must_use]
    pub fn loads(&self, model: &ModelName, args_hash: &str) -> Option<&Loads> {
        let of_it = |f: &&Footprint| f.key.model == *model && f.key.args_hash == args_hash;
        let of_it = self.footprints.iter().filter(of_it).filter(|f| !f.loads.is_empty());
        of_it.max_by_key(|f| f.measured_at_unix_s).map(|f| &f.loads)
    }

    /// The book as bytes for the disk.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Strings and numbers in lists and structs cannot fail to serialise; an empty body would be read as damage.
        let body = serde_json::to_vec(&self.footprints).unwrap_or_default();
        sealed::seal(MAGIC, VERSION, &body)
    }

    /// The book in `bytes`.
    ///
    /// # Errors
    /// Where they are not exactly what [`Book::encode`] of this version makes.
    pub fn decode(bytes: &[u8]) -> Result<Self, BookError> {
        let (version, body) = sealed::open(MAGIC, bytes).map_err(|seal| match seal {
            SealError::Foreign => BookError::NotABook,
            SealError::Damaged => BookError::Damaged,
        })?;
        if version > VERSION {
            return Err(BookError::Newer(version));
        }
        let mut footprints: Vec<Footprint> =
            serde_json::from_slice(body).map_err(|e| BookError::Body(e.to_string()))?;
        footprints.sort_by(|a, b| a.key.cmp(&b.key));
        let count = footprints.len();
        if footprints.windows(2).any(|pair| pair[0].key == pair[1].key) {
            return Err(BookError::Body("two footprints have the same key".to_owned()));
        }
        if count > Self::ENTRIES_MAX {
            let most = Self::ENTRIES_MAX;
            return Err(BookError::Body(format!("{count} footprints, at most {most} are kept")));
        }
        Ok(Self { footprints })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::test_footprint;
    use super::*;

    fn book(models: usize) -> Book {
        let mut book = Book::default();
        for n in 0..models {
            assert!(book.record(test_footprint(&format!("m{n}"), 1000 + n as u64)));
        }
        book
    }

    #[test]
    fn what_was_written_is_read() {
        for models in [0, 1, 7] {
            let book = book(models);
            assert_eq!(Book::decode(&book.encode()), Ok(book.clone()));
            assert_eq!((book.len(), book.is_empty()), (models, models == 0));
        }
        let bytes = book(1).encode();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("hostler-footprints 1 "), "{text}");
        assert!(text.contains("\n[{\"key\":{\"model\":\"m0\""), "{text}");
    }

    #[test]
    fn every_flipped_bit_cut_and_addition_is_found() {
        let good = book(2).encode();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let read = Book::decode(&bad);
                let found = matches!(read, Err(BookError::Damaged | BookError::NotABook));
                assert!(found, "byte {at}, bit {bit}: {read:?}");
            }
            assert!(Book::decode(&good[..at]).is_err(), "cut at {at}");
        }
        for more in [&b"\n"[..], b" ", b"\0", b"[]"] {
            assert_eq!(Book::decode(&[&good, more].concat()), Err(BookError::Damaged));
        }
    }

    #[test]
    fn newer_and_strange_bodies_are_told_apart() {
        let make = |version, body: &str| sealed::seal(MAGIC, version, body.as_bytes());
        let newer = Book::decode(&make(2, "what will be"));
        assert_eq!(newer, Err(BookError::Newer(2)));
        assert!(newer.unwrap_err().to_string().contains("newer version of Hostler (format 2;"));
        for body in ["", "{}", "[1]", "[{}]"] {
            let read = Book::decode(&make(1, body));
            assert!(matches!(read, Err(BookError::Body(_))), "{body}: {read:?}");
        }
        let one = serde_json::to_string(&test_footprint("m", 1)).unwrap();
        let twice = Book::decode(&make(1, &format!("[{one},{one}]")));
        assert!(matches!(twice, Err(BookError::Body(why)) if why.contains("same key")));
        assert_eq!(Book::decode(b"#!/bin/sh\n"), Err(BookError::NotABook));
    }

    #[test]
    fn the_newer_replaces_and_attributed_peaks_stay() {
        let mut book = Book::default();
        let mut new = test_footprint("m", 1000);
        assert!(book.record(new.clone()));
        assert!(!book.record(new.clone()), "nothing new");
        new.peak_per_device = Bytes(600);
        new.samples = 9;
        // The clock was set back; what was measured last still counts.
        new.measured_at_unix_s -= 1000;
        assert!(book.record(new.clone()));
        let kept = book.get(new.key.borrow()).unwrap();
        assert_eq!((kept.samples, kept.peak_per_device), (9, Bytes(1000)));
        new.source = Source::Delta;
        new.peak_per_device = Bytes(5000);
        assert!(!book.record(new.clone()), "a guess does not replace a measurement");
        assert_eq!(book.get(new.key.borrow()).unwrap().peak_per_device, Bytes(1000));
    }

    #[test]
    fn loads_are_kept_with_what_was_measured_of_the_same_specification() {
        let mut book = book(2);
        let key = book.iter().next().unwrap().key.clone();
        let mut loads = Loads::default();
        assert!(book.note_loads(&key.model, &key.args_hash, &loads));
        assert_eq!(book.loads(&key.model, &key.args_hash), None, "none was seen");
        loads.record(std::time::Duration::from_millis(61_500));
        assert!(book.note_loads(&key.model, &key.args_hash, &loads));
        assert!(!book.note_loads(&key.model, "other", &loads));
        let read = Book::decode(&book.encode()).unwrap();
        assert_eq!(read, book);
        assert_eq!(read.loads(&key.model, &key.args_hash), Some(&loads));
        assert_eq!(read.loads(&key.model, "other"), None);
        assert_eq!(read.loads(&"m1".parse().unwrap(), &key.args_hash), None);
        assert_eq!(loads.last(), Some(std::time::Duration::from_millis(61_500)));
    }

    #[test]
    fn guessed_peaks_wear_off() {
        let mut book = Book::default();
        let mut new = test_footprint("m", 1000);
        new.source = Source::Delta;
        assert!(book.record(new.clone()));
        new.peak_per_device = Bytes(600);
        for expected in [900, 825, 768] {
            assert!(book.record(new.clone()));
            assert_eq!(book.get(new.key.borrow()).unwrap().peak_per_device, Bytes(expected));
        }
        new.source = Source::Process;
        assert!(book.record(new.clone()));
        assert_eq!(book.get(new.key.borrow()).unwrap().peak_per_device, Bytes(600));
    }

    #[test]
    fn the_oldest_goes_when_it_is_full_and_never_the_new_one() {
        let mut full = Book::default();
        for n in 0..Book::ENTRIES_MAX as u64 {
            let mut footprint = test_footprint("m", 1000);
            footprint.key.driver = format!("{n:05}");
            footprint.measured_at_unix_s = 1_000_000 - n;
            full.record(footprint);
        }
        let mut new = test_footprint("new", 1);
        new.measured_at_unix_s = 0;
        let oldest = full.iter().min_by_key(|f| f.measured_at_unix_s).unwrap().key.clone();
        assert!(full.record(new.clone()));
        assert_eq!(full.len(), Book::ENTRIES_MAX);
        assert_eq!(full.get(oldest.borrow()), None);
        assert!(full.get(new.key.borrow()).is_some());
        let bytes = full.encode();
        assert!(bytes.len() < 4 << 20, "{} bytes", bytes.len());
        assert_eq!(Book::decode(&bytes), Ok(full));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Book::decode(&bytes).is_err());
            let headed = [b"hostler-footprints ".as_slice(), &bytes].concat();
            prop_assert!(Book::decode(&headed).is_err());
        }

        #[test]
        fn every_replaced_byte_is_found(at in 0_usize..500, byte in any::<u8>()) {
            let mut bytes = book(2).encode();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != byte);
            bytes[at] = byte;
            prop_assert!(Book::decode(&bytes).is_err());
        }
    }

    #[test]
    fn fuzz_state_file() {
        let body = book(2).encode();
        let body = body[body.iter().position(|b| *b == b'\n').unwrap() + 1..].to_vec();
        let words = ["\"", "{", "}", "[", ",", "0", "null", "-1", "18446744073709551616"];
        crate::fuzz::fuzz_from("state-file", &[body, book(1).encode()], &words, |input| {
            let _ = Book::decode(input);
            // Under a header of its own, so that what is behind one is reached.
            let intact = sealed::seal(MAGIC, VERSION, input);
            if let Ok(book) = Book::decode(&intact) {
                assert_eq!(Book::decode(&book.encode()), Ok(book));
            }
        });
    }
}
