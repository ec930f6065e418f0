//! `org.hostler1.Manager`: the daemon as a whole.

use std::sync::Arc;

use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, ObjectPath, OwnedObjectPath, interface};

use super::deed::Deed;
use super::error::{Code, Error};
use super::options::{self, Options};
use super::polkit::Action;
use super::{Context, document, path};
use crate::types::{Evict, ExternalStatus, GpuId, ModelStatus, Wish};

/// The object at the root.
#[derive(Debug)]
pub struct Manager {
    context: Arc<Context>,
}

impl Manager {
    pub(super) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

/// A row of `ListModels`: name, object, phase, devices, bytes observed, requests.
type ModelRow = (String, OwnedObjectPath, String, String, u64, u64);
/// A row of `ListExternals`: name, aliases, URL, health, why, since.
type ExternalRow = (String, Vec<String>, String, String, String, u64);
/// A row of `ListJobs`: object, kind, model, state, progress.
type JobRow = (OwnedObjectPath, String, String, String, f64);

#[interface(name = "org.hostler1.Manager")]
impl Manager {
    /// All configured models of this host: name, object, phase, the devices it is on (with commas between), bytes that it was seen to
    /// hold on all of them (2^64 − 1: not known), requests that it serves.
    #[zbus(out_args("models"))]
    fn list_models(&self) -> Vec<ModelRow> {
        let status = self.context.handle.status();
        let row = |m: &ModelStatus| {
            let gpus: Vec<&str> = m.gpus.iter().map(GpuId::as_str).collect();
            (
                m.name.to_string(),
                path::model(m.name.as_str()),
                m.phase.as_str().to_owned(),
                gpus.join(","),
                super::bytes(m.observed),
                u64::from(m.in_flight),
            )
        };
        status.models.iter().map(row).collect()
    }

    /// Models that run elsewhere, to which requests are passed on; they have no objects, because nothing of them is done here: name,
    /// aliases, URL, "well", "unwell" or "unknown" (not asked yet), why it is not well (empty: nothing is known to be wrong), and
    /// since when that is so, in microseconds since 1970 (0: not asked yet). They are asked every few seconds.
    #[zbus(out_args("externals"))]
    fn list_externals(&self) -> Vec<ExternalRow> {
        let row = |e: ExternalStatus| {
            (
                e.name.to_string(),
                e.aliases.iter().map(ToString::to_string).collect(),
                e.url,
                e.health.as_str().to_owned(),
                e.why.unwrap_or_default(),
                self.context.timestamp(e.since),
            )
        };
        self.context.externals().into_iter().map(row).collect()
    }

    /// The object of a model, by its name or an alias.
    #[zbus(out_args("model"))]
    fn get_model(&self, name: String) -> Result<OwnedObjectPath, Error> {
        Ok(path::model(self.context.model(&name)?.name.as_str()))
    }

    /// Loads a model, or wakes it. Returns a job, which is done when the model answers. Options:
    /// "pin" b: never evict it nor idle it out, from when it is ready on;
    /// "evict" s: who may be made to leave for it: "none", "idle", or "any" (busy models too, after the requests that they serve; never
    /// pinned ones; needs org.hostler1.evict); without it, what the model's on_full says;
    /// "gpus" as: only these devices, this time.
    /// The job waits as long as it takes, whoever began it. 64 jobs of one kind may run for one model, and 1024 in all, beside which as
    /// many may run that make room (Unload, UnloadAll, Sleep); one more is refused with org.hostler1.Error.QueueFull.
    #[zbus(out_args("job"))]
    async fn load(
        &self,
        name: String,
        options: Options,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        self.context.load(bus, &call, &name, &options).await
    }

    /// Unpins and unloads a model: "drain" lets running requests finish, "now" breaks them off. Returns a job, which is done when
    /// nothing of it is left.
    #[zbus(out_args("job"))]
    async fn unload(
        &self,
        name: String,
        mode: String,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        self.context.unload(bus, &call, &name, &mode).await
    }

    /// The same with all models. Later requests load them again.
    #[zbus(out_args("job"))]
    async fn unload_all(
        &self,
        mode: String,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let deed = Deed::UnloadAll(options::haste(&mode)?);
        self.context.checked(bus, &call, deed).await
    }

