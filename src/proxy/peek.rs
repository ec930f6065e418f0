//! Finds the model in a request's body. PURE.
//!
//! Purpose: one pass over the bytes that proves them well-formed JSON and picks two top-level keys out, without building a
//! document. Owner: `service`. Invariants: what is accepted here reads the same for every JSON parser (a key written twice is
//! refused, because parsers differ in which one wins; escapes in keys are decoded); nesting is bounded by the
//! parser's limit of [`DEPTH_MAX`], so no body can exhaust a stack, ours or the engine's.

use std::fmt;

use hyper::StatusCode;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::error::ApiError;

/// How deep arrays and objects may be nested; `serde_json`'s own limit, which it enforces.
#[cfg(test)]
pub(super) const DEPTH_MAX: usize = 127;

/// What a body says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peek {
    /// `model`, as the client wrote it.
    pub model: String,
    /// `stream`; absent and `null` are `false`.
    pub stream: bool,
}

/// Why a body is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PeekError {
    #[error("the body is empty; send a JSON object with \"model\"")]
    Empty,
    #[error("the body is not valid JSON: {0}")]
    Malformed(String),
    #[error("the body must be a JSON object")]
    NotObject,
    #[error("\"model\" is missing; GET /v1/models lists what is configured")]
    ModelMissing,
    #[error("\"model\" must be a string")]
    ModelType,
    #[error("\"stream\" must be true or false")]
    StreamType,
    #[error("{0:?} is given more than once")]
    Twice(&'static str),
}

impl From<PeekError> for ApiError {
    fn from(error: PeekError) -> Self {
        let (code, param) = match &error {
            PeekError::Empty | PeekError::Malformed(_) | PeekError::NotObject => {
                ("invalid_json", None)
            }
            PeekError::ModelMissing => ("missing_required_parameter", Some("model")),
            PeekError::ModelType => ("invalid_type", Some("model")),
            PeekError::StreamType => ("invalid_type", Some("stream")),
            PeekError::Twice(key) => ("duplicate_parameter", Some(*key)),
        };
        let mut api = Self::new(StatusCode::BAD_REQUEST, code, error.to_string());
        api.param = param;
        api
    }
}

/// Looks into a body.
///
/// # Errors
/// Why it cannot be routed.
pub(super) fn peek(body: &[u8]) -> Result<Peek, PeekError> {
    if body.is_empty() {
        return Err(PeekError::Empty);
    }
    let top: Top = serde_json::from_slice(body).map_err(|e| PeekError::Malformed(e.to_string()))?;
    let Top::Object { model, stream } = top else { return Err(PeekError::NotObject) };
    let model = match model.once("model")? {
        None => return Err(PeekError::ModelMissing),
        Some(Scalar::Text(model)) => model,
        Some(Scalar::Bool(_) | Scalar::Null | Scalar::Other) => return Err(PeekError::ModelType),
    };
    let stream = match stream.once("stream")? {
        None | Some(Scalar::Null) => false,
        Some(Scalar::Bool(stream)) => stream,
        Some(Scalar::Text(_) | Scalar::Other) => return Err(PeekError::StreamType),
    };
    Ok(Peek { model, stream })
}

/// How often a key was seen.
#[derive(Default)]
enum Seen {
    #[default]
    Never,
    Once(Scalar),
    Twice,
}

impl Seen {
    fn add(&mut self, value: Scalar) {
        *self = match self {
            Self::Never => Self::Once(value),
            Self::Once(_) | Self::Twice => Self::Twice,
        };
    }

    fn once(self, key: &'static str) -> Result<Option<Scalar>, PeekError> {
        match self {
            Self::Never => Ok(None),
            Self::Once(value) => Ok(Some(value)),
            Self::Twice => Err(PeekError::Twice(key)),
        }
    }
}

/// The document: an object with the two keys, or anything else.
enum Top {
    Object { model: Seen, stream: Seen },
    Other,
}

/// A value of one of the two keys.
enum Scalar {
    Text(String),
    Bool(bool),
    Null,
    Other,
}

