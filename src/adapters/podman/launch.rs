//! Creating, starting and verifying one container, and undoing all of it.
//!
//! Purpose: [`Containers::launch`](crate::supervisor::ports::Containers::launch). Invariants: steps are undone in
//! reverse on every failure; a call whose outcome is unknown is never repeated: the instance's labels are looked
//! up, and what is found is taken over or removed; a container is handed out only after its restrictions were seen
//! on the running process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{Cause, PodmanError, image_refused};
use super::inspect::{Image, Inspect, published};
use super::sources::{self, Sources};
use super::{Inner, cgroup, create, harden, labels, socket_dir};
use crate::supervisor::ports::{
    ContainerSpec, Ending, Endpoint, Launched, Progress, SOCKET_NAME, Sign, TCP_PORT,
};
use crate::types::{Fault, FaultCode, ImageRef, InstanceId, ModelSpec, Phase, Transport};

/// The first pause between looks at a podman that may be coming back; each is twice as long as the one before.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// How often "not there" must be heard after a create that broke, for it may still be going on.
const ABSENT_MAX: u32 = 4;
/// Between looks at a container that has just been started: the first pause, each is twice as long as the one before, and the
/// longest.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(100)];
/// How often a process may look less restricted than asked right after its start: the runtime sets the
/// last restrictions on its way to the engine's first instruction. In all a second.
const HARDEN_LOOKS: u32 = 14;
/// How often podman is asked for the exit code of a container whose process is gone. In all 0.8 s.
const EXIT_LOOKS: u32 = 12;
/// Of an annotation's key, whose length is its image's to choose, so many characters are told.
const KEY_MAX: usize = 100;

impl Inner {
    /// Sees that what a launch needs of disk and registry is here; the ID of the engine's image.
    pub(super) async fn provide(
        &self,
        instance: &InstanceId,
        spec: &ModelSpec,
        progress: &Progress,
    ) -> Result<String, Fault> {
        let thing = format!("model {} (container {instance})", instance.model);
        let (image, _) = self.gather(&Sources::of_model(spec), &thing, progress).await?;
        Ok(image.id)
    }

    /// The engine's image, and whether any of the images had to be pulled.
    async fn gather(
        &self,
        sources: &Sources<'_>,
        thing: &str,
        progress: &Progress,
    ) -> Result<(Image, bool), Fault> {
        sources::check(sources).await?;
        let (image, mut pulled) = self.provide_image(sources.image, thing, progress).await?;
        // Of those with weights nothing but their files matters.
        if let Some(key) = harden::lifting(&image) {
            return Err(lifts(sources.image, key, thing));
        }
        for volume in &sources.volumes {
            pulled |= self.provide_image(volume, thing, progress).await?.1;
        }
        Ok((image, pulled))
    }

    pub(super) async fn launch(
        &self,
        spec: &ContainerSpec,
        progress: &Progress,
    ) -> Result<Launched, Fault> {
        let thing = format!("model {} (container {})", spec.instance.model, spec.instance);
        let (image, pulled) = self.gather(&Sources::of_container(spec), &thing, progress).await?;
        if pulled {
            // Whoever planned this has given the room to others meanwhile.
            let text = format!("{thing}: its images had to be pulled first; they are here now");
            return Err(Fault::new(FaultCode::ImagePulled, text));
        }
        if spec.image_id.as_ref().is_some_and(|planned| *planned != image.id) {
            let text = format!("{thing}: {} is another image than before", spec.image);
            return Err(Fault::new(FaultCode::ImageChanged, text));
        }
        progress(Sign::Phase(Phase::Starting));
        self.journal.begin(labels::to_labels(spec, &self.namespace)).await;
        let dir = match spec.transport {
            Transport::Unix => {
                match socket_dir::make(&self.engine_dir, &spec.instance.container_name()) {
                    Ok(dir) => Some(dir),
                    Err(fault) => {
                        self.over(&spec.instance).await;
                        return Err(fault);
                    }
                }
            }
            Transport::Tcp => None,
        };
        match self.bring_up(spec, dir.as_deref(), &thing).await {
            Ok(launched) => Ok(launched),
            Err(fault) => Err(self.undo(spec, dir.as_deref(), fault).await),
        }
    }

    async fn undo(&self, spec: &ContainerSpec, dir: Option<&Path>, mut fault: Fault) -> Fault {
        match self.bury_instance(&spec.instance).await {
            Ok(()) => {
                if let Some(dir) = dir {
                    self.remove_dir(dir).await;
                }
                self.over(&spec.instance).await;
            }
            // The directory stays too: a container that may still run would lose its socket.
            Err(e) => {
                fault.message.push_str(&format!(
                    "; and undoing it failed ({e}): the container is removed when podman answers again"
                ));
                fault = fault.leaving_something();
            }
        }
        fault
    }

