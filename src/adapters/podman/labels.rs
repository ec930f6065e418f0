//! An instance's identity as container labels.
//!
//! Purpose: what adoption needs after a restart of the daemon travels with the container, not in a file of ours.
//! Invariant: what [`to_labels`] writes, [`identity`] reads back; anything else is `None`, never a guess.

use std::collections::BTreeMap;

use crate::supervisor::ports::{ContainerSpec, FoundIdentity};
use crate::types::{
    Bytes, Generation, GpuId, InstanceId, Need, NeedSource, Placement, SpecHash, Transport,
};

/// Which daemon a container belongs to; all look-ups filter by it.
pub const NAMESPACE: &str = "io.hostler.namespace";
/// Marks throw-away pods of the network proof; the value is the namespace. They do not carry [`NAMESPACE`].
pub const PROOF: &str = "io.hostler.proof";
const MODEL: &str = "io.hostler.model";
const GENERATION: &str = "io.hostler.generation";
const SUFFIX: &str = "io.hostler.suffix";
const SPEC_HASH: &str = "io.hostler.spec-hash";
const GPUS: &str = "io.hostler.gpus";
const NEED: &str = "io.hostler.need";
const NEED_SOURCE: &str = "io.hostler.need-source";
const DEVICE_TOTAL: &str = "io.hostler.device-total";
const TRANSPORT: &str = "io.hostler.transport";
const VERSION: &str = "io.hostler.version";
/// The variable of the environment that holds the engine's key, where it asks for one.
const KEY_VARIABLE: &str = "io.hostler.key-variable";

/// All labels of a container.
#[must_use]
pub fn to_labels(spec: &ContainerSpec, namespace: &str) -> BTreeMap<String, String> {
    let gpus: Vec<&str> = spec.placement.gpus.iter().map(GpuId::as_str).collect();
    let mut labels = BTreeMap::from(
        [
            (NAMESPACE, namespace.to_owned()),
            (MODEL, spec.instance.model.to_string()),
            (GENERATION, spec.instance.generation.to_string()),
            (SUFFIX, spec.instance.suffix.to_string()),
            (SPEC_HASH, spec.spec_hash.0.clone()),
            (GPUS, gpus.join(",")),
            (NEED, spec.placement.need.bytes.0.to_string()),
            (NEED_SOURCE, source_word(spec.placement.need.source).to_owned()),
            (DEVICE_TOTAL, spec.placement.device_total.0.to_string()),
            (TRANSPORT, transport_word(spec.transport).to_owned()),
            (VERSION, env!("CARGO_PKG_VERSION").to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    if let Some(variable) = &spec.key_variable {
        labels.insert(KEY_VARIABLE.to_owned(), variable.clone());
    }
    labels
}

/// Which variable of the environment holds the engine's key; `None`: it asks for none.
#[must_use]
pub fn key_variable(labels: &BTreeMap<String, String>) -> Option<&str> {
    labels.get(KEY_VARIABLE).map(String::as_str)
}

/// Reads the identity back; `None` where a label is missing or damaged.
#[must_use]
pub fn identity(labels: &BTreeMap<String, String>) -> Option<FoundIdentity> {
    let text = |key: &str| labels.get(key).map(String::as_str);
    let model = text(MODEL)?.parse().ok()?;
    let generation = Generation(text(GENERATION)?.parse().ok()?);
    let instance = InstanceId::from_labels(model, generation, text(SUFFIX)?).ok()?;
    let gpus: Vec<GpuId> =
        text(GPUS)?.split(',').filter(|id| !id.is_empty()).map(GpuId::new).collect();
    let hash = text(SPEC_HASH)?;
    if gpus.is_empty() || hash.is_empty() {
        return None;
    }
    let need =
        Need { bytes: Bytes(text(NEED)?.parse().ok()?), source: parse_source(text(NEED_SOURCE)?)? };
    let device_total = Bytes(text(DEVICE_TOTAL)?.parse().ok()?);
    // It was told long ago what to take.
    let placement = Placement { gpus, need, budget: need.bytes, device_total };
    Some(FoundIdentity { instance, spec_hash: SpecHash(hash.to_owned()), placement })
}

/// How the container's engine listens; `None` where the label is missing or damaged.
#[must_use]
pub fn transport(labels: &BTreeMap<String, String>) -> Option<Transport> {
    match labels.get(TRANSPORT)?.as_str() {
        "unix" => Some(Transport::Unix),
        "tcp" => Some(Transport::Tcp),
        _ => None,
    }
}

/// The word for a transport in labels and names.
#[must_use]
pub const fn transport_word(transport: Transport) -> &'static str {
    match transport {
        Transport::Unix => "unix",
        Transport::Tcp => "tcp",
    }
}

const fn source_word(source: NeedSource) -> &'static str {
    match source {
        NeedSource::Measured => "measured",
        NeedSource::Declared => "declared",
        NeedSource::Estimated => "estimated",
        NeedSource::Exclusive => "exclusive",
    }
}

fn parse_source(word: &str) -> Option<NeedSource> {
    [NeedSource::Measured, NeedSource::Declared, NeedSource::Estimated, NeedSource::Exclusive]
        .into_iter()
        .find(|source| source_word(*source) == word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::podman::create::tests::spec;

    #[test]
    fn the_identity_survives_the_labels() {
        for source in [
            NeedSource::Measured,
            NeedSource::Declared,
            NeedSource::Estimated,
            NeedSource::Exclusive,
        ] {
            for transport_ in [Transport::Unix, Transport::Tcp] {
                let mut spec = spec(transport_);
                spec.placement.gpus = vec![GpuId::new("GPU-1"), GpuId::new("MIG-2")];
                spec.placement.need.source = source;
                let labels = to_labels(&spec, "ns");
                let found = identity(&labels).unwrap();
                assert_eq!(found.instance, spec.instance);
                assert_eq!(found.spec_hash, spec.spec_hash);
                assert_eq!(found.placement, spec.placement);
                assert_eq!(transport(&labels), Some(transport_));
                assert_eq!(labels[NAMESPACE], "ns");
            }
        }
    }

    #[test]
    fn a_damaged_label_is_no_identity() {
        let good = to_labels(&spec(Transport::Unix), "ns");
        assert!(identity(&good).is_some());
        for key in [MODEL, GENERATION, SUFFIX, SPEC_HASH, GPUS, NEED, NEED_SOURCE, DEVICE_TOTAL] {
            let mut missing = good.clone();
            missing.remove(key);
            assert_eq!(identity(&missing), None, "{key} missing");
            let mut damaged = good.clone();
            damaged.insert(key.to_owned(), String::new());
            assert_eq!(identity(&damaged), None, "{key} empty");
        }
    }
}
