//! What the daemon believes about memory, against what is true: stand-in engines hold scripted bytes of scripted devices.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nvidia_ml::{Gpu, GpuFault, Kind, Process, ProcessMemory, Script, Size};
use serde_json::{Value, json};

use crate::harness::{FAKE_IMAGE, Fake, SOON, Scene, skip_unless_wanted, status};
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

/// Waits until every model has a footprint; the rows then. `meanwhile` is done at each look.
fn wait_measured(scene: &Scene, mut meanwhile: impl FnMut()) -> BTreeMap<String, Value> {
    wait_for("all footprints", MEASURED, || {
        meanwhile();
        let rows = rows(scene);
        let left = rows.values().filter(|row| row["footprint"].is_null());
        let left: Vec<String> = left.map(|r| format!("{} is {}", r["name"], r["phase"])).collect();
        Ok(if left.is_empty() { Look::Done(rows) } else { Look::NotYet(left.join(", ")) })
    })
    .unwrap()
}

/// The largest error of these footprints, which is said; at most 2 % are allowed.
fn check_errors(rows: &BTreeMap<String, Value>, truth: &BTreeMap<String, u64>) {
    let errors = rows.iter().flat_map(|(name, row)| {
        let footprint = &row["footprint"];
        [error(&footprint["bytes"], truth[name]), error(&footprint["peak"], truth[name])]
    });
    let worst = errors.fold(0.0, f64::max);
    eprintln!("{} footprints, the largest error is {:.3} %", rows.len(), worst * 100.0);
    assert!(worst <= 0.02, "{worst} in {rows:#?}");
}

/// Breathes in or out on each device, as desktops do, by less than what makes a sample void.
fn breathe(scene: &Scene, base: u64, breath: &mut u64) {
    *breath = 40 * MIB - *breath;
    scene.edit(|script| script.gpus.iter_mut().for_each(|g| g.foreign = Size(base + *breath)));
}

fn journal(scene: &Scene) -> String {
    scene.host.journal("hostler.service").unwrap()
}

#[test]
fn twenty_loads_are_measured_as_they_are_and_remembered() {
    skip_unless_wanted!();
    let gpus: Vec<Gpu> = (0..4).map(|index| Gpu::new(uuid(index), 80 * GIB)).collect();
    let mut script = Script::with_gpus(gpus);
    script.gpus.iter_mut().for_each(|gpu| gpu.reserved = Size(600 * MIB));
    // From 300 MiB to 20.3 GiB, each a quarter larger than the one before.
    let sizes = std::iter::successors(Some(300), |mib| Some(mib * 5 / 4)).take(20);
    let truth: BTreeMap<String, u64> =
        sizes.enumerate().map(|(n, mib)| (format!("m{n:02}"), mib * MIB)).collect();
    let file = |name: &str| format!("/var/lib/hostler/models/{name}.bin");
    let fake = |(name, bytes): (&String, &u64)| {
        let (kv, overhead) = (bytes / 4, bytes / 16);
        let vram = format!("weights={},kv={kv},overhead={overhead}", bytes - kv - overhead);
        let weights = format!("weights = {{ path = {:?} }}", file(name));
        Fake::new(name, &vram).line(&weights).line("pin = true")
    };
    let models: Vec<Fake> = truth.iter().map(fake).collect();
    let scene = Scene::new(&script, "", &models).unwrap();
    let size = |(name, bytes): (&String, &u64)| {
        format!("truncate --size={} {};", bytes * 3 / 4, file(name))
    };
    scene.host.root(&truth.iter().map(size).collect::<String>()).unwrap();

    let mut breath = 0;
    let measured = wait_measured(&scene, || breathe(&scene, GIB, &mut breath));
    check_errors(&measured, &truth);
    for row in measured.values() {
        assert_eq!(row["planned"]["source"], "estimated", "{row}");
        assert_eq!(row["footprint"]["attribution"], "process", "{row}");
        assert!(row["footprint"]["samples"].as_u64() >= Some(5), "{row}");
    }

    // The next daemon knows: it promises what was measured, with the margin of the confidence.
    scene.host.root("systemctl stop hostler.service").unwrap();
    let kept = scene.host.root("cat /var/lib/hostler/state/footprints").unwrap();
    assert!(truth.keys().all(|name| kept.contains(&format!("\"model\":{name:?}"))), "{kept}");
    let planned = wait_for("all to be started anew", MEASURED, || {
        let rows = rows(&scene);
        let left = rows.values().filter(|row| row["planned"].is_null());
        let left: Vec<String> = left.map(|row| row["name"].to_string()).collect();
        Ok(if left.is_empty() { Look::Done(rows) } else { Look::NotYet(left.join(", ")) })
    });
    for (name, row) in planned.unwrap() {
        assert_eq!(row["planned"]["source"], "measured", "{row}");
        let promised = row["planned"]["bytes"].as_u64().unwrap();
        let (least, most) = (truth[&name], truth[&name] * 12 / 10);
        assert!((least..=most).contains(&promised), "{row}");
    }
    scene.never_over_committed();
}

