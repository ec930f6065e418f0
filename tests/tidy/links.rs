//! A rule of its own: links in texts lead somewhere.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::File;

/// A link of a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Link {
    /// The line, from 1.
    pub line: usize,
    /// Its target as written.
    pub target: String,
}

/// The lines of a text that are no code, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut block = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let fence = line.trim_start().starts_with("```");
        block ^= fence;
        (!block && !fence && !line.starts_with("    ")).then_some((at + 1, line))
    })
}

/// A line without what is in backquotes.
fn bare(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// `[text](target)` and `[name]: target`, pictures too.
pub fn links(text: &str) -> Vec<Link> {
    let mut found = Vec::new();
    for (line, text) in prose(text) {
        let bare = bare(text);
        let targets = bare.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        let mut targets: Vec<&str> = targets.map(|(target, _)| target).collect();
        let definition = bare.strip_prefix('[').and_then(|rest| rest.split_once("]: "));
        targets.extend(definition.map(|(_, target)| target.trim()));
        found.extend(targets.into_iter().map(|target| Link { line, target: target.to_owned() }));
    }
    found
}

/// The anchors that headings get: lower case, without punctuation, blanks as dashes; the second of a name with `-1`.
pub fn anchors(text: &str) -> BTreeSet<String> {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for (_, line) in prose(text) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
        let slug: String = title.trim().to_lowercase().chars().filter(kept).collect();
        let slug = slug.replace(' ', "-");
        let times = count.entry(slug.clone()).or_default();
        found.insert(if *times == 0 { slug } else { format!("{slug}-{times}") });
        *times += 1;
    }
    found
}

/// `target`, seen from the folder of `path`, from the root.
fn resolve(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What is wrong with the links of a text. `exists` knows every path, `texts` every Markdown file.
pub fn broken(
    file: &File,
    texts: &BTreeMap<&str, &str>,
    exists: &dyn Fn(&str) -> bool,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for Link { line, target } in links(&file.text) {
        let place = format!("{}:{line}", file.path);
        if let Some((scheme, _)) = target.split_once("://") {
            if scheme != "https" {
                wrong.push(format!("{place}: {target} is not https"));
            }
            continue;
        }
        let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
        let path = if path.is_empty() { file.path.clone() } else { resolve(&file.path, path) };
        if !exists(&path) {
            wrong.push(format!("{place}: there is no {path}"));
        } else if !anchor.is_empty()
            && !texts.get(path.as_str()).is_some_and(|text| anchors(text).contains(anchor))
        {
            wrong.push(format!("{place}: {path} has no heading #{anchor}"));
        }
    }
    wrong
}

/// Texts that no chain of links from `start` leads to.
pub fn unreachable<'t>(start: &str, texts: &BTreeMap<&'t str, &'t str>) -> Vec<&'t str> {
    let mut reached = BTreeSet::from([start.to_owned()]);
    let mut next = vec![start.to_owned()];
    while let Some(path) = next.pop() {
        for Link { target, .. } in texts.get(path.as_str()).map(|t| links(t)).unwrap_or_default() {
            let to = resolve(&path, target.split('#').next().unwrap_or_default());
            if texts.contains_key(to.as_str()) && reached.insert(to.clone()) {
                next.push(to);
            }
        }
    }
    texts.keys().filter(|path| !reached.contains(**path)).copied().collect()
}

#[test]
fn links_that_lead_nowhere_are_seen() {
    let text = "# A `b` (c)\n[x](docs/d.md#two-words) ![p](p.png) [s](https://e.org) [t](#a-b-c)\n\
                `[no](code)`\n```\n[no](block)\n# no heading\n```\n    [no](indented)\n[r]: http://e.org\n## A b c\n";
    let file = File { path: "README.md".into(), text: text.into() };
    let linked = "[back](../README.md#a-b-c-1) [up](../none.md)\n## Two, words!\n";
    let texts =
        BTreeMap::from([("README.md", text), ("docs/d.md", linked), ("docs/lonely.md", "")]);
    let exists = |path: &str| texts.contains_key(path);
    assert_eq!(links(text).len(), 5);
    assert_eq!(
        broken(&file, &texts, &exists),
        ["README.md:2: there is no p.png", "README.md:9: http://e.org is not https"]
    );
    let linked = File { path: "docs/d.md".into(), text: linked.into() };
    assert_eq!(broken(&linked, &texts, &exists), ["docs/d.md:1: there is no none.md"]);
    let wrong = File { path: "a.md".into(), text: "[x](docs/d.md#three)".into() };
    assert_eq!(broken(&wrong, &texts, &exists), ["a.md:1: docs/d.md has no heading #three"]);
    assert_eq!(unreachable("README.md", &texts), ["docs/lonely.md"]);
}
