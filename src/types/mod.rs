//! L0: the vocabulary every other layer speaks.
//!
//! Purpose: plain data with its units in the type. Owner: nobody; values are made, passed and dropped.
//!
//! # Architecture Invariant
//! Nothing here does I/O, reads a clock, spawns a task or logs. Time is a [`Moment`] that somebody passed in;
//! memory is [`Bytes`]; what could not be measured is [`Known::Unknown`], never a zero.

mod anatomy;
mod bytes;
mod cdi;
mod check;
mod collector;
mod denied;
mod door;
mod external;
mod fault;
pub mod files;
mod gpu;
mod hours;
mod ids;
mod image;
mod last_words;
mod moment;
mod name;
mod phase;
mod report;
pub mod sandbox;
pub mod sealed;
mod secret;
mod sleep;
mod spec;
mod status;
mod wish;

pub use anatomy::{Anatomy, CacheLayers, CacheShape, Reach};
pub use bytes::{Bytes, BytesError};
pub use cdi::{CDI_GENERATE, CDI_WRITE};
pub use check::{Check, CheckVerdict};
pub use collector::Collector;
pub use denied::Denied;
pub use door::{DoorSpec, Feedback};
pub use external::{ExternalHealth, ExternalSpec, ExternalStatus, Origin};
pub use fault::{Fault, FaultCode, one_line};
pub use gpu::{GpuReading, GpuSnapshot, GpuVitals, Known, ProcessMemory, Silence};
pub use hours::{DayMinute, Hours};
pub use ids::{Generation, GpuId, InstanceId, InstanceIdError, WaiterId};
pub use image::ImageRef;
pub use last_words::last_words;
pub use moment::Moment;
pub use name::{ModelName, NameError};
pub use phase::Phase;
pub use report::{DeviceHolder, DeviceVerdict, Report, Verdict, VictimVerdict};
pub use secret::Secret;
pub use sleep::SleepLevel;
#[cfg(test)]
pub use spec::test_spec;
pub use spec::{
    EngineKind, Eviction, ModelSpec, Need, NeedSource, OnFull, Placement, SpecHash, Transport,
    Weights,
};
#[cfg(test)]
pub use status::test_status;
pub use status::{
    Breaker, GpuProcess, GpuStatus, HealthStatus, LoadProgress, MeasuredNeed, ModelStatus, Problem,
    Pulled, SleepStatus, Status,
};
pub use wish::{Evict, Haste, Leaving, Outcome, Preview, PreviewGpu, Wish};
