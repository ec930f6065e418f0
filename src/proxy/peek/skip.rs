//! Over the inside of a string that nobody wants to read. PURE.
//!
//! Purpose: a prompt is nearly all of a body, and nearly all of it is the inside of strings, so this is where the scan's time
//! goes. 64 bytes are looked at in one step, and escapes are told by arithmetic on masks of 64 bits, one for each byte.
//! Invariant: the answer is that of the plain way, byte for byte, which a test holds it against.

use wide::u8x16;

/// What is looked at in one step.
const BLOCK: usize = 64;
/// What a register holds on every processor that this runs on.
const LANE: usize = 16;
/// What no block holds at its end: it stops there.
const PAD: u8 = 0;

/// How many bytes from the start are inside of the string for sure: plain ones, and whole escapes that are allowed (a
/// surrogate pair is one). What comes then is the string's end, an escape that is wrong or not all here, a control character,
/// or the end of the bytes. `bytes` begins outside an escape; that it is UTF-8 is somebody else's business.
pub(super) fn skip(bytes: &[u8]) -> usize {
    if let Some(near) = bytes.first_chunk().and_then(near) {
        return near;
    }
    blocks(bytes)
}

/// How many bytes from the start are plain ones: what comes then is an escape, the string's end, a control character, or the
/// end of the bytes.
pub(super) fn plain(bytes: &[u8]) -> usize {
    if let Some(lane) = bytes.first_chunk::<LANE>() {
        let lane = u8x16::new(*lane);
        let stops = (ends(lane) | equal(lane, b'\\')).to_bitmask();
        if stops != 0 {
            return stops.trailing_zeros() as usize;
        }
    }
    let stop = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
    bytes.iter().position(stop).unwrap_or(bytes.len())
}

/// The same as [`skip`], block by block. Not a part of its caller, whose registers it needs.
#[inline(never)]
fn blocks(bytes: &[u8]) -> usize {
    let mut padded = [PAD; BLOCK];
    let mut at = 0;
    let mut carry = 0;
    'blocks: loop {
        let rest = &bytes[at..];
        let block = rest.first_chunk().unwrap_or_else(|| {
            padded[..rest.len()].copy_from_slice(rest);
            padded[rest.len()..].fill(PAD);
            &padded
        });
        let block = Block::new(block);
        if carry == 0 && block.is_plain() {
            at += BLOCK;
            continue;
        }
        let escapes = Escapes::find(block.backslashes(), carry);
        let stop = block.ends() & !escapes.second;
        // The second halves of escapes in front of it that are not among the three that texts are full of.
        let mut rare = match escapes.second & below(stop) {
            0 => 0,
            some => some & !block.often(),
        };
        while rare != 0 {
            let second = at + rare.trailing_zeros() as usize;
            let length = escape(&bytes[second..]);
            if length == 0 {
                return second - 1;
            }
            let next = second + length - at;
            if next >= BLOCK {
                // No escape is half read there.
                at += next;
                carry = 0;
                continue 'blocks;
            }
            rare &= u64::MAX << next;
        }
        if stop != 0 {
            return at + stop.trailing_zeros() as usize;
        }
        at += BLOCK;
        carry = escapes.carry;
    }
}

/// The same, if it is within the first lane and no escape is before it. So it is with most strings, for most are keys.
#[inline(always)]
fn near(bytes: &[u8; LANE]) -> Option<usize> {
    let lane = u8x16::new(*bytes);
    let (ends, backslashes) = (ends(lane).to_bitmask(), equal(lane, b'\\').to_bitmask());
    let before = ends.trailing_zeros();
    (ends != 0 && backslashes.trailing_zeros() > before).then_some(before as usize)
}

/// All bits below the lowest one that is set; all there are if none is.
const fn below(mask: u64) -> u64 {
    mask.wrapping_sub(1) & !mask
}

/// 64 bytes. The masks have a bit for each, the first byte's lowest.
struct Block([u8x16; BLOCK / LANE]);

impl Block {
    #[inline(always)]
    fn new(bytes: &[u8; BLOCK]) -> Self {
        let mut lanes = [u8x16::ZERO; BLOCK / LANE];
        for (lane, part) in lanes.iter_mut().zip(bytes.as_chunks().0) {
            *lane = u8x16::new(*part);
        }
        Self(lanes)
    }

