//! `hostler why`: why a model is where it is, and what a load would come to.

use clap::Args;

use super::bus::Options;
use super::document::{Document, Model, Named};
use super::exit::Outcome;
use super::output::{Output, Tone, span};
use super::plan;
use super::show::{WITHHELD, row};
use super::{Context, elsewhere};
use crate::types::last_words;

/// Explains why a model is where it is, and what stands in its way.
#[derive(Debug, Args)]
pub struct Why {
    /// Its name, or an alias.
    model: String,
}

impl Why {
    pub async fn run(self, context: &Context) -> Outcome {
        let bus = context.bus().await?;
        let (text, document) = bus.status().await?;
        let named = document.named(&self.model);
        let model = match named.ok_or_else(|| elsewhere::absent(&document, &self.model))? {
            Named::Here(model) => model,
            Named::Elsewhere(external) if context.out.json => {
                let row = row(&text, "externals", &external.name);
                return context.out.document(&serde_json::json!({ "external": row }));
            }
            Named::Elsewhere(external) => {
                return context.out.text(&elsewhere::why(&document, external, &context.out));
            }
        };
        let (_, _, json): (bool, Vec<(String, u64)>, String) =
            bus.call(&bus.manager, "Plan", &(&model.name, Options::new())).await?;
        if context.out.json {
            let model = row(&text, "models", &model.name);
            let plan: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
            return context.out.document(&serde_json::json!({"model": model, "plan": plan}));
        }
        let mut answer = render(&document, model, &context.out);
        let preview = plan::read(&json)?;
        if preview.outcome != "loaded" {
            answer += &format!("\nNow: {}", plan::render(&model.name, &preview, &context.out));
        } else if let Some(report) = &model.report {
            answer += "\nThe plan that it was started with:\n";
            answer += &plan::reasons(report, &context.out);
        }
        context.out.text(&answer)
    }
}

/// What the phase means for this model, in sentences.
fn render(document: &Document, model: &Model, out: &Output) -> String {
    let phase = out.paint(&model.phase, Tone::of_phase(&model.phase));
    let mut text = format!("{} is {phase}", model.name);
    let ago = |at| span(document.now.saturating_sub(at));
    let idle = model.idle_timeout.map(span);
    text += &match model.phase.as_str() {
        "stopped" if model.error.is_some() => ": it failed, and its pause is over. The next request tries it again.".to_owned(),
        "stopped" => ": nobody asked for it, or it was idle, evicted or unloaded since. The next request loads it.".to_owned(),
        "waiting" => format!(": {}", model.waiting_for.as_deref().unwrap_or("there is no room")),
        "pulling" => match model.pulled() {
            Some(pulled) => format!(": podman fetches its image, and has {pulled}."),
            None => ": podman fetches its image.".to_owned(),
        },
        "starting" => ": its container is being started.".to_owned(),
        "loading" => ": its engine reads the weights.".to_owned(),
        "draining" => format!(": it takes no new request, and {} are running.", model.in_flight),
        "asleep" => ": its memory was given back; the next request wakes it.".to_owned(),
        "failed" => ": it is tried again after a pause, when it is asked for.".to_owned(),
        "ready" if model.pinned => ": it is pinned, so it stays.".to_owned(),
        "ready" if model.in_flight > 0 => format!(": it serves {} requests.", model.in_flight),
        "ready" => match (model.last_used, idle) {
            (Some(at), Some(idle)) => format!(
                ": it was used {} ago, and leaves after {idle} without a request, or for another model.",
                ago(at)
            ),
            (None, Some(idle)) => {
                format!(": it has had no request, and leaves after {idle} without one, or for another model.")
            }
            (_, None) => ": it is idle, and leaves when another model needs the room.".to_owned(),
        },
        _ => ".".to_owned(),
    };
    text.push('\n');
    if let Some(why) = model.waiting_for.as_ref().filter(|_| model.phase != "waiting") {
        text += &format!("It waits, though: {why}\n");
    }
    if let Some(fault) = &model.error {
        text += &format!("Its last failure: {} ({})\n", fault.message, fault.code);
        if let Some(words) = last_words(&fault.log_tail) {
            text += &format!("  | {words}\n");
        }
        if fault.log_withheld {
            text += &format!("  ({WITHHELD})\n");
        }
    }
    for problem in &document.problems {
        text += &format!("Problem on this host: {} ({})\n", problem.message, problem.code);
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
        crate::cli::tests::compare("why.txt", &texts.join("\n"));
    }
}
