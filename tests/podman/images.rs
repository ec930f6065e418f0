//! What images and engines do that they should not, and what comes of it, against a real rootless podman; see `main` for how to run these.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use hostler::supervisor::ports::Containers;
use hostler::types::{FaultCode, ImageRef};
use serde_json::{Value, json};

use crate::host::{Host, applets};
use crate::support::{progress, raw, unique};

/// podman's default would make a directory on the host's disk of it, which the engine could fill.
#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn a_volume_of_the_image_is_nothing_to_write_to() {
    let host = Host::new();
    let body = json!({"image": host.image, "command": ["/bin/busybox", "true"]});
    let (_, made) = raw(&host.socket, "POST", "/containers/create", &body);
    let id = made["Id"].as_str().unwrap();
    let (name, tag) = ("localhost/with-a-volume", unique());
    let path = format!("/commit?container={id}&repo={name}&tag={tag}&changes=VOLUME%20/v");
    let (code, said) = raw(&host.socket, "POST", &path, &Value::Null);
    assert!(code < 300, "{code} {said}");
    let image = format!("{name}:{tag}");
    let (_, found) = raw(&host.socket, "GET", &format!("/images/{image}/json"), &Value::Null);
    assert!(found["Config"]["Volumes"]["/v"].is_object(), "{found}");

    let mut spec = host.spec(&applets(
        "touch /v/x 2>/dev/null && echo volume-is-writable; cat /proc/mounts; echo done; sleep 1000",
    ));
    spec.image = ImageRef::parse(&image).unwrap();
    let launched = host.launch(&spec).await;
    let log = host.log_with(&spec.instance, "done").await;
    assert!(!log.iter().any(|l| l == "volume-is-writable" || l.contains(" /v ")), "{log:?}");
    host.podman.stop(spec.instance).await.unwrap();
    host.assert_clean(&[&launched]).await;
    for path in [format!("/containers/{id}"), format!("/images/{image}")] {
        assert_eq!(raw(&host.socket, "DELETE", &path, &Value::Null).0, 200);
    }
}

/// As podman says it of an image that podman made.
#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn an_image_with_orders_for_the_runtime_runs_nothing_and_may_hold_weights() {
    let host = Host::new();
    let image = format!("localhost/with-orders:{}", unique());
    let empty = tempfile::tempdir().unwrap();
    let mut build = Command::new("podman")
        .args(["--remote", "--url", &format!("unix://{}", host.socket.display()), "build"])
        .args(["--quiet", "--annotation", "run.oci.keep_original_groups=1", "--tag", &image])
        .args(["--file", "-", "."])
        .current_dir(empty.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let text = format!("FROM {}\n", host.image);
    build.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(build.wait().unwrap().success());

    let mut spec = host.spec(&applets("sleep 1000"));
    spec.image = ImageRef::parse(&image).unwrap();
    let fault = host.podman.launch(spec, progress().0).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::HardeningMismatch, "{fault}");
    assert!(fault.message.contains("\"run.oci.keep_original_groups\""), "{fault}");
    host.assert_clean(&[]).await;

    let mut spec = host.spec(&applets("cat /image/etc/marker; echo done; sleep 1000"));
    spec.image_volumes = vec![(ImageRef::parse(&image).unwrap(), "/image".into())];
    let launched = host.launch(&spec).await;
    let log = host.log_with(&spec.instance, "done").await;
    assert!(log.iter().any(|l| l == "weights in an image"), "{log:?}");
    host.podman.stop(spec.instance).await.unwrap();
    host.assert_clean(&[&launched]).await;
    assert_eq!(raw(&host.socket, "DELETE", &format!("/images/{image}"), &Value::Null).0, 200);
}

/// As the subordinate ID's it is neither readable nor removable for the service user.
#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET"]
async fn what_an_engine_locks_beside_its_socket_goes_with_it() {
    let host = Host::new();
    let script = "
        mkdir /run/engine/locked; mkdir /run/engine/locked/deeper; busybox chmod 777 /run/engine/locked
        echo x > /run/engine/locked/deeper/file; busybox ln -s / /run/engine/locked/link
        busybox chmod 0 /run/engine/locked/deeper; busybox chmod 0 /run/engine/locked
        i=0; p=; while [ $i -lt 1500 ]; do p=$p/d; i=$((i+1)); done; mkdir -p /run/engine$p
        echo done; sleep 1000";
    let spec = host.spec(&applets(script));
    let launched = host.launch(&spec).await;
    host.log_with(&spec.instance, "done").await;
    let locked = host.engines.join(spec.instance.container_name()).join("locked");
    assert!(fs::read_dir(&locked).is_err(), "whoever runs this may read everything");
    host.podman.stop(spec.instance).await.unwrap();
    host.assert_clean(&[&launched]).await;
    let label = format!("%7B%22label%22%3A%5B%22io.hostler.helper%3D{}%22%5D%7D", host.namespace);
    let path = format!("/containers/json?all=true&filters={label}");
    assert_eq!(raw(&host.socket, "GET", &path, &Value::Null).1, json!([]));
}
