//! What the host tests share: how a host with Hostler comes to be, and how an engine is run without Hostler.

mod gpu;
mod http;
mod refused;
mod scene;
mod serve;

pub use gpu::{describe as put_cdi, install_library as put_nvml, play as play_gpus};
pub use http::{Answer, count_request, curl, get, post};
pub use refused::{Refusal, recovers, refused};
pub use scene::{FAKE_IMAGE, Fake, Scene, served};
pub use serve::{
    ALL, COUNT, Counting, FIRST, SOON, allow_internet, check_count, config, containers, count,
    count_a_little, count_to, engine, events, left_over, model, nothing_left, property, serving,
    show_status, status, wait_busy, wait_phase, wait_property,
};

use std::path::{Path, PathBuf};
use std::time::Duration;
use testhost::{Builder, Host, Look, Result, wait_for};

/// The service user's podman, as the daemon reaches it.
pub const PODMAN: &str = "podman --remote --url unix:///run/hostler/service/podman.sock";

/// Leaves the test, and says so, where host tests are to be skipped.
macro_rules! skip_unless_wanted {
    () => {
        if testhost::skipped(concat!(module_path!(), ":", line!())) {
            return;
        }
    };
}
pub(crate) use skip_unless_wanted;

/// Where cargo put the binaries under test.
pub fn bindir() -> PathBuf {
    let hostlerd = Path::new(env!("CARGO_BIN_EXE_hostlerd"));
    hostlerd.parent().unwrap_or(hostlerd).to_owned()
}

/// A host with Hostler installed, not started.
pub fn installed() -> Builder {
    Host::builder().install(&bindir())
}

/// The directory of the models, as the service user sees it.
pub const MODELS: &str = "/var/lib/hostler/models";

/// Copies the counting model into the host; returns its path there.
pub fn put_count_model(host: &Host) -> Result<String> {
    let model = testhost::assets::count_512()?;
    host.copy_in(&model, MODELS)?;
    let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let target = format!("{MODELS}/count-512.gguf");
    host.root(&format!("mv {MODELS}/{name} {target}"))?;
    Ok(target)
}

/// Asks an engine for its health over its Unix socket until it is ready.
pub fn wait_healthy(host: &Host, socket: &str) -> Result<()> {
    wait_for(&format!("the engine at {socket}"), Duration::from_secs(30), || {
        let run = host
            .try_root(&format!("curl -sS --max-time 5 --unix-socket {socket} http://x/health"))?;
        Ok(if run.status.success() && run.stdout.contains("ok") {
            Look::Done(())
        } else {
            Look::NotYet(run.stdout + &run.stderr)
        })
    })
}
