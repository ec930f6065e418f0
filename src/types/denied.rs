//! Refusals.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Bytes, Fault, ModelName, Phase, Report};

/// Why a request got no lease. Closed; mapped once to HTTP (`proxy::error`) and once to D-Bus (`control::error`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Denied {
    /// No model of that name is configured.
    #[error("model {model:?} is not configured on this host")]
    UnknownModel {
        /// As the client wrote it.
        model: String,
    },
    /// It can never fit this host as configured: retrying is useless.
    #[error("model {model} needs {need} {}", too_much(*need, *devices, *largest, report.as_deref()))]
    NeverFits {
        /// The model.
        model: ModelName,
        /// Bytes needed on one device.
        need: Bytes,
        /// On so many equal devices.
        devices: u32,
        /// The most that any allowed device can give when nothing else runs.
        largest: Bytes,
        /// The plan's reasons, device by device.
        report: Option<Arc<Report>>,
    },
    /// It did not fit within the wait, or was not to wait (`on_full = "refuse"`): `why` names who stays and why.
    #[error("no room for model {model}: {why}")]
    NoRoom {
        /// The model.
        model: ModelName,
        /// What holds the memory.
        why: String,
        /// The plan's reasons, device by device; `None` where it was not for want of room.
        report: Option<Arc<Report>>,
        /// When to try again.
        #[serde(skip)]
        retry_after: Duration,
    },
    /// The load goes on, this request has waited long enough.
    #[error("model {model} is still {phase}; the load goes on")]
    StillLoading {
        /// The model.
        model: ModelName,
        /// Where it is.
        phase: Phase,
        /// What the load history says it still takes.
        #[serde(skip)]
        retry_after: Duration,
    },
    /// The last start failed, or the engine died; the next attempt is not due yet.
    #[error("model {model} failed: {fault}")]
    LoadFailed {
        /// The model.
        model: ModelName,
        /// What happened.
        fault: Fault,
        /// When the next attempt may be made.
        #[serde(skip)]
        retry_after: Duration,
    },
    /// Too many requests already wait for this model.
    #[error("{queued} requests already wait for model {model}")]
    QueueFull {
        /// The model.
        model: ModelName,
        /// How many wait.
        queued: usize,
        /// When to try again.
        #[serde(skip)]
        retry_after: Duration,
    },
    /// An operator wanted it measured, and that is not possible this time.
    #[error("the memory of model {model} could not be measured: {why}")]
    Unmeasurable {
        /// The model.
        model: ModelName,
        /// What was in the way.
        why: String,
    },
    /// An operator unloaded the model while this request waited for it.
    #[error("model {model} was unloaded by an operator while this request waited")]
    Unloaded {
        /// The model.
        model: ModelName,
    },
    /// The model is not in a state in which what an operator wants can be done.
    #[error("model {model}: {why}")]
    Conflict {
        /// The model.
        model: ModelName,
        /// Why not.
        why: String,
    },
    /// The daemon is stopping.
    #[error("hostler is shutting down")]
    ShuttingDown,
}

fn too_much(need: Bytes, devices: u32, largest: Bytes, report: Option<&Report>) -> String {
    if devices > 1 && need <= largest {
        let mut there = report.into_iter().flat_map(|report| &report.devices);
        let slices = there.any(|device| device.gpu.is_slice());
        let why = if slices { " (an engine sees one slice of MIG alone)" } else { "" };
        return format!("on each of {devices} equal devices, and there are not so many{why}");
    }
    let on =
        if devices > 1 { format!("on each of {devices} devices") } else { "on one device".into() };
    format!("{on}, but the largest offers {largest} when empty")
}

impl Denied {
    /// What a load is taken to last before one was seen.
    pub const LOAD_GUESS: Duration = Duration::from_secs(30);

    /// Still loading: `expected` to take so long in all, of which `passed` is over.
    #[must_use]
    pub fn loading(
        model: ModelName,
        phase: Phase,
        expected: Option<Duration>,
        passed: Duration,
    ) -> Self {
        let left = expected.unwrap_or(Self::LOAD_GUESS).saturating_sub(passed);
        Self::StillLoading { model, phase, retry_after: left.max(Duration::from_secs(1)) }
    }

    /// The same for who may not know of other models: without who holds the memory, and what there is of it.
    #[must_use]
    pub fn without_others(self) -> Self {
        let told =
            "what it needs is not free now; who holds it is told to keys without a list of models";
        match self {
            Self::NoRoom { model, retry_after, .. } => {
                Self::NoRoom { model, why: told.to_owned(), report: None, retry_after }
            }
            Self::NeverFits { model, need, devices, largest, .. } => {
                Self::NeverFits { model, need, devices, largest, report: None }
            }
            Self::UnknownModel { .. }
            | Self::StillLoading { .. }
            | Self::LoadFailed { .. }
            | Self::QueueFull { .. }
            | Self::Unmeasurable { .. }
            | Self::Unloaded { .. }
            | Self::Conflict { .. }
            | Self::ShuttingDown => self,
        }
    }

