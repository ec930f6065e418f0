//! `[log]`: what is written down.
//!
//! Owner: [`super::parse`]. Pure.

use schemars::JsonSchema;
use toml::Spanned;

use super::check;
use super::raw::Written;
use super::source::Report;

/// What is written down.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawLog {
    /// A level (off, error, warn, info, debug, trace), or target=level pairs with commas between: "info,hostler::proxy=debug". In force after
    /// a reload; --log on the command line overrides it. Default "info".
    #[schemars(with = "String", extend("default" = "info"))]
    pub level: Option<Spanned<String>>,
    /// At most so many requests a second get a line of their own, 1 to 1000000, a quarter of them those that failed; further ones are
    /// counted, and a line says how many. Default 200: journald takes 10,000 lines of a service each 30 s and drops the rest.
    #[schemars(with = "u32", extend("default" = 200))]
    pub request_lines: Option<Spanned<i64>>,
}

impl Written for RawLog {
    const FORM: &'static str = "a table, [log]";
}

/// What is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level or target=level pairs, default `info`.
    pub level: String,
    /// How many requests a second get a line of their own, default 200.
    pub request_lines: u32,
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

pub(super) fn log(report: &mut Report<'_>, raw: &RawLog) -> LogConfig {
    let lines = check::count(report, "log.request_lines", raw.request_lines.as_ref(), 1_000_000);
    let request_lines = lines.unwrap_or(200);
    let Some(level) = &raw.level else {
        return LogConfig { level: "info".to_owned(), request_lines };
    };
    let text = level.get_ref();
    if let Err(message) = log_filter(text) {
        report.at(level.span().start, "log.level", message);
    }
    LogConfig { level: text.clone(), request_lines }
}

/// Whether a text says what is logged, as `[log] level` does.
///
/// # Errors
/// Which part of it does not. Such a part would be taken for the name of a target, and then nothing else be logged at all.
pub fn log_filter(text: &str) -> Result<(), String> {
    match text.split(',').find(|part| !is_directive(part)) {
        None => Ok(()),
        Some(wrong) => Err(format!(
            "{wrong:?} is neither a level ({}) nor TARGET=LEVEL, such as \"info,hostler::proxy=debug\"",
            LEVELS.join(", ")
        )),
    }
}

fn is_directive(text: &str) -> bool {
    let (target, level) = text.rsplit_once('=').unwrap_or(("", text));
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let named = target.chars().all(plain) && (text == level || !target.is_empty());
    named && LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_pairs() {
        for good in ["info", "off", "Info", "hostler=debug", "hostler::proxy=trace"] {
            assert!(is_directive(good), "{good}");
        }
        let bad = [
            "",
            "loud",
            "warning",
            " info",
            "=info",
            "hostler=",
            "hostler=loud",
            "a b=info",
            "[x]=info",
        ];
        for bad in bad {
            assert!(!is_directive(bad), "{bad}");
        }
        assert!(log_filter("info,hostler::proxy=debug").is_ok());
        assert!(log_filter("info,verbose").unwrap_err().starts_with("\"verbose\" is neither"));
    }
}
