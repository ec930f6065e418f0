//! Memory that others take, a stream that must not lose its model, and clocks that jump.

use std::time::{Duration, Instant};

use nvidia_ml::{Gpu, Kind, Process, Script, Size};
use serde_json::{Value, json};
use testhost::{Look, wait_for};

use crate::harness::{
    Fake, SOON, Scene, containers, count_request, post, served, skip_unless_wanted, status,
};

const GIB: u64 = 1 << 30;
const A: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000000";

#[test]
fn fault_16_idle_models_yield_to_a_foreign_process_which_is_left_alone() {
    skip_unless_wanted!();
    let script = Script::with_gpus(vec![Gpu::new(A, 24 * GIB)]);
    // The slow one costs more to have back.
    let models = [
        Fake::sized("slow", 6).env("LOAD", "3s"),
        Fake::sized("quick", 6),
        Fake::sized("busy", 6).env("RATE", "2"),
    ];
    let policy = "headroom = \"2GiB\"\n[policy]\nmin_residency = \"0s\"";
    let scene = Scene::new(&script, policy, &models).unwrap();
    scene.serve("slow");
    scene.serve("quick");
    let stream = post(&scene.host, "/v1/chat/completions", &count_request("busy", 40));
    scene.wait_model("busy", "in use", SOON, |row| row["in_flight"] == 1);
    // A process of somebody else, with a life of its own, takes what is free, and half of what is kept free for engines that
    // grow: the cheapest idle model leaves.
    let foreign = scene.host.root("setsid sleep 600 >/dev/null 2>&1 & echo $!").unwrap();
    let foreign: u32 = foreign.trim().parse().unwrap();
    scene.edit_gpu(A, |gpu| {
        gpu.processes = vec![Process { pid: foreign, bytes: Size(5 * GIB), kind: Kind::Compute }];
    });
    scene.wait_stopped("quick");
    let journal = scene.host.journal("hostler.service").unwrap();
    assert!(journal.contains("(pressure)"), "{journal}");
    let phase = |name| scene.wait_model(name, "looked at", SOON, |_| true)["phase"].clone();
    assert_eq!((phase("slow"), phase("busy")), (json!("ready"), json!("ready")));
    // More: the other idle one too. The busy one stays, whatever comes.
    scene.edit_gpu(A, |gpu| gpu.processes[0].bytes = Size(11 * GIB));
    scene.wait_stopped("slow");
    scene.edit_gpu(A, |gpu| gpu.processes[0].bytes = Size(17 * GIB));
    wait_for("the problem", SOON, || {
        let problems = status(&scene.host)?["problems"].to_string();
        let said = problems.contains("memory_pressure")
            && problems.contains("no model there may leave now");
        Ok(if said { Look::Done(()) } else { Look::NotYet(problems) })
    })
    .unwrap();
    served(&stream.wait());
    assert_eq!(scene.host.root(&format!("kill -0 {foreign} && echo lives")).unwrap(), "lives\n");
    // It goes, and everybody has room again.
    scene.edit_gpu(A, |gpu| gpu.processes.clear());
    scene.serve("slow");
    scene.serve("quick");
    scene.host.root(&format!("kill {foreign}")).unwrap();
}

