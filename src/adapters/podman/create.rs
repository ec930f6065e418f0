//! What podman is told to create.
//!
//! Purpose: the pure function from a [`ContainerSpec`] to the body of `POST /libpod/containers/create`. Invariants:
//! no I/O; podman silently ignores fields that it does not know, so whatever matters here is verified on the
//! running container by [`super::harden`].
//!
//! The engine runs as user 1000 of the service user's default mapping: a subordinate ID outside, so it is neither
//! root nor the service user, and no image layer has to be copied to shift its owners. Its umask is 0, so that the
//! service user can connect to a socket that belongs to that subordinate ID.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::labels;
use crate::supervisor::ports::{ContainerSpec, SOCKET_DIR, TCP_PORT};
use crate::types::Transport;

/// User and group inside the container.
pub const USER: &str = "1000:1000";
/// Size limit of the container's `/tmp` in bytes: compile caches of an engine need hundreds of MiB. Only what is
/// written takes memory.
const TMP_BYTES: u64 = 4 << 30;
/// Size limit of the container's log in bytes, on the disk of podman's storage. What would exceed it begins a new one, and the old one
/// goes whole; llama-server writes some 2 kB a request.
const LOG_BYTES: u64 = 64 << 20;
/// SIGTERM; given, because an image may name another signal.
const STOP_SIGNAL: u8 = 15;

/// The body for `spec`; `socket_dir` is the instance's directory on the host, used with [`Transport::Unix`].
#[must_use]
pub fn body(spec: &ContainerSpec, namespace: &str, socket_dir: &Path) -> Value {
    let mut body = json!({
        "name": spec.instance.container_name(),
        "image": spec.image.as_str(),
        "labels": labels::to_labels(spec, namespace),
        "env": environment(spec),
        "mounts": mounts(spec, socket_dir),
        // Who it is.
        "user": USER,
        "umask": "0000",
        // What it may do.
        "cap_drop": ["ALL"],
        "no_new_privileges": true,
        "privileged": false,
        "read_only_filesystem": true,
        // Without it podman 5 mounts /dev/shm read-only together with the root, and engines need it.
        "read_write_tmpfs": true,
        // Else each VOLUME of the image is a new directory on the host's disk, writable and without a limit.
        "image_volume_mode": "ignore",
        "ipcns": {"nsmode": "private"},
        "pidns": {"nsmode": "private"},
        "utsns": {"nsmode": "private"},
        "cgroupns": {"nsmode": "private"},
        "shm_size": spec.shm_size.0,
        // podman leaves its life to us: no health checks, no restarts, no systemd inside.
        "healthconfig": {"Test": ["NONE"]},
        "restart_policy": "no",
        "sdnotifyMode": "ignore",
        "systemd": "false",
        "remove": false,
        // A PID 1 that forwards signals and reaps: an engine without a handler would ignore SIGTERM as PID 1.
        "init": true,
        "stop_signal": STOP_SIGNAL,
        "stop_timeout": spec.stop_timeout.as_secs_f64().ceil().max(1.0) as u64,
        "log_configuration": {"driver": "k8s-file", "size": LOG_BYTES},
    });
    let Some(fields) = body.as_object_mut() else { return body };
    add_command(fields, spec);
    add_network(fields, spec.transport);
    if !spec.cdi_devices.is_empty() {
        let devices: Vec<Value> = spec.cdi_devices.iter().map(|d| json!({"path": d})).collect();
        fields.insert("devices".into(), devices.into());
    }
    if !spec.image_volumes.is_empty() {
        let volumes: Vec<Value> = spec
            .image_volumes
            .iter()
            .map(|(image, path)| {
                json!({"Source": image.as_str(), "Destination": path, "ReadWrite": false})
            })
            .collect();
        fields.insert("image_volumes".into(), volumes.into());
    }
    body
}

/// Makes up a key for the engine to ask for, where it is to ask for one. By the environment and not by an argument: everybody
/// on the host reads the arguments of a process, and podman writes labels into its events. It ends with the container, and a
/// later daemon reads it where podman has it, which answers nobody but the service user.
pub fn lock(body: &mut Value, spec: &ContainerSpec) {
    let Some(variable) = &spec.key_variable else { return };
    // From the system's generator of random numbers, 244 bits.
    let [a, b] = [(); 2].map(|()| uuid::Uuid::new_v4().simple());
    body["env"][variable] = format!("{a}{b}").into();
}

