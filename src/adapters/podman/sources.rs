//! What is mounted into a container from the host, before podman is asked for anything.
//!
//! Purpose: weights that are visibly absent, or that are links which lead nowhere in the container, are a fault with its reason at once,
//! and not an engine that does not find its files minutes later. Owner: the launch, and the look before others leave for it. Invariants:
//! nothing is opened, and only the model's own files are looked at; what this process may not see is left to podman's judgement.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::adapters::disk;
use crate::supervisor::ports::ContainerSpec;
use crate::types::{Fault, FaultCode, ImageRef, ModelName, ModelSpec, Weights, files, sandbox};

/// How long the file system of the weights may take to say whether they are there.
const DISK_TIME: Duration = Duration::from_secs(10);
/// Files looked at in one directory.
const ENTRIES_MAX: usize = 10_000;
/// Links that are followed, as many as the kernel does.
const HOPS_MAX: u32 = 40;

/// What a launch needs of disk and registry.
pub(super) struct Sources<'a> {
    model: &'a ModelName,
    /// On the host, mounted.
    binds: Vec<&'a Path>,
    /// In one of these.
    weights: Option<&'a Path>,
    pub(super) image: &'a ImageRef,
    /// Images that are mounted.
    pub(super) volumes: Vec<&'a ImageRef>,
}

impl<'a> Sources<'a> {
    /// Of a container to be.
    pub(super) fn of_container(spec: &'a ContainerSpec) -> Self {
        Self {
            model: &spec.instance.model,
            binds: spec.binds.iter().map(|(host, _)| host.as_path()).collect(),
            weights: spec.weights.as_deref(),
            image: &spec.image,
            volumes: spec.image_volumes.iter().map(|(image, _)| image).collect(),
        }
    }

    /// Of a model, wherever it may start.
    pub(super) fn of_model(spec: &'a ModelSpec) -> Self {
        let (weights, volume) = match &spec.weights {
            Weights::Path(path) => (Some(path.as_path()), None),
            Weights::Image { image, .. } => (None, Some(image)),
            Weights::Builtin => (None, None),
        };
        let bound = weights.map(|path| files::mounted(path, spec.engine).0);
        Self {
            model: &spec.name,
            binds: bound.into_iter().chain(spec.projector.as_deref()).collect(),
            weights,
            image: &spec.image,
            volumes: volume.into_iter().collect(),
        }
    }
}

/// Weights that an engine would not find in its container.
pub(super) async fn check(sources: &Sources<'_>) -> Result<(), Fault> {
    for host in &sources.binds {
        let weights = sources.weights.filter(|weights| weights.starts_with(host));
        let weights = weights.map(Path::to_path_buf);
        let seen = disk::look("sources", host, DISK_TIME, move |host| {
            fs::metadata(host).map_err(|e| e.kind())?;
            Ok(weights.and_then(|weights| astray(&weights, host)))
        });
        let what = match seen.await {
            Err(late) => late.to_string(),
            // It is not so for podman, which says itself what it does not find.
            Ok(Err(_)) if sandbox::hides(host) => continue,
            Ok(Err(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)) => format!(
                "{} does not exist; put the file there, or correct weights or projector in the model's configuration",
                host.display()
            ),
            Ok(Ok(Some(stray))) => stray_text(&stray, host),
            Ok(_) => continue,
        };
        let message = format!("model {}: {what}", sources.model);
        return Err(Fault::new(FaultCode::WeightsMissing, message));
    }
    Ok(())
}

/// What to do about a link that leads out.
const STRAY_FIX: &str = "put the files themselves there (cp -rL), or name the directory where they are; of a hub's cache that is …/models--ORG--NAME/snapshots/COMMIT, without a link to it";

/// What is wrong with weights of which a container is given `bound`: a link that leads out of it; `None`: nothing that is seen from here.
#[must_use]
pub fn stray(weights: &Path, bound: &Path) -> Option<String> {
    astray(weights, bound).map(|link| stray_text(&link, bound))
}

/// A link that leads out, for people.
fn stray_text(link: &Path, bound: &Path) -> String {
    let (link, bound) = (link.display(), bound.display());
    format!(
        "{link} is a link that leads out of {bound}, which is all that the engine sees; {STRAY_FIX}"
    )
}

