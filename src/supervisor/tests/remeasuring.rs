//! What was measured is used, and measured again where it is not true any more.

use super::measuring::{gib, loaded, measure, nobody, of, reading, undeclared};
use super::reconfiguring::configure;
use super::*;

#[test]
fn what_all_but_fills_its_device_loads_again_beside_what_was_in_use_there_before() {
    let mut host = undeclared();
    reading(&mut host, &nobody(), Some(0), gib(1));
    let id = host.ready(1, "m");
    host.release(&id);
    measure(&mut host, &id, Some(gib(95)), gib(96)).expect("a footprint");
    host.tell(Event::Unload { waiter: WaiterId(7), model: name("m"), haste: Haste::Drain });
    host.stopped(&id);
    reading(&mut host, &nobody(), Some(0), gib(1));
    host.acquire(2, "m");
    let expected = Need { bytes: Bytes(gib(99)), source: NeedSource::Measured };
    assert_eq!(host.order().expect("a launch").placement.need, expected);
}

#[test]
fn what_is_to_be_measured_and_runs_with_the_files_of_before_goes_when_it_is_idle() {
    for pinned in [false, true] {
        let mut host = Host::bare(vec![of(5)]);
        host.tell(Event::Found(vec![]));
        reading(&mut host, &nobody(), Some(0), 0);
        let id = host.ready(1, "m");
        if pinned {
            host.tell(Event::Pin { waiter: WaiterId(8), model: name("m"), pinned });
        }
        configure(&mut host, vec![of(28)]);
        host.tell(Event::Measure { waiter: WaiterId(9), model: name("m") });
        if pinned {
            assert_eq!(host.denials(), [(9, "model_unmeasurable")]);
            continue;
        }
        assert!(host.stops().is_empty() && host.denials().is_empty(), "it serves");
        host.release(&id);
        assert_eq!(host.stops(), std::slice::from_ref(&id));
        host.stopped(&id);
        reading(&mut host, &nobody(), Some(0), 0);
        let next = host.launch();
        host.start(&next);
        host.heal(&next);
        measure(&mut host, &next, Some(gib(30)), gib(30)).expect("a footprint");
        assert_eq!(host.done(), [9]);
    }
}

#[test]
fn what_is_known_better_already_ends_a_measurement_too() {
    let mut host = undeclared();
    let id = loaded(&mut host);
    let book = measure(&mut host, &id, Some(gib(30)), gib(30)).unwrap();
    // The driver does not say any more whose memory is whose, and the book keeps what it said then.
    let mut next = undeclared();
    next.state.remember(Recalled { book, ..Recalled::default() });
    reading(&mut next, &nobody(), None, 0);
    next.tell(Event::Measure { waiter: WaiterId(9), model: name("m") });
    let id = next.launch();
    next.start(&id);
    next.heal(&id);
    let done = (0..10).any(|_| {
        reading(&mut next, &id, None, gib(30));
        next.done() == [9]
    });
    assert!(done, "{:?}", next.denials());
}
