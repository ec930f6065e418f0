//! In what an engine is not well. Owner: [`super::Engines::check`]. Invariant: silence is never taken for an answer.

/// Why an engine that runs is not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ill {
    /// For people.
    pub why: String,
    /// It has not said a word, which a busy engine may not come to either.
    pub silent: bool,
}

impl Ill {
    /// It answers as a healthy engine does not.
    pub fn says(why: impl Into<String>) -> Self {
        Self { why: why.into(), silent: false }
    }

    /// It does not answer.
    pub fn silent(why: impl Into<String>) -> Self {
        Self { why: why.into(), silent: true }
    }
}
