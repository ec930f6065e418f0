//! `docs/api.md` has every `error.code` that a client can be told, and no other.

use std::collections::BTreeSet;

use super::tree::{File, files, shipped};

/// Where what a client is told of an error is made up.
const FROM: [&str; 3] = ["src/proxy/", "src/console/", "src/types/denied.rs"];

/// Whether a literal between these texts is a code: behind a status, or where codes are handed on.
fn is_code(file: &str, before: &str, behind: &str) -> bool {
    let before = before.trim_end();
    if file == "src/types/denied.rs" {
        return before.ends_with("=>");
    }
    if before.ends_with("bad(") || before.ends_with("code:") {
        return true;
    }
    if before.ends_with('(') && (behind.starts_with(", None)") || behind.starts_with(", Some(")) {
        return true;
    }
    let Some(before) = before.strip_suffix(',') else { return false };
    let start = before.rfind(|c: char| c.is_whitespace() || c == '(').map_or(0, |at| at + 1);
    let status = &before[start..];
    let number = status.len() == 3 && status.bytes().all(|b| b.is_ascii_digit());
    number
        || status.starts_with("StatusCode::")
        || ["status", "status)", "too_many"].contains(&status)
}

fn codes(file: &File) -> BTreeSet<String> {
    let lines: Vec<&str> = shipped(&file.text).map(|(_, line)| line).collect();
    let code = lines.join("\n");
    let word =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b == b'_' || b.is_ascii_lowercase());
    let quotes: Vec<usize> = code.match_indices('"').map(|(at, _)| at).collect();
    let pairs = quotes.windows(2).map(|pair| (pair[0], pair[1]));
    let literals = pairs.filter(|(from, to)| {
        word(&code[from + 1..*to]) && is_code(&file.path, &code[..*from], &code[to + 1..])
    });
    literals.map(|(from, to)| code[from + 1..to].to_owned()).collect()
}

/// What stands in backquotes in the second column of a chapter's tables.
fn documented(page: &str) -> BTreeSet<&str> {
    let chapter = page.split("\n## Errors\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows =
        chapter.lines().filter(|line| line.starts_with("| ") && !line.contains("| `code` |"));
    let cells = rows.filter_map(|row| row.split('|').nth(2));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn the_table_of_errors_is_whole() {
    let all = files();
    let sources = all.iter().filter(|file| {
        let tests = file.path.ends_with("/tests.rs") || file.path.ends_with("/fuzz.rs");
        FROM.iter().any(|from| file.path.starts_with(from)) && file.path.ends_with(".rs") && !tests
    });
    let told: BTreeSet<String> = sources.flat_map(codes).collect();
    let told: BTreeSet<&str> = told.iter().map(String::as_str).collect();
    let page = &all.iter().find(|file| file.path == "docs/api.md").unwrap().text;
    let documented = documented(page);
    let missing: Vec<_> = told.difference(&documented).collect();
    let unheard: Vec<_> = documented.difference(&told).collect();
    assert!(
        missing.is_empty() && unheard.is_empty(),
        "not in docs/api.md: {missing:?}; nobody says: {unheard:?}"
    );
}

#[test]
fn a_code_is_known_by_where_it_stands() {
    let file = |text: &str| File { path: "src/proxy/x.rs".into(), text: text.into() };
    let text = "ApiError::new(StatusCode::NOT_FOUND, \"a_b\", \"word\"); Refusal { status: 502, code: \"c\", message }\n\
        _ => (503, \"d\"),\nlet x = \"e\";\nbad(\n    \"f\",\n) (\"g\", Some(1)) new(too_many, \"h\", m)\n\
        #[cfg(test)]\nmod tests { code: \"i\" }";
    let found = file(text);
    assert!(codes(&found).iter().eq(&["a_b", "c", "d", "f", "g", "h"]), "{:?}", codes(&found));
}
