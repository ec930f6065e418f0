//! GPUs on a host that has none: a scripted NVIDIA management library under the real client, and a CDI specification with
//! device nodes. Owner: the test. Invariant: everything is where NVIDIA's packages would put it, so the daemon runs unchanged.

use nvidia_ml::{Script, StateDir};
use testhost::{Host, Result};

/// Puts the library where the dynamic linker finds it. It plays nothing yet: see [`play`].
pub fn install_library(host: &Host) -> Result<()> {
    let library = nvidia_ml::built_library().expect("cargo builds the library beside the tests");
    host.copy_in(&library, "/usr/lib")?;
    let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
    host.root(&format!("mv /usr/lib/{name} /usr/lib/libnvidia-ml.so.1")).map(drop)
}

/// Makes driver and devices look like this from now on.
pub fn play(host: &Host, script: &Script) {
    script.save(&StateDir::new(host.path(nvidia_ml::DEFAULT_DIR))).expect("the script is saved");
}

/// Writes a CDI specification for these devices, as NVIDIA's toolkit does, and makes their nodes.
pub fn describe(host: &Host, uuids: &[&str]) -> Result<()> {
    let devices: Vec<_> = uuids.iter().enumerate().map(|(index, uuid)| (index, *uuid)).collect();
    specify(host, &devices, "containerEdits:\n  env:\n  - NVIDIA_VISIBLE_DEVICES=void\n")
}

/// The same for all devices of a script, for stand-in engines: they use the devices whose nodes they find, and the scripted
/// driver comes into the container as a real one does, by the specification. MIG devices are named as the toolkit's UUID
/// strategy names them; they have the node of the device that they are a part of.
pub fn describe_script(host: &Host, script: &Script) -> Result<()> {
    let mut devices = Vec::new();
    for (index, gpu) in script.gpus.iter().enumerate() {
        devices.push((index, gpu.uuid.as_str()));
        devices.extend(gpu.slices().iter().map(|slice| (index, slice.uuid.as_str())));
    }
    let state = nvidia_ml::DEFAULT_DIR;
    let edits = format!(
        "containerEdits:\n  env:\n  - FAKE_DEVICE_NODES=/dev\n  mounts:\n  - hostPath: {state}\n    \
         containerPath: {state}\n    options: [rw, nosuid, nodev, rbind]\n"
    );
    specify(host, &devices, &edits)
}

fn specify(host: &Host, devices: &[(usize, &str)], edits: &str) -> Result<()> {
    let mut yaml = "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n".to_owned();
    let mut nodes = "rm -f /dev/nvidiactl; mknod -m 666 /dev/nvidiactl c 195 255".to_owned();
    for (index, uuid) in devices {
        yaml += &format!(
            "- name: {uuid}\n  containerEdits:\n    deviceNodes:\n    - path: /dev/nvidia{index}\n"
        );
        if uuid.starts_with("MIG-") {
            yaml += &format!("    env:\n    - NVIDIA_VISIBLE_DEVICES={uuid}\n");
        }
        nodes +=
            &format!("; rm -f /dev/nvidia{index}; mknod -m 666 /dev/nvidia{index} c 195 {index}");
    }
    yaml += &format!("{edits}  deviceNodes:\n  - path: /dev/nvidiactl\n");
    host.write_file("/etc/cdi/nvidia.yaml", &yaml)?;
    host.root(&nodes).map(drop)
}
