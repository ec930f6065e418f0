//! Counts the events of a stream as its bytes go by. PURE.
//!
//! Invariants: what is counted does not depend on how the bytes were cut; nothing is kept but the place in a line.

use memchr::memchr2;

/// How the data of a server-sent event begins.
const FIELD: &[u8] = b"data:";

/// Where in a line the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// So many bytes of it are those of [`FIELD`].
    Field(usize),
    /// The rest of the line does not matter.
    Rest,
}

/// Counts lines of data. Engines write one for each chunk of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunks(Place);

impl Default for Chunks {
    fn default() -> Self {
        Self(Place::Field(0))
    }
}

impl Chunks {
    /// How many begin in the next bytes.
    pub fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut count = 0;
        while let Some((first, rest)) = bytes.split_first() {
            match self.0 {
                Place::Rest => {
                    let Some(end) = memchr2(b'\n', b'\r', bytes) else { return count };
                    bytes = &bytes[end + 1..];
                    self.0 = Place::Field(0);
                }
                Place::Field(at) => {
                    bytes = rest;
                    self.0 = match first {
                        b'\n' | b'\r' => Place::Field(0),
                        byte if *byte != FIELD[at] => Place::Rest,
                        _ if at + 1 < FIELD.len() => Place::Field(at + 1),
                        _ => {
                            count += 1;
                            Place::Rest
                        }
                    };
                }
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": ping\n\ndata: {\"content\":\"data: \\ndata:\"}\n\nevent: delta\r\ndata:{}\r\n\r\n\
                          dat: no\ndatum: no\n data: no\n\ndata: [DONE]\n\n";

    #[test]
    fn data_lines_are_counted_however_they_are_cut() {
        assert_eq!(Chunks::default().count(STREAM.as_bytes()), 3);
        for size in 1..STREAM.len() {
            let mut chunks = Chunks::default();
            let cut: u64 = STREAM.as_bytes().chunks(size).map(|part| chunks.count(part)).sum();
            assert_eq!(cut, 3, "in pieces of {size}");
        }
        assert_eq!(Chunks::default().count(b""), 0);
    }
}
