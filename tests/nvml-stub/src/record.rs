//! One slot of the claims table, as bytes.
//!
//! 128 bytes, little endian: magic `NVSC`, checksum of the rest (FNV-1a), bytes claimed, time taken,
//! time freed (0 = not freed), PID and PID namespace as the claimant sees itself, UUID padded with
//! zeroes. A slot whose magic or checksum is wrong is empty or is just being written.

/// Bytes a slot takes in the file.
pub(crate) const LEN: usize = 128;
const MAGIC: [u8; 4] = *b"NVSC";
const UUID_LEN: usize = 80;

/// What a claimant wrote about its claim. Times are milliseconds of the monotonic clock, which is
/// one clock for all containers of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub uuid: String,
    pub bytes: u64,
    pub taken_ms: u64,
    pub freed_ms: u64,
    pub pid: u32,
    pub pid_namespace: u64,
}

impl Record {
    pub(crate) fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.taken_ms.to_le_bytes());
        out[24..32].copy_from_slice(&self.freed_ms.to_le_bytes());
        out[32..36].copy_from_slice(&self.pid.to_le_bytes());
        out[40..48].copy_from_slice(&self.pid_namespace.to_le_bytes());
        let uuid = &self.uuid.as_bytes()[..self.uuid.len().min(UUID_LEN)];
        out[48..48 + uuid.len()].copy_from_slice(uuid);
        let sum = checksum(&out[8..]);
        out[4..8].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The record in a slot; `None` when the slot was never used or is half written.
    pub(crate) fn decode(slot: &[u8]) -> Option<Self> {
        let slot: &[u8; LEN] = slot.try_into().ok()?;
        if slot[..4] != MAGIC || slot[4..8] != checksum(&slot[8..]).to_le_bytes() {
            return None;
        }
        let u64_at = |at: usize| -> Option<u64> {
            Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?))
        };
        let name = &slot[48..];
        let end = name.iter().position(|b| *b == 0).unwrap_or(UUID_LEN);
        Some(Self {
            uuid: std::str::from_utf8(&name[..end]).ok()?.to_owned(),
            bytes: u64_at(8)?,
            taken_ms: u64_at(16)?,
            freed_ms: u64_at(24)?,
            pid: u32::from_le_bytes(slot[32..36].try_into().ok()?),
            pid_namespace: u64_at(40)?,
        })
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, b| (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            uuid: "GPU-6a1e".into(),
            bytes: 7 << 30,
            taken_ms: 12,
            freed_ms: 0,
            pid: 1,
            pid_namespace: 4_026_531_836,
        }
    }

    #[test]
    fn a_slot_comes_back_as_written() {
        assert_eq!(Record::decode(&record().encode()), Some(record()));
    }

    #[test]
    fn every_torn_slot_is_no_record() {
        let whole = record().encode();
        assert_eq!(Record::decode(&[0; LEN]), None);
        for at in 0..LEN {
            let mut torn = whole;
            torn[at] ^= 0x10;
            assert_eq!(Record::decode(&torn), None, "byte {at}");
        }
    }
}
