//! Files that were changed behind the daemon's back.

use std::fs;

use hostler::adapters::state_file::{KEPT_ASIDE, Loaded};
use hostler::plan::Book;

use super::{DISK, book, generation, place};

#[test]
fn fault_26_each_flipped_byte_costs_one_generation_and_no_start() {
    let (dir, file) = place(DISK);
    file.save(&book(1, 2).encode()).unwrap();
    file.save(&book(2, 2).encode()).unwrap();
    let good = fs::read(file.path()).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(file.path(), &bad).unwrap();
        let Loaded::Previous(book, why) = file.load(Book::decode) else {
            panic!("byte {at} was not noticed")
        };
        assert_eq!(generation(&book), 1, "byte {at}");
        assert!(why.contains("footprints.corrupt-"), "{why}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1 + KEPT_ASIDE);
    fs::write(file.path(), &good).unwrap();
    assert_eq!(file.load(Book::decode), Loaded::Current(book(2, 2)));
}

#[test]
fn fault_26_each_flipped_byte_of_both_generations_still_starts() {
    let (_dir, file) = place(DISK);
    let good = book(1, 1).encode();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x80 >> (at % 8);
        fs::write(file.path(), &bad).unwrap();
        fs::write(file.previous_path(), &bad).unwrap();
        let Loaded::Fresh(Some(why)) = file.load(Book::decode) else { panic!("byte {at}") };
        assert!(why.contains("starting anew"), "{why}");
        // The daemon relearns and saves again.
        file.save(&good).unwrap();
        assert_eq!(file.load(Book::decode), Loaded::Current(book(1, 1)));
    }
}

#[test]
fn fault_26_files_that_were_cut_emptied_or_zeroed() {
    let (_dir, file) = place(DISK);
    let good = book(2, 2).encode();
    fs::write(file.previous_path(), book(1, 2).encode()).unwrap();
    let zeroed = vec![0; good.len()];
    for bad in [&good[..good.len() / 2], &good[..10], b"", &zeroed, b"{}"] {
        fs::write(file.path(), bad).unwrap();
        let Loaded::Previous(book, _) = file.load(Book::decode) else { panic!("{bad:?}") };
        assert_eq!(generation(&book), 1);
    }
}
