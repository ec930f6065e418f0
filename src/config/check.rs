//! Single values: from what was written to the type with its limits.
//!
//! Purpose: every limit and its message in one form; a value that is wrong is reported and treated as not given, so that
//! the rest can still be checked. Owner: [`super::parse`] and [`super::model`]. Pure: paths are judged by their text.

use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::fmt::friendly::SpanParser;
use toml::Spanned;

use crate::types::{Bytes, GpuId, Hours};

use super::raw::{BytesText, DurationText};
use super::source::Report;

/// One second.
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// One hour.
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// The longest path that a Unix socket can have on Linux: `sun_path` is 108 bytes with its final NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The longest `engine_dir`: below it come `/`, a container's name (at most 53 bytes up to generation 9,999,999,999),
/// `/` and a socket's file name, and all together must fit [`SOCKET_PATH_BYTES_MAX`].
const ENGINE_DIR_BYTES_MAX: usize = 40;

/// A duration from `min` to `max`, both included.
pub(super) fn duration(
    report: &mut Report<'_>,
    key: &str,
    value: Option<&Spanned<DurationText>>,
    (min, max): (Duration, Duration),
) -> Option<Duration> {
    let value = value?;
    let text = &value.get_ref().0;
    let Ok(parsed) = SpanParser::new().parse_duration(text) else {
        let message =
            format!("{text:?} is not a duration; write for example \"90s\", \"10m\" or \"1h 30m\"");
        report.at(value.span().start, key, message);
        return None;
    };
    let in_limits = Duration::try_from(parsed).ok().filter(|d| (min..=max).contains(d));
    if in_limits.is_none() {
        let message = format!("must be from {} to {}, not {text:?}", words(min), words(max));
        report.at(value.span().start, key, message);
    }
    in_limits
}

fn words(duration: Duration) -> String {
    SignedDuration::try_from(duration)
        .map_or_else(|_| format!("{duration:?}"), |d| format!("{d:#}"))
}

/// An amount of memory from `min` to `max`, both included.
pub(super) fn bytes(
    report: &mut Report<'_>,
    key: &str,
    value: Option<&Spanned<BytesText>>,
    (min, max): (Bytes, Bytes),
) -> Option<Bytes> {
    let value = value?;
    let message = match value.get_ref().0.parse::<Bytes>() {
        Ok(bytes) if (min..=max).contains(&bytes) => return Some(bytes),
        Ok(bytes) => format!("must be from {min} to {max}, not {bytes}"),
        Err(error) => error.to_string(),
    };
    report.at(value.span().start, key, message);
    None
}

/// A whole number from 1 to `max`.
pub(super) fn count(
    report: &mut Report<'_>,
    key: &str,
    value: Option<&Spanned<i64>>,
    max: u32,
) -> Option<u32> {
    let value = value?;
    let number = *value.get_ref();
    let in_limits = u32::try_from(number).ok().filter(|n| (1..=max).contains(n));
    if in_limits.is_none() {
        report.at(value.span().start, key, format!("must be from 1 to {max}, not {number}"));
    }
    in_limits
}

/// A priority: a whole number from -100 to 100.
pub(super) fn priority(
    report: &mut Report<'_>,
    key: &str,
    value: Option<&Spanned<i64>>,
) -> Option<i8> {
    let value = value?;
    let number = *value.get_ref();
    let in_limits = i8::try_from(number).ok().filter(|n| (-100..=100).contains(n));
    if in_limits.is_none() {
        report.at(value.span().start, key, format!("must be from -100 to 100, not {number}"));
    }
    in_limits
}

/// Hours of the day.
pub(super) fn hours(
    report: &mut Report<'_>,
    key: &str,
    value: Option<&Spanned<String>>,
) -> Option<Hours> {
    let value = value?;
    let parsed = value.get_ref().parse();
    parsed.map_err(|why: String| report.at(value.span().start, key, why)).ok()
}

