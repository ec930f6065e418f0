//! `docker run …` and `podman run …` as a command of llama-swap. PURE.
//!
//! Invariant: an option that is not in the tables ends the reading, as nobody can know whether a value follows it.

use std::path::PathBuf;

use toml::Value;

use super::command::{Started, shell, unknown};
use super::left::{NOTHING, Why};
use crate::cli::add::container::{
    ENTRY, devices, gpu, guess, is_shell, name, program, shm_size, unwanted,
};
use crate::cli::add::volumes::Volume;
use crate::types::ImageRef;

/// Options without a value.
const ALONE: [&str; 14] = [
    "--rm",
    "--init",
    "--detach",
    "-d",
    "--interactive",
    "-i",
    "--tty",
    "-t",
    "--replace",
    "--privileged",
    "--read-only",
    "--no-healthcheck",
    "--publish-all",
    "-P",
];

/// Options with a value that Hostler decides by itself.
const DECIDED: [&str; 17] = [
    "--publish",
    "-p",
    "--name",
    "--network",
    "--net",
    "--ipc",
    "--pull",
    "--restart",
    "--label",
    "-l",
    "--log-driver",
    "--log-opt",
    "--hostname",
    "-h",
    "--expose",
    "--stop-signal",
    "--cidfile",
];

/// Options that give rights.
const RIGHTS: [&str; 14] = [
    "--privileged",
    "--cap-add",
    "--cap-drop",
    "--security-opt",
    "--user",
    "-u",
    "--userns",
    "--group-add",
    "--ulimit",
    "--pid",
    "--sysctl",
    "--device-cgroup-rule",
    "--uts",
    "--runtime",
];

/// Other options with a value, for which there is no place.
const NO_PLACE: [&str; 19] = [
    "--memory",
    "-m",
    "--memory-swap",
    "--cpus",
    "--cpuset-cpus",
    "--cpu-shares",
    "--workdir",
    "-w",
    "--env-file",
    "--tmpfs",
    "--volumes-from",
    "--add-host",
    "--dns",
    "--platform",
    "--secret",
    "--oom-score-adj",
    "--annotation",
    "--cgroup-parent",
    "--pids-limit",
];

/// Options with a value that are read one by one.
const READ: [&str; 10] = [
    "-v",
    "--volume",
    "--mount",
    "-e",
    "--env",
    "--shm-size",
    "--entrypoint",
    "--device",
    "--gpus",
    "--stop-timeout",
];

const MADE: &str = "Hostler makes the container itself";

/// Whether a command line starts a container.
pub fn is_one(words: &[String]) -> bool {
    let mut words = words.iter().filter(|word| *word != "sudo");
    words.next().is_some_and(|word| ["docker", "podman", "nerdctl"].contains(&name(word)))
}

/// Reads the line.
///
/// # Errors
/// If it cannot be read to its end, or holds no engine that Hostler runs.
pub fn read(words: &[String]) -> Result<Started, Why> {
    let Some(run) = words.iter().position(|word| word == "run").filter(|at| *at <= 3) else {
        return Err(Why::new(
            "starts a container otherwise than by \"run\"",
            "write it as docker run …, and import again",
        ));
    };
    let program = words.iter().map(|word| name(word)).find(|word| *word != "sudo");
    let mut line = Line { podman: program == Some("podman"), ..Line::default() };
    let mut rest = words.iter().skip(run + 1).peekable();
    while let Some(word) = rest.next_if(|word| word.starts_with('-')) {
        let (flag, joined) = match word.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        let together = word.len() > 2 && !word.starts_with("--");
        if ALONE.contains(&flag) || (together && word.chars().skip(1).all(|c| "dit".contains(c))) {
            line.flag(flag, joined.as_deref().unwrap_or_default());
            continue;
        }
        if !takes_value(flag) {
            return Err(Why::new(
                format!(
                    "has the option {flag}, which is not known here, nor whether a value follows it"
                ),
                "remove it, and import again",
            ));
        }
        let value = joined.or_else(|| rest.next().cloned()).unwrap_or_default();
        line.flag(flag, &value);
    }
    let Some(image) = rest.next() else {
        return Err(Why::new("names no image", "correct it, and import again"));
    };
    line.started(image, rest.cloned().collect())
}

/// Whether an option is known, and a value follows it.
fn takes_value(flag: &str) -> bool {
    let lists = [&READ[..], &DECIDED, &RIGHTS, &NO_PLACE];
    lists.iter().any(|list| list.contains(&flag))
}

