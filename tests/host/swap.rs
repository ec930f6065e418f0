//! What a swap costs over podman's calls and the engine's own stop and start: a measurement, told in docs/performance.md.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testhost::Host;

use crate::harness::{COUNT, MODELS, count_request, serving, skip_unless_wanted, status};

const SWAPS: usize = 21;
const ENGINES: &str = "/run/hand";

/// One request on a connection of its own: status, body, and when the first byte came; `None`: nobody listens.
fn ask(socket: &Path, line: &str, body: &Value) -> Option<(u16, String, Instant)> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let mut stream = UnixStream::connect(socket).ok()?;
    let head = format!(
        "{line} HTTP/1.1\r\nhost: d\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut all = vec![0; 1];
    stream.read_exact(&mut all).ok()?;
    let first = Instant::now();
    stream.read_to_end(&mut all).ok()?;
    let text = String::from_utf8_lossy(&all).into_owned();
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text.split_once("\r\n\r\n")?.1.to_owned(), first))
}

/// Two models of which one fits.
fn two() -> String {
    let toml = COUNT.replace("backend = \"host\"", "backend = \"host\"\nbudget = \"1GiB\"");
    let (head, model) = toml.split_once("[models.count]").unwrap();
    let one = |name: &str| format!("\n[models.{name}]{model}vram = \"300MiB\"\n");
    format!("{head}{}{}\n[policy]\nmin_residency = \"0s\"\n", one("a"), one("b"))
}

/// From a request to the first byte of the answer.
fn request(socket: &Path, model: &str) -> Duration {
    let began = Instant::now();
    let body = serde_json::from_str(&count_request(model, 1)).unwrap();
    let (status, body, first) = ask(socket, "POST /v1/chat/completions", &body).unwrap();
    assert_eq!(status, 200, "{body}");
    first - began
}

/// The same swap by hand: podman's calls one after the other, the engine asked without a pause, then the request.
struct Hand<'a> {
    host: &'a Host,
    running: Option<String>,
    made: usize,
}

impl Hand<'_> {
    fn podman(&self, line: &str, body: &Value) -> String {
        let (method, path) = line.split_once(' ').unwrap();
        let line = format!("{method} /v4.0.0/libpod{path}");
        let socket = self.host.path("/run/hostler/service/podman.sock");
        let (status, answer, _) = ask(&socket, &line, body).unwrap();
        assert!(status < 300, "{line}: {status} {answer}");
        answer
    }

    fn swap(&mut self) -> Duration {
        self.made += 1;
        let name = format!("hand-{}", self.made);
        let dir = format!("{ENGINES}/{name}");
        self.host.root(&format!("mkdir -p {dir}; chmod 777 {dir}")).unwrap();
        let body = json!({
            "name": name, "image": "localhost/hostler/llama-server:latest", "user": "1000:1000", "umask": "0000",
            "command": ["--host", "/run/engine/e.sock", "-m", "/models/m.gguf", "--alias", name, "-c", "4096"],
            "env": {"HOME": "/tmp", "LLAMA_ARG_THREADS": "1", "LLAMA_ARG_THREADS_HTTP": "8", "LLAMA_ARG_NO_MMAP": "1"},
            "cap_drop": ["ALL"], "no_new_privileges": true, "read_only_filesystem": true, "read_write_tmpfs": true,
            "netns": {"nsmode": "none"}, "cgroupns": {"nsmode": "private"}, "init": true, "stop_signal": 15,
            "systemd": "false", "sdnotifyMode": "ignore", "log_configuration": {"driver": "k8s-file"},
            "mounts": [
                {"type": "bind", "source": dir, "destination": "/run/engine", "options": ["rw"]},
                {"type": "bind", "source": format!("{MODELS}/count-512.gguf"), "destination": "/models/m.gguf", "options": ["ro"]},
                {"type": "tmpfs", "source": "tmpfs", "destination": "/tmp", "options": ["rw"]},
            ],
        });
        let began = Instant::now();
        if let Some(old) = self.running.take() {
            self.podman(&format!("POST /containers/{old}/stop?timeout=10"), &Value::Null);
            self.podman(&format!("DELETE /containers/{old}?force=true"), &Value::Null);
        }
        self.podman("POST /containers/create", &body);
        self.podman(&format!("POST /containers/{name}/start"), &Value::Null);
        let socket = self.host.path(&format!("{dir}/e.sock"));
        let limit = began + Duration::from_secs(60);
        while ask(&socket, "GET /health", &Value::Null).is_none_or(|(status, ..)| status != 200) {
            assert!(Instant::now() < limit, "{name} is not ready");
            std::thread::sleep(Duration::from_micros(500));
        }
        let waited = began.elapsed();
        self.running = Some(name.clone());
        waited + request(&socket, &name)
    }
}

fn middle(values: &[Duration]) -> Duration {
    let mut values = values.to_vec();
    values.sort();
    values[values.len() / 2]
}

#[test]
#[ignore = "a measurement: run it alone, with --no-capture"]
fn measure_what_a_swap_costs_over_podman_and_the_engine() {
    skip_unless_wanted!();
    let host = serving(&two()).unwrap();
    status(&host).unwrap();
    let door = host.path("/run/hostler/http.sock");
    request(&door, "a");
    let mut hand = Hand { host: &host, running: None, made: 0 };
    hand.swap();
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for swap in 0..SWAPS {
        ours.push(request(&door, if swap % 2 == 0 { "b" } else { "a" }));
        bare.push(hand.swap());
    }
    eprintln!("ours {ours:.0?}\nby hand {bare:.0?}");
    let (ours, bare) = (middle(&ours), middle(&bare));
    let over = ours.as_secs_f64() * 1000.0 - bare.as_secs_f64() * 1000.0;
    eprintln!("the middle of {SWAPS}: {ours:.1?}, by hand {bare:.1?}, over {over:.1} ms");
}
