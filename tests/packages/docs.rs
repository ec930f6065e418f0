//! What a package says of itself: its documents are where units and links look for them.

use std::path::{Path, PathBuf};
use std::process::Command;

use testhost::Format;

use super::{output, shared};

/// What the source tree alone has, and Debian under names of its own.
const ELSEWHERE: [&str; 5] =
    ["CONTRIBUTING.md", "tests/host/README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"];

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// The targets of a text's links that are files of the same tree.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    let all = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    all.map(|(target, _)| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains(':') && !target.contains(' '))
}

#[test]
fn what_an_installed_text_links_to_and_a_unit_names_is_installed() {
    let dir = tempfile::tempdir().unwrap();
    output(Command::new("dpkg-deb").arg("--extract").arg(shared(Format::Deb)).arg(dir.path()));
    let mut all = Vec::new();
    files(dir.path(), &mut all);
    let (mut links, mut documents) = (0, 0);
    for path in all {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if path.extension().is_some_and(|e| e == "md") {
            for target in targets(&text).filter(|target| !ELSEWHERE.contains(target)) {
                links += 1;
                let there = path.parent().unwrap().join(target);
                assert!(there.exists(), "{} links to {target}", path.display());
            }
        }
        for line in text.lines().filter_map(|line| line.strip_prefix("Documentation=")) {
            for file in line.split(' ').filter_map(|uri| uri.strip_prefix("file:/")) {
                documents += 1;
                assert!(dir.path().join(file).exists(), "{} names /{file}", path.display());
            }
        }
    }
    assert!(links > 50 && documents > 10, "{links} links and {documents} documents were found");
}
