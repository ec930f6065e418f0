//! What the kernel says of this process.
//!
//! Purpose: the metrics that every exporter has, under their usual names. Owner: [`super::Metrics`], for the length of one scrape. Invariant:
//! what cannot be read is absent.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::names::{self, Metric};
use super::page::{Page, Value};

/// Fields of `/proc/self/stat` after the name, counted from 3 as proc(5) does.
struct Stat<'a>(Vec<&'a str>);

impl Stat<'_> {
    fn field(&self, number: usize) -> Option<f64> {
        self.0.get(number.checked_sub(3)?)?.parse().ok()
    }
}

pub(super) fn write(page: &mut Page<'_>) -> std::fmt::Result {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name may hold anything but it ends with the last parenthesis.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let stat = Stat(rest.split_ascii_whitespace().collect());
    let ticks = clock_ticks_per_second() as f64;
    let cpu = stat.field(14).zip(stat.field(15)).map(|(user, system)| (user + system) / ticks);
    let started = stat.field(22).zip(boot_time()).map(|(since, boot)| boot + since / ticks);
    let open = fs::read_dir("/proc/self/fd").ok().map(|dir| dir.count().saturating_sub(1) as f64);
    let most = getrlimit(Resource::Nofile).current.map(|most| most as f64);
    let values: [(&Metric, Option<f64>); 7] = [
        (&names::CPU, cpu),
        (&names::RSS, stat.field(24).map(|pages| pages * page_size() as f64)),
        (&names::VIRTUAL, stat.field(23)),
        (&names::OPEN_FDS, open),
        (&names::MAX_FDS, most),
        (&names::THREADS, stat.field(20)),
        (&names::START_TIME, started),
    ];
    for (metric, value) in values {
        page.family(metric, value.map(|value| (vec![], Value::Level(value))))?;
    }
    Ok(())
}

/// Seconds since 1970 at which the machine was booted.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
