//! Weights from a hub: fetched by a container with a network, and nothing else.

use std::borrow::Cow;
use std::os::unix::process::CommandExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::Access;
use rustix::io::Errno;
use serde::Deserialize;

use super::file::make_dirs;
use crate::adapters::podman::Podman;
use crate::adapters::podman::helper::{self, Helper, Network};
use crate::checks::SERVICE_USER;
use crate::cli::Context;
use crate::cli::doctor::service_user;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::signals;
use crate::config::PodmanConfig;
use crate::types::{Bytes, EngineKind};

/// Variables that say how the outside is reached.
const PROXIES: [&str; 8] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];
/// The file of the secret in the container.
const TOKEN: &str = "hub-token";

/// What is wanted of a hub.
pub struct Wanted<'a> {
    /// `org/name`.
    pub repo: &'a str,
    /// A part of the file's name.
    pub pattern: Option<&'a str>,
    /// The engine that is to read it, where that is said.
    pub engine: Option<EngineKind>,
    /// Without a projector, whether there is one or not.
    pub blind: bool,
    /// Branch, tag or commit.
    pub revision: &'a str,
    /// A file with the token, instead of `HF_TOKEN`.
    pub token_file: Option<&'a Path>,
    /// Where models are kept, see [`models_dir`].
    pub models: &'a Path,
    /// Only ask what it would be, and write nothing.
    pub list: bool,
}

/// What came.
#[derive(Clone, Debug, Deserialize)]
pub struct Fetched {
    /// Below the directory of the hub's models.
    dir: PathBuf,
    /// The GGUF file; `None`: the directory is the model.
    pub main: Option<String>,
    /// The file by which it sees images.
    #[serde(default)]
    pub projector: Option<String>,
    /// Programs of the repository's own, which were left out.
    #[serde(default)]
    pub code: Vec<String>,
    /// Which commit it is.
    pub commit: String,
    /// All files together.
    pub bytes: u64,
}

impl Fetched {
    /// What `weights.path` is to be.
    #[must_use]
    pub fn path(&self, models: &Path) -> PathBuf {
        let dir = hub_dir(models).join(&self.dir);
        self.main.as_ref().map_or_else(|| dir.clone(), |main| dir.join(main))
    }

    /// What was left out that its engine may ask for, for people.
    #[must_use]
    pub fn left_out(&self, repo: &str) -> Option<String> {
        let (first, more) = self.code.split_first()?;
        let names = match more.len() {
            0 => first.clone(),
            n => format!("{first} and {n} more"),
        };
        Some(format!(
            "{repo} has Python files of its own ({names}), which are not fetched, as they can run any code: engines that know this kind of model do without; one that asks for --trust-remote-code needs them: fetch the whole repository by other means, look at them, and hostler add its directory with --arg=--trust-remote-code"
        ))
    }

    /// What `projector` is to be.
    #[must_use]
    pub fn projector(&self, models: &Path) -> Option<PathBuf> {
        self.projector.as_ref().map(|projector| hub_dir(models).join(&self.dir).join(projector))
    }
}

/// Where the hub's models are kept.
#[must_use]
pub fn hub_dir(models: &Path) -> PathBuf {
    models.join("hub")
}

/// One line of the container.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    total: Option<u64>,
    at: Option<u64>,
    writing: bool,
    checking: Option<u8>,
    done: Option<Fetched>,
    error: Option<String>,
}

impl Line {
    /// In front of the bar: what is fetched, or what is done with it.
    fn message(&self, repo: &str) -> Option<String> {
        match (self.checking, self.writing, self.at) {
            (Some(percent), ..) => Some(format!("{repo}: checking the digest, {percent} %")),
            (None, true, _) => Some(format!("{repo}: writing to the disk")),
            (None, false, Some(_)) => Some(repo.to_owned()),
            (None, false, None) => None,
        }
    }
}

