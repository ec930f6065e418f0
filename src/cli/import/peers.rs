//! llama-swap's peers: each of their models becomes one that runs elsewhere. PURE.

use std::collections::BTreeMap;

use super::left::{Left, NOTHING, Why};
use super::model::Model;
use super::node::Node;
use super::params;
use super::weights::Origin;
use crate::cli::add::file::Definition;
use crate::types::ModelName;

/// The models of all peers. A model's own name is an alias where no other has it: `taken` has the names of the host's models.
pub fn peers(node: &Node, taken: &BTreeMap<String, String>, left: &mut Vec<Left>) -> Vec<Model> {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for (_, peer) in node.entries() {
        for name in peer.get("models").map(Node::texts).unwrap_or_default() {
            *count.entry(name).or_default() += 1;
        }
    }
    let mut models = Vec::new();
    for (peer_id, peer) in node.entries() {
        let credential = credential(peer_id);
        let has_key = peer.get("apiKey").is_some();
        if has_key {
            let why = "a key of another service is a systemd credential here, and never in a file that all may read";
            let instead = format!(
                "put it into a file of root's, and write LoadCredential={credential}:/path/of/it in a drop-in of \
                 hostler.service; without it the daemon does not start"
            );
            left.push(Left {
                model: None,
                key: format!("peers.{peer_id}.apiKey"),
                why: Why::new(why, instead),
            });
        }
        let known = ["proxy", "models", "apiKey", "filters", "timeouts"];
        for (key, _) in peer.entries().iter().filter(|(_, value)| *value != Node::Null) {
            let why = match key.as_str() {
                "timeouts" => Why::new("Hostler has its own bounds", NOTHING),
                key if known.contains(&key) => continue,
                _ => super::unknown_key(),
            };
            left.push(Left { model: None, key: format!("peers.{peer_id}.{key}"), why });
        }
        for name in peer.get("models").map(Node::texts).unwrap_or_default() {
            let free = count.get(&name) == Some(&1) && !taken.contains_key(&name);
            models.push(model(peer_id, peer, &name, free, has_key.then_some(&credential)));
        }
    }
    models
}

fn model(peer_id: &str, peer: &Node, name: &str, free: bool, credential: Option<&String>) -> Model {
    let id = format!("{peer_id}/{name}");
    let mut left = Vec::new();
    let made = make(&id, peer, name, free, credential, &mut left);
    if let Err(why) = &made {
        left = vec![Left::model(&id, why.clone())];
    }
    Model { id, made, left, imageless: None }
}

fn make(
    id: &str,
    peer: &Node,
    name: &str,
    free: bool,
    credential: Option<&String>,
    left: &mut Vec<Left>,
) -> Result<(Definition, Origin), Why> {
    let renamed = "give it another name in Hostler by hand";
    id.parse::<ModelName>()
        .map_err(|err| Why::new(format!("has no name that Hostler takes: {err}"), renamed))?;
    let url = peer.get("proxy").and_then(Node::text);
    let url = url.ok_or_else(|| {
        Why::new("belongs to a peer without a proxy", "write one, and import again")
    })?;
    let mut definition = Definition { name: id.to_owned(), ..Definition::default() };
    definition.set("engine", "external");
    definition.set("url", url.trim_end_matches('/'));
    definition.set("served_name", name);
    if let Some(credential) = credential {
        definition.set("key_credential", credential.as_str());
    }
    params::door(id, peer, &mut definition, left);
    if free && name.parse::<ModelName>().is_ok() {
        definition.set_list("aliases", &[name.to_owned()]);
    }
    Ok((definition, Origin::Here))
}

/// A credential's name for a peer.
fn credential(peer: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' };
    format!("peer-{}", peer.chars().map(plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_two_have_is_nobodys_alias() {
        let node = Node::parse(
            "a: {proxy: \"http://192.0.2.1/\", models: [x, org/y, here]}\n\
             b.c: {proxy: \"https://api.example.org/api\", apiKey: sk-secret, models: [x], timeouts: {connect: 1}, n: 1}\n\
             none: {models: [z]}\n",
        );
        let taken = BTreeMap::from([("here".to_owned(), "here".to_owned())]);
        let mut left = Vec::new();
        let models = peers(&node.unwrap(), &taken, &mut left);
        let text = |at: usize| models[at].made.as_ref().unwrap().0.table();
        assert!(!text(0).contains("aliases"), "{}", text(0));
        assert_eq!(
            text(1),
            "[models.\"a/org/y\"]\nengine = \"external\"\nurl = \"http://192.0.2.1\"\nserved_name = \"org/y\"\n\
             aliases = [\"org/y\"]\n"
        );
        assert!(!text(2).contains("aliases"));
        assert!(text(3).contains("key_credential = \"peer-b-c\""));
        assert!(models[4].made.is_err());
        let keys: Vec<&str> = left.iter().map(|l| l.key.as_str()).collect();
        assert_eq!(keys, ["peers.b.c.apiKey", "peers.b.c.timeouts", "peers.b.c.n"]);
        assert!(!format!("{left:?}{models:?}").contains("sk-secret"));
    }
}
