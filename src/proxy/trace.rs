//! W3C Trace Context: where a request stands in somebody's trace. PURE.
//!
//! Purpose: read the client's `traceparent`, and write ours for the engine. Owner: the request's record. Invariants: what is not exactly
//! as the standard has it is as if it were not there; an identifier is never zero.

use std::num::{NonZeroU64, NonZeroU128};

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

/// Which span of which trace somebody is.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems pass on beside it; it means nothing without it.
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The length of the first version; later ones may be longer.
const LENGTH: usize = 55;

/// The client's span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The whole trace.
    pub trace: NonZeroU128,
    /// The client's own part of it.
    pub span: NonZeroU64,
    /// Its spans are kept, so ours is worth keeping, too.
    pub sampled: bool,
}

/// A request's span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The whole trace.
    pub trace: NonZeroU128,
    /// The request's part of it.
    pub span: NonZeroU64,
    /// The client's, where it has one.
    pub parent: Option<NonZeroU64>,
}

impl Caller {
    /// As the headers say it; `None`: there is none, more than one, or none that is valid.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        Self::read(value.to_str().ok()?)
    }

    fn read(text: &str) -> Option<Self> {
        let lower = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-');
        let (known, rest) = (text.get(..LENGTH)?, text.get(LENGTH..)?);
        if !known.bytes().all(lower) {
            return None;
        }
        let mut fields = known.split('-');
        let mut field = |length: usize| fields.next().filter(|field| field.len() == length);
        let (version, trace, span, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        let whole = match version {
            "00" => rest.is_empty(),
            "ff" => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        let flags = u8::from_str_radix(flags, 16).ok().filter(|_| whole)?;
        Some(Self {
            trace: NonZeroU128::new(u128::from_str_radix(trace, 16).ok()?)?,
            span: NonZeroU64::new(u64::from_str_radix(span, 16).ok()?)?,
            sampled: flags & 1 == 1,
        })
    }
}

impl Trace {
    /// What the engine is told: that it works for this span, which is kept.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        if self.parent.is_none() {
            headers.remove(TRACESTATE);
        }
        let text = format!("00-{:032x}-{:016x}-01", self.trace, self.span);
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(TRACEPARENT, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_what_the_standard_has_is_a_caller() {
        let caller = Caller::read(GOOD).unwrap();
        assert_eq!(caller.trace.get(), 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((caller.span.get(), caller.sampled), (0xb7ad_6b71_6920_3331, true));
        let not_kept = GOOD.replace("-01", "-00");
        assert!(!Caller::read(&not_kept).unwrap().sampled);
        // Later versions: flags that we do not know, and more fields.
        let later = GOOD.replacen("00", "cc", 1).replace("-01", "-ff");
        assert_eq!(Caller::read(&later), Some(caller));
        assert_eq!(Caller::read(&format!("{later}-what-comes")), Some(caller));
        let zero_trace = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        let zero_span = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16));
        let bad = [
            "",
            "00-1",
            &GOOD[1..],
            &format!("{GOOD}-what"),
            &format!("{GOOD} "),
            &format!("{later}what"),
            &GOOD.to_ascii_uppercase(),
            &GOOD.replace("af", "ag"),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replace("-b7", "bb7"),
            &zero_trace,
            &zero_span,
        ];
        for text in bad {
            assert_eq!(Caller::read(text), None, "{text:?}");
        }
        let mut headers = HeaderMap::new();
        for _ in 0..2 {
            headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        }
        assert_eq!(Caller::of(&headers), None, "two are none");
    }

    #[test]
    fn the_engine_is_told_of_the_requests_own_span() {
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, HeaderValue::from_static("junk"));
        headers.append(TRACESTATE, HeaderValue::from_static("a=b"));
        let caller = Caller::read(GOOD).unwrap();
        let mut trace = Trace {
            trace: caller.trace,
            span: NonZeroU64::new(0x1f).unwrap(),
            parent: Some(caller.span),
        };
        trace.write(&mut headers);
        let told = Caller::of(&headers).unwrap();
        assert_eq!((told.trace, told.span, told.sampled), (trace.trace, trace.span, true));
        assert_eq!(headers[TRACESTATE], "a=b");
        // Of another trace the state means nothing.
        trace.parent = None;
        trace.write(&mut headers);
        assert!(!headers.contains_key(TRACESTATE));
    }
}
