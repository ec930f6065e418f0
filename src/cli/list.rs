//! `hostler list`: one line a model.

use clap::Args;

use super::document::{Document, Model, Progress};
use super::exit::Outcome;
use super::output::{NONE, Side, Table, Tone, plain, span};
use super::status::bytes;
use super::{Context, elsewhere};

/// Lists models: this host's, and those that run elsewhere. With --json: this host's alone, as in "models" of status --json; the others
/// are what --external lists.
#[derive(Debug, Args)]
pub struct List {
    /// Only models in this phase; may be given more than once.
    #[arg(long, value_name = "PHASE", value_parser = super::wait::phase)]
    phase: Vec<String>,

    /// Only models that run elsewhere; with --json as in "externals" of status --json.
    #[arg(long, conflicts_with = "phase")]
    external: bool,
}

impl List {
    pub async fn run(self, context: &Context) -> Outcome {
        let (text, document) = context.bus().await?.status().await?;
        if self.external && !context.out.json {
            return context.out.text(&elsewhere::table(&document).render(&context.out));
        }
        let wanted = |m: &Model| self.phase.is_empty() || self.phase.contains(&m.phase);
        if !context.out.json {
            if !document.models.iter().any(wanted)
                && (!self.phase.is_empty() || document.externals.is_empty())
            {
                context.out.say(&nothing(&self.phase));
            }
            let mine = table(&document, wanted).render(&context.out);
            // Whoever asks for a phase asks for those that have one.
            if !self.phase.is_empty() {
                return context.out.text(&mine);
            }
            let others = elsewhere::table(&document).render(&context.out);
            return context.out.text(&paragraphs([mine, others]));
        }
        // As in the status's schema, field by field; two lists, so that all entries of each have the same fields.
        let mut whole: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        if self.external {
            return context.out.document(&whole["externals"].take());
        }
        let mut models = whole["models"].take();
        if let Some(models) = models.as_array_mut() {
            models
                .retain(|m| m["name"].as_str().and_then(|n| document.model(n)).is_some_and(wanted));
        }
        context.out.document(&models)
    }
}

/// That there is nothing to list, which an empty answer says to programs alone.
pub fn nothing(phases: &[String]) -> String {
    if phases.is_empty() {
        return "no models are configured; hostler add defines one".to_owned();
    }
    format!("no model is {}", phases.join(" or "))
}

/// Tables below one another, without those that are empty.
pub fn paragraphs<const N: usize>(tables: [String; N]) -> String {
    tables.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
}

/// The models that are wanted, one a row.
pub fn table(document: &Document, wanted: impl Fn(&Model) -> bool) -> Table {
    let mut table = Table::new(&[
        ("MODEL", Side::Left),
        ("PHASE", Side::Left),
        ("PIN", Side::Left),
        ("DEVICES", Side::Left),
        ("NEEDS", Side::Right),
        ("HOLDS", Side::Right),
        ("RUNNING", Side::Right),
        ("WAITING", Side::Right),
        ("USED", Side::Right),
        ("NOTE", Side::Left),
    ]);
    for model in document.models.iter().filter(|m| wanted(m)) {
        let used = model.last_used.map(|at| span(document.now.saturating_sub(at)) + " ago");
        let need = model.planned.as_ref().map(|need| need.bytes);
        let need = need.or_else(|| model.footprint.as_ref().map(|f| f.bytes));
        let devices = if model.gpus.is_empty() { NONE.into() } else { model.gpus.join(",") };
        table.row(vec![
            plain(&model.name),
            (model.phase.clone(), Tone::of_phase(&model.phase)),
            plain(if model.pinned { "pin" } else { NONE }),
            plain(devices),
            plain(bytes(need)),
            plain(bytes(model.observed)),
            plain(model.in_flight.to_string()),
            plain(model.queued.to_string()),
            plain(used.unwrap_or_else(|| NONE.to_owned())),
            plain(note(document, model)),
        ]);
    }
    table
}

/// Why it is where it is, short.
fn note(document: &Document, model: &Model) -> String {
    let left = |progress: &Progress| {
        let passed = document.now.saturating_sub(progress.since);
        let left = progress.expected?.checked_sub(passed).filter(|left| !left.is_zero())?;
        Some(format!("{} left", span(left)))
    };
    let text = match model.phase.as_str() {
        "failed" => model.error.as_ref().map(|fault| fault.code.clone()),
        "waiting" => model.waiting_for.clone(),
        _ => model.pulled().or_else(|| model.progress.as_ref().and_then(left)),
    };
    let text = text.unwrap_or_default();
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() { short + "…" } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::document::tests::example;
    use crate::cli::output::tests::PIPE;

    #[test]
    fn as_expected() {
        let text = table(&example(), |m| m.phase != "stopped").render(&PIPE);
        crate::cli::tests::compare("list.txt", &text);
    }
}
