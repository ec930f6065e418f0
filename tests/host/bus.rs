//! Control as an administrator has it: the real system bus, the real polkit, `busctl`.

use std::time::Duration;

use nvidia_ml::{Gpu, Script};
use testhost::{Host, Look, Run, wait_for};

use crate::harness::{
    Fake, SOON, Scene, containers, get, skip_unless_wanted, status, wait_phase, wait_property,
};

const MANAGER: &str = "org.hostler1 /org/hostler1 org.hostler1.Manager";
const SMALL: &str = "org.hostler1 /org/hostler1/model/small org.hostler1.Model";

const GPU: &str = "GPU-00000000-0000-0000-0000-000000000000";

fn scene() -> Scene {
    let script = Script::with_gpus(vec![Gpu::new(GPU.to_owned(), 16 << 30)]);
    let model = |name: &str| Fake::new(name, "2GiB").line("vram = \"3GiB\"");
    let models = [model("small"), model("other")];
    Scene::new(&script, "", &models).unwrap()
}

fn call(host: &Host, call: &str) -> Run {
    host.try_root(&format!("busctl {call} 2>&1")).unwrap()
}

fn ok(run: Run) -> String {
    assert!(run.status.success(), "{}", run.stdout);
    run.stdout.trim().to_owned()
}

/// A call as another user, without a session, as over ssh.
fn call_as(host: &Host, user: &str, call: &str) -> Run {
    host.try_root(&format!("runuser -u {user} -- busctl {call} 2>&1")).unwrap()
}

/// Waits until a job, whose path a call printed, is as wanted.
fn wait_job(host: &Host, printed: &str, state: &str) {
    let object = printed.split('"').nth(1).unwrap_or_else(|| panic!("no job: {printed}"));
    wait_for(&format!("{object} to be {state}"), SOON, || {
        let get = format!("get-property org.hostler1 {object} org.hostler1.Job State");
        let seen = call(host, &get).stdout;
        let error = call(host, &get.replace("State", "Error")).stdout;
        let there = seen.trim() == format!("s \"{state}\"");
        Ok(if there { Look::Done(()) } else { Look::NotYet(seen + &error) })
    })
    .unwrap();
}

/// Sends the model to sleep. What it holds has to have been looked at since it was ready, and right after a load it may not have been:
/// then the job says so, and to try again.
fn sleep_once_looked_at(host: &Host) {
    wait_for("the model to be looked at and to fall asleep", SOON, || {
        let job = ok(call(host, &format!("call {SMALL} Sleep")));
        let object = job.split('"').nth(1).unwrap();
        let get = |property: &str| {
            call(host, &format!("get-property org.hostler1 {object} org.hostler1.Job {property}"))
                .stdout
        };
        let over = || {
            Ok(Some(get("State"))
                .filter(|s| !s.contains("running"))
                .map_or_else(|| Look::NotYet(String::new()), Look::Done))
        };
        let state = wait_for("the job to end", SOON, over)?;
        let error = get("Error");
        if state.contains("failed") {
            assert!(error.contains("has not been looked at"), "{error}");
        }
        Ok(if state.contains("done") { Look::Done(()) } else { Look::NotYet(error) })
    })
    .unwrap();
}

