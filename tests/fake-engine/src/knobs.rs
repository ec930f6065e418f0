//! The knobs: everything about the engine that a test may choose, and how it is written as text.
//!
//! Owner: the engine keeps one immutable set; `PUT /_fake/config` replaces it whole. Every value is
//! text in the environment, on the command line and over HTTP alike, so there is one parser.

use std::collections::BTreeMap;
use std::time::Duration;

use nvidia_ml::Size;

use crate::chaos::Chaos;

/// A knob whose text was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{knob}={value}: expected {expected}")]
pub struct KnobError {
    /// The variable's or the argument's name.
    pub knob: String,
    /// Its text.
    pub value: String,
    /// What it may say.
    pub expected: &'static str,
}

/// Whose surface is mimicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavor {
    /// vLLM's OpenAI server.
    Vllm,
    /// llama.cpp's `llama-server`.
    LlamaCpp,
}

/// How long the phases of loading take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Before a llama.cpp listens; vLLM does not listen until ready.
    pub bind: Duration,
    /// While the weights' memory is claimed.
    pub weights: Duration,
    /// After all memory is claimed.
    pub warmup: Duration,
}

/// When something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// So long after the start, or after the knob was set at run time.
    Start(Duration),
    /// So long after becoming ready.
    Ready(Duration),
    /// When the Nth inference request arrives (from 1).
    Request(u64),
    /// In the middle of a generation, after N tokens.
    Token(u64),
}

/// What happens to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// Ends with this status.
    Exit(u8),
    /// SIGABRT; status 134 where the process is PID 1, which no signal of its own kills.
    Abort,
    /// SIGKILL, as the out-of-memory killer does; status 137 where the process is PID 1.
    Oom,
    /// Lives on, but never becomes ready, or never produces another token.
    Hang,
    /// vLLM's engine core dies under its API server: streams end in an error event, `/health` is
    /// 503, the port closes, the process ends (times by the DEATH knob).
    Engine,
}

/// The FAIL knob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fail {
    /// Nothing.
    None,
    /// One death.
    At(Death, When),
    /// Becomes ready, then exits 1 so long after, at each start.
    Flap(Duration),
    /// The first K starts exit 1 while loading; counted in STATE_DIR.
    First(u64),
    /// Exits 1 with the message for too little memory, whatever there is.
    Vram,
}

/// The KV cache's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kv {
    /// This many bytes per device.
    Bytes(u64),
    /// What `--gpu-memory-utilization` leaves after weights.
    Auto,
}

/// The VRAM knob: bytes per device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vram {
    /// Claimed while loading, by RAMP.
    pub weights: u64,
    /// Claimed after the weights.
    pub kv: Kv,
    /// Claimed first of all, and kept while asleep.
    pub overhead: u64,
}

/// How the weights' memory grows while they load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ramp {
    /// In this many equal steps.
    Steps(u32),
    /// All at once, at the start of the phase.
    Once,
}

/// What is generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// " 1 2 3 … 512", then the end.
    Count,
    /// The last message, word by word.
    Echo,
    /// This text, word by word.
    Fixed(String),
}

/// What SIGTERM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// Ends at once, status 0.
    Clean,
    /// Goes on so long, then ends as `Clean`.
    Slow(Duration),
    /// Nothing.
    Ignore,
}

/// What `/wake_up` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Wakes.
    Ok,
    /// Answers 500 and the engine dies.
    Error,
    /// Wakes, and from then on generates nonsense.
    Gibberish,
    /// Never answers.
    Hang,
}

/// All knobs; `Knobs::default` is a small, quick, healthy vLLM.
#[derive(Debug, Clone, PartialEq)]
pub struct Knobs {
    /// FLAVOR
    pub flavor: Flavor,
    /// MODEL: names served; the first is the one that answers carry.
    pub models: Vec<String>,
    /// LOAD, LOAD_PHASES
    pub load: Load,
    /// FAIL
    pub fail: Fail,
    /// DEATH: from the engine core's death to the process's end.
    pub death: Duration,
    /// VRAM; `None` claims nothing.
    pub vram: Option<Vram>,
    /// RAMP
    pub ramp: Ramp,
    /// SLEEP1, SLEEP2: bytes per device kept at each level; default: the overhead.
    pub residue: [Option<u64>; 2],
    /// SLEEP_TIME for level 1 and 2.
    pub sleep_time: [Duration; 2],
    /// WAKE_TIME for level 1 and 2.
    pub wake_time: [Duration; 2],
    /// WAKE for level 1 and 2.
    pub wake: [Wake; 2],
    /// RATE: tokens a second.
    pub rate: f64,
    /// TTFT: from admission to the first token.
    pub ttft: Duration,
    /// JITTER: seed of the pacing's jitter (± half a token's time); 0 = none.
    pub jitter: u64,
    /// TEXT
    pub text: Text,
    /// SLOTS: generations at a time.
    pub slots: usize,
    /// QUEUE: requests that may wait for a slot; more get 503.
    pub queue: Option<usize>,
    /// TERM
    pub term: Term,
    /// CHAOS
    pub chaos: Vec<Chaos>,
}

