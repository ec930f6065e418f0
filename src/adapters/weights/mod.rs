//! What a model's files say about the memory it will need, before it was ever measured.
//!
//! Purpose: find the files under a model's weights and read their headers into an [`Anatomy`], from which
//! `plan::estimate` reckons. Owner: the composition root asks once per configuration, before the supervisor starts, because
//! it blocks. The formats ([`gguf`], [`safetensors`], [`hf_config`]) are pure: bytes in, numbers out; this module alone
//! opens files. Invariants: only regular files are opened, only their beginnings are read, within a budget; what cannot
//! be seen (the service's sandbox hides `/home`) is a reason for people, not size 0. Symbolic links are followed, as the
//! caches of model hubs consist of them; the kernel bounds their number.

mod gguf;
mod hf_config;
mod safetensors;

use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::types::{Anatomy, Bytes, CacheShape, Weights, files, one_line, sandbox};
use gguf::GgufError;

/// How much of a GGUF file is read, in steps: the keys of the shape come before the vocabulary as a rule, but need not.
const GGUF_STEPS: [u64; 3] = [1 << 20, 16 << 20, 64 << 20];
/// The largest list of a model's safetensors files that is read; those of 700 GB models have 10 MB.
const INDEX_MAX: u64 = 64 << 20;
/// Headers of safetensors files that are read of one model, together; further files count with their size on disk.
const HEADERS_MAX: u64 = 64 << 20;
/// Files looked at in one directory.
const ENTRIES_MAX: usize = 10_000;

/// Reads a model's files. What it says of them is one line of plain text, whatever the files and their names hold.
///
/// # Errors
/// With the reason, as a fragment for people, where not even the weights' size, or the projector's, can be told from here.
pub fn look(weights: &Weights, projector: Option<&Path>) -> Result<Anatomy, String> {
    let found = read(weights, projector).map_err(one_line)?;
    Ok(Anatomy { source: one_line(found.source), ..found })
}

fn read(weights: &Weights, projector: Option<&Path>) -> Result<Anatomy, String> {
    let found = match weights {
        Weights::Path(path) => at(path),
        Weights::Image { .. } => Err("its weights are in an image, which only podman opens".into()),
        Weights::Builtin => Err("its weights are in the engine's image or named by args".into()),
    }?;
    let projector = projector.map_or(Ok(Bytes::ZERO), |path| stat(path).map(|m| Bytes(m.len())))?;
    Ok(Anatomy { projector, ..found })
}

fn at(path: &Path) -> Result<Anatomy, String> {
    let meta = stat(path)?;
    if meta.is_dir() {
        return directory(path);
    }
    if !meta.is_file() {
        return Err(format!("{} is neither a file nor a directory", path.display()));
    }
    match ending(path) {
        "safetensors" => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            tensors(parent, &[path.to_path_buf()])
        }
        "gguf" => gguf_files(path),
        _ => Ok(bare(Bytes(meta.len()), path)),
    }
}

fn directory(path: &Path) -> Result<Anatomy, String> {
    let entries = std::fs::read_dir(path).map_err(|err| cannot("list", path, &err))?;
    let mut files: Vec<PathBuf> =
        entries.filter_map(Result::ok).take(ENTRIES_MAX).map(|entry| entry.path()).collect();
    files.sort();
    let of = |kinds: &[&str]| -> Vec<PathBuf> {
        files.iter().filter(|file| kinds.contains(&ending(file))).cloned().collect()
    };
    let found = of(&["safetensors"]);
    if !found.is_empty() {
        return tensors(path, &listed(path, found));
    }
    // Several quantisations of one model may lie side by side; the arguments choose, so the largest counts.
    let found = of(&["gguf"])
        .into_iter()
        .filter(|file| files::part(file).is_none_or(|part| part.number == 1));
    let largest = found.filter_map(|file| gguf_files(&file).ok()).max_by_key(|a| a.weights);
    if let Some(largest) = largest {
        return Ok(largest);
    }
    let sum: Bytes =
        of(&["bin", "pt"]).iter().filter_map(|f| f.metadata().ok()).map(|m| Bytes(m.len())).sum();
    if sum == Bytes::ZERO {
        return Err(format!("{} holds no weights that are known", path.display()));
    }
    Ok(described(sum, path, format!("sizes of files in {}", path.display()), None))
}

/// A GGUF file or, where it is the first of several, all of them.
fn gguf_files(path: &Path) -> Result<Anatomy, String> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let mut weights = Bytes::ZERO;
    for part in gguf::parts(name).unwrap_or_else(|| vec![name.to_owned()]) {
        weights += Bytes(stat(&path.with_file_name(part))?.len());
    }
    let source = format!("the header of {}", path.display());
    Ok(match gguf_shape(path) {
        Ok(shape) => Anatomy { weights, projector: Bytes::ZERO, cache: Some(shape), source },
        Err(why) => Anatomy {
            weights,
            projector: Bytes::ZERO,
            cache: None,
            source: format!("{source} ({why})"),
        },
    })
}

