//! L1: pure planning: who may use which memory.
//!
//! Purpose: all arithmetic about device memory, and the decision where a model goes and who has to leave for it. Owner:
//! the supervisor's `State` owns the one [`Ledger`]; [`plan`] borrows it. Invariants: no I/O, no clock, no randomness: the
//! same input gives the same plan; a byte is promised at most once; what was not measured is never counted as free.
//!
//! # Architecture Invariant
//! A [`Decision`] leaves no choices to whoever carries it out. If the executor wants an `if`, it belongs here.

mod claims;
mod deadline;
pub mod estimate;
mod eviction;
mod footprint;
mod holder;
mod ledger;
mod planner;
pub mod policy;
mod pressure;
mod sleep;

pub use claims::Claims;
pub use deadline::{Loads, PATIENCE, Pace};
pub use footprint::{
    Book, BookError, Confidence, DeviceSample, Disturbance, Footprint, Key, KeyRef, Measured,
    Needs, Peak, Promise, SLACK, Sample, SampleRule, Sampler, Source, Verdict, budget, need, slack,
};
pub use holder::{Holder, Standing};
pub use ledger::{Hold, Ledger, Missing, ReleaseRule, Row, Stage, Usage};
pub use planner::{Decision, Plan, Rules, Want, equals, plan};
pub use policy::Demand;
pub use pressure::{Relief, relieve};
pub use sleep::{Leave, SleepRules, Sleeper, Victim, idle_leave, idle_rung};
