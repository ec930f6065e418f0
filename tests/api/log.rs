//! One line a request, and nothing in it that is not ours to tell.

use std::io::Write;
use std::sync::{Arc, Mutex};

use hostler::observe::telling::Telling;
use hostler::proxy::port::Behind;
use hostler::types::Denied;
use serde_json::Value;
use tracing::Level;
use tracing::subscriber::DefaultGuard;

use crate::engine::send;
use crate::house::{Happened, Policy, Setup, house, playing};
use crate::surface::{FORM_PATHS, JSON_PATHS};
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
    /// Those of the front door.
    fn take(&self) -> Vec<Value> {
        let mut lines = self.all();
        lines.retain(|l| l["target"] == "hostler::proxy");
        lines
    }

    fn all(&self) -> Vec<Value> {
        let raw = std::mem::take(&mut *self.0.lock().unwrap());
        let text = String::from_utf8(raw).unwrap();
        assert!(!text.contains("secret"), "{text}");
        let line = |l: &str| serde_json::from_str::<Value>(l).unwrap();
        text.lines().map(line).collect()
    }
}

/// All that is logged from here on, for as long as the guard lives. A test's runtime has one thread: all tasks log here.
fn listen(level: Level) -> (Lines, DefaultGuard) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(level)
        .with_writer(move || writer.clone())
        .finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

#[tokio::test]
async fn each_request_is_told_once() {
    let (lines, _guard) = listen(Level::INFO);

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
    assert!(line["fields"].get("first_byte_ms").is_none(), "nobody has computed: {line}");

    house.ask(get("/health")).await;
    assert!(lines.take().is_empty(), "a routine question is no news");

    house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Released]).await;
}

/// It is no request for the model, but about it.
#[tokio::test]
async fn a_question_about_a_model_is_told_with_its_name() {
    let (lines, _guard) = listen(Level::DEBUG);
    let house = playing(vec![]).await;
    assert_eq!(house.ask(get("/metrics/models/m")).await.status, 404, "no console is there");
    let lines = lines.take();
    let told: Vec<&Value> =
        lines.iter().map(|l| &l["fields"]).filter(|f| f["kind"] == "request").collect();
    let [line] = told[..] else { panic!("{lines:?}") };
    assert_eq!((&line["route"], &line["model"]), (&"engine_metrics".into(), &"m".into()));
    assert!(line["message"].as_str().unwrap().starts_with("engine_metrics m: 404"), "{line}");
}

#[tokio::test]
async fn a_flood_is_counted_in_place_of_being_told() {
    let (lines, _guard) = listen(Level::INFO);
    let telling = Arc::new(Telling::new(4));
    let behind = Behind { observer: telling.clone(), ..Behind::default() };
    let house = house(Setup { behind, ..Setup::default() }).await;
    const ASKED: usize = 60;
    for _ in 0..ASKED {
        assert_eq!(house.ask(get("/nowhere")).await.status, 404);
    }
    telling.say();
    let said = lines.all();
    let (told, counted): (Vec<_>, Vec<_>) =
        said.iter().map(|line| &line["fields"]).partition(|fields| fields["kind"] == "request");
    let [counted] = counted[..] else { panic!("{counted:?}") };
    assert_eq!(counted["kind"], "requests_untold");
    let untold = counted["lines"].as_u64().unwrap();
    assert_eq!(told.len() as u64 + untold, ASKED as u64, "each is told or counted");
    assert!(told.len() >= 3 && untold > 0, "{} told", told.len());
    let text = counted["message"].as_str().unwrap();
    assert!(text.contains(&format!("0 answered, {untold} refused, 0 failed")), "{text}");
}

