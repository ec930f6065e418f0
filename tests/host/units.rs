//! The units themselves: sound, tight, and ready to listen.

use crate::harness::{COUNT, get, installed, property, serving, skip_unless_wanted};

/// The exposure that `systemd-analyze security` may report for the daemon, in tenths. What is left has a reason in the unit.
const EXPOSURE_TENTHS_MAX: u32 = 12;

#[test]
fn systemd_finds_nothing_to_complain_about() {
    skip_unless_wanted!();
    let host = installed().boot().unwrap();
    let verify = host
        .try_root("systemd-analyze verify --man=no /usr/lib/systemd/system/hostler*.* 2>&1")
        .unwrap();
    assert!(verify.status.success() && verify.stdout.is_empty(), "{}", verify.stdout);
    let verify = host
        .try_user(
            "hostler",
            "systemd-analyze --user verify --man=no /usr/lib/systemd/user/hostler*.* 2>&1",
        )
        .unwrap();
    assert!(verify.status.success() && verify.stdout.is_empty(), "{}", verify.stdout);
    for command in ["systemd-sysusers --dry-run", "systemd-tmpfiles --create --dry-run"] {
        let dry = host.try_root(&format!("{command} hostler.conf 2>&1")).unwrap();
        assert!(dry.status.success(), "{command}: {}", dry.stdout);
    }
}

#[test]
fn the_daemon_is_exposed_to_little() {
    skip_unless_wanted!();
    let host = installed().boot().unwrap();
    let report = host.root("systemd-analyze security --no-pager hostler.service").unwrap();
    let overall = report
        .lines()
        .find_map(|line| line.split_once("Overall exposure level for hostler.service: "))
        .and_then(|(_, rest)| rest.split(' ').next());
    let tenths: Option<u32> = overall.and_then(|level| level.replace('.', "").parse().ok());
    assert!(tenths.is_some_and(|tenths| tenths <= EXPOSURE_TENTHS_MAX), "{report}");
}

#[test]
fn the_sockets_listen_before_the_daemon_runs() {
    skip_unless_wanted!();
    let host = installed().boot().unwrap();
    host.root("systemctl start hostler.socket hostler-unix.socket").unwrap();
    let sockets = host.root("ss --listening --tcp --numeric --no-header").unwrap();
    assert!(sockets.contains("127.0.0.1:8711") && sockets.contains("[::1]:8711"), "{sockets}");
    let mode = host.root("stat -c '%U %G %a' /run/hostler/http.sock /run/hostler").unwrap();
    assert_eq!(mode, "hostler hostler 660\nroot hostler 750\n");
    assert_eq!(
        host.root("systemctl is-active hostler.service || true").unwrap().trim(),
        "inactive"
    );
}

/// Switched off at run time there is no ::1; at boot, the kernel does not even know of it.
#[test]
fn a_host_without_ipv6_serves_on_ipv4() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    let answers = || {
        let answer = get(&host, "/health").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(host.failed_units().unwrap(), "");
    };
    let stop = "systemctl stop hostler.socket hostler-unix.socket hostler.service";
    let start = "systemctl daemon-reload; systemctl start hostler.socket hostler-unix.socket";
    let listens = || host.root("ss --listening --tcp --numeric --no-header").unwrap();
    host.root(&format!("{stop}; sysctl -qw net.ipv6.conf.all.disable_ipv6=1; {start}")).unwrap();
    assert!(host.root("cat /proc/net/if_inet6").unwrap().is_empty());
    answers();

    host.root(stop).unwrap();
    assert!(!listens().contains(":8711"), "{}", listens());
    host.write_file(
        "/etc/systemd/system/hostler-ipv6.socket.d/none.conf",
        "[Unit]\nConditionPathExists=/proc/net/none\n",
    )
    .unwrap();
    host.root(start).unwrap();
    answers();
    assert_eq!(property(&host, "hostler-ipv6.socket", "ActiveState").unwrap(), "inactive");

    // And there again, it comes with the other socket.
    host.root(&format!(
        "{stop}; sysctl -qw net.ipv6.conf.all.disable_ipv6=0; rm -r /etc/systemd/system/hostler-ipv6.socket.d; {start}"
    ))
    .unwrap();
    assert!(listens().contains("[::1]:8711"), "{}", listens());
    let run = host.try_root("curl -sS --fail http://[::1]:8711/health").unwrap();
    assert!(run.status.success(), "{}", run.stderr);
    answers();
}

#[test]
fn another_users_manager_leaves_the_service_users_podman_alone() {
    skip_unless_wanted!();
    let host = installed().boot().unwrap();
    host.root("useradd --create-home alice && touch /var/lib/systemd/linger/alice").unwrap();
    host.root("systemctl start user@$(id -u alice).service").unwrap();
    host.user("alice", "systemctl --user start hostler-podman.socket").unwrap();
    let state = host
        .user(
            "alice",
            "systemctl --user show hostler-podman.socket -P ActiveState -P ConditionResult",
        )
        .unwrap();
    assert_eq!(state, "inactive\nno\n");
    // A desktop user has units of her own, with sockets of her own.
    host.user("alice", "systemctl --user start hostler-user-podman.socket").unwrap();
    let ping = "curl -sS --unix-socket $XDG_RUNTIME_DIR/hostler/podman.sock http://d/_ping";
    assert_eq!(host.user("alice", ping).unwrap().trim(), "OK");
}
