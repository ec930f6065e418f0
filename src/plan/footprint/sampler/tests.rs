//! The sampler, fed by hand: a made-up device of which every number is known.

mod nothing;

use std::time::Duration;

use super::*;

/// One device and the instance on it.
struct Bench {
    now: Moment,
    sampler: Sampler,
    device: DeviceSample,
}

const IDLE: DeviceSample = DeviceSample {
    own: Known::Known(Bytes::ZERO),
    device_used: Bytes::gib(3),
    others: Bytes::gib(2),
    foreign: Known::Known(Bytes::gib(1)),
};

fn on(device: DeviceSample) -> Sample {
    Sample::from([(GpuId::new("a"), device)])
}

impl Bench {
    fn new(before: Sample) -> Self {
        let sampler = Sampler::new(SampleRule::default(), before);
        Self { now: Moment::START, sampler, device: IDLE }
    }

    fn ready() -> Self {
        let mut bench = Self::new(on(IDLE));
        bench.sampler.ready(bench.now);
        bench
    }

    /// What the observer's next reading says.
    fn read(&mut self) -> Verdict {
        self.now = self.now + Duration::from_secs(2);
        self.sampler.sample(self.now, &on(self.device))
    }

    fn own(&mut self, own: Bytes) -> Verdict {
        self.device.own = Known::Known(own);
        self.device.device_used = IDLE.device_used + own;
        self.read()
    }

    fn unattributed(&mut self, own: Bytes) -> Verdict {
        self.device.own = Known::Unknown;
        self.device.foreign = Known::Unknown;
        self.device.device_used = IDLE.device_used + own;
        self.read()
    }
}

fn steady(verdict: &Verdict) -> Measured {
    let Verdict::Steady(measured) = verdict else { panic!("{verdict:?}") };
    *measured
}

#[test]
fn five_samples_that_agree_are_steady_and_more_are_better() {
    let mut bench = Bench::ready();
    for _ in 0..4 {
        assert_eq!(bench.own(Bytes::gib(10)), Verdict::More);
    }
    let first = steady(&bench.own(Bytes::gib(10)));
    let expected = Measured {
        median: Bytes::gib(10),
        peak: Bytes::gib(10),
        samples: 5,
        spread: Bytes::ZERO,
        confidence: Confidence::Medium,
        source: Source::Process,
    };
    assert_eq!(first, expected);
    for _ in 0..9 {
        assert_eq!(steady(&bench.own(Bytes::gib(10))).confidence, Confidence::Medium);
    }
    let later = steady(&bench.own(Bytes::gib(10)));
    assert_eq!((later.samples, later.confidence), (15, Confidence::High));
    for _ in 0..100 {
        assert_eq!(steady(&bench.own(Bytes::gib(10))).samples, 15, "the window is bounded");
    }
    let key = Key::new(&crate::types::test_spec("m"), "sha256:1", "H100", "580.1");
    let footprint = later.footprint(key.clone(), 7);
    assert_eq!((footprint.key, footprint.measured_at_unix_s), (key, 7));
    assert_eq!((footprint.samples, footprint.bytes_per_device), (15, Bytes::gib(10)));
}

#[test]
fn samples_that_vary_within_the_limit_have_a_spread_and_less_confidence() {
    let mut bench = Bench::ready();
    // 1 % of 10 GiB is 102 MiB; the deviation from the median is 90 MiB for most.
    let mut last = Verdict::More;
    for n in 0..5 {
        last = bench.own(Bytes::gib(10) + Bytes::mib(90 * (n % 3)));
    }
    let low = steady(&last);
    assert_eq!(low.median, Bytes::gib(10) + Bytes::mib(90));
    assert_eq!((low.spread, low.confidence), (Bytes::mib(90), Confidence::Low));
    assert_eq!(low.peak, Bytes::gib(10) + Bytes::mib(180));
}

#[test]
fn small_models_may_vary_by_the_floor() {
    for (step, is_steady) in [(16, true), (17, false)] {
        let mut bench = Bench::ready();
        let mut last = Verdict::More;
        for n in 0..5 {
            last = bench.own(Bytes::mib(100 + step * (n % 2)));
        }
        // Three of 100 and two of 100 + step: the median is 100, most deviations are zero, the newest is 100.
        assert!(matches!(last, Verdict::Steady(_)));
        let verdict = bench.own(Bytes::mib(100 + step));
        assert_eq!(matches!(verdict, Verdict::Steady(_)), is_steady, "{step} MiB: {verdict:?}");
    }
}

#[test]
fn growth_is_not_steady_even_where_most_samples_agree() {
    let mut bench = Bench::ready();
    for gib in [10, 10, 10, 11, 12, 13, 14, 15, 16] {
        assert_eq!(bench.own(Bytes::gib(gib)), Verdict::More, "{gib}");
    }
    assert_eq!(bench.sampler.peak(), Some(Bytes::gib(16)));
}

