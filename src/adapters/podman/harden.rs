//! Whether a running container is as restricted as it was asked to be.
//!
//! Purpose: podman ignores fields that it does not know without a word, so a restriction counts only when it is
//! seen on the running process. The kernel's `/proc/PID/status` is asked first; podman's own account is compared as
//! well. Some of podman's versions hand the annotations of an image on to the runtime, which obeys them: the filter of system
//! calls, for one, can be the image's own, and `/proc` shows no difference. So there is a look at these before. Invariant: pure.

use super::create::USER;
use super::inspect::{Image, Inspect};
use crate::types::Transport;

/// How the annotations begin that crun, podman and systemd take orders from.
const ORDERS: [&str; 3] = ["run.oci.", "io.podman.annotations.", "org.systemd.property."];

/// The annotation by which an image could lift restrictions of its container: podman 4 copies those of the engine's image.
#[must_use]
pub fn lifting(image: &Image) -> Option<&str> {
    let mut keys = image.annotations.as_ref()?.keys();
    keys.find(|key| ORDERS.iter().any(|order| key.starts_with(order))).map(String::as_str)
}

/// Every way in which a container is less restricted than asked; empty: it is as it should be.
///
/// `status` is the text of `/proc/PID/status` of its first process, or why it cannot be read (hidden by the daemon's sandbox), which
/// is a deviation as well; `own_uid` is the user that this process runs as, which the engine must not be.
#[must_use]
pub fn deviations(
    inspect: &Inspect,
    status: Result<&str, &str>,
    transport: Transport,
    own_uid: u32,
) -> Vec<String> {
    let mut found = Vec::new();
    match status {
        Ok(status) => kernel(status, own_uid, &mut found),
        Err(why) => found.push(format!(
            "the kernel does not say how it is restricted ({why}); /proc has to show the daemon its containers' processes: look for PrivateUsers=, ProtectProc= and ProcSubset= in a drop-in"
        )),
    }
    podman(inspect, transport, &mut found);
    found
}

fn kernel(status: &str, own_uid: u32, found: &mut Vec<String>) {
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    if field("NoNewPrivs") != Some("1") {
        found.push(format!("NoNewPrivs is {:?}, not 1", field("NoNewPrivs").unwrap_or("absent")));
    }
    // 2: by a filter. Which one it is the kernel tells nobody without a capability.
    if field("Seccomp") != Some("2") {
        found.push(format!(
            "Seccomp is {:?}, not 2: its system calls are not filtered",
            field("Seccomp").unwrap_or("absent")
        ));
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let text = field(set).unwrap_or("absent");
        if text.is_empty() || text.bytes().any(|b| b != b'0') {
            found.push(format!("the capability set {set} is {text}, not empty"));
        }
    }
    let uids: Vec<&str> = field("Uid").unwrap_or_default().split_whitespace().collect();
    if uids.is_empty() || uids.iter().any(|uid| *uid == "0" || *uid == own_uid.to_string()) {
        found.push(format!("its user IDs on the host are {uids:?}, not a subordinate ID's"));
    }
}

