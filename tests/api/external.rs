//! Models that run elsewhere: routed to by the same rules, with their own key, and not asked while they are dead.

use std::sync::Arc;
use std::time::Duration;

use hostler::proxy::External;
use hostler::supervisor::ports::Endpoint;
use hostler::types::Origin;
use serde_json::Value;

use crate::engine::{Engine, Family, Request, Step, send};
use crate::house::{House, Setup, house, rules};
use crate::wire::{get, post, post_with, soon};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nserver: far\r\ncontent-length: 7\r\n\r\n{\"a\":1}";

async fn with(endpoint: &Endpoint, key: Option<&'static str>) -> House {
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
    house(Setup { rules, ..Setup::default() }).await
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
    let body = r#"{"model":"faraway","messages":[]}"#;
    for path in ["/v1/chat/completions", "/v1/messages"] {
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
        assert_eq!(seen.headers.contains_key("x-api-key"), path == "/v1/messages");
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
async fn one_that_is_dead_is_not_asked_and_one_that_refuses_its_key_is_told_of() {
    for (answer, why) in [(None, "cannot be reached"), (Some("401 Unauthorized"), "status 401")] {
        let dir = tempfile::tempdir().unwrap();
        let script = answer.map(|a| send(format!("HTTP/1.1 {a}\r\ncontent-length: 0\r\n\r\n")));
        let far = match &script {
            Some(step) => {
                Engine::start(Family::Tcp, dir.path(), vec![step.clone(), Step::Close])
                    .await
                    .endpoint
            }
            // Nobody listens there any more.
            None => Endpoint::Tcp(
                std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
                None,
            ),
        };
        let mut house = with(&far, None).await;
        soon("it to be found unwell", async {
            while health(&house).await["health"] != "unwell" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
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
