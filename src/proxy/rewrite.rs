//! Parameters that an admin set for a model. PURE.
//!
//! Purpose: put default and forced parameters, and another model's name, into a request's JSON. Owner: `inference`, only where
//! the model's configuration asks for it; all other bodies pass unchanged. Invariants: only the top of the object is looked at,
//! values are copied as they are written, and the order of keys is kept; the result names every changed key once.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::types::DoorSpec;

/// The top of an object: its keys with their values as written.
struct Top<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Top<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Top<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Top<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(Text(key)) = map.next_key()? {
                    entries.push((key, map.next_value()?));
                }
                Ok(Top(entries))
            }
        }
        deserializer.deserialize_map(V)
    }
}

/// A key, borrowed where it holds no escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The body with what `spec` asks for. One that is not a JSON object comes back as it is: it has been refused before.
pub(super) fn rewrite(body: &Bytes, spec: &DoorSpec) -> Bytes {
    let Ok(Top(entries)) = serde_json::from_slice::<Top<'_>>(body) else { return body.clone() };
    let name = spec.served_name.as_ref().map(|name| Value::from(name.as_str()));
    let named = |key: &str| name.as_ref().filter(|_| key == "model");
    let mut out = Vec::with_capacity(body.len() + 256);
    out.push(b'{');
    let mut written: Vec<&str> = Vec::new();
    for (key, value) in &entries {
        match named(key).or_else(|| spec.force.get(key.as_ref())) {
            // A client that names a forced key twice gets it once.
            Some(_) if written.contains(&key.as_ref()) => continue,
            Some(forced) => put(&mut out, key, &forced.to_string()),
            None if value.get() == "null" && spec.defaults.contains_key(key.as_ref()) => continue,
            None => put(&mut out, key, value.get()),
        }
        written.push(key);
    }
    let missing = |key: &String| !written.contains(&key.as_str());
    let defaults = spec.defaults.iter().filter(|(key, _)| !spec.force.contains_key(*key));
    for (key, value) in spec.force.iter().chain(defaults).filter(|(key, _)| missing(key)) {
        put(&mut out, key, &value.to_string());
    }
    out.push(b'}');
    out.into()
}

fn put(out: &mut Vec<u8>, key: &str, value: &str) {
    if out.len() > 1 {
        out.push(b',');
    }
    out.extend_from_slice(Value::from(key).to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(value.as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, json};

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn done(body: &str, spec: &DoorSpec) -> String {
        let out = rewrite(&Bytes::copy_from_slice(body.as_bytes()), spec);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn defaults_stand_back_and_forced_values_do_not() {
        let spec = DoorSpec {
            defaults: map(json!({"temperature": 0.5, "top_p": 0.9})),
            force: map(
                json!({"max_tokens": 100, "chat_template_kwargs": {"enable_thinking": false}}),
            ),
            ..DoorSpec::default()
        };
        let out = done(
            r#"{ "model": "m", "temperature": 0, "max_tokens": 9, "x": [1,  {"a":1.10}] }"#,
            &spec,
        );
        assert_eq!(
            out,
            r#"{"model":"m","temperature":0,"max_tokens":100,"x":[1,  {"a":1.10}],"chat_template_kwargs":{"enable_thinking":false},"top_p":0.9}"#
        );
        assert_eq!(
            done(r#"{"temperature":null}"#, &spec),
            r#"{"chat_template_kwargs":{"enable_thinking":false},"max_tokens":100,"temperature":0.5,"top_p":0.9}"#
        );
        assert_eq!(done("[1]", &spec), "[1]");
    }

    #[test]
    fn the_served_name_replaces_the_clients() {
        let spec = DoorSpec { served_name: Some("a\"b".into()), ..DoorSpec::default() };
        assert_eq!(done(r#"{"mod\u0065l":"alias","n":1}"#, &spec), r#"{"model":"a\"b","n":1}"#);
        assert_eq!(done("{}", &spec), "{}");
    }

    #[test]
    fn a_forced_key_is_there_once() {
        let spec = DoorSpec {
            force: map(json!({"n": 1})),
            defaults: map(json!({"n": 2})),
            ..DoorSpec::default()
        };
        assert_eq!(done(r#"{"n":5,"n":6}"#, &spec), r#"{"n":1}"#);
        assert_eq!(done("{}", &spec), r#"{"n":1}"#);
    }

    proptest! {
        #[test]
        fn what_is_not_named_stays(
            keys in prop::collection::btree_map("[a-z\"\\\\é]{1,4}", any::<i64>(), 0..6),
            forced in prop::collection::btree_map("[a-c]", any::<i64>(), 0..3),
        ) {
            let value = |m: &std::collections::BTreeMap<String, i64>| -> Map<String, Value> {
                m.iter().map(|(k, v)| (k.clone(), Value::from(*v))).collect()
            };
            let spec = DoorSpec { force: value(&forced), ..DoorSpec::default() };
            let body = Value::Object(value(&keys)).to_string();
            let got: Map<String, Value> = serde_json::from_str(&done(&body, &spec)).unwrap();
            let mut want = value(&keys);
            want.extend(value(&forced));
            prop_assert_eq!(got, want);
        }
    }
}
