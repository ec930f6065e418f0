//! What the objects say of themselves: every property of every object, and the tree that they are in.

use serde_json::{Value, json};

use crate::house::{House, status};
use hostler::types::{Moment, Problem, Status};

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
