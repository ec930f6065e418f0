//! The measurements, in interleaved rounds.

use std::fs::File;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::process::{Process, pin_self};
use crate::table::{Table, WHO};
use crate::{load, rivals};

/// What to measure, and how long.
#[derive(Args)]
pub struct Plan {
    /// Only these: post, stream, burst, hold, body, idle. Empty: all.
    only: Vec<String>,
    /// Rounds, of which the median is reported.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Divides the number of requests in each round, for a quick look.
    #[arg(long, default_value_t = 1)]
    quick: usize,
    /// How the engine is reached: `unix` or `tcp`, by all proxies alike; or `deployed`, by Unix socket for Hostler and bare hyper and by
    /// TCP for the others, as each has it unless somebody arranges it otherwise.
    #[arg(long, default_value = "unix", value_parser = ["unix", "tcp", "deployed"])]
    transport: String,
    /// Hostler and nginx log each request to a file.
    #[arg(long)]
    log: bool,
    /// The most streams held at once.
    #[arg(long, default_value_t = 5000)]
    streams: usize,
}

/// The processor of the proxies, and that of everything else.
const PROXY_CPU: usize = 0;
const LOAD_CPU: usize = 1;
const MIB: f64 = 1048576.0;

struct Contender {
    who: &'static str,
    address: SocketAddr,
    /// `None`: no proxy.
    process: Option<Process>,
}

/// Runs a plan.
pub fn run(plan: &Plan) -> Result<()> {
    pin_self(LOAD_CPU)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let table = runtime.block_on(all(plan))?;
    println!("{}", table.markdown());
    Ok(())
}

impl Plan {
    fn wants(&self, what: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| o == what)
    }

    fn scaled(&self, n: usize) -> usize {
        (n / self.quick).max(1)
    }
}

async fn all(plan: &Plan) -> Result<Table> {
    let dir = tempfile::tempdir()?;
    let mut table = Table::default();
    let place = House::open(plan, dir.path()).await?;
    for round in 0..plan.rounds {
        eprintln!("round {} of {}", round + 1, plan.rounds);
        if plan.wants("post") {
            for (clients, each) in [(1, 2000), (16, 400), (128, 50), (1024, 10)] {
                post(plan, &place.order(round), &mut table, clients, each).await?;
            }
        }
        if plan.wants("stream") {
            stream(plan, &place.order(round), &mut table, ("paced", 20_000)).await?;
        }
        if plan.wants("burst") {
            stream(plan, &place.order(round), &mut table, ("burst", 0)).await?;
        }
        if plan.wants("body") {
            body(plan, &place.order(round), &mut table).await?;
        }
    }
    drop(place);
    // Memory is measured in fresh processes.
    if plan.wants("body") {
        peaks(plan, dir.path(), &mut table).await?;
    }
    if plan.wants("hold") || plan.wants("idle") {
        hold(plan, dir.path(), &mut table).await?;
    }
    Ok(table)
}

struct House {
    _engine: Process,
    contenders: Vec<Contender>,
}

