//! A daemon that cannot start: each cause has its own exit status and message, everybody who waits is told, and it comes back
//! by itself when the cause is gone.

use std::time::Duration;

use crate::harness::{
    COUNT, FIRST, Refusal, SOON, allow_internet, config, count, get, property, recovers, refused,
    serving, show_status, skip_unless_wanted, wait_property,
};

/// A short patience, so that a fault that may heal within a start is given up soon.
const PATIENCE: &str = "\n[startup]\ntimeout = \"2s\"\n";

fn impatient() -> String {
    format!("{COUNT}{PATIENCE}")
}

#[test]
fn fault_29_a_wrong_configuration_is_told_whole_and_to_everybody() {
    skip_unless_wanted!();
    let host =
        serving(&COUNT.replace("context = 4096", "contxt = 4096\nidle_timeout = \"10\"")).unwrap();
    host.write_file("/etc/hostler/models.d/other.toml", "engine = \"llama\"\n").unwrap();
    refused(
        &host,
        &Refusal {
            status: 78,
            word: "config_invalid",
            says: &[
                "the configuration is not valid",
                "/etc/hostler/hostler.toml:9:1: models.count.contxt: unknown key; did you mean \"context\"?",
                "/etc/hostler/hostler.toml:10:16: models.count.idle_timeout",
                "/etc/hostler/models.d/other.toml:1:10: engine",
            ],
        },
    );
    config(&host, COUNT).unwrap();
    host.root("rm /etc/hostler/models.d/other.toml").unwrap();
    recovers(&host);
}

#[test]
fn a_host_without_configuration_says_what_to_write() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    host.root("rm /etc/hostler/hostler.toml").unwrap();
    refused(
        &host,
        &Refusal {
            status: 78,
            word: "config_invalid",
            says: &["there is no configuration; write one of /etc/hostler/hostler.toml"],
        },
    );
    config(&host, COUNT).unwrap();
    recovers(&host);
}

#[test]
fn a_log_filter_that_is_none_is_told_to_everybody_too() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    let drop_in = "/etc/systemd/system/hostler.service.d/filter.conf";
    // A target to those who read filters, which would log nothing but itself.
    host.write_file(drop_in, "[Service]\nEnvironment=HOSTLER_LOG=warning\n").unwrap();
    host.root("systemctl daemon-reload").unwrap();
    refused(
        &host,
        &Refusal {
            status: 78,
            word: "config_invalid",
            says: &["HOSTLER_LOG: \"warning\" is neither a level"],
        },
    );
    host.root(&format!("rm {drop_in} && systemctl daemon-reload")).unwrap();
    recovers(&host);
}

#[test]
fn fault_32_sockets_survive_a_daemon_that_keeps_failing() {
    skip_unless_wanted!();
    let host = serving("nonsense = true\n").unwrap();
    let mut asked = 0;
    for restarts in 1..=4 {
        // Sixty in a row, over several starts of the daemon: far more than systemd's limits on triggers and on starts allow.
        for _ in 0..15 {
            let answer = get(&host, "/v1/models").unwrap();
            assert_eq!(
                (answer.status, answer.failure.as_str()),
                (503, ""),
                "after {asked}: {answer:?}"
            );
            assert_eq!(answer.json()["error"]["code"], "startup_failed");
            asked += 1;
        }
        let reached = |seen: &str| seen.parse::<u32>().is_ok_and(|seen| seen >= restarts);
        wait_property(&host, "hostler.service", "NRestarts", FIRST, reached).unwrap();
    }
    assert_eq!(asked, 60);
    for socket in ["hostler.socket", "hostler-unix.socket"] {
        assert_eq!(property(&host, socket, "ActiveState").unwrap(), "active", "{socket}");
        assert_eq!(property(&host, socket, "Result").unwrap(), "success", "{socket}");
    }
    config(&host, COUNT).unwrap();
    recovers(&host);
}

#[test]
fn a_missing_podman_is_said_and_waited_for() {
    skip_unless_wanted!();
    let host = serving(&impatient()).unwrap();
    host.root("systemctl --user -M hostler@ stop hostler-podman.socket hostler-podman.service")
        .unwrap();
    refused(
        &host,
        &Refusal {
            status: 40,
            word: "podman_unreachable",
            says: &["/run/hostler/service/podman.sock"],
        },
    );
    host.root("systemctl --user -M hostler@ start hostler-podman.socket").unwrap();
    recovers(&host);
}

