//! Pages about the host: who may see them, and that they end with the drain.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt;
use hostler::proxy::Key;
use hostler::proxy::port::{Act, Answer, Asker, Behind, Console, Content, Observer, Page, Seen};
use hostler::types::{self, Denied, GpuId, Moment, Need, NeedSource, Problem, Report};
use hostler::types::{DeviceHolder, DeviceVerdict, Generation, InstanceId, Verdict, VictimVerdict};
use hyper::Response;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::engine::{Step, send};
use crate::house::{House, Policy, Setup, house};
use crate::wire::{BODY, CHAT, Client, Reply, get, post_with, soon};

/// Route, model and status.
type Request = (&'static str, Option<String>, Option<u16>);

/// Notes what it is asked, and answers everything.
struct Notes {
    /// Lets one of the streams go on.
    more: Arc<Semaphore>,
    asked: Mutex<Vec<(Page, Asker)>>,
    requests: Mutex<Vec<Request>>,
}

impl Default for Notes {
    fn default() -> Self {
        let more = Arc::new(Semaphore::new(0));
        Self { more, asked: Mutex::default(), requests: Mutex::default() }
    }
}

impl Console for Notes {
    fn answer(&self, page: Page, asker: Asker) -> Answer<'_> {
        let endless = page == Page::Events || page == Page::Log("org/big".parse().unwrap());
        self.asked.lock().unwrap().push((page, asker));
        let content = if endless {
            let more = self.more.clone();
            let first = futures_util::stream::iter([Bytes::from_static(b": hello\n\n")]);
            let next = futures_util::stream::once(async move {
                more.acquire().await.unwrap().forget();
                Bytes::from_static(b": more\n\n")
            });
            let rest = futures_util::stream::pending();
            Content::Stream(Box::pin(first.chain(next).chain(rest)))
        } else {
            Content::Whole(Bytes::from_static(b"it"))
        };
        Box::pin(std::future::ready(Ok(Response::new(content))))
    }
}

impl Observer for Notes {
    fn begun(&self) {}

    fn ended(&self, seen: &Seen<'_>) {
        let model = seen.model.map(ToString::to_string);
        self.requests.lock().unwrap().push((seen.route, model, seen.status));
    }
}

fn key(name: &str, admin: bool, models: &[&str]) -> Key {
    let models = models.iter().map(|m| m.parse().unwrap()).collect();
    Key { models, admin, ..crate::house::key(name) }
}

async fn with(keys: Vec<Key>) -> (House, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    let behind = Behind { observer: notes.clone(), console: notes.clone(), ..Behind::default() };
    let answer = send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let mut setup = Setup { behind, script: vec![answer, Step::Close], ..Setup::default() };
    setup.rules.keys = keys;
    (house(setup).await, notes)
}

