//! The engine in-process, over a real Unix socket: surfaces, streams, aborts, sleep, wire faults.

#![expect(clippy::unwrap_used, reason = "a panic is the failure report")]

mod common;

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use common::{Client, chat, configure, count, get, ms, post, stream, until};
use fake_engine::{Config, Engine, Exit, Listen};
use nvidia_ml::{Gpu, Script, StateDir};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const GPU: &str = "GPU-0";
const GIB: u64 = 1 << 30;

struct Running {
    engine: Arc<Engine>,
    task: JoinHandle<Exit>,
    socket: PathBuf,
    nvstub: StateDir,
    _root: tempfile::TempDir,
}

impl Running {
    fn start(knobs: &[(&str, &str)], change: impl FnOnce(&mut Config)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (socket, nvstub) = (root.path().join("e.sock"), StateDir::new(root.path().join("nv")));
        Script::with_gpus(vec![Gpu::new(GPU, 24 * GIB)]).save(&nvstub).unwrap();
        let mut config = Config::unix("m", &socket);
        config.nvstub = nvstub.clone();
        for (knob, value) in [("RATE", "2000"), ("TTFT", "1ms")].iter().chain(knobs) {
            config = config.with(knob, value).unwrap();
        }
        change(&mut config);
        let (engine, task) = fake_engine::start(config);
        Self { engine, task, socket, nvstub, _root: root }
    }

    async fn with(knobs: &[(&str, &str)]) -> Self {
        let running = Self::start(knobs, |_| {});
        assert!(running.engine.ready().await, "ready");
        running
    }

    fn used(&self) -> u64 {
        nvidia_ml::usage(&self.nvstub, GPU).unwrap().unwrap().used
    }

    /// A stream with its first `tokens` tokens read.
    async fn begun(&self, tokens: usize) -> Client {
        let mut client = Client::unix(&self.socket).await;
        client.send("POST", "/v1/chat/completions", &chat(500, true)).await;
        assert_eq!(client.head().await.unwrap().status, 200);
        for _ in 0..=tokens {
            client.chunk().await.unwrap();
        }
        client
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const LLAMA: (&str, &str) = ("FLAVOR", "llamacpp");

#[tokio::test]
async fn a_vllm_stream_counts_exactly() {
    let e = Running::with(&[]).await;
    let mut client = Client::unix(&e.socket).await;
    let mut ask = chat(20, true);
    ask["stream_options"] = json!({"include_usage": true});
    for _ in 0..2 {
        let answer = client.call("POST", "/v1/chat/completions", &ask).await;
        assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
        assert_eq!((answer.said(), answer.finish()), (count(20), "length".into()));
        assert!(answer.whole && answer.done());
        let events = answer.events();
        assert_eq!(events.len(), 1 + 20 + 1 + 1 + 1);
        assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        let usage = json!({"prompt_tokens": 2, "completion_tokens": 20, "total_tokens": 22});
        assert_eq!(events[22]["usage"], usage);
    }
    assert!(!client.closed_within(ms(50)).await, "the connection is kept");
}

#[tokio::test]
async fn a_llamacpp_stream_closes_its_connection_unannounced() {
    let e = Running::with(&[LLAMA]).await;
    let mut client = Client::unix(&e.socket).await;
    let answer = client.call("POST", "/v1/chat/completions", &chat(5, true)).await;
    assert_eq!(answer.said(), count(5));
    let events = answer.events();
    assert_eq!(events[0]["choices"][0]["delta"]["content"], Value::Null);
    assert_eq!(events[6]["timings"]["predicted_n"], 5);
    assert_eq!(answer.header("connection"), None);
    assert_eq!(answer.header("keep-alive"), Some("timeout=5, max=100"));
    assert!(answer.whole && client.closed_within(ms(500)).await);
}

#[tokio::test]
async fn whole_answers_stops_and_defaults() {
    let e = Running::with(&[]).await;
    let mut ask = chat(99, false);
    ask["stop"] = json!([" 7"]);
    let answer = post(&e.socket, "/v1/chat/completions", &ask).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], count(6));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 7);
    let ask = json!({"model": "m", "prompt": "on from 40"});
    let answer = post(&e.socket, "/v1/completions", &ask).await.json();
    assert!(answer["choices"][0]["text"].as_str().unwrap().starts_with(" 41 42"));
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    configure(&e.socket, json!({"text": "echo"})).await;
    let answer = post(&e.socket, "/v1/chat/completions", &chat(99, false)).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "please count");
    let ask = json!({"model": "m", "input": ["a", "b"]});
    let answer = post(&e.socket, "/v1/embeddings", &ask).await.json();
    assert_eq!(answer["data"][1]["embedding"].as_array().unwrap().len(), 384);
}

