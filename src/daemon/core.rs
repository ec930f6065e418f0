//! From the configuration to what the supervisor is given, at the start and at each reload.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::adapters::{disk, weights};
use crate::config::Config;
use crate::plan::estimate::estimate;
use crate::plan::{self, ReleaseRule, Rules, SleepRules, policy};
use crate::supervisor::health::HealthRules;
use crate::supervisor::state::Settings;
use crate::types::{Anatomy, ModelName, ModelSpec, Weights};

/// How long a model's files may take to say what is in them: headers of up to 64 MiB from a disk that is busy with those of others.
const DISK_TIME: Duration = Duration::from_secs(30);

/// The models that are configured.
pub type Models = BTreeMap<ModelName, Arc<ModelSpec>>;

/// What is not about one model.
#[must_use]
pub fn settings(config: &Config) -> Settings {
    Settings {
        max_wait: config.server.max_wait,
        max_queue: config.server.max_queue,
        drain_timeout: config.policy.drain_timeout,
        headroom: config.gpu.headroom,
        slack: plan::SLACK,
        release: ReleaseRule::default(),
        rules: Rules {
            policy: policy::named(config.policy.eviction),
            min_residency: config.policy.min_residency,
            sleep: SleepRules {
                host_ram_budget: config.memory.host_ram_budget,
                residual_max: config.memory.sleep_residual_max,
            },
        },
        turn_after: config.policy.turn_after,
        measure_after: config.policy.measure_after,
        measure_hours: config.policy.measure_hours,
        health: HealthRules {
            timeout: config.health.timeout,
            failures: config.health.failures,
            probe: config.health.probe,
            breaker_failures: config.health.breaker_failures,
            breaker_open: config.health.breaker_open,
        },
        seed: uuid::Uuid::new_v4().as_u64_pair().0,
    }
}

/// The names of all models, of those that run elsewhere, too.
#[must_use]
pub fn names(config: &Config) -> BTreeSet<ModelName> {
    config.models.keys().chain(config.externals.keys()).cloned().collect()
}

/// The models with what their files say. Takes no longer than [`DISK_TIME`], whatever the disks do. `earlier`: those before a reload, whose
/// word holds for files that do not answer now.
pub async fn models(config: &Config, earlier: &Models) -> Models {
    let models = config.models.iter().map(async |(name, spec)| {
        let mut spec = ModelSpec::clone(spec);
        let known = earlier.get(name).filter(|known| known.weights == spec.weights);
        spec.anatomy = anatomy(&spec, known.and_then(|known| known.anatomy.clone())).await;
        (name.clone(), Arc::new(spec))
    });
    join_all(models).await.into_iter().collect()
}

/// What a model's files say, and in the log what is expected of it until it was measured.
async fn anatomy(spec: &ModelSpec, known: Option<Anatomy>) -> Option<Anatomy> {
    let (model, weights) = (&spec.name, spec.weights.clone());
    let found = match &spec.weights {
        Weights::Path(path) => {
            match disk::look("anatomy", path, DISK_TIME, move |_| weights::look(&weights)).await {
                Ok(found) => found,
                Err(late) => {
                    tracing::warn!(%model, "the files of {model} were not read: {late}");
                    return known;
                }
            }
        }
        Weights::Image { .. } | Weights::Builtin => weights::look(&weights),
    };
    match found {
        Ok(anatomy) => {
            if spec.vram.is_none() {
                match estimate(&anatomy, spec) {
                    Some(need) => {
                        tracing::info!(%model, "{model} is estimated to need {need}; vram or context in its configuration changes it");
                    }
                    None => {
                        tracing::info!(%model, "the need of {model} cannot be estimated: its files do not say how large its cache is, and with too small a one it does not start; it gets whole devices, set context or vram to avoid it");
                    }
                }
            }
            Some(anatomy)
        }
        Err(why) => {
            if spec.vram.is_none() {
                tracing::info!(%model, "the need of {model} cannot be estimated: {why}; its first load gets whole devices, set vram to avoid it");
            }
            None
        }
    }
}
