//! A reload, and whatever else control asks of the composition root.
//!
//! Purpose: the configuration is read and checked as a whole first; only then the difference is applied. Owner of: the configuration in
//! force. Invariants: one reload at a time; a wrong file changes nothing and its error names file and line; what cannot be changed at
//! run time is named, also in the status, until a restart. What is compared for that is the configuration of the start.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use super::pending::needs_restart;
use super::{Options, core, door, recall, validate};
use crate::adapters::{disk, systemd};
use crate::checks::{Checks, bound_elsewhere, cdi_dirs};
use crate::config::{Config, KeySource};
use crate::control::{Host, HostFuture, Reloaded};
use crate::observe::log;
use crate::observe::metrics::Metrics;
use crate::observe::telling::Telling;
use crate::proxy::{Healths, SharedRules};
use crate::supervisor::event::Reconfiguration;
use crate::supervisor::handle::Handle;
use crate::supervisor::state::Settings;
use crate::supervisor::task::Ports;
use crate::types::{Check, ExternalSpec, ExternalStatus, GpuId, InstanceId, ModelName};

/// How long the files of the configuration may take to be read.
const READ_TIME: Duration = Duration::from_secs(30);

/// What a reload needs.
pub struct Root {
    /// Where the configuration is read from.
    pub options: Options,
    /// As it was at the start.
    pub started: Config,
    /// As it is, and its models with what their files say. Held while a reload is on.
    pub current: Mutex<(Config, core::Models)>,
    /// Whether a stop keeps the containers, by the configuration as it is. Apart, for a stop waits for no reload: that may wait for
    /// podman, or for a file system that is away.
    pub keeps: AtomicBool,
    /// podman, devices.
    pub ports: Ports,
    /// The owner of the models.
    pub handle: Handle,
    /// The front door's rules.
    pub rules: SharedRules,
    /// The longest time to stop that an engine of this daemon may have been given, in seconds: those that run keep what they began with.
    pub longest_stop: AtomicU64,
    /// What the front door knows of models that run elsewhere.
    pub healths: Arc<Healths>,
    /// Whose series go with their models.
    pub metrics: Arc<Metrics>,
    /// Which requests are told one by one.
    pub telling: Arc<Telling>,
    /// A socket can be reached from other hosts, so keys have to be asked for.
    pub exposed: bool,
}

impl Root {
    /// Reads the configuration and applies the difference.
    ///
    /// # Errors
    /// What is wrong with it; then everything is as it was.
    pub async fn reload(&self) -> Result<Reloaded, String> {
        let mut current = self.current.lock().await;
        systemd::reloading();
        let result = self.apply(&mut current).await;
        match &result {
            Ok(pending) => {
                self.handle.problem("reload_failed", None);
                let message = (!pending.is_empty())
                    .then(|| format!("restart to apply: {}", pending.join(", ")));
                if let Some(message) = &message {
                    tracing::warn!("{message}");
                }
                self.handle.problem("restart_needed", message);
            }
            Err(why) => {
                tracing::error!(
                    kind = "reload_failed",
                    "the configuration was not reloaded, everything stays as it was: {why}"
                );
                // One line: it becomes a part of the status line.
                let line = why.lines().collect::<Vec<_>>().join("; ");
                self.handle.problem("reload_failed", Some(line));
            }
        }
        systemd::ready(&validate::summary(&self.handle.status()));
        let credentials_kept = handed(&current.0);
        result.map(|restart_to_apply| Reloaded { restart_to_apply, credentials_kept })
    }

    /// Takes in what was written while the daemon began, or was without a bus. Who writes then finds nobody on the bus to tell, and relies
    /// on this.
    pub async fn catch_up(&self) {
        let (options, place) = (self.options.clone(), self.options.place());
        let read = disk::look("configuration", &place, READ_TIME, move |_| options.load()).await;
        // A file that is wrong by now is told as by any reload.
        let same = match read {
            Ok(Ok(read)) => read == self.current.lock().await.0,
            Ok(Err(_)) => false,
            Err(_) => true,
        };
        if !same {
            let _ = self.reload().await;
        }
    }

    /// Looks at the files of these models, if nothing is known of them, and tells the owner of the models what they say.
    pub async fn look_again(&self, started: &BTreeSet<ModelName>) {
        let mut current = self.current.lock().await;
        let (config, models) = &mut *current;
        let specs = core::look_again(models, started).await;
        if specs == *models {
            return;
        }
        models.clone_from(&specs);
        // Containers and their images are the same.
        let (settings, images) = (self.settings(config), BTreeMap::new());
        self.handle.configure(Reconfiguration { settings, specs, images }).await;
    }

    /// The server and systemd have heard of the times of the start; all keep to the same until a restart.
    fn settings(&self, config: &Config) -> Settings {
        let mut settings = core::settings(config);
        settings.drain_timeout = self.started.policy.drain_timeout;
        settings.health.patience = self.started.server.answer_timeout;
        settings
    }

