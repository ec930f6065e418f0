//! A collector that does not take what it is sent.

use std::sync::Arc;
use std::time::Duration;

use hostler::observe::traces::Traces;
use hostler::proxy::port::{Gaps, Observer, Seen, Traced};
use hostler::supervisor::witness::{Notice, Witness};
use hostler::types::{Bytes, Fault, FaultCode, Generation, InstanceId, Moment};
use hyper::{Method, StatusCode};
use tokio_util::sync::CancellationToken;

use crate::collector::Collector;
use crate::house::{self, House};
use crate::{SOON, ask, usual};

/// Makes spans of made-up requests.
fn requests(observer: &dyn Observer, count: usize) {
    for _ in 0..count {
        observer.begun();
        let trace = observer.trace("r", &|| None).unwrap();
        observer.ended(&Seen {
            route: "models",
            model: None,
            instance: None,
            status: Some(200),
            refused: None,
            key: None,
            broken_by: None,
            total: Duration::from_millis(1),
            queue: None,
            asked_first: None,
            first_byte: None,
            gaps: &Gaps::default(),
            bytes: 1,
            routine: false,
            traced: Some(Traced {
                trace,
                began: std::time::SystemTime::now(),
                queued: None,
                method: &Method::GET,
                path: "/v1/models",
                id: "r",
                asked: None,
            }),
        });
    }
}

/// Waits until so many spans were (sent, lost), by the page of metrics.
async fn counted(house: &House, want: (usize, usize)) {
    let looking = async {
        let mut seen = String::new();
        for _ in 0..1_000_000 {
            let page = ask(house, "GET /metrics HTTP/1.1\r\n", "").await;
            let count = |result: &str| {
                let start = format!("hostler_trace_spans_total{{result=\"{result}\"}} ");
                page.lines().find_map(|line| line.strip_prefix(&start)).unwrap().to_owned()
            };
            seen = format!("{} {}", count("sent"), count("lost"));
            if seen == format!("{} {}", want.0, want.1) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{seen}");
    };
    tokio::time::timeout(SOON, looking).await.unwrap_or_else(|_| panic!("not {want:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_lost_and_told_and_what_may_pass_is_tried_again() {
    let mut collector = Collector::start().await;
    // Questions for the page are traced, too, if nobody decides: so nobody but these are.
    let traced = usual(&collector, 0).await;
    let house = &traced.house;
    let caller = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let models = format!("GET /v1/models HTTP/1.1\r\n{caller}");
    collector.answers.lock().unwrap().push((StatusCode::BAD_REQUEST, ""));
    ask(house, &models, "").await;
    counted(house, (0, 1)).await;
    collector.answers.lock().unwrap().push((StatusCode::SERVICE_UNAVAILABLE, ""));
    ask(house, &models, "").await;
    assert_eq!(collector.spans(1).await[0].name, "GET models", "on the second try");
    counted(house, (1, 1)).await;
    let part =
        (StatusCode::OK, r#"{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}"#);
    collector.answers.lock().unwrap().push(part);
    ask(house, &models, "").await;
    counted(house, (1, 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_holds_nobody_and_the_queue_is_bounded() {
    let collector = Collector::unix();
    let kept = Arc::new(std::sync::Mutex::new(None));
    let (keep, to) = (kept.clone(), collector.place());
    let house = House::watched(
        "",
        &[],
        |_| {},
        move |_, metrics, timeline| {
            let (traces, exporter) = Traces::new(to, 1_000_000, metrics.clone());
            requests(&*traces, 5000);
            *keep.lock().unwrap() = Some((exporter, traces));
            let watchers: house::Watchers = (metrics.clone(), Arc::new((metrics, timeline)));
            watchers
        },
    )
    .await;
    counted(&house, (0, 5000 - 4096)).await;
    // Nobody sends until now; then the end sends what one request holds, and says that the rest is lost.
    let (exporter, traces) = kept.lock().unwrap().take().unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    tokio::time::timeout(SOON, exporter.run(stop)).await.unwrap();
    counted(&house, (512, 5000 - 512)).await;
    requests(&*traces, 1);
    counted(&house, (512, 5000 - 512 + 1)).await;
    let mut collector = collector;
    assert_eq!(collector.spans(512).await.len(), 512);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_pulls_is_two_and_one_that_fails_says_why() {
    let mut collector = Collector::start().await;
    let (traces, exporter) = Traces::new(collector.place(), 1_000_000, Arc::default());
    tokio::spawn(exporter.run(CancellationToken::new()));
    let request = traces.trace("r", &|| None).unwrap();
    let instance = |generation| InstanceId::new("m".parse().unwrap(), Generation(generation), 1);
    let see = |notice: Notice, of| traces.see(Moment::START, &notice, of);
    let starting =
        |n| Notice::Starting { instance: instance(n), gpus: vec![], planned: Bytes::ZERO };
    // For nobody, and for one who is not traced.
    see(starting(1), None);
    see(starting(2), Some("other"));
    for n in [1, 2] {
        see(Notice::Ready { instance: instance(n), load_ms: Some(1) }, None);
    }
    see(starting(3), Some("r"));
    see(Notice::Pulling { instance: instance(3) }, Some("r"));
    see(Notice::PlannedAgain { instance: instance(3), why: FaultCode::ImagePulled }, Some("r"));
    see(starting(4), Some("r"));
    see(Notice::Loading { instance: instance(4) }, Some("r"));
    let fault = Fault::new(FaultCode::EngineExited, "exit 1");
    see(Notice::Failed { instance: instance(4), fault, retry_ms: 0 }, Some("r"));
    let spans = collector.spans(2).await;
    let [pull, load] = &spans[..] else { panic!("{spans:?}") };
    for (span, events) in [(pull, &["pulling", "planned_again"][..]), (load, &["loading"])] {
        assert_eq!(span.parent, Some(format!("{:016x}", request.span)));
        assert_eq!((span.name.as_str(), span.trace.len()), ("load m", 32));
        assert!(span.events.iter().map(|(name, _)| name.as_str()).eq(events.iter().copied()));
    }
    assert!(!pull.failed && load.failed);
    assert_eq!(load.attributes["error.type"], FaultCode::EngineExited.as_str());
    assert_eq!(load.attributes["hostler.instance"], instance(4).to_string());
}
