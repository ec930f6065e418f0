//! The reference sees what it is for.

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
        let order = LaunchOrder { instance: instance.clone(), spec, placement, image_id: None };
        let outcome = reference.effect(now, &Effect::Launch(order));
        let fault = Fault::new(FaultCode::Internal, "a test");
        reference.event(now, &Event::LaunchFailed { instance, fault });
        outcome
    };
    assert!((0..OVERTAKEN_MAX).all(|n| launch(n).is_ok()));
    assert_eq!(launch(OVERTAKEN_MAX).unwrap_err().rule, Rule::NoStarvation);
}