#[test]
fn busctl_sees_and_does_what_there_is() {
    skip_unless_wanted!();
    let scene = scene();
    let host = &scene.host;
    // Nothing runs yet: the call starts the daemon.
    let tree = ok(call(host, "tree --list org.hostler1"));
    for object in ["/org/hostler1/model/other", "/org/hostler1/model/small", "/org/hostler1/gpu/"] {
        assert!(tree.contains(object), "{tree}");
    }
    for interface in ["Manager", "Model"] {
        let object = if interface == "Model" { "/model/small" } else { "" };
        let served = ok(call(
            host,
            &format!(
                "introspect --no-legend org.hostler1 /org/hostler1{object} org.hostler1.{interface}"
            ),
        ));
        let shipped = ok(host
            .try_root(&format!(
                "grep -E '<(method|property|signal) ' /usr/share/dbus-1/interfaces/org.hostler1.{interface}.xml | wc -l"
            ))
            .unwrap());
        assert_eq!(served.lines().count().to_string(), shipped, "{served}");
    }
    host.root(
        "systemd-run --quiet --unit=heard --property=StandardOutput=file:/run/heard busctl monitor --json=short org.hostler1",
    )
    .unwrap();
    wait_for("the monitor to listen", SOON, || {
        let heard = host.root(&format!(
            "busctl call {MANAGER} ListJobs >/dev/null; cat /run/heard 2>/dev/null; true"
        ))?;
        Ok(if heard.contains("ListJobs") { Look::Done(()) } else { Look::NotYet(heard) })
    })
    .unwrap();
    assert_eq!(ok(call(host, &format!("get-property {SMALL} Phase"))), "s \"stopped\"");
    let job = ok(call(host, &format!("call {MANAGER} Load sa{{sv}} small 1 pin b true")));
    wait_job(host, &job, "done");
    assert_eq!(ok(call(host, &format!("get-property {SMALL} Phase"))), "s \"ready\"");
    assert_eq!(ok(call(host, &format!("get-property {SMALL} Pinned"))), "b true");
    let id = ok(call(host, &format!("get-property {SMALL} ContainerID")));
    assert_eq!(id, format!("s \"{}\"", containers(host).unwrap()[0].0));
    assert_eq!(ok(call(host, &format!("get-property {MANAGER} State"))), "s \"running\"");
    let plan = ok(call(host, &format!("call {MANAGER} Plan sa{{sv}} other 0")));
    assert!(plan.starts_with("ba(st)s true 1 \"GPU-"), "{plan}");
    let log = host.root(&format!(
        "busctl --json=short call {SMALL} OpenLogWith a{{sv}} 1 lines t 5 >/dev/null && echo opened"
    ));
    assert_eq!(log.unwrap(), "opened\n");
    let checks = ok(call(host, &format!("--timeout=60 call {MANAGER} Validate")));
    assert!(checks.contains("\"podman\" \"PASS\""), "{checks}");
    ok(call(host, &format!("set-property {SMALL} Pinned b false")));
    assert_eq!(ok(call(host, &format!("get-property {SMALL} Pinned"))), "b false");
    let job = ok(call(host, &format!("call {SMALL} Unload s now")));
    wait_job(host, &job, "done");
    assert_eq!(containers(host).unwrap(), []);
    let json = ok(call(host, &format!("--json=short call {MANAGER} GetStatus")));
    assert!(json.contains("\\\"state\\\":\\\"running\\\""), "{json}");
    let unknown = call(host, &format!("call {MANAGER} Load sa{{sv}} nope 0"));
    assert!(unknown.stdout.contains("model \"nope\" is not configured"), "{}", unknown.stdout);
    let heard = host.root("systemctl stop heard.service; cat /run/heard").unwrap();
    for signal in ["JobNew", "JobRemoved", "ModelStateChanged", "PropertiesChanged"] {
        assert!(heard.contains(&format!("\"member\":\"{signal}\"")), "no {signal} in {heard}");
    }
}

#[test]
fn a_model_is_measured_put_to_sleep_and_woken_by_busctl() {
    skip_unless_wanted!();
    let script = Script::with_gpus(vec![Gpu::new(GPU.to_owned(), 16 << 30)]);
    let vram = "weights=2GiB,kv=1GiB,overhead=200MiB";
    let models = [Fake::new("small", vram).vllm().line("vram = \"5GiB\"")];
    let scene = Scene::new(&script, "[memory]\nhost_ram_budget = \"8GiB\"\n", &models).unwrap();
    let host = &scene.host;
    let get = |property: &str| ok(call(host, &format!("get-property {SMALL} {property}")));
    let small = |method: &str| ok(call(host, &format!("call {SMALL} {method}")));
    // What cannot be is said, as a job's end.
    let refused = |job: &str, why: &str| {
        wait_job(host, job, "failed");
        let object = job.split('"').nth(1).unwrap();
        let error =
            ok(call(host, &format!("get-property org.hostler1 {object} org.hostler1.Job Error")));
        assert!(error.contains("org.hostler1.Error.Conflict") && error.contains(why), "{error}");
    };
    refused(&small("Wake"), "it does not sleep");
    refused(&small("Sleep"), "it is not loaded");

    // Measured within 2 % of the truth, and let go: nobody else used it.
    let measured = ok(host.try_root("hostler measure small").unwrap());
    assert!(measured.starts_with("small: ") && measured.contains("samples"), "{measured}");
    let row = crate::harness::model(host, "small").unwrap();
    let (bytes, truth) = (row["footprint"]["bytes"].as_u64().unwrap(), (3 << 30) + (200 << 20));
    assert!(bytes.abs_diff(truth) * 50 <= truth, "{bytes} instead of {truth}");
    assert_eq!(row["footprint"]["attribution"], "process", "{row}");
    assert_ne!(get("FootprintConfidence"), "s \"none\"");
    scene.wait_stopped("small");
    wait_job(host, &ok(call(host, &format!("call {MANAGER} Measure s small"))), "done");
    scene.wait_stopped("small");

    // Asleep it holds its overhead, and answers as before once it was woken.
    wait_job(host, &small("Load a{sv} 0"), "done");
    let container = get("ContainerID");
    let full = scene.truth(GPU).used;
    sleep_once_looked_at(host);
    assert_eq!((get("Phase"), get("SleepLevel")), ("s \"asleep\"".to_owned(), "y 1".to_owned()));
    let asleep = scene.truth(GPU).used;
    assert!(asleep * 10 < full, "{asleep} of {full} is still in use");
    crate::schema::check(
        &serde_json::from_str(&host.root("hostler --json status").unwrap()).unwrap(),
    );
    wait_job(host, &small("Sleep"), "done");
    wait_job(host, &small("Wake"), "done");
    assert_eq!((get("Phase"), get("SleepLevel")), ("s \"ready\"".to_owned(), "y 0".to_owned()));
    assert_eq!((get("ContainerID"), scene.truth(GPU).used), (container.clone(), full));
    scene.serve("small");
    // The operator's words for it.
    host.root("hostler sleep small && hostler wake small").unwrap();
    assert_eq!(get("ContainerID"), container);
    // What is pinned does not sleep.
    host.root("hostler pin small").unwrap();
    refused(&small("Sleep"), "it is pinned; unpin it first");
    scene.never_over_committed();
}

