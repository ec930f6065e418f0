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
use super::types::{Config, Defaults};

/// The largest configuration file; nobody writes more by hand.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Directories that hold configuration, the most important first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs(pub Vec<PathBuf>);

impl Dirs {
    /// Of the system service: the admin's, the running system's, the vendor's.
    #[must_use]
    pub fn system() -> Self {
        Self(vec!["/etc/hostler".into(), "/run/hostler".into(), "/usr/lib/hostler".into()])
    }

    /// Of a desktop user's service: the user's own, the admin's for all users, the vendor's for all users.
    /// `config_home` is `$XDG_CONFIG_HOME`. Nothing below `/run`, whose directory is the system service's alone.
    #[must_use]
    pub fn user(config_home: &Path) -> Self {
        Self(vec![
            config_home.join("hostler"),
            "/etc/hostler/user".into(),
            "/usr/lib/hostler/user".into(),
        ])
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
            dirs.0.iter().map(|d| d.join("hostler.toml").display().to_string()).collect();
        let message = format!("there is no configuration; write one of {}", places.join(", "));
        let error = ConfigError { path: None, position: None, key: None, message };
        return Err(ConfigErrors::new(vec![error]));
    }
    parse(&sources, defaults)
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
    parse(&[source], defaults)
}

/// All sources in `dirs` below `root`, in the order in which they apply. Their paths are those seen from the root.
#[must_use]
pub fn read(root: &Path, dirs: &Dirs) -> Vec<Source> {
    let place = Place { root };
    let mut sources = Vec::new();
    for dir in &dirs.0 {
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
        for dir in &dirs.0 {
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
