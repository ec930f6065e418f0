//! The rules: text in, what is wrong with it out.

use std::collections::BTreeSet;

use super::tree::{File, shipped};

/// No Rust file is longer, those named in `LONG` aside.
pub const LINES_MAX: usize = 400;

/// What each layer may name of the others, as `crate::` paths. Nothing points upwards.
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &["types"]),
    ("config", &["config", "types"]),
    ("plan", &["plan", "types"]),
    ("supervisor", &["supervisor", "plan", "types"]),
    // What an engine is told for an estimate to hold is said where it is estimated.
    ("adapters", &["adapters::disk", "plan::estimate", "supervisor::ports", "types"]),
    // The endpoint of a lease is all that the front door sees of the ports.
    ("proxy", &["proxy", "supervisor::handle", "supervisor::ports::Endpoint", "types"]),
    ("control", &["control", "supervisor::handle", "types"]),
    // Both see the ports that the front door gives them, and the notices of the owner.
    ("observe", &["observe", "proxy::port", "supervisor::handle", "supervisor::witness", "types"]),
    (
        "console",
        &[
            "console",
            "control",
            "observe",
            "proxy::port",
            "supervisor::handle",
            "supervisor::ports",
            "supervisor::witness",
            "types",
        ],
    ),
    // Which devices are equal is for the planner to say.
    ("checks", &["checks", "adapters", "config", "plan::equals", "supervisor::ports", "types"]),
    // No HTTP and nothing of the core: what a program outside the daemon may know.
    (
        "cli",
        &[
            "cli",
            "checks",
            "config",
            "daemon",
            "adapters::podman",
            "adapters::systemd",
            "adapters::weights",
            "types",
        ],
    ),
    ("daemon", &[""]),
    ("lib", &[""]),
    ("main", &[""]),
    ("bin", &[""]),
];

/// Files of these layers that are not pure: they are what reads the disk, runs the loop, or carries effects out.
const IMPURE: &[&str] = &[
    "src/config/load.rs",
    "src/supervisor/execute.rs",
    "src/supervisor/execute/tend.rs",
    "src/supervisor/express.rs",
    "src/supervisor/handle.rs",
    "src/supervisor/log.rs",
    "src/supervisor/ports.rs",
    "src/supervisor/ports/reach.rs",
    "src/supervisor/stir.rs",
    "src/supervisor/task.rs",
    "src/supervisor/witness.rs",
];

/// What no pure file names.
const OUTSIDE: &[&str] = &[
    "tokio",
    "std::fs",
    "fs_err",
    "std::env",
    "std::process",
    "std::thread",
    "Instant",
    "SystemTime",
    "TcpListener",
    "TcpStream",
    "UnixListener",
    "UnixStream",
    "UdpSocket",
    "ToSocketAddrs",
    "tracing",
    "rustix",
    "tempfile",
    "println!",
];

/// The code of a file: without comments, and without what is for tests alone.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    shipped(text).map(|(at, line)| (at, line.split_once("//").map_or(line, |(code, _)| code)))
}

fn layer(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("src/")?;
    Some(rest.split('/').next().unwrap_or(rest).trim_end_matches(".rs"))
}

fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("/fuzz.rs")
}

/// Names of other layers, and of other adapters, that a file may not use.
pub fn layers(path: &str, text: &str) -> Vec<String> {
    let Some(layer) = layer(path).filter(|_| !is_test(path)) else { return Vec::new() };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
        return vec![format!("{path}: {layer} is no layer; name it in tests/tidy/rules.rs")];
    };
    let mut own = allowed.to_vec();
    let sibling =
        path.split('/').nth(2).map(|s| format!("adapters::{}", s.trim_end_matches(".rs")));
    own.extend(sibling.as_deref().filter(|_| layer == "adapters"));
    let mut wrong = Vec::new();
    for (at, line) in code(text) {
        for (start, _) in line.match_indices("crate::") {
            let used = &line[start + "crate::".len()..];
            let permitted = own.iter().any(|a| {
                let rest = used.strip_prefix(a);
                rest.is_some_and(|r| {
                    a.is_empty() || !r.starts_with(|c: char| c.is_alphanumeric() || c == '_')
                })
            });
            if !permitted {
                wrong.push(format!("{path}:{at}: {layer} may not use crate::{used}"));
            }
        }
    }
    wrong
}

/// Whether a file has to be pure.
pub fn is_pure(path: &str) -> bool {
    let pure = ["src/types/", "src/plan/", "src/config/", "src/supervisor/"];
    pure.iter().any(|p| path.starts_with(p))
        && path.ends_with(".rs")
        && !IMPURE.contains(&path)
        && !is_test(path)
}

/// Uses of clocks, files, networks, tasks and logs.
pub fn purity(path: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, line) in code(text) {
        for word in OUTSIDE.iter().filter(|w| has_word(line, w)) {
            wrong.push(format!("{path}:{at}: a pure layer may not use {word}"));
        }
    }
    wrong
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(part)
            && (word.ends_with('!') || !line[at + word.len()..].starts_with(part))
    })
}

