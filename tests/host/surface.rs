//! A real llama-server behind every path that it serves.

use serde_json::{Value, json};
use testhost::Host;

use crate::harness::{Answer, COUNT, curl, get, post, serving, skip_unless_wanted};

/// The counting model three times: as it is, for embeddings, and for ranking.
fn three() -> String {
    let (head, model) = COUNT.split_once("[models.count]").unwrap();
    let one = |name: &str, args: &str| format!("\n[models.{name}]{model}{args}");
    let embed = one("embed", "args = [\"--embeddings\", \"--pooling\", \"mean\"]\n");
    let rank = one("rank", "args = [\"--reranking\"]\n");
    format!("{head}{}{embed}{rank}", one("count", ""))
}

fn answer(host: &Host, path: &str, body: &Value) -> Answer {
    post(host, path, &body.to_string()).wait()
}

fn ask(host: &Host, path: &str, body: &Value) -> Value {
    let answer = answer(host, path, body);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

/// The events of a stream, by name; signs of life while the model loads are none of the engine's.
fn events(answer: &Answer) -> Vec<(String, Value)> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let event = |text: &str| {
        let name = text.lines().find_map(|line| line.strip_prefix("event: "))?;
        let data = text.lines().find_map(|line| line.strip_prefix("data: "))?;
        Some((name.to_owned(), serde_json::from_str(data).unwrap()))
    };
    let body = answer.body.replace("\r\n", "\n");
    body.split("\n\n").filter_map(event).filter(|(name, _)| name != "ping").collect()
}

fn user() -> Value {
    json!([{"role": "user", "content": "go"}])
}

#[test]
fn a_real_engine_answers_on_every_path_that_it_has() {
    skip_unless_wanted!();
    let host = serving(&three()).unwrap();

    let text =
        ask(&host, "/v1/completions", &json!({"model": "count", "prompt": " 1", "max_tokens": 3}));
    assert_eq!(text["choices"][0]["text"], " 2 3 4");
    let chat = json!({"model": "count", "messages": user(), "max_tokens": 3});
    let chat = ask(&host, "/v1/chat/completions", &chat);
    assert_eq!(chat["choices"][0]["message"]["content"], " 1 2 3");

    let mut message = json!({"model": "count", "messages": user(), "max_tokens": 4});
    let whole = ask(&host, "/v1/messages", &message);
    assert_eq!(
        (&whole["type"], &whole["content"][0]["text"]),
        (&json!("message"), &json!(" 1 2 3 4"))
    );
    message["stream"] = true.into();
    let streamed = events(&answer(&host, "/v1/messages", &message));
    let names: Vec<&str> = streamed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names[0], names[names.len() - 1]), ("message_start", "message_stop"), "{names:?}");
    let said: String = streamed.iter().filter_map(|(_, e)| e["delta"]["text"].as_str()).collect();
    assert_eq!(said, " 1 2 3 4");
    let counted = json!({"model": "count", "messages": user()});
    let counted = ask(&host, "/v1/messages/count_tokens", &counted);
    // Of which the engine had some in its cache.
    let tokens = |key: &str| whole["usage"][key].as_u64().unwrap();
    let all = tokens("input_tokens") + tokens("cache_read_input_tokens");
    assert_eq!(counted["input_tokens"], all);
    message["model"] = "nobody".into();
    let refused = answer(&host, "/v1/messages", &message);
    assert_eq!((refused.status, &refused.json()["type"]), (404, &json!("error")), "{refused:?}");

    let mut response = json!({"model": "count", "input": "go", "max_output_tokens": 4});
    let whole = ask(&host, "/v1/responses", &response);
    assert_eq!(whole["output"][0]["content"][0]["text"], " 1 2 3 4");
    response["stream"] = true.into();
    let streamed = events(&answer(&host, "/v1/responses", &response));
    let (last, event) = &streamed[streamed.len() - 1];
    assert_eq!(last, "response.completed");
    assert_eq!(event["response"]["output"][0]["content"][0]["text"], " 1 2 3 4");
    // It keeps none: what it says of that is its own, for it is asked.
    let kept = get(&host, &format!("/v1/responses/{}", whole["id"].as_str().unwrap())).unwrap();
    assert_eq!((kept.status, &kept.json()["error"]["type"]), (404, &json!("not_found_error")));
    let unknown = get(&host, "/v1/responses/resp_nobody").unwrap();
    assert_eq!(unknown.json()["error"]["code"], "response_not_found");

    let tokens = ask(&host, "/tokenize", &json!({"model": "count", "content": " 1 2 3"}));
    assert_eq!(tokens["tokens"].as_array().unwrap().len(), 3);
    let back = json!({"model": "count", "tokens": tokens["tokens"]});
    assert_eq!(ask(&host, "/detokenize", &back)["content"], " 1 2 3");

    // What this model is not started for, its engine says itself.
    let embed = |model: &str| json!({"model": model, "input": [" 1 2", " 3"]});
    let refused = answer(&host, "/v1/embeddings", &embed("count"));
    assert_eq!(
        (refused.status, &refused.json()["error"]["type"]),
        (501, &json!("not_supported_error"))
    );
    // Each token of this model points in a direction of its own, so a text points between those of its tokens.
    let data = ask(&host, "/v1/embeddings", &embed("embed"))["data"].clone();
    let far: Vec<usize> = (0..2)
        .map(|text| data[text]["embedding"].as_array().unwrap())
        .map(|vector| vector.iter().filter(|x| x.as_f64().unwrap() > 0.1).count())
        .collect();
    assert_eq!(far, [2, 1]);

    let rank = json!({"model": "rank", "query": " 1", "documents": [" 2 3", " 3"]});
    for path in ["/v1/rerank", "/rerank"] {
        let results = ask(&host, path, &rank)["results"].clone();
        let mut all: Vec<u64> =
            results.as_array().unwrap().iter().map(|r| r["index"].as_u64().unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1], "{path}");
    }
    // Paths of the engine that are not offered are not reached, though it has them.
    for path in ["/slots", "/props", "/lora-adapters", "/v1/chat/completions/input_tokens"] {
        assert_eq!(get(&host, path).unwrap().status, 404, "{path}");
    }
}

