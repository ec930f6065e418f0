//! The machine that reads JSON as it comes. PURE.
//!
//! Purpose: one pass over a body in pieces of any size, without a document: proves it to be well-formed and picks top-level
//! values out. Owner: whoever takes a body in. Invariants: memory is bounded whatever is fed; what is accepted reads the same
//! for every parser (no lone surrogates, no bytes that are not UTF-8, no numbers beyond a double, no key of the table twice or in
//! another case);
//! the answer does not depend on where the pieces are cut.

mod characters;
mod text;

use super::param::{self, PARAMS};
use super::skip::{plain, skip};
use super::{Peek, PeekError};
use crate::types::ModelName;
use characters::{Characters, Taken};

/// How deep arrays and objects may be nested. A stack of the engine's is not ours to exhaust.
pub(in crate::proxy) const DEPTH_MAX: u32 = 127;
/// The longest number, in bytes.
const NUMBER_MAX: usize = 128;
/// A longer name is refused anyway; so much of it is kept to say so.
const TEXT_MAX: usize = ModelName::LENGTH_MAX + 8;

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Value,
    /// Just behind `[`.
    ValueOrEnd,
    /// Just behind `{`.
    KeyOrEnd,
    Key,
    Colon,
    CommaOrEnd,
    Text,
    Escape,
    /// So many hexadecimal digits have come.
    Unicode(u8),
    Number(Digits),
    /// The rest of `true`, `false` or `null`.
    Word(&'static [u8], Scalar),
    Done,
}

/// Where in a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digits {
    Minus,
    Zero,
    Int,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scalar {
    True,
    False,
    Null,
}

/// See the module's text.
#[derive(Debug)]
pub(in crate::proxy) struct Scan {
    at: At,
    /// One bit a level: an object?
    objects: u128,
    depth: u32,
    /// The string being read is a key.
    is_key: bool,
    /// The string or number being read, as far as anybody wants it.
    token: Vec<u8>,
    /// How much of the string is wanted; 0: nothing.
    want: usize,
    /// Index into the table of the top-level key whose value comes.
    key: Option<usize>,
    seen: u32,
    characters: Characters,
    unit: u16,
    high: Option<u16>,
    fed: u64,
    model: Option<String>,
    stream: bool,
    /// The answer is wanted later, by `background`.
    background: bool,
    /// Which is not to be had.
    foreground: bool,
    empty: bool,
}

impl Scan {
    pub fn new() -> Self {
        Self {
            at: At::Value,
            objects: 0,
            depth: 0,
            is_key: false,
            // Room for what is wanted of most bodies.
            token: Vec::with_capacity(64),
            want: 0,
            key: None,
            seen: 0,
            characters: Characters::default(),
            unit: 0,
            high: None,
            fed: 0,
            model: None,
            stream: false,
            background: false,
            foreground: false,
            empty: true,
        }
    }

    /// The model, as the client wrote it, once it was read. What is still to come may yet be refused.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// From now on a body is refused that wants its answer later, without a request that lasts as long as the work.
    ///
    /// # Errors
    /// If that was said already.
    pub fn in_foreground(&mut self) -> Result<(), PeekError> {
        self.foreground = true;
        if self.background { Err(PeekError::Background) } else { Ok(()) }
    }

    /// Takes a piece in.
    ///
    /// # Errors
    /// Why the body is refused; what comes after is of no interest.
    pub fn feed(&mut self, piece: &[u8]) -> Result<(), PeekError> {
        self.empty &= piece.is_empty();
        let Taken { begun, whole, wrong } = self.characters.take(piece);
        // In the order of the bytes, so that the answer is the same however they are cut.
        self.walk(&begun)?;
        self.walk(whole)?;
        if wrong {
            return Err(self.bad(whole.len(), "bytes that are not UTF-8"));
        }
        self.fed += piece.len() as u64;
        Ok(())
    }

    fn walk(&mut self, piece: &[u8]) -> Result<(), PeekError> {
        let mut i = 0;
        while let Some(&byte) = piece.get(i) {
            if self.at != At::Text {
                i += usize::from(self.step(byte, i)?);
                continue;
            }
            if self.is_unwanted() {
                i += skip(&piece[i..]);
            } else if self.high.is_none() {
                let run = plain(&piece[i..]);
                self.keep(&piece[i..i + run]);
                i += run;
            }
            if let Some(&byte) = piece.get(i) {
                self.text(byte, i)?;
                i += 1;
            }
        }
        Ok(())
    }

