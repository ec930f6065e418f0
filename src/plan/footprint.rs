//! How much memory a model needs before it runs.

use super::estimate::estimate;
use crate::types::{Bytes, ModelSpec, Need, NeedSource};

/// The memory to promise to one instance on each of its devices.
///
/// `measured` is the peak per device that was observed on an earlier incarnation of the *same* specification. In order:
/// the larger of declared and measured; measured plus 5 %; an estimate from what the model's files say
/// ([`estimate`]); else the whole device. An admin's declaration
/// is never undercut, because vLLM is told to use exactly that much, and never believed against a larger measurement.
#[must_use]
pub fn need(spec: &ModelSpec, measured: Option<Bytes>) -> Need {
    let measured = measured.map(|m| m.scale(105, 100));
    match (spec.vram, measured, &spec.anatomy) {
        (Some(declared), Some(seen), _) if seen > declared => {
            Need { bytes: seen, source: NeedSource::Measured }
        }
        (Some(declared), _, _) => Need { bytes: declared, source: NeedSource::Declared },
        (None, Some(seen), _) => Need { bytes: seen, source: NeedSource::Measured },
        (None, None, Some(anatomy)) => {
            let bytes = estimate(anatomy, spec).bytes_per_device;
            Need { bytes, source: NeedSource::Estimated }
        }
        (None, None, None) => Need { bytes: Bytes::ZERO, source: NeedSource::Exclusive },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Anatomy, test_spec};

    #[test]
    fn the_sources_in_order() {
        let mut spec = test_spec("m");
        assert_eq!(need(&spec, None).source, NeedSource::Exclusive);
        let source = "a test".to_owned();
        let anatomy = Anatomy { weights: Bytes::gib(10), cache: None, source };
        spec.anatomy = Some(anatomy.clone());
        let estimated = need(&spec, None);
        assert_eq!(estimated.source, NeedSource::Estimated);
        assert_eq!(estimated.bytes, estimate(&anatomy, &spec).bytes_per_device);
        assert!(estimated.bytes > Bytes::gib(10));
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
