//! Models that run elsewhere: routed to by the same rules, with their own key, and not asked while they are dead.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hostler::proxy::{External, Key, Rules};
use hostler::supervisor::ports::Endpoint;
use hostler::types::{DoorSpec, Origin};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::engine::{Engine, Family, Request, Step, send};
use crate::house::{House, Setup, house, key, rules};
use crate::sockets::OPENING;
use crate::surface::FORM_PATHS;
use crate::wire::{get, post, post_with, soon};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nserver: far\r\ncontent-length: 7\r\n\r\n{\"a\":1}";

pub async fn with(endpoint: &Endpoint, key: Option<&'static str>) -> House {
    house(Setup { rules: far_away(endpoint, key), ..Setup::default() }).await
}

/// Two models here, and one at an endpoint.
fn far_away(endpoint: &Endpoint, key: Option<&'static str>) -> Rules {
    let Endpoint::Tcp(address, _) = endpoint else { panic!("{endpoint:?}") };
    let origin = Origin {
        tls: false,
        host: address.ip().to_string(),
        port: address.port(),
        prefix: "/team".into(),
    };
    let external =
        External { origin, key: key.map(|k| k.parse().unwrap()), health: "/v1/models".into() };
    let mut rules = rules();
    let name: hostler::types::ModelName = "far/away".parse().unwrap();
    rules.models.insert(name.clone(), Arc::default());
    rules.aliases.insert("faraway".parse().unwrap(), name.clone());
    rules.externals.insert(name, Arc::new(external));
    rules
}

/// The same where the far side knows the model by another name.
fn known_there_as(endpoint: &Endpoint, served_name: &str) -> Rules {
    let mut rules = far_away(endpoint, None);
    let spec = DoorSpec { served_name: Some(served_name.into()), ..DoorSpec::default() };
    rules.models.insert("far/away".parse().unwrap(), spec.into());
    rules
}

/// The names that a list has.
async fn listed(house: &House, path: &str, list: &str, name: &str, key: &str) -> Vec<String> {
    let head =
        format!("host: localhost\r\nconnection: close\r\nauthorization: Bearer sk-{key}\r\n");
    let reply = house.ask(format!("GET {path} HTTP/1.1\r\n{head}\r\n")).await;
    let (status, all) = (reply.status, reply.json());
    assert_eq!(status, 200, "{all}");
    all[list].as_array().unwrap().iter().map(|m| m[name].as_str().unwrap().to_owned()).collect()
}

/// The next request of a client's; the questions whether it lives come in between.
async fn asked(engine: &mut Engine) -> Request {
    loop {
        let request = engine.request().await;
        if request.line != "GET /team/v1/models HTTP/1.1" {
            return request;
        }
    }
}

async fn health(house: &House) -> Value {
    house.ask(get("/api/v1/status")).await.json()["externals"][0].clone()
}

#[tokio::test]
async fn it_is_asked_under_its_own_name_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut far = Engine::start(Family::Tcp, dir.path(), vec![send(OK), Step::Close]).await;
    let mut house = with(&far.endpoint, Some("sk-far")).await;
    // Whether it lives is asked as both kinds of services want it.
    let probe = far.request().await;
    assert_eq!(probe.line, "GET /team/v1/models HTTP/1.1");
    let sent = ["authorization", "x-api-key", "anthropic-version"]
        .map(|name| probe.headers.get(name).map(String::as_str));
    assert_eq!(sent, [Some("Bearer sk-far"), Some("sk-far"), Some("2023-06-01")]);
    let body = r#"{ "messages":[], "model":"far/away" }"#;
    for path in ["/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"] {
        let headers = "authorization: Bearer theirs\r\nconnection: close\r\n";
        let reply = house.ask(post_with(path, headers, body)).await;
        assert_eq!(
            (reply.status, reply.text(), &*reply.headers["server"]),
            (200, "{\"a\":1}", "far")
        );
        let seen = asked(&mut far).await;
        assert_eq!(seen.line, format!("POST /team{path} HTTP/1.1"));
        assert_eq!(seen.body, body.as_bytes());
        assert_eq!(seen.headers["authorization"], "Bearer sk-far");
        assert_eq!(seen.headers.contains_key("x-api-key"), path.starts_with("/v1/messages"));
        let Endpoint::Tcp(address, _) = &far.endpoint else { panic!() };
        assert_eq!(seen.headers["host"], address.to_string());
    }
    house.supervisor.quiet();
    house.engine.untouched();
    let list = house.ask(get("/v1/models")).await.json();
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["m", "gpt-4o", "org/big", "far/away", "faraway"]);
    assert_eq!(house.ask(get("/v1/models/far/away")).await.status, 200);
    let shown = health(&house).await;
    assert_eq!((&shown["name"], &shown["aliases"][0]), (&"far/away".into(), &"faraway".into()));
    let well = async {
        while health(&house).await["health"] != "well" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("it to be found well", well).await;
    assert!(health(&house).await["since"].is_object());
    assert!(!shown.to_string().contains("sk-far"));
}

