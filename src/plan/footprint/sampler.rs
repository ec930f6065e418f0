//! Measuring one running instance.
//!
//! ```text
//!   loading ──ready()──▶ More ──enough samples that agree──▶ Steady ◀─┐ further samples:
//!   (peak only)          ▲  │                                 │  └────┘ better numbers
//!                        │  └─memory of others grew─▶ Voided ◀┘
//!                        └───────next sample────────────┘ │
//!                           too often, or too long ───────┴─▶ GaveUp
//!                           nothing held for a minute ──────▶ GaveUp(Nothing) ──memory──▶ More
//! ```
//! Purpose: from readings of devices to numbers with a confidence. Owner: the supervisor, one [`Sampler`] an instance, from
//! its start to its end. Invariants: unknown is never zero; a window in which somebody else's memory grew counts for nothing;
//! what was attributed by processes is never mixed with differences of totals.
//!
//! # Attribution
//! Where the driver knows what each process holds, that is what counts, and what else is on the device only tells whether
//! the time was quiet. Where it does not, the instance is taken to hold what is in use now and was not before its
//! start. That holds only as long as nothing else on the device changes, so there a disturbance ends the sampling, and
//! the confidence is low whatever the samples say.

mod disturbance;
mod rule;

use std::collections::{BTreeMap, VecDeque};

use super::{Confidence, Footprint, Key, Source};
use crate::plan::Loads;
use crate::types::{Bytes, GpuId, Known, Moment};

pub use disturbance::Disturbance;
pub use rule::SampleRule;

/// One device at one time, as one instance sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSample {
    /// Held by the instance's own processes, as the driver attributes it. Before the start: zero.
    pub own: Known<Bytes>,
    /// In use by anybody.
    pub device_used: Bytes,
    /// Charged to other instances of ours.
    pub others: Bytes,
    /// In use by nobody of ours; unknown where the driver attributes nothing, because then it would be a guess.
    pub foreign: Known<Bytes>,
}

/// All devices of one instance at one time.
pub type Sample = BTreeMap<GpuId, DeviceSample>;

/// Numbers of a steady state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Median of the samples, on the device where the instance holds most.
    pub median: Bytes,
    /// The most ever seen, samples before the steady state included.
    pub peak: Bytes,
    /// Samples that the median is of.
    pub samples: u32,
    /// Their median absolute deviation.
    pub spread: Bytes,
    /// How far to trust them.
    pub confidence: Confidence,
    /// How they were attributed.
    pub source: Source,
}

impl Measured {
    /// The footprint to record.
    #[must_use]
    pub fn footprint(self, key: Key, measured_at_unix_s: u64) -> Footprint {
        Footprint {
            key,
            bytes_per_device: self.median,
            peak_per_device: self.peak,
            samples: self.samples,
            spread: self.spread,
            confidence: self.confidence,
            source: self.source,
            measured_at_unix_s,
            loads: Loads::default(),
        }
    }
}

/// What a sample led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    More,
    /// All samples so far are void; go on.
    Voided(Disturbance),
    /// The samples agree. Further samples may give better numbers.
    Steady(Measured),
    /// There will be no (further) numbers; every further sample says so again.
    GaveUp(Disturbance),
}

/// Measures one instance. See the module.
#[derive(Clone, Debug)]
pub struct Sampler {
    rule: SampleRule,
    /// The devices before the start; empty: not known, as for an instance that was adopted.
    before: Sample,
    ready: Option<Moment>,
    source: Option<Source>,
    /// Counted samples, oldest first: when, and the most on any device.
    window: VecDeque<(Moment, Bytes)>,
    /// The devices of the window, with the least that others held on each since it began; where nothing is attributed,
    /// with what was in use when it began.
    quiet: BTreeMap<GpuId, Known<Bytes>>,
    peak: Bytes,
    /// So many devices were read at once.
    devices: usize,
    /// No memory of it was seen since it is ready: the first and the last sample that say so.
    nothing: Option<(Moment, Moment)>,
    voids: u32,
    /// There was a steady state: the numbers are out, and what follows can only better them.
    settled: bool,
    gave_up: Option<Disturbance>,
}

impl Sampler {
    /// A sampler for an instance that is about to start. `before`: its devices just before that, once what was evicted
    /// for it is gone; empty where it runs already.
    #[must_use]
    pub fn new(rule: SampleRule, before: Sample) -> Self {
        Self {
            rule,
            devices: before.len(),
            before,
            ready: None,
            source: None,
            window: VecDeque::new(),
            quiet: BTreeMap::new(),
            peak: Bytes::ZERO,
            nothing: None,
            voids: 0,
            settled: false,
            gave_up: None,
        }
    }

