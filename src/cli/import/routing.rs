//! Which models llama-swap keeps, loads at its start, and prefers: groups, the matrix, hooks and the scheduler. PURE.

use std::collections::{BTreeMap, BTreeSet};

use super::left::{Left, NOTHING, Why};
use super::node::Node;

/// What Hostler has a key for, by model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    /// Models to pin.
    pub pins: BTreeSet<String>,
    /// Priorities.
    pub priority: BTreeMap<String, i64>,
    /// What was not taken over.
    pub left: Vec<Left>,
}

const MEMORY: &str =
    "Hostler runs side by side what fits the memory that was measured, and no list decides it";
const PINNED: &str = "pin = true was written: it is loaded at the start and stays; \
                      remove that where it need not stay";

/// Reads all of it. `names` has each model's ID and, for each alias, the model's.
pub fn read(root: &Node, names: &BTreeMap<String, String>) -> Routing {
    let mut routing = Routing::default();
    let deeper = root.get("routing");
    let settings = deeper.and_then(|r| r.get("router")).and_then(|r| r.get("settings"));
    let places = [("", root), ("routing.router.settings.", settings.unwrap_or(&Node::Null))];
    for (prefix, place) in places {
        for (name, group) in place.get("groups").map(Node::entries).unwrap_or_default() {
            routing.group(&format!("{prefix}groups.{name}"), group, names);
        }
        if place.get("matrix").is_some() {
            let instead = "priority says who goes first, and a reload's cost is measured";
            routing.leave(&format!("{prefix}matrix"), Why::new(MEMORY, instead));
        }
    }
    routing.hooks(root, names);
    let scheduler = deeper.and_then(|r| r.get("scheduler")).and_then(|s| s.get("settings"));
    let fifo = scheduler.and_then(|s| s.get("fifo")).and_then(|f| f.get("priority"));
    for (name, value) in fifo.map(Node::entries).unwrap_or_default() {
        let key = format!("routing.scheduler.settings.fifo.priority.{name}");
        match (names.get(name), value.int()) {
            (None, _) => routing.leave(&key, unknown()),
            (Some(model), Some(number @ -100..=100)) => {
                routing.priority.insert(model.clone(), number);
            }
            _ => routing.leave(&key, Why::new("a priority is -100 to 100", "choose one of these")),
        }
    }
    routing.rest(deeper);
    routing
}

fn unknown() -> Why {
    Why::new("no model has that name", "correct the name")
}

impl Routing {
    fn leave(&mut self, key: &str, why: Why) {
        self.left.push(Left { model: None, key: key.to_owned(), why });
    }

    fn group(&mut self, key: &str, group: &Node, names: &BTreeMap<String, String>) {
        let flag = |name: &str, default| group.get(name).and_then(Node::flag).unwrap_or(default);
        let members = group.get("members").map(Node::texts).unwrap_or_default();
        for member in members.iter().filter(|member| !names.contains_key(*member)) {
            self.leave(&format!("{key}.members: {member}"), unknown());
        }
        let (swap, persistent) = (flag("swap", true), flag("persistent", false));
        if persistent && !swap {
            self.pins.extend(members.iter().filter_map(|m| names.get(m).cloned()));
            self.leave(
                &format!("{key}.persistent"),
                Why::new("Hostler knows pins, not groups", PINNED),
            );
        } else if persistent {
            let why = "of this group one at a time stays, and a pin is one model's";
            let instead = "write pin = true for the one that is to stay";
            self.leave(&format!("{key}.persistent"), Why::new(why, instead));
        } else {
            let instead = "pin = true keeps a model, priority says who goes first";
            self.leave(key, Why::new(MEMORY, instead));
        }
        self.unknown(group, key, &["swap", "exclusive", "persistent", "members"]);
    }

    fn hooks(&mut self, root: &Node, names: &BTreeMap<String, String>) {
        let Some(hooks) = root.get("hooks") else { return };
        for (name, hook) in hooks.entries() {
            for (action, value) in hook.entries() {
                let key = format!("hooks.{name}.{action}");
                if (name.as_str(), action.as_str()) != ("on_startup", "preload") {
                    self.leave(&key, super::unknown_key());
                    continue;
                }
                for model in value.texts() {
                    let model = model.trim();
                    let key = format!("{key}: {model}");
                    match names.get(model) {
                        Some(id) => {
                            self.pins.insert(id.clone());
                            let why = "what is loaded at the start is pinned here";
                            self.leave(&key, Why::new(why, PINNED));
                        }
                        None => self.leave(&key, unknown()),
                    }
                }
            }
        }
    }

    /// What is neither groups, matrix nor priorities.
    fn rest(&mut self, routing: Option<&Node>) {
        for (name, value) in routing.map(Node::entries).unwrap_or_default() {
            match name.as_str() {
                // Which of the two is in force; neither is here.
                "router" => self.unknown(value, "routing.router", &["use", "settings"]),
                "scheduler" => {
                    self.unknown(value, "routing.scheduler", &["use", "settings"]);
                    let used = value.get("use").and_then(Node::text).unwrap_or_default();
                    if !["", "fifo"].contains(&used.as_str()) {
                        self.leave("routing.scheduler.use", Why::new("Hostler has turns", NOTHING));
                    }
                }
                _ => self.leave(&format!("routing.{name}"), super::unknown_key()),
            }
        }
        let settings = routing.and_then(|r| r.get("router")).and_then(|r| r.get("settings"));
        if let Some(settings) = settings {
            self.unknown(settings, "routing.router.settings", &["groups", "matrix"]);
        }
    }

    fn unknown(&mut self, node: &Node, path: &str, known: &[&str]) {
        for (name, _) in node.entries().iter().filter(|(name, _)| !known.contains(&name.as_str())) {
            self.leave(&format!("{path}.{name}"), super::unknown_key());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_and_priorities_from_both_places() {
        let names = ["a", "b", "c"].map(|n| (n.to_owned(), n.to_owned()));
        let mut names = BTreeMap::from(names);
        names.insert("alias".into(), "c".into());
        let read = |text: &str| read(&Node::parse(text).unwrap(), &names);
        let old = read(
            "groups:\n  g: {persistent: true, swap: false, members: [a, nobody]}\n  h: {members: [b]}\n\
             hooks: {on_startup: {preload: [alias, gone]}}\nmatrix: {sets: {x: \"a & b\"}}",
        );
        assert_eq!(old.pins, BTreeSet::from(["a".to_owned(), "c".to_owned()]));
        let keys: Vec<&str> = old.left.iter().map(|l| l.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "groups.g.members: nobody",
                "groups.g.persistent",
                "groups.h",
                "matrix",
                "hooks.on_startup.preload: alias",
                "hooks.on_startup.preload: gone"
            ]
        );
        let new = read(
            "routing:\n  router: {use: group, settings: {groups: {g: {persistent: true, members: [a]}}, x: 1}}\n  \
             scheduler: {use: fifo, settings: {fifo: {priority: {a: 5, alias: -7, b: 900}}}}\n  y: 1",
        );
        assert!(new.pins.is_empty(), "of a group that swaps one stays, nobody knows which");
        assert_eq!(new.priority, BTreeMap::from([("a".into(), 5), ("c".into(), -7)]));
        assert_eq!(new.left.len(), 4, "{:?}", new.left);
    }
}
