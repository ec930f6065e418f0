//! What an engine may do, and who may reach it, as the kernel of the host sees it.

use crate::harness::{COUNT, count, engine, left_over, property, serving, skip_unless_wanted};
use testhost::Host;

/// Runs a script as an unprivileged user with one group.
fn as_other(host: &Host, user: &str, group: &str, script: &str) -> testhost::Run {
    let set = format!("setpriv --reuid={user} --regid={group} --clear-groups");
    host.try_root(&format!("{set} sh -c '{script}'")).unwrap()
}

#[test]
fn an_engine_has_no_privileges_no_network_and_nothing_to_write() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    count(&host).check();
    let pid = engine(&host).unwrap();

    let status = host.root(&format!("cat /proc/{pid}/status")).unwrap();
    let none = "0000000000000000";
    for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{field}:\t{none}\n")), "{field} in\n{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n"), "{status}");
    // Neither root nor the service user, but a subordinate id that nobody else has.
    let subuid = host.root("grep ^hostler: /etc/subuid | cut -d: -f2").unwrap();
    let uid = subuid.trim().parse::<u32>().unwrap() + 999;
    assert!(status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")), "{status}");
    assert!(status.contains(&format!("Gid:\t{uid}\t{uid}\t{uid}\t{uid}\n")), "{status}");
    assert!(
        status.contains("Groups:\t\n") || status.contains(&format!("Groups:\t{uid} \n")),
        "{status}"
    );

    for space in ["net", "pid", "ipc", "uts", "mnt", "user", "cgroup"] {
        let of = |pid: u32| host.root(&format!("readlink /proc/{pid}/ns/{space}")).unwrap();
        assert_ne!(of(pid), of(1), "the {space} namespace is the host's");
    }
    let links = host.root(&format!("tail -n +3 /proc/{pid}/net/dev | cut -d: -f1")).unwrap();
    assert_eq!(links.trim(), "lo");
    let routes = host.root(&format!("tail -n +2 /proc/{pid}/net/route")).unwrap();
    assert_eq!(routes, "", "it has a way out");
    let sockets = host.root(&format!("nsenter --net --target {pid} ss -Htuln")).unwrap();
    assert_eq!(sockets, "", "it listens on a network");

    for path in ["/new", "/models/new", "/models/count-512.gguf", "/usr/bin/new", "/etc/passwd"] {
        let tried = host.try_root(&format!("touch /proc/{pid}/root{path}")).unwrap();
        let said = &tried.stderr;
        assert!(!tried.status.success() && said.contains("Read-only"), "{path}: {said}");
    }
    // Its cgroup is podman's, below the service user's manager: not the daemon's, which may end before it.
    let cgroup = host.root(&format!("cat /proc/{pid}/cgroup")).unwrap();
    assert!(cgroup.contains("/user@") && cgroup.contains("/libpod-"), "{cgroup}");
}

#[test]
fn only_the_service_user_reaches_an_engines_socket() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    count(&host).check();
    let socket = host.root("find /run/hostler/engines -type s").unwrap().trim().to_owned();
    let dir = socket.rsplit_once('/').unwrap().0;
    let stat = |path: &str| host.root(&format!("stat -c '%U:%G %a' {path}")).unwrap();
    assert_eq!(stat("/run/hostler"), "root:hostler 750\n");
    assert_eq!(stat("/run/hostler/engines"), "hostler:hostler 700\n");
    // What engines leave in their directories does not fill the host's /run.
    let mounted =
        "findmnt --noheadings --raw --output FSTYPE,SIZE --mountpoint /run/hostler/engines";
    assert_eq!(host.root(mounted).unwrap(), "tmpfs 16M\n");
    // When the endpoint's socket starts, root gives the service user what has its name: nobody else may put anything there.
    let put = "mv /run/hostler/http.sock /run/hostler/gone || ln -s /etc/shadow /run/hostler/x";
    let put = host.try_user("hostler", put).unwrap();
    assert!(!put.status.success(), "{}", put.stdout);
    assert_eq!(stat(dir), "hostler:hostler 755\n");

    // Nor does the engine itself change anything there, now that it is ready.
    let pid = engine(&host).unwrap();
    let uid = host.root(&format!("stat -c %u /proc/{pid}")).unwrap();
    let uid = uid.trim();
    let inside = format!(
        "cd /proc/{pid}/root/run/engine && setpriv --reuid={uid} --regid={uid} --clear-groups"
    );
    for change in ["touch ./new", "mkdir ./new", "rm -f ./e.sock", "mv ./e.sock ./other"] {
        let tried = host.try_root(&format!("{inside} {change}")).unwrap();
        let said = &tried.stderr;
        assert!(!tried.status.success() && said.contains("Permission denied"), "{change}: {said}");
    }

    // Through the path, and through /proc as other tricks go; members of the group hostler are no exception.
    let inside = format!("/proc/{pid}/root/run/engine/e.sock");
    for path in [socket.as_str(), inside.as_str()] {
        let curl = format!("curl -sS --unix-socket {path} http://x/health");
        for (user, group) in [("nobody", "nogroup"), ("nobody", "hostler")] {
            let tried = as_other(&host, user, group, &curl);
            assert!(!tried.status.success(), "{user}:{group} reached {path}: {}", tried.stdout);
        }
    }
    let own = as_other(
        &host,
        "hostler",
        "hostler",
        &format!("curl -sS --unix-socket {socket} http://x/health"),
    );
    assert!(own.status.success(), "{}", own.stderr);
    for look in ["cat environ", "cat mem", "cat maps", "ls fd", "ls root/"] {
        let tried = as_other(&host, "nobody", "hostler", &format!("cd /proc/{pid}; {look}"));
        assert!(!tried.status.success(), "nobody can \"{look}\" of the engine");
    }
}

#[test]
fn the_daemon_itself_holds_no_privileges_and_has_no_children() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    count(&host).check();
    let main = property(&host, "hostler.service", "MainPID").unwrap();
    let status = host.root(&format!("cat /proc/{main}/status")).unwrap();
    for line in
        ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    let user = host.root(&format!("ps -o user= -p {main}")).unwrap();
    assert_eq!(user.trim(), "hostler");
    // podman and the engines belong to the service user's manager; whatever ends the daemon leaves them alone.
    let procs = host.root("cat /sys/fs/cgroup/system.slice/hostler.service/cgroup.procs").unwrap();
    assert_eq!(procs.trim(), main);
    let left = left_over(&host).unwrap();
    assert!(left.contains("llama-server"), "the check for leftovers sees nothing: {left}");
}
