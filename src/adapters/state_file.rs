//! One small file that survives crashes, power cuts and bad disks: the newest generation and the one before it.
//!
//! ```text
//!   DIR/NAME               the newest generation, whole or absent
//!   DIR/NAME.1             the one before it
//!   DIR/NAME.corrupt-N     what was found damaged, for people to look at; the newest few are kept
//!   DIR/.NAME.XXXXXX.tmp   a save that is under way, or one that was cut off (swept by the next load)
//! ```
//! Purpose: the disk under what the daemon learned. Owner: the composition root makes one for each file; one writer at a time.
//! Invariants: a reader sees a whole generation or none, never a mix; from the first save on, `NAME` or `NAME.1` is there at
//! every moment; no state of the disk fails a load. What the bytes mean, and whether they are intact, is the caller's to
//! say. Calls block: use a thread that may.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::supervisor::ports::{PortFuture, Shelf};

/// Damaged files that are kept, current and previous together.
pub const KEPT_ASIDE: usize = 4;
/// A file that is larger was not written by [`StateFile::save`]; reading it whole could exhaust memory.
pub const SIZE_MAX: u64 = 64 << 20;

/// A file of that sort. See the module.
#[derive(Clone, Debug)]
pub struct StateFile {
    dir: PathBuf,
    name: String,
    /// How many saves were asked for through [`Shelf`].
    asked: Arc<AtomicU64>,
    /// The newest of them that was begun. Held while one is under way.
    begun: Arc<Mutex<u64>>,
}

/// What [`StateFile::load`] found. The texts are for people: what happened to which file, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded<T> {
    /// The newest generation.
    Current(T),
    /// The one before it, and why.
    Previous(T, String),
    /// Nothing to go on from: `None` on the very first start, else why.
    Fresh(Option<String>),
}

impl<T> Loaded<T> {
    /// What was loaded, and what there is to tell.
    #[must_use]
    pub fn into_parts(self) -> (Option<T>, Option<String>) {
        match self {
            Self::Current(value) => (Some(value), None),
            Self::Previous(value, why) => (Some(value), Some(why)),
            Self::Fresh(why) => (None, why),
        }
    }
}

/// Why a generation could not be saved. The one before it is still there.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {source}{}; an intact generation stays on disk", .path.display(), fix(.source))]
pub struct SaveError {
    /// The step, as a verb.
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// What a person can do about an error of the directory; empty where we know nothing better than the error itself.
fn fix(err: &io::Error) -> &'static str {
    let kind = err.kind();
    if matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        " (free some space there)"
    } else if matches!(kind, ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) {
        " (the directory has to be writable for the service's user: StateDirectory= of the unit does that)"
    } else if kind == ErrorKind::NotFound {
        " (the directory has to exist: StateDirectory= of the unit makes it)"
    } else {
        ""
    }
}

impl Shelf for StateFile {
    fn save(&self, bytes: Vec<u8>) -> PortFuture<'_, Result<(), String>> {
        let file = self.clone();
        let nth = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        Box::pin(async move {
            let saved = tokio::task::spawn_blocking(move || file.save_nth(nth, &bytes)).await;
            saved.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
        })
    }
}

/// One generation as it was found.
enum Found<T> {
    Missing,
    Good(T),
    Bad(String),
}

