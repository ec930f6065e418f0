//! Against a scripted server: what a podman that hangs, dies or talks nonsense does to us.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use hostler::adapters::podman::Podman;
use hostler::supervisor::ports::{ContainerSpec, Containers};
use hostler::types::{FaultCode, ImageRef};
use serde_json::{Value, json};

use crate::fake::{Act, Fake};
use crate::support::{entries, progress, spec};

pub fn refuse(cause: &str) -> Act {
    Act::Say(500, json!({"cause": cause, "message": format!("failed: {cause}"), "response": 500}))
}

fn absent() -> Act {
    Act::Say(404, json!({"cause": "no such container", "message": "no such container"}))
}

/// Those that the container of such a specification has.
pub fn labels_of(spec: &ContainerSpec) -> Value {
    json!({
        "io.hostler.namespace": "ns", "io.hostler.model": "test/m", "io.hostler.generation": "1",
        "io.hostler.suffix": &*spec.instance.suffix, "io.hostler.spec-hash": "x",
        "io.hostler.gpus": "host", "io.hostler.need": "1", "io.hostler.need-source": "declared",
        "io.hostler.device-total": "1", "io.hostler.transport": "unix",
    })
}

/// The inspection of a container made from `create`'s body.
fn inspection(create: &Value, status: &str) -> Act {
    Act::Say(
        200,
        json!({
            "Id": "ab".repeat(32), "Name": create["name"],
            "State": {"Status": status, "Running": status == "running", "Pid": 0, "ExitCode": 0,
                "OOMKilled": status == "exited"},
            "Config": {"Labels": create["labels"], "User": "1000:1000", "StopTimeout": 1},
        }),
    )
}

/// A podman that remembers one container; `create` and `start` act after they have done their work.
pub fn one_container(
    create: impl Fn() -> Act + Send + Sync + 'static,
    start: impl Fn() -> Act + Send + Sync + 'static,
    status_after_start: &'static str,
) -> impl Fn(&str, &str, &Value, usize) -> Act + Send + Sync + 'static {
    let state: Mutex<Option<(Value, &'static str)>> = Mutex::new(None);
    move |method, path, body, _| {
        let mut state = state.lock().unwrap();
        match (method, path) {
            (_, p) if is_image(p) => Act::Say(200, json!({"Id": "1"})),
            (_, "/containers/create") => {
                *state = Some((body.clone(), "created"));
                create()
            }
            (_, p) if p.ends_with("/start") => {
                if let Some(container) = state.as_mut() {
                    container.1 = status_after_start;
                }
                start()
            }
            ("DELETE", _) => match state.take() {
                Some(_) => Act::Say(200, json!([])),
                None => absent(),
            },
            (_, p) if p.ends_with("/json") => match state.as_ref() {
                Some((made, status)) => inspection(made, status),
                None => absent(),
            },
            (_, p) if p.contains("/logs") => Act::Say(200, Value::Null),
            other => panic!("unexpected {other:?}"),
        }
    }
}

pub fn created() -> Act {
    Act::Say(201, json!({"Id": "ab".repeat(32), "Warnings": []}))
}

/// A question about an image.
pub fn is_image(path: &str) -> bool {
    path.starts_with("/images/") && path.ends_with("/json")
}

pub fn plain() -> ContainerSpec {
    spec("localhost/x:1", "true")
}

#[tokio::test]
async fn a_podman_that_hangs_costs_one_deadline() {
    let (_fake, podman) = Fake::new(|_, _, _, _| Act::Hang);
    let began = Instant::now();
    let fault = podman.list().await.unwrap_err();
    assert_eq!(fault.code, FaultCode::PodmanUnreachable);
    assert!(fault.message.contains("did not answer"), "{fault}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    for code in [
        podman.info().await.unwrap_err().code,
        podman.stop(plain().instance).await.unwrap_err().code,
        podman.reap("x".into()).await.unwrap_err().code,
        podman.launch(plain(), progress().0).await.unwrap_err().code,
    ] {
        assert_eq!(code, FaultCode::PodmanUnreachable);
    }
    assert!(podman.log_tail(plain().instance, 3).await.is_empty());
    assert_eq!(podman.ending(plain().instance).await.map(|end| end.code), None);
}

