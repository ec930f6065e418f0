//! From readings to footprints, and from footprints to promises.

use super::reconfiguring::configure;
use super::*;
use crate::plan::{Book, Confidence, Source};
use crate::types::{Anatomy, ProcessMemory};

const GPU: &str = "GPU-0";

/// A reading of one device in which `own` belongs to the instance (`None`: the driver does not say) and the rest to others.
pub(super) fn reading(host: &mut Host, of: &InstanceId, own: Option<u64>, used: u64) {
    let known = |bytes: Option<u64>| bytes.map_or(Known::Unknown, |b| Known::Known(Bytes(b)));
    let device = GpuReading {
        id: GpuId::new(GPU),
        name: "X".into(),
        total: Bytes(100 << 30),
        used: Bytes(used),
        processes: vec![ProcessMemory { pid: 9, bytes: known(own) }],
    };
    let bytes = BTreeMap::from([(GpuId::new(GPU), known(own))]);
    let usage = BTreeMap::from([(of.clone(), Usage { pids: vec![9], bytes })]);
    let devices = Ok(GpuSnapshot { devices: vec![device], lost: vec![], driver: "580".into() });
    host.now = host.now + Duration::from_secs(2);
    let (taken, unix_s) = (host.now, 1_800_000_000);
    host.tell(Event::Observed(Observation { taken, unix_s, devices, usage }));
}

pub(super) fn gib(n: u64) -> u64 {
    n << 30
}

pub(super) fn nobody() -> InstanceId {
    InstanceId::new(name("nobody"), Generation(1), 1)
}

/// A model that nobody declared anything of, loaded on an empty device; its lease is returned.
pub(super) fn loaded(host: &mut Host) -> InstanceId {
    reading(host, &nobody(), Some(0), 0);
    let id = host.ready(1, "m");
    host.release(&id);
    id
}

pub(super) fn undeclared() -> Host {
    let mut m = spec("m", 0);
    m.vram = None;
    let mut host = Host::bare(vec![m]);
    host.tell(Event::Found(vec![]));
    host
}

fn saved(host: &Host) -> Option<Book> {
    let save = |e: &Effect| if let Effect::Save(bytes) = e { Some(bytes.clone()) } else { None };
    host.out.iter().find_map(save).map(|bytes| Book::decode(&bytes).unwrap())
}

fn unmeasured(host: &Host) -> Option<String> {
    host.out.iter().find_map(|e| {
        if let Effect::Notice(Notice::Unmeasured { why, .. }) = e {
            Some(why.clone())
        } else {
            None
        }
    })
}

/// Samples until something is written down.
pub(super) fn measure(
    host: &mut Host,
    id: &InstanceId,
    own: Option<u64>,
    used: u64,
) -> Option<Book> {
    for _ in 0..6 {
        reading(host, id, own, used);
        if let Some(book) = saved(host) {
            return Some(book);
        }
    }
    None
}

#[test]
fn a_running_model_is_measured_and_its_next_start_is_promised_that() {
    let mut host = undeclared();
    let id = loaded(&mut host);
    let book = measure(&mut host, &id, Some(gib(30)), gib(40)).expect("a footprint");
    let first = book.iter().next().unwrap();
    assert_eq!(book.len(), 1);
    assert_eq!((first.bytes_per_device, first.source), (Bytes(gib(30)), Source::Process));
    let key = (first.key.image_digest.as_str(), first.key.gpu_name.as_str(), &*first.key.driver);
    assert_eq!(key, ("1", "X", "580"));
    // More samples, more confidence: written down once more, and then no more.
    let writes = (0..30).filter(|_| {
        reading(&mut host, &id, Some(gib(30)), gib(40));
        saved(&host).is_some()
    });
    assert!((1..3).contains(&writes.count()));
    let status = host.state.status(host.now).models[0].footprint.clone().unwrap();
    assert_eq!((status.bytes, status.confidence), (Bytes(gib(30)), "high"));
    // The next start needs no whole device.
    host.tell(Event::Unload { waiter: WaiterId(7), model: name("m"), haste: Haste::Drain });
    host.stopped(&id);
    reading(&mut host, &nobody(), Some(0), gib(10));
    host.acquire(2, "m");
    let order = host.order().expect("a launch");
    let expected = Need { bytes: Bytes(gib(30)).scale(105, 100), source: NeedSource::Measured };
    assert_eq!(order.placement.need, expected);
    assert_eq!(order.image_id.as_deref(), Some("1"), "it was measured with this image");
}

