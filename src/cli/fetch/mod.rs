//! `hostler fetch`: downloads a model's files from a hub. Runs in a short-lived container that has a network; engines have none.
//!
//! Purpose: the only code of Hostler that talks to the outside, kept away from daemon and engines. Owner: `hostler add` starts it
//! in a container ([`crate::adapters::podman::helper`]) and reads its lines. Invariants: a file has its name only when it is
//! whole, has the size that the hub says and, where the hub has a digest, that digest; what was downloaded before a connection
//! broke is gone on with, not fetched again; a hub that says nothing for a minute ends it, and work of this host does not, however
//! long it takes; the token goes to the hub alone, and into no line.
//!
//! Lines on standard output, one JSON object each: `{"total":…,"files":…}`, `{"at":…}` in bytes, `{"writing":true}` and
//! `{"checking":…}` in percent of a file while this host is at work, and at the end `{"done":{…}}` or `{"error":"…"}`.

mod meter;
mod projector;
mod select;
mod transfer;

use std::fs::{self, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

use super::exit::{Exit, Failure, Outcome};
use crate::checks;
use crate::daemon::has_no_locks;
use crate::types::Bytes;
use meter::Meter;
use select::Repo;
use transfer::{Real, Target};

/// What a fetch leaves free: with less podman itself gets into trouble, and images and state are often on the same disk.
const LEFT_FREE: Bytes = Bytes::gib(1);
/// How a token comes there.
const SET_TOKEN: &str =
    "set HF_TOKEN (under sudo: sudo --preserve-env=HF_TOKEN), or give --token-file";
/// Where the container finds the token, if there is one.
const TOKEN: &str = "/run/secrets/hub-token";

/// Downloads the files of a model.
#[derive(Debug, Args)]
pub struct Fetch {
    /// The hub's address.
    #[arg(long)]
    endpoint: String,

    /// The repository, org/name.
    #[arg(long)]
    repo: String,

    /// Branch, tag or commit.
    #[arg(long, default_value = "main")]
    revision: String,

    /// A part of the GGUF file's name.
    #[arg(long)]
    pattern: Option<String>,

    /// The engine that is to read them.
    #[arg(long)]
    engine: Option<String>,

    /// Leave out what makes images part of a prompt.
    #[arg(long)]
    no_projector: bool,

    /// Only say what would be fetched.
    #[arg(long)]
    list: bool,

    /// The directory below which it gets a directory of its own.
    #[arg(long)]
    into: PathBuf,
}

/// Prints one line.
fn line(value: &serde_json::Value) {
    let mut out = std::io::stdout().lock();
    // Nobody reads any more: then nobody waits for it either.
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

impl Fetch {
    pub fn run(&self) -> Outcome {
        match self.fetch() {
            Ok(()) => Ok(()),
            Err(error) => {
                line(&json!({"error": error}));
                Err(Failure::said(Exit::Failed))
            }
        }
    }

    fn fetch(&self) -> Result<(), String> {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent: Agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("hostler/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        let token = fs::read_to_string(TOKEN).ok().map(|token| token.trim().to_owned());
        let hub = Hub { agent, token, endpoint: self.endpoint.trim_end_matches('/').to_owned() };
        let repo = hub.look(&self.repo, &self.revision)?;
        let (pattern, engine) = (self.pattern.as_deref(), self.engine.as_deref());
        let selection = select::select(&repo, pattern, engine, self.no_projector)
            .map_err(|why| format!("{}: {why}", self.repo))?;
        let short = short(&repo.sha)?;
        let name = self.repo.replace('/', "--");
        let total: u64 = selection.files.iter().map(select::File::bytes).sum();
        let done = json!({"done": {
            "dir": Path::new(&name).join(short), "main": selection.main, "commit": repo.sha, "bytes": total,
            "projector": selection.projector, "code": selection.code,
        }});
        if self.list {
            line(&done);
            return Ok(());
        }
        let dir = self.into.join(&name).join(short);
        let io = |err: std::io::Error| format!("{}: {err}", dir.display());
        fs::create_dir_all(&dir).map_err(io)?;
        let lock = fs::File::create(dir.join(".lock")).map_err(io)?;
        locked(lock.try_lock()).map_err(|why| format!("{}: {why}", self.repo))?;
        let here = |file: &select::File| transfer::present(&dir.join(&file.path)).min(file.bytes());
        let missing = total.saturating_sub(selection.files.iter().map(here).sum());
        if let Some(room) = checks::room(&dir).map_err(io)? {
            fits(missing, room.free.0).map_err(|why| format!("{}: {why}", dir.display()))?;
        }
        line(&json!({"total": total, "files": selection.files.len()}));
        let meter = Meter::start();
        for file in &selection.files {
            let url = format!(
                "{}/{}/resolve/{}/{}",
                hub.endpoint,
                self.repo,
                repo.sha,
                encoded(&file.path)
            );
            let target = Target {
                url,
                path: dir.join(&file.path),
                bytes: file.bytes(),
                sha256: file.sha256(),
                disk: &Real,
            };
            transfer::file(&hub, &target, &meter)?;
        }
        drop(lock);
        let _ = fs::remove_file(dir.join(".lock"));
        line(&done);
        Ok(())
    }
}

/// A commit's short name. All of it ends up in a URL and in a file that root writes.
fn short(sha: &str) -> Result<&str, String> {
    let hexadecimal = sha.bytes().all(|byte| byte.is_ascii_hexdigit());
    let short =
        sha.get(..12.min(sha.len())).filter(|_| hexadecimal && (7..=64).contains(&sha.len()));
    short.ok_or_else(|| format!("the hub names no commit, but {sha:?}"))
}

/// Before the first byte: a disk that is full to the end stops more than a download.
fn fits(missing: u64, free: u64) -> Result<(), String> {
    let usable = free.saturating_sub(LEFT_FREE.0);
    if missing <= usable {
        return Ok(());
    }
    let (missing, free) = (Bytes(missing), Bytes(free));
    Err(format!(
        "{missing} are missing, {free} are free there, and {LEFT_FREE} have to stay; remove what is not needed, or choose another place by --models-dir"
    ))
}

/// Whether this fetch may write. A file system without locks is no reason to fetch nothing: two fetches of
/// one model at once are rare, and what they would spoil is found out by size and digest.
fn locked(lock: Result<(), TryLockError>) -> Result<(), String> {
    match lock {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err("another fetch of it is under way".to_owned()),
        Err(TryLockError::Error(err)) if has_no_locks(&err) => Ok(()),
        Err(TryLockError::Error(err)) => Err(format!("the lock of the fetch cannot be had: {err}")),
    }
}

/// A path in a URL.
fn encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A hub.
struct Hub {
    agent: Agent,
    token: Option<String>,
    endpoint: String,
}

impl Hub {
    /// A request, with the token: the client drops it when it is sent on to another host.
    fn get(&self, url: &str) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
        let request = self.agent.get(url);
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn look(&self, repo: &str, revision: &str) -> Result<Repo, String> {
        let url = format!(
            "{}/api/models/{repo}/revision/{}?blobs=true",
            self.endpoint,
            encoded(revision)
        );
        let answer = self.get(&url).call();
        let mut answer =
            answer.map_err(|err| format!("{} does not answer ({err})", self.endpoint))?;
        let status = answer.status().as_u16();
        let what = format!("{repo} at {revision}");
        match status {
            200 => {}
            // To whoever is not logged in hubs say the same of what is not there and of what is closed.
            401 if self.token.is_none() => {
                return Err(format!(
                    "{what}: there is no such thing on {}, or it is private or gated ({status}); look at the name, and else {SET_TOKEN}",
                    self.endpoint
                ));
            }
            _ => return Err(self.refusal(status, &what)),
        }
        let wrong = |err: &dyn std::fmt::Display| {
            format!("{url}: the answer is no description of a repository ({err})")
        };
        let text = answer.body_mut().read_to_string().map_err(|err| wrong(&err))?;
        serde_json::from_str(&text).map_err(|err| wrong(&err))
    }

    /// What a status means for whoever asked.
    fn refusal(&self, status: u16, what: &str) -> String {
        let with = self.token.is_some();
        match status {
            401 | 403 if with => format!(
                "{what}: the hub refuses the token ({status}); is it valid, and were the model's terms accepted with its account?"
            ),
            401 | 403 => format!("{what}: the hub wants a token ({status}); {SET_TOKEN}"),
            404 => format!(
                "{what}: there is no such thing on {}, or it is private and HF_TOKEN is not set",
                self.endpoint
            ),
            429 => format!(
                "{what}: the hub says that these are too many requests (429); wait, or set HF_TOKEN"
            ),
            _ => format!("{what}: the hub answers {status}"),
        }
    }
}

#[cfg(test)]
mod tests;
