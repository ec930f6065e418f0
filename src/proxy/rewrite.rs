//! Parameters that an admin set for a model. PURE.
//!
//! Purpose: put default and forced parameters, and another model's name, into a request's JSON. Owner: `inference`, only where
//! the model's configuration asks for it; all other bodies pass unchanged. Invariants: only the top of the object is looked at,
//! values are copied as they are written, and the order of keys is kept; the result names every changed key once.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::endpoints::Events;
use super::peek;
use crate::types::DoorSpec;

/// What bounds an answer's length, by all its names. Engines differ in which of them wins.
const BOUNDS: [&str; 4] = ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"];

/// The bound's name at a path that knows only one; `None`: it knows several.
const fn bound_at(events: Events) -> Option<&'static str> {
    match events {
        Events::Responses => Some("max_output_tokens"),
        Events::Messages | Events::Text => Some("max_tokens"),
        Events::Chat | Events::Other => None,
    }
}

/// A key, borrowed where it holds no escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The body with what `spec` asks for. One that is not a JSON object comes back as it is: it was refused before. `events`: of its path.
pub(super) fn rewrite(body: &Bytes, spec: &DoorSpec, events: Events) -> Bytes {
    let names = ["max_tokens", "max_completion_tokens"];
    let writer = Writer {
        spec,
        bound: names.into_iter().find_map(|name| spec.force.get(name)),
        bound_as: bound_at(events).filter(|name| !spec.force.contains_key(*name)),
        name: spec.served_name.as_ref().map(|name| Value::from(name.as_str())),
        out: Vec::with_capacity(body.len() + 256),
        written: BTreeSet::new(),
    };
    let mut json = serde_json::Deserializer::from_slice(body);
    let out = writer.deserialize(&mut json).and_then(|out| json.end().map(|()| out));
    out.map_or_else(|_| body.clone(), Bytes::from)
}

/// An object that is written again while it is read: what its client puts into it takes no memory but its own bytes'.
struct Writer<'a> {
    spec: &'a DoorSpec,
    /// The bound of an answer's length, where one is forced. It is the value of each name that the client has for it: which of them an engine
    /// goes by is its own business, and one that it does not know bounds nothing.
    bound: Option<&'a Value>,
    /// What the path calls it, where the configuration calls it otherwise.
    bound_as: Option<&'static str>,
    /// The served name.
    name: Option<Value>,
    out: Vec<u8>,
    /// Of the keys that the model's configuration names, those that are there. No others, for each of a client's many would be one more to
    /// look at.
    written: BTreeSet<&'a str>,
}

impl<'a> Writer<'a> {
    fn entry(&mut self, key: &str, value: &RawValue) {
        let spec = self.spec;
        let forced = spec.force.get_key_value(key).map(|(key, value)| (key.as_str(), value));
        let named = self.name.as_ref().filter(|_| key == "model").map(|name| ("model", name));
        if let Some((key, forced)) = named.or(forced) {
            // A client that names a forced key twice gets it once.
            if self.written.insert(key) {
                put(&mut self.out, key, forced);
            }
            return;
        }
        if let Some(bound) = self.bound.filter(|_| BOUNDS.contains(&key)) {
            put(&mut self.out, key, bound);
            self.bound_as = self.bound_as.filter(|name| *name != key);
            return;
        }
        // In another case it is the same key to many readers.
        if spec.force.keys().any(|forced| peek::is_same(forced, key)) {
            return;
        }
        if let Some((key, _)) = spec.defaults.get_key_value(key) {
            if value.get() == "null" {
                return;
            }
            self.written.insert(key);
        }
        put(&mut self.out, key, value);
    }

    fn end(mut self) -> Vec<u8> {
        let missing = |key: &String| !self.written.contains(key.as_str());
        let defaults =
            self.spec.defaults.iter().filter(|(key, _)| !self.spec.force.contains_key(*key));
        let bounded = |key: &str| self.bound.is_some() && BOUNDS.contains(&key);
        let defaults = defaults.filter(|(key, _)| !bounded(key));
        if let (Some(bound), Some(name)) = (self.bound, self.bound_as) {
            put(&mut self.out, name, bound);
        }
        for (key, value) in self.spec.force.iter().chain(defaults).filter(|(key, _)| missing(key)) {
            put(&mut self.out, key, value);
        }
        self.out.push(b'}');
        self.out
    }
}

impl<'de> DeserializeSeed<'de> for Writer<'_> {
    type Value = Vec<u8>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Writer<'_> {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Vec<u8>, A::Error> {
        self.out.push(b'{');
        while let Some(Text(key)) = map.next_key()? {
            self.entry(&key, map.next_value()?);
        }
        Ok(self.end())
    }
}

