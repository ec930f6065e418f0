//! Load, heat and power.

use std::time::Duration;

use hostler::adapters::gpu::Nvml;
use hostler::supervisor::ports::Gpus as _;
use hostler::types::Known;
use nvidia_ml::GpuFault;

use crate::rig::{Rig, gpu};

#[tokio::test]
async fn they_are_those_of_the_last_reading_and_what_is_not_told_is_unknown() {
    let rig = Rig::new().await;
    rig.change(|script| {
        script.gpus[0].temperature_c = 61;
        script.gpus[0].power_mw = 312_500;
        script.gpus[0].utilization_percent = 75;
    });
    let nvml = rig.nvml();
    assert!(nvml.vitals().await.is_empty(), "nothing was read yet");
    nvml.snapshot().await.unwrap();
    let vitals = nvml.vitals().await;
    assert_eq!(vitals.iter().map(|v| v.id.clone()).collect::<Vec<_>>(), [gpu(0), gpu(1)]);
    let first = &vitals[0];
    assert_eq!(first.temperature, Known::Known(61.0));
    assert_eq!(first.power, Known::Known(312.5));
    assert_eq!(first.compute, Known::Known(0.75));
    // This driver has no such function.
    assert_eq!(first.power_limit, Known::Unknown);
    assert_eq!(vitals[1].temperature, Known::Known(40.0));

    rig.change(|script| {
        script.gpus[0].temperature_c = 62;
        script.gpus[1].fault = GpuFault::Lost;
    });
    assert_eq!(nvml.vitals().await, vitals, "a scrape asks the driver for nothing");
    nvml.snapshot().await.unwrap();
    let vitals = nvml.vitals().await;
    assert_eq!(vitals.len(), 1, "a lost device has none");
    assert_eq!(vitals[0].temperature, Known::Known(62.0));
}

#[tokio::test]
#[ignore = "needs an NVIDIA GPU"]
async fn they_are_those_that_nvidia_smi_shows() {
    let nvml = Nvml::with_deadline(None, Vec::new(), Duration::from_secs(20));
    nvml.snapshot().await.unwrap();
    let vitals = nvml.vitals().await;
    let fields =
        "--query-gpu=uuid,temperature.gpu,power.draw.instant,enforced.power.limit,utilization.gpu";
    let mut smi = std::process::Command::new("nvidia-smi");
    let output = smi.args([fields, "--format=csv,noheader,nounits"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), vitals.len());
    for (line, seen) in text.lines().zip(&vitals) {
        let fields: Vec<&str> = line.split(", ").collect();
        println!("{line}\n{seen:?}");
        assert_eq!(fields[0], seen.id.as_str());
        let near = |known: Known<f64>, field: &str, by: f64| {
            let value: f64 = field.trim().parse().unwrap();
            assert!((known.get().unwrap() - value).abs() <= by, "{known:?}, not {value}");
        };
        near(seen.temperature, fields[1], 5.0);
        near(seen.power, fields[2], 150.0);
        near(seen.power_limit, fields[3], 1.0);
        // Each is the load of a window of its own, of a sixth of a second to a second: only a steady load reads alike.
        near(Known::Known(seen.compute.get().unwrap() * 100.0), fields[4], 30.0);
    }
}