#[tokio::test]
async fn ollamas_list_offers_what_the_list_of_models_does_to_each_key() {
    let dir = tempfile::tempdir().unwrap();
    let far = Engine::start(Family::Tcp, dir.path(), vec![send(OK), Step::Close]).await;
    let mut rules = far_away(&far.endpoint, None);
    let good_for = |name: &str, models: &[&str]| Key {
        models: models.iter().map(|m| m.parse().unwrap()).collect(),
        ..key(name)
    };
    rules.keys = vec![key("all"), good_for("far", &["far/away"]), good_for("near", &["org/big"])];
    let mut house = house(Setup { rules, ..Setup::default() }).await;
    let everything = &["m", "gpt-4o", "org/big", "far/away", "faraway"][..];
    for (key, want) in
        [("all", everything), ("far", &["far/away", "faraway"]), ("near", &["org/big"])]
    {
        assert_eq!(listed(&house, "/v1/models", "data", "id", key).await, want, "{key}");
        for name in ["name", "model"] {
            assert_eq!(listed(&house, "/api/tags", "models", name, key).await, want, "{key}");
        }
        // Of what takes memory here, which it does not.
        assert_eq!(listed(&house, "/api/ps", "models", "name", key).await, [""; 0], "{key}");
    }
    // An entry is one like all others; where it runs is for those who may see the host.
    let head = "host: localhost\r\nconnection: close\r\nauthorization: Bearer sk-all\r\n";
    let tags = house.ask(format!("GET /api/tags HTTP/1.1\r\n{head}\r\n")).await.json();
    let (here, mut there) = (&tags["models"][2], tags["models"][3].clone());
    assert_eq!(there["size"], json!(0));
    for field in ["name", "model"] {
        there[field] = here[field].clone();
    }
    assert_eq!(here, &there);
    house.supervisor.quiet();
}

