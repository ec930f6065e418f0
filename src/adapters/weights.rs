//! How large a model's weights are on disk, for the estimate of its need before it was ever measured.
//!
//! Owner: the composition root asks once per configuration. Invariant: looks, never opens; what it cannot see (the
//! service's sandbox hides `/home`) has an unknown size, not size 0.

use std::path::Path;

use crate::types::{Bytes, Weights};

/// Endings of files that hold weights.
const WEIGHT_FILES: [&str; 4] = ["gguf", "safetensors", "bin", "pt"];

/// The size of a model's weights; `None` where it cannot be told from here.
#[must_use]
pub fn size(weights: &Weights) -> Option<Bytes> {
    match weights {
        Weights::Path(path) => size_of(path),
        // podman keeps images in its own storage.
        Weights::Image { .. } | Weights::Builtin => None,
    }
}

fn size_of(path: &Path) -> Option<Bytes> {
    let meta = std::fs::metadata(path).ok()?;
    if meta.is_file() {
        return split_parts(path).or(Some(Bytes(meta.len())));
    }
    let files = std::fs::read_dir(path).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let weighty = files.filter(|f| {
        f.extension().and_then(|e| e.to_str()).is_some_and(|e| WEIGHT_FILES.contains(&e))
    });
    let sum: Bytes = weighty.filter_map(|f| f.metadata().ok()).map(|m| Bytes(m.len())).sum();
    Some(sum).filter(|s| *s > Bytes::ZERO)
}

/// A GGUF in several files is named by its first: `model-00001-of-00003.gguf`.
fn split_parts(path: &Path) -> Option<Bytes> {
    let name = path.file_name()?.to_str()?;
    let at = name.find("-00001-of-")?;
    let (stem, rest) = (&name[..at], &name[at + 6..]);
    let parts: u32 = rest.get(4..9)?.parse().ok()?;
    let mut sum = Bytes::ZERO;
    for part in 1..=parts {
        let file = path.with_file_name(format!("{stem}-{part:05}{rest}"));
        sum += Bytes(file.metadata().ok()?.len());
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_files_directories_and_parts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, n: usize| {
            let path = dir.path().join(name);
            std::fs::write(&path, vec![0; n]).unwrap();
            path
        };
        let single = write("a.gguf", 10);
        assert_eq!(size(&Weights::Path(single)), Some(Bytes(10)));
        write("config.json", 99);
        write("m-00002-of-00002.safetensors", 5);
        write("m-00001-of-00002.safetensors", 7);
        assert_eq!(size(&Weights::Path(dir.path().into())), Some(Bytes(22)));
        write("g-00002-of-00002.gguf", 3);
        let first = write("g-00001-of-00002.gguf", 4);
        assert_eq!(size(&Weights::Path(first)), Some(Bytes(7)));
    }

    #[test]
    fn what_cannot_be_seen_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(size(&Weights::Path(dir.path().into())), None, "no weights in it");
        assert_eq!(size(&Weights::Path("/nonexistent/x".into())), None);
        assert_eq!(size(&Weights::Builtin), None);
    }
}
