//! One model of llama-swap: from its mapping to a model of Hostler. PURE.

mod devices;

use std::collections::BTreeMap;

use toml::Value;

use super::command::{self, Started};
use super::left::{Left, NOTHING, Why};
use super::macros::left_over;
use super::node::Node;
use super::params;
use super::settings::{Globals, not_seconds};
use super::weights::{Origin, host_files, weights};
use crate::cli::add::exec;
use crate::cli::add::file::Definition;
use crate::config;
use crate::types::{EngineKind, ModelName};

/// What holds for all models.
#[derive(Debug)]
pub struct Whole<'w> {
    /// Of the file.
    pub globals: &'w Globals,
    /// The image of an engine that llama-swap runs as a program of the host.
    pub images: &'w BTreeMap<&'static str, String>,
    /// It is pinned.
    pub pin: bool,
    /// Its priority.
    pub priority: Option<i64>,
    /// Whether models are on GPUs, of which a host may have several.
    pub gpus: bool,
}

/// What became of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// What clients call it.
    pub id: String,
    /// Its definition, and where its weights come from.
    pub made: Result<(Definition, Origin), Why>,
    /// What was not taken over.
    pub left: Vec<Left>,
    /// An engine whose image nobody told.
    pub imageless: Option<EngineKind>,
}

const MADE: &str = "Hostler starts and reaches engines in its own way";
const NAMED: &str = "an engine is told the model's name and aliases by Hostler";

/// Keys of a model for which there is no place.
const NO_PLACE: [(&str, &str, &str); 9] = [
    ("name", "/v1/models lists names and aliases, and nothing more", NOTHING),
    ("description", "/v1/models lists names and aliases, and nothing more", NOTHING),
    ("metadata", "/v1/models lists names and aliases, and nothing more", NOTHING),
    ("capabilities", "/v1/models lists names and aliases, and nothing more", NOTHING),
    (
        "unlisted",
        "/v1/models lists all models",
        "give clients keys that are limited to their models",
    ),
    ("timeouts", "an engine is reached over its own socket, with bounds of Hostler's", NOTHING),
    ("compat", "a WebSocket to an engine is a request like any other", NOTHING),
    (
        "sendLoadingState",
        "streams get signs of life while a model loads, but no texts in the answer",
        "loading_feedback says of which kind",
    ),
    (
        "healthCheckTimeout",
        "llama-swap takes the one at the top for all models",
        "write load_timeout",
    ),
];

/// Keys that are read one by one.
const READ: [&str; 11] = [
    "cmd",
    "proxy",
    "aliases",
    "env",
    "checkEndpoint",
    "ttl",
    "unloadTimeout",
    "useModelName",
    "concurrencyLimit",
    "filters",
    "macros",
];

/// What is gathered on the way.
struct Making<'m> {
    id: &'m str,
    node: &'m Node,
    whole: &'m Whole<'m>,
    left: Vec<Left>,
    imageless: Option<EngineKind>,
}

/// Translates one model. Its macros are expanded.
pub fn model(id: &str, node: &Node, whole: &Whole<'_>) -> Model {
    let mut making = Making { id, node, whole, left: Vec::new(), imageless: None };
    let made = making.make();
    match &made {
        // The rest of a model that is not taken over goes with it.
        Err(why) => making.left = vec![Left::model(id, why.clone())],
        Ok(_) => making.no_place(),
    }
    Model { id: id.to_owned(), made, left: making.left, imageless: making.imageless }
}

/// A URL that leads to another host, or to a service that is there without llama-swap.
fn is_elsewhere(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let host =
        host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(host, |(h, _)| h);
    !["localhost", "[::1]", "0.0.0.0", ""].contains(&host) && !host.starts_with("127.")
}

