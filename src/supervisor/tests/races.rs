//! Orders of events that once went wrong.

use super::*;

#[test]
fn an_engine_that_dies_after_each_long_load_is_not_restarted_without_a_delay() {
    let mut host = Host::new(vec![spec("m", 10)]);
    for round in 1..3 {
        host.observe();
        host.acquire(round, "m");
        let id = host.launch();
        host.start(&id);
        host.pass(70);
        host.heal(&id);
        host.pass(1);
        host.tell(Event::Died { instance: id.clone(), fault: fault("segfault") });
        host.stopped(&id);
        host.pass(1);
    }
    host.acquire(3, "m");
    assert_eq!(host.denials(), [(3, "model_load_failed")], "a load is no service");
}