/// What is gathered on the way.
#[derive(Default)]
struct Line {
    /// Which takes a name without a registry for whatever it is told to; the others for docker's own.
    podman: bool,
    entrypoint: Vec<String>,
    env: Vec<(String, String)>,
    volumes: Vec<Volume>,
    gpus: Vec<String>,
    /// How many are named.
    devices: usize,
    keys: Vec<(&'static str, Value)>,
    left: Vec<(String, Why)>,
}

impl Line {
    fn flag(&mut self, flag: &str, value: &str) {
        let done = match flag {
            "-v" | "--volume" => match value.split_once(':') {
                Some((host, rest)) => self.volume(flag, value, Some(host), rest.split(':').next()),
                None => self.volume(flag, value, None, Some(value)),
            },
            "--mount" => {
                let part = |names: &[&str]| {
                    let mut parts = value.split(',').filter_map(|part| part.split_once('='));
                    parts.find(|(name, _)| names.contains(name)).map(|(_, value)| value)
                };
                // What podman and docker take where no type stands is a volume of theirs.
                let host = part(&["source", "src"]).filter(|_| part(&["type"]) == Some("bind"));
                self.volume(flag, value, host, part(&["target", "destination", "dst"]))
            }
            "-e" | "--env" => match value.split_once('=') {
                Some((name, value)) if unwanted(name).is_none() => {
                    self.env.push((name.to_owned(), value.to_owned()));
                    return;
                }
                Some((name, _)) => {
                    let why = Why::new(unwanted(name).unwrap_or_default(), NOTHING);
                    self.left.push((format!("{flag} {name}"), why));
                    return;
                }
                None => Err(Why::new(
                    "Hostler passes nothing of its own environment on",
                    "give the variable its value in env",
                )),
            },
            "--shm-size" => {
                self.keys.push(("shm_size", Value::from(shm_size(value))));
                return;
            }
            "--stop-timeout" => {
                self.keys.push(("stop_timeout", Value::from(format!("{value}s"))));
                return;
            }
            "--entrypoint" => {
                self.entrypoint = value.split_whitespace().map(str::to_owned).collect();
                return;
            }
            "--device" => {
                self.devices += devices(std::iter::once(value));
                gpu(value).map(|id| self.gpus.push(id)).map_err(|why| {
                    Why::new(why, "gpu_count says how many, gpus names them by UUID")
                })
            }
            "--gpus" => {
                // A number, or "device=0,1".
                let list = value.trim_matches('"').strip_prefix("device=");
                let several = list.map_or(0, |list| list.split(',').count());
                self.devices += value.parse().unwrap_or(several);
                Err(Why::new(
                    "Hostler chooses the devices",
                    "gpu_count says on how many it runs, 1 unless told; gpus names them by UUID",
                ))
            }
            _ if RIGHTS.contains(&flag) => {
                Err(Why::new("an engine gets no right beyond Hostler's fixed, tight set", NOTHING))
            }
            _ if NO_PLACE.contains(&flag) => Err(Why::new(
                "it has no place in a model's definition",
                "look whether the engine has an argument for it",
            )),
            _ => Err(Why::new(MADE, NOTHING)),
        };
        if let Err(why) = done {
            self.left.push((flag.to_owned(), why));
        }
    }

    fn volume(
        &mut self,
        flag: &str,
        value: &str,
        host: Option<&str>,
        inside: Option<&str>,
    ) -> Result<(), Why> {
        let not = "is no directory of the host that is named by its whole path";
        let host = host.filter(|host| host.starts_with('/')).map(PathBuf::from);
        let inside = inside.filter(|inside| inside.starts_with('/')).unwrap_or("/").into();
        let known = host.is_some();
        let (host, said) = (host.ok_or_else(|| not.to_owned()), format!("{flag} {value}"));
        self.volumes.push(Volume { inside, host, said });
        if known {
            return Ok(());
        }
        Err(Why::new(
            format!("it {not}, and an engine gets nothing but its weights"),
            "keep the weights in a directory of the host, or in an image",
        ))
    }