#[test]
fn fault_15_without_numbers_of_processes_the_difference_of_the_device_counts_with_low_confidence() {
    skip_unless_wanted!();
    let mut script = Script::with_gpus((0..2).map(|n| Gpu::new(uuid(n), 24 * GIB)).collect());
    script.gpus[0].process_memory = ProcessMemory::NotAvailable;
    script.gpus[1].fault = GpuFault::ProcessesNotSupported;
    let truth = BTreeMap::from([("numberless".into(), 5 * GIB), ("listless".into(), 7 * GIB)]);
    let models = [("numberless", 0), ("listless", 1)].map(|(name, n): (&str, usize)| {
        let on = format!("gpus = [{:?}]", uuid(n));
        Fake::new(name, &truth[name].to_string()).line(&on).line("pin = true")
    });
    let scene = Scene::new(&script, "", &models).unwrap();
    let mut breath = 0;
    let measured = wait_measured(&scene, || breathe(&scene, GIB, &mut breath));
    check_errors(&measured, &truth);
    for row in measured.values() {
        assert_eq!(row["observed"], Value::Null, "unknown is not zero: {row}");
        assert_eq!(row["footprint"]["attribution"], "delta", "{row}");
        assert_eq!(row["footprint"]["confidence"], "low", "{row}");
    }
    // A quarter more is promised where so little is known.
    scene.host.root("systemctl stop hostler.service").unwrap();
    let row = scene.wait_model("listless", "started anew", SOON, |row| !row["planned"].is_null());
    assert_eq!(row["planned"]["source"], "measured", "{row}");
    assert!(error(&row["planned"]["bytes"], truth["listless"] * 5 / 4) <= 0.02, "{row}");
    scene.never_over_committed();
}

#[test]
fn fault_16_what_others_take_meanwhile_never_gets_into_a_footprint() {
    skip_unless_wanted!();
    let mut script = Script::with_gpus((0..2).map(|n| Gpu::new(uuid(n), 80 * GIB)).collect());
    script.gpus[1].process_memory = ProcessMemory::NotAvailable;
    let models = [("told", 0), ("guessed", 1)].map(|(name, n): (&str, usize)| {
        let on = format!("gpus = [{:?}]", uuid(n));
        Fake::new(name, "4GiB").line(&on).line("pin = true")
    });
    let scene = Scene::new(&script, "", &models).unwrap();
    scene.wait_model("told", "ready", SOON, |row| row["phase"] == "ready");
    scene.wait_model("guessed", "ready", SOON, |row| row["phase"] == "ready");

    // Somebody else's memory grows for as long as a measurement would take; one of them is even listed with its numbers.
    let begun = Instant::now();
    let growing = wait_for("the growth to be over", SOON, || {
        let grown = begun.elapsed().as_secs() * 200 * MIB;
        scene.edit(|script| {
            script.gpus[0].foreign = Size(grown);
            script.gpus[1].foreign = Size(grown);
            let process = Process { pid: 4_000_000, bytes: Size(grown), kind: Kind::Graphics };
            script.gpus[0].processes = vec![process];
        });
        for row in rows(&scene).values() {
            assert_eq!(row["footprint"], Value::Null, "measured in the middle of it: {row}");
        }
        let over = begun.elapsed() >= Duration::from_millis(10_500);
        Ok(if over { Look::Done(()) } else { Look::NotYet(String::new()) })
    });
    growing.unwrap();
    let told = scene.wait_model("told", "measured", SOON, |row| !row["footprint"].is_null());
    assert_eq!(told["footprint"]["bytes"], json!(4 * GIB), "{told}");

    // Where nobody tells whose memory it is, a number that is steady again need not be the engine's: there is none.
    let guessed = scene.wait_model("guessed", "looked at", SOON, |_| true);
    assert_eq!(guessed["footprint"], Value::Null, "{guessed}");
    let journal = journal(&scene);
    let said = "guessed: its memory cannot be measured this time: the use of ";
    assert!(journal.contains(said), "{journal}");
    scene.never_over_committed();
}

