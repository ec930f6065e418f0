//! Series that go with their model.

use std::collections::BTreeSet;

use super::*;
use crate::proxy::port::Gaps;
use crate::supervisor::witness::StopReason;
use crate::types::{
    ExternalHealth, Fault, FaultCode, Generation, InstanceId, ModelStatus, SleepStatus, test_status,
};

fn name(model: &str) -> ModelName {
    model.parse().unwrap()
}

fn names(models: &[&str]) -> BTreeSet<ModelName> {
    models.iter().map(|model| name(model)).collect()
}

#[test]
fn a_model_that_runs_elsewhere_is_up_or_down_or_not_there() {
    let external = |name: &str, health| ExternalStatus {
        name: self::name(name),
        aliases: vec![],
        url: "http://far".into(),
        health,
        why: None,
        since: None,
    };
    let externals = vec![
        external("dead", ExternalHealth::Unwell),
        external("new", ExternalHealth::Unknown),
        external("well", ExternalHealth::Well),
    ];
    let scrape = Scrape { externals, ..Scrape::default() };
    let metrics = Arc::new(Metrics::default());
    metrics.awaits_turn(&name("well"), true);
    let page = metrics.render(scrape, Format::Text);
    // They have turns, too.
    for (model, waiting) in [("dead", 0), ("well", 1)] {
        let want = format!("hostler_queue_length{{model=\"{model}\"}} {waiting}");
        assert!(page.lines().any(|line| line.starts_with(&want)), "{want}");
    }
    let up: Vec<&str> = page.lines().filter(|l| l.starts_with("hostler_external_up{")).collect();
    let want = ["hostler_external_up{model=\"dead\"} 0", "hostler_external_up{model=\"well\"} 1"];
    assert_eq!(up.len(), want.len(), "{up:?}");
    assert!(up.iter().zip(want).all(|(line, want)| line.starts_with(want)), "{up:?}");
}

/// All that can be counted of a model.
fn used(metrics: &Metrics, model: &str) {
    let model = name(model);
    let instance = InstanceId::new(model.clone(), Generation(1), 1);
    let see = |notice: Notice| metrics.see(Moment::START, &notice, None);
    see(Notice::Starting {
        instance: instance.clone(),
        gpus: vec![],
        planned: crate::types::Bytes::ZERO,
    });
    see(Notice::Loading { instance: instance.clone() });
    see(Notice::Ready { instance: instance.clone(), load_ms: Some(1) });
    for refused in [None, Some("queue_full")] {
        metrics.begun();
        metrics.ended(&Seen {
            route: "models",
            model: Some(&model),
            instance: Some(&instance),
            status: Some(200),
            refused,
            broken_by: None,
            total: Duration::ZERO,
            queue: None,
            first_byte: Some(Duration::ZERO),
            gaps: &Gaps::default(),
            bytes: 1,
            routine: false,
            traced: None,
        });
    }
    metrics.awaits_turn(&model, true);
    metrics.awaits_turn(&model, false);
    see(Notice::Woken { instance: instance.clone(), wake_ms: 1 });
    let fault = Fault::new(FaultCode::EngineExited, "exit 1");
    see(Notice::Failed { instance: instance.clone(), fault, retry_ms: 0 });
    see(Notice::Stopping { instance, reason: StopReason::Idle });
}

/// The lines of the page that are about a model.
fn series(metrics: &Arc<Metrics>, model: &str) -> Vec<String> {
    let scrape = Scrape::default();
    let page = metrics.render(scrape, Format::Text);
    let label = format!("model=\"{model}\"");
    page.lines().filter(|line| line.contains(&label)).map(str::to_owned).collect()
}

#[test]
fn a_models_series_go_with_it_and_begin_anew() {
    let metrics = Arc::new(Metrics::default());
    for model in ["a", "b"] {
        used(&metrics, model);
    }
    let all = series(&metrics, "b");
    assert!(
        !all.is_empty() && series(&metrics, "a").len() == all.len(),
        "nobody said which there are"
    );
    metrics.configured(names(&["a", "b"]));
    assert_eq!(series(&metrics, "b"), all);
    metrics.configured(names(&["a"]));
    // It still leaves.
    metrics.forget(|model| *model == name("b"));
    assert_eq!(metrics.requests.waiting(&name("b")), 0);
    used(&metrics, "b");
    assert_eq!(series(&metrics, "b"), [] as [&str; 0]);
    assert_eq!(
        series(&metrics, "a"),
        all.iter().map(|l| l.replace("\"b\"", "\"a\"")).collect::<Vec<_>>()
    );
    metrics.configured(names(&["a", "b"]));
    used(&metrics, "b");
    assert_eq!(series(&metrics, "b"), all, "as if it had never been there");
}

#[test]
fn without_a_scrape_no_more_than_two_configurations_are_kept() {
    let metrics = Arc::new(Metrics::default());
    for n in 0..50 {
        let model = format!("m{n}");
        metrics.configured(names(&[&model]));
        used(&metrics, &model);
        // A turn that somebody waits for ends in the row in which it began.
        metrics.awaits_turn(&name("m0"), n % 2 == 0);
    }
    assert_eq!(metrics.requests.waiting(&name("m0")), 0);
    let scrape = Scrape::default();
    metrics.forget(|_| true);
    let kept = metrics.happenings.models();
    assert_eq!(kept, names(&["m48", "m49"]));
    drop(metrics.render(scrape, Format::Text));
    assert_eq!(metrics.happenings.models(), names(&["m49"]));
}

#[test]
fn what_happens_to_a_model_is_counted_from_zero() {
    let metrics = Arc::new(Metrics::default());
    let instance = InstanceId::new(name("a"), Generation(1), 1);
    let reason = StopReason::Evicted;
    let fault = Fault::new(FaultCode::Unhealthy, "no answer");
    for notice in [
        Notice::Failed { instance: instance.clone(), fault, retry_ms: 0 },
        Notice::Stopping { instance, reason },
    ] {
        metrics.see(Moment::START, &notice, None);
    }
    let sleeper = ModelStatus { sleep: Some(SleepStatus::default()), ..test_status("b") };
    let models = vec![test_status("a"), sleeper];
    let status = Arc::new(Status { models, ..Status::default() });
    let page = metrics.render(Scrape { status, ..Scrape::default() }, Format::Text);
    let of = |series: &str| {
        let lines: Vec<&str> =
            page.lines().filter_map(|l| l.strip_prefix(series)?.strip_prefix(' ')).collect();
        assert!(lines.len() < 2, "{series}: {lines:?}");
        lines.first().map(|n| n.trim().parse::<u64>().unwrap())
    };
    let failed = |model, code| {
        of(&format!("hostler_model_failures_total{{model=\"{model}\",code=\"{code}\"}}"))
    };
    assert_eq!((failed("a", "unhealthy"), failed("b", "unhealthy")), (Some(1), Some(0)));
    assert_eq!(failed("a", "engine_exited"), Some(0));
    assert_eq!(failed("a", "image_pulled"), None, "that is no failure");
    let left = |model, reason, to| {
        let labels = format!("model=\"{model}\",reason=\"{reason}\",to=\"{to}\"");
        of(&format!("hostler_evictions_total{{{labels}}}"))
    };
    assert_eq!((left("a", "evicted", "stopped"), left("a", "idle", "stopped")), (Some(1), Some(0)));
    assert_eq!((left("a", "evicted", "asleep"), left("b", "evicted", "asleep")), (None, Some(0)));
    assert_eq!((left("b", "evicted", "stopped"), left("b", "orphaned", "asleep")), (Some(0), None));
}
