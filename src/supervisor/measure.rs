//! The part of the core that measures: readings of devices become the ledger's numbers, samples of running instances, and
//! footprints that outlive them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::effect::{Effect, Notice};
use super::event::Observation;
use super::instance::{Instance, Life};
use super::state::{Model, State};
use crate::plan::{self, Key, Measured, Needs, Peak, Sample, SampleRule, Sampler, Source};
use crate::types::{Bytes, MeasuredNeed, ModelName, ModelSpec, Moment, Silence};

/// From a write that failed to the next.
const SAVE_AGAIN: Duration = Duration::from_secs(30);

/// What is known of one model's memory, beside the book.
#[derive(Debug)]
pub(super) struct Knowledge {
    /// The image that its reference means, as last heard; `None`: not heard yet, or it is another by now.
    pub(super) image_id: Option<String>,
    /// Its key, without image, device and driver.
    key: Key,
    /// The most that this daemon saw it hold, by product name of the device, whatever image it was.
    peaks: BTreeMap<String, Peak>,
}

impl Knowledge {
    pub(super) fn of(spec: &ModelSpec) -> Self {
        Self { image_id: None, key: Key::new(spec, "", "", ""), peaks: BTreeMap::new() }
    }

    /// Of the specification, as footprints are kept by it.
    pub(super) fn args_hash(&self) -> &str {
        &self.key.args_hash
    }

    /// Whether both are of the same.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.key == other.key
    }

    /// Whether a container was started as what this is known of: another context, or other weights, need something else.
    pub(super) fn is_of(&self, instance: &Instance) -> bool {
        self.key == instance.measuring.key
    }

    /// The most that it was seen to hold on a device of that name.
    pub(super) fn peak(&self, gpu_name: &str) -> Option<Bytes> {
        self.peaks.get(gpu_name).map(|peak| peak.bytes)
    }

    /// What its reference means now.
    pub(super) fn image_is(&mut self, id: String) {
        if self.image_id.as_ref() != Some(&id) {
            self.image_changed();
            self.image_id = Some(id).filter(|id| !id.is_empty());
        }
    }

    /// Its reference means another image by now, nobody knows which.
    pub(super) fn image_changed(&mut self) {
        self.image_id = None;
        self.peaks.values_mut().for_each(|peak| peak.whole = false);
    }
}

/// The measuring of one instance.
#[derive(Clone, Debug)]
pub(super) struct Measuring {
    /// As what it was started, without image, device and driver: after a reload its model may be something else.
    key: Key,
    sampler: Sampler,
    /// What was recorded and said last.
    told: Option<Measured>,
    /// Why there will be no numbers.
    gave_up: Option<String>,
    /// It was looked at since it became ready: what is known of it is not a part of its load.
    pub(super) whole: bool,
}

impl Measuring {
    /// `before`: its devices before its start; empty for one that was adopted.
    pub(super) fn new(of: &Knowledge, before: Sample) -> Self {
        let sampler = Sampler::new(SampleRule::default(), before);
        Self { key: of.key.clone(), sampler, told: None, gave_up: None, whole: false }
    }

    pub(super) fn ready(&mut self, now: Moment) {
        self.sampler.ready(now);
    }

    /// How it ended: measured, or why it will not be; `None`: it goes on.
    pub(super) fn outcome(&self) -> Option<Result<(), &str>> {
        let measured = self.told.map(|_| Ok(()));
        measured.or_else(|| self.gave_up.as_deref().map(Err))
    }

    /// It is ready, and holds nothing where it was placed.
    fn holds_nothing(&self) -> bool {
        self.sampler.holds_nothing()
    }

    /// Whether these numbers are news: each sample changes them a little.
    fn is_news(&self, measured: &Measured) -> bool {
        self.told.is_none_or(|told| {
            measured.confidence > told.confidence || measured.peak > told.peak.scale(101, 100)
        })
    }
}

