//! Engine arguments that change what an estimate comes to.
//!
//! Purpose: read them as the engines do: the last one wins, an argument beats its variable, `_` stands for `-`. Owner:
//! nobody. Invariant: what is not understood is as if it were not there, which leaves the larger number.

use crate::types::ModelSpec;

/// The value of an argument, or of the variable of the same meaning.
pub(super) fn value<'a>(spec: &'a ModelSpec, names: &[&str], variable: &str) -> Option<&'a str> {
    let mut found = None;
    for (at, arg) in spec.args.iter().enumerate() {
        let (flag, inline) = match arg.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (arg.as_str(), None),
        };
        if is(flag, names) {
            found = inline.or_else(|| spec.args.get(at + 1).map(String::as_str)).or(found);
        }
    }
    found.or_else(|| spec.env.get(variable).map(String::as_str))
}

/// A number as vLLM reads it: "8192", "8K" or "8.2k" (`human_readable_int` in its `utils/argparse_utils.py`).
pub(super) fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match text.strip_prefix(digits)? {
        "" => return text.parse().ok(),
        "k" => 1e3,
        "K" => 1024.0,
        "m" => 1e6,
        "M" => 1024.0 * 1024.0,
        _ => return None,
    };
    let number = digits.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0)?;
    // A cast from f64 saturates.
    Some((number * scale) as u64)
}

/// Whether an argument is there, with or without a value.
pub(super) fn has(spec: &ModelSpec, names: &[&str]) -> bool {
    spec.args.iter().any(|arg| is(arg.split_once('=').map_or(arg, |(flag, _)| flag), names))
}

fn is(flag: &str, names: &[&str]) -> bool {
    let long = flag.strip_prefix("--").map(|rest| format!("--{}", rest.replace('_', "-")));
    let flag = long.as_deref().unwrap_or(flag);
    names.contains(&flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::test_spec;

    #[test]
    fn as_the_engines_read_them() {
        let mut spec = test_spec("m");
        let get =
            |spec: &ModelSpec| value(spec, &["-ub", "--ubatch-size"], "UB").map(str::to_owned);
        assert_eq!(get(&spec), None);
        spec.env.insert("UB".into(), "1".into());
        assert_eq!(get(&spec).as_deref(), Some("1"));
        spec.args = ["-ub", "2", "--ubatch_size=3", "x"].map(String::from).into();
        assert_eq!(get(&spec).as_deref(), Some("3"), "the last one");
        spec.args.push("-ub".into());
        assert_eq!(get(&spec).as_deref(), Some("3"), "one without a value says nothing");
        assert!(has(&spec, &["-ub"]) && !has(&spec, &["--ubatch"]));
    }

    #[test]
    fn numbers_in_all_their_forms() {
        for (text, want) in [
            ("8192", Some(8192)),
            (" 8K", Some(8192)),
            ("16k", Some(16_000)),
            ("25.6k", Some(25_600)),
            ("1M", Some(1 << 20)),
            ("", None),
            ("k", None),
            ("-1k", None),
            ("8kk", None),
            ("8é", None),
        ] {
            assert_eq!(number(text), want, "{text:?}");
        }
    }
}
