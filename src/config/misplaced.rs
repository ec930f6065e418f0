//! Tables that stand where people put them by mistake.
//!
//! Purpose: one sentence that says what was meant, in place of several about what follows from it. Owner: [`super::parse`], before a
//! tree is fitted. Pure. Invariants: what is reported is cut out, so that nothing else is said of it.

use toml::de::{DeTable, DeValue};

use super::source::Report;
use super::tree::quote_key;

/// Sections of `hostler.toml`, but for `health`, which is a model's key, too (of another type).
const SECTIONS: [&str; 11] = [
    "auth", "gpu", "health", "log", "memory", "metrics", "podman", "policy", "server", "startup",
    "traces",
];

/// Models whose names have dots and no quotes: TOML takes `[models.qwen2.5-7b]` for a table `5-7b` of the model `qwen2`.
pub(super) fn dotted(settings: &mut DeTable<'_>, report: &mut Report<'_>) {
    let Some(DeValue::Table(models)) = settings.get_mut("models").map(|models| models.get_mut())
    else {
        return;
    };
    let mut meant = Vec::new();
    for (key, value) in models.iter() {
        let (name, at) = (key.get_ref().as_ref(), key.span().start);
        let rests = rests(value.get_ref());
        if rests.is_empty() {
            continue;
        }
        for rest in rests {
            let whole = format!("{name}.{rest}");
            let message = format!("a name with dots is written in quotes: [models.{whole:?}]");
            report.at(at, &format!("models.{}", quote_key(&whole)), message);
        }
        meant.push(name.to_owned());
    }
    for name in meant {
        models.remove(name.as_str());
    }
}

/// The rests of dotted names, where a table holds nothing but tables that are no keys of a model's; none else.
fn rests(value: &DeValue<'_>) -> Vec<String> {
    let DeValue::Table(table) = value else { return Vec::new() };
    let mut all = Vec::new();
    for (key, value) in table.iter() {
        let name = key.get_ref().as_ref();
        if !value.get_ref().is_table() || ["env", "defaults", "force", "weights"].contains(&name) {
            return Vec::new();
        }
        match rests(value.get_ref()) {
            deeper if deeper.is_empty() => all.push(name.to_owned()),
            deeper => all.extend(deeper.iter().map(|rest| format!("{name}.{rest}"))),
        }
    }
    all
}

/// Tables of `hostler.toml` in one model's file. Returns whether anything else is in it.
pub(super) fn sections(model: &mut DeTable<'_>, report: &mut Report<'_>) -> bool {
    let mut cut = Vec::new();
    for (key, value) in model.iter() {
        let (name, at) = (key.get_ref().as_ref(), key.span().start);
        let message = match name {
            _ if !value.get_ref().is_table() => continue,
            "models" => {
                "a file of models.d is one model: write its keys at the top, without [models.NAME], or put the table into hostler.toml"
            }
            name if SECTIONS.contains(&name) => {
                "is no part of one model's file; put it into hostler.toml or a file of hostler.toml.d"
            }
            _ => continue,
        };
        report.at(at, name, message);
        cut.push(name.to_owned());
    }
    for name in &cut {
        model.remove(name.as_str());
    }
    cut.is_empty() || !model.is_empty()
}
