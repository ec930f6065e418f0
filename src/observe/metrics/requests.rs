//! What requests are counted by.
//!
//! Purpose: one row for each (model, endpoint) that was ever asked for, with all that is counted of its requests, and one for each
//! (model, key). Owner: [`super::Metrics`]. Invariants: a model is one that is configured, or was until lately, so is a key, and an endpoint
//! is one of the front door's list, so rows are bounded whatever clients write; counting takes no lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use super::count::{Count, Histogram, SECONDS, Table};
use super::names;
use super::page::{Page, Value};
use crate::proxy::port::{Gaps, Seen, Side};
use crate::types::{InstanceId, ModelName};

/// Statuses that have a number of their own; any other is counted with its class (`4xx`).
const CODES: [u16; 36] = [
    100, 101, 200, 201, 202, 204, 206, 301, 302, 304, 400, 401, 402, 403, 404, 405, 406, 408, 409,
    410, 411, 413, 414, 415, 417, 421, 422, 426, 429, 431, 499, 500, 501, 502, 503, 504,
];
const CLASSES: [&str; 7] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx", "other"];

/// Of one model and endpoint.
#[derive(Debug)]
struct Row {
    codes: [Count; CODES.len()],
    classes: [Count; CLASSES.len()],
    total: Histogram,
    first_byte: Histogram,
    gaps: Histogram,
    queue: Histogram,
    bytes: Count,
    broken: [Count; Side::ALL.len()],
}

impl Row {
    fn new() -> Self {
        Self {
            codes: std::array::from_fn(|_| Count::default()),
            classes: std::array::from_fn(|_| Count::default()),
            total: Histogram::new(SECONDS),
            first_byte: Histogram::new(SECONDS),
            gaps: Histogram::new(Gaps::BOUNDS),
            queue: Histogram::new(SECONDS),
            bytes: Count::default(),
            broken: std::array::from_fn(|_| Count::default()),
        }
    }

    fn count(&self, seen: &Seen<'_>) {
        match seen.status.map(|status| (status, CODES.binary_search(&status))) {
            Some((_, Ok(at))) => self.codes[at].add(1),
            Some((status, Err(_))) => {
                let class = usize::from(status / 100);
                self.classes[if (1..=5).contains(&class) { class } else { 6 }].add(1);
            }
            None => self.classes[0].add(1),
        }
        self.bytes.add(seen.bytes);
        if let Some(side) = seen.broken_by {
            self.broken[side as usize].add(1);
        }
        // Times of questions about the host and its models are nobody's question.
        if seen.model.is_none() {
            return;
        }
        self.total.observe(seen.total);
        if let Some(queue) = seen.queue {
            self.queue.observe(queue);
        }
        if let Some(first) = seen.first_byte {
            self.first_byte.observe(first);
        }
        let gaps = seen.gaps;
        if gaps.counts.iter().any(|n| *n > 0) {
            for (bucket, count) in gaps.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
                self.gaps.add(bucket, u64::from(*count), Duration::ZERO);
            }
            self.gaps.add(Gaps::BOUNDS.len(), 0, gaps.sum);
        }
    }

    fn codes(&self) -> impl Iterator<Item = (String, u64)> {
        let own = CODES.iter().map(u16::to_string).zip(self.codes.iter().map(Count::get));
        let classes = CLASSES.iter().map(|c| (*c).to_owned());
        own.chain(classes.zip(self.classes.iter().map(Count::get))).filter(|(_, n)| *n > 0)
    }
}

type Rows = Table<&'static str, Row>;

/// What the holder of a key had of a model.
#[derive(Debug, Default)]
struct Use {
    requests: Count,
    /// Their time without their wait.
    nanos: Count,
}

impl Use {
    fn worked(&self) -> Duration {
        Duration::from_nanos(self.nanos.get())
    }
}

/// Of one model.
#[derive(Debug, Default)]
struct Asked {
    endpoints: Rows,
    keys: Table<String, Use>,
}

impl Asked {
    fn count(&self, seen: &Seen<'_>, count: impl FnOnce(&Rows)) {
        count(&self.endpoints);
        let Some(key) = seen.key else { return };
        let worked = seen.total.saturating_sub(seen.queue.unwrap_or_default());
        self.keys.with(
            key,
            || key.to_owned(),
            Use::default,
            |used| {
                used.requests.add(1);
                used.nanos.add(u64::try_from(worked.as_nanos()).unwrap_or(u64::MAX));
            },
        );
    }
}

