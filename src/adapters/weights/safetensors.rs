//! The header of a safetensors file: how large its tensors are and of which type.
//!
//! Purpose: the true size of a model's weights, also of a file that was cut short. Owner: nobody; bytes in, numbers out.
//! Invariants: no input panics; names of tensors are dropped as they are read. Format: a little-endian length of 8 bytes,
//! then so many bytes of JSON, then the data.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::types::Bytes;

/// The largest header that is read. The format allows 100 MB; a model of 10,000 tensors has about 1 MB.
pub const HEADER_MAX: u64 = 64 << 20;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensors {
    /// Sum of all tensors' sizes.
    pub bytes: Bytes,
    /// Where the last tensor ends, from the end of the header.
    pub end: Bytes,
    /// Bytes of one number in the float type that most of the data has (4, or 2 for f16 and bf16); `None` where there
    /// is no such data.
    pub element_bytes: Option<u32>,
}

/// The header's length from a file's first 8 bytes.
///
/// # Errors
/// With the reason, where it is too long to be one.
pub fn header_length(first: [u8; 8]) -> Result<u64, &'static str> {
    let length = u64::from_le_bytes(first);
    if length > HEADER_MAX { Err("its header is too long to be one") } else { Ok(length) }
}

/// Adds up a header: the JSON alone, without the length before it.
///
/// # Errors
/// With the reason, where it is no such header.
pub fn parse(header: &[u8]) -> Result<Tensors, String> {
    let sums: Sums =
        serde_json::from_slice(header).map_err(|err| format!("its header is damaged: {err}"))?;
    let element_bytes = match (sums.half, sums.full) {
        (Bytes::ZERO, Bytes::ZERO) => None,
        (half, full) if full > half => Some(4),
        _ => Some(2),
    };
    Ok(Tensors { bytes: sums.half + sums.full + sums.other, end: sums.end, element_bytes })
}

#[derive(Default)]
struct Sums {
    /// f16 and bf16.
    half: Bytes,
    /// f32.
    full: Bytes,
    other: Bytes,
    end: Bytes,
}

#[derive(serde::Deserialize)]
struct Tensor {
    dtype: String,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Sums {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Header;
        impl<'de> Visitor<'de> for Header {
            type Value = Sums;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Sums, A::Error> {
                let mut sums = Sums::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let tensor: Tensor = map.next_value()?;
                    let (begin, end) = tensor.data_offsets;
                    if begin > end {
                        return Err(serde::de::Error::custom("a tensor ends before it begins"));
                    }
                    let sum = match tensor.dtype.as_str() {
                        "F16" | "BF16" => &mut sums.half,
                        "F32" => &mut sums.full,
                        _ => &mut sums.other,
                    };
                    *sum += Bytes(end - begin);
                    sums.end = sums.end.max(Bytes(end));
                }
                Ok(sums)
            }
        }
        from.deserialize_map(Header)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tensors_are_added_up() {
        let header = br#"{"__metadata__":{"format":"pt"},
            "a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},
            "b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]},
            "c":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[16,24]}}"#;
        let want = Tensors { bytes: Bytes(24), end: Bytes(24), element_bytes: Some(2) };
        assert_eq!(parse(header), Ok(want));
    }

    #[test]
    fn what_is_no_header() {
        assert!(parse(b"{").unwrap_err().contains("damaged"));
        assert!(parse(b"[]").is_err());
        let backwards = br#"{"a":{"dtype":"F16","shape":[],"data_offsets":[5,2]}}"#;
        assert!(parse(backwards).unwrap_err().contains("before it begins"));
        assert!(header_length([0xff; 8]).is_err());
        assert_eq!(header_length(7_u64.to_le_bytes()), Ok(7));
        let empty = Tensors { bytes: Bytes::ZERO, end: Bytes::ZERO, element_bytes: None };
        assert_eq!(parse(b"{}"), Ok(empty));
        let huge = br#"{"a":{"dtype":"F16","data_offsets":[0,18446744073709551615]},
            "b":{"dtype":"F16","data_offsets":[0,18446744073709551615]}}"#;
        assert_eq!(parse(huge).unwrap().bytes, Bytes(u64::MAX));
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_json_panics(
            kind in "[A-Z0-9_]{0,6}", begin: u64, end: u64, name in "[ -~]{0,8}",
        ) {
            let name = serde_json::to_string(&name).unwrap();
            let tensor = format!(r#"{{"dtype":"{kind}","data_offsets":[{begin},{end}]}}"#);
            let _ = parse(format!("{{{name}:{tensor}}}").as_bytes());
        }
    }
}
