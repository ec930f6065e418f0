//! What an image asks for, and what comes of it, against a real rootless podman; see `main` for how to run these.

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
