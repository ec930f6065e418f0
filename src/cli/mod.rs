//! `hostler`, the operator's program.
//!
//! Purpose: everything that an operator asks of the daemon, over D-Bus and never over HTTP; and what can be asked without a
//! daemon: the configuration, new model definitions, the host's fitness. Owner: `src/bin/hostler.rs`. Invariants: one file a
//! command; [`run`] is the only place that prints a failure, and [`Exit`] has every exit status; what the manual pages, the
//! completions and `--help` say comes from the definitions here.
//!
//! ```text
//!  mod     the command line, dispatch     bus       connection, proxies, D-Bus errors → failures
//!  exit    exit statuses, failures        document  the daemon's status, as it comes over the bus
//!  output  tables, JSON, colours          pages     manual pages and completions
//!  change  a changed file: checked, applied     signals   Ctrl-C and its like
//!  start   a daemon that does not run yet           whose   the system's daemon, or the caller's own
//!  status list show load verbs plan why measure wait logs top reload doctor config  add/  import/  remove
//! ```

#![deny(clippy::print_stderr, clippy::print_stdout)] // They end the program where nobody reads: `Output::text`, `output::tell`.

mod add;
mod bus;
mod change;
mod config;
mod doctor;
mod document;
mod elsewhere;
mod exit;
mod fetch;
mod import;
mod job;
mod list;
mod load;
mod logs;
mod measure;
mod output;
pub mod pages;
mod plan;
mod printable;
mod reload;
mod remove;
mod settings;
mod show;
mod signals;
mod start;
mod status;
mod top;
mod unit;
mod unload;
mod verbs;
mod wait;
mod whose;
mod why;

use clap::{Args, Parser, Subcommand};

use crate::checks;

pub use exit::{Exit, Failure, Outcome};
use output::{Output, tell};

/// Controls Hostler: loads, unloads and watches models, defines new ones, and checks the host.
#[derive(Debug, Parser)]
#[command(name = "hostler", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of all commands.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Talk to the system's daemon. This is the default, unless only your own daemon runs or is configured.
    #[arg(long, global = true, conflicts_with = "user")]
    system: bool,

    /// Talk to the daemon of your own user.
    #[arg(long, global = true)]
    user: bool,

    /// Print one JSON document instead of text.
    #[arg(long, global = true)]
    json: bool,

    /// Print tables without their head.
    #[arg(long, global = true)]
    no_legend: bool,

    /// Print answers and errors only.
    #[arg(short, long, global = true)]
    quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
enum Command {
    /// Show the daemon, its devices and its models.
    Status(status::Status),
    /// List models.
    List(list::List),
    /// Show all about one model.
    Show(show::Show),
    /// Load models, and wait until they answer.
    Load(load::Load),
    /// Unload models, after the requests that they serve.
    Unload(unload::Unload),
    /// Keep models loaded: they are never evicted nor idled out.
    Pin(verbs::Pin),
    /// Let pinned models go when they are idle.
    Unpin(verbs::Unpin),
    /// Put idle models to sleep: their memory is given back, their containers are kept.
    Sleep(verbs::Sleep),
    /// Wake models that sleep.
    Wake(verbs::Wake),
    /// Show what loading a model would do now, without doing it.
    Plan(plan::Plan),
    /// Explain why a model is where it is, and what stands in its way.
    Why(why::Why),
    /// Load a model until its memory is measured.
    Measure(measure::Measure),
    /// Show what a model's engine wrote.
    Logs(logs::Logs),
    /// Watch devices, models and requests.
    Top(top::Top),
    /// Wait until a model is in a phase, or until the daemon runs.
    Wait(wait::Wait),
    /// Apply the configuration files to the running daemon.
    Reload(reload::Reload),
    /// Define a model: write its file in models.d, fetch its weights if need be, and apply it.
    Add(Box<add::Add>),
    /// Remove a model's file in models.d, and apply that.
    Remove(remove::Remove),
    /// Translate the configuration of another program into Hostler's.
    Import(import::Import),
    /// Look at the configuration files.
    Config(config::Config),
    /// Check the host, and say what mends it.
    Doctor(doctor::Doctor),
    /// Load and pin the model of a unit hostler-model@, or let it go.
    #[command(hide = true)]
    Unit(unit::Unit),
    /// Download the files of a model. Runs in a container of its own.
    #[command(hide = true)]
    Fetch(fetch::Fetch),
    /// Say which GPUs this process sees. Runs in a container of its own.
    #[command(hide = true)]
    ProbeGpus,
    /// Write the manual pages and the completions.
    #[command(hide = true)]
    Pages(pages::Pages),
}

/// What every command gets.
#[derive(Debug)]
struct Context {
    global: Global,
    out: Output,
}

/// Runs one command to its end.
#[must_use]
pub fn run(cli: Cli) -> Exit {
    let out = Output::new(&cli.global);
    let context = Context { global: cli.global, out };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(async {
                tokio::select! {
                    // First the command, which may hold on to the signals. One that never waits is not kept from being killed by them.
                    biased;
                    outcome = dispatch(&context, cli.command) => outcome,
                    () = signals::unheeded() => Err(Failure::said(Exit::Interrupted)),
                }
            });
            // A device's driver that hangs holds its thread for ever; it must not hold the exit.
            runtime.shutdown_background();
            outcome
        }
        Err(err) => Err(err.into()),
    };
    let Err(failure) = outcome else { return Exit::Ok };
    if !failure.message.is_empty() {
        tell(format_args!("hostler: {failure}"));
    }
    failure.exit
}

async fn dispatch(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Status(it) => it.run(context).await,
        Command::List(it) => it.run(context).await,
        Command::Show(it) => it.run(context).await,
        Command::Load(it) => it.run(context).await,
        Command::Unload(it) => it.run(context).await,
        Command::Pin(it) => it.run(context).await,
        Command::Unpin(it) => it.run(context).await,
        Command::Sleep(it) => it.run(context).await,
        Command::Wake(it) => it.run(context).await,
        Command::Plan(it) => it.run(context).await,
        Command::Why(it) => it.run(context).await,
        Command::Measure(it) => it.run(context).await,
        Command::Logs(it) => it.run(context).await,
        Command::Top(it) => it.run(context).await,
        Command::Wait(it) => it.run(context).await,
        Command::Reload(it) => it.run(context).await,
        Command::Add(it) => it.run(context).await,
        Command::Remove(it) => it.run(context).await,
        Command::Import(it) => it.run(context),
        Command::Config(it) => it.run(context),
        Command::Doctor(it) => it.run(context).await,
        Command::Unit(it) => it.run(context).await,
        Command::Fetch(it) => it.run(),
        Command::ProbeGpus => {
            let seen = checks::gpus::look().await;
            context.out.text(&(serde_json::to_string(&seen).unwrap_or_default() + "\n"))
        }
        Command::Pages(it) => it.run(context),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Compares a text with a file of `src/cli/tests`, or writes it there with `UPDATE=1`: that file is then the review.
    pub fn compare(name: &str, text: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/tests").join(name);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(expected == text, "{name} is not as expected; UPDATE=1 writes it anew:\n{text}");
    }
}
