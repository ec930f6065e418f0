//! Traces: read, written, made up.
//!
//! Every kind lasts two days. Which model is popular is shuffled by the seed, so that over several seeds neither small nor
//! large models are.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use hostler::types::Moment;

use crate::Model;

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    pub at: Moment,
    pub model: String,
}

/// Kinds of traces that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Independent requests, a few models far more popular than the others, the same all the time.
    Zipf,
    /// Each model has its hours: a day's wave, at an hour of its own.
    Diurnal,
    /// Sessions: somebody asks one model again and again for minutes, then nobody for long.
    Bursty,
}

const DAY_S: f64 = 86_400.0;
const SPAN_S: f64 = 2.0 * DAY_S;

/// Reads `time_s,model` lines.
pub fn read(text: &str, models: &[Model]) -> Result<Vec<Request>> {
    let mut requests: Vec<Request> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with("time_s") {
            continue;
        }
        let number = n + 1;
        let (time, model) =
            line.split_once(',').with_context(|| format!("line {number} is not time_s,model"))?;
        let time: f64 = time.trim().parse().with_context(|| format!("time_s in line {number}"))?;
        let model = model.trim().to_owned();
        ensure!(models.iter().any(|m| m.name == model), "line {number}: no model {model:?}");
        let at = Moment(crate::seconds(time)?);
        let earlier = requests.last().is_none_or(|r| r.at <= at);
        ensure!(earlier, "line {number} is earlier than the one before it");
        requests.push(Request { at, model });
    }
    Ok(requests)
}

/// The reverse of [`read`].
pub fn write(trace: &[Request]) -> String {
    let mut text = "time_s,model\n".to_owned();
    for request in trace {
        let _ = writeln!(text, "{:.3},{}", request.at.0.as_secs_f64(), request.model);
    }
    text
}

/// Makes a trace up.
pub fn generate(kind: Kind, seed: u64, models: &[Model]) -> Vec<Request> {
    let mut rng = Rng(seed);
    let mut order: Vec<&Model> = models.iter().collect();
    for at in (1..order.len()).rev() {
        let other = rng.below(at + 1);
        order.swap(at, other);
    }
    let mut trace = Vec::new();
    let mut share = 1.0;
    for (rank, model) in order.iter().enumerate() {
        match kind {
            // The most popular model is asked every two minutes, the ninth every eighteen.
            Kind::Zipf => poisson(&mut rng, 120.0 * share, |_| 1.0, model, &mut trace),
            Kind::Diurnal => {
                let hour = DAY_S * rng.unit();
                let wave = move |at: f64| {
                    // Nobody for half of the day, then up and down.
                    ((at - hour) / DAY_S * std::f64::consts::TAU).sin().max(0.0)
                };
                poisson(&mut rng, 90.0, wave, model, &mut trace);
            }
            Kind::Bursty => sessions(&mut rng, 600.0 * share, model, &mut trace),
        }
        share = f64::from(u32::try_from(rank + 2).unwrap_or(u32::MAX));
    }
    trace.sort_by(|a, b| (a.at, &a.model).cmp(&(b.at, &b.model)));
    trace
}

/// Independent requests, `mean_s` apart where `rate` is 1; `rate` is at most that.
fn poisson(
    rng: &mut Rng,
    mean_s: f64,
    rate: impl Fn(f64) -> f64,
    model: &Model,
    trace: &mut Vec<Request>,
) {
    let mut at = rng.gap(mean_s);
    while at < SPAN_S {
        if rng.unit() < rate(at) {
            trace.push(Request { at: moment(at), model: model.name.clone() });
        }
        at += rng.gap(mean_s);
    }
}

/// Sessions of five to forty requests, ten seconds apart on average, `mean_s` from the end of one to the next.
fn sessions(rng: &mut Rng, mean_s: f64, model: &Model, trace: &mut Vec<Request>) {
    let mut at = rng.gap(mean_s);
    while at < SPAN_S {
        for _ in 0..5 + rng.below(36) {
            trace.push(Request { at: moment(at), model: model.name.clone() });
            at += rng.gap(10.0);
        }
        at += rng.gap(mean_s);
    }
}

fn moment(seconds: f64) -> Moment {
    Moment(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// splitmix64, so that a seed means the same trace in every year.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..n`; `n` is not 0.
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap_or(0)
    }

    /// From 0 up to, but not, 1.
    fn unit(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
        let bits = (self.next() >> 11) as f64;
        bits / (1_u64 << 53) as f64
    }

    /// Between two independent events, `mean` on average.
    fn gap(&mut self, mean: f64) -> f64 {
        -(1.0 - self.unit()).ln() * mean
    }
}
