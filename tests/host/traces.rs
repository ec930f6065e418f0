//! Spans leave the service as it is shipped, past its sandbox. Only in builds with `--features otlp`.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Sender};

use serde_json::Value;

use crate::harness::{
    COUNT, SOON, check_count, config, count_request, curl, serving, skip_unless_wanted,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// Takes what comes on a connection, as a collector of OTLP over HTTP does, and tells each span.
fn collect(stream: UnixStream, told: &Sender<Value>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let answer =
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
        stream.get_mut().write_all(answer.as_bytes())?;
        let body: Value = serde_json::from_slice(&body).unwrap();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        for resource in list(&body["resourceSpans"]) {
            for scope in list(&resource["scopeSpans"]) {
                for span in list(&scope["spans"]) {
                    let _ = told.send(span);
                }
            }
        }
    }
}

#[test]
fn a_request_and_the_load_that_it_caused_are_seen_by_a_collector_on_the_host() {
    skip_unless_wanted!();
    let traces = |to: &str| format!("{COUNT}\n[traces]\notlp = \"{to}\"\n");
    let host = serving(&traces("unix:/run/otlp.sock")).unwrap();
    let socket = UnixListener::bind(host.path("/run/otlp.sock")).unwrap();
    host.root("chmod 666 /run/otlp.sock").unwrap();
    let (told, came) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in socket.incoming().map_while(Result::ok) {
            let told = told.clone();
            std::thread::spawn(move || collect(stream, &told));
        }
    });

    let parent = format!("traceparent: 00-{TRACE}-{CALLER}-01");
    let request = count_request("count", 3);
    let url = "http://127.0.0.1:8711/v1/chat/completions";
    let json = "content-type: application/json";
    let args = ["-H", json, "-H", &parent, "--data-binary", &request, url];
    check_count(&curl(&host, &args), 3);

    let mut spans: Vec<Value> = vec![];
    let named = |spans: &[Value], name: &str| spans.iter().find(|s| s["name"] == name).cloned();
    let names = ["POST /v1/chat/completions", "wait", "load count"];
    while names.iter().any(|name| named(&spans, name).is_none()) {
        spans.push(came.recv_timeout(SOON).expect("three spans"));
    }
    assert!(spans.iter().all(|span| span["traceId"] == TRACE), "{spans:?}");
    let request = named(&spans, names[0]).unwrap();
    assert_eq!(request["parentSpanId"], CALLER);
    for below in &names[1..] {
        let span = named(&spans, below).unwrap();
        assert_eq!(span["parentSpanId"], request["spanId"], "{span}");
    }

    // By address it takes a drop-in, and the journal says which.
    config(&host, &traces("http://127.0.0.1:4318/v1/traces")).unwrap();
    host.root("systemctl restart hostler.service").unwrap();
    check_count(&curl(&host, &args), 3);
    host.wait_journal("hostler.service", "RestrictAddressFamilies=AF_INET AF_INET6", SOON).unwrap();
}
