//! `hostler show MODEL`: all about one model.

use clap::Args;

use super::document::{Document, Model, Named};
use super::exit::Outcome;
use super::output::{NONE, Output, Tone, span};
use super::status::bytes;
use super::{Context, elsewhere};

/// Shows all about one model.
#[derive(Debug, Args)]
pub struct Show {
    /// Its name, or an alias.
    pub model: String,
}

/// The status's row about a model, as the daemon wrote it. `list`: "models" or "externals".
pub fn row(status: &str, list: &str, name: &str) -> serde_json::Value {
    let mut whole: serde_json::Value = serde_json::from_str(status).unwrap_or_default();
    let rows = whole[list].as_array_mut().map(std::mem::take).unwrap_or_default();
    rows.into_iter().find(|row| row["name"] == name).unwrap_or_default()
}

impl Show {
    pub async fn run(self, context: &Context) -> Outcome {
        let (text, document) = context.bus().await?.status().await?;
        let named = document.named(&self.model);
        let named = named.ok_or_else(|| elsewhere::absent(&document, &self.model))?;
        if context.out.json {
            return context.out.document(&match named {
                Named::Here(model) => row(&text, "models", &model.name),
                Named::Elsewhere(external) => row(&text, "externals", &external.name),
            });
        }
        context.out.text(&match named {
            Named::Here(model) => render(&document, model, &context.out),
            Named::Elsewhere(e) => aligned(&elsewhere::lines(&document, e, &context.out)),
        })
    }
}

fn render(document: &Document, model: &Model, out: &Output) -> String {
    let dash = || NONE.to_owned();
    let mut lines: Vec<(&str, String)> = vec![
        ("Model", model.name.clone()),
        ("Phase", out.paint(&model.phase, Tone::of_phase(&model.phase))),
        ("Pinned", if model.pinned { "yes" } else { "no" }.to_owned()),
        ("Engine", model.engine.clone()),
    ];
    if !model.image.is_empty() {
        // What a name with a moving tag stands for.
        let id = model.image_id.as_deref().map(|id| short(id.trim_start_matches("sha256:")));
        let id = id.map(|id| format!(" ({id})")).unwrap_or_default();
        lines.push(("Image", format!("{}{id}", model.image)));
    }
    if let Some(tokens) = model.context {
        lines.push(("Context", format!("{tokens} tokens")));
    }
    if !model.aliases.is_empty() {
        lines.push(("Aliases", model.aliases.join(", ")));
    }
    lines.push(("Container", model.instance.clone().unwrap_or_else(dash)));
    if let Some(id) = &model.container {
        lines.push(("Container ID", short(id)));
    }
    let devices = if model.gpus.is_empty() { dash() } else { model.gpus.join(", ") };
    lines.push(("Devices", devices));
    let need = model.planned.as_ref();
    // While it sleeps the rest is promised to others.
    let when = if model.phase == "asleep" { ", when it wakes" } else { "" };
    let need = need.map(|n| format!("{} on each device ({}){when}", n.bytes, n.source));
    lines.push(("Promised", need.unwrap_or_else(dash)));
    lines.push(("Holds", bytes(model.observed)));
    let measured = model.footprint.as_ref().map(|f| {
        format!("{}, peak {}, {} samples, confidence {}", f.bytes, f.peak, f.samples, f.confidence)
    });
    lines.push(("Measured", measured.unwrap_or_else(dash)));
    let requests = format!("{} running, {} waiting", model.in_flight, model.queued);
    lines.push(("Requests", requests));
    let ago = |at| span(document.now.saturating_sub(at)) + " ago";
    lines.push(("Last used", model.last_used.map_or_else(dash, ago)));
    lines.push(("Idle timeout", model.idle_timeout.map_or_else(|| "never".to_owned(), span)));
    let load = model.load_ms.map(std::time::Duration::from_millis);
    lines.push(("Last load took", load.map_or_else(dash, span)));
    lines.push(("Failures", model.restarts.to_string()));
    if let Some(sleep) = &model.sleep {
        if let Some(level) = sleep.level {
            lines.push((
                "Asleep",
                format!("level {level}, {} of the host's memory", sleep.host_ram),
            ));
        }
        lines.push(("Sleeps", format!("{}, {} failed", sleep.sleeps, sleep.sleep_failures)));
        let (failed, otherwise) = (sleep.wake_failures, sleep.canary_failures);
        let wakes = format!(
            "{}, {failed} failed, {otherwise} of them answered otherwise or not at all",
            sleep.wakes
        );
        lines.push(("Wakes", wakes));
    }
    if let Some(pulled) = model.pulled() {
        lines.push(("Pulled", format!("{pulled} of its image")));
    }
    if let Some(why) = &model.waiting_for {
        lines.push(("Waits for", why.clone()));
    }
    if let Some(fault) = &model.error {
        lines.push(("Last error", format!("{} ({})", fault.message, fault.code)));
    }
    let width = width(&lines);
    let mut text = aligned(&lines);
    let tail = model.error.iter().flat_map(|fault| &fault.log_tail);
    for line in tail {
        text += &format!("{:width$}  | {line}\n", "");
    }
    if model.error.as_ref().is_some_and(|fault| fault.log_withheld) {
        text += &format!("{:width$}  ({WITHHELD})\n", "");
    }
    text
}

/// An ID of podman's, as podman shows it.
fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// Of an engine's last lines that the daemon does not show to whoever runs this.
pub const WITHHELD: &str =
    "what its engine wrote last is for root and for members of hostler-admin";

/// Of the longest key.
fn width(lines: &[(&str, String)]) -> usize {
    lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0)
}

/// Keys and values, one pair a line.
fn aligned(lines: &[(&str, String)]) -> String {
    let width = width(lines);
    lines.iter().map(|(key, value)| format!("{key:>width$}: {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::document::tests::example;
    use crate::cli::output::tests::PIPE;

    #[test]
    fn as_expected() {
        let document = example();
        let mut texts: Vec<String> =
            document.models.iter().map(|m| render(&document, m, &PIPE)).collect();
        let externals = document.externals.iter();
        texts.extend(externals.map(|e| aligned(&elsewhere::lines(&document, e, &PIPE))));
        crate::cli::tests::compare("show.txt", &texts.join("\n"));
    }
}
