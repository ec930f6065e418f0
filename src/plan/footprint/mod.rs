//! How much memory a model needs on each of its devices: measured, declared, or guessed.
//!
//! Purpose: [`need`] says what to promise; [`Sampler`] measures a running instance; [`Book`] keeps what was measured, by
//! [`Key`]. Owner: the supervisor feeds one sampler an instance, and owns the one book. Invariants: a number is used only
//! for the key it was measured under; what could not be attributed is never taken for certain; an admin's declaration is
//! never undercut.

mod book;
mod key;
mod needs;
mod sampler;

use serde::{Deserialize, Serialize};

use super::deadline::Loads;
use super::estimate::estimate;
use crate::types::{Bytes, EngineKind, ModelSpec, Need, NeedSource};

pub use book::{Book, BookError};
pub use key::{Key, KeyRef};
pub use needs::{Needs, Promise};
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
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

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
    /// How long the loads of this very specification took, so that the next daemon knows what to expect. Absent in what an
    /// earlier version wrote.
    #[serde(default, skip_serializing_if = "Loads::is_empty")]
    pub loads: Loads,
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

/// The most that a model was seen to hold on any of its devices in this run of the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// So much.
    pub bytes: Bytes,
    /// It was ready by then, with the image that it has now: there was nothing more to load.
    pub whole: bool,
}

/// What a context takes, and what NCCL's buffers take on top, of each device: "Free memory on device cuda:0 (78.66/79.19 GiB) on
/// startup" is vLLM's word for an empty H100, (30.85/31.36 GiB) for an RTX 5090. Buffers differ by card and links; a rule of
/// thumb that errs upwards.
pub const SLACK: Bytes = Bytes::gib(1);

const EXCLUSIVE: Need = Need { bytes: Bytes::ZERO, source: NeedSource::Exclusive };

/// The memory to promise to one instance on each of its devices.
///
/// `measured` is the footprint of an earlier incarnation under the *same* [`Key`]; `peak` the most that any was seen to hold
/// in this run of the daemon. In order: the larger of declared and measured; measured; an [`estimate`] from what the model's
/// files say; else the whole device. What was measured counts with the margin of [`Footprint::promise`]. A peak of an engine
/// that was ready counts like a measurement of high confidence; one of a load that went no further, or of another image,
/// only says that it is not less. An admin's declaration is never undercut, and never believed against a larger
/// measurement.
///
/// vLLM takes what it is told to take ([`budget`]), so what it was seen to hold says nothing where nobody said how much: it
/// gets the whole device each time, and does not grow by a margin at each load. Where somebody did, its `slack` comes on top.
///
/// The least that will do is what was seen, or what was declared: neither a margin nor the slack keeps a model off a device that it fits.
#[must_use]
pub fn need(
    spec: &ModelSpec,
    slack: Bytes,
    measured: Option<&Footprint>,
    peak: Option<Peak>,
) -> Promise {
    let seen = measured.map(|m| m.peak_per_device).max(peak.map(|p| p.bytes));
    let promised = measured.map(Footprint::promise);
    let promised = promised.max(peak.map(|p| p.bytes.scale(Confidence::High.percent(), 100)));
    let takes_all = spec.engine == EngineKind::Vllm;
    let whole = measured.is_some() || peak.is_some_and(|p| p.whole);
    let told = budget(spec).filter(|_| spec.vram.is_some() || takes_all || !whole);
    let told = told.map(|told| (told, told + slack));
    let source = if spec.vram.is_some() { NeedSource::Declared } else { NeedSource::Estimated };
    let promise = |bytes, source, least| Promise { need: Need { bytes, source }, least };
    match (told, seen.zip(promised)) {
        (Some((_, told)), Some((seen, promised))) if seen > told => {
            promise(promised, NeedSource::Measured, seen)
        }
        (Some((least, told)), _) => promise(told, source, least),
        (None, Some((seen, promised))) if whole && !takes_all => {
            promise(promised, NeedSource::Measured, seen)
        }
        (None, _) => EXCLUSIVE.into(),
    }
}

