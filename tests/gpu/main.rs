//! The NVML adapter over a scripted `libnvidia-ml.so.1`: the real wrapper, real `dlopen`, real thread. And, where there is
//! a GPU, over the real library.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test reports its failure"
)]

mod faults;
mod memory;
mod real;
mod rig;
mod slow;
mod vitals;
