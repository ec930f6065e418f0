//! Those who are always busy make way in turn.

use super::*;

const TURN: Duration = Duration::from_secs(30);

/// A small model serves all the time, and a large one is asked for: for so many seconds.
fn waiting(seconds: u64) -> (Host, InstanceId) {
    let mut host = Host::new(vec![spec("small", 40), spec("large", 80)]);
    host.state.settings.turn_after = Some(TURN);
    let small = host.ready(1, "small");
    host.acquire(2, "large");
    host.pass(seconds);
    (host, small)
}

#[test]
fn the_busy_make_way_after_a_time_and_nobody_is_cut_off() {
    let (mut host, small) = waiting(TURN.as_secs() - 1);
    host.acquire(3, "small");
    assert_eq!(host.grants(), [3], "its turn has not come");
    assert_eq!(host.state.next_deadline(), Some(host.now + Duration::from_secs(1)));
    host.pass(1);
    assert_eq!((host.phase("small"), host.stops()), (Phase::Draining, vec![]));
    host.acquire(4, "small");
    assert!(host.grants().is_empty(), "no new ones");
    // However long they take: an hour is longer than any drain.
    host.pass(120);
    assert!(host.stops().is_empty());
    host.release(&small);
    assert!(host.stops().is_empty());
    host.release(&small);
    assert_eq!(host.stops(), std::slice::from_ref(&small));
}

#[test]
fn whoever_made_way_comes_back_in_turn() {
    let (mut host, small) = waiting(TURN.as_secs());
    host.acquire(3, "small");
    host.release(&small);
    host.stopped(&small);
    host.pass(1);
    host.observe();
    let large = host.launch();
    host.start(&large);
    host.heal(&large);
    assert_eq!((large.model.as_str(), host.grants()), ("large", vec![2]));
    host.pass(TURN.as_secs());
    assert_eq!(host.phase("large"), Phase::Draining, "it has waited as long");
}

#[test]
fn who_gives_up_lets_the_busy_serve_on() {
    let (mut host, _) = waiting(TURN.as_secs());
    host.acquire(3, "small");
    host.tell(Event::Cancel { waiter: WaiterId(2) });
    assert_eq!((host.phase("small"), host.grants()), (Phase::Ready, vec![3]));
    // Coming again soon it waits on; after a while it begins anew.
    host.acquire(4, "large");
    assert_eq!(host.phase("small"), Phase::Draining);
    host.tell(Event::Cancel { waiter: WaiterId(4) });
    host.pass(TURN.as_secs() + 1);
    host.acquire(5, "large");
    assert_eq!(host.phase("small"), Phase::Ready);
}

#[test]
fn nobody_makes_way_for_the_patient_the_lesser_or_where_it_is_off() {
    let cases: [fn(&mut Host, &mut ModelSpec, &mut ModelSpec); 4] = [
        |_, _, large| large.on_full = OnFull::Wait,
        |_, small, _| small.priority = 1,
        |_, small, _| small.pin = true,
        |host, _, _| host.state.settings.turn_after = None,
    ];
    for (at, change) in cases.into_iter().enumerate() {
        let (mut small, mut large) = (spec("small", 40), spec("large", 80));
        let mut host = Host::new(vec![]);
        host.state.settings.turn_after = Some(TURN);
        change(&mut host, &mut small, &mut large);
        let turn_after = host.state.settings.turn_after;
        let mut host = Host::new(vec![small, large]);
        host.state.settings.turn_after = turn_after;
        if host.order().is_some() {
            let id = host.launch();
            host.start(&id);
            host.heal(&id);
            host.acquire(1, "small");
        } else {
            host.ready(1, "small");
        }
        host.acquire(2, "large");
        host.pass(2 * TURN.as_secs());
        assert_eq!(host.phase("small"), Phase::Ready, "case {at}");
    }
}

#[test]
fn a_turn_comes_before_those_who_wait_are_told_to_come_back() {
    let mut host = Host::new(vec![spec("small", 40), spec("large", 80)]);
    host.state.settings.turn_after = Some(Duration::from_secs(3600));
    host.ready(1, "small");
    host.acquire(2, "large");
    host.pass(host.state.settings.max_wait.as_secs() / 2);
    assert_eq!(host.phase("small"), Phase::Draining);
}