impl House {
    async fn open(plan: &Plan, dir: &std::path::Path) -> Result<Self> {
        // Another run may be under way on the machine.
        let base = 20_000 + u16::try_from(std::process::id() % 1000)? * 8;
        let (socket, tcp) = (dir.join("e.sock"), SocketAddr::from(([127, 0, 0, 1], base)));
        let unix = plan.transport != "tcp";
        let listen = if unix { socket.display().to_string() } else { tcp.to_string() };
        // Where there is no proxy, the load asks an engine of its own by TCP.
        let direct = SocketAddr::from(([127, 0, 0, 1], base + 1));
        let deployed = plan.transport == "deployed";
        let theirs = &if deployed { direct.to_string() } else { listen.clone() };
        let _ = std::fs::remove_file(&socket);
        let me = std::env::current_exe()?;
        let mut engine = Command::new(&me);
        engine.args(["engine", &listen]);
        let mut engine = Process::start(LOAD_CPU, &engine, None)?;
        let up = async || {
            if unix {
                tokio::net::UnixStream::connect(&socket).await.is_ok()
            } else {
                load::listens(tcp).await
            }
        };
        engine.ready(up).await?;
        let mut command = Command::new(&me);
        command.args(["engine", &direct.to_string()]);
        let mut process = Process::start(LOAD_CPU, &command, None)?;
        process.ready(async || load::listens(direct).await).await?;
        let mut contenders =
            vec![Contender { who: "direct", address: direct, process: Some(process) }];
        for (i, who) in WHO.into_iter().enumerate().skip(1) {
            let port = base + 1 + u16::try_from(i)?;
            let command = match who {
                "nginx" => rivals::nginx(dir, port, theirs, plan.log)?,
                "haproxy" => rivals::haproxy(dir, port, theirs)?,
                _ => {
                    let name = if who == "bare" { "bare" } else { "front" };
                    let mut command = Command::new(me.with_file_name(name));
                    command.args([&port.to_string(), &listen]);
                    if plan.log && who != "bare" {
                        command.arg("--log");
                    }
                    command
                }
            };
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let said =
                (who == "hostler").then(|| File::create(dir.join("hostler.log"))).transpose()?;
            let mut process = Process::start(PROXY_CPU, &command, said)?;
            process.ready(async || load::listens(address).await).await.context(who)?;
            contenders.push(Contender { who, address, process: Some(process) });
        }
        Ok(Self { _engine: engine, contenders })
    }

    /// In another order each round, so that nobody always goes first.
    fn order(&self, round: usize) -> Vec<&Contender> {
        let all = &self.contenders;
        (0..all.len()).map(|i| &all[(i + round) % all.len()]).collect()
    }
}

impl Contender {
    fn proxy(&self) -> Option<&Process> {
        self.process.as_ref().filter(|_| self.who != "direct")
    }

    fn cpu(&self) -> Result<u64> {
        self.proxy().map_or(Ok(0), Process::cpu_ns)
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers for people")]
fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "numbers for people")]
fn float(n: u64) -> f64 {
    n as f64
}

async fn post(
    plan: &Plan,
    order: &[&Contender],
    table: &mut Table,
    clients: usize,
    each: usize,
) -> Result<()> {
    let each = plan.scaled(each);
    let count = u64::try_from(clients * each)?;
    for c in order {
        load::requests(c.address, &load::small(), clients, 2).await?;
        let before = c.cpu()?;
        let mut took = load::requests(c.address, &load::small(), clients, each)
            .await
            .with_context(|| format!("{} with {clients} clients", c.who))?;
        let cpu = c.cpu()? - before;
        let p50 = load::median(&mut took).context("no requests")?;
        if c.who != "direct" {
            let name = format!("small POST, c = {clients}: CPU a request");
            table.put(&name, "µs", (true, false), c.who, micros(cpu / count));
        }
        let name = format!("small POST, c = {clients}: p50");
        table.put(&name, "µs", (clients == 1, true), c.who, micros(p50));
    }
    Ok(())
}

async fn stream(
    plan: &Plan,
    order: &[&Contender],
    table: &mut Table,
    (name, gap): (&str, u64),
) -> Result<()> {
    const CLIENTS: usize = 64;
    const TOKENS: u64 = 100;
    let times = plan.scaled(if gap == 0 { 8 } else { 1 });
    let request = load::stream(TOKENS, gap, false);
    for c in order {
        load::streams(c.address, &load::stream(1, 0, false), CLIENTS).await?;
        let (mut first, mut delay) = (vec![], vec![]);
        let before = c.cpu()?;
        for _ in 0..times {
            let seen = load::streams(c.address, &request, CLIENTS).await.context(c.who)?;
            first.extend(seen.first);
            delay.extend(seen.delay);
        }
        let cpu = c.cpu()? - before;
        let tokens = u64::try_from(CLIENTS * times)? * TOKENS;
        if c.who != "direct" {
            let name = format!("SSE {name}, c = {CLIENTS}: CPU a token");
            table.put(&name, "µs", (true, false), c.who, float(cpu / tokens) / 1000.0);
        }
        let p50 = |values: &mut [u64]| load::median(values).map(micros).context("no events");
        if gap > 0 {
            let name = format!("SSE {name}, c = {CLIENTS}: delay of a token, p50");
            table.put(&name, "µs", (true, true), c.who, p50(&mut delay)?);
        }
    }
    if gap > 0 {
        first_byte(plan, order, table).await?;
    }
    Ok(())
}

