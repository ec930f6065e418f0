//! What the paths of weights mean, by their names alone.
//!
//! Purpose: how much of the host an engine is given, what is looked at before, and what a model is called after, by one rule. PURE.

use std::path::{Path, PathBuf};

use super::EngineKind;

/// Where a container has weights of the host.
const MODELS: &str = "/models";

/// Arguments of llama-server that name a projector's file.
pub const PROJECTOR_FLAGS: [&str; 2] = ["-mm", "--mmproj"];
/// Arguments of llama-server that bring in other models beside its model: a projector from elsewhere, or one that guesses for it.
pub const BESIDE_FLAGS: [&str; 5] =
    ["-mmu", "--mmproj-url", "-md", "--model-draft", "--spec-draft-model"];

/// A part of a GGUF model in several files: `m-00002-of-00003.gguf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// The name in front of the number: `m`.
    pub model: &'a str,
    /// Which part, from 1.
    pub number: u32,
}

/// What a file is a part of, if it is one.
#[must_use]
pub fn part(path: &Path) -> Option<Part<'_>> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (model, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(count)).then_some(Part { model, number: number.parse().ok()? })
}

/// Of `…/models--ORG--NAME/snapshots/COMMIT` in a hub's cache, and what is below it: `…/models--ORG--NAME`.
#[must_use]
pub fn repository(path: &Path) -> Option<&Path> {
    path.ancestors().find_map(|snapshot| {
        let snapshots = snapshot.parent()?;
        let repository = snapshots.parent()?;
        let is_cache = snapshots.file_name()? == "snapshots"
            && repository.file_name()?.to_str()?.starts_with("models--");
        is_cache.then_some(repository)
    })
}

/// Of a snapshot in a hub's cache, and not of what is below it: `ORG/NAME`.
#[must_use]
pub fn repository_name(snapshot: &Path) -> Option<String> {
    let repository = repository(snapshot)?;
    let whole = snapshot.parent()?.parent()? == repository;
    let name = repository.file_name()?.to_str()?.strip_prefix("models--")?;
    whole.then(|| name.replacen("--", "/", 1))
}

/// How much of the host a model's container is given. In a hub's cache the files of a snapshot are links to `../../blobs`, which have to be
/// there, too.
#[must_use]
pub fn bound(weights: &Path, engine: EngineKind) -> &Path {
    let split = engine == EngineKind::Llamacpp && part(weights).is_some();
    if !split && weights.extension().is_some_and(|end| end == "gguf") {
        // Mounted by itself, wherever its name leads.
        return weights;
    }
    // The first part is named, the engine finds the others beside it.
    let beside = if split { weights.parent() } else { None };
    repository(weights).or(beside).unwrap_or(weights)
}

/// What of the host a model's container is given, and where it has it.
#[must_use]
pub fn mounted(weights: &Path, engine: EngineKind) -> (&Path, PathBuf) {
    let host = bound(weights, engine);
    let root = match host.file_name() {
        // What the engine finds beside the first part has no name of its own there.
        _ if part(weights).is_some() && weights.parent() == Some(host) => PathBuf::from(MODELS),
        Some(name) => Path::new(MODELS).join(name),
        // `/` or `..`: nothing that could be named inside. The configuration refuses both.
        None => PathBuf::from(MODELS),
    };
    (host, root)
}

/// Where a model's container has a path of the host; `None` if it does not come along with the weights.
#[must_use]
pub fn inside(weights: &Path, engine: EngineKind, path: &Path) -> Option<PathBuf> {
    let (host, root) = mounted(weights, engine);
    let below = path.strip_prefix(host).ok()?;
    // Part by part: joining an empty path would leave a slash at the end.
    Some(below.components().fold(root, |inside, part| inside.join(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_split_model() {
        let of = |path| part(Path::new(path)).map(|part| (part.model, part.number));
        assert_eq!(of("/w/a-00001-of-00003.gguf"), Some(("a", 1)));
        assert_eq!(of("a-b-00002-of-00002.gguf"), Some(("a-b", 2)));
        for whole in ["/w/a.gguf", "a-1-of-3.gguf", "a-00001-of-00003.bin", "00001-of-00003.gguf"] {
            assert_eq!(of(whole), None, "{whole}");
        }
    }

    #[test]
    fn a_snapshot_is_called_after_its_repository() {
        let of = |path| repository_name(Path::new(path));
        let snapshot = "/srv/hub/models--Qwen--Qwen3-8B/snapshots/0a1b";
        assert_eq!(of(snapshot).as_deref(), Some("Qwen/Qwen3-8B"));
        assert_eq!(of("/srv/models--gpt2/snapshots/0a1b").as_deref(), Some("gpt2"));
        // One of several models in it, and what is no snapshot.
        for other in
            [&format!("{snapshot}/int4"), "/srv/hub/models--Qwen--Qwen3-8B", "/srv/snapshots/0a1b"]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
