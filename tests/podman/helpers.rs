//! Short-lived containers of our own program: several at a time, and what crashes leave.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use hostler::adapters::podman::api::Deadlines;
use hostler::adapters::podman::helper::{Helper, Network};
use hostler::adapters::podman::{Helpers, Podman};
use hostler::supervisor::ports::Containers;
use serde_json::{Value, json};

use crate::fake::{Act, Fake};
use crate::host::Host;
use crate::support::{raw, unique, until};
use crate::wire::{is_image, plain};

const NEVER: &str = "0001-01-01T00:00:00Z";

fn helper(program: &str) -> Helper {
    Helper {
        program: program.into(),
        args: Vec::new(),
        env: Vec::new(),
        writable: None,
        network: Network::None,
        devices: Vec::new(),
        secret: Some(("hub-token".into(), "sesame".into())),
    }
}

fn ago(seconds: u64) -> String {
    let then = SystemTime::now() - Duration::from_secs(seconds);
    jiff::Timestamp::try_from(then).unwrap().to_string()
}

/// Old and young, as podman writes them: also with the host's offset from UTC.
fn old() -> String {
    let utc: jiff::Timestamp = ago(600).parse().unwrap();
    utc.to_zoned(jiff::tz::TimeZone::fixed(jiff::tz::offset(-7)))
        .strftime("%Y-%m-%dT%H:%M:%S.%9f%:z")
        .to_string()
}

fn young() -> String {
    ago(60)
}

/// Other helpers in each state: name, state, made, ended.
fn others() -> [(&'static str, &'static str, String, String); 6] {
    [
        ("running", "running", old(), NEVER.into()),
        ("to-be-started", "created", young(), NEVER.into()),
        ("never-started", "created", old(), NEVER.into()),
        ("just-ended", "exited", old(), young()),
        ("ended", "exited", old(), old()),
        // Its times make no sense: nobody knows how old it is.
        ("odd", "created", "yesterday".into(), NEVER.into()),
    ]
}

