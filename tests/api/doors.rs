//! Who may come in, how often, and from where.

use std::sync::Arc;

use hostler::proxy::Key;
use hostler::types::{Bytes, DoorSpec};
use tokio::sync::Semaphore;

use crate::engine::{Family, KEY, Step, send};
use crate::house::{Happened, House, Setup, house, key, playing, rules};
use crate::wire::{BODY, CHAT, get, post, post_with, soon};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

async fn keyed(keys: Vec<Key>, script: Vec<Step>) -> House {
    let mut setup = Setup { script, ..Setup::default() };
    setup.rules.keys = keys;
    house(setup).await
}

fn with(key: &str, path: &str) -> Vec<u8> {
    post_with(path, &format!("authorization: Bearer {key}\r\nconnection: close\r\n"), BODY)
}

/// Of the engine's own key the client sees nothing, and the engine nothing of the client's.
#[tokio::test]
async fn an_engine_that_others_can_reach_is_asked_with_its_own_key() {
    let script = vec![send(OK), Step::Close];
    let mut setup = Setup { family: Family::Tcp, script, ..Setup::default() };
    setup.rules.keys = vec![key("alice")];
    let mut house = house(setup).await;
    let reply = house.ask(with("sk-alice", CHAT)).await;
    assert_eq!(reply.status, 200);
    let seen = house.engine.request().await;
    assert_eq!(seen.headers["authorization"], format!("Bearer {KEY}"));
}

#[tokio::test]
async fn without_a_key_nobody_gets_further_than_the_health() {
    let mut house = keyed(vec![key("alice")], vec![send(OK), Step::Close]).await;
    for request in [
        post(CHAT, BODY),
        with("sk-bob", CHAT),
        get("/v1/models").into(),
        get("/api/v1/status").into(),
        get("/api/tags").into(),
    ] {
        let reply = house.ask(request).await;
        assert_eq!(reply.status, 401);
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
    }
    let reply = house.ask(post("/v1/messages", BODY)).await;
    assert_eq!(reply.json()["error"]["type"], "authentication_error");
    assert_eq!(house.ask(get("/health")).await.status, 200);
    assert!(house.ask(get("/ready")).await.json().get("problems").is_none());
    house.supervisor.quiet();
    house.engine.untouched();
    assert_eq!(house.ask(with("sk-alice", CHAT)).await.status, 200);
    let seen = house.engine.request().await;
    assert!(!seen.headers.contains_key("authorization"), "keys stop here");
    let anthropic = post_with("/v1/messages", "x-api-key: sk-alice\r\nconnection: close\r\n", BODY);
    assert_eq!(house.ask(anthropic).await.status, 200);
    assert!(!house.engine.request().await.headers.contains_key("x-api-key"));
}

#[tokio::test]
async fn a_key_is_good_for_its_models_only() {
    let mut alice = key("alice");
    alice.models = vec!["org/big".parse().unwrap()];
    let mut house = keyed(vec![alice], vec![send(OK), Step::Close]).await;
    house.ask(with("sk-alice", CHAT)).await.error(403, "model_not_allowed");
    house.engine.untouched();
    house.supervisor.quiet();
    let list = get("/v1/models").replace("\r\n\r\n", "\r\nauthorization: Bearer sk-alice\r\n\r\n");
    let list = house.ask(list).await.json();
    assert_eq!(
        (list["data"].as_array().unwrap().len(), &list["data"][0]["id"]),
        (1, &"org/big".into())
    );
}

#[tokio::test]
async fn a_rate_is_kept() {
    let mut alice = key("alice");
    alice.per_minute = Some(2);
    let house = keyed(vec![alice, key("bob")], vec![send(OK), Step::Close]).await;
    assert_eq!(house.ask(with("sk-alice", CHAT)).await.status, 200);
    assert_eq!(house.ask(with("sk-alice", CHAT)).await.status, 200);
    let reply = house.ask(with("sk-alice", CHAT)).await;
    reply.error(429, "rate_limited");
    let after: u32 = reply.headers["retry-after"].parse().unwrap();
    assert!((25..=30).contains(&after), "{after}");
    assert_eq!(house.ask(with("sk-bob", CHAT)).await.status, 200, "nobody else is concerned");
}

