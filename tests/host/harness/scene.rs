//! Stand-in engines on scripted devices: the world in which memory is the test's to decide. Owner: the test. Invariants: the
//! daemon, podman and the engines' containers are real; what each process holds is in the scripted driver's own table, so what
//! the daemon believes can be compared with what is true; from the first moment to the last somebody watches that no device
//! is over-committed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nvidia_ml::{Gpu, Script, StateDir, Usage};
use testhost::{Host, Look, Result, wait_for};

use super::http::{Answer, Pending, count_request, post};
use super::serve::{SOON, config, model};
use super::{gpu, installed};

/// The stand-in engine.
pub const FAKE_IMAGE: &str = "localhost/hostler/fake-engine:latest";

/// How often the watcher looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(25);

/// One model, served by the stand-in engine.
#[derive(Clone, Debug)]
pub struct Fake {
    name: String,
    engine: &'static str,
    image: String,
    env: Vec<(String, String)>,
    lines: String,
}

impl Fake {
    /// A model that loads in moments and holds so much, in the engine's own words: `4GiB` or `weights=3GiB,kv=1GiB`.
    pub fn new(name: &str, vram: &str) -> Self {
        let (name, image) = (name.to_owned(), FAKE_IMAGE.to_owned());
        let fake = Self { name, engine: "llamacpp", image, env: Vec::new(), lines: String::new() };
        fake.env("FLAVOR", "llamacpp").env("LOAD", "100ms").env("VRAM", vram)
    }

    /// A model that says what it needs, and needs that.
    pub fn sized(name: &str, gib: u64) -> Self {
        Self::new(name, &format!("{gib}GiB")).line(&format!("vram = \"{gib}GiB\""))
    }

    /// Sets a knob of the engine.
    pub fn env(mut self, knob: &str, value: &str) -> Self {
        self.env.retain(|(name, _)| name != knob);
        self.env.push((knob.to_owned(), value.to_owned()));
        self
    }

    /// Leaves a knob of the engine to its image.
    pub fn without(mut self, knob: &str) -> Self {
        self.env.retain(|(name, _)| name != knob);
        self
    }

    /// Behaves as vLLM.
    pub fn vllm(mut self) -> Self {
        self.engine = "vllm";
        self.env("FLAVOR", "vllm")
    }

    /// Takes another image.
    pub fn image(mut self, reference: &str) -> Self {
        reference.clone_into(&mut self.image);
        self
    }

    /// Adds a line to the model's configuration.
    pub fn line(mut self, line: &str) -> Self {
        self.lines += &format!("{line}\n");
        self
    }

    fn toml(&self) -> String {
        let env: Vec<String> = self.env.iter().map(|(k, v)| format!("FAKE_{k} = {v:?}")).collect();
        format!(
            "[models.{}]\nengine = {:?}\nimage = {:?}\nenv = {{ {} }}\n{}\n",
            self.name,
            self.engine,
            self.image,
            env.join(", "),
            self.lines
        )
    }
}

/// A host with scripted devices and stand-in engines.
pub struct Scene {
    /// The host.
    pub host: Host,
    dir: StateDir,
    watcher: Watcher,
}

impl Scene {
    /// A host with these devices and models; the sockets listen, the daemon does not run. `policy`: what stands before the
    /// models, beside the backend; it may begin with a headroom, which is nothing otherwise.
    pub fn new(script: &Script, policy: &str, models: &[Fake]) -> Result<Self> {
        let host = installed().image(&testhost::assets::fake_engine_image()?).boot()?;
        gpu::install_library(&host)?;
        gpu::play(&host, script);
        gpu::describe_script(&host, script)?;
        let dir = StateDir::new(host.path(nvidia_ml::DEFAULT_DIR));
        let watcher = Watcher::start(dir.clone(), uuids(script));
        let scene = Self { host, dir, watcher };
        scene.configure(policy, models)?;
        scene.host.root("systemctl --quiet start hostler.socket hostler-unix.socket")?;
        Ok(scene)
    }

    /// Writes the configuration anew.
    pub fn configure(&self, policy: &str, models: &[Fake]) -> Result<()> {
        let models: String = models.iter().map(Fake::toml).collect();
        let headroom = if policy.starts_with("headroom") { "" } else { "headroom = \"0B\"\n" };
        config(&self.host, &format!("[gpu]\nbackend = \"nvml\"\n{headroom}{policy}\n{models}"))
    }

