//! Which files make up the configuration, and their texts.
//!
//! Purpose: systemd's precedence below a given root. `hostler.toml` comes from the first directory that has one;
//! drop-ins `hostler.toml.d/*.toml` and models `models.d/*.toml` come from all directories, where a file masks files of the
//! same name in later directories, and a file that is empty or a link to `/dev/null` masks without adding anything.
//! Drop-ins apply in the order of their names. Owner: the daemon at start; blocking I/O, before any runtime exists.
//! All files are read before the first is parsed; one that cannot be read is an error like any other.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, ConfigErrors};
use super::parse::parse;
use super::source::{Source, SourceKind};
use super::traces::built;
use super::types::{Config, Defaults, KeySource};
use crate::types::Secret;

/// The largest configuration file; nobody writes more by hand.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Directories that hold configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// The most important first.
    pub all: Vec<PathBuf>,
    /// Those below which whoever asks may not look: they are left out.
    hidden: Vec<PathBuf>,
}

impl Dirs {
    /// Of the system service: the admin's, the running system's, the vendor's.
    #[must_use]
    pub fn system() -> Self {
        Self::of(vec!["/etc/hostler".into(), "/run/hostler".into(), "/usr/lib/hostler".into()])
    }

    /// Of a desktop user's service: the user's own, the admin's for all users, the vendor's for all users.
    /// `config_home` is `$XDG_CONFIG_HOME`. Nothing below `/run`, whose directory is the system service's alone.
    #[must_use]
    pub fn user(config_home: &Path) -> Self {
        Self::of(vec![
            config_home.join("hostler"),
            "/etc/hostler/user".into(),
            "/usr/lib/hostler/user".into(),
        ])
    }

    fn of(all: Vec<PathBuf>) -> Self {
        Self { all, hidden: Vec::new() }
    }

    /// The same for whoever checks by hand, who may be nobody that the daemon is: below `/run/hostler` only the service may look, and
    /// that is no fault of the files. A directory that is closed to the caller is left out, and is to be named to them; the first one is an
    /// error as ever.
    #[must_use]
    pub fn as_seen(mut self, root: &Path) -> Self {
        let place = Place { root };
        let closed = |dir: &&PathBuf| {
            let looked = place.on_disk(&dir.join("models.d")).symlink_metadata();
            looked.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        };
        self.hidden = self.all.iter().skip(1).filter(closed).cloned().collect();
        self
    }

    fn seen(&self) -> impl Iterator<Item = &PathBuf> {
        self.all.iter().filter(|dir| !self.hidden.contains(dir))
    }

    /// Directories that are left out.
    #[must_use]
    pub fn hidden(&self) -> &[PathBuf] {
        &self.hidden
    }
}

/// Reads and checks the configuration in `dirs` below `root`.
///
/// # Errors
/// All that is wrong, files that cannot be read included.
pub fn load(root: &Path, dirs: &Dirs, defaults: &Defaults) -> Result<Config, ConfigErrors> {
    let sources = read(root, dirs);
    if sources.is_empty() {
        let places: Vec<_> =
            dirs.all.iter().map(|d| d.join("hostler.toml").display().to_string()).collect();
        let message = format!("there is no configuration; write one of {}", places.join(", "));
        let error = ConfigError { path: None, position: None, key: None, message };
        return Err(ConfigErrors::new(vec![error]));
    }
    built(parse(&sources, defaults)?)
}

/// Reads and checks one settings file and nothing else, as `hostlerd --config FILE` does.
///
/// # Errors
/// All that is wrong; a file that cannot be read included.
pub fn load_file(path: &Path, defaults: &Defaults) -> Result<Config, ConfigErrors> {
    let source = Source {
        path: path.display().to_string(),
        kind: SourceKind::Settings,
        text: read_text(path),
    };
    built(parse(&[source], defaults)?)
}

/// Reads the keys that `config` names into it. `credentials` is `$CREDENTIALS_DIRECTORY`.
///
/// # Errors
/// All that is wrong with the file of keys.
pub fn load_keys(
    root: &Path,
    credentials: Option<&Path>,
    config: &mut Config,
) -> Result<(), ConfigErrors> {
    let (path, text) = match (&config.auth, credentials) {
        (None, _) => return Ok(()),
        (Some(KeySource::File(path)), _) => {
            (path.display().to_string(), read_text(&Place { root }.on_disk(path)))
        }
        (Some(KeySource::Credential(name)), Some(dir)) => {
            let path = dir.join(name);
            (path.display().to_string(), read_text(&path))
        }
        (Some(KeySource::Credential(name)), None) => {
            let why = format!(
                "systemd handed over no credentials; add LoadCredential={name}:/path to the unit"
            );
            (format!("credential {name}"), Err(why))
        }
    };
    let was_read = text.is_ok();
    let source = Source { path, kind: SourceKind::Settings, text };
    let keys = super::keys::keys(&source, config);
    config.keys = match &config.auth {
        Some(KeySource::Credential(name)) if was_read => keys.map_err(|errors| {
            // systemd handed a copy over, which nobody can correct.
            errors.each_with(&format!(
                "; this is the copy of the service's start: correct the file that LoadCredential={name}: names, then systemctl restart hostler"
            ))
        })?,
        Some(KeySource::Credential(_) | KeySource::File(_)) | None => keys?,
    };
    Ok(())
}

