//! podman's API dies while it works, or loses its memory; needs a command that kills it, besides what `contract`
//! needs:
//!
//! ```text
//! HOSTLER_TEST_PODMAN_KILL="systemctl --user kill --kill-whom=main --signal=KILL hostler-podman.service"
//! ```
//!
//! `--kill-whom=main`, because fuse-overlayfs, where podman uses it, lives in the service's control group: without
//! it the root file systems of all running containers are killed as well, and they end with SIGBUS.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hostler::supervisor::ports::Containers;
use hostler::types::{FaultCode, ImageRef};
use serde_json::{Value, json};

use crate::host::Host;
use crate::support::{progress, raw, until};

/// Kills the API at once; the socket brings it back.
fn kill_api() {
    let command = std::env::var("HOSTLER_TEST_PODMAN_KILL").expect("set HOSTLER_TEST_PODMAN_KILL");
    let mut words = command.split_whitespace();
    // It may be between two lives just now.
    let _ = Command::new(words.next().unwrap()).args(words).output().unwrap();
}

/// Groups of containers that have processes, by their names.
fn live_groups() -> BTreeSet<String> {
    fn search(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            search(&entry.path(), found);
            let group = entry.path();
            let inner = group.join("container/cgroup.procs");
            let procs = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default()
                + &std::fs::read_to_string(inner).unwrap_or_default();
            if name.starts_with("libpod-") && !procs.trim().is_empty() {
                found.insert(name);
            }
        }
    }
    let mut found = BTreeSet::new();
    search(Path::new("/sys/fs/cgroup"), &mut found);
    found
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET and HOSTLER_TEST_PODMAN_KILL; run alone"]
async fn fault_01_an_api_that_is_killed_during_a_launch_leaves_one_container_or_none() {
    let host = Host::new();
    let before = live_groups();
    let rounds: u64 =
        std::env::var("HOSTLER_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    let (mut launched, mut failed) = (0, 0);
    for round in 0..rounds {
        let spec = host.spec("/bin/busybox sleep 1000");
        // Spread evenly over the time that a launch takes.
        let delay = Duration::from_millis(round * 37 % 150);
        let killer = tokio::task::spawn_blocking(move || {
            std::thread::sleep(delay);
            kill_api();
        });
        let result = host.podman.launch(spec.clone(), progress().0).await;
        killer.await.unwrap();
        match result {
            Ok(l) => {
                launched += 1;
                assert!(
                    !host.podman.pids(&l.cgroup).unwrap().is_empty(),
                    "round {round}: handed out dead"
                );
                let found = host.podman.list().await.unwrap();
                assert_eq!(found.len(), 1, "round {round}: {found:?}");
                assert_eq!(found[0].running.as_ref(), Some(&l));
            }
            Err(fault) => {
                failed += 1;
                println!("round {round}, {delay:?}: {fault}");
            }
        }
        // Whatever came of it, a stop makes it nothing.
        host.podman.stop(spec.instance.clone()).await.unwrap();
        assert_eq!(host.podman.list().await.unwrap(), [], "round {round}");
        let path = format!("/containers/{}/json", spec.instance);
        assert_eq!(raw(&host.socket, "GET", &path, &Value::Null).0, 404, "round {round}");
    }
    println!("{launched} launched, {failed} failed");
    host.assert_clean(&[]).await;
    until("the end of all processes", Duration::from_secs(20), || {
        let left: Vec<String> = live_groups().difference(&before).cloned().collect();
        if !left.is_empty() {
            println!("left: {left:?}");
        }
        left.is_empty()
    })
    .await;
}

/// Somebody else's container has the name that a launch would give its own.
#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET and HOSTLER_TEST_PODMAN_KILL; run alone"]
async fn fault_08_a_name_that_is_taken_is_told_and_its_owner_left_alone() {
    let host = Host::new();
    let spec = host.spec("/bin/busybox sleep 1000");
    let name = spec.instance.container_name();
    let body = json!({"name": name, "image": host.image, "command": ["/bin/busybox", "true"]});
    let (status, made) = raw(&host.socket, "POST", "/containers/create", &body);
    assert_eq!(status, 201, "{made}");
    let fault = host.podman.launch(spec.clone(), progress().0).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::CreateFailed);
    assert!(fault.message.contains(&name) && fault.message.contains("in use"), "{fault}");
    host.podman.stop(spec.instance.clone()).await.unwrap();
    let (status, there) =
        raw(&host.socket, "GET", &format!("/containers/{name}/json"), &Value::Null);
    assert_eq!((status, &there["Id"]), (200, &made["Id"]), "it is not ours to remove");
    // The next attempt has a name of its own, as each has.
    let next = host.spec("/bin/busybox sleep 1000");
    assert_ne!(next.instance, spec.instance);
    let launched = host.launch(&next).await;
    host.podman.stop(next.instance).await.unwrap();
    host.assert_clean(&[&launched]).await;
    assert_eq!(raw(&host.socket, "DELETE", &format!("/containers/{name}"), &Value::Null).0, 200);
}

/// An image that is named by its digest is that image, whatever its tag means meanwhile.
#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET and HOSTLER_TEST_PODMAN_KILL; run alone"]
async fn an_image_by_its_digest_is_launched() {
    let host = Host::new();
    let (status, found) =
        raw(&host.socket, "GET", &format!("/images/{}/json", host.image), &Value::Null);
    assert_eq!(status, 200, "{found}");
    let name = host.image.rsplit_once(':').unwrap().0;
    let mut spec = host.spec("/bin/busybox sleep 1000");
    spec.image = ImageRef::parse(&format!("{name}@{}", found["Digest"].as_str().unwrap())).unwrap();
    let launched = host.launch(&spec).await;
    assert_eq!(launched.image_id, found["Id"]);
    host.podman.stop(spec.instance.clone()).await.unwrap();
    spec.image = ImageRef::parse(&format!("{name}@sha256:{}", "0".repeat(64))).unwrap();
    let fault = host.podman.launch(spec, progress().0).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::ImageMissing, "{fault}");
    host.assert_clean(&[&launched]).await;
}

/// podman takes a missing "alive" file for a reboot: it then reports `exited` for what still runs, and forgets it
/// on `rm`.
#[tokio::test]
#[ignore = "needs HOSTLER_TEST_PODMAN_SOCKET, HOSTLER_TEST_PODMAN_KILL and HOSTLER_TEST_PODMAN_ALIVE; run alone"]
async fn fault_05_what_podman_believes_dead_is_seen_alive_and_ended() {
    let alive = std::env::var("HOSTLER_TEST_PODMAN_ALIVE")
        .expect("set HOSTLER_TEST_PODMAN_ALIVE, for example $XDG_RUNTIME_DIR/libpod/tmp/alive");
    let host = Host::new();
    let spec = host.spec("/bin/busybox sleep 1000");
    let launched = host.podman.launch(spec.clone(), progress().0).await.unwrap();
    std::fs::remove_file(&alive).unwrap();
    kill_api();
    let mut found = host.podman.list().await;
    for _ in 0..50 {
        if found.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        found = host.podman.list().await;
    }
    let path = format!("/containers/{}/json", spec.instance);
    let (_, inspect) = raw(&host.socket, "GET", &path, &Value::Null);
    assert_ne!(inspect["State"]["Status"], "running", "podman was not deceived: {inspect}");
    assert_eq!(found.unwrap()[0].running.as_ref(), Some(&launched), "the kernel knows better");
    assert!(!host.podman.pids(&launched.cgroup).unwrap().is_empty());
    host.podman.stop(spec.instance).await.unwrap();
    host.assert_clean(&[&launched]).await;
}
