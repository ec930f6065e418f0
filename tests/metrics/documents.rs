//! `docs/metrics.md` has a row for each metric. `UPDATE=1` writes them.

use std::fs;

use hostler::observe::metrics::names;

use crate::root;

const BEGIN: &str =
    "<!-- made from src/observe/metrics/names.rs: UPDATE=1 cargo test --test metrics -->\n";
const END: &str = "<!-- end -->\n";

fn table() -> String {
    let mut text = String::from("| Metric | Type | Labels | What it says |\n|---|---|---|---|\n");
    for metric in names::ALL {
        let labels: Vec<String> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
        let row =
            [&format!("`{}`", metric.name), metric.kind.as_str(), &labels.join(", "), metric.help];
        text += &format!("| {} |\n", row.join(" | "));
    }
    text
}

#[test]
fn the_table_is_that_of_the_source() {
    let path = root().join("docs/metrics.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let want = format!("{before}{BEGIN}{}{END}{after}", table());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, want).unwrap();
        return;
    }
    assert!(text == want, "docs/metrics.md is old: UPDATE=1 cargo test --test metrics");
}
