//! Many at once, and kills under load. `KILLS=n` and `API_KILLS=n` make these longer (`make soak`).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nvidia_ml::{Gpu, Script};
use testhost::{Host, Look, wait_for};

use crate::harness::{
    Fake, Scene, containers, count_request, events, nothing_left, skip_unless_wanted,
};

const GIB: u64 = 1 << 30;
const A: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000000";
/// No request takes longer; a restart of the daemon and two loads are in it.
const ANSWER: Duration = Duration::from_secs(120);

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// A whole answer.
    Whole,
    /// A whole refusal with a code of its own.
    Refused,
    /// The connection broke in the middle: its daemon was killed.
    Cut,
    /// Nobody listened.
    NotConnected,
    /// Anything else: an answer that looks whole and is not, or none in time.
    Wrong,
}

/// One request over the endpoint's Unix socket, from outside of the host.
fn ask(socket: &Path, model: &str) -> (End, String) {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return (End::NotConnected, String::new());
    };
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    let body = count_request(model, 4);
    let sent = write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer).into_owned();
    let late = read.as_ref().is_err_and(|e| {
        matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
    });
    let end = if late {
        End::Wrong
    } else if text.starts_with("HTTP/1.1 200 ") && text.contains("[DONE]") {
        End::Whole
    } else if text.contains("\"code\":") && !text.contains("[DONE]") {
        End::Refused
    } else if sent.is_err() || read.is_err() || text.is_empty() || !text.contains("[DONE]") {
        End::Cut
    } else {
        End::Wrong
    };
    (end, text)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

#[test]
fn fault_19_a_thousand_requests_for_one_cold_model_make_one_container() {
    skip_unless_wanted!();
    let script = Script::with_gpus(vec![Gpu::new(A, 8 * GIB)]);
    let scene = Scene::new(
        &script,
        "[server]\nmax_queue = 2000\n",
        &[Fake::sized("m", 4).env("LOAD", "3s")],
    )
    .unwrap();
    let socket = scene.host.path("/run/hostler/http.sock");
    let began = Instant::now();
    let clients: Vec<_> = (0..1000)
        .map(|_| {
            let socket = socket.clone();
            let client = std::thread::Builder::new().stack_size(256 << 10);
            client.spawn(move || ask(&socket, "m")).unwrap()
        })
        .collect();
    let mut ends = BTreeMap::new();
    for client in clients {
        let (end, text) = client.join().unwrap();
        *ends.entry(end).or_insert(0) += 1;
        assert_eq!(end, End::Whole, "{text}");
    }
    println!("{ends:?} in {:?}", began.elapsed());
    let created = events(&scene.host, "m").unwrap().iter().filter(|e| *e == "create").count();
    assert_eq!(created, 1);
}

/// Clients that ask these models without a pause, until they are told to stop.
struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<BTreeMap<End, u64>>>,
    whole: Arc<AtomicU64>,
}

impl Clients {
    fn start(socket: &Path, models: &[&str], count: usize) -> Self {
        let (stop, whole) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let threads = (0..count)
            .map(|n| {
                let (stop, whole, socket) = (stop.clone(), whole.clone(), PathBuf::from(socket));
                let models: Vec<String> = models.iter().map(|m| (*m).to_owned()).collect();
                std::thread::spawn(move || {
                    let (mut ends, mut at) = (BTreeMap::new(), n);
                    while !stop.load(Ordering::Relaxed) {
                        at += 1;
                        // Mostly one, so that models stay for a while; the others make it leave.
                        let model = &models
                            [if at % 7 == 0 { (at / 7) % models.len() } else { n % models.len() }];
                        let (end, text) = ask(&socket, model);
                        if end == End::Wrong {
                            eprintln!("wrong: {text}");
                        }
                        whole.fetch_add(u64::from(end == End::Whole), Ordering::Relaxed);
                        *ends.entry(end).or_insert(0) += 1;
                        if end == End::Refused {
                            std::thread::sleep(Duration::from_millis(200));
                        }
                    }
                    ends
                })
            })
            .collect();
        Self { stop, threads, whole }
    }

    fn end(self) -> BTreeMap<End, u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for thread in self.threads {
            for (end, n) in thread.join().unwrap() {
                *all.entry(end).or_insert(0) += n;
            }
        }
        all
    }
}

/// At most one container of each model.
fn one_each(host: &Host, when: &str) {
    let list = containers(host).unwrap();
    for model in ["a", "b", "c"] {
        let prefix = format!("hostler-{model}-");
        let own: Vec<_> = list.iter().filter(|(_, name)| name.starts_with(&prefix)).collect();
        assert!(own.len() <= 1, "{when}: {own:?}");
    }
}

/// Nothing is left of anything, and all memory is back.
fn stops_clean(scene: &Scene) {
    scene.host.root("systemctl stop hostler.service").unwrap();
    nothing_left(&scene.host);
    assert_eq!(containers(&scene.host).unwrap(), []);
    assert_eq!(scene.truth(A).used, 0, "memory of nobody");
    let journal = scene.host.root("cat /var/lib/hostler/state/journal").unwrap();
    assert!(journal.contains("\"entries\":[]"), "{journal}");
}

/// A host on which two of three models fit, with a daemon that systemd restarts at once each time.
fn contested() -> Scene {
    let script = Script::with_gpus(vec![Gpu::new(A, 10 * GIB)]);
    let models = [Fake::sized("a", 4), Fake::sized("b", 4), Fake::sized("c", 4)];
    let policy = "[policy]\nmin_residency = \"1s\"\n[server]\nmax_wait = \"60s\"\n";
    let scene = Scene::new(&script, policy, &models).unwrap();
    let dropin = "[Service]\nRestartSec=100ms\nRestartSteps=0\nRestartMaxDelaySec=infinity\n";
    let path = "/etc/systemd/system/hostler.service.d/soak.conf";
    scene.host.write_file(path, dropin).unwrap();
    scene.host.root("systemctl daemon-reload").unwrap();
    scene
}

