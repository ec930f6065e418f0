//! Wire faults: what can go wrong between an engine and its client.
//!
//! Each applies to every inference answer while it is set; `PUT /_fake/config` sets and clears.

use std::time::Duration;

use crate::knobs::duration;

/// One wire fault. N counts tokens sent before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chaos {
    /// `drop@tok:N`: the connection breaks (RST on TCP).
    Drop(u64),
    /// `stall@tok:N`: nothing more comes, the connection stays.
    Stall(u64),
    /// `half-event@tok:N`: the next event is cut in the middle of its line, and the connection breaks.
    HalfEvent(u64),
    /// `error-event@tok:N`: the stream ends with an error event on its status 200.
    ErrorEvent(u64),
    /// `no-done`: the stream ends in good order, but without `[DONE]`.
    NoDone,
    /// `gzip`: the body is compressed, though nobody asked.
    Gzip,
    /// `big-event:BYTES`: the first token's event is at least so long.
    BigEvent(usize),
    /// `slow-header:T`: the answer's head comes so late.
    SlowHeader(Duration),
    /// `close-after-stream`: the connection closes after a stream, unannounced.
    CloseAfterStream,
    /// `garbage`: the body is bytes that are neither JSON nor UTF-8, with the right content type.
    Garbage,
    /// `status:CODE`: every inference request gets this status.
    Status(u16),
}

const EXPECTED: &str = "none, or a comma list of drop@tok:N, stall@tok:N, half-event@tok:N, \
                        error-event@tok:N, no-done, gzip, big-event:BYTES, slow-header:T, \
                        close-after-stream, garbage, status:CODE";

/// Reads the CHAOS knob.
pub(crate) fn parse(value: &str) -> Result<Vec<Chaos>, &'static str> {
    if matches!(value, "" | "none") {
        return Ok(Vec::new());
    }
    value.split(',').map(|one| parse_one(one.trim()).ok_or(EXPECTED)).collect()
}

fn parse_one(value: &str) -> Option<Chaos> {
    if let Some((name, tokens)) = value.split_once("@tok:") {
        let tokens = tokens.parse().ok()?;
        return Some(match name {
            "drop" => Chaos::Drop(tokens),
            "stall" => Chaos::Stall(tokens),
            "half-event" => Chaos::HalfEvent(tokens),
            "error-event" => Chaos::ErrorEvent(tokens),
            _ => return None,
        });
    }
    Some(match value.split_once(':') {
        None => match value {
            "no-done" => Chaos::NoDone,
            "gzip" => Chaos::Gzip,
            "close-after-stream" => Chaos::CloseAfterStream,
            "garbage" => Chaos::Garbage,
            _ => return None,
        },
        Some(("big-event", bytes)) => {
            Chaos::BigEvent(usize::try_from(bytes.parse::<nvidia_ml::Size>().ok()?.0).ok()?)
        }
        Some(("slow-header", time)) => Chaos::SlowHeader(duration(time)?),
        Some(("status", code)) => {
            Chaos::Status(code.parse().ok().filter(|code| (200..600).contains(code))?)
        }
        Some(_) => return None,
    })
}

/// Whether a flag-like fault is set.
#[must_use]
pub fn has(chaos: &[Chaos], wanted: Chaos) -> bool {
    chaos.contains(&wanted)
}

/// The fault that strikes once `tokens` have been sent.
#[must_use]
pub fn at_token(chaos: &[Chaos], tokens: u64) -> Option<Chaos> {
    let strikes = |fault: &&Chaos| match fault {
        Chaos::Drop(n) | Chaos::Stall(n) | Chaos::HalfEvent(n) | Chaos::ErrorEvent(n) => {
            *n == tokens
        }
        Chaos::NoDone
        | Chaos::Gzip
        | Chaos::BigEvent(_)
        | Chaos::SlowHeader(_)
        | Chaos::CloseAfterStream
        | Chaos::Garbage
        | Chaos::Status(_) => false,
    };
    chaos.iter().find(strikes).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        let text = "drop@tok:1, stall@tok:2,half-event@tok:3,error-event@tok:4,no-done,gzip,\
                    big-event:64k,slow-header:2s,close-after-stream,garbage,status:500";
        let expected = [
            Chaos::Drop(1),
            Chaos::Stall(2),
            Chaos::HalfEvent(3),
            Chaos::ErrorEvent(4),
            Chaos::NoDone,
            Chaos::Gzip,
            Chaos::BigEvent(65536),
            Chaos::SlowHeader(Duration::from_secs(2)),
            Chaos::CloseAfterStream,
            Chaos::Garbage,
            Chaos::Status(500),
        ];
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(at_token(&expected, 3), Some(Chaos::HalfEvent(3)));
        assert_eq!(at_token(&expected, 5), None);
        assert_eq!(parse("none"), Ok(vec![]));
        for text in ["drop", "drop@req:1", "status:9", "big-event", "noise"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
