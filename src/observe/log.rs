//! Logs: native journald fields under systemd, text or JSON elsewhere.
//!
//! Invariants: no prompt, no completion, no key and no body is ever passed to a log macro; what is logged can be changed while the daemon
//! runs, by a reload.

use std::sync::OnceLock;

use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

use super::journal::Journal;

/// Where log lines go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// journald when stderr is connected to it, else text.
    #[default]
    Auto,
    /// Lines for people on stderr.
    Text,
    /// One JSON object a line on stderr.
    Json,
}

/// What is logged where nothing else is said.
pub const LEVEL: &str = "info";

type Change = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;
static CHANGE: OnceLock<Change> = OnceLock::new();

/// Starts logging. `filter` is a level (`info`) or a list of `target=level` directives.
///
/// # Errors
/// If the filter does not parse, or logging was started before.
pub fn start(format: Format, filter: &str) -> anyhow::Result<()> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let journal = format == Format::Auto && libsystemd::logging::connected_to_journal();
    let layer = if journal {
        Journal.boxed()
    } else if format == Format::Json {
        tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr).boxed()
    } else {
        let colour = std::io::IsTerminal::is_terminal(&std::io::stderr())
            && std::env::var_os("NO_COLOR").is_none();
        tracing_subscriber::fmt::layer().with_ansi(colour).with_writer(std::io::stderr).boxed()
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    let _ = CHANGE.set(Box::new(move |new| handle.reload(new)));
    Ok(())
}

/// Logs by another filter from now on. Where logging was never started (tests, programs that only borrow the daemon's parts) nothing
/// happens.
///
/// # Errors
/// If the filter does not parse; then it stays as it was.
pub fn set(filter: &str) -> anyhow::Result<()> {
    let filter = parse(filter)?;
    if let Some(change) = CHANGE.get() {
        change(filter)?;
    }
    Ok(())
}

fn parse(filter: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(filter)
        .map_err(|err| anyhow::anyhow!("the log filter {filter:?} is not valid: {err}"))
}
