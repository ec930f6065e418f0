//! A container's log, as whoever follows it reads it, of a podman that goes.

use std::io::Read as _;

use hostler::supervisor::ports::Containers as _;
use serde_json::json;

use crate::fake::{Act, Fake};
use crate::wire::plain;

fn gone() -> Act {
    Act::Say(404, json!({"cause": "no such container", "message": "no such container"}))
}

/// The log of a container that podman breaks off, read to its end.
async fn broken_log(follow: bool, then: fn() -> Act) -> (String, Vec<String>) {
    let (fake, podman) = Fake::new(move |_, path, _, before| match before {
        // A line, and a part of one.
        0 => Act::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\none\ntw"),
        1 => Act::Cut,
        _ if path.contains("/logs") => then(),
        _ => panic!("{path}"),
    });
    let log = podman.open_log(plain().instance, Some(5), follow).await.unwrap();
    let read = move || {
        let mut text = String::new();
        std::fs::File::from(log).read_to_string(&mut text).unwrap();
        text
    };
    let text = tokio::task::spawn_blocking(read).await.unwrap();
    let calls = fake.calls.lock().unwrap().clone();
    (text, calls)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_podman_breaks_off_goes_on_until_its_container_ends() {
    let rest = || Act::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\ntwo\nthree\n");
    let (text, calls) = broken_log(true, rest).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((&lines[..2], &lines[3..]), (&["one", "tw"][..], &["two", "three"][..]), "{text}");
    assert!(lines[2].starts_with("hostlerd: podman broke this log off, and it goes on"), "{text}");
    assert!(calls[0].ends_with("follow=true&tail=5"), "{calls:?}");
    // Not all of it once more.
    assert_eq!(calls.len(), 3, "{calls:?}");
    assert!(calls[1..].iter().all(|call| call.contains("follow=true&since=")), "{calls:?}");

    // The container has gone with podman.
    let (text, _) = broken_log(true, gone).await;
    assert_eq!(text.lines().count(), 3, "{text}");

    // One that is not followed is short, and says so.
    let (text, calls) = broken_log(false, rest).await;
    assert_eq!(text, "one\ntw\nhostlerd: podman broke this log off before its end\n");
    assert_eq!(calls.len(), 1, "{calls:?}");
}
