//! Another configuration: what did not change is not touched.

use super::*;
use crate::supervisor::event::Reconfiguration;

pub(super) fn configure(host: &mut Host, specs: Vec<ModelSpec>) {
    let specs = specs.into_iter().map(|s| (s.name.clone(), Arc::new(s))).collect();
    let settings = host.state.settings.clone();
    let new = Reconfiguration { settings, specs, images: BTreeMap::new() };
    host.tell(Event::Configure(Box::new(new)));
}

pub(super) fn changed(model: &str, vram: u64) -> ModelSpec {
    let mut spec = spec(model, vram);
    spec.args = vec!["--changed".to_owned()];
    spec
}

fn names(host: &Host) -> Vec<String> {
    host.state.status(host.now).models.iter().map(|m| m.name.to_string()).collect()
}

#[test]
fn what_is_the_same_is_left_alone() {
    let mut host = Host::new(vec![spec("a", 10), spec("b", 10)]);
    let a = host.ready(1, "a");
    let mut policy = spec("a", 10);
    policy.idle_timeout = Some(Duration::from_secs(7));
    policy.aliases = vec![name("other")];
    configure(&mut host, vec![policy, spec("b", 10), spec("c", 10)]);
    assert!(host.stops().is_empty() && host.phase("a") == Phase::Ready);
    assert_eq!(names(&host), ["a", "b", "c"]);
    host.acquire(2, "other");
    assert_eq!(host.grants(), [2]);
    host.release(&a);
    host.release(&a);
    host.pass(7);
    assert_eq!(host.stops(), [a], "by its new policy");
}

#[test]
fn a_changed_model_serves_until_it_is_idle_and_starts_anew_on_demand() {
    let mut host = Host::new(vec![spec("m", 10)]);
    let old = host.ready(1, "m");
    configure(&mut host, vec![changed("m", 10)]);
    assert!(host.stops().is_empty());
    host.acquire(2, "m");
    assert_eq!(host.grants(), [2], "by the old one");
    host.release(&old);
    assert!(host.stops().is_empty());
    host.release(&old);
    assert_eq!(host.stops(), std::slice::from_ref(&old));
    host.acquire(3, "m");
    host.stopped(&old);
    host.pass(1);
    host.observe();
    let order = host.order().unwrap();
    assert_eq!(order.spec.args, ["--changed"]);
    host.start(&order.instance);
    host.heal(&order.instance);
    assert_eq!(host.grants(), [3]);
}

#[test]
fn a_changed_pinned_model_comes_back_by_itself() {
    let pin = |mut spec: ModelSpec| {
        spec.pin = true;
        spec.idle_timeout = None;
        spec
    };
    let mut host = Host::new(vec![pin(spec("m", 10))]);
    let old = host.launch();
    host.start(&old);
    host.heal(&old);
    configure(&mut host, vec![pin(changed("m", 10))]);
    assert_eq!(host.stops(), std::slice::from_ref(&old));
    host.stopped(&old);
    host.pass(1);
    host.observe();
    assert_eq!(host.order().unwrap().spec.args, ["--changed"]);
}

#[test]
fn a_removed_model_drains_and_is_forgotten() {
    let mut host = Host::new(vec![spec("a", 60), spec("b", 10)]);
    let a = host.ready(1, "a");
    let mut waiting = spec("c", 60);
    waiting.on_full = OnFull::Wait;
    configure(&mut host, vec![spec("a", 60), spec("b", 10), waiting]);
    host.acquire(2, "c");
    configure(&mut host, vec![spec("b", 10)]);
    assert_eq!(host.denials(), [(2, "model_not_found")], "whoever waited is told");
    assert_eq!((host.phase("a"), names(&host)), (Phase::Draining, vec!["a".into(), "b".into()]));
    host.acquire(3, "a");
    assert_eq!(host.denials(), [(3, "model_not_found")]);
    host.release(&a);
    host.stopped(&a);
    assert_eq!(names(&host), ["b"]);
    host.pass(1);
    host.observe();
    // Back as another before it was gone: it starts anew.
    let b = host.ready(4, "b");
    configure(&mut host, vec![]);
    configure(&mut host, vec![changed("b", 10)]);
    host.acquire(5, "b");
    host.release(&b);
    host.stopped(&b);
    host.pass(1);
    host.observe();
    assert!(host.order().is_some());
}

#[test]
fn a_load_by_an_older_configuration_that_nobody_waits_for_is_given_up() {
    let mut host = Host::new(vec![spec("m", 10)]);
    host.tell(Event::Pin { waiter: WaiterId(1), model: name("m"), pinned: true });
    let old = host.launch();
    host.start(&old);
    configure(&mut host, vec![changed("m", 10)]);
    assert_eq!(host.stops(), std::slice::from_ref(&old));
    host.stopped(&old);
    host.pass(1);
    host.observe();
    assert_eq!(host.order().unwrap().spec.args, ["--changed"], "the operator's pin is kept");
    // A failure of what was wrong does not delay what is right.
    let id = host.launch();
    host.tell(Event::LaunchFailed { instance: id, fault: fault("wrong") });
    host.now = host.now + Duration::from_millis(1);
    host.observe();
    assert!(host.order().is_none(), "its delay is not over");
    configure(&mut host, vec![spec("m", 10)]);
    assert!(host.order().is_some());
}

