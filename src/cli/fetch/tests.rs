//! The downloader against a hub of our own making: real sockets, real files.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use stub_hub::{COMMIT, Hub, Knobs};

use super::meter::Watch;
use super::transfer::Disk;
use super::*;

/// A repository with one GGUF file, a hub that serves it, and where it goes.
struct Scene {
    dir: tempfile::TempDir,
    hub: Hub,
    fetch: Fetch,
}

const BYTES: usize = 300_000;

fn content() -> Vec<u8> {
    (0..BYTES).map(|i| (i * 7 % 251) as u8).collect()
}

fn scene(knobs: Knobs) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("hub/org/m");
    fs::create_dir_all(&repo).unwrap();
    fs::write(repo.join("m-Q4_0.gguf"), content()).unwrap();
    fs::write(repo.join("README.md"), "read me").unwrap();
    let (hub, address) = Hub::start(&dir.path().join("hub"), "127.0.0.1:0", knobs).unwrap();
    let fetch = Fetch {
        endpoint: format!("http://{address}/"),
        repo: "org/m".into(),
        revision: "main".into(),
        pattern: None,
        engine: None,
        no_projector: false,
        list: false,
        into: dir.path().join("models"),
    };
    Scene { dir, hub, fetch }
}

impl Scene {
    fn file(&self) -> PathBuf {
        self.dir.path().join("models/org--m").join(&COMMIT[..12]).join("m-Q4_0.gguf")
    }

    fn ranges(&self) -> Vec<Option<String>> {
        let asked = self.hub.asked();
        asked.into_iter().filter(|a| a.path.contains("/resolve/")).map(|a| a.range).collect()
    }
}

#[test]
fn a_file_comes_whole_and_only_once() {
    let scene = scene(Knobs::default());
    scene.fetch.fetch().unwrap();
    assert_eq!(fs::read(scene.file()).unwrap(), content());
    assert!(!scene.file().with_file_name("README.md").exists());
    scene.fetch.fetch().unwrap();
    assert_eq!(scene.ranges(), [None], "what is there is not fetched again");
}

#[test]
fn what_would_be_fetched_is_told_and_nothing_written() {
    let mut scene = scene(Knobs::default());
    scene.fetch.list = true;
    scene.fetch.fetch().unwrap();
    assert!(!scene.dir.path().join("models").exists());
    assert_eq!(scene.ranges(), [], "no file is asked for");
}

#[test]
fn a_connection_that_breaks_is_gone_on_with() {
    let scene = scene(Knobs { cut: Some(100_000), ..Knobs::default() });
    scene.fetch.fetch().unwrap();
    assert_eq!(fs::read(scene.file()).unwrap(), content());
    assert_eq!(scene.ranges(), [None, Some("bytes=100000-".to_owned())]);
}

#[test]
fn what_an_earlier_run_left_is_gone_on_with() {
    let scene = scene(Knobs::default());
    fs::create_dir_all(scene.file().parent().unwrap()).unwrap();
    fs::write(format!("{}.part", scene.file().display()), &content()[..250_000]).unwrap();
    scene.fetch.fetch().unwrap();
    assert_eq!(fs::read(scene.file()).unwrap(), content());
    assert_eq!(scene.ranges(), [Some("bytes=250000-".to_owned())]);
}

#[test]
fn a_hub_without_ranges_begins_again() {
    let scene = scene(Knobs { cut: Some(100_000), no_ranges: true, ..Knobs::default() });
    scene.fetch.fetch().unwrap();
    assert_eq!(fs::read(scene.file()).unwrap(), content());
}

#[test]
fn a_part_of_another_content_is_found_out_and_thrown_away() {
    let scene = scene(Knobs::default());
    fs::create_dir_all(scene.file().parent().unwrap()).unwrap();
    fs::write(format!("{}.part", scene.file().display()), vec![1; 250_000]).unwrap();
    scene.fetch.fetch().unwrap();
    assert_eq!(fs::read(scene.file()).unwrap(), content());
    assert_eq!(scene.ranges(), [Some("bytes=250000-".to_owned()), None]);
}

#[test]
fn a_digest_that_is_wrong_leaves_no_file() {
    let scene = scene(Knobs { lie: true, ..Knobs::default() });
    let why = scene.fetch.fetch().unwrap_err();
    assert!(why.contains("SHA-256"), "{why}");
    assert!(!scene.file().exists());
}

#[test]
fn what_is_not_there_or_not_allowed_is_said() {
    let mut scene = scene(Knobs { token: Some("t".into()), ..Knobs::default() });
    let why = scene.fetch.fetch().unwrap_err();
    assert!(why.contains("no such thing") && why.contains("else set HF_TOKEN"), "{why}");
    scene.fetch.endpoint = "http://127.0.0.1:1".into();
    let why = scene.fetch.fetch().unwrap_err();
    assert!(why.contains("127.0.0.1:1 does not answer"), "{why}");
}

