//! What makes another container, and what does not.

use super::*;

#[test]
fn the_hash_follows_the_container_and_nothing_else() {
    let base = test_spec("m");
    let mut policy = base.clone();
    policy.pin = true;
    policy.priority = 9;
    policy.on_full = OnFull::Wait;
    policy.sleep_timeout = Some(Duration::from_secs(1));
    policy.idle_timeout = Some(Duration::from_secs(1));
    policy.aliases = vec!["other".parse().unwrap()];
    policy.anatomy = Some(Anatomy {
        weights: Bytes(5),
        projector: Bytes::ZERO,
        cache: None,
        source: "a test".to_owned(),
    });
    assert_eq!(base.spec_hash(), policy.spec_hash());
    let changes: [fn(&mut ModelSpec); 8] = [
        |s| s.sleep_level = Some(SleepLevel::One),
        |s| s.context = Some(1),
        |s| s.args = vec!["--x".into()],
        |s| s.env = BTreeMap::from([("A".into(), "b".into())]),
        |s| s.weights = Weights::Builtin,
        |s| s.projector = Some("/p.gguf".into()),
        |s| s.transport = Transport::Tcp,
        |s| s.gpu_count = 2,
    ];
    for change in changes {
        let mut other = base.clone();
        change(&mut other);
        assert_ne!(base.spec_hash(), other.spec_hash(), "{other:?}");
    }
    assert_eq!(base.spec_hash().0.len(), 24);
    let mut vllm = base.clone();
    vllm.engine = EngineKind::Vllm;
    let mut renamed = vllm.clone();
    renamed.aliases = vec!["other".parse().unwrap()];
    assert_ne!(vllm.spec_hash(), renamed.spec_hash(), "vLLM is told its aliases");
}

#[test]
fn engine_words() {
    assert_eq!(serde_json::to_string(&EngineKind::Vllm).unwrap(), "\"vllm\"");
    assert_eq!(EngineKind::Llamacpp.as_str(), "llamacpp");
}