    async fn bring_up(
        &self,
        spec: &ContainerSpec,
        dir: Option<&Path>,
        thing: &str,
    ) -> Result<Launched, Fault> {
        let mut body = create::body(spec, &self.namespace, dir.unwrap_or(Path::new("")));
        create::lock(&mut body, spec);
        let id = match self.api.create(&body).await {
            Ok(id) => id,
            Err(e) => self.resolve_create(spec, e, thing).await?,
        };
        // Until now nothing runs; from now on it may, whatever podman will know of it.
        self.journal.identified(&spec.instance, &id).await;
        if let Err(e) = self.api.start(&id).await {
            self.resolve_start(spec, e, thing).await?;
        }
        self.verify(spec, &id, dir, thing).await
    }

    /// After a create that failed: takes over a container that was made nevertheless.
    async fn resolve_create(
        &self,
        spec: &ContainerSpec,
        error: PodmanError,
        thing: &str,
    ) -> Result<String, Fault> {
        if error.ambiguous()
            && let Ok(Some(inspect)) = self.look_patiently(&spec.instance).await
        {
            tracing::warn!(instance = %spec.instance, reason = %error, "podman's answer to create was lost, but the container is there, continuing");
            return Ok(inspect.id);
        }
        if error.cause() == Some(Cause::ImageUnknown) {
            return Err(image_refused(&spec.image, &error));
        }
        Err(self.refusal(spec, &error, FaultCode::CreateFailed, thing).await)
    }

    /// The fault of a container that could not be made or started. Where it has devices, and podman's words leave it open what is
    /// wrong or how it is mended, their specification is looked at: the runtime says of a library that is gone after an upgrade of the
    /// driver that a command was not found.
    async fn refusal(
        &self,
        spec: &ContainerSpec,
        error: &PodmanError,
        code: FaultCode,
        thing: &str,
    ) -> Fault {
        let devices = &spec.cdi_devices;
        match error.cause() {
            // Something else of that name.
            Some(Cause::CdiStale) if devices.is_empty() => {
                return Fault::new(code, format!("{thing}: {error}"));
            }
            Some(Cause::CdiStale | Cause::CdiUnresolvable | Cause::Other)
                if !devices.is_empty() => {}
            Some(_) | None => return error.fault(code, thing),
        }
        let (unresolved, devices) = (self.unresolved.clone(), devices.clone());
        let look = move || unresolved.and_then(|why| why(&devices));
        match tokio::task::spawn_blocking(look).await.ok().flatten() {
            Some(why) => Fault::new(FaultCode::CdiUnresolvable, format!("{thing}: {error}; {why}")),
            None => error.fault(code, thing),
        }
    }

    /// After a start that failed: `Ok` if the container runs nevertheless.
    async fn resolve_start(
        &self,
        spec: &ContainerSpec,
        error: PodmanError,
        thing: &str,
    ) -> Result<(), Fault> {
        let found = if error.ambiguous() {
            self.look_patiently(&spec.instance).await.ok().flatten()
        } else {
            None
        };
        match found {
            Some(inspect) if inspect.state.running => {
                tracing::warn!(instance = %spec.instance, reason = %error, "podman's answer to start was lost, but the container runs, continuing");
                Ok(())
            }
            Some(_) | None => {
                let fault = self.refusal(spec, &error, FaultCode::StartFailed, thing).await;
                Err(fault
                    .with_log(self.tail(&spec.instance.container_name(), Fault::LINES_MAX).await))
            }
        }
    }

