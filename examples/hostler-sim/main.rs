//! Replays a trace of requests through the production core (`State`, planner, ledger) in a simulated world, and prints
//! what each eviction policy costs.
//!
//! `cargo run --example hostler-sim -- --generate zipf --seed 1` makes a trace; `--trace FILE` reads one: CSV lines
//! `time_s,model`, ascending. `--models FILE` replaces the built-in models: CSV lines `name,vram,load_s`.

mod outcome;
mod trace;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use hostler::types::{Bytes, Eviction};

use crate::outcome::Outcome;
use crate::trace::{Kind, Request};
use crate::world::{Host, World};

#[derive(Debug, Parser)]
#[command(about = "Replays a trace of requests and prints what each eviction policy costs")]
struct Args {
    /// The trace, as CSV lines `time_s,model`.
    #[arg(long, conflicts_with = "generate")]
    trace: Option<PathBuf>,
    /// Makes a trace instead.
    #[arg(long, value_enum)]
    generate: Option<Kind>,
    /// Of the generated trace.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many traces are generated, of as many seeds; numbers are over all of them.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Prints the generated trace instead of replaying it.
    #[arg(long)]
    print_trace: bool,
    /// The models, as CSV lines `name,vram,load_s`.
    #[arg(long)]
    models: Option<PathBuf>,
    /// Without it: each in turn.
    #[arg(long, value_enum)]
    policy: Option<Choice>,
    /// Number of equal devices.
    #[arg(long, default_value_t = 1)]
    gpus: u32,
    /// Memory of each device.
    #[arg(long, default_value = "80GiB")]
    gpu_memory: Bytes,
    /// Seconds that every request runs for.
    #[arg(long, default_value_t = 5.0)]
    service_s: f64,
    /// Seconds that stopping an engine takes.
    #[arg(long, default_value_t = 2.0)]
    stop_s: f64,
    /// `min_residency`, in seconds.
    #[arg(long, default_value_t = 10.0)]
    min_residency_s: f64,
    /// `turn_after`, in seconds; 0 means never: busy models never make way.
    #[arg(long, default_value_t = 30.0)]
    turn_after_s: f64,
    /// `max_wait`, in seconds.
    #[arg(long, default_value_t = 240.0)]
    max_wait_s: f64,
    /// `idle_timeout`, in seconds; 0 means never, so that only evictions unload.
    #[arg(long, default_value_t = 0.0)]
    idle_timeout_s: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    Lru,
    Cost,
}

/// A model of the simulation.
#[derive(Clone, Debug)]
struct Model {
    name: String,
    vram: Bytes,
    load: Duration,
}

/// What a mixed host serves, on one device of 80 GiB together half as much again as fits. Load times are of the order
/// that engines show: 1 GB/s from disk, half a minute to two minutes more where an engine compiles and captures graphs.
const MODELS: &str = "\
    chat-70b,40GiB,130\nchat-32b,22GiB,75\ncoder-14b,16GiB,20\nvision-7b,12GiB,60\nchat-8b,10GiB,50\n\
    small-8b,10GiB,12\nspeech,4GiB,15\nembed,3GiB,8\nrerank,3GiB,8\n";

fn models(text: &str) -> Result<Vec<Model>> {
    let mut models = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("name,")) {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [name, vram, load] = fields[..] else { bail!("{line:?} is not name,vram,load_s") };
        let vram = vram.parse().with_context(|| format!("in {line:?}"))?;
        let load = seconds(load.parse().with_context(|| format!("load_s in {line:?}"))?)?;
        models.push(Model { name: name.to_owned(), vram, load });
    }
    ensure!(!models.is_empty(), "there is no model");
    Ok(models)
}

fn seconds(number: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(number).with_context(|| format!("{number} is no time in seconds"))
}

fn host(args: &Args, eviction: Eviction) -> Result<Host> {
    Ok(Host {
        eviction,
        gpus: args.gpus,
        memory: args.gpu_memory,
        service: seconds(args.service_s)?,
        stop: seconds(args.stop_s)?,
        min_residency: seconds(args.min_residency_s)?,
        turn_after: Some(seconds(args.turn_after_s)?).filter(|d| !d.is_zero()),
        max_wait: seconds(args.max_wait_s)?,
        idle_timeout: Some(seconds(args.idle_timeout_s)?).filter(|d| !d.is_zero()),
    })
}

fn main() -> Result<()> {
    let args = Args::parse();
    let table = match &args.models {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?,
        None => MODELS.to_owned(),
    };
    let models = models(&table)?;
    let traces: Vec<Vec<Request>> = match (&args.trace, args.generate) {
        (Some(path), _) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            vec![trace::read(&text, &models)?]
        }
        (None, Some(kind)) => {
            (args.seed..args.seed + args.seeds).map(|s| trace::generate(kind, s, &models)).collect()
        }
        (None, None) => bail!("name a --trace, or --generate one"),
    };
    if args.print_trace {
        print!("{}", trace::write(&traces[0]));
        return Ok(());
    }
    println!("{}", Outcome::HEADER);
    for (choice, eviction) in [(Choice::Lru, Eviction::Lru), (Choice::Cost, Eviction::Cost)] {
        if args.policy.is_some_and(|p| p != choice) {
            continue;
        }
        let mut total = Outcome::default();
        for trace in &traces {
            total.add(World::new(&models, host(&args, eviction)?)?.replay(trace)?);
        }
        println!("{}", total.line(&format!("{choice:?}").to_lowercase()));
    }
    Ok(())
}