#[tokio::test]
async fn errors_have_each_engines_own_form() {
    let e = Running::with(&[]).await;
    let mut ask = chat(1, false);
    ask["model"] = json!("other");
    let answer = post(&e.socket, "/v1/chat/completions", &ask).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!(404)));
    let answer = get(&e.socket, "/nowhere").await;
    assert_eq!((answer.status, answer.json()), (404, json!({"detail": "Not Found"})));
    let answer = post(&e.socket, "/v1/chat/completions", &json!([1])).await;
    assert_eq!(answer.status, 400);
    let health = get(&e.socket, "/health").await;
    assert_eq!((health.status, health.body.len()), (200, 0));
    let models = get(&e.socket, "/v1/models").await.json();
    assert_eq!(models["data"][0]["max_model_len"], 32_768);

    let e = Running::start(&[LLAMA], |config| config.api_key = Some("k".into()));
    assert!(e.engine.ready().await);
    let answer = post(&e.socket, "/v1/chat/completions", &ask).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (401, &json!(401)));
    let e = Running::with(&[LLAMA]).await;
    let answer = post(&e.socket, "/v1/chat/completions", &ask).await;
    assert_eq!((answer.status, &answer.json()["model"]), (200, &json!("other")));
    let answer = get(&e.socket, "/nowhere").await;
    assert_eq!(answer.json()["error"]["type"], "not_found_error");
}

#[tokio::test]
async fn vllm_is_not_there_until_it_is_ready() {
    let e = Running::start(&[("LOAD_PHASES", "weights=150ms,warmup=150ms")], |_| {});
    let begun = Instant::now();
    while !e.socket.exists() {
        assert!(begun.elapsed() < ms(5000));
        tokio::time::sleep(ms(1)).await;
    }
    assert!(begun.elapsed() >= ms(290), "listened after {:?}", begun.elapsed());
    assert_eq!(get(&e.socket, "/health").await.status, 200);
}

#[tokio::test]
async fn llamacpp_says_that_it_loads_and_memory_grows_meanwhile() {
    let knobs = [LLAMA, ("LOAD", "500ms"), ("VRAM", "weights=8GiB,kv=2GiB,overhead=1GiB")];
    let (e, mut seen) = (Running::start(&knobs, |_| {}), Vec::new());
    while !e.socket.exists() {
        tokio::time::sleep(ms(1)).await;
    }
    loop {
        seen.push(e.used());
        let health = get(&e.socket, "/health").await;
        if health.status == 200 {
            break;
        }
        let error = &health.json()["error"];
        let loading = json!({"message": "Loading model", "type": "unavailable_error", "code": 503});
        assert_eq!((health.status, error), (503, &loading));
        let asked = post(&e.socket, "/v1/chat/completions", &chat(1, false)).await.status;
        // Or it has become ready since.
        assert!(asked == 503 || get(&e.socket, "/health").await.status == 200, "{asked}");
        tokio::time::sleep(ms(5)).await;
    }
    assert_eq!(e.used(), 11 * GIB);
    seen.dedup();
    assert!(seen.is_sorted() && seen.len() > 5, "a ramp: {seen:?}");
}

#[tokio::test]
async fn a_client_that_leaves_is_noted_at_once() {
    let e = Running::with(&[("RATE", "20"), ("SLOTS", "1")]).await;
    let aborted = |n: u64| move |state: &Value| state["counters"]["aborted"] == n;
    let streaming = e.begun(2).await;
    let mut queued = Client::unix(&e.socket).await;
    queued.send("POST", "/v1/chat/completions", &chat(500, true)).await;
    until(&e.socket, ms(1000), |state| state["waiting"] == 1).await;
    drop(queued);
    assert!(until(&e.socket, ms(1000), aborted(1)).await < ms(100));
    drop(streaming);
    assert!(until(&e.socket, ms(1000), aborted(2)).await < ms(100));
    let mut whole = Client::unix(&e.socket).await;
    whole.send("POST", "/v1/chat/completions", &chat(500, false)).await;
    until(&e.socket, ms(1000), |state| state["running"] == 1).await;
    drop(whole);
    assert!(until(&e.socket, ms(1000), aborted(3)).await < ms(100));
    let state = get(&e.socket, "/_fake/state").await.json();
    assert_eq!((&state["running"], &state["waiting"]), (&json!(0), &json!(0)));
    assert_eq!(state["aborts"][0]["had_slot"], false);
    assert!(state["aborts"][1]["tokens"].as_u64().unwrap() >= 2);
    assert_eq!(state["requests"][0]["path"], "/v1/chat/completions");
    let headers = state["requests"][0]["headers"].as_array().unwrap();
    assert!(headers.contains(&json!(["x-request-id", "r-1"])));
    assert_eq!(stream(&e.socket, 1).await.said(), " 1", "the slot is free again");
    until(&e.socket, ms(1000), |state| state["counters"]["finished"] == 1).await;
}

