//! Whether bytes that come in pieces are UTF-8. PURE.
//!
//! Purpose: one quick pass over all of a body, so that what reads strings needs not look at characters. Invariant: of a piece,
//! nothing is kept but the beginning of a character whose end is in the next one.

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Characters {
    half: Vec<u8>,
}

impl Characters {
    /// How many bytes of a piece come before one that is wrong; the piece's length, if none is.
    pub fn take(&mut self, piece: &[u8]) -> usize {
        let mut at = 0;
        while !self.half.is_empty() {
            let Some(&byte) = piece.get(at) else { return at };
            self.half.push(byte);
            match std::str::from_utf8(&self.half) {
                Ok(_) => self.half.clear(),
                Err(error) if error.error_len().is_some() => return at,
                Err(_) => {}
            }
            at += 1;
        }
        match simdutf8::compat::from_utf8(&piece[at..]) {
            Ok(_) => piece.len(),
            Err(error) if error.error_len().is_none() => {
                self.half.extend_from_slice(&piece[at + error.valid_up_to()..]);
                piece.len()
            }
            Err(error) => at + error.valid_up_to(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The same as of the whole, but that a character which breaks off is found when the next byte comes.
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
            let good = cuts.windows(2).all(|w| characters.take(&bytes[w[0]..w[1]]) == w[1] - w[0]);
            prop_assert_eq!(good && characters.half.is_empty(), std::str::from_utf8(&bytes).is_ok());
        }
    }
}