impl Making<'_> {
    fn leave(
        &mut self,
        key: impl Into<String>,
        why: impl Into<String>,
        instead: impl Into<String>,
    ) {
        let why = Why::new(why, instead);
        self.left.push(Left { model: Some(self.id.to_owned()), key: key.into(), why });
    }

    fn text(&self, key: &str) -> Option<String> {
        self.node.get(key).and_then(Node::text).filter(|text| !text.trim().is_empty())
    }

    fn make(&mut self) -> Result<(Definition, Origin), Why> {
        self.id.parse::<ModelName>().map_err(|err| {
            Why::new(
                format!("has no name that Hostler takes: {err}"),
                "give it another one, and import again",
            )
        })?;
        let mut definition = Definition { name: self.id.to_owned(), ..Definition::default() };
        let proxy = self.text("proxy").filter(|url| is_elsewhere(url));
        let origin = match proxy {
            Some(url) => self.external(&mut definition, &url),
            None => self.own(&mut definition)?,
        };
        let mut left = Vec::new();
        params::door(self.id, self.node, &mut definition, &mut left);
        self.left.append(&mut left);
        self.aliases(&mut definition);
        // ${PORT}, ${PID}, and what llama-swap itself would refuse.
        if let Some(name) = left_over(&definition.lines()) {
            return Err(Why::new(
                format!("holds ${{{name}}} where Hostler has nothing to put in its place"),
                "write a value there, and import again",
            ));
        }
        Ok((definition, origin))
    }

    fn external(&mut self, definition: &mut Definition, url: &str) -> Origin {
        definition.set("engine", "external");
        definition.set("url", url.trim_end_matches('/'));
        let check = self.text("checkEndpoint");
        if let Some(path) = check.filter(|path| path != "none") {
            definition.set("health", path);
        }
        if let Some(name) = self.text("useModelName") {
            definition.set("served_name", name);
        }
        self.leave(
            "cmd",
            format!("proxy leads to {url}, and a model that is elsewhere is neither started nor stopped here"),
            "let it run as a service of its own; where it is no other host, let proxy lead to localhost",
        );
        for key in ["cmdStop", "ttl", "unloadTimeout", "env"] {
            if self.node.get(key).is_some() {
                self.leave(
                    key,
                    "a model that is elsewhere is neither started nor stopped here",
                    NOTHING,
                );
            }
        }
        if self.whole.pin || self.whole.priority.is_some() {
            self.leave("pin and priority", "a model that is elsewhere needs no room here", NOTHING);
        }
        Origin::Here
    }

    fn own(&mut self, definition: &mut Definition) -> Result<Origin, Why> {
        let cmd = self
            .text("cmd")
            .ok_or_else(|| Why::new("has no cmd", "write one, and import again"))?;
        let mut started = command::read(&cmd)?;
        let mut taken = exec::read(started.engine, &started.exec);
        definition.set("engine", started.engine.as_str());
        match started.image.as_ref().or(self.whole.images.get(started.engine.as_str())) {
            Some(image) => definition.set("image", image.as_str()),
            None => self.imageless = Some(started.engine),
        }
        let origin = weights(definition, &started, &mut taken)?;
        host_files(self.id, &started, definition, &mut taken.args, &mut self.left);
        for (key, why) in std::mem::take(&mut started.left) {
            self.left.push(Left { model: Some(self.id.to_owned()), key, why });
        }
        for (flag, why) in std::mem::take(&mut taken.left) {
            self.leave(flag, why, NOTHING);
        }
        if let Some(name) = taken.name.iter().find(|name| *name != self.id) {
            self.leave(
                format!("the engine's own name {name}"),
                NAMED,
                "add it to aliases if clients use it",
            );
        }
        for (key, value) in taken.keys {
            definition.set(key, value);
        }
        self.environment(&mut started, definition);
        self.gpu_count(&started, &taken.args, definition);
        definition.set_list("gpus", &started.gpus);
        definition.set_list("args", &taken.args);
        definition.set_texts("env", &started.env);
        for (key, value) in std::mem::take(&mut started.keys) {
            definition.set(key, value);
        }
        self.times(definition);
        self.plumbing(&started);
        Ok(origin)
    }

    /// `env`, of which some variables are Hostler's to set.
    fn environment(&mut self, started: &mut Started, definition: &mut Definition) {
        let mut all = std::mem::take(&mut started.env);
        for line in self.node.get("env").map(Node::texts).unwrap_or_default() {
            match line.split_once('=') {
                Some((name, value)) => drop(all.insert(name.to_owned(), value.to_owned())),
                None => self.leave(format!("env: {line}"), "it has no value", "write NAME=VALUE"),
            }
        }
        for (name, value) in all {
            if name == "CUDA_VISIBLE_DEVICES" || name == "NVIDIA_VISIBLE_DEVICES" {
                self.devices(&name, &value, started, definition);
                continue;
            }
            let ours = crate::cli::add::container::unwanted(&name)
                .or_else(|| config::reserved_variable(started.engine, &name));
            match ours {
                Some(why) => self.leave(format!("env: {name}"), why, NOTHING),
                None => drop(started.env.insert(name, value)),
            }
        }
    }

    fn times(&mut self, definition: &mut Definition) {
        let ttl = match self.node.get("ttl").map(|value| value.int().filter(|n| *n >= -1)) {
            None | Some(Some(-1)) => self.whole.globals.ttl,
            Some(Some(seconds)) => seconds,
            Some(None) => {
                let Why { why, instead } = not_seconds();
                self.leave("ttl", why, instead);
                self.whole.globals.ttl
            }
        };
        if self.whole.pin {
            definition.set("pin", true);
            if ttl > 0 {
                self.leave(
                    "ttl",
                    "a pinned model is never unloaded for idling",
                    "remove pin, and write idle_timeout",
                );
            }
        } else if ttl == 0 {
            // Its default is 10m, llama-swap's is to keep a model until another is asked for.
            definition.set("idle_timeout", "never");
        } else {
            self.seconds(definition, "ttl", "idle_timeout", ttl, 8760 * 3600);
        }
        if let Some(load) = self.whole.globals.load {
            self.seconds(definition, "healthCheckTimeout", "load_timeout", load, 24 * 3600);
        }
        let own = self.node.get("unloadTimeout").and_then(Node::int).filter(|n| *n > 0);
        if let Some(unload) = own.or(self.whole.globals.unload) {
            self.seconds(definition, "unloadTimeout", "stop_timeout", unload, 600);
        }
        if let Some(priority) = self.whole.priority {
            definition.set("priority", priority);
        }
    }

    fn seconds(
        &mut self,
        definition: &mut Definition,
        from: &str,
        to: &'static str,
        value: i64,
        most: i64,
    ) {
        if (1..=most).contains(&value) {
            definition.set(to, format!("{value}s"));
        } else {
            self.leave(from, format!("{to} is 1 s to {most} s"), format!("{to} keeps its default"));
        }
    }

    /// What a model of Hostler does not need.
    fn plumbing(&mut self, started: &Started) {
        for key in ["cmdStop", "proxy"] {
            if self.node.get(key).is_some() {
                self.leave(key, MADE, NOTHING);
            }
        }
        if self.node.get("checkEndpoint").is_some() {
            let why = "Hostler asks each engine itself whether it is ready";
            self.leave("checkEndpoint", why, "health_interval says how often");
        }
        if let Some(name) = self.text("useModelName").filter(|name| name != self.id) {
            self.leave(format!("useModelName: {name}"), NAMED, NOTHING);
        }
        if started.image.is_none() && self.imageless.is_none() {
            let why = "an engine of Hostler is a container's, and no program of the host";
            self.leave("cmd: the program", why, "see that the image has the version that you want");
        }
    }

    fn aliases(&mut self, definition: &mut Definition) {
        let mut good = Vec::new();
        for alias in self.node.get("aliases").map(Node::texts).unwrap_or_default() {
            match alias.parse::<ModelName>() {
                Ok(_) => good.push(alias),
                Err(err) => {
                    self.leave(format!("aliases: {alias}"), err.to_string(), "choose another name")
                }
            }
        }
        definition.set_list("aliases", &good);
        if let Some(limit) = self.node.get("concurrencyLimit") {
            match limit.int() {
                Some(0) => {}
                Some(n @ 1..=65_536) => definition.set("max_concurrent", Value::from(n)),
                _ => self.leave(
                    "concurrencyLimit",
                    "it is no number from 0 to 65536",
                    "write max_concurrent",
                ),
            }
        }
    }

    fn no_place(&mut self) {
        let node = self.node;
        for (key, value) in node.entries().iter().filter(|(_, value)| *value != Node::Null) {
            let quiet = READ.contains(&key.as_str())
                || key == "cmdStop"
                || (matches!(key.as_str(), "unlisted" | "sendLoadingState")
                    && value.flag() == Some(false));
            if quiet {
                continue;
            }
            let Why { why, instead } = super::unread(&NO_PLACE, key);
            self.leave(key, why, instead);
        }
    }
}
