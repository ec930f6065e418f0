//! Against a real rootless podman; see `main` for how to run them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use hostler::adapters::podman::api::Deadlines;
use hostler::adapters::podman::{Helpers, Podman};
use hostler::supervisor::ports::{ContainerSpec, Containers, Endpoint, Sign};
use hostler::types::{FaultCode, ImageRef, Phase, Transport};
use serde_json::{Value, json};

use crate::host::{Host, applets, own_uid, status};
use crate::support::{progress, raw, unique, until};

/// What an engine sees of its cage, as lines of its log.
const LOOK_AROUND: &str = "
    echo one > /run/engine/made; umask > /tmp/umask && echo tmp-is-writable
    echo x > /dev/shm/x && echo shm-is-writable
    echo x 2>/dev/null > /x || echo root-is-read-only
    cp /bin/busybox /tmp/busybox && /tmp/busybox true && echo tmp-is-executable
    echo \"interfaces $(busybox tail -n +3 /proc/net/dev | busybox cut -d: -f1 | busybox tr -d ' \\n')\"
    echo \"home $HOME\"; echo \"id $(busybox id -u):$(busybox id -g)\"
    echo done; sleep 1000";

#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn an_engine_runs_caged_and_its_end_is_complete() {
    let host = Host::new();
    let spec = host.spec(&applets(LOOK_AROUND));
    let (report, told) = progress();
    let launched = host.podman.launch(spec.clone(), report).await.unwrap();
    assert_eq!(*told.lock().unwrap(), [Sign::Phase(Phase::Starting)]);

    // By then those that looked around have ended, and who is left stays.
    let log = host.log_with(&spec.instance, "done").await;
    let pids = host.podman.pids(&launched.cgroup).unwrap();
    assert!(!pids.is_empty());
    for pid in &pids {
        assert_eq!(status(*pid, "NoNewPrivs"), "1");
        assert_eq!(status(*pid, "Seccomp"), "2");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(*pid, set), "0000000000000000", "{set}");
        }
        for uid in status(*pid, "Uid").split_whitespace() {
            let uid: u32 = uid.parse().unwrap();
            // 65534: how a sandboxed reader with a user namespace of its own sees all others.
            assert!(uid != 0 && uid != own_uid() && uid >= 65_534, "uid {uid} is no subuid");
        }
    }

    for line in [
        "tmp-is-writable",
        "shm-is-writable",
        "root-is-read-only",
        "tmp-is-executable",
        "interfaces lo",
        "home /tmp",
        "id 1000:1000",
    ] {
        assert!(log.iter().any(|l| l == line), "{line:?} is not in {log:?}");
    }

    // What the engine makes belongs to the subuid, is open to us, and goes away with the directory.
    let Endpoint::Unix(socket) = &launched.endpoint else { panic!("{:?}", launched.endpoint) };
    let made = socket.with_file_name("made");
    let meta = fs::metadata(&made).unwrap();
    assert_ne!(meta.uid(), own_uid());
    assert_eq!(meta.permissions().mode() & 0o777, 0o666);
    assert_eq!(fs::read_to_string(&made).unwrap(), "one\n");

    let found = host.podman.list().await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].running.as_ref(), Some(&launched));
    let identity = found[0].identity.clone().unwrap();
    assert_eq!(identity.instance, spec.instance);
    assert_eq!(identity.spec_hash, spec.spec_hash);
    assert_eq!(identity.placement, spec.placement);
    assert_eq!(host.podman.ending(spec.instance.clone()).await.map(|end| end.code), None);

    let began = Instant::now();
    host.podman.stop(spec.instance.clone()).await.unwrap();
    // A process that knows nothing of SIGTERM ends at once, because it is not PID 1.
    assert!(began.elapsed() < Duration::from_millis(1900), "{:?}", began.elapsed());
    assert_eq!(host.inspect(&spec.instance).0, 404);
    host.assert_clean(&[&launched]).await;
    host.podman.stop(spec.instance).await.unwrap();
}

#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn an_engine_that_ignores_sigterm_is_killed_after_its_time_and_no_child_stays() {
    let host = Host::new();
    let script = "trap '' TERM; (trap '' TERM; sleep 1000) & while :; do sleep 1; done";
    let spec = host.spec(&applets(script));
    let launched = host.launch(&spec).await;
    until("a child", Duration::from_secs(5), || {
        host.podman.pids(&launched.cgroup).unwrap().len() > 2
    })
    .await;
    let began = Instant::now();
    host.podman.stop(spec.instance).await.unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2), "killed before its 2 s were over: {took:?}");
    assert!(took < Duration::from_secs(6), "{took:?}");
    host.assert_clean(&[&launched]).await;
}