    /// Changes the scripted world.
    pub fn edit(&self, change: impl FnOnce(&mut Script)) {
        Script::edit(&self.dir, change).expect("the script is saved");
    }

    /// Changes one device.
    pub fn edit_gpu(&self, uuid: &str, change: impl FnOnce(&mut Gpu)) {
        self.edit(|script| change(script.gpu_mut(uuid).expect("the script has this device")));
    }

    /// What is true of a device.
    pub fn truth(&self, uuid: &str) -> Usage {
        let usage = nvidia_ml::usage(&self.dir, uuid).expect("the scripted world is readable");
        usage.expect("the script has this device")
    }

    /// Asks a model for a few words; the answer is waited for later.
    pub fn ask(&self, model: &str) -> Pending {
        post(&self.host, "/v1/chat/completions", &count_request(model, 4))
    }

    /// Asks a model and checks that it answers.
    pub fn serve(&self, model: &str) {
        served(&self.ask(model).wait());
    }

    /// The PID in the host of a model's engine; not of the init that waits for it.
    pub fn engine(&self, model: &str) -> u32 {
        let all = self.host.root("pgrep --list-full --exact fake-engine").unwrap();
        let named = format!("--alias {model} ");
        let line = all.lines().find(|line| line.contains(&named));
        let pid = line.and_then(|line| line.split(' ').next()?.parse().ok());
        pid.unwrap_or_else(|| panic!("no engine of {model} in {all}"))
    }

    /// Waits until a model's row of the status is as wanted.
    pub fn wait_model(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        wait_for(&format!("{name}: {what}"), limit, || {
            let row = model(&self.host, name)?;
            Ok(if wanted(&row) { Look::Done(row) } else { Look::NotYet(row.to_string()) })
        })
        .unwrap()
    }

    /// Waits until nothing of a model runs.
    pub fn wait_stopped(&self, name: &str) {
        self.wait_model(name, "stopped", SOON, |row| row["instance"].is_null());
    }

    /// No device was ever over-committed, and no engine was ever refused memory.
    pub fn never_over_committed(&self) {
        let refused = self.dir.read_violations().expect("the violations are readable");
        assert!(refused.is_empty(), "engines were refused memory: {refused:#?}");
        let seen = self.watcher.seen.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(seen.is_empty(), "over-committed: {seen:#?}");
        let looks = self.watcher.looks.load(Ordering::Relaxed);
        assert!(looks > 0, "nobody looked");
    }
}

/// Checks that a model has answered.
pub fn served(answer: &Answer) {
    assert_eq!((answer.status, answer.failure.as_str()), (200, ""), "{answer:?}");
    assert!(answer.body.contains("[DONE]"), "{answer:?}");
}

/// All devices of a script that processes can have memory of.
fn uuids(script: &Script) -> Vec<String> {
    let whole = script.gpus.iter().filter(|gpu| !gpu.in_mig_mode());
    let slices = script.gpus.iter().flat_map(Gpu::slices);
    whole.chain(slices).map(|gpu| gpu.uuid.clone()).collect()
}

/// Somebody who looks at the true memory all the time.
struct Watcher {
    seen: Arc<Mutex<BTreeSet<String>>>,
    looks: Arc<std::sync::atomic::AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    fn start(dir: StateDir, uuids: Vec<String>) -> Self {
        let seen: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let (stop, looks) = (Arc::<AtomicBool>::default(), Arc::default());
        let mut watcher = Self { seen: seen.clone(), looks, stop: stop.clone(), thread: None };
        let looks = watcher.looks.clone();
        let watch = move || {
            while !stop.load(Ordering::Relaxed) {
                for uuid in &uuids {
                    // The world may be just being written, or be gone with its host.
                    let Ok(Some(usage)) = nvidia_ml::usage(&dir, uuid) else { continue };
                    looks.fetch_add(1, Ordering::Relaxed);
                    if usage.reserved + usage.used > usage.total {
                        let text = format!("{uuid}: {} of {}", usage.used, usage.total);
                        seen.lock().unwrap_or_else(PoisonError::into_inner).insert(text);
                    }
                }
                std::thread::sleep(WATCH_INTERVAL);
            }
        };
        watcher.thread = Some(std::thread::spawn(watch));
        watcher
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
