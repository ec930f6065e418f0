//! A model's file in `models.d`: what goes into it, and how it gets there.
//!
//! Invariants: what is written was checked together with all other files before; it is there whole or not at all, and never in place
//! of another that nobody said may go.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use toml::Value;

use crate::cli::exit::{Exit, Failure, Outcome};

/// A model to be, as it will be written. What is `None` or empty is left to the defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Definition {
    /// The model's name.
    pub name: String,
    /// Keys and their values, in the order in which people read them.
    pub keys: Vec<(&'static str, Value)>,
    /// Lines of comment above.
    pub comments: Vec<String>,
}

impl Definition {
    /// Sets a key, or sets it anew.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        let value = value.into();
        match self.keys.iter_mut().find(|(k, _)| *k == key) {
            Some(there) => there.1 = value,
            None => self.keys.push((key, value)),
        }
    }

    /// A key's value.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// The texts of a list; empty if there is none.
    #[must_use]
    pub fn texts(&self, key: &str) -> Vec<String> {
        let list = self.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// The texts of a table; empty if there is none.
    #[must_use]
    pub fn pairs(&self, key: &str) -> BTreeMap<String, String> {
        let table = self.get(key).and_then(Value::as_table).into_iter().flatten();
        table.filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned()))).collect()
    }

    /// Sets a table of texts, unless it is empty.
    pub fn set_texts(&mut self, key: &'static str, texts: &BTreeMap<String, String>) {
        if !texts.is_empty() {
            let table: toml::Table =
                texts.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
            self.set(key, Value::Table(table));
        }
    }

    /// Sets a list of texts, unless it is empty.
    pub fn set_list(&mut self, key: &'static str, list: &[String]) {
        if !list.is_empty() {
            let list: Vec<Value> = list.iter().map(|text| Value::from(text.as_str())).collect();
            self.set(key, Value::Array(list));
        }
    }

    /// The text of the file at `path`. A name that is not the file's own is written into it.
    #[must_use]
    pub fn text(&self, path: &Path) -> String {
        let mut text = String::new();
        for line in &self.comments {
            // Some of it comes from elsewhere, and a line of its own would be a key.
            let _ = writeln!(text, "# {}", plain(line));
        }
        if path.file_name().is_none_or(|file| *file != *format!("{}.toml", self.name)) {
            let _ = writeln!(text, "name = {}", inline(&Value::from(self.name.as_str())));
        }
        text + &self.lines()
    }

    /// The same as a table `[models.NAME]` of a larger file.
    #[must_use]
    pub fn table(&self) -> String {
        format!("[models.{}]\n{}", key(&self.name), self.lines())
    }

    /// The keys, one a line.
    #[must_use]
    pub fn lines(&self) -> String {
        let mut text = String::new();
        for (key, value) in &self.keys {
            let _ = writeln!(text, "{key} = {}", inline(value));
        }
        text
    }
}

