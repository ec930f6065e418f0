//! What metrics and the log cost: the same front door with and without them, in one run.
//!
//! Purpose: `bench watched`. Owner: nobody. Invariants: as for the other measurements; a ratio is to the front door that nobody watches, in
//! the same round.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};

use crate::load;
use crate::process::{Process, pin_self};

/// How long.
#[derive(Args)]
pub struct Plan {
    /// Rounds, of which the median is reported.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Divides the number of requests in each round, for a quick look.
    #[arg(long, default_value_t = 1)]
    quick: usize,
    /// A journal's socket to write to, instead of a stand-in's.
    #[arg(long)]
    journal: Option<PathBuf>,
}

/// Who is compared; the first is what the others are compared with.
const WHO: [&str; 6] = [
    "nobody watches",
    "metrics",
    "metrics, log as text",
    "metrics, log to the journal",
    "text, a line each",
    "journal, a line each",
];
const PROXY_CPU: usize = 0;
const LOAD_CPU: usize = 1;

struct Front {
    address: SocketAddr,
    process: Process,
}

/// Runs a plan.
pub fn run(plan: &Plan) -> Result<()> {
    pin_self(LOAD_CPU)?;
    if plan.journal.is_none() {
        as_systemd_has_it()?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(all(plan))
}

async fn all(plan: &Plan) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let me = std::env::current_exe()?;
    let socket = dir.path().join("e.sock").display().to_string();
    let mut engine = Command::new(&me);
    engine.args(["engine", &socket]);
    let mut engine = Process::start(LOAD_CPU, &engine, None)?;
    engine.ready(async || tokio::net::UnixStream::connect(&socket).await.is_ok()).await?;
    let base = 30_000 + u16::try_from(std::process::id() % 1000)? * 8;
    let journal = plan.journal.clone().unwrap_or_else(|| dir.path().join("journal"));
    if plan.journal.is_none() {
        read_all(UnixDatagram::bind(&journal)?, File::create(dir.path().join("entries"))?);
    }
    let journal = journal.display().to_string();
    let each = ["--lines", "1000000"];
    let options: [Vec<&str>; WHO.len()] = [
        vec!["--bare"],
        vec![],
        vec!["--log"],
        vec!["--journal", &journal],
        [&["--log"], &each[..]].concat(),
        [&["--journal", &journal], &each[..]].concat(),
    ];
    let mut fronts = Vec::new();
    for (port, (who, options)) in (base..).zip(WHO.into_iter().zip(options)) {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = Command::new(me.with_file_name("front"));
        command.args([&port.to_string(), &socket]).args(options);
        let said = File::create(dir.path().join("log"))?;
        let mut process = Process::start(PROXY_CPU, &command, Some(said))?;
        process.ready(async || load::listens(address).await).await.context(who)?;
        fronts.push(Front { address, process });
    }
    let measures =
        ["small POST, c = 1", "small POST, c = 16", "small POST, c = 128", "SSE burst, c = 64"];
    let mut values = vec![vec![vec![]; WHO.len()]; measures.len()];
    let mut logs = vec![vec![vec![]; WHO.len()]; measures.len()];
    for round in 0..plan.rounds {
        eprintln!("round {} of {}", round + 1, plan.rounds);
        for (measure, values) in values.iter_mut().enumerate() {
            for i in 0..fronts.len() {
                // In another order each round.
                let at = (i + round) % fronts.len();
                let (all, log) = cpu(&fronts[at], measure, plan.quick).await?;
                values[at].push(all);
                logs[measure][at].push(log);
            }
        }
    }
    println!("| CPU, µs | {} |\n|---{}|", WHO.join(" | "), "|---".repeat(WHO.len()));
    for (name, values) in measures.iter().zip(&values) {
        let cells = values.iter().map(|of| {
            let mut ratios: Vec<u64> =
                of.iter().zip(&values[0]).map(|(n, bare)| n * 10_000 / bare).collect();
            let ratio = load::median(&mut ratios).unwrap_or_default();
            let nanos = load::median(&mut of.clone()).unwrap_or_default();
            format!(
                "{}.{:02} ({}.{:03} ×)",
                nanos / 1000,
                nanos % 1000 / 10,
                ratio / 10_000,
                ratio % 10_000 / 10
            )
        });
        println!("| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    println!("\nOf it the log's thread, µs:\n");
    for (name, mut values) in measures.iter().zip(logs) {
        let cells = values.iter_mut().map(|of| {
            let nanos = load::median(of).unwrap_or_default();
            format!("{}.{:02}", nanos / 1000, nanos % 1000 / 10)
        });
        println!("| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    Ok(())
}

/// systemd lets 512 datagrams wait at a socket; with the kernel's own 10 a switch of threads for each line would be measured instead. The
/// setting is the network namespace's, so this begins anew in one of its own.
fn as_systemd_has_it() -> Result<()> {
    const QUEUE: &str = "/proc/sys/net/unix/max_dgram_qlen";
    let now: u32 = std::fs::read_to_string(QUEUE)?.trim().parse()?;
    if now >= 512 {
        return Ok(());
    }
    let ready = format!("ip link set lo up && echo 512 >{QUEUE} && exec \"$0\" \"$@\"");
    let mut again = Command::new("unshare");
    again.args(["--net", "sh", "-c", &ready]).arg(std::env::current_exe()?);
    Err(again.args(std::env::args_os().skip(1)).exec()).context("unshare (as root)")
}

/// Is the journal, on the load's processor: waits, takes one entry and writes it down, as journald does. (It also does much else with an
/// entry, so it sleeps less than this one, and costs who wakes it less: `--journal` names its own socket.)
fn read_all(journal: UnixDatagram, mut entries: File) {
    std::thread::spawn(move || {
        let mut entry = vec![0; 1 << 16];
        let mut wait = || -> std::io::Result<usize> {
            let mut ready = [PollFd::new(&journal, PollFlags::IN)];
            poll(&mut ready, None)?;
            journal.recv(&mut entry).inspect(|length| drop(entries.write_all(&entry[..*length])))
        };
        while wait().is_ok() {}
    });
}

/// Nanoseconds of processor time for a request, or a token of a stream: all, and those of the log's thread.
async fn cpu(front: &Front, measure: usize, quick: usize) -> Result<(u64, u64)> {
    const TOKENS: u64 = 100;
    let scaled = |n: usize| (n / quick).max(1);
    let stream = load::stream(TOKENS, 0, false);
    let (clients, each) = [(1, 4000), (16, 800), (128, 100), (64, 8)][measure];
    let each = scaled(each);
    load::requests(front.address, &load::small(), 4, 2).await?;
    let (before, log) = (front.process.cpu_ns()?, front.process.cpu_ns_of("log")?);
    let mut count = u64::try_from(clients * each)?;
    if measure < 3 {
        load::requests(front.address, &load::small(), clients, each).await?;
    } else {
        for _ in 0..each {
            load::streams(front.address, &stream, clients).await?;
        }
        count *= TOKENS;
    }
    let (after, log_after) = (front.process.cpu_ns()?, front.process.cpu_ns_of("log")?);
    Ok(((after - before) / count, (log_after - log) / count))
}
