//! The packages as files: the same twice, clean by their distributions' checks, and with the same contents.
//!
//! They are made of the binaries under test; what they do on a host is tried in `tests/host`.
#![expect(clippy::unwrap_used, reason = "a panic is how a test reports its failure")]

mod bill;
mod docs;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use testhost::Format;

/// That of the host tests' first package.
const VERSION: &str = "0.0.1";

fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn output(command: &mut Command) -> String {
    let ended = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&ended.stdout), text(&ended.stderr));
    assert!(ended.status.success(), "{command:?}: {out}{err}");
    out
}

/// The binaries under test without what a release does not have; symbols are for the packages to remove.
fn binaries(dir: &Path) -> PathBuf {
    let out = dir.join("bin");
    std::fs::create_dir_all(&out).unwrap();
    for path in [env!("CARGO_BIN_EXE_hostlerd"), env!("CARGO_BIN_EXE_hostler")] {
        let path = Path::new(path);
        let target = out.join(path.file_name().unwrap());
        output(Command::new("strip").args(["--strip-debug", "-o"]).args([&target, path]));
    }
    out
}

/// What the units start is either ours and there, or the system's and where the system has it.
#[test]
fn another_prefix_has_paths_that_lead_somewhere() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let mut install = Command::new(tree().join("packaging/install.sh"));
    let bindir = Path::new(env!("CARGO_BIN_EXE_hostler")).parent().unwrap();
    output(install.args([bindir, &root]).args(["/opt/x", "/etc"]));
    let mut programs = BTreeSet::new();
    for units in ["system", "user"] {
        let units = root.join("opt/x/lib/systemd").join(units);
        for unit in std::fs::read_dir(units).unwrap() {
            let text = std::fs::read_to_string(unit.unwrap().path()).unwrap();
            let starts = text.lines().filter(|line| line.starts_with("Exec"));
            let program = |line: &str| line.split_once('=')?.1.split(' ').next().map(str::to_owned);
            programs.extend(starts.filter_map(program).filter(|path| !path.is_empty()));
        }
    }
    assert!(programs.contains("/opt/x/libexec/hostler/hostlerd"), "{programs:?}");
    assert!(programs.contains("/usr/lib/systemd/systemd-socket-proxyd"), "{programs:?}");
    for program in programs.iter().filter(|path| path.starts_with("/opt/x/")) {
        assert!(root.join(program.trim_start_matches('/')).exists(), "{program}");
    }
    let theirs = ["/bin/", "/usr/bin/", "/usr/lib/systemd/systemd-"];
    for program in programs.iter().filter(|path| !path.starts_with("/opt/x/")) {
        assert!(theirs.iter().any(|place| program.starts_with(place)), "{program}");
    }
    // The bus and polkit look nowhere else.
    for policy in [
        "usr/share/dbus-1/system.d/org.hostler1.conf",
        "usr/share/polkit-1/actions/org.hostler1.policy",
        "usr/share/polkit-1/rules.d/50-hostler.rules",
        "etc/needrestart/conf.d/hostler.conf",
    ] {
        assert!(root.join(policy).exists(), "{policy}");
    }
}

/// What Ubuntu's servers have, and restarts by itself what maps a library that was upgraded: as it reads its configuration.
#[test]
fn needrestart_leaves_the_daemon_and_its_models_alone() {
    let file = tree().join("units/needrestart/hostler.conf");
    let script = "our %nrconf; eval do { local(@ARGV, $/) = $ARGV[0]; <> }; die $@ if $@; \
                  for my $unit (@ARGV[1..$#ARGV]) { \
                    for my $re (keys %{$nrconf{override_rc}}) { print \"$unit\\n\" if $unit =~ /$re/ && !$nrconf{override_rc}{$re} } }";
    let ours =
        ["hostler.service", "hostler-model@small.service", r"hostler-model@org-x\x2dy.service"];
    let others =
        ["hostler.socket", "myhostler.service", "hostler-models.service", "hostler2.service"];
    let mut perl = Command::new("perl");
    perl.args(["-w", "-e", script, "--"]).arg(file).args(ours).args(others);
    assert_eq!(output(&mut perl).lines().collect::<Vec<_>>(), ours);
}