#[test]
fn polkit_says_who_may() {
    skip_unless_wanted!();
    let scene = scene();
    let host = &scene.host;
    host.root("useradd --create-home alice && usermod --append --groups hostler-admin alice && useradd --create-home mallory")
        .unwrap();
    scene.serve("small");
    let load = format!("call {MANAGER} Load sa{{sv}} other 0");
    let changes = [
        load.clone(),
        format!("call {MANAGER} Unload ss small now"),
        format!("call {MANAGER} UnloadAll s now"),
        format!("call {MANAGER} Measure s small"),
        format!("call {MANAGER} Validate"),
        format!("call {MANAGER} Reload"),
        format!("call {SMALL} Load a{{sv}} 1 evict s any"),
        format!("call {SMALL} Sleep"),
        format!("call {SMALL} Wake"),
        format!("call {SMALL} OpenLog"),
        format!("set-property {SMALL} Pinned b true"),
    ];
    // A stranger, and the service user itself, may read, and nothing else.
    for user in ["mallory", "hostler"] {
        ok(call_as(host, user, &format!("call {MANAGER} ListModels")));
        for change in &changes {
            let run = call_as(host, user, change);
            assert!(!run.status.success(), "{user} may {change}: {}", run.stdout);
            let refused = ["authentication required", "needs authentication", "Access denied"];
            assert!(refused.iter().any(|r| run.stdout.contains(r)), "{change}: {}", run.stdout);
        }
    }
    assert_eq!(containers(host).unwrap().len(), 1, "nothing was done");
    for user in ["alice", "root"] {
        let job = ok(call_as(host, user, &load));
        wait_job(host, &job, "done");
        let unload = format!("call {MANAGER} Unload ss other drain");
        wait_job(host, &ok(call_as(host, user, &unload)), "done");
        ok(call_as(host, user, &format!("call {MANAGER} Reload")));
        ok(call_as(host, user, &format!("call {SMALL} OpenLog")));
        ok(call_as(host, user, &format!("set-property {SMALL} Pinned b true")));
    }
    // Without polkit nobody may, and requests are served as before.
    host.root("systemctl mask --runtime --now polkit.service").unwrap();
    for user in ["alice", "root"] {
        let run = call_as(host, user, &load);
        assert!(!run.status.success() && run.stdout.contains("Access denied"), "{}", run.stdout);
    }
    ok(call_as(host, "mallory", &format!("call {MANAGER} ListModels")));
    scene.serve("small");
    host.root("systemctl unmask --runtime polkit.service").unwrap();
    wait_job(host, &ok(call_as(host, "root", &load)), "done");
}

#[test]
fn a_bus_that_goes_away_takes_only_control_with_it() {
    skip_unless_wanted!();
    let scene = scene();
    let host = &scene.host;
    scene.serve("small");
    ok(call(host, &format!("call {MANAGER} ListModels")));
    let main = host.root("systemctl show -P MainPID hostler.service").unwrap();
    host.root("systemctl mask --runtime dbus.service dbus.socket && systemctl kill --signal=KILL dbus.service; systemctl stop dbus.socket dbus.service")
        .unwrap();
    let problem = |wanted: bool| {
        wait_for(&format!("bus_lost: {wanted}"), SOON, || {
            let all = status(host)?;
            let is =
                all["problems"].as_array().into_iter().flatten().any(|p| p["code"] == "bus_lost");
            Ok(if is == wanted {
                Look::Done(())
            } else {
                Look::NotYet(all["problems"].to_string())
            })
        })
        .unwrap();
    };
    problem(true);
    // The data path, and what a load balancer asks, do not care.
    scene.serve("small");
    scene.serve("other");
    assert_eq!(get(host, "/ready").unwrap().status, 200);
    let said = |text: &str| text.contains("PROBLEM bus_lost");
    wait_property(host, "hostler.service", "StatusText", SOON, said).unwrap();
    host.root("systemctl unmask --runtime dbus.service dbus.socket && systemctl start dbus.socket dbus.service")
        .unwrap();
    problem(false);
    ok(call(host, &format!("call {MANAGER} ListModels")));
    assert_eq!(host.root("systemctl show -P MainPID hostler.service").unwrap(), main);
    wait_phase(host, "small", "ready", Duration::from_secs(5)).unwrap();
}
