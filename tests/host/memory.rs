//! What the daemon believes about memory, against what is true: stand-in engines hold scripted bytes of scripted devices.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nvidia_ml::{Gpu, Script, Size};
use serde_json::{Value, json};

use crate::harness::{Fake, Scene, skip_unless_wanted, status};
use testhost::{Look, wait_for};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// A footprint needs five samples that are two seconds apart; this is that on a busy machine, with starts before it.
const MEASURED: Duration = Duration::from_secs(60);

fn uuid(index: usize) -> String {
    format!("GPU-{index:08}-0000-0000-0000-000000000000")
}

/// How far a number is from the truth, in parts of it.
fn error(seen: &Value, truth: u64) -> f64 {
    let seen = seen.as_u64().unwrap_or_else(|| panic!("no number: {seen}"));
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let error = seen.abs_diff(truth) as f64 / truth as f64;
    error
}

fn rows(scene: &Scene) -> BTreeMap<String, Value> {
    let all = status(&scene.host).unwrap();
    let rows = all["models"].as_array().cloned().unwrap_or_default();
    rows.into_iter().map(|row| (row["name"].as_str().unwrap_or_default().to_owned(), row)).collect()
}

#[test]
fn twenty_loads_are_measured_as_they_are_and_remembered() {
    skip_unless_wanted!();
    let gpus: Vec<Gpu> = (0..4).map(|index| Gpu::new(uuid(index), 80 * GIB)).collect();
    let mut script = Script::with_gpus(gpus);
    for gpu in &mut script.gpus {
        (gpu.reserved, gpu.foreign) = (Size(600 * MIB), Size(GIB));
    }
    // From 300 MiB to 20.8 GiB.
    let truth: BTreeMap<String, u64> =
        (0..20_i32).map(|n| (format!("m{n:02}"), (300.0 * 1.25_f64.powi(n)) as u64 * MIB)).collect();
    let models: Vec<Fake> = truth
        .iter()
        .map(|(name, bytes)| {
            let (kv, overhead) = (bytes / 4, bytes / 16);
            let vram = format!("weights={},kv={kv},overhead={overhead}", bytes - kv - overhead);
            let weights = format!("weights = {{ path = \"/var/lib/hostler/models/{name}.bin\" }}");
            Fake::new(name, &vram).line(&weights).line("pin = true")
        })
        .collect();
    let started = Instant::now();
    let scene = Scene::new(&script, "", &models).unwrap();
    for (name, bytes) in &truth {
        let file = format!("/var/lib/hostler/models/{name}.bin");
        scene.host.root(&format!("truncate --size={} {file}", bytes * 3 / 4)).unwrap();
    }
    eprintln!("host: {:?}", started.elapsed());
    scene.host.root("systemctl start hostler.service").unwrap();
    eprintln!("ready: {:?}", started.elapsed());
    let mut breath = 0;
    wait_for("all footprints", MEASURED, || {
        // Others on the devices breathe, as desktops do.
        breath = 40 * MIB - breath;
        scene.edit(|script| script.gpus.iter_mut().for_each(|g| g.foreign = Size(GIB + breath)));
        let rows = rows(&scene);
        let left = rows.values().filter(|row| row["footprint"].is_null());
        let left: Vec<String> = left.map(|r| format!("{} {} {}", r["name"], r["phase"], r["waiting_for"])).collect();
        Ok(if left.is_empty() { Look::Done(()) } else { Look::NotYet(left.join("\n")) })
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", scene.host.journal("hostler.service").unwrap()));
    eprintln!("measured: {:?}", started.elapsed());
    let mut worst = 0.0_f64;
    for (name, row) in rows(&scene) {
        let footprint = &row["footprint"];
        assert_eq!(footprint["attribution"], "process", "{row}");
        worst = worst.max(error(&footprint["bytes"], truth[&name]));
        worst = worst.max(error(&footprint["peak"], truth[&name]));
    }
    eprintln!("worst error of 20 footprints: {:.3} %", worst * 100.0);
    assert!(worst <= 0.02, "{worst}");
    scene.host.root("systemctl stop hostler.service").unwrap();
    eprintln!("stopped: {:?}", started.elapsed());
    let text = scene.host.root("cat /var/lib/hostler/state/footprints").unwrap();
    eprintln!("{}", &text[..600]);
    scene.host.root("systemctl start hostler.service").unwrap();
    wait_for("all planned", MEASURED, || {
        let rows = rows(&scene);
        let left: Vec<&str> = rows.iter().filter(|(_, row)| row["planned"].is_null()).map(|(n, _)| n.as_str()).collect();
        Ok(if left.is_empty() { Look::Done(()) } else { Look::NotYet(left.join("\n")) })
    })
    .unwrap();
    eprintln!("planned: {:?}", started.elapsed());
    for (name, row) in rows(&scene) {
        assert_eq!(row["planned"]["source"], json!("measured"), "{row}");
        eprintln!("{name} {} {} {}", row["planned"], row["footprint"], truth[&name]);
    }
    scene.never_over_committed();
}
