//! One line a request, and nothing in it that is not ours to tell.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::engine::send;
use crate::house::{Happened, playing};
use crate::wire::{CHAT, SSE, chunk, get, post_with};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn take(&self) -> Vec<Value> {
        let raw = std::mem::take(&mut *self.0.lock().unwrap());
        let text = String::from_utf8(raw).unwrap();
        assert!(!text.contains("secret"), "{text}");
        let line = |l: &str| serde_json::from_str::<Value>(l).unwrap();
        let mut lines: Vec<Value> = text.lines().map(line).collect();
        lines.retain(|l| l["target"] == "hostler::proxy");
        lines
    }
}

#[tokio::test]
async fn each_request_is_told_once() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    // The runtime has one thread: all tasks log here.
    let _guard = tracing::subscriber::set_default(subscriber);

    let script = vec![send(SSE), send(chunk("data: 12345\n\n")), send("0\r\n\r\n")];
    let mut house = playing(script).await;
    let headers = "authorization: Bearer secret\r\nx-request-id: id-1\r\nconnection: close\r\n";
    let body = "{\"model\":\"m\",\"messages\":[{\"content\":\"a secret\"}]}";
    assert_eq!(house.ask(post_with(CHAT, headers, body)).await.status, 200);
    let [line] = &lines.take()[..] else { panic!() };
    let fields = &line["fields"];
    assert_eq!(line["level"], "INFO");
    assert_eq!(fields["route"], "chat_completions");
    assert_eq!(fields["model"], "m");
    assert_eq!(fields["request_id"], "id-1");
    assert_eq!(fields["status"], 200);
    assert_eq!(fields["bytes"], 13);
    assert_eq!(fields["aborted"], false);
    for time in ["queue_ms", "first_byte_ms", "total_ms"] {
        assert!(fields[time].is_u64(), "{time} in {fields}");
    }

    house.ask(get("/nowhere")).await;
    let [line] = &lines.take()[..] else { panic!() };
    assert_eq!(line["fields"]["status"], 404);
    assert_eq!(line["fields"]["error"], "unknown_path");
    assert_eq!(line["fields"]["aborted"], false);

    house.ask(get("/health")).await;
    assert!(lines.take().is_empty(), "a routine question is no news");

    house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Released]).await;
}

#[tokio::test]
async fn a_client_that_left_is_told_as_such() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut house = playing(vec![]).await;
    let mut client = house.client().await;
    client.send(post_with(CHAT, "", "{\"model\":\"m\"}")).await;
    house.engine.request().await;
    drop(client);
    house.engine.left().await;
    house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Released]).await;
    let [line] = &lines.take()[..] else { panic!() };
    assert_eq!(line["fields"]["aborted"], true);
    assert_eq!(line["fields"]["bytes"], 0);
    assert!(line["fields"].get("status").is_none(), "{line}");
}
