//! Who gets the memory: models that fit stay together, the right one leaves, and nothing is promised twice while memory comes
//! back late.

use std::time::{Duration, Instant};

use nvidia_ml::{Gpu, Kind, Process, Script, Size};
use serde_json::{Value, json};

use crate::harness::{Fake, SOON, Scene, get, served, skip_unless_wanted, status};
use testhost::{Look, wait_for};

const GIB: u64 = 1 << 30;
const A: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000000";
const B: &str = "GPU-bbbbbbbb-0000-0000-0000-000000000000";
const SMALL: &str = "MIG-11111111-0000-0000-0000-000000000000";
const LARGE: &str = "MIG-22222222-0000-0000-0000-000000000000";
/// From the end of the last process to the quarantine of what has not come back.
const RELEASE_DEADLINE: Duration = Duration::from_secs(30);

fn row(scene: &Scene, name: &str) -> Value {
    scene.wait_model(name, "looked at", SOON, |_| true)
}

#[test]
fn who_fits_stays_the_cheapest_leaves_and_who_cannot_be_placed_is_told_why() {
    skip_unless_wanted!();
    let mut script = Script::with_gpus(vec![Gpu::new(A, 24 * GIB)]);
    // As usual: memory is back a moment after its process has ended.
    script.gpus[0].release_lag_ms = 1_500;
    let models = [
        Fake::sized("slow", 10).env("LOAD", "3s"),
        Fake::sized("quick", 10),
        Fake::sized("third", 10),
        Fake::sized("huge", 30),
        Fake::sized("modest", 10).line("on_full = \"refuse\""),
        // Without signs of life a stream waits as long as any other request, and has its status.
        Fake::sized("humble", 10).line("priority = -5").line("loading_feedback = \"off\""),
    ];
    let policy = "[policy]\nmin_residency = \"0s\"\n[server]\nmax_wait = \"9s\"";
    let scene = Scene::new(&script, policy, &models).unwrap();

    // Two fit together, whichever way one looks at it.
    scene.serve("slow");
    scene.serve("quick");
    let (slow, quick) = (row(&scene, "slow"), row(&scene, "quick"));
    assert_eq!((&slow["phase"], &quick["phase"]), (&json!("ready"), &json!("ready")));
    assert_eq!(scene.truth(A).used, 20 * GIB);
    assert_eq!(scene.truth(A).processes.len(), 2);

    // What was used last leaves all the same: it is back in a moment, and the other one is not.
    let asked = Instant::now();
    scene.serve("third");
    assert!(asked.elapsed() >= Duration::from_millis(1_500), "started into memory of the dead");
    assert_eq!(row(&scene, "quick")["instance"], Value::Null);
    assert_eq!(row(&scene, "slow")["instance"], slow["instance"], "it was left alone");
    let journal = scene.host.journal("hostler.service").unwrap();
    let quick = quick["instance"].as_str().unwrap();
    assert!(journal.contains(&format!("quick: stopping {quick} (evicted)")), "{journal}");
    assert_eq!(journal.matches("(evicted)").count(), 1, "{journal}");
    assert!(journal.contains("quick: leaves for third"), "{journal}");
    // It left for the request that made the other one start.
    let cause = |kind: &str| {
        let only = "-o cat --output-fields=HOSTLER_REQUEST_ID";
        let ask = format!("journalctl -b --no-pager {only} {kind}");
        scene.host.root(&ask).unwrap().trim().to_owned()
    };
    let started = cause("HOSTLER_KIND=starting HOSTLER_MODEL=third");
    assert!(!started.is_empty() && !started.contains('\n'), "{started:?}");
    assert_eq!(cause("HOSTLER_KIND=stopping HOSTLER_MODEL=quick"), started);
    assert_eq!(scene.truth(A).used, 20 * GIB);

    // Never: at once, and a retry is useless.
    let never = scene.ask("huge").wait();
    assert_eq!(never.status, 503, "{never:?}");
    let error = never.json()["error"].clone();
    assert_eq!(error["code"], "model_never_fits");
    let message =
        "model huge needs 30.0 GiB on one device, but the largest offers 24.0 GiB when empty";
    assert_eq!(error["message"], message);
    let device = &error["details"]["plan"]["devices"][0];
    assert_eq!((&device["gpu"], &device["verdict"]), (&json!(A), &json!("too_small")));
    assert_eq!(never.header("retry-after"), None);

    // Not now: at once for who does not want to wait, after the wait for the other one. Both name who stays, and why.
    for (model, at_least, why) in [
        ("modest", Duration::ZERO, "slow stays: on_full = \"refuse\" evicts nobody"),
        ("humble", Duration::from_secs(9), "slow stays: its priority is higher"),
    ] {
        let asked = Instant::now();
        let refused = scene.ask(model).wait();
        assert!(asked.elapsed() >= at_least, "{model}: {refused:?}");
        assert_eq!(refused.status, 503, "{refused:?}");
        let error = refused.json()["error"].clone();
        assert_eq!(error["code"], "no_room", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(&format!("{model} needs 10.0 GiB per device; {A}: ")),
            "{message}"
        );
        assert!(message.contains(why), "{message}");
        assert!(message.contains(&why.replace("slow", "third")), "{message}");
        assert!(refused.header("retry-after").is_some(), "{}", refused.head);
    }
    scene.never_over_committed();
}

