//! Shutdowns that leave the models running.

use super::*;

#[test]
fn a_kept_container_outlives_the_daemon() {
    let mut host = Host::new(vec![spec("a", 40)]);
    let a = host.ready(1, "a");
    host.tell(Event::Shutdown { keep: true });
    assert!(host.stops().is_empty() && !host.exited());
    host.release(&a);
    assert!(host.exited() && host.stops().is_empty());
}

#[test]
fn a_launch_is_waited_for_or_its_load_would_begin_anew() {
    let begun = || {
        let mut host = Host::new(vec![spec("a", 40)]);
        host.acquire(1, "a");
        let id = host.launch();
        host.tell(Event::Shutdown { keep: true });
        assert_eq!((host.denials(), host.exited()), (vec![(1, "shutting_down")], false));
        (host, id)
    };
    let (mut host, id) = begun();
    host.start(&id);
    assert!(host.exited() && host.stops().is_empty(), "from then on it loads without a daemon");
    let (mut host, id) = begun();
    host.tell(Event::LaunchFailed { instance: id, fault: fault("no") });
    assert!(host.exited());
    // Its image is not here: whoever asks the next daemon pulls it.
    let (mut host, id) = begun();
    host.tell(Event::Progress { instance: id, phase: Phase::Pulling });
    assert!(host.exited());
    let (mut host, _) = begun();
    host.pass(29);
    assert!(!host.exited());
    host.pass(1);
    assert!(host.exited(), "it is not waited for longer than for requests");
}
