//! Bytes for the disk that tell damage from content.
//!
//! ```text
//!   MAGIC VERSION <CRC32C, 8 hex digits> <bytes of the body>\n
//!   body
//! ```
//! Invariants: no change of a single byte, no cut and no addition is taken for intact. The checksum covers the header before it
//! and the body, so that a flipped version number is damage, not a newer version. The header's form never changes.

/// No header is longer: the magic, three numbers and the blanks between them.
const HEADER_MAX: usize = 80;

/// Why bytes are not what somebody sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealError {
    /// They do not begin with the magic.
    Foreign,
    /// They were cut off or changed.
    Damaged,
}

/// The body with its header.
#[must_use]
pub fn seal(magic: &str, version: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = header(magic, version, body).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Version and body of intact bytes. The header is checked by writing it again: so a sign, a leading zero or a capital
/// that a parser would forgive is damage too.
///
/// # Errors
/// Where they are not exactly what [`seal`] makes.
pub fn open<'a>(magic: &str, bytes: &'a [u8]) -> Result<(u32, &'a [u8]), SealError> {
    if !bytes.starts_with(magic.as_bytes()) {
        return Err(SealError::Foreign);
    }
    let damaged = SealError::Damaged;
    let end = bytes.iter().take(HEADER_MAX).position(|b| *b == b'\n').ok_or(damaged)?;
    let (line, body) = bytes.split_at(end + 1);
    let text = std::str::from_utf8(line).map_err(|_| damaged)?;
    let version = text.split(' ').nth(1).and_then(|v| v.parse().ok()).ok_or(damaged)?;
    if text != header(magic, version, body) {
        return Err(damaged);
    }
    Ok((version, body))
}

/// The header line of a body, with its line end.
fn header(magic: &str, version: u32, body: &[u8]) -> String {
    let start = format!("{magic} {version} ");
    let checksum = crc32c::crc32c_append(crc32c::crc32c(start.as_bytes()), body);
    format!("{start}{checksum:08x} {}\n", body.len())
}
