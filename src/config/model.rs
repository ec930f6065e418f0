//! Models: from what was written to [`ModelSpec`].
//!
//! Purpose: the rules of one model, and those between models: each name and alias belongs to one of them. Owner:
//! [`super::parse`]. Pure; sizes of weights are somebody else's to find out.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use crate::types::{
    Bytes, EngineKind, ExternalSpec, GpuId, ImageRef, ModelName, ModelSpec, OnFull, Transport,
    Weights,
};

use super::check::{self, HOUR, SECOND};
use super::door::{self, door};
use super::external;
use super::flags;
use super::health;
use super::memory;
use super::parse::MEMORY_MAX;
use super::projector;
use super::raw::{DurationText, RawEngine, RawModel, RawWeights};
use super::source::Report;
use super::tree::quote_key;
use super::types::GpuBackend;

/// What `[gpu]` says that models must agree with.
pub(super) struct Devices {
    /// `None`: not known, because it is wrong itself.
    pub(super) backend: Option<GpuBackend>,
    /// Empty: not listed, all that there are.
    pub(super) ids: Vec<GpuId>,
    /// Of the host backend, and how much of it is kept free.
    pub(super) budget: Option<(Bytes, Bytes)>,
    /// In `[memory]`.
    pub(super) host_ram_budget: Bytes,
}

/// What holds for models that do not say it themselves.
#[derive(Clone, Copy)]
pub(super) struct Fallback {
    pub(super) on_full: OnFull,
    /// `None`: never.
    pub(super) health_interval: Option<Duration>,
}

/// One model as written, with where.
pub(super) struct Entry {
    name: String,
    /// Where the model begins: its name, or the file.
    offset: usize,
    /// What keys are printed after: `models.NAME.`, or nothing in a file of its own.
    prefix: String,
    in_file: bool,
    pub(super) raw: RawModel,
}

impl Entry {
    /// `[models.NAME]`.
    pub(super) fn in_table(name: Spanned<String>, raw: RawModel) -> Self {
        let offset = name.span().start;
        let name = name.into_inner();
        let prefix = format!("models.{}.", quote_key(&name));
        Self { name, offset, prefix, in_file: false, raw }
    }

    /// A file of `models.d`.
    pub(super) fn in_file(stem: &str, offset: usize, raw: RawModel) -> Self {
        Self { name: stem.to_owned(), offset, prefix: String::new(), in_file: true, raw }
    }

    /// Where the model begins.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn is_external(&self) -> bool {
        self.raw.engine.as_ref().is_some_and(|e| *e.get_ref() == RawEngine::External)
    }

    pub(super) fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

/// All models.
#[derive(Default)]
pub(super) struct Models {
    /// Those that Hostler runs.
    pub(super) own: BTreeMap<ModelName, Arc<ModelSpec>>,
    /// Those that it only routes to.
    pub(super) external: BTreeMap<ModelName, ExternalSpec>,
}

/// Who has a name, and where that is said.
type Names = BTreeMap<ModelName, (usize, bool)>;

/// Checks all models and the names among them.
pub(super) fn models(
    report: &mut Report<'_>,
    entries: Vec<Entry>,
    devices: &Devices,
    fallback: Fallback,
) -> Models {
    let mut names = Names::new();
    let named: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            let name = name(report, &entry, &mut names);
            (name, entry)
        })
        .collect();
    let mut models = Models::default();
    for (name, entry) in named {
        // After all names, so that an alias is blamed for a clash with a name, whichever comes first.
        let aliases = aliases(report, &entry, &mut names);
        // A model without a usable name is checked nevertheless.
        if entry.is_external() {
            let spec = external::external(report, &entry, name, aliases);
            models.external.extend(spec.map(|s| (s.name.clone(), s)));
            continue;
        }
        external::refuse(report, &entry);
        let spec = spec(report, entry, name.clone(), aliases, devices, fallback);
        if let (Some(name), Some(spec)) = (name, spec) {
            models.own.insert(name, Arc::new(spec));
        }
    }
    models
}

fn name(report: &mut Report<'_>, entry: &Entry, names: &mut Names) -> Option<ModelName> {
    let (text, offset) = match &entry.raw.name {
        Some(name) if entry.in_file => (name.get_ref(), name.span().start),
        Some(name) => {
            let message = format!(
                "is for files in models.d only; here the table's name {:?} is the model's",
                entry.name
            );
            report.at(name.span().start, &entry.key("name"), message);
            (&entry.name, entry.offset)
        }
        None => (&entry.name, entry.offset),
    };
    let key = if entry.in_file { entry.key("name") } else { format!("models.{}", quote_key(text)) };
    match text.parse::<ModelName>() {
        Err(error) => {
            report.at(offset, &key, format!("{error}; it is {text:?}"));
            None
        }
        Ok(name) => claim(report, names, &name, (offset, false), &key).then_some(name),
    }
}