#[test]
fn loading_counts_for_the_peak_only() {
    let mut bench = Bench::new(on(IDLE));
    assert_eq!(bench.sampler.peak(), None);
    for _ in 0..20 {
        assert_eq!(bench.own(Bytes::gib(12)), Verdict::More, "a pause in loading");
    }
    bench.sampler.ready(bench.now);
    for _ in 0..4 {
        bench.own(Bytes::gib(10));
    }
    let measured = steady(&bench.own(Bytes::gib(10)));
    assert_eq!((measured.median, measured.peak), (Bytes::gib(10), Bytes::gib(12)));
    // A peak that comes later is kept too.
    bench.own(Bytes::gib(14));
    assert_eq!(steady(&bench.own(Bytes::gib(10))).peak, Bytes::gib(14));
    assert_eq!(bench.sampler.peak(), Some(Bytes::gib(14)));
}

#[test]
fn foreign_growth_voids_restarts_and_ends_in_giving_up() {
    let mut bench = Bench::ready();
    let rule = SampleRule::default();
    for round in 0..rule.voids_max {
        for _ in 0..4 {
            assert_eq!(bench.own(Bytes::gib(10)), Verdict::More);
        }
        let Known::Known(foreign) = bench.device.foreign else { panic!() };
        // Within the slack: unnoticed. Beyond it, in two steps: noticed.
        bench.device.foreign = Known::Known(foreign + Bytes::mib(65));
        let verdict = bench.own(Bytes::gib(10));
        let why = Disturbance::Others(GpuId::new("a"), Bytes::mib(65));
        assert_eq!(verdict, Verdict::Voided(why), "round {round}");
    }
    bench.own(Bytes::gib(10));
    bench.device.foreign = Known::Known(Bytes::gib(5));
    let verdict = bench.own(Bytes::gib(10));
    assert!(matches!(verdict, Verdict::GaveUp(Disturbance::Others(..))), "{verdict:?}");
    assert!(matches!(bench.own(Bytes::gib(10)), Verdict::GaveUp(_)));
    bench.own(Bytes::gib(11));
    assert_eq!(bench.sampler.peak(), Some(Bytes::gib(11)), "own bytes are own bytes");
}

#[test]
fn foreign_growth_in_small_steps_adds_up() {
    let mut bench = Bench::ready();
    let mut verdict = Verdict::More;
    for n in 1..=4 {
        bench.device.foreign = Known::Known(Bytes::gib(1) + Bytes::mib(30 * n));
        verdict = bench.own(Bytes::gib(10));
    }
    assert_eq!(verdict, Verdict::Voided(Disturbance::Others(GpuId::new("a"), Bytes::mib(90))));
}

#[test]
fn after_a_steady_state_disturbances_never_end_it() {
    let mut bench = Bench::ready();
    for round in 1..50 {
        for _ in 0..4 {
            assert_eq!(bench.own(Bytes::gib(10)), Verdict::More);
        }
        steady(&bench.own(Bytes::gib(10)));
        bench.device.foreign = Known::Known(Bytes::gib(1 + round));
        assert!(matches!(bench.own(Bytes::gib(10)), Verdict::Voided(_)));
        bench.now = bench.now + Duration::from_secs(3600);
    }
}

#[test]
fn one_of_ours_that_starts_beside_it_does_not_matter_where_memory_is_attributed() {
    let mut bench = Bench::ready();
    for n in 0..4 {
        bench.device.others = Bytes::gib(n);
        bench.own(Bytes::gib(10));
    }
    steady(&bench.own(Bytes::gib(10)));
}

#[test]
fn without_attribution_the_difference_counts_at_low_confidence() {
    let mut bench = Bench::ready();
    for _ in 0..4 {
        assert_eq!(bench.unattributed(Bytes::gib(10)), Verdict::More);
    }
    let mut measured = steady(&bench.unattributed(Bytes::gib(10)));
    assert_eq!(measured.median, Bytes::gib(10), "the 3 GiB of before are not its own");
    assert_eq!((measured.source, measured.confidence), (Source::Delta, Confidence::Low));
    for _ in 0..30 {
        measured = steady(&bench.unattributed(Bytes::gib(10)));
    }
    assert_eq!(measured.confidence, Confidence::Low, "whatever the samples say");
    // Another model starts: what is in use now means nothing any more.
    bench.device.others = Bytes::gib(9);
    assert!(matches!(bench.unattributed(Bytes::gib(17)), Verdict::GaveUp(Disturbance::Others(..))));
    assert_eq!(bench.sampler.peak(), Some(Bytes::gib(10)));
}

