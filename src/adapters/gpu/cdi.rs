//! Whether podman will be able to hand the configured GPUs to a container.
//!
//! Purpose: the readiness check of the Container Device Interface: podman resolves `nvidia.com/gpu=NAME` by
//! specification files that NVIDIA's toolkit wrote, and says what is wrong with them only when a container starts. Owner:
//! the start-up of the daemon, doctor, and who has to say why a container did not start. Invariants: reads files and file metadata only; resolves as the
//! container engines' CDI library does (a later directory wins over an earlier one, two files of one directory that
//! define the same device cancel each other, a broken file hurts only the devices that it alone has).

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::types::{CDI_GENERATE, CDI_WRITE, GpuId, sandbox};

/// The kind of device that is looked for.
pub const KIND: &str = "nvidia.com/gpu";

/// Where podman looks for specifications unless its configuration says otherwise; later ones win.
pub const DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// What resolves, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CdiReport {
    /// One entry for each GPU asked for, in that order.
    pub devices: Vec<CdiDevice>,
    /// Files that could not be used but were not needed: (file, why). Worth a warning.
    pub ignored: Vec<(PathBuf, String)>,
}

/// A GPU that resolves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CdiDevice {
    /// Which.
    pub gpu: GpuId,
    /// The qualified name to give to podman.
    pub name: String,
    /// The specification that defines it.
    pub file: PathBuf,
    /// That file's `cdiVersion`. A podman older than it answers "unresolvable CDI devices".
    pub cdi_version: String,
}

/// Why a GPU does not resolve. Every message ends in what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CdiError {
    /// No file declares devices of [`KIND`].
    #[error(
        "no CDI specification of kind {KIND} in {dirs:?}; install nvidia-container-toolkit and run \"{CDI_WRITE}\""
    )]
    NoSpec {
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// A file that may be the one with the device is unreadable or damaged.
    #[error(
        "the CDI specification {} cannot be used ({why}); write it anew with \"{CDI_GENERATE} --output={}\"", file.display(), file.display()
    )]
    Unusable {
        /// The file or directory.
        file: PathBuf,
        /// What the parser or the system said.
        why: String,
    },
    /// There are specifications, but none has this device.
    #[error(
        "no CDI specification defines {KIND}={gpu} (there are {present:?} in {files:?}); write the one that counts anew with \"{CDI_GENERATE} --output={}\"",
        last(files)
    )]
    NoDevice {
        /// Which GPU.
        gpu: GpuId,
        /// Names of this kind that exist.
        present: Vec<String>,
        /// The files that define them; the last one wins.
        files: Vec<PathBuf>,
    },
    /// Two files of the same directory define the device, which makes it unresolvable.
    #[error(
        "{KIND}={gpu} is defined by both {} and {}, so container engines refuse it; remove one of the two files", first.display(), second.display()
    )]
    Conflict {
        /// Which GPU.
        gpu: GpuId,
        /// One of the files.
        first: PathBuf,
        /// Another one.
        second: PathBuf,
    },
    /// What the specification puts into the container is not on the host.
    #[error(
        "the CDI specification {} is out of date: {KIND}={gpu} needs {}, which {why}; write it anew with \"{CDI_GENERATE} --output={}\" (after an upgrade of the driver reboot first, or reload its modules: docs/operate.md; after a boot load them: \"nvidia-smi\", \"nvidia-modprobe -u\")", file.display(), path.display(), file.display()
    )]
    Stale {
        /// Which GPU.
        gpu: GpuId,
        /// The specification.
        file: PathBuf,
        /// The device node or the file to be mounted.
        path: PathBuf,
        /// "does not exist", "is not a device node", …
        why: String,
    },
}

