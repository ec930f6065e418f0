//! `hostler pin`, `unpin`, `sleep`, `wake`: one word to the daemon for each model.

use clap::Args;

use super::Context;
use super::exit::Outcome;
use super::load::{each, one_by_one};

/// Keeps models loaded, over restarts of the daemon too. Those that are not loaded are loaded as soon as there is room; see load --pin to
/// wait for that.
#[derive(Debug, Args)]
pub struct Pin {
    #[command(flatten)]
    which: Which,
}

/// Lets pinned models go when they are idle.
#[derive(Debug, Args)]
pub struct Unpin {
    #[command(flatten)]
    which: Which,
}

/// Puts idle models to sleep.
#[derive(Debug, Args)]
pub struct Sleep {
    #[command(flatten)]
    which: Which,
}

/// Wakes models that sleep.
#[derive(Debug, Args)]
pub struct Wake {
    #[command(flatten)]
    which: Which,
}

/// Which models.
#[derive(Debug, Args)]
struct Which {
    /// Names or aliases.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
}

impl Pin {
    pub async fn run(self, context: &Context) -> Outcome {
        self.which.say(context, "Pin", "pinned").await
    }
}

impl Unpin {
    pub async fn run(self, context: &Context) -> Outcome {
        self.which.say(context, "Unpin", "not pinned any more").await
    }
}

impl Sleep {
    pub async fn run(self, context: &Context) -> Outcome {
        self.which.order(context, "Sleep", "asleep").await
    }
}

impl Wake {
    pub async fn run(self, context: &Context) -> Outcome {
        self.which.order(context, "Wake", "ready").await
    }
}

impl Which {
    async fn say(self, context: &Context, method: &str, done: &str) -> Outcome {
        let bus = context.bus_even_idle().await?;
        one_by_one(context, &self.models, done, async |model| {
            let object = bus.model_started(model).await?;
            bus.call(&object, method, &()).await
        })
        .await
    }

    async fn order(self, context: &Context, method: &str, done: &str) -> Outcome {
        let bus = context.bus().await?;
        each(context, &bus, &self.models, None, done, async |model| {
            let object = bus.model(model).await?;
            bus.call(&object, method, &()).await
        })
        .await
    }
}
