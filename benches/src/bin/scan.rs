//! `scan`: how long a body's scan takes, for chats of 100 kB with `model` as the last key.

use std::time::Instant;

/// Times each body is scanned; the middle one counts.
const TIMES: usize = 2001;

fn chat(turn: &str) -> String {
    let turn = format!("{{\"role\":\"user\",\"content\":\"{turn}\"}}");
    let turns = vec![turn.as_str(); 100_000 / turn.len()].join(",");
    format!("{{\"messages\":[{turns}],\"temperature\":0.7,\"model\":\"m\"}}")
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
        ("turns of 2 kB of Chinese", chat(&"快速的棕色狐狸跳过了懒狗。".repeat(52))),
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
        println!("{name}: {} bytes in {:?}", body.len(), took[TIMES / 2]);
    }
}
