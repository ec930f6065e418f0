//! `hostler plan`: what a load would come to now.

use clap::Args;

use super::Context;
use super::document::{Device, Preview, Report};
use super::exit::{Exit, Failure, Outcome};
use super::load::Wish;
use super::output::{Output, Side, Table, Tone, plain};
use crate::types::Bytes;

/// Shows what loading a model would do now, without doing it. Ends with 5 where it would not get room at once.
#[derive(Debug, Args)]
pub struct Plan {
    /// Its name, or an alias.
    model: String,

    #[command(flatten)]
    wish: Wish,
}

impl Plan {
    pub async fn run(self, context: &Context) -> Outcome {
        let bus = context.bus().await?;
        let options = self.wish.options();
        let (possible, _gpus, json): (bool, Vec<(String, u64)>, String) =
            bus.call(&bus.manager, "Plan", &(&self.model, &options)).await?;
        if context.out.json {
            let plan: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
            context.out.document(&plan)?;
        } else {
            let preview = read(&json)?;
            context.out.text(&render(&self.model, &preview, &context.out))?;
        }
        if possible { Ok(()) } else { Err(Failure::said(Exit::NoRoom)) }
    }
}

/// What the daemon said.
///
/// # Errors
/// If it is no plan.
pub fn read(json: &str) -> Outcome<Preview> {
    serde_json::from_str(json)
        .map_err(|err| Failure::new(Exit::Failed, format!("the plan cannot be read ({err})")))
}

/// A plan as text.
pub fn render(model: &str, preview: &Preview, out: &Output) -> String {
    let (word, tone) = match preview.outcome.as_str() {
        "loaded" => ("is loaded, or being loaded", Tone::Good),
        "start" => ("would start at once", Tone::Good),
        "evict" => ("would start after others have left", Tone::Warn),
        "wait" => ("would wait for room", Tone::Warn),
        "full" => ("would be turned away: there is no room", Tone::Bad),
        "refuse" => ("can never fit", Tone::Bad),
        other => (other, Tone::Plain),
    };
    let mut text = format!("{model} {}", out.paint(word, tone));
    if !preview.why.is_empty() {
        text += &format!(": {}", preview.why);
    }
    text.push('\n');
    for place in &preview.gpus {
        text += &format!("  on {}: {}\n", place.gpu, place.bytes);
    }
    for leaving in &preview.leaving {
        let how = match leaving.asleep {
            Some(level) => format!("goes to sleep (level {level})"),
            None => "is stopped".to_owned(),
        };
        text += &format!("  {} {how}\n", leaving.instance);
    }
    if let Some(report) = &preview.report {
        text += &reasons(report, out);
    }
    text
}

/// The planner's reasons, device by device and model by model.
pub fn reasons(report: &Report, out: &Output) -> String {
    let mut text = String::new();
    if let Some(need) = &report.need {
        text += &format!("\nIt needs {} on each device ({}).\n", need.bytes, need.source);
    }
    let mut devices = Table::new(&[
        ("DEVICE", Side::Left),
        ("FREE", Side::Right),
        ("WHEN EMPTY", Side::Right),
        ("VERDICT", Side::Left),
    ]);
    for device in &report.devices {
        devices.row(vec![
            plain(&device.gpu),
            plain(device.free.to_string()),
            plain(device.empty.to_string()),
            plain(verdict(device)),
        ]);
    }
    let mut victims = Table::new(&[("IN THE WAY", Side::Left), ("VERDICT", Side::Left)]);
    for victim in &report.victims {
        let word = match (&victim.spared, victim.chosen, victim.asleep) {
            (Some(why), ..) => format!("stays: {why}"),
            (None, true, Some(level)) => format!("goes to sleep (level {level})"),
            (None, true, None) => "is stopped".to_owned(),
            (None, false, _) => "could leave, and need not".to_owned(),
        };
        victims.row(vec![plain(&victim.instance), plain(word)]);
    }
    for table in [devices, victims] {
        let table = table.render(out);
        if !table.is_empty() {
            text += &format!("\n{table}");
        }
    }
    text
}

/// The planner's word in a person's words, and what of the device no model could have by leaving.
fn verdict(device: &Device) -> String {
    let word = match device.verdict.as_str() {
        "chosen" => "it goes here",
        "fits" => "it would fit; another fits more tightly",
        "gated" => "another model is starting or stopping here",
        "kept" => "kept for a model whose turn is first",
        "fits_after_eviction" => "it would fit after an eviction",
        "occupied" => "held by models that stay",
        "foreign" => "held by processes that are not Hostler's",
        "too_small" => "too small even when empty",
        other => other,
    };
    let parts = [
        (device.kept, "kept for models whose turn is first"),
        (device.quarantined, "not given back by engines that are gone"),
        (device.foreign, "used by others"),
    ];
    let parts = parts.iter().filter(|(held, _)| *held > Bytes::ZERO);
    parts.fold(word.to_owned(), |text, (held, what)| text + &format!("; {held} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::tests::PIPE;

    #[test]
    fn as_expected() {
        let preview = read(include_str!("tests/plan.json")).unwrap();
        crate::cli::tests::compare("plan.txt", &render("org/qwen3-8b", &preview, &PIPE));
    }
}