#[tokio::test]
async fn slots_bound_and_the_queue_refuses() {
    let e = Running::with(&[("RATE", "50"), ("SLOTS", "2"), ("QUEUE", "1")]).await;
    let _running = (e.begun(1).await, e.begun(1).await);
    let mut queued = Client::unix(&e.socket).await;
    queued.send("POST", "/v1/chat/completions", &chat(1, true)).await;
    until(&e.socket, ms(1000), |state| state["waiting"] == 1).await;
    assert_eq!(stream(&e.socket, 1).await.status, 503);
    drop(_running);
    let head = queued.head().await.unwrap();
    assert_eq!(queued.rest(head).await.said(), " 1");
}

#[tokio::test]
async fn sleep_frees_memory_and_requests_wait_for_the_wake() {
    let knobs = [("VRAM", "weights=8GiB,kv=4GiB,overhead=1GiB"), ("SLEEP2", "512MiB")];
    let e = Running::with(&knobs).await;
    assert_eq!(e.used(), 13 * GIB);
    for (level, residue) in [(1, GIB), (2, GIB / 2)] {
        let path = format!("/sleep?level={level}");
        assert_eq!(post(&e.socket, &path, &Value::Null).await.status, 200);
        assert_eq!(e.used(), residue);
        let sleeping = get(&e.socket, "/is_sleeping").await.json();
        assert_eq!(sleeping, json!({"is_sleeping": true}));
        assert_eq!(get(&e.socket, "/health").await.status, 200, "healthy, even asleep");
        let mut waiting = Client::unix(&e.socket).await;
        waiting.send("POST", "/v1/chat/completions", &chat(3, true)).await;
        assert!(tokio::time::timeout(ms(100), waiting.head()).await.is_err(), "it hangs");
        let woken = post(&e.socket, "/wake_up?tags=weights", &Value::Null).await;
        assert_eq!((woken.status, e.used()), (200, 9 * GIB));
        post(&e.socket, "/collective_rpc", &json!({"method": "reload_weights"})).await;
        post(&e.socket, "/wake_up", &Value::Null).await;
        assert_eq!(e.used(), 13 * GIB);
        let head = waiting.head().await.unwrap();
        assert_eq!(waiting.rest(head).await.said(), count(3));
    }
    assert_eq!(post(&e.socket, "/sleep?level=9", &Value::Null).await.status, 400);
}

#[tokio::test]
async fn sleep_without_its_mode_only_says_so_and_without_dev_mode_is_not_there() {
    let change = |config: &mut Config| config.sleep_mode = false;
    let e = Running::start(&[("VRAM", "2GiB")], change);
    assert!(e.engine.ready().await);
    assert_eq!(post(&e.socket, "/sleep", &Value::Null).await.status, 200);
    assert_eq!(get(&e.socket, "/is_sleeping").await.json()["is_sleeping"], true);
    assert_eq!(e.used(), 2 * GIB);
    post(&e.socket, "/wake_up", &Value::Null).await;
    assert_eq!(stream(&e.socket, 2).await.said(), count(2));
    let e = Running::start(&[], |config| config.dev_mode = false);
    assert!(e.engine.ready().await);
    let answer = post(&e.socket, "/sleep", &Value::Null).await;
    assert_eq!((answer.status, answer.json()), (404, json!({"detail": "Not Found"})));
}

