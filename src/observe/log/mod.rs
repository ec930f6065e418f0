//! Logs: native journald fields under systemd, text or JSON elsewhere.
//!
//! Invariants: no prompt, no completion, no key and no body is ever passed to a log macro; what is logged can be changed while the daemon
//! runs, by a reload; nobody who logs waits for who takes the lines.

mod journal;
mod lines;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

use self::journal::{Journal, Socket};
use self::lines::{Lines, Stderr, Writer};

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
static LINES: OnceLock<Arc<Lines>> = OnceLock::new();

/// Starts logging. `filter` is a level (`info`) or a list of `target=level` directives.
///
/// # Errors
/// If the filter does not parse, there can be no thread for the lines, or logging was started before.
pub fn start(format: Format, filter: &str) -> anyhow::Result<()> {
    if format == Format::Auto && libsystemd::logging::connected_to_journal() {
        return start_journal(Path::new(journal::SOCKET), filter);
    }
    let lines = Lines::start(Stderr)?;
    let layer = tracing_subscriber::fmt::layer().with_writer(Writer(lines.clone()));
    let layer = if format == Format::Json {
        layer.json().boxed()
    } else {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        layer.with_ansi(terminal && std::env::var_os("NO_COLOR").is_none()).boxed()
    };
    begin(layer, lines, filter)
}

/// Starts logging to who listens at a journal's socket.
///
/// # Errors
/// As [`start`].
pub fn start_journal(socket: &Path, filter: &str) -> anyhow::Result<()> {
    let lines = Lines::start(Socket::new(socket))?;
    begin(Journal(lines.clone()).boxed(), lines, filter)
}

fn begin(
    layer: Box<dyn Layer<tracing_subscriber::Registry> + Send + Sync>,
    lines: Arc<Lines>,
    filter: &str,
) -> anyhow::Result<()> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    let _ = CHANGE.set(Box::new(move |new| handle.reload(new)));
    let _ = LINES.set(lines);
    Ok(())
}

/// Waits until all lines are out, for whoever is about to end the process; at most so long.
pub fn flush(patience: Duration) {
    if let Some(lines) = LINES.get() {
        lines.flush(patience);
    }
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
