//! How much memory a model needs before it runs.

use crate::types::{Bytes, ModelSpec, Need, NeedSource};

/// Added to an estimate for what an engine needs beside weights: contexts, work buffers, its own code.
const ENGINE_OVERHEAD: Bytes = Bytes::mib(512);

/// The memory to promise to one instance on each of its devices.
///
/// `measured` is the peak per device that was observed on an earlier incarnation of the *same* specification. In order:
/// the larger of declared and measured; measured plus 5 %; an estimate from the size of the weights (plus a fifth for
/// activations and cache, plus a fixed overhead, split over the devices); else the whole device. An admin's declaration
/// is never undercut, because vLLM is told to use exactly that much, and never believed against a larger measurement.
#[must_use]
pub fn need(spec: &ModelSpec, measured: Option<Bytes>) -> Need {
    let measured = measured.map(|m| m.scale(105, 100));
    match (spec.vram, measured, spec.weights_bytes) {
        (Some(declared), Some(seen), _) if seen > declared => {
            Need { bytes: seen, source: NeedSource::Measured }
        }
        (Some(declared), _, _) => Need { bytes: declared, source: NeedSource::Declared },
        (None, Some(seen), _) => Need { bytes: seen, source: NeedSource::Measured },
        (None, None, Some(weights)) => {
            let share = weights.scale(12, 10).scale(1, spec.gpu_count);
            Need { bytes: share + ENGINE_OVERHEAD, source: NeedSource::Estimated }
        }
        (None, None, None) => Need { bytes: Bytes::ZERO, source: NeedSource::Exclusive },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::test_spec;

    #[test]
    fn the_sources_in_order() {
        let mut spec = test_spec("m");
        assert_eq!(need(&spec, None).source, NeedSource::Exclusive);
        spec.weights_bytes = Some(Bytes::gib(10));
        let estimated = need(&spec, None);
        assert_eq!(estimated.source, NeedSource::Estimated);
        assert_eq!(estimated.bytes, Bytes::gib(12) + ENGINE_OVERHEAD);
        spec.gpu_count = 2;
        assert_eq!(need(&spec, None).bytes, Bytes::gib(6) + ENGINE_OVERHEAD);
        let measured = need(&spec, Some(Bytes(1000)));
        assert_eq!(measured, Need { bytes: Bytes(1050), source: NeedSource::Measured });
        spec.vram = Some(Bytes(2000));
        let declared = need(&spec, Some(Bytes(1000)));
        assert_eq!(declared, Need { bytes: Bytes(2000), source: NeedSource::Declared });
        // A declaration is not believed against what was seen.
        assert_eq!(need(&spec, Some(Bytes(3000))).source, NeedSource::Measured);
        assert_eq!(need(&spec, None).bytes, Bytes(2000));
    }
}