#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn an_engine_that_ends_by_itself_leaves_its_code_and_last_words() {
    let host = Host::new();
    let spec = host.spec(&applets("sleep 1; echo first; echo boom >&2; exit 7"));
    let launched = host.launch(&spec).await;
    until("its end", Duration::from_secs(10), || {
        host.podman.pids(&launched.cgroup).unwrap().is_empty()
    })
    .await;
    let found = host.podman.list().await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].running, None);
    assert_eq!(host.podman.ending(spec.instance.clone()).await.map(|end| end.code), Some(7));
    assert_eq!(host.podman.log_tail(spec.instance.clone(), 1).await, ["boom"]);
    host.podman.stop(spec.instance.clone()).await.unwrap();
    assert!(host.podman.log_tail(spec.instance, 1).await.is_empty());
    host.assert_clean(&[&launched]).await;
}

#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn every_failed_launch_names_its_reason_and_leaves_nothing() {
    type Change = fn(&mut ContainerSpec);
    let cases: [(Change, FaultCode, &[&str]); 7] = [
        (
            |s| s.image = ImageRef::parse("localhost/nope:1").unwrap(),
            FaultCode::ImageMissing,
            &["localhost/nope:1", "podman load"],
        ),
        (
            |s| s.image = ImageRef::parse("quay.example/nope:1").unwrap(),
            FaultCode::ImageMissing,
            &["pull is false", "pull quay.example/nope:1"],
        ),
        (
            |s| s.binds = vec![("/does/not/exist".into(), "/w".into())],
            FaultCode::WeightsMissing,
            &["/does/not/exist"],
        ),
        (
            |s| s.cdi_devices = vec!["nvidia.com/gpu=nope".into()],
            FaultCode::CdiUnresolvable,
            &["nvidia.com/gpu=nope", "nvidia-ctk cdi generate"],
        ),
        (
            |s| s.entrypoint = vec!["/bin/busybox".into(), "no-such-applet".into()],
            FaultCode::EngineExited,
            &["exit code 127"],
        ),
        (
            |s| s.entrypoint = vec!["/no/such/engine".into()],
            FaultCode::EngineExited,
            &["exit code 1", "failed to exec", "No such file"],
        ),
        (
            |s| s.image_volumes = vec![(ImageRef::parse("localhost/no:1").unwrap(), "/w".into())],
            FaultCode::ImageMissing,
            &["localhost/no:1"],
        ),
    ];
    let host = Host::new();
    for (change, code, words) in cases {
        let mut spec = host.spec("true");
        change(&mut spec);
        let fault = match host.podman.launch(spec.clone(), progress().0).await {
            Err(fault) => fault,
            // An engine that ends at once may have been seen alive; then its code and words are there to be asked
            // for.
            Ok(launched) if code == FaultCode::EngineExited => {
                host.fault_of(&spec.instance, &launched).await
            }
            Ok(launched) => panic!("{code} expected, got {launched:?}"),
        };
        assert_eq!(fault.code, code, "{fault} {:?}", fault.log_tail);
        let all = format!("{fault} {:?}", fault.log_tail);
        for word in words {
            assert!(all.contains(word), "{word:?} is not in {all}");
        }
        assert_eq!(host.inspect(&spec.instance).0, 404, "{fault}");
        host.assert_clean(&[]).await;
    }
}

#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn weights_are_seen_and_cannot_be_changed() {
    let host = Host::new();
    let weights = host.engines.with_file_name("weights.gguf");
    fs::write(&weights, "weights on disk\n").unwrap();
    fs::set_permissions(&weights, fs::Permissions::from_mode(0o666)).unwrap();
    let mut spec = host.spec(&applets(
        "cat /weights/w; cat /image/etc/marker
         echo x 2>/dev/null > /weights/w || echo bind-is-read-only
         echo x 2>/dev/null > /image/tmp/x || echo image-is-read-only
         echo done; sleep 1000",
    ));
    spec.binds = vec![(weights.clone(), "/weights/w".into())];
    spec.image_volumes = vec![(ImageRef::parse(&host.image).unwrap(), "/image".into())];
    let launched = host.launch(&spec).await;
    let log = host.log_with(&spec.instance, "done").await;
    for line in
        ["weights on disk", "weights in an image", "bind-is-read-only", "image-is-read-only"]
    {
        assert!(log.iter().any(|l| l == line), "{line:?} is not in {log:?}");
    }
    host.podman.stop(spec.instance).await.unwrap();
    assert_eq!(fs::read_to_string(&weights).unwrap(), "weights on disk\n");
    host.assert_clean(&[&launched]).await;
}

