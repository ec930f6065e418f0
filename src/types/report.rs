//! Why a plan is what it is: made by the planner, read by operators and by clients who wait.

use std::fmt;

use serde::Serialize;

use super::{Bytes, GpuId, InstanceId, ModelName, Need, SleepLevel};

/// The planner's reasons, for every device and every possible victim. Shown to operators and to clients who wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Report {
    /// For which model.
    pub model: ModelName,
    /// What it needs per device.
    pub need: Need,
    /// In the order of the identifiers.
    pub devices: Vec<DeviceVerdict>,
    /// Instances that hold memory there, and whether they could leave.
    pub victims: Vec<VictimVerdict>,
}

/// One device's part of a [`Report`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct DeviceVerdict {
    /// Which.
    pub gpu: GpuId,
    /// What could be promised on it now.
    pub free: Bytes,
    /// What it offers when nothing of ours runs.
    pub empty: Bytes,
    /// Promised to instances of ours, ready or not, those included whose release has not been seen.
    pub reserved: Bytes,
    /// Not given back by instances that are gone.
    pub quarantined: Bytes,
    /// In use by processes that are not ours.
    pub foreign: Bytes,
    /// Kept for models whose turn is first.
    pub kept: Bytes,
    /// Whose the two first are: every instance that is charged here, also those that no model has any more.
    pub holders: Vec<DeviceHolder>,
    /// The judgement.
    pub verdict: Verdict,
}

/// One instance's part of a [`DeviceVerdict`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct DeviceHolder {
    /// Which.
    pub instance: InstanceId,
    /// Charged to it here.
    pub bytes: Bytes,
}

/// Judgement of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The model goes here.
    Chosen,
    /// It would fit, another device fits more tightly.
    Fits,
    /// It is kept for a model whose turn is first: of higher priority, or one that has waited longer.
    Kept,
    /// Another start or stop is under way here.
    Gated,
    /// It would fit after an eviction.
    FitsAfterEviction,
    /// Those who would have to leave may not: the victims say why.
    Occupied,
    /// Foreign processes hold the memory.
    Foreign,
    /// It is too small even when empty.
    TooSmall,
}

/// One instance's part of a [`Report`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct VictimVerdict {
    /// Which.
    pub instance: InstanceId,
    /// Why it may not leave; `None`: it may.
    pub spared: Option<&'static str>,
    /// It was chosen.
    pub chosen: bool,
    /// It is put to sleep, so deep, instead of being stopped.
    pub asleep: Option<SleepLevel>,
    /// Why it is stopped and not put to sleep, where it was chosen and is stopped.
    pub stopped_because: Option<&'static str>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} needs {} per device", self.model, self.need.bytes)?;
        for d in &self.devices {
            let word = match d.verdict {
                Verdict::Chosen => "chosen",
                Verdict::Fits => "fits",
                Verdict::Kept => "kept for a model whose turn is first",
                Verdict::Gated => "another model is starting or stopping there",
                Verdict::FitsAfterEviction => "fits after an eviction",
                Verdict::Occupied => "held by models that stay",
                Verdict::Foreign => "held by processes that are not Hostler's",
                Verdict::TooSmall => "too small",
            };
            write!(f, "; {}: {} free of {}, {word}", d.gpu, d.free, d.empty)?;
        }
        let kept = self.victims.iter().filter_map(|v| v.spared.map(|why| (&v.instance, why)));
        for (instance, why) in kept {
            write!(f, "; {} stays: {why}", instance.model)?;
        }
        for v in self.victims.iter().filter(|v| v.chosen) {
            let model = &v.instance.model;
            match (v.asleep, v.stopped_because) {
                (Some(level), _) => {
                    write!(f, "; {model} is asleep instead of stopped (level {level})")?
                }
                (None, Some(why)) => write!(f, "; {model} is stopped: {why}")?,
                (None, None) => {}
            }
        }
        Ok(())
    }
}
