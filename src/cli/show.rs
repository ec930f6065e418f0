//! `hostler show MODEL`: all about one model.

use clap::Args;

use super::Context;
use super::bus::named;
use super::document::{Document, Model};
use super::exit::{Failure, Outcome};
use super::output::{NONE, Output, Tone, span};
use super::status::bytes;

/// Shows all about one model.
#[derive(Debug, Args)]
pub struct Show {
    /// Its name, or an alias.
    pub model: String,
}

/// No model of that name.
pub fn unknown(name: &str) -> Failure {
    let message = format!("model {name:?} is not configured on this host");
    named("org.hostler1.Error.UnknownModel", &message, false)
}

impl Show {
    pub async fn run(self, context: &Context) -> Outcome {
        let (text, document) = context.bus().await?.status().await?;
        let model = document.model(&self.model).ok_or_else(|| unknown(&self.model))?;
        if context.out.json {
            let whole: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            let models = whole["models"].as_array().cloned().unwrap_or_default();
            return context.out.document(&models.iter().find(|m| m["name"] == model.name.as_str()));
        }
        context.out.text(&render(&document, model, &context.out))
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
    if !model.aliases.is_empty() {
        lines.push(("Aliases", model.aliases.join(", ")));
    }
    lines.push(("Container", model.instance.clone().unwrap_or_else(dash)));
    if let Some(id) = &model.container {
        lines.push(("Container ID", id.chars().take(12).collect()));
    }
    let devices = if model.gpus.is_empty() { dash() } else { model.gpus.join(", ") };
    lines.push(("Devices", devices));
    let need = model.planned.as_ref();
    let need = need.map(|n| format!("{} on each device ({})", n.bytes, n.source));
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
    if let Some(sleep) = &model.sleep
        && let Some(level) = sleep.level
    {
        lines.push(("Sleeps", format!("level {level}, {} of the host's memory", sleep.host_ram)));
    }
    if let Some(why) = model.waiting_for.as_ref().filter(|_| model.phase == "waiting") {
        lines.push(("Waits for", why.clone()));
    }
    if let Some(fault) = &model.error {
        lines.push(("Last error", format!("{} ({})", fault.message, fault.code)));
    }
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let mut text: String =
        lines.iter().map(|(key, value)| format!("{key:>width$}: {value}\n")).collect();
    let tail = model.error.iter().flat_map(|fault| &fault.log_tail);
    for line in tail {
        text += &format!("{:width$}  | {line}\n", "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::document::tests::example;
    use crate::cli::output::tests::PIPE;

    #[test]
    fn as_expected() {
        let document = example();
        let texts: Vec<String> =
            document.models.iter().map(|m| render(&document, m, &PIPE)).collect();
        crate::cli::tests::compare("show.txt", &texts.join("\n"));
    }
}