fn environment(spec: &ContainerSpec) -> Map<String, Value> {
    // The user has no entry in the image's passwd; caches go where it may write.
    let mut env = Map::from_iter([("HOME".to_owned(), Value::from("/tmp"))]);
    env.extend(spec.env.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))));
    env
}

fn mounts(spec: &ContainerSpec, socket_dir: &Path) -> Vec<Value> {
    let mut mounts = vec![json!({
        "type": "tmpfs", "source": "tmpfs", "destination": "/tmp",
        // exec: compilers of engines load the libraries that they wrote there.
        "options": ["rw", "nosuid", "nodev", "exec", "notmpcopyup", "mode=1777", format!("size={TMP_BYTES}")],
    })];
    if spec.transport == Transport::Unix {
        mounts.push(socket_mount(socket_dir));
    }
    mounts.extend(spec.binds.iter().map(|(host, inside)| ro(host, inside)));
    mounts
}

/// A path of the host, to read.
#[must_use]
pub fn ro(host: &Path, inside: &Path) -> Value {
    json!({
        "type": "bind", "source": host, "destination": inside,
        "options": ["ro", "nosuid", "nodev", "rbind"],
    })
}

/// A directory of the host, to write to.
#[must_use]
pub fn rw(host: &Path, inside: &Path) -> Value {
    json!({
        "type": "bind", "source": host, "destination": inside,
        "options": ["rw", "nosuid", "nodev", "noexec"],
    })
}

/// The bind mount of a socket directory, the same for models and for the network proof.
///
/// z: where SELinux is on, podman gives the directory a label that containers may write; it has that of its surroundings, and no engine
/// could make its socket. The directory is the service user's own, who therefore may. Weights are not, and none is asked for there.
#[must_use]
pub fn socket_mount(socket_dir: &Path) -> Value {
    json!({
        "type": "bind", "source": socket_dir, "destination": SOCKET_DIR,
        "options": ["rw", "nosuid", "nodev", "noexec", "z"],
    })
}

/// The published port, the same for models and for the network proof. podman picks the host's port.
#[must_use]
pub fn port_mapping() -> Value {
    json!([{"container_port": TCP_PORT, "host_ip": "127.0.0.1", "protocol": "tcp"}])
}

fn add_command(fields: &mut Map<String, Value>, spec: &ContainerSpec) {
    // An absent field keeps the image's; an empty list would erase it.
    if !spec.entrypoint.is_empty() {
        fields.insert("entrypoint".into(), json!(spec.entrypoint));
    }
    if !spec.command.is_empty() {
        fields.insert("command".into(), json!(spec.command));
    }
}

