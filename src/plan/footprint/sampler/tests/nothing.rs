//! Engines of which no memory is seen.

use super::*;

/// Readings of a minute in which nothing of it is seen, and what the last of them led to.
fn a_minute_of_nothing(bench: &mut Bench, read: impl Fn(&mut Bench) -> Verdict) -> Verdict {
    for n in 0..30 {
        assert_eq!(read(bench), Verdict::More, "reading {n}");
        assert!(!bench.sampler.holds_nothing());
    }
    read(bench)
}

#[test]
fn who_is_ready_and_holds_nothing_is_said_to_after_a_minute() {
    let nothing = Verdict::GaveUp(Disturbance::Nothing);
    let mut bench = Bench::new(on(IDLE));
    for _ in 0..100 {
        assert_eq!(bench.own(Bytes::ZERO), Verdict::More, "it loads");
    }
    bench.sampler.ready(bench.now);
    assert_eq!(a_minute_of_nothing(&mut bench, |b| b.own(Bytes::ZERO)), nothing);
    assert!(bench.sampler.holds_nothing());
    assert_eq!((bench.own(Bytes::ZERO), bench.sampler.peak()), (nothing.clone(), None));
    // The driver attributes nothing, and the device breathes.
    let mut bench = Bench::ready();
    let breath = |b: &mut Bench| b.unattributed(Bytes::mib(16));
    assert_eq!(a_minute_of_nothing(&mut bench, breath), nothing);
    let mut bench = Bench::ready();
    for _ in 0..4 {
        assert_eq!(bench.unattributed(Bytes::mib(17)), Verdict::More);
    }
    steady(&bench.unattributed(Bytes::mib(17)));
}

#[test]
fn what_others_take_is_no_memory_of_who_is_told_apart_from_them() {
    let mut bench = Bench::ready();
    let more = |b: &mut Bench| {
        let Known::Known(foreign) = b.device.foreign else { panic!() };
        b.device.foreign = Known::Known(foreign + Bytes::gib(1));
        b.own(Bytes::ZERO)
    };
    let verdict = a_minute_of_nothing(&mut bench, more);
    assert_eq!(verdict, Verdict::GaveUp(Disturbance::Nothing));
    // Where it is not told apart, that may be its own.
    let mut bench = Bench::ready();
    bench.unattributed(Bytes::ZERO);
    let verdict = bench.unattributed(Bytes::gib(1));
    assert!(matches!(verdict, Verdict::GaveUp(Disturbance::Somebody(..))), "{verdict:?}");
    assert!(!bench.sampler.holds_nothing());
}

#[test]
fn who_takes_memory_late_is_measured_from_then_on() {
    let mut bench = Bench::ready();
    for _ in 0..400 {
        bench.own(Bytes::ZERO);
    }
    assert!(bench.sampler.holds_nothing());
    for _ in 0..4 {
        assert_eq!(bench.own(Bytes::gib(10)), Verdict::More);
        assert!(!bench.sampler.holds_nothing(), "it does now");
    }
    steady(&bench.own(Bytes::gib(10)));
    // What gives back all that it held did hold something.
    for _ in 0..100 {
        bench.own(Bytes::ZERO);
        assert!(!bench.sampler.holds_nothing());
    }
}

#[test]
fn time_without_readings_is_no_time_without_memory() {
    let mut bench = Bench::ready();
    for _ in 0..20 {
        assert_eq!(bench.own(Bytes::ZERO), Verdict::More);
    }
    // It sleeps.
    bench.now = bench.now + Duration::from_secs(3600);
    let verdict = a_minute_of_nothing(&mut bench, |b| b.own(Bytes::ZERO));
    assert_eq!(verdict, Verdict::GaveUp(Disturbance::Nothing));
}

#[test]
fn the_hosts_memory_is_held_by_what_computes_there() {
    let mut sampler = Sampler::new(SampleRule::default(), Sample::new());
    sampler.ready(Moment::START);
    let none = Sample::from([(GpuId::host(), DeviceSample { foreign: Known::Unknown, ..IDLE })]);
    for n in 0..300 {
        assert_eq!(sampler.sample(Moment::from_secs(2 * n), &none), Verdict::More);
    }
    let verdict = sampler.sample(Moment::from_secs(601), &none);
    assert_eq!(verdict, Verdict::GaveUp(Disturbance::Restless));
}

#[test]
fn a_device_that_is_not_read_may_hold_all_of_it() {
    let both = Sample::from([(GpuId::new("a"), IDLE), (GpuId::new("b"), IDLE)]);
    for part in [on(IDLE), Sample::new()] {
        let mut sampler = Sampler::new(SampleRule::default(), both.clone());
        sampler.ready(Moment::START);
        for n in 0..100 {
            let verdict = sampler.sample(Moment::from_secs(2 * n), &part);
            assert_eq!(verdict, Verdict::More, "{n}");
        }
        for n in 100..130 {
            sampler.sample(Moment::from_secs(2 * n), &both);
            assert!(!sampler.holds_nothing());
        }
        sampler.sample(Moment::from_secs(260), &both);
        assert!(sampler.holds_nothing());
    }
}
