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

/// Whether a switch without a value is there.
pub(super) fn has(spec: &ModelSpec, names: &[&str]) -> bool {
    spec.args.iter().any(|arg| is(arg, names))
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
}