#[tokio::test]
async fn nobody_listens() {
    let (fake, _) = Fake::new(|_, _, _, _| Act::Cut);
    let nowhere = fake.dir.path().join("nowhere");
    let podman = Podman::new(nowhere, "ns".into(), fake.engines(), true);
    for fault in [podman.list().await.unwrap_err(), podman.info().await.unwrap_err()] {
        assert_eq!(fault.code, FaultCode::PodmanUnreachable);
        assert!(fault.message.contains("hostler-podman.socket"), "{fault}");
        assert!(fault.message.contains("cannot be reached"), "{fault}");
    }
    let fault = podman.launch(plain(), progress().0).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::PodmanUnreachable);
    assert!(entries(&fake.engines()).is_empty());
}

#[tokio::test]
async fn nonsense_is_an_error_everywhere_and_never_a_panic() {
    for text in [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"Id\":",
        "HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "",
    ] {
        let (_fake, podman) = Fake::new(move |_, _, _, _| Act::Bytes(text));
        let instance = plain().instance;
        assert!(podman.list().await.is_err(), "{text:?}");
        assert!(podman.info().await.is_err(), "{text:?}");
        assert!(podman.stop(instance.clone()).await.is_err(), "{text:?}");
        assert!(podman.launch(plain(), progress().0).await.is_err(), "{text:?}");
        podman.log_tail(instance.clone(), 3).await;
        assert_eq!(podman.ending(instance).await.map(|end| end.code), None, "{text:?}");
    }
}

#[tokio::test]
async fn a_create_whose_answer_is_lost_is_looked_up_and_never_repeated() {
    let answers: [fn() -> Act; 3] =
        [|| Act::Cut, || Act::Hang, || Act::Bytes("HTTP/1.1 201 X\r\nContent-Le")];
    for answer in answers {
        let (fake, podman) =
            Fake::new(one_container(answer, || Act::Say(204, Value::Null), "running"));
        let fault = podman.launch(plain(), progress().0).await.unwrap_err();
        // The container was taken over and started; it is no real one, so its control group is missing in the end.
        assert!(fault.message.contains("control group"), "{fault}");
        assert_eq!(fake.count("POST /containers/create"), 1);
        let id = "ab".repeat(32);
        assert_eq!(fake.count(&format!("POST /containers/{id}/start")), 1);
        assert_eq!(fake.count("DELETE /containers/"), 1, "and undone");
        assert!(entries(&fake.engines()).is_empty());
    }
}

#[tokio::test]
async fn a_create_that_died_before_it_did_anything_leaves_nothing() {
    let (fake, podman) = Fake::new(|_, path, _, _| match path {
        "/containers/create" => Act::Cut,
        p if is_image(p) => Act::Say(200, json!({"Id": "1"})),
        _ => absent(),
    });
    let fault = podman.launch(plain(), progress().0).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::PodmanUnreachable);
    assert_eq!(fake.count("POST /containers/create"), 1);
    assert_eq!(fake.count("DELETE"), 0);
    assert!(entries(&fake.engines()).is_empty());
}

#[tokio::test]
async fn a_start_whose_answer_is_lost_goes_on_if_it_runs_and_is_undone_if_not() {
    let (fake, podman) = Fake::new(one_container(created, || Act::Cut, "running"));
    let fault = podman.launch(plain(), progress().0).await.unwrap_err();
    assert!(fault.message.contains("control group"), "{fault}");
    assert_eq!(fake.count("DELETE"), 1);

    let (fake, podman) = Fake::new(one_container(created, || Act::Cut, "initialized"));
    let fault = podman.launch(plain(), progress().0).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::PodmanUnreachable);
    let starts = fake.calls.lock().unwrap().iter().filter(|c| c.ends_with("/start")).count();
    assert_eq!(starts, 1, "never repeated");
    assert_eq!(fake.count("DELETE"), 1);
    assert!(entries(&fake.engines()).is_empty());
}

#[tokio::test]
async fn causes_become_codes_and_everything_is_undone() {
    for (cause, code, word) in [
        ("unresolvable CDI devices nvidia.com/gpu=0", FaultCode::CdiUnresolvable, "nvidia-ctk"),
        ("write /x: no space left on device", FaultCode::StorageFull, "system df"),
        ("something new", FaultCode::StartFailed, "something new"),
    ] {
        let (fake, podman) = Fake::new(one_container(created, move || refuse(cause), "created"));
        let fault = podman.launch(plain(), progress().0).await.unwrap_err();
        assert_eq!(fault.code, code);
        assert!(fault.message.contains(word) && fault.message.contains("test/m"), "{fault}");
        assert_eq!(fake.count("DELETE"), 1);
        assert!(entries(&fake.engines()).is_empty());
    }
}