    /// The body has ended.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn finish(mut self) -> Result<Peek, PeekError> {
        if self.empty {
            return Err(PeekError::Empty);
        }
        if let (At::Number(digits), 0) = (self.at, self.depth) {
            self.number_ends(digits, 0)?;
        }
        if self.at != At::Done || !self.characters.are_whole() {
            return Err(PeekError::Malformed("it ends in the middle".into()));
        }
        if self.seen & NOT_OBJECT != 0 {
            return Err(PeekError::NotObject);
        }
        let model = self.model.ok_or(PeekError::ModelMissing)?;
        Ok(Peek { model, stream: self.stream })
    }

    fn bad(&self, i: usize, why: &str) -> PeekError {
        PeekError::Malformed(format!("{why} at byte {}", self.fed + i as u64))
    }

    /// One byte outside a string; `false`: it is not used up, for it ended a number.
    #[inline(always)]
    fn step(&mut self, byte: u8, i: usize) -> Result<bool, PeekError> {
        match (self.at, byte) {
            (
                At::Value
                | At::ValueOrEnd
                | At::KeyOrEnd
                | At::Key
                | At::Colon
                | At::CommaOrEnd
                | At::Done,
                b' ' | b'\n' | b'\r' | b'\t',
            ) => {}
            (At::KeyOrEnd, b'}') | (At::ValueOrEnd, b']') => self.close(),
            (At::CommaOrEnd, b'}') if self.in_object() => self.close(),
            (At::CommaOrEnd, b']') if !self.in_object() => self.close(),
            (At::CommaOrEnd, b',') => self.at = if self.in_object() { At::Key } else { At::Value },
            (At::KeyOrEnd | At::Key, b'"') => {
                let want = if self.depth == 1 { param::NAME_MAX + 1 } else { 0 };
                self.text_starts(true, want);
            }
            (At::Colon, b':') => self.at = At::Value,
            (At::Value | At::ValueOrEnd, _) => self.value(byte, i)?,
            (At::Escape, _) => self.escape(byte, i)?,
            (At::Unicode(count), _) => self.unicode(count, byte, i)?,
            (At::Number(digits), _) => return self.digit(digits, byte, i),
            (At::Word(rest, word), _) => match rest.split_first() {
                Some((first, rest)) if *first == byte => {
                    self.at = At::Word(rest, word);
                    if rest.is_empty() {
                        self.word(word)?;
                    }
                }
                _ => return Err(self.bad(i, "an unknown word")),
            },
            (At::KeyOrEnd | At::Key, _) => return Err(self.bad(i, "no key")),
            (At::Colon, _) => return Err(self.bad(i, "no colon")),
            (At::CommaOrEnd, _) => return Err(self.bad(i, "no comma")),
            (At::Done, _) => return Err(self.bad(i, "something behind the end")),
            (At::Text, _) => {}
        }
        Ok(true)
    }

    const fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }

    /// The key of the table that the value being read belongs to.
    fn wanted(&self) -> Option<usize> {
        self.key.filter(|_| self.depth == 1)
    }

    #[inline(always)]
    fn value(&mut self, byte: u8, i: usize) -> Result<(), PeekError> {
        if self.depth == 0 && byte != b'{' {
            self.seen |= NOT_OBJECT;
        }
        // Engines are generous: to vLLM 1 and "true" are true.
        let want = self.wanted();
        if want == Some(BACKGROUND) && !matches!(byte, b'f' | b'n') {
            self.background = true;
            if self.foreground {
                return Err(PeekError::Background);
            }
        }
        match byte {
            b'"' => {
                if let Some(key) = want
                    && !matches!(PARAMS[key].kind, param::Kind::Text | param::Kind::Any)
                {
                    return Err(wrong_type(key));
                }
                self.text_starts(false, if want.is_some() { TEXT_MAX } else { 0 });
            }
            b'{' | b'[' => {
                if let Some(key) = want
                    && PARAMS[key].kind != param::Kind::Any
                {
                    return Err(wrong_type(key));
                }
                if self.depth == DEPTH_MAX {
                    return Err(self.bad(i, "nested too deep"));
                }
                self.depth += 1;
                self.objects = self.objects << 1 | u128::from(byte == b'{');
                self.at = if byte == b'{' { At::KeyOrEnd } else { At::ValueOrEnd };
            }
            b't' => self.at = At::Word(b"rue", Scalar::True),
            b'f' => self.at = At::Word(b"alse", Scalar::False),
            b'n' => self.at = At::Word(b"ull", Scalar::Null),
            b'-' | b'0'..=b'9' => {
                self.token.clear();
                self.token.push(byte);
                self.at = At::Number(match byte {
                    b'-' => Digits::Minus,
                    b'0' => Digits::Zero,
                    _ => Digits::Int,
                });
            }
            _ => return Err(self.bad(i, "no value")),
        }
        Ok(())
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.objects >>= 1;
        self.value_ended();
    }

    fn value_ended(&mut self) {
        self.at = if self.depth == 0 { At::Done } else { At::CommaOrEnd };
    }

    fn word(&mut self, word: Scalar) -> Result<(), PeekError> {
        if let Some(key) = self.wanted() {
            match word {
                Scalar::Null if key != MODEL => {}
                Scalar::True | Scalar::False if PARAMS[key].kind.bool() => {
                    if key == STREAM {
                        self.stream = word == Scalar::True;
                    }
                }
                Scalar::Null | Scalar::True | Scalar::False => return Err(wrong_type(key)),
            }
        }
        self.value_ended();
        Ok(())
    }

    fn digit(&mut self, digits: Digits, byte: u8, i: usize) -> Result<bool, PeekError> {
        use Digits::{E, Exponent, Fraction, Int, Minus, Point, Sign, Zero};
        let next = match (digits, byte) {
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') | (Int, b'0'..=b'9') => Int,
            (Zero | Int, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Int | Fraction, b'e' | b'E') => E,
            (E, b'+' | b'-') => Sign,
            (E | Sign | Exponent, b'0'..=b'9') => Exponent,
            _ => return self.number_ends(digits, i).map(|()| false),
        };
        if self.token.len() == NUMBER_MAX {
            return Err(self.bad(i, "a number that is too long"));
        }
        self.token.push(byte);
        self.at = At::Number(next);
        Ok(true)
    }

    /// The number that was read.
    fn number(&self, digits: Digits) -> f64 {
        // Short whole numbers, which most are, need no rounding.
        if digits == Digits::Int && self.token.len() < 10 && self.token[0] != b'-' {
            let add = |sum: u32, digit: &u8| sum * 10 + u32::from(digit - b'0');
            return self.token.iter().fold(0, add).into();
        }
        let text = std::str::from_utf8(&self.token).unwrap_or_default();
        text.parse().unwrap_or(f64::INFINITY)
    }

    fn number_ends(&mut self, digits: Digits, i: usize) -> Result<(), PeekError> {
        use Digits::{Exponent, Fraction, Int, Zero};
        if !matches!(digits, Zero | Int | Fraction | Exponent) {
            return Err(self.bad(i, "an unfinished number"));
        }
        let wanted = self.wanted();
        if wanted.is_some() || digits == Exponent {
            let value = self.number(digits);
            if !value.is_finite() {
                return Err(self.bad(i, "a number that is too large"));
            }
            if let Some(key) = wanted {
                PARAMS[key].kind.number(value).map_err(|must| match PARAMS[key].kind {
                    param::Kind::Text | param::Kind::Bool => wrong_type(key),
                    param::Kind::Whole(..)
                    | param::Kind::Number(..)
                    | param::Kind::BoolOrWhole(..)
                    | param::Kind::Any => PeekError::Range(PARAMS[key].name, must),
                })?;
            }
        }
        self.value_ended();
        Ok(())
    }
}

/// Where the keys that are more than checked are in the table.
const MODEL: usize = 0;
const STREAM: usize = 1;
const BACKGROUND: usize = 2;
/// A bit of `seen` beyond the table: the document is not an object.
const NOT_OBJECT: u32 = 1 << 31;

fn wrong_type(key: usize) -> PeekError {
    match key {
        MODEL => PeekError::ModelType,
        STREAM => PeekError::StreamType,
        _ => PeekError::Type(PARAMS[key].name, PARAMS[key].kind.expected()),
    }
}