impl State {
    pub(super) fn observed(
        &mut self,
        now: Moment,
        observation: &Observation,
        out: &mut Vec<Effect>,
    ) {
        match &observation.devices {
            Ok(snapshot) => {
                self.ledger.observe(observation.taken, snapshot, &observation.usage);
                let unread = self.ledger.silent().filter_map(|(gpu, silence)| match silence {
                    Silence::Unread(why) => Some(format!("{gpu}: {why}")),
                    Silence::Gone(_) => None,
                });
                let unread = unread.collect();
                self.note("gpu_unreadable", now, unread);
            }
            Err(why) => {
                self.ledger.mark_stale(why);
                self.note("gpu_unreadable", now, vec![why.clone()]);
            }
        }
        let lost = self.ledger.lost().map(|(g, why)| format!("{g}: {why}")).collect();
        self.note("gpu_lost", now, lost);
        let missing = self.ledger.missing().iter().map(ToString::to_string).collect();
        self.note("memory_quarantined", now, missing);
        self.judge_sleepers(now, out);
        self.measure(observation, out);
        self.note_unused(now);
        self.outlive_podman(now, &observation.usage, out);
        self.note_growth(now, observation);
        if observation.devices.is_ok() {
            self.fail_on_lost(out);
            self.yield_to_others(now, out);
        }
    }

    /// Who serves from elsewhere than the devices that are booked for it does so slowly, and keeps others out of there.
    fn note_unused(&mut self, now: Moment) {
        let instances = self.models.values().filter_map(|m| m.instance.as_ref());
        let unused = instances.filter(|i| i.is_ready() && i.measuring.holds_nothing());
        let told = unused.map(|i| format!("{}: {}", i.id.model, plan::Disturbance::Nothing));
        let told = told.collect();
        self.note("gpu_unused", now, told);
    }

    fn measure(&mut self, observation: &Observation, out: &mut Vec<Effect>) {
        let Self { models, ledger, book, .. } = self;
        let mut save = false;
        for model in models.values_mut() {
            let Some(instance) = &mut model.instance else { continue };
            let measured = match instance.life {
                Life::Loading { .. } | Life::Ready | Life::Draining { .. } => true,
                Life::Pulling { .. }
                | Life::Starting { .. }
                | Life::Dozing { .. }
                | Life::Asleep { .. }
                | Life::Waking { .. }
                | Life::Abandoned { .. }
                | Life::Stopping { .. } => false,
            };
            // A reading that was begun before it was ready shows it loading.
            let early = instance.ready_since.is_some_and(|ready| observation.taken < ready);
            if !measured || early || !observation.usage.contains_key(&instance.id) {
                continue;
            }
            instance.measuring.whole |= instance.ready_since.is_some();
            let Some(name) = instance.placement.gpus.first().and_then(|g| ledger.name(g)) else {
                continue;
            };
            let current = model.known.is_of(instance);
            let peak = ledger.hold(&instance.id).and_then(plan::Hold::observed_peak);
            if let Some(peak) = peak.filter(|_| current) {
                let most = model.known.peaks.entry(name.to_owned()).or_default();
                most.bytes = peak.max(most.bytes);
                most.whole |= instance.ready_since.is_some();
            }
            let sample = ledger.sample(&instance.id, &instance.placement.gpus);
            let state = &mut instance.measuring;
            match state.sampler.sample(observation.taken, &sample) {
                plan::Verdict::More | plan::Verdict::Voided(_) => {}
                plan::Verdict::GaveUp(why) if state.outcome().is_none() => {
                    let why = why.to_string();
                    state.gave_up = Some(why.clone());
                    let instance = instance.id.clone();
                    out.push(Effect::Notice(Notice::Unmeasured { instance, why }));
                }
                plan::Verdict::GaveUp(_) => {}
                plan::Verdict::Steady(measured) => {
                    let image = instance.launched.as_ref().map(|l| l.image_id.as_str());
                    let Some(image) = image.filter(|id| !id.is_empty()) else { continue };
                    let key = state.key.on(image, name, ledger.driver());
                    let mut footprint = measured.footprint(key.to_key(), observation.unix_s);
                    let loads = || book.loads(&state.key.model, &state.key.args_hash);
                    let loads = if current { Some(&model.loads) } else { loads() };
                    footprint.loads = loads.cloned().unwrap_or_default();
                    let changed = book.record(footprint);
                    // What is known already is no news, and is known all the same.
                    if !changed {
                        state.told.get_or_insert(measured);
                    } else if state.is_news(&measured) {
                        state.told = Some(measured);
                        save = true;
                        let instance = instance.id.clone();
                        out.push(Effect::Notice(Notice::Measured { instance, measured }));
                    }
                }
            }
        }
        if save {
            out.push(Effect::Save(book.encode()));
        }
    }

