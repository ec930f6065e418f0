//! YAML as it was written: untyped, keys in their order. PURE.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// `null`, `~`, or nothing at all.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in its order.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// Reads one document.
    ///
    /// # Errors
    /// What is wrong with the YAML, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let options = serde_saphyr::options! { strict_booleans: true };
        serde_saphyr::from_str_with_options(text, options).map_err(|err| {
            // The parser adds an excerpt of the file below its own words; the file may hold keys.
            err.to_string().lines().next().unwrap_or_default().trim_end_matches(':').to_owned()
        })
    }

    /// The entries of a mapping; none for anything else.
    pub fn entries(&self) -> &[(String, Self)] {
        if let Self::Map(entries) = self { entries } else { &[] }
    }

    /// The items of a list; none for anything else.
    #[cfg(test)]
    pub fn items(&self) -> &[Self] {
        if let Self::List(items) = self { items } else { &[] }
    }

    /// An entry of a mapping that is there and not null.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let found = self.entries().iter().find(|(k, _)| k == key).map(|(_, value)| value);
        found.filter(|value| **value != Self::Null)
    }

    /// A scalar as the text that it was written as, or as good as that.
    pub fn text(&self) -> Option<String> {
        Some(match self {
            Self::Bool(flag) => flag.to_string(),
            Self::Int(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Text(text) => text.clone(),
            Self::Null | Self::List(_) | Self::Map(_) => return None,
        })
    }

    /// A whole number, in quotes too.
    pub fn int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Null | Self::Bool(_) | Self::Float(_) | Self::List(_) | Self::Map(_) => None,
        }
    }

    /// A truth value, in one of YAML's words.
    pub fn flag(&self) -> Option<bool> {
        match self.text()?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Some(true),
            "false" | "no" | "off" => Some(false),
            _ => None,
        }
    }

    /// A list's scalars as texts; of a scalar itself the one.
    pub fn texts(&self) -> Vec<String> {
        if let Self::List(items) = self {
            items.iter().filter_map(Self::text).collect()
        } else {
            self.text().into_iter().collect()
        }
    }

    /// The same value in TOML. `None` for what TOML has no word for: null.
    pub fn toml(&self) -> Option<toml::Value> {
        Some(match self {
            Self::Null => return None,
            Self::Bool(flag) => (*flag).into(),
            Self::Int(number) => (*number).into(),
            Self::Float(number) => (*number).into(),
            Self::Text(text) => text.as_str().into(),
            Self::List(items) => {
                toml::Value::Array(items.iter().map(Self::toml).collect::<Option<_>>()?)
            }
            Self::Map(entries) => {
                let entry = |(key, value): &(String, Self)| Some((key.clone(), value.toml()?));
                toml::Value::Table(entries.iter().map(entry).collect::<Option<_>>()?)
            }
        })
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }
            fn visit_unit<E: Error>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }
            fn visit_none<E: Error>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                Node::deserialize(deserializer)
            }
            fn visit_bool<E: Error>(self, flag: bool) -> Result<Node, E> {
                Ok(Node::Bool(flag))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Node, E> {
                Ok(Node::Int(number))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Node, E> {
                Ok(i64::try_from(number).map_or_else(|_| Node::Text(number.to_string()), Node::Int))
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<Node, E> {
                Ok(Node::Float(number))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Node, E> {
                Ok(Node::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_types_and_their_order() {
        let node = Node::parse(
            "b: 1\na: [1.5, yes, true, ~, \"7\"]\nz: &x {k: v}\ny: {<<: *x, l: |\n    two\n    lines\n  }\n7: x\n",
        );
        // A block scalar inside braces is no YAML.
        assert!(node.unwrap_err().contains("line"), "says where");
        let node = Node::parse(
            "b: 1\na: [1.5, yes, true, ~, \"7\"]\nz: &x {k: v}\ny: {<<: *x, l: 2}\n7: x\n",
        );
        let node = node.unwrap();
        let keys: Vec<&str> = node.entries().iter().map(|(k, _)| k.as_str()).collect();
        assert_eq!(keys, ["b", "a", "z", "y", "7"]);
        assert_eq!(
            node.get("a").unwrap().items(),
            [
                Node::Float(1.5),
                Node::Text("yes".into()),
                Node::Bool(true),
                Node::Null,
                Node::Text("7".into())
            ]
        );
        assert_eq!(node.get("y").unwrap().get("k"), Some(&Node::Text("v".into())), "merged");
        assert_eq!(node.get("a").unwrap().texts(), ["1.5", "yes", "true", "7"]);
        assert_eq!(Node::parse("").unwrap(), Node::Null);
    }

    #[test]
    fn wrong_yaml_says_where_and_shows_nothing() {
        for bad in ["a: [1\nb: sk-secret\n", "a: 1\na: 2\n", "a: *nowhere", "a: \"x"] {
            let error = Node::parse(bad).unwrap_err();
            assert!(!error.contains("sk-secret") && !error.contains('\n'), "{error}");
            assert!(error.len() > 5, "{error}");
        }
    }

    #[test]
    fn numbers_and_truth() {
        assert_eq!(Node::Text(" 60 ".into()).int(), Some(60));
        assert_eq!(Node::Float(0.5).int(), None);
        assert_eq!(Node::Text("yes".into()).flag(), Some(true));
        assert_eq!(Node::Int(1).flag(), None);
        assert_eq!(Node::List(vec![Node::Null]).toml(), None);
    }
}
