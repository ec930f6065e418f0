//! L2: the one owner of state.
pub mod handle;
pub mod ports;
