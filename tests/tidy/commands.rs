//! Rules of their own: what texts have people type, of the program `hostler` and as the service user.

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

/// A terminal for a command of another user's manager: machined is asked for it, which is not installed or knows no such machine.
/// What asks for a password runs by runuser.
pub fn terminals(path: &str, text: &str) -> Vec<String> {
    let numbered = text.lines().enumerate();
    let machine = |line: &str| line.split("--machine=").skip(1).any(|rest| rest.contains('@'));
    let wrong = numbered.filter(|(_, line)| machine(line) && line.contains("--pty"));
    wrong.map(|(at, _)| format!("{path}:{}: --pty fails with --machine=USER@", at + 1)).collect()
}

#[test]
fn a_terminal_of_another_manager_is_seen() {
    let by = |how: &str| format!("systemd-run --machine=hostler@.host --user {how} podman login");
    assert_eq!(terminals("a", &by("--pipe")), [""; 0]);
    assert_eq!(terminals("a", &by("--pty")).len(), 1);
    assert_eq!(terminals("a", "runuser --pty -u hostler -- podman login"), [""; 0]);
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