    /// What Load with these options would do now; nothing is changed. Whether it is or would be ready without waiting for anybody but
    /// those who would have to leave; on which devices, with the bytes promised on each; and the whole as JSON: outcome ("loaded",
    /// "start", "evict", "wait", "full" or "refuse"), why, gpus, leaving, report.
    #[zbus(out_args("possible", "gpus", "report"))]
    async fn plan(
        &self,
        name: String,
        options: Options,
    ) -> Result<(bool, Vec<(String, u64)>, String), Error> {
        self.context.plan(&name, &options).await
    }

    /// Loads a model, if need be, until its memory is measured, and lets it go where nobody else used it. Returns a job.
    #[zbus(out_args("job"))]
    async fn measure(
        &self,
        name: String,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let deed = Deed::Measure(self.context.model(&name)?.name);
        self.context.checked(bus, &call, deed).await
    }

    /// Runs the checks that the daemon's start waits for, each once, and returns them: what was checked, "PASS", "WARN" or "FAIL", what
    /// was found, and what mends it. Starts a throw-away container, so it may take half a minute.
    #[zbus(out_args("checks"))]
    async fn validate(
        &self,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<Vec<(String, String, String, String)>, Error> {
        self.context.gate.check(bus, &call, Action::LoadModel).await?;
        let checks = self.context.host.validate().await;
        let row = |c: crate::types::Check| (c.name, c.verdict.to_string(), c.found, c.fix);
        Ok(checks.into_iter().map(row).collect())
    }

    /// Reads the configuration again and applies what is different: models that did not change keep their containers, removed ones
    /// drain, changed ones restart when they are idle, or in turn where they never are. Returns what has changed and waits for a restart of the daemon, one line each; and, apart,
    /// the keys of credentials, which are as the start was given them: a restart takes in those of which the file has changed. Wrong files
    /// change nothing: the error says where and what.
    #[zbus(out_args("restart_to_apply", "credentials_kept"))]
    async fn reload(
        &self,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<(Vec<String>, Vec<String>), Error> {
        self.context.gate.check(bus, &call, Action::Reload).await?;
        let reloaded = self.context.host.reload().await;
        let reloaded = reloaded.map_err(|why| Error::new(Code::ConfigInvalid, why))?;
        Ok((reloaded.restart_to_apply, reloaded.credentials_kept))
    }

    /// Jobs that run, and those that ended lately, oldest first: object, kind, model, state, progress (see org.hostler1.Job).
    #[zbus(out_args("jobs"))]
    fn list_jobs(&self) -> Vec<JobRow> {
        let row = |job: super::jobs::Record| {
            let progress = self.context.job_progress(&job).0;
            let (kind, state) = (job.kind.as_str().to_owned(), job.state.as_str().to_owned());
            (path::job(job.id), kind, job.model_text(), state, progress)
        };
        self.context.jobs.all().into_iter().map(row).collect()
    }

    /// Everything, at one moment, as JSON: what `hostler status --json` prints. Its schema is status.schema.json in the
    /// documentation. What engines that failed wrote last is in it for callers who may read logs.
    #[zbus(out_args("json"))]
    async fn get_status(
        &self,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> String {
        // Most have written nothing that would have to be asked about.
        let logs = self.context.handle.status().has_logs()
            && self.context.gate.allows(bus, &call, Action::ReadLogs).await;
        document::json(&self.context, logs)
    }

    /// The daemon's version.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        self.context.facts.version.clone()
    }

    /// "running", "degraded" (see Problems) or "stopping".
    #[zbus(property)]
    fn state(&self) -> String {
        document::state(&self.context.handle.status()).to_owned()
    }

    /// What is wrong and could be mended: a code that never changes, and a text for people. That other amounts of memory stand in a text
    /// is not announced.
    #[zbus(property)]
    fn problems(&self) -> Vec<(String, String)> {
        let status = self.context.handle.status();
        status.problems.iter().map(|p| (p.code.to_owned(), p.message.clone())).collect()
    }

    /// podman's API version, as it was at the start.
    #[zbus(property(emits_changed_signal = "const"))]
    fn podman_version(&self) -> String {
        self.context.facts.podman.clone()
    }

    /// Where the daemon accepts requests: addresses with ports, and paths of sockets.
    #[zbus(property(emits_changed_signal = "const"))]
    fn listeners(&self) -> Vec<String> {
        self.context.facts.listeners.clone()
    }

    /// Requests that all models serve now.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn active_requests(&self) -> u32 {
        self.context.handle.status().models.iter().map(|m| m.in_flight).sum()
    }

    /// Requests, and operators' loads, that wait for a model now, as the models' own QueuedRequests have them together.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn queued_requests(&self) -> u32 {
        self.context.handle.status().models.iter().map(|m| m.queued).sum()
    }

