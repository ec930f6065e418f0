//! `hostlerd`: flags → sockets → logs → [`hostler::daemon::run`] → exit status.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use hostler::adapters::systemd;
use hostler::daemon::allocator::Allocator;
use hostler::daemon::{self, Exit, Options};
use hostler::observe::log;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// How long the end of the process waits for its last log lines to be taken.
const LAST_LINES: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let exit = serve();
    log::flush(LAST_LINES);
    exit
}

fn serve() -> ExitCode {
    let options = Options::parse();
    if options.config_schema {
        println!("{:#}", hostler::config::schema());
        return Exit::Ok.into();
    }
    if options.check_config {
        return check(&options);
    }
    // Before any thread is started: the environment and the descriptors are the process's own.
    let sockets = systemd::take_sockets();
    // A filter that is none fails the start as the configuration does, where clients that wait can be told.
    let filter = options.said().ok().flatten().unwrap_or(log::LEVEL);
    if let Err(err) = log::start(options.log_format, filter) {
        eprintln!("hostlerd: {err:#}");
        return Exit::Internal.into();
    }
    let sockets = match sockets {
        Ok(sockets) => sockets,
        Err(err) => {
            tracing::error!(%err, "the sockets handed over by systemd cannot be used");
            return Exit::Listen.into();
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(err) => {
            tracing::error!(%err, "the runtime could not be started");
            return Exit::Internal.into();
        }
    };
    let exit = runtime.block_on(daemon::run(options, sockets));
    // A stuck NVML call holds its thread for ever; it must not hold the exit.
    runtime.shutdown_background();
    exit.into()
}

fn check(options: &Options) -> ExitCode {
    match options.look() {
        Ok((config, unseen)) => {
            println!("the configuration is valid: {}{}", config.counted(), daemon::but(&unseen));
            Exit::Ok.into()
        }
        Err(errors) => {
            eprintln!("{errors}");
            Exit::Config.into()
        }
    }
}
