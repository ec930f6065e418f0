//! A real engine in a real rootless container, without Hostler: what the daemon's container spec is built on.

use crate::harness::{
    Answer, PODMAN, check_count, count_request, curl, installed, put_count_model,
    skip_unless_wanted, wait_healthy,
};
use testhost::{Host, Result};

const DIR: &str = "/run/hostler/engines/smoke";
const SOCKET: &str = "/run/hostler/engines/smoke/e.sock";

/// Starts llama-server as the daemon does: no network, nothing writable, no privileges, as user 1000 of the container.
/// `mounts` brings the model to /models/m.gguf. Returns the PID in the host.
fn start(host: &Host, mounts: &str, model: &str) -> Result<u32> {
    let script = format!(
        "set -e; mkdir -p {DIR}; chmod 0700 {DIR}/..; chmod 0777 {DIR}; \
         {PODMAN} run --detach --name smoke --network none --read-only --cap-drop all \
           --security-opt no-new-privileges --user 1000:1000 --umask 0000 \
           --tmpfs /tmp:rw,size=16m --env HOME=/tmp --volume {DIR}:/run/engine {mounts} \
           localhost/hostler/llama-server:latest \
           --host /run/engine/e.sock --model {model} --ctx-size 4096 >/dev/null; \
         {PODMAN} inspect --format '{{{{.State.Pid}}}}' smoke"
    );
    let pid = host.user("hostler", &script)?;
    wait_healthy(host, SOCKET)?;
    Ok(pid.trim().parse().unwrap_or(0))
}

/// The whole answer of a streamed chat completion.
fn ask(host: &Host) -> Answer {
    let body = count_request("count", 512);
    let url = "http://x/v1/chat/completions";
    curl(host, &["--unix-socket", SOCKET, "--data-binary", &body, url])
}

#[test]
fn an_engine_without_network_or_privileges_answers_over_its_socket() {
    skip_unless_wanted!();
    let image = testhost::assets::llama_server_image().unwrap();
    let host = installed().image(&image).boot().unwrap();
    let model = put_count_model(&host).unwrap();
    let pid =
        start(&host, &format!("--volume {model}:/models/m.gguf:ro"), "/models/m.gguf").unwrap();

    check_count(&ask(&host), 512);

    // Outside, it is a subordinate id of the service user: not the service user, not root.
    let uid = host.root(&format!("ps -o uid= -p {pid}")).unwrap();
    let first = host.root("grep ^hostler: /etc/subuid | cut -d: -f2").unwrap();
    let first: u32 = first.trim().parse().unwrap();
    assert_eq!(uid.trim().parse::<u32>().unwrap(), first + 999);
    let status = host.root(&format!("cat /proc/{pid}/status")).unwrap();
    for line in ["NoNewPrivs:\t1", "CapEff:\t0000000000000000", "Umask:\t0000", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    let cgroup = host.root(&format!("cat /proc/{pid}/cgroup")).unwrap();
    assert!(cgroup.contains("/user.slice/libpod-"), "{cgroup}");

    // The closed parent keeps others out; the service user itself can connect, read the engine's memory use, and clean up.
    let nobody = format!(
        "setpriv --reuid=nobody --regid=nogroup --clear-groups \
         curl -sS --unix-socket {SOCKET} http://x/health"
    );
    assert!(!host.try_root(&nobody).unwrap().status.success(), "nobody reached the engine");
    let own = format!(
        "curl -sS --fail --unix-socket {SOCKET} http://x/health && \
         grep -q ^Pss: /proc/{pid}/smaps_rollup && rm {SOCKET}"
    );
    let as_service = format!("systemd-run --pipe --wait --quiet -p User=hostler sh -c '{own}'");
    host.root(&as_service).unwrap();

    // It goes when it is told to, within the time that an engine has.
    host.user("hostler", &format!("{PODMAN} stop --time 5 smoke && {PODMAN} rm smoke")).unwrap();
    assert!(!host.try_root(&format!("test -e /proc/{pid}")).unwrap().status.success());
}

#[test]
fn a_model_image_is_mounted_read_only() {
    skip_unless_wanted!();
    let engine = testhost::assets::llama_server_image().unwrap();
    let model = testhost::assets::count_512().unwrap();
    let model = testhost::assets::model_image(&model, "count-512").unwrap();
    let host = installed().image(&engine).image(&model).boot().unwrap();
    let mount =
        "--mount type=image,source=localhost/hostler/model-count-512:latest,destination=/weights";
    start(&host, mount, "/weights/models/count-512.gguf").unwrap();
    check_count(&ask(&host), 512);
    // Nothing outlives a power cut but the record of the container, and no file of the engine is in the way of the next.
    let left = host.user("hostler", &format!("{PODMAN} rm --force --time 0 smoke")).unwrap();
    assert_eq!(left.trim(), "smoke");
}