/// A specification, as far as it matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    cdi_version: String,
    kind: String,
    devices: Option<Vec<Device>>,
    container_edits: Option<Edits>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    container_edits: Option<Edits>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Edits {
    device_nodes: Option<Vec<Node>>,
    mounts: Option<Vec<Mount>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
    major: Option<u32>,
    minor: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    host_path: PathBuf,
    r#type: Option<String>,
}

/// A specification of [`KIND`] and where it lies.
#[derive(Debug)]
struct Loaded {
    file: PathBuf,
    /// Position of its directory: a higher one wins.
    priority: usize,
    spec: Spec,
}

/// Checks that each of `gpus` can be given to a container by its own name: a specification in `dirs` ([`DIRS`], unless
/// podman is configured otherwise) defines it, and what it brings along is there. No `gpus`: only that there is a
/// specification of the kind.
///
/// # Errors
/// The first GPU's first problem.
pub fn check(dirs: &[PathBuf], gpus: &[GpuId]) -> Result<CdiReport, CdiError> {
    let (specs, broken) = load(dirs);
    let unusable = || {
        broken
            .first()
            .map(|(file, why)| CdiError::Unusable { file: file.clone(), why: why.clone() })
    };
    if specs.is_empty() {
        return Err(unusable().unwrap_or_else(|| CdiError::NoSpec { dirs: dirs.to_vec() }));
    }
    let mut devices = Vec::with_capacity(gpus.len());
    for gpu in gpus {
        let (loaded, device) = match resolve(&specs, gpu) {
            Ok(found) => found,
            // The damaged file may be the one that had it: that is the thing to mend.
            Err(error @ CdiError::NoDevice { .. }) => return Err(unusable().unwrap_or(error)),
            Err(error) => return Err(error),
        };
        let stale = |(path, why)| CdiError::Stale {
            gpu: gpu.clone(),
            file: loaded.file.clone(),
            path,
            why,
        };
        let both = [&loaded.spec.container_edits, &device.container_edits];
        both.into_iter().flatten().try_for_each(present).map_err(stale)?;
        devices.push(CdiDevice {
            gpu: gpu.clone(),
            name: format!("{KIND}={gpu}"),
            file: loaded.file.clone(),
            cdi_version: loaded.spec.cdi_version.clone(),
        });
    }
    Ok(CdiReport { devices, ignored: broken })
}

/// The file that a specification has to be written to so that it counts: the one that wins of those that are in `dirs`, or a damaged
/// one of NVIDIA's name; `None`: there is none. Its path has no white space, so that a command can name it.
#[must_use]
pub fn winner(dirs: &[PathBuf]) -> Option<PathBuf> {
    let (specs, broken) = load(dirs);
    let named = |file: &PathBuf| file.file_stem().is_some_and(|stem| stem == "nvidia");
    let damaged = broken.into_iter().map(|(file, _)| file).filter(named);
    let files = damaged.chain(specs.into_iter().map(|loaded| loaded.file));
    let plain =
        |file: &PathBuf| file.to_str().is_some_and(|file| !file.contains(char::is_whitespace));
    files.filter(plain).max_by_key(|file| dirs.iter().position(|dir| file.starts_with(dir)))
}

/// The last of the files of a message.
fn last(files: &[PathBuf]) -> std::path::Display<'_> {
    files.last().map_or(Path::new("/etc/cdi/nvidia.yaml"), PathBuf::as_path).display()
}

/// Finds the one definition of a device that counts. Pure.
fn resolve<'a>(specs: &'a [Loaded], gpu: &GpuId) -> Result<(&'a Loaded, &'a Device), CdiError> {
    let all = || {
        specs.iter().flat_map(|loaded| {
            loaded.spec.devices.iter().flatten().map(move |device| (loaded, device))
        })
    };
    let named: Vec<_> = all().filter(|(_, device)| device.name == gpu.as_str()).collect();
    let Some(&(best, device)) = named.iter().min_by_key(|(loaded, _)| Reverse(loaded.priority))
    else {
        let present: BTreeSet<_> = all().map(|(_, device)| device.name.clone()).collect();
        let files = specs.iter().map(|loaded| loaded.file.clone()).collect();
        let present = present.into_iter().collect();
        return Err(CdiError::NoDevice { gpu: gpu.clone(), present, files });
    };
    let rival = named
        .iter()
        .find(|(loaded, rival)| loaded.priority == best.priority && !std::ptr::eq(*rival, device));
    match rival {
        None => Ok((best, device)),
        Some((other, _)) => Err(CdiError::Conflict {
            gpu: gpu.clone(),
            first: best.file.clone(),
            second: other.file.clone(),
        }),
    }
}

