//! `hostler --json status` in every shape, against its schema.

use std::sync::Arc;
use std::time::Duration;

use hostler::types::{
    Breaker, Bytes, Denied, DeviceHolder, DeviceVerdict, Fault, FaultCode, Generation, GpuId,
    GpuStatus, HealthStatus, InstanceId, Known, LoadProgress, MeasuredNeed, ModelName, ModelStatus,
    Moment, Need, NeedSource, Phase, Problem, Pulled, Report, SleepLevel, SleepStatus, Status,
    Verdict, VictimVerdict,
};
use serde_json::Value;

use crate::cli::{next, run};
use crate::house::{House, status};
use crate::schema;

/// A plan with every judgement.
fn report(model: &ModelName, other: &InstanceId) -> Report {
    let device = |verdict| DeviceVerdict {
        gpu: GpuId::new("GPU-1"),
        free: Bytes::gib(1),
        empty: Bytes::gib(8),
        reserved: Bytes::gib(2),
        quarantined: Bytes::ZERO,
        foreign: Bytes::mib(1),
        kept: Bytes::ZERO,
        holders: vec![DeviceHolder { instance: other.clone(), bytes: Bytes::gib(2) }],
        verdict,
    };
    let verdicts = [
        Verdict::Chosen,
        Verdict::Fits,
        Verdict::Kept,
        Verdict::Gated,
        Verdict::FitsAfterEviction,
        Verdict::Occupied,
        Verdict::Foreign,
        Verdict::TooSmall,
    ];
    let victim = |spared, chosen, asleep, stopped_because| VictimVerdict {
        instance: other.clone(),
        spared,
        chosen,
        asleep,
        stopped_because,
    };
    Report {
        model: model.clone(),
        need: Need { bytes: Bytes::gib(7), source: NeedSource::Estimated },
        devices: verdicts.map(device).into(),
        victims: vec![
            victim(Some("it is busy"), false, None, None),
            victim(None, true, Some(SleepLevel::One), None),
            victim(None, true, None, Some("it may not sleep")),
        ],
    }
}

/// One model in each phase, with all that a phase can have.
fn models() -> Vec<ModelStatus> {
    let base = status().models.remove(0);
    let at = |n: usize, phase: Phase| {
        let name: ModelName = format!("m{n}").parse().unwrap();
        let instance = InstanceId::new(name.clone(), Generation(n as u64), 0xbeef);
        let fault = Fault::new(FaultCode::EngineExited, "exit code 1");
        let mut model = ModelStatus { name, phase, ..base.clone() };
        match phase {
            Phase::Stopped => (model.instance, model.container) = (None, None),
            Phase::Waiting => {
                model.instance = None;
                model.waiting_for = Some("others are busy".to_owned());
                model.queued = 7;
                model.report = Some(Arc::new(report(&model.name, &instance)));
            }
            Phase::Failed => {
                model.instance = None;
                model.error = Some(fault.with_log(vec!["out of memory".to_owned()]));
                model.health =
                    HealthStatus { failures_in_a_row: 6, breaker: Breaker::Open, checks_failed: 2 };
            }
            Phase::Pulling | Phase::Starting | Phase::Loading | Phase::Waking => {
                model.progress = Some(LoadProgress {
                    since: Moment::from_secs(3),
                    expected: (phase != Phase::Pulling).then_some(Duration::from_millis(4500)),
                    pulled: (phase == Phase::Pulling)
                        .then_some(Pulled { done: Bytes::mib(30), total: Bytes::gib(2) }),
                });
                model.observed = Known::Unknown;
            }
            Phase::Dozing | Phase::Asleep => {
                model.sleep = Some(SleepStatus {
                    level: (phase == Phase::Asleep).then_some(SleepLevel::Two),
                    host_ram: Bytes::gib(4),
                    residual: Some(Bytes::mib(300)),
                    wake_ms: Some(1200),
                    ..SleepStatus::default()
                });
            }
            Phase::Ready | Phase::Draining | Phase::Stopping => {
                model.footprint = Some(MeasuredNeed {
                    bytes: Bytes::gib(2),
                    peak: Bytes::gib(3),
                    samples: 9,
                    confidence: "high",
                    attribution: "process",
                    measured_at: 1_800_000_000,
                });
                model.health.breaker = Breaker::HalfOpen;
            }
        }
        model
    };
    Phase::ALL.into_iter().enumerate().map(|(n, phase)| at(n, phase)).collect()
}

async fn document(house: &House) -> Value {
    run(house, &["--json", "status"]).await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_status_is_as_its_schema_says() {
    let mut house = House::open(Status::default()).await;
    schema::check(&document(&house).await);

    let unknown = GpuStatus {
        id: GpuId::new("GPU-2"),
        total: Known::Unknown,
        free: Known::Unknown,
        foreign: Known::Known(Bytes::gib(1)),
        ..status().gpus.remove(0)
    };
    let problem = Problem {
        code: "gpu_lost",
        message: "GPU-2: lost".to_owned(),
        since: Moment::from_secs(9),
    };
    let mut full = Status { models: models(), problems: vec![problem], ..status() };
    full.gpus.push(unknown);
    house.status.send(Arc::new(full.clone())).unwrap();
    let shown = document(&house).await;
    schema::check(&shown);
    assert_eq!(shown["models"].as_array().unwrap().len(), Phase::ALL.len());
    assert_eq!(shown["state"], "degraded");

    // Jobs: done, failed, running.
    for (id, end) in [(1, Some(Ok(()))), (2, Some(Err(Denied::ShuttingDown))), (3, None)] {
        house.manager(&["Load", "sa{sv}", "m0", "0"]).await.unwrap();
        let (_, _, answer) = next(&mut house).await;
        if let Some(end) = end {
            let mut monitor = house.monitor().await;
            answer.send(end).unwrap();
            monitor.until(&format!("JobRemoved /org/hostler1/job/{id} ")).await;
        } else {
            std::mem::forget(answer);
        }
    }
    let shown = document(&house).await;
    schema::check(&shown);
    let states: Vec<&Value> =
        shown["jobs"].as_array().unwrap().iter().map(|job| &job["state"]).collect();
    assert_eq!(states, ["done", "failed", "running"]);

    house.status.send(Arc::new(Status { shutting_down: true, ..full })).unwrap();
    let last = document(&house).await;
    schema::check(&last);
    assert_eq!(last["state"], "stopping");

    // What is wrong would be found.
    let wrong = |change: &dyn Fn(&mut Value)| {
        let mut document = last.clone();
        change(&mut document);
        schema::faults(&document).len()
    };
    assert_eq!(wrong(&|d| d["models"][0]["phase"] = "flying".into()), 1);
    assert_eq!(wrong(&|d| d["models"][0]["chunks"] = (-1).into()), 1);
    assert_eq!(wrong(&|d| d["gpus"][0]["more"] = 1.into()), 1);
    assert_eq!(wrong(&|d| drop(d.as_object_mut().unwrap().remove("jobs"))), 1);
}
