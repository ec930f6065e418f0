//! `hostler unload`: lets models go.

use std::time::Duration;

use clap::Args;

use super::Context;
use super::exit::Outcome;
use super::load::{begin_each, each};

/// Unpins and unloads models, after the requests that they serve. Later requests load them again.
#[derive(Debug, Args)]
pub struct Unload {
    /// Names or aliases.
    #[arg(required_unless_present = "all", value_name = "MODEL")]
    models: Vec<String>,

    /// All models.
    #[arg(long, conflicts_with = "models")]
    all: bool,

    /// Break running requests off instead of waiting for them.
    #[arg(long)]
    now: bool,

    /// Return at once, and print the jobs.
    #[arg(long)]
    no_block: bool,

    /// Wait no longer than this, for all of them together; an unload that was begun goes on. Such as 90s or 10m.
    #[arg(long, value_name = "TIME", value_parser = super::wait::time, conflicts_with = "no_block")]
    timeout: Option<Duration>,
}

impl Unload {
    pub async fn run(self, context: &Context) -> Outcome {
        let bus = context.bus().await?;
        let mode = if self.now { "now" } else { "drain" };
        let all = ["all".to_owned()];
        let models = if self.all { &all[..] } else { &self.models };
        let begin = async |model: &str| {
            if self.all {
                return bus.begin("UnloadAll", &(mode,)).await;
            }
            bus.begin("Unload", &(model, mode)).await
        };
        if self.no_block {
            return begin_each(context, models, begin).await;
        }
        each(context, &bus, models, self.timeout, "unloaded", begin).await
    }
}
