//! Amounts of memory.

use std::fmt;
use std::iter::Sum;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An amount of memory in bytes.
///
/// Written by people as `512MiB`, `2GiB` or `1.5 GB`; serialised as a plain number of bytes, so that no reader of a
/// wire format needs our parser. Subtraction saturates: a ledger that would go below zero is at zero, and the planner
/// has its own check that this never hides an over-commitment.
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No memory at all. Not a stand-in for "unknown": that is [`super::Known::Unknown`].
    pub const ZERO: Self = Self(0);

    /// `n` mebibytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` gibibytes.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// `self - other`, or zero where `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self * num / den` without overflow in between; `den` must not be zero.
    #[must_use]
    pub fn scale(self, num: u32, den: u32) -> Self {
        let wide = u128::from(self.0) * u128::from(num) / u128::from(den.max(1));
        Self(u64::try_from(wide).unwrap_or(u64::MAX))
    }
}

impl std::ops::Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl std::ops::AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, |a, b| a + b)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` honours `{:>10}`, which the status table needs.
        f.pad(&bytesize::ByteSize(self.0).display().iec().to_string())
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A text that is no amount of memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an amount of memory; write for example \"512MiB\" or \"24GiB\"")]
pub struct BytesError {
    /// What was given.
    pub text: String,
}

impl FromStr for Bytes {
    type Err = BytesError;

    fn from_str(text: &str) -> Result<Self, BytesError> {
        let bad = || BytesError { text: text.to_owned() };
        // A bare number would leave the unit to guessing: "24" could mean bytes or GiB.
        if !text.trim_end().ends_with(['B', 'b']) {
            return Err(bad());
        }
        text.trim().parse::<bytesize::ByteSize>().map(|b| Self(b.as_u64())).map_err(|_| bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_people_write() {
        assert_eq!("2GiB".parse(), Ok(Bytes::gib(2)));
        assert_eq!("512 MiB".parse(), Ok(Bytes::mib(512)));
        assert_eq!("1.5GB".parse(), Ok(Bytes(1_500_000_000)));
    }

    #[test]
    fn refuses_a_number_without_a_unit() {
        for text in ["24", "", "GiB", "-1GiB", "lots", "24 G"] {
            let err = text.parse::<Bytes>().unwrap_err();
            assert!(err.to_string().contains("512MiB"), "{err}");
        }
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Bytes(1).saturating_sub(Bytes(2)), Bytes::ZERO);
        assert_eq!(Bytes(u64::MAX) + Bytes(1), Bytes(u64::MAX));
        assert_eq!(Bytes(100).scale(12, 10), Bytes(120));
        assert_eq!(Bytes(u64::MAX).scale(2, 1), Bytes(u64::MAX));
        assert_eq!([Bytes(1), Bytes(2)].into_iter().sum::<Bytes>(), Bytes(3));
    }

    #[test]
    fn prints_iec_units_and_pads() {
        assert_eq!(Bytes::gib(2).to_string(), "2.0 GiB");
        assert_eq!(format!("{:>9}", Bytes::mib(1)), "  1.0 MiB");
    }
}