impl StateFile {
    /// The file `name` in `dir`, which has to exist by the first save. Touches nothing.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        let (asked, begun) = Default::default();
        Self { dir: dir.into(), name: name.into(), asked, begun }
    }

    /// Where the newest generation is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// Where the generation before it is.
    #[must_use]
    pub fn previous_path(&self) -> PathBuf {
        self.dir.join(format!("{}.1", self.name))
    }

    /// Saves what was asked for as the `nth`, unless something newer was begun meanwhile: whoever asked may have stopped waiting for a
    /// disk that stalled, and have asked for something newer since.
    fn save_nth(&self, nth: u64, bytes: &[u8]) -> Result<(), SaveError> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if nth < *begun {
            return Ok(());
        }
        *begun = nth;
        self.save(bytes)
    }

    /// Makes `bytes` the newest generation, and the newest the previous one. When it returns, the bytes are on the disk.
    ///
    /// # Errors
    /// Where a step failed; the generation that was newest can still be loaded. The one error that may come after the new
    /// generation is in place is that of making its name durable.
    pub fn save(&self, bytes: &[u8]) -> Result<(), SaveError> {
        let at = |what, path: &Path| {
            let path = path.to_owned();
            move |source| SaveError { what, path, source }
        };
        let current = self.path();
        let mut temp = tempfile::Builder::new()
            .prefix(&self.temp_prefix())
            .suffix(".tmp")
            .tempfile_in(&self.dir)
            .map_err(at("make a file in", &self.dir))?;
        temp.write_all(bytes).map_err(at("write", temp.path()))?;
        // Before the rename: a name that is durable before its content would be an empty file after a power cut.
        temp.as_file().sync_all().map_err(at("write", temp.path()))?;
        self.keep_previous().map_err(at("keep the previous generation", &current))?;
        temp.persist(&current).map_err(|e| at("replace", &current)(e.error))?;
        let dir = File::open(&self.dir).and_then(|dir| dir.sync_all());
        dir.map_err(at("make durable the names in", &self.dir))
    }

    /// Gives the newest generation its second name. It keeps its first one, so that there is no moment without it.
    fn keep_previous(&self) -> io::Result<()> {
        let (current, previous) = (self.path(), self.previous_path());
        if !current.try_exists()? {
            // Lost, or set aside: an older generation is then the best there is.
            return Ok(());
        }
        match fs::remove_file(&previous) {
            Err(err) if err.kind() != ErrorKind::NotFound => return Err(err),
            Ok(()) | Err(_) => {}
        }
        match fs::hard_link(&current, &previous) {
            // A file system without hard links. A crash before the next step leaves the previous generation only.
            Err(err)
                if matches!(err.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) =>
            {
                fs::rename(&current, &previous)
            }
            done => done,
        }
    }

    /// Loads the newest generation that `check` accepts, and sets aside what it does not.
    ///
    /// `check` turns bytes into what they mean, or says, as a lower-case fragment, why they mean nothing. A file that cannot
    /// be read (other than by its content) stays where it is: the next start may have better luck. Not beside a save: it
    /// removes temporary files.
    pub fn load<T, E: fmt::Display>(&self, check: impl Fn(&[u8]) -> Result<T, E>) -> Loaded<T> {
        self.sweep();
        let (current, previous) = (self.path(), self.previous_path());
        let why = match self.examine(&current, &check) {
            Found::Good(value) => return Loaded::Current(value),
            Found::Missing => None,
            Found::Bad(why) => Some(why),
        };
        match (self.examine(&previous, &check), why) {
            (Found::Good(value), why) => {
                let why = why.unwrap_or_else(|| format!("{} is missing", current.display()));
                let used = "the generation before it is used, what was learned since is lost";
                Loaded::Previous(value, format!("{why}; {used}"))
            }
            (Found::Missing, None) => Loaded::Fresh(None),
            (Found::Missing, Some(why)) | (Found::Bad(why), None) => {
                Loaded::Fresh(Some(format!("{why}; there is no other generation, starting anew")))
            }
            (Found::Bad(second), Some(first)) => {
                Loaded::Fresh(Some(format!("{first}; {second}; starting anew")))
            }
        }
    }

    fn examine<T, E: fmt::Display>(
        &self,
        path: &Path,
        check: impl Fn(&[u8]) -> Result<T, E>,
    ) -> Found<T> {
        let shown = path.display();
        let bytes = match read(path) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == ErrorKind::NotFound => return Found::Missing,
            Err(err) => return Found::Bad(format!("cannot read {shown}: {err}")),
        };
        let why = match check(&bytes) {
            Ok(value) => return Found::Good(value),
            Err(why) => why,
        };
        Found::Bad(match self.set_aside(path) {
            Ok(aside) => format!("{shown} is unusable: {why}; it was set aside as {aside}"),
            Err(err) => format!("{shown} is unusable: {why}; it could not be set aside: {err}"),
        })
    }

    /// Renames a damaged file; the name it has now.
    fn set_aside(&self, path: &Path) -> io::Result<String> {
        let prefix = format!("{}.corrupt-", self.name);
        let mut numbers: Vec<u64> =
            self.names().filter_map(|name| name.strip_prefix(&prefix)?.parse().ok()).collect();
        numbers.sort_unstable();
        let next = numbers.last().map_or(1, |n| n.saturating_add(1));
        let name = format!("{prefix}{next}");
        fs::rename(path, self.dir.join(&name))?;
        let surplus = (numbers.len() + 1).saturating_sub(KEPT_ASIDE);
        for number in numbers.iter().take(surplus) {
            // One too many is no harm; the next time tries again.
            let _ = fs::remove_file(self.dir.join(format!("{prefix}{number}")));
        }
        Ok(name)
    }

    /// Removes what saves that were cut off left behind.
    fn sweep(&self) {
        let prefix = self.temp_prefix();
        for name in self.names().filter(|n| n.starts_with(&prefix) && n.ends_with(".tmp")) {
            // It costs its bytes and nothing else; the next load tries again.
            let _ = fs::remove_file(self.dir.join(name));
        }
    }

    fn temp_prefix(&self) -> String {
        format!(".{}.", self.name)
    }

    /// Names in the directory; none where it cannot be listed.
    fn names(&self) -> impl Iterator<Item = String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|entry| entry.file_name().into_string().ok())
    }
}

/// A regular file's bytes. Anything else (a FIFO would block) is an error.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file; remove it"));
    }
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(SIZE_MAX + 1).read_to_end(&mut bytes)?;
    if read as u64 > SIZE_MAX {
        return Err(io::Error::other(format!("it has more than {SIZE_MAX} bytes; remove it")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