#[tokio::test]
async fn a_model_is_given_no_more_at_once_than_it_takes() {
    let gate = Arc::new(Semaphore::new(0));
    let mut rules = rules();
    let spec = DoorSpec { max_concurrent: Some(1), ..DoorSpec::default() };
    rules.models.insert("m".parse().unwrap(), spec.into());
    rules.max_queue = 1;
    let script = vec![Step::Gate(gate.clone()), send(OK), Step::Close];
    let mut house = house(Setup { script, rules, ..Setup::default() }).await;
    let body = r#"{"model":"m"}"#;
    let mut first = house.client().await;
    first.send(post(CHAT, body)).await;
    house.engine.request().await;
    let mut second = house.client().await;
    second.send(post(CHAT, body)).await;
    // The queue's one place is taken as soon as a third is refused; until then the second is on its way.
    loop {
        let mut third = house.client().await;
        third.send(post(CHAT, r#"{"model":"gpt-4o"}"#)).await;
        let reply = tokio::time::timeout(std::time::Duration::from_secs(1), third.reply()).await;
        if let Ok(reply) = reply {
            reply.error(503, "queue_full");
            assert_eq!(reply.headers["retry-after"], "1");
            break;
        }
    }
    house.engine.untouched();
    // Another model waits for nobody.
    let mut other = house.client().await;
    other.send(post(CHAT, r#"{"model":"org/big"}"#)).await;
    house.engine.request().await;
    gate.add_permits(2);
    assert_eq!(first.reply().await.status, 200);
    house.engine.request().await;
    gate.add_permits(1);
    assert_eq!((second.reply().await.status, other.reply().await.status), (200, 200));
}

/// Its key, its turn and its parameters are of the model that the alias meant when it was judged.
#[tokio::test]
async fn a_request_that_waits_goes_to_the_model_that_was_judged() {
    let gate = Arc::new(Semaphore::new(0));
    let mut alice = key("alice");
    alice.models = vec!["m".parse().unwrap()];
    let mut rules = rules();
    rules.keys = vec![alice];
    let spec = DoorSpec { max_concurrent: Some(1), ..DoorSpec::default() };
    rules.models.insert("m".parse().unwrap(), spec.into());
    let script = vec![Step::Gate(gate.clone()), send(OK), Step::Close];
    let mut house = house(Setup { script, rules, ..Setup::default() }).await;
    let ask = |model: &str| {
        let head = "authorization: Bearer sk-alice\r\nconnection: close\r\n";
        post_with(CHAT, head, format!("{{\"model\":\"{model}\"}}"))
    };
    let (mut first, mut second) = (house.client().await, house.client().await);
    first.send(ask("m")).await;
    house.engine.request().await;
    second.send(ask("gpt-4o")).await;
    soon("it to wait for its turn", house.supervisor.stirred.notified()).await;
    let mut moved = (*house.rules.load_full()).clone();
    moved.aliases.insert("gpt-4o".parse().unwrap(), "org/big".parse().unwrap());
    house.rules.store(Arc::new(moved));
    gate.add_permits(2);
    assert_eq!((first.reply().await.status, second.reply().await.status), (200, 200));
    let asked = || Happened::Asked("m".into());
    house.supervisor.expect(&[asked(), Happened::Released, asked(), Happened::Released]).await;
    // From now on it means the other.
    house.ask(ask("gpt-4o")).await.error(403, "model_not_allowed");
    // One that the supervisor alone knows was not judged.
    house.ask(ask("unheard-of")).await.error(404, "model_not_found");
    house.supervisor.quiet();
}

#[tokio::test]
async fn all_bodies_together_are_bounded() {
    let gate = Arc::new(Semaphore::new(0));
    let mut setup = Setup { script: vec![Step::Gate(gate.clone()), send(OK)], ..Setup::default() };
    setup.rules.max_buffered = Bytes(3000);
    let mut house = house(setup).await;
    let body = format!("{{\"model\":\"m\",\"x\":\"{}\"}}", "y".repeat(2000));
    let mut first = house.client().await;
    first.send(post(CHAT, &body)).await;
    house.engine.request().await;
    let reply = house.ask(post(CHAT, &body)).await;
    reply.error(503, "bodies_full");
    assert_eq!(reply.headers["retry-after"], "1");
    gate.add_permits(9);
    assert_eq!(first.reply().await.status, 200);
    assert_eq!(house.ask(post(CHAT, &body)).await.status, 200, "what was held is free again");
}

#[tokio::test]
async fn pages_of_other_sites_stay_out_unless_they_are_listed() {
    let evil = || post_with(CHAT, "origin: https://evil\r\nconnection: close\r\n", BODY);
    let mut house = playing(vec![send(OK), Step::Close]).await;
    house.ask(evil()).await.error(403, "origin_not_allowed");
    let asks = format!(
        "OPTIONS {CHAT} HTTP/1.1\r\nhost: localhost\r\norigin: https://chat\r\naccess-control-request-method: POST\r\n\
         access-control-request-headers: authorization,x-stainless-os\r\nconnection: close\r\n\r\n"
    );
    house.ask(&asks).await.error(403, "origin_not_allowed");
    let plain = house.ask(post(CHAT, BODY)).await;
    assert!(!plain.headers.keys().any(|h| h.starts_with("access-control")), "{plain:?}");
    house.engine.request().await;
    house.engine.untouched();

    let mut setup = Setup { script: vec![send(OK), Step::Close], ..Setup::default() };
    setup.rules.origins = vec!["https://chat".into()];
    setup.rules.hosts = vec!["localhost".into()];
    let house = crate::house::house(setup).await;
    let reply = house.ask(&asks).await;
    assert_eq!(reply.status, 204);
    assert_eq!(reply.headers["access-control-allow-origin"], "https://chat");
    assert_eq!(reply.headers["access-control-allow-headers"], "authorization,x-stainless-os");
    let page = post_with(CHAT, "origin: https://chat\r\nconnection: close\r\n", BODY);
    let reply = house.ask(page).await;
    assert_eq!(
        (reply.status, &*reply.headers["access-control-allow-origin"]),
        (200, "https://chat")
    );
    // What is wrong with a base URL is for a listed page to read, and for no other.
    for (page, shared) in [("chat", Some("https://chat")), ("evil", None)] {
        let headers = format!("origin: https://{page}\r\nconnection: close\r\n");
        let wrong = [
            (post_with("/chat/completions", &headers, BODY), 404),
            (post_with("/v1/models", &headers, BODY), 405),
            (format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").into(), 411),
        ];
        for (request, status) in wrong {
            let reply = house.ask(request).await;
            assert_eq!(reply.status, if shared.is_some() { status } else { 403 });
            let origin = reply.headers.get("access-control-allow-origin");
            assert_eq!(origin.map(String::as_str), shared, "{status}");
        }
        let asks = asks.replace("https://chat", &format!("https://{page}"));
        let reply = house.ask(asks.replace(CHAT, "/chat/completions")).await;
        assert_eq!(reply.status, if shared.is_some() { 204 } else { 403 });
    }
    house.ask(evil()).await.error(403, "origin_not_allowed");
    let named = get("/v1/models").replace("localhost", "evil.example:8711");
    house.ask(named).await.error(421, "host_not_allowed");
}

/// To a browser a page whose own name points here is of this host: it sends no `Origin`, or one that equals the `Host`.
#[tokio::test]
async fn a_page_that_makes_its_name_point_here_learns_nothing() {
    let mut house = playing(vec![send(OK), Step::Close]).await;
    let named = |request: String| request.replace("host: localhost", "host: evil.example:8711");
    let own = "origin: http://evil.example:8711\r\nconnection: close\r\n";
    let asks = String::from_utf8(post_with(CHAT, own, BODY)).unwrap();
    house.ask(named(asks)).await.error(421, "host_not_allowed");
    for path in ["/v1/models", "/api/v1/status", "/metrics", "/ui", "/health"] {
        let error = house.ask(named(get(path))).await.error(421, "host_not_allowed");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("[server] hosts = [\"evil.example\", \"localhost\""), "{message}");
    }
    house.supervisor.quiet();
    // No page reaches the socket, and a load balancer that says no name is no browser.
    let mut client = house.unix_client().await;
    client.send(named(get("/v1/models"))).await;
    assert_eq!(client.reply().await.status, 200);
    assert_eq!(house.ask("GET /health HTTP/1.0\r\n\r\n").await.status, 200);
    for host in ["127.0.0.1:8711", "[::1]:8711", "hostler.localhost"] {
        let request = get("/v1/models").replace("localhost", host);
        assert_eq!(house.ask(request).await.status, 200, "{host}");
    }
}

/// A proxy that passes its own name on and asks for no keys needs the one line that the refusal tells.
#[tokio::test]
async fn the_fix_that_is_told_lets_the_name_in_and_keeps_the_others() {
    let named = get("/v1/models").replace("localhost", "chat.lan:8711");
    let error = playing(vec![]).await.ask(&named).await.error(421, "host_not_allowed");
    let list = error["message"].as_str().unwrap().split_once("[server] hosts = ").unwrap().1;
    let mut setup = Setup::default();
    setup.rules.hosts = serde_json::from_str(list).unwrap();
    let house = house(setup).await;
    for request in [named, get("/v1/models"), get("/v1/models").replace("localhost", "[::1]:8711")]
    {
        assert_eq!(house.ask(request).await.status, 200);
    }
    let evil = get("/v1/models").replace("localhost", "evil.example");
    house.ask(evil).await.error(421, "host_not_allowed");
}
