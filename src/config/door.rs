//! What a model's configuration says to the front door.
//!
//! Owner: [`super::model`]. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};
use toml::Spanned;

use crate::types::{DoorSpec, ModelName};

use super::check;
use super::model::Entry;
use super::source::Report;

/// Parameters that are no one's to set but the client's: they decide about the route and the protocol.
const CLIENTS: [&str; 7] =
    ["model", "stream", "messages", "prompt", "input", "stream_options", "previous_response_id"];

/// Whether a parameter is the client's alone to set, so that `defaults` and `force` may not.
#[must_use]
pub fn is_clients(parameter: &str) -> bool {
    CLIENTS.contains(&parameter)
}

pub(super) fn door(report: &mut Report<'_>, entry: &Entry) -> DoorSpec {
    let raw = &entry.raw;
    let limit_key = entry.key("max_concurrent");
    let max_concurrent = check::count(report, &limit_key, raw.max_concurrent.as_ref(), 65_536);
    let defaults = parameters(report, entry, "defaults", raw.defaults.as_ref());
    let force = parameters(report, entry, "force", raw.force.as_ref());
    let served_name = raw.served_name.as_ref().and_then(|value| {
        let text = value.get_ref();
        let ok = (1..=256).contains(&text.len()) && !text.chars().any(char::is_control);
        if !ok {
            let message = "must be 1 to 256 bytes without control characters: the name that the engine knows the model by";
            report.at(value.span().start, &entry.key("served_name"), message);
        }
        ok.then(|| text.clone())
    });
    DoorSpec {
        feedback: raw.loading_feedback.unwrap_or_default(),
        max_concurrent,
        defaults,
        force,
        served_name,
    }
}

/// vLLM answers to the names that it is told (the model's and its aliases, and those of `--lora-modules`) and to no other.
pub(super) fn served(
    report: &mut Report<'_>,
    entry: &Entry,
    name: Option<&ModelName>,
    aliases: &[ModelName],
    args: &[String],
) {
    let Some(value) = &entry.raw.served_name else { return };
    let served = value.get_ref().as_str();
    let is_told = name.into_iter().chain(aliases).any(|name| name.as_str() == served);
    let others = entry.raw.env.iter().flatten().any(|(name, _)| name.get_ref().contains("LORA"));
    let others =
        others || args.iter().any(|arg| arg.replace('_', "-").starts_with("--enable-lora"));
    let of_modules = |arg: &&String| !arg.replace('_', "-").starts_with("--lora-modules");
    if is_told || others || args.iter().skip_while(of_modules).any(|arg| arg.contains(served)) {
        return;
    }
    let message = format!(
        "vLLM would not know {served:?}: it is told the model's name and its aliases; remove this, or make it one of aliases"
    );
    report.at(value.span().start, &entry.key("served_name"), message);
}

fn parameters(
    report: &mut Report<'_>,
    entry: &Entry,
    key: &str,
    raw: Option<&BTreeMap<Spanned<String>, Spanned<toml::Value>>>,
) -> Map<String, Value> {
    let (mut good, key) = (Map::new(), &entry.key(key));
    for (name, value) in raw.into_iter().flatten() {
        let text = name.get_ref();
        if is_clients(text) {
            let message = format!("{text:?} is the client's to say; remove it here");
            report.at(name.span().start, key, message);
            continue;
        }
        match json(value.get_ref()) {
            // Clients are refused it, too.
            Some(Value::Bool(true)) if text == "background" && !entry.is_external() => {
                let message = "\"background\" must not be true: work that no request waits for would keep no model loaded; remove it here";
                report.at(value.span().start, key, message);
            }
            Some(value) => drop(good.insert(text.clone(), value)),
            None => {
                let message =
                    format!("{text:?} cannot be written in JSON: no dates, no inf, no nan");
                report.at(value.span().start, key, message);
            }
        }
    }
    good
}

fn json(value: &toml::Value) -> Option<Value> {
    Some(match value {
        toml::Value::String(text) => Value::from(text.as_str()),
        toml::Value::Integer(number) => Value::from(*number),
        toml::Value::Float(number) => Value::Number(Number::from_f64(*number)?),
        toml::Value::Boolean(flag) => Value::from(*flag),
        toml::Value::Datetime(_) => return None,
        toml::Value::Array(list) => Value::Array(list.iter().map(json).collect::<Option<_>>()?),
        toml::Value::Table(table) => {
            let entry = |(key, value): (&String, _)| Some((key.clone(), json(value)?));
            Value::Object(table.iter().map(entry).collect::<Option<_>>()?)
        }
    })
}
