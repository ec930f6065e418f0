//! What the model says: pieces of text, one per token, decided before the first is sent.

use crate::knobs::Text;

/// How far the counting model counts, as the real count model does.
pub const COUNT_END: u64 = 512;

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model or a stop text ended it.
    Stop,
    /// The token budget ended it.
    Length,
    /// A sleep ended it.
    Abort,
}

impl Finish {
    /// As the wire has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// The tokens' texts.
    pub pieces: Vec<String>,
    /// How it ends if nothing interferes.
    pub finish: Finish,
}

/// What limits an answer.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// Most tokens.
    pub max_tokens: usize,
    /// Texts that end the answer, not part of it.
    pub stop: Vec<String>,
    /// Start over instead of ending.
    pub ignore_eos: bool,
}

/// The answer to `prompt`, whole.
#[must_use]
pub fn script(text: &Text, prompt: &str, limits: &Limits, gibberish: bool) -> Script {
    let source: Box<dyn Fn() -> Vec<String>> = match text {
        _ if gibberish => Box::new(|| (0..COUNT_END).map(|_| "!".to_owned()).collect()),
        Text::Count => Box::new(|| (1..=COUNT_END).map(|n| format!(" {n}")).collect()),
        Text::Echo => Box::new(|| words(prompt)),
        Text::Fixed(text) => Box::new(|| words(text)),
    };
    let mut pieces = source();
    if *text == Text::Count && !gibberish {
        // A prompt that ends in a number is continued, as the count model does.
        let last = prompt.rsplit(' ').next().and_then(|word| word.parse::<u64>().ok());
        if let Some(n) = last.filter(|n| (1..COUNT_END).contains(n)) {
            pieces.drain(..usize::try_from(n).unwrap_or(0));
        }
    }
    if limits.ignore_eos {
        while pieces.len() < limits.max_tokens {
            // The end token has no text but counts.
            pieces.push(String::new());
            pieces.extend(source());
        }
    }
    let mut finish = Finish::Stop;
    if pieces.len() > limits.max_tokens {
        pieces.truncate(limits.max_tokens);
        finish = Finish::Length;
    }
    cut(&mut pieces, &limits.stop).map_or_else(
        || Script { pieces: pieces.clone(), finish },
        |pieces| Script { pieces, finish: Finish::Stop },
    )
}

/// Cuts at the earliest stop text; the token that completes it still counts, without its text.
fn cut(pieces: &mut [String], stop: &[String]) -> Option<Vec<String>> {
    let whole = pieces.concat();
    let stops = stop.iter().filter(|stop| !stop.is_empty());
    let (begin, end) = stops
        .filter_map(|stop| whole.find(stop.as_str()).map(|at| (at, at + stop.len())))
        .min_by_key(|(at, end)| (*end, *at))?;
    let mut kept = Vec::new();
    let mut at = 0;
    for piece in pieces {
        let next = at + piece.len();
        kept.push(piece[..begin.clamp(at, next) - at].to_owned());
        if next >= end {
            break;
        }
        at = next;
    }
    Some(kept)
}

fn words(text: &str) -> Vec<String> {
    text.split_inclusive(' ').map(str::to_owned).collect()
}

/// Tokens of a prompt: its words, at least one.
#[must_use]
pub fn count_tokens(prompt: &str) -> usize {
    prompt.split_whitespace().count().max(1)
}

/// A well-mixed number from a seed (splitmix64).
#[must_use]
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(prompt: &str, limits: &Limits) -> (String, usize, Finish) {
        let script = script(&Text::Count, prompt, limits, false);
        (script.pieces.concat(), script.pieces.len(), script.finish)
    }

    fn limits(max_tokens: usize, stop: &[&str]) -> Limits {
        let stop = stop.iter().map(|s| (*s).to_owned()).collect();
        Limits { max_tokens, stop, ignore_eos: false }
    }

    #[test]
    fn counts_to_its_limit_or_its_end() {
        assert_eq!(said("hi", &limits(3, &[])), (" 1 2 3".into(), 3, Finish::Length));
        let (text, tokens, finish) = said("hi", &limits(9999, &[]));
        assert!(text.ends_with(" 511 512"));
        assert_eq!((tokens, finish), (512, Finish::Stop));
        assert_eq!(said("go on: 41", &limits(2, &[])), (" 42 43".into(), 2, Finish::Length));
    }

    #[test]
    fn a_stop_text_ends_it_and_its_last_token_counts() {
        assert_eq!(said("", &limits(99, &[" 5"])), (" 1 2 3 4".into(), 5, Finish::Stop));
        assert_eq!(said("", &limits(99, &["9 1", "3 4"])), (" 1 2 ".into(), 4, Finish::Stop));
        assert_eq!(said("", &limits(4, &["5"])), (" 1 2 3 4".into(), 4, Finish::Length));
    }

    #[test]
    fn ignoring_the_end_starts_over() {
        let limits = Limits { max_tokens: 515, ignore_eos: true, ..Limits::default() };
        let (text, tokens, finish) = said("", &limits);
        assert!(text.ends_with(" 511 512 1 2"));
        assert_eq!((tokens, finish), (515, Finish::Length));
    }

    #[test]
    fn echo_gives_back_every_byte() {
        let limits = limits(99, &[]);
        let script = script(&Text::Echo, "a  b c\n", &limits, false);
        assert_eq!(script.pieces.concat(), "a  b c\n");
    }
}
