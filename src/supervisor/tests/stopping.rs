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