#[test]
fn an_image_rebuilt_under_the_same_tag_is_measured_anew() {
    skip_unless_wanted!();
    const TAG: &str = "localhost/site/engine:latest";
    let script = Script::with_gpus(vec![Gpu::new(uuid(0), 24 * GIB)]);
    let built = Fake::new("built", "").without("VRAM").image(TAG);
    // Neither says what it needs, so each has the device to itself at first.
    let models = [built, Fake::new("other", "1GiB")];
    let scene = Scene::new(&script, "[policy]\nmin_residency = \"0s\"", &models).unwrap();
    let build = |vram: &str| {
        let file = format!("FROM {FAKE_IMAGE}\nENV FAKE_VRAM={vram}\n");
        let script = format!("printf '{file}' | podman build --quiet --tag {TAG} --file - /tmp");
        scene.host.user("hostler", &script).unwrap()
    };
    let first = build("4GiB");
    scene.serve("built");
    let measured = |row: &Value| !row["footprint"].is_null();
    let before = scene.wait_model("built", "measured", MEASURED, measured);
    assert_eq!(before["footprint"]["bytes"], json!(4 * GIB), "{before}");

    assert_ne!(first, build("6GiB"));
    scene.serve("other");
    scene.wait_stopped("built");
    scene.serve("built");
    let anew = scene.wait_model("built", "looked at", SOON, |_| true);
    assert_eq!(anew["footprint"], Value::Null, "that was another image: {anew}");
    assert_eq!(
        anew["planned"]["source"], "exclusive",
        "nor does it say what this one needs: {anew}"
    );
    let after = scene.wait_model("built", "measured", MEASURED, measured);
    assert_eq!(after["footprint"]["bytes"], json!(6 * GIB), "{after}");

    // Both are kept, each under its own image.
    let kept = scene.host.root("cat /var/lib/hostler/state/footprints").unwrap();
    let kept: Value = serde_json::from_str(kept.split_once('\n').unwrap().1).unwrap();
    let kept = kept.as_array().unwrap().iter().filter(|f| f["key"]["model"] == "built");
    let kept: BTreeMap<_, _> = kept
        .map(|f| (f["key"]["image_digest"].to_string(), f["bytes_per_device"].clone()))
        .collect();
    let mut bytes: Vec<u64> = kept.values().filter_map(Value::as_u64).collect();
    bytes.sort_unstable();
    assert_eq!(bytes, [4 * GIB, 6 * GIB], "{kept:?}");
    scene.never_over_committed();
}

#[test]
fn vllm_takes_what_it_is_promised_and_is_measured_by_whoever_finds_it() {
    skip_unless_wanted!();
    let mut script = Script::with_gpus(vec![Gpu::new(uuid(0), 24 * GIB)]);
    (script.gpus[0].reserved, script.gpus[0].foreign) = (Size(600 * MIB), Size(500 * MIB));
    let greedy = |name: &str, gib: u64| {
        let vram = "weights=4GiB,kv=auto,overhead=512MiB";
        Fake::new(name, vram).vllm().line(&format!("vram = \"{gib}GiB\"")).line("pin = true")
    };
    let scene = Scene::new(&script, "", &[greedy("eight", 8), greedy("ten", 10)]).unwrap();
    let before = ["eight", "ten"]
        .map(|name| scene.wait_model(name, "ready", SOON, |row| row["phase"] == "ready"));

    // A share of the device, of four digits: never more than was declared, and hardly less; a context comes on top.
    let mut held: Vec<u64> = scene.truth(&uuid(0)).processes.iter().map(|p| p.bytes.0).collect();
    held.sort_unstable();
    assert_eq!(held.len(), 2);
    for (held, told) in held.iter().zip([8 * GIB, 10 * GIB]) {
        let told = told + 512 * MIB;
        assert!((told - 3 * MIB..=told).contains(held), "{held} of {told}");
    }

    // A daemon that did not start them measures them all the same.
    scene.host.root("systemctl kill --signal=KILL hostler.service").unwrap();
    let measured = wait_measured(&scene, || ());
    let truth = BTreeMap::from([("eight".to_owned(), held[0]), ("ten".to_owned(), held[1])]);
    check_errors(&measured, &truth);
    for (before, after) in before.iter().zip(measured.values()) {
        assert_eq!(before["footprint"], Value::Null, "{before}");
        assert_eq!(before["instance"], after["instance"], "it was not started anew");
    }
    // What keeps to its word is promised the same again, not a margin more.
    scene.host.root("systemctl stop hostler.service").unwrap();
    let row = scene.wait_model("ten", "started anew", SOON, |row| !row["planned"].is_null());
    assert_eq!(row["planned"], json!({"bytes": 11 * GIB, "source": "declared"}), "{row}");
    scene.never_over_committed();
}
