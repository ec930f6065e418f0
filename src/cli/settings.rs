//! `hostler.toml(5)`, made from the schema of the configuration.
//!
//! Owner: [`super::pages`]. Invariant: each key has its text once, in the schema (`hostlerd --config-schema`); nothing is said of one here.

use clap_mangen::roff::{Roff, bold, italic, roman};
use serde_json::Value;

use crate::config;

/// What is no key's.
const DESCRIPTION: &str = "The configuration of hostlerd(8): which memory there is, which models may be placed in it, who may ask for them, and \
     what happens without being asked. It is read when the daemon starts and when it is told to reload; a file that is wrong \
     changes nothing, and the error says where and what. hostler config check(1) reads it without the daemon.";
const FILES: [(&str, &str); 3] = [
    (
        "/etc/hostler/hostler.toml, /run/hostler/hostler.toml, /usr/lib/hostler/hostler.toml",
        "The first of them that is there.",
    ),
    (
        "hostler.toml.d/*.toml",
        "In the same three directories; of two with one name the first counts. By name, the later overrides single keys.",
    ),
    (
        "models.d/*.toml",
        "Likewise; each holds the keys of one model, whose name is the file's, unless it says another (name).",
    ),
];

/// The page in roff.
#[must_use]
pub(super) fn page() -> Vec<u8> {
    let schema = config::schema();
    let mut roff = Roff::new();
    let version = format!("hostler {}", env!("CARGO_PKG_VERSION"));
    roff.control("TH", ["hostler.toml", "5", "", version.as_str()]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("hostler.toml - configuration of the Hostler GPU host agent")]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(DESCRIPTION)]);
    roff.control("SH", ["FILES"]);
    for (path, text) in FILES {
        entry(&mut roff, path, text);
    }
    for (name, table) in entries(&schema) {
        tables(&mut roff, &schema, name, table);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(
        "hostlerd(8), hostler(1), hostler-config(1); hostler.toml.example in the documentation",
    )]);
    let mut text = Vec::new();
    // Writing into memory does not fail.
    let _ = roff.to_writer(&mut text);
    text
}

/// A table and its keys.
fn tables(roff: &mut Roff, schema: &Value, name: &str, table: &Value) {
    let many = table.get("additionalProperties").filter(|v| v.is_object());
    let title = if many.is_some() { format!("[{name}.NAME]") } else { format!("[{name}]") };
    roff.control("SH", [title.as_str()]);
    paragraphs(roff, table);
    for (key, value) in entries(resolve(schema, many.unwrap_or(table))) {
        entry(roff, key, said(value));
        let target = resolve(schema, value);
        if let Some(words) = target.get("oneOf").and_then(Value::as_array) {
            roff.control("RS", []);
            for word in words.iter().filter_map(|w| Some((w.get("const")?.as_str()?, said(w)))) {
                entry(roff, &format!("\"{}\"", word.0), word.1);
            }
            roff.control("RE", []);
        } else if target.get("properties").is_some() {
            roff.control("RS", []);
            for (key, value) in entries(target) {
                entry(roff, key, said(value));
            }
            roff.control("RE", []);
        }
    }
}

/// The properties of an object, by name.
fn entries(object: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let properties = object.get("properties").and_then(Value::as_object);
    properties.into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

/// What a reference is to.
fn resolve<'v>(schema: &'v Value, value: &'v Value) -> &'v Value {
    let name = value.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/"));
    name.and_then(|name| schema.get("$defs")?.get(name)).unwrap_or(value)
}

fn said(value: &Value) -> &str {
    value.get("description").and_then(Value::as_str).unwrap_or_default()
}

fn entry(roff: &mut Roff, key: &str, text: &str) {
    roff.control("TP", []);
    roff.text([bold(key)]);
    let text = text.replace('\n', " ");
    roff.text([if text.is_empty() { italic("see above") } else { roman(text) }]);
}

fn paragraphs(roff: &mut Roff, value: &Value) {
    for paragraph in said(value).split("\n\n").filter(|p| !p.is_empty()) {
        roff.control("PP", []);
        roff.text([roman(paragraph.replace('\n', " "))]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key, with its table.
    fn keys(schema: &Value) -> Vec<(String, String)> {
        let mut keys = Vec::new();
        for (name, table) in entries(schema) {
            let many = table.get("additionalProperties").filter(|v| v.is_object());
            for (key, value) in entries(resolve(schema, many.unwrap_or(table))) {
                assert!(said(value).len() > 5, "{name}.{key} says nothing of itself");
                keys.push((name.to_owned(), key.to_owned()));
            }
        }
        keys
    }

    #[test]
    fn every_key_is_on_the_page_and_in_the_example() {
        let schema = config::schema();
        let text = String::from_utf8(page()).unwrap();
        let example = include_str!("../../docs/hostler.toml.example");
        let keys = keys(&schema);
        assert!(keys.len() > 50, "{keys:?}");
        let mut missing = Vec::new();
        for (table, key) in keys {
            let escaped = key.replace('-', "\\-");
            if !text.contains(&format!("\\fB{escaped}\\fR")) {
                missing.push(format!("{table}.{key} on the page"));
            }
            // At the start of a line, or, where a line of its own would not be valid, within a comment.
            let written = |line: &str| {
                let own = line.trim_start_matches(['#', ' ']).strip_prefix(&key);
                own.is_some_and(|rest| rest.trim_start().starts_with('='))
                    || line.contains(&format!(" {key} = "))
            };
            if !example.lines().any(written) {
                missing.push(format!("{table}.{key} in docs/hostler.toml.example"));
            }
        }
        assert!(missing.is_empty(), "{missing:#?}");
        assert!(!text.contains("see above"), "a key without a text");
    }
}
