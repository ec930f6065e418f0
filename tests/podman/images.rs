//! What an image asks for, and what comes of it, against a real rootless podman; see `main` for how to run these.

use hostler::supervisor::ports::Containers;
use hostler::types::ImageRef;
use serde_json::{Value, json};

use crate::host::{Host, applets};
use crate::support::{raw, unique};

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
