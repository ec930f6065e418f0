//! The packages on a host that has never seen Hostler: installed, used, upgraded under load, removed, purged.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use testhost::{Format, Host, Result, Suite};

use crate::harness::{
    COUNT, Counting, SOON, bindir, config, containers, count, count_a_little, engine, property,
    put_count_model, skip_unless_wanted, wait_busy,
};

/// What an administrator has no package manager's word for.
const PURGE: &str = include_str!("../../packaging/purge.sh");

/// A package of the binaries under test, as of this version.
fn package(format: Format, version: &str) -> PathBuf {
    testhost::package(&bindir(), format, version).unwrap()
}

/// Its dependencies are there: nothing is fetched.
fn install(host: &Host, format: Format, version: &str) -> Result<()> {
    let package = package(format, version);
    host.copy_in(&package, "/root")?;
    let name = package.file_name().unwrap().to_string_lossy().into_owned();
    host.root(&match format {
        Format::Deb => {
            format!("cd /root && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install ./{name}")
        }
        // Debian's packages are none that rpm knows of.
        Format::Rpm => format!("rpm --nodeps --upgrade /root/{name}"),
    })
    .map(drop)
}

fn remove(host: &Host, format: Format) {
    host.root(match format {
        Format::Deb => "apt-get -qq -y remove hostler",
        Format::Rpm => "rpm --nodeps --erase hostler",
    })
    .unwrap();
}

/// From an installed package to nothing.
fn purge(host: &Host, format: Format) {
    match format {
        Format::Deb => drop(host.root("apt-get -qq -y purge hostler").unwrap()),
        Format::Rpm => {
            remove(host, format);
            host.root(PURGE).unwrap();
        }
    }
}

/// Once more, as an administrator who repairs does.
fn again(host: &Host, format: Format) {
    host.root(match format {
        Format::Deb => "dpkg-reconfigure hostler; dpkg -i /root/0.0.2.deb",
        Format::Rpm => "rpm --nodeps --upgrade --replacepkgs /root/0.0.2.rpm",
    })
    .unwrap();
}

/// All that a package could leave: every path, and what the lists of users and ranges say. Logs, caches, dpkg's and the manager's own
/// books change without it, and the tools of shadow keep a copy of a list that they have changed.
fn traces(host: &Host) -> BTreeSet<String> {
    let paths = "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /root -o -path /var/log \
                 -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/lib/rpm -o -path /var/lib/systemd/timers \
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

/// From nothing to the first answer in three commands, timed for the log. What they need, and what else would be a download, comes from
/// the cache before: the engine's image and the weights. `[gpu] backend = "host"` is what a machine without a GPU needs.
fn three_commands(host: &Host, format: Format) {
    let timed = |what: &mut dyn FnMut() -> String| {
        let began = Instant::now();
        let said = what();
        (began.elapsed(), said)
    };
    package(format, "0.0.1");
    let (installed, _) = timed(&mut || {
        install(host, format, "0.0.1").unwrap();
        String::new()
    });
    host.load_image(&testhost::assets::llama_server_image().unwrap()).unwrap();
    let model = put_count_model(host).unwrap();
    config(host, "[gpu]\nbackend = \"host\"\n").unwrap();
    let add =
        format!("hostler add {model} --name count --image localhost/hostler/llama-server:latest");
    let (added, _) = timed(&mut || host.root(&add).unwrap());
    let ask = "curl -sS http://127.0.0.1:8711/v1/chat/completions -d '{\"model\": \"count\", \"max_tokens\": 4, \
               \"messages\": [{\"role\": \"user\", \"content\": \"Count.\"}]}'";
    let (answered, answer) = timed(&mut || host.root(ask).unwrap());
    assert!(answer.contains("\" 1 2 3 4\""), "{answer}");
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let [install, add, ask] = [installed, added, answered].map(seconds);
    eprintln!(
        "three commands to the first answer: install {install}, hostler add {add}, curl {ask}"
    );
    let mended = host.root("hostler doctor").unwrap();
    assert!(!mended.contains("FAIL") && !mended.contains("WARN"), "{mended}");
    host.root("systemctl stop hostler.service; rm /etc/hostler/models.d/count.toml").unwrap();
}

/// Upgrades while a stream runs and clients come: nobody is refused, and the engine does not notice. It is held until the daemon is told to
/// stop, so that the stream is under way then.
fn upgrade(host: &Host, format: Format, engine: u32) {
    package(format, "0.0.2");
    host.root(&format!("kill -STOP {engine}")).unwrap();
    let mut clients = vec![count(host)];
    wait_busy(host, "count", SOON).unwrap();
    let mut held = true;
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| install(host, format, "0.0.2"));
        while !upgrade.is_finished() {
            let stopping = || property(host, "hostler.service", "ActiveState").unwrap();
            let stops = held && stopping() == "deactivating";
            if clients.len() < 200 {
                clients.push(count_a_little(host));
            }
            if stops {
                host.root(&format!("kill -CONT {engine}")).unwrap();
                held = false;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        upgrade.join().unwrap().unwrap();
    });
    assert!(!held, "the daemon was not restarted, or waited for no stream");
    clients.into_iter().for_each(Counting::check);
}