#[tokio::test]
async fn one_that_is_dead_is_not_asked_and_one_that_refuses_its_key_is_told_of() {
    for (answer, why) in [(None, "cannot be reached"), (Some("401 Unauthorized"), "status 401")] {
        let dir = tempfile::tempdir().unwrap();
        let script = answer.map(|a| send(format!("HTTP/1.1 {a}\r\ncontent-length: 0\r\n\r\n")));
        let mut far = match &script {
            Some(step) => {
                let script = vec![step.clone(), Step::Close];
                Some(Engine::start(Family::Tcp, dir.path(), script).await)
            }
            None => None,
        };
        // Nobody listens there any more.
        let nobody = || {
            let left = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            Endpoint::Tcp(left, None)
        };
        let endpoint = far.as_ref().map_or_else(nobody, |far| far.endpoint.clone());
        let mut house = with(&endpoint, None).await;
        soon("it to be found unwell", async {
            while health(&house).await["health"] != "unwell" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        if let Some(far) = &mut far {
            let asked = std::iter::from_fn(|| far.seen.try_recv().ok()).count();
            assert_eq!(asked, 3, "one miss is no death");
        }
        let shown = health(&house).await;
        assert!(shown["why"].as_str().unwrap().contains(why), "{shown}");
        let text = get("/api/v1/status").replace("\r\n\r\n", "\r\naccept: text/plain\r\n\r\n");
        let table = house.ask(text).await.text().to_owned();
        assert!(table.contains("ELSEWHERE") && table.contains("far/away: "), "{table}");
        let reply = house.ask(post("/v1/chat/completions", r#"{"model":"far/away"}"#)).await;
        reply.error(503, "external_unwell");
        assert_eq!(reply.headers["retry-after"], "5");
        house.supervisor.quiet();
    }
}

/// What was found of one address is not said of another that has its name by now.
#[tokio::test]
async fn a_reload_with_another_address_is_heeded_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let refuses = send("HTTP/1.1 500 Broken\r\ncontent-length: 0\r\n\r\n");
    let old = Engine::start(Family::Tcp, dir.path(), vec![refuses, Step::Close]).await;
    let house = with(&old.endpoint, None).await;
    let becomes = async |want: &str| {
        while health(&house).await["health"] != want {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("it to be found unwell", becomes("unwell")).await;
    let gate = Arc::new(Semaphore::new(0));
    let script = vec![Step::Gate(gate.clone()), send(OK), Step::Close];
    let mut new = Engine::start(Family::Tcp, dir.path(), script).await;
    let since = Instant::now();
    house.rules.store(Arc::new(far_away(&new.endpoint, None)));
    assert_eq!(health(&house).await["health"], "unknown");
    assert_eq!(new.request().await.line, "GET /team/v1/models HTTP/1.1");
    assert!(since.elapsed() < Duration::from_secs(4), "it waited for its turn");
    // The admin's own try passes.
    gate.add_permits(2);
    assert_eq!(
        house.ask(post("/v1/chat/completions", r#"{"model":"far/away"}"#)).await.status,
        200
    );
    soon("it to be found well", becomes("well")).await;
}

#[tokio::test]
async fn it_is_told_the_name_that_it_knows_in_forms_and_sockets_too() {
    let dir = tempfile::tempdir().unwrap();
    let far = Engine::start(Family::Tcp, dir.path(), vec![send(OK), Step::Close]).await;
    let rules = known_there_as(&far.endpoint, "org/véry&far");
    told(far, rules, "org/véry&far", "org%2Fv%C3%A9ry%26far").await;
}

/// Nobody there has heard of an alias, which is this host's alone.
#[tokio::test]
async fn it_is_told_its_own_name_for_an_alias_and_nothing_else_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let mut far = Engine::start(Family::Tcp, dir.path(), vec![send(OK), Step::Close]).await;
    let rules = far_away(&far.endpoint, None);
    let house = house(Setup { rules: rules.clone(), ..Setup::default() }).await;
    let long = "x".repeat(1 << 20);
    for name in ["faraway", "far/away"] {
        for input in ["", &*long] {
            let body = |name: &str| format!("{{\"model\":\"{name}\",\"input\":\"{input}\"}}");
            assert_eq!(house.ask(post("/v1/embeddings", body(name))).await.status, 200);
            let seen = asked(&mut far).await.body;
            assert!(seen == body("far/away").as_bytes(), "{name}, {}", seen.len());
        }
        // What has the name already is not even written anew.
        let spaced = format!("{{ \"model\" : \"{name}\" }}");
        assert_eq!(house.ask(post("/v1/embeddings", &spaced)).await.status, 200);
        let seen = String::from_utf8(asked(&mut far).await.body).unwrap();
        let own = name == "far/away";
        assert_eq!(seen, if own { &*spaced } else { "{\"model\":\"far/away\"}" });
    }
    told(far, rules, "far/away", "far%2Faway").await;
}

/// What it is told for the alias in forms, and in a target.
async fn told(mut far: Engine, rules: Rules, name: &str, escaped: &str) {
    let house = house(Setup { rules, ..Setup::default() }).await;
    let form = |name: &str| {
        format!(
            "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"faraway\"\r\n\r\nfaraway\r\n--XX\r\n\
             Content-Disposition: form-data; name=\"model\"\r\n\r\n{name}\r\n--XX--\r\n"
        )
    };
    for path in FORM_PATHS {
        let sent = form("faraway");
        let upload = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=XX\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{sent}",
            sent.len()
        );
        assert_eq!(house.ask(upload).await.status, 200);
        let seen = asked(&mut far).await;
        assert_eq!(String::from_utf8(seen.body).unwrap(), form(name));
    }
    let opening = OPENING.replace("model=m", "model=faraway");
    let opening = opening.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    assert_eq!(house.ask(opening).await.status, 200, "it has no sockets");
    let seen = asked(&mut far).await;
    assert_eq!(seen.line, format!("GET /team/v1/realtime?model={escaped} HTTP/1.1"));
}

/// Work that no request waits for would be evicted in the middle, and its client would ask for an answer that is gone.
#[tokio::test]
async fn an_answer_for_later_is_had_elsewhere_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut far = Engine::start(Family::Tcp, dir.path(), vec![send(OK), Step::Close]).await;
    let rules = far_away(&far.endpoint, None);
    let mut house = house(Setup { rules, script: vec![send(OK)], ..Setup::default() }).await;
    let refused = |reply: &crate::wire::Reply| {
        reply.error(400, "invalid_value");
        assert_eq!(reply.json()["error"]["param"], "background");
    };
    refused(&house.ask(post("/v1/responses", r#"{"background":true,"model":"gpt-4o"}"#)).await);
    house.supervisor.quiet();
    for model in ["m", "faraway"] {
        let later = if model == "m" { "false" } else { "true" };
        let body = format!("{{\"model\":\"{model}\",\"background\":{later}}}");
        assert_eq!(house.ask(post("/v1/responses", body)).await.status, 200, "{model}");
    }
    assert_eq!(asked(&mut far).await.line, "POST /team/v1/responses HTTP/1.1");
    assert_eq!(house.engine.request().await.line, "POST /v1/responses HTTP/1.1");
    // On other paths it is another thing.
    let image = r#"{"model":"m","background":"transparent"}"#;
    assert_eq!(house.ask(post("/v1/images/generations", image)).await.status, 200);
    house.engine.request().await;
    // One that flows, and says so last.
    let long = "x".repeat(1 << 20);
    let body = format!("{{\"model\":\"m\",\"input\":\"{long}\",\"background\":true}}");
    refused(&house.ask(post("/v1/responses", body)).await);
}
