//! The engine as a program: arguments, exits, signals, memory that goes with the process.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Instant;

use common::{get, ms, stream, until};
use nvidia_ml::{Gpu, Script, Size, StateDir};
use tokio::process::{Child, Command};

const GPU: &str = "GPU-0";
const GIB: u64 = 1 << 30;

struct World {
    root: tempfile::TempDir,
    nvstub: StateDir,
    socket: PathBuf,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let nvstub = StateDir::new(root.path().join("nv"));
        Script::with_gpus(vec![Gpu::new(GPU, 24 * GIB)]).save(&nvstub).unwrap();
        Self { socket: root.path().join("e.sock"), nvstub, root }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fake-engine"));
        command
            .args(line.split_whitespace())
            .env_clear()
            .env("NVSTUB", self.nvstub.path())
            .env("FAKE_RATE", "500")
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn vllm(&self, knobs: &str) -> Child {
        let socket = self.socket.display();
        let line = format!("serve org/m --uds {socket} --served-model-name m {knobs}");
        self.command(&line).spawn().unwrap()
    }

    async fn ready(&self) {
        let begun = Instant::now();
        while tokio::net::UnixStream::connect(&self.socket).await.is_err() {
            assert!(begun.elapsed() < ms(10_000), "never ready");
            tokio::time::sleep(ms(2)).await;
        }
    }

    fn used(&self) -> u64 {
        nvidia_ml::usage(&self.nvstub, GPU).unwrap().unwrap().used
    }
}

fn signal(child: &Child, number: i32) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    // SAFETY: a signal to a child that was not waited for.
    assert_eq!(unsafe { libc::kill(pid, number) }, 0);
}

async fn ended(child: Child) -> (Option<i32>, Option<i32>, String) {
    let end = tokio::time::timeout(ms(10_000), child.wait_with_output()).await;
    let Output { status, stderr, .. } = end.expect("the process ends").unwrap();
    (status.code(), status.signal(), String::from_utf8_lossy(&stderr).into_owned())
}

#[tokio::test]
async fn a_killed_engine_leaves_no_memory_behind() {
    let world = World::new();
    let child = world.vllm("--fake.vram=weights=8GiB,kv=1GiB");
    world.ready().await;
    let usage = nvidia_ml::usage(&world.nvstub, GPU).unwrap().unwrap();
    assert_eq!((usage.used, usage.processes[0].pid), (9 * GIB, child.id().unwrap()));
    assert_eq!(stream(&world.socket, 4).await.said(), " 1 2 3 4");
    signal(&child, libc::SIGKILL);
    assert_eq!(ended(child).await.1, Some(libc::SIGKILL));
    assert_eq!(world.used(), 0);
    // The socket stays behind, as the real engine's does, and the next start trips over it.
    let (code, _, log) = ended(world.vllm("")).await;
    assert!(code == Some(1) && log.contains("e.sock"), "{log}");
}

#[tokio::test]
async fn sigterm_does_what_the_knob_says() {
    let world = World::new();
    let child = world.vllm("--fake.vram=1GiB");
    world.ready().await;
    let begun = Instant::now();
    signal(&child, libc::SIGTERM);
    assert_eq!(ended(child).await.0, Some(0));
    assert!(begun.elapsed() < ms(1000) && world.used() == 0);

    let world = World::new();
    let child = world.vllm("--fake.term=slow:400ms");
    world.ready().await;
    let begun = Instant::now();
    signal(&child, libc::SIGTERM);
    tokio::time::sleep(ms(100)).await;
    assert_eq!(get(&world.socket, "/health").await.status, 200, "still serving");
    assert_eq!(ended(child).await.0, Some(0));
    assert!(begun.elapsed() >= ms(400));

    let world = World::new();
    let child = world.vllm("--fake.term=ignore --fake.vram=1GiB");
    world.ready().await;
    signal(&child, libc::SIGTERM);
    until(&world.socket, ms(1000), |state| state["counters"]["terms"] == 1).await;
    tokio::time::sleep(ms(300)).await;
    assert_eq!(world.used(), GIB);
    signal(&child, libc::SIGKILL);
    assert_eq!(ended(child).await.1, Some(libc::SIGKILL));

    let loading = World::new().vllm("--fake.load=60s");
    tokio::time::sleep(ms(300)).await;
    signal(&loading, libc::SIGTERM);
    assert_eq!(ended(loading).await.0, Some(0), "also while loading");
}

#[tokio::test]
async fn failures_end_the_process_as_told() {
    for (fail, code, signal) in [
        ("exit:3@30ms", Some(3), None),
        ("exit:4@ready+10ms", Some(4), None),
        ("flap:10ms", Some(1), None),
        ("abort@10ms", None, Some(libc::SIGABRT)),
        ("oom@10ms", None, Some(libc::SIGKILL)),
    ] {
        let end = ended(World::new().vllm(&format!("--fake.fail={fail}"))).await;
        assert_eq!((end.0, end.1), (code, signal), "{fail}: {}", end.2);
    }
    let world = World::new();
    let mut hung = world.vllm("--fake.fail=hang@5ms --fake.load=100ms");
    tokio::time::sleep(ms(600)).await;
    assert!(!world.socket.exists() && hung.try_wait().unwrap().is_none(), "never ready");
}