/// Gives the models a disk that is somebody else's and cannot be changed.
fn mount_models(host: &Host) {
    let disk = "mkdir /srv/ai && cp /var/lib/hostler/models/* /srv/ai && chown games:games /srv/ai && chmod 2775 /srv/ai && \
                mount --bind /srv/ai /var/lib/hostler/models && mount -o remount,bind,ro /var/lib/hostler/models";
    host.root(disk).unwrap();
}

/// The whole life of a package on a host that has never seen one.
fn live(host: &Host, format: Format) {
    let before = traces(host);
    three_commands(host, format);

    // The sockets listen, and the daemon waits for its first client.
    for socket in ["hostler.socket", "hostler-unix.socket"] {
        assert_eq!(property(host, socket, "ActiveState").unwrap(), "active", "{socket}");
        assert_eq!(property(host, socket, "UnitFileState").unwrap(), "enabled", "{socket}");
    }
    assert_eq!(property(host, "hostler.service", "ActiveState").unwrap(), "inactive");
    let verified = "systemd-analyze verify --man=no /usr/lib/systemd/system/hostler* 2>&1";
    assert_eq!(host.root(verified).unwrap(), "");

    config(host, COUNT).unwrap();
    count(host).check();
    let held = hold(host);
    let daemon = property(host, "hostler.service", "MainPID").unwrap();

    upgrade(host, format, held.1);
    assert_eq!(hold(host), held);
    assert_ne!(property(host, "hostler.service", "MainPID").unwrap(), daemon);
    count(host).check();
    let version = host.root("dpkg -s hostler 2>&1 || rpm --query hostler").unwrap();
    assert!(version.contains("0.0.2"), "{version}");
    again(host, format);
    assert_eq!(hold(host), held);

    // Removed: drained and stopped, the files are gone, the models and the configuration are not. The engine is held until the daemon
    // is told to stop, so that the answer is under way then.
    let (_, pid) = held;
    host.root(&format!("kill -STOP {pid}")).unwrap();
    let stream = count(host);
    wait_busy(host, "count", SOON).unwrap();
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| remove(host, format));
        host.wait_unit("hostler.service", "deactivating", SOON).unwrap();
        host.root(&format!("kill -CONT {pid}")).unwrap();
        removal.join().unwrap();
    });
    stream.check();
    assert_eq!(host.root("pgrep -u hostler || true").unwrap(), "");
    assert_eq!(host.root("ls /usr/libexec/hostler 2>/dev/null || true").unwrap(), "");
    assert!(host.root("cat /etc/hostler/hostler.toml").unwrap().contains("[models.count]"));
    host.root("test -e /var/lib/hostler/models/count-512.gguf").unwrap();

    // Installed again it is what it was, and what is the models' disk by now stays as it is.
    mount_models(host);
    install(host, format, "0.0.2").unwrap();
    let disk = "stat --format '%U %a' /var/lib/hostler/models && umount /var/lib/hostler/models && rm -r /srv/ai";
    count(host).check();
    assert_eq!(
        host.root(&format!("systemctl stop hostler.service && {disk}")).unwrap().trim(),
        "games 2775"
    );
    // A unit that holds a model goes with the rest, and so does what enabled it.
    host.root("systemctl --quiet enable --now hostler-model@count.service").unwrap();
    purge(host, format);
    let units = "systemctl list-units --all --plain --no-legend 'hostler*'";
    assert_eq!(host.root(units).unwrap(), "");
    let after = traces(host);
    let left: Vec<_> = after.difference(&before).collect();
    let lost: Vec<_> = before.difference(&after).collect();
    assert!(left.is_empty() && lost.is_empty(), "left: {left:#?}\nlost: {lost:#?}");
    assert_eq!(host.failed_units().unwrap(), "");
}

