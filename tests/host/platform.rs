//! The platform that everything else stands on: if one of these fails, look here first.

use crate::harness::{PODMAN, installed, skip_unless_wanted};
use testhost::Host;

const LINGER_CHECK: &str = "loginctl show-user hostler --property=State --property=Linger";

#[test]
fn a_plain_host_is_sound() {
    skip_unless_wanted!();
    let host = Host::builder().boot().unwrap();
    assert_eq!(host.failed_units().unwrap(), "");
    assert_eq!(host.root("systemctl is-system-running").unwrap().trim(), "running");
    assert_eq!(host.root("ps -p 1 -o comm=").unwrap().trim(), "systemd");
    // No way out: the loopback interface is all there is.
    assert_eq!(host.root("ls /sys/class/net").unwrap().trim(), "lo");
    assert!(host.root("journalctl -b -n 1 --no-pager -o cat").is_ok());
    assert!(host.root("busctl status >/dev/null").is_ok());
}

#[test]
fn installing_twice_is_installing_once() {
    skip_unless_wanted!();
    let host = installed().boot().unwrap();
    let state = "cat /etc/passwd /etc/group /etc/subuid /etc/subgid; \
                 find /run/hostler /var/lib/hostler /usr/lib/hostler -printf '%p %u %g %m %y\\n' | sort";
    let before = host.root(state).unwrap();
    host.install(&crate::harness::bindir()).unwrap();
    assert_eq!(before, host.root(state).unwrap());
    assert_eq!(host.failed_units().unwrap(), "");
}

#[test]
fn the_subordinate_ids_are_free_ones() {
    skip_unless_wanted!();
    let host = Host::builder().boot().unwrap();
    // Two holes: one too small between taken ranges, and ids taken in one of the two files only.
    host.root(
        "echo alice:100000:65536 >/etc/subuid; echo bob:170000:65536 >>/etc/subuid; \
         echo carol:240000:65536 >/etc/subgid",
    )
    .unwrap();
    host.install(&crate::harness::bindir()).unwrap();
    for file in ["/etc/subuid", "/etc/subgid"] {
        let ours = host.root(&format!("grep ^hostler: {file}")).unwrap();
        assert_eq!(ours.trim(), "hostler:305536:65536", "{file}");
    }
}

#[test]
fn the_service_user_has_a_manager_and_a_podman() {
    skip_unless_wanted!();
    let host = installed().boot().unwrap();
    let user = host.root(LINGER_CHECK).unwrap();
    assert!(user.contains("State=lingering") && user.contains("Linger=yes"), "{user}");
    let ping = "curl -sS --unix-socket /run/hostler/service/podman.sock -D - http://d/_ping";
    let answer = host.user("hostler", ping).unwrap();
    assert!(answer.to_lowercase().contains("libpod-api-version: 5."), "{answer}");
    let field = |path: &str| {
        let run = host.user("hostler", &format!("{PODMAN} info --format '{{{{.{path}}}}}'"));
        run.unwrap().trim().to_owned()
    };
    assert_eq!(field("Host.Security.Rootless"), "true");
    // With journald a system user's logs and events would be empty, without an error.
    assert_eq!(field("Host.LogDriver"), "k8s-file");
    assert_eq!(field("Host.EventLogger"), "file");
    // 65,536 subordinate ids, not the single id that podman falls back to.
    assert!(field("Host.IDMappings.UIDMap").contains("65536"));
    // The native overlay, which needs a real file system below it.
    assert_eq!(field("Store.GraphDriverName"), "overlay");
    assert!(field("Store.GraphStatus").contains("Native Overlay Diff:true"));
}

#[test]
fn nobody_else_reaches_the_podman_socket() {
    skip_unless_wanted!();
    let host = installed().boot().unwrap();
    let tried = "setpriv --reuid=nobody --regid=nogroup --clear-groups \
                 curl -sS --unix-socket /run/hostler/service/podman.sock http://d/_ping";
    let run = host.try_root(tried).unwrap();
    assert!(!run.status.success(), "nobody got {}", run.stdout);
}

#[test]
fn a_reboot_and_a_power_cut_bring_everything_back() {
    skip_unless_wanted!();
    let mut host = installed().boot().unwrap();
    host.root("systemctl enable --now hostler.socket hostler-unix.socket").unwrap();
    let boot_id = |host: &Host| host.root("cat /proc/sys/kernel/random/boot_id").unwrap();
    let mut boots = vec![boot_id(&host)];
    for cut in [false, true] {
        let done = if cut { host.power_cut() } else { host.reboot() };
        done.unwrap();
        boots.push(boot_id(&host));
        assert_eq!(host.failed_units().unwrap(), "");
        host.root("systemctl is-active hostler.socket hostler-unix.socket").unwrap();
        host.wait_unit(
            "user@$(id -u hostler).service",
            "active",
            std::time::Duration::from_secs(30),
        )
        .unwrap();
        let ping = "curl -sS --fail --retry 50 --retry-connrefused --retry-delay 0 --retry-max-time 20 \
                    --unix-socket /run/hostler/service/podman.sock http://d/_ping";
        assert_eq!(host.user("hostler", ping).unwrap().trim(), "OK");
    }
    boots.dedup();
    assert_eq!(boots.len(), 3, "each boot has an id of its own");
    // The journal of the boot before the cut is still there.
    assert!(host.root("journalctl --list-boots --no-pager | wc -l").unwrap().trim() >= "3");
}