#[tokio::test]
async fn the_first_starts_fail_and_then_one_serves() {
    let world = World::new();
    let knobs = format!("--fake.fail=n:2 --fake.state-dir={}", world.root.path().display());
    for _ in 0..2 {
        assert_eq!(ended(world.vllm(&knobs)).await.0, Some(1));
    }
    let _third = world.vllm(&knobs);
    world.ready().await;
}

#[tokio::test]
async fn too_little_memory_ends_in_the_engines_own_words() {
    let world = World::new();
    Script::edit(&world.nvstub, |s| s.gpus[0].foreign = Size(10 * GIB)).unwrap();
    let knobs = "--gpu-memory-utilization 0.9 --fake.vram=weights=4GiB,kv=auto";
    let (code, _, log) = ended(world.vllm(knobs)).await;
    assert_eq!(code, Some(1));
    let words = "ValueError: Free memory on device cuda:0 (14.00/24.00 GiB) on startup is less \
                 than desired GPU memory utilization (0.9, 21.60 GiB)";
    assert!(log.contains(words), "{log}");
    assert_eq!(world.nvstub.read_violations().unwrap().len(), 1, "and leaves a trace");

    let line = format!("llama-server --host {} --fake.vram=20GiB", world.socket.display());
    let (code, _, log) = ended(world.command(&line).spawn().unwrap()).await;
    assert!(code == Some(1) && log.contains("cudaMalloc failed: out of memory"), "{log}");
    let (code, _, log) = ended(world.vllm("--fake.fail=vram")).await;
    assert!(code == Some(1) && log.contains("on startup is less than desired"), "{log}");
    assert_eq!(world.used(), 10 * GIB);

    let _fits = World::new();
    let child = _fits.vllm("--gpu-memory-utilization 0.5 --fake.vram=weights=4GiB,kv=auto");
    _fits.ready().await;
    assert_eq!(_fits.used(), 12 * GIB, "half of the card");
    drop(child);

    // Its context is there before it looks, and is no part of its share.
    let world = World::new();
    let greedy = "--fake.vram=weights=4GiB,kv=auto,overhead=1GiB";
    let (code, _, log) =
        ended(world.vllm(&format!("--gpu-memory-utilization 0.97 {greedy}"))).await;
    assert!(code == Some(1) && log.contains("(23.00/24.00 GiB) on startup"), "{log}");
    let child = world.vllm(&format!("--gpu-memory-utilization 0.5 {greedy}"));
    world.ready().await;
    assert_eq!(world.used(), 13 * GIB);
    drop(child);
}

#[tokio::test]
async fn no_device_in_sight_is_an_error_only_if_memory_is_wanted() {
    let world = World::new();
    let line = format!("serve m --uds {}", world.socket.display());
    let mut blind = world.command(&format!("{line} --fake.vram=1GiB"));
    let (code, _, log) = ended(blind.env("CUDA_VISIBLE_DEVICES", "").spawn().unwrap()).await;
    assert!(code == Some(1) && log.contains("No CUDA GPUs are available"), "{log}");
    let _child = world.command(&line).env("NVSTUB", "/nowhere").spawn().unwrap();
    world.ready().await;
}

#[tokio::test]
async fn wrong_settings_are_refused_by_name() {
    let (code, _, log) = ended(World::new().vllm("--fake.chaos=noise")).await;
    assert!(code == Some(2) && log.contains("FAKE_CHAOS=noise: expected none"), "{log}");
}

#[tokio::test]
async fn as_pid_one_of_a_container_it_ends_with_the_same_statuses() {
    let alone = ["--user", "--map-root-user", "--pid", "--fork", "--kill-child"];
    if !std::process::Command::new("unshare").args(alone).arg("true").status().unwrap().success() {
        eprintln!("skipped: no PID namespaces to be had here");
        return;
    }
    let start = |world: &World, knobs: &str| {
        let mut command = Command::new("unshare");
        command
            .args(alone)
            .arg(env!("CARGO_BIN_EXE_fake-engine"))
            .args(["serve", "m", "--uds"])
            .arg(&world.socket)
            .args(knobs.split_whitespace())
            .env("NVSTUB", world.nvstub.path())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command.spawn().unwrap()
    };
    for (fail, code) in [("oom@20ms", 137), ("abort@20ms", 134), ("exit:9@20ms", 9)] {
        let end = ended(start(&World::new(), &format!("--fake.fail={fail}"))).await;
        assert_eq!(end.0, Some(code), "{fail}: {}", end.2);
    }
    let world = World::new();
    let child = start(&world, "--fake.vram=2GiB");
    world.ready().await;
    let usage = nvidia_ml::usage(&world.nvstub, GPU).unwrap().unwrap();
    assert_eq!(usage.used, 2 * GIB);
    let pid = usage.processes[0].pid;
    assert_ne!(Some(pid), child.id(), "the engine's PID out here, not the namespace's keeper");
    // SAFETY: a signal to the engine that was just found alive, a descendant of this test.
    assert_eq!(unsafe { libc::kill(i32::try_from(pid).unwrap(), libc::SIGTERM) }, 0);
    assert_eq!(ended(child).await.0, Some(0));
    assert_eq!(world.used(), 0);
}