#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn tcp_is_published_on_loopback_only() {
    let host = Host::new();
    let mut spec = host.spec(&applets("nc -ll -p 8000 -e /bin/busybox echo hello"));
    spec.transport = Transport::Tcp;
    let launched = host.launch(&spec).await;
    let Endpoint::Tcp(address, _) = launched.endpoint else { panic!("{:?}", launched.endpoint) };
    assert!(address.ip().is_loopback() && address.port() != 0, "{address}");
    let mut text = String::new();
    for _ in 0..100 {
        // Accepted and reset until the engine listens.
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let _ = stream.write_all(b"x");
        if stream.read_to_string(&mut text).is_ok() && text == "hello\n" {
            break;
        }
        text.clear();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(text, "hello\n");
    assert_eq!(host.podman.list().await.unwrap()[0].running.as_ref(), Some(&launched));
    assert_eq!(status(host.podman.pids(&launched.cgroup).unwrap()[0], "NoNewPrivs"), "1");
    host.podman.stop(spec.instance).await.unwrap();
    // The forwarder is no process of the container's and goes a moment later.
    let closed = || std::net::TcpStream::connect(address).is_err();
    until("the port's end", Duration::from_secs(5), closed).await;
    host.assert_clean(&[&launched]).await;
}

#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn other_peoples_containers_are_left_alone() {
    let host = Host::new();
    let spec = host.spec("/bin/busybox sleep 1000");
    let name = spec.instance.container_name();
    // The same name, but not our labels.
    let body = json!({"name": name, "image": host.image, "command": ["/bin/busybox", "true"]});
    let (code, made) = raw(&host.socket, "POST", "/containers/create", &body);
    assert_eq!(code, 201);
    let fault = host.podman.launch(spec.clone(), progress().0).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::CreateFailed);
    assert!(fault.message.contains("already in use"), "{fault}");
    host.podman.stop(spec.instance.clone()).await.unwrap();
    let id = made["Id"].as_str().unwrap();
    assert!(host.podman.reap(id.into()).await.unwrap_err().message.contains("does not belong"));
    assert_eq!(host.inspect(&spec.instance).0, 200, "the other one is still there");
    // Nor does another namespace see or touch ours.
    let other = Host::new();
    let ours = host.spec("/bin/busybox sleep 1000");
    let launched = host.launch(&ours).await;
    assert_eq!(other.podman.list().await.unwrap(), []);
    other.podman.stop(ours.instance.clone()).await.unwrap();
    assert!(!host.podman.pids(&launched.cgroup).unwrap().is_empty());
    host.podman.stop(ours.instance).await.unwrap();
    let (code, _) =
        raw(&host.socket, "DELETE", &format!("/containers/{id}?force=true"), &Value::Null);
    assert_eq!(code, 200);
    host.assert_clean(&[&launched]).await;
}

#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn a_container_with_damaged_labels_is_found_and_reaped() {
    let host = Host::new();
    let body = json!({
        "name": format!("damaged-{:x}", unique()), "image": host.image,
        "command": ["/bin/busybox", "sleep", "1000"], "stop_timeout": 1,
        "labels": {"io.hostler.namespace": host.namespace, "io.hostler.model": "m"},
    });
    let (_, made) = raw(&host.socket, "POST", "/containers/create", &body);
    let id = made["Id"].as_str().unwrap();
    raw(&host.socket, "POST", &format!("/containers/{id}/start"), &Value::Null);
    let found = host.podman.list().await.unwrap();
    assert_eq!((found.len(), found[0].identity.as_ref()), (1, None));
    let running = found[0].running.clone().unwrap();
    host.podman.reap(id.into()).await.unwrap();
    host.podman.reap(id.into()).await.unwrap();
    host.assert_clean(&[&running]).await;
}