/// A request with a head of its own.
async fn ask(house: &House, line: &str, head: &str) -> Reply {
    house
        .ask(format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{head}\r\n"))
        .await
}

const PAGES: [&str; 6] = [
    "/api/v1/models",
    "/api/v1/externals",
    "/api/v1/gpus",
    "/api/v1/jobs",
    "/api/v1/status",
    "/api/v1/models/m/log",
];

#[tokio::test]
async fn without_keys_the_host_is_shown_and_nobody_changes_it() {
    let (mut house, notes) = with(vec![]).await;
    for path in PAGES.into_iter().filter(|p| !p.ends_with("/log")) {
        assert_eq!(ask(&house, &format!("GET {path}"), "").await.status, 200, "{path}");
    }
    let before = notes.asked.lock().unwrap().len();
    for line in ["POST /api/v1/models/m/load", "GET /api/v1/models/m/log"] {
        ask(&house, line, "").await.error(403, "admin_key_required");
    }
    ask(&house, "GET /debug/state", "").await.error(404, "unknown_path");
    ask(&house, "GET /debug/plan?model=m", "").await.error(404, "unknown_path");
    assert_eq!(notes.asked.lock().unwrap().len(), before, "nobody was asked");
    let mut unix = house.unix_client().await;
    unix.send(get("/debug/plan?model=org%2Fbig")).await;
    assert_eq!(unix.reply().await.status, 200);
    let asked = notes.asked.lock().unwrap().last().cloned().unwrap();
    assert_eq!(asked, (Page::DebugPlan("org/big".parse().unwrap()), Asker::default()));
    house.supervisor.quiet();
    house.engine.untouched();
}

#[tokio::test]
async fn with_keys_only_their_holders_see_the_host_and_only_an_administrator_changes_it() {
    let keys = vec![key("boss", true, &[]), key("all", false, &[]), key("few", false, &["m"])];
    let (house, notes) = with(keys).await;
    let bearer = |name: &str| format!("authorization: Bearer sk-{name}\r\n");
    for path in PAGES {
        let line = format!("GET {path}");
        assert_eq!(ask(&house, &line, "").await.status, 401, "{path}");
        let log = path.ends_with("/log");
        let (few, all) = if log { ("admin_key_required", 403) } else { ("key_limited", 200) };
        ask(&house, &line, &bearer("few")).await.error(403, few);
        assert_eq!(ask(&house, &line, &bearer("all")).await.status, all, "{path}");
        assert_eq!(ask(&house, &line, &bearer("boss")).await.status, 200, "{path}");
    }
    let load = "POST /api/v1/models/org/big/load";
    assert_eq!(ask(&house, load, "").await.status, 401);
    for name in ["all", "few"] {
        ask(&house, load, &bearer(name)).await.error(403, "admin_key_required");
    }
    let before = notes.asked.lock().unwrap().len();
    assert_eq!(ask(&house, load, &bearer("boss")).await.status, 200);
    let asked = notes.asked.lock().unwrap()[before..].to_vec();
    let boss = Asker { key: Some("boss".into()), admin: true, keys: true, openmetrics: false };
    assert_eq!(asked, [(Page::Act("org/big".parse().unwrap(), Act::Load), boss)]);
    // What holds nothing of the host needs no key, and monitoring on this host needs none unless it speaks for others.
    for path in ["/ui", "/api/v1/openapi.json", "/metrics"] {
        assert_eq!(ask(&house, &format!("GET {path}"), "").await.status, 200, "{path}");
    }
    for head in ["x-forwarded-for: 192.0.2.1\r\n", "forwarded: for=192.0.2.1\r\n"] {
        assert_eq!(ask(&house, "GET /metrics", head).await.status, 401, "{head}");
    }
}

/// Why there is no room for `m`, with a model that not everybody may know.
fn no_room() -> [Denied; 2] {
    let other = InstanceId::new("org/big".parse().unwrap(), Generation(1), 1);
    let (model, largest) = ("m".parse().unwrap(), types::Bytes::gib(8));
    let need = Need { bytes: types::Bytes::gib(9), source: NeedSource::Declared };
    let holders = vec![DeviceHolder { instance: other.clone(), bytes: largest }];
    let device = DeviceVerdict {
        gpu: GpuId::new("GPU-secret"),
        free: types::Bytes::ZERO,
        empty: largest,
        reserved: largest,
        quarantined: types::Bytes::ZERO,
        foreign: types::Bytes::ZERO,
        kept: types::Bytes::ZERO,
        holders,
        verdict: Verdict::Occupied,
    };
    let spared = Some("it serves requests");
    let victim = VictimVerdict {
        instance: other,
        spared,
        chosen: false,
        asleep: None,
        stopped_because: None,
    };
    let report = Report { model, need, devices: vec![device], victims: vec![victim] };
    let (model, why) = (report.model.clone(), report.to_string());
    let (report, retry_after) = (Some(Arc::new(report)), std::time::Duration::from_secs(7));
    let need = need.bytes;
    [
        Denied::NeverFits {
            model: model.clone(),
            need,
            devices: 1,
            largest,
            report: report.clone(),
        },
        Denied::NoRoom { model, why, report, retry_after },
    ]
}

#[tokio::test]
async fn a_key_for_some_models_is_not_told_of_the_others_by_a_refusal_or_by_ready() {
    let keys = vec![key("all", false, &[]), key("few", false, &["m"])];
    for denied in no_room() {
        let mut setup = Setup { policy: Policy::Hold, ..Setup::default() };
        setup.rules.keys = keys.clone();
        setup.rules.feedback_after = std::time::Duration::from_millis(20);
        let mut house = house(setup).await;
        for (name, told) in [("few", false), ("all", true)] {
            let head = format!("authorization: Bearer sk-{name}\r\nconnection: close\r\n");
            for body in [BODY, r#"{"model":"m"}"#] {
                let mut client = house.client().await;
                client.send(post_with(CHAT, &head, body)).await;
                house.supervisor.next().await;
                if body == BODY {
                    client.until(": hostler").await;
                }
                house.supervisor.deny_held(&denied);
                let reply = client.reply().await;
                let text = reply.text();
                assert!(text.contains(denied.code()), "{text}");
                for other in ["big", "GPU-secret"] {
                    assert_eq!(text.contains(other), told, "{name}: {text}");
                }
                // What its own model needs it may know.
                let need = matches!(denied, Denied::NeverFits { .. });
                assert_eq!(text.contains("9663676416"), need || told, "{text}");
            }
        }
        house.supervisor.quiet();
    }
}

#[tokio::test]
async fn ready_says_what_is_wrong_to_who_may_know_of_all_models() {
    let keys = vec![key("all", false, &[]), key("few", false, &["m"])];
    let (house, _) = with(keys).await;
    house.supervisor.status.send_modify(|status| {
        let (code, message) = ("gpu_lost", "the device of org/big is lost".to_owned());
        let problem = Problem { code, message, since: Moment::START };
        Arc::make_mut(status).problems.push(problem);
    });
    for (name, told) in [("few", false), ("all", true)] {
        let reply =
            ask(&house, "GET /ready", &format!("authorization: Bearer sk-{name}\r\n")).await;
        assert_eq!((reply.status, reply.text().contains("org/big")), (503, told), "{name}");
        assert_eq!(reply.json()["status"], "degraded");
    }
}

#[tokio::test]
async fn each_request_is_seen_once_with_a_model_only_if_that_is_configured() {
    let (house, notes) = with(vec![]).await;
    for model in ["gpt-4o", "made-up-by-a-client"] {
        let body = BODY.replace("\"m\"", &format!("\"{model}\""));
        house.ask(post_with(CHAT, "connection: close\r\n", body)).await;
    }
    ask(&house, "GET /nowhere", "").await;
    let seen = notes.requests.lock().unwrap().clone();
    let routes: Vec<_> = seen.iter().map(|(route, model, _)| (*route, model.as_deref())).collect();
    assert_eq!(routes, [("chat_completions", Some("m")), ("chat_completions", None), ("-", None)]);
    assert_eq!(seen[2].2, Some(404));
}

#[tokio::test]
async fn who_watches_does_not_hold_up_the_drain() {
    let (mut house, _) = with(vec![]).await;
    let mut client = house.client().await;
    client.send(get("/api/v1/events")).await;
    client.until(": hello").await;
    house.stop.cancel();
    let drained = soon("the server to end", &mut house.served).await.unwrap();
    assert_eq!(drained.aborted, 0);
}

/// What an engine writes may hold what its clients asked: a key that leaked is taken back for who reads already, too.
#[tokio::test]
async fn who_may_not_any_more_sees_no_more() {
    let keys = vec![key("boss", true, &[]), key("all", false, &[])];
    let (house, notes) = with(keys.clone()).await;
    let open = async |path: &str, name: &str| {
        let mut client = house.client().await;
        let head = "host: localhost\r\nconnection: close\r\n";
        client
            .send(format!("GET {path} HTTP/1.1\r\n{head}authorization: Bearer sk-{name}\r\n\r\n"))
            .await;
        client.until(": hello").await;
        client
    };
    let replace = |keys: Vec<Key>| {
        let mut rules = (*house.rules.load_full()).clone();
        rules.keys = keys;
        house.rules.store(Arc::new(rules));
    };
    let events = "/api/v1/events";
    let (mut theirs, mut ours) = (open(events, "all").await, open(events, "boss").await);
    let mut log = open("/api/v1/models/org/big/log", "boss").await;
    replace(vec![key("new", false, &[]), keys[0].clone()]);
    theirs.end().await.unwrap();
    // Those of the key that is still there go on, in whichever place of the list it is.
    notes.more.add_permits(2);
    ours.until(": more").await;
    log.until(": more").await;
    replace(vec![key("boss", false, &[])]);
    log.end().await.unwrap();
    replace(vec![key("boss", false, &["m"])]);
    ours.end().await.unwrap();
    // Who came when no keys were asked for.
    replace(vec![]);
    let mut early = open(events, "boss").await;
    replace(vec![key("boss", false, &[])]);
    early.end().await.unwrap();
}

#[tokio::test]
async fn an_address_for_monitoring_has_metrics_without_a_key_and_nothing_else() {
    let (mut house, notes) = with(vec![key("boss", true, &[])]).await;
    let ask = async |line: &str, head: &str| {
        let mut client = Client::new(TcpStream::connect(house.monitoring).await.unwrap());
        client
            .send(format!("{line} HTTP/1.1\r\nhost: far:9711\r\nconnection: close\r\n{head}\r\n"))
            .await;
        client.reply().await
    };
    for path in ["/metrics", "/metrics/models/m", "/health"] {
        assert_eq!(ask(&format!("GET {path}"), "via: 1.1 p\r\n").await.status, 200, "{path}");
    }
    assert_eq!(notes.asked.lock().unwrap().len(), 2);
    let boss = "authorization: Bearer sk-boss\r\n";
    for line in [
        "GET /ready",
        "GET /ui",
        "GET /v1/models",
        "GET /api/v1/status",
        "GET /debug/state",
        "POST /api/v1/models/m/load",
    ] {
        ask(line, boss).await.error(404, "unknown_path");
    }
    let mut client = Client::new(TcpStream::connect(house.monitoring).await.unwrap());
    let head = format!("{boss}connection: close\r\n");
    client.send(post_with(CHAT, &head, BODY)).await;
    client.reply().await.error(404, "unknown_path");
    assert_eq!(notes.asked.lock().unwrap().len(), 2, "nobody else was asked");
    house.supervisor.quiet();
    house.engine.untouched();
}
