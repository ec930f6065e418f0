//! The stub as its one real client sees it: `nvml-wrapper`, loading the built library.
//!
//! The state directory is named by the environment, of which a process has one: the tests take
//! turns.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvidia_ml::{
    Claim, ClaimError, Code, Gpu, GpuFault, Kind, Process, ProcessMemory, Script, Size, StateDir,
};
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

const GIB: u64 = 1 << 30;
const A: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000000";
const B: &str = "GPU-bbbbbbbb-0000-0000-0000-000000000000";

static TURN: Mutex<()> = Mutex::new(());

struct World {
    dir: StateDir,
    _root: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    fn new(change: impl FnOnce(&mut Script)) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::new(root.path().join("state"));
        let mut script = Script::with_gpus(vec![Gpu::new(A, 24 * GIB), Gpu::new(B, 8 * GIB)]);
        change(&mut script);
        script.save(&dir).unwrap();
        // SAFETY: whoever has the turn is the only one here to touch the environment.
        unsafe { std::env::set_var(nvidia_ml::ENV, dir.path()) };
        Self { dir, _root: root, _turn: turn }
    }

    fn nvml(&self) -> Result<Nvml, NvmlError> {
        let library = nvidia_ml::built_library().expect("libnvidia_ml.so is built beside the test");
        Nvml::builder().lib_path(library.as_os_str()).init()
    }

    fn edit(&self, uuid: &str, change: impl FnOnce(&mut Gpu)) {
        Script::edit(&self.dir, |script| change(script.gpu_mut(uuid).unwrap())).unwrap();
    }
}

/// A child process that holds memory.
struct Holder {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Holder {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take();
        let mut holder =
            Self { input, output: BufReader::new(child.stdout.take().unwrap()), child };
        assert_eq!(holder.line(), "claimed");
        holder
    }