/// Files that are too long, and ceilings that are too high.
pub fn length(file: &File, long: &[(&str, usize)]) -> Vec<String> {
    let lines = file.text.lines().count();
    let ceiling = long.iter().find(|(p, _)| *p == file.path).map(|(_, n)| *n);
    let path = &file.path;
    match ceiling {
        None if lines > LINES_MAX => {
            vec![format!("{path}: {lines} lines; split it (at most {LINES_MAX})")]
        }
        Some(_) if lines <= LINES_MAX => vec![format!("{path}: {lines} lines; drop it from LONG")],
        Some(most) if lines > most => {
            vec![format!("{path}: grew from {most} to {lines} lines; split it")]
        }
        Some(most) if lines < most => {
            vec![format!("{path}: {lines} lines; lower its ceiling from {most}")]
        }
        None | Some(_) => Vec::new(),
    }
}

/// A module opens with its purpose.
pub fn opening(path: &str, text: &str) -> Vec<String> {
    let said = text.lines().next().is_some_and(|l| l.starts_with("//! ") && l.len() > 10);
    if said {
        Vec::new()
    } else {
        vec![format!("{path}:1: does not open with its purpose (//! …)")]
    }
}

/// Skipped tests without a reason.
pub fn ignored(path: &str, text: &str) -> Vec<String> {
    let bare = format!("#[{}]", "ignore");
    let lines = text.lines().enumerate().filter(|(_, l)| l.trim() == bare);
    lines.map(|(at, _)| format!("{path}:{}: says not why it is skipped", at + 1)).collect()
}

/// Hosts of registries, and paths of the machine that the tree was written on.
pub fn words(path: &str, text: &str) -> Vec<String> {
    // Written in two parts, or this file would break its own rule.
    let unwanted = [
        ["docker", ".io"],
        ["ghcr", ".io"],
        ["quay", ".io"],
        ["nvcr", ".io"],
        ["huggingface", ".co"],
        ["deb.debian", ".org"],
        ["crates", ".io/api"],
        ["pypi", ".org"],
        ["registry.npmjs", ".org"],
        ["/wo", "rk/"],
        ["/root/", ".cargo"],
        ["Cla", "ude"],
        ["sub", "agent"],
    ];
    let mut wrong = Vec::new();
    for (at, line) in text.lines().enumerate() {
        for word in unwanted.iter().map(|parts| parts.concat()).filter(|w| line.contains(w)) {
            wrong.push(format!("{path}:{}: names {word}", at + 1));
        }
    }
    wrong
}

/// Options of the daemon that do not exist: long options behind its name on the same line.
pub fn options(path: &str, text: &str, known: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let Some((_, rest)) = line.split_once("hostlerd") else { continue };
        let end = rest.find(['|', ';', '`']).unwrap_or(rest.len());
        for word in rest[..end].split([' ', '=', '[', ']', ',', ')', '(', '"']) {
            if word.starts_with("--") && word.len() > 2 && !known.contains(word) {
                wrong.push(format!("{path}:{}: hostlerd has no option {word}", at + 1));
            }
        }
    }
    wrong
}

/// Names in a text that end like units of ours.
pub fn units(path: &str, text: &str, known: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let part = |c: char| c.is_ascii_alphanumeric() || "-_.@{},%".contains(c);
    for (at, line) in text.lines().enumerate() {
        for word in line.split(|c| !part(c)) {
            let word = word.trim_matches(['.', ',']);
            let unit =
                [".service", ".socket", ".target", ".timer"].iter().any(|e| word.ends_with(e));
            // An instance of a template is a name of its own.
            let template = word.split_once('@').map(|(name, rest)| {
                format!("{name}@.{}", rest.rsplit('.').next().unwrap_or_default())
            });
            let is_known = known.contains(template.as_deref().unwrap_or(word));
            if unit && word.starts_with("hostler") && !is_known {
                wrong.push(format!("{path}:{}: there is no unit {word}", at + 1));
            }
        }
    }
    wrong
}

/// `make x` in a text.
pub fn make(path: &str, text: &str, known: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, line) in text.lines().enumerate() {
        for (start, _) in line.match_indices("`make ") {
            let rest = &line[start + "`make ".len()..];
            let end =
                rest.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(rest.len());
            if end > 0 && !known.contains(&rest[..end]) {
                wrong.push(format!("{path}:{}: there is no target {}", at + 1, &rest[..end]));
            }
        }
    }
    wrong
}

