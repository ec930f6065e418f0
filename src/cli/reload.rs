//! `hostler reload`: the files, applied.

use clap::Args;

use super::Context;
use super::bus::Bus;
use super::exit::Outcome;

/// What a reload has left for a restart.
#[derive(Debug)]
pub struct Reloaded {
    /// What has changed and is read at the start only, one line each.
    restart_to_apply: Vec<String>,
    /// Keys of credentials, which are as the start was given them.
    credentials_kept: Vec<String>,
}

/// Applies the configuration files to the running daemon: models that did not change keep their containers, removed ones drain,
/// changed ones restart when they are idle, or in turn where they never are. Wrong files change nothing.
#[derive(Debug, Args)]
pub struct Reload {}

impl Reload {
    pub async fn run(self, context: &Context) -> Outcome {
        let bus = context.bus().await?;
        let Reloaded { restart_to_apply, credentials_kept } = apply(context, &bus).await?;
        if context.out.json {
            return context.out.document(&serde_json::json!({
                "restart_to_apply": restart_to_apply, "credentials_kept": credentials_kept,
            }));
        }
        if !credentials_kept.is_empty() {
            context.out.say(&format!(
                "as the start was given them, and new ones take a restart: {}",
                credentials_kept.join(", ")
            ));
        }
        Ok(())
    }
}

/// Reloads, and says what has to wait for a restart.
///
/// # Errors
/// [`super::Exit::Config`] with every error where the files are wrong.
pub async fn apply(context: &Context, bus: &Bus) -> Outcome<Reloaded> {
    let reloaded = ask(bus).await?;
    context.out.say("reloaded");
    for line in &reloaded.restart_to_apply {
        context.out.say(&format!("restart to apply: {line}"));
    }
    Ok(reloaded)
}

/// Reloads.
///
/// # Errors
/// As [`apply`].
pub async fn ask(bus: &Bus) -> Outcome<Reloaded> {
    let (restart_to_apply, credentials_kept) = bus.call(&bus.manager, "Reload", &()).await?;
    Ok(Reloaded { restart_to_apply, credentials_kept })
}