    /// A job was begun: its object, its kind, its model.
    #[zbus(signal)]
    async fn job_new(
        emitter: &SignalEmitter<'_>,
        job: &ObjectPath<'_>,
        kind: &str,
        model: &str,
    ) -> zbus::Result<()>;

    /// A job ended: its object, its kind, its model, and "done", "failed" or "cancelled". The object can still be asked for its error
    /// for a while.
    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        job: &ObjectPath<'_>,
        kind: &str,
        model: &str,
        result: &str,
    ) -> zbus::Result<()>;

    /// A model came from one phase to another: its object, its name, from, to. Phases that last less than the bus takes may be left out.
    #[zbus(signal)]
    async fn model_state_changed(
        emitter: &SignalEmitter<'_>,
        model: &ObjectPath<'_>,
        name: &str,
        from: &str,
        to: &str,
    ) -> zbus::Result<()>;
}

/// What the manager and the models have in common. Arguments are checked before the caller is, so that a wrong call is told what is
/// wrong with it whoever makes it.
impl Context {
    fn wish(&self, options: &Options) -> Result<Wish, Error> {
        let wish = options::wish(options)?;
        let status = self.handle.status();
        let missing = |id: &&GpuId| !status.gpus.iter().any(|gpu| gpu.id == **id);
        match wish.gpus.iter().find(missing) {
            None => Ok(wish),
            Some(id) => {
                let ids: Vec<&str> = status.gpus.iter().map(|gpu| gpu.id.as_str()).collect();
                let ids = ids.join(", ");
                let id: String = id.as_str().chars().take(100).collect();
                Err(Error::invalid(format!("there is no device {id:?}; there are: {ids}")))
            }
        }
    }

    pub(super) async fn load(
        self: &Arc<Self>,
        bus: &Connection,
        call: &Header<'_>,
        name: &str,
        options: &Options,
    ) -> Result<OwnedObjectPath, Error> {
        let wish = self.wish(options)?;
        let model = self.model(name)?.name;
        self.gate.check(bus, call, Action::LoadModel).await?;
        if wish.evict == Some(Evict::Any) {
            self.gate.check(bus, call, Action::Evict).await?;
        }
        self.start(Deed::Load(model, wish)).await.map(path::job)
    }

    pub(super) async fn unload(
        self: &Arc<Self>,
        bus: &Connection,
        call: &Header<'_>,
        name: &str,
        mode: &str,
    ) -> Result<OwnedObjectPath, Error> {
        let haste = options::haste(mode)?;
        let model = self.model(name)?.name;
        self.checked(bus, call, Deed::Unload(model, haste)).await
    }

    async fn plan(
        &self,
        name: &str,
        options: &Options,
    ) -> Result<(bool, Vec<(String, u64)>, String), Error> {
        let wish = self.wish(options)?;
        let model = self.model(name)?.name;
        let preview = self.handle.preview(&model, wish).await?;
        let gpus = preview.gpus.iter().map(|g| (g.gpu.as_str().to_owned(), g.bytes.0)).collect();
        let json = serde_json::to_string(&preview).unwrap_or_default();
        Ok((preview.outcome.is_possible(), gpus, json))
    }

    /// Starts a deed for a caller who may do such a thing.
    pub(super) async fn checked(
        self: &Arc<Self>,
        bus: &Connection,
        call: &Header<'_>,
        deed: Deed,
    ) -> Result<OwnedObjectPath, Error> {
        self.gate.check(bus, call, deed.kind().action()).await?;
        self.start(deed).await.map(path::job)
    }
}
