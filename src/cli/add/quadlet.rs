//! From a Quadlet unit (`foo.container`) to a model definition. PURE.
//!
//! Invariant: every setting of the unit is either taken over or listed with the reason why it was not; none is lost silently.

mod volume;

use std::collections::BTreeMap;
use std::path::Path;

use toml::Value;

use self::volume::{mount, volume};
use super::container::{ENTRY, devices, gpu, guess, is_shell, other, shm_size, unwanted};
use super::exec::{self, Taken};
use super::file::Definition;
use super::unit_file::{Setting, settings, words};
use super::volumes::{self, Volume};
use crate::config;
use crate::types::{EngineKind, ModelName};

/// A setting that was not taken over.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Left {
    /// In the unit's file, from 1.
    pub line: usize,
    /// `Key=value`.
    pub setting: String,
    /// Why.
    pub why: String,
}

/// What became of a unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The model.
    pub definition: Definition,
    /// What was not taken over.
    pub left: Vec<Left>,
}

/// What is told beside the unit's text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told<'t> {
    /// The file's name without `.container`.
    pub stem: &'t str,
    /// The engine; else it goes by the image's name.
    pub engine: Option<EngineKind>,
    /// The model's name, in place of the container's.
    pub name: Option<&'t str>,
    /// The engine's image, in place of the unit's.
    pub image: Option<&'t str>,
    /// The home of whoever's unit it is, where that is known.
    pub home: Option<&'t Path>,
}

/// What is gathered on the way.
struct Unit<'t> {
    home: Option<&'t Path>,
    /// Else why it is not known.
    image: Result<String, String>,
    name: Option<String>,
    exec: Result<Vec<String>, String>,
    /// Of the last `Exec=`.
    exec_line: usize,
    /// With their lines.
    volumes: Vec<(usize, Volume)>,
    /// With their lines.
    env: BTreeMap<String, (usize, String)>,
    gpus: Vec<String>,
    /// How many are named.
    devices: usize,
    others: Vec<(&'static str, Value)>,
    left: Vec<Left>,
}

/// Whose home a unit is in, as a rootless podman's units are.
pub fn home(unit: &Path) -> Option<&Path> {
    let units = unit.ancestors().find(|dir| dir.ends_with(".config/containers/systemd"))?;
    units.ancestors().nth(3)
}

/// Reads a unit.
///
/// # Errors
/// Where what a model cannot do without is missing, or cannot be read.
pub fn import(text: &str, told: &Told<'_>) -> Result<Imported, String> {
    let mut unit = Unit {
        home: told.home,
        image: Err("has no Image= in its [Container] section".to_owned()),
        name: None,
        exec: Ok(Vec::new()),
        exec_line: 0,
        volumes: Vec::new(),
        env: BTreeMap::new(),
        gpus: Vec::new(),
        devices: 0,
        others: Vec::new(),
        left: Vec::new(),
    };
    for setting in settings(text) {
        take(&mut unit, &setting);
    }
    let image = told.image.map_or_else(|| unit.image.clone(), |image| Ok(image.to_owned()))?;
    let guessed = || guess(&image).or_else(|| guess(unit.image.as_ref().ok()?));
    let engine = told.engine.or_else(guessed).ok_or_else(|| {
        let what = other(&image).map_or_else(
            || format!("does not show which engine is in {image};"),
            |what| format!("starts {what}; where {image} is an engine after all,"),
        );
        format!("{what} say it with --engine llamacpp or --engine vllm")
    })?;
    let exec = unit.exec.as_ref().map_err(|why| format!("has an Exec= that {why}"))?;
    if exec.first().is_some_and(|word| is_shell(word)) {
        return Err("starts a shell, and its script is not read here; write the engine's own command line in its place".to_owned());
    }
    let mut taken = exec::read(engine, exec);
    taken.or(exec::read(engine, &variables(engine, &mut unit)));
    let (name, aliases) = names(&mut unit, &mut taken, told);
    let mut definition = Definition { name, ..Definition::default() };
    definition.set("engine", engine.as_str());
    definition.set("image", image);
    weights(&mut definition, &mut unit, &mut taken, engine)?;
    for (key, value) in taken.keys {
        definition.set(key, value);
    }
    for (key, value) in unit.others {
        definition.set(key, value);
    }
    if unit.devices > 1 && definition.get("gpu_count").is_none() {
        definition.set("gpu_count", i64::try_from(unit.devices).unwrap_or(i64::MAX));
    }
    definition.set_list("gpus", &unit.gpus);
    definition.set_list("aliases", &aliases);
    definition.set_list("args", &taken.args);
    let env = unit.env.into_iter().map(|(name, (_, value))| (name, value)).collect();
    definition.set_texts("env", &env);
    let (mut left, line) = (unit.left, unit.exec_line);
    left.extend(taken.left.into_iter().map(|(setting, why)| Left { line, setting, why }));
    for (line, volume) in unit.volumes {
        let inside = volume.inside.display();
        let why = volume.host.err().unwrap_or_else(|| {
            format!("{inside} is not where the weights are; an engine of Hostler gets nothing of the host but its weights")
        });
        left.push(Left { line, setting: volume.said, why });
    }
    left.sort_by_key(|left| left.line);
    Ok(Imported { definition, left })
}