/// Fetches, with a bar where one can be seen.
///
/// # Errors
/// What the hub, podman or the network had against it.
pub async fn fetch(
    context: &Context,
    podman: &PodmanConfig,
    wanted: &Wanted<'_>,
) -> Outcome<Fetched> {
    let helper = helper(wanted)?;
    let client = Podman::new(
        podman.socket.clone(),
        podman.namespace.clone(),
        podman.engine_dir.clone(),
        podman.pull,
    );
    let bar = (context.out.bars && !wanted.list).then(ProgressBar::no_length);
    if let Some(bar) = &bar {
        let form =
            "{spinner} {msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(wanted.repo.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
    }
    let doing = if wanted.list { "asking the hub for" } else { "fetching" };
    context.out.say(&format!("{doing} {} in a container", wanted.repo));
    let (mut done, mut error) = (None, None);
    let mut read = |text: &str| {
        let line: Line = serde_json::from_str(text).unwrap_or_default();
        if let Some(bar) = &bar {
            line.total.into_iter().for_each(|total| bar.set_length(total));
            line.at.into_iter().for_each(|at| bar.set_position(at));
            line.message(wanted.repo).into_iter().for_each(|message| bar.set_message(message));
        }
        done = line.done.or(done.take());
        error = line.error.or(error.take());
    };
    // The container has to go, whatever the signal: it would hold the lock of the download.
    let mut held = signals::hold();
    let ran = client.run_helper_until(&helper, &mut read, held.interrupted()).await;
    drop(held);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let ended = ran.map_err(|f| Failure::new(Exit::Failed, f.message).fix("hostler doctor"))?;
    if !ended {
        let message = "stopped; the same command goes on where it stopped";
        return Err(Failure::new(Exit::Interrupted, message));
    }
    if let Some(error) = error {
        return Err(Failure::new(Exit::Failed, error));
    }
    let fetched = done.ok_or_else(|| {
        Failure::new(Exit::Failed, "the container that fetches ended without a word")
            .fix("hostler doctor; the same command goes on where it stopped")
    })?;
    let did = if wanted.list { "would fetch" } else { "fetched" };
    context.out.say(&format!("{did} {} of {}", Bytes(fetched.bytes), wanted.repo));
    Ok(fetched)
}

fn helper(wanted: &Wanted<'_>) -> Outcome<Helper> {
    let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|text| !text.is_empty());
    let endpoint = endpoint.unwrap_or_else(default_endpoint);
    let network = network(&endpoint)?;
    let token = match wanted.token_file {
        Some(file) => Some(std::fs::read_to_string(file).map_err(|err| {
            Failure::new(
                Exit::NotFound,
                format!("the token {} cannot be read: {err}", file.display()),
            )
        })?),
        None => std::env::var("HF_TOKEN").ok(),
    };
    let token = token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
    let mut args: Vec<String> =
        ["fetch", "--endpoint", &endpoint, "--repo", wanted.repo].map(str::to_owned).to_vec();
    args.extend(["--revision".to_owned(), wanted.revision.to_owned()]);
    if let Some(pattern) = wanted.pattern {
        args.extend(["--pattern".to_owned(), pattern.to_owned()]);
    }
    if let Some(engine) = wanted.engine {
        args.extend(["--engine".to_owned(), engine.as_str().to_owned()]);
    }
    for (flag, is) in [("--no-projector", wanted.blind), ("--list", wanted.list)] {
        args.extend(is.then(|| flag.to_owned()));
    }
    args.extend(["--into".to_owned(), hub_dir(wanted.models).display().to_string()]);
    let env =
        PROXIES.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
    Ok(Helper {
        program: helper::program().map_err(|fault| Failure::new(Exit::Failed, fault.message))?,
        args,
        env: env.collect(),
        writable: (!wanted.list).then(|| wanted.models.to_owned()),
        network,
        devices: Vec::new(),
        secret: token.map(|token| (TOKEN.to_owned(), token)),
    })
}

/// In two parts, because the tree names no host of a registry; this one is what people mean by an ID.
fn default_endpoint() -> String {
    ["https://huggingface", ".co"].concat()
}

/// A hub on this host's loopback can only be reached from the host's network; any other from a network of its own.
fn network(endpoint: &str) -> Outcome<Network> {
    let rest = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err(Failure::new(Exit::Usage, format!("HF_ENDPOINT is {endpoint:?}"))
            .fix("it begins with https:// or http://"));
    };
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let local = host == "localhost" || host.starts_with("127.") || host == "[::1]";
    Ok(if local { Network::Host } else { Network::Own })
}