#[test]
fn a_turn_is_not_lost_to_those_who_take_turns_in_what_it_needs() {
    let mut host = Host::new(vec![spec("a", 40), spec("b", 40), spec("c", 40), spec("large", 90)]);
    host.state.settings.turn_after = Some(TURN);
    host.ready(1, "a");
    host.acquire(2, "large");
    // Its turn comes while another loads, and then is young: nobody else starts where it will.
    host.pass(TURN.as_secs() - 1);
    host.acquire(3, "b");
    let b = host.launch();
    host.pass(1);
    host.acquire(4, "c");
    host.start(&b);
    host.heal(&b);
    assert_eq!((host.grants(), host.stops()), (vec![3], vec![]), "it is young");
    let why = host.state.status(host.now).models[2].waiting_for.clone().unwrap();
    assert!(why.contains("kept for a model whose turn is first"), "{why}");
    host.now = host.now + MIN_RESIDENCY;
    host.tell(Event::Tick);
    assert_eq!((host.phase("a"), host.phase("b")), (Phase::Draining, Phase::Draining));
}

#[test]
fn who_comes_again_keeps_its_place_before_those_who_came_between() {
    let mut host = Host::new(vec![spec("a", 40), spec("b", 40), spec("c", 90), spec("d", 90)]);
    host.state.settings.turn_after = Some(TURN);
    let a = host.ready(1, "a");
    host.acquire(2, "c");
    host.pass(5);
    host.acquire(3, "d");
    host.tell(Event::Cancel { waiter: WaiterId(2) });
    host.pass(5);
    host.acquire(4, "c");
    host.release(&a);
    assert_eq!(host.stops(), std::slice::from_ref(&a));
    host.stopped(&a);
    host.pass(1);
    host.observe();
    assert_eq!(host.launch().model, name("c"));
}

#[test]
fn one_request_that_does_not_end_closes_nobody_for_its_length() {
    let (mut host, small) = waiting(TURN.as_secs());
    let pass = |host: &mut Host, seconds: u64| (0..seconds / 10).for_each(|_| host.pass(10));
    let max_wait = host.state.settings.max_wait.as_secs();
    pass(&mut host, max_wait - 40);
    host.acquire(3, "small");
    host.acquire(4, "large");
    pass(&mut host, 30);
    assert_eq!(host.phase("small"), Phase::Draining);
    host.now = host.now + Duration::from_secs(9);
    assert_eq!(host.state.next_deadline(), Some(host.now + Duration::from_secs(1)));
    host.pass(1);
    assert_eq!((host.phase("small"), host.grants()), (Phase::Ready, vec![3]));
    // It is not asked again for as long, though another waits all the time.
    pass(&mut host, max_wait - 60);
    host.acquire(5, "large");
    pass(&mut host, 50);
    host.acquire(6, "small");
    assert_eq!((host.phase("small"), host.grants()), (Phase::Ready, vec![6]));
    pass(&mut host, 10);
    assert_eq!(host.phase("small"), Phase::Draining, "it is the other's turn again");
    (0..2).for_each(|_| host.release(&small));
    assert!(host.stops().is_empty());
    host.release(&small);
    assert_eq!(host.stops(), std::slice::from_ref(&small));
}

#[test]
fn who_has_drained_in_vain_makes_way_for_its_betters_and_when_it_is_idle() {
    let vain = |priority: i8| {
        let mut better = spec("better", 80);
        better.priority = priority;
        let mut host = Host::new(vec![spec("small", 40), spec("large", 80), better]);
        host.state.settings.turn_after = Some(TURN);
        let small = host.ready(1, "small");
        host.acquire(2, "large");
        host.pass(TURN.as_secs());
        host.pass(200);
        host.acquire(3, "large");
        host.pass(40);
        assert_eq!(host.phase("small"), Phase::Ready);
        host.acquire(4, "better");
        host.pass(TURN.as_secs());
        (host, small)
    };
    let (host, _) = vain(1);
    assert_eq!(host.phase("small"), Phase::Draining);
    let (mut host, small) = vain(0);
    assert_eq!(host.phase("small"), Phase::Ready);
    host.release(&small);
    assert_eq!(host.stops(), [small], "it is idle");
}

#[test]
fn who_waits_for_one_that_makes_way_is_told_for_whom() {
    let (mut host, _) = waiting(TURN.as_secs());
    let (waiter, wait) = (WaiterId(3), Some(Duration::from_secs(5)));
    host.tell(Event::Acquire { waiter, model: "small".to_owned(), wait });
    host.pass(5);
    let Denied::NoRoom { why, .. } = host.denied() else { panic!("{:?}", host.denied()) };
    assert!(why.contains("makes way for large"), "{why}");
}