#[tokio::test]
async fn a_taken_name_is_not_ours_to_remove() {
    // Somebody else's container has the name: same name, no labels.
    let (fake, podman) = Fake::new(|_, path, _, _| match path {
        "/containers/create" => refuse("that name is already in use"),
        p if is_image(p) => Act::Say(200, json!({"Id": "1"})),
        _ => inspection(&json!({"name": "other", "labels": {}}), "running"),
    });
    let fault = podman.launch(plain(), progress().0).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::CreateFailed);
    podman.stop(plain().instance).await.unwrap();
    let fault = podman.reap("ab".repeat(32)).await.unwrap_err();
    assert!(fault.message.contains("does not belong"), "{fault}");
    assert_eq!(fake.count("DELETE"), 0);
    assert_eq!(fake.calls.lock().unwrap().iter().filter(|c| c.ends_with("/stop")).count(), 0);
}

#[tokio::test]
async fn stopping_what_is_unknown_or_stopped_already_is_success() {
    let (_fake, podman) = Fake::new(|_, _, _, _| absent());
    podman.stop(plain().instance).await.unwrap();
    podman.reap("ab".repeat(32)).await.unwrap();

    let spec = plain();
    let labels = labels_of(&spec);
    let container = json!({"name": spec.instance.container_name(), "labels": labels});
    let gone = Mutex::new(false);
    let (fake, podman) = Fake::new(move |method, path, _, _| {
        let mut gone = gone.lock().unwrap();
        match (method, path) {
            (_, p) if p.ends_with("/stop") => Act::Say(304, Value::Null),
            ("DELETE", _) => {
                *gone = true;
                Act::Say(200, json!([]))
            }
            _ if *gone => absent(),
            _ => inspection(&container, "exited"),
        }
    });
    assert_eq!(podman.ending(spec.instance.clone()).await.map(|end| end.code), Some(0));
    podman.stop(spec.instance).await.unwrap();
    assert_eq!(fake.count("DELETE"), 1);
}

#[tokio::test]
async fn an_exit_code_that_podman_has_not_recorded_yet_is_waited_for() {
    let spec = plain();
    let container = json!({"name": spec.instance.container_name(), "labels": labels_of(&spec)});
    // The kernel has ended it; podman's monitor has not told podman until the sixth look.
    let (fake, podman) = Fake::new(move |_, _, _, nth| {
        inspection(&container, if nth < 6 { "running" } else { "exited" })
    });
    let ending = podman.ending(spec.instance).await.unwrap();
    assert_eq!((ending.code, ending.out_of_memory), (0, true), "the kernel killed it");
    assert!(fake.count("GET") >= 6);
}

#[tokio::test]
async fn fault_01_what_podman_was_killed_over_while_it_removed_it_is_removed() {
    let spec = plain();
    let id = "ab".repeat(32);
    let gone = std::sync::Arc::new(Mutex::new(false));
    let (name, flag) = (spec.instance.container_name(), gone.clone());
    let labels = labels_of(&spec);
    let (fake, podman) = Fake::new(move |method, path, _, _| {
        let mut gone = flag.lock().unwrap();
        match (method, path) {
            ("DELETE", _) => {
                *gone = true;
                Act::Say(200, json!([]))
            }
            (_, p) if p.starts_with("/containers/json") => {
                let one = json!([{"Id": "ab".repeat(32), "Names": [name], "Labels": labels, "State": "removing"}]);
                Act::Say(200, if *gone { json!([]) } else { one })
            }
            _ if *gone => absent(),
            // What podman 5.4 says when its layer is gone and its record is not.
            _ => refuse("layer not known"),
        }
    });
    podman.stop(spec.instance).await.unwrap();
    assert_eq!(fake.count("DELETE"), 1);
    *gone.lock().unwrap() = false;
    podman.reap(id.clone()).await.unwrap();
    assert_eq!(fake.count("DELETE"), 2);
    // Somebody else's, which podman cannot inspect either, is not in the list of ours.
    *gone.lock().unwrap() = false;
    podman.reap("cd".repeat(32)).await.unwrap_err();
    assert_eq!(fake.count("DELETE"), 2);
}

#[tokio::test]
async fn another_image_under_the_planned_name_is_not_started() {
    let (fake, podman) = Fake::new(|_, path, _, _| {
        assert!(is_image(path), "{path}");
        Act::Say(200, json!({"Id": "new"}))
    });
    let mut spec = plain();
    spec.image_id = Some("old".into());
    let fault = podman.launch(spec, progress().0).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::ImageChanged, "{fault}");
    assert_eq!(fake.count("POST"), 0);
}

