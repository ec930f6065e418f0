//! How much memory a model needs on each of its devices: measured, declared, or guessed.
//!
//! Purpose: [`need`] says what to promise; [`Sampler`] measures a running instance; [`Book`] keeps what was measured, by
//! [`Key`]. Owner: the supervisor feeds one sampler an instance, and owns the one book. Invariants: a number is used only
//! for the key it was measured under; what could not be attributed is never taken for certain; an admin's declaration is
//! never undercut.

mod book;
mod key;
mod sampler;

use serde::{Deserialize, Serialize};

use super::estimate::estimate;
use crate::types::{Bytes, ModelSpec, Need, NeedSource};

pub use book::{Book, BookError};
pub use key::Key;
pub use sampler::{DeviceSample, Disturbance, Measured, Sample, SampleRule, Sampler, Verdict};

/// How far a measurement is to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Of the device as a whole, or from few samples that vary.
    Low,
    /// From few samples, or from samples that vary.
    Medium,
    /// From many samples that hardly vary.
    High,
}

impl Confidence {
    /// What is promised for 100 bytes of measured peak.
    ///
    /// Chosen, not measured: two starts of one container differ a little (work buffers, order of loading), hence 105. Each
    /// step down doubles the excess or more: out of few samples the real peak is likely to be missing, and a difference
    /// of a device's totals lacks what a neighbour gave back meanwhile.
    const fn percent(self) -> u32 {
        match self {
            Self::High => 105,
            Self::Medium => 110,
            Self::Low => 125,
        }
    }
}

/// Who said whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The driver, for each process of the instance.
    Process,
    /// Nobody: it is how much more of the device is in use than before the start.
    Delta,
}

/// What one model was measured to need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Footprint {
    /// What it is true of.
    pub key: Key,
    /// Held in the steady state on the device where it holds most: the median of the samples.
    pub bytes_per_device: Bytes,
    /// The most that was seen on any of its devices, while loading too. Never below `bytes_per_device`.
    pub peak_per_device: Bytes,
    /// How many samples the median is of.
    pub samples: u32,
    /// Median absolute deviation of those samples.
    pub spread: Bytes,
    /// How far it is to be trusted.
    pub confidence: Confidence,
    /// How the memory was attributed.
    pub source: Source,
    /// When, in seconds since 1970, for people; nothing but the order of forgetting depends on it.
    pub measured_at_unix_s: u64,
}

impl Footprint {
    /// What to promise by this measurement alone: its peak and a margin that grows as the confidence falls, 5 % (high),
    /// 10 % (medium) or 25 % (low).
    ///
    /// The peak, not the median: an engine that is denied its peak fails, and a neighbour with it.
    #[must_use]
    pub fn promise(&self) -> Bytes {
        self.peak_per_device.scale(self.confidence.percent(), 100)
    }
}

/// The memory to promise to one instance on each of its devices.
///
/// `measured` is the footprint of an earlier incarnation under the *same* [`Key`]. In order: the larger of declared and
/// measured; measured; an [`estimate`] from what the model's files say; else the whole device. What was measured counts
/// with the margin of [`Footprint::promise`]. An admin's declaration is never undercut, because vLLM is told to use exactly that much, and
/// never believed against a larger measurement.
#[must_use]
pub fn need(spec: &ModelSpec, measured: Option<&Footprint>) -> Need {
    choose(spec, measured.map(Footprint::promise))
}

/// [`need`] for a peak per device that was watched over a whole life of the same specification, in this run of the
/// daemon: trusted like a measurement of high confidence.
#[must_use]
pub fn need_from_peak(spec: &ModelSpec, peak: Option<Bytes>) -> Need {
    choose(spec, peak.map(|p| p.scale(Confidence::High.percent(), 100)))
}

/// `measured` has its margin already.
fn choose(spec: &ModelSpec, measured: Option<Bytes>) -> Need {
    match (spec.vram, measured, &spec.anatomy) {
        (Some(declared), Some(seen), _) if seen > declared => {
            Need { bytes: seen, source: NeedSource::Measured }
        }
        (Some(declared), _, _) => Need { bytes: declared, source: NeedSource::Declared },
        (None, Some(seen), _) => Need { bytes: seen, source: NeedSource::Measured },
        (None, None, Some(anatomy)) => {
            let bytes = estimate(anatomy, spec).bytes_per_device;
            Need { bytes, source: NeedSource::Estimated }
        }
        (None, None, None) => Need { bytes: Bytes::ZERO, source: NeedSource::Exclusive },
    }
}

/// A footprint with nothing special about it.
#[cfg(test)]
fn test_footprint(model: &str, peak: u64) -> Footprint {
    Footprint {
        key: Key::new(&crate::types::test_spec(model), "sha256:1", "H100", "580.1"),
        bytes_per_device: Bytes(peak / 2),
        peak_per_device: Bytes(peak),
        samples: 5,
        spread: Bytes::ZERO,
        confidence: Confidence::High,
        source: Source::Process,
        measured_at_unix_s: 1_800_000_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Anatomy, test_spec};

    #[test]
    fn the_sources_in_order() {
        let mut spec = test_spec("m");
        assert_eq!(need(&spec, None).source, NeedSource::Exclusive);
        let source = "a test".to_owned();
        let anatomy = Anatomy { weights: Bytes::gib(10), cache: None, source };
        spec.anatomy = Some(anatomy.clone());
        let estimated = need(&spec, None);
        assert_eq!(estimated.source, NeedSource::Estimated);
        assert_eq!(estimated.bytes, estimate(&anatomy, &spec).bytes_per_device);
        assert!(estimated.bytes > Bytes::gib(10));
        let seen = test_footprint("m", 1000);
        let measured = need(&spec, Some(&seen));
        assert_eq!(measured, Need { bytes: Bytes(1050), source: NeedSource::Measured });
        spec.vram = Some(Bytes(2000));
        let declared = need(&spec, Some(&seen));
        assert_eq!(declared, Need { bytes: Bytes(2000), source: NeedSource::Declared });
        // A declaration is not believed against what was seen.
        assert_eq!(need(&spec, Some(&test_footprint("m", 3000))).source, NeedSource::Measured);
        assert_eq!(need(&spec, None).bytes, Bytes(2000));
    }

    #[test]
    fn less_confidence_promises_more_of_the_peak() {
        let spec = test_spec("m");
        let mut seen = test_footprint("m", 1000);
        let expected =
            [(Confidence::High, 1050), (Confidence::Medium, 1100), (Confidence::Low, 1250)];
        for (confidence, bytes) in expected {
            seen.confidence = confidence;
            let measured = Need { bytes: Bytes(bytes), source: NeedSource::Measured };
            assert_eq!(need(&spec, Some(&seen)), measured);
        }
    }

    #[test]
    fn a_bare_peak_counts_like_a_good_measurement() {
        let mut spec = test_spec("m");
        for vram in [None, Some(Bytes(1040)), Some(Bytes(2000))] {
            spec.vram = vram;
            let seen = test_footprint("m", 1000);
            assert_eq!(need_from_peak(&spec, Some(Bytes(1000))), need(&spec, Some(&seen)));
            assert_eq!(need_from_peak(&spec, None), need(&spec, None));
        }
    }
}