#[test]
fn without_attribution_a_change_after_ready_may_be_anybodys() {
    for later in [Bytes::gib(11), Bytes::gib(9)] {
        let mut bench = Bench::ready();
        for _ in 0..3 {
            assert_eq!(bench.unattributed(Bytes::gib(10)), Verdict::More);
        }
        // Small steps add up, and what follows is steady again: at a number that need not be the engine's.
        bench.unattributed(Bytes::gib(10) + Bytes::mib(60));
        for _ in 0..20 {
            let gave_up = bench.unattributed(later);
            assert!(matches!(gave_up, Verdict::GaveUp(Disturbance::Somebody(..))), "{gave_up:?}");
        }
    }
}

#[test]
fn without_attribution_and_without_a_reading_before_there_are_no_numbers() {
    let mut bench = Bench::new(Sample::new());
    assert_eq!(bench.unattributed(Bytes::gib(1)), Verdict::More, "it may come yet");
    bench.sampler.ready(bench.now);
    assert_eq!(bench.unattributed(Bytes::gib(1)), Verdict::GaveUp(Disturbance::NothingBefore));
    assert_eq!(bench.sampler.peak(), None);
    // With attribution an adopted instance is measured like any other.
    let mut bench = Bench::new(Sample::new());
    bench.sampler.ready(bench.now);
    for _ in 0..4 {
        bench.own(Bytes::gib(10));
    }
    steady(&bench.own(Bytes::gib(10)));
}

#[test]
fn attribution_that_comes_late_replaces_what_was_guessed() {
    let mut bench = Bench::new(on(IDLE));
    bench.unattributed(Bytes::gib(20));
    assert_eq!(bench.sampler.peak(), Some(Bytes::gib(20)));
    bench.sampler.ready(bench.now);
    bench.device.foreign = IDLE.foreign;
    for _ in 0..4 {
        assert_eq!(bench.own(Bytes::gib(10)), Verdict::More);
    }
    let measured = steady(&bench.own(Bytes::gib(10)));
    assert_eq!((measured.peak, measured.source), (Bytes::gib(10), Source::Process));
}

#[test]
fn attribution_that_goes_away_is_a_disturbance() {
    let mut bench = Bench::ready();
    bench.own(Bytes::gib(10));
    let verdict = bench.unattributed(Bytes::gib(10));
    assert_eq!(verdict, Verdict::Voided(Disturbance::Unattributed));
    assert_eq!(bench.own(Bytes::gib(10)), Verdict::More);
    for _ in 0..20 {
        bench.unattributed(Bytes::gib(10));
    }
    let verdict = bench.unattributed(Bytes::gib(10));
    assert_eq!(verdict, Verdict::GaveUp(Disturbance::Unattributed));
}

#[test]
fn the_restless_are_given_up() {
    let mut bench = Bench::ready();
    // 600 s of patience, a reading every 2 s.
    for n in 1..=300 {
        assert_eq!(bench.own(Bytes::gib(n)), Verdict::More);
    }
    assert_eq!(bench.own(Bytes::gib(301)), Verdict::GaveUp(Disturbance::Restless));
}

#[test]
fn hurried_samples_count_once() {
    let mut bench = Bench::ready();
    bench.own(Bytes::gib(10));
    for ms in 1..100 {
        let now = bench.now + Duration::from_millis(ms);
        assert_eq!(bench.sampler.sample(now, &on(bench.device)), Verdict::More);
    }
}

#[test]
fn the_device_that_holds_most_counts_and_all_have_to_answer() {
    let mut sampler = Sampler::new(SampleRule::default(), Sample::new());
    sampler.ready(Moment::START);
    let of = |gib| DeviceSample { own: Known::Known(Bytes::gib(gib)), ..IDLE };
    let both = Sample::from([(GpuId::new("a"), of(4)), (GpuId::new("b"), of(5))]);
    for n in 1..5 {
        assert_eq!(sampler.sample(Moment::from_secs(n), &both), Verdict::More);
    }
    assert_eq!(steady(&sampler.sample(Moment::from_secs(5), &both)).median, Bytes::gib(5));
    let one = Sample::from([(GpuId::new("a"), of(4))]);
    let verdict = sampler.sample(Moment::from_secs(6), &one);
    assert_eq!(verdict, Verdict::Voided(Disturbance::Devices));
    assert_eq!(sampler.sample(Moment::from_secs(7), &Sample::new()), Verdict::More);
}

#[test]
fn reasons_are_for_people() {
    let others = Disturbance::Others(GpuId::new("a"), Bytes::mib(65));
    assert_eq!(others.to_string(), "memory of others on a changed by 65.0 MiB");
    for why in [
        Disturbance::Somebody(GpuId::new("a"), Bytes::mib(65)),
        Disturbance::Unattributed,
        Disturbance::Devices,
        Disturbance::Restless,
        Disturbance::Nothing,
        Disturbance::NothingBefore,
    ] {
        assert!(why.to_string().len() > 20);
    }
}
