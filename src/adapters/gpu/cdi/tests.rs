//! Specifications as files in a directory of their own; `/dev/null` stands for a GPU's node.

use super::*;

/// As NVIDIA's toolkit writes it, with the parts that are not looked at.
const GOOD: &str = r#"---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/null
- name: GPU-1
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      hostPath: /dev/null
      major: 1
      minor: 3
- name: all
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  deviceNodes:
  - path: /dev/zero
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib]
  mounts:
  - hostPath: /etc
    containerPath: /etc
    options: [ro, nosuid, nodev, rbind, rprivate]
  - hostPath: /tmp/nvidia-mps-that-is-not-there
    containerPath: /tmp/nvidia-mps
"#;

/// Directories `a` and `b`, in this order, and what is in them.
fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<PathBuf>) {
    let root = tempfile::tempdir().unwrap();
    let dirs = ["a", "b"].map(|dir| root.path().join(dir)).to_vec();
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    (root, dirs)
}

fn run(files: &[(&str, &str)], gpus: &[&str]) -> Result<CdiReport, CdiError> {
    let (_root, dirs) = tree(files);
    let gpus: Vec<_> = gpus.iter().map(|gpu| GpuId::new(gpu)).collect();
    check(&dirs, &gpus)
}

/// The stale path and why, of a specification with these edits for `GPU-1`.
fn stale(edits: &str) -> Option<(String, String)> {
    let json = format!(
        r#"{{"cdiVersion":"0.6.0","kind":"nvidia.com/gpu","devices":[{{"name":"GPU-1","containerEdits":{edits}}}]}}"#
    );
    match run(&[("a/nvidia.json", &json)], &["GPU-1"]) {
        Ok(_) => None,
        Err(CdiError::Stale { path, why, .. }) => Some((path.display().to_string(), why)),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn devices_resolve_by_uuid_index_and_all() {
    let report = run(&[("a/nvidia.yaml", GOOD)], &["GPU-1", "0", "all"]).unwrap();
    let names: Vec<_> = report.devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=0", "nvidia.com/gpu=all"]);
    assert!(report.devices.iter().all(|device| device.cdi_version == "0.5.0"));
    assert!(report.devices[0].file.ends_with("a/nvidia.yaml"));
    assert!(report.ignored.is_empty());
}

#[test]
fn without_any_specification_the_fix_is_to_generate_one() {
    let other = "cdiVersion: 0.6.0\nkind: vendor.com/net\ndevices: []\n";
    for files in [&[][..], &[("a/notes.txt", "x")][..], &[("b/net.yaml", other)][..]] {
        for gpus in [&["GPU-1"][..], &[][..]] {
            let error = run(files, gpus).unwrap_err();
            assert!(matches!(error, CdiError::NoSpec { .. }), "{error}");
            assert!(error.to_string().contains(CDI_WRITE), "{error}");
        }
    }
}

#[test]
fn a_device_that_is_not_there_names_those_that_are() {
    let error = run(&[("a/nvidia.yaml", GOOD)], &["GPU-1", "GPU-2"]).unwrap_err();
    let CdiError::NoDevice { gpu, present, files } = &error else { panic!("{error}") };
    assert_eq!((gpu.as_str(), files.len()), ("GPU-2", 1));
    assert_eq!(present, &["0", "GPU-1", "all"]);
    let fix = format!("{CDI_GENERATE} --output={}\"", files[0].display());
    assert!(error.to_string().ends_with(&fix), "{error}");
}

#[test]
fn a_damaged_file_is_named_only_where_it_may_matter() {
    let cut = &GOOD[..GOOD.find("deviceNodes").unwrap() + 5];
    let json = r#"{"cdiVersion":"0.6.0","kind":"#;
    for (name, text) in [
        ("a/x.yaml", cut),
        ("a/x.yaml", "kind: nvidia.com/gpu\n"),
        ("a/x.json", json),
        ("a/x.json", GOOD),
        ("a/x.yaml", "cdiVersion: ''\nkind: nvidia.com/gpu\n"),
    ] {
        let error = run(&[(name, text)], &["GPU-1"]).unwrap_err();
        let CdiError::Unusable { file, why } = &error else { panic!("{error}") };
        assert!(file.ends_with(name) && !why.is_empty(), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
        // A good file beside it has the device: nothing is wrong but a warning.
        let report = run(&[(name, text), ("b/nvidia.yaml", GOOD)], &["GPU-1"]).unwrap();
        assert_eq!(report.ignored.len(), 1);
        // A good file without the device: the damaged one is the suspect.
        let error = run(&[(name, text), ("b/nvidia.yaml", GOOD)], &["GPU-2"]).unwrap_err();
        assert!(matches!(error, CdiError::Unusable { .. }), "{error}");
    }
}

#[test]
fn a_later_directory_wins_and_one_directory_must_agree_with_itself() {
    let newer = GOOD.replace("0.5.0", "0.8.0");
    let report = run(&[("a/nvidia.yaml", GOOD), ("b/nvidia.yaml", &newer)], &["GPU-1"]).unwrap();
    assert_eq!(report.devices[0].cdi_version, "0.8.0");

    let error = run(&[("a/1.yaml", GOOD), ("a/2.yaml", GOOD)], &["GPU-1"]).unwrap_err();
    let CdiError::Conflict { first, second, .. } = &error else { panic!("{error}") };
    assert!(first.ends_with("a/1.yaml") && second.ends_with("a/2.yaml"), "{error}");
    // The conflict is overruled, as container engines do it, by a later directory.
    let three = [("a/1.yaml", GOOD), ("a/2.yaml", GOOD), ("b/3.yaml", GOOD)];
    assert!(run(&three, &["GPU-1"]).is_ok());
}

#[test]
fn what_the_driver_no_longer_has_makes_the_specification_stale() {
    let node = |extra: &str| format!(r#"{{"deviceNodes":[{{"path":"/dev/null"{extra}}}]}}"#);
    assert_eq!(stale(&node("")), None);
    assert_eq!(stale(&node(r#","major":1,"minor":3"#)), None);
    assert_eq!(stale("{}"), None);
    assert_eq!(stale("null"), None);

    let (path, why) = stale(&node(r#","major":511,"minor":3"#)).unwrap();
    assert_eq!((path.as_str(), why.as_str()), ("/dev/null", "is device 1:3 and not 511:3"));
    let (path, why) = stale(&node(r#","hostPath":"/dev/nvidia-none""#)).unwrap();
    assert_eq!((path.as_str(), why.as_str()), ("/dev/nvidia-none", "does not exist"));
    let (_, why) = stale(&node(r#","hostPath":"/etc/passwd""#)).unwrap();
    assert_eq!(why, "is not a device node");

    let mount = |host: &str, more: &str| {
        format!(r#"{{"mounts":[{{"hostPath":"{host}","containerPath":"/x"{more}}}]}}"#)
    };
    let old = "/usr/lib/libcuda.so.470.1.2.3";
    assert_eq!(stale(&mount(old, "")).unwrap(), (old.into(), "does not exist".into()));
    assert_eq!(stale(&mount("tmpfs", r#","type":"tmpfs""#)), None);
}

#[test]
fn common_edits_count_for_every_device() {
    let error =
        run(&[("a/n.yaml", &GOOD.replace("/dev/zero", "/dev/nope"))], &["all"]).unwrap_err();
    let CdiError::Stale { path, .. } = &error else { panic!("{error}") };
    assert_eq!(path, Path::new("/dev/nope"));
    assert!(error.to_string().contains(&format!("{CDI_GENERATE} --output=")), "{error}");
}

#[test]
fn what_is_written_anew_is_the_file_that_counts() {
    let winner = |files: &[(&str, &str)]| {
        let (root, dirs) = tree(files);
        let found = winner(&dirs)?;
        Some(found.strip_prefix(root.path()).unwrap().display().to_string())
    };
    let other = "cdiVersion: 0.6.0\nkind: vendor.com/net\ndevices: []\n";
    assert_eq!(winner(&[]), None);
    assert_eq!(winner(&[("b/net.yaml", other)]), None);
    assert_eq!(winner(&[("b/net.yaml", "damaged"), ("a/x y.yaml", GOOD)]), None, "not NVIDIA's");
    let won = |files: &[(&str, &str)]| winner(files).unwrap();
    assert_eq!(won(&[("a/nvidia.yaml", GOOD), ("b/net.yaml", other)]), "a/nvidia.yaml");
    assert_eq!(won(&[("a/nvidia.yaml", GOOD), ("b/gpus.yaml", GOOD)]), "b/gpus.yaml");
    assert_eq!(won(&[("a/nvidia.yaml", GOOD), ("b/nvidia.json", "{")]), "b/nvidia.json");
    assert_eq!(won(&[("a/nvidia.yaml", "damaged"), ("b/gpus.yaml", GOOD)]), "b/gpus.yaml");
}

#[test]
fn devices_keep_both_of_their_names() {
    for name in ["index", "uuid"] {
        assert!(CDI_GENERATE.contains(&format!(" --device-name-strategy={name}")), "{name}");
    }
    assert!(CDI_WRITE.starts_with(CDI_GENERATE));
}
