//! podman's API, call by call, each with its deadline.
//!
//! Purpose: one function a call; the only user of both clients. `podman-api` makes ping, list, start and
//! delete. The raw client of [`super::wire`] makes all else, and has to make: create (it misspells
//! `no_new_privileges`), stop (it misspells `timeout`), pull (no progress), pods and inspect (its `size=true` walks
//! the root file system), logs (its decoder can panic). Invariants: nothing is retried here; an answer that says
//! "it is so already" is success.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use podman_api::opts::{ContainerDeleteOpts, ContainerListFilter, ContainerListOpts};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::{Cause, PodmanError};
use super::info::Info;
use super::inspect::{Image, Inspect, Pod};
use super::labels;
use super::timed::Ear;
use super::wire::{Wire, encode};
use super::{follow, logs};
use crate::supervisor::ports::PodmanInfo;
use crate::types::ImageRef;

/// How long calls may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Questions.
    pub ask: Duration,
    /// Create, start, remove: they mount images, set up networks and wait for the runtime.
    pub act: Duration,
    /// On top of the container's stop timeout.
    pub stop_margin: Duration,
    /// Between two signs of life of a pull; unpacking a layer of 10 GB gives none.
    pub pull_idle: Duration,
    /// A whole pull.
    pub pull: Duration,
    /// Before a pull that broke off is tried again; the next such pause is twice as long.
    pub pull_pause: Duration,
    /// How long a podman that broke a connection may take to answer again; socket activation needs a second or two.
    pub comeback: Duration,
    /// From SIGKILL until the control group must be empty.
    pub dead: Duration,
    /// A proof's pod, or a helper's container or secret, that nobody has touched for so long was left by a crash.
    pub leftover: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            ask: Duration::from_secs(15),
            act: Duration::from_secs(60),
            stop_margin: Duration::from_secs(20),
            pull_idle: Duration::from_secs(600),
            pull: Duration::from_secs(2 * 3600),
            pull_pause: Duration::from_secs(2),
            comeback: Duration::from_secs(10),
            dead: Duration::from_secs(5),
            leftover: Duration::from_secs(300),
        }
    }
}

/// One container of a list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// 64 digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// ID of its image; empty where podman does not say.
    pub image_id: String,
    /// podman is ending or removing it, whoever asked for that.
    pub goes: bool,
    /// (host address, host port, container port) of published ports.
    pub ports: Vec<(String, u16, u16)>,
}

/// Both clients.
#[derive(Clone, Debug)]
pub struct Api {
    lib: podman_api::Podman,
    wire: Wire,
    ear: Ear,
    /// The deadlines of its calls.
    pub deadlines: Deadlines,
}

impl Api {
    /// Nothing is connected until the first call.
    #[must_use]
    pub fn new(socket: PathBuf, deadlines: Deadlines, ear: Ear) -> Self {
        Self { lib: podman_api::Podman::unix(&socket), wire: Wire::new(socket), ear, deadlines }
    }

    /// The raw client, for calls that only one module makes.
    #[must_use]
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Version, rootlessness, and what it knows of its host.
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn info(&self) -> Result<PodmanInfo, PodmanError> {
        let ping = self.within("ping", self.deadlines.ask, self.lib.ping());
        let ping = self.ear.time("ping", ping).await?;
        let info: Info = self.ear.time("info", self.get("info", "/info")).await?;
        let missing = || PodmanError::Garbage {
            what: "info".into(),
            detail: "host.security.rootless is missing".into(),
        };
        let rootless = info.host.security.rootless.ok_or_else(missing)?;
        Ok(PodmanInfo { version: ping.libpod_api_version, rootless, host: info.into() })
    }

