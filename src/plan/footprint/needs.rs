//! What is promised on the devices that there are.

use std::collections::BTreeMap;

use super::EXCLUSIVE;
use crate::types::{Bytes, Need, NeedSource};

/// What is to be promised, and how much of it will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// With its margin, or its slack.
    pub need: Need,
    /// Where a device has no more left than this, it runs all the same: what was seen of it, or declared.
    pub least: Bytes,
}

impl From<Need> for Promise {
    /// All of it is needed.
    fn from(need: Need) -> Self {
        Self { need, least: need.bytes }
    }
}

/// What a model needs, by the product that its device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// On devices that it was not measured on.
    pub other: Promise,
    /// On devices of these names.
    pub by_name: BTreeMap<String, Promise>,
    /// What an engine that takes all it is given is told to take; `None`: as much as is promised, but for the slack.
    pub budget: Option<Bytes>,
    /// What such an engine takes beside what it is told, and is in the needs: see [`slack`](super::slack).
    pub slack: Bytes,
}

impl Needs {
    /// The need on a device called `name` that offers `empty` when nothing runs on it, and `alone` to one beside which none of ours does.
    ///
    /// What was measured has fitted: the margin on it is not a reason to refuse it, nor to wait for the few bytes that a display holds for
    /// as long as it is on. So it shrinks to what others leave, down to what was seen. An estimate may err: where it is more
    /// than the device has, the model gets the whole device to itself, and the engine has the last word. What was declared
    /// counts by itself: the slack beside it is no reason to refuse it, and is taken off what the engine is told.
    #[must_use]
    pub fn on(&self, name: &str, empty: Bytes, alone: Bytes) -> Need {
        let Promise { need, least } = self.by_name.get(name).copied().unwrap_or(self.other);
        let left = Need { bytes: need.bytes.min(alone.max(least).min(empty)), ..need };
        match need.source {
            NeedSource::Measured if empty > Bytes::ZERO => left,
            NeedSource::Estimated if need.bytes > empty => EXCLUSIVE,
            NeedSource::Declared if least <= empty => left,
            NeedSource::Measured
            | NeedSource::Estimated
            | NeedSource::Declared
            | NeedSource::Exclusive => need,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(source: NeedSource, bytes: u64, least: u64) -> Needs {
        let promise = |source, bytes, least| {
            let need = Need { bytes: Bytes(bytes), source };
            Promise { need, least: Bytes(least) }
        };
        let small = promise(NeedSource::Measured, 10, 9);
        let by_name = BTreeMap::from([("small".to_owned(), small)]);
        let slack = Bytes(bytes - least);
        Needs { other: promise(source, bytes, least), by_name, budget: None, slack }
    }

    fn need(source: NeedSource, bytes: u64) -> Need {
        Need { bytes: Bytes(bytes), source }
    }

    #[test]
    fn a_device_can_do_with_a_margin_less_and_an_estimate_may_err() {
        let on = |needs: &Needs, name| needs.on(name, Bytes(100), Bytes(100));
        let needs = at(NeedSource::Measured, 105, 93);
        assert_eq!(on(&needs, "large"), need(NeedSource::Measured, 100));
        assert_eq!(on(&needs, "small"), need(NeedSource::Measured, 10));
        assert_eq!(on(&at(NeedSource::Estimated, 105, 105), "large"), EXCLUSIVE);
        let declared = need(NeedSource::Declared, 105);
        assert_eq!(on(&at(NeedSource::Declared, 105, 105), "large"), declared);
        // What was declared just fits, and is not refused for it.
        let needs = at(NeedSource::Declared, 1014, 1000);
        for (empty, bytes) in [(1014, 1014), (1013, 1013), (1000, 1000), (999, 1014)] {
            let expected = need(NeedSource::Declared, bytes);
            assert_eq!(needs.on("any", Bytes(empty), Bytes(empty)), expected, "of {empty}");
        }
    }

    #[test]
    fn what_others_use_takes_of_the_margin_alone() {
        for source in [NeedSource::Measured, NeedSource::Declared] {
            let needs = at(source, 105, 93);
            for (alone, bytes) in [(100, 100), (99, 99), (93, 93), (92, 93), (0, 93)] {
                let on = needs.on("any", Bytes(100), Bytes(alone));
                assert_eq!(on, need(source, bytes), "{alone} are left");
            }
        }
        // It took of the headroom, too: it is not refused for that.
        let needs = at(NeedSource::Measured, 108, 103);
        assert_eq!(needs.on("any", Bytes(100), Bytes(90)), need(NeedSource::Measured, 100));
        // Of an estimate nothing was seen.
        let needs = at(NeedSource::Estimated, 95, 95);
        assert_eq!(needs.on("any", Bytes(100), Bytes(90)), need(NeedSource::Estimated, 95));
    }
}