#[tokio::test]
async fn a_client_that_left_is_told_as_such() {
    let (lines, _guard) = listen(Level::INFO);
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

/// What an engine may do with a secret.
fn scripts() -> Vec<Vec<crate::engine::Step>> {
    use crate::engine::Step;
    let secret = "data: {\"choices\":[{\"text\":\"a secret\"}]}\n\n";
    let length = secret.len();
    let whole = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{secret}");
    let refused = format!("HTTP/1.1 400 Bad\r\ncontent-length: {length}\r\n\r\n{secret}");
    vec![
        vec![send(&whole)],
        vec![send(SSE), send(chunk(secret)), send("0\r\n\r\n")],
        // It breaks off, in the middle of an answer, of a chunk, and of a head.
        vec![send(SSE), send(chunk(secret)), Step::Close],
        vec![send(SSE), send("1d\r\ndata: a secret"), Step::Close],
        vec![send("HTTP/1.1 200 OK\r\nx-secret: a secret\r\nsecr"), Step::Close],
        vec![send("a secret and no HTTP\r\n\r\n"), Step::Close],
        vec![send(&refused)],
    ]
}

#[tokio::test]
async fn no_level_tells_a_prompt_a_body_or_a_key() {
    let (lines, _guard) = listen(Level::TRACE);
    let keys = "authorization: Bearer secret-key\r\nx-api-key: secret-key\r\ncookie: secret\r\nconnection: close\r\n";
    let form = "--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nm\r\n--b\r\n\
                content-disposition: form-data; name=\"file\"; filename=\"secret.wav\"\r\n\r\na secret\r\n--b--\r\n";
    let mut told = 0;
    for script in scripts() {
        let house = playing(script).await;
        for path in JSON_PATHS.into_iter().chain(FORM_PATHS) {
            let request = if path.contains("/audio/tran") {
                let head = format!(
                    "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n\
                     content-length: {}\r\n{keys}\r\n",
                    form.len()
                );
                (head + form).into_bytes()
            } else {
                let body = "{\"model\":\"m\",\"stream\":true,\"input\":\"a secret\",\"prompt\":\"a secret\",\
                            \"messages\":[{\"role\":\"user\",\"content\":\"a secret\"}],\"user\":\"secret\"}";
                post_with(path, keys, body)
            };
            house.ask(request).await;
            told += 1;
        }
    }
    // Bodies that are refused, each for another reason; and what looks into what is not there.
    let house = playing(vec![]).await;
    for body in [
        "{\"model\":\"m\",\"prompt\":\"a secret\"",
        "{\"model\":\"m\",\"prompt\":\"a secret\",\"model\":\"m\"}",
        "{\"model\":7,\"prompt\":\"a secret\"}",
        "{\"model\":\"m\",\"n\":\"a secret\",\"prompt\":\"a secret\"}",
        "{\"model\":\"m\",\"prompt\":\"a secret\\ud800\"}",
        "a secret",
    ] {
        house.ask(post_with("/v1/completions", keys, body)).await;
        told += 1;
    }
    for path in ["/v1/models", "/v1/responses/resp_1", "/api/v1/status", "/metrics", "/ui"] {
        let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{keys}\r\n");
        house.ask(head).await;
        told += 1;
    }
    // Taking them looks for the word.
    assert!(lines.take().len() >= told, "fewer lines than {told}");
}

/// A name that nobody configured is its client's word: it makes no line of its own, and no colours.
#[tokio::test]
async fn a_client_writes_no_lines_of_its_own() {
    let name =
        "x\n2026-01-01T00:00:00Z  WARN hostler: all is lost\r\u{1b}[31m\u{9b}31m\u{2028}y\u{202e}";
    let body = serde_json::json!({ "model": name }).to_string();
    let (lines, _guard) = listen(Level::INFO);
    let policy = Policy::Deny(Denied::UnknownModel { model: "x".into() });
    let house = house(Setup { policy, ..Setup::default() }).await;
    house.ask(post_with(CHAT, "connection: close\r\n", &body)).await.error(404, "model_not_found");
    let [line] = &lines.take()[..] else { panic!() };
    for field in ["message", "model"] {
        let text = line["fields"][field].as_str().unwrap();
        let bad = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{202e}');
        assert!(text.contains(r"x\n2026") && !text.contains(bad), "{text:?}");
    }
}