    #[inline(always)]
    fn mask(&self, test: impl Fn(u8x16) -> u8x16) -> u64 {
        let [a, b, c, d] = self.0.map(|lane| u64::from(test(lane).to_bitmask()));
        a | b << LANE | c << (2 * LANE) | d << (3 * LANE)
    }

    /// Whether it is all plain bytes, as most blocks are: one mask tells.
    #[inline(always)]
    fn is_plain(&self) -> bool {
        let [a, b, c, d] = self.0.map(|lane| ends(lane) | equal(lane, b'\\'));
        (a | b | c | d).to_bitmask() == 0
    }

    #[inline(always)]
    fn backslashes(&self) -> u64 {
        self.mask(|lane| equal(lane, b'\\'))
    }

    #[inline(always)]
    fn ends(&self) -> u64 {
        self.mask(ends)
    }

    /// The second halves of `\n`, `\"` and `\\`.
    #[inline(always)]
    fn often(&self) -> u64 {
        self.mask(|lane| equal(lane, b'n') | equal(lane, b'"') | equal(lane, b'\\'))
    }
}

#[inline(always)]
fn equal(lane: u8x16, byte: u8) -> u8x16 {
    lane.simd_eq(u8x16::splat(byte))
}

/// Quotes and control characters.
#[inline(always)]
fn ends(lane: u8x16) -> u8x16 {
    equal(lane, b'"') | lane.min(u8x16::splat(0x1f)).simd_eq(lane)
}

/// The escapes of a block.
struct Escapes {
    /// The bytes behind the backslashes that begin one.
    second: u64,
    /// 1: the last byte begins one, so the next block's first byte is its second half.
    carry: u64,
}

impl Escapes {
    /// In a run of backslashes every other one begins an escape. A subtraction lets a borrow run through each of them, which
    /// comes out at the end of those of odd length; bits at odd places make that true wherever a run begins. (The way is
    /// simdjson's.)
    #[inline(always)]
    fn find(backslashes: u64, carry: u64) -> Self {
        const ODD: u64 = u64::MAX / 3 * 2;
        let may_begin = backslashes & !carry;
        let ends_and_begins = (may_begin << 1 | ODD).wrapping_sub(may_begin) ^ ODD;
        Self {
            second: ends_and_begins ^ (backslashes | carry),
            carry: (ends_and_begins & may_begin) >> 63,
        }
    }
}

/// How many bytes an escape has from its second byte on, with others of the form `\uXXXX` that follow; 0: it is wrong, or not
/// all here.
#[inline(always)]
fn escape(bytes: &[u8]) -> usize {
    match bytes.first() {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => return 1,
        Some(b'u') => {}
        Some(_) | None => return 0,
    }
    let mut length = unicode(bytes);
    while length != 0
        && let Some([b'\\', rest @ ..]) = bytes.get(length..)
        && let more @ 1.. = unicode(rest)
    {
        length += 1 + more;
    }
    length
}

/// The same of one `uXXXX`, or a pair.
#[inline(always)]
fn unicode(bytes: &[u8]) -> usize {
    let Some(([b'u', digits @ ..], rest)) = bytes.split_first_chunk::<5>() else { return 0 };
    match unit(digits) {
        Some(0xd800..0xdc00) => match rest.first_chunk::<6>() {
            Some([b'\\', b'u', digits @ ..]) if matches!(unit(digits), Some(0xdc00..0xe000)) => 11,
            Some(_) | None => 0,
        },
        Some(0xdc00..0xe000) | None => 0,
        Some(_) => 5,
    }
}

/// What four hexadecimal digits say.
#[inline(always)]
fn unit(digits: &[u8; 4]) -> Option<u32> {
    let [a, b, c, d] = digits.map(|digit| u32::from(HEX[usize::from(digit)]));
    ((a | b | c | d) < 16).then_some(a << 12 | b << 8 | c << 4 | d)
}

