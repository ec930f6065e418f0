//! Short-lived containers that run this very program: with a network, to fetch weights, or with GPUs, to see whether they work. What is
//! common to these and [`super::broom`]'s is here.
//!
//! Purpose: what needs a network or a device for a moment happens in a container, and neither in the daemon nor as root. Owner:
//! `hostler`, the operator's program. The root of such a container is empty but for the host's own `/usr`, mounted read-only, and
//! the program: so it needs no image from anywhere, has the host's libraries and certificates, and holds no code of others.
//! Invariants: no capabilities, no new privileges, read-only root; it runs as the service user, whose files it writes; a token
//! reaches it as a podman secret and never by its arguments or environment; container and secret are removed at the end, and what
//! a crash left is removed by a later one, when it is so old that nobody can be at work with it. Helpers of other processes are left
//! alone: nothing here knows of whom a young one is.

use std::future::{Future, pending};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use hyper::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::error::{Cause, PodmanError};
use super::inspect::Inspect;
use super::wire::encode;
use super::{Inner, Podman, create, random};
use crate::types::{Fault, FaultCode, ImageRef};

/// The image with an empty root.
const IMAGE: &str = "localhost/hostler/helper:1";
/// Marks containers and secrets of helpers.
const LABEL: &str = "io.hostler.helper";
/// How the names of their containers and secrets begin.
const NAME: &str = "hostler-helper-";
/// Where the program is in the container.
const PROGRAM: &str = "/hostler";
/// Directories of the host's `/etc` that say whom to trust.
const TRUST: [&str; 5] =
    ["/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/crypto-policies", "/etc/alternatives"];
/// The longest that a helper may be silent; it says something at least every minute, also while it waits for a disk.
const SILENCE: Duration = Duration::from_secs(180);
/// The longest that one runs.
const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Which network a helper has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// None.
    None,
    /// One of its own, by which it reaches the outside.
    Own,
    /// The host's, for what listens on the host's loopback.
    Host,
}

/// What is to run.
#[derive(Clone, Debug)]
pub struct Helper {
    /// The program on the host.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// A directory of the host that it may write to, at the same path in the container.
    pub writable: Option<PathBuf>,
    /// Its network.
    pub network: Network,
    /// CDI devices.
    pub devices: Vec<String>,
    /// A secret: the file below `/run/secrets`, and what is in it.
    pub secret: Option<(String, String)>,
}

/// Where `hostler` is: this very program, or beside the daemon as it was installed.
///
/// # Errors
/// If it is not found.
pub fn program() -> Result<PathBuf, Fault> {
    let fault = |why: String| Fault::new(FaultCode::Internal, why);
    let own = std::env::current_exe().map_err(|e| fault(format!("this program: {e}")))?;
    if own.file_name().is_some_and(|name| name == "hostler") {
        return Ok(own);
    }
    // PREFIX/libexec/hostler/hostlerd and PREFIX/bin/hostler, or both in one directory.
    let prefix = own.ancestors().nth(3).unwrap_or(Path::new("/usr"));
    let places = [own.with_file_name("hostler"), prefix.join("bin/hostler")];
    let found = places.iter().find(|place| place.is_file());
    found
        .cloned()
        .ok_or_else(|| fault(format!("the program hostler is not at {}", places[1].display())))
}

impl Podman {
    /// Runs a helper to its end; `line` sees each line that it prints. Dropping the future leaves the container to a later helper's
    /// start.
    ///
    /// # Errors
    /// If it could not be run, or was silent for too long. What it says of its own failure is in its lines.
    pub async fn run_helper(
        &self,
        helper: &Helper,
        line: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), Fault> {
        self.run_helper_until(helper, line, pending()).await.map(drop)
    }

    /// As [`Podman::run_helper`]; when `stop` is there, this helper is removed, and no other. Returns whether it came to its end.
    ///
    /// # Errors
    /// As [`Podman::run_helper`].
    pub async fn run_helper_until(
        &self,
        helper: &Helper,
        line: &mut (dyn FnMut(&str) + Send),
        stop: impl Future<Output = ()> + Send,
    ) -> Result<bool, Fault> {
        let thing = "the helper container";
        let fault = |e: PodmanError| e.fault(FaultCode::StartFailed, thing);
        let inner = &self.inner;
        let mut stop = pin!(stop);
        let prepared = async {
            // Another process may be at it as well, and nothing depends on it.
            if let Err(reason) = inner.sweep_helpers().await {
                tracing::warn!(%reason, "what earlier helpers left was not removed");
            }
            inner.helper_image().await
        };
        tokio::select! {
            // First, so that whoever listens for a signal does before there is anything to remove.
            biased;
            () = &mut stop => return Ok(false),
            prepared = prepared => prepared.map_err(fault)?,
        }
        let name = name();
        // Not to be interrupted: what podman has of a call that is dropped is not known.
        let secret = match &helper.secret {
            Some((_, text)) => inner.secret(&name, text).await.map(|()| Some(name.as_str())),
            None => Ok(None),
        };
        let ran = match secret {
            Ok(secret) => tokio::select! {
                biased;
                () = &mut stop => Ok(false),
                ran = inner.run(helper, &name, secret, line) => ran.map(|()| true),
            },
            Err(error) => Err(error),
        };
        let removed = inner.sweep_helper(&name).await;
        ran.and_then(|ended| removed.map(|()| ended)).map_err(fault)
    }
}

