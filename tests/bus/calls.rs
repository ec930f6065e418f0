//! Every method that changes or asks something, as `busctl` calls it: what reaches the supervisor and the composition root, and what
//! comes back.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hostler::control::Reloaded;
use hostler::supervisor::handle::{Ask, Verb};
use hostler::types::{
    Bytes, Check, CheckVerdict, Denied, Evict, Fault, FaultCode, GpuId, Haste, Moment, Outcome,
    Phase, Preview, PreviewGpu, Problem, Status, Wish,
};
use tokio::sync::oneshot;

use crate::house::{House, status};

pub type Answer = oneshot::Sender<Result<(), Denied>>;

/// The next thing that an operator wants of the supervisor.
pub async fn next(house: &mut House) -> (String, Verb, Answer) {
    loop {
        match house.asks.recv().await.unwrap() {
            Ask::Operate { model, verb, answer, .. } => return (model.to_string(), verb, answer),
            Ask::Trouble { .. } => {}
            other @ (Ask::Acquire { .. }
            | Ask::Cancel { .. }
            | Ask::Release { .. }
            | Ask::Stir
            | Ask::Preview { .. }
            | Ask::Reach { .. }
            | Ask::Configure(..)
            | Ask::Shutdown { .. }) => panic!("{other:?}"),
        }
    }
}