    /// The word for it in HTTP's `error.code`, logs and metrics.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownModel { .. } => "model_not_found",
            Self::NeverFits { .. } => "model_never_fits",
            Self::NoRoom { .. } => "no_room",
            Self::StillLoading { .. } => "model_loading",
            Self::LoadFailed { .. } => "model_load_failed",
            Self::QueueFull { .. } => "queue_full",
            Self::Unmeasurable { .. } => "model_unmeasurable",
            Self::Unloaded { .. } => "model_unloaded",
            Self::Conflict { .. } => "conflict",
            Self::ShuttingDown => "shutting_down",
        }
    }

    /// When a retry has a chance; `None` where it has none.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::UnknownModel { .. }
            | Self::NeverFits { .. }
            | Self::Unmeasurable { .. }
            | Self::Conflict { .. } => None,
            Self::NoRoom { retry_after, .. }
            | Self::StillLoading { retry_after, .. }
            | Self::LoadFailed { retry_after, .. }
            | Self::QueueFull { retry_after, .. } => Some(*retry_after),
            Self::Unloaded { .. } | Self::ShuttingDown => Some(Duration::from_secs(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DeviceVerdict, FaultCode, GpuId, Need, NeedSource, Verdict};

    #[test]
    fn what_never_fits_says_what_is_missing() {
        let text = |need, devices| {
            let (model, largest) = ("m".parse().unwrap(), Bytes::gib(8));
            let need = Bytes::gib(need);
            Denied::NeverFits { model, need, devices, largest, report: None }.to_string()
        };
        assert_eq!(
            text(9, 1),
            "model m needs 9.0 GiB on one device, but the largest offers 8.0 GiB when empty"
        );
        assert_eq!(
            text(9, 2),
            "model m needs 9.0 GiB on each of 2 devices, but the largest offers 8.0 GiB when empty"
        );
        assert_eq!(
            text(7, 2),
            "model m needs 7.0 GiB on each of 2 equal devices, and there are not so many"
        );
        let (model, need, largest): (ModelName, _, _) =
            ("m".parse().unwrap(), Bytes::gib(7), Bytes::gib(8));
        let slice = DeviceVerdict {
            gpu: GpuId::new("MIG-a"),
            free: largest,
            empty: largest,
            reserved: Bytes::ZERO,
            quarantined: Bytes::ZERO,
            foreign: Bytes::ZERO,
            kept: Bytes::ZERO,
            holders: vec![],
            verdict: Verdict::Fits,
        };
        let report = Some(Arc::new(Report {
            model: model.clone(),
            need: Need { bytes: need, source: NeedSource::Declared },
            devices: vec![slice],
            victims: vec![],
        }));
        let denied = Denied::NeverFits { model, need, devices: 2, largest, report };
        assert!(
            denied.to_string().ends_with("not so many (an engine sees one slice of MIG alone)")
        );
    }

    #[test]
    fn only_hopeless_refusals_have_no_retry() {
        let model: ModelName = "m".parse().unwrap();
        let d = Duration::from_secs(7);
        let all = [
            (Denied::UnknownModel { model: "x".into() }, None),
            (
                Denied::NeverFits {
                    model: model.clone(),
                    need: Bytes::gib(9),
                    devices: 1,
                    largest: Bytes::gib(8),
                    report: None,
                },
                None,
            ),
            (
                Denied::NoRoom {
                    model: model.clone(),
                    why: "busy".into(),
                    report: None,
                    retry_after: d,
                },
                Some(d),
            ),
            (
                Denied::StillLoading {
                    model: model.clone(),
                    phase: Phase::Loading,
                    retry_after: d,
                },
                Some(d),
            ),
            (
                Denied::LoadFailed {
                    model: model.clone(),
                    fault: Fault::new(FaultCode::EngineExited, "exit 1"),
                    retry_after: d,
                },
                Some(d),
            ),
            (Denied::QueueFull { model: model.clone(), queued: 3, retry_after: d }, Some(d)),
            (Denied::Unloaded { model }, Some(Duration::from_secs(1))),
            (Denied::ShuttingDown, Some(Duration::from_secs(1))),
        ];
        let mut codes = std::collections::BTreeSet::new();
        for (denied, retry) in &all {
            assert_eq!(denied.retry_after(), *retry, "{denied}");
            assert!(codes.insert(denied.code()), "{} is used twice", denied.code());
        }
    }
}