/// Reads a specification. Pure. The extension decides the notation, as it does for container engines.
fn parse(file: &Path, text: &str) -> Result<Spec, String> {
    let spec: Spec = if file.extension().is_some_and(|extension| extension == "json") {
        serde_json::from_str(text).map_err(|e| e.to_string())?
    } else {
        serde_saphyr::from_str(text).map_err(|e| first_line(&e.to_string()))?
    };
    if spec.cdi_version.is_empty() { Err("cdiVersion is empty".to_owned()) } else { Ok(spec) }
}

/// A message for one line of a log: the parser adds an excerpt of the file below its own.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

/// All specifications of [`KIND`] in `dirs`, and what could not be read.
fn load(dirs: &[PathBuf]) -> (Vec<Loaded>, Vec<(PathBuf, String)>) {
    let (mut specs, mut broken) = (Vec::new(), Vec::new());
    for (priority, dir) in dirs.iter().enumerate() {
        let files = match files(dir) {
            Ok(files) => files,
            Err(error) => {
                broken.push((dir.clone(), error.to_string()));
                continue;
            }
        };
        for file in files {
            let text = std::fs::read_to_string(&file).map_err(|e| e.to_string());
            match text.and_then(|text| parse(&file, &text)) {
                Ok(spec) if spec.kind == KIND => specs.push(Loaded { file, priority, spec }),
                Ok(_) => {}
                Err(why) => broken.push((file, why)),
            }
        }
    }
    (specs, broken)
}

/// Specification files of a directory, sorted; none where there is no such directory.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json" || e == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether what the edits bring into a container is on the host; else the path and what is wrong with it.
fn present(edits: &Edits) -> Result<(), (PathBuf, String)> {
    for node in edits.device_nodes.iter().flatten() {
        let path = node.host_path.as_ref().unwrap_or(&node.path);
        node_problem(path, node).map_or(Ok(()), |why| Err((path.clone(), why)))?;
    }
    for mount in edits.mounts.iter().flatten() {
        let path = &mount.host_path;
        let is_bind = mount.r#type.as_ref().is_none_or(|kind| kind == "bind");
        // Of what the daemon's own sandbox may hide although the container engine sees it nothing is said.
        if is_bind && !sandbox::hides(path) && is_missing(path) {
            return Err((path.clone(), "does not exist".to_owned()));
        }
    }
    Ok(())
}

/// Only what certainly is not there: a directory that is closed to the daemon need not be closed to podman.
fn is_missing(path: &Path) -> bool {
    std::fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn node_problem(path: &Path, node: &Node) -> Option<String> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Some("does not exist".to_owned());
        }
        Err(error) => return Some(format!("cannot be looked at ({error})")),
    };
    let kind = meta.file_type();
    if !(kind.is_char_device() || kind.is_block_device() || kind.is_fifo()) {
        return Some("is not a device node".to_owned());
    }
    // Zero or absent: the container engine takes the host's numbers. Some modules' numbers differ from boot to boot.
    let wanted = (node.major.filter(|major| *major != 0)?, node.minor.unwrap_or(0));
    let found = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    (wanted != found)
        .then(|| format!("is device {}:{} and not {}:{}", found.0, found.1, wanted.0, wanted.1))
}

#[cfg(test)]
mod tests;
