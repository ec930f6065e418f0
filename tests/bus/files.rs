//! The operator's program and the configuration's files: what it leaves is what a daemon starts with.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::oneshot;

use crate::cli::{Run, end, spawn};
use crate::house::{House, status};
use crate::signals::send;

const MODEL: &str =
    "engine = \"llamacpp\"\nimage = \"x.example/y:1\"\nweights = { path = \"/w.gguf\" }\n";

/// A user's own configuration.
struct Files {
    home: tempfile::TempDir,
}

impl Files {
    /// With one model, of which a key is for one name.
    fn new(model: &str, of_key: &str) -> Self {
        let files = Self { home: tempfile::tempdir().unwrap() };
        fs::create_dir_all(files.path("models.d")).unwrap();
        let keys = files.path("keys.toml");
        let settings =
            format!("[gpu]\nbackend = \"host\"\n[auth]\nkeys_file = \"{}\"\n", keys.display());
        fs::write(files.path("hostler.toml"), settings).unwrap();
        let key =
            format!("[keys.batch]\nsha256 = \"{}\"\nmodels = [\"{of_key}\"]\n", "0a".repeat(32));
        fs::write(keys, key).unwrap();
        fs::write(files.path("models.d/qwen3.toml"), model).unwrap();
        fs::write(files.home.path().join("new.gguf"), "weights").unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("hostler").join(name)
    }

