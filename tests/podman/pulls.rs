//! Pulls, as a scripted server answers them.

use std::sync::Mutex;

use hostler::supervisor::ports::{Containers, Sign};
use hostler::types::{Bytes, FaultCode, ImageRef, Phase, Pulled};
use serde_json::json;

use crate::fake::{Act, Fake};
use crate::support::progress;
use crate::wire::{is_image, plain};

#[tokio::test]
async fn a_pull_that_fails_says_why_and_makes_no_container() {
    for (line, code, word) in [
        ("{\"error\":\"manifest unknown\"}\n", FaultCode::ImageMissing, "pull quay.example"),
        ("{\"error\":\"write: no space left on device\"}\n", FaultCode::StorageFull, "system df"),
        ("{\"error\":\"connection reset by peer\"}\n", FaultCode::PullFailed, "reset by peer"),
        ("{\"status\":\"done\"}\n", FaultCode::PullFailed, "does not have it"),
        ("no json, no error", FaultCode::PullFailed, "does not have it"),
    ] {
        let (fake, podman) = Fake::new(move |_, path, _, _| {
            if is_image(path) {
                return Act::Say(404, json!({"message": "x", "cause": "no such image"}));
            }
            assert!(path.starts_with("/images/pull?"), "{path}");
            let text = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{line}");
            Act::Bytes(text.leak())
        });
        let mut spec = plain();
        spec.image = ImageRef::parse("quay.example/x:1").unwrap();
        let (report, told) = progress();
        let fault = podman.launch(spec, report).await.unwrap_err();
        assert_eq!(fault.code, code, "{fault}");
        assert!(fault.message.contains(word), "{fault}");
        assert_eq!(*told.lock().unwrap(), [Sign::Phase(Phase::Pulling)]);
        assert_eq!(fake.count("POST /containers/create"), 0);
        // What may end otherwise is tried again; a registry's no, a full disk and a podman that says "done" are not.
        let tries = if word == "reset by peer" { 3 } else { 1 };
        assert_eq!(fake.count("POST /images/pull"), tries, "{fault}");
        assert_eq!(fault.message.contains("(3 tries)"), tries == 3, "{fault}");
    }
}

#[tokio::test]
async fn a_pull_that_broke_off_is_tried_again_and_tells_how_far_it_is() {
    let tries = Mutex::new(0);
    let (fake, podman) = Fake::new(move |_, path, _, _| {
        let mut tries = tries.lock().unwrap();
        if is_image(path) {
            let there = *tries == 2;
            let absent = Act::Say(404, json!({"message": "x", "cause": "no such image"}));
            return if there { Act::Say(200, json!({"Id": "new"})) } else { absent };
        }
        *tries += 1;
        let layer = |now: u32| {
            format!(
                "{{\"status\":\"Downloading\",\"progressDetail\":{{\"current\":{now},\"total\":40}},\"id\":\"l\"}}\n"
            )
        };
        let end = if *tries == 1 { "{\"error\":\"unexpected EOF\"}\n".into() } else { layer(40) };
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
        Act::Bytes(format!("{head}{}{end}", layer(10)).leak())
    });
    let mut spec = plain();
    spec.image = ImageRef::parse("quay.example/x:1").unwrap();
    let (report, told) = progress();
    let fault = podman.launch(spec, report).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::ImagePulled, "{fault}");
    assert_eq!(fake.count("POST /images/pull"), 2);
    let pulled = |done| Sign::Pulled(Pulled { done: Bytes(done), total: Bytes(40) });
    let signs = [Sign::Phase(Phase::Pulling), pulled(10), pulled(10), pulled(40)];
    assert_eq!(*told.lock().unwrap(), signs);
}

#[tokio::test]
async fn a_pull_without_a_sign_of_life_is_given_up() {
    let (_fake, podman) = Fake::new(|_, path, _, _| match path {
        p if is_image(p) => Act::Say(404, json!({"cause": "no such image"})),
        _ => Act::Hang,
    });
    let mut spec = plain();
    spec.image = ImageRef::parse("quay.example/x:1").unwrap();
    let fault = podman.launch(spec, progress().0).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::PullFailed);
    assert!(fault.message.contains("did not answer"), "{fault}");
}
