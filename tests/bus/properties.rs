//! What the objects say of themselves: every property of every object, and the tree that they are in.

use serde_json::{Value, json};

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;

use crate::house::{House, status};
use hostler::types::{
    Fault, FaultCode, MeasuredNeed, ModelStatus, Moment, Phase, Problem, SleepLevel, SleepStatus,
    Status,
};

/// All properties of an object, each without its type.
async fn all(house: &House, object: &str, interface: &str) -> Value {
    let properties = "org.freedesktop.DBus.Properties";
    let call =
        ["--json=short", "call", "org.hostler1", object, properties, "GetAll", "s", interface];
    let text = house.busctl(&call).await.unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    let properties = answer["data"][0].as_object().unwrap();
    properties.iter().map(|(name, value)| (name.clone(), value["data"].clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_property_says_what_is_known_and_what_is_not() {
    let problem = Problem {
        code: "gpu_lost",
        message: "GPU-2: lost".to_owned(),
        since: Moment::from_secs(1),
    };
    let mut status = Status { problems: vec![problem], ..status() };
    let pending = "the last request on its older container";
    status.models[0].waiting_for = Some(pending.to_owned());
    let house = House::open(status).await;
    let unknown = u64::MAX;
    let manager = all(&house, "/org/hostler1", "org.hostler1.Manager").await;
    assert_eq!(
        manager,
        json!({
            "ActiveRequests": 2, "QueuedRequests": 1, "State": "degraded",
            "Problems": [["gpu_lost", "GPU-2: lost"]],
            "Listeners": ["127.0.0.1:8711", "/run/hostler/http.sock"],
            "PodmanVersion": "5.4.2", "Version": "1.2.3",
        })
    );
    let mut ready = all(&house, "/org/hostler1/model/org_2fm", "org.hostler1.Model").await;
    let used = ready["LastUsedTimestamp"].take().as_u64().unwrap();
    assert!(used > 1_600_000_000_000_000, "{used} is no time of this century");
    assert_eq!(
        ready,
        json!({
            "Name": "org/m", "Aliases": ["gpt-4o"], "Engine": "vllm", "Phase": "ready",
            "Container": "hostler-org-m-g3-0000beef", "ContainerID": "c0ffee", "Gpus": ["GPU-1"],
            "VramPlanned": 2_u64 << 30, "VramObserved": 1 << 30, "FootprintConfidence": "none",
            "Footprint": unknown, "ActiveRequests": 2, "QueuedRequests": 1, "LastUsedTimestamp": null,
            "IdleTimeoutUSec": 60_000_000, "Pinned": false, "Progress": -1.0, "EtaUSec": unknown,
            "LoadUSec": 1_500_000, "LastError": ["", ""], "Restarts": 1, "WaitingFor": pending,
            "Report": "", "SleepLevel": 0,
        })
    );
    let stopped = all(&house, "/org/hostler1/model/small", "org.hostler1.Model").await;
    for (name, value) in [
        ("Container", json!("")),
        ("VramPlanned", json!(unknown)),
        ("VramObserved", json!(unknown)),
        ("LastUsedTimestamp", json!(0)),
        ("IdleTimeoutUSec", json!(unknown)),
        ("LoadUSec", json!(unknown)),
    ] {
        assert_eq!(stopped[name], value, "{name} of {stopped:#}");
    }
    let gpu = all(&house, "/org/hostler1/gpu/GPU_2d1", "org.hostler1.Gpu").await;
    assert_eq!(
        gpu,
        json!({
            "UUID": "GPU-1", "Name": "H200", "Total": 8_u64 << 30, "Headroom": 512 << 20, "Reserved": 0,
            "Confirmed": 2_u64 << 30, "Releasing": 0, "Quarantined": 0, "Foreign": unknown,
            "Free": 5_u64 << 30, "Processes": [[7, "org/m", 1 << 30], [8, "", unknown]],
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_object_manager_lists_all_that_there_is() {
    let house = House::open(status()).await;
    house.manager(&["Load", "sa{sv}", "small", "0"]).await.unwrap();
    let manager = "org.freedesktop.DBus.ObjectManager";
    let call =
        ["--json=short", "call", "org.hostler1", "/org/hostler1", manager, "GetManagedObjects"];
    let answer: Value = serde_json::from_str(&house.busctl(&call).await.unwrap()).unwrap();
    let objects = answer["data"][0].as_object().unwrap();
    let own = |interfaces: &Value| {
        let all = interfaces.as_object().unwrap().keys();
        all.filter(|name| name.starts_with("org.hostler1.")).cloned().collect::<Vec<_>>().join(" ")
    };
    // The library lists what is only a part of paths, too.
    let ours =
        objects.iter().map(|(path, all)| (path, own(all))).filter(|(_, own)| !own.is_empty());
    let seen: Vec<String> = ours.map(|(path, own)| format!("{path} {own}")).collect();
    assert_eq!(
        seen,
        [
            "/org/hostler1/gpu/GPU_2d1 org.hostler1.Gpu",
            "/org/hostler1/job/1 org.hostler1.Job",
            "/org/hostler1/model/org_2fm org.hostler1.Model",
            "/org/hostler1/model/small org.hostler1.Model",
        ]
    );
}

/// Every property of a model that is sent with its value has another one now.
fn all_else(of: ModelStatus, as_of: &ModelStatus) -> ModelStatus {
    ModelStatus {
        aliases: vec!["tiny".parse().unwrap()],
        engine: "vllm",
        phase: Phase::Asleep,
        instance: as_of.instance.clone(),
        container: as_of.container.clone(),
        gpus: as_of.gpus.clone(),
        planned: as_of.planned,
        footprint: Some(MeasuredNeed {
            bytes: hostler::types::Bytes::gib(1),
            peak: hostler::types::Bytes::gib(2),
            samples: 3,
            confidence: "medium",
            attribution: "process",
            measured_at: 1,
        }),
        idle_timeout: Some(std::time::Duration::from_secs(9)),
        pinned: true,
        load_ms: Some(7),
        error: Some(Fault::new(FaultCode::LoadTimeout, "it took too long")),
        restarts: 5,
        waiting_for: Some("memory".to_owned()),
        sleep: Some(SleepStatus { level: Some(SleepLevel::One), ..SleepStatus::default() }),
        ..of
    }
}

/// A client that keeps what signals tell has the same as one that asks.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_what_is_answered() {
    let house = House::open(status()).await;
    let object = "/org/hostler1/model/small";
    let client = house.client().await;
    let rule = zbus::MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .interface("org.freedesktop.DBus.Properties")
        .path(object)
        .build()
        .unwrap();
    let mut signals = zbus::MessageStream::for_match_rule(rule, &client, None).await.unwrap();
    let mut now = status();
    now.models[1] = all_else(now.models[1].clone(), &now.models[0]);
    house.status.send(Arc::new(now)).unwrap();
    type Values = BTreeMap<String, zbus::OwnedVariant>;
    let sent = async {
        loop {
            let message = signals.next().await.unwrap().unwrap();
            let (_, values, _): (String, Values, Vec<String>) =
                message.body().deserialize().unwrap();
            if values.contains_key("Phase") {
                return values;
            }
        }
    };
    let sent = tokio::time::timeout(std::time::Duration::from_secs(20), sent).await.unwrap();
    assert_eq!(sent.len(), 15, "one is not made to change: {:?}", sent.keys());
    let properties = Some("org.freedesktop.DBus.Properties");
    let asked = client
        .call_method(Some("org.hostler1"), object, properties, "GetAll", &("org.hostler1.Model",))
        .await
        .unwrap();
    let answered: Values = asked.body().deserialize().unwrap();
    for (name, value) in &sent {
        assert_eq!(Some(value), answered.get(name), "{name}");
    }
}