    /// All of `models.d`, hidden names too.
    fn models(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("models.d")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn spawn(&self, house: &House, args: &[&str]) -> Child {
        let home = self.home.path().to_str().unwrap();
        spawn(house, args, &[("XDG_CONFIG_HOME", home)])
    }

    async fn run(&self, house: &House, args: &[&str]) -> Run {
        end(self.spawn(house, args)).await
    }

    /// `hostler add` of the weights that are there.
    async fn add(&self, house: &House, args: &[&str]) -> Run {
        let weights = self.home.path().join("new.gguf");
        let add = ["add", weights.to_str().unwrap(), "--image", "x.example/y:1"];
        self.run(house, &[&add, args].concat()).await
    }
}

fn reloads(house: &House) -> usize {
    house.root.asked.lock().unwrap().iter().filter(|asked| *asked == "reload").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_a_key_is_for_stays() {
    let house = House::open(status()).await;
    let files = Files::new(MODEL, "qwen3");
    let refused = files.run(&house, &["remove", "qwen3"]).await;
    assert_eq!(refused.code, 78, "{refused:?}");
    assert!(refused.err.contains("keys.batch.models"), "{refused:?}");
    assert!(refused.err.contains("nothing was removed"), "{refused:?}");
    assert_eq!(files.models(), ["qwen3.toml"]);
    let files = Files::new(&format!("aliases = [\"old\"]\n{MODEL}"), "old");
    let refused = files.add(&house, &["--name", "qwen3", "--force"]).await;
    assert_eq!(refused.code, 78, "{refused:?}");
    assert!(refused.err.contains("keys.batch.models"), "{refused:?}");
    assert!(fs::read_to_string(files.path("models.d/qwen3.toml")).unwrap().contains("old"));
    assert_eq!(reloads(&house), 0);
    let kept = files.add(&house, &["--name", "qwen3", "--force", "--alias", "old"]).await;
    assert_eq!(kept.code, 0, "{kept:?}");
    assert_eq!(files.models(), ["qwen3.toml"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_daemon_refuses_is_put_back() {
    let house = House::open(status()).await;
    *house.root.reload.lock().unwrap() = Some(Err("there is no such device".to_owned()));
    let files = Files::new(MODEL, "qwen3");
    fs::write(files.path("models.d/other.toml"), MODEL).unwrap();
    let other = files.path("models.d/other.toml");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o640)).unwrap();
    let was = fs::metadata(&other).unwrap();
    let says = |run: &Run, what: &str| {
        assert_eq!(run.code, 78, "{run:?}");
        assert!(run.err.contains("there is no such device"), "{run:?}");
        assert!(run.err.contains(what), "{run:?}");
    };
    says(&files.run(&house, &["remove", "other"]).await, "other.toml is as it was");
    says(&files.add(&house, &["--name", "other", "--force"]).await, "other.toml is as it was");
    assert_eq!(fs::read_to_string(&other).unwrap(), MODEL);
    let is = fs::metadata(&other).unwrap();
    assert_eq!((is.ino(), is.mode()), (was.ino(), was.mode()));
    let added = files.add(&house, &["--json"]).await;
    says(&added, "new.toml was removed again");
    assert_eq!(added.out, "", "no document says that it was written");
    assert_eq!(files.models(), ["other.toml", "qwen3.toml"]);
    // Each refusal is followed by a reload of the files as they were, for the sake of the daemon's status.
    assert_eq!(reloads(&house), 6);

    // Where all is well nothing but the files is left.
    *house.root.reload.lock().unwrap() = None;
    let added = files.add(&house, &["--json"]).await;
    assert_eq!((added.code, &added.json()["written"]), (0, &true.into()), "{added:?}");
    let removed = files.run(&house, &["remove", "other"]).await;
    assert_eq!(removed.code, 0, "{removed:?}");
    assert_eq!(files.models(), ["new.toml", "qwen3.toml"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_can_read_what_was_written_and_nobody_else_what_was_closed() {
    let house = House::open(status()).await;
    let files = Files::new(MODEL, "qwen3");
    let mode = |name: &str| fs::metadata(files.path(name)).unwrap().mode() & 0o777;
    let path = files.path("models.d/qwen3.toml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(&path, Some(7), Some(9)).unwrap();
    }
    let added = files.add(&house, &["--name", "qwen3", "--force"]).await;
    assert_eq!((added.code, mode("models.d/qwen3.toml")), (0, 0o640), "{added:?}");
    let is = fs::metadata(&path).unwrap();
    assert!(!root || (is.uid(), is.gid()) == (7, 9), "{is:?}");

    // In a directory that is not there, by somebody who is careful.
    let far = files.home.path().join("far");
    fs::create_dir(&far).unwrap();
    fs::create_dir(far.join("hostler")).unwrap();
    fs::copy(files.path("hostler.toml"), far.join("hostler/hostler.toml")).unwrap();
    fs::write(files.path("keys.toml"), format!("[keys.all]\nsha256 = \"{}\"\n", "0a".repeat(32)))
        .unwrap();
    let weights = files.home.path().join("new.gguf");
    let script =
        format!("umask 077; exec \"$0\" --user add {} --image x.example/y:1", weights.display());
    let ended = std::process::Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_hostler")])
        .env("DBUS_SESSION_BUS_ADDRESS", &house.daemon.address)
        .env("XDG_CONFIG_HOME", &far)
        .output()
        .unwrap();
    assert!(ended.status.success(), "{ended:?}");
    let mode = |name: &str| fs::metadata(far.join(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("hostler/models.d"), mode("hostler/models.d/new.toml")), (0o755, 0o644));
}

/// Interrupts `hostler remove other` while the daemon reloads. The command has heeded that; who lets the reload go on.
async fn interrupt(house: &House, files: &Files) -> (Child, oneshot::Sender<()>) {
    fs::write(files.path("models.d/other.toml"), MODEL).unwrap();
    let ((begun, begins), (go, goes)) = (oneshot::channel(), oneshot::channel());
    *house.root.reloads_at.lock().unwrap() = Some((begun, goes));
    let mut child = files.spawn(house, &["remove", "other"]);
    begins.await.unwrap();
    assert!(!files.path("models.d/other.toml").exists());
    send(&child, Signal::INT);
    let mut lines = BufReader::new(child.stderr.as_mut().unwrap()).lines();
    let told = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("interrupted")));
    assert!(told.is_some());
    (child, go)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_interrupts_leaves_no_file_that_the_daemon_refuses() {
    let house = House::open(status()).await;
    let files = Files::new(MODEL, "qwen3");
    let (child, go) = interrupt(&house, &files).await;
    go.send(()).unwrap();
    let ended = end(child).await;
    assert!(ended.code == 130 && ended.err.contains("stays changed"), "{ended:?}");
    assert_eq!(files.models(), ["qwen3.toml"]);

    *house.root.reload.lock().unwrap() = Some(Err("there is no such device".to_owned()));
    let (child, go) = interrupt(&house, &files).await;
    go.send(()).unwrap();
    let ended = end(child).await;
    assert!(ended.code == 130 && ended.err.contains("no such device"), "{ended:?}");
    assert_eq!(files.models(), ["other.toml", "qwen3.toml"]);

    // Once more ends the wait for an answer that does not come.
    let (child, go) = interrupt(&house, &files).await;
    send(&child, Signal::INT);
    let ended = end(child).await;
    assert!(ended.code == 130 && ended.err.contains("has not answered"), "{ended:?}");
    assert_eq!(files.models(), ["other.toml", "qwen3.toml"]);
    drop(go);
}

/// Nobody reads what the command says of it: its end of a pipe that was closed, or of a terminal that hung up.
fn unheard(house: &House, files: &Files, args: &[&str]) -> Child {
    let (reads, says) = std::io::pipe().unwrap();
    drop(reads);
    Command::new(env!("CARGO_BIN_EXE_hostler"))
        .arg("--user")
        .args(args)
        .env("DBUS_SESSION_BUS_ADDRESS", &house.daemon.address)
        .env("XDG_CONFIG_HOME", files.home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(says)
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_listen_has_the_change_applied_or_put_back_like_all_others() {
    let house = House::open(status()).await;
    let files = Files::new(MODEL, "qwen3");
    let weights = files.home.path().join("new.gguf");
    let add = ["add", weights.to_str().unwrap(), "--image", "x.example/y:1"];
    assert_eq!(end(unheard(&house, &files, &add)).await.code, 0);
    assert_eq!(
        (files.models(), reloads(&house)),
        (vec!["new.toml".into(), "qwen3.toml".into()], 1)
    );
    assert_eq!(end(unheard(&house, &files, &["remove", "new"])).await.code, 0);
    assert_eq!((files.models(), reloads(&house)), (vec!["qwen3.toml".to_owned()], 2));
    assert_eq!(end(unheard(&house, &files, &["show", "nothing"])).await.code, 4);

    // A terminal that goes says so with a signal, too. The daemon does not answer.
    fs::write(files.path("models.d/other.toml"), MODEL).unwrap();
    let ((begun, begins), (go, goes)) = (oneshot::channel(), oneshot::channel());
    *house.root.reloads_at.lock().unwrap() = Some((begun, goes));
    let mut child = unheard(&house, &files, &["remove", "other"]);
    begins.await.unwrap();
    assert!(!files.path("models.d/other.toml").exists());
    let code = loop {
        send(&child, Signal::HUP);
        tokio::time::sleep(Duration::from_millis(20)).await;
        if let Some(ended) = child.try_wait().unwrap() {
            break ended.code();
        }
    };
    assert_eq!(code, Some(130));
    assert_eq!(files.models(), ["other.toml", "qwen3.toml"]);
    drop(go);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_hubs_model_is_said_before_it_is_fetched() {
    let house = House::open(status()).await;
    let files = Files::new(MODEL, "qwen3");
    let models = files.home.path().join("models");
    let add = async |source: &str, args: &[&str]| {
        let add = ["add", source, "--models-dir", models.to_str().unwrap()];
        let run = files.run(&house, &[&add, args].concat()).await;
        assert!(!models.exists(), "{run:?}");
        (run.code, run.err)
    };
    let (code, err) = add("org/new", &["--vram", "lots"]).await;
    assert!(code == 78 && err.contains("vram"), "{err}");
    let (code, err) = add("org/new:Q4_K_M", &["--alias", "qwen3"]).await;
    assert!(code == 78 && err.contains("qwen3"), "{err}");
    let (code, err) = add("src/cli", &[]).await;
    assert!(code == 2 && err.contains("./src/cli for what is here, hub:src/cli"), "{err}");
    // On a host without a model nobody knows an engine's image.
    fs::write(files.path("hostler.toml"), "[gpu]\nbackend = \"host\"\n").unwrap();
    fs::remove_file(files.path("models.d/qwen3.toml")).unwrap();
    for source in ["org/new", "org/new:Q4_K_M"] {
        let (code, err) = add(source, &[]).await;
        assert!(code == 2 && err.contains("uses llamacpp, so its image is not known"), "{err}");
    }
}
