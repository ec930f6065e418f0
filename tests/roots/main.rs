//! Configurations as folders: `cases/NAME/root/` is a file system, `cases/NAME/expected` what is made of it.
//!
//! A case is added by making its root and running `UPDATE=1 cargo test --test roots`, then reading what was written.
//! Paths in errors are those seen from the root, so that nothing depends on where the tree lies. A case with a file
//! `user` is read in user mode, with that file's line as `$XDG_CONFIG_HOME`.
#![expect(clippy::unwrap_used, reason = "a panic is how a test reports its failure")]

mod import;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use hostler::config::{self, Defaults, Dirs, Source};

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/roots/cases")
}

fn outcome(case: &Path) -> String {
    let (dirs, defaults) = match fs::read_to_string(case.join("user")) {
        Ok(home) => {
            (Dirs::user(Path::new(home.trim())), Defaults::user(Path::new("/run/user/1000")))
        }
        Err(_) => (Dirs::system(), Defaults::system()),
    };
    let root = case.join("root");
    let loaded = config::load(&root, &dirs, &defaults)
        .and_then(|mut config| config::load_keys(&root, None, &mut config).map(|()| config));
    match loaded {
        Ok(config) => format!("{config:#?}\n"),
        Err(errors) => format!("{errors}\n"),
    }
}

#[test]
fn every_case_gives_what_is_expected() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut names: Vec<_> =
        fs::read_dir(cases()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert!(names.len() >= 25, "only {} cases were found", names.len());
    let mut report = String::new();
    for name in names {
        let case = cases().join(&name);
        let found = outcome(&case);
        let expected = case.join("expected");
        if update {
            fs::write(&expected, &found).unwrap();
        }
        let wanted = fs::read_to_string(&expected).unwrap_or_default();
        if found != wanted {
            write!(report, "--- {}\n{}", expected.display(), diff(&wanted, &found)).unwrap();
        }
    }
    assert!(
        report.is_empty(),
        "\n{report}\nIf the new outcome is right: UPDATE=1 cargo test --test roots"
    );
}

/// Lines that only one side has; plain, but enough to see what moved.
fn diff(wanted: &str, found: &str) -> String {
    let (left, right): (BTreeSet<_>, BTreeSet<_>) =
        (wanted.lines().collect(), found.lines().collect());
    let mut text = String::new();
    for line in wanted.lines().filter(|l| !right.contains(l)) {
        writeln!(text, "-{line}").unwrap();
    }
    for line in found.lines().filter(|l| !left.contains(l)) {
        writeln!(text, "+{line}").unwrap();
    }
    if text.is_empty() { "the order of lines differs\n".to_owned() } else { text }
}

fn example() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hostler.toml.example");
    fs::read_to_string(path).unwrap()
}

#[test]
fn the_example_is_a_configuration() {
    let source = Source::settings("docs/hostler.toml.example", example());
    let config = config::parse(&[source], &Defaults::system()).unwrap_or_else(|e| panic!("{e}"));
    assert!(!config.models.is_empty());
}

/// `#key = value` and `#[table]`, without a blank after `#`, are settings; all else that begins with `#` is prose.
fn uncommented(text: &str) -> String {
    let setting = |line: &str| -> Option<String> {
        let rest = line.strip_prefix('#')?;
        rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '[').then(|| rest.to_owned())
    };
    text.lines().map(|line| setting(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn the_example_with_all_it_shows_is_a_configuration() {
    let text = uncommented(&example());
    let source = Source::settings("docs/hostler.toml.example (uncommented)", text);
    let config = config::parse(&[source], &Defaults::system()).unwrap_or_else(|e| panic!("{e}"));
    // What it shows commented out in the sections are the defaults, so these sections do not change.
    let plain = Source::settings("docs/hostler.toml.example", example());
    let plain = config::parse(&[plain], &Defaults::system()).unwrap();
    assert_eq!(config.server, plain.server);
    assert_eq!(config.memory, plain.memory);
    assert_eq!(config.podman, plain.podman);
    assert_eq!(config.policy, plain.policy);
    assert_eq!(config.startup, plain.startup);
}

#[test]
fn the_example_names_every_key() {
    let schema = config::schema();
    let text = example();
    let mut missing = Vec::new();
    let tables = schema["$defs"].as_object().unwrap();
    for (table, definition) in tables {
        for key in definition["properties"].as_object().into_iter().flatten().map(|(key, _)| key) {
            let written = text.lines().any(|line| {
                let line = line.trim_start_matches(['#', ' ']);
                line.starts_with(&format!("{key} = "))
                    || line.contains(&format!("{{ {key} = "))
                    || line.contains(&format!(", {key} = "))
            });
            if !written {
                missing.push(format!("{table}.{key}"));
            }
        }
    }
    // `name` belongs to files of models.d, where the example says it in prose.
    missing.retain(|key| !(key == "RawModel.name" && text.contains("name = \"org/model\"")));
    assert!(missing.is_empty(), "docs/hostler.toml.example lacks {missing:?}");
    for section in schema["properties"].as_object().unwrap().keys() {
        assert!(
            text.contains(&format!("[{section}")),
            "docs/hostler.toml.example lacks [{section}]"
        );
    }
}
