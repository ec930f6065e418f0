//! What exists: options, units, targets, configuration keys, each asked of its source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use hostler::config::{self, Defaults, Source};

use super::tree::root;

/// Long options of `hostlerd`, with their dashes.
pub fn options() -> BTreeSet<String> {
    let [_, daemon] = hostler::cli::pages::commands();
    longs(&daemon).collect()
}

/// Of `hostler`: each command's long options, with their dashes; the empty name has those of all commands.
pub fn commands() -> BTreeMap<String, BTreeSet<String>> {
    let [cli, _] = hostler::cli::pages::commands();
    let mut known = BTreeMap::from([(String::new(), longs(&cli).collect::<BTreeSet<_>>())]);
    for command in cli.get_subcommands() {
        let deeper = command.get_subcommands().flat_map(longs);
        known.insert(command.get_name().to_owned(), longs(command).chain(deeper).collect());
    }
    known
}

fn longs(command: &clap::Command) -> impl Iterator<Item = String> {
    let longs = command.get_arguments().filter_map(|a| a.get_long().map(|l| format!("--{l}")));
    longs.chain(["--help".to_owned(), "--version".to_owned()])
}

/// File names below `units/`.
pub fn units() -> BTreeSet<String> {
    fn walk(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.insert(path.file_name().unwrap().to_string_lossy().into_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&root().join("units"), &mut found);
    found
}

/// Targets of the Makefile.
pub fn make_targets() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("Makefile")).unwrap();
    let target = |line: &str| {
        let (name, _) = line.split_once(':')?;
        let word = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        word.then(|| name.to_owned())
    };
    text.lines().filter_map(target).collect()
}

/// What is wrong with the configurations in a text: blocks that begin with "```toml".
pub fn configurations(path: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (at, line) in text.lines().enumerate() {
        match &mut block {
            None if line.trim() == "```toml" => block = Some((at + 1, String::new())),
            None => {}
            Some((start, toml)) if line.trim() == "```" => {
                let source = Source::settings(format!("{path}:{start}"), toml.clone());
                if let Err(errors) = config::parse(&[source], &Defaults::system()) {
                    wrong.push(errors.to_string());
                }
                block = None;
            }
            Some((_, toml)) => {
                toml.push_str(line);
                toml.push('\n');
            }
        }
    }
    wrong
}

#[test]
fn a_wrong_configuration_is_found() {
    let good = "x\n```toml\n[gpu]\nbackend = \"host\"\nbudget = \"1GiB\"\n```\ny\n";
    assert_eq!(configurations("t.md", good), Vec::<String>::new());
    let bad = good.replace("budget", "buget");
    assert_eq!(configurations("t.md", &bad).len(), 1);
}
