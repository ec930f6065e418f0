//! Logs: native journald fields under systemd, text or JSON elsewhere.
//!
//! Invariant: no prompt, no completion, no key and no body is ever passed to a log macro.

use clap::ValueEnum;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

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

/// Starts logging. `filter` is a level (`info`) or a list of `target=level` directives.
///
/// # Errors
/// If the filter does not parse, or logging was started before.
pub fn start(format: Format, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|err| anyhow::anyhow!("the log filter {filter:?} is not valid: {err}"))?;
    let journal = format == Format::Auto && libsystemd::logging::connected_to_journal();
    let layer = if journal {
        journald()?
    } else if format == Format::Json {
        tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr).boxed()
    } else {
        let colour = std::io::IsTerminal::is_terminal(&std::io::stderr())
            && std::env::var_os("NO_COLOR").is_none();
        tracing_subscriber::fmt::layer().with_ansi(colour).with_writer(std::io::stderr).boxed()
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    Ok(())
}

fn journald<S>() -> anyhow::Result<Box<dyn Layer<S> + Send + Sync>>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    // The layer's own mapping shows INFO as "notice".
    let priorities = PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    };
    let layer = tracing_journald::layer()?
        .with_priority_mappings(priorities)
        .with_field_prefix(Some("HOSTLER".to_owned()))
        .with_syslog_identifier("hostlerd".to_owned());
    Ok(layer.boxed())
}
