//! What a replay has cost.

use std::time::Duration;

/// Sums over one or more replays.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Answered with a lease, and how long each waited.
    pub waits: Vec<Duration>,
    /// Answered with a refusal.
    pub refused: usize,
    /// Of models that had not been loaded before.
    pub first_loads: usize,
    /// Of models that had been.
    pub reloads: usize,
    /// Time that reloads took.
    pub reload: Duration,
    /// Instances stopped to make room.
    pub evictions: usize,
}

impl Outcome {
    pub const HEADER: &str = "policy  requests  refused  loads  reloads  reload_s  evictions  waited  mean_s   p50_s   p90_s   p99_s";

    pub fn add(&mut self, other: Self) {
        self.waits.extend(other.waits);
        self.refused += other.refused;
        self.first_loads += other.first_loads;
        self.reloads += other.reloads;
        self.reload += other.reload;
        self.evictions += other.evictions;
    }

    /// One line under [`Self::HEADER`]. Waits are those of all requests, the refused ones' up to their refusal; `waited` is
    /// the share that waited at all.
    pub fn line(mut self, policy: &str) -> String {
        self.waits.sort();
        let count = self.waits.len().max(1);
        let at = |percent: usize| {
            let rank = (count * percent).div_ceil(100).clamp(1, count) - 1;
            self.waits.get(rank).copied().unwrap_or_default().as_secs_f64()
        };
        let waited = self.waits.iter().filter(|w| !w.is_zero()).count();
        let sum: Duration = self.waits.iter().sum();
        #[expect(clippy::cast_precision_loss, reason = "counts of requests are small")]
        let (share, mean) =
            (100.0 * waited as f64 / count as f64, sum.as_secs_f64() / count as f64);
        format!(
            "{policy:<6}  {:>8}  {:>7}  {:>5}  {:>7}  {:>8.0}  {:>9}  {share:>5.1}%  {mean:>6.2}  {:>6.1}  {:>6.1}  {:>6.1}",
            self.waits.len(),
            self.refused,
            self.first_loads + self.reloads,
            self.reloads,
            self.reload.as_secs_f64(),
            self.evictions,
            at(50),
            at(90),
            at(99),
        )
    }
}
