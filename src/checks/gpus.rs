//! Whether a GPU works inside a container: the proof that podman, CDI, the device nodes and the driver fit together.
//!
//! Purpose: everything before it looks at files; this runs a process in a container with the devices, which asks NVML there.
//! Invariant: what counts is what that process saw, not that the container started.

use serde::{Deserialize, Serialize};

use crate::adapters::gpu::Nvml;
use crate::supervisor::ports::Gpus as _;
use crate::types::{Bytes, GpuId};

/// What the process in the container saw. One line of JSON on its standard output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// Devices with their memory.
    pub devices: Vec<(GpuId, Bytes)>,
    /// Why none was seen.
    pub error: Option<String>,
}

/// Looks, from inside.
pub async fn look() -> Seen {
    match Nvml::start(None, Vec::new()).snapshot().await {
        Ok(snapshot) => Seen {
            devices: snapshot.devices.into_iter().map(|d| (d.id, d.total)).collect(),
            error: None,
        },
        Err(err) => Seen { error: Some(err.to_string()), ..Seen::default() },
    }
}

/// Judges what was seen against what was given.
///
/// # Errors
/// What is wrong, for people.
pub fn judge(lines: &[String], given: &[GpuId]) -> Result<String, String> {
    let seen: Option<Seen> = lines.iter().rev().find_map(|line| serde_json::from_str(line).ok());
    let Some(seen) = seen else {
        return Err("the process in the container ended without a word".to_owned());
    };
    if let Some(error) = seen.error {
        return Err(format!("in a container with the GPUs: {error}"));
    }
    let mut words = Vec::new();
    for gpu in given {
        match seen.devices.iter().find(|(id, _)| id == gpu) {
            Some((_, total)) if total.0 > 0 => words.push(format!("{gpu} with {total}")),
            Some(_) => return Err(format!("{gpu} has no memory in a container")),
            None => {
                let ids: Vec<String> = seen.devices.iter().map(|(id, _)| id.to_string()).collect();
                let ids = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
                return Err(format!(
                    "{gpu} is not seen in a container that was given it; seen: {ids}"
                ));
            }
        }
    }
    Ok(format!("a process in a container sees {}", words.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_has_to_be_seen() {
        let gpu = |id| GpuId::new(id);
        let line = |seen: &Seen| vec!["noise".to_owned(), serde_json::to_string(seen).unwrap()];
        let seen = Seen { devices: vec![(gpu("GPU-a"), Bytes::gib(80))], error: None };
        let said = judge(&line(&seen), &[gpu("GPU-a")]).unwrap();
        assert_eq!(said, "a process in a container sees GPU-a with 80.0 GiB");
        assert!(judge(&line(&seen), &[gpu("GPU-b")]).unwrap_err().contains("seen: GPU-a"));
        let empty = Seen { devices: vec![(gpu("GPU-a"), Bytes(0))], error: None };
        assert!(judge(&line(&empty), &[gpu("GPU-a")]).unwrap_err().contains("no memory"));
        let broken = Seen { error: Some("no driver".into()), ..Seen::default() };
        assert!(judge(&line(&broken), &[]).unwrap_err().contains("no driver"));
        assert!(judge(&[], &[]).is_err());
    }
}