    /// Looks an instance up until podman answers, for as long as it may take to come back.
    async fn look_patiently(&self, instance: &InstanceId) -> Result<Option<Inspect>, PodmanError> {
        let end = tokio::time::Instant::now() + self.api.deadlines.comeback;
        let mut pause = LOOK_PAUSE;
        let mut absent = 0;
        loop {
            let last = self.look(instance).await;
            match &last {
                Ok(Some(_)) => return last,
                Ok(None) => absent += 1,
                // It hangs; asking again would only take as long again.
                Err(PodmanError::Deadline { .. }) => return last,
                Err(_) => {}
            }
            if absent == ABSENT_MAX || tokio::time::Instant::now() + pause > end {
                return last;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    async fn verify(
        &self,
        spec: &ContainerSpec,
        id: &str,
        dir: Option<&Path>,
        thing: &str,
    ) -> Result<Launched, Fault> {
        let mut deviations = Vec::new();
        let mut grouped = false;
        let [mut pause, longest] = LOOK_AGAIN;
        for _ in 0..HARDEN_LOOKS {
            // A question may be asked again: a launch that went well is not given up because its answer got lost.
            let found = self.look_patiently(&spec.instance).await;
            let found = found.map_err(|e| e.fault(FaultCode::StartFailed, thing))?;
            let Some(inspect) = found else {
                let text = format!("{thing}: the container vanished right after its start");
                return Err(Fault::new(FaultCode::StartFailed, text));
            };
            let group = self.group(id).await?;
            let alive = group.as_ref().is_some_and(|g| !cgroup::is_empty(g));
            if !inspect.state.running || (group.is_some() && !alive) {
                return Err(self.ended(&inspect, thing).await);
            }
            // An engine that has just ended has lost its group before podman notices; then it is looked at again.
            if let Some(cgroup) = group {
                grouped = true;
                let status = kernels_word(inspect.state.pid);
                let status = status.as_deref().map_err(String::as_str);
                let uid = super::own_uid();
                deviations = harden::deviations(&inspect, status, spec.transport, uid);
                if deviations.is_empty() {
                    let endpoint = endpoint(&inspect, dir, thing)?;
                    let (container, image_id) = (inspect.id, inspect.image);
                    return Ok(Launched { container, cgroup, endpoint, image_id });
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
        if !grouped {
            return Err(no_group(thing));
        }
        Err(Fault::new(
            FaultCode::HardeningMismatch,
            format!(
                "{thing}: the running container lacks restrictions: {}; it was removed: check the service user's containers.conf and podman's version (4.3 or later)",
                deviations.join(", ")
            ),
        ))
    }

    /// The fault for a container whose process is gone.
    async fn ended(&self, inspect: &Inspect, thing: &str) -> Fault {
        let ending = self.ending_of(&inspect.id).await;
        let ending = ending.map_or("exit code unknown".into(), |end| end.to_string());
        let message = format!(
            "{thing}: the engine ended right after its start ({ending}); its last lines say why"
        );
        Fault::new(FaultCode::EngineExited, message)
            .with_log(self.tail(&inspect.id, Fault::LINES_MAX).await)
    }
}

impl Inner {
    /// How a container ended whose process is gone: podman learns it from its monitor, a little later than the
    /// kernel has emptied the group, and is asked again until then. `None`: no such container, or podman lost its process
    /// and never learned the code (it says -1), or it believes to the last look that the container runs.
    pub(super) async fn ending_of(&self, container: &str) -> Option<Ending> {
        let [mut pause, longest] = LOOK_AGAIN;
        for _ in 0..EXIT_LOOKS {
            let state = self.api.inspect(container).await.ok()?.state;
            if matches!(state.status.as_str(), "exited" | "stopped") {
                let ending = Ending { code: state.exit_code, out_of_memory: state.oom_killed };
                return (state.exit_code >= 0).then_some(ending);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
        None
    }
}

/// `/proc/PID/status`, or why it cannot be read.
fn kernels_word(pid: u32) -> Result<String, String> {
    let path = format!("/proc/{pid}/status");
    std::fs::read_to_string(&path).map_err(|err| format!("{path}: {err}"))
}

/// The fault for an image whose annotations would take effect on its container.
fn lifts(image: &ImageRef, key: &str, thing: &str) -> Fault {
    let key: String = key.chars().take(KEY_MAX).collect();
    Fault::new(
        FaultCode::HardeningMismatch,
        format!(
            "{thing}: the image {image} has the annotation {key:?}, with which an image tells podman's runtime how to run it, and can switch restrictions off; nothing was started: take an image without it, or have it built anew without \"--annotation\"",
        ),
    )
}

fn no_group(thing: &str) -> Fault {
    Fault::new(
        FaultCode::StartFailed,
        format!(
            "{thing}: the container has no control group of its own, so its end could not be noticed; podman must use the systemd cgroup manager: check \"loginctl enable-linger hostler\" and cgroup_manager in containers.conf"
        ),
    )
}

fn endpoint(inspect: &Inspect, dir: Option<&Path>, thing: &str) -> Result<Endpoint, Fault> {
    let Some(dir) = dir else {
        let port = published(inspect.network_settings.ports.as_ref(), TCP_PORT);
        let key = inspect.config.key();
        return port.map(|port| Endpoint::Tcp(port, key)).ok_or_else(|| {
            let message = format!("{thing}: podman published no port for the engine's {TCP_PORT}");
            Fault::new(FaultCode::StartFailed, message)
        });
    };
    Ok(Endpoint::Unix(PathBuf::from(dir).join(SOCKET_NAME)))
}

/// Whether a container's labels are those of this instance in this namespace.
#[must_use]
pub fn is_ours(inspect: &Inspect, namespace: &str, instance: &InstanceId) -> bool {
    let Some(all) = &inspect.config.labels else { return false };
    all.get(labels::NAMESPACE).map(String::as_str) == Some(namespace)
        && labels::identity(all).is_some_and(|found| found.instance == *instance)
}
