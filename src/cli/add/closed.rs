//! Weights that root sees and an engine would not.
//!
//! Purpose: `hostler add` runs as root, before which nothing is closed; podman looks at the way to the weights as the service user, and an
//! engine reads the files as nobody that the host knows. Owner: `hostler add`. Invariants: nothing is opened, only the model's own files are
//! looked at, and what is said is a warning: rights beyond the mode (ACLs) are not read.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::checks::SERVICE_USER;
use crate::types::files;

/// Where the service user may read, and a file for everybody is put by one command.
const PLACE: &str = "/var/lib/hostler/models";
/// Files looked at in one directory.
const ENTRIES_MAX: usize = 10_000;

/// The first that is closed: of the directories above `bound`, which a container is given, to the service user, whose user and group are
/// `service`; of those in it and of the model's files to an engine. `None`: nothing that the modes say.
#[must_use]
pub fn closed(weights: &Path, bound: &Path, service: (u32, u32)) -> Option<String> {
    let mut above: Vec<&Path> = bound.ancestors().skip(1).collect();
    above.reverse();
    if let Some((dir, mode)) = above.into_iter().find_map(|dir| lacks(dir, |m| of(m, service), 1)) {
        let put = if weights.is_file() {
            format!("sudo install -m 644 -t {PLACE} {}", weights.display())
        } else {
            format!("sudo cp -rL --no-preserve=mode {} {PLACE}/", weights.display())
        };
        return Some(format!(
            "{dir} ({mode:o}) is closed to the user {SERVICE_USER}, whose podman has to pass it: the model will not load; put it where it may, and add it from there: {put}"
        ));
    }
    // An engine is of no user and no group of the host.
    let others = |meta: &Metadata| meta.mode();
    let inside = weights.ancestors().take_while(|dir| dir.starts_with(bound));
    let dirs = inside.filter(|dir| dir.is_dir()).find_map(|dir| lacks(dir, others, 5));
    let (path, mode) =
        dirs.or_else(|| read(weights, bound).iter().find_map(|file| lacks(file, others, 4)))?;
    Some(format!(
        "{path} ({mode:o}) is not for everybody to read, and an engine is nobody on the host: the model will not load; sudo chmod -R o+rX {path}"
    ))
}

/// The path and its mode, if what `rights` leaves of it lacks one of `bits`.
fn lacks(path: &Path, rights: impl Fn(&Metadata) -> u32, bits: u32) -> Option<(String, u32)> {
    let meta = fs::metadata(path).ok()?;
    (rights(&meta) & bits != bits).then(|| (path.display().to_string(), meta.mode() & 0o7777))
}

/// What a user may, in the last three bits.
fn of(meta: &Metadata, (user, group): (u32, u32)) -> u32 {
    if meta.uid() == user {
        meta.mode() >> 6
    } else if meta.gid() == group {
        meta.mode() >> 3
    } else {
        meta.mode()
    }
}

/// The files that an engine reads: the one that is named, or those of the directory; with their further parts, where there are some.
fn read(weights: &Path, bound: &Path) -> Vec<PathBuf> {
    let part = files::part(weights).map(|part| part.model);
    let dir = if weights.is_dir() { weights } else { weights.parent().unwrap_or(bound) };
    if weights.is_file() && part.is_none() {
        return vec![weights.to_owned()];
    }
    let entries = fs::read_dir(dir).into_iter().flatten().take(ENTRIES_MAX).flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path()).collect();
    found.retain(|path| {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let own = part.is_none() || files::part(path).map(|part| part.model) == part;
        path.is_file() && own && !hidden
    });
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::types::EngineKind;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Below a directory that others may pass, and who made it.
    fn home(mode: u32) -> (tempfile::TempDir, PathBuf, (u32, u32)) {
        let dir = tempfile::tempdir().unwrap();
        set(dir.path(), 0o755);
        let home = dir.path().canonicalize().unwrap().join("home");
        fs::create_dir(&home).unwrap();
        let meta = fs::metadata(&home).unwrap();
        set(&home, mode);
        (dir, home, (meta.uid(), meta.gid()))
    }

    const OTHER: (u32, u32) = (77_777, 77_777);

    #[test]
    fn a_file_in_a_home_is_said_to_be_closed() {
        let (_dir, home, own) = home(0o750);
        let gguf = home.join("m.gguf");
        fs::write(&gguf, "x").unwrap();
        set(&gguf, 0o644);
        let why = closed(&gguf, &gguf, OTHER).unwrap();
        assert!(why.starts_with(&format!("{} (750) is closed", home.display())), "{why}");
        assert!(why.ends_with(&format!("-t {PLACE} {}", gguf.display())), "{why}");
        assert_eq!(closed(&gguf, &gguf, own), None, "its owner passes");
        assert_eq!(closed(&gguf, &gguf, (OTHER.0, own.1)), None, "and so does its group");
        set(&home, 0o701);
        assert_eq!(closed(&gguf, &gguf, OTHER), None, "passing is enough");
        let (_dir, home, _) = self::home(0o700);
        let why = closed(&home.join("m"), &home.join("m"), OTHER).unwrap();
        assert!(why.contains("cp -rL --no-preserve=mode"), "{why}");
    }

    #[test]
    fn files_that_an_engine_may_not_read_are_named() {
        let (_dir, home, _) = home(0o755);
        let model = home.join("model");
        fs::create_dir(&model).unwrap();
        set(&model, 0o755);
        for (name, mode) in [("config.json", 0o644), ("m.safetensors", 0o640), (".git", 0o600)] {
            fs::write(model.join(name), "x").unwrap();
            set(&model.join(name), mode);
        }
        let bound = files::bound(&model, EngineKind::Vllm);
        let why = closed(&model, bound, OTHER).unwrap();
        assert!(why.contains("m.safetensors (640) is not for everybody"), "{why}");
        set(&model.join("m.safetensors"), 0o644);
        assert_eq!(closed(&model, bound, OTHER), None);
        set(&model, 0o711);
        assert!(closed(&model, bound, OTHER).unwrap().contains("model (711)"));
        // Of a split model its own parts, and not its neighbours.
        set(&model, 0o755);
        for (name, mode) in [
            ("a-00001-of-00002.gguf", 0o644),
            ("a-00002-of-00002.gguf", 0o600),
            ("b-00001-of-00002.gguf", 0o600),
        ] {
            fs::write(model.join(name), "x").unwrap();
            set(&model.join(name), mode);
        }
        let first = model.join("a-00001-of-00002.gguf");
        let bound = files::bound(&first, EngineKind::Llamacpp);
        assert!(closed(&first, bound, OTHER).unwrap().contains("a-00002-of-00002.gguf (600)"));
        set(&model.join("a-00002-of-00002.gguf"), 0o644);
        assert_eq!(closed(&first, bound, OTHER), None);
    }
}