/// A value on one line.
fn inline(value: &Value) -> String {
    match value {
        Value::Table(table) => {
            let pairs: Vec<String> =
                table.iter().map(|(k, v)| format!("{} = {}", key(k), inline(v))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        Value::Array(list) => {
            let items: Vec<String> = list.iter().map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_) => value.to_string(),
    }
}

fn key(text: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if !text.is_empty() && text.chars().all(bare) {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

/// The file's name for a model: its own, with what a file name cannot or should not hold as `-`.
#[must_use]
pub fn file_name(model: &str) -> String {
    format!("{}.toml", safe(model))
}

fn safe(model: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    model.chars().map(safe).collect()
}

/// Where a model's file is in `dir`, and whether there is one. Two models whose names become the same file's have one each: the later one's
/// has a number.
#[must_use]
pub fn place(dir: &Path, model: &str) -> (PathBuf, bool) {
    let files = model_files(dir);
    if let Some(own) = files.iter().find(|file| file.name == model) {
        return (own.path.clone(), true);
    }
    let numbered = (2..).map(|number| format!("{}-{number}.toml", safe(model)));
    let mut names = std::iter::once(file_name(model)).chain(numbered);
    // Also where there is a file that says nothing of a model, as one that masks another.
    let free = names.find(|name| fs::symlink_metadata(dir.join(name)).is_err());
    (dir.join(free.unwrap_or_default()), false)
}

/// A file of `models.d` and the model that it defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    /// Where.
    pub path: PathBuf,
    /// The model's name.
    pub name: String,
}

/// The files of a directory. Those that cannot be read or are no TOML go by their file name.
#[must_use]
pub fn model_files(dir: &Path) -> Vec<ModelFile> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let file = |entry: fs::DirEntry| {
        let path = entry.path();
        let name = path.file_name()?.to_str()?;
        let stem = name.strip_suffix(".toml").filter(|_| !name.starts_with('.'))?.to_owned();
        let table: Option<toml::Table> =
            fs::read_to_string(&path).ok().and_then(|text| text.parse().ok());
        let said = table.and_then(|t| t.get("name").and_then(Value::as_str).map(str::to_owned));
        Some(ModelFile { name: said.unwrap_or(stem), path })
    };
    let mut files: Vec<ModelFile> = entries.filter_map(file).collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// Why a file is not there.
pub fn not_written(path: &Path, err: &std::io::Error) -> Failure {
    let denied = err.kind() == std::io::ErrorKind::PermissionDenied;
    let exit = if denied { Exit::Denied } else { Exit::Failed };
    let fix = if denied { "as root, or with --user for your own daemon" } else { "" };
    Failure::new(exit, format!("{} cannot be written: {err}", path.display())).fix(fix)
}

/// Makes the directories that are missing, for the daemon to look into, whatever the umask of who calls.
///
/// # Errors
/// The first that cannot be made.
pub fn make_dirs(dir: &Path) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_dirs(above)?;
    }
    match fs::create_dir(dir) {
        Ok(()) => {
            // Nothing else that somebody has put there since, such as a link.
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::open(dir, flags, Mode::empty())?;
            Ok(rustix::fs::fchmod(made, Mode::from_raw_mode(0o755))?)
        }
        Err(_) if dir.is_dir() => Ok(()),
        Err(err) => Err(err),
    }
}

/// Writes a file whole: beside it, to the disk, and then in its place. One that is replaced keeps its mode, and its owner and group where
/// that is allowed.
///
/// # Errors
/// [`Exit::Denied`] where that is not allowed.
pub fn write(path: &Path, text: &str) -> Outcome {
    let failed = |err: std::io::Error| not_written(path, &err);
    // A bare name has an empty parent.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dirs(dir).map_err(failed)?;
    let mut file = tempfile::Builder::new().prefix(".hostler-").tempfile_in(dir).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    let mode = match fs::metadata(path).ok().filter(fs::Metadata::is_file) {
        Some(old) => {
            let given = fchown(file.as_file(), Some(old.uid()), Some(old.gid()));
            // With another group the old mode may keep the daemon out; where all may read, it does not matter whose it is.
            if old.mode() & 0o004 == 0 {
                given.map_err(failed)?;
            }
            old.mode() & 0o777
        }
        // The daemon is another user.
        None => 0o644,
    };
    file.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|err| failed(err.error))?;
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// On one line, nothing but characters that can be seen.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_as_text() {
        let mut d = Definition { name: "org/m".into(), ..Definition::default() };
        d.comments.push("From a\ntest.".into());
        d.set("engine", "vllm");
        d.set("context", 4096);
        d.set_list("args", &["--x".into(), "a \"b\"\n".into()]);
        d.set_texts("env", &BTreeMap::from([("A".into(), "1".into()), ("B.C".into(), "2".into())]));
        d.set_texts("weights", &BTreeMap::new());
        d.set("engine", "llamacpp");
        let text = d.text(Path::new("/org-m.toml"));
        assert!(text.starts_with(
            "# From a test.\nname = \"org/m\"\nengine = \"llamacpp\"\ncontext = 4096\nargs = ["
        ));
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["args"][1].as_str(), Some("a \"b\"\n"));
        assert_eq!(table["env"]["B.C"].as_str(), Some("2"));
        assert!(d.table().starts_with("[models.\"org/m\"]\nengine = \"llamacpp\"\n"));
        let plain = Definition { name: "m".into(), ..Definition::default() };
        assert_eq!(plain.text(Path::new("/m.toml")), "");
        assert_eq!(plain.text(Path::new("/other.toml")), "name = \"m\"\n");
    }

    #[test]
    fn files_are_whole_and_found_by_their_models() {
        let dir = tempfile::tempdir().unwrap();
        let models = dir.path().join("models.d");
        write(&models.join(file_name("org/m")), "name = \"org/m\"\n").unwrap();
        write(&models.join("b.toml"), "no toml").unwrap();
        fs::write(models.join(".hidden.toml"), "").unwrap();
        let files = model_files(&models);
        let names: Vec<&str> = files.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["b", "org/m"]);
        assert_eq!(fs::metadata(&files[1].path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(&models).unwrap().count(), 3, "nothing temporary stays");
        assert_eq!(place(&models, "org/m"), (models.join("org-m.toml"), true));
        assert_eq!(place(&models, "org-m"), (models.join("org-m-2.toml"), false));
        write(&models.join("org-m-2.toml"), "name = \"org-m\"\n").unwrap();
        assert_eq!(place(&models, "org-m"), (models.join("org-m-2.toml"), true));
        assert_eq!(place(&models, "org:m"), (models.join("org-m-3.toml"), false));
        assert_eq!(place(&models, "new"), (models.join("new.toml"), false));
    }
}
