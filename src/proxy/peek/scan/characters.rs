//! Whether bytes that come in pieces are UTF-8. PURE.
//!
//! Purpose: one quick pass over all of a body, so that what reads strings needs not look at characters. Invariant: of a piece,
//! nothing is kept but the beginning of a character whose end is in the next one.

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Characters {
    half: Vec<u8>,
}

/// What may be read after a piece has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken<'a> {
    /// The character that an earlier piece began with, now that its end is here.
    pub begun: Vec<u8>,
    /// Whole characters of the piece.
    pub whole: &'a [u8],
    /// What comes next is none, nor the beginning of one.
    pub wrong: bool,
}

impl Characters {
    /// Whether no character has begun whose end is still to come.
    pub const fn are_whole(&self) -> bool {
        self.half.is_empty()
    }

    /// Takes a piece in. The same is read wherever the pieces are cut.
    pub fn take<'a>(&mut self, piece: &'a [u8]) -> Taken<'a> {
        let mut begun = Vec::new();
        let mut rest = piece;
        while !self.half.is_empty() {
            let Some((&byte, behind)) = rest.split_first() else {
                return Taken { begun, whole: &[], wrong: false };
            };
            self.half.push(byte);
            match std::str::from_utf8(&self.half) {
                Ok(_) => begun = std::mem::take(&mut self.half),
                Err(error) if error.error_len().is_some() => {
                    return Taken { begun, whole: &[], wrong: true };
                }
                Err(_) => {}
            }
            rest = behind;
        }
        let Err(error) = simdutf8::compat::from_utf8(rest) else {
            return Taken { begun, whole: rest, wrong: false };
        };
        let (whole, end) = rest.split_at(error.valid_up_to());
        let wrong = error.error_len().is_some();
        if !wrong {
            self.half.extend_from_slice(end);
        }
        Taken { begun, whole, wrong }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cuts_make_no_difference(
            text in ".{0,40}", damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let mut bytes = text.into_bytes();
            for (at, byte) in damage {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut characters = Characters::default();
            let (mut read, mut right) = (Vec::new(), true);
            for piece in cuts.windows(2) {
                let taken = characters.take(&bytes[piece[0]..piece[1]]);
                read.extend_from_slice(&taken.begun);
                read.extend_from_slice(taken.whole);
                right &= !taken.wrong;
                if !right {
                    break;
                }
            }
            let all = std::str::from_utf8(&bytes);
            prop_assert_eq!(right && characters.half.is_empty(), all.is_ok());
            let whole = all.err().map_or(bytes.len(), |e| e.valid_up_to());
            prop_assert_eq!(&read, &bytes[..whole]);
        }
    }
}