/// What each byte says as a hexadecimal digit; 16: nothing.
static HEX: [u8; 256] = {
    let mut table = [16; 256];
    let mut value = 0;
    while value < 16 {
        let digit = b"0123456789abcdef"[value as usize];
        table[digit as usize] = value;
        table[digit.to_ascii_uppercase() as usize] = value;
        value += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `skip`, as one would write it first.
    fn plain(bytes: &[u8]) -> usize {
        let mut at = 0;
        loop {
            let length = match bytes.get(at..).unwrap_or_default() {
                [] | [b'"' | 0..0x20, ..] => return at,
                [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
                [b'\\', b'u', rest @ ..] => match four(rest) {
                    Some(0xd800..=0xdbff) => match rest.get(4..).unwrap_or_default() {
                        [b'\\', b'u', rest @ ..] if matches!(four(rest), Some(0xdc00..=0xdfff)) => {
                            12
                        }
                        _ => return at,
                    },
                    Some(0xdc00..=0xdfff) | None => return at,
                    Some(_) => 6,
                },
                [b'\\', ..] => return at,
                _ => 1,
            };
            at += length;
        }
    }

    fn four(bytes: &[u8]) -> Option<u32> {
        bytes.get(..4)?.iter().try_fold(0, |unit, b| Some(unit * 16 + char::from(*b).to_digit(16)?))
    }

    const SHORT: [&str; 8] = [r"\n", "\\\"", r"\\", r"\t", r"\r", r"\/", r"\b", r"\f"];
    const WIDE: [&str; 5] =
        [r"\u00e9", r"\uD83D\ude00", r"\ufFfF", r"\u5feb\u901f", "é快\u{1f600}"];
    const WRONG: [&str; 8] =
        [r"\ud800", r"\udc00", r"\ud800\n", r"\uDBFF\ud800", r"\u12", r"\u00g0", r"\x", "\""];

    /// What strings are made of, and what breaks them.
    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let of = |some: &'static [&'static str]| {
            prop::sample::select(some).prop_map(|s| s.as_bytes().to_vec())
        };
        let piece = prop_oneof![
            12 => (0..70_usize).prop_map(|n| vec![b'a'; n]),
            12 => of(&SHORT),
            8 => of(&WIDE),
            4 => (1..140_usize).prop_map(|n| vec![b'\\'; n]),
            1 => of(&WRONG),
            1 => any::<u8>().prop_map(|b| vec![b]),
        ];
        prop::collection::vec(piece, 0..40).prop_map(|all| all.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Wherever it begins against the blocks, and wherever the bytes end.
        #[test]
        fn plain_bytes_end_where_one_would_see_it(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let stop = |b: &u8| *b == b'"' || *b == b'\\' || *b < 0x20;
            let end = bytes.iter().position(stop).unwrap_or(bytes.len());
            prop_assert_eq!(super::plain(&bytes), end);
        }

        #[test]
        fn the_quick_way_is_right(
            bytes in pieces(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let mut bytes = bytes;
            for (at, byte) in damage {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            for lead in 0..=BLOCK {
                let shifted = [vec![b' '; lead], bytes.clone()].concat();
                prop_assert_eq!(skip(&shifted), plain(&shifted), "{:?}", shifted.escape_ascii());
            }
            for cut in 0..bytes.len() {
                prop_assert_eq!(skip(&bytes[cut..]), plain(&bytes[cut..]));
                prop_assert_eq!(skip(&bytes[..cut]), plain(&bytes[..cut]));
            }
        }
    }

    /// A run of backslashes of any length at any place, and each byte behind one.
    #[test]
    fn every_escape_at_every_place() {
        for lead in 0..=BLOCK {
            for run in 0..=2 * BLOCK {
                let bytes = [vec![b'a'; lead], vec![b'\\'; run], b"\"n".repeat(40)].concat();
                assert_eq!(skip(&bytes), plain(&bytes), "{lead} {run}");
            }
            for byte in 0..=u8::MAX {
                let bytes =
                    [vec![b'a'; lead], vec![b'\\', byte], b"0041 and more".repeat(9)].concat();
                assert_eq!(skip(&bytes), plain(&bytes), "{lead} {byte}");
            }
        }
    }

    /// Every four digits, alone and as either half of a pair.
    #[test]
    fn every_unit() {
        for unit in 0..=u16::MAX {
            for text in [
                format!("\\u{unit:04x}."),
                format!("\\u{unit:04X}\\udc00"),
                format!("\\ud800\\u{unit:04x}"),
            ] {
                assert_eq!(skip(text.as_bytes()), plain(text.as_bytes()), "{text}");
            }
        }
    }
}