/// A value that is only checked. Unlike `IgnoredAny`, which `serde_json` skips without a bound on nesting and without looking
/// at the UTF-8 of strings, this goes through the checked path.
struct Skip;

enum Key {
    Model,
    Stream,
    Other,
}

/// Implements the visitor methods that all three share: a scalar of kind X becomes `$other`, a sequence is drained.
macro_rules! scalars {
    ($value:ty, $other:expr, [$($name:ident: $ty:ty),*]) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("JSON")
        }
        $(fn $name<E>(self, _: $ty) -> Result<$value, E> { Ok($other) })*
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<$value, A::Error> {
            while seq.next_element::<Skip>()?.is_some() {}
            Ok($other)
        }
    };
}

impl<'de> Deserialize<'de> for Skip {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Skip;
            scalars!(Skip, Skip, [visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str]);
            fn visit_unit<E>(self) -> Result<Skip, E> {
                Ok(Skip)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Skip, A::Error> {
                while map.next_entry::<Skip, Skip>()?.is_some() {}
                Ok(Skip)
            }
        }
        d.deserialize_any(V)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Scalar;
            scalars!(Scalar, Scalar::Other, [visit_i64: i64, visit_u64: u64, visit_f64: f64]);
            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_owned()))
            }
            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Null)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
                while map.next_entry::<Skip, Skip>()?.is_some() {}
                Ok(Scalar::Other)
            }
        }
        d.deserialize_any(V)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Key;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_str<E>(self, key: &str) -> Result<Key, E> {
                Ok(match key {
                    "model" => Key::Model,
                    "stream" => Key::Stream,
                    _ => Key::Other,
                })
            }
        }
        d.deserialize_str(V)
    }
}

