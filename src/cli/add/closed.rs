//! Weights that root sees and an engine would not.
//!
//! Purpose: `hostler add` runs as root, before which nothing is closed; podman looks at the way to the weights as the service user, and an
//! engine reads the files as nobody that the host knows. Owner: `hostler add`. Invariants: nothing is opened, only the model's own files are
//! looked at, and what is said is a warning: rights beyond the mode (ACLs) are not read.

use std::borrow::Cow;
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
        return Some(format!(
            "{dir} ({mode:o}) is closed to the user {SERVICE_USER}, whose podman has to pass it: the model will not load; put it where it may, and add it from there: {}",
            put(weights)
        ));
    }
    // An engine is of no user and no group of the host.
    let others = |meta: &Metadata| meta.mode();
    let inside = weights.ancestors().take_while(|dir| dir.starts_with(bound));
    let dirs = inside.filter(|dir| dir.is_dir()).find_map(|dir| lacks(dir, others, 5));
    let (path, mode) =
        dirs.or_else(|| read(weights, bound).iter().find_map(|file| lacks(file, others, 4)))?;
    Some(format!(
        "{path} ({mode:o}) is not for everybody to read, and an engine is nobody on the host: the model will not load; sudo chmod -R o+rX {}",
        quoted(&path)
    ))
}

/// The command that copies a model to [`PLACE`]: all parts of a split one, and a hub's snapshot by the model's name in place of the commit.
fn put(weights: &Path) -> String {
    let whole = weights.display().to_string();
    if !weights.is_file() {
        let name = files::repository_name(weights).unwrap_or_else(|| whole.clone());
        let to = format!("{PLACE}/{}", name.rsplit('/').next().unwrap_or_default());
        return format!("sudo cp -rLT --no-preserve=mode {} {}", quoted(&whole), quoted(&to));
    }
    let install = format!("install -m 644 -t {PLACE}");
    let parts = files::part(weights).and_then(|_| {
        let (numbered, count) = whole.rsplit_once("-of-")?;
        let (before, _) = numbered.rsplit_once('-')?;
        Some(format!("{}-?????-of-{count}", quoted(before)))
    });
    match parts {
        // Whoever types it may not look there either, so the shell that knows the parts is root's.
        Some(parts) => format!("sudo sh -c {}", quoted(&format!("{install} {parts}"))),
        None => format!("sudo {install} {}", quoted(&whole)),
    }
}

/// As one word of a shell's.
fn quoted(text: &str) -> String {
    shlex::try_quote(text).map_or_else(|_| text.to_owned(), Cow::into_owned)
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
        let copied = format!("cp -rLT --no-preserve=mode {}/m {PLACE}/m", home.display());
        assert!(why.ends_with(&copied), "{why}");
    }

    #[test]
    fn what_copies_a_model_copies_all_of_it_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("it's my \"home\"");
        fs::create_dir(&at).unwrap();
        let split = ["m x-00001-of-00002.gguf", "m x-00002-of-00002.gguf"];
        for name in
            split.into_iter().chain(["m x-00001-of-00003.gguf", "m x-it-00001-of-00002.gguf"])
        {
            fs::write(at.join(name), "x").unwrap();
        }
        fs::write(at.join("m x.gguf"), "x").unwrap();
        let one = shlex::split(&put(&at.join("m x.gguf"))).unwrap();
        assert_eq!(one.last().unwrap(), at.join("m x.gguf").to_str().unwrap());
        // Which files a shell makes of it.
        let words = shlex::split(&put(&at.join(split[0]))).unwrap();
        assert_eq!(words[..3], ["sudo", "sh", "-c"]);
        let install = format!("install -m 644 -t {PLACE}");
        assert!(words[3].starts_with(&install) && words.len() == 4, "{words:?}");
        let listed = std::process::Command::new("sh")
            .args(["-c", &words[3].replacen(&install, "printf '%s\\n'", 1)])
            .output()
            .unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let want = split.map(|name| at.join(name).to_str().unwrap().to_owned());
        assert_eq!(listed.lines().collect::<Vec<_>>(), want);
        let snapshot = at.join("models--o--m/snapshots/0a1b");
        fs::create_dir_all(&snapshot).unwrap();
        let words = shlex::split(&put(&snapshot)).unwrap();
        assert_eq!(words[4..], [snapshot.to_str().unwrap(), format!("{PLACE}/m").as_str()]);
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
