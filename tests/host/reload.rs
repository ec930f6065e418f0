//! Another configuration while requests run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nvidia_ml::{Gpu, Script};
use testhost::{Host, Look, wait_for};

use crate::harness::{
    Fake, SOON, Scene, containers, model, served, skip_unless_wanted, status, wait_phase,
    wait_property,
};

const NAMES: [&str; 5] = ["one", "two", "three", "four", "five"];

fn models() -> Vec<Fake> {
    let model = |name: &&str| Fake::new(name, "2GiB").env("RATE", "100").line("vram = \"3GiB\"");
    NAMES.iter().map(model).collect()
}

const GPU: &str = "GPU-00000000-0000-0000-0000-000000000000";

fn scene() -> Scene {
    let script = Script::with_gpus(vec![Gpu::new(GPU.to_owned(), 32 << 30)]);
    Scene::new(&script, "", &models()).unwrap()
}

/// Container IDs by model.
fn ids(host: &Host) -> BTreeMap<String, String> {
    let all = status(host).unwrap();
    let rows = all["models"].as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    rows.iter().map(|row| (text(&row["name"]), text(&row["container"]))).collect()
}

fn reload(host: &Host) {
    host.root("systemctl reload hostler.service").unwrap();
}

#[test]
fn one_model_of_five_is_changed_under_load_and_no_request_fails() {
    skip_unless_wanted!();
    let scene = scene();
    for name in NAMES {
        scene.serve(name);
    }
    let before = ids(&scene.host);
    let (stop, sent) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for name in NAMES {
            let (scene, stop, sent) = (&scene, &stop, &sent);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // A failed one ends the test.
                    served(&scene.ask(name).wait());
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let enough = |more: u32| {
            let until = sent.load(Ordering::Relaxed) + more;
            wait_for("requests", SOON, || {
                let now = sent.load(Ordering::Relaxed);
                Ok(if now >= until { Look::Done(()) } else { Look::NotYet(now.to_string()) })
            })
        };
        let work = || -> testhost::Result<()> {
            enough(10)?;
            let mut changed = models();
            changed[2] = changed[2].clone().env("LOAD", "150ms");
            scene.configure("", &changed)?;
            reload(&scene.host);
            let other = wait_for("another container", SOON, || {
                let now = ids(&scene.host);
                let is = !now["three"].is_empty() && now["three"] != before["three"];
                Ok(if is { Look::Done(now) } else { Look::NotYet(format!("{now:?}")) })
            })?;
            for name in NAMES.iter().filter(|name| **name != "three") {
                assert_eq!(other[*name], before[*name], "{name}");
            }
            enough(10)
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        result.unwrap().unwrap();
    });
    eprintln!("{} requests, none failed", sent.load(Ordering::Relaxed));
    assert_eq!(containers(&scene.host).unwrap().len(), 5);
    scene.never_over_committed();
}