fn add_network(fields: &mut Map<String, Value>, transport: Transport) {
    match transport {
        Transport::Unix => fields.insert("netns".into(), json!({"nsmode": "none"})),
        // No netns: podman's default for a rootless user, the only one that publishes ports without set-up.
        Transport::Tcp => fields.insert("portmappings".into(), port_mapping()),
    };
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::types::{
        Bytes, Generation, GpuId, ImageRef, InstanceId, Need, NeedSource, Placement, SpecHash,
    };

    pub fn spec(transport: Transport) -> ContainerSpec {
        ContainerSpec {
            instance: InstanceId::new("org/m:1".parse().unwrap(), Generation(7), 0xbeef),
            spec_hash: SpecHash("0a1b".into()),
            placement: Placement {
                gpus: vec![GpuId::host()],
                need: Need { bytes: Bytes::gib(2), source: NeedSource::Declared },
                budget: Bytes::gib(2),
                device_total: Bytes::gib(8),
            },
            image: ImageRef::parse("localhost/e:1").unwrap(),
            image_id: None,
            entrypoint: vec![],
            command: vec!["--port".into(), "1".into()],
            env: BTreeMap::from([("A".into(), "b c".into())]),
            key_variable: None,
            binds: vec![("/srv/w.gguf".into(), "/weights/w.gguf".into())],
            weights: None,
            image_volumes: vec![],
            cdi_devices: vec![],
            transport,
            shm_size: Bytes::mib(64),
            stop_timeout: Duration::from_millis(2500),
        }
    }

    #[test]
    fn the_whole_body_over_a_unix_socket() {
        let body = body(&spec(Transport::Unix), "ns", Path::new("/run/hostler/engines/i"));
        let expected = json!({
            "name": "hostler-org-m-1-g7-0000beef",
            "image": "localhost/e:1",
            "command": ["--port", "1"],
            "env": {"HOME": "/tmp", "A": "b c"},
            "labels": {
                "io.hostler.namespace": "ns", "io.hostler.model": "org/m:1",
                "io.hostler.generation": "7", "io.hostler.suffix": "0000beef",
                "io.hostler.spec-hash": "0a1b", "io.hostler.gpus": "host",
                "io.hostler.need": "2147483648", "io.hostler.need-source": "declared",
                "io.hostler.device-total": "8589934592", "io.hostler.transport": "unix",
                "io.hostler.version": env!("CARGO_PKG_VERSION"),
            },
            "mounts": [
                {"type": "tmpfs", "source": "tmpfs", "destination": "/tmp",
                 "options": ["rw", "nosuid", "nodev", "exec", "notmpcopyup", "mode=1777", "size=4294967296"]},
                {"type": "bind", "source": "/run/hostler/engines/i", "destination": "/run/engine",
                 "options": ["rw", "nosuid", "nodev", "noexec", "z"]},
                {"type": "bind", "source": "/srv/w.gguf", "destination": "/weights/w.gguf",
                 "options": ["ro", "nosuid", "nodev", "rbind"]},
            ],
            "user": "1000:1000", "umask": "0000",
            "cap_drop": ["ALL"], "no_new_privileges": true, "privileged": false,
            "read_only_filesystem": true, "read_write_tmpfs": true, "image_volume_mode": "ignore",
            "ipcns": {"nsmode": "private"}, "pidns": {"nsmode": "private"},
            "utsns": {"nsmode": "private"}, "cgroupns": {"nsmode": "private"},
            "netns": {"nsmode": "none"},
            "shm_size": 67_108_864,
            "healthconfig": {"Test": ["NONE"]}, "restart_policy": "no",
            "sdnotifyMode": "ignore", "systemd": "false", "remove": false, "init": true,
            "stop_signal": 15, "stop_timeout": 3,
            "log_configuration": {"driver": "k8s-file", "size": 67_108_864},
        });
        assert_eq!(body, expected, "{body:#}");
    }

    #[test]
    fn tcp_publishes_on_loopback_and_mounts_no_socket() {
        let body = body(&spec(Transport::Tcp), "ns", Path::new("/x"));
        assert_eq!(
            body["portmappings"],
            json!([{"container_port": 8000, "host_ip": "127.0.0.1", "protocol": "tcp"}])
        );
        assert!(body.get("netns").is_none());
        assert!(!body.to_string().contains(SOCKET_DIR));
    }

    #[test]
    fn a_key_is_made_up_each_time_where_the_engine_asks_for_one() {
        let mut spec = spec(Transport::Tcp);
        let mut locked = |variable: Option<&str>| {
            spec.key_variable = variable.map(str::to_owned);
            let mut body = body(&spec, "ns", Path::new("/x"));
            let open = body.clone();
            lock(&mut body, &spec);
            (open, body)
        };
        let (open, same) = locked(None);
        assert_eq!(open, same);
        let keys = [(); 2].map(|()| {
            let (_, mut body) = locked(Some("KEY"));
            assert_eq!(body["labels"]["io.hostler.key-variable"], "KEY");
            let key = body["env"]["KEY"].take().as_str().unwrap().to_owned();
            assert!(!body.to_string().contains(&key), "nowhere else");
            key
        });
        assert!(keys[0].len() == 64 && keys[0] != keys[1]);
    }

    #[test]
    fn devices_images_and_entry_point() {
        let mut spec = spec(Transport::Unix);
        spec.cdi_devices = vec!["nvidia.com/gpu=GPU-1".into()];
        spec.image_volumes = vec![(ImageRef::parse("localhost/w:1").unwrap(), "/weights".into())];
        spec.entrypoint = vec!["/engine".into()];
        spec.command = vec![];
        // The model's own environment wins over ours.
        spec.env.insert("HOME".into(), "/elsewhere".into());
        let body = body(&spec, "ns", Path::new("/x"));
        assert_eq!(body["devices"], json!([{"path": "nvidia.com/gpu=GPU-1"}]));
        assert_eq!(
            body["image_volumes"],
            json!([{"Source": "localhost/w:1", "Destination": "/weights", "ReadWrite": false}])
        );
        assert_eq!(body["entrypoint"], json!(["/engine"]));
        assert!(body.get("command").is_none());
        assert_eq!(body["env"]["HOME"], "/elsewhere");
    }
}
