//! Finds the model in a request's body. PURE.
//!
//! Purpose: one pass over the bytes that proves them well-formed JSON, picks top-level keys out and refuses values that hurt
//! engines, without building a document. Owner: `intake`. Invariants: what is accepted here reads the same for every JSON
//! parser (a known key written twice or in another case is refused, because parsers differ in which one wins; escapes in keys are decoded);
//! nesting is bounded, so no body can exhaust a stack, ours or the engine's.

mod param;
mod scan;
mod skip;

use hyper::StatusCode;
pub(super) use param::is_same;
pub(super) use scan::Scan;

use super::error::ApiError;

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
    #[error("{0:?} {1}")]
    Type(&'static str, &'static str),
    #[error("{0:?} {1}")]
    Range(&'static str, String),
    #[error(
        "\"background\" must be false or absent: work that no request waits for would keep no model loaded; ask for a \"stream\" instead, \
         and read it to its end"
    )]
    Background,
    #[error("{0:?} is given more than once")]
    Twice(&'static str),
    #[error(
        "{0:?} is written in another case, which many readers of JSON take for the same key; write it as here"
    )]
    Case(&'static str),
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
            PeekError::Type(key, _) => ("invalid_type", Some(*key)),
            PeekError::Background => ("invalid_value", Some("background")),
            PeekError::Range(key, _) => ("invalid_value", Some(*key)),
            PeekError::Twice(key) | PeekError::Case(key) => ("duplicate_parameter", Some(*key)),
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
    let mut scan = Scan::new();
    scan.feed(body)?;
    scan.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::scan::DEPTH_MAX;
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
        // Go's reader takes any case, and the last one.
        for (key, as_ours) in [
            ("Model", "model"),
            ("m\\u004fdel", "model"),
            ("\u{17f}tream", "stream"),
            ("Temperature", "temperature"),
            ("max_to\u{212a}ens", "max_tokens"),
        ] {
            let behind = format!("{{\"model\":\"a\",\"{key}\":\"b\"}}");
            let before = format!("{{\"{key}\":\"b\",\"model\":\"a\"}}");
            for body in [behind, before] {
                assert_eq!(peek(body.as_bytes()), Err(PeekError::Case(as_ours)), "{body}");
            }
            let below = format!("{{\"model\":\"a\",\"x\":{{\"{key}\":\"b\"}}}}");
            assert_eq!(peek(below.as_bytes()), ok("a", false), "{below}");
        }
    }

    #[test]
    fn names_what_is_missing_or_of_the_wrong_type() {
        assert_eq!(peek(b""), Err(PeekError::Empty));
        assert_eq!(peek(b"{}"), Err(PeekError::ModelMissing));
        assert_eq!(peek(br#"{"models":"a"}"#), Err(PeekError::ModelMissing));
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
    fn refuses_values_that_hurt_engines() {
        let one = |key: &str, value: &str| {
            peek(format!("{{\"model\":\"a\",\"{key}\":{value}}}").as_bytes())
        };
        for (key, value) in [
            ("n", "129"),
            ("n", "0"),
            ("n", "1.5"),
            ("n", "1e99"),
            ("best_of", "1000000"),
            ("max_tokens", "9223372036854775807"),
            ("max_completion_tokens", "-2"),
            ("logprobs", "100000"),
            ("top_logprobs", "-1"),
            ("prompt_logprobs", "129"),
            ("top_k", "1e12"),
            ("temperature", "-0.1"),
            ("top_p", "1.0001"),
        ] {
            let got = one(key, value);
            assert!(
                matches!(got, Err(PeekError::Range(k, _)) if k == key),
                "{key} {value}: {got:?}"
            );
        }
        for (key, value) in [
            ("n", "\"1\""),
            ("n", "[1]"),
            ("max_tokens", "{}"),
            ("top_k", "true"),
            ("temperature", "\"hot\""),
            ("logprobs", "\"1\""),
        ] {
            let got = one(key, value);
            assert!(
                matches!(got, Err(PeekError::Type(k, _)) if k == key),
                "{key} {value}: {got:?}"
            );
        }
        for (key, value) in [
            ("n", "1"),
            ("n", "128.0"),
            ("n", "null"),
            ("max_tokens", "-1"),
            ("max_tokens", "131072"),
            ("logprobs", "true"),
            ("logprobs", "5"),
            ("top_k", "-1"),
            ("temperature", "0"),
            ("top_p", "1"),
            ("messages", "[{\"n\":1000,\"max_tokens\":\"many\"}]"),
        ] {
            assert_eq!(one(key, value), ok("a", false), "{key} {value}");
        }
        let twice = br#"{"model":"a","n":1,"n":100}"#;
        assert_eq!(peek(twice), Err(PeekError::Twice("n")));
    }

    #[test]
    fn an_answer_for_later_is_refused_where_it_is_not_to_be_had() {
        let of = |value: &str, in_foreground: bool| {
            let body =
                format!("{{\"model\":\"a\",\"background\":{value},\"x\":{{\"background\":true}}}}");
            let (before, behind) = body.split_at(13);
            let mut scan = Scan::new();
            scan.feed(before.as_bytes())?;
            if in_foreground {
                scan.in_foreground()?;
            }
            scan.feed(behind.as_bytes())?;
            scan.finish()
        };
        for yes in ["true", "1", "\"true\"", "[{\"background\":null}]", "{}"] {
            assert_eq!(of(yes, true), Err(PeekError::Background), "{yes}");
            // Images have one of another kind.
            assert_eq!(of(yes, false), ok("a", false), "{yes}");
        }
        for no in ["false", "null"] {
            assert_eq!(of(no, true), ok("a", false), "{no}");
        }
        let mut late = Scan::new();
        late.feed(br#"{"background":true,"model":"a"}"#).unwrap();
        assert_eq!(late.in_foreground(), Err(PeekError::Background));
        let twice = br#"{"model":"a","background":false,"background":true}"#;
        assert_eq!(peek(twice), Err(PeekError::Twice("background")));
    }

    #[test]
    fn a_name_without_end_is_not_kept() {
        let body = format!("{{\"model\":\"{}\"}}", "é".repeat(1_000_000));
        let model = peek(body.as_bytes()).unwrap().model;
        assert!((crate::types::ModelName::LENGTH_MAX + 1..400).contains(&model.len()));
    }

    #[test]
    fn refuses_what_is_not_json() {
        let bad: [&[u8]; 25] = [
            b"{\"model\":\"a\"}\xc2",
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
            b"{\"model\":\"\\ud800\"}",
            b"{\"model\":\"a\",\"x\":\"\\ud800x\"}",
            b"{\"model\":\"a\",\"x\":\"\\udc00\"}",
            b"{\"model\":\"a\",\"x\":\"\\ud800\\u0041\"}",
            b"{\"model\":\"a\",\"x\":\"\xe2\x82\"}",
            b"{\"model\":\"a\",\"x\":\"\xed\xa0\x80\"}",
            b"{\"model\":\"a\",\"x\":1e999}",
            b"{\"model\":\"a\",\"x\":-}",
            b"{\"model\":\"a\",\"x\":1.}",
            b"{\"model\":\"a\",\"x\":[1}]",
            b"{\"model\":\"a\0\"}",
        ];
        for body in bad {
            let text = String::from_utf8_lossy(body);
            assert!(matches!(peek(body), Err(PeekError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn bounds_the_depth() {
        let nested = |n: u32| {
            let n = usize::try_from(n).unwrap();
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
        fn cuts_make_no_difference(
            value in json(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let mut body = serde_json::to_vec(&value).unwrap();
            if let Some((at, byte)) = damage {
                let at = at.index(body.len());
                body[at] = byte;
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(body.len() + 1)).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let mut scan = Scan::new();
            let fed = cuts.windows(2).try_for_each(|w| scan.feed(&body[w[0]..w[1]]));
            // The byte that a message names may be a few off.
            let kind = |e: PeekError| std::mem::discriminant(&e);
            let got = fed.and_then(|()| scan.finish()).map_err(kind);
            prop_assert_eq!(got, peek(&body).map_err(kind));
        }

        #[test]
        fn never_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = peek(&body);
        }
    }
}