/// The directory of the models, as an absolute path without `..`, which a definition does not take; made where it is missing, if it is to
/// be.
///
/// # Errors
/// Where it would be nobody's who may write to it: the container runs as the service user.
pub fn models_dir(dir: &Path, user: bool, make: bool) -> Outcome<PathBuf> {
    let up = |dir: &Path| dir.components().any(|part| part == Component::ParentDir);
    if !make {
        let dir = std::path::absolute(dir)?;
        return Ok(if up(&dir) { std::fs::canonicalize(&dir).unwrap_or(dir) } else { dir });
    }
    let owner = if user { None } else { Some(service_user()) };
    let dir = made(dir, owner, rustix::process::geteuid().is_root())?;
    Ok(if up(&dir) { std::fs::canonicalize(dir)? } else { dir })
}

/// User and group of the service, for whom only root can look; `None`: the caller is who it is about, or cannot.
pub fn service(user: bool) -> Option<(u32, u32)> {
    if user || !rustix::process::geteuid().is_root() {
        return None;
    }
    service_user()
}

/// Whether somebody may make files in a directory that is there, asked in their name: the way to it, its mode, its ACLs and its mount say so.
/// True also where it could not be asked.
fn may_write(dir: &Path, (user, group): (u32, u32)) -> bool {
    let mut test = Command::new("test");
    test.arg("-w").arg(dir).args(["-a", "-x"]).arg(dir).uid(user).gid(group).current_dir("/");
    test.status().map_or(true, |status| status.code() != Some(1))
}

/// The same for an owner: `None` for whoever calls, `Some(None)` for one that there is not.
fn made(dir: &Path, owner: Option<Option<(u32, u32)>>, root: bool) -> Outcome<PathBuf> {
    let dir = std::path::absolute(dir)?;
    let shown = dir.display();
    if dir.is_dir() {
        return match owner {
            Some(Some(ids)) if root && !may_write(&dir, ids) => {
                let why = format!("is not the user {SERVICE_USER}'s to write, which fetches");
                Err(Failure::new(Exit::Denied, format!("{shown} {why}")).fix(open_up(&dir)))
            }
            _ => Ok(dir),
        };
    }
    let refused = |why: &str| {
        let install = format!("sudo install -d -o {SERVICE_USER} -g {SERVICE_USER} {shown}");
        Failure::new(Exit::Failed, format!("{shown} {why}")).fix(install)
    };
    let wrong = |err: std::io::Error| refused(&format!("cannot be made: {err}"));
    let ids = match owner {
        None => {
            let cannot = |err| Failure::new(Exit::Failed, format!("{shown} cannot be made: {err}"));
            return std::fs::create_dir_all(&dir).map(|()| dir.clone()).map_err(cannot);
        }
        Some(None) => {
            let why = format!("has to belong to the user {SERVICE_USER}, and there is none");
            return Err(Failure::new(Exit::Failed, format!("{shown} {why}"))
                .fix("run /usr/lib/hostler/postinst.sh, or --user for your own daemon"));
        }
        Some(Some(_)) if !root => {
            return Err(refused(&format!("is not there, and has to belong to {SERVICE_USER}")));
        }
        Some(Some(ids)) => ids,
    };
    make_dirs(&dir).map_err(wrong)?;
    // No link that somebody has put there since.
    std::os::unix::fs::lchown(&dir, Some(ids.0), Some(ids.1)).map_err(wrong)?;
    Ok(dir)
}

/// What lets the service user write into a directory: the command alone in front, for it to be copied.
fn open_up(dir: &Path) -> String {
    let elsewhere = "another directory: --models-dir";
    if rustix::fs::access(dir, Access::WRITE_OK) == Err(Errno::ROFS) {
        return format!("its file system is mounted read-only: mount it writable, or {elsewhere}");
    }
    let dir = dir.display().to_string();
    let word = shlex::try_quote(&dir).unwrap_or(Cow::Borrowed(dir.as_str()));
    format!(
        "sudo chown {SERVICE_USER}: {word}; where a directory above it is closed to that user, {elsewhere}"
    )
}

#[cfg(test)]
mod tests;