/// podman 5 makes no directory for what it fetches: without the one that it is told of it fetches nothing.
#[test]
fn where_podman_puts_what_it_fetches_is_made() {
    let read = |file: &str| std::fs::read_to_string(tree().join(file)).unwrap();
    let (conf, made) =
        (read("units/containers/containers.conf"), read("units/tmpfiles.d/hostler.conf"));
    let told = conf.lines().find_map(|line| line.strip_prefix("image_copy_tmp_dir = "));
    let dir = told.unwrap().trim_matches('"');
    assert!(dir.starts_with("/var/lib/hostler/"), "on the disk of the images: {dir}");
    let line = format!("d {dir} 0700 hostler hostler -");
    assert!(made.lines().any(|other| other == line), "{line}");
    // No other user enters it.
    let own = read("units/user/hostler-user-podman.service");
    assert!(own.contains("/containers.conf\n") && own.contains("Environment=TMPDIR=/var/tmp\n"));
}

/// A package by one of the scripts, quickly.
fn build(script: &str, bindir: &Path, out: &Path) -> PathBuf {
    std::fs::create_dir_all(out).unwrap();
    let mut command = Command::new(tree().join("packaging").join(script));
    command.args([bindir, out]);
    command.env("HOSTLER_VERSION", VERSION);
    command.env("HOSTLER_DEB_COMPRESSION", "-Zgzip -z1").env("HOSTLER_RPM_COMPRESSION", "w1.gzdio");
    PathBuf::from(output(&mut command).trim())
}

/// The package that the host tests install, built once for all of them.
fn shared(format: Format) -> PathBuf {
    let bindir = Path::new(env!("CARGO_BIN_EXE_hostlerd")).parent().unwrap();
    testhost::package(bindir, format, VERSION).unwrap()
}

fn digest(package: &Path) -> Vec<u8> {
    Sha256::digest(std::fs::read(package).unwrap()).to_vec()
}

/// The paths of files, without what each distribution adds or names by itself.
fn files(list: &str) -> BTreeSet<String> {
    let own = [
        "/usr/share/doc/hostler/LICENSE-",
        "/usr/share/doc/hostler/copyright",
        "/usr/share/doc/hostler/changelog",
    ];
    let paths = list.lines().map(|line| line.trim_start_matches('.').to_owned());
    let docs = |path: String| path.strip_suffix(".gz").map(str::to_owned).unwrap_or(path);
    paths
        .map(docs)
        .filter(|p| !own.iter().any(|o| p.starts_with(o)) && !p.ends_with("/CHANGELOG.md"))
        .collect()
}

#[test]
fn a_deb_is_reproducible_and_lintian_has_nothing_to_say() {
    let dir = tempfile::tempdir().unwrap();
    let bin = binaries(dir.path());
    let package = build("deb.sh", &bin, &dir.path().join("2"));
    assert_eq!(digest(&shared(Format::Deb)), digest(&package), "two builds of one tree differ");
    // What the binaries of a test build lack of a release is not the package's fault.
    let said = output(Command::new("lintian").args(["--fail-on", "error,warning"]).arg(&package));
    let tags: Vec<_> =
        said.lines().filter(|l| l.starts_with("E:") || l.starts_with("W:")).collect();
    assert!(tags.is_empty(), "{tags:#?}");
}

