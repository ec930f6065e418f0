//! llama-swap's filters: parameters that requests lose or get. PURE.

use super::left::{Left, Why};
use super::node::Node;
use crate::cli::add::file::Definition;
use crate::config;

/// Writes `force` from a model's or a peer's filters. Parameters that are taken out have no place, unless others are put in.
pub fn door(id: &str, node: &Node, definition: &mut Definition, left: &mut Vec<Left>) {
    let Some(filters) = node.get("filters") else { return };
    let mut leave = |key: String, why: Why| {
        left.push(Left { model: Some(id.to_owned()), key, why });
    };
    let set = filters.get("setParams").map(Node::entries).unwrap_or_default();
    let mut force = toml::Table::new();
    // llama-swap itself never sets the model.
    for (name, value) in set.iter().filter(|(name, _)| name != "model") {
        let key = format!("filters.setParams.{name}");
        match value.toml() {
            _ if config::is_clients(name) => {
                let why = "what is asked for is the client's to say";
                leave(key, Why::new(why, "let clients say it"));
            }
            Some(value) => drop(force.insert(name.clone(), value)),
            None => {
                leave(key, Why::new("TOML has no null", "choose a value, and write it in force"))
            }
        }
    }
    let stripped = ["stripParams", "strip_params"].iter().find_map(|key| filters.get(key));
    let stripped = stripped.and_then(Node::text).unwrap_or_default();
    let names =
        stripped.split(',').map(str::trim).filter(|name| !name.is_empty() && *name != "model");
    let lost: Vec<&str> = names.filter(|name| !force.contains_key(*name)).collect();
    if !lost.is_empty() {
        let why = "Hostler takes no parameter out of a request, it only sets some";
        let instead = "write the value that is to hold in force";
        leave(format!("filters.stripParams: {}", lost.join(", ")), Why::new(why, instead));
    }
    for (name, _) in filters.get("setParamsByID").map(Node::entries).unwrap_or_default() {
        let why =
            "parameters belong to a model, not to one of its names; the name was not made an alias";
        let instead = "choose one set of parameters and write it in force, or let clients say them";
        leave(format!("filters.setParamsByID: {name}"), Why::new(why, instead));
    }
    let known = ["setParams", "stripParams", "strip_params", "setParamsByID"];
    for (name, _) in filters.entries().iter().filter(|(name, _)| !known.contains(&name.as_str())) {
        leave(format!("filters.{name}"), super::unknown_key());
    }
    if !force.is_empty() {
        definition.set("force", force);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_and_what_is_lost() {
        let node = Node::parse(
            "filters:\n  stripParams: \"temperature, top_p, model\"\n  setParams: {temperature: 0.7, stream: true, \
             model: x, top_k: ~, o: {a: [1, b]}}\n  setParamsByID: {\"m:high\": {a: 1}}\n  other: 1\n",
        );
        let (mut definition, mut left) = (Definition::default(), Vec::new());
        door("m", &node.unwrap(), &mut definition, &mut left);
        assert_eq!(definition.lines(), "force = { o = { a = [1, \"b\"] }, temperature = 0.7 }\n");
        let keys: Vec<&str> = left.iter().map(|l| l.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "filters.setParams.stream",
                "filters.setParams.top_k",
                "filters.stripParams: top_p",
                "filters.setParamsByID: m:high",
                "filters.other"
            ]
        );
    }
}