#[test]
fn an_operator_whose_device_is_forbidden_meanwhile_is_told() {
    let mut host = Host::new(vec![spec("m", 10), spec("other", 95)]);
    host.ready(1, "other");
    let wish = Wish { gpus: vec![GpuId::host()], ..Wish::default() };
    host.tell(Event::Load { waiter: WaiterId(2), model: name("m"), wish });
    host.acquire(3, "m");
    let mut bound = spec("m", 10);
    bound.gpus = vec![GpuId::new("GPU-1")];
    configure(&mut host, vec![bound, spec("other", 95)]);
    assert_eq!(host.denials()[0], (2, "conflict"), "or it would go where it may not be");
    assert!(host.stops().is_empty() && host.phase("other") == Phase::Ready);
}

#[test]
fn a_change_of_any_sort_is_tried_at_once_whatever_failed_before() {
    let mut host = Host::new(vec![spec("m", 10)]);
    for waiter in 1..=6 {
        host.observe();
        host.acquire(waiter, "m");
        let id = host.launch();
        host.tell(Event::LaunchFailed { instance: id, fault: fault("no answer in time") });
        host.pass(60);
    }
    host.acquire(7, "m");
    let Denied::LoadFailed { .. } = host.denied() else { panic!() };
    // What its fault advises.
    let slower = ModelSpec { load_timeout: Duration::from_secs(7200), ..spec("m", 10) };
    configure(&mut host, vec![slower]);
    host.observe();
    host.acquire(8, "m");
    host.launch();
}

#[test]
fn what_an_older_load_ends_with_says_nothing_of_the_new_image() {
    for pulls in [false, true] {
        let mut host = Host::new(vec![spec("m", 10)]);
        host.acquire(1, "m");
        let old = host.launch();
        if pulls {
            host.tell(Event::Progress { instance: old.clone(), phase: Phase::Pulling });
        }
        let mut new = changed("m", 10);
        new.image = crate::types::ImageRef::parse("localhost/other:1").unwrap();
        let settings = host.state.settings.clone();
        let specs = BTreeMap::from([(name("m"), Arc::new(new))]);
        let images = BTreeMap::from([(name("m"), "other".to_owned())]);
        if pulls {
            host.tell(Event::Cancel { waiter: WaiterId(1) });
        }
        host.tell(Event::Configure(Box::new(Reconfiguration { settings, specs, images })));
        if pulls {
            host.acquire(2, "m");
        } else {
            host.start(&old);
            host.heal(&old);
            assert_eq!(host.grants(), [1]);
            host.release(&old);
            host.acquire(2, "m");
            host.stopped(&old);
            host.pass(1);
            host.observe();
        }
        let order = host.order().unwrap();
        assert_eq!(order.image_id.as_deref(), Some("other"), "pulls: {pulls}");
    }
}

#[test]
fn what_was_taken_away_and_comes_back_as_it_was_serves_on() {
    let mut host = Host::new(vec![spec("m", 10)]);
    let id = host.ready(1, "m");
    configure(&mut host, vec![]);
    assert_eq!(host.phase("m"), Phase::Draining);
    host.pass(20);
    configure(&mut host, vec![spec("m", 10)]);
    let spared = Notice::Spared { instance: id.clone() };
    assert!(host.out.iter().any(|e| matches!(e, Effect::Notice(n) if *n == spared)));
    host.pass(20);
    assert_eq!((host.stops(), host.phase("m")), (vec![], Phase::Ready));
    host.acquire(2, "m");
    assert_eq!(host.grants(), [2]);
    // Otherwise than its container runs it goes in its time.
    configure(&mut host, vec![]);
    configure(&mut host, vec![changed("m", 10)]);
    assert_eq!(host.phase("m"), Phase::Draining);
    host.pass(30);
    assert_eq!(host.stops(), [id]);
    // And so does one that an operator has sent away.
    let mut host = Host::new(vec![spec("m", 10)]);
    host.ready(1, "m");
    host.tell(Event::Unload { waiter: WaiterId(7), model: name("m"), haste: Haste::Drain });
    configure(&mut host, vec![]);
    configure(&mut host, vec![spec("m", 10)]);
    assert_eq!(host.phase("m"), Phase::Draining);
    // A daemon that stops brings nobody back.
    let mut host = Host::new(vec![spec("m", 10)]);
    let id = host.ready(1, "m");
    configure(&mut host, vec![]);
    host.tell(Event::Shutdown { keep: false });
    configure(&mut host, vec![spec("m", 10)]);
    assert_eq!(host.phase("m"), Phase::Draining);
    host.release(&id);
    assert_eq!(host.stops(), [id]);
}

#[test]
fn the_image_is_that_of_the_engine_that_runs() {
    let image = |host: &Host| {
        let model = host.state.status(host.now).models.remove(0);
        (model.image, model.image_id)
    };
    let mut host = Host::new(vec![spec("m", 10)]);
    let configured = spec("m", 10).image.to_string();
    assert_eq!(image(&host), (configured.clone(), None), "none runs");
    let id = host.ready(1, "m");
    assert_eq!(image(&host), (configured.clone(), Some("1".to_owned())));
    let mut other = spec("m", 10);
    other.image = crate::types::ImageRef::parse("localhost/other:2").unwrap();
    configure(&mut host, vec![other]);
    assert_eq!(image(&host), (configured, Some("1".to_owned())), "while it serves");
    host.release(&id);
    host.stopped(&id);
    assert_eq!(image(&host), ("localhost/other:2".to_owned(), None));
}
