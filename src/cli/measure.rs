//! `hostler measure`: what a model really needs.

use clap::Args;

use super::Context;
use super::exit::Outcome;
use super::load::each;

/// Loads models until their memory is measured, and lets them go where nobody else used them.
#[derive(Debug, Args)]
pub struct Measure {
    /// Names or aliases.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
}

impl Measure {
    pub async fn run(self, context: &Context) -> Outcome {
        let bus = context.bus_even_idle().await?;
        each(context, &bus, &self.models, None, "measured", async |model| {
            bus.begin("Measure", &(model,)).await
        })
        .await?;
        if context.out.json {
            return Ok(());
        }
        let (_, document) = bus.status().await?;
        for model in self.models.iter().filter_map(|name| document.model(name)) {
            if let Some(f) = &model.footprint {
                context.out.text(&format!(
                    "{}: {} on each device (peak {}, {} samples, confidence {})\n",
                    model.name, f.bytes, f.peak, f.samples, f.confidence
                ))?;
            }
        }
        Ok(())
    }
}
