//! The list of faults in `docs/faults.md` and the tests that are named after its rows agree.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::File;

/// A row's number, and the files and folders that its last cell names.
pub type Rows = BTreeMap<u32, Vec<String>>;

/// The rows of the list.
pub fn rows(list: &str) -> Rows {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
        let number = cells.next()?.parse().ok()?;
        let code = cells.last()?.split('`').skip(1).step_by(2);
        Some((number, code.filter(|name| name.contains('/')).map(str::to_owned).collect()))
    };
    list.lines().filter_map(row).collect()
}

/// The rows that tests in a file are named after: `fn fault_24_25_…` is of two.
pub fn numbers(text: &str) -> BTreeSet<u32> {
    let names = text.split("fn fault_").skip(1);
    names.flat_map(|name| name.split('_').map_while(|word| word.parse().ok())).collect()
}

/// What is wrong with the list, given all sources.
pub fn disagree(rows: &Rows, rust: &[&File]) -> Vec<String> {
    let mut wrong = Vec::new();
    let under = |file: &File, place: &str| {
        file.path == place || file.path.starts_with(&format!("{place}/"))
    };
    for file in rust {
        for number in numbers(&file.text) {
            let places = rows.get(&number);
            if !places.is_some_and(|places| places.iter().any(|place| under(file, place))) {
                wrong.push(format!("{}: row {number} of the list does not name it", file.path));
            }
        }
    }
    for (number, places) in rows {
        let tested = |place: &String| {
            rust.iter().any(|file| under(file, place) && numbers(&file.text).contains(number))
        };
        // A table of cases is read by a test elsewhere.
        let code = places.iter().filter(|place| !place.ends_with(".txt"));
        let (mut any, mut missing) = (false, Vec::new());
        for place in code {
            any = true;
            if !tested(place) {
                missing.push(format!("row {number}: no test in {place} is named after it"));
            }
        }
        if !any {
            missing.push(format!("row {number} names no test"));
        }
        wrong.extend(missing);
    }
    wrong
}

#[test]
fn disagreement_is_seen() {
    let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
    let rows = rows(
        "| 1 | a | b | `tests/a.rs` |\n|---|\n| 2 | a | b | by hand |\n| 3 | c | d | `tests/s`, `t/c.txt` |",
    );
    assert_eq!(rows.len(), 3);
    let (a, s) = (file("tests/a.rs", "fn fault_1_3_x() {}"), file("tests/s/m.rs", "fn fault_03_y"));
    assert_eq!(numbers(&a.text), BTreeSet::from([1, 3]));
    let wrong = disagree(&rows, &[&a, &s]);
    assert_eq!(wrong, ["tests/a.rs: row 3 of the list does not name it", "row 2 names no test"]);
    assert_eq!(disagree(&rows, &[&s])[0], "row 1: no test in tests/a.rs is named after it");
}