impl Inner {
    async fn run(
        &self,
        helper: &Helper,
        name: &str,
        secret: Option<&str>,
        line: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), PodmanError> {
        self.run_to_end(&body(helper, &self.namespace, name, secret), line).await
    }

    /// Makes and starts a container, and reads its lines until it ends.
    pub(super) async fn run_to_end(
        &self,
        body: &Value,
        line: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), PodmanError> {
        let id = self.api.create(body).await?;
        self.api.start(&id).await?;
        let path = format!("/containers/{}/logs?stdout=true&stderr=true&follow=true", encode(&id));
        let mut each = |bytes: &[u8]| {
            // A frame's header, of any bytes, may be in front of a line.
            if let Some(start) = bytes.windows(2).position(|pair| pair == b"{\"")
                && let Ok(text) = std::str::from_utf8(&bytes[start..])
            {
                line(text);
            }
            Ok(())
        };
        let what = "read the helper's lines";
        self.api.wire().lines(what, Method::GET, &path, SILENCE, LIFE, &mut each).await
    }

    /// Makes the empty image, where it is not there.
    pub(super) async fn helper_image(&self) -> Result<(), PodmanError> {
        let image = ImageRef::parse(IMAGE).map_err(|why| PodmanError::Garbage {
            what: "name the helper's image".into(),
            detail: why.into(),
        })?;
        if self.api.image(&image).await?.is_some() {
            return Ok(());
        }
        let path = format!("/images/import?reference={}", encode(IMAGE));
        let archive = archive().map_err(|e| PodmanError::Garbage {
            what: "make the helper's image".into(),
            detail: e.to_string(),
        })?;
        let limit = self.api.deadlines.act;
        let what = "make the helper's image";
        self.api.wire().post_bytes(what, &path, "application/x-tar", archive, limit).await.map(drop)
    }

    async fn secret(&self, name: &str, text: &str) -> Result<(), PodmanError> {
        let path = format!("/secrets/create?name={}", encode(name));
        let limit = self.api.deadlines.ask;
        let bytes = text.as_bytes().to_vec();
        let what = "keep the token as a secret";
        self.api.wire().post_bytes(what, &path, "text/plain", bytes, limit).await.map(drop)
    }

    /// Removes one helper's container and secret.
    pub(super) async fn sweep_helper(&self, name: &str) -> Result<(), PodmanError> {
        let removed = match self.api.remove(name).await {
            Err(e) if e.cause() != Some(Cause::NoSuchContainer) => Err(e),
            _ => Ok(()),
        };
        let path = format!("/secrets/{}", encode(name));
        let limit = self.api.deadlines.ask;
        // Most helpers have none.
        let _ = self.api.wire().call("remove", Method::DELETE, &path, None, limit).await;
        removed
    }

    /// Removes what crashes left.
    async fn sweep_helpers(&self) -> Result<(), PodmanError> {
        let age = self.api.deadlines.leftover;
        for listed in self.api.list(LABEL, &self.namespace).await? {
            if self.inspected(&listed.id).await?.is_some_and(|inspect| is_left(&inspect, age)) {
                self.sweep_helper(listed.name.trim_start_matches('/')).await?;
            }
        }
        // A secret is made before its container, so it can be left without one.
        for name in self.old_secrets(age).await? {
            // Also of another namespace.
            if self.inspected(&name).await?.is_none() {
                self.sweep_helper(&name).await?;
            }
        }
        Ok(())
    }

