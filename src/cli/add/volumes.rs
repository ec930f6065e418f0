//! Volumes of a container, and what its paths mean on the host and in a container of Hostler's. PURE.
//!
//! Invariant: a volume whose place on the host is not known is still known by where the container has it: what is below it is never taken
//! for the image's own.

use std::path::{Path, PathBuf};

use crate::types::{EngineKind, files};

/// A directory or file of the host in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where the container has it; `/` where that is not known either.
    pub inside: PathBuf,
    /// Where the host has it, absolute; else why it is not known, to complete "which …".
    pub host: Result<PathBuf, String>,
    /// As it was written.
    pub said: String,
}

/// The volume that a path of the container is in: of several the innermost, as it hides the others.
pub fn around<'v>(volumes: impl Iterator<Item = &'v Volume>, path: &Path) -> Option<usize> {
    let fitting = volumes.enumerate().filter(|(_, volume)| path.starts_with(&volume.inside));
    fitting.max_by_key(|(_, volume)| volume.inside.components().count()).map(|(at, _)| at)
}

impl Volume {
    /// A path in it, seen from the host.
    ///
    /// # Errors
    /// Why that is not known, to complete "the path is …".
    pub fn on_host(&self, path: &Path) -> Result<PathBuf, String> {
        let host =
            self.host.as_ref().map_err(|why| format!("in {}, which {why}", self.said))?.clone();
        let below = path.strip_prefix(&self.inside).unwrap_or(Path::new(""));
        // Joining an empty path would leave a slash at the end.
        Ok(below.components().fold(host, |host, part| host.join(part)))
    }
}

/// Arguments that name files of the host, of which an engine sees none but its weights: those that come along with the weights are told
/// by their new path, the others are taken out, each as its flag and the path that it named. `host`: what a path is on the host, `None`
/// for one of the image, `Some(None)` where it is not known. A projector of llama.cpp has a key of its own, which `projector` is for.
pub fn carry(
    args: &mut Vec<String>,
    weights: Option<&Path>,
    engine: EngineKind,
    host: impl Fn(&str) -> Option<Option<PathBuf>>,
    projector: &mut Option<PathBuf>,
) -> Vec<(String, String)> {
    let mut kept: Vec<String> = Vec::new();
    let mut out = Vec::new();
    for word in args.drain(..) {
        // --flag=path, and NAME=path.
        let (before, value) = word.split_once('=').unwrap_or(("", &word));
        let Some(host) = host(value) else {
            kept.push(word);
            continue;
        };
        let new = host.as_ref().and_then(|host| files::inside(weights?, engine, host));
        if let Some(new) = new {
            let equals = if before.is_empty() { "" } else { "=" };
            kept.push(format!("{before}{equals}{}", new.display()));
            continue;
        }
        let flag = match before {
            flag if flag.starts_with('-') => flag.to_owned(),
            _ => kept.pop_if(|before| before.starts_with('-')).unwrap_or_else(|| "cmd".to_owned()),
        };
        if engine == EngineKind::Llamacpp
            && files::PROJECTOR_FLAGS.contains(&flag.as_str())
            && host.is_some()
        {
            *projector = host;
            continue;
        }
        out.push((flag, value.to_owned()));
    }
    *args = kept;
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(host: &str, inside: &str) -> Volume {
        let host = if host.is_empty() { Err("is odd".to_owned()) } else { Ok(host.into()) };
        Volume { inside: inside.into(), host, said: format!("V={inside}") }
    }

    #[test]
    fn the_innermost_volume_counts() {
        let volumes = [volume("/srv/data", "/data"), volume("/fast", "/data/m"), volume("", "/x")];
        let on_host = |path: &str| {
            let at = around(volumes.iter(), Path::new(path))?;
            Some(volumes[at].on_host(Path::new(path)).map(|path| path.display().to_string()))
        };
        let host = |path: &str| Some(Ok(path.to_owned()));
        assert_eq!(on_host("/data/m/a.gguf"), host("/fast/a.gguf"));
        assert_eq!(on_host("/data/a.gguf"), host("/srv/data/a.gguf"));
        assert_eq!(on_host("/data"), host("/srv/data"));
        assert_eq!(on_host("/x/a.gguf"), Some(Err("in V=/x, which is odd".to_owned())));
        assert_eq!(on_host("/own/a.gguf"), None);
    }

    #[test]
    fn arguments_that_name_files_of_the_host() {
        let volumes = [volume("/srv/m", "/m"), volume("", "/x")];
        let host = |value: &str| {
            let at = around(volumes.iter(), Path::new(value))?;
            Some(volumes[at].on_host(Path::new(value)).ok())
        };
        let carried = |words: &str, weights: &str, engine| {
            let mut args: Vec<String> = words.split(' ').map(str::to_owned).collect();
            let mut projector = None;
            let out = carry(&mut args, Some(Path::new(weights)), engine, host, &mut projector);
            let flags: Vec<String> = out.into_iter().map(|(flag, _)| flag).collect();
            (args.join(" "), flags.join(" "), projector)
        };
        let words =
            "-ngl 9 --mmproj /m/p.gguf --lora=/m/l.gguf --grammar-file /x/g -b 8 --own /o/f";
        let file = carried(words, "/srv/m/a.gguf", EngineKind::Llamacpp);
        assert_eq!(file.0, "-ngl 9 -b 8 --own /o/f", "one file comes alone");
        assert_eq!(file.1, "--lora --grammar-file");
        assert_eq!(file.2, Some("/srv/m/p.gguf".into()), "it has a key of its own");
        let unknown = carried("--mmproj /x/p.gguf", "/srv/m/a.gguf", EngineKind::Llamacpp);
        assert_eq!((unknown.1.as_str(), unknown.2), ("--mmproj", None));
        let words = "--chat-template /m/q/t.jinja --lora-modules a=/m/q/a b=/m/b";
        let directory = carried(words, "/srv/m/q", EngineKind::Vllm);
        assert_eq!(directory.0, "--chat-template /models/q/t.jinja --lora-modules a=/models/q/a");
        assert_eq!(directory.1, "cmd");
    }
}
