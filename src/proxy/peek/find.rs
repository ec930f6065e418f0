//! Where a string of JSON stops being plain. PURE.
//!
//! Invariant: the quick way gives the same answer as the plain one, which tests hold it against.

/// What is looked at in one step. The compiler makes a few vector instructions of it.
const BLOCK: usize = 64;

/// What ends a plain run: the string's end, an escape, or a byte that must not be there.
const fn special(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < 0x20
}

/// How many bytes are plain, and whether any of them may be outside ASCII (too often is harmless).
pub(super) fn plain(bytes: &[u8]) -> (usize, bool) {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let mut wide = 0;
    for (at, block) in blocks.iter().enumerate() {
        wide |= block.iter().fold(0, |all, byte| all | byte);
        if block.iter().fold(false, |any, byte| any | special(*byte)) {
            return (at * BLOCK + words(block), wide >= 0x80);
        }
    }
    let more = words(rest);
    wide |= rest[..more].iter().fold(0, |all, byte| all | byte);
    (blocks.len() * BLOCK + more, wide >= 0x80)
}

/// The same, eight bytes at a time.
fn words(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    // The lowest bit set tells the first byte below `n`; bits above it may be wrong.
    let below = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word & HIGH;
    let (chunks, rest) = bytes.as_chunks::<8>();
    for (at, chunk) in chunks.iter().enumerate() {
        let word = u64::from_le_bytes(*chunk);
        let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
        let hits = below(word, 0x20) | equal(b'"') | equal(b'\\');
        if hits != 0 {
            return at * 8 + hits.trailing_zeros() as usize / 8;
        }
    }
    let more = rest.iter().position(|byte| special(*byte)).unwrap_or(rest.len());
    chunks.len() * 8 + more
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_quick_way_is_right(bytes in prop::collection::vec(prop_oneof![
            60 => Just(b'a'), 1 => Just(0xc3), 1 => Just(0x7f), 1 => any::<u8>(),
        ], 0..300)) {
            let want = bytes.iter().position(|b| special(*b)).unwrap_or(bytes.len());
            let (count, wide) = plain(&bytes);
            prop_assert_eq!(count, want);
            prop_assert!(wide || bytes[..count].is_ascii());
        }
    }
}