/// podman 4 hands it on, and crun obeys; nothing on the running container tells.
#[tokio::test]
async fn an_image_that_brings_orders_for_the_runtime_is_not_started() {
    for (image, refused) in [("e", true), ("w", false)] {
        let (fake, podman) = Fake::new(move |_, path, _, _| {
            let mut found = json!({"Id": "1"});
            if path.contains(&format!("%2F{image}%3A")) {
                found["Annotations"] = json!({"run.oci.seccomp_bpf_data": "BgAAAAAA/38="});
            }
            if is_image(path) { Act::Say(200, found) } else { absent() }
        });
        let mut spec = spec("localhost/e:1", "true");
        spec.image_volumes = vec![(ImageRef::parse("localhost/w:1").unwrap(), "/w".into())];
        let fault = podman.launch(spec, progress().0).await.unwrap_err();
        assert_eq!(fault.code == FaultCode::HardeningMismatch, refused, "{fault}");
        assert_eq!(fault.message.contains("\"run.oci.seccomp_bpf_data\""), refused, "{fault}");
        assert_eq!(fake.count("POST /containers/create") == 0, refused, "{image}");
        assert!(entries(&fake.engines()).is_empty());
    }
}

#[tokio::test]
async fn of_weights_that_the_sandbox_may_hide_podman_is_the_judge() {
    for (weights, asked) in [("/srv/hostler-none", 0), ("/var/tmp/hostler-none", 1)] {
        let (fake, podman) = Fake::new(move |method, path, _, _| match (method, path) {
            (_, p) if is_image(p) => Act::Say(200, json!({"Id": "1"})),
            (_, "/containers/create") => {
                let why = format!("statfs {weights}: no such file or directory");
                Act::Say(500, json!({"cause": "no such file or directory", "message": why}))
            }
            _ => absent(),
        });
        let mut spec = plain();
        spec.binds = vec![(weights.into(), "/models/m".into())];
        let fault = podman.launch(spec, progress().0).await.unwrap_err();
        assert_eq!(fault.code, FaultCode::WeightsMissing, "{fault}");
        assert_eq!(fake.count("POST /containers/create"), asked, "{weights}: {fault}");
    }
}

#[tokio::test]
async fn a_failed_proof_removes_its_pod_and_old_ones_and_leaves_other_proofs_alone() {
    let ago = |seconds| {
        let then = SystemTime::now() - Duration::from_secs(seconds);
        jiff::Timestamp::try_from(then).unwrap().to_string()
    };
    // Left by a crash, and of `hostler doctor` or a daemon that starts just now.
    let found = [("old".to_owned(), ago(600)), ("young".to_owned(), ago(5))];
    let pods = Mutex::new(BTreeMap::from(found));
    let (fake, podman) = Fake::new(move |method, path, body, _| {
        let mut pods = pods.lock().unwrap();
        match (method, path) {
            (_, "/pods/create") => {
                assert_eq!(body["labels"], json!({"io.hostler.proof": "ns"}));
                pods.insert(body["name"].as_str().unwrap().to_owned(), ago(0));
                Act::Say(201, json!({"Id": body["name"]}))
            }
            (_, p) if p.starts_with("/pods/json") => {
                let list: Vec<Value> =
                    pods.iter().map(|(id, made)| json!({"Id": id, "Created": made})).collect();
                Act::Say(200, list.into())
            }
            (_, p) if p.ends_with("/start") => {
                Act::Say(409, json!({"Errs": ["netavark: iptables is missing"], "Id": "p1"}))
            }
            ("DELETE", p) => {
                let name = p.trim_start_matches("/pods/").trim_end_matches("?force=true");
                assert!(name != "young" && pods.remove(name).is_some(), "{p}");
                Act::Say(200, json!({}))
            }
            other => panic!("unexpected {other:?}"),
        }
    });
    for transport in [hostler::types::Transport::Unix, hostler::types::Transport::Tcp] {
        let fault = podman.prove_network(transport).await.unwrap_err();
        assert!(fault.message.contains("iptables is missing"), "{fault}");
    }
    assert_eq!((fake.count("DELETE /pods/old"), fake.count("DELETE /pods/hostler-proof-")), (1, 2));
    assert!(entries(&fake.engines()).is_empty());
}
