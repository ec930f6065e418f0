//! Identities: GPUs, instances, generations, waiters.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ModelName;

/// A memory domain that models are placed on: an NVML UUID (`GPU-…`, `MIG-…`), or `host` for the host-memory backend.
#[derive(
    Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct GpuId(Arc<str>);

/// How a device is called that did not tell its identifier.
const AT_INDEX: &str = "index ";

impl GpuId {
    /// Wraps an identifier as the backend reports it.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// The one device of the host-memory backend.
    #[must_use]
    pub fn host() -> Self {
        Self::new("host")
    }

    /// Whether this is the host-memory backend's device, which needs no device injection.
    #[must_use]
    pub fn is_host(&self) -> bool {
        &*self.0 == "host"
    }

    /// Whether this is a slice of a device (MIG). A process sees one of them alone, however many its container has.
    #[must_use]
    pub fn is_slice(&self) -> bool {
        self.0.starts_with("MIG-")
    }

    /// A device that does not tell its identifier, by its place in NVML's count.
    #[must_use]
    pub fn at_index(index: u32) -> Self {
        Self::new(&format!("{AT_INDEX}{index}"))
    }

    /// Whether this may be the device that is wanted: one that does not tell what it is may be any.
    #[must_use]
    pub fn may_be(&self, wanted: &Self) -> bool {
        self == wanted || self.0.starts_with(AT_INDEX)
    }

    /// The identifier as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Counts container incarnations over the life of the daemon's state; strictly growing, so a completion that
/// belongs to an earlier incarnation is recognised and dropped.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One container incarnation of one model. Also the container's name and its socket directory's name.
///
/// Text form `hostler-SLUG-gGENERATION-SUFFIX`; the suffix is random, so a container left behind by an earlier daemon
/// can never be in the way.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId {
    /// The model this is an incarnation of.
    pub model: ModelName,
    /// Which incarnation.
    pub generation: Generation,
    /// Eight lower-case hexadecimal digits.
    pub suffix: Arc<str>,
}

/// A text that is no instance suffix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an instance suffix (eight lower-case hexadecimal digits)")]
pub struct InstanceIdError(pub String);

impl InstanceId {
    /// Names an incarnation; `random` becomes the suffix.
    #[must_use]
    pub fn new(model: ModelName, generation: Generation, random: u32) -> Self {
        Self { model, generation, suffix: format!("{random:08x}").into() }
    }

    /// Rebuilds the identity of a container found on the host from its labels.
    ///
    /// # Errors
    /// If `suffix` is not what [`InstanceId::new`] writes.
    pub fn from_labels(
        model: ModelName,
        generation: Generation,
        suffix: &str,
    ) -> Result<Self, InstanceIdError> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if suffix.len() != 8 || !suffix.bytes().all(hex) {
            return Err(InstanceIdError(suffix.to_owned()));
        }
        Ok(Self { model, generation, suffix: suffix.into() })
    }

    /// A number that differs between incarnations.
    #[must_use]
    pub fn noise(&self) -> u32 {
        u32::from_str_radix(&self.suffix, 16).unwrap_or(0)
    }

    /// The container's name.
    #[must_use]
    pub fn container_name(&self) -> String {
        format!("hostler-{}-g{}-{}", self.model.slug(), self.generation, self.suffix)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.container_name())
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl schemars::JsonSchema for InstanceId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "InstanceId".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        String::json_schema(generator)
    }
}

impl Serialize for InstanceId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// One caller that waits for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

impl FromStr for GpuId {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::new(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_names_are_valid_for_podman() {
        let id = InstanceId::new("Qwen/Qwen3:8B".parse().unwrap(), Generation(7), 0xbeef);
        assert_eq!(id.container_name(), "hostler-qwen-qwen3-8b-g7-0000beef");
        assert!(id.container_name().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"hostler-qwen-qwen3-8b-g7-0000beef\"");
    }

    #[test]
    fn identity_survives_the_labels() {
        let id = InstanceId::new("m".parse().unwrap(), Generation(1), 0xff);
        let again = InstanceId::from_labels(id.model.clone(), id.generation, &id.suffix).unwrap();
        assert_eq!(id, again);
        for bad in ["", "xyz", "0000000G", "0000000A", "000000000"] {
            assert!(InstanceId::from_labels(id.model.clone(), id.generation, bad).is_err());
        }
    }

    #[test]
    fn host_is_a_device_of_its_own() {
        assert!(GpuId::host().is_host());
        assert!(!"GPU-1".parse::<GpuId>().unwrap().is_host());
    }
}