/// The first of a model's files that is a link to a file outside of `bound`, all that a container sees of the host. `weights`: the model's
/// directory, or the first of its files, whose further parts are beside it.
fn astray(weights: &Path, bound: &Path) -> Option<PathBuf> {
    let root = bound.canonicalize().ok()?;
    if !root.is_dir() {
        // It is mounted by itself, wherever it leads.
        return None;
    }
    let (dir, parts) = if weights.is_dir() {
        (weights, None)
    } else {
        (weights.parent()?, Some(files::part(weights)?.model))
    };
    let mut names: Vec<_> =
        fs::read_dir(dir).ok()?.take(ENTRIES_MAX).flatten().map(|entry| entry.path()).collect();
    names.sort();
    names.into_iter().find(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // No engine reads what is hidden or written for people.
        let read = match parts {
            Some(_) => files::part(path).map(|part| part.model) == parts,
            None => !name.starts_with('.') && !name.ends_with(".md"),
        };
        read && path.is_symlink() && path.is_file() && leads_out(path, &root)
    })
}

/// Whether a link that leads to something here leads nowhere where `root` has another place. An absolute one does.
fn leads_out(link: &Path, root: &Path) -> bool {
    let mut path = link.to_path_buf();
    for _ in 0..HOPS_MAX {
        let Ok(target) = fs::read_link(&path) else { break };
        if target.is_absolute() {
            return true;
        }
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    link.canonicalize().is_ok_and(|real| !real.starts_with(root))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_that_stay_inside_are_fine_and_others_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("models--org--m");
        let revision = repo.join("snapshots/0a1b");
        fs::create_dir_all(&revision).unwrap();
        fs::create_dir_all(repo.join("blobs")).unwrap();
        fs::write(repo.join("blobs/x"), "x").unwrap();
        fs::write(dir.path().join("outside"), "x").unwrap();
        let config = revision.join("config.json");
        symlink("../../blobs/x", &config).unwrap();
        assert_eq!(astray(&revision, &repo), None);
        assert_eq!(astray(&revision, &revision), Some(config), "of the snapshot alone");
        assert_eq!(stray(&revision, &repo), None);
        let told = stray(&revision, &revision).unwrap();
        assert!(told.contains("config.json is a link") && told.contains("cp -rL"), "{told}");

        // What no engine reads, and what leads nowhere on the host either.
        symlink("../../../outside", revision.join("README.md")).unwrap();
        symlink("../../../outside", revision.join(".note")).unwrap();
        symlink("../../../none", revision.join("z")).unwrap();
        assert_eq!(astray(&revision, &repo), None);
        // The blob is inside, but not under that name.
        let absolute = revision.join("a");
        symlink(repo.join("blobs/x"), &absolute).unwrap();
        assert_eq!(astray(&revision, &repo), Some(absolute.clone()));
        assert_eq!(astray(&absolute, &absolute), None, "a file by itself");
    }

    #[test]
    fn of_a_split_model_only_its_own_parts_matter() {
        let dir = tempfile::tempdir().unwrap();
        let models = dir.path().join("models");
        fs::create_dir(&models).unwrap();
        fs::write(dir.path().join("outside"), "x").unwrap();
        let first = models.join("m-00001-of-00002.gguf");
        fs::write(&first, "x").unwrap();
        symlink("../outside", models.join("other-00001-of-00002.gguf")).unwrap();
        symlink("../outside", models.join("other.gguf")).unwrap();
        assert_eq!(astray(&first, &models), None);
        let second = models.join("m-00002-of-00002.gguf");
        symlink("../outside", &second).unwrap();
        assert_eq!(astray(&first, &models), Some(second));
    }

    #[tokio::test]
    async fn a_look_is_for_what_a_container_would_be_given() {
        let path = |text: &'static str| Path::new(text);
        let mut spec = crate::types::test_spec("m");
        spec.weights = Weights::Path("/none/m-00001-of-00002.gguf".into());
        spec.projector = Some("/none/p.gguf".into());
        let sources = Sources::of_model(&spec);
        assert_eq!(sources.binds, [path("/none"), path("/none/p.gguf")]);
        assert_eq!(sources.weights, Some(path("/none/m-00001-of-00002.gguf")));
        let fault = check(&sources).await.unwrap_err();
        assert_eq!(fault.code, FaultCode::WeightsMissing, "{fault}");
        assert!(fault.message.starts_with("model m: /none does not exist"), "{fault}");

        let image = ImageRef::parse("localhost/w:1").unwrap();
        spec.weights = Weights::Image { image: image.clone(), path: "/w".into() };
        spec.projector = None;
        let sources = Sources::of_model(&spec);
        assert_eq!((sources.binds.len(), sources.volumes.clone()), (0, vec![&image]));
        check(&sources).await.unwrap();
    }
}