/// The model's name, and its further ones: what the engine answered to stays a name of it.
fn names(unit: &mut Unit<'_>, taken: &mut Taken, told: &Told<'_>) -> (String, Vec<String>) {
    let served = taken.name.take().into_iter().chain(std::mem::take(&mut taken.aliases));
    let own = told.name.map(str::to_owned).or(unit.name.take());
    let mut names: Vec<String> = own.into_iter().collect();
    for name in served {
        match name.parse::<ModelName>() {
            Ok(_) if names.contains(&name) => {}
            Ok(_) => names.push(name),
            Err(why) => {
                let setting = format!("the engine's own name {name}");
                unit.left.push(Left { line: unit.exec_line, setting, why: why.to_string() });
            }
        }
    }
    if names.is_empty() {
        names.push(told.stem.to_owned());
    }
    let aliases = names.split_off(1);
    (names.remove(0), aliases)
}

/// Takes out of the environment what is not for it: as words of a command line what has a key here, the rest to what is left.
fn variables(engine: EngineKind, unit: &mut Unit<'_>) -> Vec<String> {
    let mut words = Vec::new();
    for (name, (line, value)) in std::mem::take(&mut unit.env) {
        if let Some(flag) = exec::flag_of(engine, &name) {
            words.extend([flag.to_owned(), value]);
        } else if let Some(why) = config::reserved_variable(engine, &name) {
            unit.left.push(Left {
                line,
                setting: format!("Environment={name}=…"),
                why: why.into(),
            });
        } else {
            unit.env.insert(name, (line, value));
        }
    }
    words
}

/// The path that the engine was given, seen from the host, and what comes along with it.
fn weights(
    definition: &mut Definition,
    unit: &mut Unit<'_>,
    taken: &mut Taken,
    engine: EngineKind,
) -> Result<(), String> {
    let around = |unit: &Unit<'_>, path: &Path| {
        volumes::around(unit.volumes.iter().map(|(_, volume)| volume), path)
    };
    let mut path = None;
    let mut used = None;
    if taken.fetch.is_none() && taken.model.is_none() {
        let why = "It names no weights, so they are in the image; if they are not, the engine does not start.";
        definition.comments.push(why.to_owned());
    }
    if let Some(model) = taken.fetch.take().or(taken.model.take()) {
        let inside = Path::new(&model);
        if !inside.is_absolute() {
            return Err(format!(
                "lets its engine fetch {model:?} by itself, and engines have no network here; hostler add {model} fetches it"
            ));
        }
        used = around(unit, inside);
        match used.and_then(|at| unit.volumes.get(at)) {
            Some((_, volume)) => {
                let host = volume.on_host(inside);
                path = Some(host.map_err(|why| format!("has its weights, {model}, {why}"))?);
            }
            // It is in the image.
            None => {
                let flag = if engine == EngineKind::Vllm { "--model" } else { "-m" };
                taken.args.splice(0..0, [flag.to_owned(), model]);
            }
        }
    }
    let host = |value: &str| {
        let value = Path::new(value);
        let (_, volume) = unit.volumes.get(around(unit, value)?)?;
        Some(volume.on_host(value).ok())
    };
    let (mut projector, args) = (None, &mut taken.args);
    for (flag, value) in volumes::carry(args, path.as_deref(), engine, host, &mut projector) {
        let why = format!(
            "names {value}, and an engine of Hostler gets nothing of the host but its weights; put the file into the engine's image"
        );
        taken.left.push((flag, why));
    }
    if let Some(path) = path {
        let text = path.display().to_string();
        definition.set_texts("weights", &BTreeMap::from([("path".to_owned(), text)]));
    }
    if let Some(projector) = projector {
        definition.set("projector", projector.display().to_string());
    }
    used.map(|at| unit.volumes.remove(at));
    Ok(())
}

fn take(unit: &mut Unit<'_>, setting: &Setting) {
    let why = match (setting.section.as_str(), setting.key.as_str()) {
        ("Container", key) => container(unit, key, setting),
        ("Service", "TimeoutStartSec") => time(unit, "load_timeout", &setting.value),
        ("Service", "TimeoutStopSec") => time(unit, "stop_timeout", &setting.value),
        ("Service", "Restart" | "RestartSec" | "StartLimitBurst") => {
            Err("Hostler starts its engines again by itself".to_owned())
        }
        ("Install", _) => Err(
            "models are loaded on demand; --pin keeps one loaded, and hostler-model@.service makes units wait for it".to_owned(),
        ),
        ("Unit", "Description" | "Documentation") => return,
        ("Unit", _) => {
            Err("a model is no unit; other units can require hostler-model@.service".to_owned())
        }
        _ => Err("has no meaning in a model definition".to_owned()),
    };
    if let Err(why) = why {
        // Values of the environment may be secrets; the reason names the variable.
        let secret = setting.key == "Environment";
        let text = format!("{}={}", setting.key, if secret { "…" } else { &setting.value });
        unit.left.push(Left { line: setting.line, setting: text, why });
    }
}