/// A disk that needs two minutes for everything, by the clock of the watch, which looks whenever it does something.
struct Slow {
    meter: Meter,
    watch: Mutex<(Instant, Watch, Vec<String>)>,
}

impl Slow {
    fn new(meter: &Meter) -> Self {
        let now = Instant::now();
        Self { meter: meter.clone(), watch: Mutex::new((now, Watch::new(now), Vec::new())) }
    }

    fn slowly(&self) {
        let mut guard = self.watch.lock().unwrap();
        let (now, watch, told) = &mut *guard;
        // Twice, because the first look may still see bytes that came.
        for _ in 0..2 {
            *now += Duration::from_secs(61);
            let line = watch.look(*now, self.meter.shown()).expect("the hub is not to blame");
            told.push(line.expect("a sign of life").to_string());
        }
    }
}

impl Disk for Slow {
    fn read(&self, file: &mut fs::File, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.slowly();
        // In small pieces, so that there is some progress.
        file.read(&mut buffer[..BYTES / 3])
    }

    fn write(&self, file: &mut fs::File, bytes: &[u8]) -> std::io::Result<()> {
        self.slowly();
        file.write_all(bytes)
    }

    fn sync(&self, file: &fs::File) -> std::io::Result<()> {
        self.slowly();
        file.sync_all()
    }
}

#[test]
fn a_disk_that_takes_longer_than_a_hub_may_is_waited_for_and_told_of() {
    let scene = scene(Knobs::default());
    let digest: String =
        Sha256::digest(content()).iter().map(|byte| format!("{byte:02x}")).collect();
    let endpoint = scene.fetch.endpoint.trim_end_matches('/').to_owned();
    let meter = Meter::default();
    let slow = Slow::new(&meter);
    let target = Target {
        url: format!("{endpoint}/org/m/resolve/{COMMIT}/m-Q4_0.gguf"),
        path: scene.file(),
        bytes: BYTES as u64,
        sha256: Some(&digest),
        disk: &slow,
    };
    let hub = super::Hub { agent: Agent::new_with_defaults(), token: None, endpoint };
    transfer::file(&hub, &target, &meter).unwrap();
    assert_eq!(fs::read(scene.file()).unwrap(), content());
    let (_, _, mut told) = slow.watch.into_inner().unwrap();
    told.retain(|line| !line.contains("\"at\""));
    told.dedup();
    let writing = r#"{"writing":true}"#.to_owned();
    let checking = [0, 33, 66, 100].map(|percent| format!(r#"{{"checking":{percent}}}"#));
    assert_eq!(told, [&[writing], &checking[..]].concat());
    assert_eq!(meter.shown().here, None, "the hub is awaited again");
}

#[test]
fn only_a_lock_that_somebody_has_is_another_fetch() {
    let os = |errno: Errno| Err(TryLockError::Error(errno.into()));
    assert_eq!(locked(Ok(())), Ok(()));
    assert!(locked(Err(TryLockError::WouldBlock)).unwrap_err().contains("another fetch"));
    // A file system that has no locks.
    for errno in [Errno::NOLCK, Errno::OPNOTSUPP, Errno::NOSYS] {
        assert_eq!(locked(os(errno)), Ok(()), "{errno:?}");
    }
    let other = locked(os(Errno::IO)).unwrap_err();
    assert!(other.contains("cannot be had") && !other.contains("another"), "{other}");
}

#[test]
fn what_does_not_fit_is_refused_before_its_first_byte() {
    let gib = |n: u64| n << 30;
    assert_eq!(fits(gib(2), gib(3)), Ok(()));
    let why = fits(gib(2) + 1, gib(3)).unwrap_err();
    assert!(why.contains("3.0 GiB are free there, and 1.0 GiB have to stay"), "{why}");
    assert!(fits(1, 0).is_err());
    assert_eq!(fits(0, gib(1)), Ok(()), "all of it is there already");
    // What is on the disk of an earlier run counts.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    assert_eq!(transfer::present(&path), 0);
    fs::write(dir.path().join("m.gguf.part"), [0; 7]).unwrap();
    assert_eq!(transfer::present(&path), 7);
    fs::write(&path, [0; 9]).unwrap();
    assert_eq!(transfer::present(&path), 9);
}

#[test]
fn a_commit_is_hexadecimal_or_none() {
    assert_eq!(short(COMMIT), Ok(&COMMIT[..12]));
    assert_eq!(short("0123456"), Ok("0123456"));
    for sha in ["", "012345", "0123456789ab\npin = true", "main", &"0".repeat(65)] {
        let why = short(sha).unwrap_err();
        assert!(why.contains(&format!("{sha:?}")), "{why}");
    }
}