#[test]
fn fault_28_a_daemon_that_is_killed_at_any_point_under_load_loses_and_leaves_nothing() {
    skip_unless_wanted!();
    let scene = contested();
    let socket = scene.host.path("/run/hostler/http.sock");
    let clients = Clients::start(&socket, &["a", "b", "c"], 4);
    let kills = number("KILLS", 6);
    let mut slowest = Duration::ZERO;
    for round in 0..kills {
        // Spread over a whole load and more; at times in the middle of the start that follows the last kill.
        std::thread::sleep(Duration::from_millis(50 + round * 613 % 2_500));
        scene
            .host
            .root("systemctl kill --signal=SIGKILL --kill-whom=main hostler.service || true")
            .unwrap();
        let (killed, before) = (Instant::now(), clients.whole.load(Ordering::Relaxed));
        if round % 10 == 9 || round + 1 == kills {
            wait_for("an answer after a kill", ANSWER, || {
                let more = clients.whole.load(Ordering::Relaxed) > before + 4;
                Ok(if more { Look::Done(()) } else { Look::NotYet(format!("round {round}")) })
            })
            .unwrap();
            slowest = slowest.max(killed.elapsed());
            one_each(&scene.host, &format!("round {round}"));
        }
    }
    let ends = clients.end();
    println!("{kills} kills: {ends:?}; served again after {slowest:?} at most");
    assert_eq!(ends.get(&End::NotConnected), None, "{ends:?}");
    assert_eq!(ends.get(&End::Wrong), None, "{ends:?}");
    assert!(ends[&End::Whole] > kills, "{ends:?}");
    scene.never_over_committed();
    stops_clean(&scene);
}

#[test]
#[ignore = "make soak runs it: kills podman's API at random points of creates and starts, API_KILLS times"]
fn soak_podman_is_killed_while_it_creates_and_starts() {
    let scene = contested();
    let socket = scene.host.path("/run/hostler/http.sock");
    let kills = number("API_KILLS", 200);
    let (mut whole, mut refused) = (0, 0);
    for round in 0..kills {
        let (socket, model) = (socket.clone(), ["a", "b", "c"][round as usize % 3]);
        // The third always makes one leave: each round there is a stop, a create and a start.
        let client = std::thread::spawn(move || ask(&socket, model));
        std::thread::sleep(Duration::from_millis(round * 37 % 400));
        scene.host.root("systemctl --user -M hostler@ kill --kill-whom=main --signal=KILL hostler-podman.service || true").unwrap();
        let (end, text) = client.join().unwrap();
        match end {
            End::Whole => whole += 1,
            End::Refused => refused += 1,
            End::Cut | End::NotConnected | End::Wrong => panic!("round {round}: {end:?} {text}"),
        }
        one_each(&scene.host, &format!("round {round}"));
    }
    println!("{kills} kills of podman: {whole} answers, {refused} clear refusals");
    scene.never_over_committed();
    stops_clean(&scene);
}

/// What the daemon holds: resident kilobytes and file descriptors.
fn held(host: &Host) -> (u64, u64) {
    let text = host
        .root("p=$(pgrep --exact hostlerd); awk '/VmRSS/ {print $2}' /proc/$p/status; ls /proc/$p/fd | wc -l")
        .unwrap();
    let mut numbers = text.lines().map(|line| line.trim().parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
#[ignore = "make soak runs it: MINUTES of mixed load with evictions"]
fn soak_memory_and_descriptors_stay_flat_under_load() {
    let scene = contested();
    let socket = scene.host.path("/run/hostler/http.sock");
    let clients = Clients::start(&socket, &["a", "b", "c"], 3);
    let minutes = number("MINUTES", 30);
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let mut samples: Vec<(u64, u64)> = Vec::new();
    while Instant::now() < end {
        std::thread::sleep(Duration::from_secs(10).min(end - Instant::now()));
        samples.push(held(&scene.host));
    }
    let evictions = scene.host.journal("hostler.service").unwrap().matches("(evicted)").count();
    let ends = clients.end();
    println!("{minutes} minutes: {ends:?}, {evictions} evictions");
    println!("(RSS in kB, descriptors), each 10 s: {samples:?}");
    assert_eq!(
        ends.get(&End::Wrong).or(ends.get(&End::NotConnected)).or(ends.get(&End::Cut)),
        None,
        "{ends:?}"
    );
    assert!(evictions as u64 > minutes, "{evictions}");
    // The last third against the second one: the first warms up.
    let third = samples.len() / 3;
    let mean = |part: &[(u64, u64)], of: fn(&(u64, u64)) -> u64| {
        part.iter().map(of).sum::<u64>() / part.len().max(1) as u64
    };
    let (middle, last) = (&samples[third..2 * third], &samples[2 * third..]);
    let (rss, rss_last) = (mean(middle, |s| s.0), mean(last, |s| s.0));
    let (fds, fds_last) = (mean(middle, |s| s.1), mean(last, |s| s.1));
    println!("RSS {rss} → {rss_last} kB, descriptors {fds} → {fds_last}");
    assert!(rss_last <= rss + rss / 10, "RSS grows: {rss} → {rss_last} kB");
    assert!(fds_last <= fds + 4, "descriptors grow: {fds} → {fds_last}");
    scene.never_over_committed();
    stops_clean(&scene);
}
