//! The reference sees what it is for.

use super::effects::OVERTAKEN_MAX;
use super::*;

#[test]
fn starvation_is_seen() {
    use hostler::supervisor::ports::LaunchOrder;
    use hostler::types::{Bytes, Fault, FaultCode, Generation, Need, NeedSource, Placement};

    let mut rng = crate::rng::Rng::new(1);
    let mut case = Case::draw(1, &mut rng);
    for spec in case.specs.values_mut() {
        let spec = std::sync::Arc::make_mut(spec);
        (spec.vram, spec.gpu_count, spec.gpus) = (Some(Bytes(10)), 1, vec![]);
        (spec.priority, spec.on_full) = (0, OnFull::Evict);
    }
    let mut reference = Reference::new(&case);
    let now = Moment::from_secs(1);
    reference.event(now, &Event::Acquire { waiter: WaiterId(1), model: "m0".into(), wait: None });
    let need = Need { bytes: Bytes(10), source: NeedSource::Declared };
    let gpus = vec![crate::case::gpu(0)];
    let placement = Placement { gpus, need, budget: need.bytes, device_total: Bytes(100) };
    let mut launch = |n: u32| {
        let instance = InstanceId::new("m1".parse().unwrap(), Generation(n.into()), n);
        let spec = case.specs[&instance.model].clone();
        let placement = placement.clone();
        let (image_id, context) = (None, None);
        let instance_of = instance.clone();
        let order = LaunchOrder { instance: instance_of, spec, placement, image_id, context };
        let outcome = reference.effect(now, &Effect::Launch(order));
        let fault = Fault::new(FaultCode::Internal, "a test");
        reference.event(now, &Event::LaunchFailed { instance, fault });
        outcome
    };
    assert!((0..OVERTAKEN_MAX).all(|n| launch(n).is_ok()));
    assert_eq!(launch(OVERTAKEN_MAX).unwrap_err().rule, Rule::NoStarvation);
}

#[test]
fn who_makes_way_is_closed_until_it_has_slept_and_woken() {
    use hostler::supervisor::effect::{Heir, StopReason};
    use hostler::supervisor::ports::Endpoint;
    use hostler::types::{Generation, SleepLevel};

    let case = Case::draw(1, &mut crate::rng::Rng::new(1));
    let mut reference = Reference::new(&case);
    let now = Moment::from_secs(1);
    let instance = InstanceId::new("m0".parse().unwrap(), Generation(1), 1);
    let spec = case.specs[&instance.model].clone();
    let endpoint = || Endpoint::Unix("/nowhere/e.sock".into());
    let sung = || Event::Sung { instance: instance.clone(), result: Ok("5, 6, 7".into()) };
    let asks = |reference: &mut Reference, n: u64| {
        let waiter = WaiterId(n);
        reference.event(now, &Event::Acquire { waiter, model: "m0".into(), wait: None });
        let grant = Effect::Grant { waiter, instance: instance.clone(), endpoint: endpoint() };
        reference.effect(now, &grant)
    };
    reference.comes(now, &instance, &[crate::case::gpu(0)], spec.spec_hash());
    reference.event(now, &sung());
    let to = Heir::Other("m1".parse().unwrap());
    let yielding = Notice::Yielding { instance: instance.clone(), to, busy: true };
    reference.effect(now, &Effect::Notice(yielding)).unwrap();
    assert_eq!(asks(&mut reference, 1).unwrap_err().rule, Rule::LeaseOnReady);
    let level = SleepLevel::Two;
    let falls =
        Notice::FallingAsleep { instance: instance.clone(), level, reason: StopReason::Evicted };
    reference.effect(now, &Effect::Notice(falls)).unwrap();
    let sleep = Effect::Sleep { instance: instance.clone(), spec, endpoint: endpoint(), level };
    reference.effect(now, &sleep).unwrap();
    assert_eq!(asks(&mut reference, 2).unwrap_err().rule, Rule::LeaseOnReady);
    reference.event(now, &sung());
    asks(&mut reference, 3).unwrap();
}