#[test]
fn fault_20_a_long_stream_keeps_its_model_from_being_evicted() {
    skip_unless_wanted!();
    let script = Script::with_gpus(vec![Gpu::new(A, 8 * GIB)]);
    let models = [
        Fake::sized("streams", 6).env("RATE", "4").line("idle_timeout = \"1s\""),
        Fake::sized("wants", 6),
    ];
    let scene = Scene::new(&script, "[policy]\nmin_residency = \"0s\"", &models).unwrap();
    let stream = post(&scene.host, "/v1/chat/completions", &count_request("streams", 48));
    scene.wait_model("streams", "in use", SOON, |row| row["in_flight"] == 1);
    let before = containers(&scene.host).unwrap();
    let (asked, wants) = (Instant::now(), scene.ask("wants"));
    served(&stream.wait());
    let streamed = asked.elapsed();
    assert!(streamed > Duration::from_secs(8), "too short a stream shows nothing: {streamed:?}");
    served(&wants.wait());
    assert!(asked.elapsed() > streamed);
    let journal = scene.host.journal("hostler.service").unwrap();
    let at = |text: &str| journal.find(text).unwrap_or_else(|| panic!("{text:?} in {journal}"));
    assert!(at("streams: stopping") > at("wants: waiting for room"), "{journal}");
    let why = "streams stays";
    assert!(journal[at("wants: waiting for room")..].contains(why), "{journal}");
    let after = containers(&scene.host).unwrap();
    assert_ne!(before, after);
    let gone: Value = scene.wait_model("streams", "gone", SOON, |_| true);
    assert_eq!(gone["instance"], Value::Null);
    scene.never_over_committed();
}

#[test]
fn fault_27_a_clock_that_jumps_evicts_nobody() {
    skip_unless_wanted!();
    let script = Script::with_gpus(vec![Gpu::new(A, 24 * GIB)]);
    let models =
        ["now", "later", "earlier"].map(|name| Fake::sized(name, 4).line("idle_timeout = \"10m\""));
    let policy = "[policy]\nmin_residency = \"0s\"";
    let scene = Scene::new(&script, policy, &models).unwrap();
    // The host's clock is the machine's own: only what the daemon reads is bent. Monotonic time stays as it is, as it does where
    // an administrator or NTP sets a clock.
    let clock = "/run/clock";
    let library = scene.host.root("ls /usr/lib/*/faketime/libfaketime.so.1").unwrap();
    let unit = format!(
        "[Service]\nEnvironment=LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={clock}\nEnvironment=FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1\n",
        library.trim()
    );
    scene.host.write_file("/etc/systemd/system/hostler.service.d/clock.conf", &unit).unwrap();
    scene.host.write_file(clock, "+0\n").unwrap();
    scene.host.root("systemctl daemon-reload").unwrap();

    let mut measured = Vec::new();
    let mut containers_then = Vec::new();
    for (model, jump) in [("now", "+0"), ("later", "+365d"), ("earlier", "-365d")] {
        scene.host.write_file(clock, &format!("{jump}\n")).unwrap();
        // What is loaded and measured after the jump is of the new time: the daemon believes in it.
        scene.serve(model);
        scene.wait_model(model, "measured", Duration::from_secs(60), |row| {
            !row["footprint"].is_null()
        });
        let kept = wait_for("the footprint on disk", SOON, || {
            let text = scene.host.root("cat /var/lib/hostler/state/footprints")?;
            let body: Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
            let found =
                body.as_array().unwrap().iter().find(|f| f["key"]["model"] == model).cloned();
            Ok(found.map_or(Look::NotYet(text), Look::Done))
        })
        .unwrap();
        measured.push(kept["measured_at_unix_s"].as_i64().unwrap());
        // Whoever was there is there still.
        let list = containers(&scene.host).unwrap();
        assert_eq!(list.len(), measured.len(), "{list:?}");
        assert!(
            containers_then.iter().all(|old| list.contains(old)),
            "{containers_then:?} {list:?}"
        );
        containers_then = list;
    }
    let days = |from: i64, to: i64| (to - from) / (24 * 3600);
    assert!((364..=366).contains(&days(measured[0], measured[1])), "{measured:?}");
    assert!((364..=366).contains(&days(measured[2], measured[0])), "{measured:?}");
    for model in ["now", "later", "earlier"] {
        scene.serve(model);
    }
    assert_eq!(containers(&scene.host).unwrap(), containers_then);
    let journal = scene.host.journal("hostler.service").unwrap();
    assert!(!journal.contains(": stopping "), "{journal}");
    scene.never_over_committed();
}
