//! The main job, end to end: a client's first request starts the daemon, which starts a real engine, which answers.

use crate::harness::{Counting, PODMAN, count_request, skip_unless_wanted};
use std::process::Stdio;
use std::time::Duration;
use testhost::{Host, Look, Result, wait_for};

const ENDPOINT: &str = "http://127.0.0.1:8711/v1/chat/completions";

/// The containers that the service user has, running or not, by name.
fn containers(host: &Host) -> Result<Vec<String>> {
    let names = host.user("hostler", &format!("{PODMAN} ps --all --format '{{{{.Names}}}}'"))?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// Status line and body of a request; the body is the last argument's.
fn ask(host: &Host, body: &str) -> Result<(String, String)> {
    let mut command = host.command("curl");
    command.args([
        "-sS",
        "--max-time",
        "60",
        "-w",
        "\n%{http_code}",
        ENDPOINT,
        "--data-binary",
        body,
    ]);
    let output = command
        .output()
        .map_err(|source| testhost::Error::Spawn { program: "curl".into(), source })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
    Ok((status.to_owned(), body.to_owned()))
}

#[test]
fn the_first_request_starts_everything_and_a_stop_ends_everything() {
    skip_unless_wanted!();
    let host = Counting::boot().unwrap();
    assert_eq!(containers(&host).unwrap(), Vec::<String>::new());
    assert_eq!(
        host.root("systemctl is-active hostler.service || true").unwrap().trim(),
        "inactive"
    );

    let stream = format!("curl -sSN --fail --max-time 120 {ENDPOINT} -d '{}'", count_request(true));
    let answer = host.root(&stream).unwrap();
    Counting::assert_streamed(&answer);
    let names = containers(&host).unwrap();
    assert_eq!(names.len(), 1, "{names:?}");
    let status = wait_for("the status to name the model", Duration::from_secs(10), || {
        let text = host.root("systemctl show hostler.service --property=StatusText --value")?;
        let ready = text.contains("1 of 1 models ready");
        Ok(if ready { Look::Done(text) } else { Look::NotYet(text) })
    });
    assert!(status.unwrap().contains("count"));

    // Over the Unix socket the same daemon answers, and loads nothing again.
    let local = stream.replace("curl ", "curl --unix-socket /run/hostler/http.sock ");
    Counting::assert_streamed(&host.root(&local).unwrap());
    assert_eq!(containers(&host).unwrap(), names);

    host.root("systemctl stop hostler.service hostler.socket hostler-unix.socket").unwrap();
    assert_eq!(containers(&host).unwrap(), Vec::<String>::new());
    assert_eq!(host.root("ls /run/hostler/engines").unwrap(), "");
    let left =
        host.root("ps -eo comm= | grep -E '^(llama-server|hostlerd|conmon)' || true").unwrap();
    assert_eq!(left, "");
    let scopes = host.root("find /sys/fs/cgroup -name 'libpod-*.scope'").unwrap();
    assert_eq!(scopes, "", "a container's control group is left");
    assert_eq!(host.failed_units().unwrap(), "");
}

#[test]
fn clients_that_come_together_share_one_container() {
    skip_unless_wanted!();
    let host = Counting::boot().unwrap();
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = host.command("curl");
        client.args(["-sSN", "--fail", "--max-time", "120", ENDPOINT, "-d", &count_request(true)]);
        clients.push(client.stdout(Stdio::piped()).spawn().unwrap());
    }
    for client in clients {
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success());
        Counting::assert_streamed(&String::from_utf8_lossy(&output.stdout));
    }
    let names = containers(&host).unwrap();
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(names[0].contains("-g1-"), "{names:?}: not the first incarnation");
}

#[test]
fn a_bad_request_is_told_what_is_wrong_and_reaches_no_podman() {
    skip_unless_wanted!();
    let host = Counting::boot().unwrap();
    let cases = [
        (r#"{"model":"nobody","messages":[]}"#, "404", "model_not_found"),
        (r#"{"messages":[]}"#, "400", "invalid_request_error"),
        (r#"{"model":"#, "400", "invalid_request_error"),
        (r#"{"model":7,"messages":[]}"#, "400", "invalid_request_error"),
        ("", "400", "invalid_request_error"),
    ];
    for (body, status, word) in cases {
        let (code, answer) = ask(&host, body).unwrap();
        assert_eq!(code, status, "{body}: {answer}");
        assert!(answer.contains(r#""error""#) && answer.contains(word), "{body}: {answer}");
    }
    // Not even a container that came and went.
    let made =
        host.user("hostler", &format!("{PODMAN} events --stream=false --filter event=create"));
    let made = made.unwrap();
    let models: Vec<&str> =
        made.lines().filter(|line| line.contains("io.hostler.model=")).collect();
    assert_eq!(models, Vec::<&str>::new());
    assert_eq!(containers(&host).unwrap(), Vec::<String>::new());
}