    async fn inspected(&self, id: &str) -> Result<Option<Inspect>, PodmanError> {
        match self.api.inspect(id).await {
            Ok(inspect) => Ok(Some(inspect)),
            Err(e) if e.cause() == Some(Cause::NoSuchContainer) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The names of helpers' secrets that are older than this.
    async fn old_secrets(&self, age: Duration) -> Result<Vec<String>, PodmanError> {
        let limit = self.api.deadlines.ask;
        let what = "list the secrets";
        let answer = self.api.wire().call(what, Method::GET, "/secrets/json", None, limit).await?;
        let listed: Option<Vec<Value>> = serde_json::from_slice(&answer)
            .map_err(|e| PodmanError::Garbage { what: what.into(), detail: e.to_string() })?;
        let old = listed.unwrap_or_default().into_iter().filter_map(|secret| {
            let name = secret["Spec"]["Name"].as_str()?;
            let made = secret["CreatedAt"].as_str()?;
            (name.starts_with(NAME) && is_older(made, age)).then(|| name.to_owned())
        });
        Ok(old.collect())
    }
}

/// Whether a container was left by a process that is gone: it does not run, and nobody can be about to start it or read its last lines.
fn is_left(inspect: &Inspect, age: Duration) -> bool {
    // The second is the year 1 for one that never ran.
    let times = [&inspect.created, &inspect.state.finished_at];
    !inspect.state.running && times.iter().all(|time| is_older(time, age))
}

/// Whether podman's time is so long ago; one that cannot be read is not.
pub(super) fn is_older(time: &str, age: Duration) -> bool {
    let Ok(time) = time.parse::<Timestamp>() else { return false };
    Duration::try_from(Timestamp::now().duration_since(time)).is_ok_and(|since| since > age)
}

/// A name for one.
pub(super) fn name() -> String {
    format!("{NAME}{:08x}", random())
}

/// What all have in common; without mounts.
pub(super) fn plain(namespace: &str, name: &str, command: &[String]) -> Value {
    json!({
        "name": name,
        "image": IMAGE,
        "labels": {LABEL: namespace},
        "command": command,
        "cap_drop": ["ALL"],
        "no_new_privileges": true,
        "read_only_filesystem": true,
        "read_write_tmpfs": true,
        // Ours has none; whoever may import an image may give it another of that name.
        "image_volume_mode": "ignore",
        "umask": "0022",
        // It reads the host's own /usr, which has no label that containers may read everywhere.
        "selinux_opts": ["disable"],
        "healthconfig": {"Test": ["NONE"]},
        "restart_policy": "no",
        "sdnotifyMode": "ignore",
        "systemd": "false",
        "remove": false,
        "stop_timeout": 1,
        "log_configuration": {"driver": "k8s-file", "size": 8 << 20},
    })
}

fn body(helper: &Helper, namespace: &str, name: &str, secret: Option<&str>) -> Value {
    let mut mounts = vec![
        json!({"type": "tmpfs", "source": "tmpfs", "destination": "/tmp", "options": ["rw", "nosuid", "nodev", "notmpcopyup", "size=16777216"]}),
        create::ro("/usr".as_ref(), "/usr".as_ref()),
        create::ro(&helper.program, PROGRAM.as_ref()),
    ];
    let trust = TRUST.iter().map(Path::new).filter(|path| path.is_dir());
    mounts.extend(trust.map(|path| create::ro(path, path)));
    if let Some(dir) = &helper.writable {
        mounts.push(create::rw(dir, dir));
    }
    let mut command = vec![PROGRAM.to_owned()];
    command.extend(helper.args.iter().cloned());
    let env: serde_json::Map<String, Value> = [("HOME".to_owned(), "/tmp".to_owned())]
        .into_iter()
        .chain(helper.env.iter().cloned())
        .map(|(k, v)| (k, Value::from(v)))
        .collect();
    let mut body = plain(namespace, name, &command);
    body["env"] = env.into();
    body["mounts"] = mounts.into();
    let Some(fields) = body.as_object_mut() else { return body };
    match helper.network {
        Network::None => drop(fields.insert("netns".into(), json!({"nsmode": "none"}))),
        Network::Own => {}
        Network::Host => drop(fields.insert("netns".into(), json!({"nsmode": "host"}))),
    }
    if !helper.devices.is_empty() {
        let devices: Vec<Value> = helper.devices.iter().map(|d| json!({"path": d})).collect();
        fields.insert("devices".into(), devices.into());
    }
    if let (Some(source), Some((target, _))) = (secret, &helper.secret) {
        let secret = json!([{"Source": source, "Target": target, "UID": 0, "GID": 0, "Mode": 256}]);
        fields.insert("secrets".into(), secret);
    }
    body
}

/// An archive with the directories that things are mounted on, and the links that a merged `/usr` has.
fn archive() -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut dirs = vec!["usr", "etc", "tmp", "run", "run/secrets", "proc", "sys", "dev", "var"];
    dirs.extend(TRUST.iter().map(|path| path.trim_start_matches('/')));
    for dir in dirs {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        tar.append_data(&mut header, dir, std::io::empty())?;
    }
    for dir in ["bin", "sbin", "lib", "lib64"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, dir, format!("usr/{dir}"))?;
    }
    tar.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_has_no_rights_and_its_token_is_no_argument() {
        let helper = Helper {
            program: "/usr/bin/hostler".into(),
            args: vec!["fetch".into()],
            env: vec![("HTTPS_PROXY".into(), "http://p".into())],
            writable: Some("/var/lib/hostler/models".into()),
            network: Network::Own,
            devices: Vec::new(),
            secret: Some(("hub-token".into(), "sesame".into())),
        };
        let body = body(&helper, "ns", "hostler-helper-1", Some("hostler-helper-1"));
        assert!(!body.to_string().contains("sesame"), "{body}");
        assert_eq!(body["cap_drop"], json!(["ALL"]));
        assert_eq!(body["no_new_privileges"], true);
        assert_eq!(body["image_volume_mode"], "ignore");
        assert_eq!(body["command"], json!(["/hostler", "fetch"]));
        assert_eq!(body["secrets"][0]["Target"], "hub-token");
        assert!(body.get("netns").is_none());
        assert!(archive().unwrap().len() > 512);
    }
}
