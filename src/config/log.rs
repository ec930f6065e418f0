//! `[log]`: what is written down.
//!
//! Owner: [`super::parse`]. Pure.

use schemars::JsonSchema;
use toml::Spanned;

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
}

impl Written for RawLog {
    const FORM: &'static str = "a table, [log]";
}

/// What is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level or target=level pairs, default `info`.
    pub level: String,
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

pub(super) fn log(report: &mut Report<'_>, raw: &RawLog) -> LogConfig {
    let Some(level) = &raw.level else { return LogConfig { level: "info".to_owned() } };
    let text = level.get_ref();
    if let Some(wrong) = text.split(',').find(|part| !is_directive(part)) {
        let message = format!(
            "{wrong:?} is neither a level ({}) nor TARGET=LEVEL, such as \"info,hostler::proxy=debug\"",
            LEVELS.join(", ")
        );
        report.at(level.span().start, "log.level", message);
    }
    LogConfig { level: text.clone() }
}

fn is_directive(text: &str) -> bool {
    let (target, level) = text.rsplit_once('=').unwrap_or(("", text));
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let named = target.chars().all(plain) && (text == level || !target.is_empty());
    named && LEVELS.contains(&level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_pairs() {
        for good in ["info", "off", "hostler=debug", "hostler::proxy=trace"] {
            assert!(is_directive(good), "{good}");
        }
        for bad in ["", "loud", "Info", "=info", "hostler=", "hostler=loud", "a b=info", "[x]=info"]
        {
            assert!(!is_directive(bad), "{bad}");
        }
    }
}