#[test]
fn an_rpm_is_reproducible_has_the_debs_files_and_rpmlint_has_nothing_to_say() {
    let dir = tempfile::tempdir().unwrap();
    let bin = binaries(dir.path());
    let package = build("rpm.sh", &bin, &dir.path().join("2"));
    assert_eq!(digest(&shared(Format::Rpm)), digest(&package), "two builds of one tree differ");
    let config = tree().join("packaging/rpm/rpmlint.toml");
    let said = output(Command::new("rpmlint").arg("--config").arg(config).arg(&package));
    assert!(said.contains("0 errors, 0 warnings"), "{said}");

    let tar = Command::new("sh")
        .args(["-c", "dpkg-deb --fsys-tarfile \"$0\" | tar --list | grep -v '/$'"])
        .arg(shared(Format::Deb))
        .output()
        .unwrap();
    let deb = files(&String::from_utf8(tar.stdout).unwrap());
    let listed = output(
        Command::new("rpm")
            .args(["-qp", "--qf", "[%{FILEMODES:perms} %{FILENAMES}\\n]"])
            .arg(&package),
    );
    let plain = listed.lines().filter(|l| !l.starts_with('d')).filter_map(|l| l.split_once(' '));
    let rpm = files(&plain.map(|(_, path)| path).collect::<Vec<_>>().join("\n"));
    assert!(deb.len() > 40, "{deb:?}");
    assert_eq!(deb, rpm);
    // Where `hostler add` writes, and the daemon reads.
    let dir = "drwxr-xr-x /etc/hostler/models.d";
    assert!(listed.lines().any(|line| line == dir), "{listed}");
    let deb = output(Command::new("dpkg-deb").arg("--contents").arg(shared(Format::Deb)));
    let dir = deb.lines().find(|line| line.ends_with("./etc/hostler/models.d/"));
    assert!(dir.is_some_and(|line| line.starts_with("drwxr-xr-x root/root")), "{deb}");
    // What an administrator changes there stays.
    let list = |dashed: &str| {
        output(Command::new("rpm").args(["-qp", dashed]).arg(&package)).trim().to_owned()
    };
    assert_eq!(list("--configfiles"), "/etc/needrestart/conf.d/hostler.conf");
    let control =
        output(Command::new("dpkg-deb").arg("--info").arg(shared(Format::Deb)).arg("conffiles"));
    assert_eq!(control.trim(), "/etc/needrestart/conf.d/hostler.conf");
    // Its scripts are those of the deb, called by rpm's own conditions.
    let scripts = output(Command::new("rpm").args(["-qp", "--scripts"]).arg(&package));
    for call in ["postinst.sh", "prerm.sh", "preset hostler.socket", "try-restart hostler.service"]
    {
        assert!(scripts.contains(call), "{call} is not in {scripts}");
    }
}

/// podman only recommends it, and servers often install without what is recommended: no engine would start, nor the proof before READY.
#[test]
fn packages_require_what_no_container_starts_without() {
    let deb =
        output(Command::new("dpkg-deb").arg("--field").arg(shared(Format::Deb)).arg("Depends"));
    let rpm = output(Command::new("rpm").args(["-qp", "--requires"]).arg(shared(Format::Rpm)));
    let has = |list: &str, separator| {
        list.split(separator).any(|entry| {
            entry.trim().trim_start_matches('(').split(' ').next() == Some("catatonit")
        })
    };
    assert!(has(&deb, ','), "{deb}");
    assert!(has(&rpm, '\n'), "{rpm}");
}

/// Of all that a binary can say of its allocator: that it has our settings, which a linker could drop without a word.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_daemon_has_its_allocator_and_the_allocator_its_settings() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostlerd"));
    command.arg("--version").env("_RJEM_MALLOC_CONF", "stats_print:true");
    let told = command.output().unwrap();
    let told = String::from_utf8_lossy(&told.stderr);
    for line in [
        "opt.narenas: 1\n",
        "opt.background_thread: true ",
        "opt.oversize_threshold: 1073741824\n",
        "opt.dirty_decay_ms: 1000 ",
        "opt.muzzy_decay_ms: 0 ",
    ] {
        assert!(told.contains(line), "no {line:?} in: {told}");
    }
}
