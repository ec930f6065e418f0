//! The part of the machine that reads strings. PURE.
//!
//! Invariant: of a string that nobody wants, nothing is kept.

use super::super::PeekError;
use super::super::param::{self, PARAMS};
use super::{At, MODEL, Scan};

impl Scan {
    #[inline(always)]
    pub(super) fn text_starts(&mut self, is_key: bool, want: usize) {
        self.at = At::Text;
        self.is_key = is_key;
        self.want = want;
        self.token.clear();
    }

    /// Whether what comes next in the string need only be right.
    pub(super) fn is_unwanted(&self) -> bool {
        self.high.is_none() && self.token.len() >= self.want
    }

    /// Keeps what somebody wants to read.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        let room = self.want.saturating_sub(self.token.len());
        self.token.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// One byte of a string, outside escapes.
    #[inline(always)]
    pub(super) fn text(&mut self, byte: u8, i: usize) -> Result<(), PeekError> {
        match byte {
            b'\\' => self.at = At::Escape,
            0..0x20 => return Err(self.bad(i, "a control character in a string")),
            _ if self.high.is_some() => return Err(self.bad(i, "half of a surrogate pair")),
            b'"' if self.is_key => {
                self.at = At::Colon;
                if self.depth == 1 {
                    let found = param::find(&self.token);
                    self.key = found.map(|(key, _)| key);
                    if let Some((key, exact)) = found {
                        if !exact {
                            return Err(PeekError::Case(PARAMS[key].name));
                        }
                        if self.seen & 1 << key != 0 {
                            return Err(PeekError::Twice(PARAMS[key].name));
                        }
                        self.seen |= 1 << key;
                    }
                }
            }
            b'"' => {
                if self.wanted() == Some(MODEL) {
                    // Cut in the middle of a character, if it was cut at all.
                    self.model = Some(String::from_utf8_lossy(&self.token).into_owned());
                }
                self.value_ended();
            }
            _ => self.keep(&[byte]),
        }
        Ok(())
    }

    pub(super) fn escape(&mut self, byte: u8, i: usize) -> Result<(), PeekError> {
        let plain = match byte {
            b'u' => {
                self.unit = 0;
                self.at = At::Unicode(0);
                return Ok(());
            }
            b'"' | b'\\' | b'/' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            _ => return Err(self.bad(i, "an unknown escape")),
        };
        if self.high.is_some() {
            return Err(self.bad(i, "half of a surrogate pair"));
        }
        self.keep(&[plain]);
        self.at = At::Text;
        Ok(())
    }

    pub(super) fn unicode(&mut self, count: u8, byte: u8, i: usize) -> Result<(), PeekError> {
        let Some(digit) = char::from(byte).to_digit(16) else {
            return Err(self.bad(i, "an escape that is not four hexadecimal digits"));
        };
        self.unit = self.unit << 4 | u16::try_from(digit).unwrap_or_default();
        if count < 3 {
            self.at = At::Unicode(count + 1);
            return Ok(());
        }
        self.at = At::Text;
        let high = self.high.take();
        if high.is_none() && (0xd800..0xdc00).contains(&self.unit) {
            self.high = Some(self.unit);
            return Ok(());
        }
        let units = high.into_iter().chain([self.unit]);
        for decoded in char::decode_utf16(units) {
            let Ok(decoded) = decoded else {
                return Err(self.bad(i, "half of a surrogate pair"));
            };
            self.keep(decoded.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    }
}
