//! A change that a command makes to the configuration's files.
//!
//! Purpose: `add` and `remove` leave files that the daemon takes, or leave them as they were: what one daemon refuses to reload, the next
//! refuses to start with. Owner: those two commands. Invariants: no file is touched before the whole configuration was checked as the
//! daemon will, its file of keys included; what the daemon refuses all the same, for reasons that no file shows, is put back, and so is
//! what it has not answered when somebody who interrupts the command waits no longer.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempPath;

use super::Context;
use super::exit::{Exit, Failure, Outcome};
use super::reload;
use super::signals::{self, Held};
use crate::config::{self, Config, ConfigErrors, KeySource, Source, SourceKind};
use crate::daemon::Options;

/// How long the daemon's answer is waited for after an interruption.
const GRACE: Duration = Duration::from_secs(10);

/// Checks files that are to be, as the daemon will. What it will make of them.
///
/// # Errors
/// All that is wrong with them.
pub fn check(options: &Options, sources: &[Source]) -> Result<Config, ConfigErrors> {
    let mut config = config::parse(sources, &options.defaults())?;
    // A credential is handed to the service alone, and so may a file be.
    if matches!(config.auth, Some(KeySource::File(_))) && options.closed_keys(&config).is_none() {
        config::load_keys(Path::new("/"), None, &mut config)?;
    }
    Ok(config)
}

/// The sources as they are with a new file of `models.d` in the first directory, which hides those of its name in the later ones.
pub fn with_model(mut sources: Vec<Source>, path: &Path, text: &str) -> Vec<Source> {
    let hidden = |source: &Source| {
        let model = source.kind == SourceKind::Model;
        model && Path::new(&source.path).file_name() == path.file_name()
    };
    sources.retain(|source| !hidden(source));
    sources.push(Source::model(path.display().to_string(), text));
    sources
}

/// What is at a path before it is changed.
#[derive(Debug)]
pub struct Before {
    path: PathBuf,
    /// A second, hidden name of the file, which goes with this; `None`: there is no file. A name and, where that can be, no copy: whose it
    /// is and who may read it, or that it is a link, stays with it.
    kept: Option<TempPath>,
    /// No signal ends the command between the change and what becomes of it.
    held: Held,
    interrupted: bool,
}