/// An absolute path without `..`.
pub(super) fn path(
    report: &mut Report<'_>,
    key: &str,
    value: Option<&Spanned<String>>,
) -> Option<PathBuf> {
    let value = value?;
    let text = value.get_ref();
    let wrong = if !text.starts_with('/') {
        Some("must be an absolute path, starting with /")
    } else if text.split('/').any(|part| part == "..") {
        Some("must not contain \"..\"; write the path that is meant")
    } else if text.chars().any(char::is_control) {
        Some("must not contain control characters")
    } else if text.len() > 4095 {
        Some("has at most 4095 bytes")
    } else {
        None
    };
    match wrong {
        None => Some(PathBuf::from(text)),
        Some(wrong) => {
            report.at(value.span().start, key, format!("{wrong}; it is {text:?}"));
            None
        }
    }
}

/// The name of a systemd credential.
pub(super) fn credential(
    report: &mut Report<'_>,
    key: &str,
    value: &Spanned<String>,
) -> Option<String> {
    let text = value.get_ref();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let ok = (1..=128).contains(&text.len()) && text.chars().all(plain) && !text.starts_with('.');
    if !ok {
        let message =
            format!("must be a credential's name, as in LoadCredential=NAME:/path, not {text:?}");
        report.at(value.span().start, key, message);
    }
    ok.then(|| text.clone())
}

/// The path of a Unix socket.
pub(super) fn socket_path(
    report: &mut Report<'_>,
    key: &str,
    value: Option<&Spanned<String>>,
) -> Option<PathBuf> {
    short_path(report, key, value, SOCKET_PATH_BYTES_MAX)
}

/// The path of the directory that engines' sockets are made in.
pub(super) fn engine_dir(
    report: &mut Report<'_>,
    key: &str,
    value: Option<&Spanned<String>>,
) -> Option<PathBuf> {
    short_path(report, key, value, ENGINE_DIR_BYTES_MAX)
}

fn short_path(
    report: &mut Report<'_>,
    key: &str,
    value: Option<&Spanned<String>>,
    max: usize,
) -> Option<PathBuf> {
    let good = path(report, key, value)?;
    let length = good.as_os_str().len();
    if length <= max {
        return Some(good);
    }
    let message = format!(
        "has {length} bytes, but at most {max} leave room for a Unix socket's path \
         (107 bytes in all); choose a shorter one"
    );
    report.at(value.map_or(0, |v| v.span().start), key, message);
    None
}

/// Reports a model that is spread over slices of devices (MIG), which no process can use together. `among`: its devices.
pub(super) fn slices(
    report: &mut Report<'_>,
    key: &str,
    at: usize,
    count: Option<u32>,
    among: &[GpuId],
) {
    let count = count.and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
    let slices = among.iter().filter(|id| id.is_slice()).count();
    let whole = among.len() - slices;
    if count > 1 && slices > 0 && count <= among.len() && whole < count {
        let most = whole.max(1);
        let message = format!(
            "must be at most {most}, for a process sees one slice of MIG alone; make a larger slice, or list whole devices"
        );
        report.at(at, key, message);
    }
}

/// UUIDs of devices, each once.
pub(super) fn gpus(report: &mut Report<'_>, key: &str, values: &[Spanned<String>]) -> Vec<GpuId> {
    let mut ids: Vec<GpuId> = Vec::with_capacity(values.len());
    for value in values {
        let text = value.get_ref();
        let id = GpuId::new(text);
        let form = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '/';
        let prefixed = text.strip_prefix("GPU-").or_else(|| text.strip_prefix("MIG-"));
        if !prefixed.is_some_and(|rest| !rest.is_empty() && rest.chars().all(form)) {
            let message = format!(
                "{text:?} is not a device's UUID; write it as `nvidia-smi -L` prints it (GPU-… or MIG-…), \
                 because indexes change when cards do"
            );
            report.at(value.span().start, key, message);
        } else if ids.contains(&id) {
            report.at(value.span().start, key, format!("{text:?} is listed twice; remove one"));
        } else {
            ids.push(id);
        }
    }
    ids
}
