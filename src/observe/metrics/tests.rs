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

/// A request that was answered at once.
fn seen<'a>(model: &'a ModelName, instance: &'a InstanceId) -> Seen<'a> {
    const NONE: Gaps = Gaps { counts: [0; Gaps::BOUNDS.len() + 1], sum: Duration::ZERO };
    Seen {
        route: "models",
        model: Some(model),
        instance: Some(instance),
        status: Some(200),
        refused: None,
        key: Some("alice"),
        broken_by: None,
        total: Duration::ZERO,
        queue: None,
        asked_first: Some(Duration::ZERO),
        first_byte: Some(Duration::ZERO),
        gaps: &NONE,
        bytes: 1,
        routine: false,
        traced: None,
    }
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
    assert!(metrics.asks(&instance));
    for refused in [None, Some("queue_full")] {
        metrics.begun();
        metrics.ended(&Seen { refused, ..seen(&model, &instance) });
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

/// What the page says of a series, as it is written.
fn value(metrics: &Arc<Metrics>, series: &str) -> Option<f64> {
    let page = metrics.render(Scrape::default(), Format::Text);
    let line = page.lines().find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
    line.map(|n| n.trim().parse().unwrap())
}

/// Whoever ends first: the long stream that waited for the engine to warm up was the first, and its body's time is its own.
#[test]
fn the_first_token_is_that_of_who_asked_first() {
    let metrics = Arc::new(Metrics::default());
    let (a, secs) = (name("a"), Duration::from_secs);
    let instance = InstanceId::new(a.clone(), Generation(1), 1);
    let of = |what: &str| {
        let series = format!(
            "hostler_model_load_duration_seconds_{what}{{model=\"a\",step=\"first_token\"}}"
        );
        value(&metrics, &series)
    };
    assert!(!metrics.asks(&instance), "taken over: it was asked long ago");
    let planned = crate::types::Bytes::ZERO;
    let starting = Notice::Starting { instance: instance.clone(), gpus: vec![], planned };
    metrics.see(Moment::START, &starting, None);
    let answered = Seen { queue: Some(secs(5)), ..seen(&a, &instance) };
    // No answers: the next one is the first.
    for end in [
        Seen { status: Some(400), ..answered },
        Seen { refused: Some("engine_failed"), first_byte: None, status: Some(502), ..answered },
        Seen { first_byte: None, status: None, ..answered },
    ] {
        assert!(metrics.asks(&instance));
        assert!(!metrics.asks(&instance), "one is");
        metrics.ended(&Seen { asked_first: Some(secs(6)), ..end });
        assert_eq!(of("count"), None);
    }
    assert!(metrics.asks(&instance));
    assert!(!metrics.asks(&instance));
    metrics.ended(&Seen { asked_first: None, first_byte: Some(secs(9)), ..answered });
    assert_eq!(of("count"), None, "the second one");
    let upload = secs(20);
    let asked_first = Some(upload + secs(5));
    metrics.ended(&Seen { asked_first, first_byte: Some(upload + secs(45)), ..answered });
    assert_eq!((of("count"), of("sum")), (Some(1.0), Some(40.0)));
    assert!(!metrics.asks(&instance));
}

#[test]
fn what_hostler_refused_is_neither_an_engines_failure_nor_a_scrapes() {
    let metrics = Arc::new(Metrics::default());
    let a = name("a");
    let instance = InstanceId::new(a.clone(), Generation(1), 1);
    let refused = Seen { refused: Some("no_room"), ..seen(&a, &instance) };
    metrics.ended(&refused);
    metrics.ended(&Seen { refused: Some("model_not_ready"), routine: true, ..refused });
    metrics.ended(&Seen { refused: Some("engine_timeout"), ..refused });
    let page = metrics.render(Scrape::default(), Format::Text);
    let denied: Vec<&str> =
        page.lines().filter_map(|l| l.strip_prefix("hostler_denied_total{")).collect();
    assert_eq!(denied.len(), 1, "{denied:?}");
    assert!(denied[0].starts_with("model=\"a\",reason=\"no_room\"} 1"), "{denied:?}");
}

#[test]
fn who_used_what_is_counted_by_key_without_the_wait() {
    let metrics = Arc::new(Metrics::default());
    let (a, b) = (name("a"), name("b"));
    let instance = InstanceId::new(a.clone(), Generation(1), 1);
    let took = |seconds, waited| {
        let (total, queue) = (Duration::from_secs(seconds), Some(Duration::from_secs(waited)));
        Seen { total, queue, ..seen(&a, &instance) }
    };
    metrics.ended(&took(9, 2));
    metrics.ended(&took(5, 4));
    metrics.ended(&Seen { key: Some("bob"), model: Some(&b), ..took(3, 0) });
    metrics.ended(&Seen { key: None, ..took(100, 0) });
    metrics.ended(&Seen { model: None, ..took(100, 0) });
    let of = |key, model| {
        let series = |what| format!("hostler_key_{what}_total{{key=\"{key}\",model=\"{model}\"}}");
        (value(&metrics, &series("requests")), value(&metrics, &series("engine_seconds")))
    };
    assert_eq!(of("alice", "a"), (Some(2.0), Some(8.0)));
    assert_eq!(of("bob", "b"), (Some(1.0), Some(3.0)));
    assert_eq!(of("bob", "a"), (None, None));
    metrics.keys(&["alice".to_owned()].into());
    assert_eq!(of("bob", "b"), (None, None), "there is no such key any more");
    assert_eq!(of("alice", "a"), (Some(2.0), Some(8.0)));
}