#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn both_paths_are_proven_and_leave_nothing_behind() {
    let host = Host::new();
    let label = format!("%7B%22label%22%3A%5B%22io.hostler.proof%3D{}%22%5D%7D", host.namespace);
    let pods = || {
        let (_, list) =
            raw(&host.socket, "GET", &format!("/pods/json?filters={label}"), &Value::Null);
        list.as_array().map_or(0, Vec::len)
    };
    // What a crash in the middle of an earlier proof left.
    let body = json!({
        "name": format!("left-{:x}", unique()),
        "labels": {"io.hostler.proof": host.namespace},
        "netns": {"nsmode": "none"}, "shared_namespaces": ["ipc"],
    });
    assert_eq!(raw(&host.socket, "POST", "/pods/create", &body).0, 201);
    // It may be of somebody who is at it.
    host.podman.prove_network(Transport::Unix).await.unwrap();
    assert_eq!(pods(), 1);
    let deadlines = Deadlines { leftover: Duration::ZERO, ..Deadlines::default() };
    let (socket, engines) = (host.socket.clone(), host.engines.clone());
    let other = |deadlines| {
        let (socket, engines) = (socket.clone(), engines.clone());
        let helpers = Helpers::default();
        Podman::with(socket, host.namespace.clone(), engines, false, deadlines, helpers)
    };
    other(deadlines).prove_network(Transport::Unix).await.unwrap();
    assert_eq!(pods(), 0);
    for transport in [Transport::Unix, Transport::Tcp, Transport::Unix] {
        host.podman.prove_network(transport).await.unwrap();
        assert_eq!(pods(), 0);
        host.assert_clean(&[]).await;
    }
    // As a daemon that starts, and `hostler doctor` beside it.
    let other = other(Deadlines::default());
    let both = tokio::join!(
        host.podman.prove_network(Transport::Unix),
        other.prove_network(Transport::Unix),
        other.prove_network(Transport::Tcp)
    );
    assert_eq!(both, (Ok(()), Ok(()), Ok(())));
    assert_eq!(pods(), 0);
}

#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn podman_is_told_apart_from_its_absence() {
    let host = Host::new();
    let info = host.podman.info().await.unwrap();
    assert!(info.version.starts_with(|c: char| c.is_ascii_digit()), "{info:?}");
    assert!(info.rootless);
    let image = ImageRef::parse(&host.image).unwrap();
    assert_eq!(host.podman.image_id(image).await.map(|id| id.map(|id| id.len())), Ok(Some(64)));
    for absent in ["quay.example/no@sha256:00", "localhost/no:1"] {
        let image = ImageRef::parse(absent).unwrap();
        assert_eq!(host.podman.image_id(image).await, Ok(None), "{absent}");
    }
}

#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn a_killed_monitor_hides_nothing() {
    let host = Host::new();
    let spec = host.spec("/bin/busybox sleep 1000");
    let launched = host.launch(&spec).await;
    let (_, inspect) = host.inspect(&spec.instance);
    let conmon = inspect["State"]["ConmonPid"].as_i64().unwrap().to_string();
    // conmon runs as the service user, that is: as us.
    assert!(std::process::Command::new("kill").args(["-9", &conmon]).status().unwrap().success());
    let found = host.podman.list().await.unwrap();
    assert_eq!(found[0].running.as_ref(), Some(&launched), "the process lives on");
    host.podman.stop(spec.instance).await.unwrap();
    host.assert_clean(&[&launched]).await;
}

/// The device is `HOSTLER_TEST_CDI_DEVICE` (`vendor/class=name`); its specification must give a character device
/// `/dev/hostler-test`.
#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET and HOSTLER_TEST_CDI_DEVICE"]
async fn a_cdi_device_reaches_the_engine() {
    let device = std::env::var("HOSTLER_TEST_CDI_DEVICE").expect("set HOSTLER_TEST_CDI_DEVICE");
    let host = Host::new();
    let mut spec = host.spec(&applets(
        "[ -c /dev/hostler-test ] && echo x > /dev/hostler-test && echo device-is-usable
         echo done; sleep 1000",
    ));
    spec.cdi_devices = vec![device];
    let launched = host.launch(&spec).await;
    let log = host.log_with(&spec.instance, "done").await;
    assert!(log.iter().any(|l| l == "device-is-usable"), "{log:?}");
    host.podman.stop(spec.instance).await.unwrap();
    host.assert_clean(&[&launched]).await;
}
