//! Engines that do not go, devices that are not there any more, networks that die.

use nvidia_ml::{Gpu, Script};
use serde_json::json;
use testhost::{Look, wait_for};

use super::answered;
use crate::harness::{
    COUNT, Fake, SOON, Scene, allow_internet, containers, count, count_request, engine, events,
    nothing_left, post, serving, skip_unless_wanted, wait_phase,
};

const GIB: u64 = 1 << 30;
const A: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000000";

#[test]
fn fault_11_a_device_that_podman_cannot_find_any_more_is_named_with_the_fix() {
    skip_unless_wanted!();
    let script = Script::with_gpus(vec![Gpu::new(A, 8 * GIB)]);
    let models = [Fake::new("m", "1GiB").line("vram = \"1GiB\"")];
    let scene = Scene::new(&script, "", &models).unwrap();
    scene.wait_stopped("m");
    scene.host.root("mkdir /tmp/cdi && mv /etc/cdi/* /tmp/cdi/").unwrap();
    let answer = scene.ask("m").wait();
    let error = answer.json()["error"].clone();
    assert_eq!(
        (answer.status, &error["details"]["fault"]),
        (503, &json!("cdi_unresolvable")),
        "{error}"
    );
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("nvidia-ctk cdi generate") && message.contains(A), "{message}");
    assert_eq!(containers(&scene.host).unwrap(), [], "nothing half-made is left");
    scene.host.root("mv /tmp/cdi/* /etc/cdi/").unwrap();
    wait_for("the mended device", SOON, || {
        let answer = scene.ask("m").wait();
        Ok(if answer.status == 200 { Look::Done(()) } else { Look::NotYet(answer.body) })
    })
    .unwrap();
}

#[test]
fn fault_12_a_network_that_dies_is_found_out_and_models_without_one_do_not_notice() {
    skip_unless_wanted!();
    let (_, table) = COUNT.split_once("[models.count]").unwrap();
    let toml = format!(
        "{COUNT}\n[health]\ninterval = \"1s\"\nfailures = 2\n[models.net]{table}transport = \"tcp\"\n"
    );
    let host = serving(&toml).unwrap();
    allow_internet(&host).unwrap();
    count(&host).check();
    let asked = post(&host, "/v1/chat/completions", &count_request("net", 8)).wait();
    assert_eq!(asked.status, 200, "{asked:?}");
    let local = wait_phase(&host, "count", "ready", SOON).unwrap()["instance"].clone();
    let net = wait_phase(&host, "net", "ready", SOON).unwrap()["instance"].clone();
    host.root("pkill -9 -x pasta.avx2; pkill -9 -x pasta; pkill -9 -f '[r]ootlessport'; true")
        .unwrap();
    wait_for("the dead network to be found out and replaced", SOON * 3, || {
        let answer = post(&host, "/v1/chat/completions", &count_request("net", 8)).wait();
        let row = crate::harness::model(&host, "net")?;
        let new = row["instance"] != net && answer.status == 200;
        Ok(if new { Look::Done(()) } else { Look::NotYet(format!("{row} {}", answer.status)) })
    })
    .unwrap();
    let row = wait_phase(&host, "count", "ready", SOON).unwrap();
    assert_eq!(row["instance"], local, "it has no network, and noticed nothing");
}

#[test]
fn fault_13_an_engine_that_ignores_sigterm_or_is_frozen_is_gone_when_it_is_said_to_be() {
    skip_unless_wanted!();
    let toml = format!("{COUNT}idle_timeout = \"2s\"\nstop_timeout = \"1s\"\n");
    let host = serving(&toml).unwrap();
    // It cannot even hear it.
    count(&host).check();
    host.root(&format!("kill -STOP {}", engine(&host).unwrap())).unwrap();
    wait_phase(&host, "count", "stopped", SOON).unwrap();
    assert_eq!(left_engines(&host), "");
    // Frozen by the kernel, as a process in the uninterruptible state.
    answered(&host, 8);
    let scope = host.root("dirname $(find /sys/fs/cgroup -path '*libpod-*' -name cgroup.freeze | grep -v conmon | head -1)").unwrap();
    host.root(&format!("echo 1 >{}/cgroup.freeze", scope.trim())).unwrap();
    wait_for("the frozen engine's end", SOON * 2, || {
        let left = left_engines(&host);
        Ok(if left.is_empty() { Look::Done(()) } else { Look::NotYet(left) })
    })
    .unwrap();
    answered(&host, 8);
    host.root("systemctl stop hostler.service").unwrap();
    nothing_left(&host);
}

fn left_engines(host: &testhost::Host) -> String {
    host.try_root("pgrep --exact llama-server").unwrap().stdout
}

#[test]
fn fault_22_an_engine_that_hangs_is_restarted_and_one_that_never_lives_is_let_be() {
    skip_unless_wanted!();
    let script = Script::with_gpus(vec![Gpu::new(A, 8 * GIB)]);
    let one = |name: &str| Fake::new(name, "1GiB").line("vram = \"1GiB\"");
    let models = [
        // Its core: what speaks of its health goes on saying that it is well.
        one("hangs").vllm().env("FAIL", "hang@ready+3s"),
        one("dies").env("LOAD", "1s").env("FAIL", "exit:3@200ms"),
    ];
    let rules =
        "[health]\ninterval = \"1s\"\ntimeout = \"1s\"\nfailures = 2\nbreaker_failures = 2\n";
    let scene = Scene::new(&script, rules, &models).unwrap();
    scene.serve("hangs");
    let first = scene.wait_model("hangs", "looked at", SOON, |_| true)["instance"].clone();
    let row = scene.wait_model("hangs", "found out", SOON, |row| row["restarts"] == 1);
    assert_eq!(row["error"]["code"], "unhealthy", "{row}");
    scene.wait_stopped("hangs");
    scene.serve("hangs");
    let second = scene.wait_model("hangs", "looked at", SOON, |_| true)["instance"].clone();
    assert_ne!(first, second);

    // Two failures in a row open the breaker: from then on nothing is tried, and everybody is told why.
    wait_for("the open breaker", SOON, || {
        let answer = scene.ask("dies").wait();
        assert_eq!(answer.status, 503, "{answer:?}");
        let row = scene.wait_model("dies", "looked at", SOON, |_| true);
        let open = row["health"]["breaker"] == "open";
        Ok(if open { Look::Done(()) } else { Look::NotYet(row.to_string()) })
    })
    .unwrap();
    let tried = events(&scene.host, "dies").unwrap();
    for _ in 0..5 {
        let answer = scene.ask("dies").wait();
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["code"]), (503, &json!("model_load_failed")), "{error}");
        assert!(error["details"]["log_tail"].as_array().is_some_and(|t| !t.is_empty()), "{error}");
        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!(wait > 200, "the breaker is open for 5 minutes: {wait}");
    }
    assert_eq!(events(&scene.host, "dies").unwrap(), tried, "nothing was tried");
    assert_eq!(tried.iter().filter(|e| *e == "create").count(), 2, "{tried:?}");
}
