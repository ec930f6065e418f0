//! Bytes that nobody meant, for the parsers of this crate; `make fuzz SECONDS=n`.
//!
//! Purpose: each target takes bytes and asserts what must hold for all of them. Owner: the tests named `fuzz_…`, beside what they try.
//! They start from the corpus in `tests/fuzz/corpus/TARGET`, damage it, and run for `HOSTLER_FUZZ_SECONDS` each (a moment, if that is
//! not set). Invariant: what fails is printed so that it can be put into the corpus, and every run plays the whole corpus first.
//!
//! Not guided by coverage: that needs a compiler of its own. The corpus and the words of each format stand in for it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// The largest input.
const LENGTH_MAX: usize = 4096;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `n`; 0 if `n` is.
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap()
    }

    fn pick<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// Tries `target` with the corpus of that name and with what becomes of it. `words`: what its format is made of.
pub(crate) fn fuzz(name: &str, words: &[&str], target: impl Fn(&[u8])) {
    fuzz_from(name, Vec::new(), words, target);
}

/// The same with seeds beside the corpus.
pub(crate) fn fuzz_from(name: &str, seeds: Vec<Vec<u8>>, words: &[&str], target: impl Fn(&[u8])) {
    let mut corpus = corpus(name);
    corpus.extend(seeds);
    assert!(!corpus.is_empty(), "tests/fuzz/corpus/{name} is empty");
    for input in &corpus {
        attempt(name, input, &target);
    }
    let words: Vec<&[u8]> = words.iter().map(|w| w.as_bytes()).collect();
    let variable = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<f64>().ok());
    let seconds = variable("HOSTLER_FUZZ_SECONDS").unwrap_or(0.2);
    let clock = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.subsec_nanos());
    let mut random = Random(u64::from(clock));
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let mut tried = 0_u64;
    while Instant::now() < until {
        for _ in 0..64 {
            let input = mutant(&mut random, &corpus, &words);
            attempt(name, &input, &target);
            tried += 1;
            // A walk away from the corpus, that comes back.
            if random.below(512) == 0 && corpus.len() < 512 {
                corpus.push(input);
            }
        }
    }
    println!("{name}: {tried} inputs");
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn attempt(name: &str, input: &[u8], target: &impl Fn(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        println!("{name} failed on b\"{}\"", input.escape_ascii());
        resume_unwind(panic);
    }
}

fn mutant(random: &mut Random, corpus: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(input.len() + 1);
        let count = random.below(input.len() - at + 1);
        match random.below(8) {
            0 if !input.is_empty() => {
                input[at.min(count)] = u8::try_from(random.below(256)).unwrap()
            }
            1 if at < input.len() => input[at] ^= 1 << random.below(8),
            2 => drop(input.drain(at..at + count)),
            3 => {
                let again = input[at..at + count].to_vec();
                input.splice(at..at, again);
            }
            4 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            5 => input.insert(at, u8::try_from(random.below(256)).unwrap()),
            _ if !words.is_empty() => {
                let word = random.pick(words);
                input.splice(at..(at + count.min(word.len())), word.iter().copied());
            }
            _ => input.truncate(at),
        }
        input.truncate(LENGTH_MAX);
    }
    input
}

/// Cuts bytes at a place that depends on them.
pub(crate) fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    let sum =
        bytes.iter().fold(7_usize, |sum, b| sum.wrapping_mul(31).wrapping_add(usize::from(*b)));
    bytes.split_at(sum % (bytes.len() + 1))
}

#[test]
fn fuzz_config() {
    use crate::config::{Defaults, Source, parse};
    let words = [
        "[models.m]\n",
        "engine = ",
        "\"vllm\"",
        "[gpu]\n",
        "vram = \"1GiB\"\n",
        "= true",
        "[server]\n",
        "\n",
    ];
    fuzz("config", &words, |input| {
        let text = String::from_utf8_lossy(input).into_owned();
        if let Err(errors) = parse(&[Source::settings("/etc/x.toml", text)], &Defaults::system()) {
            assert!(!errors.to_string().is_empty());
        }
    });
}
