//! Whether SELinux lets engines read the weights that are configured.
//!
//! Purpose: an engine's "Permission denied" of its model's files is known before the model is asked for. Owner: doctor and
//! `Validate`; READY does not wait for it. Invariants: nothing is relabelled; a policy of the host's own may allow what is unknown
//! here, so that is a warning; a path that cannot be looked at is the load's to tell.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Outcome;
use crate::adapters::disk;
use crate::config::Config;
use crate::types::Weights;

/// For each path.
const WITHIN: Duration = Duration::from_secs(5);
/// Of a directory so many files are looked at.
const FILES_MAX: usize = 256;
/// The types that the policy of containers lets every container read.
const READABLE: [&str; 4] =
    ["container_ro_file_t", "container_file_t", "container_share_t", "svirt_sandbox_file_t"];

/// What holds of all weights on this host, where SELinux confines podman's containers.
pub(super) async fn look(config: &Config) -> (Outcome, String) {
    let paths = config.models.values().filter_map(|model| match &model.weights {
        Weights::Path(path) => Some(path.as_path()),
        Weights::Image { .. } | Weights::Builtin => None,
    });
    let (mut seen, mut closed) = (0, Vec::new());
    for path in paths {
        match disk::look("label", path, WITHIN, unreadable).await {
            Ok(found) => closed.extend(found),
            Err(late) => return (Outcome::Warn, late.to_string()),
        }
        seen += 1;
    }
    judge(seen, &closed)
}

fn judge(seen: usize, closed: &[(PathBuf, String)]) -> (Outcome, String) {
    if closed.is_empty() {
        return (Outcome::Pass, format!("engines may read the weights of {seen} models"));
    }
    let named: Vec<_> =
        closed.iter().map(|(path, kind)| format!("{} is {kind}", path.display())).collect();
    (Outcome::Warn, format!("{}: no engine may read that", named.join(", ")))
}

/// The first of a model's files that has another label, with its type.
fn unreadable(weights: &Path) -> Option<(PathBuf, String)> {
    // A link's own label says nothing of what it leads to.
    let path = fs::canonicalize(weights).ok()?;
    let within = fs::read_dir(&path).into_iter().flatten().flatten().take(FILES_MAX);
    let files = within.filter_map(|entry| fs::canonicalize(entry.path()).ok());
    std::iter::once(path.clone()).chain(files).find_map(|path| {
        let kind = kind(&label(&path)?)?;
        (!READABLE.contains(&kind.as_str())).then_some((path, kind))
    })
}

/// As the kernel has it; `None`: there is none, or it cannot be had.
fn label(path: &Path) -> Option<String> {
    let mut text = [0; 4096];
    let length = rustix::fs::getxattr(path, "security.selinux", &mut text).ok()?;
    Some(String::from_utf8_lossy(&text[..length]).trim_end_matches('\0').to_owned())
}

/// The third part of `system_u:object_r:var_lib_t:s0`.
fn kind(label: &str) -> Option<String> {
    label.split(':').nth(2).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_no_engine_may_read_is_told_with_its_file() {
        assert_eq!(kind("system_u:object_r:var_lib_t:s0").as_deref(), Some("var_lib_t"));
        assert_eq!(kind("unlabeled"), None);
        assert_eq!(
            judge(3, &[]),
            (Outcome::Pass, "engines may read the weights of 3 models".into())
        );
        let (outcome, measured) = judge(2, &[("/srv/w.gguf".into(), "var_t".into())]);
        assert_eq!(outcome, Outcome::Warn);
        assert_eq!(measured, "/srv/w.gguf is var_t: no engine may read that");
    }

    /// The kernel keeps such labels without SELinux, too, for who may write them.
    #[test]
    fn labels_are_read_from_the_files_and_not_from_links() {
        let dir = tempfile::tempdir().unwrap();
        let (model, blob) = (dir.path().join("model"), dir.path().join("blob"));
        fs::create_dir(&model).unwrap();
        fs::write(&blob, "w").unwrap();
        std::os::unix::fs::symlink(&blob, model.join("w.safetensors")).unwrap();
        let set = |path: &Path, kind: &str| {
            let label = format!("system_u:object_r:{kind}:s0\0");
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(path, "security.selinux", label.as_bytes(), flags)
        };
        assert_eq!(unreadable(&dir.path().join("none")), None);
        set(&model, "container_ro_file_t").expect("labels can be written here (root, no SELinux)");
        set(&blob, "container_file_t").unwrap();
        assert_eq!(unreadable(&model), None);
        set(&blob, "user_home_t").unwrap();
        let found = unreadable(&model).unwrap();
        assert_eq!(found, (fs::canonicalize(&blob).unwrap(), "user_home_t".to_owned()));
        set(&model, "var_lib_t").unwrap();
        assert_eq!(unreadable(&model).unwrap().1, "var_lib_t");
    }
}
