//! The engine as a program: settings, signals, and an end of the kind that was asked for.

use std::process::ExitCode;
use std::sync::Arc;

use fake_engine::{Config, Engine, Exit};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let arguments: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let config = match Config::read(&environment, &arguments) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("fake-engine: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("fake-engine: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let exit = runtime.block_on(serve(config));
    // Nothing that still runs may hold up the end.
    runtime.shutdown_background();
    match exit {
        Exit::Code(code) => ExitCode::from(code),
        Exit::Abort => die(libc::SIGABRT),
        Exit::Kill => die(libc::SIGKILL),
    }
}

async fn serve(config: Config) -> Exit {
    let engine = Engine::new(config);
    let terminated = Arc::clone(&engine);
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut interrupt)) => {
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        _ = term.recv() => terminated.terminate(),
                        _ = interrupt.recv() => terminated.terminate(),
                    }
                }
            });
        }
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("fake-engine: cannot catch signals: {error}");
            return Exit::Code(1);
        }
    }
    engine.serve().await
}

/// Dies by a signal of its own; PID 1 of a container cannot, and ends with the status that the
/// container's keeper would report for that signal.
fn die(number: libc::c_int) -> ExitCode {
    // SAFETY: a signal to oneself; SIGABRT has its default action, since nothing here handles it.
    unsafe { libc::kill(libc::getpid(), number) };
    ExitCode::from(128 + u8::try_from(number).unwrap_or(0))
}
