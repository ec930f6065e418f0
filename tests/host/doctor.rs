//! Is the host fit? The same answer with and without the daemon, and what mends it.

use nvidia_ml::{Gpu, Script};
use serde_json::Value;
use testhost::{Host, Run};

use crate::harness::{COUNT, Fake, Scene, serving, skip_unless_wanted};

fn hostler(host: &Host, args: &str) -> Run {
    host.try_root(&format!("hostler {args}")).unwrap()
}

fn status(run: &Run) -> i32 {
    run.status.code().unwrap_or(-1)
}

/// The checks of doctor, by their names.
fn doctor(host: &Host, args: &str) -> (i32, Value) {
    let run = hostler(host, &format!("--json doctor {args}"));
    let rows = serde_json::from_str(&run.stdout);
    (status(&run), rows.unwrap_or_else(|err| panic!("{err}: {}{}", run.stdout, run.stderr)))
}

fn outcome<'a>(rows: &'a Value, check: &str) -> &'a str {
    let row = rows.as_array().unwrap().iter().find(|row| row["check"] == check);
    row.unwrap_or_else(|| panic!("no {check} in {rows:#}"))["outcome"].as_str().unwrap()
}

/// What a check measured.
fn measured<'a>(rows: &'a Value, check: &str) -> &'a str {
    let row = rows.as_array().unwrap().iter().find(|row| row["check"] == check);
    row.unwrap_or_else(|| panic!("no {check} in {rows:#}"))["measured"].as_str().unwrap()
}

/// Each check says what it measured, and each that does not hold what to do.
fn say_all(rows: &Value) {
    for row in rows.as_array().unwrap() {
        assert_ne!(row["measured"], "", "{row}");
        assert_eq!(row["outcome"] == "PASS", row["fix"] == "", "{row}");
    }
}

#[test]
fn doctor_says_what_is_wrong_and_mends_it() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    let (code, rows) = doctor(&host, "");
    assert_eq!(code, 0, "{rows:#}");
    say_all(&rows);
    for check in [
        "config",
        "gpu_memory",
        "podman",
        "subids",
        "linger",
        "cgroups",
        "events",
        "images",
        "network",
        "ports",
    ] {
        assert_eq!(outcome(&rows, check), "PASS", "{check} in {rows:#}");
    }
    // Somebody else is told who can look, with the daemon and without: nothing seems amiss for being closed to them.
    for stop in ["true", "systemctl stop hostler.service"] {
        host.root(stop).unwrap();
        let run = host.try_root("runuser -u nobody -- hostler --json doctor").unwrap();
        let rows: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!((status(&run), outcome(&rows, "host")), (6, "WARN"), "{rows:#}");
        let all = rows.as_array().unwrap();
        let checks: Vec<&str> = all.iter().map(|row| row["check"].as_str().unwrap()).collect();
        assert_eq!(checks, ["config", "daemon", "host"], "{rows:#}");
        assert_eq!(
            (outcome(&rows, "config"), &all[2]["fix"]),
            ("PASS", &"sudo hostler doctor".into())
        );
    }
    host.root("curl -sS http://127.0.0.1:8711/health").unwrap();
    // Without linger: it is said, and --fix mends it.
    host.root("rm /var/lib/systemd/linger/hostler").unwrap();
    let (code, rows) = doctor(&host, "");
    assert_eq!((code, outcome(&rows, "linger")), (8, "FAIL"), "{rows:#}");
    let run = hostler(&host, "doctor --fix");
    assert!(run.stderr.contains("loginctl enable-linger hostler"), "{}", run.stderr);
    host.root("test -e /var/lib/systemd/linger/hostler").unwrap();
    // Without podman's API: so, and what cannot be looked at without it is no pass.
    host.user("hostler", "systemctl --user stop hostler-podman.socket hostler-podman.service")
        .unwrap();
    let (code, rows) = doctor(&host, "");
    assert_eq!((code, outcome(&rows, "podman")), (8, "FAIL"), "{rows:#}");
    assert_eq!(outcome(&rows, "subids"), "WARN", "{rows:#}");
    say_all(&rows);
    let run = hostler(&host, "doctor --fix");
    assert_eq!(status(&run), 0, "{}{}", run.stdout, run.stderr);
    host.user("hostler", "systemctl --user is-active hostler-podman.socket").unwrap();
}

#[test]
fn doctor_gives_subordinate_ids_to_a_user_without_any() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    // As after an installation that went wrong: podman has run without any, and remembers it.
    host.root(
        "systemctl --user --machine=hostler@ stop hostler-podman.socket hostler-podman.service",
    )
    .unwrap();
    host.user("hostler", "podman system migrate").unwrap();
    host.root("for f in /etc/subuid /etc/subgid; do sed -i /^hostler:/d $f && echo other:100000:65536 >>$f; done")
        .unwrap();
    host.root("systemctl --user --machine=hostler@ start hostler-podman.socket").unwrap();
    let (code, rows) = doctor(&host, "");
    assert_eq!((code, outcome(&rows, "subids")), (8, "FAIL"), "{rows:#}");
    say_all(&rows);
    let run = hostler(&host, "doctor --fix");
    assert!(run.stderr.contains("usermod --add-subuids 165536-231071"), "{}", run.stderr);
    let (code, rows) = doctor(&host, "");
    assert_eq!((code, outcome(&rows, "subids")), (0, "PASS"), "{rows:#}");
    for file in ["subuid", "subgid"] {
        assert_eq!(
            host.root(&format!("grep hostler: /etc/{file}")).unwrap(),
            "hostler:165536:65536\n"
        );
    }
    // What it is for: containers run.
    crate::harness::count(&host).check();
}

#[test]
fn doctor_tries_the_gpus_where_they_are_used() {
    skip_unless_wanted!();
    const GPU: &str = "GPU-00000000-0000-0000-0000-000000000000";
    let script = Script::with_gpus(vec![Gpu::new(GPU.to_owned(), 16 << 30)]);
    let scene = Scene::new(&script, "", &[Fake::new("small", "2GiB")]).unwrap();
    let host = &scene.host;
    for daemon in ["stop", "start"] {
        host.root(&format!("systemctl {daemon} hostler.service")).unwrap();
        let (code, rows) = doctor(host, "");
        assert_eq!(code, 0, "{rows:#}");
        say_all(&rows);
        for check in ["gpu_memory", "cdi", "cdi_version", "gpu_container"] {
            assert_eq!(outcome(&rows, check), "PASS", "{check} in {rows:#}");
        }
        let seen = measured(&rows, "gpu_container");
        assert!(seen.contains(&format!("{GPU} with 16.0 GiB")), "{seen}");
        // The scripted driver has no such node.
        assert_eq!(outcome(&rows, "device_nodes"), "WARN", "{rows:#}");
        assert!(measured(&rows, "device_nodes").contains("nvidia-uvm"), "{rows:#}");
    }
    host.root("chmod 0600 /dev/nvidia0 && sed -i s/0.5.0/1.0.0/ /etc/cdi/nvidia.yaml").unwrap();
    let (code, rows) = doctor(host, "");
    assert_eq!(code, 8, "{rows:#}");
    say_all(&rows);
    assert_eq!(outcome(&rows, "device_nodes"), "FAIL", "{rows:#}");
    assert!(measured(&rows, "device_nodes").contains("nvidia0 (600)"), "{rows:#}");
    assert_eq!(outcome(&rows, "cdi_version"), "FAIL", "{rows:#}");
    assert!(measured(&rows, "cdi_version").contains("is of version 1.0.0; podman 5.4"), "{rows:#}");
}
