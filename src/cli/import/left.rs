//! What was not taken over, and how that is said. PURE.
//!
//! Invariant: what comes from the file is shown on one line and without control characters, whatever it holds: it must not
//! become a line of the configuration, nor a command of the terminal.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::cli::add::file::plain;

/// Where nothing has to be done.
pub const NOTHING: &str = "nothing is to be done";

/// Why something was not taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Why {
    /// The reason.
    pub why: String,
    /// What to do instead.
    pub instead: String,
}

impl Why {
    /// A reason, and what to do.
    pub fn new(why: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { why: why.into(), instead: instead.into() }
    }
}

/// A setting that was not taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The model; `None`: a setting of the whole.
    pub model: Option<String>,
    /// The key, and which part of it; empty: the whole model.
    pub key: String,
    /// Why, and what to do.
    #[serde(flatten)]
    pub why: Why,
}

impl Left {
    /// A model that is not there at all. The reason completes "it …".
    pub fn model(id: &str, why: Why) -> Self {
        Self { model: Some(id.to_owned()), key: String::new(), why }
    }
}

/// Reasons, each with the keys that it is about, in their order.
fn reasons<'l>(all: impl Iterator<Item = &'l Left>) -> Vec<(&'l Why, Vec<&'l str>)> {
    let mut found: Vec<(&Why, Vec<&str>)> = Vec::new();
    for left in all {
        match found.iter_mut().find(|(why, _)| **why == left.why) {
            Some((_, keys)) if keys.contains(&left.key.as_str()) => {}
            Some((_, keys)) => keys.push(&left.key),
            None => found.push((&left.why, vec![&left.key])),
        }
    }
    found
}

fn because(why: &Why) -> String {
    if why.instead == NOTHING { why.why.clone() } else { format!("{}; {}", why.why, why.instead) }
}

/// As comments beside what they are about, one line a reason.
pub fn comments<'l>(all: impl Iterator<Item = &'l Left>) -> String {
    let line = |(why, keys): (&Why, Vec<&str>)| {
        let line = format!("Not taken over: {}: {}.", keys.join(", "), because(why));
        format!("# {}\n", plain(&line))
    };
    reasons(all).into_iter().map(line).collect()
}

/// All of them for the terminal. Models that leave the same for the same reason share a line.
pub fn lines(all: &[Left]) -> Vec<String> {
    let mut owners: Vec<Option<&str>> = all.iter().map(|left| left.model.as_deref()).collect();
    let mut seen = BTreeSet::new();
    owners.retain(|owner| seen.insert(*owner));
    let mut said: Vec<(&Why, Vec<&str>, Vec<&str>)> = Vec::new();
    for owner in owners {
        for (why, keys) in reasons(all.iter().filter(|left| left.model.as_deref() == owner)) {
            match said.iter_mut().find(|(w, k, who)| *w == why && *k == keys && !who.is_empty()) {
                Some((_, _, who)) => who.extend(owner),
                None => said.push((why, keys, owner.into_iter().collect())),
            }
        }
    }
    let line = |(why, keys, who): (&Why, Vec<&str>, Vec<&str>)| {
        let models = if who.len() == 1 { "model" } else { "models" };
        let who = who.join(", ");
        let (keys, why) = (keys.join(", "), because(why));
        plain(&match (who.as_str(), keys.as_str()) {
            ("", keys) => format!("not taken over: {keys}: {why}"),
            (who, "") => format!("{models} {who} not taken over: it {why}"),
            (who, keys) => format!("{models} {who}: not taken over: {keys}: {why}"),
        })
    };
    said.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(model: Option<&str>, key: &str, instead: &str) -> Left {
        let why = Why::new("because", instead);
        Left { model: model.map(str::to_owned), key: key.to_owned(), why }
    }

    #[test]
    fn equal_reasons_are_said_once() {
        let all = [
            left(Some("a"), "k", "do x"),
            left(None, "z", "do x"),
            left(Some("b"), "k", "do x"),
            left(Some("b"), "n", NOTHING),
            left(Some("b"), "o", NOTHING),
            Left::model("c", Why::new("is odd", "do y")),
        ];
        assert_eq!(
            lines(&all),
            [
                "models a, b: not taken over: k: because; do x",
                "not taken over: z: because; do x",
                "model b: not taken over: n, o: because",
                "model c not taken over: it is odd; do y"
            ]
        );
        assert_eq!(comments(all[3..5].iter()), "# Not taken over: n, o: because.\n");
    }

    #[test]
    fn nothing_breaks_out_of_its_line() {
        let left = left(None, "a\n[auth]\u{1b}[2J", NOTHING);
        assert_eq!(comments([&left].into_iter()), "# Not taken over: a [auth] [2J: because.\n");
        assert_eq!(lines(&[left]), ["not taken over: a [auth] [2J: because"]);
    }
}
