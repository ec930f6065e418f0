//! What a scrape gets.

use std::process::Command;
use std::time::Duration;

use hostler::observe::metrics::names;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::house::{ADMIN, House, KEY};
use crate::page::{Sample, find, samples};
use crate::{content, feed, tool};

/// A machine that is busy with other things.
const SOON: Duration = Duration::from_secs(60);

struct Reply {
    status: u16,
    head: String,
    body: String,
}

async fn ask(house: &House, request: String) -> Reply {
    let exchange = async {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = tokio::time::timeout(SOON, exchange).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head[9..12].parse().unwrap();
    Reply { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

async fn get(house: &House, path: &str, headers: &str) -> Reply {
    ask(house, format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}connection: close\r\n\r\n"))
        .await
}

async fn post(house: &House, path: &str, body: &str) -> Reply {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n"
    );
    ask(house, head + body).await
}

async fn chat(house: &House, model: &str, stream: bool) -> Reply {
    let body = format!(
        "{{\"model\":\"{model}\",\"stream\":{stream},\"max_tokens\":8,\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}"
    );
    post(house, "/v1/chat/completions", &body).await
}

/// The page, once something is to be seen on it: a request is counted when its answer's body is dropped, which may be after the client
/// has it all.
async fn page(house: &House, seen: impl Fn(&[Sample]) -> bool) -> (String, Vec<Sample>) {
    let looking = async {
        loop {
            let reply = get(house, "/metrics", "").await;
            assert_eq!(reply.status, 200, "{}", reply.body);
            let found = samples(&reply.body);
            if seen(&found) {
                return (reply.body, found);
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, looking).await.unwrap()
}

fn answered(samples: &[Sample], count: f64) -> bool {
    let labels = [("model", "org/fake"), ("endpoint", "chat_completions"), ("code", "200")];
    find(samples, "hostler_requests_total", &labels) == Some(count)
}

/// Whether so many requests at an endpoint are over.
fn asked(samples: &[Sample], endpoint: &str, count: f64) -> bool {
    let at = |s: &&Sample| s.labels.get("endpoint").is_some_and(|is| is == endpoint);
    let all = samples.iter().filter(|s| s.name == "hostler_requests_total").filter(at);
    all.map(|s| s.value).sum::<f64>() == count
}

/// What is counted of requests for the model, chats aside.
fn other_than_chat(samples: &[Sample]) -> Vec<&Sample> {
    let is = |s: &Sample, label, value| s.labels.get(label).is_some_and(|is| is == value);
    let counted =
        |s: &Sample| s.labels.contains_key("endpoint") || s.name == "hostler_denied_total";
    // One of a histogram is enough.
    let once = |s: &Sample| !s.labels.contains_key("le");
    let of_it = samples.iter().filter(|s| is(s, "model", "org/fake") && counted(s) && once(s));
    of_it.filter(|s| !is(s, "endpoint", "chat_completions")).collect()
}

async fn busy() -> House {
    let knobs = [("FAKE_LOAD", "300ms")];
    let house = House::new("", &knobs, |rules| {
        rules.feedback_after = Duration::from_millis(20);
        rules.feedback_interval = Duration::from_millis(20);
    })
    .await;
    // By its alias and its name.
    assert_eq!(chat(&house, "gpt-4o", true).await.status, 200);
    assert_eq!(chat(&house, "org/fake", false).await.status, 200);
    assert_eq!(chat(&house, "nobody", false).await.status, 404);
    assert_eq!(get(&house, "/nowhere", "").await.status, 404);
    house
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_the_load_are_counted() {
    let house = busy().await;
    let model = ("model", "org/fake");
    // The supervisor's picture, which has the chunks, is a moment behind what passes.
    let streamed = |p: &[Sample]| find(p, "hostler_stream_chunks_total", &[model]) >= Some(8.0);
    let (_, page) = page(&house, |p| answered(p, 2.0) && streamed(p)).await;
    let endpoint = ("endpoint", "chat_completions");
    let of = |name: &str, labels: &[(&str, &str)]| find(&page, name, labels);
    for histogram in ["request_duration", "time_to_first_byte", "queue_wait"] {
        let count = format!("hostler_{histogram}_seconds_count");
        assert_eq!(of(&count, &[model, endpoint]), Some(2.0), "{histogram}");
    }
    // The load, of which the client was given signs of life, was before the first byte of the engine's.
    let first = of("hostler_time_to_first_byte_seconds_sum", &[model, endpoint]).unwrap();
    assert!(first >= 0.3, "{first}");
    let gaps = of("hostler_inter_chunk_delay_seconds_count", &[model, endpoint]).unwrap();
    assert!((1.0..=64.0).contains(&gaps), "{gaps}");
    let all = of("hostler_inter_chunk_delay_seconds_bucket", &[model, endpoint, ("le", "+Inf")]);
    assert_eq!(all, Some(gaps));

    let key = ("key", "tester");
    assert_eq!(of("hostler_key_requests_total", &[key, model]), Some(2.0));
    let seconds = of("hostler_key_engine_seconds_total", &[key, model]).unwrap();
    assert!(seconds > 0.0, "{seconds}");

    let no_model = [("model", ""), endpoint, ("code", "404")];
    assert_eq!(of("hostler_requests_total", &no_model), Some(1.0));
    let refused = [("model", ""), ("endpoint", "refused"), ("code", "404")];
    assert_eq!(of("hostler_requests_total", &refused), Some(1.0));
    let denied = |reason| of("hostler_denied_total", &[("model", ""), ("reason", reason)]);
    assert_eq!((denied("model_not_found"), denied("unknown_path")), (Some(1.0), Some(1.0)));

    assert_eq!(of("hostler_loads_total", &[model, ("result", "ok")]), Some(1.0));
    for step in ["create", "load", "total", "first_token"] {
        let count = of("hostler_model_load_duration_seconds_count", &[model, ("step", step)]);
        assert_eq!(count, Some(1.0), "{step}");
    }
    let sum =
        |step| of("hostler_model_load_duration_seconds_sum", &[model, ("step", step)]).unwrap();
    assert!(sum("load") >= 0.3 && sum("first_token") < sum("load"), "{page:?}");

    let phases = page.iter().filter(|s| s.name == "hostler_model_phase");
    assert_eq!(phases.clone().count(), 12);
    assert_eq!(phases.map(|s| s.value).sum::<f64>(), 1.0);
    assert_eq!(of("hostler_model_phase", &[model, ("phase", "ready")]), Some(1.0));
    assert_eq!(of("hostler_breaker_state", &[model, ("state", "closed")]), Some(1.0));
    let kinds = ["total", "headroom", "reserved", "confirmed", "releasing", "quarantined"];
    for kind in kinds {
        let known = of("hostler_gpu_memory_bytes", &[("gpu", "host"), ("kind", kind)]);
        assert!(known.is_some(), "{kind}");
    }
    assert!(of("hostler_reconciles_total", &[("source", "devices"), ("result", "ok")]).is_some());
    // The host has no such driver: absent, never 0.
    assert!(!page.iter().any(|s| s.name.starts_with("hostler_gpu_temperature")));
    assert!(of("process_resident_memory_bytes", &[]).unwrap() > 1e6);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let age = now.as_secs_f64() - of("process_start_time_seconds", &[]).unwrap();
    assert!((-60.0..86_400.0).contains(&age), "{age}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_whole_and_real_parsers_take_it() {
    let house = busy().await;
    let (text, _) = page(&house, |p| answered(p, 2.0)).await;
    let open =
        get(&house, "/metrics", "accept: application/openmetrics-text; version=1.0.0\r\n").await;
    assert!(open.head.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert!(open.body.ends_with("# EOF\n"));
    for metric in names::ALL {
        let (name, kind) = (metric.name, metric.kind.as_str());
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is not on the page");
        assert!(text.contains(&format!("# HELP {name} {}", metric.help)), "{name}");
        let open_name = name.trim_end_matches("_total");
        assert!(open.body.contains(&format!("# TYPE {open_name} {kind}\n")), "{name}");
    }
    let test = "metrics::the_page_is_whole_and_real_parsers_take_it";
    if let Some(promtool) = tool(test, "promtool") {
        content("promtool", &feed(Command::new(promtool).args(["check", "metrics"]), &text));
    }
    if let Some(python) = tool(test, "openmetrics") {
        let program = "import sys\nfrom prometheus_client.openmetrics.parser import text_string_to_metric_families as p\n\
                       n = sum(len(f.samples) for f in p(sys.stdin.read()))\nassert n > 100, n";
        let mut command = Command::new("python3");
        let command = command.args(["-c", program]).env("PYTHONPATH", python);
        content("the OpenMetrics parser", &feed(command, &open.body));
    }
}

/// A stream that was refused looks like one that went well but for who broke it off: what alerts go by.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_refused_after_signs_of_life_is_broken_off_by_the_host() {
    let house = House::new("", &[("FAKE_LOAD", "60s")], |rules| {
        rules.feedback_after = Duration::from_millis(20);
        rules.stream_wait = Duration::from_millis(60);
    })
    .await;
    let reply = chat(&house, "org/fake", true).await;
    assert!(reply.status == 200 && reply.body.contains("model_loading"), "{}", reply.body);
    let (_, page) = page(&house, |p| answered(p, 1.0)).await;
    let (model, endpoint) = (("model", "org/fake"), ("endpoint", "chat_completions"));
    let broken = |side| {
        let labels = [model, endpoint, ("side", side)];
        find(&page, "hostler_requests_aborted_total", &labels)
    };
    assert_eq!((broken("host"), broken("engine")), (Some(1.0), Some(0.0)));
    let denied = [model, ("reason", "model_loading")];
    assert_eq!(find(&page, "hostler_denied_total", &denied), Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_made_up_models_make_no_series() {
    let house = House::new("", &[], |_| {}).await;
    let first = page(&house, |_| true).await.1.len();
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let (mut read, mut write) = stream.split();
    let asked = async {
        for n in 0..10_000_u32 {
            // Names that could be, in every other request, and texts that could not.
            let odd = if n % 2 == 0 { "" } else { " \\\"}{\\n" };
            let body = format!("{{\"model\":\"m{}{odd}\"}}", n.wrapping_mul(2_654_435_761));
            let request = format!(
                "POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
                 x-request-id: {n}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            write.write_all(request.as_bytes()).await.unwrap();
        }
    };
    let answered = async {
        let (mut answers, mut tail, mut buffer) = (0, Vec::new(), vec![0; 64 << 10]);
        while answers < 10_000 {
            let n = read.read(&mut buffer).await.unwrap();
            assert!(n > 0, "closed after {answers} answers");
            tail.extend_from_slice(&buffer[..n]);
            let text = String::from_utf8_lossy(&tail).into_owned();
            answers += text.matches("HTTP/1.1 404").count();
            assert!(!text.contains("HTTP/1.1 5"), "{text}");
            // What may be the beginning of the next one.
            let keep = text.len().min(11);
            tail = text.as_bytes()[text.len() - keep..].to_vec();
        }
    };
    tokio::time::timeout(SOON, async { tokio::join!(asked, answered) }).await.unwrap();
    let of = |p: &[Sample]| {
        let labels = [("model", ""), ("endpoint", "completions"), ("code", "404")];
        find(p, "hostler_requests_total", &labels)
    };
    let (_, last) = page(&house, |p| of(p) == Some(10_000.0)).await;
    let more = last.len() - first;
    assert!(more < 25, "{more} series more");
    let models = last.iter().filter_map(|s| s.labels.get("model"));
    assert!(models.clone().all(|m| m.is_empty() || m == "org/fake"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_administrator_does_to_a_model_is_no_request_for_it() {
    let house = House::new("", &[], |_| {}).await;
    assert_eq!(chat(&house, "org/fake", false).await.status, 200);
    let boss = format!("authorization: Bearer {ADMIN}\r\n");
    let log = get(&house, "/api/v1/models/org/fake/log", &boss).await;
    assert!(log.status == 200 && log.body.contains("listens"), "{}", log.body);
    for act in ["pin", "unpin"] {
        let head = format!(
            "POST /api/v1/models/org/fake/{act} HTTP/1.1\r\nhost: x\r\n{boss}content-length: 0\r\nconnection: close\r\n\r\n"
        );
        let reply = ask(&house, head).await;
        assert_eq!(reply.status, 200, "{act}: {}", reply.body);
    }
    let (_, after) = page(&house, |p| asked(p, "log", 1.0) && asked(p, "act", 2.0)).await;
    assert_eq!(other_than_chat(&after), [] as [&Sample; 0]);
}

/// Prometheus takes the first value of a count that it sees for where the count began.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_of_a_model_is_there_before_it_happens() {
    let house = House::new("", &[], |_| {}).await;
    let model = ("model", "org/fake");
    let (_, first) = page(&house, |_| true).await;
    for (name, labels) in [
        ("hostler_loads_total", &[("result", "ok")][..]),
        ("hostler_loads_total", &[("result", "failed")]),
        ("hostler_loads_total", &[("result", "abandoned")]),
        ("hostler_model_failures_total", &[("code", "engine_exited")]),
        ("hostler_model_failures_total", &[("code", "load_timeout")]),
        ("hostler_evictions_total", &[("reason", "evicted"), ("to", "stopped")]),
        ("hostler_evictions_total", &[("reason", "idle"), ("to", "stopped")]),
    ] {
        let labels: Vec<(&str, &str)> = labels.iter().copied().chain([model]).collect();
        assert_eq!(find(&first, name, &labels), Some(0.0), "{name} {labels:?}");
    }
    let sleeps = |s: &Sample| s.labels.get("to").is_some_and(|to| to == "asleep");
    assert!(!first.iter().any(sleeps), "it never sleeps");
    let of_it = first.iter().filter(|s| s.labels.get("model").is_some_and(|m| m == "org/fake"));
    let count = of_it.count();
    assert!(count < 64, "{count} series of a model that nobody has used");

    assert_eq!(chat(&house, "org/fake", false).await.status, 200);
    let (_, used) = page(&house, |p| answered(p, 1.0)).await;
    for side in ["client", "engine", "host"] {
        let labels = [model, ("endpoint", "chat_completions"), ("side", side)];
        assert_eq!(find(&used, "hostler_requests_aborted_total", &labels), Some(0.0), "{side}");
    }
    assert_eq!(find(&used, "hostler_loads_total", &[model, ("result", "ok")]), Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engines_own_metrics_are_relayed_and_wake_nobody() {
    let house = House::new("", &[], |_| {}).await;
    let path = "/metrics/models/org/fake";
    let reply = get(&house, path, "").await;
    assert_eq!(reply.status, 503, "{}", reply.body);
    assert!(reply.body.contains("model_not_ready"), "{}", reply.body);
    assert_eq!(get(&house, "/metrics/models/nobody", "").await.status, 404);
    let (_, before) = page(&house, |p| asked(p, "engine_metrics", 2.0)).await;
    assert_eq!(other_than_chat(&before), [] as [&Sample; 0], "the model was asked for");
    let denied = before.iter().filter(|s| s.name == "hostler_denied_total");
    assert_eq!(denied.collect::<Vec<_>>(), [] as [&Sample; 0], "of scrapes nothing is refused");
    let stopped = [("model", "org/fake"), ("phase", "stopped")];
    assert_eq!(find(&before, "hostler_model_phase", &stopped), Some(1.0), "nobody was woken");

    assert_eq!(chat(&house, "org/fake", false).await.status, 200);
    let (_, used) = page(&house, |p| answered(p, 1.0)).await;
    let idle = find(&used, "hostler_model_idle_seconds", &[("model", "org/fake")]).unwrap();
    for path in [path, "/metrics/models/gpt-4o", "/metrics/models/org%2Ffake"] {
        let reply = get(&house, path, "").await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        let found = samples(&reply.body);
        assert!(found.iter().all(|s| s.labels["model"] == "org/fake"), "{path}");
        let name = "llamacpp:tokens_predicted_total";
        assert_eq!(find(&found, name, &[]), Some(8.0), "{path}");
        let test = "metrics::an_engines_own_metrics_are_relayed_and_wake_nobody";
        if let Some(promtool) = tool(test, "promtool") {
            let output = feed(Command::new(promtool).args(["check", "metrics"]), &reply.body);
            // Its lint dislikes what engines call their metrics; what it cannot read it says otherwise.
            assert_ne!(output.status.code(), Some(1), "{:?}", output);
        }
    }
    let (_, after) = page(&house, |p| asked(p, "engine_metrics", 5.0)).await;
    assert_eq!(other_than_chat(&after), [] as [&Sample; 0]);
    let still = find(&after, "hostler_model_idle_seconds", &[("model", "org/fake")]).unwrap();
    assert!(still >= idle, "a scrape counted as use: {still} after {idle}");
    assert_eq!(find(&after, "hostler_requests_in_flight", &[("model", "org/fake")]), Some(0.0));
}
