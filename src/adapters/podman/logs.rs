//! podman's log stream: frames of `[stream, 0, 0, 0, length in 4 bytes, big end first]` and text.
//!
//! Purpose: lines for people out of whatever bytes an engine wrote. Invariants: never panics, whatever comes; a
//! line has at most [`LINE_MAX`] characters and no control characters, for it goes into logs and error bodies.

/// The longest line that is kept, in characters.
const LINE_MAX: usize = 2000;

/// The last `count` lines, oldest first.
#[must_use]
pub fn last_lines(stream: &[u8], count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(&payload(stream)).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let skip = lines.len().saturating_sub(count);
    lines.into_iter().skip(skip).map(clean).collect()
}

fn clean(line: &str) -> String {
    line.chars().filter(|c| !c.is_control() || *c == '\t').take(LINE_MAX).collect()
}

/// Takes the frames' headers out. A stream that is not framed (a container with a terminal) is its own payload.
fn payload(mut stream: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(stream.len());
    while let Some((header, rest)) = stream.split_first_chunk::<8>() {
        let [kind, 0, 0, 0, a, b, c, d] = *header else { break };
        if kind > 2 {
            break;
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let (frame, after) = rest.split_at(length.min(rest.len()));
        text.extend_from_slice(frame);
        stream = after;
    }
    text.extend_from_slice(stream);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, text: &str) -> Vec<u8> {
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn both_streams_in_order_the_last_lines_only() {
        let stream = [frame(1, "one\n"), frame(2, "two\nthr"), frame(1, "ee\n\n")].concat();
        assert_eq!(last_lines(&stream, 9), ["one", "two", "three"]);
        assert_eq!(last_lines(&stream, 1), ["three"]);
        assert_eq!(last_lines(&stream, 0), [""; 0]);
        assert_eq!(last_lines(b"", 5), [""; 0]);
    }

    #[test]
    fn garbage_is_harmless() {
        assert_eq!(last_lines(b"plain\nlines\n", 9), ["plain", "lines"]);
        let mut cut = frame(1, "whole\nhalf");
        cut.truncate(cut.len() - 2);
        assert_eq!(last_lines(&cut, 9), ["whole", "ha"]);
        let mut lying = frame(1, "x");
        lying[4] = 0xff;
        assert_eq!(last_lines(&lying, 9), ["x"]);
        assert_eq!(last_lines(&frame(1, "\u{1b}[31mred\0"), 9), ["[31mred"]);
        assert_eq!(last_lines(&frame(1, &"y".repeat(9000)), 9)[0].len(), LINE_MAX);
        let _ = last_lines(&[1, 0, 0, 0, 0, 0], 9);
        assert_eq!(last_lines(&[255, 254], 9).len(), 1);
    }
}