    /// For models of whose loads nothing is known: what the book says of them.
    pub(super) fn recall_loads(&mut self) {
        for (name, model) in self.models.iter_mut().filter(|(_, model)| model.loads.is_empty()) {
            let Some(loads) = self.book.loads(name, model.known.args_hash()) else { continue };
            model.loads.clone_from(loads);
            if let Some(last) = loads.last() {
                model.demand.loaded(last);
            }
        }
    }

    /// Another load of this model is known.
    pub(super) fn note_loads(&mut self, name: &ModelName, out: &mut Vec<Effect>) {
        let Some(model) = self.models.get(name) else { return };
        if self.book.note_loads(name, model.known.args_hash(), &model.loads) {
            out.push(Effect::Save(self.book.encode()));
        }
    }

    /// A disk that was full may have room again, and nothing else may be worth a word for days.
    pub(super) fn save_again(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if self.save_at.is_some_and(|at| at <= now) {
            self.save_at = None;
            out.push(Effect::Save(self.book.encode()));
        }
    }

    pub(super) fn saved(&mut self, now: Moment, result: Result<(), String>) {
        self.save_at = result.is_err().then(|| now + SAVE_AGAIN);
        let why = result.err().map(|e| format!("what was measured is not written down: {e}"));
        self.note("state_unwritable", now, why.into_iter().collect());
    }

    /// What a model needs, by the product that its device is.
    pub(super) fn needs(&self, model: &Model) -> Needs {
        let each = if self.ledger.is_host() { Bytes::ZERO } else { self.settings.slack };
        let slack = plan::slack(&model.spec, each);
        let known = |name: &str| {
            let image = model.known.image_id.as_deref();
            let key = image.map(|image| model.known.key.on(image, name, self.ledger.driver()));
            let footprint = key.and_then(|key| self.book.get(key));
            let peak = model.known.peaks.get(name).copied();
            let any = footprint.is_some() || peak.is_some();
            any.then(|| (name.to_owned(), plan::need(&model.spec, slack, footprint, peak)))
        };
        Needs {
            other: plan::need(&model.spec, slack, None, None),
            by_name: self.ledger.names().into_iter().filter_map(known).collect(),
            budget: plan::budget(&model.spec),
            slack,
        }
    }

    /// The footprint of a model on the devices it is on, or else on the first that it was measured on.
    pub(super) fn measured_need(&self, model: &Model) -> Option<MeasuredNeed> {
        let image = model.known.image_id.as_deref()?;
        let on = model.instance.as_ref().and_then(|i| i.placement.gpus.first());
        let on = on.and_then(|gpu| self.ledger.name(gpu));
        let names = on.into_iter().chain(self.ledger.names());
        let driver = self.ledger.driver();
        let mut found = names.filter_map(|n| self.book.get(model.known.key.on(image, n, driver)));
        let footprint = found.next()?;
        Some(MeasuredNeed {
            bytes: footprint.bytes_per_device,
            peak: footprint.peak_per_device,
            samples: footprint.samples,
            confidence: footprint.confidence.as_str(),
            attribution: match footprint.source {
                Source::Process => "process",
                Source::Delta => "delta",
            },
            measured_at: footprint.measured_at_unix_s,
        })
    }
}
