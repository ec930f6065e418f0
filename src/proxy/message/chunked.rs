//! The framing of a body in chunks. PURE.
//!
//! Purpose: the data without its framing, however the bytes are cut. Owner: [`super::Body`]. Invariants: a line that does not end as it
//! must is refused; extensions and trailers are passed over, and bounded.

/// Bytes of extensions between two chunks' data, and of all trailers.
const ASIDE_MAX: u32 = 16 << 10;

/// Where in the framing of chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// In a size, of which so many digits have come.
    #[default]
    Size,
    Extension,
    SizeEnd,
    Data,
    DataEnd,
    DataEndLf,
    /// At the start of a trailer, or of the last line end.
    Line,
    Trailer,
    TrailerEnd,
    End,
    Done,
}

/// The decoder of chunks.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Chunks {
    at: At,
    /// Of the size so far, or of the data to come.
    size: u64,
    digits: u8,
    aside: u32,
}

impl Chunks {
    /// Whether the last one and the trailers are over.
    pub fn are_whole(&self) -> bool {
        self.at == At::Done
    }

    /// See [`super::Body::take`].
    pub fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, &'static str> {
        let mut i = 0;
        while let Some(&byte) = bytes.get(i) {
            if self.at == At::Done {
                break;
            }
            if self.at == At::Data {
                let count = usize::try_from(self.size).unwrap_or(usize::MAX).min(bytes.len() - i);
                out.extend_from_slice(&bytes[i..i + count]);
                self.size -= count as u64;
                i += count;
                if self.size == 0 {
                    self.at = At::DataEnd;
                }
                continue;
            }
            self.step(byte)?;
            i += 1;
        }
        Ok(i)
    }

    fn step(&mut self, byte: u8) -> Result<(), &'static str> {
        self.at = match (self.at, byte) {
            (At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                self.digits += 1;
                if self.digits > 15 {
                    return Err("a chunk's size is too long");
                }
                self.size = self.size << 4 | u64::from(digit);
                At::Size
            }
            (At::Size, _) if self.digits == 0 => return Err("a chunk has no size"),
            (At::Size, b'\r') => At::SizeEnd,
            (At::Size, b';' | b' ' | b'\t') => At::Extension,
            (At::Extension, b'\r') => At::SizeEnd,
            (At::SizeEnd, b'\n') => {
                self.digits = 0;
                if self.size == 0 { At::Line } else { At::Data }
            }
            (At::DataEnd, b'\r') => At::DataEndLf,
            (At::DataEndLf, b'\n') => {
                self.aside = 0;
                At::Size
            }
            (At::Line, b'\r') => At::End,
            (At::Trailer, b'\r') => At::TrailerEnd,
            (At::TrailerEnd, b'\n') => At::Line,
            (At::End, b'\n') => At::Done,
            // Neither is passed on, so neither is looked at.
            (At::Extension | At::Line | At::Trailer, _) if byte != b'\n' => {
                self.aside += 1;
                if self.aside > ASIDE_MAX {
                    return Err("a chunk's extension or the trailers have no end");
                }
                if self.at == At::Extension { At::Extension } else { At::Trailer }
            }
            _ => return Err("a chunk's line does not end as it must"),
        };
        Ok(())
    }
}
