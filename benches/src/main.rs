//! `bench`: what Hostler's front door costs, as ratios to nginx within one run.
//!
//! Purpose: `make bench`. The runner, the load and the stand-in engine share one processor, the proxy under test has the
//! other. Owner: nobody; it is run by hand and by nothing else. Invariants: every number of a ratio comes from the same run,
//! rounds are interleaved, and what is reported is the median of the rounds.

mod engine;
mod load;
mod measure;
mod process;
mod rivals;
mod table;
mod watched;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Hostler's front door beside nginx and HAProxy")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Runs all measurements, or those named, and prints the table.
    Run(measure::Plan),
    /// What metrics and the log cost: the front door with and without them.
    Watched(watched::Plan),
    /// The stand-in engine, on a Unix socket or a TCP address.
    Engine {
        /// `/path` or `address:port`.
        listen: String,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().what {
        What::Run(plan) => measure::run(&plan),
        What::Watched(plan) => watched::run(&plan),
        What::Engine { listen } => engine::run(&listen),
    }
}