#[test]
fn systemctl_waits_until_the_reload_is_over() {
    skip_unless_wanted!();
    let scene = scene();
    let host = &scene.host;
    scene.serve("one");
    let shown = |property: &str| {
        host.root(&format!("systemctl show -P {property} hostler.service"))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!((shown("Type").as_str(), shown("ExecReload").as_str()), ("notify-reload", ""));
    let mut changed = models();
    changed.push(Fake::new("six", "2GiB").line("vram = \"3GiB\""));
    scene.configure("", &changed).unwrap();
    // What the images are is asked of podman, which does not answer.
    let podman = |signal: &str| {
        let kill = format!(
            "systemctl --user kill --kill-whom=main --signal={signal} hostler-podman.service"
        );
        host.user("hostler", &kill).unwrap();
    };
    podman("STOP");
    let mut reload = host.command("systemctl").args(["reload", "hostler.service"]).spawn().unwrap();
    wait_property(host, "hostler.service", "SubState", SOON, |state| state == "reload-notify")
        .unwrap();
    assert_eq!(shown("ActiveState"), "reloading");
    assert!(
        reload.try_wait().unwrap().is_none(),
        "the daemon has said that it reloads, and not that it has"
    );
    assert!(!ids(host).contains_key("six"));
    scene.serve("one");
    podman("CONT");
    assert!(reload.wait().unwrap().success());
    assert!(ids(host).contains_key("six"), "it is over when systemctl returns");
    assert_eq!(shown("ActiveState"), "active");
    // By the signal alone, systemd sees it too.
    scene.configure("", &models()).unwrap();
    host.root("systemctl kill --kill-whom=main --signal=HUP hostler.service").unwrap();
    wait_for("the sixth to be gone", SOON, || {
        let now = ids(host);
        let gone = !now.contains_key("six");
        Ok(if gone { Look::Done(()) } else { Look::NotYet(format!("{now:?}")) })
    })
    .unwrap();
    host.wait_unit("hostler.service", "active", SOON).unwrap();
}

#[test]
fn fault_29_a_wrong_file_changes_nothing_and_says_where() {
    skip_unless_wanted!();
    let scene = scene();
    let host = &scene.host;
    scene.serve("one");
    let before = ids(host);
    host.root("printf 'engine = \"llamacpp\"\\nimagine = 1\\n' >/etc/hostler/models.d/wrong.toml || { mkdir -p /etc/hostler/models.d && printf 'engine = \"llamacpp\"\\nimagine = 1\\n' >/etc/hostler/models.d/wrong.toml; }")
        .unwrap();
    reload(host);
    let said = |text: &str| text.contains("/etc/hostler/models.d/wrong.toml:2");
    wait_property(host, "hostler.service", "StatusText", SOON, said).unwrap();
    host.wait_journal("hostler.service", "everything stays as it was", SOON).unwrap();
    let call = "busctl call org.hostler1 /org/hostler1 org.hostler1.Manager Reload 2>&1";
    let run = host.try_root(call).unwrap();
    assert!(!run.status.success() && run.stdout.contains("wrong.toml:2"), "{}", run.stdout);
    assert_eq!(ids(host), before);
    scene.serve("one");
    host.root("rm /etc/hostler/models.d/wrong.toml").unwrap();
    reload(host);
    wait_property(host, "hostler.service", "StatusText", SOON, |text| !text.contains("PROBLEM"))
        .unwrap();
    assert_eq!(ids(host), before);
    assert_eq!(host.root("systemctl is-active hostler.service").unwrap(), "active\n");
}

#[test]
fn models_come_and_go_and_what_cannot_change_is_named() {
    skip_unless_wanted!();
    let scene = scene();
    let host = &scene.host;
    scene.serve("one");
    scene.serve("two");
    // "two" is removed while it serves; "six" is new.
    let mut changed = models();
    changed.remove(1);
    changed.push(Fake::new("six", "2GiB").line("vram = \"3GiB\""));
    let slow = crate::harness::post(
        host,
        "/v1/chat/completions",
        &crate::harness::count_request("two", 500),
    );
    crate::harness::wait_busy(host, "two", SOON).unwrap();
    let policy = "devices = []\n[server]\nmax_connections = 1000\n";
    scene.configure(policy, &changed).unwrap();
    reload(host);
    scene.serve("six");
    let gone = scene.ask("two").wait();
    assert_eq!(gone.status, 404, "{gone:?}");
    served(&slow.wait());
    wait_for("two to be forgotten", SOON, || {
        let left = ids(host);
        Ok(if left.contains_key("two") {
            Look::NotYet(format!("{left:?}"))
        } else {
            Look::Done(())
        })
    })
    .unwrap();
    assert_eq!(containers(host).unwrap().len(), 2);
    assert_eq!(model(host, "one").unwrap()["phase"], "ready");
    let page = wait_for("its metrics to go", SOON, || {
        let page = crate::harness::get(host, "/metrics").unwrap().body;
        let there = page.contains("model=\"two\"");
        Ok(if there { Look::NotYet(page) } else { Look::Done(page) })
    });
    let page = page.unwrap();
    for stays in ["one", "six"] {
        let series = format!("hostler_loads_total{{model=\"{stays}\"");
        assert!(page.contains(&series), "{page}");
    }
    let said = |text: &str| text.contains("restart to apply: [server] max_connections");
    wait_property(host, "hostler.service", "StatusText", SOON, said).unwrap();
    let before = ids(host);
    host.root("systemctl restart hostler.service").unwrap();
    wait_property(host, "hostler.service", "StatusText", SOON, |text| !text.contains("restart to"))
        .unwrap();
    // A restart keeps what runs.
    wait_phase(host, "six", "ready", SOON).unwrap();
    assert_eq!(ids(host), before);
}
