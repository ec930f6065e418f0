//! Object paths. PURE.
//!
//! Purpose: a model's name or a device's identifier as the last label of an object path, escaped as systemd's own
//! (`sd_bus_path_encode`): every byte that is neither a letter nor a digit, and a leading digit, becomes `_` and two lower-case
//! hexadecimal digits; nothing at all becomes `_`. Invariant: [`unescape`] gives back what [`escape`] took.

use zbus::OwnedObjectPath;

/// Where the manager is, with the ObjectManager of all that is below.
pub const ROOT: &str = "/org/hostler1";

/// One label.
#[must_use]
pub fn escape(text: &str) -> String {
    if text.is_empty() {
        return "_".to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for (at, byte) in text.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit()) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("_{byte:02x}"));
        }
    }
    out
}

/// What a label was made of; `None`: [`escape`] makes no such label.
#[must_use]
pub fn unescape(label: &str) -> Option<String> {
    if label == "_" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(label.len());
    let mut rest = label.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'_' {
            let digits = [rest.next()?, rest.next()?];
            let digits = std::str::from_utf8(&digits).ok()?.to_owned();
            bytes.push(u8::from_str_radix(&digits, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| escape(text) == label)
}

/// The manager's object.
#[must_use]
pub fn manager() -> OwnedObjectPath {
    OwnedObjectPath::try_from(ROOT).unwrap_or_default()
}

/// A model's object.
#[must_use]
pub fn model(name: &str) -> OwnedObjectPath {
    below("model", &escape(name))
}

/// A device's object.
#[must_use]
pub fn gpu(id: &str) -> OwnedObjectPath {
    below("gpu", &escape(id))
}

/// A job's object.
#[must_use]
pub fn job(id: u32) -> OwnedObjectPath {
    below("job", &id.to_string())
}

fn below(kind: &str, label: &str) -> OwnedObjectPath {
    // Labels of letters, digits and underscores cannot fail to make a path.
    OwnedObjectPath::try_from(format!("{ROOT}/{kind}/{label}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_systemd_escapes() {
        // From sd_bus_path_encode(3) and systemd's own test of it.
        assert_eq!(escape(""), "_");
        assert_eq!(escape("foo.bar"), "foo_2ebar");
        assert_eq!(escape("foo_2ebar"), "foo_5f2ebar");
        assert_eq!(escape("0"), "_30");
        assert_eq!(escape("a/b-c_d"), "a_2fb_2dc_5fd");
        assert_eq!(model("Qwen/Qwen3-8B").as_str(), "/org/hostler1/model/Qwen_2fQwen3_2d8B");
        assert_eq!(gpu("GPU-1").as_str(), "/org/hostler1/gpu/GPU_2d1");
        assert_eq!(job(7).as_str(), "/org/hostler1/job/7");
    }

    #[test]
    fn there_and_back() {
        for text in ["", "a", "7b", "org/model@v1+int4", "_", "é", "a:b"] {
            assert_eq!(unescape(&escape(text)).as_deref(), Some(text));
        }
        for bad in ["_x", "_2", "7", "_41", "a_2E", "-"] {
            assert_eq!(unescape(bad), None, "{bad}");
        }
    }
}
