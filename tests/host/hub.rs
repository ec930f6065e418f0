//! Weights from a hub: a stand-in for it in the host's network, the real container that fetches.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use stub_hub::{Hub, Knobs};
use testhost::{Host, Look, Run, wait_for};

use crate::harness::{FIRST, MODELS, PODMAN, serving, skip_unless_wanted};

const HOST: &str = "[gpu]\nbackend = \"host\"\n";

/// A hub in the host's network, on this address.
fn hub(host: &Host, address: &'static str, dir: &Path, knobs: Knobs) -> (Hub, String) {
    let namespace = fs::File::open(format!("/proc/{}/ns/net", host.leader())).unwrap();
    let bind = std::thread::spawn(move || {
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(LinkNameSpaceType::Network),
        )
        .unwrap();
        TcpListener::bind((address, 0)).unwrap()
    });
    let (hub, address) = Hub::serve_on(bind.join().unwrap(), dir, knobs).unwrap();
    (hub, format!("http://{address}"))
}

/// What the hub has: the counting model.
fn repository() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("org/count-512");
    fs::create_dir_all(&repo).unwrap();
    let model = testhost::assets::count_512().unwrap();
    fs::copy(&model, repo.join("count-512.gguf")).unwrap();
    dir
}

fn line(endpoint: &str, token: &str) -> String {
    let image = "localhost/hostler/llama-server:latest";
    format!(
        "HF_ENDPOINT={endpoint} HF_TOKEN={token} hostler add org/count-512 --name count --image {image}"
    )
}

fn status(run: &Run) -> i32 {
    run.status.code().unwrap_or(-1)
}

/// Helpers' containers, and secrets.
fn left(host: &Host) -> String {
    let helpers = format!("{PODMAN} ps --all --quiet --no-trunc --filter label=io.hostler.helper");
    host.root(&format!("{helpers}; {PODMAN} secret ls --quiet")).unwrap()
}

#[test]
fn weights_come_from_a_hub_in_a_container_and_the_model_answers() {
    skip_unless_wanted!();
    let host = serving(HOST).unwrap();
    let dir = repository();
    let knobs = Knobs { token: Some("sesame".into()), cut: Some(1_000_000), ..Knobs::default() };
    let (hub, endpoint) = hub(&host, "127.0.0.1", dir.path(), knobs);
    let add = |token: &str| host.try_root(&line(&endpoint, token)).unwrap();
    let run = add("wrong");
    assert_eq!(status(&run), 1, "{run:?}");
    assert!(run.stderr.contains("refuses the token"), "{}", run.stderr);
    assert!(!host.path("/etc/hostler/models.d/count.toml").exists());

    let run = add("sesame");
    assert_eq!(status(&run), 0, "{}{}", run.stdout, run.stderr);
    let ranges: Vec<_> = hub.asked().into_iter().filter_map(|asked| asked.range).collect();
    assert_eq!(ranges, ["bytes=1000000-"], "a broken connection is gone on with");
    let found =
        host.root(&format!("find {MODELS}/hub -name '*.gguf' -printf '%U %m %p\\n'")).unwrap();
    let uid = host.root("id -u hostler").unwrap();
    assert!(found.starts_with(&format!("{} 644 ", uid.trim())), "{found}");
    // Nothing of the download is left, the token least of all.
    assert_eq!(left(&host), "");
    assert!(!host.root("cat /etc/hostler/models.d/count.toml").unwrap().contains("sesame"));
    // The engine runs offline on what was fetched.
    crate::harness::count(&host).check();
}

/// An address that is none of a loopback's to those who look at it: it is reached by the container's own network, and then the host's.
const OUTSIDE: &str = "198.51.100.7";

#[test]
fn a_hub_outside_is_reached_by_a_network_of_its_own_and_a_download_goes_on_later() {
    skip_unless_wanted!();
    let host = serving(HOST).unwrap();
    host.root(&format!("ip address add {OUTSIDE}/32 dev lo")).unwrap();
    let dir = repository();
    let size = fs::metadata(dir.path().join("org/count-512/count-512.gguf")).unwrap().len();
    let knobs = Knobs { token: Some("sesame".into()), hold: Some(1_000_000), ..Knobs::default() };
    let (hub, endpoint) = hub(&host, OUTSIDE, dir.path(), knobs);
    let mut adding = host
        .command("sh")
        .args(["-c", &format!("exec env {}", line(&endpoint, "sesame"))])
        .spawn()
        .unwrap();
    let part = wait_for("a part of the file", FIRST, || {
        let found = host
            .root(&format!("find {MODELS}/hub -name '*.part' -size +900k 2>/dev/null || true"))?;
        if let Some(status) = adding.try_wait().unwrap() {
            panic!("it ended with {status}, and asked for {:?}", hub.asked());
        }
        Ok(if found.is_empty() {
            Look::NotYet(format!("{:?}", hub.asked()))
        } else {
            Look::Done(found)
        })
    })
    .unwrap();
    // The container has a network of its own, and nothing else of the host's but what it was given.
    let listed = left(&host);
    let (helper, secret) = listed.trim().split_once('\n').unwrap_or_else(|| panic!("{listed:?}"));
    let inspect = host.root(&format!("{PODMAN} inspect {helper}")).unwrap();
    let inspect: Value = serde_json::from_str(&inspect).unwrap();
    let config = &inspect[0]["HostConfig"];
    assert_eq!(config["NetworkMode"], "pasta", "{config:#}");
    assert_eq!((&config["ReadonlyRootfs"], &config["Privileged"]), (&true.into(), &false.into()));
    assert!(host.root("pgrep --list-full pasta").unwrap().contains("pasta"));
    // The token is a secret, and nowhere else: no argument, no variable, no label; not in any process's either.
    assert!(!inspect.to_string().contains("sesame"), "{inspect:#}");
    let named = host.root(&format!("{PODMAN} secret inspect {secret}")).unwrap();
    assert!(named.contains("hostler-helper-") && !named.contains("sesame"), "{named}");
    let pid = &inspect[0]["State"]["Pid"];
    let seen = host
        .root(&format!("cat /proc/{pid}/cmdline /proc/{pid}/environ | tr '\\0' '\\n'"))
        .unwrap();
    assert!(seen.contains("fetch") && !seen.contains("sesame"), "{seen}");

    // An ssh session that is closed ends the container, as Ctrl-C does; what came stays, and the next run goes on from there.
    host.root("pkill --signal HUP --exact hostler").unwrap();
    assert_eq!(adding.wait().unwrap().code(), Some(130));
    assert_eq!(left(&host), "");
    assert!(!host.path("/etc/hostler/models.d/count.toml").exists());
    let had: u64 = host.root(&format!("stat -c %s {part}")).unwrap().trim().parse().unwrap();
    assert!((1..size).contains(&had), "{had} of {size}");
    hub.release();
    let run = host.try_root(&line(&endpoint, "sesame")).unwrap();
    assert_eq!(status(&run), 0, "{}{}", run.stdout, run.stderr);
    let range = hub.asked().last().unwrap().range.clone();
    assert_eq!(range, Some(format!("bytes={had}-")), "{:?}", hub.asked());
    crate::harness::count(&host).check();
}