    /// The engine is ready: from now on its use is expected to settle. Until then samples count for the peak only,
    /// because a pause in loading looks steady too. Repeats change nothing.
    pub fn ready(&mut self, now: Moment) {
        self.ready.get_or_insert(now);
    }

    /// The most that was seen on any of its devices, from the start on; `None`: nothing was.
    #[must_use]
    pub fn peak(&self) -> Option<Bytes> {
        Some(self.peak).filter(|p| *p > Bytes::ZERO)
    }

    /// Whether it is ready, and no memory of it is seen on its devices, for a minute or more.
    #[must_use]
    pub fn holds_nothing(&self) -> bool {
        self.gave_up == Some(Disturbance::Nothing)
    }

    /// Takes in a reading that was begun at `now`.
    pub fn sample(&mut self, now: Moment, sample: &Sample) -> Verdict {
        let own = self.attribute(sample);
        if let Ok(own) = own {
            self.peak = self.peak.max(own);
        }
        match &self.gave_up {
            // An engine that takes its memory with its first work settles from here on.
            Some(Disturbance::Nothing) if self.holds_something() => {
                self.gave_up = None;
                self.ready = Some(now);
            }
            Some(why) => return Verdict::GaveUp(why.clone()),
            None => {}
        }
        let Some(ready) = self.ready else { return Verdict::More };
        // What is held on a device that was not read is not known. And what computes on the CPU holds the host's memory: how
        // little of it is no sign of anything.
        self.devices = self.devices.max(sample.len());
        let told = !sample.is_empty()
            && sample.len() == self.devices
            && !sample.keys().any(GpuId::is_host);
        // Where it is attributed, what others do meanwhile makes nothing of it more.
        if told && self.source.is_none() && own == Ok(Bytes::ZERO) {
            return self.hold_nothing(now);
        }
        let own = match own.and_then(|own| self.listen(sample).map(|()| own)) {
            Ok(own) => own,
            Err(why) => return self.void(why),
        };
        if told && !self.holds_something() {
            return self.hold_nothing(now);
        }
        self.nothing = None;
        let verdict = self.count(now, own);
        if !self.settled && now.since(ready) > self.rule.patience {
            return self.give_up(Disturbance::Restless);
        }
        verdict
    }

    /// Whether memory of it was ever seen. Of a difference only what is more than devices breathe by.
    fn holds_something(&self) -> bool {
        let breath = match self.source {
            Some(Source::Delta) => self.rule.steady_floor,
            Some(Source::Process) | None => Bytes::ZERO,
        };
        self.peak > breath
    }

    /// Another sample of an engine that is ready and holds nothing.
    fn hold_nothing(&mut self, now: Moment) -> Verdict {
        // While it sleeps, or the driver does not answer, there are no samples, and that time says nothing.
        let follows = |(_, last): &(Moment, Moment)| now.since(*last) <= self.rule.window;
        let since = self.nothing.filter(follows).map_or(now, |(since, _)| since);
        self.nothing = Some((since, now));
        if now.since(since) < self.rule.nothing {
            return Verdict::More;
        }
        self.give_up(Disturbance::Nothing)
    }

    /// What the instance holds on the device where it holds most; zero: nothing yet.
    fn attribute(&mut self, sample: &Sample) -> Result<Bytes, Disturbance> {
        let mut most = Bytes::ZERO;
        for device in sample.values() {
            match (device.own, self.source) {
                (Known::Known(own), _) => most = most.max(own),
                (Known::Unknown, Some(Source::Process)) => return Err(Disturbance::Unattributed),
                (Known::Unknown, None | Some(Source::Delta)) => {
                    self.source = Some(Source::Delta);
                    return self.difference(sample);
                }
            }
        }
        if most > Bytes::ZERO && self.source != Some(Source::Process) {
            // On an idle device the driver names nobody until the engine has a context. What was guessed then is worth
            // nothing now.
            self.source = Some(Source::Process);
            self.window.clear();
            self.quiet.clear();
            self.peak = Bytes::ZERO;
        }
        Ok(most)
    }

    /// What is in use now and was not before the start, if everybody else stayed as they were.
    fn difference(&self, sample: &Sample) -> Result<Bytes, Disturbance> {
        let mut most = Bytes::ZERO;
        for (gpu, device) in sample {
            let before = self.before.get(gpu).ok_or(Disturbance::NothingBefore)?;
            let others = before.others.0.abs_diff(device.others.0);
            let foreign = match (before.foreign, device.foreign) {
                (Known::Known(a), Known::Known(b)) => a.0.abs_diff(b.0),
                (Known::Unknown, _) | (_, Known::Unknown) => 0,
            };
            let changed = Bytes(others.max(foreign));
            if changed > self.rule.foreign_slack {
                return Err(Disturbance::Others(gpu.clone(), changed));
            }
            // Who left meanwhile hides what the engine took.
            let fell = before.device_used.saturating_sub(device.device_used);
            if fell > self.rule.foreign_slack {
                return Err(Disturbance::Somebody(gpu.clone(), fell));
            }
            most = most.max(device.device_used.saturating_sub(before.device_used));
        }
        Ok(most)
    }

