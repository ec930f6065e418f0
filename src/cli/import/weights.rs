//! Where an imported model's weights are. PURE.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::command::Started;
use super::left::{Left, Why};
use crate::cli::add::exec::Taken;
use crate::cli::add::file::Definition;
use crate::cli::add::source::Source;
use crate::cli::add::volumes;
use crate::types::EngineKind;

/// Where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// They are on the host or in the engine's image; the definition says it.
    Here,
    /// They have to be fetched from a hub first.
    Hub(String),
}

/// Writes `weights`, or says that they have to be fetched.
///
/// # Errors
/// If the command does not say where they are on the host.
pub fn weights(
    definition: &mut Definition,
    started: &Started,
    taken: &mut Taken,
) -> Result<Origin, Why> {
    if let Some(id) = taken.fetch.take() {
        return hub(&id);
    }
    let Some(model) = taken.model.take() else {
        return match started.image {
            Some(_) => Ok(Origin::Here),
            None => Err(Why::new(
                "names no file of weights",
                "write it into the command (-m FILE, --model DIRECTORY), and import again",
            )),
        };
    };
    let path = Path::new(&model);
    let relative = || {
        Why::new(
            format!(
                "names its weights by a path that depends on where llama-swap was started, {model}"
            ),
            "write the whole path, and import again",
        )
    };
    let host: PathBuf = match &started.image {
        None if path.is_absolute() => path.to_owned(),
        None if started.engine == EngineKind::Vllm => return hub(&model).map_err(|_| relative()),
        None => return Err(relative()),
        Some(_) if !path.is_absolute() => return hub(&model).map_err(|_| relative()),
        Some(_) => match volumes::around(started.volumes.iter(), path) {
            Some(at) => started.volumes[at].on_host(path).map_err(|why| {
                let instead = "mount a directory of the host by its whole path, and import again";
                Why::new(format!("has its weights, {model}, {why}"), instead)
            })?,
            None => {
                let flag = if started.engine == EngineKind::Vllm { "--model" } else { "-m" };
                taken.args.splice(0..0, [flag.to_owned(), model]);
                return Ok(Origin::Here);
            }
        },
    };
    let text = host.display().to_string();
    definition.set_texts("weights", &BTreeMap::from([("path".to_owned(), text)]));
    Ok(Origin::Here)
}

fn hub(id: &str) -> Result<Origin, Why> {
    let source = Source::parse(&format!("hub:{id}"));
    source.map(|_| Origin::Hub(id.to_owned())).map_err(|why| {
        Why::new(format!("names weights, {id}, that {why}"), "correct it, and import again")
    })
}

/// Takes arguments out that name files of the host, of which an engine sees none but its weights.
pub fn host_files(
    id: &str,
    started: &Started,
    definition: &mut Definition,
    args: &mut Vec<String>,
    left: &mut Vec<Left>,
) {
    let on_host = |value: &str| {
        let path = Path::new(value);
        match &started.image {
            None if path.is_absolute() => Some(Some(path.to_owned())),
            None => value.starts_with("~/").then_some(None),
            Some(_) => {
                let volume = started.volumes.get(volumes::around(started.volumes.iter(), path)?)?;
                Some(volume.on_host(path).ok())
            }
        }
    };
    let weights = definition.pairs("weights");
    let weights = weights.get("path").map(Path::new);
    let mut projector = None;
    for (flag, value) in volumes::carry(args, weights, started.engine, on_host, &mut projector) {
        let why = Why::new(
            format!("it names {value}, and an engine sees nothing of the host but its weights"),
            "put the file into the engine's image, and name it there in args",
        );
        left.push(Left { model: Some(id.to_owned()), key: flag, why });
    }
    if let Some(projector) = projector {
        definition.set("projector", projector.display().to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::super::command;
    use super::*;
    use crate::cli::add::exec;

    /// The origin, or the reason; `weights`; the arguments.
    fn of(cmd: &str) -> (Result<Origin, String>, String, Vec<String>) {
        let started = command::read(cmd).unwrap();
        let mut taken = exec::read(started.engine, &started.exec);
        let mut definition = Definition::default();
        let origin = weights(&mut definition, &started, &mut taken).map_err(|why| why.why);
        (origin, definition.lines(), taken.args)
    }

    #[test]
    fn on_the_host_in_the_image_or_on_a_hub() {
        let hub = |id: &str| Ok(Origin::Hub(id.to_owned()));
        let path = |path: &str| format!("weights = {{ path = \"{path}\" }}\n");
        assert_eq!(of("llama-server -m /m/a.gguf").1, path("/m/a.gguf"));
        assert_eq!(of("llama-server -hf org/m:Q4_K_M").0, hub("org/m:Q4_K_M"));
        assert_eq!(of("vllm serve org/m").0, hub("org/m"));
        assert_eq!(of("vllm serve /m").1, path("/m"));
        let docker = "docker run -v /srv:/models registry.example/llama:1";
        assert_eq!(of(&format!("{docker} -m /models/x/a.gguf")).1, path("/srv/x/a.gguf"));
        assert_eq!(of(&format!("{docker} -m /own/a.gguf")).2, ["-m", "/own/a.gguf"]);
        assert_eq!(of(docker), (Ok(Origin::Here), String::new(), vec![]));
        assert_eq!(of("docker run registry.example/vllm:1 --model org/m").0, hub("org/m"));
        for bad in [
            "llama-server -m models/a.gguf",
            "llama-server -m ~/a.gguf",
            "llama-server",
            "llama-server -hf m",
            "docker run -v ./m:/models registry.example/llama:1 -m /models/a.gguf",
            "docker run -v models:/models registry.example/llama:1 -m /models/a.gguf",
            "docker run --mount source=m,target=/m registry.example/vllm:1 --model /m",
            "vllm serve ./m",
        ] {
            assert!(of(bad).0.is_err(), "{bad}");
        }
    }

    #[test]
    fn files_of_the_host_are_named() {
        let started = command::read("llama-server -m /m.gguf").unwrap();
        let words = "-ngl 9 --mmproj /p.gguf --lora=/l.gguf -b 8";
        let mut args: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let mut left = Vec::new();
        let mut definition = Definition::default();
        host_files("m", &started, &mut definition, &mut args, &mut left);
        assert_eq!(args, ["-ngl", "9", "-b", "8"]);
        let keys: Vec<&str> = left.iter().map(|l| l.key.as_str()).collect();
        assert_eq!(keys, ["--lora"]);
        assert_eq!(definition.lines(), "projector = \"/p.gguf\"\n", "it has a key");
    }
}
