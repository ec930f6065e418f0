//! llama-swap's macros, expanded as it does it itself. PURE.
//!
//! `${env.NAME}` is the environment's, everywhere. Then each macro is put in place of its `${NAME}`, the last definition
//! first, so that a macro may hold those that were defined before it; a model's own definitions take the place of global ones.
//! A value that is nothing but a macro keeps the macro's type.

use std::collections::BTreeSet;

use super::node::Node;

/// The longest text that macros may make, in bytes: macros in macros could make one that no memory holds. What would be longer
/// keeps its macro, and is told as one that has no value.
const TEXT_MAX: usize = 64 << 10;

/// Macros in the order of their definition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Macros(Vec<(String, Node)>);

impl Macros {
    /// Those of a `macros:` mapping.
    ///
    /// # Errors
    /// For a value that is no scalar, or a macro that holds itself.
    pub fn read(node: Option<&Node>) -> Result<Self, String> {
        let mut found = Vec::new();
        for (name, value) in node.map(Node::entries).unwrap_or_default() {
            let Some(text) = value.text() else {
                return Err(format!("the macro {name} is no text, number or truth value"));
            };
            if text.contains(&slug(name)) {
                return Err(format!("the macro {name} holds itself"));
            }
            found.push((name.clone(), value.clone()));
        }
        Ok(Self(found))
    }

    /// What holds for one model: its ID, the global macros, and its own in place of those.
    #[must_use]
    pub fn of_model(&self, id: &str, own: Self) -> Self {
        let mut all = vec![("MODEL_ID".to_owned(), Node::Text(id.to_owned()))];
        all.extend(self.0.iter().cloned());
        for (name, value) in own.0 {
            match all.iter_mut().find(|(there, _)| *there == name) {
                Some(there) => there.1 = value,
                None => all.push((name, value)),
            }
        }
        Self(all)
    }

    /// A value with all macros in place.
    #[must_use]
    pub fn expand(&self, node: &Node) -> Node {
        self.0.iter().rev().fold(node.clone(), |node, (name, value)| put(&node, name, value))
    }
}

fn slug(name: &str) -> String {
    format!("${{{name}}}")
}

fn put(node: &Node, name: &str, value: &Node) -> Node {
    let slug = slug(name);
    match node {
        Node::Text(text) if *text == slug => value.clone(),
        Node::Text(text) if text.contains(&slug) => {
            let value = value.text().unwrap_or_default();
            let length = text.matches(&slug).count() * value.len() + text.len();
            let fits = length <= TEXT_MAX;
            Node::Text(if fits { text.replace(&slug, &value) } else { text.clone() })
        }
        Node::List(items) => Node::List(items.iter().map(|item| put(item, name, value)).collect()),
        Node::Map(entries) => Node::Map(
            entries.iter().map(|(key, item)| (key.clone(), put(item, name, value))).collect(),
        ),
        Node::Null | Node::Bool(_) | Node::Int(_) | Node::Float(_) | Node::Text(_) => node.clone(),
    }
}

/// Puts the environment's variables in place of `${env.NAME}`; those that are not set are gathered in `unset`.
pub fn environment(
    node: &Node,
    variable: &dyn Fn(&str) -> Option<String>,
    unset: &mut BTreeSet<String>,
) -> Node {
    match node {
        Node::Text(text) => Node::Text(in_text(text, variable, unset)),
        Node::List(items) => {
            Node::List(items.iter().map(|item| environment(item, variable, unset)).collect())
        }
        Node::Map(entries) => Node::Map(
            entries
                .iter()
                .map(|(key, item)| (key.clone(), environment(item, variable, unset)))
                .collect(),
        ),
        Node::Null | Node::Bool(_) | Node::Int(_) | Node::Float(_) => node.clone(),
    }
}

fn in_text(
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
    unset: &mut BTreeSet<String>,
) -> String {
    let mut done = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${env.") {
        done.push_str(before);
        let Some((name, tail)) = after.split_once('}') else {
            done.push_str("${env.");
            rest = after;
            continue;
        };
        match variable(name) {
            Some(value) => done.push_str(&value),
            None => drop(unset.insert(name.to_owned())),
        }
        rest = tail;
    }
    done + rest
}

/// What looks like a macro and was not put in place: `${PORT}`, `${PID}`, and names that nobody defined.
#[must_use]
pub fn left_over(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("${")?;
    let (name, _) = rest.split_once('}')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if !name.is_empty() && name.chars().all(plain) { Some(name) } else { left_over(rest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_definition_is_put_in_place_first() {
        let global =
            Node::parse("ctx: 4096\nargs: --ctx-size ${ctx}\nall: ${args} --jinja").unwrap();
        let own = Node::parse("ctx: 8192\ntemp: 0.7").unwrap();
        let global = Macros::read(Some(&global)).unwrap();
        let macros = global.of_model("m", Macros::read(Some(&own)).unwrap());
        let text = |text: &str| macros.expand(&Node::Text(text.into()));
        assert_eq!(text("x ${all} ${MODEL_ID}"), Node::Text("x --ctx-size 8192 --jinja m".into()));
        assert_eq!(text("${temp}"), Node::Float(0.7), "the type is kept");
        assert_eq!(text("${PORT}"), Node::Text("${PORT}".into()));
        let nested = macros.expand(&Node::parse("a: {b: [\"${ctx}\"]}").unwrap());
        assert_eq!(nested.get("a").unwrap().get("b").unwrap().items(), [Node::Int(8192)]);
    }

    #[test]
    fn macros_that_grow_without_end_stay_what_they_are() {
        let text: String =
            (0..40).map(|n| format!("m{}: \"${{m{n}}}${{m{n}}}\"\n", n + 1)).collect();
        let node = Node::parse(&format!("m0: long\n{text}")).unwrap();
        let macros = Macros::read(Some(&node)).unwrap();
        let grown = macros.expand(&Node::Text("${m40}".into())).text().unwrap();
        assert!(grown.len() <= TEXT_MAX, "{}", grown.len());
        assert!(left_over(&grown).is_some());
    }

    #[test]
    fn macros_that_cannot_be() {
        for bad in ["a: [1]", "a: \"x ${a}\"", "a: {b: c}"] {
            assert!(Macros::read(Some(&Node::parse(bad).unwrap())).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_environment_and_what_is_not_in_it() {
        let mut unset = BTreeSet::new();
        let home = |name: &str| (name == "HOME").then(|| "/home/u".to_owned());
        let node =
            Node::parse("a: \"${env.HOME}/m ${env.NO} ${env.\"\nb: [\"${env.HOME}\"]").unwrap();
        let node = environment(&node, &home, &mut unset);
        assert_eq!(node.get("a").unwrap().text().unwrap(), "/home/u/m  ${env.");
        assert_eq!(node.get("b").unwrap().texts(), ["/home/u"]);
        assert_eq!(unset, BTreeSet::from(["NO".to_owned()]));
    }

    #[test]
    fn what_is_left_is_seen() {
        assert_eq!(left_over("--port ${PORT} ${x}"), Some("PORT"));
        assert_eq!(left_over("${} ${a b} ${c-d}"), Some("c-d"));
        assert_eq!(left_over("$HOME {x} ${"), None);
    }
}
