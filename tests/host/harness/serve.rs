//! A host whose daemon serves the counting model, and looking at it from outside. Owner: the test. Invariant: what is looked at
//! is what a person sees: `systemctl`, `podman`, `ps`, and the endpoint.

use std::time::Duration;

use serde_json::Value;
use testhost::{Host, Look, Result, wait_for};

use super::http::{Answer, Pending, count_request, get, post};
use super::{PODMAN, installed, put_count_model};

/// The model that counts, by a real llama-server.
pub const COUNT: &str = r#"
[gpu]
backend = "host"

[models.count]
engine = "llamacpp"
image = "localhost/hostler/llama-server:latest"
weights = { path = "/var/lib/hostler/models/count-512.gguf" }
context = 4096
# The model is tiny, and threads that wait for one another by spinning starve a small machine.
env = { LLAMA_ARG_THREADS = "1", LLAMA_ARG_THREADS_HTTP = "8" }
"#;

/// All that the model has to say.
pub const ALL: usize = 512;

/// Something that takes seconds, on a machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(30);
/// Something for which the daemon may have to be started anew, with systemd's growing delay.
pub const FIRST: Duration = Duration::from_secs(90);

/// A host with Hostler, the engine's image, the counting model and a configuration; the sockets listen, the daemon does not run.
pub fn serving(toml: &str) -> Result<Host> {
    let image = testhost::assets::llama_server_image()?;
    let host = installed().image(&image).boot()?;
    put_count_model(&host)?;
    config(&host, toml)?;
    host.root("systemctl --quiet start hostler.socket hostler-unix.socket")?;
    Ok(host)
}

/// Writes the main configuration file.
pub fn config(host: &Host, toml: &str) -> Result<()> {
    host.write_file("/etc/hostler/hostler.toml", toml)
}

/// Lets the daemon make Internet sockets, as its own message tells an administrator to, from its next start on.
pub fn allow_internet(host: &Host) -> Result<()> {
    host.write_file(
        "/etc/systemd/system/hostler.service.d/internet.conf",
        "[Service]\nRestrictAddressFamilies=AF_INET AF_INET6\nIPAddressAllow=localhost\n",
    )?;
    host.root("systemctl daemon-reload").map(drop)
}

/// A request for the counting model's answer, under way.
#[derive(Debug)]
pub struct Counting {
    pending: Pending,
    to: usize,
}

/// Asks the counting model for everything it knows.
pub fn count(host: &Host) -> Counting {
    count_to(host, ALL)
}

/// Asks the counting model for the first numbers.
pub fn count_to(host: &Host, to: usize) -> Counting {
    Counting { pending: post(host, "/v1/chat/completions", &count_request("count", to)), to }
}

/// A number that takes next to no time, for requests of which many run at once.
pub fn count_a_little(host: &Host) -> Counting {
    count_to(host, 24)
}

impl Counting {
    /// Waits for the answer, which must be whole, in order, and exact.
    pub fn check(self) {
        check_count(&self.pending.wait(), self.to);
    }
}

/// Whether an answer is the counting model's, whole, in order, and exact.
pub fn check_count(answer: &Answer, to: usize) {
    let streamed = answer.streamed();
    let expected: String = (1..=to).map(|n| format!(" {n}")).collect();
    assert_eq!(streamed.text, expected);
    assert!(streamed.done, "no [DONE]");
    assert!(streamed.pieces >= to, "{} pieces: not streamed token by token", streamed.pieces);
}

/// `GET /api/v1/status`. Starts the daemon if it does not run.
pub fn status(host: &Host) -> Result<Value> {
    let answer = get(host, "/api/v1/status")?;
    assert_eq!(answer.status, 200, "{answer:?}");
    Ok(answer.json())
}

