//! Packages of what is under test, built once and shared by all hosts of a run. Owner: the host that installs one.
//!
//! They lie beside the binaries (`BINDIR/packages/KEY`), where KEY stands for the size and time of everything that goes into them and
//! for the commit, whose time they have, so that a change makes new ones; old ones are removed then. The binaries in them are
//! stripped, and barely compressed.

use crate::error::IoContext;
use crate::{Error, Result, life, place};
use std::fs::Metadata;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What goes into a package, below the checkout.
const INPUTS: [&str; 10] = [
    "packaging",
    "units",
    "docs",
    "contrib/grafana",
    "contrib/prometheus",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.toml",
    "Cargo.lock",
];
const PROGRAMS: [&str; 2] = ["hostlerd", "hostler"];

/// Whose package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Debian's.
    Deb,
    /// Fedora's and others'.
    Rpm,
}

impl Format {
    /// The script that builds it, and the ending of its name.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Deb => ("packaging/deb.sh", "deb"),
            Self::Rpm => ("packaging/rpm.sh", "rpm"),
        }
    }
}

/// A package of the binaries in `bindir` and of the checkout, as of `version`; built unless it is there.
pub fn package(bindir: &Path, format: Format, version: &str) -> Result<PathBuf> {
    let bindir = &std::fs::canonicalize(bindir).doing("find", bindir)?;
    let all = bindir.join("packages");
    std::fs::create_dir_all(&all).doing("create", &all)?;
    let _alone = life::lock(&all.join(".lock"))?;
    let dir = all.join(key(bindir)?);
    if !dir.exists() {
        for old in std::fs::read_dir(&all).doing("list", &all)?.flatten() {
            if old.path().is_dir() {
                std::fs::remove_dir_all(old.path()).doing("remove", old.path())?;
            }
        }
    }
    let (script, ending) = format.names();
    let made = dir.join(format!("{version}.{ending}"));
    if made.exists() {
        return Ok(made);
    }
    let bin = stripped(bindir, &dir)?;
    let out = dir.join("new");
    std::fs::create_dir_all(&out).doing("create", &out)?;
    let mut command = Command::new(place::checkout().join(script));
    command
        .args([&bin, &out])
        .env("HOSTLER_VERSION", version)
        .env("HOSTLER_DEB_COMPRESSION", "-Zgzip -z1")
        .env("HOSTLER_RPM_COMPRESSION", "w1.gzdio");
    let built = PathBuf::from(run(&mut command, script)?.trim());
    std::fs::rename(&built, &made).doing("rename", &built)?;
    Ok(made)
}

/// The binaries without what a release does not have; symbols are for the packages to remove.
fn stripped(bindir: &Path, dir: &Path) -> Result<PathBuf> {
    let bin = dir.join("bin");
    if bin.exists() {
        return Ok(bin);
    }
    let new = dir.join("bin.new");
    std::fs::create_dir_all(&new).doing("create", &new)?;
    for program in PROGRAMS {
        let mut strip = Command::new("strip");
        run(
            strip.args(["--strip-debug", "-o"]).args([new.join(program), bindir.join(program)]),
            "strip",
        )?;
    }
    std::fs::rename(&new, &bin).doing("rename", &new)?;
    Ok(bin)
}

/// Stands for the state of all that goes into a package.
fn key(bindir: &Path) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    let mut commit = Command::new("git");
    commit.arg("-C").arg(place::checkout()).args(["log", "-1", "--format=%ct"]);
    run(&mut commit, "git log")?.hash(&mut hasher);
    std::env::var_os("SOURCE_DATE_EPOCH").hash(&mut hasher);
    let mut left: Vec<PathBuf> = INPUTS.iter().map(|name| place::checkout().join(name)).collect();
    left.extend(PROGRAMS.map(|name| bindir.join(name)));
    while let Some(path) = left.pop() {
        let about = std::fs::metadata(&path).doing("look at", &path)?;
        path.hash(&mut hasher);
        if about.is_dir() {
            let entries = std::fs::read_dir(&path).doing("list", &path)?.flatten();
            let mut below: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            below.sort();
            left.append(&mut below);
        } else {
            state(&about).hash(&mut hasher);
        }
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn state(about: &Metadata) -> (u64, i64, i64, u32) {
    (about.len(), about.mtime(), about.mtime_nsec(), about.mode())
}

fn run(command: &mut Command, what: &str) -> Result<String> {
    let ended =
        command.output().map_err(|source| Error::Spawn { program: what.to_owned(), source })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&ended.stdout), text(&ended.stderr));
    if ended.status.success() {
        return Ok(stdout);
    }
    Err(Error::Command { what: what.to_owned(), status: ended.status, stdout, stderr })
}
