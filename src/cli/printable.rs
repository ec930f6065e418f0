//! What others wrote, for a terminal.
//!
//! Purpose: an engine's lines may hold what moves the cursor, sets the title or fills the clipboard of whoever reads them, who is often
//! root. Owner: one for each output. Invariants: text, line ends, tabs and colours pass as they are, and nothing is lost: all else is
//! spelt out. A return to the line's beginning, by which progress is drawn, is a line's end. Cuts between two feeds make no difference.

/// No colour is longer.
const COLOUR_MAX: usize = 32;

/// Spells out what a terminal would obey.
#[derive(Debug, Default)]
pub struct Printable {
    /// The beginning of what cannot be judged yet.
    held: Vec<u8>,
}

/// Of the first bytes.
enum Verdict {
    More,
    Pass(usize),
    Spell(usize),
    /// A lone return.
    Line,
}

impl Printable {
    /// What `bytes` are to a terminal.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            self.held.push(*byte);
            self.settle(&mut out);
        }
        out
    }

    /// What is left at the end.
    pub fn end(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.held == b"\r" {
            self.held = b"\n".to_vec();
        }
        spell(&std::mem::take(&mut self.held), &mut out);
        out
    }

    fn settle(&mut self, out: &mut Vec<u8>) {
        loop {
            match judge(&self.held) {
                Verdict::More => return,
                Verdict::Pass(count) => out.extend(self.held.drain(..count)),
                // What follows is judged by itself: it may be the beginning of something else.
                Verdict::Spell(count) => spell(self.held.drain(..count).as_slice(), out),
                Verdict::Line => {
                    self.held.remove(0);
                    out.push(b'\n');
                }
            }
        }
    }
}

fn judge(held: &[u8]) -> Verdict {
    match held {
        [] | [0x1b] | [0x1b, b'['] | [b'\r'] | [0xc2] => Verdict::More,
        [b'\r', b'\n', ..] => Verdict::Pass(2),
        [b'\r', ..] => Verdict::Line,
        [0x1b, b'[', rest @ ..] => {
            let digits = rest.iter().take_while(|byte| is_digit(byte)).count();
            match rest.get(digits) {
                Some(b'm') => Verdict::Pass(digits + 3),
                None if held.len() < COLOUR_MAX => Verdict::More,
                _ => Verdict::Spell(1),
            }
        }
        [0xc2, 0x80..=0x9f, ..] => Verdict::Spell(2),
        [0xc2, 0xa0..=0xbf, ..] => Verdict::Pass(2),
        [b'\n' | b'\t' | 0x20..=0x7e | 0x80..=0xc1 | 0xc3..=0xff, ..] => Verdict::Pass(1),
        _ => Verdict::Spell(1),
    }
}

fn is_digit(byte: &u8) -> bool {
    byte.is_ascii_digit() || *byte == b';'
}

fn spell(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        match byte {
            b'\n' | b'\t' | 0x20..=0x7e => out.push(*byte),
            byte => out.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&[u8]]) -> String {
        let mut filter = Printable::default();
        let mut out: Vec<u8> = pieces.iter().flat_map(|piece| filter.feed(piece)).collect();
        out.extend(filter.end());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_terminal_obeys_nothing_but_colours() {
        for (written, seen) in [
            ("plain é 漢 \t\n", "plain é 漢 \t\n"),
            ("\x1b[1;31mred\x1b[0m \x1b[m", "\x1b[1;31mred\x1b[0m \x1b[m"),
            ("\x1b]52;c;Zm9v\x07", "\\x1b]52;c;Zm9v\\x07"),
            ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
            ("\u{9b}2J", "\\xc2\\x9b2J"),
            ("a\r\nb\rc\r", "a\r\nb\nc\n"),
            ("\x08\x7f\0", "\\x08\\x7f\\x00"),
            ("cut \x1b[3", "cut \\x1b[3"),
            ("\r\x1b[2K", "\n\\x1b[2K"),
            ("£\u{c2}", "£Â"),
            ("\x1b\u{9b}2J", "\\x1b\\xc2\\x9b2J"),
            ("\x1b[1\u{9b}2J", "\\x1b[1\\xc2\\x9b2J"),
            ("\x1b\x1b[1m", "\\x1b\x1b[1m"),
        ] {
            assert_eq!(shown(&[written.as_bytes()]), seen, "{written:?}");
            let bytes: Vec<&[u8]> = written.as_bytes().chunks(1).collect();
            assert_eq!(shown(&bytes), seen, "{written:?} by bytes");
        }
        // A lead without its end takes no part of what follows.
        assert_eq!(shown(&[b"\xc2\xc2\x9b2J"]), "\\xc2\\xc2\\x9b2J");
        let endless = format!("\x1b[{}", "1".repeat(100));
        assert!(shown(&[endless.as_bytes()]).starts_with("\\x1b[1111"));
    }
}