/// A model's row of the status.
pub fn model(host: &Host, name: &str) -> Result<Value> {
    let status = status(host)?;
    let models = status["models"].as_array().cloned().unwrap_or_default();
    let row = models.into_iter().find(|row| row["name"] == name);
    Ok(row.unwrap_or_else(|| panic!("no model {name} in {status}")))
}

/// Waits until a model is in a phase; its row then.
pub fn wait_phase(host: &Host, name: &str, phase: &str, limit: Duration) -> Result<Value> {
    wait_for(&format!("{name} to be {phase}"), limit, || {
        let row = model(host, name)?;
        Ok(if row["phase"] == phase { Look::Done(row) } else { Look::NotYet(row.to_string()) })
    })
}

/// Waits until a model has requests running; its row then.
pub fn wait_busy(host: &Host, name: &str, limit: Duration) -> Result<Value> {
    wait_for(&format!("{name} to be busy"), limit, || {
        let row = model(host, name)?;
        let busy = row["in_flight"].as_u64() > Some(0);
        Ok(if busy { Look::Done(row) } else { Look::NotYet(row.to_string()) })
    })
}

/// A property of a system unit.
pub fn property(host: &Host, unit: &str, name: &str) -> Result<String> {
    Ok(host.root(&format!("systemctl show -P {name} {unit}"))?.trim().to_owned())
}

/// Waits until a property of a system unit is as wanted.
pub fn wait_property(
    host: &Host,
    unit: &str,
    name: &str,
    limit: Duration,
    wanted: impl Fn(&str) -> bool,
) -> Result<String> {
    wait_for(&format!("{name} of {unit} to be as wanted"), limit, || {
        let seen = property(host, unit, name)?;
        Ok(if wanted(&seen) { Look::Done(seen) } else { Look::NotYet(seen) })
    })
}

/// What `systemctl status` prints.
pub fn show_status(host: &Host, unit: &str) -> Result<String> {
    Ok(host.try_root(&format!("systemctl status --no-pager --full {unit}"))?.stdout)
}

/// The service user's containers, running or not: (identifier, name).
pub fn containers(host: &Host) -> Result<Vec<(String, String)>> {
    let list = host.user(
        "hostler",
        &format!("{PODMAN} ps --all --no-trunc --format '{{{{.ID}}}} {{{{.Names}}}}'"),
    )?;
    Ok(list.lines().filter_map(|l| l.split_once(' ')).map(|(a, b)| (a.into(), b.into())).collect())
}

/// What podman ever did with the container of a model: the events' words in their order.
pub fn events(host: &Host, model: &str) -> Result<Vec<String>> {
    let list = host.user(
        "hostler",
        &format!(
            "{PODMAN} events --stream=false --since 1h --filter label=io.hostler.model={model} \
             --format '{{{{.Status}}}}'"
        ),
    )?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// The PID in the host of the one engine that runs; not of the init that waits for it.
pub fn engine(host: &Host) -> Result<u32> {
    let pids = host.root("pgrep --exact llama-server")?;
    Ok(pids.trim().parse().unwrap_or_else(|_| panic!("not one llama-server, but {pids:?}")))
}

/// What is left of a daemon and its containers: processes, cgroups, sockets. Empty on a host where all ended well.
pub fn left_over(host: &Host) -> Result<String> {
    host.root(
        "ps -eo uid=,pid=,args= | awk '$1 >= 100000 || $3 ~ /conmon$|hostlerd$|crun$|pasta|rootlessport/'; \
         find /sys/fs/cgroup -name 'libpod-*' ; find /run/hostler/engines -mindepth 1",
    )
}

/// Panics unless nothing is left of a daemon that has stopped: see [`left_over`].
/// It waits, since conmon ends by itself a moment after its container has been removed.
pub fn nothing_left(host: &Host) {
    wait_for("nothing to be left", SOON, || {
        let left = left_over(host)?;
        Ok(if left.is_empty() { Look::Done(()) } else { Look::NotYet(left) })
    })
    .unwrap();
}