/// Gives a name to a model, or reports who has it.
fn claim(
    report: &mut Report<'_>,
    names: &mut Names,
    name: &ModelName,
    (offset, is_alias): (usize, bool),
    key: &str,
) -> bool {
    let (first, was_alias) = match names.entry(name.clone()) {
        Slot::Vacant(slot) => {
            slot.insert((offset, is_alias));
            return true;
        }
        Slot::Occupied(slot) => *slot.get(),
    };
    let first = report.place_text(first);
    let message = match (was_alias, is_alias) {
        (_, false) => {
            format!("model {name:?} is defined twice, first at {first}; remove one or rename it")
        }
        (false, true) => {
            format!("{name:?} is the name of the model at {first}; choose another alias")
        }
        (true, true) => format!("{name:?} is an alias already, at {first}; choose another one"),
    };
    report.at(offset, key, message);
    false
}

fn aliases(report: &mut Report<'_>, entry: &Entry, names: &mut Names) -> Vec<ModelName> {
    let key = entry.key("aliases");
    let mut good = Vec::new();
    for alias in entry.raw.aliases.iter().flatten() {
        let offset = alias.span().start;
        match alias.get_ref().parse::<ModelName>() {
            Err(error) => report.at(offset, &key, format!("{error}; it is {:?}", alias.get_ref())),
            Ok(name) => {
                if claim(report, names, &name, (offset, true), &key) {
                    good.push(name);
                }
            }
        }
    }
    good
}

/// `None` where what a specification cannot do without is missing or wrong; that is reported.
fn spec(
    report: &mut Report<'_>,
    entry: Entry,
    name: Option<ModelName>,
    aliases: Vec<ModelName>,
    devices: &Devices,
    fallback: Fallback,
) -> Option<ModelSpec> {
    let key = |key: &str| entry.key(key);
    let raw = &entry.raw;
    require(
        report,
        &entry,
        "engine",
        raw.engine.is_none(),
        "\"llamacpp\", \"vllm\" or \"external\"",
    );
    require(report, &entry, "image", raw.image.is_none(), "the engine's image, as podman takes it");
    let engine = raw.engine.as_ref().and_then(|engine| match engine.get_ref() {
        RawEngine::Llamacpp => Some(EngineKind::Llamacpp),
        RawEngine::Vllm => Some(EngineKind::Vllm),
        RawEngine::External => None,
    });
    let image = image(report, &key("image"), raw.image.as_ref());
    let weights = weights(report, &entry);
    let projector = projector::projector(report, &entry, engine);
    let vram_limits = (Bytes::mib(1), MEMORY_MAX);
    let vram = check::bytes(report, &key("vram"), raw.vram.as_ref(), vram_limits);
    if let (Some(vram), Some((budget, headroom)), Some(value)) = (vram, devices.budget, &raw.vram)
        && vram > budget.saturating_sub(headroom)
    {
        let message = format!(
            "{vram} can never fit: budget in [gpu] is {budget}, of which headroom keeps {headroom} free; lower it or raise the budget"
        );
        report.at(value.span().start, &key("vram"), message);
    }
    let (gpu_count, gpus) = placement(report, &entry, devices);
    let shm_limits = (Bytes::mib(1), Bytes::gib(1 << 10));
    let shm_size = check::bytes(report, &key("shm_size"), raw.shm_size.as_ref(), shm_limits);
    let shm_default = match engine {
        Some(EngineKind::Vllm) => Bytes::gib(1),
        Some(EngineKind::Llamacpp) | None => Bytes::mib(64),
    };
    let builtin = raw.weights.is_none();
    let args = flags::args(report, &key("args"), raw.args.as_deref(), engine, builtin);
    let env = flags::env(report, &key("env"), raw.env.as_ref(), engine, builtin);
    let context = check::count(report, &key("context"), raw.context.as_ref(), 1 << 24);
    let parallel = check::count(report, &key("parallel"), raw.parallel.as_ref(), 4096);
    let priority = check::priority(report, &key("priority"), raw.priority.as_ref());
    let mut time = |name: &str, value: &Option<Spanned<DurationText>>, max: Duration| {
        check::duration(report, &key(name), value.as_ref(), (SECOND, max))
    };
    let load_timeout = time("load_timeout", &raw.load_timeout, 24 * HOUR);
    let stop_timeout = time("stop_timeout", &raw.stop_timeout, 600 * SECOND);
    let idle_timeout = idle_timeout(report, &entry);
    let often = raw.health_interval.as_ref();
    let health_interval =
        health::interval(report, &key("health_interval"), often, fallback.health_interval);
    let (sleep_level, sleep_timeout) = memory::sleep(report, &entry, engine, devices);
    let door = door(report, &entry);
    if engine == Some(EngineKind::Vllm) {
        door::served(report, &entry, name.as_ref(), &aliases, &args);
    }
    Some(ModelSpec {
        name: name?,
        aliases,
        engine: engine?,
        image: image?,
        weights,
        projector,
        anatomy: None,
        transport: raw.transport.as_ref().map_or(Transport::Unix, |v| *v.get_ref()),
        vram,
        context,
        parallel,
        gpu_count,
        gpus,
        args,
        env,
        shm_size: shm_size.unwrap_or(shm_default),
        idle_timeout,
        load_timeout: load_timeout.unwrap_or(600 * SECOND),
        health_interval,
        stop_timeout: stop_timeout.unwrap_or(10 * SECOND),
        pin: raw.pin.as_ref().is_some_and(|v| *v.get_ref()),
        priority: priority.unwrap_or(0),
        on_full: raw.on_full.as_ref().map_or(fallback.on_full, |v| *v.get_ref()),
        sleep_level,
        sleep_timeout,
        door,
    })
}