/// A property of a job.
pub async fn job(house: &House, id: u32, property: &str) -> String {
    let object = format!("/org/hostler1/job/{id}");
    house.get(&object, "org.hostler1.Job", property).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_is_a_job_until_the_model_answers() {
    let mut house = House::open(status()).await;
    let mut monitor = house.monitor().await;
    let options = ["Load", "sa{sv}", "gpt-4o", "3", "pin", "b", "true", "evict", "s", "any"];
    let call = [&options[..], &["gpus", "as", "1", "GPU-1"]].concat();
    assert_eq!(house.manager(&call).await.unwrap(), "o \"/org/hostler1/job/1\"");
    let (model, verb, answer) = next(&mut house).await;
    let gpus = vec![GpuId::new("GPU-1")];
    let wish = Wish { pin: true, evict: Some(Evict::Any), gpus };
    assert_eq!((model.as_str(), verb), ("org/m", Verb::Load(wish)));
    monitor.until("JobNew /org/hostler1/job/1 load org/m").await;
    assert_eq!(job(&house, 1, "State").await, "s \"running\"");
    assert_eq!(job(&house, 1, "Kind").await, "s \"load\"");
    assert_eq!(job(&house, 1, "Phase").await, "s \"ready\"");
    assert_eq!(job(&house, 1, "Progress").await, "d -1");
    assert_eq!(job(&house, 1, "EtaUSec").await, format!("t {}", u64::MAX));
    answer.send(Ok(())).unwrap();
    monitor.until("JobRemoved /org/hostler1/job/1 load org/m done").await;
    assert_eq!(job(&house, 1, "State").await, "s \"done\"");
    assert_eq!(job(&house, 1, "Error").await, "(ss) \"\" \"\"");
    let jobs = house.manager(&["ListJobs"]).await.unwrap();
    assert_eq!(jobs, "a(osssd) 1 \"/org/hostler1/job/1\" \"load\" \"org/m\" \"done\" 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_says_why() {
    let mut house = House::open(status()).await;
    let mut monitor = house.monitor().await;
    house.model(&["Load", "a{sv}", "0"]).await.unwrap();
    let (_, verb, answer) = next(&mut house).await;
    assert_eq!(verb, Verb::Load(Wish::default()));
    let fault = Fault::new(FaultCode::EngineExited, "exit code 1");
    let retry_after = std::time::Duration::from_secs(1);
    let model = "org/m".parse().unwrap();
    answer.send(Err(Denied::LoadFailed { model, fault, retry_after })).unwrap();
    monitor.until("JobRemoved /org/hostler1/job/1 load org/m failed").await;
    assert_eq!(
        job(&house, 1, "Error").await,
        "(ss) \"org.hostler1.Error.LoadFailed\" \"model org/m failed: exit code 1\""
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_takes_the_wish_back() {
    let mut house = House::open(status()).await;
    let mut monitor = house.monitor().await;
    house.manager(&["Measure", "s", "small"]).await.unwrap();
    let (model, verb, answer) = next(&mut house).await;
    assert_eq!((model.as_str(), verb), ("small", Verb::Measure));
    let cancel = ["call", "org.hostler1", "/org/hostler1/job/1", "org.hostler1.Job", "Cancel"];
    house.busctl(&cancel).await.unwrap();
    monitor.until("JobRemoved /org/hostler1/job/1 measure small cancelled").await;
    assert!(matches!(house.asks.recv().await, Some(Ask::Cancel { .. })));
    assert!(answer.is_closed());
    let again = house.busctl(&cancel).await.unwrap_err();
    assert!(again.contains("job 1 is cancelled already"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_reach_the_supervisor_as_they_were_meant() {
    let mut house = House::open(status()).await;
    let expect = [
        (vec!["Unload", "s", "drain"], Verb::Unload(Haste::Drain), "unload"),
        (vec!["Unload", "s", "now"], Verb::Unload(Haste::Now), "unload"),
        (vec!["Sleep"], Verb::Sleep, "sleep"),
        (vec!["Wake"], Verb::Wake, "wake"),
    ];
    for (id, (call, want, kind)) in (1_u32..).zip(expect) {
        house.model(&call).await.unwrap();
        let (model, verb, answer) = next(&mut house).await;
        assert_eq!((model.as_str(), verb), ("org/m", want));
        assert_eq!(job(&house, id, "Kind").await, format!("s \"{kind}\""));
        answer.send(Ok(())).unwrap();
    }
    house.manager(&["UnloadAll", "s", "now"]).await.unwrap();
    for _ in 0..2 {
        let (_, verb, answer) = next(&mut house).await;
        assert_eq!(verb, Verb::Unload(Haste::Now));
        answer.send(Ok(())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_is_a_property_that_can_be_set() {
    let mut house = House::open(status()).await;
    let object = "/org/hostler1/model/org_2fm";
    assert_eq!(house.get(object, "org.hostler1.Model", "Pinned").await, "b false");
    let pin = async |house: &House| {
        let set =
            ["set-property", "org.hostler1", object, "org.hostler1.Model", "Pinned", "b", "true"];
        house.busctl(&set).await
    };
    let address = house.daemon.address.clone();
    let set = tokio::task::spawn_blocking(move || {
        std::process::Command::new("busctl")
            .arg(format!("--address={address}"))
            .args([
                "set-property",
                "org.hostler1",
                object,
                "org.hostler1.Model",
                "Pinned",
                "b",
                "true",
            ])
            .output()
            .unwrap()
    });
    let (model, verb, answer) = next(&mut house).await;
    assert_eq!((model.as_str(), verb), ("org/m", Verb::Pin(true)));
    answer.send(Ok(())).unwrap();
    assert!(set.await.unwrap().status.success());
    // What the supervisor refuses is the property's error.
    drop(std::mem::replace(&mut house.asks, tokio::sync::mpsc::unbounded_channel().1));
    assert!(pin(&house).await.unwrap_err().contains("shutting down"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_shown_and_not_carried_out() {
    let mut house = House::open(status()).await;
    let address = house.daemon.address.clone();
    let call = tokio::task::spawn_blocking(move || {
        let plan = ["call", "org.hostler1", "/org/hostler1", "org.hostler1.Manager", "Plan"];
        std::process::Command::new("busctl")
            .arg(format!("--address={address}"))
            .args(plan)
            .args(["sa{sv}", "small", "1", "evict", "s", "none"])
            .output()
            .unwrap()
    });
    let (model, wish, answer) = loop {
        if let Some(Ask::Preview { model, wish, answer }) = house.asks.recv().await {
            break (model, wish, answer);
        }
    };
    assert_eq!((model.as_str(), wish.evict), ("small", Some(Evict::None)));
    let gpus = vec![PreviewGpu { gpu: GpuId::new("GPU-1"), bytes: Bytes::gib(1) }];
    let why = "there is room".to_owned();
    let outcome = Outcome::Start;
    answer.send(Ok(Preview { outcome, why, gpus, leaving: vec![], report: None })).unwrap();
    let shown = String::from_utf8(call.await.unwrap().stdout).unwrap();
    assert!(shown.starts_with("ba(st)s true 1 \"GPU-1\" 1073741824 \"{"), "{shown}");
    assert!(shown.contains("\\\"outcome\\\":\\\"start\\\""), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_is_checked_and_the_configuration_applied() {
    let house = House::open(status()).await;
    house.root.checks.lock().unwrap().push(Check {
        name: "podman".to_owned(),
        verdict: CheckVerdict::Fail,
        found: "no answer".to_owned(),
        fix: "start it".to_owned(),
    });
    let checks = house.manager(&["Validate"]).await.unwrap();
    assert_eq!(checks, "a(ssss) 1 \"podman\" \"FAIL\" \"no answer\" \"start it\"");
    *house.root.reload.lock().unwrap() = Some(Ok(Reloaded {
        restart_to_apply: vec!["[gpu] backend".to_owned()],
        credentials_kept: vec!["[auth] keys_credential".to_owned()],
    }));
    let reloaded = house.manager(&["Reload"]).await.unwrap();
    assert_eq!(reloaded, "asas 1 \"[gpu] backend\" 1 \"[auth] keys_credential\"");
    *house.root.reload.lock().unwrap() = Some(Err("/etc/x.toml:3: no".to_owned()));
    assert!(house.manager(&["Reload"]).await.unwrap_err().contains("/etc/x.toml:3: no"));
    assert_eq!(*house.root.asked.lock().unwrap(), ["validate", "reload", "reload"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_a_pipe() {
    let house = House::open(status()).await;
    let (read, mut write) = std::io::pipe().unwrap();
    *house.root.log.lock().unwrap() = Some(Ok(OwnedFd::from(read)));
    std::io::Write::write_all(&mut write, b"it loads\n").unwrap();
    drop(write);
    let client = house.client().await;
    let object = "/org/hostler1/model/org_2fm";
    let options = std::collections::BTreeMap::from([("lines", zbus::Variant::from(5_u64))]);
    let reply = client
        .call_method(
            Some("org.hostler1"),
            object,
            Some("org.hostler1.Model"),
            "OpenLogWith",
            &(options,),
        )
        .await
        .unwrap();
    let fd: zbus::OwnedFd = reply.body().deserialize().unwrap();
    let mut text = String::new();
    std::fs::File::from(OwnedFd::from(fd)).read_to_string(&mut text).unwrap();
    assert_eq!(text, "it loads\n");
    let asked = house.root.asked.lock().unwrap().clone();
    assert_eq!(asked, ["log hostler-org-m-g3-0000beef Some(5) false"]);
    let stopped = "/org/hostler1/model/small";
    let call = ["call", "org.hostler1", stopped, "org.hostler1.Model", "OpenLog"];
    assert!(house.busctl(&call).await.unwrap_err().contains("no container now"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_calls_are_told_what_is_wrong() {
    let house = House::open(status()).await;
    let cases: [(&[&str], &str); 9] = [
        (&["Load", "sa{sv}", "nope", "0"], "model \"nope\" is not configured"),
        (&["Load", "sa{sv}", "org/m", "1", "pim", "b", "true"], "there is no option \"pim\""),
        (&["Load", "sa{sv}", "org/m", "1", "pin", "s", "yes"], "option pin has type b"),
        (
            &["Load", "sa{sv}", "org/m", "1", "gpus", "as", "1", "GPU-9"],
            "there is no device \"GPU-9\"",
        ),
        (&["Plan", "sa{sv}", "org/m", "1", "evict", "s", "all"], "none, idle or any"),
        (&["Unload", "ss", "org/m", "later"], "drain or now"),
        (&["UnloadAll", "s", ""], "drain or now"),
        (&["GetModel", "s", "../../etc"], "is not configured"),
        (&["Measure", "s", ""], "is not configured"),
    ];
    for (call, why) in cases {
        let error = house.manager(call).await.unwrap_err();
        assert!(error.contains(why), "{call:?}: {error}");
    }
    // Names, types, objects and interfaces that there are not: errors, and everything goes on.
    let long = "x".repeat(100_000);
    house.manager(&["GetModel", "s", &long]).await.unwrap_err();
    house.manager(&["NoSuch"]).await.unwrap_err();
    house.manager(&["Load", "s", "org/m"]).await.unwrap_err();
    for object in ["/org/hostler1/model/nope", "/org/hostler1/job/9", "/org/hostler1/gpu/_", "/"] {
        let call = ["call", "org.hostler1", object, "org.hostler1.Model", "Sleep"];
        house.busctl(&call).await.unwrap_err();
    }
    assert_eq!(
        house.manager(&["GetModel", "s", "gpt-4o"]).await.unwrap(),
        "o \"/org/hostler1/model/org_2fm\""
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_caller_may_read_and_nothing_else() {
    let gate = hostler::control::polkit::Gate::Owner { uid: 65_432 };
    let mut house = House::with(status(), gate).await;
    house.manager(&["ListModels"]).await.unwrap();
    house.manager(&["GetStatus"]).await.unwrap();
    let model = "/org/hostler1/model/org_2fm";
    let calls: [(&str, &[&str]); 12] = [
        ("/org/hostler1", &["org.hostler1.Manager", "Load", "sa{sv}", "org/m", "0"]),
        ("/org/hostler1", &["org.hostler1.Manager", "Unload", "ss", "org/m", "now"]),
        ("/org/hostler1", &["org.hostler1.Manager", "UnloadAll", "s", "now"]),
        ("/org/hostler1", &["org.hostler1.Manager", "Measure", "s", "org/m"]),
        ("/org/hostler1", &["org.hostler1.Manager", "Validate"]),
        ("/org/hostler1", &["org.hostler1.Manager", "Reload"]),
        (model, &["org.hostler1.Model", "Sleep"]),
        (model, &["org.hostler1.Model", "Wake"]),
        (model, &["org.hostler1.Model", "Pin"]),
        (model, &["org.hostler1.Model", "Unpin"]),
        (model, &["org.hostler1.Model", "OpenLog"]),
        (model, &["org.hostler1.Model", "Load", "a{sv}", "0"]),
    ];
    for (object, call) in calls {
        let error = house.busctl(&[&["call", "org.hostler1", object], call].concat()).await;
        let error = error.unwrap_err();
        assert!(error.contains("Access denied"), "{call:?}: {error}");
    }
    let set = ["set-property", "org.hostler1", model, "org.hostler1.Model", "Pinned", "b", "true"];
    assert!(house.busctl(&set).await.unwrap_err().contains("Access denied"));
    let nothing = |ask: &Ask| matches!(ask, Ask::Trouble { .. });
    while let Ok(ask) = house.asks.try_recv() {
        assert!(nothing(&ask), "{ask:?}");
    }
    assert!(house.root.asked.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_is_said() {
    let house = House::open(status()).await;
    let mut monitor = house.monitor().await;
    let mut now = status();
    now.models[0].phase = Phase::Draining;
    now.models[0].in_flight = 1;
    now.models.pop();
    house.status.send(Arc::new(now)).unwrap();
    monitor.until("ModelStateChanged /org/hostler1/model/org_2fm org/m ready draining").await;
    monitor.until("PropertiesChanged org.hostler1.Model +Phase").await;
    monitor.until("PropertiesChanged org.hostler1.Model -ActiveRequests").await;
    monitor.until("InterfacesRemoved /org/hostler1/model/small").await;
    house.status.send(Arc::new(status())).unwrap();
    monitor.until("InterfacesAdded /org/hostler1/model/small").await;
}

/// Those of a problem are others at each reading, for as long as it lasts.
#[tokio::test(flavor = "multi_thread")]
async fn that_a_problem_has_other_amounts_of_memory_is_not_said() {
    let house = House::open(status()).await;
    let mut monitor = house.monitor().await;
    let problems = "PropertiesChanged org.hostler1.Manager +Problems";
    let mut now = status();
    let pressed = |now: &mut Status, message: &str| {
        let (code, message) = ("memory_pressure", message.to_owned());
        now.problems = vec![Problem { code, message, since: Moment::START }];
        house.status.send(Arc::new(now.clone())).unwrap();
    };
    pressed(&mut now, "GPU-1: 300.0 MiB of its headroom is in use");
    monitor.until(problems).await;
    now.models[0].phase = Phase::Draining;
    pressed(&mut now, "GPU-1: 1.4 GiB of its headroom is in use");
    // Said behind it.
    monitor.until("ModelStateChanged").await;
    assert!(!monitor.has(problems));
    pressed(&mut now, "GPU-2: 1.4 GiB of its headroom is in use");
    monitor.until(problems).await;
}
