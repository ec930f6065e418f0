//! The GPU backend on a real host, over a scripted driver: what is wrong with it is told apart, and what works is used.

use nvidia_ml::{Code, Gpu, GpuFault, Script};
use serde_json::json;

use crate::harness::{
    COUNT, FIRST, Refusal, SOON, config, containers, count, engine, get, model, play_gpus, put_cdi,
    put_nvml, recovers, refused, serving, skip_unless_wanted, status, wait_property,
};
use testhost::{Look, wait_for};

const A: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000000";
const B: &str = "GPU-bbbbbbbb-0000-0000-0000-000000000000";
const GIB: u64 = 1 << 30;

fn nvml() -> String {
    let toml = COUNT.replace("backend = \"host\"", "backend = \"nvml\"");
    format!("{toml}vram = \"2GiB\"\n\n[startup]\ntimeout = \"2s\"\n")
}

fn two_gpus() -> Script {
    Script::with_gpus(vec![Gpu::new(A, 24 * GIB), Gpu::new(B, 8 * GIB)])
}

fn broken(fault: GpuFault) -> Script {
    let mut script = two_gpus();
    script.gpus[1].fault = fault;
    script
}

fn all_lost() -> Script {
    let mut script = two_gpus();
    script.gpus.iter_mut().for_each(|gpu| gpu.fault = GpuFault::Lost);
    script
}

#[test]
fn fault_15_everything_that_can_be_wrong_with_a_driver_is_told_apart() {
    skip_unless_wanted!();
    let host = serving(&nvml()).unwrap();
    refused(&host, &Refusal { status: 20, word: "nvml_missing", says: &["libnvidia-ml.so.1"] });

    put_nvml(&host).unwrap();
    let init = |code| Script { init: code, ..two_gpus() };
    let cases: [(Script, Refusal); 7] = [
        (
            init(Code::DriverNotLoaded),
            Refusal { status: 21, word: "driver_not_loaded", says: &["driver is not loaded"] },
        ),
        (
            init(Code::LibRmVersionMismatch),
            Refusal { status: 22, word: "driver_mismatch", says: &["reboot"] },
        ),
        (
            broken(GpuFault::ZeroMemory),
            Refusal { status: 23, word: "gpu_without_memory", says: &[B] },
        ),
        (
            broken(GpuFault::MemoryNotSupported),
            Refusal { status: 23, word: "gpu_without_memory", says: &[B, "backend = \"host\""] },
        ),
        (Script::with_gpus(Vec::new()), Refusal { status: 24, word: "gpu_not_found", says: &[] }),
        (all_lost(), Refusal { status: 25, word: "gpu_failed", says: &[] }),
        (
            two_gpus(),
            Refusal { status: 30, word: "cdi_unresolvable", says: &["nvidia-ctk cdi generate"] },
        ),
    ];
    for (script, refusal) in cases {
        // So that each cause is met at once, not after the delay that earlier ones have earned.
        host.root("systemctl stop hostler.service").unwrap();
        play_gpus(&host, &script);
        refused(&host, &refusal);
    }

    // Mended, the next start succeeds without anybody's help.
    put_cdi(&host, &[A, B]).unwrap();
    recovers(&host);
}

#[test]
fn a_driver_that_is_loaded_late_is_waited_for_within_one_start() {
    skip_unless_wanted!();
    let host = serving(&nvml().replace("\"2s\"", "\"60s\"")).unwrap();
    put_nvml(&host).unwrap();
    put_cdi(&host, &[A, B]).unwrap();
    play_gpus(&host, &Script { init: Code::DriverNotLoaded, ..two_gpus() });
    let waiting = count(&host);
    let said = |text: &str| text.starts_with("Waiting for device memory (attempt ");
    wait_property(&host, "hostler.service", "StatusText", FIRST, said).unwrap();
    play_gpus(&host, &two_gpus());
    waiting.check();
    assert_eq!(crate::harness::property(&host, "hostler.service", "NRestarts").unwrap(), "0");
}

#[test]
fn a_configured_device_that_is_not_there_is_named_with_those_that_are() {
    skip_unless_wanted!();
    const GONE: &str = "GPU-cccccccc-0000-0000-0000-000000000000";
    let host = serving(&nvml().replace("vram =", &format!("gpus = [\"{GONE}\"]\nvram ="))).unwrap();
    put_nvml(&host).unwrap();
    put_cdi(&host, &[A, B]).unwrap();
    play_gpus(&host, &two_gpus());
    refused(&host, &Refusal { status: 24, word: "gpu_not_found", says: &[GONE, A, B] });
    config(&host, &nvml()).unwrap();
    recovers(&host);
}