#[test]
fn what_an_old_container_holds_says_nothing_of_a_new_specification() {
    let mut host = undeclared();
    reading(&mut host, &nobody(), Some(0), 0);
    let id = host.ready(1, "m");
    let first = measure(&mut host, &id, Some(gib(30)), gib(40)).expect("a footprint");
    let mut changed = ModelSpec::clone(&host.state.models[&name("m")].spec);
    changed.context = Some(131_072);
    configure(&mut host, vec![changed]);
    assert_eq!(host.phase("m"), Phase::Ready, "it serves still");
    host.tell(Event::Measure { waiter: WaiterId(9), model: name("m") });
    for _ in 0..30 {
        reading(&mut host, &id, Some(gib(31)), gib(41));
        assert!(host.done().is_empty(), "another was measured");
        // Of the old one more may be learned.
        for footprint in saved(&host).iter().flat_map(Book::iter) {
            assert_eq!(footprint.key, first.iter().next().unwrap().key);
        }
    }
    let model = &host.state.models[&name("m")];
    let needs = host.state.needs(model);
    assert_eq!(
        needs.on("X", Bytes(gib(100)), Bytes(gib(100))).source,
        NeedSource::Exclusive,
        "{needs:?}"
    );
    assert_eq!(host.state.measured_need(model), None);
}

/// `m` with files of so many GiB, that nobody declared.
pub(super) fn of(weights: u64) -> ModelSpec {
    let mut m = spec("m", 0);
    m.vram = None;
    let (weights, source) = (Bytes(gib(weights)), "a test".to_owned());
    m.anatomy = Some(Anatomy { weights, projector: Bytes::ZERO, cache: None, source });
    m
}

#[test]
fn what_was_measured_is_not_true_of_weights_that_took_their_place() {
    let mut host = Host::bare(vec![of(5)]);
    host.tell(Event::Found(vec![]));
    let id = loaded(&mut host);
    let book = measure(&mut host, &id, Some(gib(7)), gib(7)).expect("a footprint");
    let need = |host: &Host| {
        let needs = host.state.needs(&host.state.models[&name("m")]);
        needs.on("X", Bytes(gib(100)), Bytes(gib(100)))
    };
    assert_eq!(need(&host).source, NeedSource::Measured);
    configure(&mut host, vec![of(28)]);
    assert_eq!(host.phase("m"), Phase::Ready, "its container is the same");
    reading(&mut host, &id, Some(gib(7)), gib(7));
    let expected = need(&host);
    assert!(expected.source == NeedSource::Estimated && expected.bytes > Bytes(gib(28)));
    // Nor after a restart.
    let mut next = Host::bare(vec![of(28)]);
    let images = BTreeMap::from([(name("m"), "1".to_owned())]);
    next.state.remember(Recalled { book, images, ..Recalled::default() });
    reading(&mut next, &nobody(), Some(0), 0);
    assert_eq!(need(&next), expected);
}

#[test]
fn what_an_earlier_daemon_measured_is_true_of_the_same_image_only() {
    let mut host = undeclared();
    let id = loaded(&mut host);
    let book = measure(&mut host, &id, Some(gib(30)), gib(40)).unwrap();
    for (image, source) in [("1", NeedSource::Measured), ("2", NeedSource::Exclusive)] {
        let mut next = undeclared();
        let images = BTreeMap::from([(name("m"), image.to_owned())]);
        let book = book.clone();
        next.state.remember(Recalled { book, images, ..Recalled::default() });
        reading(&mut next, &nobody(), Some(0), 0);
        next.acquire(1, "m");
        assert_eq!(next.order().unwrap().placement.need.source, source, "image {image}");
    }
}

