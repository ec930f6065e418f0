//! L3: what people can see of the inside. For now: logs.

pub mod log;