#[tokio::test]
async fn sleep_treats_running_streams_by_its_mode() {
    let e = Running::with(&[("RATE", "100")]).await;
    let read = |mut client: Client| async move {
        let answer = common::Answer { status: 0, head: vec![], body: vec![], whole: false };
        client.rest(answer).await
    };
    let running = e.begun(2).await;
    post(&e.socket, "/sleep?level=1", &Value::Null).await;
    let aborted = read(running).await;
    assert_eq!((aborted.finish(), aborted.done()), ("abort".into(), true));
    post(&e.socket, "/wake_up", &Value::Null).await;

    let ask = chat(30, true);
    let mut waited = Client::unix(&e.socket).await;
    waited.send("POST", "/v1/chat/completions", &ask).await;
    let head = waited.head().await.unwrap();
    let reading = tokio::spawn(async move { waited.rest(head).await });
    post(&e.socket, "/sleep?level=1&mode=wait", &Value::Null).await;
    let state = get(&e.socket, "/_fake/state").await.json();
    assert_eq!((&state["running"], &state["asleep"]), (&json!(0), &json!(1)));
    assert_eq!(reading.await.unwrap().said(), count(30));
    post(&e.socket, "/wake_up", &Value::Null).await;

    let mut kept = Client::unix(&e.socket).await;
    kept.send("POST", "/v1/chat/completions", &ask).await;
    let head = kept.head().await.unwrap();
    let reading = tokio::spawn(async move { kept.rest(head).await });
    until(&e.socket, ms(1000), |state| state["running"] == 1).await;
    post(&e.socket, "/sleep?level=1&mode=keep", &Value::Null).await;
    tokio::time::sleep(ms(400)).await;
    assert!(!reading.is_finished(), "it stands still");
    post(&e.socket, "/wake_up", &Value::Null).await;
    assert_eq!(reading.await.unwrap().said(), count(30));
}

#[tokio::test]
async fn a_wake_can_go_wrong() {
    let e = Running::with(&[("WAKE", "1=gibberish,2=error"), ("DEATH", "200ms")]).await;
    post(&e.socket, "/sleep?level=1", &Value::Null).await;
    post(&e.socket, "/wake_up", &Value::Null).await;
    assert_eq!(stream(&e.socket, 3).await.said(), "!!!");
    post(&e.socket, "/sleep?level=2", &Value::Null).await;
    assert_eq!(post(&e.socket, "/wake_up", &Value::Null).await.status, 500);
}

#[tokio::test]
async fn every_wire_fault_is_what_it_says() {
    let e = Running::with(&[]).await;
    let with = |chaos: &'static str| {
        let socket = e.socket.clone();
        async move {
            configure(&socket, json!({"chaos": chaos})).await;
            stream(&socket, 5).await
        }
    };
    let answer = with("drop@tok:3").await;
    assert_eq!((answer.said(), answer.whole), (count(3), false));
    let answer = with("half-event@tok:2").await;
    let text = answer.text();
    assert!(!answer.whole && !text.ends_with('\n') && text.contains(" 2"), "{text}");
    let answer = with("error-event@tok:2").await;
    assert!(answer.whole && answer.done() && answer.said() == count(2));
    assert_eq!(answer.events()[3]["error"]["code"], 500);
    let answer = with("no-done").await;
    assert!(answer.whole && !answer.done() && answer.said() == count(5));
    let answer = with("garbage").await;
    assert!(answer.status == 200 && String::from_utf8(answer.body).is_err());
    assert_eq!(with("status:429").await.status, 429);
    let answer = with("big-event:1MB").await;
    assert!(answer.body.len() > 1_000_000 && answer.said() == count(5));
    let answer = with("gzip").await;
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&answer.body[..]).read_to_end(&mut plain).unwrap();
    let plain = common::Answer { body: plain, ..answer };
    assert_eq!((plain.said(), plain.done()), (count(5), true));
    let begun = Instant::now();
    assert_eq!(with("slow-header:150ms").await.said(), count(5));
    assert!(begun.elapsed() >= ms(150));

    configure(&e.socket, json!({"chaos": "close-after-stream"})).await;
    let mut client = Client::unix(&e.socket).await;
    let answer = client.call("POST", "/v1/chat/completions", &chat(2, true)).await;
    assert!(answer.done() && answer.header("connection").is_none());
    assert!(client.closed_within(ms(500)).await);

    configure(&e.socket, json!({"chaos": "stall@tok:2"})).await;
    let stalled = e.begun(2).await;
    tokio::time::sleep(ms(100)).await;
    drop(stalled);
    until(&e.socket, ms(100), |state| state["counters"]["aborted"] == 1).await;
    configure(&e.socket, json!({"chaos": "none"})).await;
    assert!(stream(&e.socket, 5).await.done());
}