fn require(report: &mut Report<'_>, entry: &Entry, key: &str, missing: bool, what: &str) {
    let key = entry.key(key);
    let source = report.source_of(entry.offset);
    if missing && !report.is_broken(source) && !report.is_reported(Some(source), &key) {
        report.at(entry.offset, &key, format!("must be given: {what}"));
    }
}

fn image(report: &mut Report<'_>, key: &str, value: Option<&Spanned<String>>) -> Option<ImageRef> {
    let value = value?;
    let text = value.get_ref();
    ImageRef::parse(text)
        .map_err(|why| {
            report.at(value.span().start, key, format!("an image {why}; it is {text:?}"))
        })
        .ok()
}

/// Wrong weights come back as [`Weights::Builtin`]; that is reported, so nobody sees it.
fn weights(report: &mut Report<'_>, entry: &Entry) -> Weights {
    let Some(raw) = &entry.raw.weights else { return Weights::Builtin };
    let RawWeights { path, image: holder } = &raw.get_ref().0;
    let key = entry.key("weights.path");
    let source = report.source_of(raw.span().start);
    if path.is_none() && !report.is_broken(source) && !report.is_reported(Some(source), &key) {
        let message = "must be given: the absolute path of the model's file or directory";
        report.at(raw.span().start, &key, message);
    }
    let path: Option<PathBuf> = check::path(report, &key, path.as_ref());
    let good_holder = image(report, &entry.key("weights.image"), holder.as_ref());
    match (path, holder, good_holder) {
        (Some(path), None, _) => Weights::Path(path),
        (Some(path), Some(_), Some(image)) => Weights::Image { image, path },
        _ => Weights::Builtin,
    }
}

fn placement(report: &mut Report<'_>, entry: &Entry, devices: &Devices) -> (u32, Vec<GpuId>) {
    let raw = &entry.raw;
    let count_key = entry.key("gpu_count");
    let count = check::count(report, &count_key, raw.gpu_count.as_ref(), 64);
    let count_at = raw.gpu_count.as_ref().map_or(entry.offset, |v| v.span().start);
    let host = devices.backend == Some(GpuBackend::Host);
    if host && count.is_some_and(|n| n > 1) {
        let message = "must be 1 with backend = \"host\", which is one device; remove it";
        report.at(count_at, &count_key, message);
    }
    let Some(list) = &raw.gpus else {
        let offered = devices.ids.len();
        let too_many = count.and_then(|n| usize::try_from(n).ok()).is_some_and(|n| n > offered);
        if too_many && offered > 0 {
            let message = format!("must be at most {offered}, as many as devices in [gpu] lists");
            report.at(count_at, &count_key, message);
        }
        check::slices(report, &count_key, count_at, count, &devices.ids);
        return (count.unwrap_or(1), Vec::new());
    };
    let gpus_key = entry.key("gpus");
    if host {
        let message = "is for backend = \"nvml\" only; remove it or change the backend";
        report.at(list.span().start, &gpus_key, message);
        return (1, Vec::new());
    }
    let gpus = check::gpus(report, &gpus_key, list.get_ref());
    for value in list.get_ref() {
        let id = GpuId::new(value.get_ref());
        if gpus.contains(&id) && !devices.ids.is_empty() && !devices.ids.contains(&id) {
            let message =
                format!("{id} is not among devices in [gpu]; add it there or remove it here");
            report.at(value.span().start, &gpus_key, message);
        }
    }
    let needed = count.and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
    if !list.get_ref().is_empty() && needed > list.get_ref().len() {
        let message = format!("must be at most {}, as many as gpus lists", list.get_ref().len());
        report.at(count_at, &count_key, message);
    }
    check::slices(report, &count_key, count_at, count, &gpus);
    (count.unwrap_or(1), gpus)
}

fn idle_timeout(report: &mut Report<'_>, entry: &Entry) -> Option<Duration> {
    let pinned = entry.raw.pin.as_ref().is_some_and(|v| *v.get_ref());
    let key = entry.key("idle_timeout");
    match &entry.raw.idle_timeout {
        None if pinned => None,
        None => Some(600 * SECOND),
        Some(value) if value.get_ref().0 == "never" => None,
        Some(value) => {
            if pinned {
                let message = "has no effect with pin = true, which keeps the model loaded; remove one of them";
                report.at(value.span().start, &key, message);
            }
            check::duration(report, &key, Some(value), (SECOND, 8760 * HOUR))
        }
    }
}