impl<'de> Deserialize<'de> for Top {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Top;
            scalars!(Top, Top::Other, [visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str]);
            fn visit_unit<E>(self) -> Result<Top, E> {
                Ok(Top::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Top, A::Error> {
                let (mut model, mut stream) = (Seen::Never, Seen::Never);
                while let Some(key) = map.next_key::<Key>()? {
                    match key {
                        Key::Model => model.add(map.next_value()?),
                        Key::Stream => stream.add(map.next_value()?),
                        Key::Other => {
                            map.next_value::<Skip>()?;
                        }
                    }
                }
                Ok(Top::Object { model, stream })
            }
        }
        d.deserialize_any(V)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn ok(model: &str, stream: bool) -> Result<Peek, PeekError> {
        Ok(Peek { model: model.into(), stream })
    }

    #[test]
    fn finds_the_model_wherever_it_is() {
        assert_eq!(peek(br#"{"model":"a"}"#), ok("a", false));
        assert_eq!(peek(br#" {"x":[{"model":"b"}],"stream":true,"model":"a"} "#), ok("a", true));
        assert_eq!(peek(br#"{"mod\u0065l":"a\/b","stream":null}"#), ok("a/b", false));
        assert_eq!(peek("{\"model\":\"é\",\"messages\":\"\u{1f600}\"}".as_bytes()), ok("é", false));
    }

    #[test]
    fn refuses_what_parsers_could_read_differently() {
        assert_eq!(peek(br#"{"model":"a","model":"a"}"#), Err(PeekError::Twice("model")));
        assert_eq!(peek(br#"{"model":"a","\u006dodel":"b"}"#), Err(PeekError::Twice("model")));
        let twice = br#"{"stream":true,"model":"a","stream":true}"#;
        assert_eq!(peek(twice), Err(PeekError::Twice("stream")));
    }

    #[test]
    fn names_what_is_missing_or_of_the_wrong_type() {
        assert_eq!(peek(b""), Err(PeekError::Empty));
        assert_eq!(peek(b"{}"), Err(PeekError::ModelMissing));
        assert_eq!(peek(br#"{"Model":"a"}"#), Err(PeekError::ModelMissing));
        for value in ["1", "null", "true", "[\"a\"]", "{\"model\":\"a\"}", "-1.5"] {
            let body = format!("{{\"model\":{value}}}");
            assert_eq!(peek(body.as_bytes()), Err(PeekError::ModelType), "{value}");
        }
        for value in ["1", "\"true\"", "[]", "{}"] {
            let body = format!("{{\"model\":\"a\",\"stream\":{value}}}");
            assert_eq!(peek(body.as_bytes()), Err(PeekError::StreamType), "{value}");
        }
        for body in ["[]", "1", "\"model\"", "null", "true", "[{\"model\":\"a\"}]", "1.5", "-1"] {
            assert_eq!(peek(body.as_bytes()), Err(PeekError::NotObject), "{body}");
        }
    }

    #[test]
    fn refuses_what_is_not_json() {
        let bad: [&[u8]; 13] = [
            b"{",
            b"{\"model\":\"a\"",
            b"{\"model\":\"a\"}x",
            b"{\"model\":\"a\"}{\"model\":\"b\"}",
            b"{\"model\":\"a\",}",
            b"{model:\"a\"}",
            b"{'model':'a'}",
            b"{\"model\":\"a\",\"x\":\"\xff\"}",
            b"{\"model\":\"a\",\"\xc3\x28\":1}",
            b"{\"model\":\"a\",\"x\":01}",
            b"{\"model\":\"a\",\"x\":\"\n\"}",
            b"{\"model\":\"a\",\"x\":NaN}",
            b"\xef\xbb\xbf{\"model\":\"a\"}",
        ];
        for body in bad {
            let text = String::from_utf8_lossy(body);
            assert!(matches!(peek(body), Err(PeekError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn bounds_the_depth() {
        let nested = |n: usize| {
            format!("{{\"model\":\"a\",\"x\":{}{}}}", "[".repeat(n), "]".repeat(n)).into_bytes()
        };
        assert_eq!(peek(&nested(DEPTH_MAX - 1)), ok("a", false));
        assert!(matches!(peek(&nested(DEPTH_MAX)), Err(PeekError::Malformed(_))));
        assert!(matches!(peek(&nested(1_000_000)), Err(PeekError::Malformed(_))));
        let open = "{\"a\":".repeat(1_000_000).into_bytes();
        assert!(matches!(peek(&open), Err(PeekError::Malformed(_))));
    }

    /// What `peek` should say, told by a parser that builds the whole document. (It cannot see a key written twice.)
    fn reference(body: &[u8]) -> Result<Peek, ()> {
        let value: Value = serde_json::from_slice(body).map_err(|_| ())?;
        let object = value.as_object().ok_or(())?;
        let model = object.get("model").and_then(Value::as_str).ok_or(())?.to_owned();
        let stream = match object.get("stream") {
            None | Some(Value::Null) => false,
            Some(other) => other.as_bool().ok_or(())?,
        };
        Ok(Peek { model, stream })
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("model|stream|.*", inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_whole_parser(value in json()) {
            let body = serde_json::to_vec(&value).unwrap();
            prop_assert_eq!(peek(&body).map_err(|_| ()), reference(&body));
        }

        #[test]
        fn agrees_on_damaged_documents(
            value in json(), model in ".{0,8}",
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 0..4),
        ) {
            let mut object = serde_json::Map::new();
            object.insert("messages".into(), value);
            object.insert("model".into(), model.into());
            let mut body = serde_json::to_vec(&object).unwrap();
            for (at, byte, how) in edits {
                let at = at.index(body.len().max(1)).min(body.len().saturating_sub(1));
                match how {
                    0 if !body.is_empty() => body[at] = byte,
                    1 if !body.is_empty() => { body.remove(at); }
                    _ => body.insert(at, byte),
                }
            }
            let got = peek(&body);
            // Damage may turn another key into a second "model": the one thing the reference cannot see.
            if !matches!(got, Err(PeekError::Twice(_))) {
                prop_assert_eq!(got.map_err(|_| ()), reference(&body));
            }
        }

        #[test]
        fn never_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = peek(&body);
        }
    }
}