#[test]
fn a_deb_is_installed_used_upgraded_under_load_and_purged_without_a_trace() {
    skip_unless_wanted!();
    live(&Host::builder().boot().unwrap(), Format::Deb);
}

/// podman 4.3 and systemd 252: the oldest that are supported.
#[test]
fn so_it_is_on_debian_12() {
    skip_unless_wanted!();
    let host = Host::builder().suite(Suite::Bookworm).boot().unwrap();
    host.copy_in(&package(Format::Deb, "0.0.1"), "/root").unwrap();
    let tried = host.try_root("apt-get install --simulate /root/0.0.1.deb 2>&1").unwrap();
    if !tried.status.success() && tried.stdout.contains("libc6") {
        let why = "the binaries were built against a newer C library than Debian 12 has";
        return testhost::skip("packages::so_it_is_on_debian_12", why);
    }
    live(&host, Format::Deb);
}

/// The scripts of the rpm, run by rpm itself, with a real systemd. Not on a distribution of its own: those are not to be had here.
#[test]
fn so_is_an_rpm() {
    skip_unless_wanted!();
    let host = Host::builder().boot().unwrap();
    // What Fedora's own packages `filesystem` and `dbus-common` have, and Debian makes on demand.
    host.root(
        "cd /usr/share && mkdir -p dbus-1/interfaces man/man1 man/man5 man/man8 zsh/site-functions",
    )
    .unwrap();
    live(&host, Format::Rpm);
}

/// Disks below Hostler's directories are of other people, and a purge that meets them ends well: twice, and once more without them.
#[test]
fn a_purge_leaves_what_is_mounted_below_alone() {
    skip_unless_wanted!();
    let host = Host::builder().boot().unwrap();
    let home = "/var/lib/hostler";
    let disk = format!("{home}/models/my [disk]*");
    host.root(&format!(
        "mkdir -p '{disk}' {home}/bound {home}/.local/share /etc/hostler /srv/precious
         touch {home}/models/gone {home}/.hidden /etc/hostler/hostler.toml /srv/precious/bound
         mount -t tmpfs disk '{disk}' && touch '{disk}/precious'
         mount --bind /srv/precious {home}/bound
         ln -s /srv/precious {home}/link"
    ))
    .unwrap();
    let list = format!("find {home} /etc/hostler /run/hostler 2>/dev/null | sort");
    let stays = [
        home,
        &format!("{home}/bound"),
        &format!("{home}/bound/bound"),
        &format!("{home}/models"),
        &disk,
        &format!("{disk}/precious"),
    ]
    .map(str::to_owned);
    for _ in 0..2 {
        let said = host.root(&format!("({PURGE}\n) 2>&1")).unwrap();
        let left = host.root(&list).unwrap();
        assert_eq!(left.lines().collect::<BTreeSet<_>>(), stays.iter().map(|s| &**s).collect());
        for path in [&disk, &stays[1]] {
            assert!(said.contains(&format!("{path} stays: something is mounted there")), "{said}");
        }
        let above = format!("{home}/models stays, with what is left in it");
        assert!(said.contains(&above), "{said}");
    }
    host.root(&format!("umount '{disk}' {home}/bound")).unwrap();
    host.root(PURGE).unwrap();
    // Which is a disk of its own on such a host.
    assert_eq!(host.root(&list).unwrap().trim_end(), home);
    host.root("test -e /srv/precious/bound").unwrap();
}
