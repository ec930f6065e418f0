//! Settings of the whole: what becomes of each top-level key. PURE.

use super::left::{Left, NOTHING, Why};
use super::node::Node;

/// What models inherit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Globals {
    /// Seconds; llama-swap's default is 0: never.
    pub ttl: i64,
    /// Seconds to a healthy engine, where it is said.
    pub load: Option<i64>,
    /// Seconds to a stop by force, where it is said.
    pub unload: Option<i64>,
    /// For `[log] level`.
    pub level: Option<String>,
    /// What was not taken over.
    pub left: Vec<Left>,
}

/// Keys that other parts of the import read.
const ELSEWHERE: [&str; 7] = ["models", "macros", "groups", "matrix", "routing", "hooks", "peers"];

/// Keys for which there is no place: the key, why, and what to do.
const NO_PLACE: [(&str, &str, &str); 15] = [
    ("startPort", "Hostler decides where engines listen", NOTHING),
    (
        "logTimeFormat",
        "the journal has its own times",
        "journalctl -o short-iso shows them otherwise",
    ),
    (
        "logToStdout",
        "the daemon writes to the journal, engines to podman",
        "hostler logs MODEL shows an engine's",
    ),
    ("logRequests", "each request has its line in the journal", NOTHING),
    ("metricsMaxInMemory", "numbers are kept by whoever reads /metrics", NOTHING),
    ("store", "what was done is in the journal, and in numbers in /metrics", NOTHING),
    ("captureBuffer", "requests and answers are never kept", NOTHING),
    ("ui", "the dashboard has no settings", NOTHING),
    ("performance", "the devices' numbers are in /metrics and on the dashboard", NOTHING),
    ("includeAliasesInList", "/v1/models lists all names and aliases", NOTHING),
    (
        "upstream",
        "no path passes everything on to an engine",
        "use the paths that docs/api.md lists",
    ),
    (
        "profiles",
        "a name is one model's at all times",
        "move the alias to another model, and hostler reload",
    ),
    (
        "selectors",
        "a name is one model's, and clients choose",
        "name the model that is meant, or give it an alias",
    ),
    (
        "apiKeys",
        "Hostler holds digests of keys, in a file of their own; without them everybody on this host is served",
        "write [auth] keys_file and the file, as docs/api.md says",
    ),
    (
        "sendLoadingState",
        "streams get signs of life while a model loads, but no texts in the answer",
        "loading_feedback says of which kind",
    ),
];

/// Reads the top level.
pub fn read(root: &Node) -> Globals {
    let mut globals = Globals::default();
    for (key, value) in root.entries().iter().filter(|(_, value)| *value != Node::Null) {
        let number = |least: i64| value.int().filter(|number| *number >= least);
        let why = match key.as_str() {
            "globalTTL" => number(0).map(|n| globals.ttl = n).ok_or_else(not_seconds),
            // llama-swap takes less for 15.
            "healthCheckTimeout" => {
                number(0).map(|n| globals.load = Some(n.max(15))).ok_or_else(not_seconds)
            }
            // llama-swap takes 0 for its default.
            "unloadTimeout" => number(0)
                .map(|n| globals.unload = Some(n).filter(|n| *n > 0))
                .ok_or_else(not_seconds),
            "logLevel" => level(&mut globals, value),
            "includeAliasesInList" if value.flag() == Some(true) => Ok(()),
            "sendLoadingState" if value.flag() == Some(false) => Ok(()),
            key if ELSEWHERE.contains(&key) => Ok(()),
            key => Err(super::unread(&NO_PLACE, key)),
        };
        if let Err(why) = why {
            globals.left.push(Left { model: None, key: key.clone(), why });
        }
    }
    globals
}

/// Of a value that should be a number of seconds.
pub fn not_seconds() -> Why {
    Why::new("it is no number of seconds", "correct it, and import again")
}

fn level(globals: &mut Globals, value: &Node) -> Result<(), Why> {
    let word = value.text().unwrap_or_default();
    if ["debug", "info", "warn", "error"].contains(&word.as_str()) {
        globals.level = Some(word);
        return Ok(());
    }
    Err(Why::new("it is none of debug, info, warn, error", "[log] level says what is written down"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_taken_or_left() {
        let text = "globalTTL: 60\nhealthCheckTimeout: 5\nunloadTimeout: 0\nlogLevel: warn\nstartPort: 1\n\
                    apiKeys: [sk-secret]\nnews: 1\nsendLoadingState: false\nincludeAliasesInList: true\nui: ~\n";
        let globals = read(&Node::parse(text).unwrap());
        assert_eq!((globals.ttl, globals.load, globals.unload), (60, Some(15), None));
        assert_eq!(globals.level.as_deref(), Some("warn"));
        let keys: Vec<&str> = globals.left.iter().map(|l| l.key.as_str()).collect();
        assert_eq!(keys, ["startPort", "apiKeys", "news"]);
        assert!(!format!("{:?}", globals.left).contains("sk-secret"));
        let wrong =
            read(&Node::parse("globalTTL: soon\nlogLevel: loud\nunloadTimeout: -1").unwrap());
        assert_eq!(wrong.left.len(), 3);
    }
}