    async fn apply(&self, current: &mut (Config, core::Models)) -> Result<Vec<String>, String> {
        let (options, place) = (self.options.clone(), self.options.place());
        let read = disk::look("configuration", &place, READ_TIME, move |_| options.load());
        let read = read.await.map_err(|late| {
            format!("the configuration, or a file that it names, cannot be read: {late}")
        })?;
        let new = read.map_err(|errors| errors.to_string())?;
        self.fits(&new)?;
        // All that may fail comes before the first thing that is applied.
        let filter = self.options.filter(&new)?;
        let (config, models) = current;
        let specs = core::models(&new, models).await;
        let changed = recall::changed(&specs, models);
        let images = recall::images(&changed, &*self.ports.containers).await;
        let settings = self.settings(&new);
        say(config, &new);
        models.clone_from(&specs);
        self.handle.configure(Reconfiguration { settings, specs, images }).await;
        let rules = door::rules(&new);
        let keys = rules.keys.iter().map(|key| key.name.clone()).collect();
        self.rules.store(Arc::new(rules));
        self.metrics.keys(&keys);
        self.metrics.configured(core::names(&new));
        self.telling.set(new.log.request_lines);
        log::set(filter).map_err(|err| err.to_string())?;
        let pending = needs_restart(&self.started, &new);
        self.keeps.store(new.policy.keeps(), Ordering::Relaxed);
        self.longest_stop.fetch_max(new.longest_stop().as_secs(), Ordering::Relaxed);
        *config = new;
        Ok(pending)
    }

    /// What the files cannot say: whether it fits this host.
    fn fits(&self, new: &Config) -> Result<(), String> {
        let status = self.handle.status();
        let present: Vec<&GpuId> = status.gpus.iter().map(|gpu| &gpu.id).collect();
        if let Some(why) = bound_elsewhere(&new.models, &present, &[]) {
            return Err(why);
        }
        if self.exposed && new.keys.is_empty() {
            return Err("a socket can be reached from other hosts, and no keys are asked for any more: keep [auth] keys_file".to_owned());
        }
        Ok(())
    }
}

/// One line in the journal: what is different.
fn say(old: &Config, new: &Config) {
    let list = |names: Vec<&ModelName>| {
        let names: Vec<&str> = names.into_iter().map(ModelName::as_str).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let added = new.models.keys().filter(|name| !old.models.contains_key(*name)).collect();
    let removed = old.models.keys().filter(|name| !new.models.contains_key(*name)).collect();
    let other = |name: &&ModelName| {
        let both = old.models.get(*name).zip(new.models.get(*name));
        both.is_some_and(|(old, new)| old != new)
    };
    let changed = new.models.keys().filter(other).collect();
    tracing::info!(
        kind = "reloaded",
        "configuration reloaded; models added: {}; removed: {}; changed: {}",
        list(added),
        list(removed),
        list(changed)
    );
}

/// What systemd handed over at the start, and hands over anew at the next alone: a file that has changed since is not in force. Whether
/// one has nobody here can see, so it is no reason for a restart.
fn handed(config: &Config) -> Vec<String> {
    let keys = matches!(config.auth, Some(KeySource::Credential(_)));
    let keys = keys.then(|| "[auth] keys_credential".to_owned());
    let own = |(name, spec): (&ModelName, &ExternalSpec)| {
        spec.key_credential.as_ref().map(|_| format!("models.{name}.key_credential"))
    };
    let others = config.externals.iter().filter_map(own);
    keys.into_iter().chain(others).collect()
}

impl Host for Root {
    fn validate(&self) -> HostFuture<'_, Vec<Check>> {
        Box::pin(async move {
            let config = self.current.lock().await.0.clone();
            let (cdi_dirs, user) = (cdi_dirs(), self.options.service_user());
            let checks = Checks {
                config: &config,
                containers: &*self.ports.containers,
                gpus: &*self.ports.gpus,
                cdi_dirs: &cdi_dirs,
                user: &user,
            };
            checks.all().await.into_iter().map(Check::from).collect()
        })
    }

    fn reload(&self) -> HostFuture<'_, Result<Reloaded, String>> {
        Box::pin(Root::reload(self))
    }

    fn catch_up(&self) -> HostFuture<'_, ()> {
        Box::pin(Root::catch_up(self))
    }

    fn open_log(
        &self,
        instance: InstanceId,
        lines: Option<usize>,
        follow: bool,
    ) -> HostFuture<'_, Result<OwnedFd, String>> {
        Box::pin(async move {
            let opened = self.ports.containers.open_log(instance, lines, follow).await;
            opened.map_err(|fault| fault.message)
        })
    }

    fn externals(&self) -> Vec<ExternalStatus> {
        self.healths.status(&self.rules.load())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Defaults, Source, parse};

    #[test]
    fn what_systemd_handed_over_is_kept() {
        let far = |key: &str| {
            format!("[models.far]\nengine = \"external\"\nurl = \"https://far.example.org\"\n{key}")
        };
        let told = |auth: &str, key: &str| {
            let text = format!("[gpu]\nbackend = \"host\"\n{auth}\n{}", far(key));
            let sources = [Source::settings("/etc/hostler/hostler.toml", text)];
            handed(&parse(&sources, &Defaults::system()).unwrap())
        };
        let none: [&str; 0] = [];
        assert_eq!(told("", ""), none);
        assert_eq!(told("[auth]\nkeys_file = \"/etc/hostler/keys.toml\"", ""), none);
        let both = told("[auth]\nkeys_credential = \"keys\"", "key_credential = \"far\"");
        assert_eq!(both, ["[auth] keys_credential", "models.far.key_credential"]);
    }
}
