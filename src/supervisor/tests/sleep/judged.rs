//! What is concluded from silence: of canaries, and of the driver.

use super::*;

fn silent(night: &mut Night, id: &InstanceId) {
    let result = Err(CanaryError::Silent("/v1/completions: answered 500".to_owned()));
    night.host.tell(Event::Sung { instance: id.clone(), result });
}

fn awaits(night: &Night) -> bool {
    night.host.out.iter().any(|e| matches!(e, Effect::AwaitReady { .. }))
}

/// Its engine has said once that it is ready, and is asked its canary.
fn asked() -> (Night, InstanceId) {
    let mut night = Night::new(vec![sleeper("m", 60, 40)]);
    night.host.acquire(1, "m");
    let id = night.host.launch();
    night.host.start(&id);
    night.host.heal(&id);
    assert!(night.asks("canary"));
    (night, id)
}

#[test]
fn an_engine_that_dies_of_its_canary_has_failed_to_load() {
    let (mut night, id) = asked();
    silent(&mut night, &id);
    assert!(night.host.grants().is_empty(), "nobody is sent to a dead engine");
    assert!(awaits(&night), "somebody has to find its death");
    let dead = fault("out of memory").with_log(vec!["CUDA error".into()]);
    night.host.tell(Event::Died { instance: id.clone(), fault: dead });
    night.host.stopped(&id);
    assert_eq!(night.host.denials(), [(1, "model_load_failed")]);
    let Denied::LoadFailed { fault, .. } = night.host.denied() else { panic!() };
    assert_eq!(*fault.log_tail, ["CUDA error"]);
}

#[test]
fn one_that_was_silent_is_asked_once_more_and_then_serves_without_sleep() {
    // Slow with its first request alone: it may sleep.
    let (mut night, id) = asked();
    silent(&mut night, &id);
    night.host.heal(&id);
    assert!(night.asks("canary") && night.host.grants().is_empty());
    night.sung(&id, ANSWER);
    assert_eq!(night.host.grants(), [1]);
    // It lives and will not say.
    let (mut night, id) = asked();
    silent(&mut night, &id);
    night.host.heal(&id);
    silent(&mut night, &id);
    assert!(awaits(&night) && night.host.grants().is_empty());
    night.host.heal(&id);
    assert_eq!(night.host.grants(), [1]);
    night.host.release(&id);
    night.holds(&id, 55);
    night.observe();
    night.pass(100);
    assert_eq!(night.host.stops(), [id]);
    // It turns out to have been falling asleep.
    let (mut night, id) = asked();
    silent(&mut night, &id);
    night.host.heal(&id);
    night.host.tell(Event::Sung { instance: id.clone(), result: Err(CanaryError::Asleep) });
    assert_eq!((night.host.grants(), night.host.stops()), (vec![], vec![id]));
    // It never says that it is ready again.
    let (mut night, id) = asked();
    night.pass(290);
    silent(&mut night, &id);
    // What it has written in all its load is no news.
    night.host.tell(Event::LoadProgress { instance: id.clone() });
    night.pass(44);
    assert!(night.host.stops().is_empty());
    night.pass(1);
    assert_eq!(night.host.stops(), std::slice::from_ref(&id));
    night.host.stopped(&id);
    let error = night.host.state.status(night.host.now).models[0].error.clone().unwrap();
    assert!(error.message.ends_with(": /v1/completions: answered 500"), "{}", error.message);
}

#[test]
fn who_could_not_be_measured_asleep_is_not_said_to_have_kept_anything() {
    let mut night = Night::new(vec![sleeper("m", 60, 40)]);
    let id = night.loaded(1, "m", 55);
    night.pass(100);
    night.slept(&id);
    let devices = Err("no answer".to_owned());
    let (taken, usage) = (night.host.now, BTreeMap::new());
    night.host.tell(Event::Observed(Observation { taken, unix_s: 1, devices, usage }));
    night.pass(10);
    assert_eq!(night.host.stops(), std::slice::from_ref(&id));
    let status = night.counts("m");
    assert_eq!((status.residual, status.sleep_failures), (None, 1), "55 was before it slept");
    night.held.remove(&id);
    night.host.stopped(&id);
    night.pass(1);
    night.observe();
    let id = night.loaded(2, "m", 55);
    night.lulled(&id, 5);
}
