//! The Debian package on a host that has never seen Hostler: installed, used, upgraded under load, removed, purged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use testhost::{Host, Result};

use crate::harness::{
    COUNT, Counting, bindir, config, containers, count, count_a_little, engine, property,
    put_count_model, skip_unless_wanted,
};

/// A package of the binaries under test, as of this version.
fn package(host: &Host, version: &str) -> PathBuf {
    let out = host.scratch().join("packages");
    std::fs::create_dir_all(&out).unwrap();
    let built = Command::new(testhost::checkout().join("packaging/deb.sh"))
        .args([bindir(), out])
        .env("HOSTLER_VERSION", version)
        .env("HOSTLER_DEB_COMPRESSION", "-Zgzip -z1")
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    PathBuf::from(String::from_utf8(built.stdout).unwrap().trim())
}

fn install(host: &Host, package: &Path) -> Result<()> {
    host.copy_in(package, "/root")?;
    let name = package.file_name().unwrap().to_string_lossy().into_owned();
    // Its dependencies are there: nothing is fetched.
    host.root(&format!(
        "cd /root && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install ./{name}"
    ))
    .map(drop)
}

/// All that a package could leave: every path, and what the lists of users and ranges say. Logs, caches, dpkg's and the manager's own
/// books change without it, and the tools of shadow keep a copy of a list that they have changed.
fn traces(host: &Host) -> BTreeSet<String> {
    let paths = "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /root -o -path /var/log \
                 -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/lib/systemd/timers \
                 -o -path /etc/subuid- -o -path /etc/subgid- -o -path /var/tmp \\) -prune -o -print";
    let books = "for file in /etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/subuid /etc/subgid; do sed \"s#^#$file: #\" $file; done";
    let runtime =
        "ls -d /run/hostler /run/user/* /dev/shm/* /var/lib/systemd/linger/* 2>/dev/null || true";
    let all = host.root(&format!("{paths}; {books}; {runtime}")).unwrap();
    all.lines().map(str::to_owned).collect()
}

fn hold(host: &Host) -> (Vec<(String, String)>, u32) {
    (containers(host).unwrap(), engine(host).unwrap())
}

#[test]
fn installed_used_upgraded_under_load_and_purged_without_a_trace() {
    skip_unless_wanted!();
    let host = Host::builder().boot().unwrap();
    let before = traces(&host);
    let first = package(&host, "0.0.1");
    install(&host, &first).unwrap();

    // The sockets listen, the daemon waits for its first client, and the configuration in /etc is empty.
    for socket in ["hostler.socket", "hostler-unix.socket"] {
        assert_eq!(property(&host, socket, "ActiveState").unwrap(), "active", "{socket}");
        assert_eq!(property(&host, socket, "UnitFileState").unwrap(), "enabled", "{socket}");
    }
    assert_eq!(property(&host, "hostler.service", "ActiveState").unwrap(), "inactive");
    assert_eq!(host.root("ls -A /etc/hostler").unwrap(), "");
    let verified = "systemd-analyze verify --man=no /usr/lib/systemd/system/hostler* 2>&1";
    assert_eq!(host.root(verified).unwrap(), "");

    host.load_image(&testhost::assets::llama_server_image().unwrap()).unwrap();
    put_count_model(&host).unwrap();
    config(&host, COUNT).unwrap();
    count(&host).check();
    let held = hold(&host);
    let daemon = property(&host, "hostler.service", "MainPID").unwrap();

    // Upgraded while clients come and streams run: nobody is refused, and the engine does not notice.
    let second = package(&host, "0.0.2");
    let mut clients: Vec<Counting> = (0..3).map(|_| count(&host)).collect();
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| install(&host, &second));
        while !upgrade.is_finished() {
            if clients.len() < 200 {
                clients.push(count_a_little(&host));
            }
            std::thread::park_timeout(std::time::Duration::from_millis(50));
        }
        upgrade.join().unwrap().unwrap();
    });
    assert!(clients.len() > 10, "the upgrade was over before anybody came");
    clients.into_iter().for_each(Counting::check);
    assert_eq!(hold(&host), held);
    assert_ne!(property(&host, "hostler.service", "MainPID").unwrap(), daemon);
    count(&host).check();
    assert!(host.root("dpkg -s hostler").unwrap().contains("Version: 0.0.2"));
    // Once more, as an administrator who repairs does.
    host.root("dpkg-reconfigure hostler; dpkg -i /root/hostler_0.0.2_*.deb").unwrap();
    assert_eq!(hold(&host), held);

    // Removed: drained and stopped, the files are gone, the models and the configuration are not.
    let stream = count(&host);
    crate::harness::wait_busy(&host, "count", crate::harness::SOON).unwrap();
    host.root("apt-get -qq -y remove hostler").unwrap();
    stream.check();
    assert_eq!(host.root("pgrep -u hostler || true").unwrap(), "");
    assert_eq!(host.root("ls /usr/libexec/hostler 2>/dev/null || true").unwrap(), "");
    assert!(host.root("cat /etc/hostler/hostler.toml").unwrap().contains("[models.count]"));
    host.root("test -e /var/lib/hostler/models/count-512.gguf").unwrap();

    // Installed again it is what it was.
    install(&host, &second).unwrap();
    count(&host).check();
    host.root("apt-get -qq -y purge hostler").unwrap();
    let after = traces(&host);
    let left: Vec<_> = after.difference(&before).collect();
    let lost: Vec<_> = before.difference(&after).collect();
    assert!(left.is_empty() && lost.is_empty(), "left: {left:#?}\nlost: {lost:#?}");
    assert_eq!(host.failed_units().unwrap(), "");
}
