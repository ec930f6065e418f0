//! Images that have to be pulled, and loads that take long.

use super::*;
use crate::types::Pulled;

fn pulled() -> Fault {
    Fault::new(FaultCode::ImagePulled, "it is here now")
}

#[test]
fn a_pull_keeps_nobody_from_the_device() {
    let mut host = Host::new(vec![spec("m", 100), spec("other", 100)]);
    host.acquire(1, "m");
    let id = host.launch();
    host.tell(Event::Progress { instance: id.clone(), phase: Phase::Pulling });
    let other = host.ready(2, "other");
    host.release(&other);
    host.pass(1);
    // The image is here, and the room is somebody else's: he is asked to leave, as for any start.
    host.tell(Event::LaunchFailed { instance: id, fault: pulled() });
    assert_eq!((host.order().is_none(), host.stops()), (true, vec![other.clone()]));
    host.stopped(&other);
    host.observe();
    let id = host.launch();
    host.start(&id);
    host.heal(&id);
    assert_eq!(host.grants(), [1]);
}

#[test]
fn an_unload_does_not_wait_for_a_pull() {
    let mut host = Host::new(vec![spec("m", 100)]);
    host.acquire(1, "m");
    let id = host.launch();
    host.tell(Event::Progress { instance: id.clone(), phase: Phase::Pulling });
    host.tell(Event::Unload { waiter: WaiterId(7), model: name("m"), haste: Haste::Drain });
    assert_eq!(host.done(), [7]);
    assert_eq!(host.phase("m"), Phase::Stopped);
    let gone = Notice::Stopped { instance: id.clone() };
    let told = host.out.iter().filter(|e| matches!(e, Effect::Notice(n) if *n == gone));
    assert_eq!(told.count(), 1, "or its story would never end");
    host.tell(Event::LaunchFailed { instance: id.clone(), fault: pulled() });
    assert!(host.out.is_empty(), "{:?}", host.out);
    // And if it runs for all that, it does not stay.
    host.start(&id);
    assert_eq!(host.stops(), [id]);
}

#[test]
fn a_load_that_takes_too_long_has_failed() {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.acquire(1, "m");
    let first = host.launch();
    host.tell(Event::Progress { instance: first.clone(), phase: Phase::Pulling });
    assert_eq!(host.phase("m"), Phase::Pulling);
    let far = Pulled { done: Bytes::gib(1), total: Bytes::gib(4) };
    host.tell(Event::Pulled { instance: first.clone(), pulled: far });
    let status = host.state.status(host.now);
    let row = status.models.iter().find(|m| m.name.as_str() == "m").unwrap();
    assert_eq!(row.progress.and_then(|p| p.pulled), Some(far));
    host.pass(230);
    host.tell(Event::LaunchFailed { instance: first, fault: pulled() });
    let id = host.launch();
    host.tell(Event::Progress { instance: id.clone(), phase: Phase::Starting });
    host.start(&id);
    host.pass(10);
    assert_eq!(host.denials(), [(1, "model_loading")], "max_wait is shorter than the load");
    assert_eq!(host.phase("m"), Phase::Loading, "the load goes on");
    host.pass(589);
    assert!(host.stops().is_empty(), "the pull does not count");
    host.pass(1);
    assert_eq!(host.stops(), std::slice::from_ref(&id));
    host.heal(&id);
    assert!(host.grants().is_empty(), "too late");
    host.stopped(&id);
    let error = host.state.status(host.now).models[0].error.clone().unwrap();
    assert_eq!(error.code, FaultCode::LoadTimeout);
    assert!(error.message.contains("load_timeout"));
}

#[test]
fn a_load_in_vain_says_what_was_strange_about_it() {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.acquire(1, "m");
    let id = host.launch();
    host.start(&id);
    for answer in ["status 500", "it made a directory"] {
        host.tell(Event::Strange { instance: id.clone(), answer: answer.to_owned() });
    }
    host.pass(600);
    host.stopped(&id);
    let error = host.state.status(host.now).models[0].error.clone().unwrap();
    assert_eq!(error.code, FaultCode::LoadTimeout);
    assert!(error.message.ends_with(": it made a directory"), "{}", error.message);
}

#[test]
fn a_load_that_was_given_up_before_its_pull_holds_nothing_for_it() {
    let mut host = Host::new(vec![spec("m", 100), spec("other", 100)]);
    host.acquire(1, "m");
    let id = host.launch();
    host.tell(Event::Unload { waiter: WaiterId(7), model: name("m"), haste: Haste::Drain });
    assert!(host.done().is_empty(), "a launch cannot be interrupted");
    host.tell(Event::Progress { instance: id.clone(), phase: Phase::Pulling });
    assert_eq!((host.done(), host.phase("m")), (vec![7], Phase::Stopped));
    let other = host.ready(2, "other");
    assert_eq!(host.phase("other"), Phase::Ready);
    // Its end is of nobody.
    host.tell(Event::LaunchFailed { instance: id, fault: pulled() });
    assert!(host.out.is_empty(), "{:?}", host.out);
    host.release(&other);
}

#[test]
fn a_load_in_vain_says_what_its_engine_wrote_last() {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.acquire(1, "m");
    let id = host.launch();
    host.start(&id);
    host.pass(600);
    let tails = |host: &Host| {
        let tail = |e: &Effect| if let Effect::Stop { tail, .. } = e { Some(*tail) } else { None };
        host.out.iter().filter_map(tail).collect::<Vec<bool>>()
    };
    assert_eq!(tails(&host), [true], "its log goes with its container");
    // Where podman does not answer it is asked again with the next stop, and not any more once it has said something.
    let away = Err(Fault::new(FaultCode::PodmanUnreachable, "podman is gone"));
    host.tell(Event::Wrote { instance: id.clone(), log: vec![] });
    host.tell(Event::Stopped { instance: id.clone(), result: away.clone() });
    host.pass(5);
    assert_eq!(tails(&host), [true]);
    host.tell(Event::Wrote { instance: id.clone(), log: vec!["NCCL: init".into()] });
    host.tell(Event::Stopped { instance: id.clone(), result: away });
    host.pass(5);
    assert_eq!(tails(&host), [false]);
    host.acquire(2, "m");
    host.stopped(&id);
    let error = host.state.status(host.now).models[0].error.clone().unwrap();
    assert_eq!(
        (error.code, &*error.log_tail),
        (FaultCode::LoadTimeout, &["NCCL: init".to_owned()][..])
    );
    // One that goes because nobody wants it has nothing to explain.
    let mut host = Host::new(vec![spec("m", 10)]);
    let id = host.ready(1, "m");
    host.release(&id);
    host.pass(100);
    assert_eq!(tails(&host), [false]);
}
