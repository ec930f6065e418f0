//! Jobs over their lives: how far they are, how many there may be, and what ends them.

use std::sync::Arc;

use hostler::control::jobs::{ALIKE_MAX, KEPT};
use hostler::supervisor::handle::Verb;
use hostler::types::{Denied, Haste, LoadProgress, Moment, Phase};

use crate::calls::{job, next};
use crate::house::{House, status};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_knows_how_far_it_is_where_earlier_loads_tell() {
    let mut loading = status();
    let expected = Some(std::time::Duration::from_secs(1_000_000));
    loading.models[1].phase = Phase::Loading;
    let load = LoadProgress { since: Moment::START, expected, pulled: None };
    loading.models[1].progress = Some(load);
    let mut house = House::open(loading.clone()).await;
    house.manager(&["Load", "sa{sv}", "small", "0"]).await.unwrap();
    let (_, _, answer) = next(&mut house).await;
    let number = |text: String| text.split(' ').nth(1).unwrap().parse::<f64>().unwrap();
    let progress = number(job(&house, 1, "Progress").await);
    assert!(progress > 0.0 && progress < 0.01, "{progress}");
    let eta = number(job(&house, 1, "EtaUSec").await);
    assert!(eta > 0.99e12 && eta < 1e12, "{eta}");
    assert_eq!(job(&house, 1, "Phase").await, "s \"loading\"");
    // It takes longer than any before: it is all but done, and not done.
    let expected = Some(std::time::Duration::ZERO);
    loading.models[1].progress = Some(LoadProgress { expected, ..load });
    house.status.send(Arc::new(loading)).unwrap();
    assert_eq!(job(&house, 1, "Progress").await, "d 0.99");
    assert_eq!(job(&house, 1, "EtaUSec").await, "t 0");
    let mut monitor = house.monitor().await;
    answer.send(Ok(())).unwrap();
    monitor.until("JobRemoved /org/hostler1/job/1 load small done").await;
    assert_eq!(job(&house, 1, "Progress").await, "d 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_jobs_are_forgotten_and_too_many_are_refused() {
    let mut house = House::open(status()).await;
    let mut monitor = house.monitor().await;
    let client = house.client().await;
    let load = async || {
        let options = std::collections::BTreeMap::<&str, zbus::Variant<'_>>::new();
        let (bus, manager) = (Some("org.hostler1"), Some("org.hostler1.Manager"));
        let call =
            client.call_method(bus, "/org/hostler1", manager, "Load", &("small", options)).await;
        call.map(drop).map_err(|err| err.to_string())
    };
    // One more than is kept.
    for id in 1..=KEPT + 1 {
        load().await.unwrap();
        next(&mut house).await.2.send(Ok(())).unwrap();
        monitor.until(&format!("JobRemoved /org/hostler1/job/{id} ")).await;
    }
    monitor.until("InterfacesRemoved /org/hostler1/job/1").await;
    let jobs = house.manager(&["ListJobs"]).await.unwrap();
    assert!(jobs.starts_with(&format!("a(osssd) {KEPT} \"/org/hostler1/job/2\"")), "{jobs}");
    let forgotten = ["/org/hostler1/job/1", "org.hostler1.Job", "State"];
    let get = [&["get-property", "org.hostler1"], &forgotten[..]].concat();
    assert!(house.busctl(&get).await.unwrap_err().contains("Unknown object"));
    // As many as may run, and one more; whose end makes room.
    let mut answers = Vec::new();
    for _ in 0..ALIKE_MAX {
        load().await.unwrap();
        answers.push(next(&mut house).await.2);
    }
    let error = load().await.unwrap_err();
    assert!(error.contains("64 jobs are running already that load small"), "{error}");
    // What makes room is not kept out by what waits for it.
    house.manager(&["Unload", "ss", "small", "now"]).await.unwrap();
    let (_, verb, unloaded) = next(&mut house).await;
    assert_eq!(verb, Verb::Unload(Haste::Now));
    unloaded.send(Ok(())).unwrap();
    let last = KEPT + 1 + ALIKE_MAX;
    answers.pop().unwrap().send(Ok(())).unwrap();
    monitor.until(&format!("JobRemoved /org/hostler1/job/{last} ")).await;
    load().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_outlasts_many_others_is_told_to_have_ended() {
    let mut house = House::open(status()).await;
    let mut monitor = house.monitor().await;
    let load = ["Load", "sa{sv}", "small", "0"];
    house.manager(&load).await.unwrap();
    let (_, _, long) = next(&mut house).await;
    for id in 2..=KEPT + 1 {
        house.manager(&load).await.unwrap();
        next(&mut house).await.2.send(Ok(())).unwrap();
        monitor.until(&format!("JobRemoved /org/hostler1/job/{id} ")).await;
    }
    long.send(Ok(())).unwrap();
    monitor.until("JobRemoved /org/hostler1/job/1 load small done").await;
    assert_eq!(job(&house, 1, "State").await, "s \"done\"");
}

/// One was removed from the configuration and still drains, so that the supervisor does not know it; another fails.
#[tokio::test(flavor = "multi_thread")]
async fn all_are_waited_for_and_a_removed_one_is_no_failure() {
    let mut house = House::open(status()).await;
    let mut monitor = house.monitor().await;
    for (id, failure) in [(1, None), (2, Some(Denied::ShuttingDown))] {
        house.manager(&["UnloadAll", "s", "drain"]).await.unwrap();
        let ((removed, _, unknown), (stays, _, last)) =
            (next(&mut house).await, next(&mut house).await);
        assert_ne!(removed, stays);
        let first = failure.clone().unwrap_or(Denied::UnknownModel { model: removed });
        unknown.send(Err(first)).unwrap();
        // Whoever was given up would be told of here: an `Ask::Cancel`, at which `next` panics.
        house.manager(&["Load", "sa{sv}", &stays, "0"]).await.unwrap();
        let (_, _, load) = next(&mut house).await;
        load.send(Ok(())).unwrap();
        assert_eq!(job(&house, 2 * id - 1, "State").await, "s \"running\"");
        last.send(Ok(())).unwrap();
        let end = if failure.is_some() { "failed" } else { "done" };
        let line = format!("JobRemoved /org/hostler1/job/{} unload-all  {end}", 2 * id - 1);
        monitor.until(&line).await;
    }
}
