//! hostlerd.
fn main() {}
