//! `hostler reload`: the files, applied.

use clap::Args;

use super::Context;
use super::bus::Bus;
use super::exit::Outcome;

/// Applies the configuration files to the running daemon: models that did not change keep their containers, removed ones drain,
/// changed ones restart when they are idle. Wrong files change nothing.
#[derive(Debug, Args)]
pub struct Reload {}

impl Reload {
    pub async fn run(self, context: &Context) -> Outcome {
        let bus = context.bus().await?;
        let later = apply(context, &bus).await?;
        if context.out.json {
            return context.out.document(&serde_json::json!({"restart_to_apply": later}));
        }
        Ok(())
    }
}

/// Reloads, and says what has to wait for a restart.
///
/// # Errors
/// [`super::Exit::Config`] with every error where the files are wrong.
pub async fn apply(context: &Context, bus: &Bus) -> Outcome<Vec<String>> {
    let later: Vec<String> = bus.call(&bus.manager, "Reload", &()).await?;
    context.out.say("reloaded");
    for line in &later {
        context.out.say(&format!("restart to apply: {line}"));
    }
    Ok(later)
}
