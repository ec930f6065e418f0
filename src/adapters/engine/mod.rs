//! Engines: how to run them and how to ask whether they are ready.
//!
//! Purpose: the port [`Engines`]: from a launch order to a container, by pure functions, one file an engine; and the health
//! probe; and vLLM's sleep. Owner: the executor holds one [`Profiles`]. Invariants: what a container is made from is its order alone, and the host's
//! size, so the same order always gives the same container; Hostler's own arguments come first and the admin's last; an engine on a
//! Unix socket has no network, so it can fetch nothing; one over TCP has podman's, and fetches what clients name (docs/security.md).

mod check;
mod dev;
mod llamacpp;
mod metrics;
mod probe;
mod vllm;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::supervisor::ports::{
    CanaryError, ContainerSpec, Endpoint, Engines, Ill, LaunchOrder, PortFuture, SOCKET_DIR,
    SOCKET_NAME,
};
use crate::types::{Bytes, EngineKind, ImageRef, ModelSpec, SleepLevel, Transport, Weights, files};

/// Where an image with weights is mounted.
const MODELS_IMAGE: &str = "/models-image";
/// Where a projector is mounted: not beside the weights, which may be a directory of the host's that has no place for it.
const PROJECTOR: &str = "/projector.gguf";

/// The engines that Hostler knows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Profiles {
    /// All memory of the host, of which engines on devices take some, too; zero: not known.
    pub host_memory: Bytes,
}

impl Profiles {
    /// As they run on this host.
    #[must_use]
    pub fn here() -> Self {
        let info = rustix::system::sysinfo();
        // Of no one width on all machines.
        let bytes = u128::from(info.totalram) * u128::from(info.mem_unit);
        Self { host_memory: Bytes(u64::try_from(bytes).unwrap_or(u64::MAX)) }
    }
}

impl Engines for Profiles {
    fn container(&self, order: &LaunchOrder) -> ContainerSpec {
        let spec = &order.spec;
        let mut mounted = mount(&spec.weights, spec.engine);
        mounted.binds.extend(spec.projector.clone().map(|path| (path, PathBuf::from(PROJECTOR))));
        let model = mounted.model.as_deref();
        let (command, env) = match spec.engine {
            EngineKind::Llamacpp => (
                llamacpp::command(order, model),
                llamacpp::env(spec, &order.placement, self.host_memory),
            ),
            EngineKind::Vllm => (vllm::command(order, model), vllm::env(spec, &order.placement)),
        };
        let mut env: BTreeMap<String, String> =
            env.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        // The admin's word is the last one.
        env.extend(spec.env.clone());
        let key_variable = match (spec.transport, spec.engine) {
            // Nobody else can connect.
            (Transport::Unix, _) => None,
            (Transport::Tcp, EngineKind::Llamacpp) => Some("LLAMA_API_KEY".to_owned()),
            (Transport::Tcp, EngineKind::Vllm) => Some("VLLM_API_KEY".to_owned()),
        };
        ContainerSpec {
            instance: order.instance.clone(),
            spec_hash: spec.spec_hash(),
            placement: order.placement.clone(),
            image: spec.image.clone(),
            image_id: order.image_id.clone(),
            // The image knows best: official vLLM images have had three entry points in a row (the API server's module,
            // `vllm serve`, and a wrapper around that which prepares an arbitrary user), all of which take the same
            // arguments; builds of llama-server differ in where the binary is.
            entrypoint: Vec::new(),
            command,
            env,
            key_variable,
            binds: mounted.binds,
            weights: match &spec.weights {
                Weights::Path(path) => Some(path.clone()),
                Weights::Image { .. } | Weights::Builtin => None,
            },
            image_volumes: mounted.image_volumes,
            cdi_devices: order
                .placement
                .gpus
                .iter()
                .filter(|gpu| !gpu.is_host())
                .map(|gpu| format!("nvidia.com/gpu={gpu}"))
                .collect(),
            transport: spec.transport,
            shm_size: spec.shm_size,
            stop_timeout: spec.stop_timeout,
        }
    }

