//! Engines that die, engines that never start: what clients get, what people see, and how it mends.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{
    COUNT, SOON, check_count, containers, count, count_request, engine, events, model, post,
    serving, skip_unless_wanted, wait_phase,
};
use testhost::{Host, Look, wait_for};

const CHAT: &str = "/v1/chat/completions";
/// A new container, after an engine died, on a machine with other things to do.
const AGAIN: Duration = Duration::from_secs(10);

#[test]
fn a_killed_engine_is_replaced_for_the_next_request() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    count(&host).check();
    let (before, pid) = (containers(&host).unwrap(), engine(&host).unwrap());
    host.root(&format!("kill -9 {pid}")).unwrap();
    let killed = Instant::now();
    // Whoever comes at this very moment may meet the dead engine; that is said honestly, and lasts for moments only.
    let answer = wait_for("an answer after the engine's death", AGAIN, || {
        let answer = post(&host, CHAT, &count_request("count", 512)).wait();
        if answer.status == 200 {
            return Ok(Look::Done(answer));
        }
        assert!(matches!(answer.status, 502 | 503), "{answer:?}");
        assert_eq!(answer.json()["error"]["type"], "server_error", "{answer:?}");
        Ok(Look::NotYet(format!("{answer:?}")))
    })
    .unwrap();
    check_count(&answer, 512);
    assert!(killed.elapsed() < AGAIN, "{:?}", killed.elapsed());
    let after = containers(&host).unwrap();
    assert_eq!(after.len(), 1, "{after:?}");
    assert_ne!(after, before);
    let journal = host.journal("hostler.service").unwrap();
    assert!(journal.contains("ended while it served"), "{journal}");
}

#[test]
fn fault_22_an_engine_that_dies_mid_stream_is_not_taken_for_the_end_of_the_answer() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    for _ in 0..6 {
        // After a death it may be loading again.
        wait_for("the model", Duration::from_secs(90), || {
            let answer = post(&host, CHAT, &count_request("count", 1)).wait();
            Ok(if answer.status == 200 { Look::Done(()) } else { Look::NotYet(answer.body) })
        })
        .unwrap();
        let answer = stream_and_kill(&host);
        assert!(answer.contains("data: {"), "{answer}");
        if answer.contains("[DONE]") {
            // A busy machine: the engine was through before it could be killed.
            continue;
        }
        assert!(answer.contains("curl ended with 0") && answer.contains("\"error\""), "{answer}");
        return;
    }
    panic!("six streams came to their end");
}

/// Streams, and kills the engine once the first bytes are here. In slices of two milliseconds the engine hardly comes to
/// the end before, for which it needs a hundred of them.
fn stream_and_kill(host: &Host) -> String {
    let pid = engine(host).unwrap();
    let request = count_request("count", 512);
    let script = format!(
        "rm -f /tmp/stream; kill -STOP {pid}; \
         curl -sN --max-time 60 -o /tmp/stream -H 'Content-Type: application/json' -d '{request}' \
         http://127.0.0.1:8711{CHAT} & \
         until [ -s /tmp/stream ]; do \
         kill -CONT {pid}; sleep 0.002; kill -STOP {pid}; sleep 0.02; done; \
         kill -9 {pid}; wait $!; echo \"curl ended with $?\"; cat /tmp/stream"
    );
    host.root(&script).unwrap()
}

#[test]
fn fault_22_an_engine_that_cannot_load_says_why_and_is_not_tried_in_a_loop() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    let model_file = "/var/lib/hostler/models/count-512.gguf";
    host.root(&format!("mv {model_file} {model_file}.good; echo no GGUF at all >{model_file}"))
        .unwrap();

    let answer = post(&host, CHAT, &count_request("count", 512)).wait();
    assert_eq!(answer.status, 503, "{answer:?}");
    let error = answer.json()["error"].clone();
    assert_eq!(error["code"], "model_load_failed", "{error}");
    assert_eq!(error["details"]["fault"], "engine_exited", "{error}");
    let log = error["details"]["log_tail"].as_array().cloned().unwrap_or_default();
    let log: Vec<_> = log.iter().filter_map(|line| line.as_str()).collect();
    assert!(log.iter().any(|line| line.contains("failed to load model")), "{log:?}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("exit code 1"), "{message}");
    assert!(
        answer.header("retry-after").is_some_and(|secs| secs.parse::<u32>().is_ok()),
        "{}",
        answer.head
    );

    // It is said in the status and the journal, and the next clients are told at once, without another container.
    let row = model(&host, "count").unwrap();
    assert_eq!((&row["phase"], &row["error"]["code"]), (&json!("failed"), &json!("engine_exited")));
    assert_eq!(containers(&host).unwrap(), []);
    let journal = host.journal("hostler.service").unwrap();
    assert!(journal.contains("exit code 1"), "{journal}");
    // By now the first delay is over and each attempt doubles it, so that most of these meet the delay.
    for _ in 0..20 {
        let again = post(&host, CHAT, &count_request("count", 512)).wait();
        assert_eq!(
            (again.status, &again.json()["error"]["code"]),
            (503, &json!("model_load_failed"))
        );
    }
    let tried = events(&host, "count").unwrap().iter().filter(|word| *word == "create").count();
    assert!((1..=6).contains(&tried), "{tried} attempts for 21 requests");

    // Mended, it comes back without anybody's help.
    host.root(&format!("mv {model_file}.good {model_file}")).unwrap();
    let answer = wait_for("the mended model", Duration::from_secs(90), || {
        let answer = post(&host, CHAT, &count_request("count", 512)).wait();
        Ok(if answer.status == 200 { Look::Done(answer) } else { Look::NotYet(answer.body) })
    })
    .unwrap();
    check_count(&answer, 512);
    assert_eq!(wait_phase(&host, "count", "ready", SOON).unwrap()["error"], json!(null));
}

#[test]
fn weights_and_images_that_are_not_there_are_named() {
    skip_unless_wanted!();
    let toml = format!(
        r#"{COUNT}
[models.no-weights]
engine = "llamacpp"
image = "localhost/hostler/llama-server:latest"
weights = {{ path = "/var/lib/hostler/models/gone.gguf" }}

[models.no-image]
engine = "llamacpp"
image = "localhost/hostler/gone:latest"
weights = {{ path = "/var/lib/hostler/models/count-512.gguf" }}
"#
    );
    let host = serving(&toml).unwrap();
    for (name, fault, thing) in [
        ("no-weights", "weights_missing", "/var/lib/hostler/models/gone.gguf"),
        ("no-image", "image_missing", "localhost/hostler/gone:latest"),
    ] {
        let answer = post(&host, CHAT, &count_request(name, 8)).wait();
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["details"]["fault"]), (503, &json!(fault)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(thing), "{error}");
    }
    // The others are none the worse for it.
    count(&host).check();
    assert_eq!(containers(&host).unwrap().len(), 1);
}