    /// An image; `None`: it is not in the storage.
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn image(&self, image: &ImageRef) -> Result<Option<Image>, PodmanError> {
        let path = format!("/images/{}/json", encode(image.as_str()));
        let what = format!("look for image {image}");
        match self.ear.time("image", self.get::<Image>(&what, &path)).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.cause() == Some(Cause::ImageUnknown) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All containers whose label `key` is `value`, in any state.
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn list(&self, key: &str, value: &str) -> Result<Vec<Listed>, PodmanError> {
        let filter = ContainerListFilter::LabelKeyVal(key.to_owned(), value.to_owned());
        let opts = ContainerListOpts::builder().all(true).filter([filter]).build();
        let containers = self.lib.containers();
        let found = async { containers.list(&opts).await };
        let found = self.within("list containers", self.deadlines.ask, found);
        let found = self.ear.time("list", found).await?;
        Ok(found.into_iter().filter_map(listed).collect())
    }

    /// Everything about one container, by name or ID.
    ///
    /// # Errors
    /// As [`PodmanError`] says; an unknown one is [`super::error::Cause::NoSuchContainer`].
    pub async fn inspect(&self, id: &str) -> Result<Inspect, PodmanError> {
        let path = format!("/containers/{}/json", encode(id));
        self.ear.time("inspect", self.get(&format!("inspect {id}"), &path)).await
    }

    /// Creates a container; returns its ID.
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn create(&self, body: &Value) -> Result<String, PodmanError> {
        let made = self.make("create the container", "/containers/create", body);
        self.ear.time("create", made).await
    }

    /// Starts a container; one that runs already is success.
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn start(&self, id: &str) -> Result<(), PodmanError> {
        let container = self.lib.containers().get(id);
        let started = self.settled("start the container", async { container.start(None).await });
        self.ear.time("start", started).await
    }

    /// Stops a container with the stop timeout that it was created with; one that does not run is success.
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn stop(&self, id: &str, stop_timeout: Duration) -> Result<(), PodmanError> {
        let deadline = stop_timeout + self.deadlines.stop_margin;
        let path = format!("/containers/{}/stop", encode(id));
        let stopped = self.wire.call("stop the container", Method::POST, &path, None, deadline);
        self.ear.time("stop", stopped).await.map(drop)
    }

    /// Removes a container, killing it if it runs.
    ///
    /// # Errors
    /// As [`PodmanError`] says; an unknown one is [`super::error::Cause::NoSuchContainer`].
    pub async fn remove(&self, id: &str) -> Result<(), PodmanError> {
        let opts = ContainerDeleteOpts::builder().force(true).volumes(true).timeout(0).build();
        let container = self.lib.containers().get(id);
        let gone = self.settled("remove the container", async { container.delete(&opts).await });
        self.ear.time("remove", gone).await
    }

    /// The last `lines` lines of a container's log.
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn logs(&self, id: &str, lines: usize) -> Result<Vec<String>, PodmanError> {
        let path = format!(
            "/containers/{}/logs?stdout=true&stderr=true&follow=false&tail={lines}",
            encode(id)
        );
        let what = "read the container's log";
        let answer = self.wire.call(what, Method::GET, &path, None, self.deadlines.ask);
        Ok(logs::last_lines(&self.ear.time("logs", answer).await?, lines))
    }

    /// A container's log as a pipe; see [`follow`].
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn open_log(
        &self,
        id: &str,
        lines: Option<usize>,
        follow: bool,
    ) -> Result<OwnedFd, PodmanError> {
        follow::open(&self.wire, id, lines, follow).await
    }

    /// Fetches an image; `told` gets each line of podman's answer. Dropping the future cancels it.
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn pull(
        &self,
        image: &ImageRef,
        told: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<(), PodmanError> {
        let what = format!("pull {image}");
        let path = format!("/images/pull?compatMode=true&reference={}", encode(image.as_str()));
        let mut line = |line: &[u8]| {
            told(line);
            let parsed: Option<Value> = serde_json::from_slice(line).ok();
            match parsed.as_ref().and_then(|v| v.get("error")).and_then(Value::as_str) {
                Some(error) if !error.is_empty() => Err(PodmanError::refused(&what, error)),
                _ => Ok(()),
            }
        };
        let limits = self.deadlines;
        let (idle, most) = (limits.pull_idle, limits.pull);
        let pulled = self.wire.lines(&what, Method::POST, &path, idle, most, &mut line);
        self.ear.time("pull", pulled).await
    }

    /// Creates a pod; returns its ID.
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn pod_create(&self, body: &Value) -> Result<String, PodmanError> {
        self.make("create the proof's pod", "/pods/create", body).await
    }

    /// Starts a pod.
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn pod_start(&self, id: &str) -> Result<(), PodmanError> {
        let path = format!("/pods/{}/start", encode(id));
        let what = "start the proof's pod";
        let answer = self.wire.call(what, Method::POST, &path, None, self.deadlines.act).await?;
        // A pod whose containers failed answers with a list of errors and, in some versions, with a status of 200.
        let parsed: Value = serde_json::from_slice(&answer).unwrap_or_default();
        match parsed.get("Errs") {
            None | Some(Value::Null) => Ok(()),
            Some(Value::Array(errors)) if errors.is_empty() => Ok(()),
            Some(errors) => Err(PodmanError::refused(what, &errors.to_string())),
        }
    }

    /// Everything about one pod.
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn pod_inspect(&self, id: &str) -> Result<Pod, PodmanError> {
        self.get("inspect the proof's pod", &format!("/pods/{}/json", encode(id))).await
    }

    /// Removes a pod and what is in it.
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn pod_remove(&self, pod: &str) -> Result<(), PodmanError> {
        let path = format!("/pods/{}?force=true", encode(pod));
        let what = "remove the proof's pod";
        self.wire.call(what, Method::DELETE, &path, None, self.deadlines.act).await.map(drop)
    }

    /// All proof pods of a namespace: ID, name and, in podman's words, when it was made.
    ///
    /// # Errors
    /// As [`PodmanError`] says.
    pub async fn proof_pods(&self, namespace: &str) -> Result<Vec<[String; 3]>, PodmanError> {
        let filters = serde_json::json!({"label": [format!("{}={namespace}", labels::PROOF)]});
        let path = format!("/pods/json?filters={}", encode(&filters.to_string()));
        // No pods at all is a null in some versions.
        let pods: Option<Vec<Value>> = self.get("list the proof's pods", &path).await?;
        let text = |pod: &Value, key| pod.get(key).and_then(Value::as_str).map(str::to_owned);
        let or_none = |pod: &Value, key| text(pod, key).unwrap_or_default();
        let each =
            |pod: &Value| Some([text(pod, "Id")?, or_none(pod, "Name"), or_none(pod, "Created")]);
        Ok(pods.unwrap_or_default().iter().filter_map(each).collect())
    }

    async fn get<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T, PodmanError> {
        let answer = self.wire.call(what, Method::GET, path, None, self.deadlines.ask).await?;
        serde_json::from_slice(&answer)
            .map_err(|e| PodmanError::Garbage { what: what.into(), detail: e.to_string() })
    }

    async fn make(&self, what: &str, path: &str, body: &Value) -> Result<String, PodmanError> {
        let limit = self.deadlines.act;
        let answer = self.wire.call(what, Method::POST, path, Some(body), limit).await?;
        let parsed: Option<Value> = serde_json::from_slice(&answer).ok();
        let id = parsed.as_ref().and_then(|v| v.get("Id")).and_then(Value::as_str);
        id.filter(|id| !id.is_empty()).map(str::to_owned).ok_or_else(|| PodmanError::Garbage {
            what: what.into(),
            detail: "the answer has no Id".into(),
        })
    }

    /// A `podman-api` call that changes something; 304 ("it is so already") is success.
    async fn settled(
        &self,
        what: &str,
        call: impl Future<Output = podman_api::Result<()>>,
    ) -> Result<(), PodmanError> {
        let call = async {
            match call.await {
                Err(podman_api::Error::Fault { code, .. }) if code.as_u16() == 304 => Ok(()),
                other => other,
            }
        };
        self.within(what, self.deadlines.act, call).await
    }

    async fn within<T>(
        &self,
        what: &str,
        deadline: Duration,
        call: impl Future<Output = podman_api::Result<T>>,
    ) -> Result<T, PodmanError> {
        match tokio::time::timeout(deadline, call).await {
            Ok(result) => result.map_err(|e| self.sort(what, e)),
            Err(_) => Err(PodmanError::Deadline { what: what.into(), after: deadline }),
        }
    }

    /// Sorts an error of `podman-api`, which keeps podman's message and cause in one text.
    fn sort(&self, what: &str, error: podman_api::Error) -> PodmanError {
        use podman_api::Error as Lib;
        use podman_api::conn::Error as Conn;
        let what = what.to_owned();
        let lost = |reason: String| PodmanError::Lost { what: what.clone(), reason };
        if let Lib::Fault { message, .. } = &error {
            return PodmanError::refused(&what, message);
        }
        if let Lib::Error(Conn::Hyper(e)) = &error
            && e.is_connect()
        {
            let socket = self.wire.socket().to_owned();
            return PodmanError::Unreachable { socket, reason: e.to_string() };
        }
        if let Lib::Error(Conn::Hyper(e)) = &error
            && !e.is_parse()
        {
            return lost(e.to_string());
        }
        if let Lib::Error(Conn::IO(e)) | Lib::IO(e) = &error {
            return lost(e.to_string());
        }
        PodmanError::Garbage { what, detail: error.to_string() }
    }
}

fn listed(container: podman_api::models::ListContainer) -> Option<Listed> {
    let ports = container.ports.unwrap_or_default();
    Some(Listed {
        id: container.id?,
        name: container.names.unwrap_or_default().into_iter().next().unwrap_or_default(),
        labels: container.labels.unwrap_or_default().into_iter().collect(),
        image_id: container.image_id.unwrap_or_default(),
        goes: matches!(container.state.as_deref(), Some("stopping" | "removing")),
        ports: ports
            .into_iter()
            .filter_map(|p| Some((p.host_ip.unwrap_or_default(), p.host_port?, p.container_port?)))
            .collect(),
    })
}
