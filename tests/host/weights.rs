//! Weights that come in an image, and weights on a disk that is dead.

use std::time::Duration;

use nvidia_ml::{Gpu, Script};
use testhost::{Look, wait_for};

use crate::harness::{
    COUNT, Fake, SOON, Scene, count, engine, nothing_left, serving, skip_unless_wanted,
};

#[test]
fn a_model_whose_weights_are_an_image_answers() {
    skip_unless_wanted!();
    let model = testhost::assets::count_512().unwrap();
    let image = testhost::assets::model_image(&model, "count-512").unwrap();
    let toml = COUNT.replace(
        r#"{ path = "/var/lib/hostler/models/count-512.gguf" }"#,
        r#"{ image = "localhost/hostler/model-count-512:latest", path = "/models/count-512.gguf" }"#,
    );
    assert!(toml.contains("model-count-512"), "{toml}");
    let host = serving(&toml).unwrap();
    host.load_image(&image).unwrap();
    // Not by the file that lies on the host as well.
    host.root("rm /var/lib/hostler/models/count-512.gguf").unwrap();
    count(&host).check();
    let pid = engine(&host).unwrap();
    let args = host.root(&format!("tr '\\0' '\\n' </proc/{pid}/cmdline")).unwrap();
    let path = args.lines().skip_while(|arg| *arg != "-m").nth(1).unwrap().to_owned();
    assert!(path.ends_with("/models/count-512.gguf"), "{args}");
    let tried = host.try_root(&format!("touch /proc/{pid}/root{path}")).unwrap();
    assert!(tried.stderr.contains("Read-only"), "{}", tried.stderr);
    host.root("systemctl stop hostler.service").unwrap();
    nothing_left(&host);
}

/// A file system whose server never answers: whoever asks it stays in the kernel until the unit is stopped.
const DEAD: &str = "systemd-run --quiet --unit=far --service-type=exec bash -c 'exec 9<>/dev/fuse
mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0,allow_other far /mnt/far && exec sleep infinity'
until grep -q ' /mnt/far ' /proc/mounts; do sleep 0.05; done";

const UNREAD: &str = "the files of far were not read: /mnt/far/w.gguf does not answer";

#[test]
fn a_dead_disk_under_one_model_is_told_and_holds_nobody_else() {
    skip_unless_wanted!();
    let gpu = Gpu::new("GPU-00000000-0000-0000-0000-000000000000".to_owned(), 32 << 30);
    let far = Fake::sized("far", 2).line(r#"weights = { path = "/mnt/far/w.gguf" }"#);
    let models = [Fake::sized("here", 2), far];
    let scene = Scene::new(&Script::with_gpus(vec![gpu]), "", &models).unwrap();
    let host = &scene.host;
    host.root("mkdir /mnt/far && echo weights >/mnt/far/w.gguf").unwrap();
    scene.serve("here");
    host.root("hostler unload here").unwrap();
    host.root(DEAD).unwrap();
    // Both are on one device, which is the first one's while it starts.
    let lost = scene.ask("far");
    scene.wait_model("far", "starting", Duration::from_secs(10), |row| row["phase"] != "stopped");
    scene.serve("here");
    let lost = lost.wait();
    assert!(lost.body.contains("/mnt/far/w.gguf does not answer within 10 s"), "{lost:?}");
    // Nor is a start held by it for longer than its own time.
    host.root("systemctl restart hostler.service").unwrap();
    scene.serve("here");
    let log = host.root("journalctl --unit hostler.service --output cat").unwrap();
    assert!(log.contains(UNREAD), "{log}");
    // Nor a stop by a reload, which waits for that disk just then.
    host.root("systemctl reload --no-block hostler.service").unwrap();
    wait_for("the reload", SOON, || {
        let state = host.root("systemctl show -P ActiveState hostler.service")?;
        Ok(if state.trim() == "reloading" { Look::Done(()) } else { Look::NotYet(state) })
    })
    .unwrap();
    host.root("systemctl stop hostler.service").unwrap();
    let log = host.root("journalctl --unit hostler.service --output cat").unwrap();
    assert_eq!(log.matches(UNREAD).count(), 1, "the stop waited for the reload's look: {log}");
    host.root("systemctl stop far.service && umount --lazy /mnt/far").unwrap();
    scene.serve("far");
    scene.never_over_committed();
}