/// Files of the tree that a text names in backquotes or as link targets.
pub fn paths(path: &str, text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let tops = ["src/", "tests/", "units/", "packaging/", "contrib/", "docs/", ".ci/", ".config/"];
    let mut wrong = Vec::new();
    for (at, line) in text.lines().enumerate() {
        for word in line.split(['`', '(', ')', ' ', ',']) {
            let word = word.trim_end_matches(['.', ':', ';', '/']);
            // Words in capitals stand for something: tests/roots/cases/NAME.
            let placeholder = word
                .split('/')
                .any(|part| part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase()));
            let plain = !placeholder
                && word.chars().all(|c| c.is_ascii_alphanumeric() || "/-_.".contains(c));
            if plain && tops.iter().any(|t| word.starts_with(t)) && !exists(word) {
                wrong.push(format!("{path}:{}: there is no {word}", at + 1));
            }
        }
    }
    wrong
}

/// Every rule lets the good pass and finds the bad: a rule that cannot fail is none.
mod tests {
    use super::*;

    fn known(words: &[&str]) -> BTreeSet<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn layers_are_kept_apart() {
        let up = "use crate::supervisor::State;";
        assert_eq!(layers("src/plan/x.rs", up).len(), 1);
        assert_eq!(layers("src/plan/x.rs", "use crate::types::Bytes; // crate::proxy"), [""; 0]);
        assert_eq!(layers("src/plan/x.rs", "use crate::types_of_others;").len(), 1);
        assert_eq!(layers("src/adapters/gpu/x.rs", "crate::adapters::podman::A").len(), 1);
        assert_eq!(layers("src/adapters/gpu/x.rs", "crate::adapters::gpu::A"), [""; 0]);
        assert_eq!(layers("src/adapters/engine/x.rs", "crate::plan::estimate::f"), [""; 0]);
        assert_eq!(layers("src/adapters/engine/x.rs", "crate::plan::ledger::f").len(), 1);
        assert_eq!(layers("src/proxy/x.rs", "use crate::supervisor::state::State;").len(), 1);
        assert_eq!(layers("src/proxy/x.rs", "#[cfg(test)]\nuse crate::daemon;"), [""; 0]);
        assert_eq!(layers("src/proxy/x.rs", "#[cfg(test)]\nmod t;\nuse crate::daemon;").len(), 1);
        assert_eq!(layers("src/nowhere/x.rs", "").len(), 1);
        assert_eq!(layers("src/daemon/x.rs", up), [""; 0]);
    }

    #[test]
    fn impurity_is_seen() {
        for bad in ["use std::fs;", "tokio::spawn(f)", "let t = Instant::now();", "println!(\"\")"]
        {
            assert_eq!(purity("src/plan/x.rs", bad).len(), 1, "{bad}");
        }
        assert_eq!(purity("src/plan/x.rs", "/// tokio\nlet tokios = Instantly;"), [""; 0]);
        assert!(is_pure("src/supervisor/state.rs") && !is_pure("src/supervisor/task.rs"));
        assert!(!is_pure("src/proxy/server.rs") && !is_pure("src/supervisor/tests.rs"));
    }

    #[test]
    fn lengths_only_shrink() {
        let file = |lines| File { path: "src/a.rs".to_owned(), text: "x\n".repeat(lines) };
        let long = [("src/a.rs", 500)];
        assert_eq!(length(&file(400), &[]), [""; 0]);
        assert_eq!(length(&file(401), &[]).len(), 1);
        assert_eq!(length(&file(500), &long), [""; 0]);
        for lines in [400, 499, 501] {
            assert_eq!(length(&file(lines), &long).len(), 1, "{lines}");
        }
    }

    #[test]
    fn what_is_missing_or_unwanted_is_seen() {
        assert_eq!(opening("a.rs", "//! What it is for."), [""; 0]);
        assert_eq!(opening("a.rs", "use x;").len(), 1);
        let bare = format!("  #[{}]\nfn f() {{}}", "ignore");
        assert_eq!(ignored("a.rs", &bare).len(), 1);
        assert_eq!(ignored("a.rs", "#[ignore = \"needs a GPU\"]"), [""; 0]);
        assert_eq!(words("a", &["see quay", ".io/x"].concat()).len(), 1);
        assert_eq!(words("a", "see localhost/x"), [""; 0]);
    }

    #[test]
    fn names_that_do_not_exist_are_seen() {
        let flags = known(&["--config"]);
        assert_eq!(options("a", "hostlerd --config x | grep --foo", &flags), [""; 0]);
        assert_eq!(options("a", "hostlerd --confg=x", &flags).len(), 1);
        let have = known(&["hostler.socket"]);
        assert_eq!(units("a", "start hostler.socket, then nginx.service.", &have), [""; 0]);
        assert_eq!(units("a", "(`hostler-x.service`)", &have).len(), 1);
        let targets = known(&["check"]);
        assert_eq!(make("a", "run `make check` to make sure", &targets), [""; 0]);
        assert_eq!(make("a", "run `make chek X=1`", &targets).len(), 1);
        let exists = |p: &str| p == "src/lib.rs";
        assert_eq!(paths("a", "see `src/lib.rs`, src/*/x, tests/NAME/x", &exists), [""; 0]);
        assert_eq!(paths("a", "see [it](docs/none.md).", &exists).len(), 1);
    }
}
