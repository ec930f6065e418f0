//! What the host tests share: how a host with Hostler comes to be, and how an engine is run without Hostler.

mod http;
mod refused;
mod serve;

pub use http::{count_request, curl, get, post, send};
pub use refused::{Refusal, refused};
pub use serve::{
    FIRST,
    COUNT, Counting, SOON, check_count, config, containers, count, count_a_little, 
    engine, events, left_over, model, property, serving, show_status, status, wait_busy,
    wait_phase, wait_property,
};

use std::path::{Path, PathBuf};
use std::time::Duration;
use testhost::{Builder, Host, Look, Result, wait_for};

/// The service user's podman, as the daemon reaches it.
pub const PODMAN: &str = "podman --remote --url unix:///run/hostler/podman.sock";

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

/// A host that serves the counting model as `count`, listening, with nothing started yet.
pub struct Counting;

impl Counting {
    /// Boots it.
    pub fn boot() -> Result<Host> {
        let host = installed().image(&testhost::assets::llama_server_image()?).boot()?;
        let weights = put_count_model(&host)?;
        host.write_file(
            "/etc/hostler/hostler.toml",
            &format!(
                "[gpu]\nbackend = \"host\"\n\n[models.count]\nengine = \"llamacpp\"\n\
                 image = \"localhost/hostler/llama-server:latest\"\n\
                 weights = {{ path = \"{weights}\" }}\ncontext = 4096\n"
            ),
        )?;
        host.root("systemctl start hostler.socket hostler-unix.socket")?;
        Ok(host)
    }

    /// Checks a whole stream: every number in its place, then the end, nothing lost, doubled or reordered.
    pub fn assert_streamed(stream: &str) {
        let (text, pieces) = streamed_text(stream);
        assert_eq!(text, counted(), "the stream was\n{stream}");
        assert!(pieces >= 512, "{pieces} pieces: not streamed token by token");
        assert!(stream.trim_end().ends_with("data: [DONE]"), "{stream}");
    }
}

/// What the counting model says to anything.
pub fn counted() -> String {
    (1..=512).map(|n| format!(" {n}")).collect()
}

/// A chat completion that the counting model answers in full.
pub fn count_request(stream: bool) -> String {
    format!(
        r#"{{"model":"count","stream":{stream},"temperature":0,"messages":[{{"role":"user","content":"go"}}]}}"#
    )
}

/// The text of a streamed chat completion, and in how many pieces it came.
pub fn streamed_text(stream: &str) -> (String, usize) {
    let pieces: Vec<&str> = stream
        .lines()
        .filter_map(|line| line.split_once(r#""content":""#))
        .filter_map(|(_, rest)| rest.split('"').next())
        .collect();
    (pieces.concat(), pieces.len())
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