const MS: fn(u64) -> Duration = Duration::from_millis;

impl Default for Knobs {
    fn default() -> Self {
        Self {
            flavor: Flavor::Vllm,
            models: Vec::new(),
            load: Load { bind: MS(0), weights: MS(40), warmup: MS(10) },
            fail: Fail::None,
            death: MS(5000),
            vram: None,
            ramp: Ramp::Steps(20),
            residue: [None; 2],
            sleep_time: [MS(20); 2],
            wake_time: [MS(20); 2],
            wake: [Wake::Ok; 2],
            rate: 200.0,
            ttft: MS(5),
            jitter: 0,
            text: Text::Count,
            slots: 256,
            queue: None,
            term: Term::Clean,
            chaos: Vec::new(),
        }
    }
}

impl Knobs {
    /// Sets one knob from its text. `seed` chooses within ranges (`LOAD=1s..3s`).
    ///
    /// # Errors
    /// When there is no such knob or the text is not understood; nothing changes then.
    pub fn set(&mut self, knob: &str, value: &str, seed: u64) -> Result<(), KnobError> {
        let value = value.trim();
        let parsed = self.parse(knob, value, seed);
        parsed.map_err(|expected| KnobError {
            knob: format!("FAKE_{knob}"),
            value: value.to_owned(),
            expected,
        })
    }

    fn parse(&mut self, knob: &str, value: &str, seed: u64) -> Result<(), &'static str> {
        match knob {
            "FLAVOR" => {
                self.flavor = match value {
                    "vllm" => Flavor::Vllm,
                    "llamacpp" | "llama.cpp" => Flavor::LlamaCpp,
                    _ => return Err("vllm or llamacpp"),
                }
            }
            "MODEL" => self.models = value.split(',').map(|s| s.trim().to_owned()).collect(),
            "LOAD" => {
                let total = ranged(value, seed).ok_or("a duration, or a range of two (1s..3s)")?;
                self.load = Load { bind: MS(0), weights: total * 4 / 5, warmup: total / 5 };
            }
            "LOAD_PHASES" => self.load = load_phases(value)?,
            "FAIL" => self.fail = fail(value).ok_or(FAIL_EXPECTED)?,
            "DEATH" => self.death = duration(value).ok_or("a duration")?,
            "VRAM" => self.vram = vram(value)?,
            "RAMP" => {
                self.ramp = match value.split_once(':') {
                    None if value == "linear" => Ramp::Steps(20),
                    None if value == "none" => Ramp::Once,
                    Some(("steps", n)) => Ramp::Steps(
                        n.parse().ok().filter(|n| *n > 0).ok_or("steps:N with N above 0")?,
                    ),
                    _ => return Err("linear, steps:N or none"),
                }
            }
            "SLEEP1" => self.residue[0] = Some(bytes(value)?),
            "SLEEP2" => self.residue[1] = Some(bytes(value)?),
            "SLEEP_TIME" => self.sleep_time = per_level(value, self.sleep_time, duration)?,
            "WAKE_TIME" => self.wake_time = per_level(value, self.wake_time, duration)?,
            "WAKE" => self.wake = per_level(value, self.wake, wake)?,
            "RATE" => {
                self.rate = value
                    .parse()
                    .ok()
                    .filter(|rate: &f64| rate.is_finite() && *rate > 0.0)
                    .ok_or("tokens a second, above 0")?;
            }
            "TTFT" => self.ttft = duration(value).ok_or("a duration")?,
            "JITTER" => self.jitter = value.parse().map_err(|_| "a seed; 0 for none")?,
            "TEXT" => {
                self.text = match value.split_once(':') {
                    None if value == "count" => Text::Count,
                    None if value == "echo" => Text::Echo,
                    Some(("fixed", text)) => Text::Fixed(text.to_owned()),
                    _ => return Err("count, echo or fixed:TEXT"),
                }
            }
            "SLOTS" => {
                self.slots = value.parse().ok().filter(|n| *n > 0).ok_or("a number above 0")?;
            }
            "QUEUE" => self.queue = Some(value.parse().map_err(|_| "a number")?),
            "TERM" => {
                self.term = match value.split_once(':') {
                    None if value == "clean" => Term::Clean,
                    None if value == "ignore" => Term::Ignore,
                    Some(("slow", t)) => Term::Slow(duration(t).ok_or("slow:DURATION")?),
                    _ => return Err("clean, slow:DURATION or ignore"),
                }
            }
            "CHAOS" => self.chaos = crate::chaos::parse(value)?,
            _ => return Err("a knob that exists"),
        }
        Ok(())
    }

    /// The model that answers name.
    #[must_use]
    pub fn model(&self) -> &str {
        self.models.first().map_or("fake", String::as_str)
    }
}

