//! From the configuration to what the supervisor is given, at the start and at each reload.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::adapters::{disk, weights};
use crate::config::Config;
use crate::plan::estimate::{estimate, shortened};
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
            patience: config.server.answer_timeout,
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
/// word holds for files that cannot be read now.
pub async fn models(config: &Config, earlier: &Models) -> Models {
    let models = config.models.iter().map(async |(name, spec)| {
        let mut spec = ModelSpec::clone(spec);
        let known = earlier
            .get(name)
            .filter(|known| (&known.weights, &known.projector) == (&spec.weights, &spec.projector));
        spec.anatomy = anatomy(&spec, known.and_then(|known| known.anatomy.clone())).await;
        if let Some(told) = shortened(&spec) {
            tracing::info!(model = %name, "{told}");
        }
        (name.clone(), Arc::new(spec))
    });
    join_all(models).await.into_iter().collect()
}

/// The same models, with what the files of those say that have started although nothing is known of them.
pub async fn look_again(models: &Models, started: &BTreeSet<ModelName>) -> Models {
    let looked = models.iter().map(async |(name, spec)| {
        let unknown = spec.anatomy.is_none() && matches!(spec.weights, Weights::Path(_));
        let unknown = unknown && started.contains(name);
        let found = if unknown { anatomy(spec, None).await } else { None };
        let spec = match found {
            Some(found) => Arc::new(ModelSpec { anatomy: Some(found), ..ModelSpec::clone(spec) }),
            None => spec.clone(),
        };
        (name.clone(), spec)
    });
    join_all(looked).await.into_iter().collect()
}

/// What a model's files say, and in the log what is expected of it until it was measured.
async fn anatomy(spec: &ModelSpec, known: Option<Anatomy>) -> Option<Anatomy> {
    let (model, weights, beside) = (&spec.name, spec.weights.clone(), spec.projector.clone());
    let found = match &spec.weights {
        Weights::Path(path) => {
            match disk::look("anatomy", path, DISK_TIME, move |_| {
                weights::look(&weights, beside.as_deref())
            })
            .await
            {
                Ok(found) => found,
                Err(late) => {
                    tracing::warn!(%model, "the files of {model} were not read: {late}");
                    return known;
                }
            }
        }
        Weights::Image { .. } | Weights::Builtin => weights::look(&weights, None),
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
        // A disk that is away for a moment changes nothing about what is on it.
        Err(why) if known.is_some() => {
            tracing::warn!(%model, "the files of {model} were not read, and what they said before counts: {why}");
            known
        }
        Err(why) => {
            if spec.vram.is_none() {
                tracing::info!(%model, "the need of {model} cannot be estimated: {why}; it gets whole devices until it was measured or its files were read, which is tried again when it has started; set vram to avoid it");
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::test_spec;

    fn of(path: &std::path::Path) -> ModelSpec {
        ModelSpec { weights: Weights::Path(path.to_owned()), ..test_spec("m") }
    }

    fn models(spec: ModelSpec) -> Models {
        Models::from([(spec.name.clone(), Arc::new(spec))])
    }

    #[tokio::test]
    async fn files_that_came_late_are_looked_at_again_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.bin");
        let weights = |models: &Models| models.values().next()?.anatomy.as_ref().map(|a| a.weights);
        let unknown = models(of(&path));
        let all = BTreeSet::from(["m".parse().unwrap()]);
        assert_eq!(look_again(&unknown, &all).await, unknown);
        std::fs::write(&path, [0; 100]).unwrap();
        assert_eq!(look_again(&unknown, &BTreeSet::new()).await, unknown, "it has not started");
        let known = look_again(&unknown, &all).await;
        assert_eq!(weights(&known), Some(crate::types::Bytes(100)));
        std::fs::write(&path, [0; 200]).unwrap();
        assert_eq!(look_again(&known, &all).await, known, "those are looked at by a reload");
        // Nor is anything to be seen from here of what is in an image.
        let builtin = models(ModelSpec { weights: Weights::Builtin, ..test_spec("m") });
        assert_eq!(look_again(&builtin, &all).await, builtin);
    }

    #[tokio::test]
    async fn what_files_said_counts_while_they_are_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.bin");
        std::fs::write(&path, [0; 100]).unwrap();
        let known = anatomy(&of(&path), None).await;
        assert!(known.is_some());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(anatomy(&of(&path), known.clone()).await, known);
        assert_eq!(anatomy(&of(&path), None).await, None);
    }
}