#[test]
fn a_podman_that_comes_late_is_waited_for_within_one_start() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    let manager = "systemctl --user -M hostler@";
    host.root(&format!("{manager} stop hostler-podman.socket hostler-podman.service")).unwrap();
    let waiting = count(&host);
    let said = |text: &str| text.starts_with("Waiting for podman (attempt ");
    wait_property(&host, "hostler.service", "StatusText", FIRST, said).unwrap();
    assert_eq!(property(&host, "hostler.service", "ActiveState").unwrap(), "activating");
    // Written by somebody who finds no daemon on the bus to tell.
    let late = "engine = \"external\"\nurl = \"http://192.0.2.1\"\n";
    host.write_file("/etc/hostler/models.d/late.toml", late).unwrap();
    host.root(&format!("{manager} start hostler-podman.socket")).unwrap();
    waiting.check();
    host.wait_journal("hostler.service", "configuration reloaded", SOON).unwrap();
    assert!(get(&host, "/v1/models").unwrap().body.contains("\"late\""));
    assert_eq!(property(&host, "hostler.service", "NRestarts").unwrap(), "0");
}

#[test]
fn a_path_to_engines_that_cannot_be_proven_is_said() {
    skip_unless_wanted!();
    let host = serving(&impatient()).unwrap();
    // podman starts the proof's container from it.
    let catatonit = host.root("command -v catatonit").unwrap().trim().to_owned();
    host.root(&format!("mv {catatonit} {catatonit}.off")).unwrap();
    // The image that podman once made of it would do as well.
    host.user("hostler", "podman rmi --force $(podman images -q localhost/podman-pause) || true")
        .unwrap();
    refused(
        &host,
        &Refusal {
            status: 50,
            word: "network_unproven",
            says: &["the unix path to engines", "catatonit"],
        },
    );
    host.root(&format!("mv {catatonit}.off {catatonit}")).unwrap();
    recovers(&host);
}

#[test]
fn a_network_that_cannot_be_proven_is_said() {
    skip_unless_wanted!();
    let toml = impatient().replace("context = 4096", "context = 4096\ntransport = \"tcp\"");
    let host = serving(&toml).unwrap();
    // The sandbox has none, and says how to get one.
    refused(
        &host,
        &Refusal {
            status: 50,
            word: "network_unproven",
            says: &["the tcp path to engines", "systemctl edit hostler"],
        },
    );
    allow_internet(&host).unwrap();
    recovers(&host);
    host.root("systemctl stop hostler.service").unwrap();
    host.root(
        "for name in pasta pasta.avx2; do mv /usr/bin/$name /usr/bin/$name.off || true; done",
    )
    .unwrap();
    refused(
        &host,
        &Refusal {
            status: 50,
            word: "network_unproven",
            says: &["the tcp path to engines", "pasta"],
        },
    );
    host.root(
        "for name in pasta pasta.avx2; do mv /usr/bin/$name.off /usr/bin/$name || true; done",
    )
    .unwrap();
    recovers(&host);
}

#[test]
fn an_engine_directory_that_cannot_be_used_is_named() {
    skip_unless_wanted!();
    let toml = format!("{COUNT}\n[podman]\nengine_dir = \"/run/elsewhere/engines\"\n");
    let host = serving(&toml).unwrap();
    refused(
        &host,
        &Refusal {
            status: 10,
            word: "state_unusable",
            says: &["/run/elsewhere/engines", "writable"],
        },
    );
    config(&host, COUNT).unwrap();
    recovers(&host);
}

#[test]
fn a_pinned_model_without_its_image_is_named_and_with_it_is_loaded_without_a_request() {
    skip_unless_wanted!();
    let toml = format!("{COUNT}pin = true\n");
    let host = serving(&toml.replace("llama-server:latest", "gone:latest")).unwrap();
    refused(
        &host,
        &Refusal {
            status: 60,
            word: "image_missing",
            says: &["localhost/hostler/gone:latest", "count"],
        },
    );
    config(&host, &toml).unwrap();
    let ready = |text: &str| text.starts_with("1 of 1 models ready (count)");
    wait_property(&host, "hostler.service", "StatusText", FIRST, ready).unwrap();
    recovers(&host);
}

#[test]
fn a_start_by_hand_fails_as_systemctl_users_expect() {
    skip_unless_wanted!();
    let host = serving("nonsense = true\n").unwrap();
    let tried = host.try_root("systemctl start hostler.service").unwrap();
    assert!(!tried.status.success());
    let shown = show_status(&host, "hostler.service").unwrap();
    assert!(shown.contains("Status: \"Failed (config_invalid): "), "{shown}");
    assert!(shown.contains("status=78"), "{shown}");
    // Nobody waited, so nobody was refused; it ended soon after all the same.
    let took = Duration::from_secs(10);
    wait_property(&host, "hostler.service", "SubState", took, |state| state != "start").unwrap();
}
