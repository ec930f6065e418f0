//! Weights that are on this host already.

use std::path::{Path, PathBuf};

use super::closed::closed;
use crate::adapters::podman::stray;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::types::{EngineKind, files};

/// A path of weights, absolute, and whether they are GGUF.
///
/// # Errors
/// If no engine reads what is there, with what would do.
pub fn look(path: &Path) -> Outcome<(PathBuf, bool)> {
    let path = whole(path)
        .map_err(|err| Failure::new(Exit::NotFound, format!("{}: {err}", path.display())))?;
    if path.is_file() {
        if path.extension().is_some_and(|end| end == "gguf") {
            return Ok((path, true));
        }
        let message = format!("{} is no GGUF file", path.display());
        return Err(Failure::new(Exit::Failed, message)
            .fix("a .gguf file, or a directory with safetensors and config.json"));
    }
    let names: Vec<String> = std::fs::read_dir(&path)?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let has = |end: &str| names.iter().any(|name| name.ends_with(end));
    if has(".safetensors") && names.iter().any(|name| name == "config.json") {
        return Ok((path, false));
    }
    let mut ggufs: Vec<&String> = names.iter().filter(|name| name.ends_with(".gguf")).collect();
    ggufs.sort();
    let fix = match ggufs.first() {
        Some(gguf) => format!("name one of its GGUF files, such as {}", path.join(gguf).display()),
        None => "a .gguf file, or a directory with safetensors and config.json".to_owned(),
    };
    Err(Failure::new(
        Exit::Failed,
        format!("{} holds no model that an engine reads as it is", path.display()),
    )
    .fix(fix))
}

/// What is doubtful about where weights lie that an engine is to read; what they lack is for [`lacks`]. `service`: user and
/// group of whoever runs its podman, where that is not the caller.
pub fn doubts(
    path: &Path,
    engine: EngineKind,
    service: Option<(u32, u32)>,
) -> impl Iterator<Item = String> + use<> {
    let bound = files::bound(path, engine);
    let closed = service.and_then(|service| closed(path, bound, service));
    [stray(path, bound), closed].into_iter().flatten()
}

/// What a directory of an embedding model lacks of the modules that its `modules.json` names and vLLM reads; `None` where nothing is missing.
#[must_use]
pub fn lacks(dir: &Path) -> Option<String> {
    let text = std::fs::read(dir.join("modules.json")).ok()?;
    let modules: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let missing = |module: &serde_json::Value| {
        let (kind, path) = (module.get("type")?.as_str()?, module.get("path")?.as_str()?);
        // Others, such as what normalizes, have no settings.
        let read = ["Pooling", "Dense"].iter().any(|word| kind.contains(word));
        (read && !dir.join(path).join("config.json").is_file()).then(|| path.to_owned())
    };
    let missing: Vec<String> = modules.as_array()?.iter().filter_map(missing).collect();
    (!missing.is_empty()).then(|| {
        format!(
            "{} has no {}, which its modules.json names: vLLM goes on without, and answers with vectors that are not the model's",
            dir.display(),
            missing.join(", ")
        )
    })
}

/// The file that vLLM reads the text of a gpt-oss with. Its repository has none, and vLLM would fetch it from the Internet.
const HARMONY: &str = "o200k_base.tiktoken";

/// What vLLM wants beside the weights of a gpt-oss in a directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Harmony {
    /// The variable that says where it is, and what that is in the container.
    pub env: (String, String),
    /// What to do about it where it is not there.
    pub missing: Option<String>,
}

/// Of a directory with a gpt-oss; `None`: it holds another model.
#[must_use]
pub fn harmony(dir: &Path) -> Option<Harmony> {
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).ok()?).ok()?;
    if config.get("model_type")?.as_str()? != "gpt_oss" {
        return None;
    }
    let inside = files::inside(dir, EngineKind::Vllm, dir)?.display().to_string();
    let missing = (!dir.join(HARMONY).is_file()).then(|| {
        format!(
            "{} has no {HARMONY}, with which vLLM reads what a gpt-oss writes: it would fetch the file while it starts, and engines have no network; put the file there (docs/configure.md, \"gpt-oss on vLLM\", says where from), or take TIKTOKEN_ENCODINGS_BASE out of env where the image has it",
            dir.display()
        )
    });
    Some(Harmony { env: ("TIKTOKEN_ENCODINGS_BASE".to_owned(), inside), missing })
}

/// Without links, as far as the file keeps its name: in a hub's cache the one behind it is called after its digest, and has no
/// further parts beside it.
fn whole(path: &Path) -> std::io::Result<PathBuf> {
    let real = path.canonicalize()?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if real.is_file() && real.file_name() != Some(name) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(parent.canonicalize()?.join(name))
        }
        _ => Ok(real),
    }
}

