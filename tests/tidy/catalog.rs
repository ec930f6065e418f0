//! The journal's catalogue: every kind of line is in it, and what is made from it is up to date.

use std::collections::BTreeSet;
use std::fs;

use hostler::observe::catalog::{ALL, Message, file};

use super::tree::{files, root, shipped};

/// Words after a mark, up to the next quote.
fn words<'t>(text: &'t str, mark: &'t str) -> impl Iterator<Item = &'t str> {
    text.split(mark).skip(1).filter_map(|rest| rest.split('"').next())
}

#[test]
fn each_kind_is_in_it_and_nothing_else() {
    let mut used = BTreeSet::new();
    let all = files();
    for file in all.iter().filter(|f| f.path.starts_with("src/") && f.path.ends_with(".rs")) {
        for (_, code) in shipped(&file.text) {
            if file.path == "src/supervisor/notice.rs" {
                used.extend(words(code, "Self::of(\"").chain(words(code, "Self::new(\"")));
            }
            used.extend(words(code, "kind = \""));
        }
    }
    let listed: BTreeSet<&str> = ALL.iter().map(|message| message.kind).collect();
    assert_eq!(used, listed);
}

#[test]
fn what_is_made_from_it_is_up_to_date() {
    let catalog = root().join("units/catalog/hostler.catalog");
    let docs = root().join("docs/journal.md");
    let text = fs::read_to_string(&docs).unwrap();
    let begin = "<!-- made from src/observe/catalog.rs: UPDATE=1 cargo test --test tidy -->\n";
    let (before, rest) = text.split_once(begin).unwrap();
    let (_, after) = rest.split_once("<!-- end -->\n").unwrap();
    let mut table = String::from("| Kind | `MESSAGE_ID` | What it means |\n|---|---|---|\n");
    for Message { kind, id, subject, text } in ALL {
        table += &format!("| `{kind}` | `{id}` | {subject}. {text} |\n");
    }
    let want = format!("{before}{begin}{table}<!-- end -->\n{after}");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&catalog, file()).unwrap();
        fs::write(&docs, want).unwrap();
        return;
    }
    assert!(text == want, "docs/journal.md is old: UPDATE=1 cargo test --test tidy");
    let there = fs::read_to_string(&catalog).unwrap();
    assert!(there == file(), "{} is old: UPDATE=1 cargo test --test tidy", catalog.display());
}
