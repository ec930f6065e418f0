//! The tree's own rules, run as tests.
//!
//! Each rule is a function from text to what is wrong with it (`rules`), tried on a good and a bad example beside it, and
//! run here over the whole tree. Limits only go down: a file that has shrunk below its ceiling lowers it.
#![expect(clippy::unwrap_used, reason = "a panic is how a test reports its failure")]

mod catalog;
mod commands;
mod errors;
mod faults;
mod links;
mod manual;
mod names;
mod proxies;
mod rules;
mod specification;
mod tree;

use std::collections::BTreeMap;

use tree::{File, files, root};

/// Files that are longer than [`rules::LINES_MAX`], with their present length; the list only gets shorter.
const LONG: &[(&str, usize)] = &[
    ("tests/fake-engine/src/knobs.rs", 512),
    ("tests/fake-engine/src/state.rs", 482),
    ("tests/fake-engine/tests/wire.rs", 486),
    ("tests/nvml-stub/src/abi.rs", 445),
    ("tests/nvml-stub/src/claims.rs", 408),
    ("tests/nvml-stub/tests/through_the_real_client.rs", 449),
];

/// Runs a rule over files and fails with everything it found.
fn hold(files: &[&File], rule: impl Fn(&File) -> Vec<String>) {
    assert!(!files.is_empty(), "the rule was given no file");
    let found: Vec<String> = files.iter().flat_map(|f| rule(f)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

fn rust(all: &[File]) -> Vec<&File> {
    all.iter().filter(|f| f.path.ends_with(".rs")).collect()
}

/// What an administrator or a developer reads or runs.
fn prose(all: &[File]) -> Vec<&File> {
    let read = |f: &&File| {
        f.path.ends_with(".md")
            || ["units/", "packaging/", "contrib/", "docs/"].iter().any(|d| f.path.starts_with(d))
            || f.path == "Makefile"
    };
    all.iter().filter(read).collect()
}

#[test]
fn layers_point_downwards() {
    let all = files();
    let src: Vec<&File> = rust(&all).into_iter().filter(|f| f.path.starts_with("src/")).collect();
    assert!(src.len() > 80, "only {} sources were found", src.len());
    hold(&src, |f| rules::layers(&f.path, &f.text));
}

#[test]
fn pure_layers_touch_nothing() {
    let all = files();
    let pure: Vec<&File> = all.iter().filter(|f| rules::is_pure(&f.path)).collect();
    for layer in ["src/types/", "src/plan/", "src/config/", "src/supervisor/"] {
        let count = pure.iter().filter(|f| f.path.starts_with(layer)).count();
        assert!(count >= 4, "only {count} pure files in {layer}");
    }
    hold(&pure, |f| rules::purity(&f.path, &f.text));
}

#[test]
fn files_are_short() {
    let all = files();
    hold(&rust(&all), |f| rules::length(f, LONG));
    let gone: Vec<_> = LONG.iter().filter(|(p, _)| !root().join(p).exists()).collect();
    assert!(gone.is_empty(), "these are gone; drop them from LONG: {gone:?}");
}

#[test]
fn modules_say_what_they_are_for() {
    let all = files();
    hold(&rust(&all), |f| rules::opening(&f.path, &f.text));
}

#[test]
fn skipped_tests_say_why() {
    let all = files();
    hold(&rust(&all), |f| rules::ignored(&f.path, &f.text));
}

#[test]
fn each_fault_of_the_list_has_its_tests() {
    let all = files();
    let list = all.iter().find(|f| f.path == "docs/faults.md").unwrap();
    let rows = faults::rows(&list.text);
    assert!(rows.keys().copied().eq(1..=32), "{rows:?}");
    let tests: Vec<&File> =
        rust(&all).into_iter().filter(|f| !f.path.starts_with("tests/tidy/")).collect();
    let wrong = faults::disagree(&rows, &tests);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn nothing_names_a_machine_or_a_registry_host() {
    let all = files();
    let every: Vec<&File> = all.iter().filter(|f| f.path != "Cargo.lock").collect();
    hold(&every, |f| rules::words(&f.path, &f.text));
}

#[test]
fn texts_name_only_options_that_exist() {
    let all = files();
    let known = names::options();
    assert!(known.contains("--config-schema"), "{known:?}");
    hold(&prose(&all), |f| rules::options(&f.path, &f.text, &known));
}

#[test]
fn texts_name_only_commands_that_exist() {
    let all = files();
    let known = names::commands();
    assert!(known["load"].contains("--pin"), "{known:?}");
    hold(&prose(&all), |f| commands::commands(&f.path, &f.text, &known));
}

#[test]
fn no_terminal_is_asked_of_another_manager() {
    let all = files();
    let mut texts = prose(&all);
    texts.extend(all.iter().filter(|f| f.path.starts_with("src/")));
    hold(&texts, |f| commands::terminals(&f.path, &f.text));
}

#[test]
fn texts_name_only_units_that_exist() {
    let all = files();
    let known = names::units();
    assert!(known.contains("hostler.socket"), "{known:?}");
    let mut texts = prose(&all);
    texts.retain(|f| f.path != "CHANGELOG.md");
    hold(&texts, |f| rules::units(&f.path, &f.text, &known));
}

#[test]
fn texts_name_only_make_targets_that_exist() {
    let all = files();
    let known = names::make_targets();
    assert!(known.contains("demo-stop"), "{known:?}");
    hold(&prose(&all), |f| rules::make(&f.path, &f.text, &known));
}

#[test]
fn files_that_texts_name_exist() {
    let all = files();
    let markdown: Vec<&File> = all.iter().filter(|f| f.path.ends_with(".md")).collect();
    hold(&markdown, |f| rules::paths(&f.path, &f.text, &|p| root().join(p).exists()));
}

#[test]
fn links_lead_somewhere() {
    let all = files();
    let markdown: Vec<&File> = all.iter().filter(|f| f.path.ends_with(".md")).collect();
    let texts = markdown.iter().map(|f| (f.path.as_str(), f.text.as_str())).collect();
    hold(&markdown, |f| links::broken(f, &texts, &|p| root().join(p).exists()));
}

#[test]
fn each_document_can_be_reached_from_the_readme() {
    let all = files();
    let markdown = all.iter().filter(|f| f.path.ends_with(".md"));
    let texts: BTreeMap<&str, &str> =
        markdown.map(|f| (f.path.as_str(), f.text.as_str())).collect();
    assert!(texts.contains_key("README.md") && texts.len() > 10);
    let lost = links::unreachable("README.md", &texts);
    assert!(lost.is_empty(), "no link leads to {lost:?}");
}

#[test]
fn configurations_in_texts_are_valid() {
    let all = files();
    let markdown: Vec<&File> = all.iter().filter(|f| f.path.ends_with(".md")).collect();
    hold(&markdown, |f| names::configurations(&f.path, &f.text));
}
