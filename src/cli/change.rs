//! A change that a command makes to the configuration's files.
//!
//! Purpose: `add` and `remove` leave files that the daemon takes, or leave them as they were: what one daemon refuses to reload, the next
//! refuses to start with. Owner: those two commands. Invariants: no file is touched before the whole configuration was checked as the
//! daemon will, its file of keys included; what the daemon refuses all the same, for reasons that no file shows, is put back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use super::Context;
use super::exit::{Exit, Failure, Outcome};
use super::reload;
use crate::config::{self, ConfigErrors, KeySource, Source};
use crate::daemon::Options;

/// Checks files that are to be, as the daemon will.
///
/// # Errors
/// All that is wrong with them.
pub fn check(options: &Options, sources: &[Source]) -> Result<(), ConfigErrors> {
    let mut config = config::parse(sources, &options.defaults())?;
    // A credential is handed to the service alone.
    if matches!(config.auth, Some(KeySource::File(_))) {
        config::load_keys(Path::new("/"), None, &mut config)?;
    }
    Ok(())
}

/// What is at a path before it is changed.
#[derive(Debug)]
pub struct Before {
    path: PathBuf,
    /// A second, hidden name of the file, which goes with this; `None`: there is no file. A name and no copy: whose it is and who may
    /// read it, or that it is a link, stays with it.
    kept: Option<TempPath>,
}

impl Before {
    /// Holds on to it.
    ///
    /// # Errors
    /// Where a second name cannot be made.
    pub fn of(path: &Path) -> io::Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let named = tempfile::Builder::new()
            .prefix(".hostler-")
            .make_in(dir, |kept| fs::hard_link(path, kept));
        let kept = match named {
            Ok(named) => Some(named.into_temp_path()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => None,
            Err(err) => return Err(err),
        };
        Ok(Self { path: path.to_owned(), kept })
    }

    /// Makes it as it was. In words, what was done.
    ///
    /// # Errors
    /// The directory's.
    fn put_back(self) -> io::Result<&'static str> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let done = match self.kept {
            Some(kept) => kept.persist(&self.path).map(|()| "is as it was").map_err(|e| e.error)?,
            None => fs::remove_file(&self.path).map(|()| "was removed again")?,
        };
        fs::File::open(dir)?.sync_all()?;
        Ok(done)
    }
}

/// Has the daemon apply a changed file. Whether one runs.
///
/// # Errors
/// The daemon's; where it says that the configuration is wrong, the file is as it was `before`.
pub async fn apply(context: &Context, before: Before) -> Outcome<bool> {
    let Ok(bus) = context.bus().await else { return Ok(false) };
    let refused = match reload::apply(context, &bus).await {
        Ok(_) => return Ok(true),
        Err(failure) if failure.exit == Exit::Config => failure,
        Err(failure) => return Err(failure),
    };
    let path = before.path.display().to_string();
    let fix = match before.put_back() {
        Ok(done) => format!("correct that first; {path} {done}"),
        Err(err) => format!(
            "{path} could not be made as it was ({err}): do that, or the next start of hostler fails"
        ),
    };
    // Its status speaks of a reload that failed until one succeeds. This one is for that alone.
    let _: Outcome<Vec<String>> = bus.call(&bus.manager, "Reload", &()).await;
    Err(Failure::new(refused.exit, refused.message).fix(fix))
}