/// What a model is called: a snapshot in a hub's cache, whose own name is a commit, after its repository, all else after its file.
#[must_use]
pub fn called(path: &Path) -> String {
    files::repository_name(path).unwrap_or_else(|| stem(path))
}

/// A model's name after its file: without the ending, and without what a name may not hold.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".gguf").unwrap_or(&name);
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    name.chars().map(safe).collect::<String>().trim_start_matches(['.', '-', '_']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "x").unwrap();
            path
        };
        assert!(look(dir.path()).unwrap_err().fix.contains("safetensors"));
        let gguf = file("m.gguf");
        assert!(look(&gguf).unwrap().1);
        assert!(look(dir.path()).unwrap_err().fix.contains("m.gguf"));
        file("model.safetensors");
        file("config.json");
        assert!(!look(dir.path()).unwrap().1);
        assert!(look(&file("x.bin")).is_err());
        assert_eq!(look(&dir.path().join("none")).unwrap_err().exit, Exit::NotFound);
    }

    /// Where each file is a link into a directory beside it, with a digest for a name.
    #[test]
    fn a_hubs_cache_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let revision = root.join("models--org--m/snapshots/0a1b");
        let blobs = root.join("models--org--m/blobs");
        std::fs::create_dir_all(&revision).unwrap();
        std::fs::create_dir_all(&blobs).unwrap();
        for name in ["m.gguf", "config.json", "m.safetensors"] {
            std::fs::write(blobs.join(format!("sha-{name}")), "x").unwrap();
        }
        let link = |name: &str| {
            let target = format!("../../blobs/sha-{name}");
            std::os::unix::fs::symlink(target.replace(".gguf", ""), revision.join(name)).unwrap();
        };
        std::fs::rename(blobs.join("sha-m.gguf"), blobs.join("sha-m")).unwrap();
        for name in ["m.gguf", "config.json", "m.safetensors"] {
            link(name);
        }
        assert_eq!(look(&revision).unwrap(), (revision.clone(), false));
        assert_eq!(called(&revision), "org/m");
        assert_eq!(called(&revision.join("m.gguf")), "m", "one of several in it");
        let gguf = revision.join("m.gguf");
        assert_eq!(look(&gguf).unwrap(), (gguf, true), "the file behind it has no ending");
    }

    #[test]
    fn an_embedding_model_without_its_modules_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(lacks(root), None, "it is none");
        let module = |path: &str, kind: &str| {
            format!(r#"{{"path": "{path}", "type": "sentence_transformers.models.{kind}"}}"#)
        };
        let all = [
            module("", "Transformer"),
            module("1_Pooling", "Pooling"),
            module("2_Dense", "Dense"),
            module("3_Normalize", "Normalize"),
        ];
        std::fs::write(root.join("modules.json"), format!("[{}]", all.join(","))).unwrap();
        let why = lacks(root).unwrap();
        assert!(why.contains(" has no 1_Pooling, 2_Dense, which"), "{why}");
        let doubts = doubts(root, EngineKind::Vllm, None);
        assert_eq!(doubts.collect::<Vec<_>>(), [""; 0], "it is said once");
        for module in ["1_Pooling", "2_Dense"] {
            std::fs::create_dir(root.join(module)).unwrap();
            std::fs::write(root.join(module).join("config.json"), "{}").unwrap();
        }
        assert_eq!(lacks(root), None);
        std::fs::write(root.join("modules.json"), "no JSON").unwrap();
        assert_eq!(lacks(root), None);
    }

    #[test]
    fn what_a_gpt_oss_wants_beside_its_weights_is_named_and_found() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir.path().join("models--o--g/snapshots/0a1b");
        std::fs::create_dir_all(&snapshot).unwrap();
        assert_eq!(harmony(&snapshot), None);
        let config = |kind: &str| {
            let text = format!(r#"{{"model_type": "{kind}"}}"#);
            std::fs::write(snapshot.join("config.json"), text).unwrap();
        };
        config("qwen3");
        assert_eq!(harmony(&snapshot), None);
        config("gpt_oss");
        let found = harmony(&snapshot).unwrap();
        let inside = "/models/models--o--g/snapshots/0a1b";
        assert_eq!(found.env, ("TIKTOKEN_ENCODINGS_BASE".to_owned(), inside.to_owned()));
        let missing = found.missing.unwrap();
        assert!(
            missing.contains(&format!("{} has no o200k_base", snapshot.display())),
            "{missing}"
        );
        std::fs::write(snapshot.join(HARMONY), "x").unwrap();
        assert_eq!(harmony(&snapshot).unwrap().missing, None);
    }

    #[test]
    fn names_after_files() {
        assert_eq!(stem(Path::new("/x/My Model (1).gguf")), "My-Model--1-");
        assert_eq!(stem(Path::new("/x/.hidden")), "hidden");
    }
}