/// Writes an entry. A raw value is written as it is.
fn put(out: &mut Vec<u8>, key: &str, value: &(impl Serialize + ?Sized)) {
    if out.len() > 1 {
        out.push(b',');
    }
    // Neither memory nor a text nor a JSON value can fail to be written.
    let _ = serde_json::to_writer(&mut *out, key);
    out.push(b':');
    let _ = serde_json::to_writer(out, value);
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
        at(Events::Chat, body, spec)
    }

    fn at(events: Events, body: &str, spec: &DoorSpec) -> String {
        let out = rewrite(&Bytes::copy_from_slice(body.as_bytes()), spec, events);
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn forced(force: Value) -> DoorSpec {
        DoorSpec { force: map(force), ..DoorSpec::default() }
    }

    /// Whatever a client calls it, and whatever its path calls it.
    #[test]
    fn a_forced_bound_is_the_only_one() {
        let asked = r#"{"max_completion_tokens":9,"n_predict":8,"max_output_tokens":7,"max_tokens":6,"min_tokens":5}"#;
        let spec = forced(json!({"max_tokens": 100}));
        let whole = r#"{"max_completion_tokens":100,"n_predict":100,"max_output_tokens":100,"max_tokens":100,"min_tokens":5}"#;
        for events in
            [Events::Chat, Events::Text, Events::Messages, Events::Responses, Events::Other]
        {
            assert_eq!(at(events, asked, &spec), whole, "{events:?}");
        }
        let both = r#"{"max_output_tokens":100,"max_tokens":100}"#;
        for body in ["{}", r#"{"max_output_tokens":7}"#] {
            assert_eq!(at(Events::Responses, body, &spec), both, "{body}");
        }
        // An engine that knows the older name alone is bounded by it.
        let newer = forced(json!({"max_completion_tokens": 50}));
        assert_eq!(
            done(r#"{"max_tokens":6,"min_tokens":5}"#, &newer),
            r#"{"max_tokens":50,"min_tokens":5,"max_completion_tokens":50}"#
        );
        assert_eq!(
            at(Events::Messages, r#"{"max_tokens":6}"#, &newer),
            r#"{"max_tokens":50,"max_completion_tokens":50}"#
        );
        // What the path has another bound for is forced as well.
        let two = forced(json!({"max_tokens": 100, "max_output_tokens": 20}));
        assert_eq!(
            at(Events::Responses, r#"{"max_output_tokens":7,"n_predict":8}"#, &two),
            r#"{"max_output_tokens":20,"n_predict":100,"max_tokens":100}"#
        );
        // A default is no bound.
        let spec = DoorSpec { defaults: map(json!({"n_predict": 9})), ..spec };
        assert_eq!(done("{}", &spec), r#"{"max_tokens":100}"#);
        let spec = DoorSpec { defaults: map(json!({"max_tokens": 9})), ..DoorSpec::default() };
        assert_eq!(done(r#"{"n_predict":1}"#, &spec), r#"{"n_predict":1,"max_tokens":9}"#);
    }

    #[test]
    fn a_forced_key_in_another_case_is_none() {
        let spec = forced(json!({"seed": 1, "skip_special_tokens": true}));
        let body =
            "{\"seed\":5,\"Seed\":6,\"\u{17f}eed\":7,\"SKIP_SPECIAL_TO\u{212a}ENS\":false,\"a\":1}";
        assert_eq!(done(body, &spec), r#"{"seed":1,"a":1,"skip_special_tokens":true}"#);
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

    /// Looked for among all keys before it, each repeat would cost a look at each of them: minutes for the only thread of requests.
    #[test]
    fn a_key_that_is_repeated_behind_many_others_costs_no_more_than_they_do() {
        let spec = DoorSpec {
            defaults: map(json!({"top_k": 1})),
            force: map(json!({"chat_template_kwargs": 7})),
            ..DoorSpec::default()
        };
        let fillers = "\"a\":1,".repeat((2 << 20) / 6);
        let repeats = "\"chat_template_kwargs\":1,\"top_k\":2,".repeat((2 << 20) / 35);
        let body = format!("{{{fillers}{repeats}\"b\":1}}");
        let (told, done) = std::sync::mpsc::channel();
        std::thread::spawn(move || told.send(rewrite(&body.into(), &spec, Events::Chat)));
        let out = done.recv_timeout(std::time::Duration::from_secs(30)).expect("it takes too long");
        let out = std::str::from_utf8(&out).unwrap();
        assert_eq!(out.matches("chat_template_kwargs").count(), 1);
        assert!(out.ends_with("\"b\":1}") && out.matches("\"a\"").count() == (2 << 20) / 6);
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
