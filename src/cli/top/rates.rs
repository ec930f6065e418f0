//! How fast models stream, by what several looks saw. PURE.
//!
//! Owner: [`super::Top`]. Invariant: two looks at different daemons make no rate.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::cli::document::{Document, Model};

/// What a rate is the mean of: the daemon's numbers are half a second old at the most.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// What the looks of the last seconds saw.
#[derive(Debug, Default)]
pub struct Rates(VecDeque<(Duration, BTreeMap<String, u64>)>);

impl Rates {
    pub fn note(&mut self, document: &Document) {
        let count = |model: &Model| Some((model.name.clone(), model.chunks?));
        // The clock of another daemon begins anew, and so do its counts.
        if self.0.back().is_some_and(|(then, _)| *then >= document.now) {
            self.0.clear();
        }
        self.0.push_back((document.now, document.models.iter().filter_map(count).collect()));
        while self.0.get(1).is_some_and(|(then, _)| *then + RATE_WINDOW <= document.now) {
            self.0.pop_front();
        }
    }

    /// Chunks a second; `None`: not known, or not yet.
    pub fn of(&self, model: &str) -> Option<f64> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        let time = last.0.saturating_sub(first.0).as_secs_f64();
        // Of a model that is new, all of it is new.
        let count = last.1.get(model)?.checked_sub(first.1.get(model).copied().unwrap_or(0))?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let rate = (time > 0.0).then(|| count as f64 / time);
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_mean_of_the_last_seconds() {
        let look = |now, chunks: &[(&str, u64)]| Document {
            now: Duration::from_secs(now),
            models: chunks
                .iter()
                .map(|(name, chunks)| Model {
                    name: (*name).to_owned(),
                    chunks: Some(*chunks),
                    ..Model::default()
                })
                .collect(),
            ..Document::default()
        };
        let mut rates = Rates::default();
        rates.note(&look(100, &[("m", 50)]));
        assert_eq!(rates.of("m"), None, "one look is no rate");
        rates.note(&look(102, &[("m", 250), ("new", 10)]));
        assert_eq!(
            (rates.of("m"), rates.of("new"), rates.of("no")),
            (Some(100.0), Some(5.0), None)
        );
        // What is older than the window counts no more.
        for now in 103..120 {
            rates.note(&look(now, &[("m", 250 + (now - 102) * 10)]));
        }
        assert_eq!(rates.of("m"), Some(10.0));
        assert!(rates.0.len() <= 8, "{rates:?}");
        // Another daemon.
        rates.note(&look(3, &[("m", 0)]));
        assert_eq!(rates.of("m"), None);
    }
}
