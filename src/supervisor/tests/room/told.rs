//! What an engine is told where its configuration leaves it open.

use super::*;
use crate::types::{Anatomy, CacheLayers, CacheShape, Reach};

/// Of 128 KiB a token and made for 32,768 of them, on a device of 24 GiB.
fn ordered(change: impl FnOnce(&mut ModelSpec), reach: Reach) -> Option<u32> {
    let mut spec = test_spec("m");
    let layer = CacheLayers { count: 32, heads: 8, key: 128, value: 128, reach };
    let cache =
        CacheShape { layers: vec![layer], context_max: Some(32_768), ..CacheShape::default() };
    let (projector, source) = (Bytes::ZERO, "a test".to_owned());
    spec.anatomy = Some(Anatomy { weights: Bytes::gib(4), projector, cache: Some(cache), source });
    change(&mut spec);
    let mut host = Host::bare(vec![spec]);
    host.tell(Event::Found(vec![]));
    let device = GpuReading {
        id: GpuId::host(),
        name: "X".into(),
        total: Bytes::gib(24),
        used: Bytes::ZERO,
        processes: vec![],
    };
    let devices = Ok(GpuSnapshot { devices: vec![device], lost: vec![], driver: String::new() });
    let (taken, unix_s, usage) = (host.now, 1_800_000_000, BTreeMap::new());
    host.tell(Event::Observed(Observation { taken, unix_s, devices, usage }));
    host.acquire(1, "m");
    host.order().unwrap().context
}

#[test]
fn an_engine_is_told_the_context_that_its_memory_was_promised_for() {
    assert_eq!(ordered(|_| {}, Reach::Whole), Some(32_768));
    let less = ordered(|spec| spec.vram = Some(Bytes::gib(7)), Reach::Whole);
    assert!((8192..16_384).contains(&less.unwrap()), "{less:?}");
    let said = |spec: &mut ModelSpec| spec.context = Some(1000);
    assert_eq!(ordered(said, Reach::Whole), Some(1000));
    let vllm = |spec: &mut ModelSpec| spec.engine = crate::types::EngineKind::Vllm;
    assert_eq!(ordered(vllm, Reach::Whole), None, "it takes its own");
}
