//! The operator's program where no daemon is needed: files, new models, the host's fitness.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use stub_hub::{Hub, Knobs};
use testhost::{Host, Run};

use crate::harness::{
    COUNT, MODELS, config, installed, put_count_model, serving, skip_unless_wanted,
};

const HOST: &str = "[gpu]\nbackend = \"host\"\n";

fn hostler(host: &Host, args: &str) -> Run {
    host.try_root(&format!("hostler {args}")).unwrap()
}

fn status(run: &Run) -> i32 {
    run.status.code().unwrap_or(-1)
}

/// One that has to succeed; its standard output.
fn good(host: &Host, args: &str) -> String {
    let run = hostler(host, args);
    assert_eq!(status(&run), 0, "hostler {args}: {}{}", run.stdout, run.stderr);
    run.stdout
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

#[test]
fn the_program_its_pages_and_its_completions_are_installed() {
    skip_unless_wanted!();
    let host = installed().boot().unwrap();
    assert!(good(&host, "--version").starts_with("hostler "));
    host.root("test -s /usr/share/man/man1/hostler.1 -a -s /usr/share/man/man8/hostlerd.8")
        .unwrap();
    host.root("bash -n /usr/share/bash-completion/completions/hostler").unwrap();
    let run = hostler(&host, "lod");
    assert_eq!(status(&run), 2, "{run:?}");
    // Nothing is configured and nothing runs: each says so, with what to do.
    let run = hostler(&host, "config check");
    assert_eq!(status(&run), 78, "{run:?}");
    assert!(run.stderr.contains("/etc/hostler/hostler.toml"), "{}", run.stderr);
    let run = hostler(&host, "status");
    assert_eq!(status(&run), 3, "{run:?}");
    assert!(run.stderr.contains("systemctl start hostler"), "{}", run.stderr);
    host.root("systemctl stop dbus.socket dbus.service").unwrap();
    let run = hostler(&host, "status");
    assert_eq!(status(&run), 3, "{run:?}");
    assert!(run.stderr.contains("D-Bus cannot be reached"), "{}", run.stderr);
}

#[test]
fn a_model_is_added_checked_shown_and_removed() {
    skip_unless_wanted!();
    let host = installed().boot().unwrap();
    let model = put_count_model(&host).unwrap();
    config(&host, HOST).unwrap();
    let image = "--image localhost/hostler/llama-server:latest";
    // Whatever is wrong is said before anything is written.
    let run = hostler(&host, &format!("add {model}"));
    assert_eq!(status(&run), 2, "{run:?}");
    assert!(run.stderr.contains("--image"), "{}", run.stderr);
    let run = hostler(&host, &format!("add {model} {image} --vram lots"));
    assert_eq!(status(&run), 78, "{run:?}");
    assert_eq!(host.root("ls /etc/hostler").unwrap(), "hostler.toml\n");
    let run = hostler(&host, "add /nowhere.gguf");
    assert_eq!(status(&run), 4, "{run:?}");

    let add = format!("add {model} {image} --name org/count --alias count --context 2048");
    let dry = good(&host, &format!("{add} --dry-run"));
    assert!(dry.contains("context = 2048"), "{dry}");
    assert_eq!(host.root("ls /etc/hostler").unwrap(), "hostler.toml\n");
    good(&host, &add);
    let file = "/etc/hostler/models.d/org-count.toml";
    assert_eq!(host.root(&format!("cat {file}")).unwrap(), dry);
    assert_eq!(host.root(&format!("stat -c '%U %a' {file}")).unwrap(), "root 644\n");
    good(&host, "config check");
    assert!(good(&host, "config files").contains(file));
    // The same again is refused, and the image is known by now.
    let run = hostler(&host, &add);
    assert_eq!(status(&run), 1, "{run:?}");
    assert!(run.stderr.contains("--force"), "{}", run.stderr);
    good(&host, &format!("add {model} --name org/count --force --pin"));
    assert!(host.root(&format!("cat {file}")).unwrap().contains("pin = true"));

    good(&host, "remove org/count");
    assert_eq!(host.root("ls /etc/hostler/models.d").unwrap(), "");
    assert_eq!(status(&hostler(&host, "remove org/count")), 4);
}

#[test]
fn a_quadlet_unit_becomes_a_model() {
    skip_unless_wanted!();
    let host = installed().boot().unwrap();
    put_count_model(&host).unwrap();
    config(&host, HOST).unwrap();
    let unit = format!(
        "[Container]\nImage=localhost/hostler/llama-server:latest\nVolume={MODELS}:/m:ro\n\
         Exec=-m /m/count-512.gguf --host 0.0.0.0 -c 2048\nPublishPort=80:80\n"
    );
    host.write_file("/root/count.container", &unit).unwrap();
    let run = hostler(&host, "add --quadlet /root/count.container");
    assert_eq!(status(&run), 0, "{run:?}");
    assert!(
        run.stdout.contains(&format!("weights = {{ path = \"{MODELS}/count-512.gguf\" }}")),
        "{}",
        run.stdout
    );
    assert!(run.stderr.contains("line 5: PublishPort=80:80 is not taken over: "), "{}", run.stderr);
    good(&host, "config check");
}

/// A hub on the host's own loopback.
fn hub(host: &Host, dir: &Path, knobs: Knobs) -> (Hub, String) {
    let namespace = fs::File::open(format!("/proc/{}/ns/net", host.leader())).unwrap();
    let bind = std::thread::spawn(move || {
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(LinkNameSpaceType::Network),
        )
        .unwrap();
        TcpListener::bind("127.0.0.1:0").unwrap()
    });
    let (hub, address) = Hub::serve_on(bind.join().unwrap(), dir, knobs).unwrap();
    (hub, format!("http://{address}"))
}

#[test]
fn weights_come_from_a_hub_in_a_container_and_the_model_answers() {
    skip_unless_wanted!();
    let host = serving(HOST).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("org/count-512");
    fs::create_dir_all(&repo).unwrap();
    let model = testhost::assets::count_512().unwrap();
    fs::copy(&model, repo.join("count-512.gguf")).unwrap();
    let knobs = Knobs { token: Some("sesame".into()), cut: Some(1_000_000), ..Knobs::default() };
    let (hub, endpoint) = hub(&host, dir.path(), knobs);
    let add = |token: &str| {
        let image = "localhost/hostler/llama-server:latest";
        let line = format!(
            "HF_ENDPOINT={endpoint} HF_TOKEN={token} hostler add org/count-512 --name count --image {image}"
        );
        host.try_root(&line).unwrap()
    };
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
    let podman = crate::harness::PODMAN;
    assert_eq!(host.root(&format!("{podman} secret ls --quiet")).unwrap(), "");
    let left =
        host.root(&format!("{podman} ps --all --quiet --filter label=io.hostler.helper")).unwrap();
    assert_eq!(left, "");
    assert!(!host.root("cat /etc/hostler/models.d/count.toml").unwrap().contains("sesame"));
    // The engine runs offline on what was fetched.
    crate::harness::count(&host).check();
}

#[test]
fn doctor_says_what_is_wrong_and_mends_it() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    let (code, rows) = doctor(&host, "");
    assert_eq!(code, 0, "{rows:#}");
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
    let run = hostler(&host, "doctor --fix");
    assert_eq!(status(&run), 0, "{}{}", run.stdout, run.stderr);
}
