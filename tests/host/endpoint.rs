//! What the endpoint says without an engine, what it says of one, and when it lets one go.

use std::time::Duration;

use serde_json::json;

use crate::harness::{
    COUNT, PODMAN, SOON, containers, count, curl, events, get, model, post, serving,
    skip_unless_wanted, status, wait_phase,
};
use testhost::{Look, wait_for};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn fault_25_what_is_refused_never_reaches_podman() {
    skip_unless_wanted!();
    let aliased = format!("{COUNT}aliases = [\"gpt-4o\"]\n");
    let host = serving(&aliased).unwrap();
    let list = get(&host, "/v1/models").unwrap();
    assert_eq!((list.status, list.header("content-type")), (200, Some("application/json")));
    let ids: Vec<_> =
        list.json()["data"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect();
    assert_eq!(ids, ["count", "gpt-4o"]);
    for path in ["/health", "/ready", "/v1/models/count", "/v1/models/gpt-4o"] {
        assert_eq!(get(&host, path).unwrap().status, 200, "{path}");
    }
    assert_eq!(get(&host, "/ready").unwrap().json(), json!({"status": "ready", "problems": []}));

    let messages = r#""messages":[{"role":"user","content":"go"}]"#;
    let cases = [
        (format!(r#"{{"model":"nope",{messages}}}"#), 404, "model_not_found", json!("model")),
        (format!(r#"{{"model":"Count",{messages}}}"#), 404, "model_not_found", json!("model")),
        (format!("{{{messages}}}"), 400, "missing_required_parameter", json!("model")),
        (r#"{"model":"count","messages":["#.into(), 400, "invalid_json", json!(null)),
        ("count".into(), 400, "invalid_json", json!(null)),
        (String::new(), 400, "invalid_json", json!(null)),
        (r#"{"model":7,"messages":[]}"#.into(), 400, "invalid_type", json!("model")),
    ];
    for (body, code, word, param) in cases {
        let answer = post(&host, CHAT, &body).wait();
        assert_eq!(answer.status, code, "{body}: {answer:?}");
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], word, "{body}: {error}");
        assert_eq!(error["param"], param, "{body}: {error}");
        assert_eq!(error["type"], "invalid_request_error", "{body}: {error}");
        assert!(error["message"].as_str().is_some_and(|text| text.len() > 10), "{body}: {error}");
    }
    // Routes of engines that are not ours to offer.
    for path in ["/slots", "/props", "/sleep", "/v1/nothing", "/nothing"] {
        assert_eq!(get(&host, path).unwrap().status, 404, "{path}");
    }
    assert_eq!(get(&host, CHAT).unwrap().status, 405);

    // Nothing of all that made a container: podman saw no more than the proof of the path to engines.
    assert_eq!(containers(&host).unwrap(), []);
    assert_eq!(events(&host, "count").unwrap(), Vec::<String>::new());
    let created = format!(
        "{PODMAN} events --stream=false --since 1h --filter event=create --filter type=container \
         --format '{{{{.Name}}}}'"
    );
    let created = host.user("hostler", &created).unwrap();
    assert_eq!(created.lines().count(), 1, "{created}");
    assert!(created.trim().ends_with("-infra"), "{created}");
}

#[test]
fn the_status_tells_where_the_memory_is() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    let cold = model(&host, "count").unwrap();
    assert_eq!(
        (&cold["phase"], &cold["instance"], &cold["planned"]),
        (&json!("stopped"), &json!(null), &json!(null))
    );

    count(&host).check();
    // The owner learns a moment later that the request is over.
    let row = wait_for("the end of the request", Duration::from_secs(5), || {
        let row = model(&host, "count")?;
        Ok(if row["in_flight"] == 0 { Look::Done(row) } else { Look::NotYet(row.to_string()) })
    })
    .unwrap();
    assert_eq!(row["phase"], "ready");
    assert_eq!(row["gpus"], json!(["host"]));
    assert!(row["load_ms"].as_u64() > Some(0), "{row}");
    let name = row["instance"].as_str().unwrap().to_owned();
    assert_eq!(containers(&host).unwrap()[0].1, name);
    // The engine holds its 2.9 MB of weights, its context and its code; and no more than was planned for it.
    let observed = row["observed"].as_u64().unwrap_or(0);
    let planned = row["planned"]["bytes"].as_u64().unwrap_or(0);
    assert_eq!(row["planned"]["source"], "estimated", "{row}");
    assert!(observed > 3_000_000 && observed <= planned, "{observed} of {planned}");
    let all = status(&host).unwrap();
    let device = &all["gpus"][0];
    let bytes = |key: &str| device[key].as_u64().unwrap_or_else(|| panic!("{key} in {device}"));
    assert_eq!(device["id"], "host");
    assert_eq!(bytes("confirmed"), planned);
    assert_eq!(bytes("reserved"), 0);
    assert!(bytes("free") + bytes("confirmed") <= bytes("total"), "{device}");
    assert_eq!(all["problems"], json!([]));

    let url = "http://127.0.0.1:8711/api/v1/status";
    let table = curl(&host, &["-H", "accept: text/plain", url]);
    assert_eq!(table.header("content-type"), Some("text/plain; charset=utf-8"));
    assert!(table.body.starts_with("MODEL") && table.body.contains("ready"), "{}", table.body);
}

#[test]
fn what_is_declared_is_what_is_planned() {
    skip_unless_wanted!();
    let host = serving(&format!("{COUNT}vram = \"200MiB\"\n")).unwrap();
    count(&host).check();
    let row = model(&host, "count").unwrap();
    assert_eq!(row["planned"], json!({"bytes": 200 << 20, "source": "declared"}));
}

#[test]
fn a_model_that_can_never_fit_is_refused_at_once() {
    skip_unless_wanted!();
    let host = serving(&format!("{COUNT}vram = \"4096GiB\"\n")).unwrap();
    let answer = post(&host, CHAT, &crate::harness::count_request("count", 8)).wait();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json()["error"]["code"], "model_never_fits");
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!(containers(&host).unwrap(), []);
}

#[test]
fn an_idle_model_is_unloaded_and_comes_back() {
    skip_unless_wanted!();
    let host = serving(&format!("{COUNT}idle_timeout = \"3s\"\n")).unwrap();
    for round in 1..=2 {
        count(&host).check();
        assert_eq!(model(&host, "count").unwrap()["phase"], "ready", "round {round}");
        let row = wait_phase(&host, "count", "stopped", SOON).unwrap();
        assert_eq!((&row["error"], &row["instance"]), (&json!(null), &json!(null)));
        assert_eq!(containers(&host).unwrap(), [], "round {round}");
        assert_eq!(host.root("ls /run/hostler/engines").unwrap(), "");
    }
    let journal = host.journal("hostler.service").unwrap();
    assert_eq!(journal.matches("(idle)").count(), 2, "{journal}");
}
