//! What a model will need, for `hostler add`, which says it. Owner: that command.

use crate::adapters::weights;
use crate::config::Config;
use crate::plan::estimate::{Estimate, estimate, shortened};
use crate::types::{Bytes, ModelSpec};

/// In sentences. `None` where it is declared, and holds the context that the model was made for; or where its files say nothing that could
/// be told from here.
#[must_use]
pub fn expected(config: &Config, name: &str) -> Option<String> {
    let mut spec = ModelSpec::clone(config.models.get(name)?);
    let anatomy = weights::look(&spec.weights, spec.projector.as_deref()).ok()?;
    if spec.vram.is_none() {
        return Some(sentence(&spec, &estimate(&anatomy, &spec)?));
    }
    spec.anatomy = Some(anatomy);
    shortened(&spec)
}

fn sentence(spec: &ModelSpec, found: &Estimate) -> String {
    let said = format!("{} is estimated to need {found}", spec.name);
    let long = found.cache.filter(|_| spec.context.is_none() && found.kv > Bytes::ZERO);
    match long {
        Some(used) => format!(
            "{said}\nthe model was made for {} tokens; with less it needs less: context, as in context = 16384",
            used.tokens
        ),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Anatomy, CacheLayers, CacheShape, Reach, test_spec};

    /// A model of 5 GiB whose cache is three times as large as its weights.
    #[test]
    fn a_cache_that_nobody_asked_for_is_said_with_what_makes_it_smaller() {
        let layer = CacheLayers { count: 32, heads: 8, key: 128, value: 128, reach: Reach::Whole };
        let cache =
            CacheShape { layers: vec![layer], context_max: Some(131_072), ..CacheShape::default() };
        let source = "a test".to_owned();
        let mut anatomy =
            Anatomy { weights: Bytes::gib(5), projector: Bytes::ZERO, cache: Some(cache), source };
        let mut spec = test_spec("m");
        let text =
            |anatomy: &Anatomy, spec: &ModelSpec| sentence(spec, &estimate(anatomy, spec).unwrap());
        let long = text(&anatomy, &spec);
        for part in ["m is estimated to need 22", "cache 16.0 GiB (131072 tokens", "with less it"] {
            assert!(long.contains(part), "{part}: {long}");
        }
        spec.context = Some(8192);
        assert!(!text(&anatomy, &spec).contains("with less it"), "it was asked for");
        spec.context = None;
        anatomy.cache = Some(CacheShape::default());
        assert!(!text(&anatomy, &spec).contains("with less it"), "it has none");
    }
}