/// Time to the first byte, one stream at a time: what a proxy adds and not how the machine queues.
async fn first_byte(plan: &Plan, order: &[&Contender], table: &mut Table) -> Result<()> {
    let request = load::stream(1, 0, false);
    for c in order {
        let mut first = vec![];
        for _ in 0..plan.scaled(300) {
            first.extend(load::streams(c.address, &request, 1).await?.first);
        }
        let p50 = load::median(&mut first).map(micros).context("no events")?;
        table.put("SSE: time to the first byte, p50", "µs", (true, true), c.who, p50);
    }
    Ok(())
}

async fn body(plan: &Plan, order: &[&Contender], table: &mut Table) -> Result<()> {
    for (word, first) in [("first", true), ("last", false)] {
        let request = load::image(10 << 20, first);
        for c in order {
            load::requests(c.address, &request, 1, 1).await.context(c.who)?;
            let mut took = load::requests(c.address, &request, 1, plan.scaled(8)).await?;
            let p50 = load::median(&mut took).map(micros).context("no requests")?;
            let name = format!("10 MiB body, model {word}: p50");
            table.put(&name, "ms", (true, false), c.who, p50 / 1000.0);
        }
    }
    Ok(())
}

/// How far large bodies take a process that has done nothing yet.
async fn peaks(plan: &Plan, dir: &std::path::Path, table: &mut Table) -> Result<()> {
    let place = House::open(plan, dir).await?;
    for c in &place.contenders {
        let Some(process) = c.proxy() else { continue };
        load::settle().await;
        let idle = process.rss()?;
        for (word, first) in [("first", true), ("last", false)] {
            let request = load::image(10 << 20, first);
            process.forget_peak()?;
            load::requests(c.address, &request, 1, 3).await.context(c.who)?;
            let over = process.peak()?.saturating_sub(idle);
            let name = format!("10 MiB body, model {word}: peak over idle");
            table.put(&name, "MiB", (false, false), c.who, float(over) / MIB);
        }
    }
    Ok(())
}

async fn hold(plan: &Plan, dir: &std::path::Path, table: &mut Table) -> Result<()> {
    let place = House::open(plan, dir).await?;
    for c in &place.contenders {
        // A bare proxy gives up where the engine's queue of connections is full.
        let Some(process) = c.proxy().filter(|_| c.who != "bare") else { continue };
        load::settle().await;
        let idle = process.pss()?;
        table.put("memory: idle (PSS)", "MiB", (false, false), c.who, float(idle) / MIB);
        if !plan.wants("hold") {
            continue;
        }
        for count in [1000, plan.streams] {
            let held = load::hold(c.address, count).await.context(c.who)?;
            load::settle().await;
            let now = process.pss()?;
            let name = format!("memory: {count} idle streams (PSS)");
            table.put(&name, "MiB", (false, false), c.who, float(now) / MIB);
            let each = float(now.saturating_sub(idle)) / float(u64::try_from(count)?);
            let name = format!("memory: each of {count} idle streams");
            table.put(&name, "kB", (true, false), c.who, each / 1000.0);
            let dropped = float(u64::try_from(held.dropped())?);
            let name = format!("{count} idle streams: dropped");
            table.put(&name, "streams", (false, false), c.who, dropped);
            drop(held);
            load::settle().await;
        }
    }
    Ok(())
}