    fn new(pairs: &[&str]) -> Self {
        Self::start(Command::new(env!("CARGO_BIN_EXE_nvstub-claim")).args(pairs))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn resize(&mut self, size: &str) {
        writeln!(self.input.as_mut().unwrap(), "{size}").unwrap();
        assert_eq!(self.line(), "resized");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn leave(mut self) {
        drop(self.input.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _already_dead = self.child.kill();
        let _status = self.child.wait();
    }
}

fn used(device: &Device<'_>) -> u64 {
    device.memory_info().unwrap().used
}

fn processes(device: &Device<'_>) -> Vec<(u32, u64)> {
    let list = device.running_compute_processes().unwrap();
    list.into_iter()
        .map(|process| match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => (process.pid, bytes),
            UsedGpuMemory::Unavailable => panic!("memory of {} unavailable", process.pid),
        })
        .collect()
}

#[test]
fn a_machine_as_scripted() {
    let world = World::new(|script| {
        script.driver = "550.54.14".into();
        script.gpus[0].reserved = Size(GIB / 2);
        script.gpus[0].foreign = Size(GIB);
        script.gpus[0].utilization_percent = 55;
        script.gpus[1].name = "NVIDIA Other".into();
    });
    let nvml = world.nvml().unwrap();
    assert_eq!(nvml.sys_driver_version().unwrap(), "550.54.14");
    assert_eq!(nvml.sys_nvml_version().unwrap(), "13.580.65.06");
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 13_000);
    assert_eq!(nvml.device_count().unwrap(), 2);
    let a = nvml.device_by_uuid(A).unwrap();
    assert_eq!((a.index().unwrap(), a.uuid().unwrap().as_str()), (0, A));
    let memory = a.memory_info().unwrap();
    assert_eq!((memory.total, memory.reserved), (24 * GIB, GIB / 2));
    assert_eq!((memory.used, memory.free), (GIB, 24 * GIB - GIB / 2 - GIB));
    assert_eq!(a.utilization_rates().unwrap().gpu, 55);
    assert_eq!(a.temperature(TemperatureSensor::Gpu).unwrap(), 40);
    assert_eq!(a.power_usage().unwrap(), 50_000);
    assert_eq!(a.cuda_compute_capability().unwrap().major, 9);
    assert!(matches!(a.mig_mode(), Err(NvmlError::NotSupported)));
    let b = nvml.device_by_index(1).unwrap();
    assert_eq!(b.name().unwrap(), "NVIDIA Other");
    assert_eq!(b.pci_info().unwrap().bus_id, "00000000:02:00.0");
    assert!(matches!(nvml.device_by_index(2), Err(NvmlError::InvalidArg)));
    assert!(matches!(nvml.device_by_uuid("GPU-nobody"), Err(NvmlError::NotFound)));
}

#[test]
fn the_world_changes_under_an_open_handle() {
    let world = World::new(|_| {});
    let nvml = world.nvml().unwrap();
    let b = nvml.device_by_uuid(B).unwrap();
    world.edit(B, |gpu| gpu.foreign = Size(3 * GIB));
    assert_eq!(used(&b), 3 * GIB);
    Script::edit(&world.dir, |script| drop(script.gpus.remove(0))).unwrap();
    assert_eq!((b.index().unwrap(), used(&b)), (0, 3 * GIB));
    Script::edit(&world.dir, |script| script.gpus.clear()).unwrap();
    assert!(matches!(b.memory_info(), Err(NvmlError::GpuLost)));
}

#[test]
fn living_processes_are_listed_with_their_memory() {
    let world = World::new(|script| {
        script.gpus[0].processes.push(Process { pid: 77, bytes: Size(5), kind: Kind::Graphics });
    });
    let nvml = world.nvml().unwrap();
    let (a, b) = (nvml.device_by_uuid(A).unwrap(), nvml.device_by_uuid(B).unwrap());
    let mut one = Holder::new(&[A, "2GiB", A, "1GiB", B, "4GiB"]);
    let two = Holder::new(&[A, "6GiB"]);
    let mut expected = vec![(one.child.id(), 3 * GIB), (two.child.id(), 6 * GIB)];
    expected.sort_unstable();
    assert_eq!(processes(&a), expected);
    assert_eq!(processes(&b), [(one.child.id(), 4 * GIB)]);
    assert_eq!(used(&a), 9 * GIB + 5);
    assert_eq!(a.running_graphics_processes().unwrap()[0].pid, 77);
    one.resize("1GiB");
    assert_eq!((used(&a), used(&b)), (8 * GIB + 5, GIB));
}

#[test]
fn a_process_in_another_pid_namespace_has_our_pid_for_it() {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"]);
        command
    };
    if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: no PID namespaces to be had here");
        return;
    }
    let world = World::new(|_| {});
    let nvml = world.nvml().unwrap();
    let a = nvml.device_by_uuid(A).unwrap();
    let holder = Holder::start(unshare().arg(env!("CARGO_BIN_EXE_nvstub-claim")).args([A, "2GiB"]));
    let [(pid, bytes)] = processes(&a)[..] else { panic!("one process expected") };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let namespaced = status.lines().find(|line| line.starts_with("NSpid:")).unwrap();
    assert_eq!(namespaced.split_whitespace().last(), Some("1"), "{namespaced}");
    assert_eq!(bytes, 2 * GIB);
    holder.kill();
    let deadline = Instant::now() + Duration::from_secs(5);
    while used(&a) != 0 {
        assert!(Instant::now() < deadline, "the claim outlived its namespace");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn memory_goes_with_its_process() {
    let world = World::new(|_| {});
    let nvml = world.nvml().unwrap();
    let a = nvml.device_by_uuid(A).unwrap();
    for round in 0..20 {
        let holder = Holder::new(&[A, "20GiB"]);
        assert_eq!(used(&a), 20 * GIB, "round {round}");
        if round % 2 == 0 {
            holder.kill()
        } else {
            holder.leave()
        }
        assert_eq!((used(&a), processes(&a)), (0, vec![]), "round {round}");
    }
}

#[test]
fn released_memory_lingers_and_every_reader_agrees() {
    let lag = Duration::from_millis(600 - 1); // the stub stamps in whole milliseconds, rounded down
    let world = World::new(|script| script.gpus[0].release_lag_ms = 600);
    let nvml = world.nvml().unwrap();
    let a = nvml.device_by_uuid(A).unwrap();
    for killed in [true, false] {
        let holder = Holder::new(&[A, "20GiB"]);
        let ended = Instant::now();
        if killed {
            holder.kill()
        } else {
            holder.leave()
        }
        assert_eq!((used(&a), processes(&a)), (20 * GIB, vec![]));
        // The rlib is a second reader; a claim that needs the lingering memory is refused.
        let other = nvidia_ml::usage(&world.dir, A).unwrap().unwrap();
        assert_eq!((other.used, other.lingering), (20 * GIB, 20 * GIB));
        let early = Claim::take(&world.dir, A, 20 * GIB);
        assert!(matches!(early, Err(ClaimError::OutOfMemory { free, .. }) if free == 4 * GIB));
        while used(&a) != 0 {
            assert!(ended.elapsed() < lag * 10, "never released");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(ended.elapsed() >= lag, "released after {:?}", ended.elapsed());
        assert_eq!(nvidia_ml::usage(&world.dir, A).unwrap().unwrap().used, 0);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_noted() {
    let world = World::new(|script| script.gpus[1].foreign = Size(GIB));
    let _holder = Holder::new(&[B, "5GiB"]);
    let mut mine = Claim::take(&world.dir, B, GIB).unwrap();
    mine.resize(2 * GIB).unwrap();
    assert_eq!(world.dir.read_violations().unwrap(), Vec::<String>::new());
    assert!(matches!(mine.resize(3 * GIB), Err(ClaimError::OutOfMemory { .. })));
    assert_eq!(mine.bytes(), 2 * GIB);
    assert!(matches!(Claim::take(&world.dir, B, 1), Err(ClaimError::OutOfMemory { .. })));
    let noted = world.dir.read_violations().unwrap();
    assert_eq!(noted.len(), 2);
    assert!(
        noted[0].contains(&format!("gpu={B} wanted={} free={}", 3 * GIB, 2 * GIB)),
        "{noted:?}"
    );
    drop(mine);
    assert_eq!(Claim::take(&world.dir, B, 2 * GIB).unwrap().bytes(), 2 * GIB);
    let stranger = Claim::take(&world.dir, "GPU-nobody", 1);
    assert!(matches!(stranger, Err(ClaimError::NoSuchGpu(_))));
}

#[test]
fn racing_claimants_never_get_more_than_there_is() {
    let world = World::new(|_| {});
    let mut children: Vec<Child> = (0..12)
        .map(|_| {
            Command::new(env!("CARGO_BIN_EXE_nvstub-claim"))
                .args([B, "1GiB"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut winners = 0;
    for child in &mut children {
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        winners += usize::from(line == "claimed\n");
    }
    let usage = nvidia_ml::usage(&world.dir, B).unwrap().unwrap();
    for child in &mut children {
        let _already_dead = child.kill();
        child.wait().unwrap();
    }
    assert_eq!((winners, usage.used), (8, 8 * GIB));
    assert_eq!(world.dir.read_violations().unwrap().len(), 4);
}

#[test]
fn slots_are_used_again() {
    let world = World::new(|_| {});
    for _ in 0..600 {
        drop(Claim::take(&world.dir, A, GIB).unwrap());
    }
    let claims: Vec<_> = (0..256).map(|_| Claim::take(&world.dir, A, 1).unwrap()).collect();
    assert!(matches!(Claim::take(&world.dir, A, 1), Err(ClaimError::Full)));
    drop(claims);
    assert_eq!(nvidia_ml::usage(&world.dir, A).unwrap().unwrap().used, 0);
}

#[test]
fn a_process_sees_its_own_claims_through_the_library() {
    let world = World::new(|_| {});
    let nvml = world.nvml().unwrap();
    let a = nvml.device_by_uuid(A).unwrap();
    let mine = Claim::take(&world.dir, A, GIB).unwrap();
    assert_eq!(processes(&a), [(std::process::id(), GIB)]);
    let other = Claim::take(&world.dir, A, GIB).unwrap();
    drop(mine);
    assert_eq!(used(&a), GIB);
    drop(other);
    assert_eq!(used(&a), 0);
}

#[test]
fn every_start_failure_has_its_error() {
    type Check = fn(&NvmlError) -> bool;
    let cases: [(Code, Check); 5] = [
        (Code::DriverNotLoaded, |e| matches!(e, NvmlError::DriverNotLoaded)),
        (Code::LibRmVersionMismatch, |e| matches!(e, NvmlError::LibRmVersionMismatch)),
        (Code::NoPermission, |e| matches!(e, NvmlError::NoPermission)),
        (Code::Unknown, |e| matches!(e, NvmlError::Unknown)),
        (Code::Other { number: 27 }, |e| matches!(e, NvmlError::UnexpectedVariant(27))),
    ];
    for (code, check) in cases {
        let world = World::new(|script| script.init = code);
        let error = world.nvml().expect_err("the start fails");
        assert!(check(&error), "{code:?} came as {error:?}");
        Script::edit(&world.dir, |script| script.init = Code::Ok).unwrap();
        assert!(world.nvml().is_ok(), "and recovers");
    }
    let world = World::new(|_| {});
    std::fs::remove_file(world.dir.devices()).unwrap();
    assert!(matches!(world.nvml(), Err(NvmlError::DriverNotLoaded)));
    std::fs::write(world.dir.devices(), "gpu = 7").unwrap();
    assert!(matches!(world.nvml(), Err(NvmlError::Unknown)));
}

#[test]
fn every_device_fault_has_its_error_and_spares_the_others() {
    let world = World::new(|_| {});
    let nvml = world.nvml().unwrap();
    let (a, b) = (nvml.device_by_uuid(A).unwrap(), nvml.device_by_uuid(B).unwrap());
    let fault = |fault| world.edit(A, |gpu| gpu.fault = fault);

    fault(GpuFault::Lost);
    assert!(matches!(a.memory_info(), Err(NvmlError::GpuLost)));
    assert!(matches!(a.running_compute_processes(), Err(NvmlError::GpuLost)));
    assert!(matches!(nvml.device_by_index(0), Err(NvmlError::GpuLost)));
    assert!(matches!(Claim::take(&world.dir, A, 1), Err(ClaimError::GpuLost(_))));
    assert_eq!((nvml.device_count().unwrap(), used(&b)), (2, 0));

    fault(GpuFault::ZeroMemory);
    let memory = a.memory_info().unwrap();
    assert_eq!((memory.total, memory.free, memory.used, memory.reserved), (0, 0, 0, 0));

    fault(GpuFault::MemoryNotSupported);
    assert!(matches!(a.memory_info(), Err(NvmlError::NotSupported)));
    fault(GpuFault::MemoryUnknown);
    assert!(matches!(a.memory_info(), Err(NvmlError::Unknown)));
    fault(GpuFault::ProcessesNoPermission);
    assert!(matches!(a.running_compute_processes(), Err(NvmlError::NoPermission)));
    fault(GpuFault::ProcessesNotSupported);
    assert!(matches!(a.running_compute_processes(), Err(NvmlError::NotSupported)));
    assert_eq!(used(&a), 0);

    fault(GpuFault::None);
    let _holder = Holder::new(&[A, "2GiB"]);
    world.edit(A, |gpu| {
        gpu.process_memory = ProcessMemory::NotAvailable;
        gpu.mig = Some(true);
    });
    let list = a.running_compute_processes().unwrap();
    assert!(matches!(list[0].used_gpu_memory, UsedGpuMemory::Unavailable));
    assert_eq!(used(&a), 2 * GIB);
    assert_eq!(a.mig_mode().unwrap().current, 1);
    assert!(matches!(a.utilization_rates(), Err(NvmlError::NotSupported)));

    Script::edit(&world.dir, |script| script.fault = Code::Timeout).unwrap();
    assert!(matches!(b.memory_info(), Err(NvmlError::Timeout)));
}

#[test]
fn hangs_last_as_long_as_told() {
    let world = World::new(|script| script.init_hang_ms = 120);
    let timed = |what: &dyn Fn()| {
        let start = Instant::now();
        what();
        start.elapsed()
    };
    let ms = Duration::from_millis;
    assert!(timed(&|| drop(world.nvml().unwrap())) >= ms(120));
    let nvml = world.nvml().unwrap();
    let (a, b) = (nvml.device_by_uuid(A).unwrap(), nvml.device_by_uuid(B).unwrap());
    world.edit(A, |gpu| gpu.hang_ms = 300);
    assert!(timed(&|| assert_eq!(used(&a), 0)) >= ms(300));
    assert!(timed(&|| assert_eq!(used(&b), 0)) < ms(300), "the other device answers");
    Script::edit(&world.dir, |script| script.hang_ms = 300).unwrap();
    assert!(timed(&|| assert_eq!(used(&b), 0)) >= ms(300));
}

#[test]
fn a_reader_without_write_access_sees_the_same() {
    let as_nobody = |program: &std::ffi::OsStr| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
        command
    };
    if !as_nobody("true".as_ref()).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: needs the right to become another user");
        return;
    }
    let world = World::new(|script| script.gpus[0].release_lag_ms = 60_000);
    let root = world.dir.path().parent().unwrap();
    // The build's directory may be closed to others.
    let program = root.join("nvstub-claim");
    std::fs::copy(env!("CARGO_BIN_EXE_nvstub-claim"), &program).unwrap();
    std::fs::set_permissions(root, Permissions::from_mode(0o755)).unwrap();
    let look = || {
        let output = as_nobody(program.as_os_str()).args(["--look", A]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let holder = Holder::new(&[A, "2GiB"]);
    std::fs::set_permissions(world.dir.claims(), Permissions::from_mode(0o444)).unwrap();
    let pid = holder.child.id();
    assert_eq!(look(), format!("used {} lingering 0\npid {pid} bytes {}\n", 2 * GIB, 2 * GIB));
    holder.kill();
    assert_eq!(look(), format!("used {} lingering {}\n", 2 * GIB, 2 * GIB));
}