    /// Whether everybody else on the devices was quiet since the window began.
    fn listen(&mut self, sample: &Sample) -> Result<(), Disturbance> {
        let delta = self.source == Some(Source::Delta);
        if self.quiet.is_empty() {
            let heard =
                |d: &DeviceSample| if delta { Known::Known(d.device_used) } else { d.foreign };
            self.quiet = sample.iter().map(|(gpu, d)| (gpu.clone(), heard(d))).collect();
        }
        if !self.quiet.keys().eq(sample.keys()) {
            return Err(Disturbance::Devices);
        }
        for (gpu, device) in sample {
            if delta {
                // The engine's own change looks like anybody's.
                let used = self.quiet.get(gpu).and_then(Known::get).unwrap_or(device.device_used);
                let changed = Bytes(used.0.abs_diff(device.device_used.0));
                if changed > self.rule.foreign_slack {
                    return Err(Disturbance::Somebody(gpu.clone(), changed));
                }
                continue;
            }
            let Known::Known(foreign) = device.foreign else { continue };
            let least = self.quiet.get(gpu).and_then(Known::get).unwrap_or(foreign);
            let grown = foreign.saturating_sub(least);
            if grown > self.rule.foreign_slack {
                return Err(Disturbance::Others(gpu.clone(), grown));
            }
            self.quiet.insert(gpu.clone(), Known::Known(foreign.min(least)));
        }
        Ok(())
    }

    fn count(&mut self, now: Moment, own: Bytes) -> Verdict {
        let rule = self.rule;
        let soon = self.window.back().is_some_and(|(at, _)| now.since(*at) < rule.spacing_min);
        if own == Bytes::ZERO || soon {
            return Verdict::More;
        }
        self.window.push_back((now, own));
        self.window.retain(|(at, _)| now.since(*at) <= rule.window);
        if self.window.len() > rule.samples_good {
            self.window.pop_front();
        }
        match self.judge(own) {
            Some(measured) => {
                self.settled = true;
                Verdict::Steady(measured)
            }
            None => Verdict::More,
        }
    }

    /// The numbers of the window, if its samples agree. `newest` has to agree too: the deviation says nothing about a
    /// minority, and the newest samples are the minority in which growth begins.
    fn judge(&self, newest: Bytes) -> Option<Measured> {
        let samples = self.window.len();
        if samples < self.rule.samples_min.max(1) {
            return None;
        }
        let median = median(self.window.iter().map(|(_, own)| *own));
        let spread = median_of_deviations(self.window.iter().map(|(_, own)| *own), median);
        let limit = median.scale(1, self.rule.steady_parts).max(self.rule.steady_floor);
        let off = Bytes(newest.0.abs_diff(median.0));
        if spread > limit || off > limit {
            return None;
        }
        let source = self.source?;
        let confidence = match source {
            Source::Delta => Confidence::Low,
            Source::Process => {
                let many = samples >= self.rule.samples_good;
                let calm = spread <= limit.scale(1, 4);
                match (many, calm) {
                    (true, true) => Confidence::High,
                    (true, false) | (false, true) => Confidence::Medium,
                    (false, false) => Confidence::Low,
                }
            }
        };
        let samples = u32::try_from(samples).unwrap_or(u32::MAX);
        Some(Measured { median, peak: self.peak, samples, spread, confidence, source })
    }

    fn void(&mut self, why: Disturbance) -> Verdict {
        self.window.clear();
        self.quiet.clear();
        self.nothing = None;
        if !self.settled {
            self.voids += 1;
        }
        // A difference from before the start means nothing any more once somebody else has changed.
        if self.source == Some(Source::Delta) || self.voids > self.rule.voids_max {
            return self.give_up(why);
        }
        Verdict::Voided(why)
    }

    fn give_up(&mut self, why: Disturbance) -> Verdict {
        self.gave_up = Some(why.clone());
        Verdict::GaveUp(why)
    }
}

/// The upper one of two in the middle: promising too little is the worse mistake. Zero of nothing.
fn median(values: impl Iterator<Item = Bytes>) -> Bytes {
    let mut sorted: Vec<Bytes> = values.collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(Bytes::ZERO)
}

fn median_of_deviations(values: impl Iterator<Item = Bytes>, from: Bytes) -> Bytes {
    median(values.map(|v| Bytes(v.0.abs_diff(from.0))))
}

#[cfg(test)]
mod tests;