#[test]
fn fault_14_memory_that_comes_back_late_is_waited_for_then_quarantined_and_never_promised_twice() {
    skip_unless_wanted!();
    let mut script = Script::with_gpus(vec![Gpu::new(A, 24 * GIB), Gpu::new(B, 24 * GIB)]);
    script.gpus.iter_mut().for_each(|gpu| gpu.release_lag_ms = 600_000);
    let on = |name: &str, gib, gpu: &str| Fake::sized(name, gib).line(&format!("gpus = [{gpu:?}]"));
    let models = [
        on("held", 14, A),
        on("next", 14, A),
        on("tiny", 4, A),
        on("undead", 14, B),
        on("heir", 14, B),
    ];
    let scene = Scene::new(&script, "[policy]\nmin_residency = \"0s\"", &models).unwrap();
    scene.serve("held");
    scene.serve("undead");
    let (held, undead) = (row(&scene, "held"), row(&scene, "undead"));
    let pid = scene.engine("undead");

    // On the one device the driver keeps the memory for nobody, on the other one for a process that should be dead.
    let (next, heir) = (scene.ask("next"), scene.ask("heir"));
    let lingering = || Ok(scene.truth(A).lingering.min(scene.truth(B).lingering));
    let dead = wait_for("both to be dead", SOON, || {
        let bytes = lingering()?;
        Ok(if bytes == 14 * GIB { Look::Done(Instant::now()) } else { Look::NotYet(String::new()) })
    });
    let dead = dead.unwrap();
    scene.edit_gpu(B, |gpu| {
        gpu.release_lag_ms = 0;
        gpu.processes = vec![Process { pid, bytes: Size(14 * GIB), kind: Kind::Compute }];
    });
    // This one would fit beside it, but nobody starts where something is still coming back.
    let tiny = scene.ask("tiny");

    let problem = wait_for("the quarantine", RELEASE_DEADLINE + SOON, || {
        let status = status(&scene.host)?;
        let problem = &status["problems"][0];
        if problem["code"] == "memory_quarantined" && status["gpus"][1]["quarantined"] != 0 {
            return Ok(Look::Done(problem.clone()));
        }
        for name in ["next", "heir", "tiny"] {
            let row = status["models"].as_array().unwrap().iter().find(|r| r["name"] == name);
            assert_eq!(
                row.unwrap()["instance"],
                Value::Null,
                "started into memory that is not there"
            );
        }
        Ok(Look::NotYet(status["gpus"].to_string()))
    });
    let problem = problem.unwrap();
    let waited = dead.elapsed();
    assert!(waited >= RELEASE_DEADLINE - Duration::from_secs(2), "after {waited:?}");
    let message = problem["message"].as_str().unwrap();
    let of = |row: &Value| {
        format!("14.0 GiB of {} have not come back on ", row["instance"].as_str().unwrap())
    };
    for text in [
        format!("{}{A}; no process accounts for it", of(&held)),
        format!("{}{B}; held by the processes {pid}: end them", of(&undead)),
    ] {
        assert!(message.contains(&text), "{text:?} is not in {message}");
    }
    let ready = get(&scene.host, "/ready").unwrap();
    assert_eq!((ready.status, ready.json()["status"].clone()), (503, json!("degraded")));
    assert!(ready.body.contains(&pid.to_string()), "{ready:?}");

    // Quarantined memory is not in the way of what fits beside it, and it is still nobody's to have.
    served(&tiny.wait());
    for name in ["next", "heir"] {
        assert_eq!(row(&scene, name)["instance"], Value::Null);
    }

    // Given back, it is free like any other.
    scene.edit(|script| {
        for gpu in &mut script.gpus {
            gpu.release_lag_ms = 0;
            gpu.processes.clear();
        }
    });
    served(&next.wait());
    served(&heir.wait());
    let ready = get(&scene.host, "/ready").unwrap();
    assert_eq!(ready.status, 200, "{ready:?}");
    scene.never_over_committed();
}

#[test]
fn a_model_is_placed_on_a_mig_device_by_its_uuid() {
    skip_unless_wanted!();
    let mut script = Script::with_gpus(vec![Gpu::new(A, 80 * GIB), Gpu::new(B, 8 * GIB)]);
    let slice = |uuid: &str, gib: u64| Gpu {
        name: format!("NVIDIA Stub MIG {gib}gb"),
        ..Gpu::new(uuid, gib * GIB)
    };
    script.gpus[0].mig = Some(true);
    script.gpus[0].mig_devices = vec![slice(SMALL, 10), slice(LARGE, 20)];
    let models =
        [Fake::sized("sliced", 12), Fake::sized("bound", 3).line(&format!("gpus = [{SMALL:?}]"))];
    let scene = Scene::new(&script, "", &models).unwrap();
    scene.serve("sliced");
    scene.serve("bound");

    // The whole device is not there for models, its parts are.
    let all = status(&scene.host).unwrap();
    let gpus = all["gpus"].as_array().unwrap().iter();
    let gpus: Vec<_> = gpus.map(|gpu| (gpu["id"].clone(), gpu["total"].clone())).collect();
    let wanted = [(B, 8), (SMALL, 10), (LARGE, 20)];
    assert_eq!(gpus, wanted.map(|(uuid, gib)| (json!(uuid), json!(gib * GIB))));

    for (name, uuid, gib) in [("sliced", LARGE, 12), ("bound", SMALL, 3)] {
        let measured = |row: &Value| row["observed"] == json!(gib * GIB);
        let row = scene.wait_model(name, "attributed", SOON, measured);
        assert_eq!(row["gpus"], json!([uuid]), "{row}");
        let truth = scene.truth(uuid);
        assert_eq!((truth.used, truth.processes.len()), (gib * GIB, 1));
        // What came into the container is what the specification says of that very name.
        let pid = scene.engine(name);
        let env = scene.host.root(&format!("tr '\\0' '\\n' </proc/{pid}/environ")).unwrap();
        assert!(env.contains(&format!("NVIDIA_VISIBLE_DEVICES={uuid}\n")), "{env}");
    }
    scene.never_over_committed();
}