fn container(unit: &mut Unit<'_>, key: &str, setting: &Setting) -> Result<(), String> {
    let value = setting.value.as_str();
    match key {
        "Image" if value.ends_with(".image") || value.ends_with(".build") => {
            let why = "names another unit; write the image's own name as --image";
            unit.image = Err(format!("has an Image={value} that {why}"));
            Ok(())
        }
        "Image" => {
            unit.image = Ok(value.to_owned());
            Ok(())
        }
        "ContainerName" => {
            unit.name = Some(value.to_owned());
            Ok(())
        }
        "Exec" => {
            (unit.exec, unit.exec_line) = (words(value, unit.home), setting.line);
            Ok(())
        }
        "Volume" | "Mount" => {
            let volume = if key == "Mount" { mount } else { volume };
            unit.volumes.push((setting.line, volume(value, unit.home)));
            Ok(())
        }
        "Environment" => environment(unit, setting),
        "AddDevice" => device(unit, value),
        "ShmSize" => {
            unit.others.push(("shm_size", Value::from(shm_size(value))));
            Ok(())
        }
        "StopTimeout" => time(unit, "stop_timeout", value),
        other => Err(unsupported(other).to_owned()),
    }
}

/// Why a key of `[Container]` is not taken over.
fn unsupported(key: &str) -> &'static str {
    match key {
        "PublishPort" | "ExposeHostPort" => "clients use Hostler's own endpoint",
        "Network" | "NetworkAlias" | "IP" | "IP6" | "DNS" | "DNSOption" | "DNSSearch"
        | "HostName" | "AddHost" => {
            "an engine has no network, or with transport = \"tcp\" a port on loopback alone"
        }
        "AutoUpdate" | "Pull" | "ImageTag" => {
            "Hostler pulls an image that is missing; name another tag to update"
        }
        "HealthCmd" | "HealthInterval" | "HealthOnFailure" | "HealthRetries"
        | "HealthStartPeriod" | "HealthTimeout" | "HealthStartupCmd" | "Notify" => {
            "Hostler asks each engine itself whether it is ready"
        }
        "AddCapability"
        | "Privileged"
        | "SecurityLabelDisable"
        | "SecurityLabelType"
        | "SeccompProfile"
        | "Unmask"
        | "Sysctl"
        | "Ulimit" => "an engine gets no right beyond Hostler's fixed, tight set",
        "DropCapability" | "NoNewPrivileges" | "ReadOnly" | "ReadOnlyTmpfs" | "RunInit"
        | "LogDriver" => "Hostler always does so, or decides it itself",
        "User" | "Group" | "UserNS" | "UIDMap" | "GIDMap" | "SubUIDMap" | "SubGIDMap"
        | "GroupAdd" | "Mask" => "an engine runs as a subordinate ID of the service user",
        "Tmpfs" | "Rootfs" | "WorkingDir" => "an engine gets its weights, /tmp and /dev/shm",
        "Secret" | "EnvironmentFile" | "EnvironmentHost" => {
            "nothing secret reaches an engine, and it needs no key; write what it needs as Environment="
        }
        "Entrypoint" => ENTRY,
        "GlobalArgs" | "PodmanArgs" | "ContainersConfModule" => {
            "Hostler speaks podman's API, which has no command line"
        }
        "Label" | "Annotation" => "labels are Hostler's own book-keeping",
        "Pod" => "an engine is a container of its own",
        "StopSignal" => "engines get SIGTERM",
        _ => "has no meaning in a model definition",
    }
}

fn environment(unit: &mut Unit<'_>, setting: &Setting) -> Result<(), String> {
    let mut refused = Vec::new();
    for word in words(&setting.value, unit.home)? {
        match word.split_once('=') {
            Some((name, value)) => match unwanted(name) {
                Some(why) => refused.push(format!("{name}: {why}")),
                None => drop(unit.env.insert(name.to_owned(), (setting.line, value.to_owned()))),
            },
            None => refused.push(format!(
                "{word}: has no value; Hostler passes nothing of its own environment on"
            )),
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(refused.join("; ")) }
}

fn device(unit: &mut Unit<'_>, value: &str) -> Result<(), String> {
    unit.devices += devices(std::iter::once(value));
    unit.gpus.push(gpu(value)?);
    Ok(())
}

fn time(unit: &mut Unit<'_>, key: &'static str, value: &str) -> Result<(), String> {
    let text = value.trim();
    let seconds = text.chars().all(|c| c.is_ascii_digit()) && !text.is_empty();
    if text == "infinity" || text == "0" {
        return Err("Hostler bounds each load and each stop; the default stays".to_owned());
    }
    let text = text.replace("min", "m");
    unit.others.push((key, Value::from(if seconds { format!("{text}s") } else { text })));
    Ok(())
}

#[cfg(test)]
mod tests;
