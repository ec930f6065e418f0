//! How deep an engine sleeps.

use std::fmt;

use serde::{Serialize, Serializer};

/// A rung of the sleep ladder, in vLLM's numbers. Both give the same device memory back; they differ in what they take of
/// the host's and in what a wake costs. Deeper compares greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SleepLevel {
    /// Weights are copied to the host's memory, the cache is dropped.
    One,
    /// Weights and cache are dropped; a wake reads the weights from their files again.
    Two,
}

impl SleepLevel {
    /// Its number in the configuration and on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

impl fmt::Display for SleepLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl schemars::JsonSchema for SleepLevel {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SleepLevel".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "integer", "enum": [1, 2] })
    }
}

impl Serialize for SleepLevel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(serde_json::to_string(&[SleepLevel::One, SleepLevel::Two]).unwrap(), "[1,2]");
        assert_eq!(SleepLevel::Two.to_string(), "2");
        assert!(SleepLevel::One < SleepLevel::Two);
    }
}