/// Reads the keys of external models into `config`. `credentials` is `$CREDENTIALS_DIRECTORY`.
///
/// # Errors
/// Each key that cannot be had, or is none.
pub fn load_external_keys(
    credentials: Option<&Path>,
    config: &mut Config,
) -> Result<(), ConfigErrors> {
    let mut errors = Vec::new();
    for (name, spec) in &config.externals {
        let Some(credential) = &spec.key_credential else { continue };
        let text = match credentials {
            Some(dir) => read_text(&dir.join(credential)),
            None => Err("systemd handed over no credentials".to_owned()),
        };
        let visible = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic());
        match text.map(|text| text.trim().to_owned()) {
            Ok(key) if visible(&key) => {
                drop(config.external_keys.insert(name.clone(), Secret(key)))
            }
            Ok(_) => {
                errors.push((name, credential, "it is no key of visible characters".to_owned()))
            }
            Err(why) => errors.push((name, credential, why)),
        }
    }
    let error = |(name, credential, why): &(&crate::types::ModelName, &String, String)| {
        ConfigError {
            path: None,
            position: None,
            key: Some(format!("models.{}.key_credential", super::tree::quote_key(name.as_str()))),
            message: format!(
                "the credential {credential} cannot be used: {why}; add LoadCredential={credential}:/path to the unit"
            ),
        }
    };
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ConfigErrors::new(errors.iter().map(error).collect()))
    }
}

/// All sources in `dirs` below `root`, in the order in which they apply. Their paths are those seen from the root.
#[must_use]
pub fn read(root: &Path, dirs: &Dirs) -> Vec<Source> {
    let place = Place { root };
    let mut sources = Vec::new();
    for dir in dirs.seen() {
        let path = dir.join("hostler.toml");
        // Only certain absence leads on to the next directory: settings that may not be read must not be replaced by a
        // vendor's. An empty file, or a link to /dev/null, is there and says nothing.
        let looked = place.on_disk(&path).symlink_metadata();
        if !looked.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            sources.push(place.source(&path, SourceKind::Settings));
            break;
        }
    }
    place.drop_ins(dirs, "hostler.toml.d", SourceKind::Settings, &mut sources);
    place.drop_ins(dirs, "models.d", SourceKind::Model, &mut sources);
    sources
}

struct Place<'r> {
    root: &'r Path,
}

impl Place<'_> {
    fn on_disk(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn source(&self, path: &Path, kind: SourceKind) -> Source {
        let text = read_text(&self.on_disk(path));
        Source { path: path.display().to_string(), kind, text }
    }

    fn drop_ins(&self, dirs: &Dirs, name: &str, kind: SourceKind, sources: &mut Vec<Source>) {
        let mut chosen: BTreeMap<String, PathBuf> = BTreeMap::new();
        for dir in dirs.seen() {
            let dir = dir.join(name);
            match names(&self.on_disk(&dir)) {
                Ok(names) => {
                    for name in names {
                        let path = dir.join(&name);
                        chosen.entry(name).or_insert(path);
                    }
                }
                Err(error) => {
                    let path = dir.display().to_string();
                    sources.push(Source { path, kind, text: Err(error.to_string()) });
                }
            }
        }
        let files = chosen.values().map(|path| self.source(path, kind));
        // An empty text adds nothing in any case; a model's would be taken for a model without an engine.
        sources.extend(files.filter(|source| source.text.as_deref() != Ok("")));
    }
}

/// Names of the `*.toml` files in a directory; none where there is no such directory. Hidden files are left out, as
/// editors keep their own there.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".toml") && !name.starts_with('.') {
            names.push(name);
        }
    }
    Ok(names)
}

/// What opens a file or a directory to the system's daemon, and to nobody else.
#[must_use]
pub fn closed_fix(path: &str) -> String {
    let mode = if Path::new(path).is_dir() { "0750" } else { "0640" };
    format!(
        "the system's service reads it as the group hostler: chgrp hostler {path} && chmod {mode} {path}"
    )
}

fn read_text(path: &Path) -> Result<String, String> {
    // An empty text, which /dev/null would give too, but reading devices in general may block.
    if fs::read_link(path).is_ok_and(|target| target == Path::new("/dev/null")) {
        return Ok(String::new());
    }
    let data = fs::metadata(path).map_err(|error| error.to_string())?;
    if !data.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if data.len() > FILE_BYTES_MAX {
        return Err(format!("it has {} bytes; at most {FILE_BYTES_MAX} are read", data.len()));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        format!("it is not UTF-8 from byte {good} on; save it as UTF-8")
    })
}

#[cfg(test)]
mod tests;