const FAIL_EXPECTED: &str = "none, vram, n:K, flap:T, or exit:CODE@WHEN, abort@WHEN, oom@WHEN, \
                             hang@WHEN, engine@WHEN with WHEN = T, ready+T, req:N or tok:N";

fn fail(value: &str) -> Option<Fail> {
    match value {
        "" | "none" => return Some(Fail::None),
        "vram" => return Some(Fail::Vram),
        _ => {}
    }
    if let Some(count) = value.strip_prefix("n:") {
        return count.parse().ok().map(Fail::First);
    }
    if let Some(time) = value.strip_prefix("flap:") {
        return duration(time).map(Fail::Flap);
    }
    let (what, time) = value.split_once('@')?;
    let death = match what {
        "abort" => Death::Abort,
        "oom" => Death::Oom,
        "hang" => Death::Hang,
        "engine" => Death::Engine,
        exit => Death::Exit(exit.strip_prefix("exit:")?.parse().ok()?),
    };
    Some(Fail::At(death, when(time)?))
}

fn when(value: &str) -> Option<When> {
    if let Some(count) = value.strip_prefix("req:") {
        count.parse().ok().filter(|n| *n > 0).map(When::Request)
    } else if let Some(count) = value.strip_prefix("tok:") {
        count.parse().ok().map(When::Token)
    } else if let Some(time) = value.strip_prefix("ready") {
        match time.strip_prefix('+') {
            Some(time) => duration(time).map(When::Ready),
            None => time.is_empty().then_some(When::Ready(Duration::ZERO)),
        }
    } else {
        duration(value).map(When::Start)
    }
}

/// `250ms`, `1.5s`, `2m`, or plain seconds.
pub(crate) fn duration(value: &str) -> Option<Duration> {
    let value = value.trim();
    let (number, scale) = if let Some(ms) = value.strip_suffix("ms") {
        (ms, 0.001)
    } else if let Some(s) = value.strip_suffix('s') {
        (s, 1.0)
    } else if let Some(m) = value.strip_suffix('m') {
        (m, 60.0)
    } else {
        (value, 1.0)
    };
    let seconds: f64 = number.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds * scale).ok()
}

fn ranged(value: &str, seed: u64) -> Option<Duration> {
    let Some((low, high)) = value.split_once("..") else { return duration(value) };
    let (low, high) = (duration(low)?, duration(high)?);
    let span = u64::try_from(high.checked_sub(low)?.as_micros()).ok()?;
    Some(low + Duration::from_micros(crate::text::mix(seed) % (span + 1)))
}

fn load_phases(value: &str) -> Result<Load, &'static str> {
    const EXPECTED: &str = "bind=T,weights=T,warmup=T, each optional";
    let mut load = Load { bind: MS(0), weights: MS(0), warmup: MS(0) };
    for (key, time) in pairs(value).ok_or(EXPECTED)? {
        let time = duration(time).ok_or(EXPECTED)?;
        match key {
            "bind" => load.bind = time,
            "weights" => load.weights = time,
            "warmup" => load.warmup = time,
            _ => return Err(EXPECTED),
        }
    }
    Ok(load)
}

fn vram(value: &str) -> Result<Option<Vram>, &'static str> {
    const EXPECTED: &str = "none, bytes, or weights=B,kv=B|auto,overhead=B, each optional";
    if value == "none" {
        return Ok(None);
    }
    let mut vram = Vram { weights: 0, kv: Kv::Bytes(0), overhead: 0 };
    if !value.contains('=') {
        vram.weights = bytes(value).map_err(|_| EXPECTED)?;
        return Ok(Some(vram));
    }
    for (key, size) in pairs(value).ok_or(EXPECTED)? {
        match key {
            "kv" if size == "auto" => vram.kv = Kv::Auto,
            "kv" => vram.kv = Kv::Bytes(bytes(size).map_err(|_| EXPECTED)?),
            "weights" => vram.weights = bytes(size).map_err(|_| EXPECTED)?,
            "overhead" => vram.overhead = bytes(size).map_err(|_| EXPECTED)?,
            _ => return Err(EXPECTED),
        }
    }
    Ok(Some(vram))
}