fn podman(inspect: &Inspect, transport: Transport, found: &mut Vec<String>) {
    let host = &inspect.host_config;
    let mut check = |ok: bool, what: &str| {
        if !ok {
            found.push(format!("podman reports {what}"));
        }
    };
    check(inspect.config.user.as_deref() == Some(USER), "another user than 1000:1000");
    check(host.readonly_rootfs, "a writable root file system");
    check(!host.privileged, "a privileged container");
    let mut mounts = inspect.mounts.iter().flatten();
    check(mounts.all(|mount| mount.kind != "volume"), "a volume on the host's disk");
    check(
        host.security_opt.as_ref().is_some_and(|o| o.iter().any(|x| x.starts_with("no-new-priv"))),
        "no \"no-new-privileges\"",
    );
    check(inspect.effective_caps.as_ref().is_none_or(Vec::is_empty), "effective capabilities");
    check(inspect.bounding_caps.as_ref().is_none_or(Vec::is_empty), "bounding capabilities");
    check(host.ipc_mode.as_deref() != Some("host"), "the host's IPC namespace");
    check(host.pid_mode.as_deref() != Some("host"), "the host's PID namespace");
    let network = host.network_mode.as_deref();
    match transport {
        Transport::Unix => check(network == Some("none"), "a network"),
        Transport::Tcp => check(network != Some("host"), "the host's network"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::inspect::Mount;
    use super::*;

    const STATUS: &str = "Name:\tsh\nUid:\t100999\t100999\t100999\t100999\nCapInh:\t0000000000000000\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
        CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";

    fn good() -> Inspect {
        serde_json::from_value(serde_json::json!({
            "Config": {"User": "1000:1000"}, "EffectiveCaps": null, "BoundingCaps": [],
            "HostConfig": {
                "NetworkMode": "none", "SecurityOpt": ["no-new-privileges"], "ReadonlyRootfs": true,
                "Privileged": false, "IpcMode": "private", "PidMode": "private",
            },
        }))
        .unwrap()
    }

    fn mount(kind: &str) -> Mount {
        Mount { kind: kind.into(), ..Mount::default() }
    }

    fn found(inspect: &Inspect, status: &str) -> Vec<String> {
        deviations(inspect, Ok(status), Transport::Unix, 996)
    }

    #[test]
    fn what_was_asked_for_passes() {
        assert_eq!(found(&good(), STATUS), [""; 0]);
        let mounted = Inspect { mounts: Some(["bind", "image"].map(mount).to_vec()), ..good() };
        assert_eq!(found(&mounted, STATUS), [""; 0]);
    }

    #[test]
    fn what_nobody_can_see_is_not_taken_for_restricted() {
        let hidden = "/proc/7/status: Permission denied";
        let all = deviations(&good(), Err(hidden), Transport::Unix, 996);
        assert!(all.len() == 1 && all[0].contains(hidden), "{all:?}");
    }

    #[test]
    fn each_missing_restriction_is_named() {
        for (from, to, word) in [
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "NoNewPrivs"),
            ("NoNewPrivs:\t1\n", "", "NoNewPrivs"),
            ("Seccomp:\t2", "Seccomp:\t0", "Seccomp"),
            ("Seccomp:\t2", "Seccomp:\t1", "Seccomp"),
            ("Seccomp:\t2\n", "", "Seccomp"),
            ("CapBnd:\t0000000000000000", "CapBnd:\t00000000800405fb", "CapBnd"),
            ("CapEff:\t0000000000000000", "CapEff:\t0000000000000001", "CapEff"),
            ("CapAmb:\t0000000000000000\n", "", "CapAmb"),
            ("100999\n", "996\n", "user IDs"),
            ("100999\n", "0\n", "user IDs"),
        ] {
            let all = found(&good(), &STATUS.replace(from, to));
            assert_eq!(all.len(), 1, "{all:?}");
            assert!(all[0].contains(word), "{all:?}");
        }
        type Change = fn(&mut Inspect);
        let changes: [(Change, &str); 9] = [
            (|i| i.config.user = None, "user"),
            (|i| i.host_config.readonly_rootfs = false, "writable"),
            (|i| i.host_config.privileged = true, "privileged"),
            (|i| i.mounts = Some(vec![mount("bind"), mount("volume")]), "volume"),
            (|i| i.host_config.security_opt = None, "no-new-privileges"),
            (|i| i.effective_caps = Some(vec!["CAP_KILL".into()]), "effective"),
            (|i| i.bounding_caps = Some(vec!["CAP_KILL".into()]), "bounding"),
            (|i| i.host_config.network_mode = Some("pasta".into()), "network"),
            (|i| i.host_config.pid_mode = Some("host".into()), "PID"),
        ];
        for (change, word) in changes {
            let mut inspect = good();
            change(&mut inspect);
            let all = found(&inspect, STATUS);
            assert_eq!(all.len(), 1, "{all:?}");
            assert!(all[0].contains(word), "{all:?}");
        }
    }

    #[test]
    fn an_image_gives_no_orders() {
        let of = |annotations: serde_json::Value| -> Image {
            serde_json::from_value(serde_json::json!({"Annotations": annotations})).unwrap()
        };
        for key in [
            "run.oci.seccomp_bpf_data",
            "run.oci.hooks.stdout",
            "io.podman.annotations.privileged",
            "org.systemd.property.DevicePolicy",
        ] {
            let image = of(serde_json::json!({"org.opencontainers.image.title": "x", key: "y"}));
            assert_eq!(lifting(&image), Some(key));
        }
        let usual = of(serde_json::json!({
            "org.opencontainers.image.base.name": "x", "com.example.run.oci.x": "", "run": "",
        }));
        for image in [usual, of(serde_json::Value::Null), Image::default()] {
            assert_eq!(lifting(&image), None);
        }
    }

    #[test]
    fn tcp_may_have_a_network_but_not_the_hosts() {
        let mut inspect = good();
        inspect.host_config.network_mode = Some("pasta".into());
        assert_eq!(deviations(&inspect, Ok(STATUS), Transport::Tcp, 996), [""; 0]);
        inspect.host_config.network_mode = Some("host".into());
        assert_eq!(deviations(&inspect, Ok(STATUS), Transport::Tcp, 996).len(), 1);
    }
}
