//! From a Quadlet unit (`foo.container`) to a model definition. PURE.
//!
//! Invariant: every setting of the unit is either taken over or listed with the reason why it was not; none is lost silently.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Value;

use super::exec::{self, Taken};
use super::file::Definition;
use super::unit_file::{Setting, settings, words};
use crate::config;
use crate::types::EngineKind;

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

/// What is gathered on the way.
#[derive(Default)]
struct Unit {
    image: Option<String>,
    name: Option<String>,
    exec: Vec<String>,
    volumes: Vec<(PathBuf, PathBuf, usize, String)>,
    /// With their lines.
    env: BTreeMap<String, (usize, String)>,
    gpus: Vec<String>,
    others: Vec<(&'static str, Value)>,
    left: Vec<Left>,
}

/// Reads a unit. `stem`: its file's name without `.container`; `engine`: as told, else by the image's name.
///
/// # Errors
/// Where what a model cannot do without is missing.
pub fn import(text: &str, stem: &str, engine: Option<EngineKind>) -> Result<Imported, String> {
    let mut unit = Unit::default();
    for setting in settings(text) {
        take(&mut unit, &setting);
    }
    let image = unit.image.take().ok_or("has no Image= in its [Container] section")?;
    let engine = engine.or_else(|| guess(&image)).ok_or_else(|| {
        format!("does not show which engine is in {image}; say it with --engine llamacpp or --engine vllm")
    })?;
    let mut taken = exec::read(engine, &unit.exec);
    taken.or(exec::read(engine, &variables(engine, &mut unit)));
    let name = unit.name.take().or(taken.name.take()).unwrap_or_else(|| stem.to_owned());
    let mut definition = Definition { name, ..Definition::default() };
    definition.set("engine", engine.as_str());
    definition.set("image", image);
    weights(&mut definition, &mut unit, &mut taken)?;
    for (key, value) in taken.keys {
        definition.set(key, value);
    }
    for (key, value) in unit.others {
        definition.set(key, value);
    }
    definition.set_list("gpus", &unit.gpus);
    definition.set_list("aliases", &taken.aliases);
    definition.set_list("args", &taken.args);
    let env = unit.env.into_iter().map(|(name, (_, value))| (name, value)).collect();
    definition.set_texts("env", &env);
    let mut left = unit.left;
    let exec = taken.left.into_iter();
    left.extend(exec.map(|(setting, why)| Left { line: exec_line(text), setting, why }));
    for (host, inside, line, value) in unit.volumes {
        let why = format!(
            "{} is not where the weights are; an engine of Hostler gets nothing of the host but its weights",
            inside.display()
        );
        drop(host);
        left.push(Left { line, setting: format!("Volume={value}"), why });
    }
    left.sort_by_key(|left| left.line);
    Ok(Imported { definition, left })
}

/// Takes out of the environment what is not for it: as words of a command line what has a key here, the rest to what is left.
fn variables(engine: EngineKind, unit: &mut Unit) -> Vec<String> {
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

fn exec_line(text: &str) -> usize {
    settings(text).iter().find(|s| s.key == "Exec").map_or(0, |s| s.line)
}

/// podman's way to write a size, in Hostler's.
pub fn shm_size(value: &str) -> String {
    let text = value.trim_end_matches(['b', 'B', 'i']).to_ascii_uppercase();
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    match unit {
        "K" | "M" | "G" => format!("{number}{unit}iB"),
        _ => format!("{text}B"),
    }
}

/// The engine in an image, by the image's name.
pub fn guess(image: &str) -> Option<EngineKind> {
    let name = image.to_ascii_lowercase();
    if name.contains("vllm") {
        Some(EngineKind::Vllm)
    } else if name.contains("llama") {
        Some(EngineKind::Llamacpp)
    } else {
        None
    }
}

/// The path that the engine was given, seen from the host.
fn weights(definition: &mut Definition, unit: &mut Unit, taken: &mut Taken) -> Result<(), String> {
    let Some(model) = taken.fetch.take().or(taken.model.take()) else { return Ok(()) };
    let inside = Path::new(&model);
    if !inside.is_absolute() {
        return Err(format!(
            "lets its engine fetch {model:?} by itself, and engines have no network here; hostler add {model} fetches it"
        ));
    }
    let at = unit.volumes.iter().position(|(_, target, ..)| inside.starts_with(target));
    let Some(at) = at else {
        // It is in the image.
        let flag =
            if definition.get("engine") == Some(&Value::from("vllm")) { "--model" } else { "-m" };
        taken.args.splice(0..0, [flag.to_owned(), model]);
        return Ok(());
    };
    let (host, target, ..) = unit.volumes.remove(at);
    let rest = inside.strip_prefix(&target).unwrap_or(Path::new(""));
    let path = if rest.as_os_str().is_empty() { host } else { host.join(rest) };
    let path = path.display().to_string();
    definition.set_texts("weights", &BTreeMap::from([("path".to_owned(), path)]));
    Ok(())
}

fn take(unit: &mut Unit, setting: &Setting) {
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

fn container(unit: &mut Unit, key: &str, setting: &Setting) -> Result<(), String> {
    let value = setting.value.as_str();
    match key {
        "Image" if value.ends_with(".image") || value.ends_with(".build") => {
            Err("names another unit; write the image's own name as --image".to_owned())
        }
        "Image" => {
            unit.image = Some(value.to_owned());
            Ok(())
        }
        "ContainerName" => {
            unit.name = Some(value.to_owned());
            Ok(())
        }
        "Exec" => words(value).map(|words| unit.exec = words),
        "Volume" => volume(unit, setting),
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
        "Tmpfs" | "Mount" | "Rootfs" | "WorkingDir" => {
            "an engine gets its weights, /tmp and /dev/shm"
        }
        "Secret" | "EnvironmentFile" | "EnvironmentHost" => {
            "nothing secret reaches an engine, and it needs no key; write what it needs as Environment="
        }
        "Entrypoint" => {
            "Hostler starts the engine of the image; use an image whose entry point is the engine"
        }
        "GlobalArgs" | "PodmanArgs" | "ContainersConfModule" => {
            "Hostler speaks podman's API, which has no command line"
        }
        "Label" | "Annotation" => "labels are Hostler's own book-keeping",
        "Pod" => "an engine is a container of its own",
        "StopSignal" => "engines get SIGTERM",
        _ => "has no meaning in a model definition",
    }
}

fn volume(unit: &mut Unit, setting: &Setting) -> Result<(), String> {
    let words = words(&setting.value)?;
    let whole = words.first().map(String::as_str).unwrap_or_default();
    let mut parts = whole.split(':');
    match (parts.next(), parts.next()) {
        (Some(host), Some(inside)) if host.starts_with('/') && inside.starts_with('/') => {
            let value = setting.value.clone();
            unit.volumes.push((host.into(), inside.into(), setting.line, value));
            Ok(())
        }
        _ => Err("is a named or anonymous volume; Hostler mounts paths of the host, or images"
            .to_owned()),
    }
}

/// Why a variable does not belong into an engine's environment.
pub fn unwanted(name: &str) -> Option<&'static str> {
    if ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].contains(&name) {
        return Some("engines run offline, and hostler add takes HF_TOKEN itself");
    }
    let devices = name.ends_with("_VISIBLE_DEVICES");
    devices.then_some("Hostler decides which devices an engine sees")
}

fn environment(unit: &mut Unit, setting: &Setting) -> Result<(), String> {
    let mut refused = Vec::new();
    for word in words(&setting.value)? {
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

fn device(unit: &mut Unit, value: &str) -> Result<(), String> {
    unit.gpus.push(gpu(value)?);
    Ok(())
}

/// A GPU's UUID, from the name of its CDI device.
///
/// # Errors
/// With the reason why it says no device that Hostler can be told.
pub fn gpu(value: &str) -> Result<String, String> {
    let Some(name) = value.strip_prefix("nvidia.com/gpu=") else {
        return Err("an engine gets GPUs only, by CDI".to_owned());
    };
    if name == "all" {
        return Err(
            "Hostler chooses the devices; gpu_count says how many, 1 unless told".to_owned()
        );
    }
    if name.starts_with("GPU-") || name.starts_with("MIG-") {
        return Ok(name.to_owned());
    }
    Err("is a device by its number, which can change; nvidia-smi -L shows its UUID for gpus = [\"GPU-…\"]".to_owned())
}

fn time(unit: &mut Unit, key: &'static str, value: &str) -> Result<(), String> {
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
