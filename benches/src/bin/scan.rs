//! `scan`: how long a body's scan takes, for chats of 100 kB with `model` as the last key.

use std::time::Instant;

/// Times each body is scanned. Others on the machine only ever add to a time, so a low one is told beside the middle one.
const TIMES: usize = 2001;

fn chat(turn: &str) -> String {
    let turn = format!("{{\"role\":\"user\",\"content\":\"{turn}\"}}");
    let turns = vec![turn.as_str(); 100_000 / turn.len()].join(",");
    format!("{{\"messages\":[{turns}],\"temperature\":0.7,\"model\":\"m\"}}")
}

fn tokens() -> String {
    let tokens: Vec<_> = (0..17_000_u64).map(|n| (n * 7919 % 128_000).to_string()).collect();
    format!("{{\"input\":[{}],\"model\":\"m\"}}", tokens.join(","))
}

fn main() {
    let line = "The quick brown fox jumps over the lazy dog, and nobody minds it at all today";
    let bodies = [
        ("turns of 2 kB of plain text", chat(&line.repeat(26))),
        ("turns of 2 kB, a line end each 77 characters", chat(&format!("{line}\\n").repeat(26))),
        (
            "turns of 2 kB of source code in quotes",
            chat(&"let a = \\\"b\\\";\\n    if (c) {\\n".repeat(70)),
        ),
        (
            "turns of 2 kB of Go, with tabs",
            chat(&"\\tif err != nil {\\n\\t\\treturn \\\"a\\\", err\\n\\t}\\n".repeat(45)),
        ),
        ("turns of 2 kB of Chinese", chat(&"快速的棕色狐狸跳过了懒狗。".repeat(52))),
        (
            "turns of 2 kB of French, as Python's json writes it",
            chat(&"\\u00e9t\\u00e9 la belle saison est revenue dans ".repeat(46)),
        ),
        (
            "turns of 2 kB of Chinese, as Python's json writes it",
            chat(&"\\u5feb\\u901f\\u7684\\u68d5\\u8272".repeat(67)),
        ),
        ("one word a turn", chat("hi")),
        ("tokens by number", tokens()),
    ];
    for (name, body) in &bodies {
        let mut took: Vec<_> = (0..TIMES)
            .map(|_| {
                let begun = Instant::now();
                assert!(hostler::proxy::scan(std::hint::black_box(body.as_bytes())));
                begun.elapsed()
            })
            .collect();
        took.sort();
        println!(
            "{name}: {} bytes in {:?}, or {:?}",
            body.len(),
            took[TIMES / 2],
            took[TIMES / 20]
        );
    }
}