impl Before {
    /// Holds on to it, and to signals.
    ///
    /// # Errors
    /// Where it can neither be given a second name nor be copied.
    pub async fn of(path: &Path) -> io::Result<Self> {
        let held = signals::hold();
        // Signals are listened for from a program's first wait on; until then the kernel ends it by them.
        tokio::task::yield_now().await;
        let dir = path.parent().unwrap_or(Path::new("."));
        let named = tempfile::Builder::new()
            .prefix(".hostler-")
            .make_in(dir, |kept| fs::hard_link(path, kept));
        let kept = match named {
            Ok(named) => Some(named.into_temp_path()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => None,
            // A filesystem without links, or another user's file (fs.protected_hardlinks).
            Err(_) => Some(copy(path, dir)?),
        };
        Ok(Self { path: path.to_owned(), kept, held, interrupted: false })
    }

    /// The end of some work; `None`: somebody interrupts the command, and either does so again or has waited for [`GRACE`].
    async fn unless_given_up<T>(
        &mut self,
        context: &Context,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::pin!(work);
        if !self.interrupted {
            tokio::select! {
                done = &mut work => return Some(done),
                () = self.held.interrupted() => self.interrupted = true,
            }
            context.out.say("interrupted; waiting for the daemon's answer");
        }
        tokio::select! {
            done = &mut work => Some(done),
            () = tokio::time::sleep(GRACE) => None,
            () = self.held.interrupted() => None,
        }
    }

    /// Makes it as it was. Why, with what to do and what was done.
    fn put_back(&mut self, why: Failure, fix: &str) -> Failure {
        let done = match self.kept.take() {
            Some(kept) => {
                kept.persist(&self.path).map(|()| "is as it was").map_err(|err| err.error)
            }
            None => fs::remove_file(&self.path).map(|()| "was removed again"),
        };
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let synced = done.and_then(|done| fs::File::open(dir)?.sync_all().map(|()| done));
        let path = self.path.display();
        why.fix(match synced {
            Ok(done) => format!("{fix}; {path} {done}"),
            Err(err) => format!(
                "{path} could not be made as it was ({err}): do that, or the next start of hostler fails"
            ),
        })
    }
}

/// A copy of a file, beside it: as like it as the directory allows.
fn copy(path: &Path, dir: &Path) -> io::Result<TempPath> {
    let mut beside = tempfile::Builder::new();
    beside.prefix(".hostler-");
    if let Ok(target) = fs::read_link(path) {
        return Ok(beside.make_in(dir, |kept| symlink(&target, kept))?.into_temp_path());
    }
    let mut file = fs::File::open(path)?;
    let was = file.metadata()?;
    let mut kept = beside.tempfile_in(dir)?;
    io::copy(&mut file, &mut kept)?;
    // Only root gives files away.
    let _ = fchown(kept.as_file(), Some(was.uid()), Some(was.gid()));
    kept.as_file().set_permissions(fs::Permissions::from_mode(was.mode() & 0o777))?;
    kept.as_file().sync_all()?;
    Ok(kept.into_temp_path())
}

/// What became of a changed file.
#[derive(Debug)]
pub enum Applied {
    /// The daemon has taken it.
    Now,
    /// It does when it is there. Why it cannot be asked now, and what to do about that.
    Later(Failure),
}

/// Has the daemon apply a changed file.
///
/// # Errors
/// The daemon's; where it says that the configuration is wrong, the file is as it was `before`. [`Exit::Interrupted`], once it is known
/// what became of the file.
pub async fn apply(context: &Context, mut before: Before) -> Outcome<Applied> {
    let asked = async {
        let bus = context.bus().await?;
        let answer = reload::apply(context, &bus).await;
        Ok((bus, answer))
    };
    let ended = match before.unless_given_up(context, asked).await {
        Some(Err(absent)) => Ok(Applied::Later(absent)),
        Some(Ok((_, Ok(_)))) => Ok(Applied::Now),
        Some(Ok((bus, Err(refused)))) if refused.exit == Exit::Config => {
            let refused = before.put_back(refused, "correct that first");
            // Its status speaks of a reload that failed until one succeeds. This one is for that alone.
            before.unless_given_up(context, reload::ask(&bus)).await;
            Err(refused)
        }
        Some(Ok((_, Err(failure)))) => Err(failure),
        None => {
            let failure = Failure::new(Exit::Interrupted, "the daemon has not answered");
            Err(before.put_back(failure, "hostler reload, when it does"))
        }
    };
    if !before.interrupted {
        return ended;
    }
    let mut failure = ended.err().unwrap_or_else(|| {
        let message = format!("interrupted; {} stays changed", before.path.display());
        Failure::new(Exit::Interrupted, message)
    });
    failure.exit = Exit::Interrupted;
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_hides_those_of_its_name() {
        let model = |path: &str| Source::model(path, "");
        let sources = vec![
            Source::settings("/etc/hostler/hostler.toml.d/small.toml", ""),
            model("/usr/lib/hostler/models.d/small.toml"),
            model("/usr/lib/hostler/models.d/large.toml"),
        ];
        let with = with_model(sources, Path::new("/etc/hostler/models.d/small.toml"), "new");
        let paths: Vec<&str> = with.iter().map(|source| source.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "/etc/hostler/hostler.toml.d/small.toml",
                "/usr/lib/hostler/models.d/large.toml",
                "/etc/hostler/models.d/small.toml"
            ]
        );
    }

    #[test]
    fn a_copy_is_like_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.toml");
        fs::write(&path, "text").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let root = rustix::process::geteuid().is_root();
        if root {
            std::os::unix::fs::chown(&path, Some(7), Some(9)).unwrap();
        }
        let kept = copy(&path, dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&kept).unwrap(), "text");
        let is = fs::metadata(&kept).unwrap();
        assert_eq!(is.mode() & 0o777, 0o640);
        assert!(!root || (is.uid(), is.gid()) == (7, 9), "{is:?}");
        let link = dir.path().join("link.toml");
        symlink("/dev/null", &link).unwrap();
        let kept_link = copy(&link, dir.path()).unwrap();
        assert_eq!(fs::read_link(&kept_link).unwrap(), Path::new("/dev/null"));
        drop((kept, kept_link));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "none stays");
    }
}