/// An engine that nobody has asked yet, or whose first request has no answer yet.
#[derive(Debug)]
struct Fresh {
    instance: InstanceId,
    asked: bool,
}

/// All requests since the daemon's start.
#[derive(Debug)]
pub(super) struct Requests {
    open: AtomicI64,
    /// That wait for a turn.
    waiting: Table<ModelName, AtomicI64>,
    models: Table<ModelName, Asked>,
    /// Of requests for no configured model's engine.
    others: Rows,
    /// By (model, `error.code`); refusals are rare.
    denied: Table<(Option<ModelName>, &'static str), Count>,
    /// Engines that nobody has asked yet. Mostly 0, and then nobody looks further.
    fresh: AtomicU64,
    fresh_ones: std::sync::Mutex<BTreeMap<ModelName, Fresh>>,
    pub(super) first_token: Table<ModelName, Histogram>,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            open: AtomicI64::new(0),
            waiting: Table::default(),
            models: Table::default(),
            others: Rows::default(),
            denied: Table::default(),
            fresh: AtomicU64::new(0),
            fresh_ones: std::sync::Mutex::default(),
            first_token: Table::default(),
        }
    }
}

impl Requests {
    pub(super) fn begun(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn awaits_turn(&self, model: &ModelName, begins: bool) {
        let by = if begins { 1 } else { -1 };
        let add = |n: &AtomicI64| {
            n.fetch_add(by, Ordering::Relaxed);
        };
        self.waiting.with(model, || model.clone(), AtomicI64::default, add);
    }

    /// Requests that wait for one of the model's turns.
    pub(super) fn waiting(&self, model: &ModelName) -> i64 {
        self.waiting.rows().get(model).map_or(0, |n| n.load(Ordering::Relaxed))
    }

    pub(super) fn ended(&self, seen: &Seen<'_>) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        let endpoint = if seen.route == "-" { "refused" } else { seen.route };
        let count = |rows: &Rows| {
            rows.with(&endpoint, || endpoint, Row::new, |row| row.count(seen));
        };
        match seen.model {
            Some(model) => {
                let asked = |asked: &Asked| asked.count(seen, count);
                self.models.with(model, || model.clone(), Asked::default, asked);
            }
            None => count(&self.others),
        }
        if let Some(reason) = seen.denied() {
            let key = (seen.model.cloned(), reason);
            self.denied.with(&key, || key.clone(), Count::default, |n| n.add(1));
        }
        if let (Some(instance), Some(asked)) = (seen.instance, seen.asked_first) {
            self.first(instance, asked, seen);
        }
    }

    /// Drops what was counted of other models.
    pub(super) fn retain(&self, there: impl Fn(&ModelName) -> bool) {
        self.models.retain(|model, _| there(model));
        // Who waits still ends to.
        self.waiting.retain(|model, n| there(model) || n.load(Ordering::Relaxed) != 0);
        self.denied.retain(|(model, _), _| model.as_ref().is_none_or(&there));
        self.first_token.retain(|model, _| there(model));
    }

    /// Drops what was counted of other keys.
    pub(super) fn retain_keys(&self, keys: &BTreeSet<String>) {
        for asked in self.models.rows().values() {
            asked.keys.retain(|key, _| keys.contains(key));
        }
    }

    /// An engine is started, or is there no more.
    pub(super) fn fresh(&self, instance: &InstanceId, is: bool) {
        let mut ones = self.fresh_ones();
        if is {
            let fresh = Fresh { instance: instance.clone(), asked: false };
            ones.insert(instance.model.clone(), fresh);
        } else if ones.get(&instance.model).is_some_and(|one| one.instance == *instance) {
            ones.remove(&instance.model);
        }
        self.unasked(&ones);
    }

    /// An engine is asked; whether nobody had asked it before.
    pub(super) fn asks(&self, instance: &InstanceId) -> bool {
        self.fresh.load(Ordering::Relaxed) > 0 && self.mark(instance, true)
    }

    /// The first request of a new engine is over: what it waited for the engine alone. Where it had no answer, the next one is the first.
    fn first(&self, instance: &InstanceId, asked: Duration, seen: &Seen<'_>) {
        let answered = seen.status.is_some_and(|status| (200..300).contains(&status));
        let Some(first) = seen.first_byte.filter(|_| answered) else {
            self.mark(instance, false);
            return;
        };
        self.fresh(instance, false);
        let model = &instance.model;
        let new = || Histogram::new(super::count::LONG_SECONDS);
        let own = first.saturating_sub(asked);
        self.first_token.with(model, || model.clone(), new, |h| h.observe(own));
    }

    /// Says of an engine whether its first request is under way; whether that is news.
    fn mark(&self, instance: &InstanceId, asked: bool) -> bool {
        let mut ones = self.fresh_ones();
        let one = ones.get_mut(&instance.model).filter(|one| one.instance == *instance);
        let is_news = one.is_some_and(|one| std::mem::replace(&mut one.asked, asked) != asked);
        self.unasked(&ones);
        is_news
    }

    fn unasked(&self, ones: &BTreeMap<ModelName, Fresh>) {
        let unasked = ones.values().filter(|one| !one.asked).count();
        self.fresh.store(unasked as u64, Ordering::Relaxed);
    }

    fn fresh_ones(&self) -> std::sync::MutexGuard<'_, BTreeMap<ModelName, Fresh>> {
        // Nothing under the lock can leave the map half changed. It is held for a look-up, after a load.
        self.fresh_ones.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn write(&self, page: &mut Page<'_>) -> std::fmt::Result {
        let models = self.models.rows();
        let rows: Vec<(String, &'static str, Arc<Row>)> = models
            .iter()
            .flat_map(|(model, asked)| {
                let rows = asked.endpoints.rows();
                let each = rows.iter().map(|(at, row)| (model.to_string(), *at, row.clone()));
                each.collect::<Vec<_>>()
            })
            .chain(self.others.rows().iter().map(|(at, row)| (String::new(), *at, row.clone())))
            .collect();
        let each = |value: fn(&Row) -> Value| {
            rows.iter().map(move |(m, at, row)| (vec![m.clone(), (*at).to_owned()], value(row)))
        };
        let codes = rows.iter().flat_map(|(m, at, row)| {
            row.codes().map(|(code, n)| (vec![m.clone(), (*at).to_owned(), code], Value::Count(n)))
        });
        page.family(&names::REQUESTS, codes)?;
        page.family(&names::REQUEST_SECONDS, each(|row| Value::Histogram(row.total.read())))?;
        page.family(&names::FIRST_BYTE, each(|row| Value::Histogram(row.first_byte.read())))?;
        page.family(&names::CHUNK_DELAY, each(|row| Value::Histogram(row.gaps.read())))?;
        page.family(&names::QUEUE_WAIT, each(|row| Value::Histogram(row.queue.read())))?;
        page.family(&names::RESPONSE_BYTES, each(|row| Value::Count(row.bytes.get())))?;
        // All sides from the row's first request on: Prometheus takes the first value that it sees for where a count began.
        let broken = rows.iter().flat_map(|(m, at, row)| {
            Side::ALL.iter().zip(&row.broken).map(|(side, n)| {
                let labels = vec![m.clone(), (*at).to_owned(), side.as_str().to_owned()];
                (labels, Value::Count(n.get()))
            })
        });
        page.family(&names::ABORTED, broken)?;
        let denied = self.denied.rows();
        let denied = denied.iter().map(|((model, reason), n)| {
            let model = model.as_ref().map_or_else(String::new, ToString::to_string);
            (vec![model, (*reason).to_owned()], Value::Count(n.get()))
        });
        page.family(&names::DENIED, denied)?;
        self.keys(page)?;
        let open = self.open.load(Ordering::Relaxed);
        page.family(&names::OPEN, [(vec![], Value::Level(open as f64))])
    }

    fn keys(&self, page: &mut Page<'_>) -> std::fmt::Result {
        let models = self.models.rows();
        let used = models.iter().flat_map(|(model, asked)| {
            let labels = |key: &String| vec![key.clone(), model.to_string()];
            let keys = asked.keys.rows();
            keys.iter().map(|(key, used)| (labels(key), used.clone())).collect::<Vec<_>>()
        });
        let used: Vec<(Vec<String>, Arc<Use>)> = used.collect();
        let each = |value: fn(&Use) -> Value| {
            used.iter().map(move |(labels, used)| (labels.clone(), value(used)))
        };
        page.family(&names::KEY_REQUESTS, each(|used| Value::Count(used.requests.get())))?;
        page.family(&names::KEY_SECONDS, each(|used| Value::Level(used.worked().as_secs_f64())))
    }
}