    fn started(mut self, image: &str, args: Vec<String>) -> Result<Started, Why> {
        let own_entry = !self.entrypoint.is_empty();
        let mut tail = self.entrypoint;
        tail.extend(args);
        let (engine, skip) = match program(&tail) {
            Some((0, length, engine)) => (engine, length),
            _ if own_entry => return Err(unknown(&tail[0], &tail)),
            _ if tail.first().is_some_and(|first| is_shell(first)) => return Err(shell()),
            _ => (guess(image).ok_or_else(|| unknown(image, &[image.to_owned()]))?, 0),
        };
        if skip > 0 {
            let option = if own_entry { "--entrypoint " } else { "" };
            let key = format!(
                "cmd: {option}{}",
                tail.iter().take(skip).cloned().collect::<Vec<_>>().join(" ")
            );
            self.left.push((key, Why::new(ENTRY, "look at what the image starts by itself")));
        }
        let short = ImageRef::parse(image).ok().filter(|image| image.registry().is_none());
        let whole = short.filter(|_| !self.podman).map(|image| image.whole());
        if let Some(whole) = &whole {
            let why = format!("podman wants its registry in front: {whole}");
            self.left.push((
                format!("cmd: {image}"),
                Why::new(why, "look whether that is where it comes from"),
            ));
        }
        let mut started = Started::new(engine, tail.split_off(skip));
        started.image = Some(whole.unwrap_or_else(|| image.to_owned()));
        started.env = self.env.into_iter().collect();
        started.volumes = self.volumes;
        started.gpus = self.gpus;
        started.devices = self.devices;
        started.keys = self.keys;
        started.left = self.left;
        Ok(started)
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::read;
    use crate::types::EngineKind;

    #[test]
    fn containers() {
        let started = read(
            "docker run --rm -it --name x --gpus all -p 9000:8080 -v /srv/models:/models:ro \
             -e A=1 -e HF_TOKEN=secret --shm-size 2g --device nvidia.com/gpu=GPU-1 \
             registry.example/llama.cpp:server-cuda -m /models/m.gguf -c 4096",
        )
        .unwrap();
        assert_eq!(started.engine, EngineKind::Llamacpp);
        assert_eq!(started.image.as_deref(), Some("registry.example/llama.cpp:server-cuda"));
        assert_eq!(started.exec, ["-m", "/models/m.gguf", "-c", "4096"]);
        let [models] = started.volumes.as_slice() else { panic!("{started:?}") };
        assert_eq!((&models.host, &models.inside), (&Ok("/srv/models".into()), &"/models".into()));
        assert_eq!(started.gpus, ["GPU-1"]);
        assert_eq!(started.keys, [("shm_size", "2GiB".into())]);
        assert_eq!(started.env.len(), 1);
        let left: Vec<&str> = started.left.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(left, ["--rm", "-it", "--name", "--gpus", "-p", "-e HF_TOKEN"]);
        assert!(!format!("{:?}", started.left).contains("secret"));
    }

    #[test]
    fn an_image_without_a_registry_gets_dockers() {
        let image = |cmd: &str| {
            let started = read(cmd).unwrap();
            let said = started.left.iter().any(|(_, why)| why.why.contains("in front"));
            (started.image.unwrap(), said)
        };
        let whole = ["docker", ".io/vllm/vllm-openai:v1"].concat();
        for docker in ["docker", "sudo docker", "nerdctl"] {
            let cmd = format!("{docker} run vllm/vllm-openai:v1 --model /m");
            assert_eq!(image(&cmd), (whole.clone(), true));
        }
        // podman may have it under that name.
        let short = "vllm/vllm-openai:v1";
        assert_eq!(image(&format!("podman run {short} --model /m")), (short.to_owned(), false));
        let other = "registry.example/vllm-openai:v1";
        assert_eq!(image(&format!("docker run {other} --model /m")), (other.to_owned(), false));
    }

    #[test]
    fn the_entry_point_decides_before_the_images_name() {
        let left = |cmd: &str| -> Vec<String> {
            let started = read(cmd).unwrap();
            assert_eq!((started.engine, started.exec.len()), (EngineKind::Vllm, 2), "{cmd}");
            started.left.into_iter().map(|(key, _)| key).collect()
        };
        let vllm = "registry.example/vllm:1";
        assert_eq!(
            left("podman run --entrypoint vllm registry.example/x serve org/m --x"),
            ["cmd: --entrypoint vllm serve"]
        );
        assert_eq!(left(&format!("docker run {vllm} vllm serve /m --x")), ["cmd: vllm serve"]);
        assert!(left(&format!("docker run {vllm} --model /m")).is_empty());
        let mounted = read(
            "podman run --mount type=bind,source=/srv,target=/m registry.example/vllm-openai:v1 --model /m",
        );
        assert_eq!(mounted.unwrap().volumes.len(), 1);
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (cmd, word) in [
            ("docker run --new-option 1 registry.example/vllm x", "--new-option"),
            ("docker compose up x", "otherwise"),
            ("docker run --rm", "no image"),
            ("docker run registry.example/comfyui:1", "registry.example/comfyui:1"),
            ("docker run registry.example/ollama/ollama", "ollama"),
            ("docker run registry.example/vllm:1 bash -c x", "shell"),
            ("docker run registry.example/sglang:1 python3 -m sglang.launch_server", "SGLang"),
            ("docker run --entrypoint /bin/x registry.example/vllm:1", "/bin/x"),
        ] {
            let why = read(cmd).unwrap_err();
            assert!(why.why.contains(word), "{cmd}: {why:?}");
        }
    }
}
