//! Top-level keys that are looked at, and what they may hold. PURE.
//!
//! Purpose: refuse values that make an engine fail, or work without end, for everybody else on it. Nothing here second-guesses
//! an engine's own rules: the bounds are far beyond what any honest request holds. Invariant: the table is the only place that
//! knows a name.

/// What a key may hold; `null` is allowed for all but `model`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Text,
    Bool,
    /// A whole number within bounds.
    Whole(f64, f64),
    /// Any number within bounds.
    Number(f64, f64),
    /// Either.
    BoolOrWhole(f64, f64),
    /// Whatever it is on this path.
    Any,
}

/// A key.
#[derive(Debug)]
pub(super) struct Param {
    pub name: &'static str,
    pub kind: Kind,
}

/// Answers for one prompt: each is a sequence of its own in the engine.
const CHOICES: f64 = 128.0;
/// Beyond every context there is, within 32 bits; -1 means "no bound" to llama-server.
const TOKENS: f64 = 2_147_483_647.0;
/// Alternatives told for each token.
const ALTERNATIVES: f64 = 128.0;

/// The table. The first two are what routing needs, and who may have the third depends on where the request goes.
pub(super) const PARAMS: [Param; 20] = [
    Param { name: "model", kind: Kind::Text },
    Param { name: "stream", kind: Kind::Bool },
    Param { name: "background", kind: Kind::Any },
    Param { name: "n", kind: Kind::Whole(1.0, CHOICES) },
    Param { name: "best_of", kind: Kind::Whole(1.0, CHOICES) },
    Param { name: "max_tokens", kind: Kind::Whole(-1.0, TOKENS) },
    Param { name: "max_completion_tokens", kind: Kind::Whole(-1.0, TOKENS) },
    Param { name: "max_output_tokens", kind: Kind::Whole(-1.0, TOKENS) },
    Param { name: "min_tokens", kind: Kind::Whole(0.0, TOKENS) },
    Param { name: "n_predict", kind: Kind::Whole(-2.0, TOKENS) },
    Param { name: "logprobs", kind: Kind::BoolOrWhole(0.0, ALTERNATIVES) },
    Param { name: "top_logprobs", kind: Kind::Whole(0.0, ALTERNATIVES) },
    Param { name: "prompt_logprobs", kind: Kind::Whole(0.0, ALTERNATIVES) },
    Param { name: "n_probs", kind: Kind::Whole(0.0, ALTERNATIVES) },
    Param { name: "top_k", kind: Kind::Whole(-1.0, 10_000_000.0) },
    Param { name: "top_n", kind: Kind::Whole(-1.0, 10_000_000.0) },
    Param { name: "temperature", kind: Kind::Number(0.0, 1000.0) },
    Param { name: "top_p", kind: Kind::Number(0.0, 1.0) },
    Param { name: "min_p", kind: Kind::Number(0.0, 1.0) },
    Param { name: "repetition_penalty", kind: Kind::Number(0.0, 1000.0) },
];

/// The longest name, in bytes, in whatever case: what is longer is not in the table.
pub(super) const NAME_MAX: usize = 24;

/// The key of that name, and whether it is written as in the table: to many readers (Go's) a key in another case is the same key.
pub(super) fn find(name: &[u8]) -> Option<(usize, bool)> {
    let mut left = *OF_LENGTH.get(name.len())?;
    while left != 0 {
        let at = left.trailing_zeros() as usize;
        let known = PARAMS[at].name.as_bytes();
        if known.eq_ignore_ascii_case(name) {
            return Some((at, known == name));
        }
        left &= left - 1;
    }
    if name.is_ascii() {
        return None;
    }
    let folded = folded(std::str::from_utf8(name).ok()?);
    if folded.is_ascii() { find(folded.as_bytes()).map(|(at, _)| (at, false)) } else { None }
}

/// Whether a reader that makes nothing of case takes `name` for the key `known`.
pub(in crate::proxy) fn is_same(known: &str, name: &str) -> bool {
    known.eq_ignore_ascii_case(name)
        || (!name.is_ascii() && known.eq_ignore_ascii_case(&folded(name)))
}

/// With the only two letters beyond ASCII that are an ASCII one in another case.
fn folded(name: &str) -> String {
    name.replace('\u{17f}', "s").replace('\u{212a}', "k")
}

/// The entries with a name of a length, one bit for each.
const OF_LENGTH: [u32; NAME_MAX + 1] = {
    let (mut of, mut at) = ([0; NAME_MAX + 1], 0);
    while at < PARAMS.len() {
        of[PARAMS[at].name.len()] |= 1 << at;
        at += 1;
    }
    of
};

impl Kind {
    /// Whether a number is allowed, and if not, what would be.
    pub fn number(self, value: f64) -> Result<(), String> {
        let within = |low: f64, high: f64| value >= low && value <= high;
        let whole = value.fract() == 0.0;
        match self {
            Self::Whole(low, high) | Self::BoolOrWhole(low, high)
                if !whole || !within(low, high) =>
            {
                Err(format!("must be a whole number from {low} to {high}"))
            }
            Self::Number(low, high) if !within(low, high) => {
                Err(format!("must be a number from {low} to {high}"))
            }
            Self::Text => Err("must be a string".into()),
            Self::Bool => Err("must be true or false".into()),
            Self::Whole(..) | Self::Number(..) | Self::BoolOrWhole(..) | Self::Any => Ok(()),
        }
    }

    /// Whether `true` and `false` are allowed.
    pub const fn bool(self) -> bool {
        matches!(self, Self::Bool | Self::BoolOrWhole(..) | Self::Any)
    }

    /// What is expected, for people.
    pub const fn expected(self) -> &'static str {
        match self {
            Self::Text => "must be a string",
            Self::Bool => "must be true or false",
            Self::Whole(..) => "must be a whole number",
            Self::Number(..) => "must be a number",
            Self::BoolOrWhole(..) => "must be true, false or a whole number",
            Self::Any => "must be a value",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sane() {
        // `s` and `k` have a form of two and three bytes.
        let more = |name: &str| name.matches('s').count() + 2 * name.matches('k').count();
        assert!(PARAMS.iter().all(|p| p.name.len() + more(p.name) <= NAME_MAX));
        let exact = |at| Some((at, true));
        assert_eq!((find(b"model"), find(b"stream")), (exact(0), exact(1)));
        assert_eq!((find(b"background"), find(b"messages")), (exact(2), None));
        assert!(PARAMS.len() <= 32, "one bit for each");
        for (at, param) in PARAMS.iter().enumerate() {
            assert_eq!(find(param.name.as_bytes()), exact(at));
            let upper = param.name.to_uppercase();
            let wide = upper.replace('S', "\u{17f}").replace('K', "\u{212a}");
            for other in [upper, wide] {
                assert_eq!(find(other.as_bytes()), Some((at, false)), "{other}");
                assert!(is_same(param.name, &other), "{other}");
            }
        }
        assert_eq!(find("m\u{f6}del".as_bytes()), None);
        assert!(!is_same("seed", "se\u{e9}d") && !is_same("seed", "seeds"));
        assert_eq!((find(b""), find(&[b'n'; NAME_MAX + 1])), (None, None));
    }
}