/// What an engine that takes all it is given is told to take of each device: what the admin declared, or what is
/// estimated. It does not follow from measurements: it is their cause. `None`: all that is free.
#[must_use]
pub fn budget(spec: &ModelSpec) -> Option<Bytes> {
    let estimated =
        || spec.anatomy.as_ref().and_then(|a| estimate(a, spec)).map(|e| e.bytes_per_device);
    spec.vram.or_else(estimated)
}

/// What an engine that profiles its devices takes of each before it looks at what is free there, and does not count in what it
/// is told to take: its context and, where it is spread over several, the buffers through which they talk. With less free beside
/// its budget it refuses to start. `each`: for a context, and for buffers again.
#[must_use]
pub fn slack(spec: &ModelSpec, each: Bytes) -> Bytes {
    match (spec.engine.profiles_device(), spec.gpu_count) {
        (false, _) => Bytes::ZERO,
        (true, ..=1) => each,
        (true, _) => each + each,
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
        loads: Loads::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Anatomy, CacheShape, test_spec};

    fn peak(bytes: u64, whole: bool) -> Option<Peak> {
        Some(Peak { bytes: Bytes(bytes), whole })
    }

    fn with_files(spec: &mut ModelSpec) -> Bytes {
        let source = "a test".to_owned();
        let anatomy = Anatomy {
            weights: Bytes::gib(10),
            projector: Bytes::ZERO,
            cache: Some(CacheShape::default()),
            source,
        };
        spec.anatomy = Some(anatomy.clone());
        estimate(&anatomy, spec).unwrap().bytes_per_device
    }

    fn need(
        spec: &ModelSpec,
        slack: Bytes,
        measured: Option<&Footprint>,
        peak: Option<Peak>,
    ) -> Need {
        super::need(spec, slack, measured, peak).need
    }

    fn measured(bytes: u64) -> Need {
        Need { bytes: Bytes(bytes), source: NeedSource::Measured }
    }

    #[test]
    fn the_sources_in_order() {
        let mut spec = test_spec("m");
        assert_eq!(need(&spec, Bytes::ZERO, None, None), EXCLUSIVE);
        let estimated = with_files(&mut spec);
        assert!(estimated > Bytes::gib(10));
        let expected = Need { bytes: estimated, source: NeedSource::Estimated };
        assert_eq!(need(&spec, Bytes::ZERO, None, None), expected);
        let seen = test_footprint("m", 1000);
        assert_eq!(need(&spec, Bytes::ZERO, Some(&seen), None), measured(1050));
        spec.vram = Some(Bytes(1000));
        let declared = Need { bytes: Bytes(1000), source: NeedSource::Declared };
        assert_eq!(
            need(&spec, Bytes::ZERO, Some(&seen), None),
            declared,
            "it keeps to what was declared"
        );
        // A declaration is not believed against what was seen.
        assert_eq!(
            need(&spec, Bytes::ZERO, Some(&test_footprint("m", 1001)), None),
            measured(1051)
        );
        assert_eq!(need(&spec, Bytes::ZERO, None, peak(2000, true)), measured(2100));
    }

    #[test]
    fn the_least_that_will_do_is_without_any_margin() {
        let mut spec = test_spec("m");
        let least = |spec: &ModelSpec, measured: Option<&Footprint>, peak| {
            super::need(spec, Bytes(14), measured, peak).least
        };
        let seen = test_footprint("m", 1000);
        assert_eq!(least(&spec, None, None), Bytes::ZERO, "nothing is known");
        assert_eq!(least(&spec, Some(&seen), None), Bytes(1000));
        assert_eq!(least(&spec, Some(&seen), peak(1200, true)), Bytes(1200), "it was seen since");
        spec.vram = Some(Bytes(1100));
        assert_eq!(least(&spec, Some(&seen), None), Bytes(1100), "what was declared stands");
        assert_eq!(least(&spec, Some(&test_footprint("m", 1200)), None), Bytes(1200));
        spec.vram = None;
        let estimated = with_files(&mut spec);
        assert_eq!(least(&spec, None, None), estimated);
    }

    #[test]
    fn what_was_seen_of_a_part_is_not_the_whole() {
        let mut spec = test_spec("m");
        assert_eq!(need(&spec, Bytes::ZERO, None, peak(1000, true)), measured(1050));
        assert_eq!(need(&spec, Bytes::ZERO, None, peak(1000, false)), EXCLUSIVE);
        let estimated = with_files(&mut spec);
        let expected = Need { bytes: estimated, source: NeedSource::Estimated };
        assert_eq!(need(&spec, Bytes::ZERO, None, peak(1000, false)), expected);
        let more = estimated.0 * 2;
        let not_less = measured(Bytes(more).scale(105, 100).0);
        assert_eq!(need(&spec, Bytes::ZERO, None, peak(more, false)), not_less);
        assert_eq!(
            need(&spec, Bytes::ZERO, Some(&test_footprint("m", 1000)), peak(2000, false)),
            measured(2100)
        );
    }

    #[test]
    fn less_confidence_promises_more_of_the_peak() {
        let spec = test_spec("m");
        let mut seen = test_footprint("m", 1000);
        let expected =
            [(Confidence::High, 1050), (Confidence::Medium, 1100), (Confidence::Low, 1250)];
        for (confidence, bytes) in expected {
            seen.confidence = confidence;
            assert_eq!(need(&spec, Bytes::ZERO, Some(&seen), None), measured(bytes));
            // Whatever was written down, more than that was seen since.
            assert_eq!(need(&spec, Bytes::ZERO, Some(&seen), peak(2000, true)), measured(2100));
        }
    }

    #[test]
    fn what_takes_all_it_is_given_does_not_grow_by_a_margin_at_each_load() {
        let mut spec = test_spec("m");
        spec.engine = EngineKind::Vllm;
        // Nobody said how much: the whole device, and all of it was seen to be taken.
        assert_eq!(need(&spec, Bytes::ZERO, Some(&test_footprint("m", 1000)), None), EXCLUSIVE);
        for load in 0..20 {
            // It takes 1 % more than it is told: a context, graphs.
            spec.vram = Some(Bytes(1000));
            let told = budget(&spec).unwrap();
            assert_eq!(told, Bytes(1000));
            let seen = test_footprint("m", told.scale(101, 100).0);
            assert_eq!(need(&spec, Bytes::ZERO, Some(&seen), None), measured(1060), "load {load}");
        }
        spec.vram = None;
        let estimated = with_files(&mut spec);
        let less = test_footprint("m", 1000);
        assert_eq!(
            need(&spec, Bytes::ZERO, Some(&less), None).bytes,
            estimated,
            "it will take all of it"
        );
    }

    #[test]
    fn what_an_engine_takes_beside_what_it_is_told_is_promised_too() {
        let mut spec = test_spec("m");
        assert_eq!(slack(&spec, Bytes(7)), Bytes::ZERO, "llama.cpp allocates what it needs");
        spec.engine = EngineKind::Vllm;
        assert_eq!(slack(&spec, Bytes(7)), Bytes(7));
        spec.gpu_count = 2;
        assert_eq!(slack(&spec, Bytes(7)), Bytes(14), "and what they talk through");
        spec.vram = Some(Bytes(1000));
        let declared = |bytes| Need { bytes: Bytes(bytes), source: NeedSource::Declared };
        assert_eq!(need(&spec, Bytes(14), None, None), declared(1014));
        // It was seen to take it, and that is no more than is promised.
        assert_eq!(need(&spec, Bytes(14), Some(&test_footprint("m", 1010)), None), declared(1014));
        assert_eq!(need(&spec, Bytes(14), Some(&test_footprint("m", 1020)), None), measured(1071));
    }
}