#[test]
fn a_model_is_placed_on_a_gpu_and_gets_that_gpu_alone() {
    skip_unless_wanted!();
    let host = serving(&nvml()).unwrap();
    put_nvml(&host).unwrap();
    put_cdi(&host, &[A, B]).unwrap();
    play_gpus(&host, &two_gpus());
    count(&host).check();

    let all = status(&host).unwrap();
    let totals: Vec<_> = all["gpus"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| (g["id"].clone(), g["total"].clone()))
        .collect();
    assert_eq!(totals, [(json!(A), json!(24 * GIB)), (json!(B), json!(8 * GIB))]);
    let said = |text: &str| text.contains(&format!("{A}: ")) && text.contains("of 24.0 GiB free");
    wait_property(&host, "hostler.service", "StatusText", SOON, said).unwrap();

    let row = model(&host, "count").unwrap();
    let placed = row["gpus"][0].as_str().unwrap().to_owned();
    assert_eq!(row["gpus"].as_array().unwrap().len(), 1, "{row}");
    assert_eq!(row["planned"], json!({"bytes": 2 * GIB, "source": "declared"}));
    let device = all["gpus"].as_array().unwrap().iter().find(|g| g["id"] == *placed).unwrap();
    assert_eq!(device["confirmed"], json!(2 * GIB), "{device}");

    // In the container there is the node of this device, and not the other's.
    let pid = engine(&host).unwrap();
    let nodes = host.root(&format!("ls /proc/{pid}/root/dev | grep nvidia")).unwrap();
    let own = if placed == A { "nvidia0" } else { "nvidia1" };
    assert_eq!(nodes, format!("{own}\nnvidiactl\n"));
    assert_eq!(containers(&host).unwrap().len(), 1);
}

#[test]
fn fault_15_a_gpu_that_is_lost_from_the_start_is_a_problem_and_the_other_is_served_with() {
    skip_unless_wanted!();
    let host = serving(&nvml()).unwrap();
    put_nvml(&host).unwrap();
    put_cdi(&host, &[A, B]).unwrap();
    play_gpus(&host, &broken(GpuFault::Lost));
    let answer = wait_for("/ready to tell the loss", SOON, || {
        let answer = get(&host, "/ready")?;
        let told = answer.status == 503 && answer.body.contains("gpu_lost");
        Ok(if told { Look::Done(answer) } else { Look::NotYet(answer.body) })
    })
    .unwrap();
    assert!(answer.body.contains("index 1"), "{}", answer.body);
    assert_eq!(get(&host, "/health").unwrap().status, 200);
    play_gpus(&host, &two_gpus());
    wait_for("/ready to say ready", SOON, || {
        let answer = get(&host, "/ready")?;
        Ok(if answer.status == 200 { Look::Done(()) } else { Look::NotYet(answer.body) })
    })
    .unwrap();
}

#[test]
fn fault_15_a_gpu_that_is_lost_while_serving_is_a_problem_until_it_is_back() {
    skip_unless_wanted!();
    let host = serving(&nvml()).unwrap();
    put_nvml(&host).unwrap();
    put_cdi(&host, &[A, B]).unwrap();
    play_gpus(&host, &two_gpus());
    assert_eq!(get(&host, "/ready").unwrap().status, 200);
    for (script, code, wanted) in
        [(broken(GpuFault::Lost), 503, "degraded"), (two_gpus(), 200, "ready")]
    {
        play_gpus(&host, &script);
        let answer = wait_for(&format!("/ready to say {wanted}"), SOON, || {
            let answer = get(&host, "/ready")?;
            Ok(if answer.status == code { Look::Done(answer) } else { Look::NotYet(answer.body) })
        })
        .unwrap();
        assert_eq!(answer.json()["status"], wanted);
        if code == 503 {
            let said = answer.json()["problems"][0].clone();
            assert_eq!(said["code"], "gpu_lost", "{said}");
            assert!(said["message"].as_str().unwrap().contains(B), "{said}");
            let told = |text: &str| text.contains("PROBLEM gpu_lost");
            wait_property(&host, "hostler.service", "StatusText", SOON, told).unwrap();
            // It serves on meanwhile.
            assert_eq!(get(&host, "/health").unwrap().status, 200);
        }
    }
}
