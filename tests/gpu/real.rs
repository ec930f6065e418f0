//! The adapter on the real library. Run with `cargo test --test gpu -- --ignored` on a machine with an NVIDIA GPU, outside
//! of containers (NVML's PIDs are the host's).

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostler::adapters::gpu::Nvml;
use hostler::supervisor::ports::Gpus;
use hostler::types::{Bytes, GpuId, Known};

/// Allocates 1 GiB on CUDA's first device, says which device that is, and ends at the end of its input.
const CLAIM: &str = r#"
import ctypes, sys, uuid
cuda = ctypes.CDLL("libcuda.so.1")
def ok(code, what):
    if code: sys.exit(f"{what}: CUDA error {code}")
ok(cuda.cuInit(0), "cuInit")
device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
ok(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
name = (ctypes.c_ubyte * 16)()
ok(cuda.cuDeviceGetUuid(ctypes.byref(name), device), "cuDeviceGetUuid")
ok(cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device), "cuCtxCreate")
ok(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(1 << 30)), "cuMemAlloc")
print(f"GPU-{uuid.UUID(bytes=bytes(name))}", flush=True)
sys.stdin.read()
"#;

/// One row a device: UUID, and MiB in total, reserved and used.
fn nvidia_smi() -> Vec<(GpuId, [u64; 3])> {
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=uuid,memory.total,memory.reserved,memory.used"])
        .args(["--format=csv,noheader,nounits"])
        .output()
        .expect("nvidia-smi comes with the driver");
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |line: &str| {
        let mut fields = line.split(", ");
        let id = GpuId::new(fields.next().unwrap());
        (id, [(); 3].map(|()| fields.next().unwrap().trim().parse().unwrap()))
    };
    text.lines().map(row).collect()
}

#[tokio::test]
#[ignore = "needs an NVIDIA GPU"]
async fn totals_are_those_that_nvidia_smi_shows() {
    let snapshot = Nvml::start(None, Vec::new()).snapshot().await.unwrap();
    assert!(snapshot.lost.is_empty(), "{:?}", snapshot.lost);
    for (id, [total, reserved, used]) in nvidia_smi() {
        let device = snapshot.devices.iter().find(|d| d.id == id).expect("every device is read");
        // nvidia-smi rounds each number to MiB; other processes may come and go in between.
        assert!((device.total.0 >> 20).abs_diff(total - reserved) <= 2, "{device:?}");
        assert!((device.used.0 >> 20).abs_diff(used) <= 512, "{device:?}");
        assert!(device.used <= device.total && !device.name.is_empty(), "{device:?}");
    }
}

#[tokio::test]
#[ignore = "needs an NVIDIA GPU"]
async fn a_process_is_charged_what_it_allocated_until_it_ends() {
    let mut child = Command::new("python3")
        .args(["-c", CLAIM])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 makes the allocation");
    let mut uuid = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut uuid).unwrap();
    let gpu = GpuId::new(uuid.trim());
    let nvml = Nvml::start(None, vec![gpu.clone()]);
    let usage = async || {
        let snapshot = Arc::new(nvml.snapshot().await.unwrap());
        nvml.usage(vec![child.id()], vec![gpu.clone()], snapshot).await[&gpu]
    };
    let Known::Known(held) = usage().await else { panic!("the driver lists no processes") };
    // What CUDA itself takes for a context differs by device and driver, but is far below 2 GiB.
    assert!(held >= Bytes::gib(1) && held < Bytes::gib(3), "{held}");

    drop(child.stdin.take().map(|mut input| input.flush()));
    child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let nvml2 = Nvml::start(None, vec![gpu.clone()]);
    loop {
        let snapshot = nvml2.snapshot().await.unwrap();
        if snapshot.devices[0].processes.iter().all(|process| process.pid != child.id()) {
            break;
        }
        assert!(Instant::now() < deadline, "the driver still lists a process that has ended");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