fn pairs(value: &str) -> Option<BTreeMap<&str, &str>> {
    value.split(',').map(|pair| pair.trim().split_once('=')).collect()
}

fn bytes(value: &str) -> Result<u64, &'static str> {
    value.parse::<Size>().map(|size| size.0).map_err(|_| "bytes (1073741824, 1GiB)")
}

fn wake(value: &str) -> Option<Wake> {
    Some(match value {
        "ok" => Wake::Ok,
        "error" => Wake::Error,
        "gibberish" => Wake::Gibberish,
        "hang" => Wake::Hang,
        _ => return None,
    })
}

/// `X` for both levels, or `1=X,2=Y`.
fn per_level<T: Copy>(
    value: &str,
    old: [T; 2],
    parse: impl Fn(&str) -> Option<T>,
) -> Result<[T; 2], &'static str> {
    const EXPECTED: &str = "one value for both sleep levels, or 1=X,2=Y";
    if !value.contains('=') {
        return parse(value).map(|both| [both; 2]).ok_or(EXPECTED);
    }
    let mut levels = old;
    for (level, text) in pairs(value).ok_or(EXPECTED)? {
        let one = parse(text).ok_or(EXPECTED)?;
        match level {
            "1" => levels[0] = one,
            "2" => levels[1] = one,
            _ => return Err(EXPECTED),
        }
    }
    Ok(levels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(knob: &str, value: &str) -> Result<Knobs, KnobError> {
        let mut knobs = Knobs::default();
        knobs.set(knob, value, 7).map(|()| knobs)
    }

    #[test]
    fn every_form_of_fail() {
        for (text, expected) in [
            ("none", Fail::None),
            ("exit:3@500ms", Fail::At(Death::Exit(3), When::Start(MS(500)))),
            ("abort@ready+2s", Fail::At(Death::Abort, When::Ready(MS(2000)))),
            ("oom@req:3", Fail::At(Death::Oom, When::Request(3))),
            ("hang@tok:10", Fail::At(Death::Hang, When::Token(10))),
            ("engine@ready", Fail::At(Death::Engine, When::Ready(MS(0)))),
            ("flap:1.5s", Fail::Flap(MS(1500))),
            ("n:2", Fail::First(2)),
            ("vram", Fail::Vram),
        ] {
            assert_eq!(set("FAIL", text).unwrap().fail, expected, "{text}");
        }
        for text in ["exit@1s", "exit:300@1s", "oom", "oom@req:0", "flap", "n:x", "oom@ready-1s"] {
            assert!(set("FAIL", text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_and_levels() {
        let knobs = set("VRAM", "weights=2GiB,kv=auto,overhead=1MiB").unwrap();
        let expected = Vram { weights: 2 << 30, kv: Kv::Auto, overhead: 1 << 20 };
        assert_eq!(knobs.vram, Some(expected));
        assert_eq!(set("VRAM", "3GiB").unwrap().vram.unwrap().weights, 3 << 30);
        assert_eq!(set("SLEEP_TIME", "2=70ms").unwrap().sleep_time, [MS(20), MS(70)]);
        assert_eq!(set("WAKE", "2=gibberish").unwrap().wake, [Wake::Ok, Wake::Gibberish]);
    }

    #[test]
    fn a_range_is_chosen_by_the_seed_and_stays_inside() {
        let total = |seed| {
            let mut knobs = Knobs::default();
            knobs.set("LOAD", "1s..3s", seed).unwrap();
            knobs.load.weights + knobs.load.warmup
        };
        assert_eq!(total(1), total(1));
        assert_ne!(total(1), total(2));
        assert!((0..99).all(|seed| (MS(999)..=MS(3000)).contains(&total(seed))));
    }

    #[test]
    fn an_error_names_the_knob_the_value_and_what_may_stand_there() {
        let error = set("RAMP", "steps:0").unwrap_err();
        assert_eq!(error.to_string(), "FAKE_RAMP=steps:0: expected steps:N with N above 0");
        assert!(set("COLOUR", "red").is_err());
    }
}
