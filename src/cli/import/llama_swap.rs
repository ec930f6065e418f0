//! A configuration of llama-swap, as Hostler's. PURE.
//!
//! Invariant: each setting is taken over, or listed with the reason and with what to do instead; no key of a service, and no
//! value of a variable, is in what is listed. What comes out was accepted by Hostler's own configuration.

use std::collections::{BTreeMap, BTreeSet};

use super::document::{command, document};
use super::left::{Left, NOTHING, Why};
use super::macros::{Macros, environment};
use super::model::{Model, Whole, model};
use super::node::Node;
use super::peers::peers;
use super::weights::Origin;
use super::{routing, settings};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::config::{self, Defaults, Source};
use crate::types::EngineKind;

/// What llama-swap's configuration does not say.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// `[gpu] backend`; `None`: nobody said it.
    pub backend: Option<&'static str>,
    /// Images by engine, for engines that llama-swap runs as programs of the host.
    pub images: BTreeMap<&'static str, String>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// `hostler.toml`.
    pub text: String,
    /// What was not taken over.
    pub left: Vec<Left>,
}

/// Translates `text`. `variable` is the environment that `${env.NAME}` is about.
///
/// # Errors
/// If it is no configuration of llama-swap, if something is missing that it does not say, or if Hostler would refuse the result.
pub fn import(
    text: &str,
    told: &Told,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Outcome<Imported> {
    let root = read(text, variable)?;
    let global = Macros::read(root.get("macros")).map_err(wrong)?;
    let models = root.get("models").map(Node::entries).unwrap_or_default();
    if models.is_empty() && root.get("peers").is_none() {
        return Err(wrong("it has neither models nor peers, so it is none of llama-swap's".into()));
    }
    let top = Node::Map(
        root.entries()
            .iter()
            .map(|(key, value)| match key.as_str() {
                "models" | "macros" => (key.clone(), value.clone()),
                _ => (key.clone(), global.expand(value)),
            })
            .collect(),
    );
    let mut expanded = Vec::new();
    for (id, node) in models {
        let own = Macros::read(node.get("macros")).map_err(wrong)?;
        expanded.push((id, global.of_model(id, own).expand(node)));
    }
    let names = names(&expanded);
    let globals = settings::read(&top);
    let routing = routing::read(&top, &names);
    let mut left = backend(told);
    left.extend(globals.left.iter().chain(&routing.left).cloned());
    let mut made: Vec<Model> = expanded
        .iter()
        .map(|(id, node)| {
            let pin = routing.pins.contains(*id);
            let priority = routing.priority.get(*id).copied();
            let gpus = told.backend != Some("host");
            let whole = Whole { globals: &globals, images: &told.images, pin, priority, gpus };
            model(id, node, &whole)
        })
        .collect();
    images(&made)?;
    if let Some(node) = top.get("peers") {
        made.extend(peers(node, &names, &mut left));
    }
    if told.backend == Some("host") {
        made.iter_mut().for_each(one_device);
    }
    let text = document(told.backend.unwrap_or("nvml"), globals.level.as_deref(), &left, &made);
    left.extend(made.into_iter().flat_map(|model| fetched(&model).into_iter().chain(model.left)));
    check(&text)?;
    Ok(Imported { text, left })
}

fn wrong(why: String) -> Failure {
    Failure::new(Exit::Failed, why).fix("correct it, and import again; nothing was written")
}

/// The document, with the environment in place. Keys of services are taken out of it: nothing needs them.
fn read(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Outcome<Node> {
    let mut root = Node::parse(text).map_err(|why| wrong(format!("it is no YAML: {why}")))?;
    if let Node::Map(entries) = &mut root {
        for (key, value) in entries.iter_mut() {
            match (key.as_str(), value) {
                ("apiKeys", value) => *value = Node::Bool(true),
                ("peers", Node::Map(peers)) => {
                    for (_, peer) in peers.iter_mut() {
                        let Node::Map(peer) = peer else { continue };
                        let keys = peer.iter_mut().filter(|(key, _)| key == "apiKey");
                        keys.for_each(|(_, value)| *value = Node::Bool(true));
                    }
                }
                _ => {}
            }
        }
    }
    let mut unset = BTreeSet::new();
    let root = environment(&root, variable, &mut unset);
    if unset.is_empty() {
        return Ok(root);
    }
    let names: Vec<String> = unset.into_iter().collect();
    let message = format!("it needs variables that are not set: {}", names.join(", "));
    Err(Failure::new(Exit::Usage, message)
        .fix("set them for this command as llama-swap has them; nothing was written"))
}

/// Each name that leads to a model, with the model's ID.
fn names(models: &[(&String, Node)]) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for (id, node) in models {
        for alias in node.get("aliases").map(Node::texts).unwrap_or_default() {
            names.insert(alias, (*id).clone());
        }
    }
    // A name goes before an alias.
    names.extend(models.iter().map(|(id, _)| ((*id).clone(), (*id).clone())));
    names
}

fn backend(told: &Told) -> Vec<Left> {
    if told.backend.is_some() {
        return Vec::new();
    }
    let why = Why::new(
        "llama-swap does not measure memory, so nothing says where; backend = \"nvml\" was written, for NVIDIA GPUs",
        "for models in the host's RAM: --backend host",
    );
    vec![Left { model: None, key: "[gpu] backend".into(), why }]
}

/// Engines whose image nobody told.
fn images(models: &[Model]) -> Outcome {
    for (engine, program, option) in [
        (EngineKind::Llamacpp, "llama-server", "--llamacpp-image"),
        (EngineKind::Vllm, "vLLM", "--vllm-image"),
    ] {
        let missing = models.iter().filter(|m| m.made.is_ok() && m.imageless == Some(engine));
        let names: Vec<&str> = missing.map(|m| m.id.as_str()).collect();
        if !names.is_empty() {
            let message = format!(
                "which image has {program}? llama-swap starts it as a program of the host for {}, and Hostler runs engines \
                 in containers",
                names.join(", ")
            );
            let fix = format!("{option} IMAGE, as podman takes it; nothing was written");
            return Err(Failure::new(Exit::Usage, message).fix(fix));
        }
    }
    Ok(())
}

/// A model that is not here before its weights are fetched.
fn fetched(model: &Model) -> Option<Left> {
    let Ok((definition, Origin::Hub(id))) = &model.made else { return None };
    let why = Why::new(
        "needs weights from a hub, and an engine has no network",
        format!("this fetches and defines it: {}", command(definition, id)),
    );
    Some(Left::model(&model.id, why))
}

/// The host's memory is one device.
fn one_device(model: &mut Model) {
    let Ok((definition, _)) = &mut model.made else { return };
    for key in ["gpu_count", "gpus"] {
        if definition.get(key).is_some() {
            definition.keys.retain(|(there, _)| *there != key);
            let why = Why::new("the host's memory is one device", NOTHING);
            model.left.push(Left { model: Some(model.id.clone()), key: key.to_owned(), why });
        }
    }
}

/// Hostler's own word on the result.
fn check(text: &str) -> Outcome {
    let source = Source::settings("hostler.toml", text);
    config::parse(&[source], &Defaults::system()).map(drop).map_err(|errors| {
        let message = format!("Hostler would refuse the result:\n{errors}\nin:\n{text}");
        Failure::new(Exit::Config, message)
            .fix("change what it comes from, and import again; nothing was written")
    })
}

#[cfg(test)]
mod tests;
