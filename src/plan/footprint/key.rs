//! What a footprint is true of.
//!
//! Owner: whoever measured. Invariant: a change of any field is another key, so a number is never carried over to an
//! engine, a device or a driver that it was not measured with.

use serde::{Deserialize, Serialize};

use crate::types::{ModelName, ModelSpec};

/// Identity of one measurable thing. Ordered by its fields from the first, so that a model's footprints lie together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The model.
    pub model: ModelName,
    /// Digest of the engine's image as podman reports it: the same tag may hold another engine tomorrow.
    pub image_digest: String,
    /// [`ModelSpec::spec_hash`]: arguments, context, weights and all else that shapes the container; and how large its files
    /// are, where that is known: files are replaced in place.
    pub args_hash: String,
    /// Product name of the devices ([`crate::types::GpuReading::name`]); kernels and work buffers differ by it.
    pub gpu_name: String,
    /// Devices the model is spread over: each has a share of the weights.
    pub tensor_parallel: u32,
    /// Version of the GPU driver; the size of a context changes with it. Empty for the host backend, which has none.
    pub driver: String,
}

/// A key that is looked up: its fields are borrowed from whoever knows them. In the order of [`Key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyRef<'a> {
    /// See [`Key::model`].
    pub model: &'a ModelName,
    /// See [`Key::image_digest`].
    pub image_digest: &'a str,
    /// See [`Key::args_hash`].
    pub args_hash: &'a str,
    /// See [`Key::gpu_name`].
    pub gpu_name: &'a str,
    /// See [`Key::tensor_parallel`].
    pub tensor_parallel: u32,
    /// See [`Key::driver`].
    pub driver: &'a str,
}

impl KeyRef<'_> {
    /// To be kept.
    #[must_use]
    pub fn to_key(self) -> Key {
        Key {
            model: self.model.clone(),
            image_digest: self.image_digest.to_owned(),
            args_hash: self.args_hash.to_owned(),
            gpu_name: self.gpu_name.to_owned(),
            tensor_parallel: self.tensor_parallel,
            driver: self.driver.to_owned(),
        }
    }
}

impl Key {
    /// The same, borrowed.
    #[must_use]
    pub fn borrow(&self) -> KeyRef<'_> {
        KeyRef {
            model: &self.model,
            image_digest: &self.image_digest,
            args_hash: &self.args_hash,
            gpu_name: &self.gpu_name,
            tensor_parallel: self.tensor_parallel,
            driver: &self.driver,
        }
    }

    /// The same model and arguments with another image, on other devices, under another driver.
    #[must_use]
    pub fn on<'a>(
        &'a self,
        image_digest: &'a str,
        gpu_name: &'a str,
        driver: &'a str,
    ) -> KeyRef<'a> {
        KeyRef { image_digest, gpu_name, driver, ..self.borrow() }
    }

    /// The key of `spec` as it runs from the image with `image_digest` on devices called `gpu_name` under `driver`.
    #[must_use]
    pub fn new(spec: &ModelSpec, image_digest: &str, gpu_name: &str, driver: &str) -> Self {
        Self {
            model: spec.name.clone(),
            image_digest: image_digest.to_owned(),
            args_hash: shape(spec),
            gpu_name: gpu_name.to_owned(),
            tensor_parallel: spec.gpu_count,
            driver: driver.to_owned(),
        }
    }
}

/// No part of the specification's own hash, by which a running container is kept.
fn shape(spec: &ModelSpec) -> String {
    let hash = spec.spec_hash().0;
    match &spec.anatomy {
        Some(anatomy) => format!("{hash}-{:x}", (anatomy.weights + anatomy.projector).0),
        None => hash,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::types::{Anatomy, Bytes, test_spec};

    fn key() -> Key {
        Key::new(&test_spec("m"), "sha256:1", "H100", "580.1")
    }

    #[test]
    fn any_change_of_any_field_is_another_key() {
        let changes: [fn(&mut Key); 6] = [
            |k| k.model = "n".parse().unwrap(),
            |k| k.image_digest = "sha256:2".into(),
            |k| k.args_hash = "0".into(),
            |k| k.gpu_name = "A100".into(),
            |k| k.tensor_parallel = 2,
            |k| k.driver = "580.2".into(),
        ];
        let mut all = BTreeSet::from([key()]);
        for (at, change) in changes.iter().enumerate() {
            let mut other = key();
            change(&mut other);
            assert_eq!(other.borrow().cmp(&key().borrow()), other.cmp(&key()), "field {at}");
            assert_eq!(other.borrow().to_key(), other);
            assert!(all.insert(other), "field {at} makes no difference");
        }
    }

    #[test]
    fn what_shapes_the_container_shapes_the_key_and_policy_does_not() {
        let of = |change: fn(&mut ModelSpec)| {
            let mut spec = test_spec("m");
            change(&mut spec);
            Key::new(&spec, "sha256:1", "H100", "580.1")
        };
        assert_eq!(of(|s| s.pin = true), key());
        assert_ne!(of(|s| s.context = Some(4096)), key());
        assert_ne!(of(|s| s.args = vec!["--x".into()]), key());
        assert_eq!(of(|s| s.gpu_count = 4).tensor_parallel, 4);
        let weights = |spec: &mut ModelSpec, bytes| {
            let source = "a test".to_owned();
            spec.anatomy = Some(Anatomy {
                weights: Bytes(bytes),
                projector: Bytes::ZERO,
                cache: None,
                source,
            });
        };
        let mut files = test_spec("m");
        weights(&mut files, 5);
        let before = Key::new(&files, "sha256:1", "H100", "580.1");
        assert_ne!(before, key());
        weights(&mut files, 28);
        assert_ne!(before, Key::new(&files, "sha256:1", "H100", "580.1"), "replaced in place");
    }

    #[test]
    fn survives_json() {
        let text = serde_json::to_string(&key()).unwrap();
        assert_eq!(serde_json::from_str::<Key>(&text).unwrap(), key());
        let strange = text.replacen('{', "{\"more\":1,", 1);
        assert!(serde_json::from_str::<Key>(&strange).is_err());
    }
}
