//! `packaging/release.sh` in a repository of its own: what it makes, and what it refuses.
//!
//! The repository is a small one with the files that the script reads; packages are given to it, and `make check` is left out or a
//! make file of the test's, because both have tests of their own.
#![expect(clippy::unwrap_used, reason = "a panic is how a test reports its failure")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CHANGELOG: &str = "# Changelog\n\nThe form is one. Nothing has been released yet.\n\n## [Unreleased]\n\n### Added\n\n* A thing.\n";

/// A repository with one commit on `main`, and packages beside it.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap() };
        let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
        for file in ["Cargo.toml", "Cargo.lock", ".gitignore", "packaging/release.sh"] {
            let to = scene.repo().join(file);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(tree.join(file), to).unwrap();
        }
        scene.write("CHANGELOG.md", CHANGELOG);
        // Whatever the tree's own version is by now.
        for (file, mark) in
            [("Cargo.toml", "\nversion = \""), ("Cargo.lock", "\nname = \"hostler\"\nversion = \"")]
        {
            let text = scene.read(file);
            let (before, after) = text.split_once(mark).unwrap();
            let after = after.split_once('"').unwrap().1;
            scene.write(file, &format!("{before}{mark}0.1.0\"{after}"));
        }
        // What is not given is built by make: here it fails, so that a test sees that it was asked.
        scene.write(
            "Makefile",
            "check deb rpm:\n\t@echo \"$@ was asked for\"; test -n \"$(FINE)\"\n",
        );
        scene.git(&["init", "--quiet", "--initial-branch", "main"]);
        scene.commit("start");
        scene
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.repo().join(file)).unwrap()
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.repo().join(file), text).unwrap();
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.repo()).env_clear();
        command
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path());
        for (name, value) in [("NAME", "Test"), ("EMAIL", "test@example.org")] {
            command.env(format!("GIT_AUTHOR_{name}"), value);
            command.env(format!("GIT_COMMITTER_{name}"), value);
        }
        // 2 January 2026, 00:00 UTC.
        command.env("SOURCE_DATE_EPOCH", "1767312000");
        command
    }

    fn git(&self, arguments: &[&str]) -> String {
        let ended = self.command("git").args(arguments).output().unwrap();
        assert!(ended.status.success(), "git {arguments:?}: {ended:?}");
        String::from_utf8(ended.stdout).unwrap()
    }

    fn commit(&self, message: &str) {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", message]);
    }

    fn release(&self, arguments: &[&str]) -> Output {
        let script = self.repo().join("packaging/release.sh");
        self.command(script).args(arguments).output().unwrap()
    }

    /// A release whose packages are there and whose tree was checked.
    fn given(&self, version: &str) -> Output {
        let packages = self.dir.path().join("packages");
        fs::create_dir_all(&packages).unwrap();
        for name in
            [format!("hostler_{version}_amd64.deb"), format!("hostler-{version}-1.x86_64.rpm")]
        {
            fs::write(packages.join(&name), name.as_bytes()).unwrap();
        }
        self.release(&[version, "--skip-check", "--packages", packages.to_str().unwrap()])
    }

    /// All that a release changes.
    fn state(&self) -> (String, String, String) {
        let status = self.git(&["status", "--porcelain"]);
        (self.git(&["rev-parse", "HEAD"]), self.git(&["tag"]), status)
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_release_is_a_commit_a_tag_and_files_with_their_sums() {
    let scene = Scene::new();
    let before = scene.read("Cargo.lock");
    let made = scene.given("0.2.0");
    assert!(made.status.success(), "{}", said(&made));
    assert!(said(&made).contains("make check was not run"), "{}", said(&made));

    assert!(scene.read("Cargo.toml").contains("\nversion = \"0.2.0\"\n"));
    let lock = scene.read("Cargo.lock");
    assert!(lock.contains("name = \"hostler\"\nversion = \"0.2.0\"\n"));
    let different = before.lines().zip(lock.lines()).filter(|(a, b)| a != b).count();
    assert_eq!((before.lines().count(), different), (lock.lines().count(), 1), "one line");
    assert_eq!(
        scene.read("CHANGELOG.md"),
        CHANGELOG
            .replace(" Nothing has been released yet.", "")
            .replace("## [Unreleased]\n", "## [Unreleased]\n\n## [0.2.0] - 2026-01-02\n")
    );

    let (head, tags, status) = scene.state();
    assert_eq!((tags.as_str(), status.as_str()), ("v0.2.0\n", ""));
    assert_eq!(scene.git(&["cat-file", "-t", "v0.2.0"]), "tag\n", "annotated");
    assert_eq!(scene.git(&["rev-parse", "v0.2.0^{commit}"]), head);
    assert_eq!(scene.git(&["log", "-1", "--format=%s"]), "release: 0.2.0\n");

    let out = scene.repo().join("target/dist/hostler-0.2.0");
    let sums = scene
        .command("sha256sum")
        .args(["--check", "--strict", "SHA256SUMS"])
        .current_dir(&out)
        .output();
    let sums = sums.unwrap();
    assert!(sums.status.success(), "{sums:?}");
    assert_eq!(String::from_utf8(sums.stdout).unwrap().lines().count(), 3);
    let archive = out.join("hostler-0.2.0.tar.gz");
    let list = scene.command("tar").arg("tf").arg(archive).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    assert!(
        list.lines().any(|l| l == "hostler-0.2.0/Cargo.toml") && !list.contains(".git/"),
        "{list}"
    );

    // The next one needs new lines in the changelog, and a greater version.
    let scene_said = |version: &str| said(&scene.given(version));
    assert!(scene_said("0.3.0").contains("says nothing under Unreleased"));
    scene.write(
        "CHANGELOG.md",
        &scene.read("CHANGELOG.md").replace("[Unreleased]\n", "[Unreleased]\n\n* More.\n"),
    );
    scene.commit("more");
    assert!(scene_said("0.2.0").contains("is there already"));
    assert!(scene_said("0.1.9").contains("not greater than 0.2.0"));
    assert!(scene.given("0.10.0").status.success(), "a number, not a text");
    assert!(scene_said("0.9.0").contains("not greater than 0.10.0"));
}

#[test]
fn a_changelog_that_no_pipe_holds_says_something() {
    let scene = Scene::new();
    let long = format!("{CHANGELOG}{}", "  At length.\n".repeat(10_000));
    scene.write("CHANGELOG.md", &long);
    scene.commit("much to say");
    let looked = scene.release(&["0.2.0", "--dry-run"]);
    assert!(looked.status.success(), "{}", said(&looked));
}

#[test]
fn what_it_refuses_changes_nothing() {
    let scene = Scene::new();
    let before = scene.state();
    let refused = |output: Output, word: &str| {
        assert!(
            !output.status.success() && said(&output).contains(word),
            "{word}: {}",
            said(&output)
        );
    };
    for bad in ["1.0", "v1.0.0", "1.0.0-rc1", "01.0.0", "1.0.0;ls"] {
        refused(scene.given(bad), "is no version");
    }
    refused(scene.release(&[]), "VERSION");
    refused(scene.release(&["0.2.0", "--new"]), "--dry-run");
    refused(scene.given("0.0.9"), "less than 0.1.0");
    scene.git(&["checkout", "--quiet", "-b", "other"]);
    refused(scene.given("0.2.0"), "releases are made on main");
    scene.git(&["checkout", "--quiet", "main"]);
    scene.write("new", "");
    refused(scene.given("0.2.0"), "the tree has changes");
    fs::remove_file(scene.repo().join("new")).unwrap();
    assert_eq!(scene.state(), before);

    scene.write("CHANGELOG.md", &CHANGELOG.replace("* A thing.\n", ""));
    scene.commit("nothing to say");
    refused(scene.given("0.2.0"), "says nothing under Unreleased");
    scene.write("CHANGELOG.md", "# Changelog\n");
    scene.commit("no place for it");
    refused(scene.given("0.2.0"), "has no \"## [Unreleased]\"");
}

#[test]
fn what_fails_on_the_way_is_taken_back() {
    let scene = Scene::new();
    let before = scene.state();
    let checked = scene.release(&["0.2.0"]);
    assert!(said(&checked).contains("check was asked for") && !checked.status.success());
    assert!(said(&checked).contains("main is where it was"), "{}", said(&checked));
    assert_eq!(scene.state(), before);
    let built = scene.release(&["0.2.0", "--skip-check"]);
    assert!(said(&built).contains("deb was asked for") && !built.status.success());
    assert_eq!(scene.state(), before);
    let empty = scene.dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let missing = scene.release(&["0.2.0", "--skip-check", "--packages", empty.to_str().unwrap()]);
    assert!(said(&missing).contains("there is no") && !missing.status.success());
    assert_eq!(scene.state(), before);
    assert!(scene.given("0.1.0").status.success(), "the first release may be what Cargo.toml says");
}

#[test]
fn a_dry_run_says_what_it_would_do() {
    let scene = Scene::new();
    let before = scene.state();
    let dry = scene.release(&["0.2.0", "--dry-run"]);
    assert!(dry.status.success(), "{}", said(&dry));
    assert!(
        said(&dry).contains("would release 0.2.0 (2026-01-02)")
            && said(&dry).contains("would run make check")
    );
    assert!(String::from_utf8_lossy(&dry.stdout).contains("* A thing."));
    assert_eq!(scene.state(), before);
    assert!(!scene.repo().join("target").exists());
}