    fn probe(
        &self,
        spec: Arc<ModelSpec>,
        endpoint: Endpoint,
    ) -> PortFuture<'_, Result<bool, String>> {
        Box::pin(async move { probe::health(spec.engine, &endpoint).await })
    }

    fn check(
        &self,
        spec: Arc<ModelSpec>,
        endpoint: Endpoint,
        token: bool,
        timeout: Duration,
    ) -> PortFuture<'_, Result<(), Ill>> {
        Box::pin(async move { check::check(&spec, &endpoint, token, timeout).await })
    }

    fn sleep(
        &self,
        _spec: Arc<ModelSpec>,
        endpoint: Endpoint,
        level: SleepLevel,
    ) -> PortFuture<'_, Result<(), String>> {
        Box::pin(async move { dev::sleep(&endpoint, level).await })
    }

    fn wake(
        &self,
        spec: Arc<ModelSpec>,
        endpoint: Endpoint,
        level: SleepLevel,
    ) -> PortFuture<'_, Result<(), String>> {
        Box::pin(async move { dev::wake(&endpoint, level, spec.load_timeout).await })
    }

    fn canary(
        &self,
        spec: Arc<ModelSpec>,
        endpoint: Endpoint,
    ) -> PortFuture<'_, Result<String, CanaryError>> {
        Box::pin(async move { dev::canary(&endpoint, &spec.name).await })
    }

    fn metrics(&self, endpoint: Endpoint) -> PortFuture<'_, Result<String, String>> {
        Box::pin(async move { metrics::metrics(&endpoint).await })
    }
}

/// The engine's socket inside its container.
fn socket() -> String {
    format!("{SOCKET_DIR}/{SOCKET_NAME}")
}

/// How a model's files come into a container.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mounted {
    /// The path to give to the engine; `None`: the arguments or the image name the model.
    model: Option<PathBuf>,
    binds: Vec<(PathBuf, PathBuf)>,
    image_volumes: Vec<(ImageRef, PathBuf)>,
}

