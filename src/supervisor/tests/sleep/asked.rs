//! Operators who send models to sleep, and clients who come meanwhile.

use super::*;

#[test]
fn who_sent_it_to_sleep_is_told_so_also_where_it_wakes_at_once() {
    let mut night = Night::new(vec![sleeper("m", 60, 40)]);
    let id = night.loaded(1, "m", 55);
    night.host.tell(Event::Sleep { waiter: WaiterId(2), model: name("m") });
    assert!(night.asks("sleep"), "{:?}", night.host.out);
    night.host.acquire(3, "m");
    night.slept(&id);
    night.holds(&id, 5);
    night.observe();
    assert_eq!((night.host.done(), night.host.denials()), (vec![2], vec![]));
    assert!(night.asks("wake"), "for the client");
}
