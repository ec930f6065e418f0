//! The pages for operators and what they are about agree: `docs/troubleshoot.md` has all that can be told, `docs/configure.md` every
//! key with an example.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use hostler::checks::Exit;
use hostler::config;
use hostler::control::error::Code;
use hostler::observe::catalog::{ALL, Message};
use serde_json::Value;

use super::tree::{files, root, shipped};

/// `## Title` and what stands below it.
fn chapter<'t>(text: &'t str, title: &str) -> &'t str {
    let start = text.split(&format!("\n## {title}\n")).nth(1);
    start.unwrap_or_else(|| panic!("no chapter {title:?}")).split("\n## ").next().unwrap()
}

/// The sections of a chapter, by the word in their heading: ### `word`.
fn sections(chapter: &str) -> BTreeMap<&str, &str> {
    let section = |part| -> Option<(&str, &str)> {
        let (heading, body) = str::split_once(part, '\n')?;
        Some((heading.trim_matches('`'), body))
    };
    let parts = chapter.split("\n### ").skip(1);
    let found: Vec<_> = parts.filter_map(section).collect();
    let count = found.len();
    let found: BTreeMap<_, _> = found.into_iter().collect();
    assert_eq!(found.len(), count, "a heading is there twice");
    found
}

/// The first words in backquotes of a chapter's rows.
fn rows(chapter: &str) -> BTreeSet<&str> {
    let cells = chapter.lines().filter_map(|line| line.strip_prefix("| "));
    cells.filter_map(|cell| cell.split('|').next()?.split('`').nth(1)).collect()
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// Words after a mark in the sources of a folder, up to the next quote.
fn told<'t>(texts: &'t [super::File], folder: &str, mark: &str) -> BTreeSet<&'t str> {
    let mut found = BTreeSet::new();
    for file in texts.iter().filter(|f| f.path.starts_with(folder) && f.path.ends_with(".rs")) {
        let words = shipped(&file.text).flat_map(|(_, code)| code.split(mark).skip(1));
        found.extend(words.filter_map(|rest| rest.split('"').next()));
    }
    found
}

#[test]
fn each_kind_of_line_has_its_section() {
    let path = root().join("docs/troubleshoot.md");
    let mut text = fs::read_to_string(&path).unwrap();
    let means = |m: &Message| format!("`MESSAGE_ID={}`. {}. {}", m.id, m.subject, m.text);
    if std::env::var_os("UPDATE").is_some() {
        for message in ALL {
            let heading = format!("\n### `{}`\n\n", message.kind);
            let Some((before, after)) = text.split_once(&heading) else { continue };
            let rest = after.split_once('\n').map_or("", |(_, rest)| rest);
            text = format!("{before}{heading}{}\n{rest}", means(message));
        }
        fs::write(&path, &text).unwrap();
    }
    let sections = sections(chapter(&text, "Lines of the journal"));
    let kinds: BTreeSet<&str> = ALL.iter().map(|m| m.kind).collect();
    assert_eq!(sections.keys().copied().collect::<BTreeSet<_>>(), kinds);
    for message in ALL {
        let body = sections[message.kind];
        let said = body.lines().any(|line| line == means(message));
        assert!(
            said,
            "{} is not as in the catalogue: UPDATE=1 cargo test --test tidy",
            message.kind
        );
        for word in ["* Look: ", "* Do: "] {
            let line = body.lines().find(|line| line.starts_with(word));
            assert!(
                line.is_some_and(|l| l.len() > word.len() + 5),
                "{}: no {word:?}",
                message.kind
            );
        }
    }
    let ids = text.split("MESSAGE_ID=").skip(1).map(|rest| rest.get(..32).unwrap_or_default());
    for id in ids.filter(|id| id.bytes().all(|b| b.is_ascii_hexdigit())) {
        assert!(ALL.iter().any(|m| m.id == id), "{id} is gone");
    }
}

#[test]
fn each_problem_has_its_section() {
    let all = files();
    let mut codes = told(&all, "src/supervisor", "self.note(\"");
    codes.extend(told(&all, "src/daemon", "const CODE: &str = \""));
    codes.extend(told(&all, "src/daemon", ".problem(\""));
    codes.extend(told(&all, "src/control", ".problem(\""));
    assert!(codes.len() > 10 && codes.contains("gpu_unreadable"), "{codes:?}");
    let page = page("troubleshoot.md");
    let sections = sections(chapter(&page, "Problems"));
    assert_eq!(sections.keys().copied().collect::<BTreeSet<_>>(), codes);
    assert!(sections.values().all(|body| body.len() > 40), "{sections:?}");
}