/// Secrets: name, made.
fn secrets() -> [(&'static str, String); 5] {
    [
        ("hostler-helper-without", old()),
        ("hostler-helper-to-come", young()),
        ("hostler-helper-running", old()),
        ("hostler-helper-odd", "yesterday".into()),
        ("somebody-elses", old()),
    ]
}

fn absent() -> Act {
    Act::Say(404, json!({"cause": "no such container", "message": "no such container"}))
}

/// A podman with all of these; one's own container runs until it is removed.
fn busy(method: &str, path: &str) -> Act {
    let named = path.strip_prefix("/containers/").and_then(|p| p.strip_suffix("/json"));
    match (method, path) {
        (_, p) if is_image(p) => Act::Say(200, json!({"Id": "1"})),
        (_, p) if p.starts_with("/containers/json?") => {
            let listed = others().map(|(name, ..)| {
                json!({"Id": format!("id-{name}"), "Names": [format!("hostler-helper-{name}")]})
            });
            Act::Say(200, json!(listed))
        }
        (_, "/secrets/json") => {
            let listed = secrets()
                .map(|(name, made)| json!({"ID": "x", "CreatedAt": made, "Spec": {"Name": name}}));
            Act::Say(200, json!(listed))
        }
        (_, p) if p.starts_with("/secrets/create?") => Act::Say(200, json!({"ID": "s"})),
        (_, "/containers/create") => Act::Say(201, json!({"Id": "own", "Warnings": []})),
        ("POST", _) => Act::Say(204, Value::Null),
        ("DELETE", _) => Act::Say(200, json!([])),
        (_, p) if p.contains("/logs") => Act::Hang,
        _ if named.is_some() => {
            let named = named.unwrap_or_default();
            let short = named.trim_start_matches("hostler-helper-").trim_start_matches("id-");
            let found = others().into_iter().find(|(name, ..)| *name == short);
            found.map_or_else(absent, |(_, status, created, ended)| {
                Act::Say(200, json!({
                    "Id": format!("id-{short}"), "Name": format!("hostler-helper-{short}"), "Created": created,
                    "State": {"Status": status, "Running": status == "running", "FinishedAt": ended},
                }))
            })
        }
        other => panic!("unexpected {other:?}"),
    }
}

/// What was removed, sorted, each once.
fn removed(fake: &Fake) -> Vec<String> {
    let calls = fake.calls.lock().unwrap();
    let deleted = calls.iter().filter_map(|call| call.strip_prefix("DELETE /"));
    let deleted = deleted.map(|path| path.split('?').next().unwrap_or_default().to_owned());
    deleted.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

#[tokio::test]
async fn a_helper_that_is_stopped_removes_itself_and_what_is_old_and_nothing_else() {
    let (fake, podman) = Fake::new(|method, path, _, _| busy(method, path));
    let calls = fake.calls.clone();
    let stop = async move {
        let reads = || calls.lock().unwrap().iter().any(|call| call.contains("/own/logs"));
        until("reading the lines", Duration::from_secs(20), reads).await;
    };
    let ended = podman.run_helper_until(&helper("/hostler"), &mut |_| {}, stop).await.unwrap();
    assert!(!ended);
    let made = fake
        .calls
        .lock()
        .unwrap()
        .iter()
        .find_map(|call| Some(call.strip_prefix("POST /secrets/create?name=")?.to_owned()));
    let own = made.unwrap();
    let mut expected = Vec::new();
    for name in
        ["hostler-helper-ended", "hostler-helper-never-started", "hostler-helper-without", &own]
    {
        expected.extend([format!("containers/{name}"), format!("secrets/{name}")]);
    }
    expected.sort();
    assert_eq!(removed(&fake), expected);
}

#[tokio::test]
async fn a_helper_that_is_stopped_before_it_is_anything_makes_nothing() {
    let (fake, podman) = Fake::new(|method, path, _, _| busy(method, path));
    let stop = std::future::ready(());
    assert!(!podman.run_helper_until(&helper("/hostler"), &mut |_| {}, stop).await.unwrap());
    assert_eq!(*fake.calls.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_secret_whose_answer_is_lost_is_removed() {
    let (fake, podman) = Fake::new(|method, path, _, _| match path {
        p if p.starts_with("/secrets/create?") => Act::Cut,
        _ => busy(method, path),
    });
    podman.run_helper(&helper("/hostler"), &mut |_| {}).await.unwrap_err();
    assert_eq!(fake.count("POST /containers/create"), 0);
    let kept =
        ["without", "ended", "never-started"].map(|name| format!("secrets/hostler-helper-{name}"));
    let removed = removed(&fake);
    let own = removed.iter().find(|path| path.starts_with("secrets/") && !kept.contains(path));
    assert!(own.is_some(), "{removed:?}");
}

/// The container of an engine is gone, and its directory has one that it made; whoever sweeps does so, or cannot.
#[tokio::test]
async fn the_engines_own_user_removes_what_an_engine_locked_and_the_stop_waits_for_nothing_else() {
    for sweeps in [true, false] {
        let swept = Mutex::new(String::new());
        let helpers = Helpers::default();
        let left = helpers.left.subscribe();
        let script = move |method: &str, path: &str, body: &Value, _| match (method, path) {
            (_, p) if is_image(p) => Act::Say(200, json!({"Id": "1"})),
            (_, "/containers/create") if !sweeps => Act::Say(500, json!({"cause": "no"})),
            (_, "/containers/create") => {
                assert_eq!(
                    (&body["user"], &body["cap_drop"]),
                    (&json!("1000:1000"), &json!(["ALL"]))
                );
                let dir = body["mounts"][1]["source"].as_str().unwrap();
                dir.clone_into(&mut swept.lock().unwrap());
                Act::Say(201, json!({"Id": "own", "Warnings": []}))
            }
            ("POST", "/containers/own/start") => {
                let dir = PathBuf::from(&*swept.lock().unwrap());
                let mode = std::fs::metadata(&dir).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o777, "its user has to remove what is directly in it");
                std::fs::remove_dir_all(dir.join("made")).unwrap();
                Act::Say(204, Value::Null)
            }
            ("DELETE", _) => Act::Say(200, json!([])),
            (_, p) if p.contains("/logs") => Act::Say(200, Value::Null),
            _ => absent(),
        };
        let (fake, podman) = Fake::with(script, helpers);
        let instance = plain().instance;
        let dir = fake.engines().join(instance.container_name());
        std::fs::create_dir_all(dir.join("made/deeper")).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        podman.stop(instance.clone()).await.unwrap();
        assert_eq!(dir.exists(), !sweeps);
        assert_eq!(
            left.borrow().keys().collect::<Vec<_>>(),
            if sweeps { vec![] } else { vec![&dir] }
        );
        assert!(left.borrow().values().all(|why| why.contains("not empty")), "{:?}", left.borrow());
        let removed = removed(&fake);
        assert!(removed.iter().any(|path| path.starts_with("containers/hostler-helper-")));
        if !sweeps {
            std::fs::remove_dir_all(dir.join("made")).unwrap();
            podman.stop(instance).await.unwrap();
            assert!(left.borrow().is_empty());
        }
    }
}

/// Names of all secrets.
fn secret_names(host: &Host) -> Vec<String> {
    let (_, listed) = raw(&host.socket, "GET", "/secrets/json", &Value::Null);
    let listed = listed.as_array().cloned().unwrap_or_default();
    listed.iter().filter_map(|s| Some(s["Spec"]["Name"].as_str()?.to_owned())).collect()
}

#[tokio::test]
#[ignore = "needs a podman: HOSTLER_TEST_PODMAN_SOCKET and HOSTLER_TEST_IMAGE"]
async fn helpers_of_others_stay_until_they_are_old() {
    let host = Host::new();
    // As a process leaves them that ends between two calls, or is about to make the next.
    let name = |what: &str| format!("hostler-helper-test-{what}-{:x}", unique());
    let [alone, waiting, running] = ["alone", "waiting", "running"].map(name);
    let made = raw(&host.socket, "POST", &format!("/secrets/create?name={alone}"), &json!("x"));
    assert_eq!(made.0, 200, "{made:?}");
    for container in [&waiting, &running] {
        let body = json!({
            "name": container, "image": host.image, "labels": {"io.hostler.helper": host.namespace},
            "command": ["/bin/busybox", "sleep", "600"], "netns": {"nsmode": "none"},
        });
        let made = raw(&host.socket, "POST", "/containers/create", &body);
        assert_eq!(made.0, 201, "{made:?}");
    }
    let started = raw(&host.socket, "POST", &format!("/containers/{running}/start"), &Value::Null);
    assert_eq!(started.0, 204, "{started:?}");
    let status = |name: &str| {
        raw(&host.socket, "GET", &format!("/containers/{name}/exists"), &Value::Null).0
    };

    host.podman.run_helper(&helper("/usr/bin/true"), &mut |_| {}).await.unwrap();
    assert_eq!((status(&waiting), status(&running)), (204, 204));
    assert!(secret_names(&host).contains(&alone));

    let impatient = Podman::with(
        host.socket.clone(),
        host.namespace.clone(),
        PathBuf::from("/nonexistent"),
        false,
        Deadlines { leftover: Duration::ZERO, ..Deadlines::default() },
        Helpers::default(),
    );
    impatient.run_helper(&helper("/usr/bin/true"), &mut |_| {}).await.unwrap();
    let held = (status(&waiting), status(&running));
    raw(
        &host.socket,
        "DELETE",
        &format!("/containers/{running}?force=true&timeout=0"),
        &Value::Null,
    );
    assert_eq!(held, (404, 204));
    let helpers = |name: &String| name.starts_with("hostler-helper-");
    assert_eq!(secret_names(&host).into_iter().filter(helpers).collect::<Vec<_>>(), [""; 0]);
}
