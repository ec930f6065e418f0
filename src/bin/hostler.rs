//! `hostler`: the command line → [`hostler::cli::run`] → exit status.

use std::process::ExitCode;

use clap::Parser;
use hostler::cli::{self, Cli};

fn main() -> ExitCode {
    // clap ends with 2 after a wrong command line, which is our own number for it.
    cli::run(Cli::parse()).into()
}