#[test]
fn each_fault_and_each_exit_status_has_its_row() {
    let all = files();
    let page = page("troubleshoot.md");
    let faults = told(&all, "src/types/fault.rs", "=> \"");
    assert!(faults.len() > 15, "{faults:?}");
    assert_eq!(rows(chapter(&page, "Why a model failed")), faults);
    let chapter = chapter(&page, "The daemon does not start");
    for exit in Exit::ALL.iter().filter(|exit| **exit != Exit::Ok) {
        let row = format!("\n| {} `{exit}` |", *exit as u8);
        assert!(chapter.contains(&row), "no row {row:?}");
    }
    assert_eq!(rows(chapter).len(), Exit::ALL.len() - 1);
}

#[test]
fn each_error_of_the_bus_has_its_row() {
    let page = page("cli.md");
    let chapter = chapter(&page, "Errors on D-Bus");
    let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
    assert_eq!(rows(chapter), names);
    let lines: Vec<&str> = chapter.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(lines.len(), Code::ALL.len(), "a name is there twice");
    let known: Vec<String> =
        hostler::cli::Exit::ALL.iter().map(|e| (*e as u8).to_string()).collect();
    for line in lines {
        let status = line.trim_end_matches(" |").rsplit(' ').next().unwrap_or_default();
        assert!(known.iter().any(|known| known == status), "no exit status: {line}");
    }
}

/// What the example says of a key: its line, without the mark of a comment. `in_file`: keys of one model.
fn example<'e>(lines: &[(String, &'e str)], table: &str, key: &str) -> Option<&'e str> {
    let line = lines.iter().find(|(there, line)| {
        there == table && line.strip_prefix(key).is_some_and(|rest| rest.starts_with(" = "))
    });
    line.map(|(_, line)| *line)
}

/// Each setting of the example, shown or commented out, with its table.
fn settings(text: &str) -> Vec<(String, &str)> {
    let mut table = String::new();
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.split(['.', ']']).next()) {
            name.clone_into(&mut table);
        }
        let line = line.trim_start_matches('#').trim_start();
        let key = line.split(" = ").next().unwrap_or_default();
        if line.contains(" = ") && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            // A part of a comment is no setting.
            if line.parse::<toml::Table>().is_ok() {
                found.push((table.clone(), line));
            }
        }
    }
    found
}

fn resolve<'v>(schema: &'v Value, value: &'v Value) -> &'v Value {
    let name = value["$ref"].as_str().and_then(|r| r.strip_prefix("#/$defs/"));
    name.map_or(value, |name| &schema["$defs"][name])
}

/// The reference: each key of the schema with the example's line and the schema's words.
fn reference(example_text: &str) -> String {
    let (schema, lines) = (config::schema(), settings(example_text));
    let (mut text, mut missing) = (String::new(), Vec::new());
    for (name, table) in schema["properties"].as_object().unwrap() {
        let many = table.get("additionalProperties").filter(|v| v.is_object());
        let title = if many.is_some() { format!("{name}.NAME") } else { name.clone() };
        text += &format!("### `[{title}]`\n\n| Key, by example | What |\n|---|---|\n");
        for (key, value) in
            resolve(&schema, many.unwrap_or(table))["properties"].as_object().unwrap()
        {
            let said =
                value["description"].as_str().unwrap().replace('\n', " ").replace('|', "\\|");
            let line = match (name.as_str(), key.as_str()) {
                // Of files in models.d alone.
                ("models", "name") => Some("name = \"org/model\""),
                _ => example(&lines, name, key),
            };
            match line {
                Some(line) => text += &format!("| `{line}` | {said} |\n"),
                None => missing.push(format!("{name}.{key}")),
            }
        }
        text.push('\n');
    }
    assert!(missing.is_empty(), "docs/hostler.toml.example has no example of {missing:?}");
    text
}

#[test]
fn every_key_has_its_example() {
    let path = root().join("docs/configure.md");
    let text = fs::read_to_string(&path).unwrap();
    let begin = "<!-- made from the schema and docs/hostler.toml.example: UPDATE=1 cargo test --test tidy -->\n\n";
    let (before, rest) = text.split_once(begin).unwrap();
    let (_, after) = rest.split_once("<!-- end -->\n").unwrap();
    let example = page("hostler.toml.example");
    let want = format!("{before}{begin}{}<!-- end -->\n{after}", reference(&example));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, want).unwrap();
        return;
    }
    assert!(text == want, "docs/configure.md is old: UPDATE=1 cargo test --test tidy");
}