#[test]
fn how_long_loads_took_is_known_to_the_next_daemon_and_not_true_of_another_specification() {
    let mut host = undeclared();
    let id = loaded(&mut host);
    let book = measure(&mut host, &id, Some(gib(30)), gib(40)).unwrap();
    let took = book.iter().next().unwrap().loads.last();
    assert!(took.is_some(), "{book:?}");
    let expected = |host: &Host| host.state.models[&name("m")].demand.reload();
    let mut next = undeclared();
    assert_eq!(expected(&next), None);
    next.state.remember(Recalled { book: book.clone(), ..Recalled::default() });
    assert_eq!(expected(&next), took);
    // Nor is what clients are told to wait a guess: there is no room, and then it loads.
    next.state.models.get_mut(&name("m")).unwrap().loads.record(Duration::from_secs(180));
    next.acquire(1, "m");
    next.pass(240);
    assert_eq!(next.denied().retry_after(), Some(Duration::from_secs(180)));
    reading(&mut next, &nobody(), Some(0), 0);
    next.tell(Event::Acquire {
        waiter: WaiterId(2),
        model: "m".into(),
        wait: Some(Duration::from_secs(60)),
    });
    let id = next.launch();
    next.start(&id);
    next.pass(60);
    assert_eq!(next.denied().retry_after(), Some(Duration::from_secs(120)));
    let mut other = test_spec("m");
    other.args.push("--other".into());
    let mut changed = Host::bare(vec![other]);
    changed.state.remember(Recalled { book, ..Recalled::default() });
    assert_eq!(expected(&changed), None);
}

#[test]
fn a_changed_image_is_planned_for_again_at_once() {
    let mut host = undeclared();
    let images = BTreeMap::from([(name("m"), "old".to_owned())]);
    host.state.remember(Recalled { images, ..Recalled::default() });
    reading(&mut host, &nobody(), Some(0), 0);
    host.acquire(1, "m");
    let order = host.order().unwrap();
    assert_eq!(order.image_id.as_deref(), Some("old"));
    let fault = Fault::new(FaultCode::ImageChanged, "another image");
    host.tell(Event::LaunchFailed { instance: order.instance, fault });
    assert_eq!(host.denials(), []);
    let again = host.order().expect("a second launch");
    assert_eq!(again.image_id, None);
    host.start(&again.instance);
    host.heal(&again.instance);
    assert_eq!(host.grants(), [1]);
}

#[test]
fn a_driver_that_attributes_nothing_leaves_little_confidence() {
    let mut host = undeclared();
    let id = loaded(&mut host);
    let book = measure(&mut host, &id, None, gib(30)).expect("a footprint");
    let first = book.iter().next().unwrap();
    assert_eq!((first.source, first.confidence), (Source::Delta, Confidence::Low));
    assert_eq!(first.bytes_per_device, Bytes(gib(30)));
}

#[test]
fn while_others_grow_nothing_is_measured() {
    let mut host = undeclared();
    let id = loaded(&mut host);
    for n in 0..20 {
        reading(&mut host, &id, Some(gib(30)), gib(30 + n));
        assert!(saved(&host).is_none(), "reading {n}");
        if unmeasured(&host).is_some() {
            return;
        }
    }
    panic!("it never gave up, and never said so");
}

/// What the next start of an undeclared model is promised, after one that was seen to hold 5 GiB and did not get further.
fn promised_next(ready: bool, fault: Fault) -> Need {
    let mut host = undeclared();
    reading(&mut host, &nobody(), Some(0), 0);
    host.acquire(1, "m");
    let id = host.launch();
    host.start(&id);
    if ready {
        host.heal(&id);
    }
    reading(&mut host, &id, Some(gib(5)), gib(5));
    host.tell(Event::Died { instance: id.clone(), fault });
    host.stopped(&id);
    reading(&mut host, &nobody(), Some(0), 0);
    host.pass(5);
    host.acquire(2, "m");
    host.order().expect("a launch").placement.need
}

#[test]
fn a_load_that_failed_half_way_does_not_tell_what_the_model_needs() {
    assert_eq!(promised_next(false, fault("half")).source, NeedSource::Exclusive);
    let expected = Need { bytes: Bytes(gib(5)).scale(105, 100), source: NeedSource::Measured };
    assert_eq!(promised_next(true, fault("later")), expected, "it was all there");
}

#[test]
fn what_another_image_held_does_not_tell_what_this_one_needs() {
    let mut host = undeclared();
    let id = loaded(&mut host);
    measure(&mut host, &id, Some(gib(30)), gib(40)).expect("a footprint");
    host.tell(Event::Unload { waiter: WaiterId(7), model: name("m"), haste: Haste::Drain });
    host.stopped(&id);
    reading(&mut host, &nobody(), Some(0), gib(10));
    host.acquire(2, "m");
    let order = host.order().unwrap();
    let fault = Fault::new(FaultCode::ImageChanged, "another image");
    host.tell(Event::LaunchFailed { instance: order.instance, fault });
    let again = host.order().expect("a second launch");
    assert_eq!(again.placement.need.source, NeedSource::Exclusive);
}

mod problems;