fn mount(weights: &Weights, engine: EngineKind) -> Mounted {
    match weights {
        Weights::Path(path) => {
            let (host, root) = files::mounted(path, engine);
            Mounted {
                model: files::inside(path, engine, path),
                binds: vec![(host.to_path_buf(), root)],
                ..Mounted::default()
            }
        }
        Weights::Image { image, path } => {
            let relative = path.strip_prefix("/").unwrap_or(path);
            let root = PathBuf::from(MODELS_IMAGE);
            // Joining an empty path would leave a slash at the end.
            let model =
                if relative.as_os_str().is_empty() { root.clone() } else { root.join(relative) };
            Mounted {
                model: Some(model),
                image_volumes: vec![(image.clone(), root)],
                ..Mounted::default()
            }
        }
        Weights::Builtin => Mounted::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::types::{Generation, GpuId, InstanceId, Need, NeedSource, Placement};

    pub(super) fn spec(engine: EngineKind) -> ModelSpec {
        ModelSpec {
            name: "org/m".parse().unwrap(),
            aliases: vec![],
            engine,
            image: ImageRef::parse("localhost/e:1").unwrap(),
            weights: Weights::Path("/srv/models/m.gguf".into()),
            projector: None,
            anatomy: None,
            transport: Transport::Unix,
            vram: None,
            context: None,
            parallel: None,
            gpu_count: 1,
            gpus: vec![],
            args: vec![],
            env: BTreeMap::new(),
            shm_size: Bytes::mib(64),
            idle_timeout: None,
            load_timeout: Duration::from_secs(600),
            health_interval: None,
            stop_timeout: Duration::from_secs(7),
            pin: false,
            priority: 0,
            on_full: crate::types::OnFull::Evict,
            sleep_level: None,
            sleep_timeout: None,
            door: crate::types::DoorSpec::default(),
        }
    }

    pub(super) fn placement(gpus: &[&str], need: Bytes, total: Bytes) -> Placement {
        Placement {
            gpus: gpus.iter().map(|g| GpuId::new(g)).collect(),
            need: Need { bytes: need, source: NeedSource::Declared },
            budget: need,
            device_total: total,
        }
    }

    pub(super) fn order(spec: &ModelSpec, placement: &Placement) -> LaunchOrder {
        LaunchOrder {
            instance: InstanceId::new(spec.name.clone(), Generation(3), 0xabc),
            spec: Arc::new(spec.clone()),
            placement: placement.clone(),
            image_id: None,
            context: spec.context,
        }
    }

    fn container(spec: ModelSpec, placement: Placement) -> ContainerSpec {
        Profiles::default().container(&order(&spec, &placement))
    }

    #[test]
    fn a_container_follows_its_order() {
        let mut spec = spec(EngineKind::Vllm);
        spec.env = BTreeMap::from([("HOME".into(), "/cache".into()), ("X".into(), "1".into())]);
        let placement = placement(&["GPU-a", "GPU-b"], Bytes::gib(10), Bytes::gib(80));
        let got = container(spec.clone(), placement.clone());
        assert_eq!(got.cdi_devices, ["nvidia.com/gpu=GPU-a", "nvidia.com/gpu=GPU-b"]);
        assert_eq!(got.spec_hash, spec.spec_hash());
        assert_eq!(got.placement, placement);
        assert_eq!((got.shm_size, got.stop_timeout), (spec.shm_size, spec.stop_timeout));
        assert_eq!(got.instance.generation, Generation(3));
        assert_eq!(got.env["HOME"], "/cache", "the admin's word is the last one");
        assert_eq!(got.env["X"], "1");
        assert!(got.entrypoint.is_empty());
        let want = (PathBuf::from("/srv/models/m.gguf"), PathBuf::from("/models/m.gguf"));
        assert_eq!(got.binds, [want]);
    }

    #[test]
    fn an_engine_asks_for_a_key_where_others_can_connect() {
        let variable = |engine, transport| {
            let spec = ModelSpec { transport, ..spec(engine) };
            container(spec, placement(&["host"], Bytes::gib(1), Bytes::gib(8))).key_variable
        };
        for (engine, name) in
            [(EngineKind::Llamacpp, "LLAMA_API_KEY"), (EngineKind::Vllm, "VLLM_API_KEY")]
        {
            assert_eq!(variable(engine, Transport::Unix), None);
            assert_eq!(variable(engine, Transport::Tcp).as_deref(), Some(name));
        }
    }

    #[test]
    fn a_projector_comes_beside_the_weights() {
        let mut spec = spec(EngineKind::Llamacpp);
        spec.weights = Weights::Path("/srv/m-00001-of-00002.gguf".into());
        spec.projector = Some("/srv/mmproj-f16.gguf".into());
        let got = container(spec, placement(&["host"], Bytes::gib(1), Bytes::gib(8)));
        let bind = |host: &str, inside: &str| (PathBuf::from(host), PathBuf::from(inside));
        assert_eq!(
            got.binds,
            [bind("/srv", "/models"), bind("/srv/mmproj-f16.gguf", "/projector.gguf")]
        );
        let at = got.command.iter().position(|word| word == "--mmproj").unwrap();
        assert_eq!(got.command[at + 1], "/projector.gguf");
    }

    #[test]
    fn the_host_backend_injects_no_device() {
        let placement = placement(&["host"], Bytes::gib(1), Bytes::gib(8));
        assert!(container(spec(EngineKind::Llamacpp), placement).cdi_devices.is_empty());
    }

    #[test]
    fn weights_come_in_by_three_ways() {
        let path = |p: &str, engine| mount(&Weights::Path(p.into()), engine);
        let dir = path("/srv/hf/Qwen3", EngineKind::Vllm);
        assert_eq!(dir.model, Some("/models/Qwen3".into()));
        assert_eq!(dir.binds, [("/srv/hf/Qwen3".into(), "/models/Qwen3".into())]);

        let split = path("/srv/big-00001-of-00003.gguf", EngineKind::Llamacpp);
        assert_eq!(split.model, Some("/models/big-00001-of-00003.gguf".into()));
        assert_eq!(split.binds, [("/srv".into(), "/models".into())]);

        let image = ImageRef::parse("localhost/w:1").unwrap();
        let weights = |path: &str| Weights::Image { image: image.clone(), path: path.into() };
        let mounted = mount(&weights("/m/a.gguf"), EngineKind::Llamacpp);
        assert_eq!(mounted.model, Some("/models-image/m/a.gguf".into()));
        assert_eq!(mounted.image_volumes, [(image.clone(), "/models-image".into())]);
        assert!(mounted.binds.is_empty());
        assert_eq!(mount(&weights("/"), EngineKind::Vllm).model, Some("/models-image".into()));

        assert_eq!(mount(&Weights::Builtin, EngineKind::Vllm), Mounted::default());
    }

    /// Whose files are links to `../../blobs`.
    #[test]
    fn weights_in_a_hubs_cache_come_with_their_blobs() {
        let hub = "/srv/hub/models--org--m";
        let revision = format!("{hub}/snapshots/0a1b");
        let path = |p: &str, engine| mount(&Weights::Path(p.into()), engine);
        let whole = [(PathBuf::from(hub), PathBuf::from("/models/models--org--m"))];
        for (below, engine) in [
            ("", EngineKind::Vllm),
            ("/BF16", EngineKind::Vllm),
            ("/m-00001-of-00002.gguf", EngineKind::Llamacpp),
        ] {
            let got = path(&format!("{revision}{below}"), engine);
            assert_eq!(got.binds, whole, "{below}");
            let inside = format!("/models/models--org--m/snapshots/0a1b{below}");
            // Compared as text: a slash at the end would make another path of it.
            assert_eq!(got.model.unwrap().to_str(), Some(inside.as_str()));
        }
        // The kernel follows the link of a single file.
        let file = format!("{revision}/m.gguf");
        let got = path(&file, EngineKind::Llamacpp);
        assert_eq!(got.binds, [(PathBuf::from(file), PathBuf::from("/models/m.gguf"))]);
        for other in ["/srv/snapshots/0a1b", "/srv/models--org--m/other/0a1b", hub] {
            assert_eq!(path(other, EngineKind::Vllm).binds[0].0, Path::new(other));
        }
    }
}
