//! A rule of its own: what texts say of the program `hostler`.

use std::collections::{BTreeMap, BTreeSet};

/// Commands and options of `hostler` that do not exist: `hostler WORD …` in code, up to what ends a command.
pub fn commands(path: &str, text: &str, known: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut wrong = Vec::new();
    let common = known.get("").cloned().unwrap_or_default();
    let mut block = false;
    for (at, line) in text.lines().enumerate() {
        block ^= line.trim_start().starts_with("```");
        // Prose says "hostler" too; a command is in quotes, in a block, indented as one, or after a prompt.
        let spans: Vec<&str> = if block || line.starts_with("    ") {
            vec![line]
        } else {
            line.split('`').skip(1).step_by(2).collect()
        };
        for span in spans {
            let begins =
                |s: &str| s.trim_start().trim_start_matches("sudo ").starts_with("hostler ");
            if !begins(span) {
                continue;
            }
            let command = span.split(['|', ';', '#', '&']).next().unwrap_or_default();
            let words = command.split_whitespace().skip_while(|w| *w != "hostler").skip(1);
            // What it prints begins with its version.
            if words
                .clone()
                .next()
                .is_some_and(|word| word.starts_with(|c: char| c.is_ascii_digit()))
            {
                continue;
            }
            let mut name = None;
            for word in words {
                let option = word.split(['=', ',', ']']).next().unwrap_or_default();
                let here = name.and_then(|n: &str| known.get(n));
                if option.starts_with("--") && option.len() > 2 {
                    let is_known =
                        common.contains(option) || here.is_some_and(|h| h.contains(option));
                    if !is_known {
                        wrong.push(format!(
                            "{path}:{}: hostler has no option {option} there",
                            at + 1
                        ));
                    }
                } else if name.is_none()
                    && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
                    && !word.starts_with('-')
                {
                    if !known.contains_key(word) {
                        wrong.push(format!("{path}:{}: hostler has no command {word}", at + 1));
                    }
                    name = Some(word);
                }
            }
        }
    }
    wrong
}

#[test]
fn commands_that_do_not_exist_are_seen() {
    let known = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<BTreeSet<_>>();
    let tree = BTreeMap::from([
        (String::new(), known(&["--json"])),
        ("load".to_owned(), known(&["--pin"])),
    ]);
    assert_eq!(commands("a", "`hostler --json load x --pin` hostler lod", &tree), [""; 0]);
    assert_eq!(commands("a", "```\nhostler 0.1.0: running, up 1s\n```", &tree), [""; 0]);
    assert_eq!(commands("a", "    hostler load x --pim", &tree).len(), 1);
    assert_eq!(commands("a", "see `hostler lod`", &tree).len(), 1);
}