/// The peak of the daemon's memory since it was last asked for, in bytes; and what it has now.
fn peak(host: &Host) -> (u64, u64) {
    let script = "pid=$(systemctl show -P MainPID hostler.service)
        awk '/^VmHWM|^VmRSS/ {print $2}' /proc/$pid/status; echo 5 > /proc/$pid/clear_refs";
    let text = host.root(script).unwrap();
    let mut kib = text.split_whitespace().map(|n| n.parse::<u64>().unwrap() << 10);
    (kib.next().unwrap(), kib.next().unwrap())
}

#[test]
fn a_large_body_goes_through_to_a_real_engine() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    let small = json!({"model": "count", "prompt": " 1", "max_tokens": 3});
    ask(&host, "/v1/completions", &small);
    let size = 16 << 20;
    let large = |behind: &str| {
        let text = "a".repeat(size);
        let body = format!(
            r#"{{"model":"count","prompt":" 1","max_tokens":3,"metadata":{{"x":"{text}"}}{behind}"#
        );
        host.write_file("/run/large.json", &body).unwrap();
        let url = "http://127.0.0.1:8711/v1/completions";
        // Without "100 Continue" before the answer.
        let headers = ["-H", "content-type: application/json", "-H", "expect:"];
        curl(&host, &[&headers[..], &["--data-binary", "@/run/large.json", url]].concat())
    };
    let mut over = u64::MAX;
    // A machine that is busy with others may once be too slow for a body to flow.
    for _ in 0..5 {
        let (_, before) = peak(&host);
        let answer = large("}");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["choices"][0]["text"], " 2 3 4");
        over = over.min(peak(&host).0.saturating_sub(before));
        if over < 6 << 20 {
            break;
        }
    }
    assert!(over < 6 << 20, "{over} bytes over what the daemon had before");
    let refused = large(r#","model":"count"}"#);
    assert_eq!(refused.json()["error"]["code"], "duplicate_parameter", "{refused:?}");
    assert_eq!(refused.status, 400);
    // The engine is none the worse for half a request.
    assert_eq!(ask(&host, "/v1/completions", &small)["choices"][0]["text"], " 2 3 4");
}
