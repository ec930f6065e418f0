//! The heads of a WebSocket's frames. PURE.
//!
//! Purpose: know whether a side has said that it ends, in bytes that pass as they come. Owner: [`super::tunnel`], one for each direction.
//! Invariants: nothing of a payload is kept or looked at; bytes that are no frames harm nobody but the answer.

/// The longest head: two bytes, a length, a mask.
const HEAD: usize = 2 + 8 + 4;
/// The frame that says so.
const CLOSE: u8 = 8;

/// Where in a frame the bytes that have passed end.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; HEAD],
    /// So much of a head has come.
    has: usize,
    /// So much of a payload has not.
    left: u64,
    parting: bool,
}

impl Frames {
    /// Further bytes.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left = self.left.saturating_sub(u64::try_from(skipped).unwrap_or(u64::MAX));
                bytes = &bytes[skipped..];
                continue;
            }
            self.head[self.has] = *first;
            self.has += 1;
            bytes = rest;
            self.begin();
        }
    }

    /// The payload begins, if the head is whole.
    fn begin(&mut self) {
        let (head, length) = self.head.split_at(2);
        let size = match head[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if head[1] & 0x80 == 0 { 0 } else { 4 };
        if self.has < 2 || self.has < 2 + size + mask {
            return;
        }
        let short = u64::from(head[1] & 0x7f);
        let long = length[..size].iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        self.left = if size == 0 { short } else { long };
        self.parting |= head[0] & 0x0f == CLOSE;
        self.has = 0;
    }

    /// A close frame has come.
    pub const fn is_parting(&self) -> bool {
        self.parting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of zeros.
    fn frame(opcode: u8, masked: bool, payload: usize) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x80 | opcode];
        match u16::try_from(payload) {
            Ok(short) if short < 126 => bytes.push(mask | u8::try_from(short).unwrap()),
            Ok(middle) => {
                bytes.push(mask | 126);
                bytes.extend(middle.to_be_bytes());
            }
            Err(_) => {
                bytes.push(mask | 127);
                bytes.extend(u64::try_from(payload).unwrap().to_be_bytes());
            }
        }
        bytes.resize(bytes.len() + if masked { 4 } else { 0 }, 0x88);
        // Looks like the frame that it is not.
        bytes.resize(bytes.len() + payload, 0x88);
        bytes
    }

    #[test]
    fn a_close_frame_is_found_however_the_bytes_come() {
        for masked in [false, true] {
            let sizes = [0, 1, 125, 126, 65_535, 65_536];
            let data: Vec<u8> = sizes.iter().flat_map(|size| frame(2, masked, *size)).collect();
            for piece in [1, 2, 3, 7, 8192, data.len()] {
                let mut frames = Frames::default();
                for bytes in data.chunks(piece) {
                    frames.pass(bytes);
                    assert!(!frames.is_parting(), "by {piece}, masked: {masked}");
                }
                for bytes in frame(CLOSE, masked, 2).chunks(piece) {
                    frames.pass(bytes);
                }
                assert!(frames.is_parting(), "by {piece}, masked: {masked}");
            }
        }
    }
}
