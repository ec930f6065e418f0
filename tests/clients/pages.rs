//! What the daemon's own desk answers, with nobody's client between.

use std::sync::Arc;

use hostler::proxy::External;
use hostler::types::{DoorSpec, ModelName, Origin};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::SOON;
use crate::house::{House, KEY};

/// The body of a page, which ends with its connection.
async fn text(house: &House, path: &str) -> String {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\r\n"
    );
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    let (head, body) = all.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {all}");
    body.to_owned()
}

async fn get(house: &House, path: &str) -> Value {
    serde_json::from_str(&text(house, path).await).unwrap()
}

/// A request that its engine answers for as long as the connection lives.
async fn endless(house: &House) -> TcpStream {
    let body = r#"{"model":"org/fake","stream":true,"max_tokens":1000000,"messages":[{"role":"user","content":"hi"}]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Whoever waits for a turn is told nowhere but here: its model is ready, and the core is not asked yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_turn_is_among_those_who_wait() {
    let house = House::new("", &[("FAKE_RATE", "2")], |rules| {
        let spec = DoorSpec { max_concurrent: Some(1), ..DoorSpec::default() };
        rules.models.insert("org/fake".parse().unwrap(), Arc::new(spec));
    })
    .await;
    // Until the status says so: who has sent its request is not here yet, and who has left not gone.
    let shows = async |running: u64, waiting: u64| loop {
        let model = get(&house, "/api/v1/status").await["models"][0].take();
        if (&model["in_flight"], &model["queued"]) == (&json!(running), &json!(waiting)) {
            return;
        }
    };
    let mut clients = Vec::new();
    for waiting in 0..3 {
        clients.push(endless(&house).await);
        timeout(SOON, shows(1, waiting)).await.unwrap();
    }
    let metrics = text(&house, "/metrics").await;
    assert!(metrics.contains("\nhostler_queue_length{model=\"org/fake\"} 2.0\n"), "{metrics}");
    clients.pop();
    timeout(SOON, shows(1, 1)).await.unwrap();
    clients.clear();
    timeout(SOON, shows(0, 0)).await.unwrap();
}

/// The endpoint that does not answer may be found so between two looks, so each is looked at for what does not change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_parts_of_the_status_are_pages_of_the_same_shape() {
    // Nobody listens there any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let house = House::new("", &[], |rules| {
        let name: ModelName = "far/away".parse().unwrap();
        let (host, prefix) = (gone.ip().to_string(), String::new());
        let origin = Origin { tls: false, host, port: gone.port(), prefix };
        let external = External { origin, key: None, health: "/v1/models".into() };
        rules.models.insert(name.clone(), Arc::default());
        rules.aliases.insert("cloud".parse().unwrap(), name.clone());
        rules.externals.insert(name, Arc::new(external));
    })
    .await;
    let status = get(&house, "/api/v1/status").await;
    for (part, count) in [("models", 1), ("externals", 1), ("gpus", 1), ("jobs", 0)] {
        let page = get(&house, &format!("/api/v1/{part}")).await;
        let (page, whole) = (page.as_array().unwrap(), status[part].as_array().unwrap());
        assert_eq!((page.len(), whole.len()), (count, count), "{part}");
        for (row, same) in page.iter().zip(whole) {
            let keys = |row: &Value| row.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(row), keys(same), "{part}");
            for named in ["id", "name", "aliases", "url"] {
                assert_eq!(row.get(named), same.get(named), "{part}");
            }
        }
    }
    let externals = get(&house, "/api/v1/externals").await;
    assert_eq!(
        (&externals[0]["name"], &externals[0]["aliases"]),
        (&json!("far/away"), &json!(["cloud"]))
    );
    let document = get(&house, "/api/v1/openapi.json").await;
    let answer = &document["paths"]["/api/v1/externals"]["get"]["responses"]["200"];
    let schema = &answer["content"]["application/json"]["schema"];
    assert_eq!(schema["items"]["$ref"], "#/components/schemas/ExternalStatus", "{answer}");
}