#[tokio::test]
async fn a_drop_is_a_reset_on_tcp() {
    let e = Running::start(&[("CHAOS", "drop@tok:2")], |config| {
        config.listen = Listen::Tcp("127.0.0.1:0".parse().unwrap());
    });
    assert!(e.engine.ready().await);
    let address = e.engine.address().unwrap();
    let mut wire = tokio::net::TcpStream::connect(address).await.unwrap();
    let body = chat(5, true).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: e\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    wire.write_all(request.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let error = wire.read_to_end(&mut all).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn settings_change_all_together_or_not_at_all() {
    let e = Running::with(&[]).await;
    let mut client = Client::unix(&e.socket).await;
    let answer = client.call("PUT", "/_fake/config", &json!({"text": "echo", "rate": -1})).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("FAKE_RATE=-1: expected tokens a second"), "{}", answer.text());
    assert_eq!(stream(&e.socket, 2).await.said(), count(2), "still counting");
}

#[tokio::test]
async fn failures_strike_at_their_request_or_token() {
    let mut e = Running::with(&[("FAIL", "exit:7@req:3")]).await;
    for _ in 0..2 {
        assert!(stream(&e.socket, 2).await.done());
    }
    let mut third = Client::unix(&e.socket).await;
    third.send("POST", "/v1/chat/completions", &chat(2, true)).await;
    assert!(third.head().await.is_none(), "no answer");
    assert_eq!((&mut e.task).await.unwrap(), Exit::Code(7));

    let mut e = Running::with(&[("FAIL", "oom@tok:4"), ("VRAM", "1GiB")]).await;
    let answer = stream(&e.socket, 9).await;
    assert_eq!((answer.said(), answer.whole), (count(4), false));
    assert_eq!((&mut e.task).await.unwrap(), Exit::Kill);
    assert_eq!(e.used(), 0);

    let e = Running::with(&[("FAIL", "hang@tok:2")]).await;
    let _hung = e.begun(2).await;
    until(&e.socket, ms(1000), |state| state["frozen"] == true).await;
    assert_eq!(get(&e.socket, "/health").await.status, 200);

    let mut e = Running::with(&[("FAIL", "none")]).await;
    configure(&e.socket, json!({"fail": "abort@50ms"})).await;
    assert_eq!((&mut e.task).await.unwrap(), Exit::Abort);
}

#[tokio::test]
async fn a_dead_engine_core_is_reported_then_the_process_goes() {
    let mut e = Running::with(&[("FAIL", "engine@tok:3"), ("DEATH", "600ms")]).await;
    let begun = Instant::now();
    let answer = stream(&e.socket, 9).await;
    let events = answer.events();
    assert_eq!(events[events.len() - 2]["error"]["code"], 500);
    assert!(answer.whole && answer.done() && answer.said() == count(3));
    assert_eq!(get(&e.socket, "/health").await.status, 503);
    assert_eq!(stream(&e.socket, 9).await.status, 500);
    tokio::time::sleep(ms(300)).await;
    assert!(tokio::net::UnixStream::connect(&e.socket).await.is_err(), "refused");
    assert_eq!((&mut e.task).await.unwrap(), Exit::Code(0));
    assert!(begun.elapsed() >= ms(580));
}

#[tokio::test]
async fn an_orderly_end_tells_vllm_streams_and_cuts_llamacpp_ones() {
    for (flavor, told) in [("vllm", true), ("llamacpp", false)] {
        let mut e = Running::with(&[("FLAVOR", flavor), ("RATE", "50")]).await;
        let mut client = e.begun(2).await;
        let reading = tokio::spawn(async move {
            let answer = common::Answer { status: 0, head: vec![], body: vec![], whole: false };
            client.rest(answer).await
        });
        e.engine.terminate();
        let answer = reading.await.unwrap();
        assert_eq!(answer.whole, told, "{flavor}");
        if told {
            let events = answer.events();
            assert_eq!(events[events.len() - 2]["error"]["code"], 500);
            assert!(answer.done());
        }
        assert_eq!((&mut e.task).await.unwrap(), Exit::Code(0));
    }
}

#[tokio::test]
async fn idle_connections_are_dropped_after_five_seconds() {
    let e = Running::with(&[]).await;
    let mut client = Client::unix(&e.socket).await;
    client.call("GET", "/health", &Value::Null).await;
    let begun = Instant::now();
    assert!(client.closed_within(ms(8000)).await);
    assert!((4900..6000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn llamacpp_closes_at_the_hundredth_request() {
    let e = Running::with(&[LLAMA]).await;
    let mut client = Client::unix(&e.socket).await;
    for n in 1..=100 {
        let answer = client.call("GET", "/health", &Value::Null).await;
        assert_eq!(answer.header("connection"), (n == 100).then_some("close"));
    }
    assert!(client.closed_within(ms(500)).await);
}
