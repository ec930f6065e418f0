//! A rule of its own: the command that writes a CDI specification is everywhere the one that the program has.

use hostler::types::CDI_GENERATE;

use super::tree::{files, shipped};
use super::{hold, prose, rust};

/// Where a text names another command that writes one.
fn others(path: &str, text: &str) -> Vec<String> {
    let command = CDI_GENERATE.split(" --").next().unwrap_or_default();
    let other = |(_, line): &(usize, &str)| {
        line.match_indices(command).any(|(at, _)| !line[at..].starts_with(CDI_GENERATE))
    };
    let lines = text.lines().enumerate().filter(other);
    lines.map(|(at, _)| format!("{path}:{}: it is \"{CDI_GENERATE}\"", at + 1)).collect()
}

#[test]
fn another_command_is_seen() {
    assert_eq!(others("t.md", &format!("run `{CDI_GENERATE} --output=x`")), [""; 0]);
    let uuid = "x\nnvidia-ctk cdi generate --device-name-strategy=uuid";
    assert_eq!(others("t.md", uuid).len(), 1);
    assert_eq!(others("t.md", "`nvidia-ctk cdi generate`").len(), 1);
}

#[test]
fn it_is_written_by_one_command() {
    let all = files();
    let mut texts = prose(&all);
    // It is made there.
    let code = |f: &&super::File| f.path.starts_with("src/") && f.path != "src/types/cdi.rs";
    texts.extend(rust(&all).into_iter().filter(code));
    hold(&texts, |f| {
        let shipped: Vec<&str> = shipped(&f.text).map(|(_, line)| line).collect();
        others(&f.path, &shipped.join("\n"))
    });
}
