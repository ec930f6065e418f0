//! The state file on real disks, in real directories.

use super::*;

/// Content that says whether it is good.
fn check(bytes: &[u8]) -> Result<String, String> {
    let text = String::from_utf8(bytes.to_vec()).map_err(|e| e.to_string())?;
    if text.starts_with("good") { Ok(text) } else { Err(format!("{text:?} is not good")) }
}

fn place() -> (tempfile::TempDir, StateFile) {
    let dir = tempfile::tempdir().unwrap();
    let file = StateFile::new(dir.path(), "book");
    (dir, file)
}

fn names(file: &StateFile) -> Vec<String> {
    let mut names: Vec<String> = file.names().collect();
    names.sort();
    names
}

#[test]
fn two_generations_are_kept_and_nothing_else() {
    let (_dir, file) = place();
    assert_eq!(file.load(check), Loaded::Fresh(None), "the first start");
    file.save(b"good 1").unwrap();
    assert_eq!(names(&file), ["book"]);
    for n in 2..5 {
        file.save(format!("good {n}").as_bytes()).unwrap();
        assert_eq!(file.load(check), Loaded::Current(format!("good {n}")));
        let previous = fs::read_to_string(file.previous_path()).unwrap();
        assert_eq!(previous, format!("good {}", n - 1));
        assert_eq!(names(&file), ["book", "book.1"]);
    }
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(file.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "other users have no business in it");
}

#[test]
fn a_damaged_one_is_set_aside_and_the_one_before_is_used() {
    let (_dir, file) = place();
    file.save(b"good 1").unwrap();
    file.save(b"good 2").unwrap();
    fs::write(file.path(), "bad").unwrap();
    let Loaded::Previous(value, why) = file.load(check) else { panic!() };
    assert_eq!(value, "good 1");
    for part in ["book is unusable: \"bad\" is not good", "set aside as book.corrupt-1", "lost"] {
        assert!(why.contains(part), "{why}");
    }
    assert_eq!(names(&file), ["book.1", "book.corrupt-1"]);
    // The good one outlives the next save, which has nothing newer to keep.
    file.save(b"good 3").unwrap();
    assert_eq!(fs::read(file.previous_path()).unwrap(), b"good 1");
    assert_eq!(file.load(check), Loaded::Current("good 3".into()));
}

#[test]
fn without_a_good_one_it_starts_anew_and_says_why() {
    let (_dir, file) = place();
    file.save(b"good 1").unwrap();
    file.save(b"good 2").unwrap();
    fs::write(file.path(), "bad").unwrap();
    fs::write(file.previous_path(), "worse").unwrap();
    let Loaded::Fresh(Some(why)) = file.load(check) else { panic!() };
    for part in ["\"bad\" is not good", "book.corrupt-1", "\"worse\" is not", "book.corrupt-2"] {
        assert!(why.contains(part), "{why}");
    }
    assert_eq!(file.load(check), Loaded::Fresh(None), "said once");
    file.save(b"bad").unwrap();
    let Loaded::Fresh(Some(why)) = file.load(check) else { panic!() };
    assert!(why.contains("no other generation"), "{why}");
}

#[test]
fn damaged_ones_do_not_pile_up() {
    let (_dir, file) = place();
    for n in 0..20 {
        fs::write(file.path(), format!("bad {n}")).unwrap();
        assert!(matches!(file.load(check), Loaded::Fresh(Some(_))));
    }
    let expected: Vec<String> = (17..=20).map(|n| format!("book.corrupt-{n}")).collect();
    assert_eq!(names(&file), expected);
}

#[test]
fn every_place_where_a_save_can_be_cut_off_loads() {
    let (dir, file) = place();
    fs::write(dir.path().join(".book.Ab12cd.tmp"), "good").unwrap();
    fs::write(dir.path().join(".other.Ab12cd.tmp"), "not ours").unwrap();
    assert_eq!(file.load(check), Loaded::Fresh(None));
    assert_eq!(names(&file), [".other.Ab12cd.tmp"]);
    // Both names on one generation: cut off between link and rename.
    file.save(b"good 1").unwrap();
    fs::hard_link(file.path(), file.previous_path()).unwrap();
    assert_eq!(file.load(check), Loaded::Current("good 1".into()));
    file.save(b"good 2").unwrap();
    assert_eq!(fs::read(file.previous_path()).unwrap(), b"good 1");
    // No links: cut off between the two renames.
    fs::rename(file.path(), file.previous_path()).unwrap();
    let Loaded::Previous(value, why) = file.load(check) else { panic!() };
    assert_eq!(value, "good 2");
    assert!(why.contains("book is missing"), "{why}");
}

#[test]
fn what_cannot_be_read_is_left_alone() {
    let (_dir, file) = place();
    file.save(b"good 1").unwrap();
    file.save(b"good 2").unwrap();
    fs::remove_file(file.path()).unwrap();
    fs::create_dir(file.path()).unwrap();
    let (value, why) = file.load(check).into_parts();
    assert_eq!(value.as_deref(), Some("good 1"));
    assert!(why.unwrap().contains("book: it is not a regular file"));
    assert_eq!(names(&file), ["book", "book.1"]);
    let nowhere = StateFile::new("/nonexistent", "book");
    assert_eq!(nowhere.load(check), Loaded::Fresh(None));
}

#[test]
fn a_huge_file_is_not_read() {
    let (_dir, file) = place();
    File::create(file.path()).unwrap().set_len(SIZE_MAX + 1).unwrap();
    let why = file.load(check).into_parts().1.unwrap();
    assert!(why.contains("more than 67108864 bytes"), "{why}");
}

#[test]
fn a_failed_save_says_what_to_do_and_changes_nothing() {
    let why = StateFile::new("/nonexistent", "book").save(b"good").unwrap_err().to_string();
    assert!(why.starts_with("cannot make a file in /nonexistent: "), "{why}");
    assert!(why.contains("StateDirectory="), "{why}");
    let (_dir, file) = place();
    file.save(b"good 1").unwrap();
    fs::create_dir(file.previous_path()).unwrap();
    let why = file.save(b"good 2").unwrap_err().to_string();
    assert!(why.starts_with("cannot keep the previous generation"), "{why}");
    assert_eq!(file.load(check), Loaded::Current("good 1".into()));
    assert_eq!(names(&file), ["book", "book.1"], "no temporary file is left");
}

#[tokio::test]
async fn a_save_that_comes_late_does_not_replace_a_newer_one() {
    let (_dir, file) = place();
    // Asked for first, and held up on its way to the disk until nobody waits for it any more.
    let late = Shelf::save(&file, b"good 1".to_vec());
    Shelf::save(&file, b"good 2".to_vec()).await.unwrap();
    late.await.unwrap();
    assert_eq!(file.load(check), Loaded::Current("good 2".to_owned()));
    Shelf::save(&file, b"good 3".to_vec()).await.unwrap();
    assert_eq!(file.load(check), Loaded::Current("good 3".to_owned()));
}