fn gguf_shape(path: &Path) -> Result<CacheShape, String> {
    let mut file = open(path)?;
    let mut bytes = Vec::new();
    for step in GGUF_STEPS {
        let more = step.saturating_sub(bytes.len() as u64);
        let read = file.by_ref().take(more).read_to_end(&mut bytes);
        let read = read.map_err(|err| cannot("read", path, &err))?;
        match gguf::shape(&bytes) {
            // Unless this was the whole file, the answer may lie further on.
            Err(GgufError::Truncated) if read as u64 == more => {}
            other => return other.map_err(|err| err.to_string()),
        }
    }
    Err("its header is larger than 64 MiB".to_owned())
}

/// Safetensors files, with the `config.json` beside them.
fn tensors(dir: &Path, files: &[PathBuf]) -> Result<Anatomy, String> {
    let (mut weights, mut element, mut left) = (Bytes::ZERO, None, HEADERS_MAX);
    let mut short = None;
    for file in files {
        let size = Bytes(stat(file)?.len());
        match header(file, &mut left) {
            Ok((length, header)) => {
                weights += header.bytes;
                element = element.max(header.element_bytes);
                // An interrupted download: the engine will say so too, but only after minutes.
                if header.end + Bytes(length) > size {
                    short = short.or(Some(file));
                }
            }
            Err(_) => weights += size,
        }
    }
    let source = match short {
        Some(file) => format!("{}, which is shorter than its header says", file.display()),
        None => format!("{} safetensors files in {}", files.len(), dir.display()),
    };
    if weights == Bytes::ZERO {
        return Err(format!("{source}: they are empty"));
    }
    Ok(described(weights, dir, source, element))
}

/// The bytes before the data, and what they say.
fn header(path: &Path, left: &mut u64) -> Result<(u64, safetensors::Tensors), String> {
    let mut file = open(path)?;
    let mut first = [0; 8];
    file.read_exact(&mut first).map_err(|err| cannot("read", path, &err))?;
    let length = safetensors::header_length(first)?;
    *left = left.checked_sub(length).ok_or("too many headers")?;
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(|err| cannot("read", path, &err))?;
    Ok((length.saturating_add(8), safetensors::parse(&header)?))
}

/// Those files that the engine will load. Some models come twice, as `model-*` and as `consolidated*`.
fn listed(dir: &Path, found: Vec<PathBuf>) -> Vec<PathBuf> {
    let name = |file: &PathBuf| file.file_name().map(|n| n.to_string_lossy().into_owned());
    let index = small(&dir.join("model.safetensors.index.json"), INDEX_MAX).ok();
    let index = index.and_then(|text| serde_json::from_slice::<Index>(&text).ok());
    let keep: Vec<PathBuf> = match index {
        Some(Index { weight_map }) => {
            let names: BTreeSet<String> = weight_map.into_values().collect();
            found.iter().filter(|f| name(f).is_some_and(|n| names.contains(&n))).cloned().collect()
        }
        None => {
            let twice = |f: &&PathBuf| !name(f).is_some_and(|n| n.starts_with("consolidated"));
            found.iter().filter(twice).cloned().collect()
        }
    };
    if keep.is_empty() { found } else { keep }
}

/// `model.safetensors.index.json`: which tensor is in which file.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// Weights in a directory with the shape from its `config.json`.
fn described(weights: Bytes, dir: &Path, source: String, element: Option<u32>) -> Anatomy {
    let read = small(&dir.join("config.json"), hf_config::SIZE_MAX);
    let (cache, source) = match read.and_then(|text| hf_config::shape(&text)) {
        Ok(mut shape) => {
            shape.element_bytes = shape.element_bytes.or(element);
            (Some(shape), format!("{source} and config.json"))
        }
        Err(why) => (None, format!("{source} (config.json {why})")),
    };
    Anatomy { weights, projector: Bytes::ZERO, cache, source }
}

fn bare(weights: Bytes, path: &Path) -> Anatomy {
    let source = format!("the size of {}, whose format is not known", path.display());
    Anatomy { weights, projector: Bytes::ZERO, cache: None, source }
}

/// A file as a whole, up to a limit.
fn small(path: &Path, max: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(max + 1).read_to_end(&mut bytes);
    read.map_err(|err| cannot("read", path, &err))?;
    if bytes.len() as u64 > max {
        return Err(format!("is larger than {}", Bytes(max)));
    }
    Ok(bytes)
}

/// Opens what is a regular file; a pipe in its place must not hold up the daemon.
fn open(path: &Path) -> Result<File, String> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path);
    let file = file.map_err(|err| cannot("open", path, &err))?;
    match file.metadata() {
        Ok(meta) if meta.is_file() => Ok(file),
        Ok(_) => Err(format!("{} is no regular file", path.display())),
        Err(err) => Err(cannot("see", path, &err)),
    }
}

fn stat(path: &Path) -> Result<Metadata, String> {
    path.metadata().map_err(|err| cannot("see", path, &err))
}

fn cannot(what: &str, path: &Path, err: &io::Error) -> String {
    format!("cannot {what} {}: {}", path.display(), sandbox::unread(path, err))
}

fn ending(path: &Path) -> &str {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
